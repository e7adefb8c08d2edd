//! What each source of streams holds of what there is for all of them.
//!
//! A source is where somebody comes from: an address, or a component. One rule is for everything that
//! strangers could use up: **no source may hold more than is left for the others**; its first is given to
//! each as long as there is any. So one source gets at most half, two a third each, and whatever a few of
//! them do, something is left for the next (after Choudhury and Hahne, "Dynamic queue length thresholds
//! for shared-memory packet switches", 1998).
//!
//! Many sources, or a few one after the other, can use up all the same. What has proven nothing yet is therefore
//! held revocably: where nothing is left, the oldest gives way to a source that holds less. And an eighth is left
//! to those who have proven nothing: where others have the rest, whoever proves itself next gets the oldest of the
//! source that holds most.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::pending;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use messages::Domain;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::Config;
use crate::census::network;
use crate::pace::{Line, Pace, nanoseconds};
use crate::shortages::{Kind, Shortage, Shortages};

/// The quiet time after which stanzas may come faster for a while.
const BURST: Duration = Duration::from_secs(1);
/// Sources without an account from which on those are looked for that can be forgotten.
const FORGET_FROM: usize = 1024;

/// Where somebody comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// An address; of IPv6, a /64, since that is what one host gets.
    Address(IpAddr),
    /// A server that has this domain as a component.
    Component(Domain),
    /// This service: what it says without being asked.
    Service,
}

impl Source {
    pub(crate) fn address(address: IpAddr) -> Self {
        Self::Address(network(address))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Component(domain) => f.write_str(domain.as_str()),
            Self::Service => f.write_str("this service"),
        }
    }
}

/// What there is so much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Good {
    /// Streams that peers open.
    Streams,
    /// Dialback verifications.
    Verifications,
    /// Streams to peers.
    EgressStreams,
    /// Bytes of answers that wait.
    EgressBytes,
    /// Bytes of stanzas that have not come whole.
    UnreadBytes,
}

impl Good {
    /// The key that says how much there is.
    pub(crate) const fn key(self) -> &'static str {
        match self {
            Self::Streams => "xmpp.streams_max",
            Self::Verifications => "xmpp.verifications_max",
            Self::EgressStreams => "xmpp.egress_streams_max",
            Self::EgressBytes => "xmpp.egress_bytes_max",
            Self::UnreadBytes => "xmpp.unread_bytes_max",
        }
    }

    /// The key that says how much one source may have, where there is one beside the rule.
    pub(crate) const fn key_of_source(self) -> &'static str {
        match self {
            Self::Streams => "xmpp.streams_per_address_max",
            Self::Verifications => "xmpp.verifications_per_address_max",
            Self::EgressStreams | Self::EgressBytes | Self::UnreadBytes => self.key(),
        }
    }
}

/// One of each good.
#[derive(Default)]
struct Each<T> {
    streams: T,
    verifications: T,
    egress_streams: T,
    egress_bytes: T,
    unread_bytes: T,
}

impl<T> Each<T> {
    const fn of(&self, good: Good) -> &T {
        match good {
            Good::Streams => &self.streams,
            Good::Verifications => &self.verifications,
            Good::EgressStreams => &self.egress_streams,
            Good::EgressBytes => &self.egress_bytes,
            Good::UnreadBytes => &self.unread_bytes,
        }
    }
}

/// One of a good that may be taken back.
struct Lease {
    holder: Arc<Holder>,
    revoked: Arc<Notify>,
}

/// All that there is of one good.
struct Pool {
    total: usize,
    per_source: usize,
    used: AtomicUsize,
    /// What may be taken back, the oldest first.
    revocable: Mutex<BTreeMap<u64, Lease>>,
    /// What was so once and has proven itself.
    kept: Mutex<BTreeMap<u64, Lease>>,
    next: AtomicU64,
    /// Wakes who waits for room.
    freed: Notify,
}

impl Pool {
    fn new(total: usize, per_source: usize) -> Self {
        Self {
            total,
            per_source,
            used: AtomicUsize::new(0),
            revocable: Mutex::default(),
            kept: Mutex::default(),
            next: AtomicU64::new(0),
            freed: Notify::new(),
        }
    }

