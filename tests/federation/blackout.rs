//! What is left of the registrations when the push service cannot be reached for a while.

use std::time::Duration;
use std::{env, thread};

use messages::DeviceToken;

use crate::publish::Answer;
use crate::server::{Certificate, Make};
use crate::world::{BODY, Plan, World};
use crate::{campanile, wait};

/// Users with a device each.
const USERS: [&str; 6] = ["alice", "carol", "dave", "erin", "frank", "grace"];

/// Seconds that the network is cut for; in place of what the test takes by itself.
const CUT_SECONDS: &str = "CAMPANILE_TEST_CUT_SECONDS";

/// As long as a router takes to start again.
const CUT: Duration = Duration::from_secs(30);

/// How long it may take until publishes are answered again. TCP doubles its pauses: after a cut of 30 s
/// it may be silent for as long again.
const PATIENCE: Duration = Duration::from_secs(120);

fn cut() -> Duration {
    env::var(CUT_SECONDS).map_or(CUT, |seconds| {
        Duration::from_secs(seconds.parse().expect("a number of seconds"))
    })
}

/// Show: the network goes in the middle of a run of publishes and comes back.
#[test]
fn registrations_survive_a_cut_network() {
    let mut world = start("cut network");
    message_all(&mut world);
    world.net.connect(&world.campanile_host, false);
    let began = std::time::Instant::now();
    world.step("the network is cut in the middle of a run of publishes");
    // Some go into the cut, as they would; the server must not take its users' devices for dead.
    message_all(&mut world);
    message_all(&mut world);
    thread::sleep(cut().saturating_sub(began.elapsed()));
    world.net.connect(&world.campanile_host, true);
    world.step("the network is back");
    assert_all_wake(&mut world);
}

/// Show: the push service is killed in the middle of a run of publishes and comes back.
#[test]
fn registrations_survive_a_killed_service() {
    let mut world = start("killed");
    message_all(&mut world);
    world.campanile.kill();
    world.step("Campanile is killed in the middle of a run of publishes");
    message_all(&mut world);
    world.campanile.start_again();
    world.step("Campanile runs again");
    assert_all_wake(&mut world);
}

fn token(user: usize) -> DeviceToken {
    DeviceToken::parse(&format!("{user:08x}").repeat(8)).expect("hexadecimal")
}

/// A network whose users have all registered and enabled push, and have gone.
fn start(name: &str) -> World {
    let plan = Plan {
        // Who starts again signs a token again, which APNs would hold against it.
        token_updates_limited: false,
        ..Plan::new(name, Make::Prosody, Certificate::ServerOnly)
    };
    let accounts: Vec<_> = USERS.into_iter().chain(["bob"]).collect();
    let mut world = World::start(&plan, &accounts);
    for (number, user) in USERS.into_iter().enumerate() {
        world.sign_up(user, &format!("device-{number}"), &token(number));
    }
    world.login("bob");
    world.step("all users have registered, enabled push, and left");
    world
}

/// Bob writes to everybody, which the server publishes; nobody waits for the answers.
fn message_all(world: &mut World) {
    let before = world.server.publishes(campanile::DOMAIN).len();
    for user in USERS {
        let to = format!("{user}@{}", world.server.domain());
        world.users.message("bob", &to, BODY);
    }
    wait::until("the server publishes to all", || {
        let publishes = world.server.publishes(campanile::DOMAIN).len();
        (publishes == before + USERS.len()).then_some(())
    });
}

/// From now on each user's device is woken and each publish has its one answer, as soon as TCP has sent
/// again what got lost.
fn assert_all_wake(world: &mut World) {
    let before = world.server.publishes(campanile::DOMAIN).len();
    message_all(world);
    let all = wait::until_within(PATIENCE, "all publishes are answered again", || {
        let publishes = world.server.publishes(campanile::DOMAIN);
        let mut later = publishes[before..].iter();
        later
            .all(|publish| !publish.answers.is_empty())
            .then_some(publishes)
    });
    world.step("publishes are answered again");
    for (number, publish) in all.iter().enumerate() {
        match &publish.answers[..] {
            // What a stream carried that broke may come again on the next.
            [Answer::Result] | [Answer::Result, Answer::Result] => {}
            // It was on its way when the service went; the server keeps the registration.
            [] if number < before => {}
            answers => panic!("publish {number} of {before}: {answers:?}"),
        }
    }
    for (number, user) in USERS.into_iter().enumerate() {
        world.assert_wakes(user, &token(number));
    }
    world.step("each registration is there");
    world.campanile.stop();
}
