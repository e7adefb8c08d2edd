//! TLS of streams in both directions.
//!
//! The handshake proves that the peer holds the key of the certificate it shows, and takes any
//! certificate or none, as long as there are not too many bytes of it: they are kept with the stream. Who the peer is, is judged afterwards ([`super::identity`]): a refusal within
//! the handshake would also end the streams that dialback could save.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ResolvesClientCert, Resumption};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, InconsistentKeys,
    InvalidMessage, ProtocolVersion, SignatureScheme, SupportedProtocolVersion, version,
};

use super::possession::{verify_tls12_signature, verify_tls13_signature};
use crate::{Config, Error, TlsVersion};

/// What streams between servers are called in the handshake (XEP-0368 §2).
pub(crate) const ALPN: &[u8] = b"xmpp-server";

/// The signature algorithms of certificates and handshakes.
pub(crate) fn algorithms() -> WebPkiSupportedAlgorithms {
    ring::default_provider().signature_verification_algorithms
}

/// Reads all certificates of a PEM file.
pub(crate) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Error::NotPem {
            file: file.to_owned(),
            wanted: "certificate",
        }),
    }
}

/// Reads a domain's certificate and key and checks that they belong together.
pub(crate) fn load(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, Error> {
    let chain = certificates(certificate)?;
    let pem = read(key)?;
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| Error::NotPem {
        file: key.to_owned(),
        wanted: "private key",
    })?;
    match CertifiedKey::from_der(chain, private, &ring::default_provider()) {
        Ok(pair) => Ok(Arc::new(pair)),
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(Error::KeyMismatch {
                key: key.to_owned(),
                certificate: certificate.to_owned(),
            })
        }
        Err(source) => Err(Error::UnusableKey {
            file: key.to_owned(),
            source,
        }),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Error> {
    files::read(file, files::SMALL).map_err(|source| Error::Unreadable {
        file: file.to_owned(),
        source,
    })
}

/// The certificate and key that a served domain shows in both directions. What is replaced here is shown
/// in the next handshake; streams that are open keep what they have.
#[derive(Clone, Debug)]
pub(crate) struct Credentials(Arc<ArcSwap<CertifiedKey>>);

impl Credentials {
    pub(crate) fn new(pair: Arc<CertifiedKey>) -> Self {
        Self(Arc::new(ArcSwap::new(pair)))
    }

    pub(crate) fn get(&self) -> Arc<CertifiedKey> {
        self.0.load_full()
    }

    pub(crate) fn replace(&self, pair: Arc<CertifiedKey>) {
        self.0.store(pair);
    }
}

/// The credentials of the served domains, by A-label.
pub(crate) type Certificates = HashMap<String, Credentials>;

/// How TLS comes onto a stream that a peer opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// After a request in clear text (RFC 6120 §5).
    StartTls,
    /// At once (XEP-0368).
    Direct,
}

static FROM_1_2: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
static FROM_1_3: [&SupportedProtocolVersion; 1] = [&version::TLS13];

fn versions(min: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    match min {
        TlsVersion::V1_2 => &FROM_1_2,
        TlsVersion::V1_3 => &FROM_1_3,
    }
}

/// A version as people write it.
pub(crate) const fn version_name(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_2 => "1.2",
        ProtocolVersion::TLSv1_3 => "1.3",
        _ => "unknown",
    }
}

/// Whether the peer refused our certificate by an alert.
pub(crate) fn is_certificate_alert(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(
        error,
        Some(rustls::Error::AlertReceived(
            AlertDescription::AccessDenied
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::DecryptError
                | AlertDescription::UnknownCA
                | AlertDescription::UnsupportedCertificate
        ))
    )
}

/// What [`explain`] knows for a chain that is too large.
const CHAIN_REFUSED: rustls::Error =
    rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
const CHAIN_TOO_LARGE: &str = "the peer's certificate, with those after it, is larger than \
     xmpp.certificate_chain_bytes_max";

