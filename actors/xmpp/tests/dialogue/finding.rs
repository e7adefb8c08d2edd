//! Where streams that we open go: DNS, direct TLS, several targets, forbidden ones.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use messages::PushOutcome;
use testkit::NameServer;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use xmpp::Config;

use crate::peer::{
    OFFER_EXTERNAL, Peer, accept, accept_external, answer, answer_as, answer_direct,
    answer_external, asked_for, attribute, authenticated, call, header, proceed, publish, reply,
    result,
};
use crate::world::{Service, World};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const STREAMS: &str = "urn:ietf:params:xml:ns:xmpp-streams";

/// A listener, and its port.
async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A port that refuses connections.
async fn closed() -> u16 {
    listen().await.1
}

fn config(world: &World, names: &NameServer) -> Config {
    Config {
        name_servers: vec![names.address()],
        allow_private_targets: true,
        connect_timeout_seconds: 2,
        ..world.config()
    }
}

/// Has an answer to peer.test waiting.
async fn owe(service: &mut Service, world: &World) -> crate::peer::Caller {
    let mut peer = authenticated(service, world).await;
    peer.send(&publish("id-1", "node")).await;
    service.settle(PushOutcome::Accepted).await;
    peer
}

#[actix::test]
async fn direct_tls_begins_with_tls() {
    let world = World::new();
    let names = NameServer::start().await;
    let (home, port) = listen().await;
    names.service("_xmpps-server._tcp.peer.test", (0, 0, port, "host.test"));
    names.host("host.test", HERE);
    let mut service = world.start(&config(&world, &names));
    let _peer = owe(&mut service, &world).await;
    let identity = world.trusted(&["peer.test"]);
    let mut answered = answer_direct(&home, &world, &identity, "id", OFFER_EXTERNAL).await;
    // Of the domain, not of the host behind it.
    let expected = (Some("peer.test"), Some(&b"xmpp-server"[..]));
    assert_eq!(asked_for(&answered.peer), expected);
    accept_external(&mut answered.peer).await;
    answered.peer.expect(&result("id-1")).await;
}

#[actix::test]
async fn hosts_may_say_direct_tls() {
    let mut world = World::new();
    let gone = world.list("peer.test", false).await;
    let home = world.list("peer.test", true).await;
    drop(gone);
    let mut service = world.start(&world.config());
    let _peer = owe(&mut service, &world).await;
    let identity = world.trusted(&["peer.test"]);
    let mut answered = answer_direct(&home, &world, &identity, "id", OFFER_EXTERNAL).await;
    accept_external(&mut answered.peer).await;
    answered.peer.expect(&result("id-1")).await;
}

#[actix::test]
async fn priority_counts_more_than_the_kind() {
    let world = World::new();
    let names = NameServer::start().await;
    let ((direct, one), (home, two)) = (listen().await, listen().await);
    names.service("_xmpps-server._tcp.peer.test", (20, 0, one, "host.test"));
    names.service("_xmpp-server._tcp.peer.test", (10, 0, two, "host.test"));
    names.host("host.test", HERE);
    let mut service = world.start(&config(&world, &names));
    let _peer = owe(&mut service, &world).await;
    let identity = world.trusted(&["peer.test"]);
    let mut answered = answer(&home, &world, &identity, "id", OFFER_EXTERNAL).await;
    // Names are told on STARTTLS as well, protocols are not.
    assert_eq!(asked_for(&answered.peer), (Some("peer.test"), None));
    accept_external(&mut answered.peer).await;
    answered.peer.expect(&result("id-1")).await;
    drop(direct);
}

#[actix::test]
async fn the_next_target_is_tried_when_one_is_dead() {
    let world = World::new();
    let names = NameServer::start().await;
    let (home, port) = listen().await;
    let service_name = "_xmpp-server._tcp.peer.test";
    names.service(service_name, (1, 0, closed().await, "host.test"));
    names.service(service_name, (2, 0, port, "nowhere.test"));
    names.service(service_name, (3, 0, port, "host.test"));
    names.host("host.test", HERE);
    let mut service = world.start(&config(&world, &names));
    let _peer = owe(&mut service, &world).await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    assert_eq!(service.count("egress_connects_failed_total").await, 0);
}

