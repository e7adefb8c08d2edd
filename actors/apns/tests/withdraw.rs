//! What waits for a registration that ends, or gets another device token, does not go.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod world;

use messages::{AppId, Change, NotificationHint, PushOutcome, Rejection, Withdrawal};

use world::{Peer, World, answer, config, header, next, registration, token};

const HINT: NotificationHint = NotificationHint {
    message_count: None,
    has_body: true,
};
const ENDED: PushOutcome = PushOutcome::Rejected(Rejection::UnknownNode);
const REPLACED: PushOutcome = PushOutcome::Rejected(Rejection::Unavailable);
const THROTTLED: PushOutcome = PushOutcome::Rejected(Rejection::Throttled);
const ACCEPTED: PushOutcome = PushOutcome::Accepted;

fn ended(device: u32) -> Withdrawal {
    Withdrawal {
        registration: registration(device),
        change: Change::Ended,
    }
}

fn replaced(device: u32, app: &str, by: u32) -> Withdrawal {
    Withdrawal {
        registration: registration(device),
        change: Change::Replaced {
            app: AppId::new(app),
            device_token: token(by),
        },
    }
}

#[actix::test]
async fn what_is_queued_does_not_go_unless_it_has_the_new_device_token() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    let flying = world.deliver_one(1, HINT);
    let mut apns = peer.accept_h2().await;
    let first = next(&mut apns).await;
    // The first request goes alone, so all else waits.
    let slots = [2, 3, 4, 5, 6].map(|device| world.deliver_one(device, HINT));
    let [two, three, four, five, six] = slots;
    world
        .withdraw(vec![
            ended(1),
            ended(2),
            replaced(3, "app", 33),
            replaced(4, "app", 4),
            replaced(5, "other", 5),
            ended(77),
        ])
        .await;
    assert_eq!(
        world.outcomes(3).await,
        [(two, ENDED), (three, REPLACED), (five, REPLACED)]
    );
    // What is on the wire is not touched.
    answer(first, 200, &[]);
    for device in [4, 6] {
        let asked = next(&mut apns).await;
        let path = format!("/3/device/{}", token(device).as_str());
        assert_eq!(asked.0.uri().path(), path);
        answer(asked, 200, &[]);
    }
    world::keep_open(apns);
    let expected = [flying, four, six].map(|slot| (slot, ACCEPTED));
    assert_eq!(world.outcomes(3).await, expected);
    assert_eq!(world.counter("apns_pushes_withdrawn_total").await, 3);
    assert_eq!(world.counter("apns_pushes_queued").await, 0);
    world.end().await;
}

#[actix::test]
async fn what_pauses_is_held_back_or_comes_back_does_not_go() {
    let peer = Peer::start().await;
    let config = apns::Config {
        backoff_min_ms: 10_000,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    let slots = [0, 1, 2, 3].map(|device| world.deliver_one(device, HINT));
    let [first, paused, held, flying] = slots;
    let mut apns = peer.accept_h2().await;
    let asked = next(&mut apns).await;
    answer(asked, 200, &[]);
    let failing = next(&mut apns).await;
    let busy = next(&mut apns).await;
    let late = next(&mut apns).await;
    assert_ne!(header(&failing, "apns-id"), header(&late, "apns-id"));
    answer(failing, 503, &[r#"{"reason":"ServiceUnavailable"}"#]);
    answer(busy, 429, &[r#"{"reason":"TooManyRequests"}"#]);
    let told = tokio::select! {
        told = world.outcomes(2) => told,
        _ = apns.accept() => panic!("no pause"),
    };
    assert_eq!(told, [(first, ACCEPTED), (held, THROTTLED)]);
    assert_eq!(world.touched(3).await.len(), 3);
    world.withdraw(vec![ended(1), ended(2), ended(3)]).await;
    assert_eq!(world.outcomes(1).await, [(paused, ENDED)]);
    assert_eq!(world.counter("apns_devices_held").await, 0);
    answer(late, 503, &[r#"{"reason":"ServiceUnavailable"}"#]);
    let told = tokio::select! {
        told = world.outcomes(1) => told,
        _ = apns.accept() => panic!("a request that was not to be sent"),
    };
    assert_eq!(told, [(flying, ENDED)]);
    assert_eq!(world.counter("apns_pushes_withdrawn_total").await, 3);
    assert_eq!(world.counter("apns_pushes_queued").await, 0);
    world::keep_open(apns);
    // Nothing is left to be waited for.
    assert_eq!(world.end().await.abandoned, 0);
}
