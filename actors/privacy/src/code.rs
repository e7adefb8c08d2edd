//! One-time codes, and the key they are hashed with.

use std::path::Path;

use messages::redacted_debug;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::{Error, file};

const KEY_BYTES: usize = 32;
/// Letters and digits that nobody mistakes for each other.
const ALPHABET: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";
/// 80 bits.
const CODE_CHARACTERS: usize = 16;
/// Longest text in which a code is looked for.
const TEXT_MAX: usize = 512;

/// A code to give to a person: four groups of four characters. Known here only when it is made.
pub(crate) struct Code(Zeroizing<String>);

redacted_debug!(Code);

impl Code {
    pub(crate) fn generate() -> Result<Self, Error> {
        let characters = random_text(CODE_CHARACTERS)?;
        let mut text = Zeroizing::new(String::with_capacity(CODE_CHARACTERS + 3));
        for (index, character) in characters.chars().enumerate() {
            if index > 0 && index.is_multiple_of(4) {
                text.push('-');
            }
            text.push(character);
        }
        Ok(Self(text))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Random letters and digits, five bits each.
pub(crate) fn random_text(characters: usize) -> Result<String, Error> {
    let mut bytes = vec![0; characters];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::Random)?;
    let character = |byte: &u8| ALPHABET.get(usize::from(byte & 31)).copied();
    Ok(bytes.iter().filter_map(character).map(char::from).collect())
}

/// The text of a message as a code was typed, hyphens, blanks and case apart; `None` when it is something
/// else.
pub(crate) fn typed(text: &str) -> Option<String> {
    if text.len() > TEXT_MAX {
        return None;
    }
    let plain = |word: &str| -> String {
        word.chars()
            .filter(char::is_ascii_alphanumeric)
            .map(|character| character.to_ascii_uppercase())
            .collect()
    };
    // The code alone, or among words.
    let whole = plain(text);
    let words = text.split_whitespace().map(plain);
    std::iter::once(whole)
        .chain(words)
        .find(|word| word.len() == CODE_CHARACTERS)
}

/// What codes are hashed with, so that a copy of the cases alone tells none.
pub(crate) struct CodeKey(hmac::Key);

/// The hash of a code.
pub(crate) type CodeHash = [u8; 32];

impl CodeKey {
    /// Reads the key file, or makes it.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        if let Some(key) = Self::load(path)? {
            return Ok(key);
        }
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        SystemRandom::new()
            .fill(key.as_mut_slice())
            .map_err(|_| Error::Random)?;
        let directory = files::parent(path);
        if !directory.is_dir() {
            file::create_private(directory)?;
        }
        file::write(path, key.as_slice())?;
        Ok(Self::of(&key))
    }

    pub(crate) fn load(path: &Path) -> Result<Option<Self>, Error> {
        // One byte more than a key, to notice a longer file.
        let Some(bytes) = file::read(path, KEY_BYTES as u64 + 1)? else {
            return Ok(None);
        };
        let bytes = Zeroizing::new(bytes);
        match <&[u8; KEY_BYTES]>::try_from(bytes.as_slice()) {
            Ok(key) => Ok(Some(Self::of(key))),
            Err(_) => Err(Error::KeyLength { path: path.into() }),
        }
    }

    pub(crate) fn of(key: &[u8; KEY_BYTES]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The hash of a code of this case.
    pub(crate) fn hash(&self, case: &str, code: &Code) -> CodeHash {
        let plain: String = code.as_str().chars().filter(|c| *c != '-').collect();
        let tag = hmac::sign(&self.0, &message(case, &plain));
        tag.as_ref().try_into().unwrap_or([0; 32])
    }

    /// Whether this is what [`typed`] makes of the code with that hash.
    pub(crate) fn fits(&self, case: &str, typed: &str, hash: &CodeHash) -> bool {
        hmac::verify(&self.0, &message(case, typed), hash).is_ok()
    }
}

fn message(case: &str, code: &str) -> Vec<u8> {
    [case.as_bytes(), b"\0", code.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_found_as_people_type_it() {
        let code = Code::generate().unwrap();
        let text = code.as_str();
        assert_eq!(text.len(), 19);
        let key = CodeKey::of(&[1; 32]);
        let hash = key.hash("a", &code);
        let plain = text.replace('-', "");
        for typed_text in [
            text.to_owned(),
            plain.clone(),
            plain.to_lowercase(),
            text.replace('-', " "),
            format!("  {text}\n"),
            format!("my code is {text}."),
        ] {
            let typed = typed(&typed_text).unwrap();
            assert!(key.fits("a", &typed, &hash), "{typed_text}");
        }
        assert!(!key.fits("b", &plain, &hash));
        assert!(!CodeKey::of(&[2; 32]).fits("a", &plain, &hash));
        let other = Code::generate().unwrap();
        assert_ne!(other.as_str(), text);
        assert!(!key.fits("a", &typed(other.as_str()).unwrap(), &hash));
    }

    #[test]
    fn other_texts_are_no_codes() {
        for text in ["", "hello", "ABCD-EFGH-JKLM-NPQ", &"x ".repeat(600)] {
            assert_eq!(typed(text), None, "{text}");
        }
    }

    #[test]
    fn the_key_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("privacy.key");
        let code = Code::generate().unwrap();
        let hash = CodeKey::open(&path).unwrap().hash("a", &code);
        assert_eq!(CodeKey::open(&path).unwrap().hash("a", &code), hash);
        std::fs::write(&path, [1; 33]).unwrap();
        assert!(matches!(CodeKey::open(&path), Err(Error::KeyLength { .. })));
    }
}
