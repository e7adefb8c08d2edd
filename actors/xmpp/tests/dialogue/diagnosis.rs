//! What is remembered of streams that failed, and of those that did not.

use messages::PushOutcome;
use xmpp::outcomes::{Direction, PeerOutcome, PeerOutcomes};

use tokio::net::TcpStream;

use crate::peer::{
    OFFER_NOTHING, Peer, answer, answer_external, authenticated, call, connect, header, publish,
    result, start_tls,
};
use crate::world::{Service, World};

async fn outcomes(service: &Service) -> Vec<PeerOutcome> {
    service.outcomes.query.send(PeerOutcomes).await.unwrap()
}

/// Waits until so many streams have failed, and gives the outcomes.
async fn after_failures(service: &Service, count: u64) -> Vec<PeerOutcome> {
    service.counted("stream_failures_total", count).await;
    outcomes(service).await
}

/// The last outcome of peer.test.
#[track_caller]
fn check(outcomes: &[PeerOutcome], direction: Direction, stage: &str, failure: Option<&str>) {
    let found = outcomes
        .iter()
        .find(|it| it.peer.as_str() == "peer.test" && it.direction == direction);
    let Some(found) = found else {
        panic!("nothing is known: {outcomes:#?}");
    };
    assert_eq!(found.stage, stage, "{found:#?}");
    match (&found.failure, failure) {
        (None, None) => {}
        (Some(found), Some(part)) => assert!(found.contains(part), "{found}"),
        _ => panic!("{found:#?}"),
    }
}

#[actix::test]
async fn streams_that_work() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    peer.send(&publish("id-1", "node-1")).await;
    service.settle(PushOutcome::Accepted).await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;

    let known = outcomes(&service).await;
    check(&known, Direction::In, "open", None);
    check(&known, Direction::Out, "open", None);
    for outcome in &known {
        assert_eq!(outcome.method, Some("EXTERNAL"));
        assert_eq!(outcome.tls, Some("1.3"));
        assert_eq!(outcome.certificate.as_deref(), Some("valid"));
        assert_eq!(outcome.succeeded, Some(outcome.at));
        assert!(outcome.address.is_some());
    }
    peer.send("</stream:stream>").await;
    peer.expect_end("</stream:stream>").await;
    service.counted("streams_open", 0).await;
    assert_eq!(service.count("stream_failures_total").await, 0);
}

#[actix::test]
async fn incoming_streams_that_fail() {
    let world = World::new();
    let service = world.start(&world.config());
    // It does not like what it sees in clear text.
    let clear = connect(&service, "peer.test", "push.test").await;
    drop(clear);
    let known = after_failures(&service, 1).await;
    let part = "the peer closed the connection";
    check(&known, Direction::In, "starttls", Some(part));

    let mut called = call(&service, &world, None, "peer.test", "push.test").await;
    let error = "<stream:error><not-authorized xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>\
                 </stream:error></stream:stream>";
    called.peer.send(error).await;
    let known = after_failures(&service, 2).await;
    let part = "it does not like our certificate";
    check(&known, Direction::In, "authentication", Some(part));
    let certificate = known[0].certificate.as_deref();
    assert_eq!(certificate, Some("it presented no certificate"));

    // An end of the stream is a failure too, as long as nothing was achieved.
    let called = call(&service, &world, None, "peer.test", "push.test").await;
    drop(called);
    let known = after_failures(&service, 3).await;
    check(&known, Direction::In, "authentication", Some("closed"));

    // Once a peer was there, that is remembered, whatever is said in its name.
    drop(authenticated(&service, &world).await);
    service.counted("streams_open", 0).await;
    let clear = connect(&service, "peer.test", "push.test").await;
    let mut peer = start_tls(clear, &world, None, "push.test").await;
    peer.send(&header("peer.test", "nowhere.test")).await;
    let known = after_failures(&service, 4).await;
    let part = "this domain is not served here";
    check(&known[..1], Direction::In, "open", None);
    assert!(known[0].succeeded.is_some());
    check(&known[1..], Direction::In, "stream header", Some(part));
    assert_eq!(known[1].succeeded, None);
}

