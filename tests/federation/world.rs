//! A whole network: DNS, a user's server, Campanile, APNs, and the users.

use std::collections::BTreeMap;
use std::time::Instant;

use messages::{Clock, DeviceToken};
use simulators::Authority;

use crate::apple::{self, Apple};
use crate::campanile::{self, Campanile};
use crate::client::{Client, Reply};
use crate::directory::Directory;
use crate::dns::{Dns, Zone};
use crate::jabberd;
use crate::net::{Host, Net};
use crate::packages;
use crate::prosody;
use crate::publish::Answer;
use crate::server::{Certificate, Make, Server, Setup};
use crate::wait;

/// Of every account.
pub(crate) const PASSWORD: &str = "correct horse";

/// What bob writes.
pub(crate) const BODY: &str = "meet me at the lighthouse";

const REGISTER: &str = "https://github.com/tmolitor-stud-tu/mod_push_appserver/#v1-register-push";
const UNREGISTER: &str =
    "https://github.com/tmolitor-stud-tu/mod_push_appserver/#v1-unregister-push";

/// What a network is made of.
pub(crate) struct Plan {
    /// Of the test, for who reads along.
    pub(crate) name: String,
    /// The server of the users, and its certificate.
    pub(crate) make: Make,
    pub(crate) certificate: Certificate,
    /// Campanile's certificate.
    pub(crate) own_certificate: Certificate,
    pub(crate) route: Route,
    pub(crate) link: Link,
    /// Whether APNs refuses a second provider token within twenty minutes.
    pub(crate) token_updates_limited: bool,
    /// Whether Prosody has a second domain, for a component.
    pub(crate) elsewhere: bool,
}

impl Plan {
    pub(crate) fn new(name: &str, make: Make, certificate: Certificate) -> Self {
        Self {
            name: name.to_owned(),
            make,
            certificate,
            own_certificate: Certificate::Trusted,
            route: Route::Srv,
            link: Link::Streams,
            token_updates_limited: true,
            elsewhere: false,
        }
    }
}

/// What the user's server and Campanile are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// Servers, each with a stream of its own.
    Streams,
    /// Servers, of which the user's has its answers on the stream that asks (XEP-0288).
    Bidi,
    /// Campanile is a component (XEP-0114).
    Component,
}

/// How a user's server and Campanile find each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// By SRV records; their targets have addresses of both families. The server has a port of its own.
    Srv,
    /// By AAAA records of the domains alone.
    V6Only,
    /// By SRV records for direct TLS alone (XEP-0368).
    DirectTls,
    /// By SRV records whose first target has an address where nobody listens.
    DeadFirst,
}

impl Route {
    /// Where Campanile does.
    const fn port(self) -> u16 {
        match self {
            Self::DirectTls => campanile::TLS_PORT,
            Self::Srv | Self::V6Only | Self::DeadFirst => campanile::PORT,
        }
    }

    /// Where the user's server takes streams of other servers.
    const fn server_port(self) -> u16 {
        match self {
            Self::V6Only => 5269,
            Self::DirectTls => 5270,
            Self::Srv | Self::DeadFirst => 5299,
        }
    }

    fn zone(self, zone: Zone, domain: &str, host: &Host, port: u16) -> Zone {
        let target = format!("xmpp.{domain}");
        let dead = format!("dead.{domain}");
        match self {
            Self::Srv => zone
                .server(domain, &target, port, 10)
                .v4(&target, host)
                .v6(&target, host),
            Self::V6Only => zone.v6(domain, host),
            Self::DirectTls => zone
                .direct_tls(domain, &target, port)
                .v4(&target, host)
                .v6(&target, host),
            // A port of the same host that is closed answers at once, and one of no host never.
            Self::DeadFirst => zone
                .server(domain, &dead, 5269, 1)
                .nobody(&dead)
                .server(domain, &target, 5298, 5)
                .server(domain, &target, port, 10)
                .v4(&target, host)
                .v6(&target, host),
        }
    }
}

