//! Provider tokens that APNs calls expired: by mistake, as a rule, and by right.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod world;

use std::time::Duration;

use apns::{Config, Names};
use messages::{PushOutcome, Rejection, UnixMillis};
use tokio::time::Instant;

use world::{Asked, NOW, Peer, ServerConnection, World, answer, config, header, keep_open, next};

fn expire(asked: Asked) {
    answer(asked, 403, &[r#"{"reason":"ExpiredProviderToken"}"#]);
}

/// A world in which a push has been accepted, and the connection that brought it. Whatever holds a provider token
/// back does so for so many seconds.
async fn settled(peer: &Peer, hold: u64) -> (World, ServerConnection) {
    let config = Config {
        backoff_max_seconds: hold,
        fresh_seconds: 7_200,
        ..config()
    };
    let names =
        Names::new(|_, port| Box::pin(async move { Ok(vec![([127, 0, 0, 1], port).into()]) }));
    let mut world = World::with_names(&config, &[("app", peer.app())], true, names);
    world.deliver(1);
    let mut connection = peer.accept_h2().await;
    answer(next(&mut connection).await, 200, &[]);
    let outcome = world.outcome_while(&mut connection).await;
    assert_eq!(outcome, PushOutcome::Accepted);
    (world, connection)
}

/// However often, as long as others are taken with it.
#[actix::test]
async fn one_that_is_called_so_by_mistake_goes_on() {
    let peer = Peer::start().await;
    let (mut world, mut connection) = settled(&peer, 3_600).await;
    for _ in 0..5 {
        world.deliver(4);
        let asked = next(&mut connection).await;
        let token = header(&asked, "authorization").to_owned();
        let id = header(&asked, "apns-id").to_owned();
        expire(asked);
        // This connection takes no more, since APNs may go on refusing there.
        keep_open(connection);
        connection = peer.accept_h2().await;
        let mut ids = Vec::new();
        for _ in 0..4 {
            let asked = next(&mut connection).await;
            assert_eq!(header(&asked, "authorization"), token);
            ids.push(header(&asked, "apns-id").to_owned());
            answer(asked, 200, &[]);
        }
        assert!(ids.contains(&id), "it goes again as well");
        for _ in 0..4 {
            let outcome = world.outcome_while(&mut connection).await;
            assert_eq!(outcome, PushOutcome::Accepted);
        }
    }
    world.end().await;
}

/// By three connections in a row. Then it is tried once in a while, and taken as soon as it is good again.
#[actix::test]
async fn one_that_all_connections_call_so_is_held() {
    const HOLD: u64 = 20;
    let peer = Peer::start().await;
    let (mut world, mut connection) = settled(&peer, HOLD).await;
    tokio::time::pause();
    world.deliver_to("app", 6, Duration::from_secs(3 * HOLD));
    let mut waits = Vec::new();
    let mut last = Instant::now();
    for _ in 0..4 {
        expire(next(&mut connection).await);
        keep_open(connection);
        connection = peer.accept_h2().await;
        waits.push(last.elapsed().as_secs());
        last = Instant::now();
    }
    assert_eq!(waits, [0, 0, HOLD, HOLD]);
    // The one that was refused each time is answered.
    let told = world.outcome().await;
    assert_eq!(told, PushOutcome::Rejected(Rejection::Unavailable));
    for _ in 0..5 {
        answer(next(&mut connection).await, 200, &[]);
    }
    keep_open(connection);
    world.all_accepted(5).await;
    world.end().await;
}

#[actix::test]
async fn one_that_is_taken_after_all_is_held_no_longer() {
    let peer = Peer::start().await;
    let (mut world, mut connection) = settled(&peer, 20).await;
    tokio::time::pause();
    world.deliver(3);
    let late = next(&mut connection).await;
    for _ in 0..2 {
        expire(next(&mut connection).await);
        keep_open(connection);
        connection = peer.accept_h2().await;
    }
    expire(next(&mut connection).await);
    let held_since = Instant::now();
    answer(late, 200, &[]);
    keep_open(connection);
    connection = peer.accept_h2().await;
    assert!(held_since.elapsed() < Duration::from_secs(10));
    for _ in 0..2 {
        answer(next(&mut connection).await, 200, &[]);
    }
    keep_open(connection);
    world.all_accepted(3).await;
    world.end().await;
}

/// As soon as APNs may be given another one there is another one.
#[actix::test]
async fn one_that_is_old_enough_is_replaced() {
    let peer = Peer::start().await;
    let (mut world, mut first) = settled(&peer, 3_600).await;
    world.clock.set(UnixMillis(NOW.0 + 21 * 60 * 1_000));
    world.deliver(1);
    let asked = next(&mut first).await;
    let token = header(&asked, "authorization").to_owned();
    expire(asked);
    keep_open(first);
    let mut second = peer.accept_h2().await;
    let asked = next(&mut second).await;
    assert_ne!(header(&asked, "authorization"), token);
    answer(asked, 200, &[]);
    assert_eq!(
        world.outcome_while(&mut second).await,
        PushOutcome::Accepted
    );
    world.end().await;
}