    fn revocable(&self) -> MutexGuard<'_, BTreeMap<u64, Lease>> {
        lock(&self.revocable)
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<u64, Lease>> {
        lock(&self.kept)
    }

    /// How many may be kept.
    const fn kept_max(&self) -> usize {
        self.total - self.total / 8
    }

    fn left(&self) -> usize {
        self.total.saturating_sub(self.used.load(Ordering::Relaxed))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a source that holds `held` may take so much more where `left` is left; what is left then.
fn grant(held: usize, amount: usize, left: usize, per_source: usize) -> Result<usize, Kind> {
    let after = held.saturating_add(amount);
    match left.checked_sub(amount) {
        _ if after > per_source => Err(Kind::OfSource),
        None => Err(Kind::OfAll),
        Some(left) if held == 0 || after <= left => Ok(left),
        Some(_) => Err(Kind::Share),
    }
}

/// The accounts of all sources, over all lanes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Accounts(Arc<Inner>);

struct Inner {
    pools: Each<Pool>,
    holders: Mutex<HashMap<Source, Weak<Holder>>>,
    shortages: Shortages,
    /// How fast the stanzas of one source are read, over all its streams.
    stanzas: Pace,
    /// The moment that lines count from.
    began: Instant,
    /// What sources that came and went have to make up for. Taken while `holders` is, never before it.
    debts: Mutex<HashMap<Source, u64>>,
}

impl Inner {
    /// What a source has to make up for from before.
    fn take_debt(&self, source: &Source) -> u64 {
        lock(&self.debts).remove(source).unwrap_or_default()
    }

    /// Remembers what a source has to make up for, and forgets what is made up for.
    fn keep_debt(&self, source: &Source, made_up: u64) {
        let now = nanoseconds(self.began.elapsed());
        if made_up <= now {
            return;
        }
        let mut debts = lock(&self.debts);
        if debts.len() >= FORGET_FROM {
            debts.retain(|_, made_up| *made_up > now);
        }
        debts.insert(source.clone(), made_up);
    }
}

impl Accounts {
    pub(crate) fn new(config: &Config) -> Self {
        let shared = |total| Pool::new(total, usize::MAX);
        Self(Arc::new(Inner {
            pools: Each {
                streams: Pool::new(config.streams_max, config.streams_per_address_max),
                verifications: Pool::new(
                    config.verifications_max,
                    config.verifications_per_address_max,
                ),
                egress_streams: shared(config.egress_streams_max),
                egress_bytes: shared(config.egress_bytes_max),
                unread_bytes: shared(config.unread_bytes_max),
            },
            holders: Mutex::default(),
            shortages: Shortages::default(),
            stanzas: Pace::per_second(config.stanzas_per_second_per_address_max, BURST),
            began: Instant::now(),
            debts: Mutex::default(),
        }))
    }

    /// The account of a source.
    pub(crate) fn of(&self, source: Source) -> Account {
        let mut holders = lock(&self.0.holders);
        if let Some(known) = holders.get(&source).and_then(Weak::upgrade) {
            return Account(known);
        }
        let holder = Arc::new(Holder {
            source: source.clone(),
            held: Each::default(),
            line: Line::resume(self.0.take_debt(&source)),
            accounts: self.clone(),
        });
        holders.insert(source, Arc::downgrade(&holder));
        Account(holder)
    }

    /// How much is left of a good.
    pub(crate) fn left(&self, good: Good) -> usize {
        self.0.pools.of(good).left()
    }

    /// Waits until there is any of a good, or something that can be taken back. For one who waits.
    pub(crate) async fn room(&self, good: Good) {
        let pool = self.0.pools.of(good);
        while pool.left() == 0 && pool.revocable().is_empty() {
            self.0
                .shortages
                .note(Shortage::Good(good, Kind::OfAll), None);
            pool.freed.notified().await;
        }
    }

    pub(crate) fn shortages(&self) -> &Shortages {
        &self.0.shortages
    }
}

/// What one source holds.
struct Holder {
    source: Source,
    held: Each<AtomicUsize>,
    /// Where its stanzas wait for their turn.
    line: Line,
    accounts: Accounts,
}

impl Holder {
    fn pool(&self, good: Good) -> &Pool {
        self.accounts.0.pools.of(good)
    }

    fn held(&self, good: Good) -> &AtomicUsize {
        self.held.of(good)
    }

    fn release(&self, good: Good, amount: usize) {
        let pool = self.pool(good);
        self.held(good).fetch_sub(amount, Ordering::Relaxed);
        pool.used.fetch_sub(amount, Ordering::Relaxed);
        pool.freed.notify_one();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let mut holders = lock(&self.accounts.0.holders);
        // Another one may have taken its place.
        if holders
            .get(&self.source)
            .is_some_and(|it| it.strong_count() == 0)
        {
            holders.remove(&self.source);
            let made_up = self.line.made_up();
            self.accounts.0.keep_debt(&self.source, made_up);
        }
    }
}

/// The account of one source, the same for all that come from there. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Account(Arc<Holder>);

impl Account {
    pub(crate) fn source(&self) -> &Source {
        &self.0.source
    }

    /// Counts an element of `len` bytes that the source sent on any stream. Returns when it has its turn, after
    /// all that was counted before.
    pub(crate) fn turn(&self, len: usize, now: Instant) -> Instant {
        let Inner { stanzas, began, .. } = &*self.0.accounts.0;
        let since = nanoseconds(now.saturating_duration_since(*began));
        let turn = self.0.line.stand(*stanzas, len, since);
        now + Duration::from_nanos(turn.saturating_sub(since))
    }

    /// Tells that the source was slowed down.
    pub(crate) fn slowed(&self, shortage: Shortage) {
        let shortages = self.0.accounts.shortages();
        shortages.note(shortage, Some(&self.0.source));
    }

    /// Takes so much of a good until the hold is dropped.
    pub(crate) fn take(&self, good: Good, amount: usize) -> Option<Hold> {
        let mut hold = self.hold(good);
        hold.resize(amount).then_some(hold)
    }

    /// Holds nothing yet.
    pub(crate) fn hold(&self, good: Good) -> Hold {
        Hold {
            holder: Arc::clone(&self.0),
            good,
            amount: 0,
            lease: None,
        }
    }

    /// Takes one of a good, for as long as nobody needs it more.
    pub(crate) fn take_revocable(&self, good: Good) -> Option<Hold> {
        let mut hold = self.hold(good);
        if !hold.grow(1, true) {
            return None;
        }
        let pool = self.0.pool(good);
        let id = pool.next.fetch_add(1, Ordering::Relaxed);
        let revoked = Arc::new(Notify::new());
        let lease = Lease {
            holder: Arc::clone(&self.0),
            revoked: Arc::clone(&revoked),
        };
        pool.revocable().insert(id, lease);
        hold.lease = Some(Leased {
            id,
            revoked,
            is_kept: false,
        });
        Some(hold)
    }
}

/// What is held of a good, given back when dropped.
pub(crate) struct Hold {
    holder: Arc<Holder>,
    good: Good,
    amount: usize,
    lease: Option<Leased>,
}

/// What names the lease of a hold.
struct Leased {
    id: u64,
    revoked: Arc<Notify>,
    is_kept: bool,
}

impl Hold {
    /// Holds so much from now on. Returns whether there was that much; if not, nothing changes.
    pub(crate) fn resize(&mut self, amount: usize) -> bool {
        match amount.checked_sub(self.amount) {
            Some(0) => true,
            Some(more) => self.grow(more, false),
            None => {
                self.holder.release(self.good, self.amount - amount);
                self.amount = amount;
                true
            }
        }
    }

    fn grow(&mut self, more: usize, or_revoke: bool) -> bool {
        let (holder, good) = (&self.holder, self.good);
        let (pool, held) = (holder.pool(good), holder.held(good));
        // Other lanes may take for the same source meanwhile: its share is not exact, the total is.
        let before = held.load(Ordering::Relaxed);
        let mut refused = None;
        let taken = pool
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                let left = pool.total.saturating_sub(used);
                let granted = grant(before, more, left, pool.per_source);
                refused = granted.err();
                granted.ok().map(|_| used + more)
            });
        if taken.is_ok() {
            held.fetch_add(more, Ordering::Relaxed);
            self.amount += more;
            return true;
        }
        let is_full = refused == Some(Kind::OfAll) || pool.left() == 0;
        let kind = match is_full && refused != Some(Kind::OfSource) {
            true => Kind::OfAll,
            false => refused.unwrap_or(Kind::Share),
        };
        let shortages = holder.accounts.shortages();
        shortages.note(Shortage::Good(good, kind), Some(&holder.source));
        if or_revoke && kind == Kind::OfAll && revoke_oldest(holder, good, before) {
            // What it held is taken over.
            held.fetch_add(more, Ordering::Relaxed);
            self.amount += more;
            return true;
        }
        false
    }

