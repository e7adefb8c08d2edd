//! TLS with ring, for both simulators.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::{Identity, SimulatorError};

/// The one provider of cryptography; none is installed for the process.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The server side with an ALPN protocol; it takes any client certificate or none when it asks for one.
pub(crate) fn alpn_server(
    identity: &Identity,
    protocol: &[u8],
    asks_clients: bool,
) -> Result<Arc<ServerConfig>, SimulatorError> {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = if asks_clients {
        builder.with_client_cert_verifier(Arc::new(AnyCertificate(provider())))
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_single_cert(identity.chain(), identity.key())?;
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Arc::new(config))
}

/// The server side that asks for a client certificate and takes any or none, to be judged later.
pub(crate) fn federation_server(identity: &Identity) -> Result<Arc<ServerConfig>, SimulatorError> {
    let verifier = Arc::new(AnyCertificate(provider()));
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.key())?;
    Ok(Arc::new(config))
}

/// The client side with a certificate; the server's must be trusted and match.
pub(crate) fn federation_client(
    identity: &Identity,
    roots: Arc<RootCertStore>,
) -> Result<Arc<ClientConfig>, SimulatorError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(identity.chain(), identity.key())?;
    Ok(Arc::new(config))
}

/// Takes any client certificate whose key signed the handshake: refusing in the handshake would keep
/// peers from dialback.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
