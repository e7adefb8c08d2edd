//! The service under test with a collector on each edge, and the certificates of its world.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, Recipient};
use messages::{
    Clock, Drain, Drained, NodeId, Probe, PublishBatch, PushOutcome, Register, Registered,
    RegistryError, Removed, Secret, Unregister,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ALL_VERSIONS, ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tempfile::TempDir;
use testkit::Collector;
use tokio::net::TcpListener;
use xmpp::{
    Config, DomainConfig, HostOverride, Ingress, certificates, egress, gate, listener, outcomes,
    porch,
};

/// A certificate with its key.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Identity {
    fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }

    /// The same certificate in X.509 version 1, without version and extensions. Its signature is broken by
    /// that, but nobody trusts it anyway.
    pub(crate) fn version_1(mut self) -> Self {
        let outer = der_children(&self.chain[0]);
        let [signed, rest @ ..] = outer.as_slice() else {
            panic!("no certificate")
        };
        let kept = der_children(signed)
            .into_iter()
            .filter(|child| !matches!(child[0], 0xa0 | 0xa3));
        let signed = der_sequence(&kept.collect::<Vec<_>>().concat());
        let certificate = der_sequence(&[signed, rest.concat()].concat());
        self.chain = vec![certificate.into()];
        self
    }
}

/// Length of tag and length, and of the content behind.
fn der_lengths(der: &[u8]) -> (usize, usize) {
    match der[1] {
        0x81 => (3, der[2].into()),
        0x82 => (4, u16::from_be_bytes([der[2], der[3]]).into()),
        short => (2, short.into()),
    }
}

fn der_children(der: &[u8]) -> Vec<&[u8]> {
    let (head, len) = der_lengths(der);
    let mut content = &der[head..head + len];
    let mut children = Vec::new();
    while !content.is_empty() {
        let (head, len) = der_lengths(content);
        let (child, rest) = content.split_at(head + len);
        children.push(child);
        content = rest;
    }
    children
}

fn der_sequence(content: &[u8]) -> Vec<u8> {
    let len = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[0x30, 0x82], &len[..], content].concat()
}

/// One folder, one certificate authority, and where the peers listen.
pub(crate) struct World {
    folder: TempDir,
    authority: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    hosts: Vec<HostOverride>,
    /// What the certificates are looked at by.
    pub(crate) clock: Clock,
}

pub(crate) fn parameters(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut parameters = CertificateParams::new(names.clone()).unwrap();
    // Certificates with equal subjects would be taken for one another.
    let subject = names.first().map_or("nobody", String::as_str);
    parameters
        .distinguished_name
        .push(DnType::CommonName, format!("subject of {subject}"));
    parameters
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut parameters = parameters(&[]);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        parameters
            .distinguished_name
            .push(DnType::CommonName, "authority of the tests");
        let root = parameters.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("authority.crt"), root.pem()).unwrap();
        Self {
            folder,
            root: root.der().clone(),
            authority: Issuer::new(parameters, key),
            hosts: Vec::new(),
            clock: Clock::system(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A certificate of the trusted authority.
    pub(crate) fn trusted(&self, names: &[&str]) -> Identity {
        self.sign(&parameters(names))
    }

    pub(crate) fn sign(&self, parameters: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.authority).unwrap();
        Identity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            chain: vec![certificate.der().clone()],
            key: key.serialize_der(),
        }
    }

    /// A certificate nobody vouches for.
    pub(crate) fn self_signed(&self, names: &[&str]) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = parameters(names).self_signed(&key).unwrap();
        Identity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            chain: vec![certificate.der().clone()],
            key: key.serialize_der(),
        }
    }

    /// Where the server of a domain listens.
    pub(crate) async fn home(&mut self, domain: &str) -> TcpListener {
        self.list(domain, false).await
    }

    /// Where the server of a domain listens, for STARTTLS or for direct TLS.
    pub(crate) async fn list(&mut self, domain: &str, direct_tls: bool) -> TcpListener {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.hosts.push(HostOverride {
            domain: domain.to_owned(),
            addresses: vec![socket.local_addr().unwrap()],
            direct_tls,
        });
        socket
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            listen_tls: vec!["127.0.0.1:0".parse().unwrap()],
            // Tests say when to look.
            certificate_check_seconds: 3600,
            system_roots: false,
            ca_files: vec![self.path("authority.crt")],
            dialback_secret_file: self.path("dialback.secret"),
            hosts: self.hosts.clone(),
            ..Config::default()
        }
    }

    pub(crate) fn domain(&self, name: &str, identity: &Identity) -> DomainConfig {
        let (certificate, key) = (self.path("served.crt"), self.path("served.key"));
        let named = |path: &Path| path.with_file_name(format!("{name}.{}", extension(path)));
        let (certificate, key) = (named(&certificate), named(&key));
        std::fs::write(&certificate, &identity.certificate_pem).unwrap();
        std::fs::write(&key, &identity.key_pem).unwrap();
        std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        DomainConfig {
            name: name.to_owned(),
            certificate: Some(certificate),
            key: Some(key),
            apps: vec!["app".to_owned()],
            contacts: xmpp::Contacts::default(),
            disclosure: messages::Disclosure::Nothing,
        }
    }

    /// Serves push.test and push2.test.
    pub(crate) fn start(&self, config: &Config) -> Service {
        self.start_with(config, None)
    }

    pub(crate) fn start_with(
        &self,
        config: &Config,
        publish: Option<Recipient<PublishBatch>>,
    ) -> Service {
        let domains = [
            self.domain("push.test", &self.trusted(&["push.test"])),
            self.domain("push2.test", &self.trusted(&["push2.test"])),
        ];
        let ingress = Ingress::prepare(config, &domains, "1.2.3").unwrap();
        let sockets = listener::bind(config).unwrap();
        let address = sockets[0].local_addr().unwrap();
        let address_tls = sockets[1].local_addr().unwrap();
        let certificates = certificates::start(&ingress, self.clock.clone());
        let published = Collector::start();
        let registry = Registry.start();
        let publish = publish.unwrap_or_else(|| published.recipient());
        let egress = egress::start(
            &ingress,
            egress::Edges {
                publish: publish.clone(),
                register: registry.clone().recipient(),
                unregister: registry.clone().recipient(),
                privacy: None,
            },
        );
        let gate = gate::start(
            &ingress,
            gate::Edges {
                publish,
                register: registry.clone().recipient(),
                unregister: registry.recipient(),
                privacy: None,
                egress: vec![egress.replies.clone()],
            },
        );
        let porch = porch::start(&ingress, vec![gate.clone()]);
        let listener = listener::start(&ingress, sockets, porch.clone());
        Service {
            address,
            address_tls,
            certificates,
            outcomes: outcomes::start(&ingress),
            published,
            listener,
            porch,
            gate,
            egress,
        }
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        roots
    }

    /// TLS of a server that opens streams. It verifies ours.
    pub(crate) fn client_tls(&self, identity: Option<&Identity>, sni: bool) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match identity {
            Some(identity) => builder
                .with_client_auth_cert(identity.chain.clone(), identity.key())
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.enable_sni = sni;
        Arc::new(config)
    }

    /// TLS of a server that streams are opened to. It verifies ours.
    pub(crate) fn server_tls(&self, identity: &Identity) -> Arc<ServerConfig> {
        self.server_tls_of(identity, ALL_VERSIONS)
    }

    pub(crate) fn server_tls_of(
        &self,
        identity: &Identity,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(self.roots());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            roots,
            Arc::clone(&provider),
        )
        .allow_unauthenticated()
        .build()
        .unwrap();
        // Not checked, since it may be one that this library cannot read.
        let key = provider
            .key_provider
            .load_private_key(identity.key())
            .unwrap();
        let own = CertifiedKey::new(identity.chain.clone(), key);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
        config.alpn_protocols = vec![b"xmpp-server".to_vec()];
        Arc::new(config)
    }
}

