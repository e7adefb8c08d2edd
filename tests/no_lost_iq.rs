//! Every iq is answered exactly once, whatever APNs does.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod support;

use campanile::dev::world::Plan;
use simulators::apple::{self, Faults};
use simulators::server::Pace;
use support::Rig;

#[actix_rt::test]
async fn ten_thousand_pushes_while_apns_says_goaway_and_drops_connections() {
    let faults = Faults {
        go_away_every: 100,
        drop_every: 1000,
        ..Faults::default()
    };
    let apple = apple::Config {
        faults,
        ..apple::Config::default()
    };
    let rig = Rig::start(Plan {
        apple,
        ..Plan::default()
    })
    .await;
    let mut devices = Vec::new();
    // As many as pushes at a time, so that none takes the place of another.
    for n in 0..500 {
        devices.push(rig.register(&format!("user{n}"), n).await);
    }

    let report = rig.flood(&devices, 10_000, Pace::Outstanding(500)).await;

    let counters = rig.world.apple.control.counters();
    println!(
        "{} sent, {} result, {} errors, {} duplicates of answers, {} strays, {} unanswered; \
         APNs: {} requests, {} GOAWAY, {} dropped connections, {} ignored streams, {} repeated ids",
        report.sent,
        report.results,
        report.errors.values().sum::<u64>(),
        report.duplicates,
        report.strays,
        report.unanswered,
        counters.requests,
        counters.go_aways,
        counters.connections_dropped,
        counters.streams_ignored,
        counters.duplicates,
    );
    assert_eq!(report.sent, 10_000);
    assert!(report.is_clean(), "errors: {:?}", report.errors);
    assert_eq!(report.unanswered, 0);
    assert!(
        counters.go_aways >= 90 && counters.connections_dropped >= 9,
        "{counters:?}"
    );
    rig.finish().await;
}
