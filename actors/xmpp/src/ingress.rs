//! What all lanes share, prepared once.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use messages::{AppId, Clock, Domain};
use rustls::client::ClientConfig;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ServerConfig;
use rustls::sign::CertifiedKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::census::{Census, Origin, Seat};
use crate::jid::{self, Host};
use crate::policy::Policy;
use crate::service::Service;
use crate::stream::dialback::{KeyMaker, StreamIds};
use crate::stream::identity::{self, Names, Trust, Untrusted};
use crate::stream::pings::Pings;
use crate::stream::resolve::{Hosts, Resolver, Security, Target};
use crate::stream::tls::{self, Certificates};
use crate::{Config, DomainConfig, Error, listener};

/// Days before its end from which a certificate is reported.
const EXPIRY_DAYS: u64 = 30;
const DAY_SECONDS: u64 = 24 * 60 * 60;

/// Everything that streams need and nobody changes. Cheap to clone.
#[derive(Clone)]
pub struct Ingress(Arc<Inner>);

struct Inner {
    config: Config,
    /// The first is the one we answer as when a peer asks for a domain that is not served.
    first: Domain,
    served: HashMap<Domain, Served>,
    /// The domains without a certificate, which no server can open a stream to.
    components: HashMap<Domain, Service>,
    trust: Trust,
    resolver: Resolver,
    pings: Pings,
    egress_bytes: Arc<Semaphore>,
    egress_streams: Arc<Semaphore>,
    key_maker: KeyMaker,
    stream_ids: StreamIds,
    policy: Policy,
    census: Census,
    clock: Clock,
}

/// A served domain.
pub(crate) struct Served {
    service: Service,
    acceptor: Arc<ServerConfig>,
    connector: Arc<ClientConfig>,
}

impl Served {
    pub(crate) const fn domain(&self) -> &Domain {
        &self.service.domain
    }

    pub(crate) const fn service(&self) -> &Service {
        &self.service
    }

    /// TLS for streams to this domain.
    pub(crate) fn acceptor(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.acceptor)
    }

    /// TLS for streams from this domain.
    pub(crate) fn connector(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.connector)
    }
}

impl Ingress {
    /// Loads what the configuration points to. `version` is what the service says of itself (XEP-0092).
    /// The dialback secret is created if there is none.
    ///
    /// # Errors
    /// All that is wrong and keeps the service from working; [`inspect`] also finds what only weakens it.
    pub fn prepare(
        config: &Config,
        domains: &[DomainConfig],
        version: &'static str,
    ) -> Result<Self, Vec<Error>> {
        let mut errors = config.errors();
        let loaded = load_domains(domains, &mut errors);
        let hosts = load_hosts(config, &mut errors);
        let policy = Policy::load(config, &mut errors);
        let (trust, unreadable) = load_trust(config);
        errors.extend(unreadable);
        if trust.len() == 0 && !config.listen.is_empty() {
            tracing::warn!("{}", Error::NoRoots);
        }
        let key_maker = KeyMaker::from_file(&config.dialback_secret_file)
            .map_err(|error| errors.push(error))
            .ok();
        let stream_ids = StreamIds::new().map_err(|error| errors.push(error)).ok();
        let (loaded, plain): (Vec<_>, Vec<_>) = loaded
            .into_iter()
            .partition(|one| one.credentials.is_some());
        let first = loaded.first().or(plain.first());
        let first = first.map(|one| one.domain.clone());
        let certificates: Arc<Certificates> = Arc::new(
            loaded
                .iter()
                .filter_map(|one| match Host::of(&one.domain) {
                    Ok(Host::Name(name)) => Some((name, one.credentials.clone()?)),
                    _ => None,
                })
                .collect(),
        );
        let mut served = HashMap::new();
        for one in loaded {
            let Some(credentials) = one.credentials.clone() else {
                continue;
            };
            match one.serve(&credentials, &certificates, version) {
                Ok(one) => {
                    served.insert(one.domain().clone(), one);
                }
                Err(error) => errors.push(error),
            }
        }
        let components = plain
            .into_iter()
            .map(|one| (one.domain.clone(), one.service(version)))
            .collect();
        match (first, key_maker, stream_ids) {
            (Some(first), Some(key_maker), Some(stream_ids)) if errors.is_empty() => {
                Ok(Self(Arc::new(Inner {
                    config: config.clone(),
                    first,
                    served,
                    components,
                    trust,
                    resolver: Resolver::new(hosts, config),
                    pings: Pings::default(),
                    egress_bytes: Arc::new(Semaphore::new(config.egress_bytes_max)),
                    egress_streams: Arc::new(Semaphore::new(config.egress_streams_max)),
                    key_maker,
                    stream_ids,
                    policy,
                    census: Census::default(),
                    clock: Clock::system(),
                })))
            }
            _ => Err(errors),
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    /// The domain we answer as when we have none in common with the peer.
    pub(crate) fn first(&self) -> &Domain {
        &self.0.first
    }

    /// The served domain of that name, prepared.
    pub(crate) fn served(&self, domain: &str) -> Option<&Served> {
        self.0.served.get(domain)
    }

    /// What a domain answers, whether servers can open streams to it or not.
    pub(crate) fn service(&self, domain: &Domain) -> Option<&Service> {
        let served = self.0.served.get(domain).map(Served::service);
        served.or_else(|| self.0.components.get(domain))
    }

    pub(crate) fn resolver(&self) -> &Resolver {
        &self.0.resolver
    }

    /// Pings that no peer has answered yet.
    pub(crate) fn pings(&self) -> &Pings {
        &self.0.pings
    }

    /// Room for answers that wait, if so much is left.
    pub(crate) fn egress_bytes(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).ok()?;
        let room = Arc::clone(&self.0.egress_bytes);
        room.try_acquire_many_owned(bytes).ok()
    }

    /// Permission for one stream to a peer, if not too many are open.
    pub(crate) fn egress_stream(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.egress_streams).try_acquire_owned().ok()
    }

