//! Streams that carry stanzas both ways (XEP-0288).

use messages::PushOutcome;

use crate::peer::{
    Callee, Caller, OFFER_DIALBACK, SUCCESS, accept_external, answer, answer_external,
    authenticated, call, header, publish, result,
};
use crate::world::{Service, World, drain};

const BIDI: &str = "<bidi xmlns='urn:xmpp:bidi'/>";
const AUTH: &str =
    "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>cGVlci50ZXN0</auth>";

/// Opens a stream from peer.test to push.test, says `before`, and authenticates in the same write, as
/// Prosody does.
async fn bidirectional(service: &Service, world: &World, before: &str) -> Caller {
    let identity = world.trusted(&["peer.test"]);
    let mut called = call(service, world, Some(&identity), "peer.test", "push.test").await;
    let offer = "<bidi xmlns='urn:xmpp:features:bidi'/>";
    assert!(called.features.contains(offer), "{}", called.features);
    called.peer.send(&format!("{before}{AUTH}")).await;
    called.peer.expect(SUCCESS).await;
    called.peer.send(&header("peer.test", "push.test")).await;
    let features = called.peer.until("</stream:features>").await;
    assert!(!features.contains("bidi"), "{features}");
    called.peer
}

#[actix::test]
async fn answers_go_back_on_the_stream() {
    let world = World::new();
    let mut service = world.start(&world.config());
    for bidi in [
        BIDI,
        "<bidi xmlns='urn:xmpp:features:bidi'/>",
        "<bidi xmlns='urn:xmpp:bidi'><limits xmlns='urn:xmpp:stream-limits:0'>\
         <max-bytes>524288</max-bytes></limits></bidi>",
    ] {
        let mut peer = bidirectional(&service, &world, bidi).await;
        peer.send(&publish("id-1", "node-1")).await;
        service.settle(PushOutcome::Accepted).await;
        peer.expect(&result("id-1")).await;
        let ping = "<iq type='get' id='p' from='peer.test' to='push.test'>\
                    <ping xmlns='urn:xmpp:ping'/></iq>";
        peer.send(ping).await;
        peer.expect(&result("p")).await;
        // Asked for again, and too late, it changes nothing.
        peer.send(&format!("{BIDI}{ping}")).await;
        peer.expect(&result("p")).await;
    }
    assert_eq!(service.count("replies_back_total").await, 9);
    assert_eq!(service.count("egress_connects_total").await, 0);
}

#[actix::test]
async fn what_is_larger_than_the_peer_takes_here_goes_the_other_way() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let limited = "<bidi xmlns='urn:xmpp:bidi'><limits xmlns='urn:xmpp:stream-limits:0'>\
                   <max-bytes>300</max-bytes></limits></bidi>";
    let mut peer = bidirectional(&service, &world, limited).await;
    let long = "x".repeat(300);
    for id in [&long, "id-1"] {
        peer.send(&publish(id, "node-1")).await;
        service.settle(PushOutcome::Accepted).await;
    }
    peer.expect(&result("id-1")).await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result(&long)).await;
    assert_eq!(service.count("replies_back_total").await, 1);
}

#[actix::test]
async fn too_late_it_has_no_effect() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = bidirectional(&service, &world, "").await;
    peer.send(&format!("{BIDI}{}", publish("id-1", "node-1")))
        .await;
    service.settle(PushOutcome::Accepted).await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    assert_eq!(service.count("replies_back_total").await, 0);
}

#[actix::test]
async fn dialback_opens_the_way_back_as_well() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let identity = world.self_signed(&["peer.test"]);
    let mut called = call(&service, &world, Some(&identity), "peer.test", "push.test").await;
    let claim = "<db:result from='peer.test' to='push.test'>key</db:result>";
    called.peer.send(&format!("{BIDI}{claim}")).await;
    // The key is verified on a stream of its own all the same.
    let mut asked = answer(&home, &world, &identity, "verify", OFFER_DIALBACK).await;
    asked.peer.until("</db:verify>").await;
    let id = &called.id;
    let valid = format!("<db:verify from='peer.test' to='push.test' id='{id}' type='valid'/>");
    asked.peer.send(&valid).await;
    called
        .peer
        .expect("<db:result from='push.test' to='peer.test' type='valid'/>")
        .await;
    called.peer.send(&publish("id-1", "node-1")).await;
    service.settle(PushOutcome::Accepted).await;
    called.peer.expect(&result("id-1")).await;
}

