//! How many registrations the servers of each owner have, and how fast new ones come.
//!
//! Whoever runs a server has as many accounts as he likes, so a limit per account bounds nothing. Servers that
//! share the last two labels of their names count as one owner's: a certificate and an address for all names
//! below one are cheap. The numbers are in memory and are taken by pages after the start.

use std::collections::HashMap;

use messages::{RegistrationKey, UnixMillis};

use crate::store::RegistrationStore;
use crate::{Config, Error};

/// Registrations counted at a time; about 5 ms.
const PAGE: usize = 1_000;
/// After so many quiet seconds new registrations may come at once as they may come in these.
const BURST_SECONDS: u64 = 100;
/// Owners from which on those are looked for that can be forgotten.
const FORGET_FROM: usize = 1_024;

/// The numbers, and where counting has come to.
pub(crate) struct Census {
    per_owner_max: u64,
    total_max: u64,
    interval_micros: u64,
    owners: HashMap<Box<str>, Owner>,
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
    /// New ones of its owner come too fast.
    Fast,
    /// Its owner has as many as may be.
    Owner,
    /// All together are as many as may be.
    All,
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
            total: 0,
            forget_at: FORGET_FROM,
            progress: Progress::Counted(None),
        }
    }

    /// Takes one more of a server.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn admit(&mut self, domain: &str, now: UnixMillis) -> Result<(), Crowd> {
        if self.total >= self.total_max {
            return Err(Crowd::All);
        }
        let now = now.0.saturating_mul(1_000);
        if self.owners.len() >= self.forget_at {
            self.owners
                .retain(|_, owner| owner.count > 0 || owner.made_up_at > now);
            self.forget_at = FORGET_FROM.max(2 * self.owners.len());
        }
        let owner = self.owners.entry(self::owner(domain).into()).or_default();
        if owner.count >= self.per_owner_max {
            return Err(Crowd::Owner);
        }
        let burst = BURST_SECONDS * 1_000_000;
        let latest = now.saturating_add(burst);
        // Later than the latest is by a clock that was set back, which must not keep anybody out.
        let known = Some(owner.made_up_at).filter(|at| (now..=latest).contains(at));
        let made_up_at = known.unwrap_or(now) + self.interval_micros;
        if made_up_at > latest {
            return Err(Crowd::Fast);
        }
        owner.made_up_at = made_up_at;
        Ok(())
    }

    /// A registration has come that was not there before.
    pub(crate) fn came(&mut self, key: RegistrationKey, domain: &str) {
        if self.has_counted(key) {
            self.add(domain);
        }
    }

    /// A registration has gone.
    pub(crate) fn went(&mut self, key: RegistrationKey, domain: &str) {
        if self.has_counted(key) {
            self.total = self.total.saturating_sub(1);
            if let Some(owner) = self.owners.get_mut(self::owner(domain)) {
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
        let page = store.page(after, PAGE, &mut |_, record| self.add(record.domain))?;
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

    fn add(&mut self, domain: &str) {
        self.total += 1;
        match self.owners.get_mut(self::owner(domain)) {
            Some(owner) => owner.count += 1,
            None => {
                let owner = Owner {
                    count: 1,
                    made_up_at: 0,
                };
                self.owners.insert(self::owner(domain).into(), owner);
            }
        }
    }
}

/// Whose a server is, as far as its name tells.
pub(crate) fn owner(domain: &str) -> &str {
    let mut dots = domain.rmatch_indices('.');
    match (dots.next(), dots.next()) {
        (Some(_), Some((at, _))) => domain.get(at + 1..).unwrap_or(domain),
        _ => domain,
    }
}

#[cfg(test)]
mod tests {
    use messages::{BareJid, Domain, UnixSeconds};

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

    /// How many of a domain get in at that second.
    fn crowd(census: &mut Census, domain: &str, second: u64) -> usize {
        let now = UnixMillis(1_000_000_000_000 + second * 1_000);
        (0..10_000)
            .take_while(|_| census.admit(domain, now).is_ok())
            .count()
    }

    #[test]
    fn owners_by_name() {
        for (domain, expected) in [
            ("chat.example.org", "example.org"),
            ("a.b.example.org", "example.org"),
            ("example.org", "example.org"),
            ("localhost", "localhost"),
            ("", ""),
            ("192.0.2.1", "2.1"),
        ] {
            assert_eq!(owner(domain), expected);
        }
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
        let before = UnixMillis(1_000_000_000_000 - 3_600_000);
        assert_eq!(census.admit("evil.test", before), Ok(()));
    }

    #[test]
    fn there_are_only_so_many() {
        let mut census = census(1_000, 3, 5);
        while census.is_due() {
            census.step(&MemoryStore::default()).unwrap();
        }
        let now = UnixMillis(1_000_000_000_000);
        let mut number = 0;
        let mut come = |census: &mut Census, domain: &str| {
            census.admit(domain, now)?;
            number += 1;
            census.came(key(number), domain);
            Ok(())
        };
        for _ in 0..3 {
            assert_eq!(come(&mut census, "a.x.test"), Ok(()));
        }
        assert_eq!(come(&mut census, "b.x.test"), Err(Crowd::Owner));
        for _ in 0..2 {
            assert_eq!(come(&mut census, "y.test"), Ok(()));
        }
        assert_eq!(come(&mut census, "z.test"), Err(Crowd::All));
        census.went(key(1), "a.x.test");
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
            census.came(key(number), "y.test");
        }
        for number in [0, 10 * before - 10] {
            assert!(store.remove(key(number)).unwrap());
            census.went(key(number), "x.test");
        }
        while census.is_due() {
            census.step(&store).unwrap();
        }
        assert_eq!(census.total, before);
        assert_eq!(census.owners["x.test"].count, before - 2);
        assert_eq!(census.owners["y.test"].count, 2);
    }
}
