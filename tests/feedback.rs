//! Apple's word on dead tokens ends registrations, unless they were renewed since.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod support;

use campanile::dev::world::Plan;
use messages::{Clock, UnixMillis};
use simulators::apple::{Faults, Reason, Verdict};
use simulators::server::Answer;
use support::{Rig, device_token, error, item_not_found, uuid};

const HOUR_MILLIS: u64 = 3_600_000;

fn from_now(hours: i64) -> UnixMillis {
    let now = Clock::system().now_millis().0;
    UnixMillis(now.saturating_add_signed(hours * HOUR_MILLIS as i64))
}

#[actix_rt::test]
async fn a_410_older_than_the_renewal_keeps_the_registration() {
    let rig = Rig::start(Plan::default()).await;
    let device = rig.register("ada", 1).await;
    let control = &rig.world.apple.control;

    control.set_verdict(&device.device_token, Verdict::unregistered(from_now(-1)));
    assert_eq!(
        rig.push(&device, true).await,
        error("wait", "internal-server-error")
    );
    control.set_verdict(&device.device_token, Verdict::Accept);
    assert_eq!(rig.push(&device, true).await, Answer::Result);
    rig.finish().await;
}

#[actix_rt::test]
async fn a_410_newer_than_the_renewal_ends_the_registration() {
    let rig = Rig::start(Plan::default()).await;
    let device = rig.register("ada", 1).await;
    let control = &rig.world.apple.control;

    // A time to come counts as now, and in the second of the registration nobody can tell which was first.
    control.set_verdict(&device.device_token, Verdict::unregistered(from_now(1)));
    let told = async {
        loop {
            match rig.push(&device, true).await {
                answer if answer == error("wait", "internal-server-error") => {}
                answer => break answer,
            }
        }
    };
    let told = tokio::time::timeout(support::PATIENCE, told).await.unwrap();
    assert_eq!(told, item_not_found());
    control.set_verdict(&device.device_token, Verdict::Accept);
    let gone = async { while rig.push(&device, true).await != item_not_found() {} };
    tokio::time::timeout(support::PATIENCE, gone).await.unwrap();
    let asked = control.counters().requests;
    assert_eq!(rig.push(&device, true).await, item_not_found());
    assert_eq!(
        control.counters().requests,
        asked,
        "a push to an ended registration left"
    );

    let again = rig.register("ada", 1).await;
    assert_eq!(rig.push(&again, true).await, Answer::Result);
    rig.finish().await;
}

#[actix_rt::test]
async fn a_410_for_a_token_that_was_replaced_meanwhile_keeps_the_registration() {
    let rig = Rig::start(Plan::default()).await;
    let device = rig.register("ada", 1).await;
    let control = &rig.world.apple.control;
    control.set_verdict(&device.device_token, Verdict::unregistered(from_now(1)));
    control.set_faults(Faults {
        latency_millis: 3_000,
        ..Faults::default()
    });
    let mut judged = control.watch(1);
    let register_again = async {
        judged.recv().await.unwrap();
        let registered = rig.try_register("ada", uuid(1), device_token(2)).await;
        registered.unwrap()
    };
    let (answer, again) = tokio::join!(rig.push(&device, true), register_again);
    assert_eq!(answer, error("wait", "internal-server-error"));
    control.set_faults(Faults::default());
    assert_eq!(rig.push(&again, true).await, Answer::Result);
    assert_eq!(control.delivered(&device_token(2)), 1);
    rig.finish().await;
}

#[actix_rt::test]
async fn a_wrong_environment_wipes_nobody() {
    let rig = Rig::start(Plan::default()).await;
    let mut devices = Vec::new();
    // One more in a row and the app would pause for a while: tests/apns_faults.rs shows that.
    for n in 0..19 {
        devices.push(rig.register("ada", n).await);
    }
    let control = &rig.world.apple.control;

    control.set_default_verdict(Verdict::refuse(Reason::BadDeviceToken));
    for device in &devices {
        assert_eq!(
            rig.push(device, true).await,
            error("wait", "internal-server-error")
        );
    }
    control.set_default_verdict(Verdict::Accept);
    for device in &devices {
        assert_eq!(rig.push(device, true).await, Answer::Result);
    }
    rig.finish().await;
}
