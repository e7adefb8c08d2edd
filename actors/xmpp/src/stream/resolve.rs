//! Where a peer is (RFC 6120 §3.2, RFC 2782, XEP-0368).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::{Either, join, select};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolverConfig,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use messages::Domain;
use thiserror::Error;
use tokio::time::timeout;

use super::scope::is_public;
use crate::Config;
use crate::jid::Host;

/// The port without an SRV record (RFC 6120 §14.6).
const PORT: u16 = 5269;
/// Answers are remembered as long as they ask for, within these bounds.
const TTL_MIN: Duration = Duration::from_secs(5);
const TTL_MAX: Duration = Duration::from_secs(3600);
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(60);
/// Answers remembered at a time.
const CACHE_SIZE: u64 = 16_384;
/// More targets or addresses than that are left out: a domain is tried for a bounded time.
const TARGETS_MAX: usize = 8;
/// Aliases of a service that are followed.
const ALIASES_MAX: usize = 4;
/// How long addresses of one family wait for those of the other, which some name servers never answer.
const FAMILY_WAIT: Duration = Duration::from_secs(1);

/// Why a peer cannot be found.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum ResolveError {
    #[error("its domain does not exist or has no address")]
    NotFound,
    #[error("its domain says that there is no XMPP server (SRV target \".\")")]
    NoService,
    #[error(
        "its address is not a public one: list the peer in xmpp.hosts or set \
         xmpp.allow_private_targets if it may be used"
    )]
    Private,
    #[error("the DNS gave no answer: {0}")]
    Dns(String),
    #[error("no name server is configured on this machine")]
    NoNameServer,
}

impl ResolveError {
    /// Whether asking again soon is in vain.
    pub(crate) const fn is_permanent(&self) -> bool {
        match self {
            Self::NotFound | Self::NoService | Self::Private => true,
            Self::Dns(_) | Self::NoNameServer => false,
        }
    }
}

/// How a target wants to be spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    /// Clear text first.
    StartTls,
    /// TLS from the first byte (XEP-0368).
    Direct,
}

/// One place to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) security: Security,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// The operator wrote it.
    Listed(SocketAddr),
    /// The domain is an address.
    Literal(SocketAddr),
    Name {
        name: String,
        port: u16,
    },
}

/// The targets of `[[xmpp.hosts]]`.
pub(crate) type Hosts = HashMap<Domain, Vec<Target>>;

impl Target {
    /// A target that the operator configured.
    pub(crate) const fn listed(address: SocketAddr, security: Security) -> Self {
        Self {
            security,
            place: Place::Listed(address),
        }
    }
}

/// Finds peers: by the configured overrides, else by the DNS.
pub(crate) struct Resolver {
    hosts: Hosts,
    dns: Option<TokioResolver>,
    /// How long one lookup may take.
    limit: Duration,
    allow_private: bool,
    /// Draws a number from 0 to its argument.
    lot: fn(u32) -> u32,
}

impl Resolver {
    /// Takes the overrides. Without a usable system configuration only they are found.
    pub(crate) fn new(hosts: Hosts, config: &Config) -> Self {
        let builder = match config.name_servers.as_slice() {
            [] => TokioResolver::builder_tokio().ok(),
            listed => Some(TokioResolver::builder_with_config(
                ResolverConfig::from_parts(None, Vec::new(), listed.iter().map(server).collect()),
                TokioRuntimeProvider::default(),
            )),
        };
        let dns = builder.and_then(|mut builder| {
            let options = builder.options_mut();
            options.cache_size = CACHE_SIZE;
            options.positive_min_ttl = Some(TTL_MIN);
            options.positive_max_ttl = Some(TTL_MAX);
            options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
            builder.build().ok()
        });
        Self {
            hosts,
            dns,
            limit: config.connect_timeout(),
            allow_private: config.allow_private_targets,
            lot: |bound| fastrand::u32(..=bound),
        }
    }

