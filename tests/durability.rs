//! kill -9 loses no registration that was answered.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod support;

use std::time::Duration;

use campanile::dev::world::{Plan, World};
use messages::NodeId;
use simulators::server::{Flood, Pace, PublishShape, RegisterDevice, RegisteredDevice};
use support::process::Campanile;
use support::{Device, device_token};

const ROUNDS: u32 = 20;
/// Registrations on their way at a time.
const ABREAST: u32 = 16;

/// Registers devices until the service dies under it; gives those that were answered.
async fn register_until_it_dies(world: &World, first: u32) -> Vec<Device> {
    let mut workers = Vec::new();
    for worker in 0..ABREAST {
        let register = world.chat.register.clone();
        workers.push(actix_rt::spawn(async move {
            let mut answered = Vec::new();
            for n in 0.. {
                let number = first + worker * 10_000 + n;
                let user = format!("user{number}");
                let node = NodeId::new(&format!("node-{number}")).unwrap();
                let device_token = device_token(number);
                let request = RegisterDevice {
                    user: user.clone(),
                    node,
                    device_token: device_token.clone(),
                };
                match register.send(request).await.unwrap() {
                    Ok(RegisteredDevice { node, secret, .. }) => {
                        answered.push(Device {
                            user,
                            node,
                            secret,
                            device_token,
                        });
                    }
                    Err(_) => break,
                }
            }
            answered
        }));
    }
    let mut answered = Vec::new();
    for worker in workers {
        answered.extend(worker.await.unwrap());
    }
    answered
}

#[actix_rt::test]
async fn every_answered_registration_is_there_after_kill_9() {
    // Short, so that a request whose answer died with the service ends its worker at once.
    let chat = simulators::server::Config {
        reply_timeout_millis: 1_000,
        ..simulators::server::Config::default()
    };
    let world = World::start(Plan {
        listen: support::anywhere(),
        chat,
        ..Plan::default()
    })
    .await
    .unwrap();
    let mut known: Vec<Device> = Vec::new();
    for round in 0..ROUNDS {
        let mut service = Campanile::serve(world.config_file());
        world.service_is_at(service.address().await).await;
        let answered = {
            let registering = register_until_it_dies(&world, 1 + round * 1_000_000);
            let dying = async {
                // A random moment is the point of this test; nothing waits for it to be over.
                tokio::time::sleep(Duration::from_millis(fastrand::u64(50..800))).await;
                service.kill().await;
            };
            tokio::join!(registering, dying).0
        };
        println!("round {round}: {} answered before the kill", answered.len());
        known.extend(answered);
    }
    assert!(
        known.len() > ROUNDS as usize,
        "only {} registrations were answered",
        known.len()
    );

    let mut service = Campanile::serve(world.config_file());
    world.service_is_at(service.address().await).await;
    let count = u32::try_from(known.len()).unwrap();
    let flood = Flood {
        devices: known
            .iter()
            .map(|device| (device.node.clone(), device.secret.clone()))
            .collect(),
        pushes: count,
        pace: Pace::Outstanding(256),
        streams: 1,
        has_body: true,
        shape: PublishShape::default(),
        patience: support::PATIENCE,
    };
    let report = world.chat.flood.send(flood).await.unwrap().unwrap();
    assert!(
        report.is_clean(),
        "registrations that were answered are lost: {:?}",
        report.errors
    );
    let tokens: Vec<_> = known
        .into_iter()
        .map(|device| device.device_token)
        .collect();
    assert_eq!(world.apple.control.coverage(&tokens).once, u64::from(count));
    println!("{count} registrations answered in {ROUNDS} rounds, all there");
    assert_eq!(service.terminate().await, Some(0));
    world.stop().await;
}
