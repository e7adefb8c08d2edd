//! A signing key and the file it came from, which may be replaced while the service runs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use messages::SigningKeyId;
use ring::digest::{SHA256, digest};

use crate::jwt::Signer;

/// One key of a team, shared by all that send with it.
pub(crate) struct SigningKey {
    id: SigningKeyId,
    file: PathBuf,
    current: Mutex<Current>,
    generation: AtomicU64,
}

struct Current {
    signer: Arc<Signer>,
    /// Of the file's text when it was last looked at.
    seen: Vec<u8>,
}

impl SigningKey {
    /// A key as it was read from its file.
    pub(crate) fn new(file: PathBuf, text: &[u8], signer: Signer) -> Self {
        Self {
            id: signer.id().clone(),
            file,
            current: Mutex::new(Current {
                signer: Arc::new(signer),
                seen: digest(&SHA256, text).as_ref().to_vec(),
            }),
            generation: AtomicU64::new(0),
        }
    }

    /// Whose key this is.
    pub(crate) const fn id(&self) -> &SigningKeyId {
        &self.id
    }

    /// The key as it is now.
    pub(crate) fn signer(&self) -> Arc<Signer> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current.signer)
    }

    /// How often it was replaced. APNs ties a connection to the key of its first push, so a connection
    /// serves one generation.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Looks at the file again; says whether it has another key now. Unreadable content is told once.
    ///
    /// # Errors
    /// The file changed to something that is no key; the old one stays in use.
    pub(crate) fn reload(&self) -> Result<bool, String> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let read = files::read(&self.file, files::SMALL);
        let seen = digest(&SHA256, read.as_deref().unwrap_or_default());
        if current.seen == seen.as_ref() {
            return Ok(false);
        }
        current.seen = seen.as_ref().to_vec();
        let text = read.map_err(|error| {
            format!("cannot be read ({error}): put it back, the next start needs it")
        })?;
        let signer = Signer::from_pem(self.id.clone(), &text)?;
        if signer.public_key() == current.signer.public_key() {
            return Ok(false);
        }
        current.signer = Arc::new(signer);
        self.generation.fetch_add(1, Ordering::Release);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_a_new_generation() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.p8");
        let id = SigningKeyId {
            team_id: "DEF123GHIJ".into(),
            key_id: "ABC123DEFG".into(),
        };
        let pem = || rcgen::KeyPair::generate().unwrap().serialize_pem();
        let text = pem();
        let signer = Signer::from_pem(id, text.as_bytes()).unwrap();
        std::fs::write(&file, &text).unwrap();
        let key = SigningKey::new(file.clone(), text.as_bytes(), signer);
        let first = key.signer().public_key().to_vec();
        assert_eq!(key.reload(), Ok(false));

        // Half written: told once, and the old key stays.
        std::fs::write(&file, "-----BEGIN PRIVATE").unwrap();
        assert!(key.reload().is_err());
        assert_eq!(key.reload(), Ok(false));
        assert_eq!(key.signer().public_key(), first);
        // The same key with another line end.
        std::fs::write(&file, text + "\n").unwrap();
        assert_eq!(key.reload(), Ok(false));
        assert_eq!(key.generation(), 0);

        std::fs::write(&file, pem()).unwrap();
        assert_eq!(key.reload(), Ok(true));
        assert_eq!(key.generation(), 1);
        assert_ne!(key.signer().public_key(), first);
        assert_eq!(key.reload(), Ok(false));

        std::fs::remove_file(&file).unwrap();
        let problem = key.reload().unwrap_err();
        assert!(problem.contains("cannot be read"), "{problem}");
        assert_eq!(key.reload(), Ok(false));
    }
}
