//! Dialogues between a pool and scripted peers: connections, limits, losses.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use apns::{AppConfig, Config, Names};
use messages::{PushOutcome, Rejection};

use world::frames::{PROTOCOL_ERROR, REFUSED_STREAM};
use world::{Peer, ServerConnection, World, answer, config, header, keep_open, next};

const UNAVAILABLE: PushOutcome = PushOutcome::Rejected(Rejection::Unavailable);

#[actix::test]
async fn one_request_first_and_then_as_many_as_settings_allow() {
    let peer = Peer::start().await;
    let config = Config {
        connections_per_pool_max: 1,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(12);
    let mut apns = peer.accept_frames(1).await;
    let first = apns.request().await;
    apns.expect_silence().await;

    apns.answer(first, 200).await;
    let second = apns.request().await;
    apns.expect_silence().await;

    apns.settings(4).await;
    let mut open = vec![second];
    open.extend(apns.requests(3).await);
    apns.expect_silence().await;

    // The limit falls below what is open: nothing new until there is room again.
    apns.settings(2).await;
    apns.answer(open.remove(0), 200).await;
    apns.expect_silence().await;
    apns.answer(open.remove(0), 200).await;
    apns.expect_silence().await;
    apns.answer(open.remove(0), 200).await;
    open.push(apns.request().await);
    apns.expect_silence().await;

    apns.settings(100).await;
    open.extend(apns.requests(6).await);
    for stream in open {
        apns.answer(stream, 200).await;
    }
    world.all_accepted(12).await;
    assert_eq!(world.counter("apns_connections_opened_total").await, 1);
    assert_eq!(world.counter("apns_pushes_repeated_total").await, 0);
    world.end().await;
}

#[actix::test]
async fn a_generous_peer_still_gets_one_request_first() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver(3);
    let mut apns = peer.accept_frames(1_000).await;
    let first = apns.request().await;
    apns.expect_silence().await;
    apns.answer(first, 200).await;
    for stream in apns.requests(2).await {
        apns.answer(stream, 200).await;
    }
    world.all_accepted(3).await;
    world.end().await;
}

