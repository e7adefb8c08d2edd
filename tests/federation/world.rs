//! A whole network: DNS, a user's server, Campanile, APNs, and the users.

use std::time::Instant;

use messages::{Clock, DeviceToken};
use simulators::Authority;

use crate::apple::{self, Apple};
use crate::campanile::{self, Campanile};
use crate::client::{Client, Reply};
use crate::directory::Directory;
use crate::dns::{Dns, Zone};
use crate::net::{Host, Net};
use crate::packages;
use crate::prosody::Prosody;
use crate::publish::Answer;
use crate::wait;

/// Of every account.
pub(crate) const PASSWORD: &str = "correct horse";

/// What bob writes.
pub(crate) const BODY: &str = "meet me at the lighthouse";

const REGISTER: &str = "https://github.com/tmolitor-stud-tu/mod_push_appserver/#v1-register-push";
const UNREGISTER: &str =
    "https://github.com/tmolitor-stud-tu/mod_push_appserver/#v1-unregister-push";

/// How a user's server and Campanile know each other, and find each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// By certificates that both trust, with SASL EXTERNAL. Neither is good for clients, as public
    /// authorities issue them. Found by SRV records alone, over IPv4.
    Certificate,
    /// By XEP-0220 over TLS, because the server's certificate is self-signed and it trusts no other.
    /// Found by address records alone, over IPv6.
    Dialback,
}

impl Mode {
    /// The domain of the user's server.
    pub(crate) const fn domain(self) -> &'static str {
        match self {
            Self::Certificate => "prosody.test",
            Self::Dialback => "prosody2.test",
        }
    }

    /// Where it takes streams of other servers.
    pub(crate) const fn server_port(self) -> u16 {
        match self {
            Self::Certificate => 5299,
            Self::Dialback => 5269,
        }
    }
}

/// Everything of one test. Fields that run programs come before what they stand on.
pub(crate) struct World {
    name: &'static str,
    began: Instant,
    pub(crate) mode: Mode,
    pub(crate) users: Client,
    pub(crate) campanile: Campanile,
    pub(crate) server: Prosody,
    pub(crate) apple: Apple,
    pub(crate) dns: Dns,
    pub(crate) campanile_host: Host,
    pub(crate) server_host: Host,
    _other_hosts: [Host; 3],
    _net: Net,
    _directory: Directory,
}

impl World {
    /// Builds it, with these accounts on the user's server.
    pub(crate) fn start(name: &'static str, mode: Mode, accounts: &[&str]) -> Self {
        let began = Instant::now();
        packages::require();
        let directory = Directory::new(name);
        let authority = Authority::new(&Clock::system()).expect("certificates can be made");

        let mut net = Net::new();
        let dns_host = net.host("dns");
        let server_host = net.host("server");
        let campanile_host = net.host("push");
        let apple_host = net.host("apns");
        let users_host = net.host("users");
        let domain = mode.domain();
        let zone = Zone::default().v4(apple::NAME, &apple_host);
        let zone = match mode {
            Mode::Certificate => zone
                .server(domain, "xmpp.prosody.test", mode.server_port())
                .v4("xmpp.prosody.test", &server_host)
                .server(campanile::DOMAIN, "xmpp.push.test", 5269)
                .v4("xmpp.push.test", &campanile_host),
            Mode::Dialback => zone
                .v6(domain, &server_host)
                .v6(campanile::DOMAIN, &campanile_host),
        };
        let dns = Dns::start(&dns_host, &zone, directory.path());
        let apple = Apple::start(&apple_host, &authority, directory.path());
        let server = Prosody::start(&server_host, mode, accounts, &authority, directory.path());
        let campanile = Campanile::start(&campanile_host, &apple, &authority, directory.path());
        let users = Client::start(&users_host, directory.path());

        let world = Self {
            name,
            began,
            mode,
            users,
            campanile,
            server,
            apple,
            dns,
            campanile_host,
            server_host,
            _other_hosts: [dns_host, apple_host, users_host],
            _net: net,
            _directory: directory,
        };
        world.step(&format!(
            "{domain}, {}, {} and DNS run",
            campanile::DOMAIN,
            apple::NAME
        ));
        world
    }

