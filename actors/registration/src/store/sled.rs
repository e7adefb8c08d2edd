//! The store on disk.

use std::fs::{self, File, TryLockError};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ::sled::{Db, IVec, Tree};
use messages::{AccountKey, RegistrationKey};
use ring::digest;

use super::generations::Generation;
use super::{Page, PushTimes, Record, RegistrationStore, Visit};
use crate::{Error, Fault};

/// Part of the layout on disk: a store opens with no other value. With small segments less is written.
const SEGMENT_BYTES: usize = 65_536;
/// The one file of the engine that holds data.
const DATA_FILE: &str = "db";
/// A file that is there from when the store was first complete. A store that has it and nothing else is
/// damaged, not new. It holds the number of times the store was closed in order, in decimal digits; it
/// is empty before the first.
const MARK_FILE: &str = "complete";
const LAYOUT: &[u8] = &[1];
const LAYOUT_KEY: &str = "layout";
const KEY_CHECK_KEY: &str = "key_check";
/// The same number within the store. It may be ahead of the file, never behind, because recovery loses
/// nothing that was synced.
const CLOSINGS_KEY: &str = "closings";
/// There from an erasure on until the bytes are gone with this generation.
const ERASURE_KEY: &str = "erasure";
const PREFIX_BYTES: usize = 16;
/// A process that is just ending releases the store soon; so do the engine's own threads, which outlive
/// the last handle by a moment.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(5);
/// How long readers may take with a store that has been replaced. They take microseconds.
const READERS_PATIENCE: Duration = Duration::from_secs(30);

/// An open store. Exclusive to this process.
pub(crate) struct SledStore {
    generation: Generation,
    cache_bytes: u64,
    db: Db,
    /// The engine's own flush is no fsync, so the file is synced through this handle.
    data: File,
    registration: Tree,
    account: Tree,
    token: Tree,
    push_times: Tree,
    meta: Tree,
}

impl SledStore {
    /// Opens the living generation of the store, or creates an empty one for the owner alone, and removes
    /// what is left of others.
    pub(crate) fn open(root: &Path, cache_bytes: u64) -> Result<Self, Error> {
        let generation = Generation::living(root)?;
        let directory = |source| Error::StoreDirectory {
            path: root.into(),
            source,
        };
        if root.is_dir() {
            check_private(root)?;
        }
        let store = Self::open_generation(&generation, cache_bytes)?;
        generation.discard_others().map_err(directory)?;
        hide_files(&generation.directory()).map_err(directory)?;
        Ok(store)
    }

    fn open_generation(generation: &Generation, cache_bytes: u64) -> Result<Self, Error> {
        let path = &generation.directory();
        let directory = |source| Error::StoreDirectory {
            path: path.into(),
            source,
        };
        let unopenable = |cause| match cause {
            // No damage: what the system refuses now it may grant later, space for example.
            Fault::Io(source) if source.kind() != io::ErrorKind::UnexpectedEof => directory(source),
            cause => Error::StoreUnopenable {
                path: path.into(),
                cause,
            },
        };
        let complete = is_complete(path)?;
        files::create_private(path).map_err(directory)?;
        check_generation(path)?;
        // The engine would make a new one.
        if complete && !path.join(DATA_FILE).exists() {
            return Err(unopenable(Fault::Missing));
        }
        // The engine panics over some kinds of damage. Nothing of it is used after that.
        let opened = catch_unwind(|| Self::open_trees(generation.clone(), cache_bytes));
        let store = opened
            .unwrap_or(Err(Fault::Corruption))
            .map_err(unopenable)?;
        let layout = store.meta.get(LAYOUT_KEY);
        match layout.map_err(|error| unopenable(error.into()))? {
            Some(layout) if layout != LAYOUT => Err(Error::StoreLayout { path: path.into() }),
            // Recovery has cut off even the first entry that was ever made.
            None if complete => Err(unopenable(Fault::Corruption)),
            None if !store.is_empty() => Err(Error::StoreLayout { path: path.into() }),
            _ if store.closings()? < closings_marked(path) => Err(unopenable(Fault::Truncated)),
            _ => Ok(store),
        }
    }

    fn closings(&self) -> Result<u64, Error> {
        match self.meta.get(CLOSINGS_KEY)? {
            Some(bytes) => {
                let bytes = bytes.as_ref().try_into().map_err(|_| Error::Record)?;
                Ok(u64::from_be_bytes(bytes))
            }
            None => Ok(0),
        }
    }

