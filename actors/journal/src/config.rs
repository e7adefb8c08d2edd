//! What an operator sets.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::Error;

/// What is recorded, where, and within which bounds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What is written down.
    pub record: Record,
    /// How nodes and device tokens are written.
    pub identifiers: Identifiers,
    /// Directory of the segments, created with mode 0700.
    pub path: PathBuf,
    /// File with the 32 random bytes that hashed identifiers depend on, created with mode 0600 when first
    /// needed. Kept outside of `path`, so that a copy of the journal alone cannot be tested with guesses.
    pub key_file: PathBuf,
    /// Days after which a segment is deleted, 1 to 3,650. No record is on disk for more than an hour longer.
    pub keep_days: u32,
    /// Milliseconds that what was written may wait for the disk's confirmation, 1 to 60,000: what a loss of
    /// power may cost. The end of the process alone costs nothing that was written.
    pub sync_milliseconds: u32,
    /// Entries that may wait to be written, at least 2, at about 150 bytes each. What comes above is lost and
    /// counted; pushes may take half of it.
    pub queue_max: u32,
    /// Most bytes of all segments together. When it is reached nothing is recorded until old segments go.
    pub bytes_max: u64,
    /// Bytes of the file system that are left to others: with less free nothing is recorded.
    pub free_bytes_min: u64,
    /// Bytes at which a segment is closed before its hour is over, at least 4,096.
    pub segment_bytes_max: u64,
}

/// What is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// Nothing.
    Off,
    /// Registrations: made, renewed, ended; accesses and erasures.
    Registrations,
    /// That, and every push.
    Pushes,
}

/// How nodes and device tokens are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Identifiers {
    /// As they are.
    Clear,
    /// As keyed hashes: who knows one finds its records, and who has the records learns none.
    Hashed,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            record: Record::Pushes,
            identifiers: Identifiers::Clear,
            path: "/var/lib/campanile/journal".into(),
            key_file: "/var/lib/campanile/journal.key".into(),
            keep_days: 14,
            sync_milliseconds: 1_000,
            queue_max: 65_536,
            bytes_max: 8 << 30,
            free_bytes_min: 256 << 20,
            segment_bytes_max: 64 << 20,
        }
    }
}

impl Config {
    const KEEP_DAYS_MAX: u32 = 3_650;
    const SYNC_MILLISECONDS_MAX: u32 = 60_000;
    const SEGMENT_BYTES_MIN: u64 = 4_096;

    pub(crate) const fn sync_period(&self) -> Duration {
        Duration::from_millis(self.sync_milliseconds as u64)
    }

    pub(crate) const fn keep_seconds(&self) -> u64 {
        self.keep_days as u64 * 24 * 60 * 60
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
                "must lie outside of journal.path, or a copy of the journal holds its key",
            ),
            (
                !(1..=Self::KEEP_DAYS_MAX).contains(&self.keep_days),
                "keep_days",
                "must be 1 to 3650; to keep nothing, set journal.record to \"off\"",
            ),
            (
                !(1..=Self::SYNC_MILLISECONDS_MAX).contains(&self.sync_milliseconds),
                "sync_milliseconds",
                "must be 1 to 60000",
            ),
            (self.queue_max < 2, "queue_max", "must be at least 2"),
            (
                self.segment_bytes_max < Self::SEGMENT_BYTES_MIN,
                "segment_bytes_max",
                "must be at least 4096",
            ),
            (
                self.bytes_max < self.segment_bytes_max,
                "bytes_max",
                "must be at least journal.segment_bytes_max",
            ),
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
        check(|c| c.keep_days = 0, &["keep_days"]);
        check(|c| c.keep_days = 3_651, &["keep_days"]);
        check(|c| c.sync_milliseconds = 0, &["sync_milliseconds"]);
        check(|c| c.queue_max = 1, &["queue_max"]);
        check(|c| c.key_file = c.path.join("key"), &["key_file"]);
        check(|c| c.path = PathBuf::new(), &["path", "key_file"]);
        check(|c| c.bytes_max = 5_000, &["bytes_max"]);
        check(|c| c.segment_bytes_max = 4_095, &["segment_bytes_max"]);
    }
}
