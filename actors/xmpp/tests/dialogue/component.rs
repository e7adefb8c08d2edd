//! Components of a scripted server.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use actix::Actor as _;
use messages::{Domain, Probe, PublishBatch, PushOutcome};
use testkit::{Collector, PATIENCE};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::time::timeout;
use xmpp::{ComponentConfig, Config, DomainConfig, Ingress, component, gate};

use crate::flow::COMMAND;
use crate::peer::{Peer, publish, result};
use crate::world::{Registry, World, drain, nodes};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);

const OPENING: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:component:accept' \
    xmlns:stream='http://etherx.jabber.org/streams' to='push.test'>";
/// As Prosody writes it.
const GREETING: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:component:accept' \
    xmlns:stream='http://etherx.jabber.org/streams' id='c0ffee42' from='push.test'>";
/// Of that stream id and the secret `open-sesame`.
const HANDSHAKE: &str = "<handshake>b837926650f1013de2fea94cab83fed1a3b9464e</handshake>";

fn stream_error(condition: &str) -> String {
    format!(
        "<stream:error><{condition} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>\
         </stream:stream>"
    )
}

/// A server that takes components.
struct Host {
    socket: TcpListener,
}

impl Host {
    async fn start() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { socket }
    }

    fn target(&self) -> String {
        self.socket.local_addr().unwrap().to_string()
    }

    /// Takes a connection and its header.
    async fn accept(&self) -> Peer<TcpStream> {
        let (socket, _) = timeout(PATIENCE, self.socket.accept())
            .await
            .expect("no component")
            .unwrap();
        let mut peer = Peer::new(socket);
        peer.expect(OPENING).await;
        peer
    }

    /// Takes a connection and authenticates it.
    async fn admit(&self) -> Peer<TcpStream> {
        welcome(self.accept().await).await
    }
}

async fn welcome<T: AsyncRead + AsyncWrite + Unpin>(mut peer: Peer<T>) -> Peer<T> {
    peer.send(GREETING).await;
    peer.expect(HANDSHAKE).await;
    peer.send("<handshake/>").await;
    peer
}

fn secret_file(world: &World, secret: &str) -> PathBuf {
    let file = world.path("component.secret");
    fs::write(&file, secret).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    file
}

fn domain() -> DomainConfig {
    DomainConfig {
        name: "push.test".to_owned(),
        certificate: None,
        key: None,
        apps: vec!["app".to_owned()],
        contacts: xmpp::Contacts::default(),
        disclosure: messages::Disclosure::Nothing,
    }
}

fn at(world: &World, connect: String) -> ComponentConfig {
    ComponentConfig {
        domain: "push.test".to_owned(),
        connect,
        secret_file: secret_file(world, "open-sesame\n"),
        keepalive_seconds: 60,
    }
}

fn config(world: &World) -> Config {
    Config {
        listen: Vec::new(),
        ..world.config()
    }
}

/// The service as a component alone.
struct Service {
    published: Collector<PublishBatch>,
    gate: gate::Handles,
}

impl Service {
    async fn start(config: &Config, component: ComponentConfig) -> Self {
        let domains = [domain()];
        let ingress = Ingress::prepare(config, &domains, "1.2.3").unwrap();
        let published = Collector::start();
        let registry = Registry.start();
        let edges = gate::Edges {
            publish: published.recipient(),
            register: registry.clone().recipient(),
            unregister: registry.recipient(),
            privacy: None,
            egress: Vec::new(),
        };
        let gate = gate::start(&ingress, edges);
        let components = component::prepare(config, &domains, &[component]).unwrap();
        for component in components {
            assert_eq!(component.domain().as_str(), "push.test");
            gate.attach.send(component).await.unwrap();
        }
        Self { published, gate }
    }

    async fn settle(&mut self, outcome: PushOutcome) {
        let batch = self.published.take().await;
        let outcomes = batch.items.iter().map(|item| (item.ticket, outcome));
        assert_eq!(batch.origin.tell(outcomes.collect()), 0);
    }

    async fn count(&self, name: &str) -> u64 {
        let counters = self.gate.probe.send(Probe).await.unwrap().counters;
        let counter = counters.iter().find(|(known, _)| *known == name);
        counter.unwrap_or_else(|| panic!("no counter {name}")).1
    }

