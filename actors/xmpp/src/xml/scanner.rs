//! Names, attributes and character data.
//!
//! Whatever is plain is taken as it stands, after one look at its bytes; the rest is looked at again more closely.
//! This is the grammar inside a tag and between tags. What follows what, and which name is bound to which
//! namespace, is for [`super::events`] to say.

use std::borrow::Cow;

use memchr::memchr;

use super::XmlError;
use super::word::{self, Word};

/// In a name (XML Names §3). Beyond ASCII everything counts as a letter.
const NAME: u8 = 1;
/// At the beginning of a name.
const FIRST: u8 = 2;

/// What each byte may be.
static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut rest = classes.as_mut_slice();
    let mut byte: u8 = 0;
    while let [first, behind @ ..] = rest {
        *first = class(byte);
        byte = byte.wrapping_add(1);
        rest = behind;
    }
    classes
}

const fn class(byte: u8) -> u8 {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => NAME | FIRST,
        b'0'..=b'9' | b'-' | b'.' => NAME,
        _ => 0,
    }
}

#[inline]
fn is(byte: u8, class: u8) -> bool {
    let classes = CLASSES.get(usize::from(byte));
    classes.is_some_and(|classes| classes & class != 0)
}

/// What an attribute value in apostrophes cannot simply be taken over with, and what ends it. Control characters but
/// white space are refused before, and in an XML declaration mean nothing.
#[inline]
fn ends_single(word: Word) -> u64 {
    word.is_either(b'\'', b'&') | word.is(b'<') | word.below(b' ')
}

/// The same for one in quotation marks.
#[inline]
fn ends_double(word: Word) -> u64 {
    word.is_either(b'"', b'&') | word.is(b'<') | word.below(b' ')
}

/// The same for character data. A `>` may end what only a CDATA section may end with.
#[inline]
fn ends_text(word: Word) -> u64 {
    word.is_either(b'<', b'>') | word.is(b'&') | word.is(b'\r')
}

/// Most bytes of a text that are looked at before setting out to search: most texts are shorter.
const SHORT: usize = 64;

/// A name as it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Name<'a> {
    /// All of it.
    pub(super) whole: &'a str,
    /// What stands before its colon.
    pub(super) prefix: Option<&'a str>,
    /// What stands behind.
    pub(super) local: &'a str,
}

/// An attribute, or a namespace declaration.
pub(crate) struct Attribute<'a> {
    /// Prefix as written.
    pub(crate) prefix: Option<&'a str>,
    /// Name without the prefix.
    pub(crate) name: &'a str,
    /// Unescaped value.
    pub(crate) value: Cow<'a, str>,
}

