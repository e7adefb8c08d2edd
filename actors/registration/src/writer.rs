//! What the single writer does with the store: each request as a read, a decision, and writes.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix::Recipient;
use arc_swap::ArcSwap;
use messages::{
    AccountKey, AppId, BareJid, Change, Claim, Clock, DeviceToken, Domain, EndCause, EndedEvent,
    FindRegistration, JournalBatch, JournalEntry, JournalEvent, NodeId, Register, Registered,
    RegisteredEvent, RegistrationDetails, RegistrationKey, RegistryError, RejectedToken, Removed,
    Secret, SweepCursor, SweepExpired, SweptPage, UnixSeconds, Unregister, Withdrawal,
};
use tokio::sync::oneshot;

use crate::census::{Census, Crowd};
use crate::erasure::{self, Erasure, Exchange, Patience};
use crate::keys::{Keys, Mask, MasterKey, Salt, fill};
use crate::registrations::Living;
use crate::store::{PushTimes, Record, RegistrationStore, Visit, last_use};
use crate::touches::Touches;
use crate::withdrawals::Subscribers;
use crate::{Config, Error, Fault};

/// Most registrations one page of a sweep looks at, whatever was asked: it holds up other requests.
const PAGE_MAX: u32 = 10_000;
/// Registrations of dead tokens, or idle ones, that end at a time, before others have their turn; about 40 ms.
const ENDED_MAX: usize = 256;
/// Registrations looked at in one page of a search for a device.
const SIFTED_MAX: usize = 1_000;

/// Seconds between two lines that say so.
const CROWD_SECONDS: u64 = 60;

pub(crate) type Reply<T> = oneshot::Sender<Result<T, RegistryError>>;

/// A request in the queue of the writer.
pub(crate) enum Job {
    Register(Register, Reply<Registered>),
    Unregister(Unregister, Reply<Removed>),
    RemoveTokens(Vec<RejectedToken>, Reply<Removed>),
    Sweep(SweepExpired, Reply<SweptPage>),
    Find(FindRegistration, Reply<Option<RegistrationKey>>),
    /// Looks for a device in one page of all registrations.
    Sift(DeviceToken, Option<RegistrationKey>, Reply<Sifted>),
    Describe(Claim, Reply<Vec<RegistrationDetails>>),
    Erase(Claim, Reply<Vec<RegistrationDetails>>),
    Rotate(Reply<()>),
    WriteTouches,
}

/// What a page has of a device.
#[derive(Debug)]
pub(crate) struct Sifted {
    pub(crate) found: Vec<RegistrationKey>,
    /// Where to go on; `None` after the last page.
    pub(crate) next: Option<RegistrationKey>,
}

/// Dead tokens whose registrations end page by page.
struct Removal {
    items: VecDeque<RejectedToken>,
    /// How far the first of them has come.
    after: Option<RegistrationKey>,
    removed: Removed,
    reply: Reply<Removed>,
}

/// An answer that waits until what it says is durable.
type Answer = Box<dyn FnOnce(Result<(), RegistryError>) + Send>;

/// What the writer has done since the start.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) answered: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) removed: AtomicU64,
    pub(crate) touches_written: AtomicU64,
    pub(crate) erased: AtomicU64,
    pub(crate) rewrites: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// Locks, also after a panic of another holder: what is guarded is consistent at each write.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads, decides and writes. There is one per store, behind a lock.
pub(crate) struct Writer {
    store: Arc<dyn RegistrationStore>,
    keys: Arc<Keys>,
    /// What readers use, exchanged with the store.
    living: Arc<ArcSwap<Living>>,
    erasure: Erasure,
    touches: Arc<Mutex<Touches>>,
    counters: Arc<Counters>,
    clock: Clock,
    key_file: PathBuf,
    per_account_max: usize,
    per_device_token_max: usize,
    /// Those with more registrations than end at a time.
    removals: VecDeque<Removal>,
    census: Census,
    /// When it was last said that somebody has too many.
    crowd_told: Option<UnixSeconds>,
    /// Where what happens to registrations is written down, if it is.
    pub(crate) journal: Option<Recipient<JournalBatch>>,
    /// What it is told once the group is durable.
    events: Vec<JournalEntry>,
    subscribers: Subscribers,
    /// What they are told once the group is durable.
    withdrawals: Vec<Withdrawal>,
    unsynced: bool,
    unflushed: bool,
    /// Whether the store has failed in a way after which nothing it says about durability counts.
    broken: bool,
}

/// The store cannot be trusted any more before the process has started again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken;