#[actix::test]
async fn the_next_target_is_tried_when_one_is_of_no_use() {
    let world = World::new();
    let names = NameServer::start().await;
    let (home, port) = listen().await;
    for priority in 0..6 {
        let target = (priority, 0, port, "host.test");
        names.service("_xmpp-server._tcp.peer.test", target);
    }
    names.host("host.test", HERE);
    let mut service = world.start(&config(&world, &names));
    let _peer = owe(&mut service, &world).await;

    // Three hosts that are not the one, the second of which would like to send us elsewhere.
    for condition in [
        "host-unknown/>".to_owned(),
        format!("see-other-host xmlns='{STREAMS}'>127.0.0.1:1</see-other-host>"),
        "remote-connection-failed/>".to_owned(),
    ] {
        let mut clear = accept(&home).await;
        let opening = clear.until(" xml:lang='en'>").await;
        let condition = condition.replace("/>", &format!(" xmlns='{STREAMS}'/>"));
        let error = format!("<stream:error><{condition}</stream:error></stream:stream>");
        clear.send(&(reply(&opening, "x") + &error)).await;
    }
    // One that fails at TLS, one that says nothing.
    proceed(&home).await.send("this is no TLS").await;
    let silent = accept(&home).await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    assert_eq!(service.count("egress_connects_failed_total").await, 0);
    drop(silent);
}

#[actix::test]
async fn a_peer_that_refuses_us_is_not_asked_elsewhere() {
    let world = World::new();
    let names = NameServer::start().await;
    let ((home, one), (other, two)) = (listen().await, listen().await);
    names.service("_xmpp-server._tcp.peer.test", (1, 0, one, "host.test"));
    names.service("_xmpp-server._tcp.peer.test", (2, 0, two, "host.test"));
    names.host("host.test", HERE);
    let mut service = world.start(&config(&world, &names));
    let _peer = owe(&mut service, &world).await;
    // As Prosody does when it does not trust our certificate.
    let identity = world.trusted(&["peer.test"]);
    let error = format!(
        "<stream:error><not-authorized xmlns='{STREAMS}'/>\
         <text xmlns='{STREAMS}'>Your server&apos;s certificate is not trusted</text>\
         </stream:error></stream:stream>"
    );
    let refused = answer(&home, &world, &identity, "id", &error).await;
    service.counted("egress_connects_failed_total", 1).await;
    drop((refused, other));
    // It is tried again, for its operator may change that.
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
}

/// What a stranger gets for the claim to be `domain`.
async fn claim(service: &Service, world: &World, domain: &str) -> String {
    let mut stranger = call(service, world, None, domain, "push.test").await.peer;
    let claim = format!("<db:result from='{domain}' to='push.test'>key</db:result>");
    stranger.send(&claim).await;
    stranger.until("</db:result>").await
}

const NOT_FOUND: &str = "<error type='cancel'><remote-server-not-found";
const TIMEOUT: &str = "<error type='wait'><remote-server-timeout";

#[actix::test]
async fn a_stranger_learns_whether_its_domain_exists() {
    let world = World::new();
    let names = NameServer::start().await;
    names.service("_xmpp-server._tcp.absent.test", (0, 0, 0, ""));
    names.fail("_xmpp-server._tcp.broken.test");
    names.host("broken.test", HERE);
    names.service(
        "_xmpp-server._tcp.closed.test",
        (0, 0, closed().await, "host.test"),
    );
    names.host("host.test", HERE);
    let service = world.start(&config(&world, &names));
    for (domain, expected) in [
        ("unknown.test", NOT_FOUND),
        ("absent.test", NOT_FOUND),
        ("broken.test", TIMEOUT),
        ("closed.test", TIMEOUT),
    ] {
        let answer = claim(&service, &world, domain).await;
        assert!(answer.contains(expected), "{domain}: {answer}");
        assert_eq!(attribute(&answer, "type"), "error");
    }
    assert!(!names.asked().contains(&"broken.test".to_owned()));
}