    async fn counted(&self, name: &str, value: u64) {
        let begun = Instant::now();
        while self.count(name).await != value {
            assert!(begun.elapsed() < PATIENCE, "{name} is not {value}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[actix::test]
async fn a_publish_is_answered_on_the_stream_it_came_on() {
    let world = World::new();
    let host = Host::start().await;
    let mut service = Service::start(&config(&world), at(&world, host.target())).await;
    let mut peer = host.admit().await;
    // ejabberd may declare the namespace again.
    let explicit = publish("b", "n2").replace("<iq ", "<iq xmlns='jabber:component:accept' ");
    peer.send(&format!("{}\n{explicit}", publish("a", "n1")))
        .await;
    let batch = service.published.take().await;
    assert_eq!(nodes(&batch), ["n1", "n2"]);
    assert_eq!(batch.items[0].domain.as_str(), "peer.test");
    assert_eq!(batch.items[0].service.as_str(), "push.test");
    assert_eq!(service.gate.load.get(), 2);
    for item in batch.items.iter().rev() {
        let outcome = vec![(item.ticket, PushOutcome::Accepted)];
        assert_eq!(batch.origin.tell(outcome), 0);
    }
    peer.expect(&result("b")).await;
    peer.expect(&result("a")).await;
    // Another server behind the same stream.
    peer.send(&publish("c", "n3").replace("peer.test", "other.test"))
        .await;
    service.settle(PushOutcome::Accepted).await;
    peer.expect("<iq type='result' id='c' from='push.test' to='other.test'/>")
        .await;
    service.counted("component_replies_written_total", 3).await;
    assert_eq!(service.count("components_open").await, 1);
    assert_eq!(service.gate.load.get(), 0);
}

#[actix::test]
async fn the_domain_answers_as_on_streams_between_servers() {
    let world = World::new();
    let host = Host::start().await;
    let service = Service::start(&config(&world), at(&world, host.target())).await;
    let mut peer = host.admit().await;
    peer.send(&COMMAND.replace("NODE", "v1-register-push"))
        .await;
    let answer = peer.until("</iq>").await;
    assert!(
        answer.starts_with("<iq type='result' id='r' from='push.test' to='ada@peer.test/phone'>")
    );
    assert!(
        answer.contains("<value>secret of ada@peer.test</value>"),
        "{answer}"
    );
    peer.send(&COMMAND.replace("NODE", "v1-unregister-push"))
        .await;
    let answer = peer.until("</iq>").await;
    assert!(answer.contains(" status='complete'"), "{answer}");
    peer.send(
        "<message from='ada@peer.test' to='push.test'><body>hello</body></message>\
         <iq type='get' id='d' from='peer.test' to='push.test'>\
         <query xmlns='http://jabber.org/protocol/disco#info'/></iq>",
    )
    .await;
    let answer = peer.until("</iq>").await;
    assert!(
        answer.contains("<identity category='pubsub' type='push'"),
        "{answer}"
    );
    peer.send(
        "<iq type='get' id='v' from='peer.test' to='push.test'><query xmlns='jabber:iq:version'/></iq>\
         <iq type='get' id='p' from='peer.test' to='push.test'><ping xmlns='urn:xmpp:ping'/></iq>",
    )
    .await;
    let answer = peer.until("</iq>").await;
    assert!(answer.contains("<version>1.2.3</version>"), "{answer}");
    peer.expect(&result("p")).await;
    assert_eq!(service.count("registrations_total").await, 2);
    assert_eq!(service.count("replies_total").await, 5);
}

#[actix::test]
async fn a_corrected_secret_needs_no_restart() {
    let world = World::new();
    let host = Host::start().await;
    let component = at(&world, host.target());
    secret_file(&world, "open-sesam");
    let service = Service::start(&config(&world), component).await;
    let mut peer = host.accept().await;
    peer.send(GREETING).await;
    let proof = peer.until("</handshake>").await;
    assert_ne!(proof, HANDSHAKE);
    secret_file(&world, "open-sesame");
    peer.send(&stream_error("not-authorized")).await;
    drop(peer);
    host.admit().await;
    assert_eq!(service.count("component_connects_failed_total").await, 1);
    assert_eq!(service.count("component_connects_total").await, 2);
}

#[actix::test]
async fn a_server_that_refuses_is_asked_again() {
    let world = World::new();
    let host = Host::start().await;
    let service = Service::start(&config(&world), at(&world, host.target())).await;
    let mut peer = host.accept().await;
    // Some servers refuse with the header, before any handshake.
    peer.send(&(GREETING.to_owned() + &stream_error("host-unknown")))
        .await;
    drop(peer);
    let mut peer = host.accept().await;
    peer.send(&GREETING.replace("jabber:component:accept", "jabber:client"))
        .await;
    drop(peer);
    let mut peer = host.admit().await;
    service.counted("components_open", 1).await;
    assert_eq!(service.count("component_connects_failed_total").await, 2);
    // Kicked out by another one: not before a while.
    let kicked = Instant::now();
    peer.send(&stream_error("conflict")).await;
    peer.expect_end("</stream:stream>").await;
    drop(peer);
    host.admit().await;
    assert!(kicked.elapsed() >= Duration::from_secs(1));
}

#[actix::test]
async fn answers_outlive_the_stream() {
    let world = World::new();
    let host = Host::start().await;
    let mut service = Service::start(&config(&world), at(&world, host.target())).await;
    let mut peer = host.admit().await;
    peer.send(&publish("a", "n")).await;
    let batch = service.published.take().await;
    // The server restarts before there is a verdict.
    peer.send("</stream:stream>").await;
    peer.expect_end("</stream:stream>").await;
    drop(peer);
    service.counted("components_open", 0).await;
    let outcome = vec![(batch.items[0].ticket, PushOutcome::Accepted)];
    assert_eq!(batch.origin.tell(outcome), 0);
    let mut peer = host.admit().await;
    peer.expect(&result("a")).await;
    peer.send(&publish("b", "n")).await;
    service.settle(PushOutcome::Accepted).await;
    peer.expect(&result("b")).await;
    assert_eq!(service.count("replies_unsent_total").await, 0);
}

#[actix::test]
async fn answers_that_come_too_late_are_lost_and_counted() {
    let world = World::new();
    let host = Host::start().await;
    let mut config = config(&world);
    config.egress_wait_seconds = 1;
    let mut service = Service::start(&config, at(&world, host.target())).await;
    let mut peer = host.admit().await;
    peer.send(&publish("a", "n")).await;
    let batch = service.published.take().await;
    drop((peer, host));
    service.counted("components_open", 0).await;
    let outcome = vec![(batch.items[0].ticket, PushOutcome::Accepted)];
    assert_eq!(batch.origin.tell(outcome), 0);
    service.counted("replies_unsent_total", 1).await;
}

#[actix::test]
async fn a_socket_in_the_file_system() {
    let world = World::new();
    let path = world.path("components.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let target = format!("unix:{}", path.display());
    let mut service = Service::start(&config(&world), at(&world, target)).await;
    let (accepted, _) = timeout(PATIENCE, socket.accept()).await.unwrap().unwrap();
    let mut peer = Peer::new(accepted);
    peer.expect(OPENING).await;
    let mut peer = welcome(peer).await;
    peer.send(&publish("a", "n")).await;
    service.settle(PushOutcome::Accepted).await;
    peer.expect(&result("a")).await;
}

#[actix::test]
async fn what_no_stranger_may_do_is_passed_over() {
    let world = World::new();
    let host = Host::start().await;
    let mut config = config(&world);
    config.stanza_bytes_max = 10_000;
    let mut service = Service::start(&config, at(&world, host.target())).await;
    let mut peer = host.admit().await;
    let good = publish("x", "n");
    let large = good.replace("</iq>", &format!("<x>{}</x></iq>", "<y/>".repeat(5_000)));
    let deep = good.replace("</iq>", &("<x>".repeat(40) + &"</x>".repeat(40) + "</iq>"));
    let wide = good.replace("</iq>", &format!("<x y='{}'/></iq>", "z".repeat(9_000)));
    let unbound = good.replace("</iq>", "<no:such/></iq>");
    let own = good.replace("'peer.test'", "'push.test'");
    let own_user = COMMAND.replace("ada@peer.test", "ada@Push.test");
    let foreign = good.replace("to='push.test'", "to='pull.test'");
    let nobody = good.replace("'peer.test'", "'@'");
    let strange = [
        &*large,
        &*deep,
        &*wide,
        &*unbound,
        &*own,
        &*own_user,
        &*foreign,
        &*nobody,
        "<handshake xmlns='jabber:server'/>",
        "<iq type='get' id='1' to='push.test'><ping xmlns='urn:xmpp:ping'/></iq>",
        "<message from='peer.test'/>",
        "<odd from='peer.test' to='push.test'/>",
    ];
    peer.send(&strange.concat()).await;
    peer.send(&publish("after", "n-after")).await;
    let batch = service.published.take().await;
    assert_eq!(nodes(&batch), ["n-after"]);
    let outcome = vec![(batch.items[0].ticket, PushOutcome::Accepted)];
    assert_eq!(batch.origin.tell(outcome), 0);
    peer.expect(&result("after")).await;
    assert_eq!(
        service.count("stanzas_passed_over_total").await,
        strange.len() as u64
    );
    // What no server writes ends the stream.
    peer.send("<iq type='get'><!-- --></iq>").await;
    let end = peer.until("</stream:stream>").await;
    assert!(end.starts_with("<stream:error><restricted-xml "), "{end}");
}

#[actix::test]
async fn each_sender_is_taken_for_itself() {
    let world = World::new();
    let host = Host::start().await;
    let mut service = Service::start(&config(&world), at(&world, host.target())).await;
    let mut peer = host.admit().await;
    let of = |from: &str| publish("x", "n").replace("'peer.test'", &format!("'{from}'"));
    let publishes = [
        "peer.test",
        "peer.test",
        "push.test",
        "other.test",
        "@",
        "other.test",
        "push.test",
        "Peer.Test.",
        "peer.test",
    ];
    peer.send(&publishes.map(of).concat()).await;
    let mut domains = Vec::new();
    while domains.len() < 6 {
        let batch = service.published.take().await;
        domains.extend(batch.items.iter().map(|item| item.domain.clone()));
    }
    let expected = [
        "peer.test",
        "peer.test",
        "other.test",
        "other.test",
        "peer.test",
        "peer.test",
    ];
    assert_eq!(domains, expected.map(Domain::new));
    assert_eq!(service.count("stanzas_passed_over_total").await, 3);
}

#[actix::test]
async fn silence_is_broken_and_then_taken_for_death() {
    let world = World::new();
    let host = Host::start().await;
    let mut component = at(&world, host.target());
    component.keepalive_seconds = 1;
    let service = Service::start(&config(&world), component).await;
    let mut peer = host.admit().await;
    let ping = "<iq type='get' id='ping' from='push.test' to='push.test'>\
                <ping xmlns='urn:xmpp:ping'/></iq>";
    let silence = peer.until(ping).await;
    let spaces = silence.strip_suffix(ping).unwrap();
    assert!(spaces.len() >= 3 && spaces.trim().is_empty(), "{silence:?}");
    // The server gives the ping back, as one does, and it is a sign of life.
    peer.send(ping).await;
    let silence = peer.until(ping).await;
    assert!(
        silence.strip_suffix(ping).unwrap().len() >= 3,
        "{silence:?}"
    );
    let end = peer.until("</stream:stream>").await;
    assert!(
        end.trim_start()
            .starts_with("<stream:error><connection-timeout "),
        "{end}"
    );
    drop(peer);
    host.admit().await;
    assert_eq!(service.count("replies_total").await, 0);
}

#[actix::test]
async fn a_server_that_does_not_read_is_left() {
    let world = World::new();
    let host = Host::start().await;
    let mut config = config(&world);
    config.write_stall_seconds = 1;
    config.egress_queue_bytes_max = 64 << 20;
    let service = Service::start(&config, at(&world, host.target())).await;
    let mut peer = host.admit().await;
    let id = "i".repeat(1_000);
    let ping = format!(
        "<iq type='get' id='{id}' from='peer.test' to='push.test'><ping xmlns='urn:xmpp:ping'/></iq>"
    );
    let flood = ping.repeat(1_000);
    peer.flood(&flood).await;
    host.admit().await;
    assert!(service.count("replies_total").await > 1_000);
}

#[actix::test]
async fn what_is_unanswered_is_answered_before_the_end() {
    let world = World::new();
    let host = Host::start().await;
    let mut service = Service::start(&config(&world), at(&world, host.target())).await;
    let mut peer = host.admit().await;
    peer.send(&publish("a", "n")).await;
    let batch = service.published.take().await;
    let gate = service.gate.drain.clone();
    let draining = actix_rt::spawn(async move { drain(&gate, LONG).await });
    peer.send(&publish("b", "n")).await;
    let outcome = vec![(batch.items[0].ticket, PushOutcome::Accepted)];
    assert_eq!(batch.origin.tell(outcome), 0);
    peer.expect_end(&(result("a") + "</stream:stream>")).await;
    drop(peer);
    assert_eq!(draining.await.unwrap().abandoned, 0);
}

#[actix::test]
async fn at_the_deadline_the_rest_is_answered_with_wait() {
    let world = World::new();
    let host = Host::start().await;
    let mut service = Service::start(&config(&world), at(&world, host.target())).await;
    let mut peer = host.admit().await;
    peer.send(&publish("a", "n")).await;
    service.published.take().await;
    let drained = actix_rt::spawn({
        let gate = service.gate.drain.clone();
        async move { drain(&gate, SHORT).await }
    });
    let answer = peer.until("</iq>").await;
    assert!(
        answer.contains("<error type='wait'><internal-server-error "),
        "{answer}"
    );
    peer.expect_end("</stream:stream>").await;
    drop(peer);
    assert_eq!(drained.await.unwrap().abandoned, 1);
}

#[actix::test]
async fn a_server_that_is_away_does_not_hold_up_the_end() {
    let world = World::new();
    let host = Host::start().await;
    let mut service = Service::start(&config(&world), at(&world, host.target())).await;
    let mut peer = host.admit().await;
    peer.send(&publish("a", "n")).await;
    let batch = service.published.take().await;
    drop((peer, host));
    service.counted("components_open", 0).await;
    let outcome = vec![(batch.items[0].ticket, PushOutcome::Accepted)];
    assert_eq!(batch.origin.tell(outcome), 0);
    let begun = Instant::now();
    assert_eq!(drain(&service.gate.drain, LONG).await.abandoned, 1);
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[track_caller]
fn check(
    config: &Config,
    domains: &[DomainConfig],
    components: &[ComponentConfig],
    expected: &[(bool, &str)],
) {
    let found: Vec<(bool, String)> = component::inspect(config, domains, components)
        .into_iter()
        .map(|finding| (finding.fatal, finding.error.to_string()))
        .collect();
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for ((fatal, text), (expected_fatal, part)) in found.iter().zip(expected) {
        assert_eq!(fatal, expected_fatal, "{text}");
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(
        component::prepare(config, domains, components).is_err(),
        expected.iter().any(|(fatal, _)| *fatal)
    );
}

#[test]
fn findings() {
    let world = World::new();
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = host.local_addr().unwrap().to_string();
    let good = at(&world, target);
    let alone = config(&world);
    let serving = world.config();
    let federated = world.domain("push.test", &world.trusted(&["push.test"]));
    let check_component = |component: ComponentConfig, expected: &[(bool, &str)]| {
        check(&alone, &[domain()], &[component], expected);
    };

    check_component(good.clone(), &[]);
    check_component(
        ComponentConfig {
            domain: "other.test".to_owned(),
            ..good.clone()
        },
        &[
            (true, "push.test has no certificate and is no component"),
            (true, "other.test is none of [[domains]]"),
        ],
    );
    check_component(
        ComponentConfig {
            connect: "5347".to_owned(),
            ..good.clone()
        },
        &[(true, "\"5347\" is no target")],
    );
    check_component(
        ComponentConfig {
            keepalive_seconds: 0,
            ..good.clone()
        },
        &[(true, "keepalive_seconds is too small")],
    );
    check_component(
        ComponentConfig {
            secret_file: world.path("missing"),
            ..good.clone()
        },
        &[(true, "missing cannot be read")],
    );
    let exposed = world.path("exposed");
    fs::write(&exposed, "x").unwrap();
    fs::set_permissions(&exposed, fs::Permissions::from_mode(0o644)).unwrap();
    check_component(
        ComponentConfig {
            secret_file: exposed,
            ..good.clone()
        },
        &[(true, "exposed can be read by everybody")],
    );
    check(
        &alone,
        &[domain()],
        &[good.clone(), good.clone()],
        &[(true, "push.test is listed twice for 127.0.0.1:")],
    );

    // Which domain is reached how.
    let pair = [federated.clone(), {
        let mut other = domain();
        other.name = "component.test".to_owned();
        other
    }];
    let component = ComponentConfig {
        domain: "Component.test".to_owned(),
        ..good.clone()
    };
    check(&serving, &pair, std::slice::from_ref(&component), &[]);
    check(
        &serving,
        &pair,
        &[],
        &[(true, "component.test has no certificate")],
    );
    check(
        &alone,
        &pair,
        std::slice::from_ref(&component),
        &[(true, "listen is empty and push.test is no component")],
    );
    check(
        &serving,
        &[domain()],
        std::slice::from_ref(&good),
        &[(true, "set xmpp.listen = []")],
    );
    check(&serving, &[federated], std::slice::from_ref(&good), &[]);
    let mut half = domain();
    half.key = Some(world.path("push.test.key"));
    let refused = Ingress::prepare(&alone, &[half], "1").err().unwrap();
    assert!(
        refused[0].to_string().contains("only one of certificate"),
        "{refused:?}"
    );

    drop(host);
    check_component(good, &[(false, "push.test: cannot connect to 127.0.0.1:")]);
    check_component(
        at(&world, "unix:/no/such/socket".to_owned()),
        &[(false, "cannot connect to unix:/no/such/socket")],
    );
}
