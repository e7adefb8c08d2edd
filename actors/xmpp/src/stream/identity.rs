//! Who a certificate belongs to, judged after the handshake.
//!
//! A peer's certificate is judged as a *server* certificate in both roles: an XMPP server has one
//! certificate, and public authorities no longer put the client purpose into it.

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::Range;

use messages::Domain;
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use thiserror::Error;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::asn1_rs::{Any, FromDer as _};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::X509Certificate;

use crate::jid::{self, Host};

/// `id-on-xmppAddr` (RFC 6120 §13.7.1.4).
const XMPP_ADDR: &str = "1.3.6.1.5.5.7.8.5";
/// `id-on-dnsSRV` (RFC 4985 §2).
const DNS_SRV: &str = "1.3.6.1.5.5.7.8.7";
/// The service of an SRV-ID for streams between servers (RFC 6120 §13.7.1.2.1).
const SRV_PREFIX: &str = "_xmpp-server.";

/// Most certificates between the peer's own and an authority that are looked at. Paths between certificates
/// that could stand for each other are tried one by one: with five that takes a millisecond, with ten
/// hundreds of them. Real chains have at most three.
const INTERMEDIATES_MAX: usize = 5;

/// Most DNS-IDs of a certificate that count, the first ones: those of the large authorities have at most a
/// hundred, and each is work that the peer may choose.
const DNS_NAMES_MAX: usize = 1000;
/// Most other names that count, the first ones. Preparing them costs far more, and certificates of servers
/// have some for each domain they are for.
const OTHER_NAMES_MAX: usize = 200;

/// Why a certificate does not prove a domain.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Untrusted {
    #[error("it presented no certificate")]
    Absent,
    #[error("no certificate authority is trusted here")]
    NoRoots,
    #[error("its certificate does not verify: {0}")]
    Chain(webpki::Error),
    #[error("its certificate is for another name")]
    Name,
}

/// The certificate authorities that are trusted.
#[derive(Default)]
pub(crate) struct Trust {
    anchors: Vec<TrustAnchor<'static>>,
}

impl Trust {
    /// Adds an authority; one that cannot be read is left out and told.
    pub(crate) fn add(&mut self, certificate: &CertificateDer<'_>) -> Result<(), webpki::Error> {
        let anchor = webpki::anchor_from_trusted_cert(certificate)?;
        self.anchors.push(anchor.to_owned());
        Ok(())
    }

    /// How many authorities are trusted.
    pub(crate) const fn len(&self) -> usize {
        self.anchors.len()
    }

    /// Finds out what `chain` is worth, the peer's own certificate first.
    pub(crate) fn examine(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Credential {
        let leaf = chain.first().ok_or(Untrusted::Absent);
        let worth = leaf.and_then(|leaf| {
            let names = self.verify(leaf, chain.get(1..).unwrap_or_default(), now)?;
            Ok(Subject::of(leaf, names))
        });
        Credential(worth)
    }

    /// Whether an authority vouches for a certificate, and for which of its names.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Names, Untrusted> {
        let intermediates = intermediates
            .get(..INTERMEDIATES_MAX)
            .unwrap_or(intermediates);
        if self.anchors.is_empty() {
            return Err(Untrusted::NoRoots);
        }
        let leaf_parsed = EndEntityCert::try_from(leaf).map_err(Untrusted::Chain)?;
        let path = leaf_parsed
            .verify_for_usage(
                super::tls::algorithms().all,
                &self.anchors,
                intermediates,
                now,
                KeyUsage::server_auth(),
                None,
                None,
            )
            .map_err(Untrusted::Chain)?;
        // Name constraints bind DNS names only. An authority that is constrained to some domains could
        // otherwise vouch for all others by an otherName.
        let constrained = path.anchor().name_constraints.is_some()
            || path
                .intermediate_certificates()
                .any(|certificate| has_name_constraints(&certificate.der()));
        Ok(if constrained { Names::Dns } else { Names::All })
    }
}

/// What a peer's certificate is worth. It is found out once a stream, because the work is the peer's to
/// choose; after that each domain is looked up.
pub(crate) struct Credential(Result<Subject, Untrusted>);

