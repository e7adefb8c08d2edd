//! The journal: what happened to registrations, written down for a limited time.
//!
//! [`Journal`] is opened once and puts the files in order after whatever ended the last process. [`start`]
//! then runs the actor, on the control arbiter, in front of two threads. None of what is recorded is waited
//! for, and nothing that happens to the journal's files stops a push: what cannot be written is lost, counted
//! and complained of.
//!
//! | file | noun |
//! |---|---|
//! | `alarm` | when a trouble gets a line in the log |
//! | `actor` | takes messages, bounds what waits |
//! | `writer` | the thread that appends |
//! | `archive` | the thread that compresses, reads, erases and removes what is closed |
//! | `segment` | files: names, recovery, replacement |
//! | `source` | what a segment is read from, and the pages of it that a disk has lost |
//! | `codec` | records as bytes, and whom they are about |
//! | `words` | whom an operator's words name |
//! | `key` | the key of hashed identifiers |

mod actor;
mod alarm;
mod archive;
mod codec;
mod config;
mod error;
mod key;
mod segment;
mod shared;
mod source;
mod words;
mod writer;

pub use actor::{Handles, start};
pub use config::{Config, Identifiers, Record};
pub use error::Error;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use messages::Clock;

use crate::key::HashKey;
use crate::segment::{Form, SegmentId};
use crate::shared::Shared;

/// The journal's files, in order and ready. One process uses them at a time.
pub struct Journal {
    shared: Arc<Shared>,
    closed: BTreeMap<SegmentId, Form>,
}

impl Journal {
    /// Opens the directory, or creates it, and cuts off what the last process did not write whole. Blocks for
    /// disk. With [`Record::Off`] nothing is created, but what is there still ages, is read and erased.
    ///
    /// # Errors
    /// Every [`Error`] that says what an operator has to do.
    pub fn open(config: &Config, clock: Clock) -> Result<Self, Error> {
        if let Some(finding) = config.findings().into_iter().next() {
            return Err(finding);
        }
        if config.record > Record::Off {
            files::create_private(&config.path).map_err(|source| Error::Directory {
                path: config.path.clone(),
                source,
            })?;
        }
        check_directory(config)?;
        // A key that was in use finds what was hashed with it, also if nothing is hashed any more.
        let key = match config.identifiers {
            Identifiers::Hashed if config.record > Record::Off => {
                Some(HashKey::load_or_create(&config.key_file)?)
            }
            _ => HashKey::load(&config.key_file)?,
        };
        let shared = Shared::new(config.clone(), clock, key);
        let closed = archive::recover(&shared)?;
        Ok(Self {
            shared: Arc::new(shared),
            closed,
        })
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Journal(..)")
    }
}

/// Finds what would keep [`Journal::open`] from working, and changes nothing.
#[must_use]
pub fn inspect(config: &Config) -> Vec<Error> {
    let mut findings = config.findings();
    if !findings.is_empty() {
        return findings;
    }
    match check_directory(config) {
        Ok(()) if config.record > Record::Off => {
            let writable = files::writable(&config.path);
            findings.extend(writable.err().map(|source| Error::Directory {
                path: config.path.clone(),
                source,
            }));
        }
        checked => findings.extend(checked.err()),
    }
    findings.extend(HashKey::load(&config.key_file).err());
    findings
}

/// Whether the directory, if it is there, is its owner's alone.
fn check_directory(config: &Config) -> Result<(), Error> {
    match fs::metadata(&config.path) {
        Ok(metadata) if metadata.mode() & 0o077 != 0 => Err(Error::DirectoryExposed {
            path: config.path.clone(),
        }),
        Ok(metadata) if !metadata.is_dir() => Err(Error::Directory {
            path: config.path.clone(),
            source: io::ErrorKind::NotADirectory.into(),
        }),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Directory {
            path: config.path.clone(),
            source,
        }),
    }
}
