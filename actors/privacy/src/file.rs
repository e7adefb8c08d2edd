//! Files for their owner alone, whole or not at all.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zeroize::Zeroizing;

use crate::Error;

/// Names the file that failed.
pub(crate) fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    |source| Error::File { path, source }
}

/// Reads a file of at most so many bytes; `None` when there is none.
pub(crate) fn read(path: &Path, max: u64) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    files::read_private(path, max).map_err(|error| match error {
        files::Error::Io(source) => failed(path)(source),
        files::Error::Exposed => Error::Exposed {
            path: path.into(),
            mode: "600",
        },
    })
}

/// Writes a file so that a crash leaves what was there before or all of it. What was there before is in no
/// file any more.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    files::write_private(path, bytes).map_err(failed(path))
}

/// Removes what a write that was cut short has left.
pub(crate) fn clean(path: &Path) -> Result<(), Error> {
    files::forget(path).map_err(failed(path))
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
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            files::create_private(directory).map_err(failed(directory))
        }
        Err(error) => Err(failed(directory)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use files::parent;

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
        assert_eq!(*read(&path, 10).unwrap().unwrap(), b"two");
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
