//! A store without disk and without indexes: the oracle the one on disk is compared with, and the one
//! that fails and waits when a test says so.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use messages::{AccountKey, RegistrationKey};

use super::{Page, PushTimes, Record, RegistrationStore, Visit};
use crate::Error;

pub(crate) struct MemoryStore {
    contents: Mutex<Contents>,
    /// What a sync does.
    on_sync: Arc<dyn Fn() -> Result<(), Error> + Send + Sync>,
    owes_erasure: AtomicBool,
    /// Whether reads fail.
    pub(crate) unreadable: bool,
    /// Reads of one registration until now.
    pub(crate) reads: AtomicU64,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::syncing(|| Ok(()))
    }
}

#[derive(Default)]
struct Contents {
    records: BTreeMap<RegistrationKey, Vec<u8>>,
    times: BTreeMap<RegistrationKey, PushTimes>,
}

impl MemoryStore {
    pub(crate) fn syncing(on_sync: impl Fn() -> Result<(), Error> + Send + Sync + 'static) -> Self {
        Self {
            contents: Mutex::default(),
            on_sync: Arc::new(on_sync),
            owes_erasure: AtomicBool::new(false),
            unreadable: false,
            reads: AtomicU64::new(0),
        }
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap()
    }

    fn scan(&self, belongs: impl Fn(&Record<'_>) -> bool, visit: &mut Visit<'_>) {
        for (key, bytes) in &self.contents().records {
            let record = Record::decode(bytes).unwrap();
            if belongs(&record) {
                visit(*key, &record);
            }
        }
    }
}

impl RegistrationStore for MemoryStore {
    fn read(&self, key: RegistrationKey, visit: &mut dyn FnMut(&Record<'_>)) -> Result<(), Error> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if self.unreadable {
            return Err(Error::Record);
        }
        if let Some(bytes) = self.contents().records.get(&key) {
            visit(&Record::decode(bytes)?);
        }
        Ok(())
    }

    fn of_account(&self, account: AccountKey, visit: &mut Visit<'_>) -> Result<(), Error> {
        self.scan(|record| record.account == account, visit);
        Ok(())
    }

    fn of_token(
        &self,
        app: &str,
        device_token: &str,
        after: Option<RegistrationKey>,
        limit: usize,
        visit: &mut Visit<'_>,
    ) -> Result<Option<RegistrationKey>, Error> {
        let (mut shown, mut last) = (0, None);
        self.scan(
            |record| record.app == app && record.device_token == device_token,
            &mut |key, record| {
                if shown < limit && after.is_none_or(|after| key > after) {
                    visit(key, record);
                    shown += 1;
                    last = Some(key);
                }
            },
        );
        Ok(last.filter(|_| shown == limit))
    }

    fn page(
        &self,
        after: Option<RegistrationKey>,
        limit: usize,
        visit: &mut Visit<'_>,
    ) -> Result<Page, Error> {
        let contents = self.contents();
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest: Vec<_> = contents.records.range((start, Bound::Unbounded)).collect();
        let page = &rest[..limit.min(rest.len())];
        for (key, bytes) in page {
            visit(**key, &Record::decode(bytes)?);
        }
        Ok(Page {
            scanned: page.len() as u64,
            unreadable: 0,
            last: page
                .last()
                .filter(|_| page.len() < rest.len())
                .map(|(key, _)| **key),
        })
    }

    fn put(&self, key: RegistrationKey, record: &Record<'_>) -> Result<(), Error> {
        self.contents().records.insert(key, record.encode()?);
        Ok(())
    }

    fn remove(&self, key: RegistrationKey) -> Result<bool, Error> {
        let mut contents = self.contents();
        contents.times.remove(&key);
        Ok(contents.records.remove(&key).is_some())
    }

    fn times(&self, key: RegistrationKey) -> Result<PushTimes, Error> {
        Ok(self.contents().times.get(&key).cloned().unwrap_or_default())
    }

    fn add_times(&self, key: RegistrationKey, times: &PushTimes) -> Result<(), Error> {
        self.contents().times.entry(key).or_default().merge(times);
        Ok(())
    }

    fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        (self.on_sync)()
    }

    fn close(&self) -> Result<(), Error> {
        self.sync()
    }

    fn owe_erasure(&self) -> Result<(), Error> {
        self.owes_erasure.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn owes_erasure(&self) -> Result<bool, Error> {
        Ok(self.owes_erasure.load(Ordering::Relaxed))
    }

    fn successor(&self, _: &[u8]) -> Result<Arc<dyn RegistrationStore>, Error> {
        Ok(Arc::new(Self {
            contents: Mutex::default(),
            on_sync: Arc::clone(&self.on_sync),
            owes_erasure: AtomicBool::new(false),
            unreadable: false,
            reads: AtomicU64::new(0),
        }))
    }

    fn take_over(&self) -> Result<(), Error> {
        self.sync()
    }

    fn discard(self: Arc<Self>) -> Result<(), Error> {
        Ok(())
    }
}
