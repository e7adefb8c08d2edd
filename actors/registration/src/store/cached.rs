//! A store with the records that are read again and again kept in memory before it.
//!
//! The engine keeps pages. A page holds a few records that lie together by chance, so where one registration
//! in ten is pushed to, nearly every page has one of these, and the pages of a large store do not fit.
//!
//! # Nothing is shown that was replaced
//!
//! A write goes to the store first and then takes the record out of the cache, before the writer learns
//! that it was done. A reader that finds nothing here leaves a placeholder before it reads the store, and
//! what it read is kept only where the placeholder still is. The write takes placeholders out as well, so
//! what was read before a write is never kept after it.
//!
//! # What strangers can do
//!
//! That a registration does not exist is not kept: nodes that are made up take no room. Records that were
//! read once go before those that were read again, so a server that pushes to all its registrations in turn
//! leaves the ones of others that are busy where they are. The writer, who comes after each push with its time,
//! only looks.

use std::sync::Arc;
use std::time::Duration;

use messages::{AccountKey, BuildRandom, RegistrationKey};
use quick_cache::sync::{Cache, DefaultLifecycle, GuardResult};
use quick_cache::{OptionsBuilder, Weighter};

use super::{Page, PushTimes, Record, RegistrationStore, Visit};
use crate::Error;

/// What a record takes beside its bytes: its places in the cache's tables, and what the allocator adds.
const OVERHEAD_BYTES: u64 = 128;
/// A record with that; only an estimate, by which the cache sets up its tables.
const RECORD_BYTES: u64 = 384;

/// Parts of the cache with a lock each. The tables of a part grow in one step, on a lane, so they are small:
/// 2,000 records each of 192 MiB.
const SHARDS: usize = 256;

/// A store and the records of it that are in memory.
pub(crate) struct CachedStore {
    store: Arc<dyn RegistrationStore>,
    records: Records,
    cache_bytes: u64,
}

type Records = Cache<RegistrationKey, Encoded, Weight, BuildRandom>;

/// A record as the store has it.
type Encoded = Arc<[u8]>;

/// The bytes that a record takes in memory.
#[derive(Clone)]
struct Weight;

impl Weighter<RegistrationKey, Encoded> for Weight {
    fn weight(&self, _: &RegistrationKey, record: &Encoded) -> u64 {
        record.len() as u64 + OVERHEAD_BYTES
    }
}

impl CachedStore {
    /// Keeps at most so many bytes of records. They are allocated as they come.
    pub(crate) fn new(store: Arc<dyn RegistrationStore>, cache_bytes: u64) -> Self {
        let records = usize::try_from(cache_bytes / RECORD_BYTES).unwrap_or(usize::MAX);
        let options = OptionsBuilder::new()
            .shards(SHARDS)
            .estimated_items_capacity(records)
            .weight_capacity(cache_bytes)
            .build();
        let (hasher, lifecycle) = (BuildRandom::default(), DefaultLifecycle::default());
        let records = match options {
            Ok(options) => Cache::with_options(options, Weight, hasher, lifecycle),
            // Of options that lack something, which these do not.
            Err(_) => Cache::with(records, cache_bytes, Weight, hasher, lifecycle),
        };
        Self {
            store,
            records,
            cache_bytes,
        }
    }

    /// Does a write, and forgets the record, whatever came of it.
    fn write<T>(&self, key: RegistrationKey, write: impl FnOnce(&dyn RegistrationStore) -> T) -> T {
        let written = write(&*self.store);
        self.records.remove(&key);
        written
    }
}

