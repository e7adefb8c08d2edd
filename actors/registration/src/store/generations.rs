//! Where the living generation of the store lies.
//!
//! The engine keeps what was overwritten and removed in its files until it happens to reuse the room, so
//! bytes are gone for certain only with the whole file. To erase, the living records are copied into a
//! store of their own, the next generation, which then takes the place of the one before.
//!
//! The first generation lies in the directory of the store itself, later ones in directories below it that
//! are named by their number. The file `generation` tells the number of the living one; a rename of this
//! file is the moment of the exchange. Whatever else is there is the rest of a copy that was cut short, or
//! of a generation that was left, and goes at the next opening.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Fault};

const POINTER_FILE: &str = "generation";
/// What the engine and this crate keep of a generation.
const FILES: [&str; 4] = ["db", "conf", "complete", "blobs"];
const SNAPSHOT_PREFIX: &str = "snap.";

/// One generation of the store below `root`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Generation {
    root: PathBuf,
    number: u64,
}

impl Generation {
    /// The one that lives.
    pub(crate) fn living(root: &Path) -> Result<Self, Error> {
        let number = match fs::read_to_string(root.join(POINTER_FILE)) {
            Ok(text) => text.parse().map_err(|_| Error::StoreUnopenable {
                path: root.into(),
                cause: Fault::Corruption,
            })?,
            // Whoever opens the store says better what is wrong with its directory.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                0
            }
            Err(source) => {
                return Err(Error::StoreDirectory {
                    path: root.into(),
                    source,
                });
            }
        };
        Ok(Self {
            root: root.into(),
            number,
        })
    }

    /// The one to follow.
    pub(crate) fn next(&self) -> Self {
        Self {
            root: self.root.clone(),
            number: self.number.saturating_add(1),
        }
    }

    /// The directory of all generations.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where it lies.
    pub(crate) fn directory(&self) -> PathBuf {
        match self.number {
            0 => self.root.clone(),
            number => self.root.join(number.to_string()),
        }
    }

    /// Makes it the living one, durably.
    pub(crate) fn make_living(&self) -> io::Result<()> {
        let pointer = self.root.join(POINTER_FILE);
        files::write_private(&pointer, self.number.to_string().as_bytes())
    }

    /// Removes all files of this generation, durably. Done again, it does the rest.
    pub(crate) fn discard(&self) -> io::Result<()> {
        if self.number == 0 {
            for name in FILES {
                remove(&self.root.join(name))?;
            }
            for path in entries(&self.root)? {
                if name_of(&path).starts_with(SNAPSHOT_PREFIX) {
                    remove(&path)?;
                }
            }
        } else {
            remove(&self.directory())?;
        }
        File::open(&self.root)?.sync_all()
    }

    /// Removes all files of other generations than this living one.
    pub(crate) fn discard_others(&self) -> io::Result<()> {
        let mut others = Vec::new();
        for path in entries(&self.root)? {
            others.extend(name_of(&path).parse::<u64>().ok());
        }
        if self.number > 0 {
            others.push(0);
        }
        for number in others.into_iter().filter(|number| *number != self.number) {
            let root = self.root.clone();
            Self { root, number }.discard()?;
        }
        Ok(())
    }
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect()
}

fn name_of(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

/// Removes what is there, if something is.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use files::create_private;

    #[test]
    fn the_pointer_tells_which_lives_and_all_else_goes() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let first = Generation::living(root).unwrap();
        assert_eq!(first.directory(), root);
        for name in ["db", "conf", "complete", "snap.0001", "lost+found", "kept"] {
            fs::write(root.join(name), "x").unwrap();
        }
        let second = first.next();
        create_private(&second.directory()).unwrap();
        fs::write(second.directory().join("db"), "y").unwrap();
        // Cut short before the exchange.
        first.discard_others().unwrap();
        assert!(!second.directory().exists() && root.join("db").exists());

        create_private(&second.directory()).unwrap();
        second.make_living().unwrap();
        // Cut short after it.
        let living = Generation::living(root).unwrap();
        assert_eq!(living, second);
        living.discard_others().unwrap();
        let mut left: Vec<_> = entries(root)
            .unwrap()
            .iter()
            .map(|path| name_of(path).to_owned())
            .collect();
        left.sort();
        assert_eq!(left, ["1", "generation", "kept", "lost+found"]);
        living.discard().unwrap();
        living.discard().unwrap();
        assert!(!second.directory().exists());
    }

    #[test]
    fn a_pointer_that_says_nothing_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(POINTER_FILE), "first").unwrap();
        assert!(matches!(
            Generation::living(directory.path()),
            Err(Error::StoreUnopenable { .. })
        ));
    }
}
