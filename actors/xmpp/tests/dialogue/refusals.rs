//! What ends a stream, and with which words.

use std::io::ErrorKind;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::peer::{Peer, STARTTLS, authenticated, call, connect, header, publish, start_tls};
use crate::world::{World, drain};

/// A peer opens with `opening`, which is answered with a header from `from` and this stream error.
async fn check_opening(opening: &str, from: &str, condition: &str) {
    let world = World::new();
    let service = world.start(&world.config());
    let mut peer = Peer::new(TcpStream::connect(service.address).await.unwrap());
    peer.send(opening).await;
    let answer = peer.until(" xml:lang='en'>").await;
    assert!(
        answer.starts_with("<?xml version='1.0'?><stream:stream "),
        "{answer}"
    );
    assert!(answer.contains(&format!(" from='{from}'")), "{answer}");
    peer.expect_error(condition).await;
}

#[actix::test]
async fn openings() {
    let good = header("peer.test", "push2.test");
    check_opening(
        &header("peer.test", "nowhere.test"),
        "push.test",
        "host-unknown",
    )
    .await;
    let check = async |from: &str, to: &str, condition: &str| {
        check_opening(&good.replace(from, to), "push2.test", condition).await;
    };
    check("peer.test", "peer test", "improper-addressing").await;
    check(" version='1.0' ", " ", "unsupported-version").await;
    check(" version='1.0' ", " version='0.9' ", "unsupported-version").await;
    check("'jabber:server'", "'jabber:client'", "invalid-namespace").await;
    let unaddressed = good.replace(" to='push2.test'", "");
    check_opening(&unaddressed, "push.test", "improper-addressing").await;
    let comment = good.replace("<stream:stream", "<!-- --><stream:stream");
    check_opening(&comment, "push.test", "restricted-xml").await;
    check_opening("GET / HTTP/1.1\r\n\r\n", "push.test", "not-well-formed").await;
    let long = format!("<stream:stream a='{}'", "x".repeat(20_000));
    check_opening(&long, "push.test", "policy-violation").await;
}

/// A peer says something in clear text instead of `starttls`.
async fn check_clear_text(text: &str, condition: &str) {
    let world = World::new();
    let service = world.start(&world.config());
    let mut peer = connect(&service, "peer.test", "push.test").await;
    peer.send(text).await;
    peer.expect_error(condition).await;
}

#[actix::test]
async fn nothing_goes_in_clear_text() {
    check_clear_text(&publish("id-1", "node-1"), "not-authorized").await;
    let claim = "<db:result from='peer.test' to='push.test'>key</db:result>";
    check_clear_text(claim, "policy-violation").await;
    let auth = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>=</auth>";
    check_clear_text(auth, "policy-violation").await;
}

/// A peer that is not authenticated says something after TLS.
async fn check_stranger(text: &str, condition: &str) {
    let world = World::new();
    let service = world.start(&world.config());
    let mut called = call(&service, &world, None, "peer.test", "push.test").await;
    called.peer.send(text).await;
    called.peer.expect_error(condition).await;
    assert_eq!(service.count("publishes_total").await, 0);
}

#[actix::test]
async fn strangers() {
    check_stranger(&publish("id-1", "node-1"), "not-authorized").await;
    check_stranger(
        "<message from='peer.test' to='push.test'/>",
        "not-authorized",
    )
    .await;
    check_stranger(STARTTLS, "unsupported-stanza-type").await;
    check_stranger("<!DOCTYPE x>", "restricted-xml").await;
    check_stranger("text", "bad-format").await;
    let unaddressed = "<db:result from='peer.test'>key</db:result>";
    check_stranger(unaddressed, "improper-addressing").await;
    let large = publish("id-1", &"n".repeat(10_000));
    check_stranger(&large, "policy-violation").await;
}

/// An authenticated peer says something that ends its stream.
async fn check_authenticated(text: &str, condition: &str) {
    let world = World::new();
    let mut config = world.config();
    config.stanza_bytes_max = 20_000;
    let service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    peer.send(text).await;
    peer.expect_error(condition).await;
    assert_eq!(service.count("publishes_total").await, 0);
}

#[actix::test]
async fn authenticated_peers() {
    let good = publish("id-1", "node-1");
    let check = async |from: &str, to: &str, condition: &str| {
        check_authenticated(&good.replace(from, to), condition).await;
    };
    check("'peer.test'", "'other.test'", "invalid-from").await;
    check("'peer.test'", "'sub.peer.test'", "invalid-from").await;
    check("'peer.test'", "'ada@other.test/peer.test'", "invalid-from").await;
    check("'push.test'", "'nowhere.test'", "host-unknown").await;
    check(" to='push.test'", "", "improper-addressing").await;
    check(" from='peer.test'", "", "improper-addressing").await;
    let unknown = "<query from='peer.test' to='push.test'/>";
    check_authenticated(unknown, "unsupported-stanza-type").await;
    check("</iq>", "</message>", "not-well-formed").await;
    check("node-1", &"n".repeat(20_000), "policy-violation").await;
    let twice = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>=</auth>";
    check_authenticated(twice, "policy-violation").await;
}

