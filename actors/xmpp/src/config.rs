//! The keys of `[xmpp]`, `[[domains]]` and `[[components]]`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use messages::Disclosure;
use serde::Deserialize;

use crate::Error;
use crate::xml::splitter::Limits;

/// What a peer may send in one stanza at least (RFC 6120 §13.12), and what it gets before it is
/// authenticated.
const STANZA_BYTES_MIN: usize = 10_000;
/// The elements and attributes that a stranger may send in one piece: negotiation takes ten.
const MARKUP_OF_STRANGERS: u32 = 256;

/// `[xmpp]`: how this program speaks with XMPP servers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Addresses and ports to accept server-to-server streams on. An IPv6 address does not take IPv4
    /// connections as well, so both families are listed. None when all domains are components.
    pub listen: Vec<SocketAddr>,
    /// Addresses and ports on which streams begin with TLS at once (XEP-0368); none turns that off, and so
    /// does an empty `listen`.
    pub listen_tls: Vec<SocketAddr>,
    /// The oldest version of TLS that is spoken, in both directions: `"1.2"` or `"1.3"`.
    pub tls_min: TlsVersion,
    /// Seconds between two looks at the files of certificates, keys and authorities.
    pub certificate_check_seconds: u64,
    /// Seconds between two log lines on the same certificate that cannot be used.
    pub certificate_alarm_seconds: u64,
    /// Peers whose last outcomes are remembered, those who never proved who they are apart from the
    /// others.
    pub outcomes_max: usize,
    /// Kinds of failures that are logged in one interval about one address, of peers there that have not
    /// proven who they are.
    pub outcomes_per_address_max: usize,
    /// Seconds between two log lines on the same failure of the same peer.
    pub outcomes_interval_seconds: u64,
    /// Most streams accepted at a time, over all lanes. Further connections wait in the backlog.
    pub streams_max: usize,
    /// Most streams accepted at a time from one address; of IPv6, from one /64.
    pub streams_per_address_max: usize,
    /// Connections accepted per second; ten seconds' worth at one a millisecond after a quiet time. Further
    /// ones wait in the backlog.
    pub connections_per_second_max: u32,
    /// Connections accepted per second from one address, of IPv6 from one /64; ten seconds' worth at once
    /// after a quiet time. Further ones are closed.
    pub connections_per_address_per_second_max: u32,
    /// Most streams at a time on which one domain is authenticated.
    pub streams_per_domain_max: usize,
    /// Most domains that one stream may be authenticated for (XEP-0220 §2.5).
    pub domains_per_stream_max: usize,
    /// Whole stanzas and other elements read per second from one stream, a second's worth at once; one
    /// counts once for each 2048 bytes. Above, the peer is slowed down by TCP.
    pub stanzas_per_second_max: u32,
    /// The same from all streams of one address together; of IPv6, from one /64.
    pub stanzas_per_second_per_address_max: u32,
    /// Pushes one stream may have unanswered. When all are in use the peer is slowed down by TCP.
    pub tickets_per_stream: u32,
    /// Registration commands one stream may have unanswered; above, the stream is not read on.
    pub registrations_per_stream_max: usize,
    /// Most bytes of a stanza on an authenticated stream, at least 10,000 (RFC 6120 §13.12). Before
    /// authentication it is 10,000.
    pub stanza_bytes_max: usize,
    /// Most elements within each other in a stanza.
    pub depth_max: u32,
    /// Most attributes of an element, namespace declarations included.
    pub attributes_max: u32,
    /// Most namespace declarations of a stanza, all of its elements together. At most 64 may be in scope at
    /// a time.
    pub namespaces_max: u32,
    /// Most elements and attributes of a stanza, all together. Before authentication it is at most 256.
    pub markup_max: u32,
    /// Most bytes of a tag, from `<` to `>`.
    pub tag_bytes_max: usize,
    /// Most bytes of the id of a stanza. One with a longer id is passed over without an answer.
    pub id_bytes_max: usize,
    /// Most bytes of the name of an element.
    pub name_bytes_max: usize,
    /// Seconds a stream may be open before a domain is authenticated on it.
    pub authentication_timeout_seconds: u64,
    /// Most bytes a peer may send in all before a domain is authenticated on its stream.
    pub bytes_before_authentication_max: usize,
    /// Most bytes of a peer's certificate and those after it, on streams in both directions. With more the
    /// TLS handshake is ended.
    pub certificate_chain_bytes_max: usize,
    /// Bytes that the system receives for one connection while they are not read. It may take twice as much
    /// memory, and less than this where its own limit is lower.
    pub receive_buffer_bytes: u32,
    /// Bytes that the system keeps of what is sent on one connection until the peer has them, likewise.
    pub send_buffer_bytes: u32,
    /// Failed attempts at SASL after which the stream is closed. Peers that fail go on with dialback.
    pub sasl_attempts_max: u32,
    /// Seconds until a publish must have its answer. ejabberd waits 32 s.
    pub reply_deadline_seconds: u64,
    /// Seconds a write may take until the peer is taken for dead.
    pub write_stall_seconds: u64,
    /// Most bytes of answers that wait for one peer domain; what exceeds it is lost and counted.
    pub egress_queue_bytes_max: usize,
    /// Most bytes of answers that wait for all peers together, over all lanes.
    pub egress_bytes_max: usize,
    /// Most streams that are open to peers or being opened, over all lanes; answers that would need
    /// another one are lost and counted.
    pub egress_streams_max: usize,
    /// Most bytes of stanzas that have begun to come and are not whole, over all streams, beside the
    /// 32 KiB that each stream has; a stream that needs more is ended.
    pub unread_bytes_max: usize,
    /// Seconds an answer waits for the stream to its peer before it is lost and counted.
    pub egress_wait_seconds: u64,
    /// Seconds without anything to send after which a stream to a peer is closed.
    pub idle_seconds: u64,
    /// Seconds of silence of a peer after which the stream it opened is closed; advertised to it
    /// (XEP-0478).
    pub inbound_idle_seconds: u64,
    /// Seconds of silence of ours after which a blank is sent on a stream, so that nothing between forgets
    /// the connection.
    pub keepalive_seconds: u64,
    /// Seconds without a sign of life on a stream to a peer after which the next answer takes a ping
    /// with it (XEP-0199).
    pub ping_after_seconds: u64,
    /// Seconds a ping may stay unanswered before the stream is taken for dead and its last answers go
    /// out on a new one.
    pub ping_timeout_seconds: u64,
    /// Seconds a DNS lookup may take, a TCP connection to one target of a peer, and again TLS and the
    /// first words on it.
    pub connect_timeout_seconds: u64,
    /// Dialback verifications that run at a time for one stream; above, the peer gets
    /// `resource-constraint`.
    pub verifications_per_stream_max: usize,
    /// Dialback verifications that run at a time for peers of one address; of IPv6, of one /64.
    pub verifications_per_address_max: usize,
    /// Dialback verifications that run at a time of the same claimed domain.
    pub verifications_per_domain_max: usize,
    /// Dialback verifications that run at a time in the process.
    pub verifications_max: usize,
    /// Dialback verifications begun per second for peers of one address, of IPv6 of one /64; ten seconds'
    /// worth at once after a quiet time. Above, the peer gets `resource-constraint`.
    pub verifications_per_address_per_second_max: u32,
    /// Connections made per second to one address, of IPv6 to one /64, for verifications of all domains,
    /// half of them for peers of one address; ten seconds' worth at once after a quiet time. Further ones
    /// wait up to five seconds. Those that prove a domain do not count.
    pub verification_connections_per_address_per_second_max: u32,
    /// Seconds after a denied claim for which its domain is not asked about again for the same source. After
    /// a claim that could not be verified it is one second, doubled with each in a row, up to this. 0 for
    /// no pause.
    pub verification_pause_seconds: u64,
    /// Domains that may open streams, and no others: `chat.example`, or `*.example` for everything below
    /// `example`. Empty for all.
    pub allow: Vec<String>,
    /// Domains that may not, even if they are in `allow`.
    pub deny: Vec<String>,
    /// Whether a peer must prove its domain by a certificate, on streams in both directions. Then dialback
    /// is not offered, and no authoritative server is asked.
    pub require_certificates: bool,
    /// Whether the certificate authorities that the machine trusts are trusted.
    pub system_roots: bool,
    /// PEM files of further certificate authorities to trust.
    pub ca_files: Vec<PathBuf>,
    /// File of the secret that dialback keys are made of (XEP-0185), created at the first start, readable
    /// by its owner only.
    pub dialback_secret_file: PathBuf,
    /// Where to find peers that the DNS does not know, for tests and private networks.
    pub hosts: Vec<HostOverride>,
    /// Addresses and ports of name servers to ask; none for those of the machine.
    pub name_servers: Vec<SocketAddr>,
    /// Whether streams are opened to addresses that are not public, such as private, loopback and
    /// link-local ones, because a peer's domain names them. Those of `hosts` are always allowed.
    pub allow_private_targets: bool,
    /// How people are answered about their data. Not of this table: whoever starts this crate says it.
    #[serde(skip)]
    pub privacy: Privacy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![
                (Ipv6Addr::UNSPECIFIED, 5269).into(),
                (Ipv4Addr::UNSPECIFIED, 5269).into(),
            ],
            listen_tls: vec![
                (Ipv6Addr::UNSPECIFIED, 5270).into(),
                (Ipv4Addr::UNSPECIFIED, 5270).into(),
            ],
            tls_min: TlsVersion::V1_2,
            certificate_check_seconds: 5,
            certificate_alarm_seconds: 3600,
            outcomes_max: 4096,
            outcomes_per_address_max: 16,
            outcomes_interval_seconds: 60,
            streams_max: 4096,
            streams_per_address_max: 512,
            connections_per_second_max: 200,
            connections_per_address_per_second_max: 20,
            streams_per_domain_max: 16,
            domains_per_stream_max: 256,
            stanzas_per_second_max: 5000,
            stanzas_per_second_per_address_max: 10_000,
            tickets_per_stream: 1024,
            registrations_per_stream_max: 32,
            stanza_bytes_max: 262_144,
            depth_max: 32,
            attributes_max: 64,
            namespaces_max: 256,
            markup_max: 512,
            tag_bytes_max: 8192,
            id_bytes_max: 1023,
            name_bytes_max: 256,
            authentication_timeout_seconds: 30,
            bytes_before_authentication_max: 65_536,
            certificate_chain_bytes_max: 16_384,
            receive_buffer_bytes: 262_144,
            send_buffer_bytes: 131_072,
            sasl_attempts_max: 3,
            reply_deadline_seconds: 20,
            write_stall_seconds: 20,
            egress_queue_bytes_max: 1 << 20,
            egress_bytes_max: 64 << 20,
            egress_streams_max: 4096,
            unread_bytes_max: 64 << 20,
            egress_wait_seconds: 30,
            idle_seconds: 600,
            inbound_idle_seconds: 3900,
            keepalive_seconds: 300,
            ping_after_seconds: 60,
            ping_timeout_seconds: 15,
            connect_timeout_seconds: 10,
            verifications_per_stream_max: 4,
            verifications_per_address_max: 32,
            verifications_per_domain_max: 8,
            verifications_max: 128,
            verifications_per_address_per_second_max: 50,
            verification_connections_per_address_per_second_max: 20,
            verification_pause_seconds: 10,
            allow: Vec::new(),
            deny: Vec::new(),
            require_certificates: false,
            system_roots: true,
            ca_files: Vec::new(),
            dialback_secret_file: PathBuf::from("/var/lib/campanile/dialback.secret"),
            hosts: Vec::new(),
            name_servers: Vec::new(),
            allow_private_targets: false,
            privacy: Privacy::default(),
        }
    }
}

