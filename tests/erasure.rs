//! kill -9 during erasures: no answered registration is lost, and nobody who was erased comes back.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use campanile::Settings;
use campanile::dev::world::{Plan, World};
use messages::{BareJid, Clock, Domain, NodeId, ReadJournal, Subject};
use simulators::server::{Flood, Pace, PublishShape, RegisterDevice, RegisteredDevice};
use support::process::Campanile;
use support::{Device, device_token, item_not_found};

const ROUNDS: u32 = 50;
/// More than a page of the copy, so that a kill meets it in the middle.
const BYSTANDERS: u32 = 600;
/// Those who are erased in a round.
const LEAVERS: u32 = 4;

async fn register(world: &World, number: u32) -> Device {
    let user = format!("user{number}");
    let request = RegisterDevice {
        user: user.clone(),
        node: NodeId::new(&format!("node-of-{number:06}")).unwrap(),
        device_token: device_token(number),
    };
    let RegisteredDevice { node, secret, .. } =
        world.chat.register.send(request).await.unwrap().unwrap();
    Device {
        user,
        node,
        secret,
        device_token: device_token(number),
    }
}

/// An operator's command, and whether it was done.
fn privacy(config: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_campanile"))
        .arg("privacy")
        .args(arguments)
        .arg("--config")
        .arg(config)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    output.status.success().then_some(text)
}

/// Opens a case for a user and erases it; whether that was answered before the service died.
fn erase(config: &Path, user: &str) -> bool {
    let jid = format!("{user}@chat.localhost");
    let Some(opened) = privacy(config, &["request", "--jid", &jid]) else {
        return false;
    };
    let case = opened.split_whitespace().nth(1).unwrap();
    privacy(config, &["erase", case, "--override", "test"]).is_some()
}

fn holds(directory: &Path, needle: &str) -> bool {
    std::fs::read_dir(directory)
        .unwrap()
        .flatten()
        .any(|entry| {
            let path = entry.path();
            if path.is_dir() {
                return holds(&path, needle);
            }
            let bytes = std::fs::read(&path).unwrap_or_default();
            bytes
                .windows(needle.len())
                .any(|window| window == needle.as_bytes())
        })
}

#[actix_rt::test]
async fn kill_9_during_erasures_brings_nobody_back() {
    let world = World::start(Plan {
        listen: support::anywhere(),
        ..Plan::default()
    })
    .await
    .unwrap();
    let mut service = Campanile::serve(world.config_file());
    world.service_is_at(service.address().await).await;
    let mut bystanders = Vec::new();
    for number in 0..BYSTANDERS {
        bystanders.push(register(&world, number).await);
    }
    let mut erased: Vec<Device> = Vec::new();
    let mut cut_short = Vec::new();
    for round in 0..ROUNDS {
        let mut leavers = Vec::new();
        for n in 0..LEAVERS {
            leavers.push(register(&world, 1_000_000 + round * LEAVERS + n).await);
        }
        let config = world.config_file().to_owned();
        let users: Vec<_> = leavers.iter().map(|device| device.user.clone()).collect();
        let erasing = std::thread::spawn(move || {
            let answered = |user: &String| erase(&config, user);
            users.iter().map(answered).collect::<Vec<_>>()
        });
        // A random moment is the point of this test; nothing waits for it to be over.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(5..400))).await;
        service.kill().await;
        // What comes after the kill does itself what the service would have done, on the store it left.
        let answered = actix_rt::task::spawn_blocking(move || erasing.join().unwrap())
            .await
            .unwrap();
        service = Campanile::serve(world.config_file());
        world.service_is_at(service.address().await).await;
        for (device, answered) in leavers.into_iter().zip(answered) {
            if answered {
                for bytes in [device.node.as_str(), device.device_token.as_str()] {
                    assert!(
                        !holds(world.directory(), bytes),
                        "round {round}: {bytes} came back"
                    );
                }
                erased.push(device);
            } else {
                cut_short.push(device);
            }
        }
    }
    println!(
        "{} erased and {} cut short in {ROUNDS} rounds",
        erased.len(),
        cut_short.len()
    );
    assert!(erased.len() >= ROUNDS as usize);
    let devices = |devices: &[Device]| {
        devices
            .iter()
            .map(|device| (device.node.clone(), device.secret.clone()))
            .collect()
    };
    let flood = |devices, pushes| Flood {
        devices,
        pushes,
        pace: Pace::Outstanding(64),
        streams: 1,
        has_body: true,
        shape: PublishShape::default(),
        patience: support::PATIENCE,
    };
    let report = world
        .chat
        .flood
        .send(flood(devices(&bystanders), BYSTANDERS));
    let report = report.await.unwrap().unwrap();
    assert!(
        report.is_clean(),
        "registrations that were answered are lost: {:?}",
        report.errors
    );
    for device in &erased {
        let trigger = simulators::server::Trigger {
            node: device.node.clone(),
            secret: Some(device.secret.clone()),
            has_body: true,
            shape: PublishShape::default(),
        };
        let answered = world.chat.trigger.send(trigger).await.unwrap().unwrap();
        assert_eq!(answered.answer, item_not_found());
    }
    // The end waits for the erasures that the last start has gone on with.
    assert_eq!(service.terminate().await, Some(0));
    let halves = halves(world.config_file(), &cut_short).await;
    assert_eq!(
        halves, [""; 0],
        "erased from the store and not from the journal"
    );
    assert!(!holds(&world.directory().join("privacy"), "owed"));
    world.stop().await;
}

/// Those of whom the journal has something and the store has nothing.
async fn halves(config: &Path, devices: &[Device]) -> Vec<String> {
    let settings = Settings::load(config).unwrap();
    let opened = journal::Journal::open(&settings.journal, Clock::system()).unwrap();
    let journal = journal::start(opened).unwrap();
    let store = registration::Registrations::open(&settings.registration, Clock::system()).unwrap();
    let mut halves = Vec::new();
    for device in devices {
        let account = BareJid::new(&device.user, Domain::new("chat.localhost"));
        let registered = !store.describe(&account).unwrap().is_empty();
        let read = ReadJournal {
            subject: Subject {
                account: Some(account),
                ..Subject::default()
            },
            after: None,
            limit: 10,
        };
        let page = journal.read.send(read).await.unwrap().unwrap();
        let lines = page.lines.iter().map(|line| line.event);
        if !registered && lines.clone().any(|event| event != "accessed") {
            halves.push(device.user.clone());
        }
    }
    halves
}