#[actix::test]
async fn a_stream_that_only_verifies_is_no_failure() {
    let world = World::new();
    let service = world.start(&world.config());
    let mut called = call(&service, &world, None, "peer.test", "push.test").await;
    called
        .peer
        .send("<db:verify from='peer.test' to='push.test' id='x'>key</db:verify></stream:stream>")
        .await;
    called.peer.until("type='invalid'/>").await;
    called.peer.expect_end("</stream:stream>").await;
    service.counted("streams_open", 0).await;
    assert_eq!(service.count("stream_failures_total").await, 0);
}

#[actix::test]
async fn a_domain_that_is_not_proven_is_reported_once() {
    let mut world = World::new();
    drop(world.home("peer.test").await);
    let service = world.start(&world.config());
    let mut called = call(&service, &world, None, "peer.test", "push.test").await;
    called
        .peer
        .send("<db:result from='peer.test' to='push.test'>key</db:result>")
        .await;
    called.peer.until("</db:result>").await;
    let part = "dialback: the authoritative server cannot be asked: the connection failed";
    let known = after_failures(&service, 1).await;
    check(&known, Direction::In, "authentication", Some(part));
    drop(called);
    service.counted("streams_open", 0).await;
    assert_eq!(service.count("stream_failures_total").await, 1);
}

#[actix::test]
async fn outgoing_streams_that_fail() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    peer.send(&publish("id-1", "node-1")).await;
    service.settle(PushOutcome::Accepted).await;
    let identity = world.self_signed(&["peer.test"]);
    let mut answered = answer(&home, &world, &identity, "id", OFFER_NOTHING).await;
    answered.peer.expect_end("</stream:stream>").await;
    let known = after_failures(&service, 1).await;
    let part = "peer offered neither EXTERNAL nor dialback: it does not like our certificate";
    check(&known, Direction::Out, "authentication", Some(part));
    let out = known.iter().find(|it| it.direction == Direction::Out);
    let out = out.unwrap();
    assert_eq!(out.address, Some(home.local_addr().unwrap()));
    assert_eq!(out.tls, Some("1.3"));
    let certificate = out.certificate.as_deref().unwrap();
    assert!(certificate.contains("does not verify"), "{certificate}");

    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    check(&outcomes(&service).await, Direction::Out, "open", None);
    let end = |condition: &str| {
        format!(
            "<stream:error><{condition} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>\
             </stream:error></stream:stream>"
        )
    };
    returning.send(&end("policy-violation")).await;
    let known = after_failures(&service, 2).await;
    let part = "the peer sent the stream error policy-violation";
    check(&known, Direction::Out, "open", Some(part));
    drop(returning);

    // A peer that restarts, or has had no use for the stream, has not failed.
    peer.send(&publish("id-2", "node-2")).await;
    service.settle(PushOutcome::Accepted).await;
    let mut returning = answer_external(&home, &world).await;
    // What went before may come again.
    returning.until(&result("id-2")).await;
    drop(home);
    returning.send(&end("system-shutdown")).await;
    // Only that it is not there again has.
    let known = after_failures(&service, 3).await;
    check(&known, Direction::Out, "connect", Some("refused"));
}

#[actix::test]
async fn who_says_no_name_is_counted_by_address() {
    let world = World::new();
    let service = world.start(&world.config());
    for count in 1..=3 {
        let mut peer = Peer::new(TcpStream::connect(service.address_tls).await.unwrap());
        peer.send("GET / HTTP/1.1\r\n\r\n").await;
        peer.closed().await;
        service.counted("stream_failures_total", count).await;
    }
    assert_eq!(service.count("stream_failures_logged_total").await, 1);
    assert!(outcomes(&service).await.is_empty());
}