/// How people are answered about their data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Privacy {
    /// The part before the @ of the address that codes are sent to; none where nobody takes them.
    pub localpart: Option<String>,
    /// Whether there are commands to get and to erase one's data.
    pub self_service: bool,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246), as RFC 9325 still allows it.
    V1_2,
    /// TLS 1.3 (RFC 8446).
    V1_3,
}

// From a string and not as an enum: the environment gives 1.3 as a number.
impl TryFrom<String> for TlsVersion {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "1.2" => Ok(Self::V1_2),
            "1.3" => Ok(Self::V1_3),
            _ => Err("no version of TLS that is spoken here: write \"1.2\" or \"1.3\""),
        }
    }
}

/// `[[xmpp.hosts]]`: the addresses of a peer, instead of what the DNS says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostOverride {
    /// The peer's domain.
    pub domain: String,
    /// Addresses and ports, tried in order.
    pub addresses: Vec<SocketAddr>,
    /// Whether they speak TLS from the first byte (XEP-0368) instead of STARTTLS. A domain may have an
    /// entry for each.
    #[serde(default)]
    pub direct_tls: bool,
}

/// `[[domains]]`: a domain this program serves.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainConfig {
    /// The domain, as users' servers write it.
    pub name: String,
    /// PEM file of the certificate and the intermediate certificates after it. Only a component goes
    /// without.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// PEM file of the certificate's private key.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// Names of the apps (`[apps.NAME]`) that devices may register for here, the default first.
    pub apps: Vec<String>,
    /// Whom to turn to, shown by service discovery.
    #[serde(default)]
    pub contacts: Contacts,
    /// The most that any of the apps shows of a message. Told by their configuration.
    #[serde(skip)]
    pub disclosure: Disclosure,
}

