//! Strangers flood an app of which APNs has taken nothing yet with device tokens that they made up.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "tests fail by panicking"
)]

mod world;

use std::cell::Cell;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use apns::Names;
use messages::{PushOutcome, Rejection};
use tokio::time::{Instant, sleep};

use world::{Asked, Peer, World, answer, config};

/// From here on device tokens are made up.
const MADE_UP: u32 = 1_000_000;

fn device(asked: &Asked) -> u32 {
    let path = asked.0.uri().path();
    u32::from_str_radix(&path[path.len() - 8..], 16).unwrap()
}

/// Takes pushes to good device tokens; after so many to bad ones it ends a connection, as APNs does.
async fn serve(peer: Rc<Peer>, asked_in_vain: Rc<Cell<u32>>) {
    const BAD_MAX: u32 = 100;
    loop {
        let mut connection = peer.accept_h2().await;
        let asked_in_vain = Rc::clone(&asked_in_vain);
        actix_rt::spawn(async move {
            let mut bad = 0;
            while let Some(Ok(asked)) = connection.accept().await {
                if device(&asked) < MADE_UP {
                    answer(asked, 200, &[]);
                    continue;
                }
                asked_in_vain.set(asked_in_vain.get() + 1);
                answer(asked, 400, &[r#"{"reason":"BadDeviceToken"}"#]);
                bad += 1;
                if bad == BAD_MAX {
                    connection.graceful_shutdown();
                }
            }
        });
    }
}

/// Servers of these names push, each to five other device tokens in each tenth of a second.
struct Flood(Vec<String>);

/// What came of an honest owner's pushes.
#[derive(Debug)]
#[expect(dead_code, reason = "the last one is read by people")]
struct Honest {
    accepted_after: Duration,
    told_wait: u32,
    asked_in_vain: u32,
}

impl Flood {
    /// After so many tenths of a second of it somebody publishes once a second for two minutes, to one device
    /// after the other.
    async fn plays(&self, tenths: u32) -> Honest {
        let peer = Rc::new(Peer::start().await);
        let names =
            Names::new(|_, port| Box::pin(async move { Ok(vec![([127, 0, 0, 1], port).into()]) }));
        let mut world = World::with_names(&config(), &[("app", peer.app())], true, names);
        let asked_in_vain = Rc::new(Cell::new(0));
        let served = actix_rt::spawn(serve(peer, Rc::clone(&asked_in_vain)));
        let mut made_up = MADE_UP..;
        let mut slots = HashSet::new();
        let mut told_wait = 0;
        let mut began = None;
        let mut accepted_after = None;
        for tenth in 0..tenths + 1_200 {
            for name in &self.0 {
                world.deliver_for(name, made_up.by_ref().take(5));
            }
            if tenth >= tenths && (tenth - tenths).is_multiple_of(10) {
                began.get_or_insert_with(Instant::now);
                let number = u32::try_from(slots.len()).unwrap();
                slots.insert(world.deliver_for("xmpp.good.org", [number]));
            }
            sleep(Duration::from_millis(100)).await;
            let told = world.outcomes.drain();
            for (ticket, outcome) in told.into_iter().flat_map(|batch| batch.items) {
                match outcome {
                    _ if !slots.contains(&ticket.slot) => {}
                    PushOutcome::Accepted => {
                        accepted_after = accepted_after.or(began.map(|began| began.elapsed()));
                    }
                    PushOutcome::Rejected(Rejection::Unavailable) => told_wait += 1,
                    _ => panic!("{outcome:?}"),
                }
            }
            if accepted_after.is_some() && slots.len() >= 5 {
                break;
            }
        }
        world.drain(Duration::ZERO).await;
        served.abort();
        Honest {
            accepted_after: accepted_after.unwrap_or(Duration::MAX),
            told_wait,
            asked_in_vain: asked_in_vain.get(),
        }
    }
}

#[actix::test]
async fn nobody_is_silenced_before_the_first_success() {
    tokio::time::pause();
    let names = || (0..40).map(|number| format!("chat{number}.evil.test"));
    let domains = || (0..40).map(|number| format!("chat.evil{number}.test"));
    for (case, flood, tenths) in [
        ("one owner has forty names", Flood(names().collect()), 100),
        ("forty owners just began", Flood(domains().collect()), 10),
        ("forty owners", Flood(domains().collect()), 100),
        ("forty owners, for long", Flood(domains().collect()), 300),
    ] {
        let honest = flood.plays(tenths).await;
        println!("{case}: {honest:?}");
        assert_eq!(honest.told_wait, 0, "{case}");
        assert!(honest.accepted_after <= Duration::from_secs(4), "{case}");
    }
}
