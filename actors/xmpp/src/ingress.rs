//! What all lanes share, prepared once.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use messages::{AppId, Clock, Disclosure, Domain, UnixSeconds};
use rustls::client::ClientConfig;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ServerConfig;

use crate::accounts::{Account, Accounts, Good, Hold, Source};
use crate::calls::Calls;
use crate::census::{Census, Origin, Seat};
use crate::denials::Denials;
use crate::jid::{self, Host};
use crate::outcomes::Outcomes;
use crate::policy::Policy;
use crate::service::Service;
use crate::stream::dialback::{KeyMaker, StreamIds};
use crate::stream::identity::{self, Credential, Names, Trust};
use crate::stream::pings::Pings;
use crate::stream::resolve::{Hosts, Resolver, Security, Target};
use crate::stream::tls::{self, Certificates, Credentials, Kind};
use crate::{Config, DomainConfig, Error, Privacy, listener};

/// Days before its end from which a certificate is reported.
pub(crate) const EXPIRY_DAYS: u64 = 30;
pub(crate) const DAY_SECONDS: u64 = 24 * 60 * 60;

/// Everything that streams need. Only certificates and authorities ever change. Cheap to clone.
#[derive(Clone)]
pub struct Ingress(Arc<Inner>);

struct Inner {
    config: Config,
    /// The first is the one we answer as when a peer asks for a domain that is not served.
    first: Domain,
    served: HashMap<Domain, Served>,
    /// The domains without a certificate, which no server can open a stream to.
    components: HashMap<Domain, Service>,
    /// The most that any of both shows of a message.
    disclosure: Disclosure,
    /// The domains with a certificate, in the order of the configuration.
    certified: Vec<Certified>,
    /// TLS for streams that begin with it, whatever domain they are for.
    direct: Option<Arc<ServerConfig>>,
    trust: ArcSwap<Trust>,
    resolver: Resolver,
    pings: Pings,
    accounts: Accounts,
    key_maker: KeyMaker,
    stream_ids: StreamIds,
    policy: Policy,
    census: Census,
    denials: Denials,
    calls: Calls,
    outcomes: Outcomes,
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