impl Credential {
    /// Whether it proves that the peer is `domain` (RFC 6125, RFC 6120 §13.7.2).
    pub(crate) fn proves(&self, domain: &Domain) -> Result<(), Untrusted> {
        match &self.0 {
            Ok(subject) if subject.is(domain) => Ok(()),
            Ok(_) => Err(Untrusted::Name),
            Err(untrusted) => Err(untrusted.clone()),
        }
    }
}

/// Which names of a certificate count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    /// DNS-ID only.
    Dns,
    /// SRV-ID and xmppAddr as well.
    All,
}

/// Whether a certificate names `domain`. Says nothing about trust.
pub(crate) fn covers(certificate: &CertificateDer<'_>, domain: &Domain, names: Names) -> bool {
    Subject::of(certificate, names).is(domain)
}

/// Whom a certificate names, read once and made for looking up.
#[derive(Default)]
struct Subject {
    /// DNS-IDs in lower case, wildcards as they stand there.
    hosts: HashSet<Box<str>>,
    /// Names of SRV-IDs in lower case: a wildcard is none there.
    services: HashSet<Box<str>>,
    addresses: HashSet<IpAddr>,
    /// xmppAddrs, prepared.
    domains: HashSet<Domain>,
}

impl Subject {
    /// The names of a certificate that count. What cannot be read names nobody.
    fn of(certificate: &CertificateDer<'_>, names: Names) -> Self {
        let mut subject = Self::default();
        if let Ok(leaf) = EndEntityCert::try_from(certificate) {
            let dns_ids = leaf.valid_dns_names().take(DNS_NAMES_MAX);
            // A name that ends with a dot is none (RFC 5280 §4.2.1.6).
            let dns_ids = dns_ids.filter(|name| !name.ends_with('.'));
            let dns_ids = dns_ids.map(|name| name.to_ascii_lowercase().into_boxed_str());
            subject.hosts = dns_ids.collect();
            subject.add_others(certificate, names);
        }
        subject
    }

    fn add_others(&mut self, certificate: &CertificateDer<'_>, names: Names) {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
            return;
        };
        let Ok(Some(alternatives)) = parsed.subject_alternative_name() else {
            return;
        };
        let alternatives = alternatives.value.general_names.iter();
        let others = alternatives.filter(|name| !matches!(name, GeneralName::DNSName(_)));
        for name in others.take(OTHER_NAMES_MAX) {
            match name {
                GeneralName::IPAddress(octets) => self.addresses.extend(address(octets)),
                GeneralName::OtherName(kind, value) if names == Names::All => {
                    let Some(text) = unwrap_other_name(value) else {
                        continue;
                    };
                    match kind.to_id_string().as_str() {
                        XMPP_ADDR => self.domains.extend(jid::prepare_domain(text).ok()),
                        DNS_SRV => self.services.extend(service(text)),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
    }

    fn is(&self, domain: &Domain) -> bool {
        let named = match Host::of(domain) {
            Ok(Host::Ip(address)) => self.addresses.contains(&address),
            Ok(Host::Name(host)) => self.is_host(&host.to_ascii_lowercase()),
            Err(_) => return false,
        };
        named || self.domains.contains(domain)
    }

    /// Whether a name in A-labels and lower case is one of the DNS-IDs or SRV-IDs. A wildcard stands for the
    /// whole first label (RFC 6125 §6.4.3).
    fn is_host(&self, host: &str) -> bool {
        let wildcard = || {
            let (_, parent) = host.split_once('.')?;
            Some(self.hosts.contains(format!("*.{parent}").as_str()))
        };
        let is_dns_name = || ServerName::try_from(host).is_ok();
        ((self.hosts.contains(host) || wildcard() == Some(true)) && is_dns_name())
            || self.services.contains(host)
    }
}

/// The address in an iPAddress (RFC 5280 §4.2.1.6).
fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(octets).ok().map(IpAddr::from))
}

/// The name in an SRV-ID for streams between servers, in lower case.
fn service(text: &str) -> Option<Box<str>> {
    let (service, name) = text.split_at_checked(SRV_PREFIX.len())?;
    let is_ours = service.eq_ignore_ascii_case(SRV_PREFIX);
    is_ours.then(|| name.to_ascii_lowercase().into_boxed_str())
}

/// A host the way TLS names it.
pub(crate) fn server_name(host: &Host) -> Option<ServerName<'static>> {
    match host {
        Host::Name(name) => ServerName::try_from(name.clone()).ok(),
        Host::Ip(address) => Some(ServerName::IpAddress((*address).into())),
    }
}

