//! A push travels from a user's server to APNs, and its answer back.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod support;

use campanile::dev::world::{Plan, TOPIC, Way};
use messages::Clock;
use simulators::apple::{Reason, Verdict};
use simulators::server::{Answer, Count, Pace};
use support::{Rig, device_token, error, item_not_found, uuid};

#[actix_rt::test]
async fn a_publish_with_a_body_becomes_one_alert() {
    let rig = Rig::start(Plan::default()).await;
    let mut judged = rig.world.apple.control.watch(16);
    let device = rig.register("ada", 1).await;

    assert_eq!(rig.push(&device, true).await, Answer::Result);

    let notification = judged.recv().await.unwrap();
    assert_eq!(
        notification.device_token.as_ref(),
        Some(&device.device_token)
    );
    assert_eq!(notification.topic.as_deref(), Some(TOPIC));
    assert_eq!(notification.push_type.as_deref(), Some("alert"));
    assert_eq!(notification.priority, Some(10));
    assert!(notification.expiration.unwrap() > Clock::system().now().0 + 86_400);
    let payload = notification.payload.unwrap();
    assert_eq!(payload["aps"]["mutable-content"], 1);
    assert!(
        !payload.to_string().contains("New Message!"),
        "the summary's body travelled"
    );
    assert_eq!(rig.world.apple.control.counters().requests, 1);
    rig.finish().await;
}

#[actix_rt::test]
async fn a_component_registers_devices_and_wakes_them() {
    let rig = Rig::start(Plan {
        way: Way::Component,
        ..Plan::default()
    })
    .await;
    let device = rig.register("ada", 1).await;

    assert_eq!(rig.push(&device, true).await, Answer::Result);
    assert_eq!(rig.world.apple.control.delivered(&device.device_token), 1);
    let unknown = Some(device.secret.clone());
    assert_eq!(rig.publish(uuid(99), unknown, true).await, item_not_found());
    let report = rig
        .flood(std::slice::from_ref(&device), 100, Pace::Outstanding(10))
        .await;
    assert!(report.is_clean(), "{report:?}");

    // All of it went over the one stream that the service opened.
    let counters = rig.world.chat.count.send(Count).await.unwrap();
    assert_eq!((counters.streams_in, counters.streams_out), (1, 0));
    assert!(counters.violations.is_empty(), "{counters:?}");
    rig.finish().await;
}

#[actix_rt::test]
async fn a_publish_without_a_body_becomes_a_silent_push() {
    let rig = Rig::start(Plan::default()).await;
    let mut judged = rig.world.apple.control.watch(16);
    let device = rig.register("ada", 1).await;

    assert_eq!(rig.push(&device, false).await, Answer::Result);

    let notification = judged.recv().await.unwrap();
    assert_eq!(notification.push_type.as_deref(), Some("background"));
    assert_eq!(notification.priority, Some(5));
    assert_eq!(
        notification.payload.unwrap().to_string(),
        r#"{"aps":{"content-available":1}}"#
    );
    rig.finish().await;
}

#[actix_rt::test]
async fn a_stranger_learns_nothing() {
    let rig = Rig::start(Plan::default()).await;
    let device = rig.register("ada", 1).await;
    let other = rig.register("grace", 2).await;

    let wrong_secret = Some(other.secret.clone());
    assert_eq!(
        rig.publish(device.node.clone(), wrong_secret, true).await,
        item_not_found()
    );
    assert_eq!(
        rig.publish(device.node.clone(), None, true).await,
        item_not_found()
    );
    let unknown = Some(device.secret.clone());
    assert_eq!(rig.publish(uuid(99), unknown, true).await, item_not_found());
    assert_eq!(rig.world.apple.control.counters().requests, 0);
    rig.finish().await;
}

#[actix_rt::test]
async fn another_account_cannot_take_over_a_node() {
    let rig = Rig::start(Plan::default()).await;
    let ada = rig.register("ada", 1).await;

    let mallory = rig
        .try_register("mallory", uuid(1), device_token(666))
        .await
        .unwrap();
    assert_eq!(mallory.node.as_str(), ada.node.as_str());
    assert_ne!(mallory.secret.as_str(), ada.secret.as_str());
    rig.unregister("mallory", &ada.node).await.unwrap();
    let nobody = rig
        .unregister("mallory", &ada.node)
        .await
        .unwrap_err()
        .to_string();
    let unknown = rig
        .unregister("mallory", &uuid(98))
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(
        nobody, unknown,
        "the reply tells whether somebody else has the node"
    );

    assert_eq!(rig.push(&ada, true).await, Answer::Result);
    assert_eq!(rig.world.apple.control.delivered(&ada.device_token), 1);
    assert_eq!(rig.world.apple.control.delivered(&device_token(666)), 0);
    let again = rig.register("ada", 1).await;
    assert_eq!(again.secret.as_str(), ada.secret.as_str());
    rig.finish().await;
}

#[actix_rt::test]
async fn apns_being_down_keeps_the_registration() {
    let more = "fresh_seconds = 1\n".to_owned();
    let rig = Rig::start(Plan {
        more,
        ..Plan::default()
    })
    .await;
    let device = rig.register("ada", 1).await;

    let control = &rig.world.apple.control;
    control.set_default_verdict(Verdict::refuse(Reason::ServiceUnavailable));
    assert_eq!(
        rig.push(&device, true).await,
        error("wait", "internal-server-error")
    );
    control.set_default_verdict(Verdict::Accept);
    assert_eq!(rig.push(&device, true).await, Answer::Result);
    rig.finish().await;
}

#[actix_rt::test]
async fn what_waits_for_a_registration_that_has_ended_does_not_go() {
    let rig = Rig::start(Plan::default()).await;
    let ada = rig.register("ada", 1).await;
    let grace = rig.register("grace", 2).await;
    let control = rig.world.apple.control.clone();
    control.set_default_verdict(Verdict::refuse(Reason::ServiceUnavailable));
    let mut judged = control.watch(1 << 10);
    let ends = async {
        for _ in 0..4 {
            judged.recv().await.unwrap();
        }
        rig.unregister("ada", &ada.node).await.unwrap();
    };
    let ended = async { tokio::join!(rig.push(&ada, true), ends).0 };
    let recovered = async {
        let answer = ended.await;
        control.set_default_verdict(Verdict::Accept);
        answer
    };
    let (told, other) = tokio::join!(recovered, rig.push(&grace, true));
    assert_eq!((told, other), (item_not_found(), Answer::Result));
    // All that is still in hand is sent before the end.
    rig.finish().await;
    assert_eq!(control.delivered(&ada.device_token), 0);
    assert_eq!(control.delivered(&grace.device_token), 1);
}

#[actix_rt::test]
async fn what_waits_for_a_device_token_that_was_replaced_does_not_go() {
    let rig = Rig::start(Plan::default()).await;
    let old = rig.register("ada", 1).await;
    let control = rig.world.apple.control.clone();
    control.set_default_verdict(Verdict::refuse(Reason::ServiceUnavailable));
    let mut judged = control.watch(1 << 10);
    let renews = async {
        judged.recv().await.unwrap();
        let renewed = rig.try_register("ada", uuid(1), device_token(2)).await;
        renewed.unwrap()
    };
    let (told, new) = tokio::join!(rig.push(&old, true), renews);
    assert_eq!(told, error("wait", "internal-server-error"));
    control.set_default_verdict(Verdict::Accept);
    assert_eq!(rig.push(&new, true).await, Answer::Result);
    rig.finish().await;
    assert_eq!(control.delivered(&old.device_token), 0);
    assert_eq!(control.delivered(&new.device_token), 1);
}