    fn open_trees(generation: Generation, cache_bytes: u64) -> Result<Self, Fault> {
        let path = generation.directory();
        let db = ::sled::Config::new()
            .path(&path)
            .cache_capacity(cache_bytes)
            .segment_size(SEGMENT_BYTES)
            // The engine's timer would rewrite segments all the time: 15 times the bytes at low load.
            .flush_every_ms(None)
            .open()?;
        Ok(Self {
            registration: db.open_tree("registration")?,
            account: db.open_tree("account")?,
            token: db.open_tree("token")?,
            push_times: db.open_tree("push_times")?,
            meta: db.open_tree("meta")?,
            data: File::open(path.join(DATA_FILE)).map_err(Fault::Io)?,
            generation,
            cache_bytes,
            db,
        })
    }

    /// The check value of the key this store was written with; `None` for an empty store.
    pub(crate) fn key_check(&self) -> Result<Option<IVec>, Error> {
        Ok(self.meta.get(KEY_CHECK_KEY)?)
    }

    /// Whether the store was ever initialised to the end.
    pub(crate) fn is_complete(root: &Path) -> Result<bool, Error> {
        is_complete(&Generation::living(root)?.directory())
    }

    /// Whether there is no registration in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.registration.is_empty()
    }

    /// Marks a new store as written with a key, durably. Done again, it does all anew.
    pub(crate) fn initialise(&self, key_check: &[u8]) -> Result<(), Error> {
        self.meta.insert(LAYOUT_KEY, LAYOUT)?;
        self.meta.insert(KEY_CHECK_KEY, key_check)?;
        self.complete()
    }

    fn complete(&self) -> Result<(), Error> {
        self.flush()?;
        self.sync()?;
        let path = self.generation.directory();
        File::create(path.join(MARK_FILE))
            .and_then(|mark| mark.sync_all())
            .and_then(|()| File::open(&path)?.sync_all())
            .and_then(|()| File::open(files::parent(&path))?.sync_all())
            .and_then(|()| hide_files(&path))
            .map_err(Error::Sync)
    }

    /// Shows the next `limit` registrations an index has under a prefix, and drops entries that lead nowhere.
    /// Gives the last of them when there may be more behind it.
    fn follow(
        &self,
        (index, prefix): (&Tree, [u8; PREFIX_BYTES]),
        (after, limit): (Option<RegistrationKey>, usize),
        belongs: impl Fn(&Record<'_>) -> bool,
        visit: &mut Visit<'_>,
    ) -> Result<Option<RegistrationKey>, Error> {
        let start = after.map_or(
            Bound::Included(join(prefix, RegistrationKey([0; 16]))),
            |key| Bound::Excluded(join(prefix, key)),
        );
        let end = Bound::Included(join(prefix, RegistrationKey([0xff; 16])));
        let mut shown = 0;
        for entry in index.range::<[u8; 32], _>((start, end)).keys() {
            let entry = entry?;
            let key = entry.last_chunk().copied().map(RegistrationKey);
            let key = key.ok_or(Error::Record)?;
            let mut leads_on = false;
            self.read(key, &mut |record| {
                leads_on = belongs(record);
                if leads_on {
                    visit(key, record);
                }
            })?;
            if !leads_on {
                index.remove(entry)?;
                continue;
            }
            shown += 1;
            if shown >= limit {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }
}

fn is_complete(path: &Path) -> Result<bool, Error> {
    let fail = |source| Error::StoreDirectory {
        path: path.into(),
        source,
    };
    match fs::metadata(path) {
        Ok(found) if !found.is_dir() => Err(Error::StoreNotDirectory { path: path.into() }),
        Ok(_) => path.join(MARK_FILE).try_exists().map_err(fail),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(fail(error)),
    }
}

fn check_private(path: &Path) -> Result<(), Error> {
    let found = fs::metadata(path).map_err(|source| Error::StoreDirectory {
        path: path.into(),
        source,
    })?;
    match found.mode() & 0o077 {
        0 => Ok(()),
        _ => Err(Error::StoreExposed { path: path.into() }),
    }
}

/// The engine makes its files as the process's mask says. Their directory is closed, so this is a second
/// lock for files that are copied elsewhere.
fn hide_files(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let found = entry.metadata()?;
        if found.is_file() && found.mode() & 0o077 != 0 {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}

/// Looks at the files of a store without changing any: fails when others may read them, when they cannot
/// be read and written, or when another process uses them. Waits [`LOCK_PATIENCE`] for that one to end.
pub(crate) fn check_files(root: &Path) -> Result<(), Error> {
    check_private(root)?;
    check_generation(&Generation::living(root)?.directory())
}

fn check_generation(path: &Path) -> Result<(), Error> {
    let fail = |source| Error::StoreDirectory {
        path: path.into(),
        source,
    };
    check_private(path)?;
    let data = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path.join(DATA_FILE));
    let data = match data {
        Ok(data) => data,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail(error)),
    };
    let start = Instant::now();
    loop {
        match data.try_lock() {
            // What a killed process has written must be on disk before the engine, on opening, durably
            // notes that it is there.
            Ok(()) => return data.sync_data().map_err(fail),
            Err(TryLockError::Error(error)) => return Err(fail(error)),
            Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_PATIENCE => {
                thread::sleep(LOCK_RETRY);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::StoreLocked { path: path.into() });
            }
        }
    }
}