    /// What tells when it is taken back.
    pub(crate) fn revocation(&self) -> Revocation {
        Revocation(self.lease.as_ref().map(|lease| Arc::clone(&lease.revoked)))
    }

    /// From now on only a source that holds less may have it, once that has proven itself too. Returns whether it
    /// was not taken back, and may be kept.
    pub(crate) fn keep(&mut self) -> bool {
        let pool = self.holder.pool(self.good);
        let Some(lease) = self.lease.as_mut().filter(|lease| !lease.is_kept) else {
            return self.amount > 0;
        };
        let mut kept = pool.kept();
        // Nobody gives way for what was taken back already.
        let is_held = pool.revocable().contains_key(&lease.id);
        if is_held && kept.len() >= pool.kept_max() {
            let shortages = self.holder.accounts.shortages();
            let shortage = Shortage::Good(self.good, Kind::OfAll);
            shortages.note(shortage, Some(&self.holder.source));
            if !revoke_of_richest(&self.holder, self.good, &mut kept) {
                return false;
            }
        }
        let Some(moved) = pool.revocable().remove(&lease.id) else {
            self.lease = None;
            self.amount = 0;
            return false;
        };
        lease.is_kept = true;
        kept.insert(lease.id, moved);
        true
    }

    /// Gives the lease up. What was taken back is no longer there to give.
    fn surrender(&mut self) {
        let Some(lease) = self.lease.take() else {
            return;
        };
        let pool = self.holder.pool(self.good);
        let found = match lease.is_kept {
            true => pool.kept().remove(&lease.id),
            false => pool.revocable().remove(&lease.id),
        };
        if found.is_none() {
            self.amount = 0;
        }
    }
}

