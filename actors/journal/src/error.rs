//! What can go wrong with the journal's files.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why the journal cannot be opened, read or written. Carries paths and causes, nothing of a user.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A value of the configuration is out of bounds.
    #[error("journal.{key} {rule}")]
    Config {
        /// The key within `[journal]`.
        key: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// The directory cannot be created, read or written.
    #[error(
        "the journal directory {path} cannot be used: {source}; check its disk, owner and permissions"
    )]
    Directory {
        /// The configured directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Others than the owner have access to the directory.
    #[error("the journal directory {path} is open to others: run chmod 700 on it")]
    DirectoryExposed {
        /// The configured directory.
        path: PathBuf,
    },
    /// A segment cannot be read or written.
    #[error(
        "the journal's segment {path} cannot be used: {source}; check its disk and permissions"
    )]
    Segment {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
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
    /// The key file does not hold 32 bytes.
    #[error(
        "the key file {path} does not hold exactly 32 bytes: restore it from a backup, or move it away to \
         have a new one made; records that are older are then not found by node or token"
    )]
    KeyFileLength {
        /// The configured file.
        path: PathBuf,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// The system gives no thread.
    #[error("the system gives no thread: {0}")]
    Thread(#[source] io::Error),
}