    /// TLS for streams to this domain, behind STARTTLS.
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
        let loaded = load_domains(domains, &config.privacy, &mut errors);
        for exposed in exposed_keys(domains) {
            tracing::warn!("{exposed}");
        }
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
        let (loaded, plain): (Vec<_>, Vec<_>) =
            loaded.into_iter().partition(|one| one.certified.is_some());
        let first = loaded.first().or(plain.first());
        let first = first.map(|one| one.domain.clone());
        let certified: Vec<_> = loaded
            .iter()
            .filter_map(|one| one.certified.clone())
            .collect();
        let certificates: Arc<Certificates> = Arc::new(
            certified
                .iter()
                .filter_map(|one| match Host::of(&one.domain) {
                    Ok(Host::Name(name)) => Some((name, one.credentials.clone())),
                    _ => None,
                })
                .collect(),
        );
        let direct = certified.first().and_then(|first| {
            let fallback = &first.credentials;
            tls::acceptor(Kind::Direct, config, &certificates, fallback)
                .map_err(|error| errors.push(error))
                .ok()
        });
        let mut served = HashMap::new();
        for one in loaded {
            let Some(Certified { credentials, .. }) = one.certified.clone() else {
                continue;
            };
            match one.serve(&credentials, &certificates, config, version) {
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
        let disclosure = domains.iter().map(|one| one.disclosure).max();
        let disclosure = disclosure.unwrap_or_default();
        match (first, key_maker, stream_ids) {
            (Some(first), Some(key_maker), Some(stream_ids)) if errors.is_empty() => {
                Ok(Self(Arc::new(Inner {
                    config: config.clone(),
                    first,
                    served,
                    components,
                    disclosure,
                    certified,
                    direct,
                    trust: ArcSwap::from_pointee(trust),
                    resolver: Resolver::new(hosts, config),
                    pings: Pings::default(),
                    accounts: Accounts::new(config),
                    key_maker,
                    stream_ids,
                    policy,
                    census: Census::default(),
                    denials: Denials::default(),
                    calls: Calls::new(config),
                    outcomes: Outcomes::new(config, Clock::system()),
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

    /// The most that any domain shows of a message.
    pub(crate) fn disclosure(&self) -> Disclosure {
        self.0.disclosure
    }

    /// TLS for streams that begin with it, if any domain has a certificate.
    pub(crate) fn direct_acceptor(&self) -> Option<Arc<ServerConfig>> {
        self.0.direct.clone()
    }

    /// What each domain with a certificate shows, in the order of the configuration.
    pub(crate) fn certified(&self) -> &[Certified] {
        &self.0.certified
    }

    /// Trusts these authorities instead of those before.
    pub(crate) fn replace_trust(&self, trust: Trust) {
        self.0.trust.store(Arc::new(trust));
    }

    /// How many authorities are trusted.
    pub(crate) fn authorities(&self) -> usize {
        self.0.trust.load().len()
    }

    pub(crate) fn resolver(&self) -> &Resolver {
        &self.0.resolver
    }

    /// Pings that no peer has answered yet.
    pub(crate) fn pings(&self) -> &Pings {
        &self.0.pings
    }

    /// What the sources of streams hold of what there is for all of them.
    pub(crate) fn accounts(&self) -> &Accounts {
        &self.0.accounts
    }

    /// The account of a source.
    pub(crate) fn account(&self, source: Source) -> Account {
        self.0.accounts.of(source)
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

    /// Where to report what became of a stream.
    pub(crate) fn outcomes(&self) -> &Outcomes {
        &self.0.outcomes
    }

    /// Whom the operator lets in.
    pub(crate) fn policy(&self) -> &Policy {
        &self.0.policy
    }

    /// Claims that were not proven.
    pub(crate) fn denials(&self) -> &Denials {
        &self.0.denials
    }

    /// How often others are called because of claims.
    pub(crate) fn calls(&self) -> &Calls {
        &self.0.calls
    }

    /// Room for one dialback verification that somebody causes about `domain`.
    pub(crate) fn verification(
        &self,
        account: &Account,
        domain: &Domain,
    ) -> Option<(Hold, [Seat; 2])> {
        let max = self.config().verifications_per_domain_max;
        let seat = |origin, max| self.0.census.seat(origin, max);
        // Who claims it in bad faith leaves the other half to those who may claim it in good.
        let by = Origin::VerificationsBy(account.source().clone(), domain.clone());
        let seats = [
            seat(by, max.div_ceil(2))?,
            seat(Origin::VerificationsOf(domain.clone()), max)?,
        ];
        Some((account.take_revocable(Good::Verifications)?, seats))
    }

    /// Finds out what a peer's certificate chain is worth.
    pub(crate) fn examine(&self, chain: &[CertificateDer<'_>]) -> Credential {
        let now = Duration::from_secs(self.0.clock.now().0);
        let trust = self.0.trust.load();
        trust.examine(chain, UnixTime::since_unix_epoch(now))
    }
}

/// A served domain with a certificate: its files, and what is in use of them.
#[derive(Clone)]
pub(crate) struct Certified {
    pub(crate) domain: Domain,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) credentials: Credentials,
}

struct Loaded {
    domain: Domain,
    apps: Vec<AppId>,
    contacts: crate::Contacts,
    disclosure: Disclosure,
    privacy: Privacy,
    /// None of a domain that is only a component.
    certified: Option<Certified>,
}

impl Loaded {
    fn service(self, version: &'static str) -> Service {
        Service {
            domain: self.domain,
            apps: self.apps,
            contacts: self.contacts,
            disclosure: self.disclosure,
            privacy: self.privacy,
            software: "Campanile",
            version,
        }
    }

    fn serve(
        self,
        credentials: &Credentials,
        certificates: &Arc<Certificates>,
        config: &Config,
        version: &'static str,
    ) -> Result<Served, Error> {
        Ok(Served {
            acceptor: tls::acceptor(Kind::StartTls, config, certificates, credentials)?,
            connector: tls::connector(config, credentials)?,
            service: self.service(version),
        })
    }
}

fn load_domains(
    domains: &[DomainConfig],
    privacy: &Privacy,
    errors: &mut Vec<Error>,
) -> Vec<Loaded> {
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
        errors.extend(config.contacts.errors(&config.name));
        let certified = match (&config.certificate, &config.key) {
            (Some(certificate), Some(key)) => tls::load(certificate, key).map(|pair| {
                Some(Certified {
                    domain: domain.clone(),
                    certificate: certificate.clone(),
                    key: key.clone(),
                    credentials: Credentials::new(pair),
                })
            }),
            (None, None) => Ok(None),
            _ => Err(Error::HalfIdentity {
                name: config.name.clone(),
            }),
        };
        match certified {
            Ok(certified) => loaded.push(Loaded {
                domain,
                apps: config.apps.iter().map(|app| AppId::new(app)).collect(),
                contacts: config.contacts.clone(),
                disclosure: config.disclosure,
                privacy: privacy.clone(),
                certified,
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
pub(crate) fn load_trust(config: &Config) -> (Trust, Vec<Error>) {
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
    /// Whether the service does not start with it, or peers do not talk to it.
    pub fatal: bool,
    /// What is wrong and what to do.
    pub error: Error,
}

/// Finds everything that is wrong with a configuration, without changing anything: settings,
/// certificates, keys, authorities, and ports that cannot be listened on.
#[must_use]
pub fn inspect(config: &Config, domains: &[DomainConfig], clock: &Clock) -> Vec<Finding> {
    let mut errors = config.errors();
    load_domains(domains, &config.privacy, &mut errors);
    load_hosts(config, &mut errors);
    Policy::load(config, &mut errors);
    let (trust, unreadable) = load_trust(config);
    errors.extend(unreadable);
    if config.dialback_secret_file.exists() {
        errors.extend(KeyMaker::from_file(&config.dialback_secret_file).err());
    } else {
        errors.extend(missing_folder(&config.dialback_secret_file));
    }
    errors.extend(listener::bind(config).err());

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
    findings.extend(exposed_keys(domains).map(|error| Finding {
        fatal: false,
        error,
    }));
    findings
}

/// Private keys that everybody on the machine may read.
fn exposed_keys(domains: &[DomainConfig]) -> impl Iterator<Item = Error> {
    let keys = domains.iter().filter_map(|domain| domain.key.as_ref());
    keys.filter(|key| files::is_public(key))
        .map(|key| Error::ExposedKey { file: key.clone() })
}

/// Why the folder of a file that is still to be made cannot be made either: no part of its path exists.
fn missing_folder(file: &Path) -> Option<Error> {
    let folder = file.ancestors().skip(1).find(|folder| folder.exists());
    let error = match folder {
        Some(folder) if folder.is_dir() => return None,
        Some(_) => std::io::Error::from(std::io::ErrorKind::NotADirectory),
        // A relative path without a folder.
        None => return None,
    };
    Some(Error::DialbackSecret {
        file: file.to_owned(),
        source: error,
    })
}

/// What peers will find wrong with our certificate.
fn inspect_certificate(config: &DomainConfig, clock: &Clock) -> Vec<Finding> {
    let Some(file) = &config.certificate else {
        return Vec::new();
    };
    let chain = tls::certificates(file).unwrap_or_default();
    let (Some(leaf), Ok(domain)) = (chain.first(), jid::prepare_domain(&config.name)) else {
        return Vec::new();
    };
    let now = clock.now();
    let mut findings: Vec<Finding> = weaknesses(leaf, &domain, file, now)
        .into_iter()
        .map(|error| Finding { fatal: true, error })
        .collect();
    let days = days_left(leaf, now);
    if findings.is_empty() && days < EXPIRY_DAYS {
        findings.push(Finding {
            fatal: false,
            error: Error::Expiring {
                certificate: file.clone(),
                days,
            },
        });
    }
    findings
}

/// Why peers would not take the certificate of a file as that of `domain`.
pub(crate) fn weaknesses(
    leaf: &CertificateDer<'_>,
    domain: &Domain,
    file: &Path,
    now: UnixSeconds,
) -> Vec<Error> {
    let mut errors = Vec::new();
    let certificate = || file.to_owned();
    if !identity::covers(leaf, domain, Names::All) {
        errors.push(Error::NotCovered {
            certificate: certificate(),
            domain: domain.to_string(),
        });
    }
    match identity::validity(leaf) {
        Some(validity) if validity.end <= now.0 => errors.push(Error::Expired {
            certificate: certificate(),
        }),
        Some(validity) if validity.start > now.0 => errors.push(Error::NotYetValid {
            certificate: certificate(),
        }),
        _ => {}
    }
    errors
}

/// Whole days until a certificate ends.
pub(crate) fn days_left(leaf: &CertificateDer<'_>, now: UnixSeconds) -> u64 {
    let end = identity::validity(leaf).map_or(u64::MAX, |validity| validity.end);
    end.saturating_sub(now.0) / DAY_SECONDS
}