/// What is left of a unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    pub(super) const fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    /// What comes.
    pub(super) const fn rest(&self) -> &'a str {
        self.rest
    }

    /// Goes on by `len` bytes, which end between characters. What stood there.
    #[inline]
    pub(super) fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = (self.rest.split_at_checked(len)).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }

    /// Goes past these bytes if they come.
    #[inline]
    pub(super) fn skip(&mut self, expected: &str) -> bool {
        let rest = self.rest.strip_prefix(expected);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Goes past white space. Whether there was some.
    #[inline]
    pub(super) fn skip_blanks(&mut self) -> bool {
        let mut rest = self.rest;
        while let Some(behind) = rest.strip_prefix([' ', '\t', '\n', '\r']) {
            rest = behind;
        }
        let blank = rest.len() < self.rest.len();
        self.rest = rest;
        blank
    }

    /// Takes a name. Inlined, so that its parts need not go through memory.
    ///
    /// # Errors
    /// [`XmlError::NotWellFormed`] when none comes, or one with two colons.
    #[inline(always)]
    pub(super) fn name(&mut self) -> Result<Name<'a>, XmlError> {
        let bytes = self.rest.as_bytes();
        let len = name_len(bytes)?;
        let (name, prefixed) = match bytes.get(len) {
            Some(b':') => {
                let local = name_len(bytes.get(len + 1..).unwrap_or_default())?;
                (self.take(len + 1 + local), true)
            }
            _ => (self.take(len), false),
        };
        let (prefix, local) = match prefixed {
            true => (name.get(..len), name.get(len + 1..).unwrap_or_default()),
            false => (None, name),
        };
        Ok(Name {
            whole: name,
            prefix,
            local,
        })
    }

    /// Takes an attribute without white space around its `=`, whose value is what is written. How far this goes if
    /// there is none is left open.
    #[inline(always)]
    pub(super) fn plain_attribute(&mut self) -> Option<(Name<'a>, &'a str)> {
        let name = self.name().ok()?;
        let bytes = self.rest.as_bytes();
        let len = match bytes {
            [b'=', b'\'', value @ ..] => word::find(value, ends_single)?,
            [b'=', b'"', value @ ..] => word::find(value, ends_double)?,
            _ => return None,
        };
        let [opening, closing] = [bytes.get(1), bytes.get(len + 2)];
        if opening != closing {
            return None;
        }
        self.take(2);
        let value = self.take(len);
        self.take(1);
        Some((name, value))
    }

    /// Takes an attribute.
    ///
    /// # Errors
    /// [`XmlError::NotWellFormed`], or [`XmlError::RestrictedXml`] for a custom entity in its value.
    pub(super) fn attribute(&mut self) -> Result<Attribute<'a>, XmlError> {
        let name = self.name()?;
        self.skip_blanks();
        if !self.skip("=") {
            return Err(XmlError::NotWellFormed);
        }
        self.skip_blanks();
        let (quote, plain) = match self.rest.as_bytes() {
            [b'\'', value @ ..] => (b'\'', word::find(value, ends_single)),
            [b'"', value @ ..] => (b'"', word::find(value, ends_double)),
            _ => return Err(XmlError::NotWellFormed),
        };
        self.take(1);
        let bytes = self.rest.as_bytes();
        let plain = plain.ok_or(XmlError::NotWellFormed)?;
        let value = if bytes.get(plain) == Some(&quote) {
            Cow::Borrowed(self.take(plain))
        } else {
            let len = memchr(quote, bytes).ok_or(XmlError::NotWellFormed)?;
            unescape(self.take(len), value_of)?
        };
        self.take(1);
        Ok(Attribute {
            prefix: name.prefix,
            name: name.local,
            value,
        })
    }

    /// Takes character data up to the next markup, if that is near and the data is what is written.
    #[inline]
    pub(super) fn plain_text(&mut self) -> Option<&'a str> {
        let bytes = self.rest.as_bytes();
        let near = bytes.get(..SHORT).unwrap_or(bytes);
        let len = word::find(near, ends_text)?;
        (bytes.get(len) == Some(&b'<')).then(|| self.take(len))
    }

    /// Takes character data up to the next markup.
    ///
    /// # Errors
    /// As [`Scanner::attribute`].
    pub(super) fn text(&mut self) -> Result<Cow<'a, str>, XmlError> {
        let bytes = self.rest.as_bytes();
        let len = memchr(b'<', bytes).unwrap_or(bytes.len());
        unescape(self.take(len), text_of)
    }
}

#[inline]
fn name_len(bytes: &[u8]) -> Result<usize, XmlError> {
    match bytes.first() {
        Some(first) if is(*first, FIRST) => {
            let end = bytes.iter().position(|byte| !is(*byte, NAME));
            Ok(end.unwrap_or(bytes.len()))
        }
        _ => Err(XmlError::NotWellFormed),
    }
}

/// Resolves the references in `raw`; `plain` makes of what stands between them what it means.
fn unescape<'a>(
    raw: &'a str,
    plain: impl Fn(&'a str) -> Result<Cow<'a, str>, XmlError>,
) -> Result<Cow<'a, str>, XmlError> {
    let Some(at) = memchr(b'&', raw.as_bytes()) else {
        return plain(raw);
    };
    // A reference is longer than what it stands for.
    let mut whole = String::with_capacity(raw.len());
    let (first, mut rest) = raw.split_at_checked(at).unwrap_or_default();
    whole.push_str(&plain(first)?);
    while let Some(reference) = rest.strip_prefix('&') {
        let end = reference.bytes().position(|byte| byte == b';');
        let (reference, behind) = end
            .and_then(|end| Some((reference.get(..end)?, reference.get(end + 1..)?)))
            .ok_or(XmlError::NotWellFormed)?;
        whole.push(resolve_reference(reference)?);
        rest = behind;
        if !rest.starts_with('&') {
            let end = memchr(b'&', rest.as_bytes()).unwrap_or(rest.len());
            let (piece, next) = rest.split_at_checked(end).unwrap_or_default();
            whole.push_str(&plain(piece)?);
            rest = next;
        }
    }
    Ok(Cow::Owned(whole))
}