impl Writer {
    pub(crate) fn new(
        living: Arc<ArcSwap<Living>>,
        touches: Arc<Mutex<Touches>>,
        counters: Arc<Counters>,
        subscribers: Subscribers,
        clock: Clock,
        config: &Config,
    ) -> Self {
        let (store, keys) = {
            let living = living.load();
            (Arc::clone(&living.store), Arc::clone(&living.keys))
        };
        // A store that cannot say so owes one rather than none.
        let erasure = Erasure::new(store.owes_erasure().unwrap_or(true));
        Self {
            store,
            keys,
            living,
            erasure,
            touches,
            counters,
            clock,
            key_file: config.key_file.clone(),
            per_account_max: usize::try_from(config.registrations_per_account_max)
                .unwrap_or(usize::MAX),
            per_device_token_max: usize::try_from(config.registrations_per_device_token_max)
                .unwrap_or(usize::MAX),
            removals: VecDeque::new(),
            census: Census::new(config),
            crowd_told: None,
            journal: None,
            events: Vec::new(),
            subscribers,
            withdrawals: Vec::new(),
            unsynced: false,
            unflushed: false,
            broken: false,
        }
    }

    /// Group commit: does all jobs, makes them durable with one flush and one sync, then answers all.
    ///
    /// # Errors
    /// [`Broken`], after which the writer must not be used again; all jobs are answered as failed.
    pub(crate) fn commit(&mut self, jobs: impl IntoIterator<Item = Job>) -> Result<(), Broken> {
        let mut answers = Vec::new();
        for job in jobs {
            // A job that is dropped is one that failed, to whoever waits for its answer.
            if !self.broken {
                answers.extend(self.execute(job));
            }
        }
        self.conclude(answers)
    }

    /// Makes durable what was done, tells the journal, and answers.
    fn conclude(&mut self, answers: Vec<Answer>) -> Result<(), Broken> {
        let durable = self.settle();
        self.tell_journal(durable.is_ok());
        let withdrawals = std::mem::take(&mut self.withdrawals);
        if durable.is_ok() {
            self.subscribers.tell(withdrawals);
        }
        count(&self.counters.answered, answers.len() as u64);
        for answer in answers {
            answer(durable);
        }
        if self.broken {
            // Who waits is told by the answer that is dropped.
            self.removals.clear();
        }
        self.intact()
    }

    /// How long there may be no jobs before [`Self::step`] has something to do.
    pub(crate) fn patience(&self) -> Patience {
        match self.census.is_due() || !self.removals.is_empty() {
            true => Patience::None,
            false => self.erasure.patience(),
        }
    }

    /// Goes on with dead tokens, with counting and with an erasure. Called between two groups, when all that was
    /// written is durable.
    ///
    /// # Errors
    /// [`Broken`], after which the writer must not be used again.
    pub(crate) fn step(&mut self) -> Result<(), Broken> {
        if let Some(removal) = self.removals.pop_front() {
            let answers = self.go_on(removal).into_iter().collect();
            self.conclude(answers)?;
        }
        if let Err(error) = self.census.step(&*self.store) {
            count(&self.counters.failures, 1);
            tracing::error!("registrations could not be counted: {error}");
        }
        match self.erasure.step(&self.store, &self.keys, &self.key_file) {
            Ok(None) => {}
            Ok(Some(Exchange { store, keys, owed })) => {
                count(&self.counters.rewrites, 1);
                if let Some(keys) = keys {
                    // Cut short before this, the next start does it.
                    if let Err(error) = MasterKey::publish(&self.key_file, &keys) {
                        self.failed(&error);
                        self.broken = true;
                        return self.intact();
                    }
                    self.keys = keys;
                }
                self.living.store(Arc::new(Living {
                    store: Arc::clone(&store),
                    keys: Arc::clone(&self.keys),
                }));
                let replaced = std::mem::replace(&mut self.store, store);
                erasure::discard(replaced, owed);
            }
            Err(error) => {
                self.failed(&error);
                self.broken = true;
            }
        }
        self.intact()
    }

    /// Writes the push times that wait and makes all durable.
    ///
    /// # Errors
    /// [`Broken`], when some of that may be lost.
    pub(crate) fn finish(&mut self) -> Result<(), Broken> {
        self.erasure.give_up(RegistryError::Stopping);
        for removal in self.removals.drain(..) {
            // Whoever asked may have gone.
            let _ = removal.reply.send(Err(RegistryError::Stopping));
        }
        // Counted and logged; what is durable is decided below.
        let _ = self.write_touches();
        if !self.broken
            && let Err(error) = self.store.close()
        {
            self.failed(&error);
            self.broken = true;
        }
        self.intact()
    }

    /// Tells the journal what was done, unless it may be lost. Nobody waits for the journal, so a failure is
    /// only said.
    fn tell_journal(&mut self, durable: bool) {
        let items = std::mem::take(&mut self.events);
        if let Some(journal) = &self.journal
            && durable
            && !items.is_empty()
            && journal.try_send(JournalBatch { items }).is_err()
        {
            tracing::warn!("the journal has ended, it is not told of registrations any more");
        }
    }

