//! The opened store with its keys: what the actors of this crate share.

use std::fmt;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use messages::{BareJid, Claim, Clock, RegistrationDetails};

use crate::keys::{Keys, MasterKey};
use crate::store::RegistrationStore;
use crate::store::cached::CachedStore;
use crate::store::sled::{self, SledStore};
use crate::touches::Touches;
use crate::withdrawals::Subscribers;
use crate::writer::{Counters, Writer, lock};
use crate::{Config, Error, Fault};

/// The open registration store. Clones are cheap and share it; the directory is released when the last
/// one is dropped.
#[derive(Clone)]
pub struct Registrations(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    /// For reads on the hot path, from any thread. The writer exchanges it.
    pub(crate) living: Arc<ArcSwap<Living>>,
    /// For everything else; held during a group commit.
    pub(crate) writer: Mutex<Writer>,
    /// Held for moments only, so that an arbiter may take it.
    pub(crate) touches: Arc<Mutex<Touches>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) subscribers: Subscribers,
}

/// The store in use with its keys. Whoever reads takes both at once, for as long as one batch.
pub(crate) struct Living {
    pub(crate) store: Arc<dyn RegistrationStore>,
    pub(crate) keys: Arc<Keys>,
}

impl Registrations {
    /// Opens the store, or creates store and key at the first start, which goes on where an earlier one
    /// was cut short. Blocks for disk and recovery.
    ///
    /// # Errors
    /// Every [`Error`] that says what an operator has to do. Nothing is deleted or replaced because of
    /// one: a store with data is never given a new key, and a key is never given a new store.
    pub fn open(config: &Config, clock: Clock) -> Result<Self, Error> {
        if let Some(finding) = config.findings().into_iter().next() {
            return Err(finding);
        }
        let key = MasterKey::load(&config.key_file)?;
        let has_key = key.is_some();
        let is_first_start = is_first_start(config, has_key)?;
        let store = SledStore::open(&config.path, config.page_bytes())?;
        let OpenKeys { keys, publish } = if is_first_start {
            let keys = begin(config, &store)?;
            OpenKeys {
                keys,
                publish: true,
            }
        } else {
            keys_of(config, key, &store)?
        };
        if publish {
            // Last, because from now on a store that is missing is a loss.
            MasterKey::publish(&config.key_file, &keys)?;
        } else {
            MasterKey::forget_prepared(&config.key_file)?;
        }
        Ok(Self::new(config, clock, Arc::new(store), keys))
    }

    pub(crate) fn new(
        config: &Config,
        clock: Clock,
        store: Arc<dyn RegistrationStore>,
        keys: Keys,
    ) -> Self {
        let touches_max = usize::try_from(config.touches_max).unwrap_or(usize::MAX);
        let touches = Arc::new(Mutex::new(Touches::new(touches_max)));
        let counters = Arc::new(Counters::default());
        let living = Arc::new(ArcSwap::from_pointee(Living {
            store: Arc::new(CachedStore::new(store, config.record_bytes())),
            keys: Arc::new(keys),
        }));
        let subscribers = Subscribers::default();
        let writer = Writer::new(
            Arc::clone(&living),
            Arc::clone(&touches),
            Arc::clone(&counters),
            subscribers.clone(),
            clock.clone(),
            config,
        );
        Self(Arc::new(Shared {
            config: config.clone(),
            clock,
            living,
            writer: Mutex::new(writer),
            touches,
            counters,
            subscribers,
        }))
    }

    /// Describes the registrations of an account, push times that are not written yet included. Blocks
    /// while the writer commits, so it is not for an arbiter.
    ///
    /// # Errors
    /// [`Error::Store`] and [`Error::Record`].
    pub fn describe(&self, account: &BareJid) -> Result<Vec<RegistrationDetails>, Error> {
        lock(&self.0.writer).describe(&Claim::Account(account.clone()))
    }
}

impl fmt::Debug for Registrations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Registrations(..)")
    }
}

/// Finds what would keep [`Registrations::open`] from working, and leaves no trace of having looked.
///
/// Where there is a store that no process uses, it is opened, which recovers it from an unclean stop as
/// the next start would. Where there is none, only the directories are looked at.
#[must_use]
pub fn inspect(config: &Config) -> Vec<Error> {
    let mut findings = config.findings();
    if !findings.is_empty() {
        return findings;
    }
    look(config, &mut findings).unwrap_or_else(|finding| findings.push(finding));
    findings
}

fn look(config: &Config, findings: &mut Vec<Error>) -> Result<(), Error> {
    let key = MasterKey::load(&config.key_file)?;
    if !is_first_start(config, key.is_some())? {
        let store = SledStore::open(&config.path, config.page_bytes())?;
        return keys_of(config, key, &store).map(drop);
    }
    let directory = files::parent(&config.key_file);
    findings.extend(
        files::writable(directory)
            .err()
            .map(|source| Error::KeyFile {
                path: config.key_file.clone(),
                source,
            }),
    );
    if sled::exists(&config.path) {
        let store = SledStore::open(&config.path, config.page_bytes())?;
        return check_empty(config, &store);
    }
    if config.path.exists() {
        sled::check_files(&config.path)?;
    }
    files::writable(&config.path).map_err(|source| Error::StoreDirectory {
        path: config.path.clone(),
        source,
    })
}

