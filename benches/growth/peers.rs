//! Servers beside the world's, each with a domain, a certificate and devices of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use campanile::dev::world::World;
use campanile::lanes::Lane;
use messages::{Clock, DeviceToken, NodeId, Secret};
use simulators::Kind;
use simulators::server::{self, Flood, FloodReport, Pace, PublishShape, RegisterDevice};

/// A server's domain, and where it will listen.
pub type Host = (String, SocketAddr);

/// So many servers, each at a port that is free now.
pub fn hosts(count: usize) -> Vec<Host> {
    let held: Vec<_> = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
        .collect();
    let address = |listener: &TcpListener| listener.local_addr().unwrap();
    let named = held.iter().enumerate();
    named
        .map(|(n, listener)| (format!("peer{n}.localhost"), address(listener)))
        .collect()
}

/// A running server.
pub struct Peer {
    handles: server::Handles,
    devices: Vec<(NodeId, Secret)>,
}

impl Peer {
    /// Starts it on a thread, and registers devices.
    pub async fn start(
        world: &World,
        service: SocketAddr,
        host: &Host,
        devices_wanted: u32,
        lane: &Lane,
    ) -> Self {
        let (domain, address) = host.clone();
        let authority = world.authority();
        let edges = server::Edges {
            identity: authority.issue(&[&domain], Kind::ServerAndClient).unwrap(),
            roots: authority.roots().unwrap(),
            clock: Clock::system(),
        };
        let config = server::Config {
            domain: domain.clone(),
            address,
            service_address: Some(service),
            ..server::Config::default()
        };
        let started = lane.build(move || server::start(&config, edges)).await;
        let handles = started.unwrap().unwrap();
        let mut devices = Vec::new();
        for n in 0..devices_wanted {
            let request = RegisterDevice {
                user: format!("user{n}"),
                node: NodeId::new(&format!("{domain}-{n}")).unwrap(),
                device_token: DeviceToken::parse(
                    &format!("{:08x}", address.port() as u32 + (n << 16)).repeat(8),
                )
                .unwrap(),
            };
            let device = handles.register.send(request).await.unwrap().unwrap();
            devices.push((device.node, device.secret));
        }
        Self { handles, devices }
    }

    pub async fn flood(&self, pushes: u32, pace: Pace) -> FloodReport {
        let flood = Flood {
            devices: self.devices.clone(),
            pushes,
            pace,
            streams: 1,
            has_body: true,
            shape: PublishShape::Prosody,
            patience: Duration::from_secs(60),
        };
        let report = self.handles.flood.send(flood).await.unwrap().unwrap();
        assert!(
            report.is_clean(),
            "not every push was answered once with result: {report:?}"
        );
        report
    }

    /// Pushes of the flood that runs that have their answer.
    pub async fn answered(&self) -> u32 {
        let progress = self.handles.progress.send(server::AskProgress).await;
        progress.unwrap().answered
    }
}
