//! What can go wrong with cases and their files.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why people cannot be answered. Carries paths and causes, nothing of a person.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A value of the configuration is out of bounds.
    #[error("privacy.{key} {rule}")]
    Config {
        /// The key within `[privacy]`.
        key: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// The directory or a file in it cannot be used.
    #[error("{path} cannot be used: {source}; check its disk, owner and permissions")]
    File {
        /// The directory or file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Others than the owner have access.
    #[error("{path} is open to others: run chmod {mode} on it")]
    Exposed {
        /// The directory or file.
        path: PathBuf,
        /// The mode it should have.
        mode: &'static str,
    },
    /// The key file does not hold 32 bytes.
    #[error(
        "the key file {path} does not hold exactly 32 bytes: restore it from a backup, or move it away, \
         which makes the codes of open cases worthless"
    )]
    KeyLength {
        /// The configured file.
        path: PathBuf,
    },
    /// The file of the cases is damaged or of a later version.
    #[error("the cases in {path} cannot be read: restore the file from a backup, or move it away")]
    Cases {
        /// The file.
        path: PathBuf,
    },
    /// Another process has the socket.
    #[error("the socket {path} is in use by another process: stop that one first")]
    SocketTaken {
        /// The configured socket.
        path: PathBuf,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}
