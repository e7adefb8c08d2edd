//! TLS towards APNs: ring, TLS 1.2 or later, ALPN `h2`, the system's authorities or one given file.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::certificate::Certificate;

/// The protocol name of HTTP/2 in ALPN (RFC 9113 §3.2).
pub(crate) const H2: &[u8] = b"h2";

/// Which authorities to trust.
pub(crate) fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(
            "no certificate authorities on this system: install the package ca-certificates or set \
             ca_file"
                .to_owned(),
        );
    }
    Ok(roots)
}

/// The authorities of a PEM file and no others.
pub(crate) fn roots_of(path: &Path) -> Result<RootCertStore, String> {
    const WANTED: &str = "give a PEM file of CA certificates";
    let mut roots = RootCertStore::empty();
    let pem = files::read(path, files::SMALL).map_err(|error| format!("{error}: {WANTED}"))?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| format!("{error}: {WANTED}"))?;
        roots
            .add(certificate)
            .map_err(|error| format!("{error}: {WANTED}"))?;
    }
    if roots.is_empty() {
        return Err(format!("holds no certificate: {WANTED}"));
    }
    Ok(roots)
}

/// The set-up of all connections that trust `roots` and show `certificate`.
pub(crate) fn client(
    roots: RootCertStore,
    certificate: Option<Certificate>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match certificate {
        Some(certificate) => builder.with_client_auth_cert(certificate.chain, certificate.key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![H2.to_vec()];
    Ok(Arc::new(config))
}
