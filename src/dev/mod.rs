//! `campanile dev`: the real service in a little world, for a first look.

pub mod hops;
mod report;
pub mod world;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use messages::{Clock, DeviceToken, NodeId, Secret};
use simulators::server::{self, PublishShape, RegisterDevice, Trigger};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use self::hops::Hops;
use self::report::Report;
use self::world::{Plan, World};
use crate::shutdown::Signals;
use crate::{RunError, Settings, exit, serve, telemetry};

/// The standard port of server-to-server streams: a server of one's own then needs no SRV record.
const PORT: u16 = 5269;

/// Where a Prosody of one's own listens, because the standard port is taken by the service.
const OWN_SERVER_PORT: u16 = 5270;

/// How often a push is triggered.
const EVERY: Duration = Duration::from_secs(1);

/// The devices that are pushed to: owner, name, device UUID.
const DEVICES: [(&str, &str, &str); 3] = [
    ("ada", "ada's phone", "6A1B0C1E-0000-4000-8000-000000000001"),
    (
        "ada",
        "ada's tablet",
        "6A1B0C1E-0000-4000-8000-000000000002",
    ),
    (
        "grace",
        "grace's phone",
        "6A1B0C1E-0000-4000-8000-000000000003",
    ),
];

struct Device {
    name: &'static str,
    node: NodeId,
    secret: Secret,
}

/// Runs the world until a signal, or until `pushes` were answered.
///
/// # Errors
/// [`RunError`] when the world or the service cannot run.
pub fn command(pushes: Option<u64>) -> Result<i32, RunError> {
    let log = telemetry::Config {
        filter: "warn".to_owned(),
        ..telemetry::Config::default()
    };
    let _logging =
        telemetry::install(&log).map_err(|error| RunError::Unusable(vec![error.to_string()]))?;
    actix_rt::System::new().block_on(run(pushes))
}

async fn run(pushes: Option<u64>) -> Result<i32, RunError> {
    let signals = Signals::listen()?;
    let own_server = SocketAddr::from((Ipv4Addr::LOCALHOST, OWN_SERVER_PORT));
    let world = World::start(Plan {
        listen: listen(),
        hosts: vec![("localhost".to_owned(), own_server)],
        ..Plan::default()
    })
    .await?;
    let settings = Settings::load(world.config_file()).map_err(RunError::Settings)?;
    let listeners =
        xmpp::listener::bind(&settings.xmpp).map_err(|error| RunError::Bind(error.to_string()))?;
    let address = listeners
        .first()
        .map_or_else(
            || Err(std::io::ErrorKind::NotFound.into()),
            xmpp::listener::Socket::local_addr,
        )
        .map_err(|source| RunError::System {
            what: "cannot listen on loopback",
            source,
        })?;
    world.service_is_at(address).await;
    report::welcome(&world, address);

    let (extras, hops) = hops::extras();
    let (stop, stopped) = oneshot::channel::<()>();
    let service = actix_rt::spawn(serve::run(
        settings,
        listeners,
        Clock::system(),
        extras,
        async {
            let _dropped_means_stop_too = stopped.await;
        },
    ));
    let mut report = Report::default();
    let shown = tokio::select! {
        shown = show(&world, hops, pushes, &mut report) => shown,
        () = signals.requested() => Ok(()),
    };
    drop(stop);
    let ended = service.await;
    world.stop().await;
    shown?;
    let run = ended.map_err(|_| RunError::Dead("service".to_owned()))??;
    report.print();
    Ok(if report.is_faultless() && run.abandoned == 0 {
        exit::OK
    } else {
        exit::FAILED
    })
}

/// Loopback on the standard port, or on a free one if that is taken.
fn listen() -> Vec<SocketAddr> {
    let both = |port: u16| -> Vec<SocketAddr> {
        vec![
            (Ipv4Addr::LOCALHOST, port).into(),
            (Ipv6Addr::LOCALHOST, port).into(),
        ]
    };
    let free = |address: &SocketAddr| TcpListener::bind(address).is_ok();
    let standard: Vec<SocketAddr> = both(PORT).into_iter().filter(free).collect();
    match standard.first() {
        Some(SocketAddr::V4(_)) => standard,
        _ => both(0).into_iter().filter(free).take(1).collect(),
    }
}

/// Registers the devices and pushes to one after the other.
async fn show(
    world: &World,
    mut hops: mpsc::Receiver<Hops>,
    pushes: Option<u64>,
    report: &mut Report,
) -> Result<(), RunError> {
    let mut devices = Vec::with_capacity(DEVICES.len());
    for (user, name, uuid) in DEVICES {
        devices.push(register(world, user, name, uuid).await?);
    }
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let numbers = 1..=pushes.unwrap_or(u64::MAX);
    for (number, device) in numbers.zip(devices.iter().cycle()) {
        loop {
            tokio::select! {
                _ = ticks.tick() => break,
                Some(hops) = hops.recv() => report::guest(&hops),
            }
        }
        let trigger = Trigger {
            node: device.node.clone(),
            secret: Some(device.secret.clone()),
            // Every fourth publish has no body, as for a chat state: a silent push.
            has_body: number % 4 != 0,
            shape: PublishShape::Prosody,
        };
        let sent = Instant::now();
        let answered = world.chat.trigger.send(trigger).await.map_err(gone)?;
        let answered = answered.map(|answered| (answered.answer, Instant::now()));
        let mut own = None;
        while let Ok(hops) = hops.try_recv() {
            if hops.node == device.node && hops.received >= sent {
                own = Some(hops);
            } else {
                report::guest(&hops);
            }
        }
        report.push(number, device.name, sent, own, answered);
    }
    Ok(())
}

async fn register(
    world: &World,
    user: &str,
    name: &'static str,
    uuid: &str,
) -> Result<Device, RunError> {
    let unusable = |_| RunError::Simulator("a device of its own is malformed".to_owned());
    let node = NodeId::new(uuid).map_err(unusable)?;
    let hex: String = uuid.bytes().map(|byte| format!("{byte:02x}")).collect();
    let device_token = DeviceToken::parse(&hex).map_err(unusable)?;
    let request = RegisterDevice {
        user: user.to_owned(),
        node,
        device_token,
    };
    let server::RegisteredDevice { node, secret, took } =
        world.chat.register.send(request).await.map_err(gone)??;
    report::registered(name, took);
    Ok(Device { name, node, secret })
}

fn gone(_: actix::MailboxError) -> RunError {
    RunError::Simulator("the XMPP server has ended".to_owned())
}
