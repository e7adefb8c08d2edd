//! Client certificates of Apple, the older way to prove whose notifications these are (Apple,
//! "Establishing a certificate-based connection to APNs").

use std::path::Path;

use messages::UnixSeconds;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::der_parser;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The extension in which Apple lists the topics of a certificate.
const TOPICS: &str = "1.2.840.113635.100.6.3.6";

/// What every PKCS#12 file begins with: a DER sequence of a length in two bytes.
const DER_SEQUENCE: &[u8] = &[0x30, 0x82];

/// A certificate with its key.
pub(crate) struct Certificate {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    /// What may be pushed to; the bundle id comes first. Empty when the certificate does not say.
    pub(crate) topics: Vec<String>,
    /// When it ends.
    pub(crate) not_after: UnixSeconds,
}

impl Certificate {
    /// Reads a PEM file that has the certificate, its chain, and perhaps its key.
    ///
    /// # Errors
    /// What is wrong with the file and what to do.
    pub(crate) fn load(file: &Path, key_file: &Path) -> Result<Self, String> {
        let text = std::fs::read(file).map_err(|error| format!("cannot be read: {error}"))?;
        if text.starts_with(DER_SEQUENCE) {
            return Err(format!(
                "is PKCS#12 or DER: convert it by `openssl pkcs12 -legacy -nodes -in {0} -out {0}.pem` \
                 (-legacy is for files with RC2 or 3DES, as Keychain writes them; leave it out when \
                 openssl does not know it) and give the .pem",
                file.display()
            ));
        }
        const WANTED: &str = "give a PEM file of the certificate that Apple issued";
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|_| format!("is no readable PEM: {WANTED}"))?;
        let leaf = chain
            .first()
            .ok_or_else(|| format!("holds no certificate: {WANTED}"))?;
        let (_, parsed) = X509Certificate::from_der(leaf)
            .map_err(|_| format!("holds something that is no certificate: {WANTED}"))?;
        let topics = topics(&parsed);
        let not_after = parsed.validity().not_after.timestamp();
        let key = PrivateKeyDer::from_pem_file(key_file)
            .map_err(|_| format!("{} holds no private key in PEM", key_file.display()))?;
        Ok(Self {
            topics,
            not_after: UnixSeconds(u64::try_from(not_after).unwrap_or(0)),
            key,
            chain,
        })
    }
}

/// The topics in Apple's extension: a sequence in which each is followed by a sequence of words for what
/// it is.
fn topics(certificate: &X509Certificate<'_>) -> Vec<String> {
    let extension = certificate
        .extensions()
        .iter()
        .find(|extension| extension.oid.to_id_string() == TOPICS);
    let Some(extension) = extension else {
        return Vec::new();
    };
    let Ok((_, list)) = der_parser::parse_der(extension.value) else {
        return Vec::new();
    };
    list.as_sequence()
        .map(|items| {
            items
                .iter()
                .filter_map(|item| item.as_str().ok())
                .map(str::to_owned)
                .collect()
        })
        .unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{CertificateParams, CustomExtension, KeyPair};

    use super::*;

    /// A certificate in the form of Apple's, with its key, as one PEM.
    pub(crate) fn pem(topics: &[&str], not_after: (i32, u8, u8)) -> String {
        let mut list = Vec::new();
        for topic in topics {
            list.extend([0x0c, u8::try_from(topic.len()).unwrap()]);
            list.extend(topic.bytes());
            list.extend([0x30, 5, 0x0c, 3]);
            list.extend(b"app");
        }
        let mut content = vec![0x30, u8::try_from(list.len()).unwrap()];
        content.extend(list);
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.not_after = rcgen::date_time_ymd(not_after.0, not_after.1, not_after.2);
        if !topics.is_empty() {
            params.custom_extensions = vec![CustomExtension::from_oid_content(
                &[1, 2, 840, 113_635, 100, 6, 3, 6],
                content,
            )];
        }
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().pem() + &key.serialize_pem()
    }

    #[test]
    fn topics_and_the_end_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("app.pem");
        std::fs::write(
            &file,
            pem(&["com.example.app", "com.example.app.voip"], (2030, 1, 2)),
        )
        .unwrap();
        let certificate = Certificate::load(&file, &file).unwrap();
        assert_eq!(
            certificate.topics,
            ["com.example.app", "com.example.app.voip"]
        );
        assert_eq!(certificate.not_after, UnixSeconds(1_893_542_400));
        std::fs::write(&file, pem(&[], (2030, 1, 2))).unwrap();
        assert!(Certificate::load(&file, &file).unwrap().topics.is_empty());
    }

    #[test]
    fn unusable_files_are_told_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("app.p12");
        let check = |content: &[u8], expected: &str| {
            std::fs::write(&file, content).unwrap();
            let problem = Certificate::load(&file, &file).err().unwrap();
            assert!(problem.contains(expected), "{problem}");
        };
        check(
            &[0x30, 0x82, 0x0a, 0x00, 0x02],
            "openssl pkcs12 -legacy -nodes -in",
        );
        check(b"", "holds no certificate");
        check(
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "no certificate",
        );
        let pem = pem(&[], (2030, 1, 2));
        let (certificate, _) = pem.split_once("-----BEGIN PRIVATE").unwrap();
        check(certificate.as_bytes(), "holds no private key");
        let absent = Certificate::load(&directory.path().join("no"), &file);
        assert!(absent.err().unwrap().contains("cannot be read"));
    }
}