#[actix::test]
async fn only_the_pair_of_the_header_has_the_way_back() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = bidirectional(&service, &world, BIDI).await;
    peer.send(&publish("id-1", "node-1").replace("push.test", "push2.test"))
        .await;
    service.settle(PushOutcome::Accepted).await;
    let identity = world.trusted(&["peer.test"]);
    let mut answered = answer(&home, &world, &identity, "out", OFFER_DIALBACK).await;
    let claim = answered.peer.until("</db:result>").await;
    assert!(claim.contains(" from='push2.test'"), "{claim}");
}

#[actix::test]
async fn without_the_stream_answers_take_the_other_way() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = bidirectional(&service, &world, BIDI).await;
    peer.send(&(publish("id-1", "node-1") + "</stream:stream>"))
        .await;
    let batch = service.published.take().await;
    peer.expect_end("</stream:stream>").await;
    drop(peer);
    service.counted("streams_open", 0).await;
    batch
        .origin
        .tell(vec![(batch.items[0].ticket, PushOutcome::Accepted)]);
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    assert_eq!(service.count("replies_unsent_total").await, 0);
}

#[actix::test]
async fn a_peer_that_does_not_read_is_cut_off_and_answered_elsewhere() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.write_stall_seconds = 1;
    let service = world.start(&config);
    let mut peer = bidirectional(&service, &world, BIDI).await;
    // More answers than the system buffers, to one who goes on asking.
    let id = "i".repeat(1000);
    let ping = format!(
        "<iq type='get' id='{id}' from='peer.test' to='push.test'>\
         <ping xmlns='urn:xmpp:ping'/></iq>"
    );
    while peer.offer(&ping).await {}
    service.counted("streams_open", 0).await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result(&id)).await;
    assert_eq!(service.count("replies_unsent_total").await, 0);
}

#[actix::test]
async fn a_drain_answers_before_it_closes() {
    let world = World::new();
    let mut service = world.start(&world.config());
    let mut peer = bidirectional(&service, &world, BIDI).await;
    peer.send(&publish("id-1", "node-1")).await;
    let batch = service.published.take().await;
    let gate = service.gate.drain.clone();
    let limit = std::time::Duration::from_secs(20);
    let draining = actix_rt::spawn(async move { drain(&gate, limit).await });
    batch
        .origin
        .tell(vec![(batch.items[0].ticket, PushOutcome::Accepted)]);
    peer.expect(&result("id-1")).await;
    peer.expect_end("</stream:stream>").await;
    drop(peer);
    assert_eq!(draining.await.unwrap().abandoned, 0);
}

#[actix::test]
async fn what_a_peer_does_not_read_is_abandoned_at_the_end() {
    let world = World::new();
    let service = world.start(&world.config());
    let mut peer = bidirectional(&service, &world, BIDI).await;
    // More answers than the system buffers, none of them read.
    let id = "i".repeat(1000);
    let ping = format!(
        "<iq type='get' id='{id}' from='peer.test' to='push.test'>\
         <ping xmlns='urn:xmpp:ping'/></iq>"
    );
    let unwritten = async || {
        let said = service.count("replies_total").await;
        said - service.count("replies_back_total").await
    };
    while unwritten().await == 0 {
        peer.stuff(&ping).await;
    }
    let drained = drain(&service.gate.drain, std::time::Duration::from_secs(1)).await;
    assert_eq!(drained.abandoned, unwritten().await);
}

/// The features of a peer that would send on our stream.
const OFFER_BIDI: &str = "<stream:features>\
    <mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>EXTERNAL</mechanism></mechanisms>\
    <bidi xmlns='urn:xmpp:features:bidi'/></stream:features>";

/// Has one answer sent on a stream of ours, on which the peer then may send.
async fn invited(
    service: &mut Service,
    world: &World,
    home: &tokio::net::TcpListener,
) -> (Caller, Callee) {
    let mut peer = authenticated(service, world).await;
    peer.send(&publish("first", "node")).await;
    service.settle(PushOutcome::Accepted).await;
    let identity = world.trusted(&["peer.test"]);
    let mut answered = answer(home, world, &identity, "out", OFFER_BIDI).await;
    answered.peer.expect(BIDI).await;
    accept_external(&mut answered.peer).await;
    answered.peer.expect(&result("first")).await;
    (peer, answered.peer)
}

