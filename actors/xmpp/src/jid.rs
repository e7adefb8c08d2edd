//! Addresses (RFC 7622), prepared so that equal ones compare equal octet by octet.
//!
//! Localparts and resources go through stringprep, as in the servers on the other side. Domains become
//! lower-case U-labels; DNS and certificates want [`Host`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use jid::{NodePart, ResourcePart};
use messages::{BareJid, Domain, redacted_debug};
use thiserror::Error;

/// The text is no address. Carries nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a valid xmpp address")]
pub(crate) struct JidError;

/// A prepared address.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Jid {
    /// The account at the domain.
    pub(crate) localpart: Option<Box<str>>,
    /// The server.
    pub(crate) domain: Domain,
    /// The connected client, or whatever the account calls one of its parts.
    pub(crate) resource: Option<Box<str>>,
}

// All but the domain is personal data.
redacted_debug!(Jid);

impl Jid {
    /// Splits and prepares an address.
    ///
    /// # Errors
    /// [`JidError`] when a part is empty, too long, or not allowed.
    pub(crate) fn parse(text: &str) -> Result<Self, JidError> {
        let (localpart, server, resource) = split(text);
        Ok(Self {
            localpart: match localpart {
                Some(part) => Some(prepare_localpart(part)?),
                None => None,
            },
            domain: prepare_domain(server)?,
            resource: match resource {
                Some(part) => {
                    let part = ResourcePart::new(part).map_err(|_| JidError)?;
                    Some(part.as_str().into())
                }
                None => None,
            },
        })
    }

    /// The account without its resource; `None` for the address of a server.
    pub(crate) fn account(&self) -> Option<BareJid> {
        let localpart = self.localpart.as_deref()?;
        Some(BareJid::new(localpart, self.domain.clone()))
    }

    /// Whether this is a server and nothing at it.
    pub(crate) const fn is_domain(&self) -> bool {
        self.localpart.is_none() && self.resource.is_none()
    }
}

/// The bare JID of an account, prepared, from what an operator typed; `None` when it is none.
#[must_use]
pub fn prepare_account(text: &str) -> Option<BareJid> {
    let jid = Jid::parse(text).ok()?;
    jid.resource.is_none().then(|| jid.account()).flatten()
}

/// A domain, prepared, from what an operator typed; `None` when it is none.
#[must_use]
pub fn prepare_service(text: &str) -> Option<Domain> {
    prepare_domain(text).ok()
}

/// Prepares a localpart. Characters that are younger than the tables of stringprep, such as U+213B, are not
/// folded before they are decomposed into capital letters: those are folded in a second pass.
fn prepare_localpart(text: &str) -> Result<Box<str>, JidError> {
    let once = NodePart::new(text).map_err(|_| JidError)?;
    if text.is_ascii() {
        return Ok(once.as_str().into());
    }
    let twice = NodePart::new(once.as_str()).map_err(|_| JidError)?;
    Ok(twice.as_str().into())
}

/// Localpart, domain and resource as written: cut at the first `/`, then at the first `@` before it
/// (RFC 7622 §3.1).
fn split(text: &str) -> (Option<&str>, &str, Option<&str>) {
    let (bare, resource) = match text.split_once('/') {
        Some((bare, resource)) => (bare, Some(resource)),
        None => (text, None),
    };
    match bare.split_once('@') {
        Some((localpart, domain)) => (Some(localpart), domain, resource),
        None => (None, bare, resource),
    }
}

/// Whether an address as written is exactly this domain. Costs no preparation when the peer writes its
/// domain the way it is prepared, which all known servers do.
pub(crate) fn is_domain(text: &str, prepared: &Domain) -> bool {
    text == prepared.as_str() || prepare_domain(text).as_ref() == Ok(prepared)
}