/// Takes back the oldest that was kept, of the source that holds most, if it holds more than the taker.
fn revoke_of_richest(taker: &Holder, good: Good, kept: &mut BTreeMap<u64, Lease>) -> bool {
    let holds = |holder: &Holder| holder.held(good).load(Ordering::Relaxed);
    let mine = holds(taker);
    // The first of those that hold the same is the oldest.
    let richest = kept
        .iter()
        .rev()
        .max_by_key(|(_, lease)| holds(&lease.holder))
        .filter(|(_, lease)| holds(&lease.holder) > mine)
        .map(|(id, _)| *id);
    let Some(Lease { holder, revoked }) = richest.and_then(|id| kept.remove(&id)) else {
        return false;
    };
    holder.held(good).fetch_sub(1, Ordering::Relaxed);
    taker.pool(good).used.fetch_sub(1, Ordering::Relaxed);
    taker.pool(good).freed.notify_one();
    revoked.notify_one();
    true
}

/// Takes back the oldest that can be, of a source that holds more than `held`, or of any if that is none.
fn revoke_oldest(taker: &Holder, good: Good, held: usize) -> bool {
    let mut revocable = taker.pool(good).revocable();
    let holds = |holder: &Holder| holder.held(good).load(Ordering::Relaxed);
    let oldest = revocable
        .iter()
        .find(|(_, lease)| held == 0 || holds(&lease.holder) > held);
    let Some(id) = oldest.map(|(id, _)| *id) else {
        return false;
    };
    let Some(Lease { holder, revoked }) = revocable.remove(&id) else {
        return false;
    };
    holder.held(good).fetch_sub(1, Ordering::Relaxed);
    revoked.notify_one();
    drop(revocable);
    true
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.surrender();
        self.holder.release(self.good, self.amount);
    }
}

/// Tells when something is taken back.
pub(crate) struct Revocation(Option<Arc<Notify>>);