#[actix::test]
async fn a_peer_asks_on_our_stream_and_is_answered_there() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let (mut other, mut peer) = invited(&mut service, &world, &home).await;
    // The stream that the peer opened before is not needed any more.
    other.send("</stream:stream>").await;
    other.expect_end("</stream:stream>").await;
    peer.send(&(publish("a", "n1") + &publish("b", "n2"))).await;
    assert_eq!(service.settle(PushOutcome::Accepted).await, ["n1", "n2"]);
    peer.expect(&(result("a") + &result("b"))).await;
    let ping = "<iq type='get' id='p' from='peer.test' to='push.test'>\
                <ping xmlns='urn:xmpp:ping'/></iq>";
    peer.send(&format!(" {BIDI}{ping}")).await;
    peer.expect(&result("p")).await;
    assert_eq!(service.count("egress_publishes_total").await, 2);
    assert_eq!(service.count("egress_connects_total").await, 1);
}

#[actix::test]
async fn on_our_stream_only_the_peer_may_ask_and_only_us() {
    for (from, to, condition) in [
        ("'other.test'", "'push.test'", "invalid-from"),
        ("'ada@other.test/peer.test'", "'push.test'", "invalid-from"),
        ("'peer.test'", "'push2.test'", "host-unknown"),
        ("'peer.test'", "'other.test'", "host-unknown"),
    ] {
        let mut world = World::new();
        let home = world.home("peer.test").await;
        let mut service = world.start(&world.config());
        let (_other, mut peer) = invited(&mut service, &world, &home).await;
        let forged = publish("x", "node")
            .replace("'peer.test'", from)
            .replace("'push.test'", to);
        peer.send(&forged).await;
        peer.expect_error(condition).await;
        assert_eq!(service.count("egress_publishes_total").await, 0);
    }
}

#[actix::test]
async fn a_peer_that_only_the_dns_proves_is_not_invited() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    peer.send(&publish("first", "node")).await;
    service.settle(PushOutcome::Accepted).await;
    let identity = world.self_signed(&["peer.test"]);
    let mut answered = answer(&home, &world, &identity, "out", OFFER_BIDI).await;
    // The first word is the authentication.
    accept_external(&mut answered.peer).await;
    answered.peer.expect(&result("first")).await;
    answered.peer.send(&publish("x", "node")).await;
    peer.send(&publish("second", "node")).await;
    service.settle(PushOutcome::Accepted).await;
    answered.peer.expect(&result("second")).await;
    assert_eq!(service.count("egress_publishes_total").await, 0);
}

#[actix::test]
async fn without_tickets_our_stream_is_not_read() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.tickets_per_stream = 2;
    let mut service = world.start(&config);
    let (_other, mut peer) = invited(&mut service, &world, &home).await;
    let burst: String = (0..9).map(|n| publish(&format!("i{n}"), "n")).collect();
    peer.send(&burst).await;
    let mut taken = 0;
    while taken < 9 {
        let nodes = service.settle(PushOutcome::Accepted).await;
        assert!(nodes.len() <= 2);
        taken += nodes.len();
    }
    for n in 0..9 {
        peer.expect(&result(&format!("i{n}"))).await;
    }
}

#[actix::test]
async fn what_was_asked_on_our_stream_is_answered_before_the_end_and_after_a_break() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let (_other, mut peer) = invited(&mut service, &world, &home).await;
    peer.send(&publish("a", "n")).await;
    let batch = service.published.take().await;
    drop(peer);
    service.counted("egress_streams_open", 0).await;
    let tell = |batch: &messages::PublishBatch| {
        let told = vec![(batch.items[0].ticket, PushOutcome::Accepted)];
        assert_eq!(batch.origin.tell(told), 0);
    };
    tell(&batch);
    let identity = world.trusted(&["peer.test"]);
    let mut answered = answer(&home, &world, &identity, "out", OFFER_BIDI).await;
    answered.peer.expect(BIDI).await;
    accept_external(&mut answered.peer).await;
    let mut peer = answered.peer;
    peer.until(&result("a")).await;

    peer.send(&publish("b", "n")).await;
    let batch = service.published.take().await;
    let egress = service.egress.drain.clone();
    let limit = std::time::Duration::from_secs(20);
    let draining = actix_rt::spawn(async move { drain(&egress, limit).await });
    tell(&batch);
    peer.expect(&result("b")).await;
    peer.expect_end("</stream:stream>").await;
    drop(peer);
    assert_eq!(draining.await.unwrap().abandoned, 0);
}
