//! The provider token in use, on disk: the next start goes on with it, and so do other processes that have
//! the same directory. Signing again would not do: ring's ECDSA takes random nonces, so the same claims
//! come out as other bytes, which APNs may count as one more token of the team.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use messages::{Bearer, SigningKeyId, UnixSeconds};

use crate::jwt::Signer;

/// Read and written by the service's user alone: a provider token may send to all of a team's apps for an
/// hour.
const PRIVATE: u32 = 0o600;

/// Whether others than its owner may use a file or directory that is there.
pub(crate) fn is_exposed(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}

/// Tries whether tokens can be kept in a directory, and leaves nothing behind. One that is not there is made
/// when it is needed, if that can be.
///
/// # Errors
/// It cannot be written or made, or is no directory.
pub(crate) fn try_directory(directory: &Path) -> io::Result<()> {
    let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    if fs::metadata(directory).as_ref().err().is_some_and(missing) {
        return files::writable(directory);
    }
    let path = directory.join(format!("check-{}", std::process::id()));
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(PRIVATE)
        .open(&path)?;
    fs::remove_file(path)
}

/// The files of the keys of one id: one for each key, by a digest of it, and one lock. The file of another key
/// in the place of the right one for a while takes no token away.
pub(crate) struct TokenFile {
    directory: PathBuf,
    name: String,
}

/// A token and its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) bearer: Bearer,
    pub(crate) issued_at: UnixSeconds,
    /// When it was made, which may be late in its slot.
    pub(crate) signed_at: UnixSeconds,
}

/// A token that is kept and cannot be used.
#[derive(Debug)]
pub(crate) struct Unusable {
    pub(crate) path: PathBuf,
    /// What is wrong with it.
    pub(crate) problem: String,
}

/// The file while no other process looks at it.
pub(crate) struct Locked<'a> {
    file: &'a TokenFile,
    _lock: File,
}

/// Why the file cannot be looked at.
#[derive(Debug)]
pub(crate) enum Shut {
    /// Another process does at the moment.
    Busy,
    /// The system does not let us.
    Failed(io::Error),
}

impl From<io::Error> for Shut {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl TokenFile {
    /// The files of a key's id in a directory, which need not be there yet.
    pub(crate) fn new(directory: &Path, id: &SigningKeyId) -> Self {
        Self {
            directory: directory.to_owned(),
            // Both are ten letters or digits.
            name: format!("{}-{}", id.team_id, id.key_id),
        }
    }

    /// Keeps other processes away until the result is dropped. Never waits.
    ///
    /// # Errors
    /// [`Shut`].
    pub(crate) fn lock(&self) -> Result<Locked<'_>, Shut> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)?;
        let path = self.path("lock");
        // Opening a pipe would wait for somebody who reads from it.
        if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
            return Err(Shut::Failed(io::ErrorKind::InvalidInput.into()));
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE)
            .open(path)?;
        match lock.try_lock() {
            Ok(()) => Ok(Locked {
                file: self,
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(Shut::Busy),
            Err(TryLockError::Error(error)) => Err(Shut::Failed(error)),
        }
    }

    fn token_of(&self, signer: &Signer) -> PathBuf {
        let key = signer.fingerprint();
        self.directory.join(format!("{}-{key}.token", self.name))
    }

    fn path(&self, extension: &str) -> PathBuf {
        self.directory.join(format!("{}.{extension}", self.name))
    }
}

impl Locked<'_> {
    /// The token that is kept of a key; `None` when there is none.
    ///
    /// # Errors
    /// [`Unusable`].
    pub(crate) fn read(&self, signer: &Signer) -> Result<Option<Kept>, Unusable> {
        let path = self.file.token_of(signer);
        match self.read_from(&path, signer) {
            Ok(None) => {}
            known => return known,
        }
        // Where earlier versions kept the token of whatever key.
        let found = self.read_from(&self.file.path("token"), signer);
        Ok(found.ok().flatten())
    }

