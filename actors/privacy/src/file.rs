//! Files for their owner alone, whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::Error;

/// Names the file that failed.
pub(crate) fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    |source| Error::File { path, source }
}

/// Reads a file of at most so many bytes; `None` when there is none.
pub(crate) fn read(path: &Path, max: u64) -> Result<Option<Vec<u8>>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(path)(error)),
    };
    if file.metadata().map_err(failed(path))?.mode() & 0o077 != 0 {
        return Err(Error::Exposed {
            path: path.into(),
            mode: "600",
        });
    }
    let mut bytes = Vec::new();
    file.take(max)
        .read_to_end(&mut bytes)
        .map_err(failed(path))?;
    Ok(Some(bytes))
}

/// Writes a file so that a crash leaves what was there before or all of it. What was there before is in no
/// file any more.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_all(path, bytes).map_err(failed(path))
}

fn write_all(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = unfinished(path);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    File::open(parent(path))?.sync_all()
}

/// Removes what a write that was cut short has left.
pub(crate) fn clean(path: &Path) -> Result<(), Error> {
    match fs::remove_file(unfinished(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path)(error)),
        _ => Ok(()),
    }
}

fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("unfinished")
}

/// The directory a file lies in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Creates a directory for its owner alone, unless there is one, which has to be so.
pub(crate) fn create_private(directory: &Path) -> Result<(), Error> {
    match fs::metadata(directory) {
        Ok(found) if found.is_dir() && found.mode() & 0o077 == 0 => Ok(()),
        Ok(found) if found.is_dir() => Err(Error::Exposed {
            path: directory.into(),
            mode: "700",
        }),
        Ok(_) => Err(failed(directory)(io::ErrorKind::NotADirectory.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .and_then(|()| File::open(parent(directory))?.sync_all())
            .map_err(failed(directory)),
        Err(error) => Err(failed(directory)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_are_private_and_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below").join("cases.json");
        create_private(parent(&path)).unwrap();
        create_private(parent(&path)).unwrap();
        assert!(read(&path, 10).unwrap().is_none());
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path, 10).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(parent(&path)).unwrap().count(), 1);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read(&path, 10), Err(Error::Exposed { .. })));
        fs::set_permissions(parent(&path), fs::Permissions::from_mode(0o750)).unwrap();
        assert!(matches!(
            create_private(parent(&path)),
            Err(Error::Exposed { .. })
        ));
    }
}