/// Prepares a domain for comparison.
///
/// # Errors
/// [`JidError`] when it is neither a domain name nor an IP address (IPv6 in brackets).
pub(crate) fn prepare_domain(text: &str) -> Result<Domain, JidError> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if is_plain(text) {
        return match text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            false => Ok(Domain::new(text)),
            true => Ok(Domain::new(&text.to_ascii_lowercase())),
        };
    }
    if let Some(address) = bracketed(text) {
        return Ok(Domain::new(&format!("[{address}]")));
    }
    to_ascii(text)?;
    let (prepared, valid) = Uts46::new().to_unicode(text.as_bytes(), DENY, Hyphens::Check);
    valid.map_err(|_| JidError)?;
    Ok(Domain::new(&prepared))
}

/// A prepared domain the way DNS and certificates name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// A name in A-labels, without a final dot.
    Name(String),
    /// An address literal: nothing to look up.
    Ip(IpAddr),
}

impl Host {
    /// Translates a prepared domain.
    ///
    /// # Errors
    /// [`JidError`] when the domain is not what [`prepare_domain`] makes.
    pub(crate) fn of(domain: &Domain) -> Result<Self, JidError> {
        let text = domain.as_str();
        if let Some(address) = bracketed(text) {
            return Ok(Self::Ip(IpAddr::V6(address)));
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Ip(IpAddr::V4(address)));
        }
        match is_plain(text) {
            true => Ok(Self::Name(text.to_owned())),
            false => to_ascii(text).map(Self::Name),
        }
    }
}

/// What a label may not have: of ASCII all but letters, digits, hyphens (RFC 5890 §2.3.1), and the `_` of
/// names that are in use although they are none of hosts.
const DENY: AsciiDenyList = AsciiDenyList::new(true, "!\"#$%&'()*+,/:;<=>?@[\\]^`{|}~");

fn to_ascii(text: &str) -> Result<String, JidError> {
    Uts46::new()
        .to_ascii(text.as_bytes(), DENY, Hyphens::Check, DnsLength::Verify)
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| JidError)
}

fn bracketed(text: &str) -> Option<Ipv6Addr> {
    let inside = text.strip_prefix('[')?.strip_suffix(']')?;
    inside.parse().ok()
}

/// Whether every label is one that IDNA leaves alone but for its case: letters, digits and `_`, with
/// single hyphens inside.
fn is_plain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_plain_label)
}