    pub(crate) fn key_maker(&self) -> &KeyMaker {
        &self.0.key_maker
    }

    /// A new id for a stream that a peer opens.
    pub(crate) fn stream_id(&self) -> String {
        self.0.stream_ids.next()
    }

    pub(crate) fn census(&self) -> &Census {
        &self.0.census
    }

    /// Whom the operator lets in.
    pub(crate) fn policy(&self) -> &Policy {
        &self.0.policy
    }

    /// Room for one dialback verification that a peer at `address` causes about `domain`.
    pub(crate) fn verification(&self, address: IpAddr, domain: &Domain) -> Option<[Seat; 3]> {
        let config = self.config();
        let seat = |origin, max| self.0.census.seat(origin, max);
        Some([
            seat(Origin::Verifications, config.verifications_max)?,
            seat(
                Origin::verifications_for(address),
                config.verifications_per_address_max,
            )?,
            seat(
                Origin::VerificationsOf(domain.clone()),
                config.verifications_per_domain_max,
            )?,
        ])
    }

    /// Whether a certificate chain proves that its owner is `domain`.
    pub(crate) fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        domain: &Domain,
    ) -> Result<(), Untrusted> {
        let now = Duration::from_secs(self.0.clock.now().0);
        self.0
            .trust
            .judge(chain, domain, UnixTime::since_unix_epoch(now))
    }
}

struct Loaded {
    domain: Domain,
    apps: Vec<AppId>,
    contacts: crate::Contacts,
    /// None of a domain that is only a component.
    credentials: Option<Arc<CertifiedKey>>,
}

impl Loaded {
    fn service(self, version: &'static str) -> Service {
        Service {
            domain: self.domain,
            apps: self.apps,
            contacts: self.contacts,
            software: "Campanile",
            version,
        }
    }

    fn serve(
        self,
        credentials: &Arc<CertifiedKey>,
        certificates: &Arc<Certificates>,
        version: &'static str,
    ) -> Result<Served, Error> {
        Ok(Served {
            acceptor: tls::acceptor(certificates, credentials)?,
            connector: tls::connector(credentials)?,
            service: self.service(version),
        })
    }
}

fn load_domains(domains: &[DomainConfig], errors: &mut Vec<Error>) -> Vec<Loaded> {
    if domains.is_empty() {
        errors.push(Error::NoDomains);
    }
    let mut names = BTreeSet::new();
    let mut loaded = Vec::new();
    for config in domains {
        let Ok(domain) = jid::prepare_domain(&config.name) else {
            errors.push(Error::Domain {
                key: "domains",
                name: config.name.clone(),
            });
            continue;
        };
        if !names.insert(domain.clone()) {
            errors.push(Error::Duplicate {
                name: config.name.clone(),
            });
        }
        if config.apps.is_empty() {
            errors.push(Error::NoApps {
                name: config.name.clone(),
            });
        }
        let credentials = match (&config.certificate, &config.key) {
            (Some(certificate), Some(key)) => tls::credentials(certificate, key).map(Some),
            (None, None) => Ok(None),
            _ => Err(Error::HalfIdentity {
                name: config.name.clone(),
            }),
        };
        match credentials {
            Ok(credentials) => loaded.push(Loaded {
                domain,
                apps: config.apps.iter().map(|app| AppId::new(app)).collect(),
                contacts: config.contacts.clone(),
                credentials,
            }),
            Err(error) => errors.push(error),
        }
    }
    loaded
}

