//! The end of the service.

use std::time::{Duration, Instant};

use messages::PushOutcome;
use tokio::net::TcpStream;

use crate::peer::{answer_external, authenticated, publish, result};
use crate::world::{World, drain};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);

#[actix::test]
async fn what_is_unanswered_is_answered_before_the_end() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    peer.send(&publish("id-1", "node-1")).await;
    let batch = service.published.take().await;

    assert_eq!(drain(&service.listener.drain, LONG).await.abandoned, 0);
    assert!(TcpStream::connect(service.address).await.is_err());

    let gate = service.gate.drain.clone();
    let draining = actix_rt::spawn(async move { drain(&gate, LONG).await });
    // Nothing is read any more, but what was read is answered.
    peer.send(&publish("id-2", "node-2")).await;
    batch
        .origin
        .tell(vec![(batch.items[0].ticket, PushOutcome::Accepted)]);
    peer.expect_end("</stream:stream>").await;
    drop(peer);
    assert_eq!(draining.await.unwrap().abandoned, 0);
    assert_eq!(service.count("publishes_total").await, 1);

    let egress = service.egress.drain.clone();
    let draining = actix_rt::spawn(async move { drain(&egress, LONG).await });
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    returning.expect_end("</stream:stream>").await;
    drop(returning);
    assert_eq!(draining.await.unwrap().abandoned, 0);
}

#[actix::test]
async fn at_the_deadline_the_rest_is_answered_with_wait() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    peer.send(&publish("id-1", "node-1")).await;
    service.published.take().await;
    let gate = service.gate.drain.clone();
    let draining = actix_rt::spawn(async move { drain(&gate, SHORT).await });
    let mut returning = answer_external(&home, &world).await;
    let answer = returning.until("</iq>").await;
    assert!(
        answer.contains("<error type='wait'><internal-server-error "),
        "{answer}"
    );
    peer.expect_end("</stream:stream>").await;
    assert_eq!(draining.await.unwrap().abandoned, 1);
}

#[actix::test]
async fn a_peer_that_is_away_does_not_hold_up_the_end() {
    let mut world = World::new();
    drop(world.home("peer.test").await);
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    peer.send(&publish("id-1", "node-1")).await;
    service.settle(PushOutcome::Accepted).await;
    service.counted("egress_connects_failed_total", 1).await;
    let drained = drain(&service.egress.drain, LONG).await;
    assert_eq!(drained.abandoned, 1);
}

#[actix::test]
async fn a_busy_peer_that_goes_at_once_does_not_hold_up_the_end() {
    let mut world = World::new();
    let _home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    peer.send(&publish("id-1", "node-1")).await;
    let batch = service.published.take().await;
    let gate = service.gate.drain.clone();
    let draining = actix_rt::spawn(async move { drain(&gate, LONG).await });
    // Nobody takes what comes from now on.
    tokio::time::sleep(SHORT).await;
    peer.send(&publish("id-2", "node-2").repeat(100)).await;
    batch
        .origin
        .tell(vec![(batch.items[0].ticket, PushOutcome::Accepted)]);
    peer.expect_end("</stream:stream>").await;
    drop(peer);
    let gone = Instant::now();
    assert_eq!(draining.await.unwrap().abandoned, 0);
    assert!(gone.elapsed() < Duration::from_secs(1));
}