    fn read_from(&self, path: &Path, signer: &Signer) -> Result<Option<Kept>, Unusable> {
        let unusable = |problem| Unusable {
            path: path.to_owned(),
            problem,
        };
        let text = match files::read_private(path, files::SMALL) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(error) => return Err(unusable(error.to_string())),
        };
        match parse(&text, signer) {
            Some(kept) => Ok(Some(kept)),
            // Empty, cut short or written over.
            None => Err(unusable("it holds no token of this key".to_owned())),
        }
    }

    /// Keeps a token in place of the last of the same key; what another key signed stays, for that may be
    /// the right one. Who reads meanwhile, or after a crash, finds the old one or the new one.
    ///
    /// # Errors
    /// The disk is full, or the directory may not be written.
    pub(crate) fn write(&self, signer: &Signer, kept: &Kept) -> io::Result<()> {
        let text = format!("{}\n{}\n", kept.signed_at.0, kept.bearer.as_str());
        files::write_private(&self.file.token_of(signer), text.as_bytes())
    }
}

/// Reads what [`Locked::write`] wrote, if it is of this key.
fn parse(text: &[u8], signer: &Signer) -> Option<Kept> {
    let mut lines = std::str::from_utf8(text).ok()?.lines();
    let signed_at = UnixSeconds(lines.next()?.parse().ok()?);
    let bearer = Bearer::new(lines.next()?);
    let issued_at = signer.verify(&bearer)?;
    Some(Kept {
        bearer,
        issued_at,
        signed_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> SigningKeyId {
        SigningKeyId {
            team_id: "DEF123GHIJ".into(),
            key_id: "ABC123DEFG".into(),
        }
    }

    fn signer() -> Signer {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        Signer::from_pem(id(), pem.as_bytes()).unwrap()
    }

    fn kept(signer: &Signer) -> Kept {
        let issued_at = UnixSeconds(1_767_225_600);
        Kept {
            bearer: signer.sign(issued_at).unwrap(),
            issued_at,
            signed_at: UnixSeconds(1_767_225_700),
        }
    }

    #[test]
    fn a_token_is_kept_for_its_key_and_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("deep/tokens");
        let file = TokenFile::new(&directory, &id());
        let signer = signer();
        let locked = file.lock().unwrap();
        assert_eq!(locked.read(&signer).unwrap(), None);
        let first = kept(&signer);
        locked.write(&signer, &first).unwrap();
        assert_eq!(locked.read(&signer).unwrap(), Some(first));
        let second = kept(&signer);
        locked.write(&signer, &second).unwrap();
        assert_eq!(locked.read(&signer).unwrap(), Some(second.clone()));

        // What another key signs does not take its place.
        let other = self::signer();
        assert_eq!(locked.read(&other).unwrap(), None);
        let others = kept(&other);
        locked.write(&other, &others).unwrap();
        assert_eq!(locked.read(&other).unwrap(), Some(others));
        assert_eq!(locked.read(&signer).unwrap(), Some(second.clone()));

        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        let path = file.token_of(&signer);
        assert_eq!(mode(&path), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let exposed = locked.read(&signer).unwrap_err().problem;
        assert!(
            exposed.contains("others"),
            "the group may have read it: {exposed}"
        );
        locked.write(&signer, &second).unwrap();
        assert_eq!(mode(&path), 0o600);

        // Cut short, or written over.
        for broken in ["", "1767225700\n", "then\nbearer a.b.c\n", "1\nbearer a.b"] {
            fs::write(&path, broken).unwrap();
            let unusable = locked.read(&signer).unwrap_err();
            assert_eq!(unusable.path, path, "{broken:?}");
            assert!(unusable.problem.contains("no token"), "{broken:?}");
        }
        let forged = second.bearer.as_str().replace("bearer e", "bearer f");
        fs::write(&path, format!("1767225700\n{forged}\n")).unwrap();
        assert!(locked.read(&signer).is_err());

        // Where earlier versions kept it, for whatever key.
        fs::remove_file(&path).unwrap();
        let before = directory.join("DEF123GHIJ-ABC123DEFG.token");
        fs::write(&before, format!("1767225700\n{}\n", second.bearer.as_str())).unwrap();
        fs::set_permissions(&before, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(locked.read(&signer).unwrap(), Some(second));
        assert_eq!(locked.read(&self::signer()).unwrap(), None);
    }

    #[test]
    fn one_looks_at_a_time_and_nobody_waits() {
        let directory = tempfile::tempdir().unwrap();
        let [one, other] = [(); 2].map(|()| TokenFile::new(directory.path(), &id()));
        let locked = one.lock().unwrap();
        assert!(matches!(other.lock(), Err(Shut::Busy)));
        drop(locked);
        assert!(other.lock().is_ok());
        let nowhere = TokenFile::new(Path::new("/proc/tokens"), &id());
        assert!(matches!(nowhere.lock(), Err(Shut::Failed(_))));
    }
}
