//! The master key and what is derived from it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use messages::{BareJid, RegistrationKey, redacted_debug};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::Error;

const MASTER_BYTES: usize = 32;
const CHECK_BYTES: usize = 32;

/// Finds the registrations of an account in the store without telling whose they are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AccountKey(pub(crate) [u8; 16]);

/// The random part of a registration, from which its secret is derived.
pub(crate) type Salt = [u8; 32];

redacted_debug!(AccountKey);

/// The content of the key file.
pub(crate) struct MasterKey(Zeroizing<[u8; MASTER_BYTES]>);

impl MasterKey {
    /// Reads the key file; `None` when there is none.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, Error> {
        let fail = |source| Error::KeyFile {
            path: path.into(),
            source,
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        let metadata = file.metadata().map_err(fail)?;
        if metadata.mode() & 0o077 != 0 {
            return Err(Error::KeyFileExposed { path: path.into() });
        }
        // One byte more than a key, to notice a longer file.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MASTER_BYTES + 1));
        file.take(MASTER_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(fail)?;
        match <[u8; MASTER_BYTES]>::try_from(bytes.as_slice()) {
            Ok(key) => Ok(Some(Self(Zeroizing::new(key)))),
            Err(_) => Err(Error::KeyFileLength { path: path.into() }),
        }
    }

    /// Makes a new key.
    pub(crate) fn generate() -> Result<Self, Error> {
        let mut key = Zeroizing::new([0; MASTER_BYTES]);
        fill(key.as_mut_slice())?;
        Ok(Self(key))
    }

    /// Writes the key durably beside the key file, which [`Self::publish`] makes of it once the store of
    /// this key is complete: a key file says that there is such a store.
    pub(crate) fn prepare(&self, path: &Path) -> Result<(), Error> {
        write_beside(path, self.0.as_slice()).map_err(|source| Error::KeyFile {
            path: path.into(),
            source,
        })
    }

    /// The key that a first start has prepared, if that start was cut short before it was published.
    pub(crate) fn prepared(path: &Path) -> Option<Self> {
        Self::load(&unfinished(path)).ok().flatten()
    }

    /// Turns the prepared key into the key file.
    pub(crate) fn publish(path: &Path) -> Result<(), Error> {
        put_in_place(path).map_err(|source| Error::KeyFile {
            path: path.into(),
            source,
        })
    }
}

fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("unfinished")
}

/// Writes a file for its owner alone so that a crash leaves what was there before or all of it.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_beside(path, bytes)?;
    put_in_place(path)
}

fn put_in_place(path: &Path) -> io::Result<()> {
    fs::rename(unfinished(path), path)?;
    File::open(parent(path))?.sync_all()
}

fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = parent(path);
    create_private(directory)?;
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
    File::open(directory)?.sync_all()
}

/// The directory a file lies in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Creates a directory for its owner alone, unless there is one, and makes its name durable.
pub(crate) fn create_private(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    File::open(parent(directory))?.sync_all()
}

/// Random bytes of the system.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), Error> {
    SystemRandom::new().fill(bytes).map_err(|_| Error::Random)
}

/// The keys derived from the master key, one per purpose.
pub(crate) struct Keys {
    account: hmac::Key,
    secret: hmac::Key,
    lookup: hmac::Key,
    check: [u8; CHECK_BYTES],
}

impl Keys {
    pub(crate) fn derive(master: &MasterKey) -> Self {
        let master = hmac::Key::new(hmac::HMAC_SHA256, master.0.as_slice());
        let derive = |label: &[u8]| {
            let tag = hmac::sign(&master, label);
            hmac::Key::new(hmac::HMAC_SHA256, tag.as_ref())
        };
        Self {
            account: derive(b"campanile account key"),
            secret: derive(b"campanile secret"),
            lookup: derive(b"campanile lookup"),
            check: cut(&hmac::sign(&master, b"campanile key check")),
        }
    }

    /// What the store remembers of its key, to recognise a wrong one.
    pub(crate) const fn check(&self) -> &[u8; CHECK_BYTES] {
        &self.check
    }

