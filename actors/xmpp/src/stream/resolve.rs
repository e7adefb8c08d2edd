//! Where a peer is (RFC 6120 §3.2, RFC 2782).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::{RData, RecordType};
use messages::Domain;
use thiserror::Error;

use crate::jid::Host;

/// The port without an SRV record (RFC 6120 §14.6).
const PORT: u16 = 5269;
/// Answers are remembered as long as they ask for, within these bounds.
const TTL_MIN: Duration = Duration::from_secs(5);
const TTL_MAX: Duration = Duration::from_secs(3600);
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(60);
/// More targets or addresses than that are left out: a domain is tried for a bounded time.
const TARGETS_MAX: usize = 8;

/// Why a peer cannot be found.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum ResolveError {
    #[error("its domain does not exist or has no address")]
    NotFound,
    #[error("its domain says that there is no XMPP server (SRV target \".\")")]
    NoService,
    #[error("the DNS gave no answer: {0}")]
    Dns(String),
    #[error("no name server is configured on this machine")]
    NoNameServer,
}

/// One place to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Address(SocketAddr),
    Host { name: String, port: u16 },
}

/// Finds peers: by the configured overrides, else by the DNS.
pub(crate) struct Resolver {
    hosts: HashMap<Domain, Vec<SocketAddr>>,
    dns: Option<TokioResolver>,
}

impl Resolver {
    /// Takes the overrides. Without a usable system configuration only they are found.
    pub(crate) fn new(hosts: HashMap<Domain, Vec<SocketAddr>>) -> Self {
        let dns = TokioResolver::builder_tokio().and_then(|mut builder| {
            let options = builder.options_mut();
            options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
            options.positive_min_ttl = Some(TTL_MIN);
            options.positive_max_ttl = Some(TTL_MAX);
            options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
            builder.build()
        });
        Self {
            hosts,
            dns: dns.ok(),
        }
    }

    /// The places where the server of `domain` may be, best first.
    pub(crate) async fn targets(&self, domain: &Domain) -> Result<Vec<Target>, ResolveError> {
        if let Some(addresses) = self.hosts.get(domain) {
            return Ok(addresses.iter().copied().map(Target::Address).collect());
        }
        let domain = match Host::of(domain) {
            Ok(Host::Name(name)) => name,
            Ok(Host::Ip(address)) => return Ok(vec![Target::Address((address, PORT).into())]),
            Err(_) => return Err(ResolveError::NotFound),
        };
        let dns = self.dns.as_ref().ok_or(ResolveError::NoNameServer)?;
        // The final dot keeps the machine's search domains out.
        let name = format!("_xmpp-server._tcp.{domain}.");
        let Ok(lookup) = dns.lookup(name, RecordType::SRV).await else {
            // No record, and no answer just as well, leave the domain itself (RFC 6120 §3.2.2).
            return Ok(vec![Target::Host {
                name: domain,
                port: PORT,
            }]);
        };
        let services = lookup
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(srv) => Some(Service {
                    priority: srv.priority,
                    weight: srv.weight,
                    port: srv.port,
                    target: srv.target.to_ascii(),
                }),
                _ => None,
            })
            .collect();
        let ordered = order(services, |bound| fastrand::u32(..=bound));
        match ordered.as_slice() {
            [] => Err(ResolveError::NotFound),
            [only] if only.target == "." => Err(ResolveError::NoService),
            _ => Ok(ordered
                .into_iter()
                .take(TARGETS_MAX)
                .map(|service| Target::Host {
                    name: service.target.trim_end_matches('.').to_owned(),
                    port: service.port,
                })
                .collect()),
        }
    }

    /// The addresses of a target, families alternating, IPv6 first (RFC 8305 §4).
    pub(crate) async fn addresses(&self, target: &Target) -> Result<Vec<SocketAddr>, ResolveError> {
        let (name, port) = match target {
            Target::Address(address) => return Ok(vec![*address]),
            Target::Host { name, port } => (name, *port),
        };
        let dns = self.dns.as_ref().ok_or(ResolveError::NoNameServer)?;
        let found = dns.lookup_ip(format!("{name}.")).await.map_err(told)?;
        let (v6, v4): (Vec<IpAddr>, Vec<IpAddr>) = found.iter().partition(IpAddr::is_ipv6);
        match alternate(v6, v4) {
            none if none.is_empty() => Err(ResolveError::NotFound),
            some => Ok(some
                .into_iter()
                .take(TARGETS_MAX)
                .map(|address| (address, port).into())
                .collect()),
        }
    }
}

fn told(error: NetError) -> ResolveError {
    match error {
        error if error.is_no_records_found() => ResolveError::NotFound,
        error => ResolveError::Dns(error.to_string()),
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

#[derive(Clone, Debug, PartialEq, Eq)]
struct Service {
    priority: u16,
    weight: u16,
    port: u16,
    target: String,
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
    use super::*;

    fn service(priority: u16, weight: u16, target: &str) -> Service {
        Service {
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

    #[actix::test]
    async fn overrides_and_literals_need_no_dns() {
        let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let resolver = Resolver {
            hosts: HashMap::from([(Domain::new("peer.test"), vec![address])]),
            dns: None,
        };
        assert_eq!(
            resolver.targets(&Domain::new("peer.test")).await,
            Ok(vec![Target::Address(address)])
        );
        assert_eq!(
            resolver.targets(&Domain::new("[::1]")).await,
            Ok(vec![Target::Address("[::1]:5269".parse().unwrap())])
        );
        assert_eq!(
            resolver.targets(&Domain::new("other.test")).await,
            Err(ResolveError::NoNameServer)
        );
    }
}
