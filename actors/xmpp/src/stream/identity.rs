//! Who a certificate belongs to, judged after the handshake.
//!
//! A peer's certificate is judged as a *server* certificate in both roles: an XMPP server has one
//! certificate, and public authorities no longer put the client purpose into it.

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

    /// Whether `chain`, the peer's own certificate first, proves that the peer is `domain`
    /// (RFC 6125, RFC 6120 §13.7.2).
    pub(crate) fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        domain: &Domain,
        now: UnixTime,
    ) -> Result<(), Untrusted> {
        let (leaf, intermediates) = chain.split_first().ok_or(Untrusted::Absent)?;
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
        let names = if constrained { Names::Dns } else { Names::All };
        if covers(leaf, domain, names) {
            Ok(())
        } else {
            Err(Untrusted::Name)
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
    let Ok(host) = Host::of(domain) else {
        return false;
    };
    let dns_id = || {
        let name = server_name(&host)?;
        let leaf = EndEntityCert::try_from(certificate).ok()?;
        leaf.verify_is_valid_for_subject_name(&name).ok()
    };
    dns_id().is_some() || (names == Names::All && other_name(certificate, domain, &host))
}

/// A host the way TLS names it.
pub(crate) fn server_name(host: &Host) -> Option<ServerName<'static>> {
    match host {
        Host::Name(name) => ServerName::try_from(name.clone()).ok(),
        Host::Ip(address) => Some(ServerName::IpAddress((*address).into())),
    }
}

fn other_name(certificate: &CertificateDer<'_>, domain: &Domain, host: &Host) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return false;
    };
    let Ok(Some(alternatives)) = parsed.subject_alternative_name() else {
        return false;
    };
    alternatives.value.general_names.iter().any(|name| {
        let GeneralName::OtherName(kind, value) = name else {
            return false;
        };
        let Some(text) = unwrap_other_name(value) else {
            return false;
        };
        match kind.to_id_string().as_str() {
            XMPP_ADDR => jid::is_domain(text, domain),
            DNS_SRV => is_service(text, host),
            _ => false,
        }
    })
}

fn is_service(text: &str, host: &Host) -> bool {
    let Some((service, name)) = text.split_at_checked(SRV_PREFIX.len()) else {
        return false;
    };
    service.eq_ignore_ascii_case(SRV_PREFIX)
        && matches!(host, Host::Name(host) if name.eq_ignore_ascii_case(host))
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

/// When a certificate ends, in seconds since 1970.
pub(crate) fn not_after(certificate: &CertificateDer<'_>) -> Option<u64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    u64::try_from(parsed.validity().not_after.timestamp()).ok()
}