    /// The key of an account.
    pub(crate) fn account(&self, account: &BareJid) -> AccountKey {
        AccountKey(cut(&hmac::sign(&self.account, account.as_str().as_bytes())))
    }

    /// The secret of the registration with this salt.
    pub(crate) fn secret(&self, salt: &Salt) -> SecretText {
        let tag = hmac::sign(&self.secret, salt);
        let mut text = Zeroizing::new([0; SecretText::DIGITS]);
        let digits = tag.as_ref().iter().flat_map(|byte| [byte >> 4, byte & 15]);
        for (to, digit) in text.iter_mut().zip(digits) {
            *to = if digit < 10 {
                b'0' + digit
            } else {
                b'a' - 10 + digit
            };
        }
        SecretText(text)
    }

    /// The key of the registration that this secret opens.
    pub(crate) fn registration(&self, service: &str, node: &str, secret: &str) -> RegistrationKey {
        let mut context = hmac::Context::with_key(&self.lookup);
        for part in [service, node, secret] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        RegistrationKey(cut(&context.sign()))
    }
}

fn cut<const N: usize>(tag: &hmac::Tag) -> [u8; N] {
    // A tag has 32 bytes and no key is longer.
    tag.as_ref().first_chunk().copied().unwrap_or([0; N])
}

/// A derived secret: 64 lower-case hex digits, wiped when dropped.
pub(crate) struct SecretText(Zeroizing<[u8; Self::DIGITS]>);

impl SecretText {
    const DIGITS: usize = 64;

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(self.0.as_slice()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use messages::Domain;

    use super::*;

    fn keys(seed: u8) -> Keys {
        Keys::derive(&MasterKey(Zeroizing::new([seed; MASTER_BYTES])))
    }

    #[test]
    fn a_secret_is_64_lower_case_hex_digits_and_always_the_same() {
        let keys = keys(1);
        let secret = keys.secret(&[7; 32]);
        assert_eq!(secret.as_str().len(), 64);
        assert!(
            secret
                .as_str()
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        );
        assert_eq!(secret.as_str(), keys.secret(&[7; 32]).as_str());
        assert_ne!(secret.as_str(), keys.secret(&[8; 32]).as_str());
    }

    #[test]
    fn purposes_and_parts_do_not_mix() {
        let a = keys(1);
        let b = keys(2);
        let jid = BareJid::new("ada", Domain::new("chat.example"));
        assert_ne!(a.account(&jid), b.account(&jid));
        assert_ne!(a.check(), b.check());
        assert_ne!(
            a.registration("s", "no", "de"),
            a.registration("s", "nod", "e")
        );
        assert_ne!(a.registration("s", "n", ""), a.registration("s", "n", "x"));
        assert_ne!(a.registration("s", "n", "x"), b.registration("s", "n", "x"));
    }

    #[test]
    fn a_key_file_is_private_and_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below").join("registration.key");
        assert!(MasterKey::load(&path).unwrap().is_none());
        let created = MasterKey::generate().unwrap();
        created.prepare(&path).unwrap();
        assert!(MasterKey::load(&path).unwrap().is_none());
        let prepared = MasterKey::prepared(&path).unwrap();
        assert_eq!(created.0, prepared.0);
        MasterKey::publish(&path).unwrap();
        let loaded = MasterKey::load(&path).unwrap().unwrap();
        assert_eq!(created.0, loaded.0);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let names: Vec<_> = fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["registration.key"]);
    }

    #[test]
    fn an_exposed_or_cut_key_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registration.key");
        MasterKey::generate().unwrap().prepare(&path).unwrap();
        MasterKey::publish(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            MasterKey::load(&path),
            Err(Error::KeyFileExposed { .. })
        ));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for length in [0, 31, 33] {
            fs::write(&path, vec![1; length]).unwrap();
            assert!(matches!(
                MasterKey::load(&path),
                Err(Error::KeyFileLength { .. })
            ));
        }
    }
}