/// Ends a handshake of which too much has come.
pub(crate) fn too_large() -> io::Error {
    io::Error::other(CHAIN_REFUSED)
}

/// What a failed handshake means, where it can be told.
pub(crate) fn explain(error: &io::Error) -> Option<&'static str> {
    if is_certificate_alert(error) {
        return Some("the peer ended the TLS handshake: it does not like our certificate");
    }
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::HandshakeFailure
            | AlertDescription::InsufficientSecurity
            | AlertDescription::ProtocolVersion => {
                "the peer ended the TLS handshake: it has no version of TLS or no cipher in common with us"
            }
            AlertDescription::UnrecognisedName => {
                "the peer ended the TLS handshake: it does not serve the domain we asked for"
            }
            _ => return None,
        },
        rustls::Error::PeerIncompatible(_) => {
            "the peer has no version of TLS or no cipher in common with us"
        }
        rustls::Error::NoApplicationProtocol => {
            "the peer did not offer the protocol xmpp-server: it is a client or another program"
        }
        // Nothing else in a handshake is large. Above 64 KiB the library itself ends it.
        rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
        | rustls::Error::InvalidMessage(
            InvalidMessage::HandshakePayloadTooLarge | InvalidMessage::CertificatePayloadTooLarge,
        ) => CHAIN_TOO_LARGE,
        rustls::Error::InvalidMessage(_) => "the peer did not speak TLS",
        _ => return None,
    })
}

/// For streams that peers open. The certificate is the one of the served domain that the peer asks for
/// by SNI, and the one of `fallback` if it asks for none, as jabberd2 and Prosody do behind STARTTLS.
///
/// With direct TLS, a peer that offers protocols by ALPN must offer ours. Behind STARTTLS none is
/// selected, whatever is offered.
pub(crate) fn acceptor(
    kind: Kind,
    settings: &Config,
    certificates: &Arc<Certificates>,
    fallback: &Credentials,
) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions(settings.tls_min))?
        .with_client_cert_verifier(Arc::new(AnyCertificate::new(settings)))
        .with_cert_resolver(Arc::new(ByName {
            certificates: Arc::clone(certificates),
            fallback: fallback.clone(),
        }));
    // Streams between servers are few and long: resumption would only add state.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    if kind == Kind::Direct {
        config.alpn_protocols = vec![ALPN.to_vec()];
    }
    Ok(Arc::new(config))
}

/// For streams that we open in the name of the domain of `credentials`.
pub(crate) fn connector(
    settings: &Config,
    credentials: &Credentials,
) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions(settings.tls_min))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate::new(settings)))
        .with_client_cert_resolver(Arc::new(credentials.clone()));
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct ByName {
    certificates: Arc<Certificates>,
    fallback: Credentials,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello
            .server_name()
            .and_then(|name| self.certificates.get(&name.to_ascii_lowercase()));
        Some(named.unwrap_or(&self.fallback).get())
    }
}

/// Shown whatever authorities the peer hints at: it may take dialback instead.
impl ResolvesClientCert for Credentials {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes every certificate whose key signed the handshake, unless it or those after it are very large.
#[derive(Debug)]
struct AnyCertificate {
    algorithms: WebPkiSupportedAlgorithms,
    chain_bytes_max: usize,
}

impl AnyCertificate {
    fn new(settings: &Config) -> Self {
        Self {
            algorithms: algorithms(),
            chain_bytes_max: settings.certificate_chain_bytes_max,
        }
    }

    /// The error is [`explain`]ed.
    fn measure(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        let others = others.iter().map(|other| other.len());
        match leaf.len() + others.sum::<usize>() <= self.chain_bytes_max {
            true => Ok(()),
            false => Err(CHAIN_REFUSED),
        }
    }
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None: a list of authorities costs bytes, and some peers then send no certificate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.measure(leaf, others)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.measure(leaf, others)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
