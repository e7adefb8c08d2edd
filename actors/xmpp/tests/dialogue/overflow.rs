//! Peers that send more than anybody needs where the service called them, and certificates that are too
//! large in both directions.

use messages::PushOutcome;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use xmpp::outcomes::{Direction, PeerOutcomes};

use crate::peer::{
    Caller, OFFER_DIALBACK, PROCEED, Peer, STARTTLS, accept, answer, answer_external,
    authenticated, call, connect, proceed, publish, reply, result,
};
use crate::world::{Identity, Service, World};

/// The failure of the last stream with peer.test in this direction, as soon as so many have failed.
async fn failure(service: &Service, count: u64, direction: Direction) -> String {
    service.counted("stream_failures_total", count).await;
    let known = service.outcomes.query.send(PeerOutcomes).await.unwrap();
    let found = known.iter().find(|it| it.direction == direction);
    found.and_then(|it| it.failure.clone()).unwrap()
}

/// Has an answer to peer.test waiting.
async fn owe(service: &mut Service, world: &World) -> Caller {
    let mut peer = authenticated(service, world).await;
    peer.send(&publish("id-1", "node")).await;
    service.settle(PushOutcome::Accepted).await;
    peer
}

#[actix::test]
async fn an_authoritative_server_that_answers_without_end_is_left() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let service = world.start(&world.config());
    let mut called = call(&service, &world, None, "peer.test", "push.test").await;
    let claim = "<db:result from='peer.test' to='push.test'>key</db:result>";
    called.peer.send(claim).await;
    let identity = world.self_signed(&["peer.test"]);
    let mut asked = answer(&home, &world, &identity, "verify", OFFER_DIALBACK).await;
    asked.peer.until("</db:verify>").await;
    let other = "<db:verify from='a.test' to='b.test' id='c' type='valid'/>";
    asked.peer.flood(&other.repeat(100)).await;
    let answered = called.peer.until("</db:result>").await;
    assert!(answered.contains("<remote-server-timeout "), "{answered}");
    let failure = failure(&service, 1, Direction::In).await;
    assert!(failure.contains("too many bytes"), "{failure}");
}

async fn clear(home: &TcpListener) -> Peer<TcpStream> {
    let mut clear = accept(home).await;
    let opening = clear.until(" xml:lang='en'>").await;
    clear.send(&reply(&opening, "clear")).await;
    clear
}

#[actix::test]
async fn a_server_that_offers_nothing_without_end_is_left() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let _peer = owe(&mut service, &world).await;
    let mut clear = clear(&home).await;
    clear.flood(&"<a xmlns='b'/>".repeat(100)).await;
    let failure = failure(&service, 1, Direction::Out).await;
    assert!(failure.contains("too many bytes"), "{failure}");
}

#[actix::test]
async fn a_peer_that_sends_without_end_where_it_is_answered_is_left() {
    for junk in [
        "<a xmlns='b'/>",
        "<message from='peer.test' to='push.test'/>",
        " \n",
    ] {
        let mut world = World::new();
        let home = world.home("peer.test").await;
        let mut config = world.config();
        config.stanzas_per_second_max = 100;
        let mut service = world.start(&config);
        let peer = owe(&mut service, &world).await;
        let mut returning = answer_external(&home, &world).await;
        returning.expect(&result("id-1")).await;
        drop(peer);
        // Some of it does no harm.
        returning.send(&junk.repeat(10)).await;
        returning.flood(&junk.repeat(1000)).await;
        let failure = failure(&service, 1, Direction::Out).await;
        assert!(failure.contains("sends without end"), "{failure}");
    }
}

/// A certificate with so many bytes behind it at least.
fn followed(world: &World, bytes: usize) -> Identity {
    let mut identity = world.trusted(&["peer.test"]);
    let one = identity.chain[0].clone();
    let copies = bytes.div_ceil(one.len());
    identity.chain.extend(std::iter::repeat_n(one, copies));
    identity
}

#[actix::test]
async fn a_certificate_that_is_too_large_is_not_taken() {
    let world = World::new();
    let service = world.start(&world.config());
    // The first within what is let, the second above it, the last above what the TLS library lets.
    let taken = followed(&world, 15_000);
    call(&service, &world, Some(&taken), "peer.test", "push.test").await;
    service.counted("stream_failures_total", 1).await;
    for (count, bytes) in [(2, 16_384), (3, 80_000)] {
        let identity = followed(&world, bytes);
        let mut clear = connect(&service, "peer.test", "push.test").await;
        clear.send(STARTTLS).await;
        clear.expect(PROCEED).await;
        let tls = TlsConnector::from(world.client_tls(Some(&identity), false));
        let name = ServerName::try_from("push.test").unwrap();
        // Whether the client learns of it before it is done depends on how much it has to send.
        let _shaken = tls.connect(name, clear.into_io()).await;
        let failure = failure(&service, count, Direction::In).await;
        assert!(failure.contains("certificate_chain_bytes_max"), "{failure}");
    }
}

/// The beginning of a message that says it has 60 000 bytes.
#[actix::test]
async fn half_of_a_large_handshake_is_not_kept() {
    let world = World::new();
    let mut config = world.config();
    config.authentication_timeout_seconds = 600;
    let service = world.start(&config);
    let mut tcp = TcpStream::connect(service.address_tls).await.unwrap();
    let record = |content: &[u8]| {
        let len = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[22, 3, 1], &len[..], content].concat()
    };
    let hello = [&[1, 0, 0xea, 0x60], &[0; 16_000][..]].concat();
    tcp.write_all(&record(&hello)).await.unwrap();
    tcp.write_all(&record(&[0; 16_000])).await.unwrap();
    let mut peer = Peer::new(tcp);
    peer.closed().await;
    assert_eq!(service.count("stream_failures_total").await, 1);
}

#[actix::test]
async fn nor_is_that_of_a_server_that_was_called() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let _peer = owe(&mut service, &world).await;
    let identity = followed(&world, 16_384);
    let clear = proceed(&home).await;
    let tls = TlsAcceptor::from(world.server_tls(&identity));
    assert!(tls.accept(clear.into_io()).await.is_err());
    let failure = failure(&service, 1, Direction::Out).await;
    assert!(failure.contains("certificate_chain_bytes_max"), "{failure}");
}
