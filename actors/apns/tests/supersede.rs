//! One wake-up takes the place of another that still waits; a device that had too many is held back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod world;

use std::time::Duration;

use apns::Config;
use messages::{NotificationHint, PushOutcome, Rejection};

use world::{Asked, Peer, World, answer, config, header, next, token};

const THROTTLED: PushOutcome = PushOutcome::Rejected(Rejection::Throttled);
const ACCEPTED: PushOutcome = PushOutcome::Accepted;

const IMPORTANT: NotificationHint = NotificationHint {
    message_count: None,
    has_body: true,
};
const UNIMPORTANT: NotificationHint = NotificationHint {
    message_count: None,
    has_body: false,
};

#[track_caller]
fn check(asked: &Asked, device: u32, push_type: &str) {
    let path = format!("/3/device/{}", token(device).as_str());
    assert_eq!(asked.0.uri().path(), path);
    assert_eq!(header(asked, "apns-push-type"), push_type);
}

#[actix::test]
async fn a_newer_push_takes_the_place_of_one_that_waits() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    let flying = world.deliver_one(1, IMPORTANT);
    let mut apns = peer.accept_h2().await;
    let first = next(&mut apns).await;

    // The first request goes alone, so all else waits.
    let old = world.deliver_one(2, IMPORTANT);
    let quiet = world.deliver_one(3, UNIMPORTANT);
    let other = world.deliver_one(4, UNIMPORTANT);
    let newer = world.deliver_one(2, UNIMPORTANT);
    let loud = world.deliver_one(3, IMPORTANT);
    let again = world.deliver_one(1, UNIMPORTANT);
    assert_eq!(
        world.outcomes(2).await,
        [(old, THROTTLED), (quiet, THROTTLED)],
        "the older ones are told at once"
    );
    check(&first, 1, "alert");
    answer(first, 200, &[]);
    // In the places of the older ones; what was important stays so. What flies is not touched.
    for (device, push_type) in [
        (2, "alert"),
        (3, "alert"),
        (4, "background"),
        (1, "background"),
    ] {
        let asked = next(&mut apns).await;
        check(&asked, device, push_type);
        answer(asked, 200, &[]);
    }
    world::keep_open(apns);
    let mut expected = [flying, other, newer, loud, again].map(|slot| (slot, ACCEPTED));
    expected.sort_unstable_by_key(|(slot, _)| *slot);
    assert_eq!(world.outcomes(5).await, expected);
    assert_eq!(world.counter("apns_pushes_superseded_total").await, 2);
    world.end().await;
}

#[actix::test]
async fn what_pauses_gives_way_too_and_is_not_waited_for() {
    let peer = Peer::start().await;
    let config = Config {
        backoff_min_ms: 1_000,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    let old = world.deliver_one(1, IMPORTANT);
    let mut apns = peer.accept_h2().await;
    let asked = next(&mut apns).await;
    let id = header(&asked, "apns-id").to_owned();
    answer(asked, 503, &[r#"{"reason":"ServiceUnavailable"}"#]);
    let touched = tokio::select! {
        touched = world.touched(1) => touched,
        _ = apns.accept() => panic!("no pause"),
    };
    assert_eq!(touched, [Some("ServiceUnavailable".to_owned())]);
    let newer = world.deliver_one(1, UNIMPORTANT);
    assert_eq!(world.outcomes(1).await, [(old, THROTTLED)]);
    let asked = next(&mut apns).await;
    check(&asked, 1, "alert");
    assert_ne!(header(&asked, "apns-id"), id, "a push of its own");
    answer(asked, 200, &[]);
    world::keep_open(apns);
    assert_eq!(world.outcomes(1).await, [(newer, ACCEPTED)]);
    world.end().await;
}

#[actix::test]
async fn a_queue_that_is_full_still_takes_what_supersedes() {
    let peer = Peer::start().await;
    let config = Config {
        queue_max: 1,
        ..config()
    };
    let mut world = World::without_signer(&config, &peer);
    let old = world.deliver_one(1, IMPORTANT);
    let stranger = world.deliver_one(2, IMPORTANT);
    world.deliver_one(1, IMPORTANT);
    assert_eq!(
        world.outcomes(2).await,
        [
            (old, THROTTLED),
            (stranger, PushOutcome::Rejected(Rejection::Overloaded))
        ]
    );
    world.drain(Duration::ZERO).await;
    assert_eq!(
        world.outcome().await,
        PushOutcome::Rejected(Rejection::Unavailable)
    );
    world.end().await;
}

#[actix::test]
async fn too_many_requests_make_one_push_after_the_hold() {
    let peer = Peer::start().await;
    let config = Config {
        device_hold_seconds: 1,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    let refused = world.deliver_one(1, IMPORTANT);
    let mut apns = peer.accept_h2().await;
    let asked = next(&mut apns).await;
    answer(asked, 429, &[r#"{"reason":"TooManyRequests"}"#]);
    let told = tokio::select! {
        told = world.outcomes(1) => told,
        _ = apns.accept() => panic!("no hold"),
    };
    assert_eq!(told, [(refused, THROTTLED)]);
    let more = [(); 3].map(|()| world.deliver_one(1, UNIMPORTANT));
    let other = world.deliver_one(2, UNIMPORTANT);
    assert_eq!(world.counter("apns_devices_held").await, 1);
    // Another device is not held back.
    let asked = next(&mut apns).await;
    check(&asked, 2, "background");
    answer(asked, 200, &[]);
    // All four as one, and as important as the first.
    let asked = next(&mut apns).await;
    check(&asked, 1, "alert");
    answer(asked, 200, &[]);
    world::keep_open(apns);
    let mut expected = more.map(|slot| (slot, THROTTLED)).to_vec();
    expected.push((other, ACCEPTED));
    assert_eq!(world.outcomes(4).await, expected);
    assert_eq!(world.counter("apns_devices_held").await, 0);
    world.end().await;
}

#[actix::test]
async fn a_hold_outlives_the_push_that_caused_it() {
    let peer = Peer::start().await;
    let config = Config {
        device_hold_seconds: 2,
        fresh_seconds: 1,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver_one(1, IMPORTANT);
    let mut apns = peer.accept_h2().await;
    let asked = next(&mut apns).await;
    answer(asked, 429, &[r#"{"reason":"TooManyRequests"}"#]);
    // Not fresh any more when the hold is over: nothing is sent.
    let told = tokio::select! {
        told = world.outcomes(1) => told,
        _ = apns.accept() => panic!("no hold"),
    };
    assert_eq!(told[0].1, THROTTLED);
    while world.counter("apns_devices_held").await == 1 {
        tokio::select! {
            biased;
            _ = apns.accept() => panic!("sent what is not fresh"),
            () = tokio::task::yield_now() => {}
        }
    }
    world.deliver_one(1, UNIMPORTANT);
    let asked = next(&mut apns).await;
    check(&asked, 1, "background");
    answer(asked, 200, &[]);
    world::keep_open(apns);
    assert_eq!(world.outcome().await, ACCEPTED);
    world.end().await;
}

#[actix::test]
async fn a_drain_does_not_wait_for_devices_held_back() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver_one(1, IMPORTANT);
    let mut apns = peer.accept_h2().await;
    let asked = next(&mut apns).await;
    answer(asked, 429, &[r#"{"reason":"TooManyRequests"}"#]);
    world::keep_open(apns);
    assert_eq!(world.outcome().await, THROTTLED);
    assert_eq!(world.end().await.abandoned, 1, "its iq was answered");
}