/// `[[components]]`: a served domain that is a component of an XMPP server (XEP-0114).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComponentConfig {
    /// One of `[[domains]]`.
    pub domain: String,
    /// Where the server takes components: `host:port` or `unix:/path`.
    pub connect: String,
    /// File with the secret that the server has for the component. It is read at each connection.
    pub secret_file: PathBuf,
    /// Seconds of silence after which a space is sent. After five times as long without a word from the
    /// server it is pinged, and after six times the stream is taken for dead.
    #[serde(default = "ComponentConfig::keepalive")]
    pub keepalive_seconds: u64,
}

impl ComponentConfig {
    const fn keepalive() -> u64 {
        60
    }
}

/// `[domains.contacts]`: contact addresses as URIs, such as `mailto:abuse@example.org` (XEP-0157).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Contacts {
    /// About abuse.
    pub abuse: Vec<String>,
    /// The operators.
    pub admin: Vec<String>,
    /// About the service.
    pub feedback: Vec<String>,
    /// About buying.
    pub sales: Vec<String>,
    /// About security.
    pub security: Vec<String>,
    /// Where the state of the service is shown.
    pub status: Vec<String>,
    /// For users in need.
    pub support: Vec<String>,
}

impl Contacts {
    /// All of them, by what they are for.
    pub(crate) const fn each(&self) -> [(&'static str, &Vec<String>); 7] {
        [
            ("abuse", &self.abuse),
            ("admin", &self.admin),
            ("feedback", &self.feedback),
            ("sales", &self.sales),
            ("security", &self.security),
            ("status", &self.status),
            ("support", &self.support),
        ]
    }

    /// Tells which are no URIs.
    pub(crate) fn errors(&self, domain: &str) -> Vec<Error> {
        let each = self.each().into_iter();
        let addresses =
            each.flat_map(|(kind, addresses)| addresses.iter().map(move |it| (kind, it)));
        let wrong = addresses.filter(|(_, address)| !is_uri(address));
        wrong
            .map(|(kind, address)| Error::Contact {
                domain: domain.to_owned(),
                kind,
                address: address.clone(),
            })
            .collect()
    }
}

/// Whether a text has a scheme and something behind it (RFC 3986 §3).
fn is_uri(text: &str) -> bool {
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    };
    let is_rest = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic());
    text.split_once(':')
        .is_some_and(|(scheme, rest)| is_scheme(scheme) && is_rest(rest))
}

