//! Federation with real servers: Debian's Prosody, ejabberd and jabberd2, a real client library, and
//! Campanile's own binary, each on a host of a network made for the test; APNs is the strict simulator.
//!
//! Needs root and Debian packages; it says which. Each cell of the matrix of servers and certificates
//! prints a line; with `--nocapture` each step does.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod apple;
mod blackout;
mod campanile;
mod client;
mod directory;
mod dns;
mod ejabberd;
mod jabberd;
mod matrix;
mod net;
mod packages;
mod privacy;
mod process;
mod prosody;
mod publish;
mod resumption;
mod server;
mod wait;
mod world;

use std::time::Duration;

use messages::{Clock, DeviceToken, UnixMillis};
use simulators::apple::Verdict;

use publish::Answer;
use server::{Certificate, Make, Proof, Proofs};
use world::{BODY, Plan, Route, World};

/// Alice's device, and one that nobody has.
const DEVICE: &str = "AA90C90E-4F8D-42DF-80DC-D63FDA1FE312";
const NOBODYS_DEVICE: &str = "B07E6B1C-11D5-4C55-9D0F-6C8A7D0B4E21";

fn alices_token() -> DeviceToken {
    DeviceToken::parse(&"a11ce000".repeat(8)).expect("hexadecimal")
}

/// Tokens of two devices that are not alice's: an account has one registration per token.
fn other_tokens() -> [DeviceToken; 2] {
    ["bad0bad0", "00c0ffee"].map(|part| DeviceToken::parse(&part.repeat(8)).expect("hexadecimal"))
}

#[test]
fn a_push_travels_between_servers_that_trust_certificates() {
    let plan = Plan {
        own_certificate: Certificate::ServerOnly,
        ..Plan::new("certificate", Make::Prosody, Certificate::ServerOnly)
    };
    a_push_travels(&plan, &Proofs::of(Proof::External, Proof::External));
}

#[test]
fn a_push_travels_between_servers_that_call_back() {
    let plan = Plan {
        route: Route::V6Only,
        ..Plan::new("dialback", Make::Prosody, Certificate::SelfSigned)
    };
    let row = "Prosody | self-signed with dialback | IPv6 only, without SRV records";
    matrix::cell(row, None, || {
        a_push_travels(&plan, &Proofs::of(Proof::Dialback, Proof::Dialback));
    });
}

/// Show: a message to a registered user who is offline becomes exactly one notification with nothing
/// of the message in it, and her server is told so.
fn a_push_travels(plan: &Plan, proofs: &Proofs) {
    let mut world = World::start(plan, &["alice", "bob"]);
    let token = alices_token();
    let secret = world.sign_up("alice", DEVICE, &token);
    world.step("alice registered (status \"complete\"), enabled push, and left");

    world.login("bob");
    let before = Clock::system().now();
    world.assert_wakes("alice", &token);
    world.step("bob's message became one notification, and the server got its result");

    let notifications = world.apple.notifications();
    let [notification] = &notifications[..] else {
        panic!("APNs got {} requests", notifications.len());
    };
    assert_eq!(notification.device_token.as_ref(), Some(&token));
    assert_eq!(notification.topic.as_deref(), Some(apple::TOPIC));
    assert_eq!(notification.push_type.as_deref(), Some("alert"));
    assert_eq!(notification.priority, Some(10));
    assert!(
        notification
            .expiration
            .is_some_and(|until| until > before.0),
        "kept for a while"
    );
    let payload = notification.payload.as_ref().expect("the payload is JSON");
    assert_eq!(payload["aps"]["mutable-content"], 1);
    let shown = format!("{payload} {:?}", notification.collapse_id).to_lowercase();
    for private in [
        BODY,
        "lighthouse",
        "bob",
        "alice",
        world.server.domain(),
        DEVICE,
        &secret,
    ] {
        assert!(
            !shown.contains(&private.to_lowercase()),
            "{private} is in {shown}"
        );
    }
    world.step(
        "it is an alert of priority 10 for alice's device, with nothing of the message in it",
    );

    assert_eq!(&world.server.proofs(campanile::DOMAIN), proofs);
    world.assert_found_by_dns();
    world.step("the servers found each other by DNS and authenticated as they should");

    world.finish(1);
    world.assert_log_tells_nothing(&[BODY, "alice", "bob", DEVICE, token.as_str(), &secret]);
    world.step("Campanile's own log, at trace, has nothing of a person in it");
}