    /// The places where the server of `domain` may be, best first.
    pub(crate) async fn targets(&self, domain: &Domain) -> Result<Vec<Target>, ResolveError> {
        if let Some(targets) = self.hosts.get(domain) {
            return Ok(targets.clone());
        }
        let start_tls = |place| Target {
            security: Security::StartTls,
            place,
        };
        let domain = match Host::of(domain) {
            Ok(Host::Name(name)) => name,
            Ok(Host::Ip(address)) => {
                return Ok(vec![start_tls(Place::Literal((address, PORT).into()))]);
            }
            Err(_) => return Err(ResolveError::NotFound),
        };
        let (direct, clear) = join(
            self.services(&domain, "_xmpps-server", Security::Direct),
            self.services(&domain, "_xmpp-server", Security::StartTls),
        )
        .await;
        let Some(services) = choose(direct, clear)? else {
            return Ok(vec![start_tls(Place::Name {
                name: domain,
                port: PORT,
            })]);
        };
        Ok(order(services, self.lot)
            .into_iter()
            .take(TARGETS_MAX)
            .map(|service| Target {
                security: service.security,
                place: Place::Name {
                    name: service.target,
                    port: service.port,
                },
            })
            .collect())
    }

    /// The addresses of a target, families alternating, IPv6 first (RFC 8305 §4), and only those that
    /// may be connected to.
    pub(crate) async fn addresses(&self, target: &Target) -> Result<Vec<SocketAddr>, ResolveError> {
        let (name, port) = match &target.place {
            Place::Listed(address) => return Ok(vec![*address]),
            Place::Literal(address) if self.may_be_dialled(address.ip()) => {
                return Ok(vec![*address]);
            }
            Place::Literal(_) => return Err(ResolveError::Private),
            Place::Name { name, port } => (name, *port),
        };
        let found = self.both_families(name).await?;
        let allowed: Vec<SocketAddr> = found
            .into_iter()
            .filter(|address| self.may_be_dialled(*address))
            .take(TARGETS_MAX)
            .map(|address| (address, port).into())
            .collect();
        match allowed.is_empty() {
            true => Err(ResolveError::Private),
            false => Ok(allowed),
        }
    }

    fn may_be_dialled(&self, address: IpAddr) -> bool {
        self.allow_private || is_public(address)
    }

    /// At least one address, or why there is none.
    async fn both_families(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let v6 = Box::pin(self.family(name, RecordType::AAAA));
        let v4 = Box::pin(self.family(name, RecordType::A));
        let late = || Err(ResolveError::Dns("it answered for one family only".into()));
        let (v6, v4) = match select(v6, v4).await {
            Either::Left((Ok(v6), v4)) => (
                Ok(v6),
                timeout(FAMILY_WAIT, v4).await.unwrap_or_else(|_| late()),
            ),
            Either::Right((Ok(v4), v6)) => (
                timeout(FAMILY_WAIT, v6).await.unwrap_or_else(|_| late()),
                Ok(v4),
            ),
            Either::Left((failed, v4)) => (failed, v4.await),
            Either::Right((failed, v6)) => (v6.await, failed),
        };
        match (v6, v4) {
            (Ok(v6), Ok(v4)) => Ok(alternate(v6, v4)),
            (Ok(some), Err(_)) | (Err(_), Ok(some)) => Ok(some),
            // What may come back counts more than what is not there.
            (Err(one), Err(other)) if one.is_permanent() => Err(other),
            (Err(one), Err(_)) => Err(one),
        }
    }

    async fn family(&self, name: &str, kind: RecordType) -> Result<Vec<IpAddr>, ResolveError> {
        let found = self.lookup(name, kind).await?;
        let addresses: Vec<IpAddr> = found.iter().filter_map(RData::ip_addr).collect();
        match addresses.is_empty() {
            true => Err(ResolveError::NotFound),
            false => Ok(addresses),
        }
    }