impl Revocation {
    /// Waits until it is, for ever if it never is.
    pub(crate) async fn come(&self) {
        match &self.0 {
            Some(revoked) => revoked.notified().await,
            None => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn accounts(streams: usize, bytes: usize) -> Accounts {
        Accounts::new(&Config {
            streams_max: streams,
            egress_bytes_max: bytes,
            ..Config::default()
        })
    }

    fn account(accounts: &Accounts, last: u8) -> Account {
        accounts.of(Source::address([192, 0, 2, last].into()))
    }

    /// How often a source gets one more.
    fn greed(account: &Account, good: Good) -> Vec<Hold> {
        std::iter::from_fn(|| account.take(good, 1)).collect()
    }

    #[track_caller]
    fn check(held: usize, amount: usize, left: usize, expected: Result<usize, Kind>) {
        assert_eq!(grant(held, amount, left, 50), expected);
    }

    #[test]
    fn nobody_gets_more_than_is_left() {
        check(0, 1, 1, Ok(0));
        check(0, 50, 50, Ok(0));
        check(0, 2, 1, Err(Kind::OfAll));
        check(0, 51, 100, Err(Kind::OfSource));
        check(49, 1, 100, Ok(99));
        check(49, 1, 51, Ok(50));
        check(49, 1, 50, Err(Kind::Share));
        check(50, 1, 100, Err(Kind::OfSource));
        check(1, 1, 2, Err(Kind::Share));
        check(1, usize::MAX, 100, Err(Kind::OfSource));
    }

    #[test]
    fn something_is_left_whatever_a_few_do() {
        let accounts = accounts(1, 1200);
        let sources: Vec<_> = (0..5).map(|n| account(&accounts, n)).collect();
        let held: Vec<_> = sources
            .iter()
            .map(|source| greed(source, Good::EgressBytes))
            .collect();
        let counts: Vec<_> = held.iter().map(Vec::len).collect();
        assert_eq!(counts, [600, 300, 150, 75, 37]);
        assert_eq!(accounts.left(Good::EgressBytes), 38);
        drop(held);
        assert_eq!(accounts.left(Good::EgressBytes), 1200);
    }

    #[test]
    fn an_ipv6_network_is_one_source_and_forgotten_when_it_holds_nothing() {
        let accounts = accounts(1, 10);
        let of = |text: &str| accounts.of(Source::address(text.parse().unwrap()));
        let first = of("2001:db8::1").take(Good::EgressBytes, 5).unwrap();
        assert!(of("2001:db8::2").take(Good::EgressBytes, 1).is_none());
        assert!(of("2001:db8:0:1::2").take(Good::EgressBytes, 1).is_some());
        drop(first);
        assert!(of("2001:db8::2").take(Good::EgressBytes, 1).is_some());
        assert!(lock(&accounts.0.holders).is_empty());
    }

    #[test]
    fn a_hold_grows_and_shrinks() {
        let accounts = accounts(1, 100);
        let mut hold = account(&accounts, 1).hold(Good::EgressBytes);
        assert!(hold.resize(40) && hold.resize(50));
        assert!(!hold.resize(51));
        assert_eq!(accounts.left(Good::EgressBytes), 50);
        assert!(hold.resize(10));
        assert_eq!(accounts.left(Good::EgressBytes), 90);
        drop(hold);
        assert_eq!(accounts.left(Good::EgressBytes), 100);
    }

    #[test]
    fn the_oldest_that_has_proven_nothing_gives_way() {
        let accounts = accounts(3, 1);
        let take = |last| account(&accounts, last).take_revocable(Good::Streams);
        let mut proven = take(1).unwrap();
        assert!(proven.keep());
        let mut oldest = take(2).unwrap();
        let mut other = take(3).unwrap();
        let revoked = oldest.revocation();
        assert!(revoked.come().now_or_never().is_none());
        let mut new = take(4).unwrap();
        assert!(revoked.come().now_or_never().is_some());
        // It is too late for it, and it has nothing to give back.
        assert!(!oldest.keep());
        drop(oldest);
        assert_eq!(accounts.left(Good::Streams), 0);
        // Who has one already takes none away from those who have no more.
        assert!(take(4).is_none());
        assert!(other.keep() && new.keep());
        assert!(take(5).is_none());
        drop((other, new, proven));
        assert_eq!(accounts.left(Good::Streams), 3);
        assert!(lock(&accounts.0.holders).is_empty());
    }

    /// One after the other takes half of what the others have left.
    #[test]
    fn who_proves_itself_gets_a_place_of_who_has_most() {
        let accounts = accounts(64, 1);
        let mut taken = Vec::new();
        let mut proven = |last: u8| {
            let mut hold = account(&accounts, last).take_revocable(Good::Streams)?;
            hold.keep().then(|| taken.push((last, hold)))
        };
        for greedy in 1..=10 {
            while proven(greedy).is_some() {}
        }
        for newcomer in 100..120 {
            assert!(proven(newcomer).is_some(), "{newcomer}");
        }
        // Nobody is left with less than the newcomers have.
        taken.retain(|(_, hold)| {
            let revoked = hold.revocation();
            revoked.come().now_or_never().is_none()
        });
        assert_eq!(taken.len(), 56);
        for source in (1..=10).chain(100..120) {
            let left = taken.iter().filter(|(last, _)| *last == source).count();
            assert!(left > 0, "{source}");
        }
        taken.clear();
        assert_eq!(accounts.left(Good::Streams), 64);
        assert!(lock(&accounts.0.holders).is_empty());
    }

    #[test]
    fn nobody_gives_way_for_a_place_that_is_lost_already() {
        let accounts = accounts(8, 1);
        let take = |last| {
            account(&accounts, last)
                .take_revocable(Good::Streams)
                .unwrap()
        };
        let mut kept: Vec<_> = [1, 1, 1, 2, 3, 4, 5].map(take).into();
        assert!(kept.iter_mut().all(Hold::keep));
        let mut lost = take(6);
        let _taker = take(7);
        assert!(!lost.keep());
        for hold in &kept {
            assert!(hold.revocation().come().now_or_never().is_none());
        }
    }

    /// Whatever comes without proof, and from however many places.
    #[test]
    fn what_is_kept_does_not_give_way_to_who_has_proven_nothing() {
        let accounts = accounts(64, 1);
        let mut rich: Vec<_> = (0..20)
            .map(|_| account(&accounts, 1).take_revocable(Good::Streams).unwrap())
            .collect();
        assert!(rich.iter_mut().all(Hold::keep));
        let strangers: Vec<_> = (2..=200)
            .filter_map(|last| account(&accounts, last).take_revocable(Good::Streams))
            .collect();
        assert_eq!(strangers.len(), 199);
        for hold in &rich {
            assert!(hold.revocation().come().now_or_never().is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_streams_of_one_source_have_one_pace_together() {
        let accounts = Accounts::new(&Config {
            stanzas_per_second_per_address_max: 10,
            ..Config::default()
        });
        let now = Instant::now();
        let passed = |account: &Account| (0..20).filter(|_| account.turn(1, now) <= now).count();
        let (one, same) = (account(&accounts, 1), account(&accounts, 1));
        assert_eq!(passed(&one) + passed(&same), 10);
        assert_eq!(passed(&account(&accounts, 2)), 10);
        // Who goes and comes again has not made up for it.
        drop((one, same));
        assert_eq!(passed(&account(&accounts, 1)), 0);
        // What is made up for is forgotten.
        tokio::time::advance(Duration::from_secs(60)).await;
        for n in 0..=FORGET_FROM {
            let source = Source::Component(Domain::new(&format!("{n}.test")));
            accounts.of(source).turn(1, Instant::now());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(lock(&accounts.0.debts).len() <= FORGET_FROM);
        let source = Source::address([192, 0, 2, 1].into());
        assert!(!lock(&accounts.0.debts).contains_key(&source));
    }

    #[test]
    fn there_is_room_as_soon_as_one_goes() {
        let accounts = accounts(1, 1);
        let mut only = account(&accounts, 1).take_revocable(Good::Streams).unwrap();
        assert!(accounts.room(Good::Streams).now_or_never().is_some());
        only.keep();
        let mut room = Box::pin(accounts.room(Good::Streams));
        assert!(room.as_mut().now_or_never().is_none());
        drop(only);
        assert!(room.now_or_never().is_some());
    }
}
