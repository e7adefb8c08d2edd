//! SIGTERM finishes what is in hand; a second signal does not wait.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod support;

use campanile::dev::world::{Plan, World};
use campanile::exit;
use simulators::apple::{self, Faults, Verdict};
use simulators::server::{Answer, PublishShape, RegisterDevice, Trigger};
use support::process::Campanile;
use support::{device_token, uuid};

async fn world_with_latency(latency_millis: u64) -> World {
    let faults = Faults {
        latency_millis,
        ..Faults::default()
    };
    let apple = apple::Config {
        faults,
        ..apple::Config::default()
    };
    World::start(Plan {
        apple,
        listen: support::anywhere(),
        ..Plan::default()
    })
    .await
    .unwrap()
}

async fn registered(world: &World) -> Trigger {
    let request = RegisterDevice {
        user: "ada".to_owned(),
        node: uuid(1),
        device_token: device_token(1),
    };
    let device = world.chat.register.send(request).await.unwrap().unwrap();
    Trigger {
        node: device.node,
        secret: Some(device.secret),
        has_body: true,
        shape: PublishShape::default(),
    }
}

#[actix_rt::test]
async fn a_push_in_hand_is_finished_and_answered() {
    let world = world_with_latency(1_000).await;
    let mut service = Campanile::serve(world.config_file());
    world.service_is_at(service.address().await).await;
    let trigger = registered(&world).await;

    let (answered, code) = tokio::join!(
        world.chat.trigger.send(trigger),
        requested_then_terminated(&world, &mut service)
    );
    assert_eq!(answered.unwrap().unwrap().answer, Answer::Result);
    assert_eq!(code, Some(exit::OK));
    world.stop().await;
}

async fn requested_then_terminated(world: &World, service: &mut Campanile) -> Option<i32> {
    while world.apple.control.counters().requests == 0 {
        tokio::task::yield_now().await;
    }
    service.terminate().await
}

#[actix_rt::test]
async fn a_push_that_never_ends_is_given_up_after_the_grace_and_told_so() {
    let world = world_with_latency(0).await;
    let environment = [("CAMPANILE__SHUTDOWN__GRACE_SECONDS", "1")];
    let mut service = Campanile::serve_with(world.config_file(), &environment);
    world.service_is_at(service.address().await).await;
    let trigger = registered(&world).await;
    world.apple.control.set_default_verdict(Verdict::Stall);

    let (answered, code) = tokio::join!(
        world.chat.trigger.send(trigger),
        requested_then_terminated(&world, &mut service)
    );
    assert_eq!(
        answered.unwrap().unwrap().answer,
        support::error("wait", "internal-server-error")
    );
    assert_eq!(code, Some(exit::ABANDONED));
    let stopped = service.lines.iter().find(|line| line.contains("stopped"));
    assert!(
        stopped.unwrap().contains(r#""abandoned":1"#),
        "once: {stopped:?}"
    );
    world.stop().await;
}

/// APNs takes the request and then neither answers nor closes: the farewells are not waited for beyond the
/// grace. What it came to is printed; that it keeps to its grace is shown under a paused clock, in
/// `src/shutdown.rs`.
#[actix_rt::test]
async fn an_apns_that_hangs_does_not_keep_a_stop_from_its_end() {
    let world = world_with_latency(0).await;
    let environment = [("CAMPANILE__SHUTDOWN__GRACE_SECONDS", "5")];
    let mut service = Campanile::serve_with(world.config_file(), &environment);
    world.service_is_at(service.address().await).await;
    let trigger = registered(&world).await;
    world.apple.control.set_default_verdict(Verdict::Stall);
    let stopping = async {
        while world.apple.control.counters().requests == 0 {
            tokio::task::yield_now().await;
        }
        world.apple.control.set_faults(Faults {
            frozen: true,
            ..Faults::default()
        });
        let start = std::time::Instant::now();
        let code = service.terminate().await;
        println!(
            "stopped after {:.2} s of 5 s",
            start.elapsed().as_secs_f64()
        );
        code
    };
    let (answered, code) = tokio::join!(world.chat.trigger.send(trigger), stopping);
    assert_eq!(
        answered.unwrap().unwrap().answer,
        support::error("wait", "internal-server-error")
    );
    assert_eq!(code, Some(exit::ABANDONED));
    world.stop().await;
}

#[actix_rt::test]
async fn a_second_signal_ends_at_once() {
    let world = world_with_latency(0).await;
    let environment = [("CAMPANILE__SHUTDOWN__GRACE_SECONDS", "600")];
    let mut service = Campanile::serve_with(world.config_file(), &environment);
    world.service_is_at(service.address().await).await;
    let trigger = registered(&world).await;
    world.apple.control.set_default_verdict(Verdict::Stall);

    let pushing = world.chat.trigger.send(trigger);
    let stopping = async {
        while world.apple.control.counters().requests == 0 {
            tokio::task::yield_now().await;
        }
        service.signal("INT");
        service.line("draining").await;
        service.signal("TERM");
        service.ended().await
    };
    let code = tokio::select! {
        code = stopping => code,
        _ = async { let _ = pushing.await; std::future::pending::<()>().await } => None,
    };
    assert_eq!(code, Some(exit::ABANDONED));
    world.stop().await;
}