fn extension(path: &Path) -> String {
    path.extension().unwrap().to_string_lossy().into_owned()
}

/// The service under test.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    /// Where TLS comes at once.
    pub(crate) address_tls: SocketAddr,
    pub(crate) certificates: certificates::Handles,
    pub(crate) outcomes: outcomes::Handles,
    pub(crate) published: Collector<PublishBatch>,
    pub(crate) listener: listener::Handles,
    pub(crate) porch: porch::Handles,
    pub(crate) gate: gate::Handles,
    pub(crate) egress: egress::Handles,
}

impl Service {
    /// Takes one batch and tells the same outcome for all of it. Returns the nodes.
    pub(crate) async fn settle(&mut self, outcome: PushOutcome) -> Vec<String> {
        let batch = self.published.take().await;
        let nodes = nodes(&batch);
        let outcomes = batch.items.iter().map(|item| (item.ticket, outcome));
        assert_eq!(batch.origin.tell(outcomes.collect()), 0);
        nodes
    }

    pub(crate) async fn count(&self, name: &str) -> u64 {
        let mut counters = Vec::new();
        for probe in [
            &self.listener.probe,
            &self.porch.probe,
            &self.gate.probe,
            &self.egress.probe,
            &self.certificates.probe,
            &self.outcomes.probe,
        ] {
            counters.extend(probe.send(Probe).await.unwrap().counters);
        }
        let counter = counters.iter().find(|(known, _)| *known == name);
        counter.unwrap_or_else(|| panic!("no counter {name}")).1
    }

    /// Waits until a counter has a value.
    pub(crate) async fn counted(&self, name: &str, value: u64) {
        let begun = Instant::now();
        while self.count(name).await != value {
            assert!(begun.elapsed() < testkit::PATIENCE, "{name} is not {value}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub(crate) fn nodes(batch: &PublishBatch) -> Vec<String> {
    let nodes = batch.items.iter().map(|item| item.node.as_str().to_owned());
    nodes.collect()
}

pub(crate) async fn drain(actor: &Recipient<Drain>, limit: Duration) -> Drained {
    let deadline = Instant::now() + limit;
    actor
        .send(Drain {
            deadline,
            farewell: Duration::from_secs(1),
        })
        .await
        .unwrap()
}

/// Registers everybody, except for nodes with the name of an error.
pub(crate) struct Registry;

impl Actor for Registry {
    type Context = Context<Self>;
}

impl Handler<Register> for Registry {
    type Result = Result<Registered, RegistryError>;

    fn handle(&mut self, register: Register, _: &mut Self::Context) -> Self::Result {
        if register.node.as_str() == "busy" {
            return Err(RegistryError::Busy);
        }
        let secret = format!("secret of {}", register.account.as_str());
        Ok(Registered {
            node: NodeId::new(register.node.as_str()).unwrap(),
            secret: Secret::new(&secret).unwrap(),
        })
    }
}

impl Handler<Unregister> for Registry {
    type Result = Result<Removed, RegistryError>;

    fn handle(&mut self, _: Unregister, _: &mut Self::Context) -> Self::Result {
        Ok(Removed { count: 1 })
    }
}
