//! A service that starts anew goes on with the provider token it had: Apple allows one in 20 minutes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use campanile::dev::world::{Plan, World};
use campanile::exit;
use simulators::apple::Reason;
use simulators::server::{Answer, PublishShape, RegisterDevice, RegisteredDevice, Trigger};
use support::process::Campanile;
use support::{device_token, uuid};

fn publish(device: &RegisteredDevice) -> Trigger {
    Trigger {
        node: device.node.clone(),
        secret: Some(device.secret.clone()),
        has_body: true,
        shape: PublishShape::default(),
    }
}

#[actix_rt::test]
async fn each_process_goes_on_with_the_provider_token_of_the_one_before() {
    let world = World::start(Plan {
        listen: support::anywhere(),
        ..Plan::default()
    })
    .await
    .unwrap();
    let counters = || world.apple.control.counters();
    let mut device = None;
    for start in 1..=3 {
        let mut service = Campanile::serve(world.config_file());
        world.service_is_at(service.address().await).await;
        if device.is_none() {
            let request = RegisterDevice {
                user: "ada".to_owned(),
                node: uuid(1),
                device_token: device_token(1),
            };
            device = Some(world.chat.register.send(request).await.unwrap().unwrap());
        }
        let trigger = publish(device.as_ref().unwrap());
        let answered = world.chat.trigger.send(trigger).await.unwrap().unwrap();
        assert_eq!(answered.answer, Answer::Result, "start {start}");
        assert_eq!(service.terminate().await, Some(exit::OK));
        // By SIGKILL it would be the same: the token was kept when it was made.
        let counters = counters();
        assert_eq!((counters.accepted, counters.provider_tokens), (start, 1));
        assert_eq!(counters.refused_total(), 0);
        let bearers = service.lines.iter().filter(|line| line.contains("eyJ"));
        assert_eq!(bearers.count(), 0, "a provider token in the log");
    }

    // The simulator would say so: with another directory there is another token.
    let elsewhere = world.directory().join("elsewhere").display().to_string();
    let environment = [("CAMPANILE__APNS__TOKEN_DIR", elsewhere.as_str())];
    let mut service = Campanile::serve_with(world.config_file(), &environment);
    world.service_is_at(service.address().await).await;
    let refused = async {
        let reason = Reason::TooManyProviderTokenUpdates;
        while !counters().refused.contains_key(&reason) {
            tokio::task::yield_now().await;
        }
    };
    let pushing = world.chat.trigger.send(publish(device.as_ref().unwrap()));
    tokio::select! {
        () = refused => {}
        answered = pushing => panic!("{answered:?}"),
    }
    service.kill().await;

    // Damaged, it is passed over, which is said once.
    for entry in std::fs::read_dir(world.directory().join("provider-tokens")).unwrap() {
        std::fs::write(entry.unwrap().path(), "").unwrap();
    }
    let mut service = Campanile::serve(world.config_file());
    world.service_is_at(service.address().await).await;
    let is_told = |line: &String| line.contains("is passed over");
    if !service.lines.iter().any(is_told) {
        service.line("is passed over").await;
    }
    service.kill().await;
    let told: Vec<_> = service.lines.iter().filter(|line| is_told(line)).collect();
    assert!(
        matches!(told[..], [told] if told.contains("WARN") && told.contains("for up to 20 minutes")),
        "{told:?}"
    );
    world.stop().await;
}