impl RegistrationStore for CachedStore {
    fn read(&self, key: RegistrationKey, visit: &mut dyn FnMut(&Record<'_>)) -> Result<(), Error> {
        // Nobody waits for somebody else's read: the store answers both.
        match self.records.get_value_or_guard(&key, Some(Duration::ZERO)) {
            GuardResult::Value(bytes) => visit(&Record::decode(&bytes)?),
            GuardResult::Timeout => self.store.read(key, visit)?,
            GuardResult::Guard(place) => {
                let mut read = None;
                self.store.read(key, &mut |record| {
                    read = Some(record.encode());
                    visit(record);
                })?;
                if let Some(bytes) = read {
                    // Refused when there was a write meanwhile.
                    let _ = place.insert(bytes?.into());
                }
            }
        }
        Ok(())
    }

    fn look(&self, key: RegistrationKey, visit: &mut dyn FnMut(&Record<'_>)) -> Result<(), Error> {
        match self.records.peek(&key) {
            Some(bytes) => visit(&Record::decode(&bytes)?),
            None => self.store.look(key, visit)?,
        }
        Ok(())
    }

    fn of_account(&self, account: AccountKey, visit: &mut Visit<'_>) -> Result<(), Error> {
        self.store.of_account(account, visit)
    }

    fn of_token(
        &self,
        app: &str,
        device_token: &str,
        after: Option<RegistrationKey>,
        limit: usize,
        visit: &mut Visit<'_>,
    ) -> Result<Option<RegistrationKey>, Error> {
        self.store.of_token(app, device_token, after, limit, visit)
    }

    fn page(
        &self,
        after: Option<RegistrationKey>,
        limit: usize,
        visit: &mut Visit<'_>,
    ) -> Result<Page, Error> {
        self.store.page(after, limit, visit)
    }

    fn put(&self, key: RegistrationKey, record: &Record<'_>) -> Result<(), Error> {
        self.write(key, |store| store.put(key, record))
    }

    fn remove(&self, key: RegistrationKey) -> Result<bool, Error> {
        self.write(key, |store| store.remove(key))
    }

    fn times(&self, key: RegistrationKey) -> Result<PushTimes, Error> {
        self.store.times(key)
    }

    fn add_times(&self, key: RegistrationKey, times: &PushTimes) -> Result<(), Error> {
        self.store.add_times(key, times)
    }

    fn flush(&self) -> Result<(), Error> {
        self.store.flush()
    }

    fn sync(&self) -> Result<(), Error> {
        self.store.sync()
    }

    fn close(&self) -> Result<(), Error> {
        self.store.close()
    }

    fn owe_erasure(&self) -> Result<(), Error> {
        self.store.owe_erasure()
    }

    fn owes_erasure(&self) -> Result<bool, Error> {
        self.store.owes_erasure()
    }

    fn successor(&self, key_check: &[u8]) -> Result<Arc<dyn RegistrationStore>, Error> {
        let store = self.store.successor(key_check)?;
        Ok(Arc::new(Self::new(store, self.cache_bytes)))
    }

    fn take_over(&self) -> Result<(), Error> {
        self.store.take_over()
    }

    fn discard(self: Arc<Self>) -> Result<(), Error> {
        // Here and now: else the last reader frees all of it, on a lane.
        self.records.clear();
        // It waits for those who hold this one, since each of them holds the store with it.
        let store = Arc::clone(&self.store);
        drop(self);
        store.discard()
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    use messages::UnixSeconds;

    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::sled::SledStore;

    const KEY: RegistrationKey = RegistrationKey([7; 16]);
    /// Of a record here with what it takes beside.
    const BYTES: u64 = 96 + 9 + OVERHEAD_BYTES;

    fn record(renewed_at: u64) -> Record<'static> {
        Record {
            registered_at: UnixSeconds(1),
            renewed_at: UnixSeconds(renewed_at),
            account: AccountKey([3; 16]),
            salt: [4; 32],
            mask: [0; 32],
            acceptance: None,
            device_token: "aa",
            node: "node",
            app: "app",
            service: "push.example",
            domain: "chat.example",
        }
    }

    /// As random as keys are.
    fn key(number: u64) -> RegistrationKey {
        let random = BuildHasherDefault::<DefaultHasher>::default().hash_one(number);
        RegistrationKey((u128::from(random) << 64 | u128::from(number)).to_be_bytes())
    }

    /// When the registration was renewed, if there is one.
    fn read(store: &CachedStore, key: RegistrationKey) -> Option<u64> {
        let mut renewed_at = None;
        let visit = &mut |record: &Record<'_>| renewed_at = Some(record.renewed_at.0);
        store.read(key, visit).unwrap();
        renewed_at
    }

    /// With room for so many records, before a store that counts its reads.
    fn cached(records: u64) -> (Arc<MemoryStore>, CachedStore) {
        let store = Arc::new(MemoryStore::default());
        let cached = CachedStore::new(Arc::clone(&store) as _, records * BYTES);
        (store, cached)
    }

    fn reads(store: &MemoryStore) -> u64 {
        store.reads.load(Ordering::Relaxed)
    }

    #[test]
    fn a_record_is_read_from_the_store_once() {
        let (store, cached) = cached(10);
        cached.put(KEY, &record(1)).unwrap();
        for _ in 0..3 {
            assert_eq!(read(&cached, KEY), Some(1));
        }
        assert_eq!(reads(&store), 1);
        let next = cached.successor(&[]).unwrap();
        next.read(KEY, &mut |_| panic!("a store that follows begins empty"))
            .unwrap();
    }

    #[test]
    fn nothing_is_left_of_a_discarded_one_for_its_last_reader() {
        let (_, cached) = cached(10);
        let reader = Arc::new(cached);
        reader.put(KEY, &record(1)).unwrap();
        let visit = &mut |_: &Record<'_>| {
            assert_eq!(reader.records.len(), 0);
            Arc::clone(&reader).discard().unwrap();
        };
        reader.read(KEY, visit).unwrap();
        assert_eq!(read(&reader, KEY), Some(1));
        assert_eq!(reader.records.len(), 1);
        Arc::clone(&reader).discard().unwrap();
        assert_eq!(reader.records.len(), 0);
    }

    #[test]
    fn what_was_read_before_a_write_is_not_kept_after_it() {
        type Write = fn(&CachedStore);
        let writes: [(Write, _); 2] = [
            (|store| store.put(KEY, &record(2)).unwrap(), Some(2)),
            (|store| assert!(store.remove(KEY).unwrap()), None),
        ];
        for (write, after) in writes {
            let directory = tempfile::tempdir().unwrap();
            let disk = SledStore::open(&directory.path().join("store"), 1 << 20).unwrap();
            let cached = CachedStore::new(Arc::new(disk), 10 * BYTES);
            cached.put(KEY, &record(1)).unwrap();
            // The reader has the record in hand when the writer comes.
            let mut shown = 0;
            cached
                .read(KEY, &mut |record| {
                    write(&cached);
                    shown = record.renewed_at.0;
                })
                .unwrap();
            assert_eq!(shown, 1);
            for _ in 0..2 {
                assert_eq!(read(&cached, KEY), after);
            }
        }
    }

    #[test]
    fn readers_never_see_what_a_write_that_was_done_has_replaced() {
        const WRITES: u64 = 20_000;
        let (_, cached) = cached(10);
        // The last write that was done: an odd one renewed the registration, an even one ended it.
        let (done, over) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over.load(Ordering::Acquire) {
                        let before = done.load(Ordering::Acquire);
                        if let Some(seen) = read(&cached, KEY) {
                            assert!(seen >= before, "{seen} was replaced by {before}");
                        }
                    }
                });
            }
            for write in 1..=WRITES {
                match write % 2 {
                    1 => cached.put(KEY, &record(write)).unwrap(),
                    _ => assert!(cached.remove(KEY).unwrap()),
                }
                done.store(write, Ordering::Release);
            }
            over.store(true, Ordering::Release);
        });
    }

    #[test]
    fn nodes_that_are_made_up_take_no_room() {
        let (store, cached) = cached(100);
        cached.put(KEY, &record(1)).unwrap();
        read(&cached, KEY);
        for number in 0..10_000 {
            assert_eq!(read(&cached, key(number)), None);
        }
        let before = reads(&store);
        assert_eq!(read(&cached, KEY), Some(1));
        assert_eq!(reads(&store), before);
        assert_eq!(cached.records.len(), 1);
    }

    #[test]
    fn busy_registrations_outlast_a_walk_through_all_others() {
        const BUSY: u64 = 500;
        let (store, cached) = cached(2 * BUSY);
        for number in 0..20 * BUSY {
            cached.put(key(number), &record(1)).unwrap();
        }
        for number in (0..BUSY).cycle().take(3 * BUSY as usize) {
            read(&cached, key(number));
        }
        for number in BUSY..20 * BUSY {
            read(&cached, key(number));
            // The time of each push is written later.
            let pushed = key(number.saturating_sub(100).max(BUSY));
            assert!(cached.touch(pushed, &PushTimes::default()).unwrap());
            assert!(cached.records.len() as u64 <= 2 * BUSY);
        }
        let before = reads(&store);
        for number in 0..BUSY {
            read(&cached, key(number));
        }
        let again = reads(&store) - before;
        assert!(again < BUSY / 10, "{again} of {BUSY} had to be read again");
    }
}