    fn note(&mut self, event: impl FnOnce() -> JournalEvent) {
        if self.journal.is_some() {
            let at = self.clock.now();
            let event = event();
            self.events.push(JournalEntry { at, event });
        }
    }

    const fn intact(&self) -> Result<(), Broken> {
        if self.broken { Err(Broken) } else { Ok(()) }
    }

    fn execute(&mut self, job: Job) -> Option<Answer> {
        match job {
            Job::Register(register, reply) => Some(answer(reply, self.register(&register))),
            Job::Unregister(unregister, reply) => Some(answer(reply, self.unregister(&unregister))),
            Job::RemoveTokens(items, reply) => self.go_on(Removal {
                items: items.into(),
                after: None,
                removed: Removed::default(),
                reply,
            }),
            Job::Sweep(sweep, reply) => Some(answer(reply, self.sweep(&sweep))),
            Job::Find(find, reply) => Some(answer(reply, self.find(&find))),
            Job::Sift(token, after, reply) => Some(answer(reply, self.sift(&token, after))),
            Job::Describe(claim, reply) => {
                let described = self.describe(&claim);
                Some(answer(
                    reply,
                    described.map_err(|error| self.failed(&error)),
                ))
            }
            Job::Erase(claim, reply) => self.erase(&claim, reply),
            Job::Rotate(reply) => self.rotate(reply),
            Job::WriteTouches => {
                // Counted and logged; the times are lost, which is what times may be.
                let _ = self.write_touches();
                None
            }
        }
    }

    fn settle(&mut self) -> Result<(), RegistryError> {
        if self.broken {
            return Err(RegistryError::Store);
        }
        self.make_durable().map_err(|error| {
            self.broken = true;
            self.failed(&error)
        })
    }

    fn make_durable(&mut self) -> Result<(), Error> {
        if self.unsynced || self.unflushed {
            self.store.flush()?;
            self.unflushed = false;
        }
        if self.unsynced {
            self.store.sync()?;
            count(&self.counters.syncs, 1);
            self.unsynced = false;
        }
        Ok(())
    }

    fn register(&mut self, register: &Register) -> Result<Registered, RegistryError> {
        let account = self.keys.account(&register.account);
        let accounts = self.keys.accounts(&register.account);
        let (app, device_token) = (register.app.as_str(), register.device_token.as_str());
        let (service, node) = (register.service.as_str(), register.node.as_str());
        let mut known = None;
        let mut has_token = false;
        let mut stale = Vec::new();
        let mut others = 0_usize;
        let is_of_token =
            |record: &Record<'_>| record.app == app && record.device_token == device_token;
        self.of_accounts(&accounts, &mut |key, record| {
            if record.service == service && record.node == node {
                has_token = is_of_token(record);
                let acceptance = record.acceptance.filter(|_| has_token);
                known = Some((record.salt, record.mask, record.registered_at, acceptance));
            } else if record.node != node && is_of_token(record) {
                // A device has one token per app, so this node is one it has given up.
                stale.push(key);
            } else {
                others += 1;
            }
        })
        .map_err(|error| self.failed(&error))?;
        if known.is_none() && others >= self.per_account_max {
            return Err(RegistryError::TooMany);
        }
        let renewed = known.is_some();
        let now = self.clock.now();
        let domain = register.account.domain();
        // Its token has one more, also when it had another token before.
        if !has_token && stale.is_empty() && self.is_crowded(app, device_token)? {
            self.tell_crowd(domain, Crowd::DeviceToken, now);
            return Err(RegistryError::Crowded);
        }
        if !renewed {
            let millis = self.clock.now_millis();
            let admitted = self
                .census
                .admit(domain, account, !stale.is_empty(), millis);
            if let Err(crowd) = admitted {
                self.tell_crowd(domain, crowd, now);
                return Err(RegistryError::Crowded);
            }
        }
        let (salt, mask, registered_at, acceptance) = match known {
            Some(known) => known,
            None => (self.new_salt()?, Mask::default(), now, None),
        };
        let secret = self.keys.secret(&salt, &mask);
        let key = self.keys.registration(service, node, secret.as_str());
        let record = Record {
            registered_at,
            renewed_at: now,
            account,
            salt,
            mask,
            acceptance,
            device_token,
            node,
            app,
            service,
            domain: domain.as_str(),
        };
        self.unsynced = true;
        self.store
            .put(key, &record)
            .map_err(|error| self.failed(&error))?;
        self.erasure.mirror_put(key, &record);
        if !renewed {
            self.census.came(key, domain);
        }
        if renewed && !has_token {
            let change = Change::Replaced {
                app: register.app.clone(),
                device_token: register.device_token.clone(),
            };
            self.withdraw(key, change);
        }
        self.note(|| {
            JournalEvent::Registered(Box::new(RegisteredEvent {
                account: register.account.clone(),
                registration: key,
                service: register.service.clone(),
                app: register.app.clone(),
                dialect: register.dialect,
                node: register.node.clone(),
                device_token: register.device_token.clone(),
                renewed,
            }))
        });
        for key in stale {
            self.end(key, Some(&register.account), &EndCause::Replaced)?;
        }
        Ok(Registered {
            node: register.node.clone(),
            secret: Secret::new(secret.as_str()).map_err(|_| self.failed(&Error::FieldLength))?,
        })
    }

