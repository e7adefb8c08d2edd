//! The opened store with its keys: what the actors of this crate share.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use messages::{
    AppId, BareJid, Clock, DeviceToken, Domain, ErrorReason, NodeId, RegistrationKey, UnixSeconds,
};

use crate::keys::{Keys, MasterKey, parent};
use crate::store::RegistrationStore;
use crate::store::sled::{self, SledStore};
use crate::touches::Touches;
use crate::writer::{Counters, Writer, lock};
use crate::{Config, Error};

/// The open registration store. Clones are cheap and share it; the directory is released when the last
/// one is dropped.
#[derive(Clone)]
pub struct Registrations(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) config: Config,
    /// For reads on the hot path, from any thread.
    pub(crate) store: Arc<dyn RegistrationStore>,
    pub(crate) keys: Arc<Keys>,
    /// For everything else; held during a group commit.
    pub(crate) writer: Mutex<Writer>,
    /// Held for moments only, so that an arbiter may take it.
    pub(crate) touches: Arc<Mutex<Touches>>,
    pub(crate) counters: Arc<Counters>,
}

/// All that is kept of one registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its key in the store.
    pub registration: RegistrationKey,
    /// The served domain it was made at.
    pub service: Domain,
    /// The node.
    pub node: NodeId,
    /// The app that is notified.
    pub app: AppId,
    /// The device that is woken.
    pub device_token: DeviceToken,
    /// The server that may publish.
    pub domain: Domain,
    /// When it was made.
    pub registered_at: UnixSeconds,
    /// When the client last registered it.
    pub renewed_at: UnixSeconds,
    /// When APNs last accepted a push.
    pub last_success: Option<UnixSeconds>,
    /// When APNs last refused one, and why.
    pub last_error: Option<(UnixSeconds, ErrorReason)>,
}

impl Registrations {
    /// Opens the store, or creates store and key at the first start. Blocks for disk and recovery.
    ///
    /// # Errors
    /// Every [`Error`] that says what an operator has to do. Nothing is deleted or replaced because of
    /// one: a store with data is never given a new key.
    pub fn open(config: &Config, clock: Clock) -> Result<Self, Error> {
        if let Some(finding) = config.findings().into_iter().next() {
            return Err(finding);
        }
        let key = MasterKey::load(&config.key_file)?;
        let store = SledStore::open(&config.path, config.cache_bytes)?;
        let keys = match (store.key_check()?, key) {
            (Some(check), key) => keys_of(config, key, &check)?,
            (None, Some(key)) => Keys::derive(&key),
            // Durable before the store refers to it.
            (None, None) => Keys::derive(&MasterKey::create(&config.key_file)?),
        };
        if !SledStore::is_complete(&config.path) {
            store.initialise(&config.path, keys.check())?;
        }
        Ok(Self::new(config, clock, Arc::new(store), keys))
    }

    pub(crate) fn new(
        config: &Config,
        clock: Clock,
        store: Arc<dyn RegistrationStore>,
        keys: Keys,
    ) -> Self {
        let keys = Arc::new(keys);
        let touches_max = usize::try_from(config.touches_max).unwrap_or(usize::MAX);
        let touches = Arc::new(Mutex::new(Touches::new(touches_max)));
        let counters = Arc::new(Counters::default());
        let writer = Writer::new(
            Arc::clone(&store),
            Arc::clone(&keys),
            Arc::clone(&touches),
            Arc::clone(&counters),
            clock,
            config,
        );
        Self(Arc::new(Shared {
            config: config.clone(),
            store,
            keys,
            writer: Mutex::new(writer),
            touches,
            counters,
        }))
    }

    /// Describes the registrations of an account, push times that are not written yet included. Blocks
    /// while the writer commits, so it is not for an arbiter.
    ///
    /// # Errors
    /// [`Error::Store`] and [`Error::Record`].
    pub fn describe(&self, account: &BareJid) -> Result<Vec<Description>, Error> {
        let mut descriptions = Vec::new();
        let times = lock(&self.0.writer).describe(account, |registration, record| {
            descriptions.push(Description {
                registration,
                service: Domain::new(record.service),
                node: NodeId::new(record.node).map_err(|_| Error::Record)?,
                app: AppId::new(record.app),
                device_token: DeviceToken::parse(record.device_token).map_err(|_| Error::Record)?,
                domain: Domain::new(record.domain),
                registered_at: record.registered_at,
                renewed_at: record.renewed_at,
                last_success: None,
                last_error: None,
            });
            Ok(())
        })?;
        for (description, times) in descriptions.iter_mut().zip(times) {
            description.last_success = times.last_success;
            description.last_error = times.last_error;
        }
        Ok(descriptions)
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
    let key_there = match MasterKey::load(&config.key_file) {
        Ok(Some(_)) => true,
        Ok(None) => false,
        Err(finding) => {
            findings.push(finding);
            true
        }
    };
    let store_there = sled::exists(&config.path);
    if store_there && findings.is_empty() {
        findings.extend(inspect_store(config).err());
    }
    if !store_there {
        findings.extend(inspect_directory(&config.path).err());
    }
    if !store_there && !key_there {
        let directory = parent(&config.key_file);
        findings.extend(writable(directory).err().map(|source| Error::KeyFile {
            path: config.key_file.clone(),
            source,
        }));
    }
    findings
}

fn inspect_store(config: &Config) -> Result<(), Error> {
    let store = SledStore::open(&config.path, config.cache_bytes)?;
    if let Some(check) = store.key_check()? {
        keys_of(config, MasterKey::load(&config.key_file)?, &check)?;
    }
    Ok(())
}

fn inspect_directory(path: &Path) -> Result<(), Error> {
    if path.exists() {
        sled::check_files(path)?;
    }
    writable(path).map_err(|source| Error::StoreDirectory {
        path: path.into(),
        source,
    })
}

/// Fails unless a directory, or the nearest one above it that exists, takes new files.
fn writable(directory: &Path) -> io::Result<()> {
    let nearest = directory.ancestors().find(|path| path.exists());
    // A file without a name: nobody sees it and it is gone when closed.
    tempfile::tempfile_in(nearest.unwrap_or(Path::new("."))).map(drop)
}

/// The keys, if they are those that the store was written with.
fn keys_of(config: &Config, key: Option<MasterKey>, check: &[u8]) -> Result<Keys, Error> {
    let (path, store) = (config.key_file.clone(), config.path.clone());
    let Some(key) = key else {
        return Err(Error::KeyFileMissing { path, store });
    };
    let keys = Keys::derive(&key);
    if keys.check() == check {
        Ok(keys)
    } else {
        Err(Error::KeyFileMismatch { path, store })
    }
}
