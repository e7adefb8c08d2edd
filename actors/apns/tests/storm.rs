//! Many pushes against a peer that keeps leaving: each is accepted, and answered once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod world;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use messages::PushOutcome;

use world::frames::Frames;
use world::{Peer, World, answer, config, header};

const PUSHES: u32 = 10_000;

/// Answers in bunches, so that many are always in flight; leaves by GOAWAY after 100 requests, and
/// without a word each time the peer as a whole has seen another 1,000.
async fn serve(mut apns: Frames, seen: Rc<Cell<u32>>) {
    let mut open = Vec::new();
    let mut processed = 0;
    let mut leaving = false;
    loop {
        let request = tokio::time::timeout(Duration::from_millis(2), apns.try_request()).await;
        match request {
            Ok(Some(_)) if leaving => {}
            Ok(Some(stream)) => {
                seen.set(seen.get() + 1);
                if seen.get().is_multiple_of(1_000) {
                    return;
                }
                open.push(stream);
                processed += 1;
                if processed == 100 {
                    apns.go_away(stream, 0).await;
                    leaving = true;
                }
            }
            Ok(None) => return,
            Err(_) => {
                for stream in open.drain(..) {
                    apns.answer(stream, 200).await;
                }
            }
        }
        if open.len() >= 40 {
            for stream in open.drain(..20) {
                apns.answer(stream, 200).await;
            }
        }
    }
}

#[actix::test]
async fn goaway_each_100_and_a_cut_each_1000() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    let seen = Rc::new(Cell::new(0));
    let requests = Rc::clone(&seen);
    let accept = actix_rt::spawn(async move {
        loop {
            let apns = peer.accept_frames(1_000).await;
            actix_rt::spawn(serve(apns, Rc::clone(&requests)));
        }
    });
    let mut slots = HashSet::new();
    for batch in [1, 9, 90, 900, 4_000, 5_000] {
        world.deliver(batch);
        for (slot, outcome) in world.outcomes(batch as usize).await {
            assert_eq!(outcome, PushOutcome::Accepted, "push {slot}");
            assert!(slots.insert(slot));
        }
    }
    assert_eq!(slots.len(), PUSHES as usize);
    assert!(world.counter("apns_pushes_resent_total").await > 0);
    assert!(world.counter("apns_pushes_repeated_total").await > 1_000);
    // All repeats beyond the certainly unprocessed ones are those of the ten cuts.
    assert!(seen.get() < PUSHES + 10 * 256, "{} requests", seen.get());
    accept.abort();
    assert_eq!(world.end().await.abandoned, 0);
}

#[actix::test]
async fn no_push_is_processed_twice_when_connections_end_gracefully() {
    let peer = Peer::start().await;
    let mut world = World::start(&config(), &peer);
    let ids: Rc<std::cell::RefCell<HashMap<String, u32>>> = Rc::default();
    let processed = Rc::clone(&ids);
    let accept = actix_rt::spawn(async move {
        loop {
            let mut connection = peer.accept_h2().await;
            let processed = Rc::clone(&processed);
            actix_rt::spawn(async move {
                let mut count = 0;
                while let Some(Ok(asked)) = connection.accept().await {
                    let id = header(&asked, "apns-id").to_owned();
                    *processed.borrow_mut().entry(id).or_default() += 1;
                    answer(asked, 200, &[]);
                    count += 1;
                    if count == 50 {
                        connection.graceful_shutdown();
                    }
                }
            });
        }
    });
    world.deliver(2_000);
    world.all_accepted(2_000).await;
    accept.abort();
    let ids = ids.take();
    assert_eq!(ids.len(), 2_000);
    assert!(ids.values().all(|times| *times == 1));
    world.end().await;
}
