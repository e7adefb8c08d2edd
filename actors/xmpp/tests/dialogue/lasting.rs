//! Streams that we keep: silence, limits of the peer, pings, and what becomes of answers when they end.

use std::time::Duration;

use messages::PushOutcome;
use tokio::time::sleep;

use crate::peer::{
    Callee, Caller, OFFER_EXTERNAL, SUCCESS, accept_external, answer, answer_external, attribute,
    authenticated, header, publish, result,
};
use crate::world::{Service, World};

async fn answer_one(service: &mut Service, peer: &mut Caller, id: &str) {
    peer.send(&publish(id, "node")).await;
    service.settle(PushOutcome::Accepted).await;
}

fn limits(content: &str) -> String {
    let limits = format!("<limits xmlns='urn:xmpp:stream-limits:0'>{content}</limits>");
    OFFER_EXTERNAL.replace("</stream:features>", &(limits + "</stream:features>"))
}

#[actix::test]
async fn silence_is_broken_by_a_blank() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.keepalive_seconds = 1;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    returning.expect("  ").await;
    answer_one(&mut service, &mut peer, "id-2").await;
    returning.until(&result("id-2")).await;
}

#[actix::test]
async fn a_peer_that_ends_idle_streams_is_forestalled() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let identity = world.trusted(&["peer.test"]);
    let features = limits("<idle-seconds>2</idle-seconds>");
    let mut answered = answer(&home, &world, &identity, "id", &features).await;
    accept_external(&mut answered.peer).await;
    answered.peer.expect(&result("id-1")).await;
    answered.peer.expect_end("</stream:stream>").await;
}

#[actix::test]
async fn a_peer_gets_no_stanza_that_is_too_big_for_it() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    let long = "x".repeat(500);
    peer.send(&(publish(&long, "n") + &publish("id-1", "n") + &publish(&long, "n")))
        .await;
    peer.send(&publish("id-2", "n")).await;
    while service.count("replies_total").await < 4 {
        service.settle(PushOutcome::Accepted).await;
    }
    let identity = world.trusted(&["peer.test"]);
    let features = limits("<max-bytes>500</max-bytes>");
    let mut answered = answer(&home, &world, &identity, "id", &features).await;
    accept_external(&mut answered.peer).await;
    answered.peer.expect(&result("id-1")).await;
    answered.peer.expect(&result("id-2")).await;
    service.counted("replies_lost_total", 2).await;
    assert_eq!(service.count("replies_written_total").await, 2);
}

#[actix::test]
async fn limits_may_change_with_authentication() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    let long = "x".repeat(500);
    answer_one(&mut service, &mut peer, &long).await;
    let identity = world.trusted(&["peer.test"]);
    let features = limits("<max-bytes>100</max-bytes>");
    let mut answered = answer(&home, &world, &identity, "id", &features).await;
    answered.peer.until("</auth>").await;
    answered.peer.send(SUCCESS).await;
    answered.peer.until(" xml:lang='en'>").await;
    let header = header("peer.test", "push.test");
    let features = limits("<max-bytes>10000</max-bytes>");
    answered.peer.send(&(header + &features)).await;
    answered.peer.expect(&result(&long)).await;
}

/// A service that asks after a second of silence, with a stream on which `id-1` was written before that.
async fn probed(world: &mut World) -> (tokio::net::TcpListener, Service, Caller, Callee) {
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.ping_after_seconds = 1;
    config.ping_timeout_seconds = 1;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let mut returning = answer_external(&home, world).await;
    returning.expect(&result("id-1")).await;
    // The time that has to pass, and a little.
    sleep(Duration::from_millis(1100)).await;
    answer_one(&mut service, &mut peer, "id-2").await;
    (home, service, peer, returning)
}

#[actix::test]
async fn a_ping_goes_with_the_answer_after_long_silence() {
    for kind in ["result", "error"] {
        let mut world = World::new();
        let (_home, mut service, mut peer, mut returning) = probed(&mut world).await;
        returning.expect(&result("id-2")).await;
        let ping = returning.until("</iq>").await;
        let id = attribute(&ping, "id");
        assert_eq!(
            ping,
            format!(
                "<iq type='get' id='{id}' from='push.test' to='peer.test'>\
                 <ping xmlns='urn:xmpp:ping'/></iq>"
            )
        );
        peer.send(&format!(
            "<iq type='{kind}' id='{id}' from='peer.test' to='push.test'/>"
        ))
        .await;
        // It is not dead after the time that it had.
        sleep(Duration::from_millis(1100)).await;
        answer_one(&mut service, &mut peer, "id-3").await;
        returning.expect(&result("id-3")).await;
        assert_eq!(service.count("egress_connects_total").await, 1);
    }
}

#[actix::test]
async fn what_went_into_a_dead_stream_goes_out_again() {
    let mut world = World::new();
    let (home, mut service, mut peer, mut returning) = probed(&mut world).await;
    returning.expect(&result("id-2")).await;
    returning.until("</iq>").await;
    // Written, but nothing proves that it was read.
    answer_one(&mut service, &mut peer, "id-3").await;
    returning.expect(&result("id-3")).await;
    returning.expect_error("connection-timeout").await;
    let mut returning = answer_external(&home, &world).await;
    // The first was written long before the ping, when nothing spoke against its arrival.
    for id in ["id-2", "id-3"] {
        returning.expect(&result(id)).await;
    }
    assert_eq!(service.count("replies_lost_total").await, 0);
}

#[actix::test]
async fn what_met_the_end_of_a_stream_goes_out_again_once() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    for _ in 0..2 {
        // Each time it was written into a stream that is closed without a look at it.
        let mut returning = answer_external(&home, &world).await;
        returning.send("</stream:stream>").await;
    }
    service.counted("egress_streams_open", 0).await;
    answer_one(&mut service, &mut peer, "id-2").await;
    let mut returning = answer_external(&home, &world).await;
    let first = returning.until("/>").await;
    // Whether the first answer was written twice, or less often because the end was seen in time.
    assert!([result("id-1"), result("id-2")].contains(&first), "{first}");
    if first != result("id-2") {
        returning.expect(&result("id-2")).await;
    }
    assert_eq!(service.count("replies_lost_total").await, 0);
}

#[actix::test]
async fn what_was_written_long_before_the_end_is_not_repeated() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    sleep(Duration::from_millis(2200)).await;
    drop(returning);
    service.counted("egress_streams_open", 0).await;
    answer_one(&mut service, &mut peer, "id-2").await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-2")).await;
}

#[actix::test]
async fn answers_of_all_peers_together_are_bounded() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.egress_bytes_max = 4096;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    for _ in 0..100 {
        answer_one(&mut service, &mut peer, "an-id-of-some-length").await;
    }
    let one = result("an-id-of-some-length");
    // One source gets half.
    let fit = 2048 / one.len();
    service
        .counted("replies_lost_total", 100 - fit as u64)
        .await;
    // What is written makes room again.
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&one.repeat(fit)).await;
    sleep(Duration::from_millis(2200)).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    returning.expect(&result("id-1")).await;
}

#[actix::test]
async fn streams_to_peers_are_bounded() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.egress_streams_max = 1;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let to_the_other = publish("id-2", "node").replace("to='push.test'", "to='push2.test'");
    peer.send(&to_the_other).await;
    service.settle(PushOutcome::Accepted).await;
    service.counted("replies_lost_total", 1).await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
}
