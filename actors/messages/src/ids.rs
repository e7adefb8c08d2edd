//! The newtypes that name things. Those that are personal data or a credential have a `Debug` that
//! shows nothing.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use zeroize::Zeroize;

use crate::redact::ShortHash;
use crate::redacted_debug;

/// Why a text is no valid identifier. Carries nothing of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IdError {
    /// Nothing is left of the text.
    #[error("is empty")]
    Empty,
    /// Longer than the identifier may be.
    #[error("is longer than {max} bytes")]
    TooLong {
        /// Most bytes allowed.
        max: usize,
    },
    /// Not of the identifier's alphabet or shape.
    #[error("is malformed")]
    Malformed,
}

/// An XMPP domain in the form it is compared in: lower case, prepared by the caller (RFC 7622 §3.2).
///
/// Domains of servers may be logged; they are the one part of a JID that may.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Arc<str>);

impl Domain {
    /// Takes an already prepared domain.
    #[must_use]
    pub fn new(prepared: &str) -> Self {
        Self(prepared.into())
    }

    /// The domain as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What its owner's servers share of their names, as far as names tell: the last two labels, or three
    /// where the last two look like a suffix that a registry sells names below (`co.uk`). A certificate and
    /// an address for all names below one are cheap.
    #[must_use]
    pub fn owner(&self) -> &str {
        owner(&self.0)
    }
}

fn owner(domain: &str) -> &str {
    let mut dots = domain.rmatch_indices('.').map(|(at, _)| at);
    let (Some(last), Some(second)) = (dots.next(), dots.next()) else {
        return domain;
    };
    let is_suffix = domain.len() - last == 3 && last - second <= 4;
    let behind = match (is_suffix, dots.next()) {
        (false, _) => second,
        (true, Some(third)) => third,
        (true, None) => return domain,
    };
    domain.get(behind + 1..).unwrap_or(domain)
}

impl Borrow<str> for Domain {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The bare JID of an account, prepared (RFC 7622): `localpart@domain`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BareJid {
    text: Box<str>,
    domain: Domain,
}

impl BareJid {
    /// Joins prepared parts.
    #[must_use]
    pub fn new(localpart: &str, domain: Domain) -> Self {
        Self {
            text: format!("{localpart}@{domain}").into(),
            domain,
        }
    }

    /// The JID as text: personal data, for the store and the wire only.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The domain of the account's server.
    #[must_use]
    pub const fn domain(&self) -> &Domain {
        &self.domain
    }
}

/// A push node (XEP-0357 §4): opaque, case-sensitive text of 1 to 1,024 bytes. In the v1 dialect it is
/// a device UUID the client chose, so several accounts may share one.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct NodeId(Box<str>);

impl NodeId {
    /// Most bytes a node may have.
    pub const BYTES_MAX: usize = 1024;

    /// Checks length only: nodes are opaque.
    ///
    /// # Errors
    /// [`IdError::Empty`] or [`IdError::TooLong`].
    pub fn new(text: &str) -> Result<Self, IdError> {
        bounded(text, Self::BYTES_MAX).map(|text| Self(text.into()))
    }

    /// The node as text, for the store and the wire only.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What a log may show of this node.
    #[must_use]
    pub fn short_hash(&self) -> ShortHash {
        ShortHash::of(self.0.as_bytes())
    }
}

/// The secret of a registration, as a server echoes it in `publish-options` (XEP-0357 §5). Wiped from
/// memory when dropped.
#[derive(Clone)]
pub struct Secret(Box<str>);

impl Secret {
    /// Most bytes a presented secret may have.
    pub const BYTES_MAX: usize = 256;

    /// Takes presented or derived text.
    ///
    /// # Errors
    /// [`IdError::Empty`] or [`IdError::TooLong`].
    pub fn new(text: &str) -> Result<Self, IdError> {
        bounded(text, Self::BYTES_MAX).map(|text| Self(text.into()))
    }

    /// The secret as text, for the wire and for key derivation only. There is no `PartialEq`: compare
    /// in constant time.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// An APNs device token as lower-case hex. Its length is Apple's to change: 64 digits today, up to
/// [`DeviceToken::DIGITS_MAX`] accepted (Apple, "Registering your app with APNs").
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DeviceToken(Box<str>);

impl DeviceToken {
    /// Fewest hex digits taken for a token: half of what Apple has ever issued.
    pub const DIGITS_MIN: usize = 32;
    /// Most hex digits taken for a token.
    pub const DIGITS_MAX: usize = 200;

    /// Reads a token as clients write it: hex in either case, perhaps in `<>` and with blanks.
    ///
    /// # Errors
    /// [`IdError`] when what is left is not an even number of hex digits within the bounds.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        if text.len() > 2 * Self::DIGITS_MAX {
            return Err(IdError::TooLong {
                max: 2 * Self::DIGITS_MAX,
            });
        }
        // Those of the store are as they shall be, and one is read for each push.
        let is_hex = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let hex = match text.bytes().fold(true, |all, byte| all & is_hex(byte)) {
            true => text.to_owned(),
            false => Self::cleaned(text)?,
        };
        match hex.len() {
            0 => Err(IdError::Empty),
            n if n > Self::DIGITS_MAX => Err(IdError::TooLong {
                max: Self::DIGITS_MAX,
            }),
            n if n < Self::DIGITS_MIN || n % 2 == 1 => Err(IdError::Malformed),
            _ => Ok(Self(hex.into())),
        }
    }

