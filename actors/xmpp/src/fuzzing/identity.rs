//! Who a certificate belongs to.

use std::time::Duration;

use messages::Domain;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::EndEntityCert;
use x509_parser::asn1_rs::FromDer as _;
use x509_parser::prelude::X509Certificate;

use crate::jid::{Host, prepare_domain};
use crate::stream::identity::{self, Names, Trust, covers};

/// 2030-01-01T00:00:00Z, within the time of all certificates here.
const NOW: u64 = 1_893_456_000;
/// Signs the others.
const AUTHORITY: &[u8] = include_bytes!("../../fuzz/certificates/authority.der");
/// May sign for `its.test` only.
const CONSTRAINED: &[u8] = include_bytes!("../../fuzz/seeds/identity/constrained.der");
/// Signed by the constrained authority.
const BELOW: &[u8] = include_bytes!("../../fuzz/seeds/identity/below.der");
/// All that the two authorities signed.
const SIGNED: [&[u8]; 6] = [
    CONSTRAINED,
    BELOW,
    include_bytes!("../../fuzz/seeds/identity/dns-id.der"),
    include_bytes!("../../fuzz/seeds/identity/srv-id.der"),
    include_bytes!("../../fuzz/seeds/identity/xmpp-addr.der"),
    include_bytes!("../../fuzz/seeds/identity/address.der"),
];
/// Whom a peer may say it is.
const DOMAINS: [&str; 8] = [
    "chat.test",
    "sub.chat.test",
    "a.sub.chat.test",
    "m\u{fc}nchen.test",
    "its.test",
    "evil.test",
    "192.0.2.1",
    "[2001:db8::1]",
];

/// Takes `data` for a peer's certificate, and for an authority's: only names that are in it are found
/// in it, and only what was signed is believed.
pub fn identity(data: &[u8]) {
    let certificate = CertificateDer::from(data);
    identity::validity(&certificate);
    let mut trust = Trust::default();
    trust
        .add(&CertificateDer::from(AUTHORITY))
        .expect("it is an authority");
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    let authorities = CertificateDer::from(CONSTRAINED);
    let below = CertificateDer::from(BELOW);
    for domain in DOMAINS {
        let domain = prepare_domain(domain).expect("it is a domain");
        let dns = covers(&certificate, &domain, Names::Dns);
        let all = covers(&certificate, &domain, Names::All);
        assert!(all || !dns, "more kinds of names find more");
        assert!(
            !dns || webpki_names(&certificate, &domain),
            "it names no such host"
        );
        assert!(
            !all || names(data, &domain),
            "{} is not in it",
            domain.as_str()
        );

        let chain = [certificate.clone(), authorities.clone()];
        let believed = trust.examine(&chain, now).proves(&domain).is_ok();
        assert!(!believed || (all && signed(data)), "a forged certificate");
        let chain = [below.clone(), certificate.clone()];
        let believed = trust.examine(&chain, now).proves(&domain).is_ok();
        assert!(!believed || signed(data), "a forged authority");
        assert!(
            !believed || domain.as_str() == "its.test",
            "out of its bounds"
        );
    }
}

/// Whether the certificate names a domain by what the library that checks certificates says.
fn webpki_names(certificate: &CertificateDer<'_>, domain: &Domain) -> bool {
    let host = Host::of(domain).expect("it is a host");
    let name = identity::server_name(&host).expect("it has a name for TLS");
    EndEntityCert::try_from(certificate)
        .is_ok_and(|leaf| leaf.verify_is_valid_for_subject_name(&name).is_ok())
}

/// Whether a text in the certificate, whatever it stands for, is the domain.
fn names(der: &[u8], domain: &Domain) -> bool {
    let octets = match Host::of(domain).expect("it is a host") {
        Host::Ip(std::net::IpAddr::V4(address)) => address.octets().to_vec(),
        Host::Ip(std::net::IpAddr::V6(address)) => address.octets().to_vec(),
        Host::Name(name) => {
            let parent = name.split_once('.').map_or("", |(_, parent)| parent);
            if has(der, format!("*.{parent}").as_bytes())
                || has(der, format!("_xmpp-server.{name}").as_bytes())
            {
                return true;
            }
            name.into_bytes()
        }
    };
    // An xmppAddr may be written in many ways.
    has(der, &octets) || texts(der).any(|text| prepare_domain(text).as_ref() == Ok(domain))
}

/// Whether these bytes stand there behind their length, letters in either case.
fn has(der: &[u8], value: &[u8]) -> bool {
    let mut windows = der.windows(value.len() + 1);
    windows.any(|window| {
        usize::from(window[0]) == value.len() && window[1..].eq_ignore_ascii_case(value)
    })
}

/// All that could be a text behind its length.
fn texts(der: &[u8]) -> impl Iterator<Item = &str> {
    (0..der.len()).filter_map(|at| {
        let text = der.get(at + 1..at + 1 + usize::from(der[at]))?;
        std::str::from_utf8(text).ok()
    })
}

/// Whether what an authority signed is in there.
fn signed(der: &[u8]) -> bool {
    SIGNED.iter().any(|signed| {
        let (_, signed) = X509Certificate::from_der(signed).expect("it is a certificate");
        let signed = signed.tbs_certificate.as_ref();
        der.windows(signed.len()).any(|window| window == signed)
    })
}