/// Character data without references, with line ends as XML reports them (XML 1.0 §2.11).
fn text_of(raw: &str) -> Result<Cow<'_, str>, XmlError> {
    if ends_cdata(raw.as_bytes()) {
        return Err(XmlError::NotWellFormed);
    }
    plain_text(raw)
}

/// The same without a look at what it ends with.
pub(super) fn plain_text(raw: &str) -> Result<Cow<'_, str>, XmlError> {
    match memchr(b'\r', raw.as_bytes()) {
        Some(_) => with_line_ends(raw, b'\n', b'\t'),
        None => Ok(Cow::Borrowed(raw)),
    }
}

/// An attribute value without references, normalised (XML 1.0 §3.3.3).
fn value_of(raw: &str) -> Result<Cow<'_, str>, XmlError> {
    let blank = |byte| matches!(byte, b'\t' | b'\n' | b'\r');
    if memchr(b'<', raw.as_bytes()).is_some() {
        Err(XmlError::NotWellFormed)
    } else if raw.bytes().any(blank) {
        with_line_ends(raw, b' ', b' ')
    } else {
        Ok(Cow::Borrowed(raw))
    }
}

/// Puts one byte for each line end, and one for each tabulator.
fn with_line_ends(raw: &str, end: u8, tab: u8) -> Result<Cow<'_, str>, XmlError> {
    let mut before = 0;
    let bytes = raw.bytes().filter_map(|byte| {
        let returned = std::mem::replace(&mut before, byte) == b'\r';
        match byte {
            b'\n' if returned => None,
            b'\n' | b'\r' => Some(end),
            b'\t' => Some(tab),
            other => Some(other),
        }
    });
    let text = String::from_utf8(bytes.collect());
    text.map(Cow::Owned).map_err(|_| XmlError::NotUtf8)
}

/// The character that `&reference;` stands for.
fn resolve_reference(reference: &str) -> Result<char, XmlError> {
    let code = match reference {
        "amp" => return Ok('&'),
        "lt" => return Ok('<'),
        "gt" => return Ok('>'),
        "apos" => return Ok('\''),
        "quot" => return Ok('"'),
        other => match other.strip_prefix('#') {
            Some(code) => code,
            None if name_len(other.as_bytes()) == Ok(other.len()) => {
                return Err(XmlError::RestrictedXml);
            }
            None => return Err(XmlError::NotWellFormed),
        },
    };
    let (digits, radix) = match code.strip_prefix('x') {
        Some(digits) => (digits, 16),
        None => (code, 10),
    };
    // The parser of numbers takes a sign as well.
    if !digits.bytes().all(|byte| char::from(byte).is_digit(radix)) {
        return Err(XmlError::NotWellFormed);
    }
    u32::from_str_radix(digits, radix)
        .ok()
        .and_then(char::from_u32)
        .filter(|c| is_character(*c))
        .ok_or(XmlError::NotWellFormed)
}

/// Whether XML can carry this character (XML 1.0 §2.2).
const fn is_character(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// Whether there is a character that XML cannot carry.
pub(super) fn has_forbidden_characters(text: &str) -> bool {
    // Without a branch per byte, so that it vectorises.
    let look = |(bad, all): (u8, u8), byte: &u8| {
        let control = u8::from(*byte < 0x20) & u8::from(!matches!(byte, b'\t' | b'\n' | b'\r'));
        (bad | control, all | byte)
    };
    let (bad, all) = text.as_bytes().iter().fold((0, 0), look);
    let beyond = |one, two, three| (one == 0xef) & (two == 0xbf) & (three >= 0xbe);
    bad != 0 || (all >= 0x80 && has_three(text.as_bytes(), beyond))
}

/// Whether text has in it what only a CDATA section may end with.
fn ends_cdata(text: &[u8]) -> bool {
    has_three(text, |one, two, three| {
        (one == b']') & (two == b']') & (three == b'>')
    })
}

/// Whether three bytes in a row are such. As above without a branch, so that nobody can make it slow.
fn has_three(bytes: &[u8], such: impl Fn(u8, u8, u8) -> bool) -> bool {
    let second = bytes.get(1..).unwrap_or_default();
    let third = bytes.get(2..).unwrap_or_default();
    (bytes.iter().zip(second).zip(third)).fold(false, |found, ((one, two), three)| {
        found | such(*one, *two, *three)
    })
}