    async fn services(&self, domain: &str, service: &str, security: Security) -> Listing {
        let found = match self
            .behind_aliases(format!("{service}._tcp.{domain}"))
            .await
        {
            Ok(found) => found,
            Err(ResolveError::NotFound) => return Listing::Missing,
            Err(error) => return Listing::Unknown(error),
        };
        let records = found.iter().filter_map(|data| match data {
            RData::SRV(srv) => Some(Service {
                security,
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                target: srv.target.to_ascii().trim_end_matches('.').to_owned(),
            }),
            _ => None,
        });
        let records: Vec<Service> = records.collect();
        let absent = !records.is_empty();
        let services: Vec<Service> = records
            .into_iter()
            .filter(|service| !service.target.is_empty())
            .collect();
        match services.is_empty() {
            false => Listing::Services(services),
            true if absent => Listing::Absent,
            true => Listing::Missing,
        }
    }

    /// The SRV records of a name. Aliases of such names are followed here: the DNS library does it for
    /// addresses only.
    async fn behind_aliases(&self, mut name: String) -> Result<Vec<RData>, ResolveError> {
        for _ in 0..ALIASES_MAX {
            match self.lookup(&name, RecordType::SRV).await {
                Err(ResolveError::NotFound) => {}
                settled => return settled,
            }
            let aliases = self.lookup(&name, RecordType::CNAME).await?;
            let target = aliases.into_iter().find_map(|data| match data {
                RData::CNAME(target) => Some(target.to_ascii()),
                _ => None,
            });
            let target = target.ok_or(ResolveError::NotFound)?;
            target.trim_end_matches('.').clone_into(&mut name);
        }
        Err(ResolveError::NotFound)
    }

