//! How often accounts and domains may ask. Pure; in memory alone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use messages::{BareJid, UnixSeconds};

use crate::Config;
use crate::time::DAY_SECONDS;

const HOUR_SECONDS: u64 = 3_600;
/// Accounts and domains that are counted at a time, about 100 bytes each.
const COUNTED_MAX: usize = 16_384;

/// Seconds between two looks for room when all is in use.
const SWEEP_SECONDS: u64 = 60;

/// Commands begun, by account and by domain, in windows that begin with the first.
#[derive(Default)]
pub(crate) struct Limits {
    counted: HashMap<Box<str>, Window>,
    /// Before this there is no room to be found by looking through all.
    full_until: UnixSeconds,
}

#[derive(Clone, Copy)]
struct Window {
    ends_at: UnixSeconds,
    count: u32,
}

impl Limits {
    /// Counts a command; false when there have been too many, which counts nothing.
    pub(crate) fn take(&mut self, account: &BareJid, config: &Config, now: UnixSeconds) -> bool {
        let domain = account.domain().as_str();
        let room = self.has_room(account.as_str(), config.commands_per_account_max, now)
            && self.has_room(domain, config.commands_per_domain_max, now);
        if room {
            self.count(account.as_str(), DAY_SECONDS, now);
            self.count(domain, HOUR_SECONDS, now);
        }
        room
    }

    /// Commands that an account has begun in its window.
    pub(crate) fn of(&self, account: &BareJid, now: UnixSeconds) -> u32 {
        let window = self.counted.get(account.as_str());
        window
            .filter(|window| window.ends_at > now)
            .map_or(0, |window| window.count)
    }

    /// Removes what counts no more. Returns how much that was.
    pub(crate) fn sweep(&mut self, now: UnixSeconds) -> u64 {
        let before = self.counted.len();
        self.counted.retain(|_, window| window.ends_at > now);
        (before - self.counted.len()) as u64
    }

    fn has_room(&mut self, name: &str, max: u32, now: UnixSeconds) -> bool {
        match self.counted.get(name) {
            Some(window) if window.ends_at > now => window.count < max,
            Some(_) => true,
            None => {
                if self.counted.len() + 2 > COUNTED_MAX && self.full_until <= now {
                    self.sweep(now);
                    self.full_until = UnixSeconds(now.0.saturating_add(SWEEP_SECONDS));
                }
                self.counted.len() + 2 <= COUNTED_MAX
            }
        }
    }

    fn count(&mut self, name: &str, seconds: u64, now: UnixSeconds) {
        let fresh = Window {
            ends_at: UnixSeconds(now.0.saturating_add(seconds)),
            count: 1,
        };
        match self.counted.entry(name.into()) {
            Entry::Occupied(mut known) if known.get().ends_at > now => known.get_mut().count += 1,
            Entry::Occupied(mut known) => {
                known.insert(fresh);
            }
            Entry::Vacant(entry) => {
                entry.insert(fresh);
            }
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
        assert!(limits.counted.is_empty());
    }

    #[test]
    fn made_up_accounts_do_not_fill_the_memory() {
        let config = Config {
            commands_per_domain_max: u32::MAX,
            ..Config::default()
        };
        let mut limits = Limits::default();
        for n in 0..2 * COUNTED_MAX {
            let account = account(&format!("{n}@a.example")).unwrap();
            limits.take(&account, &config, UnixSeconds(0));
        }
        assert!(limits.counted.len() <= COUNTED_MAX);
    }
}