/// An otherName's value comes as an explicit `[0]` around a string.
fn unwrap_other_name(value: &[u8]) -> Option<&str> {
    let (_, explicit) = Any::from_der(value).ok()?;
    let (_, string) = Any::from_der(explicit.data).ok()?;
    std::str::from_utf8(string.data).ok()
}

fn has_name_constraints(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| {
        parsed
            .extensions()
            .iter()
            .any(|e| matches!(e.parsed_extension(), ParsedExtension::NameConstraints(_)))
    })
}

/// When a certificate is valid, in seconds since 1970.
pub(crate) fn validity(certificate: &CertificateDer<'_>) -> Option<Range<u64>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let validity = parsed.validity();
    // Certificates may well begin before 1970.
    let start = u64::try_from(validity.not_before.timestamp()).unwrap_or_default();
    let end = u64::try_from(validity.not_after.timestamp()).ok()?;
    Some(start..end)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose,
        GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, OtherNameValue,
        SanType, date_time_ymd,
    };

    use super::*;
    use crate::jid::prepare_domain;

    /// 2026-01-01T00:00:00Z.
    const NOW: u64 = 1_767_225_600;

    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        certificate: CertificateDer<'static>,
    }

    impl Authority {
        fn root(edit: impl FnOnce(&mut CertificateParams)) -> Self {
            let (parameters, key) = Self::parameters("root", edit);
            let certificate = parameters.self_signed(&key).unwrap().der().clone();
            Self {
                issuer: Issuer::new(parameters, key),
                certificate,
            }
        }

        fn below(&self, edit: impl FnOnce(&mut CertificateParams)) -> Self {
            let (parameters, key) = Self::parameters("intermediate", edit);
            let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
            Self {
                certificate: certificate.der().clone(),
                issuer: Issuer::new(parameters, key),
            }
        }

        fn parameters(
            name: &str,
            edit: impl FnOnce(&mut CertificateParams),
        ) -> (CertificateParams, KeyPair) {
            let mut parameters = CertificateParams::default();
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            parameters.distinguished_name.push(DnType::CommonName, name);
            edit(&mut parameters);
            (parameters, KeyPair::generate().unwrap())
        }

        fn trust(&self) -> Trust {
            let mut trust = Trust::default();
            trust.add(&self.certificate).unwrap();
            trust
        }

        fn leaf(&self, edit: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
            let mut parameters = CertificateParams::default();
            parameters.not_before = date_time_ymd(2025, 1, 1);
            parameters.not_after = date_time_ymd(2027, 1, 1);
            parameters.distinguished_name = rcgen::DistinguishedName::new();
            parameters
                .distinguished_name
                .push(DnType::CommonName, "common-name.test");
            edit(&mut parameters);
            let key = KeyPair::generate().unwrap();
            let leaf = parameters.signed_by(&key, &self.issuer).unwrap();
            leaf.der().clone()
        }
    }

    fn now() -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(NOW))
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    fn xmpp_addr(name: &str) -> SanType {
        let kind = vec![1, 3, 6, 1, 5, 5, 7, 8, 5];
        SanType::OtherName((kind, OtherNameValue::Utf8String(name.to_owned())))
    }

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut der = vec![tag, u8::try_from(content.len()).unwrap()];
        der.extend_from_slice(content);
        der
    }

    /// A subjectAltName with one SRVName, an IA5String (RFC 4985 §2).
    fn srv_id(name: &str) -> CustomExtension {
        let kind = der(6, &[0x2b, 6, 1, 5, 5, 7, 8, 7]);
        let value = der(0xa0, &der(0x16, name.as_bytes()));
        let other_name = der(0xa0, &[kind, value].concat());
        CustomExtension::from_oid_content(&[2, 5, 29, 17], der(0x30, &other_name))
    }

    #[track_caller]
    fn check(
        edit: impl FnOnce(&mut CertificateParams),
        domain: &str,
        expected: &Result<(), Untrusted>,
    ) {
        let root = Authority::root(|_| {});
        let leaf = root.leaf(edit);
        let domain = prepare_domain(domain).unwrap();
        let credential = root.trust().examine(&[leaf], now());
        assert_eq!(credential.proves(&domain), *expected);
    }

    #[track_caller]
    fn check_names(names: &[SanType], domain: &str, named: bool) {
        let expected = if named { Ok(()) } else { Err(Untrusted::Name) };
        check(
            |leaf| leaf.subject_alt_names = names.to_vec(),
            domain,
            &expected,
        );
    }

    #[test]
    fn dns_ids() {
        let names = [dns("chat.test"), dns("*.wild.test"), dns("Upper.Test")];
        check_names(&names, "chat.test", true);
        check_names(&names, "CHAT.test.", true);
        check_names(&names, "upper.test", true);
        check_names(&names, "a.wild.test", true);
        check_names(&names, "a.b.wild.test", false);
        check_names(&names, "wild.test", false);
        check_names(&names, "chat.test.evil", false);
        check_names(&names, "common-name.test", false);
        check_names(&[dns("xn--mnchen-3ya.test")], "m\u{fc}nchen.test", true);
        check_names(&[], "chat.test", false);
    }

    #[test]
    fn xmpp_addresses() {
        check_names(&[xmpp_addr("chat.test")], "chat.test", true);
        check_names(&[xmpp_addr("M\u{fc}nchen.test")], "m\u{fc}nchen.test", true);
        check_names(&[xmpp_addr("*.chat.test")], "a.chat.test", false);
        check_names(&[xmpp_addr("ada@chat.test")], "chat.test", false);
        check_names(&[xmpp_addr("other.test")], "chat.test", false);
    }

    #[test]
    fn srv_ids() {
        let check = |name: &str, domain, expected| {
            let name = srv_id(name);
            check(|leaf| leaf.custom_extensions.push(name), domain, expected);
        };
        check("_xmpp-server.chat.test", "chat.test", &Ok(()));
        check("_XMPP-Server.Chat.Test", "chat.test", &Ok(()));
        check("_xmpp-client.chat.test", "chat.test", &Err(Untrusted::Name));
        check(
            "_xmpp-server.other.test",
            "chat.test",
            &Err(Untrusted::Name),
        );
        check("_xmpp-server.*.test", "chat.test", &Err(Untrusted::Name));
        check("chat.test", "chat.test", &Err(Untrusted::Name));
    }

    #[test]
    fn addresses() {
        let address = |text: &str| SanType::IpAddress(text.parse().unwrap());
        let names = [
            address("192.0.2.1"),
            address("2001:db8::1"),
            dns("chat.test"),
        ];
        check_names(&names, "192.0.2.1", true);
        check_names(&names, "[2001:db8::1]", true);
        check_names(&names, "chat.test", true);
        check_names(&names, "192.0.2.2", false);
        check_names(&names, "[2001:db8::2]", false);
    }

    /// A claim must not cost what the peer likes.
    #[test]
    fn the_first_names_count() {
        let many = |last| {
            let mut names: Vec<_> = (1..DNS_NAMES_MAX)
                .map(|n| dns(&format!("{n}.test")))
                .collect();
            names.extend([xmpp_addr("beside.test"), dns("last.test"), dns(last)]);
            names
        };
        check_names(&many("beyond.test"), "1.test", true);
        check_names(&many("beyond.test"), "beside.test", true);
        check_names(&many("beyond.test"), "last.test", true);
        check_names(&many("beyond.test"), "beyond.test", false);
        let others: Vec<_> = (0..=OTHER_NAMES_MAX)
            .map(|n| xmpp_addr(&format!("{n}.test")))
            .collect();
        check_names(&others, &format!("{}.test", OTHER_NAMES_MAX - 1), true);
        check_names(&others, &format!("{OTHER_NAMES_MAX}.test"), false);
    }

    #[test]
    fn the_purpose_is_a_servers() {
        let with = |purposes: &'static [ExtendedKeyUsagePurpose]| {
            move |leaf: &mut CertificateParams| {
                leaf.subject_alt_names = vec![dns("chat.test")];
                leaf.extended_key_usages = purposes.to_vec();
            }
        };
        let (server, client) = (
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        );
        check(
            with(&[ExtendedKeyUsagePurpose::ServerAuth]),
            "chat.test",
            &Ok(()),
        );
        check(
            |leaf| {
                leaf.subject_alt_names = vec![dns("chat.test")];
                leaf.extended_key_usages = vec![server, client];
            },
            "chat.test",
            &Ok(()),
        );
        let root = Authority::root(|_| {});
        let leaf = root.leaf(with(&[ExtendedKeyUsagePurpose::ClientAuth]));
        let credential = root.trust().examine(&[leaf], now());
        let verdict = credential.proves(&Domain::new("chat.test"));
        assert!(matches!(verdict, Err(Untrusted::Chain(_))), "{verdict:?}");
    }

    #[track_caller]
    fn check_untrusted(verdict: &Result<(), Untrusted>) {
        assert!(matches!(verdict, Err(Untrusted::Chain(_))), "{verdict:?}");
    }

    #[test]
    fn chains() {
        let root = Authority::root(|_| {});
        let below = root.below(|_| {});
        let domain = Domain::new("chat.test");
        let named = |leaf: &mut CertificateParams| leaf.subject_alt_names = vec![dns("chat.test")];
        let judge =
            |chain: &[CertificateDer<'_>]| root.trust().examine(chain, now()).proves(&domain);
        let leaf = below.leaf(named);
        assert_eq!(judge(&[leaf.clone(), below.certificate.clone()]), Ok(()));
        check_untrusted(&judge(&[leaf]));
        check_untrusted(&judge(&[Authority::root(|_| {}).leaf(named)]));
        check_untrusted(&judge(&[root.leaf(|leaf| {
            named(leaf);
            leaf.not_after = date_time_ymd(2025, 12, 31);
        })]));
        check_untrusted(&judge(&[root.leaf(|leaf| {
            named(leaf);
            leaf.not_before = date_time_ymd(2026, 1, 2);
        })]));
        check_untrusted(&judge(&[CertificateDer::from(vec![1, 2, 3])]));
        assert_eq!(judge(&[]), Err(Untrusted::Absent));
        let nobody = Trust::default().examine(&[root.leaf(named)], now());
        assert_eq!(nobody.proves(&domain), Err(Untrusted::NoRoots));
    }

    /// Certificates with one subject and issuer can follow each other in any order.
    #[test]
    fn a_maze_of_certificates_is_not_walked() {
        let root = Authority::root(|_| {});
        let below = root.below(|_| {});
        let domain = Domain::new("chat.test");
        let leaf = below.leaf(|leaf| leaf.subject_alt_names = vec![dns("chat.test")]);
        let chain = |others: usize| {
            let mut chain = vec![leaf.clone()];
            chain.extend((0..others).map(|_| Authority::root(|_| {}).certificate));
            chain.push(below.certificate.clone());
            root.trust().examine(&chain, now()).proves(&domain)
        };
        assert_eq!(chain(INTERMEDIATES_MAX - 1), Ok(()));
        check_untrusted(&chain(INTERMEDIATES_MAX));
        check_untrusted(&chain(200));
    }

    #[test]
    fn a_constrained_authority_vouches_by_dns_names_only() {
        let root = Authority::root(|_| {});
        let below = root.below(|parameters| {
            parameters.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DnsName("its.test".to_owned())],
                excluded_subtrees: Vec::new(),
            });
        });
        let judge = |name: SanType, domain: &str| {
            let leaf = below.leaf(|leaf| leaf.subject_alt_names = vec![name]);
            let chain = [leaf, below.certificate.clone()];
            root.trust()
                .examine(&chain, now())
                .proves(&Domain::new(domain))
        };
        assert_eq!(judge(dns("chat.its.test"), "chat.its.test"), Ok(()));
        check_untrusted(&judge(dns("chat.test"), "chat.test"));
        assert_eq!(
            judge(xmpp_addr("chat.test"), "chat.test"),
            Err(Untrusted::Name)
        );
    }

    #[test]
    fn when_a_certificate_is_valid() {
        let root = Authority::root(|_| {});
        let leaf = root.leaf(|leaf| {
            leaf.not_before = date_time_ymd(1960, 1, 1);
            leaf.not_after = date_time_ymd(2026, 1, 1);
        });
        assert_eq!(validity(&leaf), Some(0..NOW));
    }
}
