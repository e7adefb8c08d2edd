//! Client certificates of Apple, the older way to prove whose notifications these are (Apple,
//! "Establishing a certificate-based connection to APNs").

use std::path::Path;

use messages::UnixSeconds;
use p12_keystore::Pkcs12Archive;
use p12_keystore::error::Error as Pkcs12Error;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::der_parser;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

/// The extension in which Apple lists the topics of a certificate.
const TOPICS: &str = "1.2.840.113635.100.6.3.6";

/// The attribute of the subject in which Apple names the bundle id.
const UID: &str = "0.9.2342.19200300.100.1.1";

/// What is wanted where something else was given.
const WANTED: &str = "give a PEM file of the certificate that Apple issued";

/// A certificate with its key.
pub(crate) struct Certificate {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    /// What may be pushed to; the bundle id comes first. Empty when the certificate does not say.
    pub(crate) topics: Vec<String>,
    /// When it ends.
    pub(crate) not_after: UnixSeconds,
}

/// The key that a problem is about, and the problem in words with what to do.
pub(crate) type Problem = (&'static str, String);

impl Certificate {
    /// Reads a file that has the certificate, its chain, and perhaps its key: PEM, or PKCS#12 with a
    /// password.
    ///
    /// # Errors
    /// What is wrong with which file, and what to do.
    pub(crate) fn load(
        file: &Path,
        key_file: Option<&Path>,
        password_file: Option<&Path>,
    ) -> Result<Self, Problem> {
        let data = files::read(file, files::SMALL)
            .map_err(|error| ("certificate_file", format!("cannot be read: {error}")))?;
        let (chain, key) = if is_der(&data) {
            if key_file.is_some() {
                let problem = "a PKCS#12 file has the key in it: leave this out".to_owned();
                return Err(("certificate_key_file", problem));
            }
            let password = password_file.map(password).transpose();
            let password = password.map_err(|problem| ("certificate_password_file", problem))?;
            from_pkcs12(file, &data, password.as_deref())?
        } else {
            if password_file.is_some() {
                let problem = "only PKCS#12 has a password here: leave this out".to_owned();
                return Err(("certificate_password_file", problem));
            }
            let chain = from_pem(&data).map_err(|problem| ("certificate_file", problem))?;
            let (name, key_file) = match key_file {
                Some(key_file) => ("certificate_key_file", key_file),
                None => ("certificate_file", file),
            };
            let pem = files::read(key_file, files::SMALL)
                .map(Zeroizing::new)
                .map_err(|error| (name, format!("cannot be read: {error}")))?;
            let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| (name, no_key(name)))?;
            (chain, key)
        };
        let leaf = leaf(&chain).map_err(|problem| ("certificate_file", problem))?;
        let mut topics = topics(&leaf);
        if topics.is_empty() {
            topics.extend(bundle_id(&leaf));
        }
        let not_after = leaf.validity().not_after.timestamp();
        Ok(Self {
            topics,
            not_after: UnixSeconds(u64::try_from(not_after).unwrap_or(0)),
            key,
            chain,
        })
    }
}

/// That there is no key where this key of the configuration says.
fn no_key(name: &str) -> String {
    match name {
        "certificate_file" => {
            "holds no private key in PEM: name the file of the key in certificate_key_file, or add the key to \
             this file"
        }
        _ => {
            "holds no private key in PEM: give the key that the certificate's signing request was made with, \
             without a password"
        }
    }
    .to_owned()
}

/// Whether this is a DER sequence with a length of its own, as PKCS#12 is and no text can be.
fn is_der(data: &[u8]) -> bool {
    matches!(data, [0x30, 0x80..=0xff, ..])
}

fn from_pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|_| format!("is no readable PEM: {WANTED}"))?;
    if chain.is_empty() {
        return Err(format!("holds no certificate: {WANTED}"));
    }
    leaf(&chain)?;
    Ok(chain)
}