fn load_hosts(config: &Config, errors: &mut Vec<Error>) -> Hosts {
    let mut hosts = Hosts::new();
    for host in &config.hosts {
        let security = match host.direct_tls {
            true => Security::Direct,
            false => Security::StartTls,
        };
        match jid::prepare_domain(&host.domain) {
            Ok(domain) => {
                let targets = host.addresses.iter();
                let targets = targets.map(|address| Target::listed(*address, security));
                hosts.entry(domain).or_default().extend(targets);
            }
            Err(_) => errors.push(Error::Domain {
                key: "xmpp.hosts",
                name: host.domain.clone(),
            }),
        }
    }
    hosts
}

/// Certificates of the system that cannot be used are passed over, as everywhere; those that the operator
/// listed are errors.
fn load_trust(config: &Config) -> (Trust, Vec<Error>) {
    let mut trust = Trust::default();
    let mut errors = Vec::new();
    if config.system_roots {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "a certificate authority of the system cannot be read");
        }
        for certificate in &found.certs {
            if let Err(error) = trust.add(certificate) {
                tracing::debug!(%error, "a certificate authority of the system cannot be used");
            }
        }
    }
    for file in &config.ca_files {
        match tls::certificates(file) {
            Ok(certificates) => {
                for certificate in certificates {
                    if trust.add(&certificate).is_err() {
                        errors.push(Error::NotPem {
                            file: file.clone(),
                            wanted: "usable certificate",
                        });
                    }
                }
            }
            Err(error) => errors.push(error),
        }
    }
    (trust, errors)
}

/// One thing that `campanile check` reports.
#[derive(Debug)]
pub struct Finding {
    /// Whether the service does not start with it.
    pub fatal: bool,
    /// What is wrong and what to do.
    pub error: Error,
}

/// Finds everything that is wrong with a configuration, without changing anything: settings,
/// certificates, keys, authorities, and ports that cannot be listened on.
#[must_use]
pub fn inspect(config: &Config, domains: &[DomainConfig], clock: &Clock) -> Vec<Finding> {
    let mut errors = config.errors();
    load_domains(domains, &mut errors);
    load_hosts(config, &mut errors);
    Policy::load(config, &mut errors);
    let (trust, unreadable) = load_trust(config);
    errors.extend(unreadable);
    if config.dialback_secret_file.exists() {
        errors.extend(KeyMaker::from_file(&config.dialback_secret_file).err());
    } else {
        errors.extend(missing_folder(&config.dialback_secret_file));
    }
    let bound: Result<Vec<TcpListener>, Error> = listener::bind(config);
    errors.extend(bound.err());

    let mut findings: Vec<Finding> = errors
        .into_iter()
        .map(|error| Finding { fatal: true, error })
        .collect();
    if trust.len() == 0 && !config.listen.is_empty() {
        findings.push(Finding {
            fatal: false,
            error: Error::NoRoots,
        });
    }
    for config in domains {
        findings.extend(inspect_certificate(config, clock));
    }
    findings
}

fn missing_folder(file: &Path) -> Option<Error> {
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())?;
    let error = std::fs::metadata(folder).err()?;
    Some(Error::DialbackSecret {
        file: file.to_owned(),
        source: error,
    })
}

/// What peers will find wrong with our certificate.
fn inspect_certificate(config: &DomainConfig, clock: &Clock) -> Vec<Finding> {
    let mut errors = Vec::new();
    let Some(file) = &config.certificate else {
        return Vec::new();
    };
    let certificate = || file.clone();
    let chain = tls::certificates(file).unwrap_or_default();
    let (Some(leaf), Ok(domain)) = (chain.first(), jid::prepare_domain(&config.name)) else {
        return Vec::new();
    };
    if !identity::covers(leaf, &domain, Names::All) {
        errors.push(Error::NotCovered {
            certificate: certificate(),
            domain: config.name.clone(),
        });
    }
    let now = clock.now().0;
    match identity::not_after(leaf) {
        Some(end) if end <= now => errors.push(Error::Expired {
            certificate: certificate(),
        }),
        Some(end) if end - now < EXPIRY_DAYS * DAY_SECONDS => errors.push(Error::Expiring {
            certificate: certificate(),
            days: (end - now) / DAY_SECONDS,
        }),
        _ => {}
    }
    errors
        .into_iter()
        .map(|error| Finding {
            fatal: false,
            error,
        })
        .collect()
}
