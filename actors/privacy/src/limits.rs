//! How often accounts and the owners of their servers may ask. Pure; in memory alone.
//!
//! Whatever anybody does, there is a place for who comes next: where all places are taken the account gives way
//! that was counted first, of the owner that has most. An owner is what [`Domain::owner`] says, since names below
//! a name cost nothing.
//!
//! [`Domain::owner`]: messages::Domain::owner

use std::collections::HashMap;

use messages::{BareJid, UnixSeconds};

use crate::Config;
use crate::time::DAY_SECONDS;

const HOUR_SECONDS: u64 = 3_600;
/// Accounts that are counted at a time, about 100 bytes each and as much for each owner.
const COUNTED_MAX: usize = 16_384;

/// Seconds between two looks for room when all is in use.
const SWEEP_SECONDS: u64 = 60;

/// Commands begun, by account and by owner, in windows that begin with the first.
#[derive(Default)]
pub(crate) struct Limits {
    owners: HashMap<Box<str>, Owner>,
    /// All accounts of all owners.
    counted: usize,
    /// Before this there is no room to be found by looking through all.
    full_until: UnixSeconds,
}

/// One owner; it has an account at least.
#[derive(Default)]
struct Owner {
    window: Window,
    accounts: HashMap<Box<str>, Window>,
}

#[derive(Clone, Copy, Default)]
struct Window {
    ends_at: UnixSeconds,
    count: u32,
}

impl Window {
    const fn count(self, now: UnixSeconds) -> u32 {
        if self.ends_at.0 > now.0 {
            self.count
        } else {
            0
        }
    }

    const fn take(&mut self, seconds: u64, now: UnixSeconds) {
        if self.ends_at.0 > now.0 {
            self.count = self.count.saturating_add(1);
        } else {
            self.ends_at = UnixSeconds(now.0.saturating_add(seconds));
            self.count = 1;
        }
    }
}

impl Limits {
    /// Counts a command; false when there have been too many, which counts nothing.
    pub(crate) fn take(&mut self, account: &BareJid, config: &Config, now: UnixSeconds) -> bool {
        let name = account.domain().owner();
        let by_owner = self
            .owners
            .get(name)
            .map_or(0, |owner| owner.window.count(now));
        if self.of(account, now) >= config.commands_per_account_max
            || by_owner >= config.commands_per_domain_max
        {
            return false;
        }
        let known = self.owners.get(name);
        if known.is_none_or(|owner| !owner.accounts.contains_key(account.as_str())) {
            self.make_room(now);
            self.counted += 1;
        }
        let owner = self.owners.entry(name.into()).or_default();
        owner.window.take(HOUR_SECONDS, now);
        let window = owner.accounts.entry(account.as_str().into()).or_default();
        window.take(DAY_SECONDS, now);
        true
    }

    /// Commands that an account has begun in its window.
    pub(crate) fn of(&self, account: &BareJid, now: UnixSeconds) -> u32 {
        let owner = self.owners.get(account.domain().owner());
        owner
            .and_then(|owner| owner.accounts.get(account.as_str()))
            .map_or(0, |window| window.count(now))
    }

    /// Removes what counts no more. Returns how many accounts that were.
    pub(crate) fn sweep(&mut self, now: UnixSeconds) -> u64 {
        let before = self.counted;
        self.owners.retain(|_, owner| {
            owner.accounts.retain(|_, window| window.ends_at > now);
            // Accounts count for longer than their owner does.
            !owner.accounts.is_empty()
        });
        self.counted = self.owners.values().map(|owner| owner.accounts.len()).sum();
        (before - self.counted) as u64
    }

    /// Sees to it that there is room for one more account.
    fn make_room(&mut self, now: UnixSeconds) {
        if self.counted >= COUNTED_MAX && self.full_until <= now {
            self.sweep(now);
            self.full_until = UnixSeconds(now.0.saturating_add(SWEEP_SECONDS));
        }
        if self.counted >= COUNTED_MAX {
            self.give_way();
        }
    }