    /// Whether a device token has as many registrations as it may have. Counts no further: each of them ends
    /// when the token dies, and a device has few accounts.
    fn is_crowded(&mut self, app: &str, device_token: &str) -> Result<bool, RegistryError> {
        let max = self.per_device_token_max;
        let mut count = 0;
        self.store
            .of_token(app, device_token, None, max, &mut |_, _| count += 1)
            .map_err(|error| self.failed(&error))?;
        Ok(count >= max)
    }

    fn tell_crowd(&mut self, domain: &Domain, crowd: Crowd, now: UnixSeconds) {
        // One account in its own way is no trouble of the operator's.
        if crowd == Crowd::Account {
            return;
        }
        let told = self.crowd_told;
        if told.is_some_and(|told| told <= now && now.0 - told.0 < CROWD_SECONDS) {
            return;
        }
        self.crowd_told = Some(now);
        let (key, owner) = match crowd {
            Crowd::Account | Crowd::Fast => ("new_registrations_per_second_max", domain.owner()),
            Crowd::Owner => ("registrations_per_owner_max", domain.owner()),
            Crowd::All => ("registrations_max", "all servers"),
            Crowd::DeviceToken => ("registrations_per_device_token_max", domain.owner()),
        };
        tracing::warn!(
            "registrations from {owner} are answered wait: registration.{key} is reached"
        );
    }

    /// Shows the registrations of an account under all keys that it may have.
    fn of_accounts(&self, keys: &[AccountKey], visit: &mut Visit<'_>) -> Result<(), Error> {
        keys.iter()
            .try_for_each(|key| self.store.of_account(*key, visit))
    }

    fn unregister(&mut self, unregister: &Unregister) -> Result<Removed, RegistryError> {
        let accounts = self.keys.accounts(&unregister.account);
        let (service, node) = (unregister.service.as_str(), unregister.node.as_str());
        let mut own = Vec::new();
        self.of_accounts(&accounts, &mut |key, record| {
            if record.service == service && record.node == node {
                own.push(key);
            }
        })
        .map_err(|error| self.failed(&error))?;
        let mut removed = Removed::default();
        for key in own {
            let cause = &EndCause::Unregistered;
            removed.count += u64::from(self.end(key, Some(&unregister.account), cause)?);
        }
        Ok(removed)
    }

    /// Ends the next page of registrations of dead tokens, and answers after the last.
    fn go_on(&mut self, mut removal: Removal) -> Option<Answer> {
        match self.end_page(&mut removal) {
            Ok(false) => {
                self.removals.push_back(removal);
                None
            }
            Ok(true) => Some(answer(removal.reply, Ok(removal.removed))),
            Err(error) => Some(answer(removal.reply, Err(error))),
        }
    }

    /// Whether that was the last page.
    fn end_page(&mut self, removal: &mut Removal) -> Result<bool, RegistryError> {
        let mut left = ENDED_MAX;
        while let Some(item) = removal.items.front() {
            if left == 0 {
                return Ok(false);
            }
            let mut seen = 0;
            let mut dead = Vec::new();
            let (app, token) = (item.app.as_str(), item.device_token.as_str());
            let last = self
                .store
                .of_token(app, token, removal.after, left, &mut |key, record| {
                    seen += 1;
                    if !outlives(record, item) {
                        dead.push(key);
                    }
                })
                .map_err(|error| self.failed(&error))?;
            left = left.saturating_sub(seen);
            let cause = EndCause::TokenDead(item.reason.clone());
            for key in dead {
                removal.removed.count += u64::from(self.end(key, None, &cause)?);
            }
            removal.after = last;
            if last.is_none() {
                removal.items.pop_front();
            }
        }
        Ok(true)
    }