impl Config {
    /// Tells what cannot work, one error per key.
    pub(crate) fn errors(&self) -> Vec<Error> {
        let mut errors = Vec::new();
        let mut at_least = |key, value: u64, min: u64| {
            if value < min {
                errors.push(Error::TooSmall { key, min });
            }
        };
        at_least(
            "certificate_check_seconds",
            self.certificate_check_seconds,
            1,
        );
        at_least("outcomes_max", self.outcomes_max as u64, 1);
        at_least(
            "outcomes_interval_seconds",
            self.outcomes_interval_seconds,
            1,
        );
        at_least("streams_max", self.streams_max as u64, 1);
        at_least(
            "streams_per_address_max",
            self.streams_per_address_max as u64,
            1,
        );
        at_least(
            "streams_per_domain_max",
            self.streams_per_domain_max as u64,
            1,
        );
        at_least(
            "connections_per_second_max",
            self.connections_per_second_max.into(),
            1,
        );
        at_least(
            "connections_per_address_per_second_max",
            self.connections_per_address_per_second_max.into(),
            1,
        );
        at_least(
            "domains_per_stream_max",
            self.domains_per_stream_max as u64,
            1,
        );
        at_least(
            "stanzas_per_second_max",
            self.stanzas_per_second_max.into(),
            1,
        );
        at_least(
            "stanzas_per_second_per_address_max",
            self.stanzas_per_second_per_address_max.into(),
            1,
        );
        at_least("tickets_per_stream", self.tickets_per_stream.into(), 1);
        at_least(
            "registrations_per_stream_max",
            self.registrations_per_stream_max as u64,
            1,
        );
        at_least(
            "stanza_bytes_max",
            self.stanza_bytes_max as u64,
            STANZA_BYTES_MIN as u64,
        );
        at_least("depth_max", self.depth_max.into(), 8);
        at_least("attributes_max", self.attributes_max.into(), 16);
        at_least("namespaces_max", self.namespaces_max.into(), 16);
        at_least("markup_max", self.markup_max.into(), 64);
        at_least("tag_bytes_max", self.tag_bytes_max as u64, 4096);
        at_least("id_bytes_max", self.id_bytes_max as u64, 128);
        at_least("name_bytes_max", self.name_bytes_max as u64, 64);
        at_least(
            "authentication_timeout_seconds",
            self.authentication_timeout_seconds,
            1,
        );
        at_least(
            "bytes_before_authentication_max",
            self.bytes_before_authentication_max as u64,
            2 * STANZA_BYTES_MIN as u64,
        );
        at_least(
            "certificate_chain_bytes_max",
            self.certificate_chain_bytes_max as u64,
            4096,
        );
        at_least(
            "receive_buffer_bytes",
            self.receive_buffer_bytes.into(),
            16_384,
        );
        at_least("send_buffer_bytes", self.send_buffer_bytes.into(), 16_384);
        at_least("sasl_attempts_max", self.sasl_attempts_max.into(), 1);
        at_least("reply_deadline_seconds", self.reply_deadline_seconds, 1);
        at_least("write_stall_seconds", self.write_stall_seconds, 1);
        at_least(
            "egress_queue_bytes_max",
            self.egress_queue_bytes_max as u64,
            4096,
        );
        at_least("egress_bytes_max", self.egress_bytes_max as u64, 4096);
        at_least("unread_bytes_max", self.unread_bytes_max as u64, 4096);
        at_least("egress_streams_max", self.egress_streams_max as u64, 1);
        at_least("egress_wait_seconds", self.egress_wait_seconds, 1);
        at_least("idle_seconds", self.idle_seconds, 1);
        at_least("inbound_idle_seconds", self.inbound_idle_seconds, 1);
        at_least("keepalive_seconds", self.keepalive_seconds, 1);
        at_least("ping_after_seconds", self.ping_after_seconds, 1);
        at_least("ping_timeout_seconds", self.ping_timeout_seconds, 1);
        at_least("connect_timeout_seconds", self.connect_timeout_seconds, 1);
        at_least(
            "verifications_per_stream_max",
            self.verifications_per_stream_max as u64,
            1,
        );
        at_least(
            "verifications_per_address_max",
            self.verifications_per_address_max as u64,
            1,
        );
        at_least(
            "verifications_per_domain_max",
            self.verifications_per_domain_max as u64,
            1,
        );
        at_least("verifications_max", self.verifications_max as u64, 1);
        at_least(
            "verifications_per_address_per_second_max",
            self.verifications_per_address_per_second_max.into(),
            1,
        );
        at_least(
            "verification_connections_per_address_per_second_max",
            self.verification_connections_per_address_per_second_max
                .into(),
            1,
        );
        for host in &self.hosts {
            if host.addresses.is_empty() {
                errors.push(Error::NoAddresses {
                    domain: host.domain.clone(),
                });
            }
        }
        errors
    }

