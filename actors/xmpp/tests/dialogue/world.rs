//! The service under test with a collector on each edge, and the certificates of its world.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, Recipient};
use messages::{
    Drain, Drained, NodeId, Probe, PublishBatch, PushOutcome, Register, Registered, RegistryError,
    Removed, Secret, Unregister,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use testkit::Collector;
use tokio::net::TcpListener;
use xmpp::{Config, DomainConfig, HostOverride, Ingress, egress, gate, listener};

/// A certificate with its key.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Identity {
    fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

/// One folder, one certificate authority, and where the peers listen.
pub(crate) struct World {
    folder: TempDir,
    authority: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    hosts: Vec<HostOverride>,
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
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.hosts.push(HostOverride {
            domain: domain.to_owned(),
            addresses: vec![socket.local_addr().unwrap()],
        });
        socket
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
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
        DomainConfig {
            name: name.to_owned(),
            certificate: Some(certificate),
            key: Some(key),
            apps: vec!["app".to_owned()],
            contacts: xmpp::Contacts::default(),
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
        let published = Collector::start();
        let registry = Registry.start();
        let egress = egress::start(&ingress);
        let gate = gate::start(
            &ingress,
            gate::Edges {
                publish: publish.unwrap_or_else(|| published.recipient()),
                register: registry.clone().recipient(),
                unregister: registry.recipient(),
                egress: vec![egress.replies.clone()],
            },
        );
        let listener = listener::start(&ingress, sockets, vec![gate.clone()]);
        Service {
            address,
            published,
            listener,
            gate,
            egress,
        }
    }

    fn roots(&self) -> RootCertStore {
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
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(self.roots());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            roots,
            Arc::clone(&provider),
        )
        .build()
        .unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(identity.chain.clone(), identity.key())
            .unwrap();
        Arc::new(config)
    }
}

fn extension(path: &Path) -> String {
    path.extension().unwrap().to_string_lossy().into_owned()
}

/// The service under test.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    pub(crate) published: Collector<PublishBatch>,
    pub(crate) listener: listener::Handles,
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
        for probe in [&self.listener.probe, &self.gate.probe, &self.egress.probe] {
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
    actor.send(Drain { deadline }).await.unwrap()
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