    /// Tells what has been seen to be so.
    #[allow(
        clippy::print_stdout,
        reason = "who runs the test with --nocapture reads along"
    )]
    pub(crate) fn step(&self, seen: &str) {
        println!(
            "[{} {:5.1} s] {seen}",
            self.name,
            self.began.elapsed().as_secs_f32()
        );
    }

    /// A user registers a device with the legacy command.
    #[track_caller]
    pub(crate) fn register(&mut self, user: &str, node: &str, token: &DeviceToken) -> Reply {
        let token = token.as_str();
        let fields = [
            ("FORM_TYPE", REGISTER),
            ("type", "apns"),
            ("node", node),
            ("token", token),
        ];
        self.users
            .command(user, campanile::DOMAIN, "v1-register-push", &fields)
    }

    /// A user ends the registration of a device.
    #[track_caller]
    pub(crate) fn unregister(&mut self, user: &str, node: &str) -> Reply {
        let fields = [("FORM_TYPE", UNREGISTER), ("type", "apns"), ("node", node)];
        self.users
            .command(user, campanile::DOMAIN, "v1-unregister-push", &fields)
    }

    /// A user logs in, registers her device, enables push with what she got, and logs out. Gives the
    /// secret.
    #[track_caller]
    pub(crate) fn sign_up(&mut self, user: &str, node: &str, token: &DeviceToken) -> String {
        self.users.login(user, &self.server);
        let reply = self.register(user, node, token);
        assert_eq!(reply.kind, "result", "{reply:?}");
        // The client takes no other word, not even the right one of XEP-0050.
        assert_eq!(reply.status.as_deref(), Some("complete"));
        assert_eq!(reply.field("jid"), campanile::DOMAIN);
        assert_eq!(reply.field("node"), node);
        let secret = reply.field("secret").to_owned();
        assert!(secret.len() >= 32, "128 bits or more");
        let enabled = self.users.enable(user, campanile::DOMAIN, node, &secret);
        assert_eq!(enabled.kind, "result", "{enabled:?}");
        self.users.logout(user);
        secret
    }

    /// Bob sends a message to a user who is offline: her server publishes once, and this is how
    /// Campanile answers.
    #[track_caller]
    pub(crate) fn publish(&mut self, to: &str) -> Answer {
        let before = self.server.publishes(campanile::DOMAIN).len();
        let to = format!("{to}@{}", self.server.domain());
        self.users.message("bob", &to, BODY);
        let publishes = wait::until("the server has its publish answered", || {
            let publishes = self.server.publishes(campanile::DOMAIN);
            publishes
                .get(before)
                .is_some_and(|new| !new.answers.is_empty())
                .then_some(publishes)
        });
        assert_eq!(publishes.len(), before + 1, "one message, one publish");
        match &publishes[before].answers[..] {
            [answer] => answer.clone(),
            answers => panic!("one publish, one answer: {answers:?}"),
        }
    }

    /// A message to a user wakes this device with one notification, and no other device.
    #[track_caller]
    pub(crate) fn assert_wakes(&mut self, user: &str, token: &DeviceToken) {
        let (accepted, requests) = (self.apple.accepted(token), self.apple.requests());
        assert_eq!(self.publish(user), Answer::Result);
        assert_eq!(
            self.apple.accepted(token),
            accepted + 1,
            "the device has its notification"
        );
        assert_eq!(self.apple.requests(), requests + 1, "and APNs nothing else");
    }

    /// Ends Campanile and looks back: everything published was answered once, and APNs has got this
    /// many requests.
    #[track_caller]
    pub(crate) fn finish(&mut self, requests: u64) {
        self.campanile.stop();
        self.step("Campanile drained and ended with exit code 0");
        assert_eq!(self.apple.requests(), requests, "nothing came late");
        for publish in self.server.publishes(campanile::DOMAIN) {
            assert_eq!(
                publish.answers.len(),
                1,
                "each publish has exactly one answer"
            );
        }
    }

    /// Fails unless both servers asked the network's DNS for each other.
    #[track_caller]
    pub(crate) fn assert_found_by_dns(&self) {
        let (server, push) = (self.mode.domain(), campanile::DOMAIN);
        let asked = |kind, name: &str, by| {
            assert!(
                self.dns.was_asked(kind, name, by),
                "nobody asked for {kind} of {name}"
            );
        };
        asked(
            "SRV",
            &format!("_xmpp-server._tcp.{server}"),
            &self.campanile_host,
        );
        asked(
            "SRV",
            &format!("_xmpp-server._tcp.{push}"),
            &self.server_host,
        );
        asked("A", apple::NAME, &self.campanile_host);
    }

    /// Fails when Campanile has logged any of these.
    #[track_caller]
    pub(crate) fn assert_log_tells_nothing(&self, private: &[&str]) {
        let log = self.campanile.log().to_lowercase();
        assert!(
            log.contains(self.mode.domain()),
            "the log is one of this test"
        );
        for text in private {
            assert!(!log.contains(&text.to_lowercase()), "{text} is in the log");
        }
    }
}
