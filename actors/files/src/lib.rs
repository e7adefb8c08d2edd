//! Files of operators and of the service itself: read without waiting, written whole or not at all.
//!
//! This is no actor. It is used by those that have files, so that each of them holds to the same rules.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

/// Most bytes of what an operator writes: keys, certificates with their chains, authorities, passwords.
pub const SMALL: u64 = 4 << 20;

/// Why a file for its owner alone was not read.
#[derive(Debug, Error)]
pub enum Error {
    /// The system says so, or it is no regular file, or too large.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Others than its owner may read or write it.
    #[error("others than its owner may use it: chmod 600")]
    Exposed,
}

/// Reads a regular file of at most `max` bytes. Pipes and devices are refused: whoever waits for one waits for
/// ever.
///
/// # Errors
/// As the system says; [`io::ErrorKind::InvalidInput`] for what is no regular file, and
/// [`io::ErrorKind::FileTooLarge`].
pub fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    read_all(file, max, &mut bytes)?;
    Ok(bytes)
}

/// The same of a text.
///
/// # Errors
/// As [`read`], and [`io::ErrorKind::InvalidData`] for what is no UTF-8.
pub fn read_text(path: &Path, max: u64) -> io::Result<String> {
    String::from_utf8(read(path, max)?).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "it is no text (UTF-8): name the right file",
        )
    })
}

/// Reads a regular file for its owner alone; `None` when there is none.
///
/// # Errors
/// [`Error::Io`] as [`read`], and [`Error::Exposed`].
pub fn read_private(path: &Path, max: u64) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    let file = match open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::Io(error)),
    };
    let metadata = file.metadata()?;
    if metadata.mode() & 0o077 != 0 {
        return Err(Error::Exposed);
    }
    // In one piece, so that no copy of a secret is left where it grew.
    let size = usize::try_from(metadata.len().min(max)).unwrap_or_default();
    let mut bytes = Zeroizing::new(Vec::with_capacity(size + 1));
    read_all(file, max, &mut bytes)?;
    Ok(Some(bytes))
}

fn open(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is no regular file: name a file, not a directory, a pipe or a device",
        ));
    }
    File::open(path)
}

fn read_all(file: File, max: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
    let read = file.take(max.saturating_add(1)).read_to_end(bytes)?;
    if read as u64 > max {
        let reason = format!(
            "it has more than {max} bytes, too many for what belongs here: name the right file"
        );
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(())
}

/// Writes a file for its owner alone so that a crash leaves what was there before or all of it. Creates its
/// directory, for its owner alone too.
///
/// # Errors
/// As the system says.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_beside(path, bytes)?;
    put_in_place(path)
}

/// The first half of [`write_private`]: all of it is durable, under the name of [`unfinished`].
///
/// # Errors
/// As the system says.
pub fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = parent(path);
    create_private(directory)?;
    forget(path)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(unfinished(path))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    File::open(directory)?.sync_all()
}

/// The second half of [`write_private`].
///
/// # Errors
/// As the system says.
pub fn put_in_place(path: &Path) -> io::Result<()> {
    fs::rename(unfinished(path), path)?;
    File::open(parent(path))?.sync_all()
}

/// Removes what is left of a write that was cut short.
///
/// # Errors
/// As the system says; that there is nothing is none.
pub fn forget(path: &Path) -> io::Result<()> {
    match fs::remove_file(unfinished(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Where a file is written before it has its name.
#[must_use]
pub fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("unfinished")
}

/// The directory a file lies in.
#[must_use]
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Creates a directory for its owner alone, unless there is one, and makes its name durable.
///
/// # Errors
/// As the system says.
pub fn create_private(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    File::open(parent(directory))?.sync_all()
}

/// Fails unless a directory, or the nearest one above it that exists, can be listed and takes new files.
///
/// # Errors
/// As the system says.
pub fn writable(directory: &Path) -> io::Result<()> {
    let nearest = directory.ancestors().find(|path| path.exists());
    let nearest = nearest.unwrap_or(Path::new("."));
    fs::read_dir(nearest)?;
    // A file without a name: nobody sees it and it is gone when closed.
    tempfile::tempfile_in(nearest).map(drop)
}

/// Whether others than its owner and its group may read a file. One that cannot be looked at is none.
#[must_use]
pub fn is_public(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o007 != 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn regular_files_of_bounded_size_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        assert_eq!(read(&path, 4).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "four").unwrap();
        assert_eq!(read_text(&path, 4).unwrap(), "four");
        let large = read(&path, 3).unwrap_err();
        assert_eq!(large.kind(), io::ErrorKind::FileTooLarge);
        fs::write(&path, [0xff]).unwrap();
        let no_text = read_text(&path, 4).unwrap_err();
        assert_eq!(no_text.kind(), io::ErrorKind::InvalidData);
        let no_file = read(directory.path(), 4).unwrap_err();
        assert_eq!(no_file.kind(), io::ErrorKind::InvalidInput);
    }

    /// Opening it would wait for somebody who writes into it.
    #[test]
    fn nobody_waits_for_a_pipe() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, &path, FileType::Fifo, mode, 0).unwrap();
        let refused = read(&path, 4).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        assert!(matches!(read_private(&path, 4), Err(Error::Io(_))));
    }

    #[test]
    fn private_files_are_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below").join("key");
        assert!(read_private(&path, 4).unwrap().is_none());
        fs::create_dir(parent(&path)).unwrap();
        fs::write(unfinished(&path), "left by a crash").unwrap();
        for text in ["one", "two"] {
            write_private(&path, text.as_bytes()).unwrap();
            assert_eq!(*read_private(&path, 3).unwrap().unwrap(), text.as_bytes());
        }
        assert_eq!(fs::read_dir(parent(&path)).unwrap().count(), 1);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read_private(&path, 3), Err(Error::Exposed)));
    }

    #[test]
    fn directories_that_take_files() {
        let directory = tempfile::tempdir().unwrap();
        assert!(writable(directory.path()).is_ok());
        assert!(writable(&directory.path().join("a").join("b")).is_ok());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(writable(&file.join("below")).is_err());
    }

    #[test]
    fn what_everybody_may_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        assert!(!is_public(&path));
        fs::write(&path, "").unwrap();
        for (mode, public) in [(0o644, true), (0o640, false), (0o600, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_public(&path), public, "{mode:o}");
        }
    }

    #[test]
    fn directories_are_for_their_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a").join("b");
        create_private(&path).unwrap();
        create_private(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    }
}
