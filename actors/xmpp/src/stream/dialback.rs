//! Server dialback: keys, and the words about them (XEP-0220, XEP-0185).

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac};
use subtle::ConstantTimeEq;

use crate::Error;

/// Bytes of a generated secret.
const SECRET_BYTES: usize = 32;

/// Makes and checks the keys by which another server asks whether a stream is ours. The key binds the
/// receiving domain, our domain and the id of the stream, so nothing has to be remembered.
pub(crate) struct KeyMaker(hmac::Key);

impl KeyMaker {
    /// Takes a secret (XEP-0185 §3).
    pub(crate) fn new(secret: &[u8]) -> Self {
        let hashed = hex(digest::digest(&digest::SHA256, secret).as_ref());
        Self(hmac::Key::new(hmac::HMAC_SHA256, hashed.as_bytes()))
    }

    /// Reads the secret, or creates the file, readable by its owner only, and its folder. A start that is
    /// cut short leaves either no file or a whole one.
    pub(crate) fn from_file(file: &Path) -> Result<Self, Error> {
        let failed = |source| Error::DialbackSecret {
            file: file.to_owned(),
            source,
        };
        match files::read(file, files::SMALL) {
            Ok(text) => match text.trim_ascii() {
                short if short.len() < SECRET_BYTES => Err(failed(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it has fewer than 32 bytes: remove it, and a new one is made",
                ))),
                secret => Ok(Self::new(secret)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = hex(&random()?);
                create(file, text.as_bytes()).map_err(failed)?;
                Ok(Self::new(text.as_bytes()))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// The key for a stream that we opened: lower-case hex of HMAC-SHA-256.
    pub(crate) fn key(&self, receiving: &str, originating: &str, stream_id: &str) -> String {
        let message = format!("{receiving} {originating} {stream_id}");
        hex(hmac::sign(&self.0, message.as_bytes()).as_ref())
    }

    /// Whether `key` is ours, in constant time.
    pub(crate) fn made(
        &self,
        key: &str,
        receiving: &str,
        originating: &str,
        stream_id: &str,
    ) -> bool {
        let ours = self.key(receiving, originating, stream_id);
        ours.as_bytes().ct_eq(key.trim().as_bytes()).into()
    }
}

fn create(file: &Path, secret: &[u8]) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    let fresh = file.with_extension("fresh");
    let mut written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    written.write_all(secret)?;
    written.sync_all()?;
    fs::rename(&fresh, file)
}

/// Hands out stream ids: unique, and unpredictable to all who do not know the key of this process
/// (RFC 6120 §4.7.3).
pub(crate) struct StreamIds {
    key: hmac::Key,
    next: AtomicU64,
}

impl StreamIds {
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &random()?),
            next: AtomicU64::new(0),
        })
    }

    /// A new id of 128 bits.
    pub(crate) fn next(&self) -> String {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let tag = hmac::sign(&self.key, &count.to_be_bytes());
        hex(tag.as_ref().get(..16).unwrap_or_default())
    }
}

fn random() -> Result<[u8; SECRET_BYTES], Error> {
    let mut bytes = [0; SECRET_BYTES];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::Random)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        for digit in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(digit.into(), 16));
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[track_caller]
    fn check(secret: &str, (receiving, originating, id): (&str, &str, &str), expected: &str) {
        let maker = KeyMaker::new(secret.as_bytes());
        assert_eq!(maker.key(receiving, originating, id), expected);
        assert!(maker.made(expected, receiving, originating, id));
        assert!(maker.made(&format!("\n{expected} "), receiving, originating, id));
        assert!(!maker.made(expected, originating, receiving, id));
        assert!(!maker.made(expected, receiving, originating, "other"));
        assert!(!maker.made("", receiving, originating, id));
    }

    #[test]
    fn keys() {
        check(
            "correct horse",
            ("push.app.example", "chat.example", "sid-7f3a"),
            "e76e7401c6944ad352518e0cbc92726398b806c57deba27bb9152462d186b0f4",
        );
        check(
            "s3cr3tf0rd14lb4ck",
            ("xmpp.example.com", "example.org", "D60000229F"),
            "37c69b1cf07a3f67c04a5ef5902fa5114f2c76fe4a2686482ba5b89323075643",
        );
    }

    #[test]
    fn a_secret_survives_a_restart_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dialback.secret");
        let first = KeyMaker::from_file(&file).unwrap().key("a", "b", "c");
        assert_eq!(
            KeyMaker::from_file(&file).unwrap().key("a", "b", "c"),
            first
        );
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        fs::write(&file, "short").unwrap();
        assert!(matches!(
            KeyMaker::from_file(&file),
            Err(Error::DialbackSecret { .. })
        ));
    }

    #[test]
    fn stream_ids_differ() {
        let (ids, others) = (StreamIds::new().unwrap(), StreamIds::new().unwrap());
        let first = ids.next();
        assert_eq!(first.len(), 32);
        assert_ne!(first, ids.next());
        assert_ne!(first, others.next());
    }
}