/// Whether neither a key nor a whole store is there yet.
fn is_first_start(config: &Config, has_key: bool) -> Result<bool, Error> {
    match (SledStore::is_complete(&config.path)?, has_key) {
        (false, true) => Err(Error::StoreMissing {
            path: config.path.clone(),
            key_file: config.key_file.clone(),
        }),
        (complete, _) => Ok(!complete),
    }
}

/// Gives an empty store its key. The key is durable before the store refers to it.
fn begin(config: &Config, store: &SledStore) -> Result<Keys, Error> {
    check_empty(config, store)?;
    let key = MasterKey::generate()?;
    key.prepare(&config.key_file)?;
    let keys = Keys::derive(&key);
    store.initialise(keys.check())?;
    Ok(keys)
}

fn check_empty(config: &Config, store: &SledStore) -> Result<(), Error> {
    if store.is_empty() {
        Ok(())
    } else {
        Err(key_missing(config))
    }
}

/// The keys, if they are those that the store was written with. They may be those that a first start or a
/// rotation has prepared.
fn keys_of(config: &Config, key: Option<MasterKey>, store: &SledStore) -> Result<OpenKeys, Error> {
    let check = store.key_check()?.ok_or(Error::StoreUnopenable {
        path: config.path.clone(),
        cause: Fault::Corruption,
    })?;
    let fits = |keys: &Keys| keys.check() == check.as_ref();
    let prepared = || {
        let prepared = MasterKey::prepared(&config.key_file).map(|key| Keys::derive(&key));
        prepared.filter(fits)
    };
    let from = |keys, publish| OpenKeys { keys, publish };
    match key.map(|key| Keys::derive(&key)) {
        Some(keys) if fits(&keys) => Ok(from(keys, false)),
        // A rotation that was cut short after the exchange of the stores.
        Some(_) => prepared()
            .map(|keys| from(keys, true))
            .ok_or_else(|| Error::KeyFileMismatch {
                path: config.key_file.clone(),
                store: config.path.clone(),
            }),
        None => prepared()
            .map(|keys| from(keys, true))
            .ok_or_else(|| key_missing(config)),
    }
}

/// Keys that fit the store.
struct OpenKeys {
    keys: Keys,
    /// Whether they are those that are prepared, and not yet in the key file.
    publish: bool,
}

fn key_missing(config: &Config) -> Error {
    Error::KeyFileMissing {
        path: config.key_file.clone(),
        store: config.path.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use files::create_private;

    fn config_in(directory: &Path) -> Config {
        Config {
            path: directory.join("store"),
            key_file: directory.join("registration.key"),
            cache_bytes: 1 << 20,
            ..Config::default()
        }
    }

    /// Does the first so many steps of a first start.
    fn begin_with(steps: usize, config: &Config) {
        let key = MasterKey::generate().unwrap();
        let check = *Keys::derive(&key).check();
        let mark = config.path.join("complete");
        let open = || SledStore::open(&config.path, config.cache_bytes).unwrap();
        let all: [&dyn Fn(); 6] = [
            &|| create_private(&config.path).unwrap(),
            &|| drop(open()),
            &|| fs::write(config.key_file.with_extension("unfinished"), [7; 16]).unwrap(),
            &|| key.prepare(&config.key_file).unwrap(),
            &|| {
                open().initialise(&check).unwrap();
                fs::remove_file(&mark).unwrap();
            },
            &|| fs::write(&mark, "").unwrap(),
        ];
        for step in all.iter().take(steps) {
            step();
        }
    }

    #[test]
    fn a_first_start_heals_wherever_it_was_cut_short() {
        for steps in 0..=6 {
            let directory = tempfile::tempdir().unwrap();
            let config = config_in(directory.path());
            begin_with(steps, &config);
            let found = inspect(&config);
            assert!(found.is_empty(), "{steps}: {found:?}");
            for _ in 0..2 {
                Registrations::open(&config, Clock::system()).unwrap();
                assert!(config.key_file.exists(), "{steps}");
                assert!(MasterKey::prepared(&config.key_file).is_none(), "{steps}");
            }
            assert!(inspect(&config).is_empty(), "{steps}");
        }
    }

    #[test]
    fn only_the_key_of_the_store_is_taken_for_the_one_prepared() {
        let directory = tempfile::tempdir().unwrap();
        let config = config_in(directory.path());
        Registrations::open(&config, Clock::system()).unwrap();
        fs::remove_file(&config.key_file).unwrap();
        let other = MasterKey::generate().unwrap();
        other.prepare(&config.key_file).unwrap();
        let refused = Registrations::open(&config, Clock::system()).unwrap_err();
        assert!(matches!(refused, Error::KeyFileMissing { .. }));
    }
}
