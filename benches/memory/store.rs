//! A store with very many registrations, filled without a server in between.

use std::path::Path;
use std::time::{Duration, Instant};

use campanile::Settings;
use campanile::dev::world::{APP, SERVICE, World};
use messages::{
    AppId, BareJid, Clock, DeviceToken, Dialect, Domain, Drain, NodeId, Register, Secret,
};
use registration::{Registrations, registry};
use tokio::process::Command;
use tokio::task::JoinSet;

/// Registrations that wait for the disk at a time.
const WAITING: usize = 2_048;
/// Users have as many devices as people have.
const DEVICES_PER_USER: u32 = 2;
/// Whose users they are: the simulated server's.
const HOME: &str = "chat.localhost";
/// What a program is called with to fill a store and end.
pub const FLAG: &str = "--fill";

/// Makes the world's store with `count` registrations, in a process of its own that ends with it. Gives the
/// first of them, as many as are `wanted`.
pub async fn fill(world: &World, count: u32, wanted: u32) -> Vec<(NodeId, Secret)> {
    let output = Command::new(std::env::current_exe().unwrap())
        .arg(FLAG)
        .arg(world.config_file())
        .args([count.to_string(), wanted.to_string()])
        .output()
        .await
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| {
            let (node, secret) = line.split_once(' ').unwrap();
            (NodeId::new(node).unwrap(), Secret::new(secret).unwrap())
        })
        .collect()
}

/// What the process does that fills the store.
pub async fn run(arguments: &[String]) {
    let [config, count, wanted] = arguments else {
        panic!("three arguments")
    };
    let (count, wanted): (u32, u32) = (count.parse().unwrap(), wanted.parse().unwrap());
    let mut config = Settings::load(Path::new(config)).unwrap().registration;
    config.registrations_per_owner_max = u32::MAX;
    config.registrations_max = u32::MAX;
    config.new_registrations_per_second_max = u32::MAX;
    let registrations = Registrations::open(&config, Clock::system()).unwrap();
    let registry = registry::start(&registrations, registry::Edges::default()).unwrap();
    let mut asked = JoinSet::new();
    for n in 0..count {
        if asked.len() >= WAITING {
            let (): () = asked.join_next().await.unwrap().unwrap();
        }
        let answer = registry.register.send(registration(n));
        asked.spawn_local(async move {
            let made = answer.await.unwrap().unwrap();
            if n < wanted {
                println!("{} {}", made.node.as_str(), made.secret.as_str());
            }
        });
    }
    asked.join_all().await;
    let patience = Duration::from_secs(60);
    let drain = Drain {
        deadline: Instant::now() + patience,
        farewell: patience,
    };
    assert_eq!(registry.drain.send(drain).await.unwrap().abandoned, 0);
}

fn registration(n: u32) -> Register {
    Register {
        account: BareJid::new(&format!("user{}", n / DEVICES_PER_USER), Domain::new(HOME)),
        service: Domain::new(SERVICE),
        app: AppId::new(APP),
        node: NodeId::new(&format!("6A1B0C1E-0000-4000-8000-{n:012X}")).unwrap(),
        device_token: DeviceToken::parse(&format!("{n:08x}").repeat(8)).unwrap(),
        dialect: Dialect::V1,
    }
}
