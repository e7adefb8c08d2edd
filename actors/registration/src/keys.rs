//! The master key and what is derived from it.

use std::io::ErrorKind;
use std::path::Path;

use messages::{AccountKey, BareJid, RegistrationKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::Error;

const MASTER_BYTES: usize = 32;
/// Account keys of former master keys that are kept, so that who has not registered since is found by JID.
const FORMER_MAX: usize = 8;
/// The longest key file: master key, lookup key, former account keys.
const FILE_BYTES_MAX: usize = MASTER_BYTES * (2 + FORMER_MAX);
const CHECK_BYTES: usize = 32;

/// The random part of a registration, from which its secret is derived.
pub(crate) type Salt = [u8; 32];

/// What makes a secret of a salt another one than the key alone would: so a secret outlives its key. All
/// zeros for a secret of the key in use.
pub(crate) type Mask = [u8; 32];

/// The content of the key file: the master key, and, once it was exchanged, the lookup key and the account
/// keys of those before it, the latest first.
pub(crate) struct MasterKey(Zeroizing<Vec<[u8; MASTER_BYTES]>>);

impl MasterKey {
    /// Reads the key file; `None` when there is none.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, Error> {
        let fail = |source| Error::KeyFile {
            path: path.into(),
            source,
        };
        let bytes = match files::read_private(path, FILE_BYTES_MAX as u64) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(files::Error::Exposed) => return Err(Error::KeyFileExposed { path: path.into() }),
            Err(files::Error::Io(source)) if source.kind() == ErrorKind::FileTooLarge => {
                return Err(Error::KeyFileLength { path: path.into() });
            }
            Err(files::Error::Io(source)) => return Err(fail(source)),
        };
        let (blocks, rest) = bytes.as_chunks::<MASTER_BYTES>();
        // A lookup key comes with at least one former account key.
        let fits =
            rest.is_empty() && !matches!(blocks.len(), 0 | 2) && bytes.len() <= FILE_BYTES_MAX;
        match fits {
            true => Ok(Some(Self(Zeroizing::new(blocks.to_vec())))),
            false => Err(Error::KeyFileLength { path: path.into() }),
        }
    }

    /// Makes a new key.
    pub(crate) fn generate() -> Result<Self, Error> {
        let mut key = [0; MASTER_BYTES];
        fill(&mut key)?;
        Ok(Self(Zeroizing::new(vec![key])))
    }

    /// A new master key, with what is left of this one: the lookup key, so that registrations keep their
    /// keys, and its account key.
    pub(crate) fn rotated(&self) -> Result<Self, Error> {
        let mut blocks = Zeroizing::new(vec![[0; MASTER_BYTES]]);
        blocks.iter_mut().try_for_each(|block| fill(block))?;
        blocks.push(self.lookup());
        blocks.push(self.derived(ACCOUNT));
        blocks.extend(self.former().iter().take(FORMER_MAX - 1));
        Ok(Self(blocks))
    }

    fn derived(&self, label: &[u8]) -> [u8; MASTER_BYTES] {
        let master = self.0.first().copied().unwrap_or_default();
        let master = hmac::Key::new(hmac::HMAC_SHA256, &master);
        cut(&hmac::sign(&master, label))
    }

    fn lookup(&self) -> [u8; MASTER_BYTES] {
        let kept = self.0.get(1).copied();
        kept.unwrap_or_else(|| self.derived(LOOKUP))
    }

    fn former(&self) -> &[[u8; MASTER_BYTES]] {
        self.0.get(2..).unwrap_or_default()
    }

    /// Removes a key that was prepared and is not used.
    pub(crate) fn forget_prepared(path: &Path) -> Result<(), Error> {
        files::forget(path).map_err(|source| Error::KeyFile {
            path: path.into(),
            source,
        })
    }

    /// Writes the key durably beside the key file, which [`Self::publish`] makes of it once the store of
    /// this key is complete: a key file says that there is such a store.
    pub(crate) fn prepare(&self, path: &Path) -> Result<(), Error> {
        let bytes = Zeroizing::new(self.0.concat());
        files::write_beside(path, &bytes).map_err(|source| Error::KeyFile {
            path: path.into(),
            source,
        })
    }

    /// The key that a first start has prepared, if that start was cut short before it was published.
    pub(crate) fn prepared(path: &Path) -> Option<Self> {
        Self::load(&files::unfinished(path)).ok().flatten()
    }

    /// Fails unless the prepared key is the one of these keys: a store must not be left with none.
    pub(crate) fn check_prepared(path: &Path, keys: &Keys) -> Result<(), Error> {
        let prepared = Self::prepared(path).map(|key| Keys::derive(&key));
        match prepared.is_some_and(|prepared| prepared.check() == keys.check()) {
            true => Ok(()),
            false => Err(Error::KeyFilePrepared {
                path: files::unfinished(path),
            }),
        }
    }

    /// Turns the prepared key into the key file, if it is the one of these keys.
    pub(crate) fn publish(path: &Path, keys: &Keys) -> Result<(), Error> {
        Self::check_prepared(path, keys)?;
        files::put_in_place(path).map_err(|source| Error::KeyFile {
            path: path.into(),
            source,
        })
    }
}