#[actix::test]
async fn the_configured_limit_holds_below_the_peers() {
    let peer = Peer::start().await;
    let config = Config {
        connections_per_pool_max: 1,
        streams_per_connection_max: 2,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(4);
    let mut apns = peer.accept_frames(1_000).await;
    let first = apns.request().await;
    apns.answer(first, 200).await;
    let open = apns.requests(2).await;
    apns.expect_silence().await;
    apns.answer(open[0], 200).await;
    let last = apns.request().await;
    apns.answer(open[1], 200).await;
    apns.answer(last, 200).await;
    world.all_accepted(4).await;
    world.end().await;
}

#[actix::test]
async fn connections_are_added_when_streams_are_used_up() {
    let peer = Peer::start().await;
    let config = Config {
        connections_per_pool_max: 2,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(4);
    let mut one = peer.accept_frames(1).await;
    let first = one.request().await;
    one.answer(first, 200).await;
    let held = one.request().await;
    let mut two = peer.accept_frames(1).await;
    // The second connection takes the rest while the first one is busy, and there is no third.
    for _ in 0..2 {
        let stream = two.request().await;
        two.answer(stream, 200).await;
    }
    world.all_accepted(3).await;
    one.answer(held, 200).await;
    world.all_accepted(1).await;
    assert_eq!(world.counter("apns_connections_opened_total").await, 2);
    world.end().await;
}

#[actix::test]
async fn each_connection_looks_the_name_up_and_all_addresses_have_their_share() {
    let peer = Peer::start().await;
    let twin = peer.twin().await;
    let look_ups = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&look_ups);
    let names = Names::new(move |host, port| {
        assert_eq!(host, "localhost");
        counter.fetch_add(1, Ordering::Relaxed);
        let addresses = [[127, 0, 0, 1], [127, 0, 0, 2]];
        let addresses = addresses.map(|address| (address, port).into()).to_vec();
        Box::pin(async { Ok(addresses) })
    });
    let mut world = World::with_names(&config(), &[("app", peer.app())], true, names);
    let mut seen = [0, 0];
    while seen.contains(&0) {
        let connections = seen[0] + seen[1];
        // With even chances this happens once in 2^40 runs.
        assert!(connections < 40, "always the same address");
        world.deliver(1);
        let (mut apns, other) = peer.accept_at_either(&twin, 1).await;
        seen[usize::from(other)] += 1;
        let stream = apns.request().await;
        apns.answer(stream, 200).await;
        world.all_accepted(1).await;
        assert_eq!(look_ups.load(Ordering::Relaxed), connections + 1);
        // The next push needs another connection.
        apns.go_away(stream, 0).await;
        apns.closed().await;
    }
    world.end().await;
}

#[actix::test]
async fn a_connection_that_is_not_needed_is_closed_but_never_the_last() {
    let peer = Peer::start().await;
    let config = Config {
        connections_per_pool_max: 2,
        connection_idle_seconds: 1,
        ping_idle_seconds: 1,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(3);
    let mut one = peer.accept_frames(1).await;
    let first = one.request().await;
    one.answer(first, 200).await;
    let held = one.request().await;
    let mut two = peer.accept_frames(1).await;
    let stream = two.request().await;
    two.answer(stream, 200).await;
    world.all_accepted(2).await;
    // The second one idles while the first one works.
    assert!(two.closed().await, "with a farewell");
    one.answer(held, 200).await;
    world.all_accepted(1).await;
    // The last one stays: nothing comes for longer than the limit, and then it is used again.
    for _ in 0..3 {
        one.ping().await;
    }
    world.deliver(1);
    let again = one.request().await;
    one.answer(again, 200).await;
    world.all_accepted(1).await;
    assert_eq!(world.counter("apns_connections_opened_total").await, 2);
    world.end().await;
}

#[actix::test]
async fn a_replaced_key_file_drains_the_connections_of_the_old_key() {
    let peer = Peer::start().await;
    let config = Config {
        key_poll_seconds: 1,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(2);
    let mut old = peer.accept_h2().await;
    let asked = next(&mut old).await;
    let token = header(&asked, "authorization").to_owned();
    answer(asked, 200, &[]);
    let held = next(&mut old).await;
    let pair = rcgen::KeyPair::generate().unwrap();
    std::fs::write(peer.directory.path().join("key.p8"), pair.serialize_pem()).unwrap();
    // The old connection takes nothing more; what it has is answered.
    let mut new = loop {
        world.deliver(1);
        tokio::select! {
            connection = peer.accept_h2() => break connection,
            asked = old.accept() => answer(asked.unwrap().unwrap(), 200, &[]),
        }
    };
    let asked = next(&mut new).await;
    assert_ne!(header(&asked, "authorization"), token);
    answer(asked, 200, &[]);
    answer(held, 200, &[]);
    actix_rt::spawn(async move {
        while let Some(Ok(asked)) = new.accept().await {
            answer(asked, 200, &[]);
        }
    });
    tokio::time::timeout(testkit::PATIENCE, async {
        while old.accept().await.is_some() {}
    })
    .await
    .expect("the old connection ends");
    let delivered = world.delivered();
    world.all_accepted(delivered).await;
    world.end().await;
}

#[actix::test]
async fn after_goaway_the_unprocessed_move_and_the_others_finish() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver(6);
    let mut old = peer.accept_frames(100).await;
    let first = old.request().await;
    old.answer(first, 200).await;
    let open = old.requests(5).await;
    assert_eq!(open, [3, 5, 7, 9, 11]);
    old.go_away(5, 0).await;

    // The successor opens while the old connection drains.
    let mut new = peer.accept_frames(100).await;
    let moved = new.request().await;
    new.answer(moved, 200).await;
    for stream in new.requests(2).await {
        new.answer(stream, 200).await;
    }
    world.all_accepted(4).await;
    old.answer(3, 200).await;
    old.answer(5, 200).await;
    world.all_accepted(2).await;
    old.closed().await;
    assert_eq!(world.counter("apns_pushes_repeated_total").await, 3);
    assert_eq!(world.counter("apns_pushes_resent_total").await, 0);
    world.end().await;
}

#[actix::test]
async fn a_goaway_that_the_peers_fault_caused_is_not_mistaken_for_its_own() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver(2);
    let mut old = peer.accept_frames(100).await;
    let first = old.request().await;
    old.answer(first, 200).await;
    let second = old.request().await;
    // HEADERS on a stream that was never opened: our side ends the connection, and whether the second
    // request was processed is not known.
    old.answer(second + 100, 200).await;
    assert!(old.closed().await, "our side says GOAWAY");
    let mut new = peer.accept_frames(100).await;
    let again = new.request().await;
    new.answer(again, 200).await;
    world.all_accepted(2).await;
    assert_eq!(world.counter("apns_pushes_resent_total").await, 1);
    assert_eq!(world.counter("apns_pushes_repeated_total").await, 0);
    world.end().await;
}

#[actix::test]
async fn a_refused_stream_goes_again_at_once() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver(1);
    let mut apns = peer.accept_frames(100).await;
    for _ in 0..3 {
        let stream = apns.request().await;
        apns.reset(stream, REFUSED_STREAM).await;
    }
    let stream = apns.request().await;
    apns.answer(stream, 200).await;
    world.all_accepted(1).await;
    assert_eq!(world.counter("apns_pushes_repeated_total").await, 3);
    world.end().await;
}

