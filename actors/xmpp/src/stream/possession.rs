//! Whether a peer holds the key of the certificate it shows.
//!
//! The TLS library reads certificates of X.509 version 3 only. Version 1 is what `openssl x509 -req` makes
//! by default, and small servers still have it: such a certificate proves no domain, but its key signs a
//! handshake as well as any other, and dialback can do the rest.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{self, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::{CertificateError, DigitallySignedStruct, Error};
use webpki::{EndEntityCert, RawPublicKeyEntity};
use x509_parser::asn1_rs::FromDer as _;
use x509_parser::prelude::X509Certificate;

/// Checks the signature of a TLS 1.2 handshake.
pub(crate) fn verify_tls12_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let Some(key) = key_of_old(certificate) else {
        return crypto::verify_tls12_signature(message, certificate, signature, algorithms);
    };
    let key = RawPublicKeyEntity::try_from(&key).map_err(|_| CertificateError::BadEncoding)?;
    let known = algorithms.mapping.iter();
    let candidates = known
        .filter(|(scheme, _)| *scheme == signature.scheme)
        .flat_map(|(_, algorithms)| *algorithms);
    // Which curve or hash a scheme means depends on the key in TLS 1.2, so each is tried.
    for algorithm in candidates {
        if key
            .verify_signature(*algorithm, message, signature.signature())
            .is_ok()
        {
            return Ok(HandshakeSignatureValid::assertion());
        }
    }
    Err(CertificateError::BadSignature.into())
}

/// Checks the signature of a TLS 1.3 handshake.
pub(crate) fn verify_tls13_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    match key_of_old(certificate) {
        None => crypto::verify_tls13_signature(message, certificate, signature, algorithms),
        Some(key) => {
            crypto::verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
        }
    }
}

/// The key of a certificate that the TLS library cannot read.
fn key_of_old<'a>(certificate: &'a CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'a>> {
    if EndEntityCert::try_from(certificate).is_ok() {
        return None;
    }
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(SubjectPublicKeyInfoDer::from(
        parsed.tbs_certificate.subject_pki.raw,
    ))
}