    /// Looks at a page of registrations. It is over early when many of them end: that takes longer than to look.
    fn sweep(&mut self, sweep: &SweepExpired) -> Result<SweptPage, RegistryError> {
        let limit = sweep.limit.clamp(1, PAGE_MAX) as usize;
        let (mut seen, mut candidates) = (0, Vec::new());
        let page = self
            .store
            .page(
                sweep.after.map(|SweepCursor(key)| key),
                limit,
                &mut |key, record| {
                    seen += 1;
                    if record.renewed_at < sweep.idle_since {
                        candidates.push((key, record.renewed_at, seen));
                    }
                },
            )
            .map_err(|error| self.failed(&error))?;
        let (mut scanned, mut last) = (page.scanned, page.last);
        if page.unreadable > 0 {
            count(&self.counters.failures, page.unreadable);
            tracing::error!(records = page.unreadable, "{}", Error::Record);
        }
        let mut idle = Vec::new();
        for (key, renewed_at, seen) in candidates {
            let times = self.times(key).map_err(|error| self.failed(&error))?;
            if last_use(renewed_at, &times) < sweep.idle_since {
                idle.push(key);
                if idle.len() == ENDED_MAX {
                    (scanned, last) = (seen, Some(key));
                    break;
                }
            }
        }
        let mut removed = 0;
        for key in idle {
            removed += u64::from(self.end(key, None, &EndCause::Idle)?);
        }
        Ok(SweptPage {
            scanned,
            removed,
            next: last.map(SweepCursor),
        })
    }

    fn write_touches(&mut self) -> Result<(), RegistryError> {
        let mut folded: Vec<_> = lock(&self.touches).take().into_iter().collect();
        // Neighbours share pages.
        folded.sort_unstable_by_key(|(key, _)| *key);
        for (key, times) in folded {
            let touched = self.store.touch(key, &times);
            if touched.map_err(|error| self.failed(&error))? {
                self.erasure
                    .mirror(|copy| copy.touch(key, &times).map(drop));
                self.unflushed = true;
                count(&self.counters.touches_written, 1);
                self.write_acceptance(key, &times)?;
            }
        }
        Ok(())
    }

    /// Keeps with a registration where APNs took its device token, unless it may be another one since.
    fn write_acceptance(
        &mut self,
        key: RegistrationKey,
        times: &PushTimes,
    ) -> Result<(), RegistryError> {
        let (Some(at), Some(acceptance)) = (times.last_success, times.acceptance) else {
            return Ok(());
        };
        let mut accepted = None;
        let read = self.store.look(key, &mut |record| {
            if record.acceptance != Some(acceptance) && record.renewed_at < at {
                let record = Record {
                    acceptance: Some(acceptance),
                    ..*record
                };
                accepted = Some(record.encode());
            }
        });
        read.map_err(|error| self.failed(&error))?;
        if let Some(bytes) = accepted {
            let put = |writer: &mut Self| {
                let bytes = bytes?;
                let record = Record::decode(&bytes)?;
                writer.store.put(key, &record)?;
                writer.erasure.mirror_put(key, &record);
                Ok(())
            };
            put(self).map_err(|error: Error| self.failed(&error))?;
        }
        Ok(())
    }

    /// Removes a registration and has the journal say why; `false` if there is none.
    fn end(
        &mut self,
        key: RegistrationKey,
        account: Option<&BareJid>,
        cause: &EndCause,
    ) -> Result<bool, RegistryError> {
        let mut event = None;
        if self.journal.is_some() {
            let read = self.store.look(key, &mut |record| {
                event = ended(key, record, account.cloned(), cause.clone());
            });
            read.map_err(|error| self.failed(&error))?;
        }
        let removed = self.remove(key)?;
        if let Some(event) = event.filter(|_| removed) {
            self.note(|| JournalEvent::Ended(Box::new(event)));
        }
        Ok(removed)
    }

    fn remove(&mut self, key: RegistrationKey) -> Result<bool, RegistryError> {
        self.unsynced = true;
        let census = &mut self.census;
        let read = self.store.look(key, &mut |record| {
            census.went(key, &Domain::new(record.domain));
        });
        let removed = read.and_then(|()| self.store.remove(key));
        let removed = removed.map_err(|error| self.failed(&error))?;
        self.erasure.mirror(|copy| copy.remove(key).map(drop));
        count(&self.counters.removed, u64::from(removed));
        if removed {
            self.withdraw(key, Change::Ended);
        }
        Ok(removed)
    }

    /// What waits for a registration as it was must not go any more.
    fn withdraw(&mut self, registration: RegistrationKey, change: Change) {
        self.withdrawals.push(Withdrawal {
            registration,
            change,
        });
    }

    /// Push times, those that are not written yet included.
    fn times(&self, key: RegistrationKey) -> Result<PushTimes, Error> {
        let mut times = self.store.times(key)?;
        if let Some(waiting) = lock(&self.touches).get(key) {
            times.merge(waiting);
        }
        Ok(times)
    }