/// The certificate that is shown as one's own.
fn leaf<'a>(chain: &'a [CertificateDer<'static>]) -> Result<X509Certificate<'a>, String> {
    match chain.first().map(|leaf| X509Certificate::from_der(leaf)) {
        Some(Ok((_, leaf))) => Ok(leaf),
        _ => Err(format!("holds something that is no certificate: {WANTED}")),
    }
}

/// The first line of a file.
fn password(file: &Path) -> Result<Zeroizing<String>, String> {
    let text = files::read_text(file, files::SMALL)
        .map(Zeroizing::new)
        .map_err(|error| format!("cannot be read: {error}"))?;
    let line = text.lines().next().unwrap_or_default();
    Ok(Zeroizing::new(line.to_owned()))
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The only key of a PKCS#12 file and its certificate, the others after it (RFC 7292 §4).
fn from_pkcs12(file: &Path, data: &[u8], password: Option<&String>) -> Result<Pair, Problem> {
    let path = file.display();
    let wrong = |problem: String| ("certificate_file", problem);
    let found = Pkcs12Archive::from_pkcs12(data, password.map_or("", String::as_str));
    let archive = found.map_err(|error| match error {
        Pkcs12Error::MacError(_) if password.is_some() => (
            "certificate_password_file",
            "the password does not open certificate_file; if it is the right one, that file is damaged: \
             export it again"
                .to_owned(),
        ),
        Pkcs12Error::MacError(_) => wrong(
            "has a password: write it into a file of one line, and name that in \
             certificate_password_file; if it has none, it is damaged: export it again"
                .to_owned(),
        ),
        Pkcs12Error::UnsupportedEncryptionScheme | Pkcs12Error::Pkcs5Error(_) => wrong(format!(
            "is PKCS#12 of an old kind (RC2 or 3DES, as Keychain wrote it for long): convert it by \
             `openssl pkcs12 -legacy -nodes -in {path} -out {path}.pem` (leave -legacy out when openssl \
             does not know it) and give the .pem"
        )),
        Pkcs12Error::DerError(_) => wrong(format!(
            "is no PKCS#12 that can be read; a .cer of Apple's has no key: {WANTED}, with its key"
        )),
        error => wrong(format!(
            "is no usable PKCS#12 ({error}), perhaps damaged: export the certificate with its key again"
        )),
    })?;
    let mut keys = archive.keys.into_iter();
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return Err(wrong(
            "holds no key, or several: export the certificate together with its key alone"
                .to_owned(),
        ));
    };
    let (mut chain, others): (Vec<_>, Vec<_>) = archive.certs.into_iter().partition(|found| {
        found.local_key_id.is_some()
            && found.local_key_id.as_deref() == key.local_key_id.as_ref().map(AsRef::as_ref)
    });
    chain.extend(others);
    let chain: Vec<_> = chain
        .iter()
        .map(|found| CertificateDer::from(found.cert.as_der().to_vec()))
        .collect();
    if chain.is_empty() {
        return Err(wrong(format!("holds no certificate: {WANTED}")));
    }
    let key = PrivatePkcs8KeyDer::from(key.key.as_der().to_vec());
    Ok((chain, key.into()))
}

/// The bundle id in the subject; a certificate for calls has `.voip` behind it.
fn bundle_id(certificate: &X509Certificate<'_>) -> Option<String> {
    let uid = certificate
        .subject()
        .iter_attributes()
        .find(|attribute| attribute.attr_type().to_id_string() == UID)?;
    let uid = uid.as_str().ok()?;
    Some(uid.strip_suffix(".voip").unwrap_or(uid).to_owned())
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
        let params = CertificateParams::new(Vec::new()).unwrap();
        signed(params, topics, not_after)
    }

    /// The same with the bundle id in the subject.
    pub(crate) fn pem_of(uid: &str, topics: &[&str]) -> String {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let attribute = vec![0, 9, 2342, 19_200_300, 100, 1, 1];
        let attribute = rcgen::DnType::CustomDnType(attribute);
        params.distinguished_name.push(attribute, uid);
        signed(params, topics, (2030, 1, 2))
    }

    fn signed(mut params: CertificateParams, topics: &[&str], not_after: (i32, u8, u8)) -> String {
        let mut list = Vec::new();
        for topic in topics {
            list.extend([0x0c, u8::try_from(topic.len()).unwrap()]);
            list.extend(topic.bytes());
            list.extend([0x30, 5, 0x0c, 3]);
            list.extend(b"app");
        }
        let mut content = vec![0x30, u8::try_from(list.len()).unwrap()];
        content.extend(list);
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
        let certificate = Certificate::load(&file, None, None).unwrap();
        assert_eq!(
            certificate.topics,
            ["com.example.app", "com.example.app.voip"]
        );
        assert_eq!(certificate.not_after, UnixSeconds(1_893_542_400));
        std::fs::write(&file, pem(&[], (2030, 1, 2))).unwrap();
        assert!(
            Certificate::load(&file, None, None)
                .unwrap()
                .topics
                .is_empty()
        );
    }

    #[test]
    fn without_the_extension_the_subject_names_the_topic() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("app.pem");
        for (uid, expected) in [
            ("com.example.app", "com.example.app"),
            ("com.example.app.voip", "com.example.app"),
        ] {
            std::fs::write(&file, pem_of(uid, &[])).unwrap();
            let certificate = Certificate::load(&file, None, None).unwrap();
            assert_eq!(certificate.topics, [expected]);
        }
        std::fs::write(&file, pem_of("com.example.app", &["com.example.other"])).unwrap();
        let certificate = Certificate::load(&file, None, None).unwrap();
        assert_eq!(certificate.topics, ["com.example.other"]);
    }

    /// What is wrong with a file of this content.
    #[track_caller]
    fn check_refused(content: &[u8], password: Option<&str>, key: &str, expected: &str) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("app.p12");
        std::fs::write(&file, content).unwrap();
        let password_file = directory.path().join("password");
        std::fs::write(&password_file, password.unwrap_or_default()).unwrap();
        let password_file = password.map(|_| password_file.as_path());
        let (found, problem) = Certificate::load(&file, None, password_file).err().unwrap();
        assert_eq!(found, key, "{problem}");
        assert!(problem.contains(expected), "{problem}");
    }

    #[test]
    fn unusable_files_are_told_with_what_to_do() {
        const FILE: &str = "certificate_file";
        check_refused(b"", None, FILE, "holds no certificate");
        let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        check_refused(broken, None, FILE, "no certificate");
        let pem = pem(&[], (2030, 1, 2));
        let (certificate, _) = pem.split_once("-----BEGIN PRIVATE").unwrap();
        let where_it_is = "name the file of the key in certificate_key_file";
        check_refused(certificate.as_bytes(), None, FILE, where_it_is);
        let wanted = "only PKCS#12 has a password";
        let key = "certificate_password_file";
        check_refused(pem.as_bytes(), Some("x"), key, wanted);
        check_refused(&[0x30, 0x82, 0x0a, 0x00, 0x02], None, FILE, "no PKCS#12");
        let cer = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        check_refused(&cer, None, FILE, "a .cer of Apple's has no key");
        let absent = Certificate::load(Path::new("/no/such"), None, None);
        assert!(absent.err().unwrap().1.contains("cannot be read"));
    }

    /// What openssl's command makes of a certificate and its key.
    fn pkcs12(pem: &str, arguments: &[&str]) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (
            directory.path().join("a.pem"),
            directory.path().join("a.p12"),
        );
        std::fs::write(&from, pem).unwrap();
        let made = std::process::Command::new("openssl")
            .args(["pkcs12", "-export", "-in"])
            .arg(&from)
            .arg("-out")
            .arg(&to)
            .args(arguments)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{told}");
        std::fs::read(to).unwrap()
    }

    #[test]
    fn pkcs12_opens_with_its_password() {
        let pem = pem(&["com.example.app"], (2030, 1, 2));
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("app.pem");
        std::fs::write(&plain, &pem).unwrap();
        let expected = Certificate::load(&plain, None, None).unwrap();
        let file = directory.path().join("app.p12");
        let password_file = directory.path().join("password");
        let modern = ["-keypbe", "AES-256-CBC", "-certpbe", "AES-256-CBC"];
        for (password, arguments) in [
            ("correct horse", &modern[..]),
            ("", &[]),
            ("päß", &["-macalg", "sha512"]),
            ("x", &["-certpbe", "NONE"]),
        ] {
            let given = format!("pass:{password}");
            let arguments = [arguments, &["-passout", &given]].concat();
            std::fs::write(&file, pkcs12(&pem, &arguments)).unwrap();
            std::fs::write(&password_file, format!("{password}\n")).unwrap();
            let read = Certificate::load(&file, None, Some(&password_file))
                .unwrap_or_else(|(_, problem)| panic!("{arguments:?}: {problem}"));
            assert_eq!(read.topics, ["com.example.app"]);
            assert_eq!(read.chain, expected.chain, "{arguments:?}");
            assert_eq!(read.key.secret_der(), expected.key.secret_der());
            let roots = rustls::RootCertStore::empty();
            crate::tls::client(roots, Some(read)).unwrap();
            if password.is_empty() {
                Certificate::load(&file, None, None).unwrap();
            }
        }
        let with_key = Certificate::load(&file, Some(&plain), Some(&password_file));
        assert_eq!(with_key.err().unwrap().0, "certificate_key_file");
        let no_file = directory.path().join("absent");
        let problem = Certificate::load(&file, None, Some(&no_file))
            .err()
            .unwrap();
        assert_eq!(problem.0, "certificate_password_file");
    }

    #[test]
    fn the_certificate_of_the_key_comes_first_whatever_the_order() {
        let leaf = pem(&["com.example.app"], (2030, 1, 2));
        let other = pem(&["com.example.other"], (2030, 1, 2));
        let (other, _) = other.split_once("-----BEGIN PRIVATE").unwrap();
        let data = pkcs12(&[other, &leaf].concat(), &["-passout", "pass:"]);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("app.p12");
        std::fs::write(&file, data).unwrap();
        let read =
            Certificate::load(&file, None, None).unwrap_or_else(|(_, problem)| panic!("{problem}"));
        assert_eq!(read.topics, ["com.example.app"]);
        assert_eq!(read.chain.len(), 2);
    }

    #[test]
    fn old_or_locked_pkcs12_is_told_with_what_to_do() {
        const FILE: &str = "certificate_file";
        const CONVERT: &str = "openssl pkcs12 -legacy -nodes -in";
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("app.p12");
        let password_file = directory.path().join("password");
        std::fs::write(&password_file, "x").unwrap();
        let pem = pem(&["com.example.app"], (2030, 1, 2));
        // As Keychain wrote them: RC2 for the certificate, 3DES for the key.
        let old = pkcs12(&pem, &["-legacy", "-passout", "pass:x"]);
        check_refused(&old, Some("x"), FILE, CONVERT);
        let triple_des = ["-keypbe", "PBE-SHA1-3DES", "-certpbe", "PBE-SHA1-3DES"];
        let old = pkcs12(&pem, &[&triple_des[..], &["-passout", "pass:x"]].concat());
        check_refused(&old, Some("x"), FILE, CONVERT);
        let modern = pkcs12(&pem, &["-passout", "pass:x"]);
        check_refused(
            &modern,
            None,
            FILE,
            "name that in certificate_password_file",
        );
        let wrong = "does not open certificate_file";
        check_refused(&modern, Some("y"), "certificate_password_file", wrong);
        let (certificate, _) = pem.split_once("-----BEGIN PRIVATE").unwrap();
        let keyless = pkcs12(certificate, &["-nokeys", "-passout", "pass:"]);
        check_refused(&keyless, None, FILE, "holds no key");
        // Whatever is damaged in it, there is something to do.
        for at in (4..modern.len()).step_by(97) {
            let mut damaged = modern.clone();
            damaged[at] ^= 0x55;
            std::fs::write(&file, damaged).unwrap();
            if let Err((_, problem)) = Certificate::load(&file, None, Some(&password_file)) {
                let advised = ["export it again", "with its key", "convert it", "key alone"];
                assert!(
                    advised.iter().any(|advice| problem.contains(advice)),
                    "{at}: {problem}"
                );
            }
        }
    }
}