    /// Forgets the account that was counted first of the owner that has most. That is the most an owner can take
    /// from others by having many, and what it gains by it is bounded by what owners may ask in an hour.
    fn give_way(&mut self) {
        let most = self
            .owners
            .iter_mut()
            .max_by_key(|(_, owner)| owner.accounts.len());
        let Some((name, owner)) = most.map(|(name, owner)| (name.clone(), owner)) else {
            return;
        };
        let oldest = owner
            .accounts
            .iter()
            .min_by_key(|(_, window)| window.ends_at)
            .map(|(account, _)| account.clone());
        if let Some(oldest) = oldest {
            owner.accounts.remove(&oldest);
            self.counted -= 1;
        }
        if owner.accounts.is_empty() {
            self.owners.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::account;

    #[test]
    fn accounts_and_domains_have_so_many() {
        let config = Config {
            commands_per_account_max: 2,
            commands_per_domain_max: 3,
            ..Config::default()
        };
        let mut limits = Limits::default();
        let [ada, bob, eve] =
            ["ada@a.example", "bob@a.example", "eve@b.example"].map(|text| account(text).unwrap());
        let at = UnixSeconds;
        assert!(limits.take(&ada, &config, at(0)));
        assert!(limits.take(&ada, &config, at(10)));
        assert!(!limits.take(&ada, &config, at(20)));
        assert_eq!(limits.of(&ada, at(20)), 2);
        assert!(limits.take(&bob, &config, at(30)));
        assert!(!limits.take(&bob, &config, at(40)));
        assert!(limits.take(&eve, &config, at(50)));
        // The hour of the domain is over, the day of the account is not.
        assert!(limits.take(&bob, &config, at(3_600)));
        assert!(!limits.take(&ada, &config, at(3_600)));
        assert!(limits.take(&ada, &config, at(86_400)));
        assert_eq!(limits.of(&ada, at(86_400)), 1);
        assert!(limits.sweep(at(1_000_000)) > 0);
        assert!(limits.owners.is_empty());
    }

    #[test]
    fn names_below_a_name_are_counted_together() {
        let config = Config {
            commands_per_domain_max: 2,
            ..Config::default()
        };
        let mut limits = Limits::default();
        let mut take = |text| limits.take(&account(text).unwrap(), &config, UnixSeconds(0));
        assert!(take("eve@a.evil.example"));
        assert!(take("eve@b.evil.example"));
        assert!(!take("eve@c.evil.example"));
        assert!(take("ada@good.example"));
    }

    #[test]
    fn nobody_takes_the_last_place_from_others() {
        let config = Config::default();
        let mut limits = Limits::default();
        let at = UnixSeconds;
        let ada = account("ada@chat.example").unwrap();
        assert!(limits.take(&ada, &config, at(0)));
        // As many owners as it takes to fill all places within the hour, and some more.
        for domain in 0..200 {
            for n in 0..config.commands_per_domain_max {
                let eve = account(&format!("{n}@evil{domain}.test")).unwrap();
                assert!(limits.take(&eve, &config, at(1)));
            }
            assert!(limits.counted <= COUNTED_MAX);
        }
        assert_eq!(limits.counted, COUNTED_MAX);
        // Who was there stays, although she came first, and who comes gets in.
        assert_eq!(limits.of(&ada, at(2)), 1);
        let bob = account("bob@other.example.net").unwrap();
        assert!(limits.take(&bob, &config, at(2)));
        assert_eq!(limits.of(&bob, at(2)), 1);
        assert_eq!(limits.counted, COUNTED_MAX);
    }

    #[test]
    fn made_up_accounts_do_not_fill_the_memory() {
        let config = Config {
            commands_per_domain_max: u32::MAX,
            ..Config::default()
        };
        let mut limits = Limits::default();
        for n in 0..COUNTED_MAX + 8 {
            let account = account(&format!("{n}@a.example")).unwrap();
            assert!(limits.take(&account, &config, UnixSeconds(n as u64)));
        }
        assert_eq!(limits.counted, COUNTED_MAX);
        // The first have given way.
        let [first, last] = [7, 8].map(|n| account(&format!("{n}@a.example")).unwrap());
        let now = UnixSeconds(COUNTED_MAX as u64 + 8);
        assert_eq!([limits.of(&first, now), limits.of(&last, now)], [0, 1]);
    }
}