#[actix::test]
async fn a_stranger_does_not_make_us_connect_to_ourselves() {
    let world = World::new();
    let names = NameServer::start().await;
    let (home, port) = listen().await;
    names.service("_xmpp-server._tcp.inside.test", (0, 0, port, "host.test"));
    names.service("_xmpp-server._tcp.peer.test", (0, 0, port, "host.test"));
    names.host("host.test", HERE);
    let forbidding = Config {
        allow_private_targets: false,
        ..config(&world, &names)
    };
    let mut service = world.start(&forbidding);
    for domain in ["inside.test", "127.0.0.1", "[::ffff:127.0.0.1]", "[::1]"] {
        let answer = claim(&service, &world, domain).await;
        assert!(answer.contains(NOT_FOUND), "{domain}: {answer}");
    }
    // Neither for a key nor with an answer.
    let _peer = owe(&mut service, &world).await;
    service.counted("egress_connects_failed_total", 1).await;

    let allowed = world.start(&config(&world, &names));
    let mut stranger = call(&allowed, &world, None, "inside.test", "push.test")
        .await
        .peer;
    stranger
        .send("<db:result from='inside.test' to='push.test'>key</db:result>")
        .await;
    // The first connection that ever came here is the allowed one.
    let identity = world.self_signed(&["inside.test"]);
    let opening = answer(&home, &world, &identity, "id", OFFER_EXTERNAL)
        .await
        .opening;
    assert_eq!(attribute(&opening, "to"), "inside.test");
}

#[actix::test]
async fn a_target_that_talks_no_xmpp_is_left() {
    let mut world = World::new();
    let web = world.list("peer.test", false).await;
    let home = world.list("peer.test", false).await;
    let mut service = world.start(&Config {
        connect_timeout_seconds: 2,
        ..world.config()
    });
    let _peer = owe(&mut service, &world).await;
    accept(&web)
        .await
        .send("HTTP/1.1 400 Bad Request\r\n\r\n")
        .await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    // No features at all, as a server from before 2004 has it.
    drop(returning);
    let mut old: Peer<_> = accept(&web).await;
    old.until(" xml:lang='en'>").await;
    let header = header("peer.test", "push.test").replace("version='1.0' xml", "xml");
    old.send(&header).await;
    answer_external(&home, &world).await;
}

/// Each target alone stays within its time.
#[actix::test]
async fn a_name_of_many_targets_does_not_keep_us_for_ever() {
    let mut world = World::new();
    let mut homes = Vec::new();
    for _ in 0..12 {
        homes.push(world.home("peer.test").await);
    }
    let mut service = world.start(&Config {
        connect_timeout_seconds: 1,
        authentication_timeout_seconds: 1,
        ..world.config()
    });
    let _peer = owe(&mut service, &world).await;
    let mut silent: Vec<Peer<_>> = Vec::new();
    for home in &homes[..3] {
        silent.push(accept(home).await);
    }
    service.counted("egress_connects_failed_total", 1).await;
    let mut called = 0;
    for home in &homes[3..] {
        called += u32::from(timeout(Duration::ZERO, home.accept()).await.is_ok());
    }
    assert!(called < 4, "{called}");
}

#[actix::test]
async fn a_key_is_verified_without_a_certificate_when_ours_ends_the_handshake() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let service = world.start(&world.config());
    let called = call(&service, &world, None, "peer.test", "push.test").await;
    let mut peer = called.peer;
    peer.send("<db:result from='peer.test' to='push.test'>key</db:result>")
        .await;
    // A server that trusts another authority, and says so in the handshake.
    let tls = World::new().server_tls(&world.self_signed(&["peer.test"]));
    let refused = TlsAcceptor::from(Arc::clone(&tls));
    let refused = refused.accept(proceed(&home).await.into_io()).await;
    assert!(refused.is_err());
    let mut answered = answer_as(&home, tls, "id", OFFER_EXTERNAL).await;
    answered
        .peer
        .expect(&format!(
            "<db:verify from='push.test' to='peer.test' id='{}'>key</db:verify>",
            called.id
        ))
        .await;
    answered
        .peer
        .send(&format!(
            "<db:verify from='peer.test' to='push.test' id='{}' type='valid'/>",
            called.id
        ))
        .await;
    peer.expect("<db:result from='push.test' to='peer.test' type='valid'/>")
        .await;
}

#[actix::test]
async fn a_peer_that_is_down_costs_nothing_and_comes_back() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let address = home.local_addr().unwrap();
    drop(home);
    let begun = Instant::now();
    let mut service = world.start(&world.config());
    let mut peer = owe(&mut service, &world).await;
    service.counted("egress_connects_failed_total", 1).await;
    for _ in 0..50 {
        peer.send(&publish("id-1", "node")).await;
        service.settle(PushOutcome::Accepted).await;
    }
    // The shortest pause is half a second.
    let attempts = service.count("egress_connects_total").await;
    assert!(
        attempts <= 1 + 2 * (1 + begun.elapsed().as_secs()),
        "{attempts}"
    );
    let home = TcpListener::bind(address).await.unwrap();
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1").repeat(51)).await;
    assert_eq!(service.count("replies_lost_total").await, 0);
}