    /// What an authenticated peer may send.
    pub(crate) const fn limits(&self) -> Limits {
        Limits {
            stanza_bytes_max: self.stanza_bytes_max,
            tag_bytes_max: self.tag_bytes_max,
            name_bytes_max: self.name_bytes_max,
            attributes_max: self.attributes_max,
            namespaces_max: self.namespaces_max,
            markup_max: self.markup_max,
            depth_max: self.depth_max,
        }
    }

    /// What a stranger may send.
    pub(crate) const fn limits_before_authentication(&self) -> Limits {
        Limits {
            stanza_bytes_max: STANZA_BYTES_MIN,
            markup_max: match self.markup_max {
                max @ ..MARKUP_OF_STRANGERS => max,
                _ => MARKUP_OF_STRANGERS,
            },
            ..self.limits()
        }
    }

    pub(crate) const fn authentication_timeout(&self) -> Duration {
        Duration::from_secs(self.authentication_timeout_seconds)
    }

    pub(crate) const fn reply_deadline(&self) -> Duration {
        Duration::from_secs(self.reply_deadline_seconds)
    }

    pub(crate) const fn write_stall(&self) -> Duration {
        Duration::from_secs(self.write_stall_seconds)
    }

    pub(crate) const fn egress_wait(&self) -> Duration {
        Duration::from_secs(self.egress_wait_seconds)
    }

    pub(crate) const fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_seconds)
    }

    pub(crate) const fn inbound_idle(&self) -> Duration {
        Duration::from_secs(self.inbound_idle_seconds)
    }

    pub(crate) const fn keepalive(&self) -> Duration {
        Duration::from_secs(self.keepalive_seconds)
    }

    pub(crate) const fn ping_after(&self) -> Duration {
        Duration::from_secs(self.ping_after_seconds)
    }

    pub(crate) const fn ping_timeout(&self) -> Duration {
        Duration::from_secs(self.ping_timeout_seconds)
    }

    pub(crate) const fn verification_pause(&self) -> Duration {
        Duration::from_secs(self.verification_pause_seconds)
    }

    pub(crate) const fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout_seconds)
    }
}
