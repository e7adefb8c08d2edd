//! An operator's words, and whom they name.

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// Whether the words name the account: its JID, and not one that only begins or ends with the same letters.
/// An operator types what people type, so letters are compared in lower case, and what is no part of a JID
/// anywhere, or stands around one in a sentence, ends it.
pub(crate) fn names(words: &[u8], account: &[u8]) -> bool {
    let words = String::from_utf8_lossy(words).to_lowercase();
    let account = String::from_utf8_lossy(account).to_lowercase();
    words.match_indices(account.as_str()).any(|(at, _)| {
        let before = words.get(..at).unwrap_or_default();
        let behind = words.get(at + account.len()..).unwrap_or_default();
        let goes_on = |mut rest: std::str::Chars<'_>| match rest.next() {
            // The end of a sentence, unless a label follows.
            Some('.') => rest.next().is_some_and(is_of_word),
            Some(next) => is_of_word(next) || matches!(next, '-' | '_' | '@'),
            None => false,
        };
        !continues_localpart(before) && !goes_on(behind.chars())
    })
}

/// Whether what comes before a JID is more of its localpart: anything that RFC 7622 §3.3 allows in one, but
/// for the signs that people put around names.
fn continues_localpart(before: &str) -> bool {
    let mut before = before.chars().rev();
    match before.next() {
        None => false,
        Some(last) if last.is_ascii() => {
            !last.is_whitespace()
                && !matches!(last, '"' | '&' | '\'' | '/' | ':' | '<' | '>' | '@')
                && !matches!(last, '(' | '[' | '{' | ',' | ';' | '=' | '|' | '`')
        }
        // Allowed between letters; elsewhere a sign as others are.
        Some('\u{b7}' | '\u{30fb}') => before.next().is_some_and(is_of_word),
        // Quotation marks, dashes, arrows, marks of direction: none is allowed.
        Some(last) => is_of_word(last),
    }
}

/// Whether it is part of words as people write them in any language, with the marks that go with letters.
fn is_of_word(character: char) -> bool {
    matches!(
        character.general_category_group(),
        GeneralCategoryGroup::Letter | GeneralCategoryGroup::Mark | GeneralCategoryGroup::Number
    ) || matches!(character, '\u{200c}' | '\u{200d}')
}
