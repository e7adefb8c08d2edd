//! The log shows nothing of people at any level.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod support;

use campanile::dev::world::{Plan, World};
use campanile::exit;
use messages::{DeviceToken, NodeId};
use simulators::server::{Answer, PublishShape, RegisterDevice, Trigger, UnregisterDevice};
use support::process::Campanile;

const USER: &str = "augustaadaking";
const NODE: &str = "C0FFEE00-FEED-4BAD-8BAD-5EC4E75EC4E7";
const TOKEN: &str = "feedfacecafebeef5ca1ab1eba5eba11feedfacecafebeef5ca1ab1eba5eba11";

#[actix_rt::test]
async fn a_whole_life_at_level_trace_leaves_no_trace_of_the_person() {
    let world = World::start(Plan {
        listen: support::anywhere(),
        ..Plan::default()
    })
    .await
    .unwrap();
    let environment = [("CAMPANILE__LOG__FILTER", "trace")];
    let mut service = Campanile::serve_with(world.config_file(), &environment);
    world.service_is_at(service.address().await).await;

    let node = NodeId::new(NODE).unwrap();
    let device_token = DeviceToken::parse(TOKEN).unwrap();
    let request = RegisterDevice {
        user: USER.to_owned(),
        node: node.clone(),
        device_token,
    };
    let device = world.chat.register.send(request).await.unwrap().unwrap();
    let secret = device.secret.as_str().to_owned();
    for (has_body, secret, expected) in [
        (true, Some(device.secret.clone()), Answer::Result),
        (false, Some(device.secret.clone()), Answer::Result),
        (true, None, support::item_not_found()),
    ] {
        let shape = PublishShape::default();
        let trigger = Trigger {
            node: device.node.clone(),
            secret,
            has_body,
            shape,
        };
        let answered = world.chat.trigger.send(trigger).await.unwrap().unwrap();
        assert_eq!(answered.answer, expected);
    }
    let unregister = UnregisterDevice {
        user: USER.to_owned(),
        node,
    };
    world
        .chat
        .unregister
        .send(unregister)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(service.terminate().await, Some(exit::OK));

    let log = service.lines.join("\n").to_lowercase();
    assert!(log.contains("trace"), "the level was not trace");
    assert!(
        log.contains("chat.localhost"),
        "the peer's domain may and shall be there"
    );
    for fixture in [
        USER,
        NODE,
        TOKEN,
        secret.as_str(),
        "New Message!",
        "bearer ey",
    ] {
        let fixture = fixture.to_lowercase();
        let line = service
            .lines
            .iter()
            .find(|line| line.to_lowercase().contains(&fixture));
        assert!(line.is_none(), "{line:?}");
    }
    // The same in other clothes: as bytes of a Debug list, or base64.
    let bytes = format!("{:?}", TOKEN.as_bytes()).replace(['[', ']'], "");
    assert!(!log.contains(&bytes));
    world.stop().await;
}
