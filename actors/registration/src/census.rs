//! How many registrations the servers of each owner have, and how fast new ones come.
//!
//! Whoever runs a server has as many accounts as he likes, so a limit per account bounds nothing; but an
//! account has a pace of its own, or one could use up that of its server. Whose a server is, its name tells
//! ([`Domain::owner`]). The numbers are in memory and are taken by pages after the start.

use std::collections::HashMap;

use messages::{AccountKey, Domain, RegistrationKey, UnixMillis};

use crate::store::RegistrationStore;
use crate::{Config, Error};

/// Registrations counted at a time; about 5 ms.
const PAGE: usize = 1_000;
/// After so many quiet seconds new registrations may come at once as they may come in these.
const BURST_SECONDS: u64 = 100;
/// An account may make so many new registrations at once, and then one for each of so many of its owner's.
const ACCOUNT_BURST: u64 = 32;
const ACCOUNT_SHARE: u64 = 600;
/// Owners with fewer get in while the last quarter of all places is left.
const SMALL: u64 = 1_000;
/// Owners from which on those are looked for that can be forgotten.
const FORGET_FROM: usize = 1_024;

/// The numbers, and where counting has come to.
pub(crate) struct Census {
    per_owner_max: u64,
    total_max: u64,
    interval_micros: u64,
    owners: HashMap<Box<str>, Owner>,
    /// When what an account made is made up for, in microseconds.
    accounts: HashMap<AccountKey, u64>,
    total: u64,
    forget_at: usize,
    progress: Progress,
}

#[derive(Default)]
struct Owner {
    count: u64,
    /// When all that has come is made up for, in microseconds (the generic cell rate algorithm).
    made_up_at: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Up to this key.
    Counted(Option<RegistrationKey>),
    Done,
}

/// Why one more is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crowd {
    /// New ones of its account come too fast.
    Account,
    /// New ones of its owner come too fast.
    Fast,
    /// Its owner has as many as may be.
    Owner,
    /// All together are as many as may be.
    All,
    /// Its device token has as many as may be.
    DeviceToken,
}

impl Census {
    /// Knows nothing yet.
    pub(crate) fn new(config: &Config) -> Self {
        let per_second = u64::from(config.new_registrations_per_second_max).max(1);
        Self {
            per_owner_max: config.registrations_per_owner_max.into(),
            total_max: config.registrations_max.into(),
            interval_micros: 1_000_000 / per_second,
            owners: HashMap::new(),
            accounts: HashMap::new(),
            total: 0,
            forget_at: FORGET_FROM,
            progress: Progress::Counted(None),
        }
    }

