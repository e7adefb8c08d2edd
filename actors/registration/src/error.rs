//! What can go wrong with the store and its key.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why registrations cannot be opened, read or written. Carries paths and causes, nothing of a user.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A value of the configuration is out of bounds.
    #[error("registration.{key} {rule}")]
    Config {
        /// The key within `[registration]`.
        key: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// The key file cannot be read or written.
    #[error("the key file {path} cannot be used: {source}; check its directory and permissions")]
    KeyFile {
        /// The configured file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Others than the owner have access to the key file.
    #[error("the key file {path} is open to others: run chmod 600 on it")]
    KeyFileExposed {
        /// The configured file.
        path: PathBuf,
    },
    /// The key file does not hold 32 bytes, or a multiple of them after a rotation.
    #[error(
        "the key file {path} does not hold exactly 32 bytes, or what a rotation makes: restore it from a backup"
    )]
    KeyFileLength {
        /// The configured file.
        path: PathBuf,
    },
    /// The store holds data, but its key is gone.
    #[error(
        "the store in {store} has data but its key file {path} is missing: restore the file from a \
         backup; without it the registrations are lost and the store has to be moved away"
    )]
    KeyFileMissing {
        /// The configured file.
        path: PathBuf,
        /// The store that needs it.
        store: PathBuf,
    },
    /// The store was written with another key.
    #[error("the key file {path} is not the one of the store in {store}: restore the right one")]
    KeyFileMismatch {
        /// The configured file.
        path: PathBuf,
        /// The store that needs another.
        store: PathBuf,
    },
    /// The key that a rotation has prepared was exchanged or removed by somebody else.
    #[error("the key file {path} is not the new one of the store any more: rotate again")]
    KeyFilePrepared {
        /// Where the key was prepared.
        path: PathBuf,
    },
    /// The directory of the store cannot be created or read.
    #[error(
        "the store directory {path} cannot be used: {source}; check its disk, owner and permissions"
    )]
    StoreDirectory {
        /// The configured directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The configured directory is something else.
    #[error(
        "the store {path} is no directory: move away what is there and restore the store from a \
         backup, or correct registration.path"
    )]
    StoreNotDirectory {
        /// The configured directory.
        path: PathBuf,
    },
    /// The key of a store is there, the store is not.
    #[error(
        "the key file {key_file} is there but its store in {path} is not, or not whole: mount its \
         volume or restore it from a backup; to begin anew without any registration, move both away"
    )]
    StoreMissing {
        /// The configured directory.
        path: PathBuf,
        /// The key file that belongs to a store.
        key_file: PathBuf,
    },
    /// Others than the owner have access to the store.
    #[error("the store directory {path} is open to others: run chmod 700 on it")]
    StoreExposed {
        /// The configured directory.
        path: PathBuf,
    },
    /// Another process has the store open.
    #[error("the store in {path} is in use by another process: stop that one first")]
    StoreLocked {
        /// The configured directory.
        path: PathBuf,
    },
    /// The store engine refuses the directory. Nothing in it is ever deleted because of that.
    #[error(
        "the store in {path} cannot be opened: {cause}; keep the directory as it is and restore a \
         backup elsewhere"
    )]
    StoreUnopenable {
        /// The configured directory.
        path: PathBuf,
        /// The kind of fault.
        cause: Fault,
    },
    /// The store was written by a later version, or by another program.
    #[error(
        "the store in {path} has a layout this version does not know: use the version that wrote it"
    )]
    StoreLayout {
        /// The configured directory.
        path: PathBuf,
    },
    /// The store engine failed while reading or writing.
    #[error("the registration store failed: {0}")]
    Store(Fault),
    /// The store could not be made durable.
    #[error("the registration store could not be synced to disk: {0}")]
    Sync(#[source] io::Error),
    /// A record is not what this version writes.
    #[error("a record of the registration store is unreadable")]
    Record,
    /// A field of a request is longer than a record may hold.
    #[error("a field is too long for the registration store")]
    FieldLength,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// The thread of the writer could not be started.
    #[error("the writer of the registration store could not be started: {0}")]
    Thread(#[source] io::Error),
}

/// What the store engine complains about, without the texts in which it quotes its contents.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Fault {
    /// A system call failed.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// The files are damaged.
    #[error("its files are damaged")]
    Corruption,
    /// The file with the data is not there.
    #[error("its data file is missing")]
    Missing,
    /// The data ends before what was there when the store was last closed.
    #[error("its latest data is missing")]
    Truncated,
    /// The engine does not know what the files say of how they were made.
    #[error("its files are damaged, or another version of the engine made them")]
    Unsupported,
    /// Any other fault of the engine.
    #[error("internal fault of the store engine")]
    Internal,
}

impl From<sled::Error> for Fault {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => Self::Io(error),
            sled::Error::Corruption { .. } => Self::Corruption,
            sled::Error::Unsupported(_) => Self::Unsupported,
            sled::Error::CollectionNotFound(_) | sled::Error::ReportableBug(_) => Self::Internal,
        }
    }
}

impl From<sled::Error> for Error {
    fn from(error: sled::Error) -> Self {
        Self::Store(error.into())
    }
}
