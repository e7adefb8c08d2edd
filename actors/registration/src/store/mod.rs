//! The store of registrations: what is kept, how it is found, and in which order it is written.
//!
//! # One point read finds a registration
//!
//! The key of a registration is an HMAC over served domain, node and secret. A publish carries all
//! three, so the resolver finds its registration with one point read, however many accounts have
//! registered the same node; in the v1 dialect the node is a device UUID that clients choose, and a
//! stranger who registers it a thousand times slows nobody down. A wrong secret finds nothing: for a
//! stranger it is the same as a node that does not exist, in the answer and in the time it takes.
//!
//! The secret is an HMAC over random bytes kept in the record. It is never stored, a stolen store opens
//! nothing, and registering again returns the same one. The owner finds the record without the secret
//! through the index by account.
//!
//! # Trees
//!
//! | tree           | key                                | value                                   |
//! |----------------|------------------------------------|-----------------------------------------|
//! | `registration` | registration key (16)              | [`Record`]                              |
//! | `account`      | account key (16), registration key | nothing                                 |
//! | `token`        | hash of app and token (16), registration key | nothing                       |
//! | `push_times`   | registration key                   | [`PushTimes`]                           |
//! | `meta`         | name                               | layout version, check value of the key, number of closings |
//!
//! # Plain writes in a fixed order
//!
//! A registration is written index entries first and record last; it is removed push times first, then
//! record, then index entries. The log of the store recovers as a prefix of what was written, so after a
//! crash a record has its index entries, and push times have a record. An index entry may be left
//! without its record: it counts for nothing and is dropped when somebody follows it.
//!
//! Transactions and batches are not used. They cost more than twice the bytes, and from the first of
//! them on the engine makes each read take a lock, which the hot path would pay for.

pub(crate) mod cached;
pub(crate) mod codec;
#[cfg(test)]
mod conformance;
mod generations;
#[cfg(test)]
pub(crate) mod memory;
pub(crate) mod sled;

use std::sync::Arc;

use messages::{AccountKey, RegistrationKey, UnixSeconds};

pub(crate) use self::codec::{PushTimes, Record};
use crate::Error;

/// What a visitor of records is: the record is borrowed from the store, so that a look copies nothing.
pub(crate) type Visit<'a> = dyn FnMut(RegistrationKey, &Record<'_>) + 'a;

/// A page of a walk through all registrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// Records passed, unreadable ones included.
    pub(crate) scanned: u64,
    /// Records that could not be read.
    pub(crate) unreadable: u64,
    /// The last record of the page; `None` when nothing is behind it.
    pub(crate) last: Option<RegistrationKey>,
}

/// Where registrations are kept. [`RegistrationStore::read`] is for any thread; the other calls are for
/// the one writer, because they put index entries right that are in the middle of being written.
pub(crate) trait RegistrationStore: Send + Sync + 'static {
    /// Shows the record of one registration, if there is one.
    fn read(&self, key: RegistrationKey, visit: &mut dyn FnMut(&Record<'_>)) -> Result<(), Error>;

    /// The same for the writer, who comes after each push: what it looks at counts as pushed to no more often.
    fn look(&self, key: RegistrationKey, visit: &mut dyn FnMut(&Record<'_>)) -> Result<(), Error> {
        self.read(key, visit)
    }

    /// Shows all registrations of an account.
    fn of_account(&self, account: AccountKey, visit: &mut Visit<'_>) -> Result<(), Error>;

    /// Shows the next `limit` registrations of a device token in the order of their keys; gives the last of
    /// them when there may be more behind it.
    fn of_token(
        &self,
        app: &str,
        device_token: &str,
        after: Option<RegistrationKey>,
        limit: usize,
        visit: &mut Visit<'_>,
    ) -> Result<Option<RegistrationKey>, Error>;

    /// Shows the next `limit` registrations in the order of their keys.
    fn page(
        &self,
        after: Option<RegistrationKey>,
        limit: usize,
        visit: &mut Visit<'_>,
    ) -> Result<Page, Error>;

    /// Writes a registration, in the place of one with the same key.
    fn put(&self, key: RegistrationKey, record: &Record<'_>) -> Result<(), Error>;

    /// Removes a registration with all that belongs to it; `false` if there is none.
    fn remove(&self, key: RegistrationKey) -> Result<bool, Error>;

    /// When pushes of a registration last succeeded and failed.
    fn times(&self, key: RegistrationKey) -> Result<PushTimes, Error>;

    /// Adds to the push times of a registration, which has to be there.
    fn add_times(&self, key: RegistrationKey, times: &PushTimes) -> Result<(), Error>;

    /// Adds to the push times of a registration; `false` if there is no such registration.
    fn touch(&self, key: RegistrationKey, times: &PushTimes) -> Result<bool, Error> {
        let mut exists = false;
        self.look(key, &mut |_| exists = true)?;
        if exists {
            self.add_times(key, times)?;
        }
        Ok(exists)
    }

    /// Hands all that was written to the system: it survives the end of the process.
    fn flush(&self) -> Result<(), Error>;

    /// Makes all that was flushed survive a loss of power.
    fn sync(&self) -> Result<(), Error>;

    /// Flushes and syncs for the last time, and remembers that the store has come this far: one that is
    /// opened with less has lost something.
    fn close(&self) -> Result<(), Error>;

    /// Notes that bytes of this store have to go, so that a next start knows. Durable with the next sync.
    fn owe_erasure(&self) -> Result<(), Error>;

    /// Whether that was noted.
    fn owes_erasure(&self) -> Result<bool, Error>;

    /// An empty store of a key, to be filled and to take the place of this one.
    fn successor(&self, key_check: &[u8]) -> Result<Arc<dyn RegistrationStore>, Error>;

    /// Makes a successor durable and the one that the next start opens, in one step.
    fn take_over(&self) -> Result<(), Error>;

    /// Removes all bytes of a store that has been replaced, or of a successor that never was one. Blocks
    /// until nobody reads it any more.
    fn discard(self: Arc<Self>) -> Result<(), Error>;
}

/// The later of a registration's renewal and its last successful push: what retention counts from.
pub(crate) fn last_use(renewed_at: UnixSeconds, times: &PushTimes) -> UnixSeconds {
    times
        .last_success
        .map_or(renewed_at, |success| success.max(renewed_at))
}
