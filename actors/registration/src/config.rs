//! What an operator sets.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::Error;

/// Where registrations are kept, and within which bounds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directory of the store, created with mode 0700. One process uses it at a time.
    pub path: PathBuf,
    /// File with the 32 random bytes that account keys and secrets are derived from, created with
    /// mode 0600 at the first start. Kept outside of `path`, so that a copy of the store alone opens
    /// nothing; without this file the store is worthless, so back up both.
    pub key_file: PathBuf,
    /// Most bytes of the store that are cached: three quarters records that are read often, a quarter the
    /// engine's pages, for which the process uses about twice as much.
    pub cache_bytes: u64,
    /// Seconds after which the times of pushes are written; a crash loses no more than these. 1 to 60.
    pub write_behind_seconds: u32,
    /// Registrations an account may have, at least 1.
    pub registrations_per_account_max: u32,
    /// Registrations of all accounts that one device token of an app may have, at least 1. Those of before
    /// stay and are renewed.
    pub registrations_per_device_token_max: u32,
    /// New registrations per second of all servers of one owner, a hundred seconds' worth at once after a
    /// quiet time, at least 1. Servers that share the last two labels of their names are one owner's.
    /// Renewals do not count.
    pub new_registrations_per_second_max: u32,
    /// Registrations that all servers of one owner may have, at least 1.
    pub registrations_per_owner_max: u32,
    /// Registrations that there may be in all, at least 1.
    pub registrations_max: u32,
    /// Requests that may wait for the disk, at least 1; what comes above is answered as busy.
    pub queue_max: u32,
    /// Registrations whose push times may wait to be written, at least 1, at about 100 bytes each. They
    /// are written early when half of that is reached.
    pub touches_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            path: "/var/lib/campanile/store".into(),
            key_file: "/var/lib/campanile/registration.key".into(),
            cache_bytes: 256 << 20,
            write_behind_seconds: 30,
            registrations_per_account_max: 32,
            registrations_per_device_token_max: 64,
            new_registrations_per_second_max: 10,
            registrations_per_owner_max: 200_000,
            registrations_max: 5_000_000,
            queue_max: 4096,
            touches_max: 65_536,
        }
    }
}

impl Config {
    const CACHE_BYTES_MIN: u64 = 1 << 20;
    const WRITE_BEHIND_SECONDS_MAX: u32 = 60;

    /// What of the cache is for records that are read often.
    pub(crate) const fn record_bytes(&self) -> u64 {
        self.cache_bytes / 4 * 3
    }

    /// What of the cache is for the engine's pages.
    pub(crate) const fn page_bytes(&self) -> u64 {
        self.cache_bytes - self.record_bytes()
    }

    pub(crate) const fn write_behind(&self) -> Duration {
        Duration::from_secs(self.write_behind_seconds as u64)
    }

    /// All values outside of their bounds.
    pub(crate) fn findings(&self) -> Vec<Error> {
        let rules = [
            (
                self.path.as_os_str().is_empty(),
                "path",
                "must name a directory",
            ),
            (
                self.key_file.as_os_str().is_empty(),
                "key_file",
                "must name a file",
            ),
            (
                self.key_file.starts_with(&self.path),
                "key_file",
                "must lie outside of registration.path, or a copy of the store holds its key",
            ),
            (
                self.cache_bytes < Self::CACHE_BYTES_MIN,
                "cache_bytes",
                "must be at least 1048576",
            ),
            (
                !(1..=Self::WRITE_BEHIND_SECONDS_MAX).contains(&self.write_behind_seconds),
                "write_behind_seconds",
                "must be 1 to 60",
            ),
            (
                self.registrations_per_account_max == 0,
                "registrations_per_account_max",
                "must be at least 1",
            ),
            (
                self.registrations_per_device_token_max == 0,
                "registrations_per_device_token_max",
                "must be at least 1",
            ),
            (
                self.new_registrations_per_second_max == 0,
                "new_registrations_per_second_max",
                "must be at least 1",
            ),
            (
                self.registrations_per_owner_max == 0,
                "registrations_per_owner_max",
                "must be at least 1",
            ),
            (
                self.registrations_max == 0,
                "registrations_max",
                "must be at least 1",
            ),
            (self.queue_max == 0, "queue_max", "must be at least 1"),
            (self.touches_max == 0, "touches_max", "must be at least 1"),
        ];
        rules
            .into_iter()
            .filter(|(broken, ..)| *broken)
            .map(|(_, key, rule)| Error::Config { key, rule })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut Config), expected: &[&str]) {
        let mut config = Config::default();
        change(&mut config);
        let found: Vec<_> = config
            .findings()
            .into_iter()
            .map(|finding| match finding {
                Error::Config { key, .. } => key,
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn values_have_bounds() {
        check(|_| {}, &[]);
        check(|c| c.write_behind_seconds = 60, &[]);
        check(|c| c.write_behind_seconds = 61, &["write_behind_seconds"]);
        check(|c| c.write_behind_seconds = 0, &["write_behind_seconds"]);
        check(|c| c.key_file = c.path.join("key"), &["key_file"]);
        check(|c| c.path = PathBuf::new(), &["path", "key_file"]);
        check(
            |c| {
                c.queue_max = 0;
                c.touches_max = 0;
                c.registrations_per_account_max = 0;
                c.registrations_per_device_token_max = 0;
                c.new_registrations_per_second_max = 0;
                c.registrations_per_owner_max = 0;
                c.registrations_max = 0;
                c.cache_bytes = 0;
            },
            &[
                "cache_bytes",
                "registrations_per_account_max",
                "registrations_per_device_token_max",
                "new_registrations_per_second_max",
                "registrations_per_owner_max",
                "registrations_max",
                "queue_max",
                "touches_max",
            ],
        );
    }
}