    /// Finds the registration that a node and its secret open.
    fn find(&mut self, find: &FindRegistration) -> Result<Option<RegistrationKey>, RegistryError> {
        let (node, secret) = (find.node.as_str(), find.secret.as_str());
        let mut found = None;
        for service in &find.services {
            let key = self.keys.registration(service.as_str(), node, secret);
            let keys = &self.keys;
            self.store
                .read(key, &mut |record| {
                    if keys.secret(&record.salt, &record.mask).is(secret).into() {
                        found = Some(key);
                    }
                })
                .map_err(|error| self.failed(&error))?;
        }
        Ok(found)
    }

    fn sift(
        &mut self,
        token: &DeviceToken,
        after: Option<RegistrationKey>,
    ) -> Result<Sifted, RegistryError> {
        let mut found = Vec::new();
        let page = self.store.page(after, SIFTED_MAX, &mut |key, record| {
            if record.device_token == token.as_str() {
                found.push(key);
            }
        });
        let page = page.map_err(|error| self.failed(&error))?;
        Ok(Sifted {
            found,
            next: page.last,
        })
    }

    /// Describes registrations with their push times.
    ///
    /// # Errors
    /// [`Error::Store`] and [`Error::Record`].
    pub(crate) fn describe(&self, claim: &Claim) -> Result<Vec<RegistrationDetails>, Error> {
        let mut details = Vec::new();
        let mut read = Ok(());
        let mut visit = |key, record: &Record<'_>| {
            if read.is_ok() {
                read = details_of(key, record).map(|found| details.push(found));
            }
        };
        match claim {
            Claim::Account(account) => {
                self.of_accounts(&self.keys.accounts(account), &mut visit)?;
            }
            Claim::Registrations(keys) => {
                for key in keys {
                    self.store.read(*key, &mut |record| visit(*key, record))?;
                }
            }
            // Who asks has sifted, so the keys are known.
            Claim::Token(_) => {}
        }
        read?;
        for details in &mut details {
            let times = self.times(details.registration)?;
            details.last_success = times.last_success;
            details.last_error = times.last_error;
        }
        Ok(details)
    }

    /// Ends registrations, and answers once their bytes are gone.
    fn erase(&mut self, claim: &Claim, reply: Reply<Vec<RegistrationDetails>>) -> Option<Answer> {
        let removed = self.describe(claim).map_err(|error| self.failed(&error));
        let removed = removed.and_then(|details| {
            self.unsynced = true;
            for one in &details {
                self.remove(one.registration)?;
            }
            let owed = self.store.owe_erasure();
            owed.map_err(|error| self.failed(&error))?;
            Ok(details)
        });
        match removed {
            Ok(details) => {
                count(&self.counters.erased, details.len() as u64);
                // The next copy begins after the sync that makes the removal durable.
                self.erasure.owe(answer(reply, Ok(details)));
                None
            }
            Err(error) => Some(answer(reply, Err(error))),
        }
    }

    /// Makes a new master key, and answers once all registrations are under it and the old store is gone.
    /// One at a time, since the key that is prepared must not be written over.
    fn rotate(&mut self, reply: Reply<()>) -> Option<Answer> {
        if self.erasure.rotates() {
            return Some(answer(reply, Err(RegistryError::Busy)));
        }
        let prepared = MasterKey::load(&self.key_file).and_then(|key| {
            let key = key.ok_or_else(|| Error::KeyFileMissing {
                path: self.key_file.clone(),
                store: self.key_file.clone(),
            })?;
            let rotated = key.rotated()?;
            rotated.prepare(&self.key_file)?;
            Ok(Keys::derive(&rotated))
        });
        match prepared {
            Ok(keys) => {
                self.erasure
                    .owe_rotation(Arc::new(keys), answer(reply, Ok(())));
                None
            }
            Err(error) => Some(answer(reply, Err(self.failed(&error)))),
        }
    }

    fn new_salt(&mut self) -> Result<Salt, RegistryError> {
        let mut salt = Salt::default();
        fill(&mut salt).map_err(|error| self.failed(&error))?;
        Ok(salt)
    }

    /// Counts and logs. A system call that failed has broken the store: after a failed sync the kernel
    /// forgets what it could not write, so another one succeeds and means nothing; and the engine never
    /// writes again after its own first failure.
    fn failed(&mut self, error: &Error) -> RegistryError {
        count(&self.counters.failures, 1);
        self.broken |= matches!(error, Error::Store(Fault::Io(_)) | Error::Sync(_));
        tracing::error!("{error}");
        RegistryError::Store
    }
}

/// Whether a registration is none of those that a dead token ends: it has another token, or was renewed
/// since. Renewals are known to the second only: one in the second of the verdict may have come after it,
/// so it counts as after.
pub(crate) fn outlives(record: &Record<'_>, rejected: &RejectedToken) -> bool {
    record.device_token != rejected.device_token.as_str()
        || record.app != rejected.app.as_str()
        || record.renewed_at >= rejected.invalid_since.seconds()
}

