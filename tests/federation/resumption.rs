//! A user whose connection broke is woken while her server waits for her to resume the stream.

use crate::server::{Certificate, Make};
use crate::world::{BODY, Plan, World};
use crate::{DEVICE, alices_token, wait};

/// Show: the way of a push through ejabberd with its stream management, from a stream that broke to the
/// message on the stream that was resumed.
#[test]
fn ejabberd_wakes_a_user_whose_connection_broke() {
    wakes_a_user_whose_connection_broke(Make::Ejabberd);
}

#[test]
fn prosody_wakes_a_user_whose_connection_broke() {
    wakes_a_user_whose_connection_broke(Make::Prosody);
}

fn wakes_a_user_whose_connection_broke(make: Make) {
    let name = format!("{} resumption", make.name());
    let plan = Plan::new(&name, make, Certificate::ServerOnly);
    let mut world = World::start(&plan, &["alice", "bob"]);
    let token = alices_token();
    world.users.login_resumably("alice", &*world.server);
    world.register_and_enable("alice", DEVICE, &token);
    world.step("alice registered and enabled push on a stream that can be resumed");

    world.users.lose("alice");
    wait::until("the server waits for alice", || {
        world.server.awaits("alice").then_some(())
    });
    world.login("bob");
    let to = format!("alice@{}", world.server.domain());
    world.users.message("bob", &to, BODY);
    let alerts = || {
        let all = world.apple.notifications();
        let alerts = all
            .iter()
            .filter(|one| one.push_type.as_deref() == Some("alert"));
        alerts.count()
    };
    // The server may publish once more when a connection breaks, without a message to tell of.
    assert_eq!(
        wait::until("alice's device is woken", || Some(alerts())
            .filter(|n| *n > 0)),
        1
    );
    world.step("her connection broke, and bob's message became one alert");

    world.users.resume("alice", &*world.server);
    let bodies = wait::until("alice has the message", || {
        Some(world.users.bodies("alice")).filter(|bodies| !bodies.is_empty())
    });
    assert_eq!(bodies, [BODY]);
    world.step("she resumed her stream and has the message");
    let requests = world.apple.requests();
    world.finish(requests);
}