    /// Takes one more of a server. One that takes the place of another is not asked for its number.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn admit(
        &mut self,
        domain: &Domain,
        account: AccountKey,
        replaces: bool,
        now: UnixMillis,
    ) -> Result<(), Crowd> {
        let now = now.0.saturating_mul(1_000);
        self.forget(now);
        let account_interval = self.interval_micros * ACCOUNT_SHARE;
        let account_until = self.accounts.get(&account).copied();
        let account_until = next(
            account_until,
            now,
            account_interval,
            account_interval * ACCOUNT_BURST,
        )
        .ok_or(Crowd::Account)?;
        let owner = self.owners.entry(domain.owner().into()).or_default();
        let places = match owner.count < SMALL {
            true => self.total_max,
            false => self.total_max - self.total_max / 4,
        };
        if !replaces && self.total >= places {
            return Err(Crowd::All);
        }
        if !replaces && owner.count >= self.per_owner_max {
            return Err(Crowd::Owner);
        }
        let burst = BURST_SECONDS * 1_000_000;
        owner.made_up_at =
            next(Some(owner.made_up_at), now, self.interval_micros, burst).ok_or(Crowd::Fast)?;
        self.accounts.insert(account, account_until);
        Ok(())
    }

    /// Forgets those of whom there is nothing to know.
    fn forget(&mut self, now: u64) {
        if self.owners.len() + self.accounts.len() < self.forget_at {
            return;
        }
        // What lies further ahead is from a clock that was set back.
        let latest = now.saturating_add(self.interval_micros * ACCOUNT_SHARE * ACCOUNT_BURST);
        let counts = |made_up_at: u64| made_up_at > now && made_up_at <= latest;
        self.owners
            .retain(|_, owner| owner.count > 0 || counts(owner.made_up_at));
        self.accounts.retain(|_, made_up_at| counts(*made_up_at));
        self.forget_at = FORGET_FROM.max(2 * (self.owners.len() + self.accounts.len()));
    }

    /// A registration has come that was not there before.
    pub(crate) fn came(&mut self, key: RegistrationKey, domain: &Domain) {
        if self.has_counted(key) {
            self.add(domain);
        }
    }

    /// A registration has gone.
    pub(crate) fn went(&mut self, key: RegistrationKey, domain: &Domain) {
        if self.has_counted(key) {
            self.total = self.total.saturating_sub(1);
            if let Some(owner) = self.owners.get_mut(domain.owner()) {
                owner.count = owner.count.saturating_sub(1);
            }
        }
    }

    /// Whether there is more to count.
    pub(crate) fn is_due(&self) -> bool {
        self.progress != Progress::Done
    }

    /// Counts a page.
    ///
    /// # Errors
    /// [`Error::Store`]; what is left stays uncounted then.
    pub(crate) fn step(&mut self, store: &dyn RegistrationStore) -> Result<(), Error> {
        let Progress::Counted(after) = std::mem::replace(&mut self.progress, Progress::Done) else {
            return Ok(());
        };
        let page = store.page(after, PAGE, &mut |_, record| {
            self.add(&Domain::new(record.domain));
        })?;
        if page.last.is_some() {
            self.progress = Progress::Counted(page.last);
        }
        Ok(())
    }

    fn has_counted(&self, key: RegistrationKey) -> bool {
        match self.progress {
            Progress::Done => true,
            Progress::Counted(last) => last.is_some_and(|last| key <= last),
        }
    }

    fn add(&mut self, domain: &Domain) {
        self.total += 1;
        match self.owners.get_mut(domain.owner()) {
            Some(owner) => owner.count += 1,
            None => {
                let owner = Owner {
                    count: 1,
                    made_up_at: 0,
                };
                self.owners.insert(domain.owner().into(), owner);
            }
        }
    }
}

/// When what has come is made up for with one more; none when it comes too fast.
fn next(made_up_at: Option<u64>, now: u64, interval: u64, burst: u64) -> Option<u64> {
    let latest = now.saturating_add(burst);
    // Later than the latest is by a clock that was set back, which must not keep anybody out.
    let known = made_up_at.filter(|at| (now..=latest).contains(at));
    let next = known.unwrap_or(now) + interval;
    (next <= latest).then_some(next)
}

#[cfg(test)]
mod tests {
    use messages::{BareJid, UnixSeconds};

    use super::*;
    use crate::keys::{Keys, MasterKey};
    use crate::store::Record;
    use crate::store::memory::MemoryStore;

    fn census(per_second: u32, per_owner: u32, total: u32) -> Census {
        Census::new(&Config {
            new_registrations_per_second_max: per_second,
            registrations_per_owner_max: per_owner,
            registrations_max: total,
            ..Config::default()
        })
    }

    fn key(number: u64) -> RegistrationKey {
        RegistrationKey(u128::from(number).to_be_bytes())
    }

    /// One of many accounts.
    fn account(number: u64) -> AccountKey {
        AccountKey(u128::from(number).to_be_bytes())
    }

    fn at(second: u64) -> UnixMillis {
        UnixMillis(1_000_000_000_000 + second * 1_000)
    }

    /// How many of a domain get in at that second, each of an account of its own.
    fn crowd(census: &mut Census, domain: &str, second: u64) -> usize {
        let domain = Domain::new(domain);
        let mut come = |number| {
            census.admit(
                &domain,
                account(second * 10_000 + number),
                false,
                at(second),
            )
        };
        (0..10_000)
            .take_while(|number| come(*number).is_ok())
            .count()
    }

    #[test]
    fn new_ones_come_at_a_pace() {
        let mut census = census(10, 1_000_000, 1_000_000);
        assert_eq!(crowd(&mut census, "a.evil.test", 0), 1_000);
        assert_eq!(crowd(&mut census, "b.evil.test", 0), 0);
        assert_eq!(crowd(&mut census, "evil.test", 2), 20);
        assert_eq!(crowd(&mut census, "good.test", 2), 1_000);
        assert_eq!(crowd(&mut census, "evil.test", 1_000), 1_000);
        // Set back by an hour.
        let before = UnixMillis(at(0).0 - 3_600_000);
        let domain = Domain::new("evil.test");
        assert_eq!(census.admit(&domain, account(0), false, before), Ok(()));
    }