    fn cleaned(text: &str) -> Result<String, IdError> {
        let mut hex = String::with_capacity(text.len());
        for c in text.chars() {
            match c {
                '<' | '>' | ' ' => {}
                '0'..='9' | 'a'..='f' | 'A'..='F' => hex.push(c.to_ascii_lowercase()),
                _ => return Err(IdError::Malformed),
            }
        }
        Ok(hex)
    }

    /// The token as lower-case hex, for the store and the `:path` of a request only.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name an app has in the configuration (`[apps.NAME]`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppId(Arc<str>);

impl AppId {
    /// Takes the name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The key of one registration in the store. Derived with a secret key, so it tells nothing of node,
/// account or token.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistrationKey(pub [u8; 16]);

impl RegistrationKey {
    /// Half of it, which tells it from all others that there may be.
    #[must_use]
    pub fn short(self) -> u64 {
        let first = self.0.first_chunk().copied();
        u64::from_ne_bytes(first.unwrap_or_default())
    }
}

/// A keyed hash of an account: finds what is about the account, and does not tell whose it is to who lacks
/// the key of the registrations.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountKey(pub [u8; 16]);

/// Who signs provider tokens: Apple's team id and key id, ten characters each.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SigningKeyId {
    /// Team id, the `iss` claim.
    pub team_id: Arc<str>,
    /// Key id, the `kid` header.
    pub key_id: Arc<str>,
}

impl fmt::Debug for SigningKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.team_id, self.key_id)
    }
}

/// The reason text of a refused notification, Apple's word such as `BadDeviceToken`, at most
/// [`ErrorReason::BYTES_MAX`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ErrorReason(Cow<'static, str>);

impl ErrorReason {
    /// Longer reasons are cut.
    pub const BYTES_MAX: usize = 64;

    /// A reason this program knows.
    #[must_use]
    pub const fn known(reason: &'static str) -> Self {
        Self(Cow::Borrowed(reason))
    }

    /// A reason the peer or the store wrote: printable ASCII is kept, the rest becomes `?`.
    #[must_use]
    pub fn foreign(reason: &str) -> Self {
        let clean = reason.chars().take(Self::BYTES_MAX);
        Self(Cow::Owned(
            clean
                .map(|c| if c.is_ascii_graphic() { c } else { '?' })
                .collect(),
        ))
    }

    /// The reason as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ErrorReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn bounded(text: &str, max: usize) -> Result<&str, IdError> {
    match text.len() {
        0 => Err(IdError::Empty),
        n if n > max => Err(IdError::TooLong { max }),
        _ => Ok(text),
    }
}

redacted_debug!(
    BareJid,
    NodeId,
    Secret,
    DeviceToken,
    RegistrationKey,
    AccountKey
);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, IdError>) {
        let got = DeviceToken::parse(text);
        assert_eq!(
            got.as_ref().map(DeviceToken::as_str).map_err(|e| *e),
            expected
        );
    }

    #[test]
    fn owners_by_name() {
        for (domain, expected) in [
            ("chat.example.org", "example.org"),
            ("a.b.example.org", "example.org"),
            ("example.org", "example.org"),
            ("chat.example.co.uk", "example.co.uk"),
            ("example.co.uk", "example.co.uk"),
            ("co.uk", "co.uk"),
            ("chat.example.de", "example.de"),
            ("localhost", "localhost"),
            ("", ""),
        ] {
            assert_eq!(Domain::new(domain).owner(), expected, "{domain}");
        }
    }

    #[test]
    fn device_tokens() {
        let hex = "ab".repeat(32);
        check(&hex, Ok(&hex));
        check(&hex.to_uppercase(), Ok(&hex));
        let (left, right) = hex.split_at(32);
        check(&format!("<{left} {right}>"), Ok(&hex));
        check("", Err(IdError::Empty));
        check("<>", Err(IdError::Empty));
        check("abc", Err(IdError::Malformed));
        check(&"ab".repeat(101), Err(IdError::TooLong { max: 200 }));
        check(&"a".repeat(65), Err(IdError::Malformed));
        check(
            "80c0ffee/../80c0ffee80c0ffee80c0ffee80c0ffee",
            Err(IdError::Malformed),
        );
        check(
            "q83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4k=",
            Err(IdError::Malformed),
        );
    }

    #[test]
    fn personal_data_has_no_debug_text() {
        let jid = BareJid::new("ada", Domain::new("chat.example"));
        let shown = format!(
            "{jid:?} {:?} {:?} {:?}",
            NodeId::new("node-1").unwrap(),
            Secret::new("s3cret").unwrap(),
            DeviceToken::parse(&"ab".repeat(32)).unwrap()
        );
        assert_eq!(shown, "BareJid(..) NodeId(..) Secret(..) DeviceToken(..)");
    }

    #[test]
    fn foreign_reasons_are_cut_and_cleaned() {
        assert_eq!(
            ErrorReason::foreign("Bad\u{1b}[31m\n").as_str(),
            "Bad?[31m?"
        );
        assert_eq!(ErrorReason::foreign(&"x".repeat(500)).as_str().len(), 64);
    }
}
