//! What the test wants of a user's server, whoever made it.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use simulators::{Authority, Identity, Kind};

use crate::ejabberd::Ejabberd;
use crate::jabberd::Jabberd;
use crate::net::Host;
use crate::prosody::Prosody;
use crate::publish::Publish;
use crate::world::{Link, Route};

/// Who made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Make {
    Prosody,
    Ejabberd,
    Jabberd,
}

impl Make {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Prosody => "Prosody",
            Self::Ejabberd => "ejabberd",
            Self::Jabberd => "jabberd2",
        }
    }

    /// The domain of the user's server.
    pub(crate) const fn domain(self) -> &'static str {
        match self {
            Self::Prosody => "prosody.test",
            Self::Ejabberd => "ejabberd.test",
            Self::Jabberd => "jabberd.test",
        }
    }
}

/// The certificate of a server, and whom it trusts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Certificate {
    /// Of the authority that all trust, good for both ends of a connection.
    Trusted,
    /// The same without the extended key usage for clients, as public authorities issue them.
    ServerOnly,
    /// Its own; it trusts no other.
    SelfSigned,
    /// Ended an hour ago. It trusts the authority.
    Expired,
}

impl Certificate {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Trusted => "EXTERNAL",
            Self::SelfSigned => "self-signed with dialback",
            Self::Expired => "expired with dialback",
            Self::ServerOnly => "server-auth-only certificate",
        }
    }

    /// Whether who trusts the authority believes it.
    pub(crate) const fn is_good(self) -> bool {
        matches!(self, Self::Trusted | Self::ServerOnly)
    }

    pub(crate) fn issue(self, authority: &Authority, names: &[&str]) -> Identity {
        let kind = match self {
            Self::Trusted => Kind::ServerAndClient,
            Self::ServerOnly => Kind::ServerOnly,
            Self::SelfSigned => Kind::SelfSigned,
            Self::Expired => Kind::Expired,
        };
        authority.issue(names, kind).expect("a domain is a name")
    }
}

/// How a domain was proven on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Proof {
    /// SASL EXTERNAL, by the certificate.
    External,
    /// XEP-0220.
    Dialback,
}

/// How a server and the push service proved their domains to each other, by the server's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proofs {
    /// On the streams that the server opened.
    pub(crate) server: BTreeSet<Proof>,
    /// On the streams that the push service opened.
    pub(crate) service: BTreeSet<Proof>,
}

impl Proofs {
    pub(crate) fn new(
        server: impl IntoIterator<Item = Proof>,
        service: impl IntoIterator<Item = Proof>,
    ) -> Self {
        Self {
            server: server.into_iter().collect(),
            service: service.into_iter().collect(),
        }
    }

    /// Each direction in one way.
    pub(crate) fn of(server: Proof, service: Proof) -> Self {
        Self::new([server], [service])
    }

    /// What of a log tells each of the four.
    pub(crate) fn read(log: &str, server: [&str; 2], service: [&str; 2]) -> Self {
        let seen = |lines: [&str; 2]| {
            let proofs = [Proof::External, Proof::Dialback];
            let pairs = lines.into_iter().zip(proofs);
            pairs
                .filter(|(line, _)| log.contains(line))
                .map(|(_, proof)| proof)
                .collect::<Vec<_>>()
        };
        Self::new(seen(server), seen(service))
    }
}

/// A server to start.
pub(crate) struct Setup<'a> {
    pub(crate) make: Make,
    pub(crate) certificate: Certificate,
    pub(crate) host: &'a Host,
    /// Where it takes streams of other servers.
    pub(crate) port: u16,
    pub(crate) route: Route,
    pub(crate) link: Link,
    /// The domain of the push service, for a component of it.
    pub(crate) service: &'a str,
    /// Whether it has a second domain, for a component.
    pub(crate) elsewhere: bool,
    pub(crate) accounts: &'a [&'a str],
    pub(crate) authority: &'a Authority,
    pub(crate) directory: &'a Path,
}

impl Setup<'_> {
    pub(crate) fn start(&self) -> Box<dyn Server> {
        match self.make {
            Make::Prosody => Box::new(Prosody::start(self)),
            Make::Ejabberd => Box::new(Ejabberd::start(self)),
            Make::Jabberd => Box::new(Jabberd::start(self)),
        }
    }

    /// Whom it trusts, as a file.
    pub(crate) fn write_trust(&self, identity: &Identity, directory: &Path) -> PathBuf {
        let trust = directory.join("trust.pem");
        fs::write(&trust, identity.root_pem()).expect("the directory of the test can be written");
        trust
    }

    /// The same file for its clients, if that makes them believe it.
    pub(crate) fn trust_of_clients(&self, trust: PathBuf) -> Option<PathBuf> {
        (self.certificate != Certificate::Expired).then_some(trust)
    }
}

/// Where a server takes components, and their secret.
pub(crate) const COMPONENT_PORT: u16 = 5347;
pub(crate) const COMPONENT_SECRET: &str = "component secret";

/// Where a component logs in to a server (XEP-0114).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Component {
    pub(crate) domain: &'static str,
    pub(crate) address: (IpAddr, u16),
    pub(crate) secret: &'static str,
}

/// A running server of users.
pub(crate) trait Server {
    fn domain(&self) -> &'static str;

    /// Where clients connect to.
    fn client_address(&self) -> (IpAddr, u16);

    /// The certificate file that clients trust, if they can trust it at all.
    fn trust(&self) -> Option<&Path>;

    /// The component that stands in for its push module, where it has none.
    fn stand_in(&self) -> Option<Component> {
        None
    }

    /// What its push module has published to a push service until now, in order, and how that was
    /// answered.
    fn publishes(&self, service: &str) -> Vec<Publish>;

    /// Whether a user who has logged out has left in every part of it.
    fn has_left(&self, _user: &str) -> bool {
        true
    }

    /// Whether it waits for a user whose connection broke to resume her stream (XEP-0198).
    fn awaits(&self, user: &str) -> bool;

    /// How it and the push service have authenticated until now.
    fn proofs(&self, service: &str) -> Proofs;

    /// Ends it as a service manager does, and starts it again.
    fn restart(&mut self);
}

/// A template with its names filled in.
pub(crate) fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let text = template.to_owned();
    values.iter().fold(text, |text, (name, value)| {
        text.replace(&format!("@{name}@"), value)
    })
}