fn details_of(key: RegistrationKey, record: &Record<'_>) -> Result<RegistrationDetails, Error> {
    Ok(RegistrationDetails {
        registration: key,
        service: Domain::new(record.service),
        node: NodeId::new(record.node).map_err(|_| Error::Record)?,
        app: AppId::new(record.app),
        device_token: DeviceToken::parse(record.device_token).map_err(|_| Error::Record)?,
        domain: Domain::new(record.domain),
        registered_at: record.registered_at,
        renewed_at: record.renewed_at,
        last_success: None,
        last_error: None,
    })
}

/// What the journal says of the end of a registration; `None` for a record that makes no sense.
fn ended(
    registration: RegistrationKey,
    record: &Record<'_>,
    account: Option<BareJid>,
    cause: EndCause,
) -> Option<EndedEvent> {
    Some(EndedEvent {
        registration,
        account,
        account_key: record.account,
        service: Domain::new(record.service),
        app: AppId::new(record.app),
        node: NodeId::new(record.node).ok()?,
        device_token: DeviceToken::parse(record.device_token).ok()?,
        cause,
    })
}

fn answer<T: Send + 'static>(reply: Reply<T>, result: Result<T, RegistryError>) -> Answer {
    Box::new(move |durable| {
        // Whoever asked may have gone; what was done stays done.
        let _ = reply.send(durable.and(result));
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use messages::Dialect;

    use super::*;
    use crate::Registrations;

    fn config_in(directory: &Path) -> Config {
        Config {
            path: directory.join("store"),
            key_file: directory.join("registration.key"),
            cache_bytes: 1 << 20,
            ..Config::default()
        }
    }

    fn open(config: &Config) -> Registrations {
        Registrations::open(config, Clock::system()).unwrap()
    }

    fn secret(writer: &mut Writer) -> String {
        let (reply, registered) = oneshot::channel();
        let register = Register {
            account: BareJid::new("ada", Domain::new("chat.example")),
            service: Domain::new("push.example"),
            app: AppId::new("app"),
            node: NodeId::new("node").unwrap(),
            device_token: DeviceToken::parse(&"a".repeat(64)).unwrap(),
            dialect: Dialect::V1,
        };
        writer.commit([Job::Register(register, reply)]).unwrap();
        let registered = registered.blocking_recv().unwrap().unwrap();
        registered.secret.as_str().to_owned()
    }

    /// Of accounts, nodes and tokens of one name.
    fn many(names: impl Iterator<Item = usize>, token: &str) -> Vec<Job> {
        names
            .map(|name| {
                let register = Register {
                    account: BareJid::new(&format!("user{name}"), Domain::new("chat.example")),
                    service: Domain::new("push.example"),
                    app: AppId::new("app"),
                    node: NodeId::new("node").unwrap(),
                    device_token: DeviceToken::parse(token).unwrap(),
                    dialect: Dialect::V1,
                };
                Job::Register(register, oneshot::channel().0)
            })
            .collect()
    }

    #[actix::test]
    async fn of_a_dead_token_no_more_end_at_a_time_than_others_can_wait_for() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            registrations_per_device_token_max: u32::MAX,
            new_registrations_per_second_max: 1_000,
            ..config_in(directory.path())
        };
        let registrations = Registrations::open(&config, Clock::system()).unwrap();
        let writer = || lock(&registrations.0.writer);
        while writer().patience() == Patience::None {
            writer().step().unwrap();
        }
        let (token, other) = ("a".repeat(64), "b".repeat(64));
        let all = 2 * ENDED_MAX + 1;
        writer().commit(many(0..all, &token)).unwrap();
        writer().commit(many(all..all + 3, &other)).unwrap();
        let mut journal = testkit::Collector::<JournalBatch>::start();
        writer().journal = Some(journal.recipient());
        let dead = |token: &str| RejectedToken {
            app: AppId::new("app"),
            device_token: DeviceToken::parse(token).unwrap(),
            reason: messages::ErrorReason::known("Unregistered"),
            invalid_since: messages::UnixMillis(u64::MAX),
        };
        let (reply, mut ended) = oneshot::channel();
        let items = vec![dead(&token), dead(&other)];
        writer().commit([Job::RemoveTokens(items, reply)]).unwrap();
        for page in 1..=2 {
            assert!(ended.try_recv().is_err());
            assert_eq!(
                writer().counters.removed.load(Ordering::Relaxed) as usize,
                page * ENDED_MAX
            );
            assert_eq!(journal.take().await.items.len(), ENDED_MAX);
            assert_eq!(writer().patience(), Patience::None);
            // Others have their turn.
            writer()
                .commit(many(all + 3 + page..all + 4 + page, &"c".repeat(64)))
                .unwrap();
            assert_eq!(journal.take().await.items.len(), 1);
            writer().step().unwrap();
        }
        assert_eq!(ended.try_recv().unwrap().unwrap().count as usize, all + 3);
        assert_eq!(journal.take().await.items.len(), 1 + 3);
        assert_ne!(writer().patience(), Patience::None);

        // What is left at the end is said, not done.
        writer().commit(many(0..all, &token)).unwrap();
        let (reply, mut ended) = oneshot::channel();
        let items = vec![dead(&token)];
        writer().commit([Job::RemoveTokens(items, reply)]).unwrap();
        writer().finish().unwrap();
        assert_eq!(ended.try_recv(), Ok(Err(RegistryError::Stopping)));
    }

    #[actix::test]
    async fn of_idle_ones_no_more_end_at_a_time_than_others_can_wait_for() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            registrations_per_device_token_max: u32::MAX,
            new_registrations_per_second_max: 1_000,
            ..config_in(directory.path())
        };
        let registrations = Registrations::open(&config, Clock::system()).unwrap();
        let mut writer = lock(&registrations.0.writer);
        while writer.patience() == Patience::None {
            writer.step().unwrap();
        }
        let all = 2 * ENDED_MAX + 1;
        writer.commit(many(0..all, &"a".repeat(64))).unwrap();
        let (mut after, mut pages) = (None, Vec::new());
        loop {
            let (reply, mut swept) = oneshot::channel();
            let sweep = SweepExpired {
                idle_since: UnixSeconds(u64::MAX),
                after,
                limit: PAGE_MAX,
            };
            writer.commit([Job::Sweep(sweep, reply)]).unwrap();
            let page = swept.try_recv().unwrap().unwrap();
            pages.push((page.removed as usize, page.scanned as usize));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(
            pages,
            [(ENDED_MAX, ENDED_MAX), (ENDED_MAX, ENDED_MAX), (1, 1)]
        );
    }

    type Rotated = oneshot::Receiver<Result<(), RegistryError>>;

    fn rotation() -> (Job, Rotated) {
        let (reply, rotated) = oneshot::channel();
        (Job::Rotate(reply), rotated)
    }

    /// Goes on until nothing is owed; at most one copy, since there is a rest after each.
    fn work(writer: &mut Writer) {
        while writer.patience() == Patience::None {
            writer.step().unwrap();
        }
    }

    #[test]
    fn a_rotation_during_another_is_refused_and_harms_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let config = config_in(directory.path());
        let unfinished = config.key_file.with_extension("unfinished");
        let registrations = open(&config);
        let mut writer = lock(&registrations.0.writer);
        let before = secret(&mut writer);
        let (first, rotated) = rotation();
        let (second, mut refused) = rotation();
        // Owed, and not begun.
        writer.commit([first, second]).unwrap();
        assert_eq!(refused.try_recv(), Ok(Err(RegistryError::Busy)));
        let prepared = fs::read(&unfinished).unwrap();
        // Begun, and not exchanged.
        writer.step().unwrap();
        let (third, mut refused) = rotation();
        writer.commit([third]).unwrap();
        assert_eq!(refused.try_recv(), Ok(Err(RegistryError::Busy)));
        assert_eq!(fs::read(&unfinished).unwrap(), prepared);
        work(&mut writer);
        assert_eq!(rotated.blocking_recv().unwrap(), Ok(()));
        assert_eq!(fs::read(&config.key_file).unwrap(), prepared);
        assert_eq!(secret(&mut writer), before);
        // Over, so that there may be another.
        let (fourth, _rotated) = rotation();
        writer.commit([fourth]).unwrap();
        assert!(fs::read(&unfinished).unwrap() != prepared);
        drop(writer);
        drop(registrations);

        let registrations = open(&config);
        assert_eq!(secret(&mut lock(&registrations.0.writer)), before);
    }

    #[test]
    fn no_store_is_exchanged_for_one_whose_key_is_in_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let config = config_in(directory.path());
        let registrations = open(&config);
        let mut writer = lock(&registrations.0.writer);
        let before = secret(&mut writer);
        let key = fs::read(&config.key_file).unwrap();
        let (job, rotated) = rotation();
        writer.commit([job]).unwrap();
        MasterKey::generate()
            .unwrap()
            .prepare(&config.key_file)
            .unwrap();
        work(&mut writer);
        assert_eq!(rotated.blocking_recv().unwrap(), Err(RegistryError::Store));
        assert_eq!(fs::read(&config.key_file).unwrap(), key);
        assert_eq!(secret(&mut writer), before);
        drop(writer);
        drop(registrations);

        let registrations = open(&config);
        assert_eq!(secret(&mut lock(&registrations.0.writer)), before);
    }
}