/// How many closings the mark of a store tells of.
fn closings_marked(path: &Path) -> u64 {
    let mark = fs::read_to_string(path.join(MARK_FILE)).unwrap_or_default();
    mark.parse().unwrap_or(0)
}

/// Whether a directory holds a store already.
pub(crate) fn exists(root: &Path) -> bool {
    Generation::living(root).is_ok_and(|living| living.directory().join(DATA_FILE).exists())
}

fn account_entry(record: &Record<'_>, key: RegistrationKey) -> [u8; 32] {
    join(record.account.0, key)
}

fn token_entry(record: &Record<'_>, key: RegistrationKey) -> [u8; 32] {
    join(token_prefix(record.app, record.device_token), key)
}

/// Half of a digest tells tokens apart and halves the index.
fn token_prefix(app: &str, device_token: &str) -> [u8; PREFIX_BYTES] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&(app.len() as u64).to_be_bytes());
    context.update(app.as_bytes());
    context.update(device_token.as_bytes());
    let digest = context.finish();
    digest
        .as_ref()
        .first_chunk()
        .copied()
        .unwrap_or([0; PREFIX_BYTES])
}

fn join(prefix: [u8; PREFIX_BYTES], key: RegistrationKey) -> [u8; 32] {
    let mut entry = [0; 32];
    for (to, from) in entry.iter_mut().zip(prefix.into_iter().chain(key.0)) {
        *to = from;
    }
    entry
}