#[actix::test]
async fn a_stream_refused_after_the_answer_began_is_in_doubt() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver(1);
    let mut apns = peer.accept_frames(100).await;
    let stream = apns.request().await;
    apns.begin_answer(stream, 500).await;
    apns.reset(stream, REFUSED_STREAM).await;
    let stream = apns.request().await;
    apns.answer(stream, 200).await;
    world.all_accepted(1).await;
    assert_eq!(world.counter("apns_pushes_resent_total").await, 1);
    assert_eq!(world.counter("apns_pushes_repeated_total").await, 0);
    world.end().await;
}

#[actix::test]
async fn a_peer_that_refuses_everything_is_not_asked_forever() {
    let peer = Peer::start().await;
    let config = Config {
        repeats_max: 3,
        fresh_seconds: 2,
        backoff_min_ms: 400,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(1);
    let mut apns = peer.accept_frames(100).await;
    let serve = actix_rt::spawn(async move {
        let mut refused = 0;
        loop {
            let stream = apns.request().await;
            refused += 1;
            apns.reset(stream, REFUSED_STREAM).await;
            // Four at once, then a few with doubling pauses of at least 200 ms.
            assert!(refused <= 8, "asked {refused} times");
        }
    });
    assert_eq!(world.outcome().await, UNAVAILABLE);
    assert!(!serve.is_finished());
    serve.abort();
    world.end().await;
}

#[actix::test]
async fn any_other_reset_goes_again_a_few_times() {
    let peer = Peer::start().await;
    let config = Config {
        resends_max: 2,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(1);
    let mut apns = peer.accept_frames(100).await;
    for _ in 0..3 {
        let stream = apns.request().await;
        apns.reset(stream, PROTOCOL_ERROR).await;
    }
    assert_eq!(world.outcome().await, UNAVAILABLE);
    apns.expect_silence().await;
    assert_eq!(world.counter("apns_pushes_resent_total").await, 2);
    assert_eq!(world.counter("apns_pushes_doubtful_total").await, 1);
    world.end().await;
}

#[actix::test]
async fn a_push_on_a_cut_connection_goes_again_with_its_id() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver(1);
    let mut first = peer.accept_h2().await;
    let asked = next(&mut first).await;
    let id = header(&asked, "apns-id").to_owned();
    let path = asked.0.uri().path().to_owned();
    drop((asked, first));

    let mut second = peer.accept_h2().await;
    let asked = next(&mut second).await;
    assert_eq!(header(&asked, "apns-id"), id);
    assert_eq!(asked.0.uri().path(), path);
    answer(asked, 200, &[]);
    let mut second = Some(second);
    serve_until(&mut world, &mut second, 1).await;
    assert_eq!(world.counter("apns_pushes_resent_total").await, 1);

    // Another push has another id, and is not lost when it is cut three times.
    world.deliver(1);
    let asked = next(second.as_mut().unwrap()).await;
    let other = header(&asked, "apns-id").to_owned();
    assert_ne!(other, id);
    drop((asked, second));
    for _ in 0..2 {
        let mut cut = peer.accept_h2().await;
        let asked = next(&mut cut).await;
        assert_eq!(header(&asked, "apns-id"), other);
    }
    let mut last = peer.accept_h2().await;
    let asked = next(&mut last).await;
    assert_eq!(header(&asked, "apns-id"), other);
    answer(asked, 200, &[]);
    serve_until(&mut world, &mut Some(last), 1).await;
    assert_eq!(world.counter("apns_pushes_resent_total").await, 4);
    world.end().await;
}

#[actix::test]
async fn what_was_cut_twice_makes_way_for_others() {
    let peer = Peer::start().await;
    let config = Config {
        backoff_min_ms: 60_000,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(3);
    let mut one = peer.accept_frames(100).await;
    let first = one.request().await;
    one.answer(first, 200).await;
    assert_eq!(one.requests(2).await, [3, 5]);
    drop(one);
    // Both at once, the older one first, and alone.
    let mut two = peer.accept_frames(100).await;
    let older = two.request().await;
    two.answer(older, 200).await;
    two.request().await;
    drop(two);
    // The younger one now pauses: a new push passes it.
    world.all_accepted(2).await;
    world.deliver(1);
    let mut three = peer.accept_frames(100).await;
    let new = three.request().await;
    three.answer(new, 200).await;
    world.all_accepted(1).await;
    three.expect_silence().await;
    assert_eq!(world.counter("apns_pushes_queued").await, 1);
    world.drain(Duration::ZERO).await;
    assert_eq!(world.outcome().await, UNAVAILABLE);
    world.end().await;
}

#[actix::test]
async fn after_a_cut_a_connection_is_trusted_with_what_it_has_answered() {
    let peer = Peer::start().await;
    let config = Config {
        connections_per_pool_max: 1,
        streams_per_connection_max: 4,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(13);
    let mut cut = peer.accept_frames(100).await;
    let first = cut.request().await;
    cut.answer(first, 200).await;
    cut.requests(4).await;
    drop(cut);
    let mut apns = peer.accept_frames(100).await;
    let mut open = vec![apns.request().await];
    for answered in 1..4 {
        apns.answer(open.remove(0), 200).await;
        open.extend(apns.requests(answered - open.len()).await);
        apns.expect_silence().await;
    }
    // It has carried as many as it may: trusted for good.
    apns.answer(open.remove(0), 200).await;
    open.extend(apns.requests(2).await);
    apns.expect_silence().await;
    while let Some(stream) = open.pop() {
        apns.answer(stream, 200).await;
        if world.counter("apns_pushes_queued").await > 0 {
            open.push(apns.request().await);
        }
    }
    world.all_accepted(13).await;
    assert_eq!(world.counter("apns_pushes_resent_total").await, 4);
    world.end().await;
}

#[actix::test]
async fn a_connection_that_allows_no_request_is_left_for_another() {
    let peer = Peer::start().await;
    let config = Config {
        blocked_seconds: 1,
        connections_per_pool_max: 1,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(1);
    let mut blocked = peer.accept_frames(0).await;
    blocked.expect_silence().await;
    let closed = actix_rt::spawn(blocked.closed());
    let mut apns = peer.accept_frames(100).await;
    assert!(closed.await.unwrap(), "with a farewell");
    let stream = apns.request().await;
    apns.answer(stream, 200).await;
    world.all_accepted(1).await;
    // One that worked may be blocked too; what is on it is waited for.
    world.deliver(1);
    let held = apns.request().await;
    apns.settings(0).await;
    apns.expect_silence().await;
    world.deliver(1);
    let mut other = tokio::select! {
        other = peer.accept_frames(100) => other,
        () = apns.serve() => panic!("it closed"),
    };
    let stream = other.request().await;
    other.answer(stream, 200).await;
    apns.answer(held, 200).await;
    world.all_accepted(2).await;
    assert_eq!(world.counter("apns_pushes_resent_total").await, 0);
    world.end().await;
}

#[actix::test]
async fn where_no_request_is_ever_allowed_a_push_is_given_up_and_told() {
    let peer = Peer::start().await;
    let config = Config {
        blocked_seconds: 1,
        fresh_seconds: 3,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(1);
    let serve = actix_rt::spawn(async move {
        loop {
            let blocked = peer.accept_frames(0).await;
            actix_rt::spawn(blocked.closed());
        }
    });
    assert_eq!(world.outcome().await, UNAVAILABLE);
    assert_eq!(world.counter("apns_pushes_expired_total").await, 1);
    assert!(world.counter("apns_connections_opened_total").await >= 2);
    world.end().await;
    serve.abort();
}

/// Keeps an h2 connection going until `count` pushes are accepted.
async fn serve_until(world: &mut World, connection: &mut Option<ServerConnection>, count: u32) {
    let connection = connection.as_mut().unwrap();
    tokio::select! {
        () = world.all_accepted(count) => {}
        request = connection.accept() => panic!("not expected: {}", request.is_some()),
    }
}

#[actix::test]
async fn a_request_without_answer_goes_again_on_another_connection() {
    let peer = Peer::start().await;
    let config = Config {
        request_timeout_seconds: 1,
        resends_max: 1,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(1);
    let mut slow = peer.accept_h2().await;
    let unanswered = next(&mut slow).await;
    keep_open(slow);
    let mut other = peer.accept_h2().await;
    let again = next(&mut other).await;
    assert_eq!(
        header(&again, "apns-id"),
        header(&unanswered, "apns-id"),
        "the repeat can be recognised"
    );
    // Nor is this one answered in time.
    keep_open(other);
    assert_eq!(
        world.outcome().await,
        PushOutcome::Rejected(Rejection::TimedOut)
    );
    assert_eq!(world.counter("apns_requests_timed_out_total").await, 2);
    world.end().await;
}

#[actix::test]
async fn a_dead_connection_is_noticed_by_its_silence() {
    let peer = Peer::start().await;
    let config = Config {
        ping_busy_seconds: 1,
        ping_timeout_seconds: 1,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(2);
    let mut dead = peer.accept_frames(100).await;
    let first = dead.request().await;
    dead.answer(first, 200).await;
    dead.request().await;
    dead.answers_pings = false;
    let closed = actix_rt::spawn(dead.closed());
    let mut alive = peer.accept_frames(100).await;
    let again = alive.request().await;
    alive.answer(again, 200).await;
    world.all_accepted(2).await;
    assert!(!closed.await.unwrap(), "no farewell to the dead");
    assert_eq!(world.counter("apns_requests_timed_out_total").await, 0);
    world.end().await;
}

#[actix::test]
async fn a_slow_but_live_connection_is_kept() {
    let peer = Peer::start().await;
    let config = Config {
        ping_busy_seconds: 1,
        ping_timeout_seconds: 1,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(1);
    let mut apns = peer.accept_frames(100).await;
    let held = apns.request().await;
    // Three PINGs come and are answered; only then the request is.
    for _ in 0..3 {
        apns.ping().await;
    }
    apns.answer(held, 200).await;
    world.all_accepted(1).await;
    assert_eq!(world.counter("apns_connections_opened_total").await, 1);
    world.end().await;
}

#[actix::test]
async fn a_push_without_verdict_is_deferred_and_goes_on() {
    let peer = Peer::start().await;
    let config = Config {
        defer_before_ms: 500,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver_to("app", 2, Duration::from_secs(1));
    let mut apns = peer.accept_frames(100).await;
    let in_flight = apns.request().await;
    for (slot, outcome) in world.outcomes(2).await {
        assert_eq!(outcome, PushOutcome::Deferred, "push {slot}");
    }
    apns.answer(in_flight, 200).await;
    let queued = apns.request().await;
    apns.answer(queued, 410).await;
    assert_eq!(
        world.touched(2).await,
        [None, Some("Unregistered".to_owned())]
    );
    assert_eq!(world.rejected.take().await.items.len(), 1);
    world.end().await;
}

#[actix::test]
async fn a_full_queue_says_so_at_once() {
    let peer = Peer::start().await;
    let config = Config {
        queue_max: 6,
        fresh_seconds: 1,
        ..config()
    };
    let mut world = World::without_signer(&config, &peer);
    world.deliver(5);
    assert_eq!(
        world.outcomes(2).await,
        [
            (3, PushOutcome::Rejected(Rejection::Overloaded)),
            (4, PushOutcome::Rejected(Rejection::Overloaded)),
        ]
    );
    // No provider token ever comes.
    for (slot, outcome) in world.outcomes(3).await {
        assert_eq!(outcome, UNAVAILABLE, "push {slot}");
    }
    assert_eq!(world.counter("apns_pushes_expired_total").await, 3);
    world.end().await;
}

#[actix::test]
async fn an_unreachable_upstream_does_not_slow_another() {
    let gone = Peer::start().await;
    let unreachable = AppConfig {
        topic: "com.example.other".to_owned(),
        ..gone.app()
    };
    let peer = Peer::start().await;
    let config = Config {
        fresh_seconds: 1,
        ..config()
    };
    let apps = [("app", peer.app()), ("gone", unreachable)];
    // The two keys have one id and are different: give the second its own.
    let apps = apps.map(|(name, app)| {
        let key_id = if name == "gone" {
            "ZZZ123DEFG"
        } else {
            "ABC123DEFG"
        };
        let key_id = key_id.to_owned();
        (name, AppConfig { key_id, ..app })
    });
    let mut world = World::with_apps(&config, &apps, true);
    drop(gone);
    world.deliver_to("gone", 2, Duration::from_secs(20));
    world.deliver(2);
    let mut apns = peer.accept_frames(100).await;
    for _ in 0..2 {
        let stream = apns.request().await;
        apns.answer(stream, 200).await;
    }
    let outcomes = world.outcomes(2).await;
    assert_eq!(
        outcomes,
        [(2, PushOutcome::Accepted), (3, PushOutcome::Accepted)]
    );
    for (slot, outcome) in world.outcomes(2).await {
        assert_eq!(outcome, UNAVAILABLE, "push {slot}");
    }
    assert!(world.counter("apns_connects_failed_total").await >= 2);
    world.end().await;
}

#[actix::test]
async fn an_app_without_configuration_keeps_its_registrations() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver_to("removed", 1, Duration::from_secs(20));
    assert_eq!(world.outcome().await, UNAVAILABLE);
    world.end().await;
}

#[actix::test]
async fn a_drain_waits_for_what_is_in_hand_and_says_farewell() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver(2);
    let mut apns = peer.accept_frames(1).await;
    let first = apns.request().await;
    let drain = actix_rt::spawn(world.drain(Duration::from_secs(30)));
    apns.expect_silence().await;
    // Nothing new is taken.
    world.deliver(1);
    assert_eq!(world.outcomes(1).await, [(2, UNAVAILABLE)]);
    apns.answer(first, 200).await;
    let second = apns.request().await;
    apns.answer(second, 200).await;
    assert!(apns.closed().await, "GOAWAY before the end");
    assert_eq!(drain.await.unwrap().abandoned, 0);
    world.all_accepted(2).await;
    world.end().await;
}

#[actix::test]
async fn a_drain_gives_up_at_its_deadline() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    world.deliver(3);
    world.deliver_to("app", 1, Duration::ZERO);
    let mut apns = peer.accept_frames(1).await;
    apns.request().await;
    let closed = actix_rt::spawn(apns.closed());
    assert_eq!(world.outcomes(1).await, [(3, PushOutcome::Deferred)]);
    let drained = world.drain(Duration::from_millis(200)).await;
    // Who waits for the three counts them.
    assert_eq!(drained.abandoned, 1);
    for (slot, outcome) in world.outcomes(3).await {
        assert_eq!(outcome, UNAVAILABLE, "push {slot}");
    }
    closed.await.unwrap();
    world.end().await;
}

/// Whoever may register can make APNs end connections; coming back at once looks like an attack.
#[actix::test]
async fn after_little_but_refusals_the_next_connection_waits() {
    let peer = Peer::start().await;
    let config = Config {
        backoff_min_ms: 60_000,
        ..config()
    };
    let mut world = World::start(&config, &peer);
    world.deliver(2);
    let mut apns = peer.accept_h2().await;
    let asked = next(&mut apns).await;
    answer(asked, 400, &[r#"{"reason":"BadDeviceToken"}"#]);
    let last = next(&mut apns).await;
    let unwelcome = std::time::Instant::now();
    drop((apns, last));
    let mut apns = peer.accept_h2().await;
    // Half of the longest pause at least, and not the minute that a failing APNs is given.
    assert!(unwelcome.elapsed() >= Duration::from_millis(900));
    let asked = next(&mut apns).await;
    answer(asked, 200, &[]);
    keep_open(apns);
    assert_eq!(
        world.outcomes(2).await,
        [(0, UNAVAILABLE), (1, PushOutcome::Accepted)]
    );
    world.end().await;
}
