//! A throw-away certificate authority and signing keys, made at start and never reused.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use messages::{Clock, SigningKeyId, redacted_debug};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::SimulatorError;

/// How long certificates are good. More than the 30 days below which an operator is warned.
const VALID: Duration = Duration::from_secs(90 * 86_400);
/// How far in the past certificates begin, for clocks that disagree.
const LEEWAY: Duration = Duration::from_secs(86_400);
/// How long ago an expired certificate ended.
const AGO: Duration = Duration::from_secs(3600);

/// Issues certificates that whoever has its root trusts.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    clock: Clock,
}

/// What kind of certificate to issue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Good for both ends of a connection.
    #[default]
    ServerAndClient,
    /// Without the extended key usage `clientAuth`, as public authorities issue them now.
    ServerOnly,
    /// Ended an hour ago.
    Expired,
    /// Signed by its own key instead of the authority's.
    SelfSigned,
}

/// A certificate with its private key.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
    chain_pem: String,
    key_pem: String,
    root_pem: String,
}

impl Authority {
    /// Makes a root certificate with a fresh key, valid from a day ago for 90 days.
    ///
    /// # Errors
    /// [`SimulatorError::Certificate`].
    pub fn new(clock: &Clock) -> Result<Self, SimulatorError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name("Campanile simulators");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, clock, Kind::default());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok(Self {
            issuer: CertifiedIssuer::self_signed(params, key)?,
            clock: clock.clone(),
        })
    }

    /// The root certificate.
    #[must_use]
    pub fn root_der(&self) -> &CertificateDer<'static> {
        self.issuer.der()
    }

    /// The root certificate as PEM.
    #[must_use]
    pub fn root_pem(&self) -> String {
        self.issuer.pem()
    }

    /// A store with this root alone.
    ///
    /// # Errors
    /// [`SimulatorError::Tls`].
    pub fn roots(&self) -> Result<Arc<RootCertStore>, SimulatorError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root_der().clone())?;
        Ok(Arc::new(roots))
    }

    /// Issues a certificate for DNS names or IP addresses, with a fresh P-256 key.
    ///
    /// # Errors
    /// [`SimulatorError::Certificate`], also for a name that cannot stand in a certificate.
    pub fn issue(&self, names: &[&str], kind: Kind) -> Result<Identity, SimulatorError> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = distinguished_name("Campanile simulator");
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if kind != Kind::ServerOnly {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        set_validity(&mut params, &self.clock, kind);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = if kind == Kind::SelfSigned {
            params.self_signed(&key)?
        } else {
            params.signed_by(&key, &self.issuer)?
        };
        let root_pem = if kind == Kind::SelfSigned {
            certificate.pem()
        } else {
            self.root_pem()
        };
        Ok(Identity {
            chain: vec![certificate.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
            chain_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            root_pem,
        })
    }

    /// Writes the root as `NAME.pem` into a directory and gives the path.
    ///
    /// # Errors
    /// [`SimulatorError::Write`].
    pub fn write_root(&self, directory: &Path, name: &str) -> Result<PathBuf, SimulatorError> {
        write(directory, &format!("{name}.pem"), &self.root_pem(), 0o644)
    }
}

impl Identity {
    /// The certificate chain, the leaf first.
    #[must_use]
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    /// The private key.
    #[must_use]
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }

    /// The certificate chain as PEM.
    #[must_use]
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// The private key as PEM (PKCS#8).
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The root to trust when talking to this identity, as PEM.
    #[must_use]
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Writes `NAME.crt` and, readable by its owner only, `NAME.key` into a directory and gives both
    /// paths.
    ///
    /// # Errors
    /// [`SimulatorError::Write`].
    pub fn write(
        &self,
        directory: &Path,
        name: &str,
    ) -> Result<(PathBuf, PathBuf), SimulatorError> {
        Ok((
            write(directory, &format!("{name}.crt"), &self.chain_pem, 0o644)?,
            write(directory, &format!("{name}.key"), &self.key_pem, 0o600)?,
        ))
    }
}

/// A provider's signing key in the form of Apple's `AuthKey_<kid>.p8`.
pub struct SigningKey {
    id: SigningKeyId,
    pem: String,
    public: Vec<u8>,
}