    /// All records of an answer, those that lead to others included.
    async fn lookup(&self, name: &str, kind: RecordType) -> Result<Vec<RData>, ResolveError> {
        let dns = self.dns.as_ref().ok_or(ResolveError::NoNameServer)?;
        // The final dot keeps the machine's search domains out.
        let asked = dns.lookup(format!("{name}."), kind);
        match timeout(self.limit, asked).await {
            Ok(Ok(found)) => Ok(found.answers().iter().map(|r| r.data.clone()).collect()),
            Ok(Err(error)) => Err(told(&error)),
            Err(_) => Err(ResolveError::Dns("it takes too long".into())),
        }
    }
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ProtocolConfig::Udp, ProtocolConfig::Tcp].map(|protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

fn told(error: &NetError) -> ResolveError {
    match error.is_no_records_found() {
        true => ResolveError::NotFound,
        false => ResolveError::Dns(error.to_string()),
    }
}

fn alternate(first: Vec<IpAddr>, second: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut first = first.into_iter();
    let mut second = second.into_iter();
    let mut all = Vec::new();
    while first.len() + second.len() > 0 {
        all.extend(first.next());
        all.extend(second.next());
    }
    all
}

/// What the DNS says about one of the two services.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Listing {
    Services(Vec<Service>),
    /// Declared absent by the target `.`.
    Absent,
    /// Not mentioned.
    Missing,
    /// No answer, for now.
    Unknown(ResolveError),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Service {
    security: Security,
    priority: u16,
    weight: u16,
    port: u16,
    target: String,
}

/// The services of both lists, or `None` if the domain itself is to be tried: when neither is mentioned
/// (RFC 6120 §3.2.2), also when only direct TLS is declared absent, which says nothing of STARTTLS. While
/// the DNS does not tell, nothing is guessed.
fn choose(direct: Listing, clear: Listing) -> Result<Option<Vec<Service>>, ResolveError> {
    match (direct, clear) {
        (Listing::Services(mut services), Listing::Services(others)) => {
            services.extend(others);
            Ok(Some(services))
        }
        (Listing::Services(services), _) | (_, Listing::Services(services)) => Ok(Some(services)),
        (Listing::Unknown(error), _) | (_, Listing::Unknown(error)) => Err(error),
        (_, Listing::Absent) => Err(ResolveError::NoService),
        (_, Listing::Missing) => Ok(None),
    }
}

/// Lowest priority first; among equals by lot, in proportion to the weight (RFC 2782).
/// `random` draws a number from 0 to its argument.
fn order(mut services: Vec<Service>, mut random: impl FnMut(u32) -> u32) -> Vec<Service> {
    services.sort_by_key(|service| (service.priority, service.weight));
    let mut ordered = Vec::with_capacity(services.len());
    while let Some(priority) = services.first().map(|service| service.priority) {
        let equal = services.partition_point(|service| service.priority == priority);
        let total = services
            .iter()
            .take(equal)
            .map(|s| u32::from(s.weight))
            .sum();
        let mark = random(total);
        let mut sum = 0;
        let drawn = services.iter().take(equal).position(|service| {
            sum += u32::from(service.weight);
            sum >= mark
        });
        ordered.push(services.remove(drawn.unwrap_or(0)));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use testkit::NameServer;

    use super::Security::{Direct, StartTls};
    use super::*;

    fn service(priority: u16, weight: u16, target: &str) -> Service {
        Service {
            security: StartTls,
            priority,
            weight,
            port: 5269,
            target: target.into(),
        }
    }

    #[track_caller]
    fn check(services: &[(u16, u16, &str)], random: fn(u32) -> u32, expected: &[&str]) {
        let services = services
            .iter()
            .map(|(priority, weight, target)| service(*priority, *weight, target))
            .collect();
        let ordered = order(services, random);
        let targets: Vec<&str> = ordered.iter().map(|s| s.target.as_str()).collect();
        assert_eq!(targets, expected);
    }

    #[test]
    fn services_in_order() {
        check(&[], |_| 0, &[]);
        check(
            &[(20, 0, "c"), (10, 0, "a"), (15, 9, "b")],
            |_| 0,
            &["a", "b", "c"],
        );
        // Nobody of weight 0 is drawn while the lot falls on a weight.
        check(&[(1, 0, "zero"), (1, 5, "five")], |n| n, &["five", "zero"]);
        check(&[(1, 0, "zero"), (1, 5, "five")], |_| 0, &["zero", "five"]);
        check(
            &[(1, 10, "ten"), (1, 30, "thirty"), (0, 1, "first")],
            |n| n / 2,
            &["first", "thirty", "ten"],
        );
    }

    #[test]
    fn weights_decide_how_often() {
        let mut lot = fastrand::Rng::with_seed(7);
        let heavy = (0..4000)
            .filter(|_| {
                let both = vec![service(1, 1, "light"), service(1, 3, "heavy")];
                let ordered = order(both, |n| lot.u32(..=n));
                ordered.first().is_some_and(|s| s.target == "heavy")
            })
            .count();
        // Numbers 0 to 4, of which 2 to 4 fall on the heavy one.
        assert!((2200..2600).contains(&heavy), "{heavy}");
    }

    #[test]
    fn families_alternate() {
        let v6: Vec<IpAddr> = vec!["::1".parse().unwrap(), "::2".parse().unwrap()];
        let v4: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap()];
        let all: Vec<String> = alternate(v6, v4).iter().map(IpAddr::to_string).collect();
        assert_eq!(all, ["::1", "10.0.0.1", "::2"]);
    }

    #[test]
    fn nothing_is_guessed() {
        let some = || Listing::Services(vec![service(1, 1, "a")]);
        let unknown = || Listing::Unknown(ResolveError::NoNameServer);
        let (absent, missing) = (|| Listing::Absent, || Listing::Missing);
        let count = |direct, clear| choose(direct, clear).map(|some| some.map(|some| some.len()));
        assert_eq!(count(some(), some()), Ok(Some(2)));
        assert_eq!(count(some(), unknown()), Ok(Some(1)));
        assert_eq!(count(unknown(), some()), Ok(Some(1)));
        assert_eq!(count(some(), absent()), Ok(Some(1)));
        assert_eq!(count(absent(), some()), Ok(Some(1)));
        assert_eq!(count(missing(), missing()), Ok(None));
        assert_eq!(count(absent(), missing()), Ok(None));
        assert_eq!(count(missing(), absent()), Err(ResolveError::NoService));
        assert_eq!(count(absent(), absent()), Err(ResolveError::NoService));
        assert_eq!(count(unknown(), missing()), Err(ResolveError::NoNameServer));
        assert_eq!(count(missing(), unknown()), Err(ResolveError::NoNameServer));
        assert_eq!(count(unknown(), absent()), Err(ResolveError::NoNameServer));
    }

    fn resolver(names: &NameServer) -> Resolver {
        let config = Config {
            name_servers: vec![names.address()],
            connect_timeout_seconds: 2,
            ..Config::default()
        };
        let mut resolver = Resolver::new(Hosts::new(), &config);
        resolver.lot = |bound| bound;
        resolver
    }

    fn named(security: Security, name: &str, port: u16) -> Target {
        Target {
            security,
            place: Place::Name {
                name: name.into(),
                port,
            },
        }
    }

    async fn targets(resolver: &Resolver, domain: &str) -> Result<Vec<Target>, ResolveError> {
        resolver.targets(&Domain::new(domain)).await
    }

    async fn addresses(resolver: &Resolver, name: &str) -> Result<Vec<String>, ResolveError> {
        let found = resolver.addresses(&named(StartTls, name, 7)).await?;
        Ok(found.iter().map(SocketAddr::to_string).collect())
    }

    #[actix::test]
    async fn both_services_are_mixed() {
        let names = NameServer::start().await;
        names.service("_xmpps-server._tcp.a.test", (20, 0, 443, "tls.a.test"));
        names.service("_xmpps-server._tcp.a.test", (10, 1, 5270, "one.a.test"));
        names.service("_xmpp-server._tcp.a.test", (10, 9, 5269, "two.a.test"));
        names.service("_xmpp-server._tcp.a.test", (30, 0, 5269, ""));
        let resolver = resolver(&names);
        let expected = vec![
            named(StartTls, "two.a.test", 5269),
            named(Direct, "one.a.test", 5270),
            named(Direct, "tls.a.test", 443),
        ];
        for _ in 0..2 {
            assert_eq!(targets(&resolver, "a.test").await.unwrap(), expected);
        }
        // The second time it was remembered.
        let mut asked = names.asked();
        asked.sort();
        assert_eq!(
            asked,
            ["_xmpp-server._tcp.a.test", "_xmpps-server._tcp.a.test"]
        );
    }

    #[actix::test]
    async fn the_domain_itself_is_tried_when_no_service_is_named() {
        let names = NameServer::start().await;
        let resolver = resolver(&names);
        let plain = |name| Ok(vec![named(StartTls, name, 5269)]);
        assert_eq!(targets(&resolver, "a.test").await, plain("a.test"));
        names.service("_xmpps-server._tcp.b.test", (1, 1, 1, ""));
        assert_eq!(targets(&resolver, "b.test").await, plain("b.test"));
        // Another service of that name is none of these two.
        names.host("_xmpp-server._tcp.c.test", "192.0.2.1".parse().unwrap());
        assert_eq!(targets(&resolver, "c.test").await, plain("c.test"));
        assert_eq!(
            targets(&resolver, "bücher.test").await,
            plain("xn--bcher-kva.test")
        );
        assert!(
            names
                .asked()
                .contains(&"_xmpp-server._tcp.xn--bcher-kva.test".to_owned())
        );
    }

    #[actix::test]
    async fn a_service_behind_an_alias_is_found() {
        let names = NameServer::start().await;
        names.alias("_xmpp-server._tcp.a.test", "_xmpp-server._tcp.b.test");
        names.service("_xmpp-server._tcp.b.test", (1, 1, 5269, "host.b.test"));
        assert_eq!(
            targets(&resolver(&names), "a.test").await,
            Ok(vec![named(StartTls, "host.b.test", 5269)])
        );
    }

    #[actix::test]
    async fn what_is_absent_is_not_guessed() {
        let names = NameServer::start().await;
        let resolver = resolver(&names);
        names.service("_xmpp-server._tcp.a.test", (0, 0, 0, ""));
        assert_eq!(
            targets(&resolver, "a.test").await,
            Err(ResolveError::NoService)
        );
        names.service("_xmpps-server._tcp.a.test", (0, 0, 0, ""));
        assert_eq!(
            targets(&resolver, "a.test").await,
            Err(ResolveError::NoService)
        );
    }

    #[actix::test]
    async fn a_dns_that_fails_is_temporary() {
        let names = NameServer::start().await;
        let resolver = resolver(&names);
        names.fail("_xmpp-server._tcp.a.test");
        let failed = targets(&resolver, "a.test").await.unwrap_err();
        assert!(matches!(failed, ResolveError::Dns(_)), "{failed}");
        assert!(!failed.is_permanent());
        // What is known is used.
        names.service("_xmpps-server._tcp.a.test", (1, 1, 5270, "host.a.test"));
        let found = targets(&resolver, "a.test").await;
        assert_eq!(found, Ok(vec![named(Direct, "host.a.test", 5270)]));
        names.silence("_xmpps-server._tcp.b.test");
        let failed = targets(&resolver, "b.test").await.unwrap_err();
        assert!(matches!(failed, ResolveError::Dns(_)), "{failed}");

        names.fail("host.a.test");
        let failed = addresses(&resolver, "host.a.test").await.unwrap_err();
        assert!(!failed.is_permanent(), "{failed}");
        assert_eq!(
            addresses(&resolver, "nobody.test").await,
            Err(ResolveError::NotFound)
        );
    }

    #[actix::test]
    async fn addresses_of_both_families() {
        let names = NameServer::start().await;
        let resolver = resolver(&names);
        for address in ["9.9.9.9", "1.1.1.1", "2620:fe::fe"] {
            names.host("a.test", address.parse().unwrap());
        }
        names.alias("b.test", "a.test");
        let found = addresses(&resolver, "b.test").await.unwrap();
        assert_eq!(found[0], "[2620:fe::fe]:7");
        assert_eq!(found.len(), 3);
        // A name server that answers for one family only costs a moment.
        names.host("c.test", "9.9.9.9".parse().unwrap());
        assert_eq!(
            addresses(&resolver, "c.test").await,
            Ok(vec!["9.9.9.9:7".to_owned()])
        );
    }

    #[actix::test]
    async fn a_peer_behind_our_firewall_is_not_looked_for() {
        let names = NameServer::start().await;
        let mut resolver = resolver(&names);
        names.host("a.test", "10.0.0.1".parse().unwrap());
        names.host("a.test", "::1".parse().unwrap());
        names.host("b.test", "169.254.169.254".parse().unwrap());
        names.host("b.test", "9.9.9.9".parse().unwrap());
        let literal = |text| Domain::new(text);
        assert_eq!(
            addresses(&resolver, "a.test").await,
            Err(ResolveError::Private)
        );
        assert_eq!(
            addresses(&resolver, "b.test").await,
            Ok(vec!["9.9.9.9:7".to_owned()])
        );
        for address in ["127.0.0.1", "[::ffff:10.0.0.1]", "[fd00::1]"] {
            let targets = resolver.targets(&literal(address)).await.unwrap();
            assert_eq!(
                resolver.addresses(&targets[0]).await,
                Err(ResolveError::Private)
            );
        }
        resolver.allow_private = true;
        assert_eq!(addresses(&resolver, "a.test").await.unwrap().len(), 2);
        let targets = resolver.targets(&literal("[::1]")).await.unwrap();
        assert_eq!(
            resolver.addresses(&targets[0]).await,
            Ok(vec!["[::1]:5269".parse().unwrap()])
        );
    }

    #[actix::test]
    async fn what_the_operator_lists_is_not_looked_up() {
        let names = NameServer::start().await;
        let mut resolver = resolver(&names);
        let listed = [StartTls, Direct]
            .map(|security| Target::listed("127.0.0.1:1".parse().unwrap(), security));
        resolver.hosts = Hosts::from([(Domain::new("peer.test"), listed.to_vec())]);
        let found = targets(&resolver, "peer.test").await.unwrap();
        assert_eq!(found, listed);
        assert_eq!(
            resolver.addresses(&found[0]).await,
            Ok(vec!["127.0.0.1:1".parse().unwrap()])
        );
        assert!(names.asked().is_empty());
    }
}
