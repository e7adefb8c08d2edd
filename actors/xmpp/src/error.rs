//! What keeps the ingress from starting, or from being believed.

use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

/// What is wrong with the configuration or the machine. Each text names the key or file and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A number that cannot work.
    #[error("xmpp.{key} is too small: set it to {min} or more")]
    TooSmall {
        /// The key below `[xmpp]`.
        key: &'static str,
        /// The least that works.
        min: u64,
    },
    /// An entry of `[[xmpp.hosts]]` without a target.
    #[error("xmpp.hosts: {domain} has no addresses: list at least one as IP:port")]
    NoAddresses {
        /// The peer.
        domain: String,
    },
    /// Nothing to serve.
    #[error("no domain is served: add a [[domains]] section")]
    NoDomains,
    /// A name that is no domain.
    #[error("{key}: {name:?} is no domain name: write it like push.example.org")]
    Domain {
        /// The key the name stands in.
        key: &'static str,
        /// The name as configured.
        name: String,
    },
    /// The same domain twice.
    #[error("domains: {name} is listed twice: remove one of the sections")]
    Duplicate {
        /// The domain.
        name: String,
    },
    /// A certificate without key, or a key without certificate.
    #[error("domains: {name} has only one of certificate and key: set both")]
    HalfIdentity {
        /// The domain.
        name: String,
    },
    /// A domain that nobody can reach.
    #[error(
        "domains: {name} has no certificate and is no component: set certificate and key for streams \
         of other servers, or add a [[components]] section"
    )]
    NoIdentity {
        /// The domain.
        name: String,
    },
    /// A domain that only a listener would make reachable.
    #[error(
        "xmpp.listen is empty and {name} is no component, so nobody can reach it: list an address, or \
         add a [[components]] section"
    )]
    Unreachable {
        /// The domain.
        name: String,
    },
    /// A listener that no peer can use.
    #[error("no domain has a certificate, so no stream can be accepted: set xmpp.listen = []")]
    ListensInVain,
    /// A component that is none of the served domains.
    #[error("components: {name} is none of [[domains]]: correct the name, or add a section for it")]
    UnknownComponent {
        /// The component's domain.
        name: String,
    },
    /// The same component at the same server twice.
    #[error("components: {name} is listed twice for {connect}: remove one of the sections")]
    DuplicateComponent {
        /// The component's domain.
        name: String,
        /// Where the server takes components.
        connect: String,
    },
    /// A silence that cannot work.
    #[error("components: {name}: keepalive_seconds is too small: set it to 1 or more")]
    KeepaliveTooSmall {
        /// The component's domain.
        name: String,
    },
    /// A target that is none.
    #[error("components: {name}: {connect:?} is no target: write host:port or unix:/path")]
    ComponentTarget {
        /// The component's domain.
        name: String,
        /// The target as configured.
        connect: String,
    },
    /// A file without a secret.
    #[error("{} holds no secret: write the one of the server's configuration, in one line", file.display())]
    NoSecret {
        /// The file.
        file: PathBuf,
    },
    /// A secret that is none.
    #[error("{} can be read by everybody on this machine: take that away with chmod o-rwx", file.display())]
    ExposedSecret {
        /// The file.
        file: PathBuf,
    },
    /// A server that is not there.
    #[error(
        "components: {name}: cannot connect to {connect} ({source}): start the server, and let it take \
         components there"
    )]
    NoHost {
        /// The component's domain.
        name: String,
        /// Where the server takes components.
        connect: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A domain nobody can register at.
    #[error("domains: {name} serves no app: name at least one of [apps] in its apps")]
    NoApps {
        /// The domain.
        name: String,
    },
    /// A contact that programs cannot open.
    #[error(
        "domains: {domain}: contacts.{kind}: {address:?} is no URI: write it like mailto:{kind}@example.org, \
         xmpp:{kind}@example.org or https://example.org/"
    )]
    Contact {
        /// The served domain.
        domain: String,
        /// What it is for.
        kind: &'static str,
        /// As configured.
        address: String,
    },
    /// A file that cannot be read.
    #[error("{} cannot be read ({source}): check the path and the permissions", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file that is no PEM, or not of the kind asked for.
    #[error("{} holds no {wanted} in PEM format: export it again as PEM", file.display())]
    NotPem {
        /// The file.
        file: PathBuf,
        /// What was looked for.
        wanted: &'static str,
    },
    /// A private key of a kind that TLS here does not know.
    #[error("{} is no usable private key ({source}): use an ECDSA P-256 or RSA key", file.display())]
    UnusableKey {
        /// The file.
        file: PathBuf,
        /// What the TLS library says.
        source: rustls::Error,
    },
    /// Key and certificate of different pairs.
    #[error(
        "{} is not the private key of {}: configure the two files of one issuance",
        key.display(), certificate.display()
    )]
    KeyMismatch {
        /// The private key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// The dialback secret can be neither read nor created.
    #[error("{} cannot be used as dialback secret ({source}): check the path and the permissions", file.display())]
    DialbackSecret {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The TLS library refuses its configuration.
    #[error("TLS cannot be set up ({0}): this is a fault of the build")]
    Tls(#[from] rustls::Error),
    /// A certificate that peers will refuse.
    #[error("{} does not cover the domain {domain}: get a certificate with it among its subject alternative names", certificate.display())]
    NotCovered {
        /// The certificate's file.
        certificate: PathBuf,
        /// The served domain.
        domain: String,
    },
    /// A private key that is none.
    #[error("{} can be read by everybody on this machine: take that away with chmod o-rwx", file.display())]
    ExposedKey {
        /// The file.
        file: PathBuf,
    },
    /// A certificate that peers refuse already.
    #[error("{} has expired: renew it", certificate.display())]
    Expired {
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// A certificate that peers do not take yet.
    #[error("{} is not valid yet: check the clock of this machine", certificate.display())]
    NotYetValid {
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// A certificate that peers will refuse soon.
    #[error("{} expires in {days} days: renew it", certificate.display())]
    Expiring {
        /// The certificate's file.
        certificate: PathBuf,
        /// Whole days left.
        days: u64,
    },
    /// Nobody's certificate can be verified.
    #[error(
        "no certificate authority is trusted, so peers can only use dialback: \
         install ca-certificates or list xmpp.ca_files"
    )]
    NoRoots,
    /// The machine gives no random numbers.
    #[error("the system gives no random numbers: check /dev/urandom")]
    Random,
    /// An address that cannot be listened on.
    #[error("cannot listen on {address} ({source}): {}", way_out(source))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// Listening sockets cannot be handed to the runtime.
    #[error("listening sockets cannot be used ({0}): check the limit of open files")]
    Sockets(#[source] std::io::Error),
}

/// What to do about an address that cannot be listened on.
fn way_out(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "ports below 1024 need the capability CAP_NET_BIND_SERVICE; take another one in xmpp.listen or \
             xmpp.listen_tls"
        }
        std::io::ErrorKind::AddrNotAvailable => {
            "give an address of this machine in xmpp.listen or xmpp.listen_tls"
        }
        _ => "free the port or change xmpp.listen or xmpp.listen_tls",
    }
}