impl SigningKey {
    /// Makes a P-256 key. Apple's team and key ids have ten characters each.
    ///
    /// # Errors
    /// [`SimulatorError::Certificate`].
    pub fn new(team_id: &str, key_id: &str) -> Result<Self, SimulatorError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok(Self {
            id: SigningKeyId {
                team_id: team_id.into(),
                key_id: key_id.into(),
            },
            pem: key.serialize_pem(),
            public: key.public_key_raw().to_vec(),
        })
    }

    /// Team and key id.
    #[must_use]
    pub const fn id(&self) -> &SigningKeyId {
        &self.id
    }

    /// The private key as PEM (PKCS#8 with its public part).
    #[must_use]
    pub fn p8_pem(&self) -> &str {
        &self.pem
    }

    /// The public key as an uncompressed point of 65 bytes (SEC 1 §2.3.3).
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        &self.public
    }

    /// Writes `AuthKey_<kid>.p8`, readable by its owner only, into a directory and gives its path.
    ///
    /// # Errors
    /// [`SimulatorError::Write`].
    pub fn write(&self, directory: &Path) -> Result<PathBuf, SimulatorError> {
        let name = format!("AuthKey_{}.p8", self.id.key_id);
        write(directory, &name, &self.pem, 0o600)
    }
}

redacted_debug!(Authority, Identity, SigningKey);

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn set_validity(params: &mut CertificateParams, clock: &Clock, kind: Kind) {
    let now = date_time_ymd(1970, 1, 1) + Duration::from_secs(clock.now().0);
    params.not_before = now - LEEWAY;
    params.not_after = match kind {
        Kind::Expired => now - AGO,
        Kind::ServerAndClient | Kind::ServerOnly | Kind::SelfSigned => now + VALID,
    };
}

fn write(directory: &Path, name: &str, text: &str, mode: u32) -> Result<PathBuf, SimulatorError> {
    let path = directory.join(name);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(SimulatorError::Write)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use messages::UnixMillis;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{ServerName, UnixTime};

    use super::*;

    const NOW: u64 = 1_767_225_600;

    #[track_caller]
    fn check(names: &[&str], kind: Kind, asked: &str, days_later: u64, expected: bool) {
        let authority = Authority::new(&Clock::manual(UnixMillis(NOW * 1000))).unwrap();
        let identity = authority.issue(names, kind).unwrap();
        let roots = authority.roots().unwrap();
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, crate::tls::provider());
        let verified = verifier.build().unwrap().verify_server_cert(
            &identity.chain()[0],
            &[],
            &ServerName::try_from(asked).unwrap(),
            &[],
            UnixTime::since_unix_epoch(Duration::from_secs(NOW + days_later * 86_400)),
        );
        assert_eq!(verified.is_ok(), expected, "{kind:?} {asked}: {verified:?}");
    }

    #[test]
    fn certificates_are_good_for_what_they_were_issued_for() {
        let names = ["chat.localhost", "127.0.0.1"];
        for kind in [Kind::ServerAndClient, Kind::ServerOnly] {
            check(&names, kind, "chat.localhost", 0, true);
            check(&names, kind, "127.0.0.1", 89, true);
            check(&names, kind, "push.localhost", 0, false);
            check(&names, kind, "chat.localhost", 91, false);
        }
        check(&names, Kind::Expired, "chat.localhost", 0, false);
        check(&names, Kind::SelfSigned, "chat.localhost", 0, false);
    }

    #[test]
    fn what_is_written_can_be_read_and_keys_by_their_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new(&Clock::system()).unwrap();
        let root = authority.write_root(directory.path(), "root").unwrap();
        let root = CertificateDer::from_pem_file(root).unwrap();
        assert_eq!(&root, authority.root_der());
        let identity = authority.issue(&["a.test"], Kind::ServerAndClient).unwrap();
        let (chain, key) = identity.write(directory.path(), "a.test").unwrap();
        assert_eq!(
            CertificateDer::from_pem_file(chain).unwrap(),
            identity.chain()[0]
        );
        assert_eq!(PrivateKeyDer::from_pem_file(&key).unwrap(), identity.key());
        let signing = SigningKey::new("TEAM000001", "KEY0000001").unwrap();
        let p8 = signing.write(directory.path()).unwrap();
        assert!(p8.ends_with("AuthKey_KEY0000001.p8"));
        for secret in [&key, &p8] {
            let mode = std::fs::metadata(secret).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(matches!(
            identity.write(&directory.path().join("none"), "a.test"),
            Err(SimulatorError::Write(_))
        ));
    }

    #[test]
    fn signing_keys_are_what_ring_takes() {
        let signing = SigningKey::new("TEAM000001", "KEY0000001").unwrap();
        let der = PrivatePkcs8KeyDer::from_pem_slice(signing.p8_pem().as_bytes()).unwrap();
        let random = ring::rand::SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let key = EcdsaKeyPair::from_pkcs8(algorithm, der.secret_pkcs8_der(), &random).unwrap();
        assert_eq!(key.public_key().as_ref(), signing.public_key());
        assert_eq!(signing.public_key().len(), 65);
    }

    #[test]
    fn keys_have_no_debug_text() {
        let signing = SigningKey::new("TEAM000001", "KEY0000001").unwrap();
        assert_eq!(format!("{signing:?}"), "SigningKey(..)");
    }
}