/// Random bytes of the system.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), Error> {
    SystemRandom::new().fill(bytes).map_err(|_| Error::Random)
}

const ACCOUNT: &[u8] = b"campanile account key";
const LOOKUP: &[u8] = b"campanile lookup";
const SECRET: &[u8] = b"campanile secret";
const CHECK: &[u8] = b"campanile key check";

/// The keys derived from the master key, one per purpose.
pub(crate) struct Keys {
    account: hmac::Key,
    /// Of former master keys.
    former: Vec<hmac::Key>,
    secret: hmac::Key,
    lookup: hmac::Key,
    check: [u8; CHECK_BYTES],
}

impl Keys {
    pub(crate) fn derive(master: &MasterKey) -> Self {
        let key = |bytes: &[u8; MASTER_BYTES]| hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let kept = master.0.get(1..).unwrap_or_default().concat();
        Self {
            account: key(&master.derived(ACCOUNT)),
            former: master.former().iter().map(key).collect(),
            secret: key(&master.derived(SECRET)),
            lookup: key(&master.lookup()),
            check: master.derived(&[CHECK, &kept].concat()),
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

    /// All keys that registrations of an account may have: that of [`Self::account`] first, then those they
    /// had under former master keys and have until they are renewed.
    pub(crate) fn accounts(&self, account: &BareJid) -> Vec<AccountKey> {
        let keys = std::iter::once(&self.account).chain(&self.former);
        keys.map(|key| AccountKey(cut(&hmac::sign(key, account.as_str().as_bytes()))))
            .collect()
    }

    /// The secret of the registration with this salt and mask.
    pub(crate) fn secret(&self, salt: &Salt, mask: &Mask) -> SecretText {
        let bytes = self.secret_bytes(salt, mask);
        let mut text = Zeroizing::new([0; SecretText::DIGITS]);
        let (pairs, _) = text.as_chunks_mut();
        for (pair, byte) in pairs.iter_mut().zip(bytes.iter()) {
            *pair = [digit(byte >> 4), digit(byte & 15)];
        }
        SecretText(text)
    }

    fn secret_bytes(&self, salt: &Salt, mask: &Mask) -> Zeroizing<[u8; 32]> {
        let mut bytes = Zeroizing::new(cut(&hmac::sign(&self.secret, salt)));
        for (byte, mask) in bytes.iter_mut().zip(mask) {
            *byte ^= mask;
        }
        bytes
    }

    /// The mask with which `new` keys give the secret that these give: it tells nothing of it without them.
    pub(crate) fn mask_for(&self, new: &Self, salt: &Salt, mask: &Mask) -> Mask {
        *new.secret_bytes(salt, &self.secret_bytes(salt, mask))
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

    /// Whether it is what somebody presents. It takes as long wherever the two differ.
    pub(crate) fn is(&self, presented: &str) -> Choice {
        words(self.0.as_slice()).ct_eq(words(presented.as_bytes()).as_slice())
            & self.0.len().ct_eq(&presented.len())
    }
}

const fn digit(value: u8) -> u8 {
    match value {
        0..=9 => b'0' + value,
        _ => b'a' - 10 + value,
    }
}

/// The first bytes of a text, as long as a secret is, in few pieces: each is compared by itself.
fn words(text: &[u8]) -> Zeroizing<[u64; SecretText::DIGITS / 8]> {
    let (chunks, _) = text.as_chunks();
    let mut words = Zeroizing::new([0; SecretText::DIGITS / 8]);
    for (word, chunk) in words.iter_mut().zip(chunks) {
        *word = u64::from_ne_bytes(*chunk);
    }
    words
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use messages::Domain;

    use super::*;

    const NO_MASK: Mask = [0; 32];

    #[test]
    fn a_new_key_finds_what_was_made_with_the_ones_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registration.key");
        let jid = BareJid::new("ada", Domain::new("chat.example"));
        let mut master = MasterKey::generate().unwrap();
        let first = Keys::derive(&master);
        let secret = first.secret(&[7; 32], &NO_MASK);
        let registration = first.registration("s", "n", secret.as_str());
        let (mut keys, mut mask) = (Keys::derive(&master), NO_MASK);
        for rotation in 1..=FORMER_MAX + 2 {
            let rotated = master.rotated().unwrap();
            rotated.prepare(&path).unwrap();
            MasterKey::publish(&path, &Keys::derive(&rotated)).unwrap();
            master = MasterKey::load(&path).unwrap().unwrap();
            let new = Keys::derive(&master);
            mask = keys.mask_for(&new, &[7; 32], &mask);
            assert_ne!(new.secret(&[7; 32], &NO_MASK).as_str(), secret.as_str());
            assert_eq!(new.secret(&[7; 32], &mask).as_str(), secret.as_str());
            assert!(new.registration("s", "n", secret.as_str()) == registration);
            assert_ne!(new.check(), keys.check());
            assert!(new.account(&jid) != keys.account(&jid));
            assert!(new.accounts(&jid)[0] == new.account(&jid));
            let found = new.accounts(&jid).contains(&first.account(&jid));
            assert_eq!(found, rotation <= FORMER_MAX);
            keys = new;
        }
    }

    fn keys(seed: u8) -> Keys {
        Keys::derive(&MasterKey(Zeroizing::new(vec![[seed; MASTER_BYTES]])))
    }

    #[test]
    fn a_secret_is_64_lower_case_hex_digits_and_always_the_same() {
        let keys = keys(1);
        let secret = keys.secret(&[7; 32], &NO_MASK);
        assert_eq!(secret.as_str().len(), 64);
        assert!(
            secret
                .as_str()
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        );
        assert_eq!(secret.as_str(), keys.secret(&[7; 32], &NO_MASK).as_str());
        assert_ne!(secret.as_str(), keys.secret(&[8; 32], &NO_MASK).as_str());
    }

    #[test]
    fn a_secret_is_itself_and_nothing_else() {
        let secret = keys(1).secret(&[7; 32], &NO_MASK);
        let own = secret.as_str();
        assert!(bool::from(secret.is(own)));
        for place in 0..own.len() {
            let mut other = own.to_owned();
            other.replace_range(place..=place, "x");
            assert!(!bool::from(secret.is(&other)), "{place}");
        }
        let shorter = own.split_at(56).0;
        for other in [
            "",
            shorter,
            &format!("{own}0"),
            &own.repeat(2),
            &own.to_uppercase(),
        ] {
            assert!(!bool::from(secret.is(other)));
        }
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
        let other = Keys::derive(&MasterKey::generate().unwrap());
        assert!(matches!(
            MasterKey::publish(&path, &other),
            Err(Error::KeyFilePrepared { .. })
        ));
        assert!(MasterKey::load(&path).unwrap().is_none());
        MasterKey::publish(&path, &Keys::derive(&created)).unwrap();
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
        let key = MasterKey::generate().unwrap();
        key.prepare(&path).unwrap();
        MasterKey::publish(&path, &Keys::derive(&key)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            MasterKey::load(&path),
            Err(Error::KeyFileExposed { .. })
        ));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for length in [0, 31, 33, 64, FILE_BYTES_MAX + 32] {
            fs::write(&path, vec![1; length]).unwrap();
            assert!(matches!(
                MasterKey::load(&path),
                Err(Error::KeyFileLength { .. })
            ));
        }
    }
}
