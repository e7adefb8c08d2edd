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
/// Characters that a code is shown in groups of.
const GROUP_CHARACTERS: usize = 4;
/// Longest text in which codes are looked for: the longest that the XMPP side passes on.
const TEXT_MAX: usize = 4_096;
/// What a text may have that looks like a code. A person sends one, and perhaps words that look like it.
const CODES_MAX: usize = 32;

/// A code to give to a person: four groups of four characters. Known here only when it is made.
pub(crate) struct Code(Zeroizing<String>);

redacted_debug!(Code);

impl Code {
    pub(crate) fn generate() -> Result<Self, Error> {
        let characters = random_text(CODE_CHARACTERS)?;
        let mut text = Zeroizing::new(String::with_capacity(CODE_CHARACTERS + 3));
        for (index, character) in characters.chars().enumerate() {
            if index > 0 && index.is_multiple_of(GROUP_CHARACTERS) {
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

/// Everything in the text of a message that may be a code as somebody typed it, case and what stands between
/// letters and digits apart: the whole text in whatever groups, or, among words, so many characters in words
/// of whole groups one after the other. That a text has several of them makes it no more than one guess.
pub(crate) fn typed(text: &str) -> Vec<Zeroizing<String>> {
    if text.len() > TEXT_MAX {
        return Vec::new();
    }
    let words: Vec<&str> = text
        .split(|character: char| !character.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let is_alone = words.iter().map(|word| word.len()).sum::<usize>() == CODE_CHARACTERS;
    let runs = if is_alone {
        vec![words.as_slice()]
    } else {
        let from = |start| words.get(start..).and_then(in_groups);
        (0..words.len()).filter_map(from).collect()
    };
    runs.into_iter()
        .map(|run| Zeroizing::new(run.concat().to_ascii_uppercase()))
        .filter(|code| code.bytes().all(|byte| ALPHABET.contains(&byte)))
        .take(CODES_MAX)
        .collect()
}

/// The first of these words that are whole groups and together as long as a code.
fn in_groups<'a, 'b>(words: &'a [&'b str]) -> Option<&'a [&'b str]> {
    let mut characters = 0;
    for (index, word) in words.iter().enumerate() {
        characters += word.len();
        if !word.len().is_multiple_of(GROUP_CHARACTERS) || characters > CODE_CHARACTERS {
            return None;
        }
        if characters == CODE_CHARACTERS {
            return words.get(..=index);
        }
    }
    None
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

    /// Whether this is what [`typed`] finds of the code with that hash.
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

    const CODE: &str = "Q3ZN-7T2K-M8WF-XDRA";

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let found = typed(text);
        let found: Vec<_> = found.iter().map(|code| code.as_str()).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn a_code_is_found_as_people_type_it() {
        for text in [
            "Q3ZN-7T2K-M8WF-XDRA",
            "Q3ZN7T2KM8WFXDRA",
            "q3zn7t2km8wfxdra",
            "q3zn 7t2k m8wf xdra",
            "  Q3ZN-7T2K-M8WF-XDRA\n",
            "Q3ZN\u{2013}7T2K\u{2011}M8WF\u{2014}XDRA",
            "Q3Z N7T2 KM8WFX DRA",
            "my code is Q3ZN-7T2K-M8WF-XDRA.",
            "my code is Q3ZN 7T2K M8WF XDRA",
            "My code: q3zn-7t2k-m8wf-xdra, thank you!",
            "code:Q3ZN-7T2K-M8WF-XDRA",
            "code=Q3ZN7T2KM8WFXDRA;",
            "\u{201e}Q3ZN-7T2K-M8WF-XDRA\u{201c} is what the mail says",
            "> send a message with the code\n>   Q3ZN-7T2K-M8WF-XDRA\n> from your account",
            "the code Q3ZN-7T2K\nM8WF-XDRA was split in two",
            "Q3ZN7T2K M8WFXDRA, as you asked",
            // Words as long as a code, and groups as long as its own.
            "internationalise my code Q3ZN-7T2K-M8WF-XDRA responsibilities",
            "this is what they sent me: Q3ZN-7T2K-M8WF-XDRA",
        ] {
            check(text, &["Q3ZN7T2KM8WFXDRA"]);
        }
        // Neighbours that may be groups of it make it no less one of them.
        check(
            "here Q3ZN-7T2K-M8WF-XDRA sent",
            &["HEREQ3ZN7T2KM8WF", "Q3ZN7T2KM8WFXDRA", "7T2KM8WFXDRASENT"],
        );
        let long = format!("{} {CODE}", "x ".repeat(2_000));
        check(&long, &["Q3ZN7T2KM8WFXDRA"]);
    }

    #[test]
    fn other_texts_are_no_codes() {
        for text in [
            "",
            "hello",
            "ABCD-EFGH-JKLM-NPQ",
            "ABCD-EFGH-JKLM-NPQRS",
            "my code is ABC-DEFG-HJKLM-NPQR",
            // Letters and digits that no code has.
            "OBCD-EFGH-JKLM-NPQ1",
            "what I said is that it is not here",
            &format!("{} {CODE}", "x ".repeat(2_100)),
        ] {
            check(text, &[]);
        }
    }

    #[test]
    fn a_text_has_so_many_and_no_more() {
        assert_eq!(typed(&"ABCD ".repeat(800)).len(), CODES_MAX);
    }

    #[test]
    fn a_code_fits_its_case_and_key_alone() {
        let code = Code::generate().unwrap();
        assert_eq!(code.as_str().len(), 19);
        let key = CodeKey::of(&[1; 32]);
        let hash = key.hash("a", &code);
        let found = typed(&format!("my code is {}.", code.as_str()));
        assert!(found.iter().any(|typed| key.fits("a", typed, &hash)));
        assert!(!found.iter().any(|typed| key.fits("b", typed, &hash)));
        let other_key = CodeKey::of(&[2; 32]);
        assert!(!found.iter().any(|typed| other_key.fits("a", typed, &hash)));
        let other = Code::generate().unwrap();
        assert_ne!(other.as_str(), code.as_str());
        let other = typed(other.as_str());
        assert!(!other.iter().any(|typed| key.fits("a", typed, &hash)));
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
