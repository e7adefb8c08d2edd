//! Dialogues about what APNs thinks of a push.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod world;

use std::num::NonZeroU32;
use std::time::Duration;

use apns::Config;
use http::Response;
use messages::{
    Acceptance, AppId, Change, NotificationHint, PushOutcome, Rejection, UnixMillis, UnixSeconds,
    Withdrawal,
};

use world::{
    NOW, Peer, ServerConnection, World, answer, answer_with, config, hand_out, header, keep_open,
    next, registration, token,
};

const UNAVAILABLE: PushOutcome = PushOutcome::Rejected(Rejection::Unavailable);
const UNREGISTERED: PushOutcome = PushOutcome::Rejected(Rejection::Unregistered);

/// Answers one push per (status, body) on one connection, and returns the outcomes.
async fn outcomes(
    world: &mut World,
    connection: &mut ServerConnection,
    answers: &[(u16, &str)],
) -> Vec<PushOutcome> {
    let mut outcomes = Vec::new();
    for (status, body) in answers {
        world.deliver(1);
        let asked = next(connection).await;
        let parts: &[&str] = if body.is_empty() { &[] } else { &[body] };
        answer(asked, *status, parts);
        outcomes.push(world.outcome_while(connection).await);
    }
    outcomes
}

#[actix::test]
async fn verdicts_that_end_a_push() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver(1);
    let mut connection = peer.accept_h2().await;
    let asked = next(&mut connection).await;
    assert!(header(&asked, "authorization").starts_with("bearer eyJ"));
    assert_eq!(
        header(&asked, "apns-expiration"),
        (NOW.seconds().0 + 28 * 86_400).to_string()
    );
    answer(asked, 200, &[]);
    assert_eq!(
        world.outcome_while(&mut connection).await,
        PushOutcome::Accepted
    );
    let got = outcomes(
        &mut world,
        &mut connection,
        &[
            (429, r#"{"reason":"TooManyRequests"}"#),
            (413, r#"{"reason":"PayloadTooLarge"}"#),
            (400, r#"{"reason":"SomethingNew"}"#),
            (400, ""),
            (410, ""),
            (200, ""),
        ],
    )
    .await;
    assert_eq!(
        got,
        [
            PushOutcome::Rejected(Rejection::Throttled),
            PushOutcome::Rejected(Rejection::Internal),
            UNAVAILABLE,
            UNAVAILABLE,
            UNREGISTERED,
            PushOutcome::Accepted,
        ]
    );
    let reason = |text: &str| Some(text.to_owned());
    assert_eq!(
        world.touched(7).await,
        [
            None,
            reason("TooManyRequests"),
            reason("PayloadTooLarge"),
            reason("SomethingNew"),
            reason("Status400"),
            reason("Unregistered"),
            None,
        ]
    );
    assert_eq!(world.counter("apns_reasons_unknown_total").await, 2);
    world.end().await;
}

#[actix::test]
async fn a_410_is_dated_and_answered_by_what_the_store_says() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    let mut connection = None;
    let dead_since = NOW.0 - 5_000;
    // (whether the registration outlives the token, body in how many frames, outcome)
    for (number, (outlives, parts, expected)) in [
        (false, 1, UNREGISTERED),
        (false, 9, UNREGISTERED),
        (true, 3, UNAVAILABLE),
    ]
    .into_iter()
    .enumerate()
    {
        let number = u32::try_from(number).unwrap();
        world
            .outliving
            .extend(outlives.then(|| registration(number)));
        world.deliver(1);
        if connection.is_none() {
            connection = Some(peer.accept_h2().await);
        }
        let connection = connection.as_mut().unwrap();
        let asked = next(connection).await;
        let body = format!(r#"{{"reason":"Unregistered","timestamp":{dead_since}}}"#);
        let size = body.len().div_ceil(parts);
        let parts: Vec<&str> = body
            .as_bytes()
            .chunks(size)
            .map(|part| std::str::from_utf8(part).unwrap())
            .collect();
        answer(asked, 410, &parts);
        assert_eq!(world.outcome_while(connection).await, expected);
        // The store decides for each registration of the token by the same date.
        let told = world.rejected.take().await.items;
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].app, AppId::new("app"));
        assert_eq!(told[0].device_token, token(number));
        assert_eq!(told[0].reason.as_str(), "Unregistered");
        assert_eq!(told[0].invalid_since, UnixMillis(dead_since));
        assert_eq!(std::mem::take(&mut world.looked_up), told);
    }
    // Dated by a clock that is ahead: now.
    let connection = connection.as_mut().unwrap();
    world.deliver(1);
    let late = format!(
        r#"{{"reason":"Unregistered","timestamp":{}}}"#,
        NOW.0 + 86_400_000
    );
    answer(next(connection).await, 410, &[&late]);
    assert_eq!(world.outcome_while(connection).await, UNREGISTERED);
    let told = world.rejected.take().await.items;
    assert_eq!(told[0].invalid_since, UnixMillis(NOW.0));
    // Undated: an hour of grace.
    world.deliver(1);
    answer(
        next(connection).await,
        410,
        &[r#"{"reason":"ExpiredToken"}"#],
    );
    assert_eq!(world.outcome_while(connection).await, UNREGISTERED);
    let told = world.rejected.take().await.items;
    assert_eq!(told[0].invalid_since, UnixMillis(NOW.0 - 3_600_000));
    world.end().await;
}

#[actix::test]
async fn an_endless_error_body_is_not_read() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver(1);
    let mut connection = peer.accept_h2().await;
    let asked = next(&mut connection).await;
    let long = "x".repeat(3_000);
    answer(asked, 410, &[&long, &long, r#"{"reason":"BadTopic"}"#]);
    assert_eq!(world.outcome_while(&mut connection).await, UNREGISTERED);
    world.end().await;
}

#[actix::test]
async fn a_failing_apns_is_asked_again_after_a_pause() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver(1);
    let mut connection = peer.accept_h2().await;
    let first = next(&mut connection).await;
    let id = header(&first, "apns-id").to_owned();
    answer(first, 503, &[]);
    let second = next(&mut connection).await;
    assert_eq!(header(&second, "apns-id"), id);
    answer(second, 500, &[r#"{"reason":"InternalServerError"}"#]);
    let third = next(&mut connection).await;
    answer(third, 200, &[]);
    assert_eq!(
        world.outcome_while(&mut connection).await,
        PushOutcome::Accepted
    );
    world.end().await;
}

#[actix::test]
async fn a_pause_beyond_the_freshness_of_a_push_ends_with_a_last_try() {
    let peer = Peer::start().await;
    let config = Config {
        fresh_seconds: 6,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(1);
    let mut connection = peer.accept_h2().await;
    let head = Response::builder().status(503).header("retry-after", "900");
    let asked = next(&mut connection).await;
    answer_with(asked, head, &[r#"{"reason":"ServiceUnavailable"}"#]);
    answer(next(&mut connection).await, 200, &[]);
    assert_eq!(
        world.outcome_while(&mut connection).await,
        PushOutcome::Accepted
    );
    world.end().await;
}

#[actix::test]
async fn a_failing_apns_is_asked_only_while_the_push_is_fresh() {
    let peer = Peer::start().await;
    let config = Config {
        fresh_seconds: 1,
        backoff_min_ms: 100,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(1);
    let mut connection = peer.accept_h2().await;
    let serve = actix_rt::spawn(async move {
        let mut asked = 0;
        while let Some(request) = connection.accept().await {
            answer(request.unwrap(), 500, &[]);
            asked += 1;
        }
        asked
    });
    assert_eq!(world.outcome().await, UNAVAILABLE);
    world.end().await;
    let asked = serve.await.unwrap();
    assert!((2..=6).contains(&asked), "asked {asked} times in a second");
}

#[actix::test]
async fn a_connection_at_its_end_is_left_for_another() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    for (status, reason) in [(503, "Shutdown"), (400, "IdleTimeout")] {
        world.deliver(1);
        let mut old = peer.accept_h2().await;
        let asked = next(&mut old).await;
        answer(asked, status, &[&format!(r#"{{"reason":"{reason}"}}"#)]);
        world::keep_open(old);
        let mut new = peer.accept_h2().await;
        let asked = next(&mut new).await;
        answer(asked, 200, &[]);
        assert_eq!(world.outcome_while(&mut new).await, PushOutcome::Accepted);
    }
    world.end().await;
}

#[actix::test]
async fn bad_device_tokens_are_believed_only_beside_successes() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver(1);
    let mut connection = peer.accept_h2().await;
    let bad = (400, r#"{"reason":"BadDeviceToken"}"#);
    let other = (400, r#"{"reason":"DeviceTokenNotForTopic"}"#);
    let good = (200, "");
    answer(next(&mut connection).await, bad.0, &[bad.1]);
    assert_eq!(world.outcome_while(&mut connection).await, UNAVAILABLE);
    let got = outcomes(
        &mut world,
        &mut connection,
        &[
            good, bad, other, good, good, good, good, good, good, good, good, good, good, good,
            good, good, good, good, good, bad, bad, other,
        ],
    )
    .await;
    assert_eq!(got[1..3], [UNAVAILABLE, UNAVAILABLE]);
    // 17 successes, so 4 suspects of 21 pass for the tokens' own fault and 5 of 22 do not.
    assert_eq!(got[19..], [UNREGISTERED, UNAVAILABLE, UNAVAILABLE]);
    let told = world.rejected.take().await.items;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].invalid_since, UnixMillis(NOW.0 - 3_600_000));
    world.end().await;
}

/// What was known before a restart, and is not of an app with another topic.
#[actix::test]
async fn a_device_token_that_the_store_calls_good_passes_where_others_wait() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    let bad = (400, r#"{"reason":"BadDeviceToken"}"#);
    world.deliver(1);
    let mut connection = peer.accept_h2().await;
    answer(next(&mut connection).await, 200, &[]);
    assert_eq!(
        world.outcome_while(&mut connection).await,
        PushOutcome::Accepted
    );
    let here = world.accepted_at().await;
    world.end().await;

    let mut world = World::start(&config(), &peer);
    world.deliver(1);
    let mut connection = peer.accept_h2().await;
    answer(next(&mut connection).await, bad.0, &[bad.1]);
    assert_eq!(world.outcome_while(&mut connection).await, UNAVAILABLE);
    outcomes(&mut world, &mut connection, &[bad; 20]).await;
    // The first two wait for their turn.
    let hint = NotificationHint {
        message_count: None,
        has_body: true,
    };
    world.deliver_one(100, hint);
    world.acceptance = Some(Acceptance(NonZeroU32::MIN));
    world.deliver_one(101, hint);
    world.acceptance = Some(here);
    world.deliver_one(102, hint);
    let asked = next(&mut connection).await;
    let path = format!("/3/device/{}", token(102).as_str());
    assert_eq!(asked.0.uri().path(), path);
    // What it once took is not believed to be dead at the first word.
    answer(asked, bad.0, &[bad.1]);
    assert_eq!(world.outcome_while(&mut connection).await, UNAVAILABLE);
    for _ in 0..2 {
        answer(next(&mut connection).await, bad.0, &[bad.1]);
        assert_eq!(world.outcome_while(&mut connection).await, UNAVAILABLE);
    }
    keep_open(connection);
    world.end().await;
}

#[actix::test]
async fn the_registry_is_told_of_successes_that_say_something_new() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    let hint = NotificationHint::default();
    world.deliver_one(7, hint);
    let mut connection = peer.accept_h2().await;
    let good = (200, "");
    let mut push = async |world: &mut World, (status, body): (u16, &'static str)| {
        answer(next(&mut connection).await, status, &[body]);
        world.outcome_while(&mut connection).await
    };
    assert_eq!(push(&mut world, good).await, PushOutcome::Accepted);
    let here = world.accepted_at().await;
    // The store does not know it yet.
    world.deliver_one(7, hint);
    assert_eq!(push(&mut world, good).await, PushOutcome::Accepted);
    assert_eq!(world.accepted_at().await, here);
    // From here on it does: the next says nothing new.
    world.acceptance = Some(here);
    world.deliver_one(7, hint);
    assert_eq!(push(&mut world, good).await, PushOutcome::Accepted);
    // Whatever became of the registration, its time begins anew.
    let change = Change::Replaced {
        app: AppId::new("app"),
        device_token: token(7),
    };
    let registration = world::registration(7);
    world
        .withdraw(vec![Withdrawal {
            registration,
            change,
        }])
        .await;
    world.deliver_one(7, hint);
    assert_eq!(push(&mut world, good).await, PushOutcome::Accepted);
    world.deliver_one(7, hint);
    let bad = (400, r#"{"reason":"BadDeviceToken"}"#);
    assert_eq!(push(&mut world, bad).await, UNAVAILABLE);
    let told = world.touched(2).await;
    assert_eq!(told, [None, Some("BadDeviceToken".to_owned())]);
    keep_open(connection);
    world.end().await;
}

/// Answers one request with a refusal of the configuration.
async fn refuse(connection: &mut ServerConnection) {
    let asked = next(connection).await;
    let head = Response::builder()
        .status(403)
        .header("date", "Thu, 01 Jan 2026 02:00:00 GMT");
    answer_with(asked, head, &[r#"{"reason":"InvalidProviderToken"}"#]);
}

#[actix::test]
async fn one_refusal_of_the_configuration_costs_nothing() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver(1);
    let mut connection = peer.accept_h2().await;
    refuse(&mut connection).await;
    answer(next(&mut connection).await, 200, &[]);
    assert_eq!(
        world.outcome_while(&mut connection).await,
        PushOutcome::Accepted
    );
    world::keep_open(connection);
    world.end().await;
}

#[actix::test]
async fn a_refused_configuration_stops_the_app_and_keeps_its_tokens() {
    let peer = Peer::start().await;
    let config = Config {
        breaker_seconds: 3_600,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(1);
    let mut connection = peer.accept_h2().await;
    for _ in 0..2 {
        refuse(&mut connection).await;
    }
    assert_eq!(world.outcome_while(&mut connection).await, UNAVAILABLE);
    // The third in a row stops it, and the tries after that fail as well.
    world.deliver(5);
    for _ in 0..4 {
        refuse(&mut connection).await;
    }
    for _ in 0..5 {
        assert_eq!(world.outcome_while(&mut connection).await, UNAVAILABLE);
    }
    world.deliver(5);
    // Without a single request.
    for _ in 0..5 {
        assert_eq!(world.outcome_while(&mut connection).await, UNAVAILABLE);
    }
    assert!(world.rejected.drain().is_empty());
    world::keep_open(connection);
    world.end().await;
}

/// A newer token may be 20 minutes away, and the device would be deaf until then.
#[actix::test]
async fn a_provider_token_that_was_refused_on_a_whim_is_tried_again() {
    let peer = Peer::start().await;
    let config = Config {
        backoff_max_seconds: 1,
        ..config()
    };
    let mut world = World::without_signer(&config, &peer);
    let subscription = world.subscriptions.take().await;
    world.deliver(1);
    hand_out(&subscription, "only", 1_000);
    let mut first = peer.accept_h2().await;
    answer(
        next(&mut first).await,
        403,
        &[r#"{"reason":"ExpiredProviderToken"}"#],
    );
    world::keep_open(first);
    world.refused.take().await;
    let mut second = peer.accept_h2().await;
    let asked = next(&mut second).await;
    assert_eq!(header(&asked, "authorization"), "bearer only");
    answer(asked, 200, &[]);
    assert_eq!(
        world.outcome_while(&mut second).await,
        PushOutcome::Accepted
    );
    world.end().await;
}

#[actix::test]
async fn an_expired_provider_token_is_replaced_and_the_push_goes_again_once() {
    let peer = Peer::start().await;
    let mut world = World::without_signer(&config(), &peer);
    let subscription = world.subscriptions.take().await;
    world.deliver(2);
    hand_out(&subscription, "old", 1_000);
    let mut old = peer.accept_h2().await;
    let asked = next(&mut old).await;
    assert_eq!(header(&asked, "authorization"), "bearer old");
    let id = header(&asked, "apns-id").to_owned();
    answer(asked, 403, &[r#"{"reason":"ExpiredProviderToken"}"#]);
    world::keep_open(old);

    let refused = world.refused.take().await;
    assert_eq!(refused.issued_at, UnixSeconds(1_000));
    hand_out(&subscription, "new", 4_000);
    // On a new connection, and the first of it alone again.
    let mut new = peer.accept_h2().await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let asked = next(&mut new).await;
        assert_eq!(header(&asked, "authorization"), "bearer new");
        ids.push(header(&asked, "apns-id").to_owned());
        answer(asked, 200, &[]);
    }
    assert!(ids.contains(&id));
    for _ in 0..2 {
        assert_eq!(world.outcome_while(&mut new).await, PushOutcome::Accepted);
    }

    // A second refusal of one push is the operator's: most likely the clock is wrong.
    world.deliver(1);
    let asked = next(&mut new).await;
    answer(asked, 403, &[r#"{"reason":"ExpiredProviderToken"}"#]);
    world::keep_open(new);
    world.refused.take().await;
    hand_out(&subscription, "newer", 8_000);
    let mut newest = peer.accept_h2().await;
    let asked = next(&mut newest).await;
    answer(asked, 403, &[r#"{"reason":"ExpiredProviderToken"}"#]);
    assert_eq!(world.outcome_while(&mut newest).await, UNAVAILABLE);
    world::keep_open(newest);
    world.end().await;
}

#[actix::test]
async fn a_connection_that_calls_all_tokens_expired_tells_nothing_of_the_newer_one() {
    let peer = Peer::start().await;
    let config = apns::Config {
        connections_per_pool_max: 1,
        ..config()
    };
    let mut world = World::without_signer(&config, &peer);
    let subscription = world.subscriptions.take().await;
    world.deliver(2);
    hand_out(&subscription, "old", 1_000);
    let mut wedged = peer.accept_h2().await;
    answer(next(&mut wedged).await, 200, &[]);
    let older = next(&mut wedged).await;
    // Another lane has had the old one refused: the new one comes before this lane knows.
    hand_out(&subscription, "new", 4_000);
    world.deliver(1);
    let newer = next(&mut wedged).await;
    assert_eq!(header(&newer, "authorization"), "bearer new");
    answer(older, 403, &[r#"{"reason":"ExpiredProviderToken"}"#]);
    answer(newer, 403, &[r#"{"reason":"ExpiredProviderToken"}"#]);
    world::keep_open(wedged);
    let mut good = peer.accept_h2().await;
    for _ in 0..2 {
        let asked = next(&mut good).await;
        assert_eq!(header(&asked, "authorization"), "bearer new");
        answer(asked, 200, &[]);
    }
    for _ in 0..3 {
        assert_eq!(world.outcome_while(&mut good).await, PushOutcome::Accepted);
    }
    assert!(world.refused.drain().is_empty(), "the new one is good");
    world.end().await;
}

#[actix::test]
async fn a_connection_of_another_key_is_replaced_once() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver(1);
    for _ in 0..2 {
        let mut connection = peer.accept_h2().await;
        let asked = next(&mut connection).await;
        answer(asked, 403, &[r#"{"reason":"UnrelatedKeyIdInToken"}"#]);
        world::keep_open(connection);
    }
    assert_eq!(world.outcome().await, UNAVAILABLE);
    world.end().await;
}

/// It may refuse the token for 20 minutes, and no push is fresh for so long.
#[actix::test]
async fn who_waits_while_apns_allows_no_new_token_is_not_told_that_all_is_well() {
    let peer = Peer::start().await;
    let config = Config {
        defer_before_ms: 500,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver_to("app", 2, Duration::from_secs(1));
    let mut old = peer.accept_h2().await;
    let asked = next(&mut old).await;
    answer(asked, 429, &[r#"{"reason":"TooManyProviderTokenUpdates"}"#]);
    world::keep_open(old);
    for (slot, outcome) in world.outcomes(2).await {
        assert_eq!(outcome, UNAVAILABLE, "push {slot}");
    }
    // They go on all the same, and what is taken ends it.
    let mut new = peer.accept_h2().await;
    for _ in 0..2 {
        let asked = next(&mut new).await;
        answer(asked, 200, &[]);
    }
    world.deliver_to("app", 1, Duration::from_secs(1));
    let asked = next(&mut new).await;
    assert_eq!(world.outcome_while(&mut new).await, PushOutcome::Deferred);
    answer(asked, 200, &[]);
    world::keep_open(new);
    let reason = Some("TooManyProviderTokenUpdates".to_owned());
    assert_eq!(world.touched(4).await, [reason, None, None, None]);
    world.end().await;
}

#[actix::test]
async fn too_many_token_updates_keep_the_token_and_change_the_connection() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver(1);
    let mut old = peer.accept_h2().await;
    let asked = next(&mut old).await;
    let bearer = header(&asked, "authorization").to_owned();
    answer(asked, 429, &[r#"{"reason":"TooManyProviderTokenUpdates"}"#]);
    world::keep_open(old);
    let mut new = peer.accept_h2().await;
    let asked = next(&mut new).await;
    assert_eq!(header(&asked, "authorization"), bearer);
    answer(asked, 200, &[]);
    assert_eq!(world.outcome_while(&mut new).await, PushOutcome::Accepted);
    assert!(world.refused.drain().is_empty());
    world.end().await;
}
