//! The service in its little world, inside the test's own process.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "each test uses its part of it, and fails by panicking"
)]

pub mod process;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use campanile::dev::world::{Plan, World};
use campanile::wiring::Extras;
use campanile::{Report, RunError, Settings, serve};
use messages::{Clock, DeviceToken, NodeId, Secret};
use simulators::SimulatorError;
use simulators::server::{
    Answer, Answered, Flood, FloodReport, Pace, PublishShape, RegisterDevice, RegisteredDevice,
    StanzaError, Trigger, UnregisterDevice,
};
use tokio::sync::oneshot;

/// How long a test waits for what must happen before it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running service with its world.
pub struct Rig {
    pub world: World,
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    service: actix_rt::task::JoinHandle<Result<Report, RunError>>,
}

/// A registered device.
#[derive(Clone)]
pub struct Device {
    pub user: String,
    pub node: NodeId,
    pub secret: Secret,
    pub device_token: DeviceToken,
}

/// Loopback, any port.
pub fn anywhere() -> Vec<SocketAddr> {
    vec![(Ipv4Addr::LOCALHOST, 0).into()]
}

/// The n-th device token of a test.
pub fn device_token(n: u32) -> DeviceToken {
    DeviceToken::parse(&format!("{n:08x}").repeat(8)).unwrap()
}

/// The n-th device UUID of a test.
pub fn uuid(n: u32) -> NodeId {
    NodeId::new(&format!("6A1B0C1E-0000-4000-8000-{n:012X}")).unwrap()
}

impl Rig {
    pub async fn start(plan: Plan) -> Self {
        Self::start_with(plan, Clock::system(), Extras::default()).await
    }

    pub async fn start_with(plan: Plan, clock: Clock, extras: Extras) -> Self {
        let plan = Plan {
            listen: anywhere(),
            ..plan
        };
        let world = World::start(plan).await.unwrap();
        let settings = Settings::load(world.config_file()).unwrap();
        let listeners = xmpp::listener::bind(&settings.xmpp).unwrap();
        let address = listeners[0].local_addr().unwrap();
        world.service_is_at(address).await;
        let (stop, stopped) = oneshot::channel::<()>();
        let service = actix_rt::spawn(serve::run(settings, listeners, clock, extras, async {
            let _ = stopped.await;
        }));
        Self {
            world,
            address,
            stop,
            service,
        }
    }

    /// Registers the n-th device for a user.
    pub async fn register(&self, user: &str, n: u32) -> Device {
        self.try_register(user, uuid(n), device_token(n))
            .await
            .unwrap()
    }

    pub async fn try_register(
        &self,
        user: &str,
        node: NodeId,
        device_token: DeviceToken,
    ) -> Result<Device, SimulatorError> {
        let request = RegisterDevice {
            user: user.to_owned(),
            node,
            device_token: device_token.clone(),
        };
        let RegisteredDevice { node, secret, .. } =
            self.world.chat.register.send(request).await.unwrap()?;
        Ok(Device {
            user: user.to_owned(),
            node,
            secret,
            device_token,
        })
    }

    pub async fn unregister(&self, user: &str, node: &NodeId) -> Result<(), SimulatorError> {
        let request = UnregisterDevice {
            user: user.to_owned(),
            node: node.clone(),
        };
        self.world
            .chat
            .unregister
            .send(request)
            .await
            .unwrap()
            .map(drop)
    }

    /// Publishes to a device and gives the answer.
    pub async fn push(&self, device: &Device, has_body: bool) -> Answer {
        self.publish(device.node.clone(), Some(device.secret.clone()), has_body)
            .await
    }

    pub async fn publish(&self, node: NodeId, secret: Option<Secret>, has_body: bool) -> Answer {
        let trigger = Trigger {
            node,
            secret,
            has_body,
            shape: PublishShape::default(),
        };
        let Answered { answer, .. } = self
            .world
            .chat
            .trigger
            .send(trigger)
            .await
            .unwrap()
            .unwrap();
        answer
    }

    /// Publishes many pushes to devices in turn.
    pub async fn flood(&self, devices: &[Device], pushes: u32, pace: Pace) -> FloodReport {
        let devices = devices
            .iter()
            .map(|device| (device.node.clone(), device.secret.clone()))
            .collect();
        let flood = Flood {
            devices,
            pushes,
            pace,
            streams: 1,
            has_body: true,
            shape: PublishShape::Prosody,
            patience: PATIENCE,
        };
        self.world.chat.flood.send(flood).await.unwrap().unwrap()
    }

    /// Drains the service and ends the world.
    pub async fn finish(self) -> Report {
        drop(self.stop);
        let report = self.service.await.unwrap().unwrap();
        self.world.stop().await;
        report
    }
}

/// What a server is told when the registration is gone.
pub fn item_not_found() -> Answer {
    error("cancel", "item-not-found")
}

pub fn error(kind: &str, condition: &str) -> Answer {
    Answer::Error(StanzaError {
        kind: kind.to_owned(),
        condition: condition.to_owned(),
    })
}
