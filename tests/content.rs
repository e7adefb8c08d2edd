//! Text and sender of messages reach Apple where the operator of an app chose so, and the log never.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod support;

use campanile::dev::world::{Plan, World};
use campanile::exit;
use serde_json::{Value, json};
use simulators::server::{Answer, PublishShape, RegisterDevice, RegisteredDevice, TEXT, Trigger};
use support::process::Campanile;
use support::{device_token, uuid};

/// Runs the service with this choice, publishes a message, and gives what Apple got.
async fn alert(world: &World, content: &str, device: &mut Option<RegisteredDevice>) -> Value {
    let environment = [
        ("CAMPANILE__APPS__DEMO__CONTENT", content),
        ("CAMPANILE__LOG__FILTER", "trace"),
    ];
    let mut service = Campanile::serve_with(world.config_file(), &environment);
    world.service_is_at(service.address().await).await;
    if device.is_none() {
        let request = RegisterDevice {
            user: "ada".to_owned(),
            node: uuid(1),
            device_token: device_token(1),
        };
        *device = Some(world.chat.register.send(request).await.unwrap().unwrap());
    }
    let device = device.as_ref().unwrap();
    let mut notifications = world.apple.control.watch(16);
    let trigger = Trigger {
        node: device.node.clone(),
        secret: Some(device.secret.clone()),
        has_body: true,
        shape: PublishShape::ProsodyWithContent,
    };
    let answered = world.chat.trigger.send(trigger).await.unwrap().unwrap();
    assert_eq!(answered.answer, Answer::Result);
    let notification = notifications.recv().await.unwrap();
    assert_eq!(service.terminate().await, Some(exit::OK));
    let log = service.lines.join("\n");
    assert!(log.contains("TRACE"), "the level was not trace");
    for word in ["Lunch", "noon", "bob"] {
        assert!(!log.contains(word), "{word} is in the log");
    }
    let payload = notification.payload.unwrap();
    assert_eq!(payload["aps"]["mutable-content"], 1);
    payload["aps"]["alert"].clone()
}

#[actix_rt::test]
async fn what_is_shown_of_a_message_is_the_operators_choice() {
    let world = World::start(Plan {
        listen: support::anywhere(),
        ..Plan::default()
    })
    .await
    .unwrap();
    let mut device = None;
    for (content, expected) in [
        ("none", json!({"title": "New message"})),
        ("body", json!({"title": "New message", "body": TEXT})),
        (
            "body-and-sender",
            json!({"title": "bob@chat.localhost", "body": TEXT}),
        ),
        ("none", json!({"title": "New message"})),
    ] {
        let alert = alert(&world, content, &mut device).await;
        assert_eq!(alert, expected, "content = {content:?}");
    }
    world.stop().await;
}