#[actix::test]
async fn names_must_not_change_behind_tls() {
    let world = World::new();
    let service = world.start(&world.config());
    for (from, to) in [("other.test", "push.test"), ("peer.test", "push2.test")] {
        let clear = connect(&service, "peer.test", "push.test").await;
        let mut peer = start_tls(clear, &world, None, "push.test").await;
        peer.send(&header(from, to)).await;
        peer.until(" xml:lang='en'>").await;
        peer.expect_error("improper-addressing").await;
    }
    let clear = connect(&service, "peer.test", "push.test").await;
    let mut peer = start_tls(clear, &world, None, "push.test").await;
    let anonymous = header("peer.test", "push.test").replace(" from='peer.test'", "");
    peer.send(&anonymous).await;
    peer.until(" xml:lang='en'>").await;
    peer.expect_error("improper-addressing").await;
}

#[actix::test]
async fn silent_peers_are_sent_away() {
    let world = World::new();
    let mut config = world.config();
    config.authentication_timeout_seconds = 3;
    let service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    let mut clear = connect(&service, "peer.test", "push.test").await;
    let called = call(&service, &world, None, "peer.test", "push.test").await;
    let mut secured = called.peer;
    clear.expect_error("connection-timeout").await;
    secured.expect_error("connection-timeout").await;
    // One that is authenticated may be silent for longer, as this one was.
    peer.send(" </stream:stream>").await;
    peer.expect_end("</stream:stream>").await;
}

#[actix::test]
async fn one_domain_has_so_many_streams() {
    let world = World::new();
    let mut config = world.config();
    config.streams_per_domain_max = 1;
    let service = world.start(&config);
    let mut first = authenticated(&service, &world).await;
    let identity = world.trusted(&["peer.test"]);
    let auth = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>=</auth>";
    let mut second = call(&service, &world, Some(&identity), "peer.test", "push.test").await;
    second.peer.send(auth).await;
    second.peer.expect_error("resource-constraint").await;
    // A place that is given back can be taken.
    first.send("</stream:stream>").await;
    first.expect_end("</stream:stream>").await;
    drop(first);
    service.counted("streams_open", 0).await;
    let mut third = authenticated(&service, &world).await;
    // It is given back before the last words, however long the peer stays after them.
    third.send("<!--").await;
    third.until("</stream:stream>").await;
    authenticated(&service, &world).await;
}

#[actix::test]
async fn one_address_has_so_many_streams() {
    let world = World::new();
    let mut config = world.config();
    config.streams_per_address_max = 1;
    let service = world.start(&config);
    let first = connect(&service, "peer.test", "push.test").await;
    // The end may come before the beginning is told.
    match TcpStream::connect(service.address).await {
        Ok(second) => Peer::new(second).expect_end("").await,
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    service.counted("connections_refused_total", 1).await;
    drop(first);
    service.counted("handshakes_open", 0).await;
    connect(&service, "peer.test", "push.test").await;
}

#[actix::test]
async fn a_stop_waits_for_nobody_in_a_handshake() {
    let world = World::new();
    let service = world.start(&world.config());
    let mut silent = Peer::new(TcpStream::connect(service.address).await.unwrap());
    service.counted("handshakes_open", 1).await;
    let begun = std::time::Instant::now();
    assert_eq!(
        drain(&service.porch.drain, testkit::PATIENCE)
            .await
            .abandoned,
        0
    );
    assert!(begun.elapsed() < testkit::PATIENCE);
    silent.closed().await;
    assert_eq!(service.count("handshakes_open").await, 0);
    assert_eq!(service.count("handshakes_failed_total").await, 0);
}

#[actix::test]
async fn beyond_the_limit_connections_wait_their_turn() {
    let world = World::new();
    let mut config = world.config();
    config.streams_max = 1;
    let service = world.start(&config);
    // One who has proven who it is gives way to nobody.
    let first = authenticated(&service, &world).await;
    let mut second = Peer::new(TcpStream::connect(service.address).await.unwrap());
    second.send(&header("peer.test", "push.test")).await;
    assert_eq!(service.count("connections_accepted_total").await, 1);
    drop(first);
    second.until("</stream:features>").await;
}

#[actix::test]
async fn who_talks_on_after_the_end_is_not_listened_to() {
    let world = World::new();
    let service = world.start(&world.config());
    let mut stranger = TcpStream::connect(service.address).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let chunk = [b'x'; 64 << 10];
    let mut taken = 0;
    while stranger.write_all(&chunk).await.is_ok() {
        taken += chunk.len();
        // Most of it is in the buffers of the system.
        assert!(taken < 32 << 20, "{taken} bytes were taken");
    }
}