impl RegistrationStore for SledStore {
    fn read(&self, key: RegistrationKey, visit: &mut dyn FnMut(&Record<'_>)) -> Result<(), Error> {
        if let Some(bytes) = self.registration.get(key.0)? {
            visit(&Record::decode(&bytes)?);
        }
        Ok(())
    }

    fn of_account(&self, account: AccountKey, visit: &mut Visit<'_>) -> Result<(), Error> {
        let belongs = |record: &Record<'_>| record.account == account;
        let all = (None, usize::MAX);
        self.follow((&self.account, account.0), all, belongs, visit)
            .map(drop)
    }

    fn of_token(
        &self,
        app: &str,
        device_token: &str,
        after: Option<RegistrationKey>,
        limit: usize,
        visit: &mut Visit<'_>,
    ) -> Result<Option<RegistrationKey>, Error> {
        let belongs =
            |record: &Record<'_>| record.app == app && record.device_token == device_token;
        let prefix = token_prefix(app, device_token);
        self.follow((&self.token, prefix), (after, limit), belongs, visit)
    }

    fn page(
        &self,
        after: Option<RegistrationKey>,
        limit: usize,
        visit: &mut Visit<'_>,
    ) -> Result<Page, Error> {
        let start = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.0));
        let mut rest = self
            .registration
            .range::<[u8; 16], _>((start, Bound::Unbounded));
        let mut page = Page {
            scanned: 0,
            unreadable: 0,
            last: None,
        };
        for entry in rest.by_ref().take(limit) {
            let (key, bytes) = entry?;
            let key = RegistrationKey(key.as_ref().try_into().map_err(|_| Error::Record)?);
            match Record::decode(&bytes) {
                Ok(record) => visit(key, &record),
                Err(_) => page.unreadable += 1,
            }
            page.scanned += 1;
            page.last = Some(key);
        }
        if rest.next().transpose()?.is_none() {
            page.last = None;
        }
        Ok(page)
    }

    fn put(&self, key: RegistrationKey, record: &Record<'_>) -> Result<(), Error> {
        let bytes = record.encode()?;
        let mut before = (None, None);
        self.read(key, &mut |record| {
            before = (
                Some(account_entry(record, key)),
                Some(token_entry(record, key)),
            );
        })?;
        let indexes = [
            (&self.account, before.0, account_entry(record, key)),
            (&self.token, before.1, token_entry(record, key)),
        ];
        // A record that is there has its entries; most are written again with the same ones.
        let changed = indexes
            .iter()
            .filter(|(_, before, entry)| *before != Some(*entry));
        for (index, _, entry) in changed.clone() {
            index.insert(entry, &[])?;
        }
        self.registration.insert(key.0, bytes)?;
        for (index, before, _) in changed {
            if let Some(entry) = before {
                index.remove(entry)?;
            }
        }
        Ok(())
    }

    fn remove(&self, key: RegistrationKey) -> Result<bool, Error> {
        let mut entries = None;
        self.read(key, &mut |record| {
            entries = Some((account_entry(record, key), token_entry(record, key)));
        })?;
        let Some((account, token)) = entries else {
            return Ok(false);
        };
        self.push_times.remove(key.0)?;
        self.registration.remove(key.0)?;
        self.account.remove(account)?;
        self.token.remove(token)?;
        Ok(true)
    }

    fn times(&self, key: RegistrationKey) -> Result<PushTimes, Error> {
        match self.push_times.get(key.0)? {
            Some(bytes) => PushTimes::decode(&bytes),
            None => Ok(PushTimes::default()),
        }
    }

    fn add_times(&self, key: RegistrationKey, times: &PushTimes) -> Result<(), Error> {
        // Merged before it is written: a crash must not leave the new half alone.
        let before = self.times(key)?;
        let mut merged = before.clone();
        merged.merge(times);
        if merged != before {
            self.push_times.insert(key.0, merged.encode())?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), Error> {
        self.db.flush()?;
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        self.data.sync_data().map_err(Error::Sync)
    }

    fn close(&self) -> Result<(), Error> {
        let closings = self.closings()?.saturating_add(1);
        self.meta.insert(CLOSINGS_KEY, &closings.to_be_bytes())?;
        self.flush()?;
        self.sync()?;
        let mark = self.generation.directory().join(MARK_FILE);
        files::write_private(&mark, closings.to_string().as_bytes()).map_err(Error::Sync)
    }

    fn owe_erasure(&self) -> Result<(), Error> {
        self.meta.insert(ERASURE_KEY, &[])?;
        Ok(())
    }

    fn owes_erasure(&self) -> Result<bool, Error> {
        Ok(self.meta.contains_key(ERASURE_KEY)?)
    }

    fn successor(&self, key_check: &[u8]) -> Result<Arc<dyn RegistrationStore>, Error> {
        let next = self.generation.next();
        // One that was given up may be there.
        next.discard().map_err(Error::Sync)?;
        let store = Self::open_generation(&next, self.cache_bytes)?;
        store.meta.insert(LAYOUT_KEY, LAYOUT)?;
        store.meta.insert(KEY_CHECK_KEY, key_check)?;
        Ok(Arc::new(store))
    }

    fn take_over(&self) -> Result<(), Error> {
        self.complete()?;
        self.generation.make_living().map_err(Error::Sync)
    }

    fn discard(self: Arc<Self>) -> Result<(), Error> {
        let start = Instant::now();
        while Arc::strong_count(&self) > 1 && start.elapsed() < READERS_PATIENCE {
            thread::sleep(LOCK_RETRY);
        }
        let generation = self.generation.clone();
        drop(self);
        // The engine's own threads may be writing still; what they open later fails.
        let _ = check_generation(&generation.directory());
        let discarded = generation.discard();
        discarded.map_err(|source| Error::StoreDirectory {
            path: generation.root().into(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use messages::UnixSeconds;

    use super::*;

    const KEY: RegistrationKey = RegistrationKey([7; 16]);

    fn record() -> Record<'static> {
        Record {
            registered_at: UnixSeconds(1),
            renewed_at: UnixSeconds(2),
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

    fn store() -> (tempfile::TempDir, SledStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = SledStore::open(&directory.path().join("store"), 1 << 20).unwrap();
        (directory, store)
    }

    fn sizes(store: &SledStore) -> [usize; 4] {
        [
            store.registration.len(),
            store.account.len(),
            store.token.len(),
            store.push_times.len(),
        ]
    }

    #[test]
    fn nothing_is_left_of_a_removed_registration() {
        let (_directory, store) = store();
        store.put(KEY, &record()).unwrap();
        let seen = PushTimes {
            last_success: Some(UnixSeconds(9)),
            last_error: None,
            acceptance: None,
        };
        assert!(store.touch(KEY, &seen).unwrap());
        let renewed = Record {
            device_token: "bb",
            ..record()
        };
        store.put(KEY, &renewed).unwrap();
        assert_eq!(sizes(&store), [1, 1, 1, 1]);
        assert_eq!(store.times(KEY).unwrap(), seen);
        assert!(store.remove(KEY).unwrap());
        assert!(!store.touch(KEY, &seen).unwrap());
        assert_eq!(sizes(&store), [0, 0, 0, 0]);
    }

    #[test]
    fn index_entries_that_lead_nowhere_are_dropped() {
        let (_directory, store) = store();
        let gone = RegistrationKey([8; 16]);
        store.put(KEY, &record()).unwrap();
        // A removal that a crash cut short, and a renewal with another token that one cut short.
        store
            .account
            .insert(account_entry(&record(), gone), &[])
            .unwrap();
        store
            .token
            .insert(token_entry(&record(), gone), &[])
            .unwrap();
        store
            .token
            .insert(join(token_prefix("app", "old"), KEY), &[])
            .unwrap();
        let mut seen = Vec::new();
        store
            .of_account(AccountKey([3; 16]), &mut |key, _| seen.push(key))
            .unwrap();
        store
            .of_token("app", "aa", None, 9, &mut |key, _| seen.push(key))
            .unwrap();
        store
            .of_token("app", "old", None, 9, &mut |key, _| seen.push(key))
            .unwrap();
        assert!(seen == [KEY, KEY]);
        assert_eq!(sizes(&store), [1, 1, 1, 0]);
    }

    #[test]
    fn a_store_of_a_later_layout_is_refused() {
        let (directory, store) = store();
        store.meta.insert(LAYOUT_KEY, &[2]).unwrap();
        store.flush().unwrap();
        drop(store);
        assert!(matches!(
            SledStore::open(&directory.path().join("store"), 1 << 20),
            Err(Error::StoreLayout { .. })
        ));
    }

    #[test]
    fn a_store_that_has_lost_its_end_is_refused() {
        let (directory, store) = store();
        let path = directory.path().join("store");
        store.initialise(&[]).unwrap();
        for n in 0..50 {
            store.put(RegistrationKey([n; 16]), &record()).unwrap();
            store.flush().unwrap();
        }
        store.close().unwrap();
        // A process that was killed after a later start has left more than the mark tells of.
        store.put(RegistrationKey([99; 16]), &record()).unwrap();
        store.flush().unwrap();
        drop(store);
        let whole = fs::read(path.join(DATA_FILE)).unwrap();
        let open = |percent: usize| {
            let cut = tempfile::tempdir().unwrap();
            let at = cut.path().join("store");
            files::create_private(&at).unwrap();
            fs::copy(path.join(MARK_FILE), at.join(MARK_FILE)).unwrap();
            let part = &whole[..whole.len() * percent / 100];
            fs::write(at.join(DATA_FILE), part).unwrap();
            SledStore::open(&at, 1 << 20).map(|store| store.registration.len())
        };
        for percent in [10, 25, 50, 75, 90] {
            let refused = open(percent).unwrap_err();
            assert!(
                matches!(
                    refused,
                    Error::StoreUnopenable {
                        cause: Fault::Truncated | Fault::Corruption,
                        ..
                    }
                ),
                "{percent}: {refused}"
            );
        }
        assert_eq!(open(100).unwrap(), 51);
    }

    #[test]
    fn damage_is_an_error_and_no_panic() {
        let mut refused = 0;
        for step in 1..12 {
            let (directory, store) = store();
            store.initialise(&[]).unwrap();
            for n in 0..200 {
                store.put(RegistrationKey([n; 16]), &record()).unwrap();
            }
            store.flush().unwrap();
            let data = directory.path().join("store").join(DATA_FILE);
            let mut bytes = fs::read(&data).unwrap();
            for byte in bytes.iter_mut().step_by(step * 1_000) {
                *byte ^= 0xff;
            }
            let damaged = tempfile::tempdir().unwrap();
            let path = damaged.path().join("store");
            files::create_private(&path).unwrap();
            fs::write(path.join(DATA_FILE), bytes).unwrap();
            fs::write(path.join(MARK_FILE), "").unwrap();
            match SledStore::open(&path, 1 << 20) {
                Err(Error::StoreUnopenable { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
                Ok(_) => {}
            }
        }
        assert!(refused > 0);
    }
}