    #[test]
    fn one_account_leaves_room_for_the_others_of_its_server() {
        let mut census = census(10, 1_000_000, 1_000_000);
        let domain = Domain::new("chat.test");
        let mut come = |number, second| {
            census
                .admit(&domain, account(number), false, at(second))
                .is_ok()
        };
        assert_eq!((0..1_000).filter(|_| come(1, 0)).count(), 32);
        assert!(come(2, 0));
        assert!(!come(1, 59) && come(1, 60) && !come(1, 60));
    }

    #[test]
    fn what_counts_is_not_forgotten() {
        let mut census = census(1, 1, 1_000_000);
        while census.is_due() {
            census.step(&MemoryStore::default()).unwrap();
        }
        let name = |number: u64| Domain::new(&format!("{number}.test"));
        let full = name(0);
        census.came(key(0), &full);
        for number in 1..10_000 {
            census
                .admit(&name(number), account(number), false, at(number * 1_000))
                .unwrap();
        }
        assert!(census.owners.len() + census.accounts.len() < 3 * FORGET_FROM);
        let again = census.admit(&full, account(0), false, at(20_000_000));
        assert_eq!(again, Err(Crowd::Owner));
    }

    #[test]
    fn there_are_only_so_many() {
        let mut census = census(1_000, 3, 5);
        while census.is_due() {
            census.step(&MemoryStore::default()).unwrap();
        }
        let mut number = 0;
        let mut come = |census: &mut Census, domain: &str| {
            let domain = Domain::new(domain);
            census.admit(&domain, account(number), false, at(0))?;
            number += 1;
            census.came(key(number), &domain);
            Ok(())
        };
        for _ in 0..3 {
            assert_eq!(come(&mut census, "a.x.test"), Ok(()));
        }
        assert_eq!(come(&mut census, "b.x.test"), Err(Crowd::Owner));
        let domain = Domain::new("b.x.test");
        assert_eq!(census.admit(&domain, account(99), true, at(0)), Ok(()));
        for _ in 0..2 {
            assert_eq!(come(&mut census, "y.test"), Ok(()));
        }
        assert_eq!(come(&mut census, "z.test"), Err(Crowd::All));
        census.went(key(1), &Domain::new("a.x.test"));
        assert_eq!(come(&mut census, "b.x.test"), Ok(()));
        assert_eq!(come(&mut census, "z.test"), Err(Crowd::All));
    }

    #[test]
    fn those_of_before_are_counted_while_others_come_and_go() {
        let store = MemoryStore::default();
        let keys = Keys::derive(&MasterKey::generate().unwrap());
        let put = |number: u64, domain: &str| {
            let account = keys.account(&BareJid::new("a", Domain::new(domain)));
            let record = Record {
                registered_at: UnixSeconds(1),
                renewed_at: UnixSeconds(1),
                account,
                salt: [0; 32],
                acceptance: None,
                mask: [0; 32],
                device_token: "aa",
                node: "n",
                app: "app",
                service: "push.test",
                domain,
            };
            store.put(key(number), &record).unwrap();
        };
        let before = 2 * PAGE as u64;
        for number in 0..before {
            put(10 * number, "x.test");
        }
        let mut census = census(1, 1_000_000, 1_000_000);
        census.step(&store).unwrap();
        assert_eq!(census.total, PAGE as u64);
        // In front of the place where it is, and behind.
        for number in [1, 10 * before - 1] {
            put(number, "y.test");
            census.came(key(number), &Domain::new("y.test"));
        }
        for number in [0, 10 * before - 10] {
            assert!(store.remove(key(number)).unwrap());
            census.went(key(number), &Domain::new("x.test"));
        }
        while census.is_due() {
            census.step(&store).unwrap();
        }
        assert_eq!(census.total, before);
        assert_eq!(census.owners["x.test"].count, before - 2);
        assert_eq!(census.owners["y.test"].count, 2);
    }
}