/// Everything of one test. Fields that run programs come before what they stand on.
pub(crate) struct World {
    name: String,
    began: Instant,
    /// Which domain of Campanile's is used.
    pub(crate) service: String,
    /// Whether answers may have been repeated, since a stream with answers on it broke.
    repeats: bool,
    /// What the stand-in of a push module knows: each user's node and its secret.
    registered: BTreeMap<String, (String, String)>,
    pub(crate) users: Client,
    pub(crate) campanile: Campanile,
    pub(crate) server: Box<dyn Server>,
    pub(crate) apple: Apple,
    pub(crate) dns: Dns,
    pub(crate) campanile_host: Host,
    pub(crate) server_host: Host,
    _other_hosts: [Host; 3],
    pub(crate) net: Net,
    _directory: Directory,
}

impl World {
    /// Builds it, with these accounts on the user's server.
    pub(crate) fn start(plan: &Plan, accounts: &[&str]) -> Self {
        let began = Instant::now();
        packages::require();
        let directory = Directory::new(&plan.name);
        let authority = Authority::new(&Clock::system()).expect("certificates can be made");

        let mut net = Net::new();
        let dns_host = net.host("dns");
        let server_host = net.host("server");
        let campanile_host = net.host("push");
        let apple_host = net.host("apns");
        let users_host = net.host("users");
        let domain = plan.make.domain();
        let server_port = plan.route.server_port();
        let zone = Zone::default().v4(apple::NAME, &apple_host);
        let zone = plan.route.zone(zone, domain, &server_host, server_port);
        let service = match plan.link {
            Link::Component => format!("push.{domain}"),
            Link::Streams | Link::Bidi => campanile::DOMAIN.to_owned(),
        };
        let zone = campanile::DOMAINS.into_iter().fold(zone, |zone, name| {
            plan.route
                .zone(zone, name, &campanile_host, plan.route.port())
        });
        let zone = match plan.make {
            Make::Jabberd => plan
                .route
                .zone(zone, jabberd::STAND_IN, &server_host, server_port),
            Make::Prosody if plan.elsewhere => {
                plan.route
                    .zone(zone, prosody::ELSEWHERE, &server_host, server_port)
            }
            Make::Prosody | Make::Ejabberd => zone,
        };
        let dns = Dns::start(&dns_host, &zone, directory.path());
        let apple = Apple::start(
            &apple_host,
            &authority,
            directory.path(),
            plan.token_updates_limited,
        );
        let server = Setup {
            make: plan.make,
            certificate: plan.certificate,
            host: &server_host,
            port: server_port,
            route: plan.route,
            link: plan.link,
            service: &service,
            elsewhere: plan.elsewhere,
            accounts,
            authority: &authority,
            directory: directory.path(),
        }
        .start();
        let campanile = campanile::Setup {
            host: &campanile_host,
            apple: &apple,
            authority: &authority,
            certificate: plan.own_certificate,
            component_of: (plan.link == Link::Component).then_some(&server_host),
            service: &service,
            directory: directory.path(),
        }
        .start();
        let users = Client::start(&users_host, directory.path());

        let world = Self {
            name: plan.name.clone(),
            began,
            service,
            repeats: false,
            registered: BTreeMap::new(),
            users,
            campanile,
            server,
            apple,
            dns,
            campanile_host,
            server_host,
            _other_hosts: [dns_host, apple_host, users_host],
            net,
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

    /// A user logs in, and makes her available.
    #[track_caller]
    pub(crate) fn login(&mut self, user: &str) {
        self.users.login(user, &*self.server);
    }

    /// A user logs out.
    #[track_caller]
    pub(crate) fn logout(&mut self, user: &str) {
        self.users.logout(user);
        wait::until("the server lets the user go", || {
            self.server.has_left(user).then_some(())
        });
    }

    /// A user registers a device with the legacy command.
    #[track_caller]
    pub(crate) fn register(&mut self, user: &str, node: &str, token: &DeviceToken) -> Reply {
        self.users.command(
            user,
            &self.service,
            "v1-register-push",
            &registration(node, token),
        )
    }

    /// A user ends the registration of a device.
    #[track_caller]
    pub(crate) fn unregister(&mut self, user: &str, node: &str) -> Reply {
        let fields = [("FORM_TYPE", UNREGISTER), ("type", "apns"), ("node", node)];
        self.users
            .command(user, &self.service, "v1-unregister-push", &fields)
    }

    /// A user logs in, registers her device, enables push with what she got, and logs out. Gives the
    /// secret.
    #[track_caller]
    pub(crate) fn sign_up(&mut self, user: &str, node: &str, token: &DeviceToken) -> String {
        self.login(user);
        let secret = self.register_and_enable(user, node, token);
        self.logout(user);
        secret
    }

    /// A user who is logged in registers her device and enables push with what she got. Gives the secret.
    #[track_caller]
    pub(crate) fn register_and_enable(
        &mut self,
        user: &str,
        node: &str,
        token: &DeviceToken,
    ) -> String {
        let reply = self.register(user, node, token);
        assert_eq!(reply.kind, "result", "{reply:?}");
        // The client takes no other word, not even the right one of XEP-0050.
        assert_eq!(reply.status.as_deref(), Some("complete"));
        assert_eq!(reply.field("jid"), self.service);
        assert_eq!(reply.field("node"), node);
        let secret = reply.field("secret").to_owned();
        assert!(secret.len() >= 32, "128 bits or more");
        if let Some(component) = self.server.stand_in() {
            self.users.attach(&component);
            let sender = format!("{user}@{}", component.domain);
            let reply = self.users.command_from(
                Some(&sender),
                component.domain,
                &self.service,
                "v1-register-push",
                &registration(node, token),
            );
            let secret = reply.field("secret").to_owned();
            let registered = (node.to_owned(), secret);
            self.registered.insert(user.to_owned(), registered);
        } else {
            let enabled = self.users.enable(user, &self.service, node, &secret);
            assert_eq!(enabled.kind, "result", "{enabled:?}");
        }
        secret
    }

    /// A user logs in to end push at her server, and logs out.
    #[track_caller]
    pub(crate) fn disable(&mut self, user: &str) {
        if self.server.stand_in().is_some() {
            return;
        }
        self.login(user);
        let disabled = self.users.disable(user, &self.service);
        assert_eq!(disabled.kind, "result", "{disabled:?}");
        self.logout(user);
    }

    /// Bob sends a message to a user who is offline: her server publishes once, and this is how
    /// Campanile answers. Where it has no push module its stand-in publishes.
    #[track_caller]
    pub(crate) fn publish(&mut self, to: &str) -> Answer {
        if let Some(component) = self.server.stand_in() {
            let (node, secret) = &self.registered[to];
            let reply = self.users.publish(&component, &self.service, node, secret);
            return match reply.error {
                None => Answer::Result,
                Some(error) => Answer::Error(error),
            };
        }
        let before = self.server.publishes(&self.service).len();
        let to = format!("{to}@{}", self.server.domain());
        self.users.message("bob", &to, BODY);
        let publishes = wait::until("the server has its publish answered", || {
            let publishes = self.server.publishes(&self.service);
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

    /// Ends the user's server and starts it again.
    #[track_caller]
    pub(crate) fn restart_server(&mut self) {
        // What was written just before may not have arrived, so it is written again.
        self.repeats = true;
        self.server.restart();
    }

    /// Ends Campanile and looks back: everything published was answered once, and APNs has got this
    /// many requests.
    #[track_caller]
    pub(crate) fn finish(&mut self, requests: u64) {
        self.campanile.stop();
        self.step("Campanile drained and ended with exit code 0");
        assert_eq!(self.apple.requests(), requests, "nothing came late");
        for mut publish in self.server.publishes(&self.service) {
            if self.repeats {
                publish.answers.dedup();
            }
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
        let (server, push) = (self.server.domain(), campanile::DOMAIN);
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
            log.contains(self.server.domain()),
            "the log is one of this test"
        );
        for text in private {
            assert!(!log.contains(&text.to_lowercase()), "{text} is in the log");
        }
    }
}

/// The form of the legacy command that registers a device.
fn registration<'a>(node: &'a str, token: &'a DeviceToken) -> [(&'static str, &'a str); 4] {
    [
        ("FORM_TYPE", REGISTER),
        ("type", "apns"),
        ("node", node),
        ("token", token.as_str()),
    ]
}