/// Show: who learns the id of a device can neither read, nor replace, nor end its registration, nor
/// find out that there is one.
#[test]
fn a_stranger_with_the_device_id_gains_nothing() {
    let mut world = World::start(
        &Plan::new("hijack", Make::Prosody, Certificate::Trusted),
        &["alice", "bob", "mallory"],
    );
    let token = alices_token();
    let other_tokens = other_tokens();
    let secret = world.sign_up("alice", DEVICE, &token);
    world.login("bob");
    world.login("mallory");
    world.step("alice registered her device and left; mallory knows its id");

    assert_mallory_cannot_unregister(&mut world);
    world.assert_wakes("alice", &token);
    world.step("mallory cannot end alice's registration, nor tell that there is one");

    let hers = world.register("mallory", DEVICE, &other_tokens[0]);
    let nobodys = world.register("mallory", NOBODYS_DEVICE, &other_tokens[1]);
    for reply in [&hers, &nobodys] {
        assert_eq!(reply.status.as_deref(), Some("complete"), "{reply:?}");
        assert_ne!(reply.field("secret"), secret);
        assert_eq!(reply.field("secret").len(), secret.len());
    }
    assert_ne!(hers.field("secret"), nobodys.field("secret"));
    assert_eq!(
        hers.without(&[DEVICE, hers.field("secret")]),
        nobodys.without(&[NOBODYS_DEVICE, nobodys.field("secret")]),
        "alice's device is registered like one that nobody has"
    );
    world.step(
        "mallory's registration of alice's device is one of his own, with a secret of its own",
    );

    let enabled = world
        .users
        .enable("mallory", campanile::DOMAIN, DEVICE, hers.field("secret"));
    assert_eq!(enabled.kind, "result", "{enabled:?}");
    world.assert_wakes("alice", &token);
    assert_eq!(world.apple.accepted(&other_tokens[0]), 0);
    world.step("a message to alice wakes alice's device and not mallory's");

    let hers = world.unregister("mallory", DEVICE);
    let nobodys = world.unregister("mallory", NOBODYS_DEVICE);
    for reply in [&hers, &nobodys] {
        assert_eq!(reply.status.as_deref(), Some("complete"), "{reply:?}");
    }
    assert_eq!(hers.without(&[DEVICE]), nobodys.without(&[NOBODYS_DEVICE]));
    assert_mallory_cannot_unregister(&mut world);
    world.assert_wakes("alice", &token);
    world.step("mallory ended his own registration; alice's is untouched");

    world.login("alice");
    let again = world.register("alice", DEVICE, &token);
    assert_eq!(again.status.as_deref(), Some("complete"), "{again:?}");
    assert_eq!(again.field("secret"), secret);
    world.logout("alice");
    world.assert_wakes("alice", &token);
    world.step("alice registers again and has the same secret");

    assert_eq!(
        other_tokens.map(|token| world.apple.accepted(&token)),
        [0, 0]
    );
    world.finish(4);
}

/// Mallory asks to end a registration that he does not have: of alice's device and of nobody's.
#[track_caller]
fn assert_mallory_cannot_unregister(world: &mut World) {
    let hers = world.unregister("mallory", DEVICE);
    let nobodys = world.unregister("mallory", NOBODYS_DEVICE);
    assert_eq!(
        hers.error.as_deref(),
        Some("cancel/item-not-found"),
        "{hers:?}"
    );
    assert_eq!(hers.without(&[DEVICE]), nobodys.without(&[NOBODYS_DEVICE]));
}

/// Show: a device that APNs calls dead since before its registration was renewed lives on; one that
/// died later is forgotten, and the server is told.
#[test]
fn a_registration_ends_with_its_device() {
    let gone = Answer::Error("cancel/item-not-found".to_owned());
    let mut world = World::start(
        &Plan::new("dead", Make::Prosody, Certificate::Trusted),
        &["alice", "bob"],
    );
    let token = alices_token();
    world.sign_up("alice", DEVICE, &token);
    world.login("bob");

    let hour = Duration::from_secs(3600).as_millis() as u64;
    let now = Clock::system().now_millis();
    world
        .apple
        .answer(&token, Verdict::unregistered(now.minus_millis(hour)));
    // Of a type that makes no server forget the device.
    let later = Answer::Error("wait/internal-server-error".to_owned());
    assert_eq!(world.publish("alice"), later);
    world.apple.answer(&token, Verdict::Accept);
    world.assert_wakes("alice", &token);
    world.step("a 410 from before the registration ends nothing");

    // In the second of the registration nobody can tell which was first.
    let since = UnixMillis(Clock::system().now_millis().0 + 1000);
    world.apple.answer(&token, Verdict::unregistered(since));
    let mut told = (0..1_000).map(|_| world.publish("alice"));
    assert_eq!(told.find(|told| *told != later), Some(gone.clone()));
    world.step("a 410 from after it is answered with cancel/item-not-found");

    // The answer does not wait for the disk, where the registration ends soon after. Bob's own goes to
    // the same disk, so it takes about as long. Prosody would give up at the sixteenth error.
    let ended = (0..8).any(|_| {
        let own = world.register("bob", NOBODYS_DEVICE, &other_tokens()[0]);
        assert_eq!(own.kind, "result", "{own:?}");
        let requests = world.apple.requests();
        assert_eq!(world.publish("alice"), gone);
        world.apple.requests() == requests
    });
    assert!(ended, "APNs is asked for a device that it has called dead");
    world.apple.answer(&token, Verdict::Accept);
    let requests = world.apple.requests();
    assert_eq!(world.publish("alice"), gone);
    assert_eq!(world.apple.requests(), requests);
    world.step("later publishes are answered the same, without asking APNs");

    world.sign_up("alice", DEVICE, &token);
    world.assert_wakes("alice", &token);
    world.step("alice registers again and is woken again");
    world.finish(requests + 1);
}
