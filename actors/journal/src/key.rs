//! The key of hashed identifiers.

use std::io::ErrorKind;
use std::path::Path;

use messages::{DeviceToken, NodeId};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::Error;

const KEY_BYTES: usize = 32;

/// What stands for a node or a device token.
pub(crate) type Digest = [u8; 16];

/// Turns nodes and device tokens into what the journal has of them.
pub(crate) struct HashKey(hmac::Key);

impl HashKey {
    /// Reads the key file; `None` when there is none.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, Error> {
        let fail = |source| Error::KeyFile {
            path: path.into(),
            source,
        };
        let bytes = match files::read_private(path, KEY_BYTES as u64) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(files::Error::Exposed) => return Err(Error::KeyFileExposed { path: path.into() }),
            Err(files::Error::Io(source)) if source.kind() == ErrorKind::FileTooLarge => {
                return Err(Error::KeyFileLength { path: path.into() });
            }
            Err(files::Error::Io(source)) => return Err(fail(source)),
        };
        if bytes.len() == KEY_BYTES {
            Ok(Some(Self::of(&bytes)))
        } else {
            Err(Error::KeyFileLength { path: path.into() })
        }
    }

    /// Reads the key file, or makes it.
    pub(crate) fn load_or_create(path: &Path) -> Result<Self, Error> {
        if let Some(key) = Self::load(path)? {
            return Ok(key);
        }
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        SystemRandom::new()
            .fill(bytes.as_mut_slice())
            .map_err(|_| Error::Random)?;
        files::write_private(path, bytes.as_slice()).map_err(|source| Error::KeyFile {
            path: path.into(),
            source,
        })?;
        Ok(Self::of(bytes.as_slice()))
    }

    fn of(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    pub(crate) fn node(&self, node: &NodeId) -> Digest {
        self.digest(b"node", node.as_str())
    }

    pub(crate) fn device_token(&self, device_token: &DeviceToken) -> Digest {
        self.digest(b"token", device_token.as_str())
    }

    fn digest(&self, purpose: &[u8], value: &str) -> Digest {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(purpose);
        context.update(&[0]);
        context.update(value.as_bytes());
        let tag = context.sign();
        let mut digest = Digest::default();
        for (to, from) in digest.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        digest
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("below").join("journal.key");
        let node = NodeId::new("node").unwrap();
        let first = HashKey::load_or_create(&path).unwrap().node(&node);
        assert_eq!(HashKey::load_or_create(&path).unwrap().node(&node), first);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::remove_file(&path).unwrap();
        assert_ne!(HashKey::load_or_create(&path).unwrap().node(&node), first);
        fs::write(&path, [1; 31]).unwrap();
        let cut = HashKey::load_or_create(&path);
        assert!(matches!(cut, Err(Error::KeyFileLength { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let exposed = HashKey::load_or_create(&path);
        assert!(matches!(exposed, Err(Error::KeyFileExposed { .. })));
    }

    #[test]
    fn nodes_and_device_tokens_do_not_mix() {
        let key = HashKey::of(&[7; KEY_BYTES]);
        let text = "ab".repeat(32);
        let node = NodeId::new(&text).unwrap();
        let device_token = DeviceToken::parse(&text).unwrap();
        assert_ne!(key.node(&node), key.device_token(&device_token));
        let other = HashKey::of(&[8; KEY_BYTES]);
        assert_ne!(key.node(&node), other.node(&node));
    }
}