fn is_plain_label(label: &str) -> bool {
    let mut last = b'-';
    for byte in label.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => {}
            b'-' if last != b'-' => {}
            _ => return false,
        }
        last = byte;
    }
    last != b'-' && label.len() <= 63
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(Option<&str>, &str, Option<&str>)>) {
        let jid = Jid::parse(text).ok();
        let parts = jid.as_ref().map(|jid| {
            (
                jid.localpart.as_deref(),
                jid.domain.as_str(),
                jid.resource.as_deref(),
            )
        });
        assert_eq!(parts, expected);
    }

    #[test]
    fn addresses() {
        check("push.test", Some((None, "push.test", None)));
        check("Push.TEST.", Some((None, "push.test", None)));
        check("ada@push.test", Some((Some("ada"), "push.test", None)));
        check(
            "Ada@Push.test/Phone",
            Some((Some("ada"), "push.test", Some("Phone"))),
        );
        check("\u{213b}@push.test", Some((Some("fax"), "push.test", None)));
        check("push.test/a@b/c", Some((None, "push.test", Some("a@b/c"))));
        check(
            "STRA\u{df}E@m\u{fc}nchen.example",
            Some((Some("strasse"), "m\u{fc}nchen.example", None)),
        );
        check(
            "M\u{dc}NCHEN.example",
            Some((None, "m\u{fc}nchen.example", None)),
        );
        check(
            "xn--mnchen-3ya.example",
            Some((None, "m\u{fc}nchen.example", None)),
        );
        check("192.0.2.1", Some((None, "192.0.2.1", None)));
        check("[2001:DB8:0::1]", Some((None, "[2001:db8::1]", None)));
        check("a_b.test", Some((None, "a_b.test", None)));
        check("localhost", Some((None, "localhost", None)));
        check("", None);
        check(".", None);
        check("@push.test", None);
        check("push.test/", None);
        check("ada@", None);
        check("a@b@c", None);
        check("a..b", None);
        check("-a.test", None);
        check("a-.test", None);
        check("push.test..", None);
        check("push test", None);
        check("2001:db8::1", None);
        check("[192.0.2.1]", None);
        check("a d@push.test", None);
        check("ada@push.test/\u{0}", None);
        check("xn--a.example", None);
        check("*.push.test", None);
        check("\u{ff0a}.push.test", None);
        check("a+b.push.test", None);
        check("m\u{fc}n$chen.example", None);
        check("a'b.push.test", None);
        check(&format!("{}.test", "a".repeat(64)), None);
        check(&format!("{}@push.test", "a".repeat(1024)), None);
        check(&["abcdefghi"; 26].join("."), None);
    }

    #[test]
    fn domains_compare_prepared() {
        let domain = Domain::new("m\u{fc}nchen.example");
        assert!(is_domain("m\u{fc}nchen.example", &domain));
        assert!(is_domain("XN--mnchen-3ya.EXAMPLE.", &domain));
        assert!(!is_domain("munchen.example", &domain));
        assert!(!is_domain("ada@m\u{fc}nchen.example", &domain));
        assert!(!is_domain("m\u{fc}nchen.example/x", &domain));
    }

    #[test]
    fn hosts() {
        let host = |text: &str| prepare_domain(text).and_then(|domain| Host::of(&domain));
        assert_eq!(host("Push.Test"), Ok(Host::Name("push.test".to_owned())));
        assert_eq!(
            host("M\u{fc}nchen.example"),
            Ok(Host::Name("xn--mnchen-3ya.example".to_owned()))
        );
        assert_eq!(host("192.0.2.1"), Ok(Host::Ip([192, 0, 2, 1].into())));
        assert_eq!(host("[::1]"), Ok(Host::Ip(IpAddr::V6(Ipv6Addr::LOCALHOST))));
    }

    #[test]
    fn only_accounts_have_a_bare_jid() {
        let account = |text: &str| Jid::parse(text).unwrap().account();
        assert_eq!(
            account("ada@push.test/x").unwrap().as_str(),
            "ada@push.test"
        );
        assert!(account("push.test/x").is_none());
    }

    proptest! {
        #[test]
        fn preparation_is_stable(text in prop_oneof![
            "\\PC{0,24}",
            // Letters that IDNA maps, keeps, or spells in A-labels.
            "(xn--)?[a-zA-Z0-9\u{df}\u{e0}-\u{ff}\u{3b1}-\u{3c9}\u{4e00}-\u{4e20}\u{ff21}-\u{ff3a}\u{3002}.-]{1,12}",
        ]) {
            if let Ok(domain) = prepare_domain(&text) {
                let again = prepare_domain(domain.as_str());
                prop_assert_eq!(again.as_ref(), Ok(&domain));
                let Ok(Host::Name(name)) = Host::of(&domain) else {
                    return Ok(());
                };
                prop_assert!(name.is_ascii());
                prop_assert_eq!(prepare_domain(&name), Ok(domain));
            }
        }

        #[test]
        fn the_short_way_agrees_with_idna(text in "[a-zA-Z0-9_.-]{1,20}") {
            let whole = to_ascii(text.strip_suffix('.').unwrap_or(&text));
            let short = prepare_domain(&text);
            prop_assert_eq!(short.is_ok(), whole.is_ok());
            if let (Ok(short), Ok(whole)) = (short, whole) {
                prop_assert_eq!(Host::of(&short).ok(), match whole.parse::<Ipv4Addr>() {
                    Ok(address) => Some(Host::Ip(address.into())),
                    Err(_) => Some(Host::Name(whole)),
                });
            }
        }
    }
}
