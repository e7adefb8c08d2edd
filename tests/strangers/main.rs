//! A crowd of strangers does all at once what strangers do, against the release build under the limits of
//! `conf/default.toml`. A server that behaves is served as before, and memory stays under the bound of
//! `docs/federation.md`, section 6.
//!
//! What is compared was measured in the same run, in windows that take turns: quiet, with the crowd, quiet.
//! The crowd comes from addresses of its own, so that no limit per address keeps it out, and its thread
//! yields to every other: strangers do not use the processor of the machine that they attack.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "tests fail by panicking, and this one tells what it measured"
)]

#[path = "../support/mod.rs"]
mod support;

mod caller;
mod crowd;
mod memory;
mod stanzas;
mod tally;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use campanile::dev::world::{Plan, World};
use campanile::{Settings, exit};
use messages::{NodeId, Secret};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::ClientConfig;
use simulators::Kind;
use simulators::server::{Count, Flood, FloodReport, Pace, PublishShape, RegisterDevice};
use support::PATIENCE;
use support::process::Campanile;

use crowd::{ABUSER, Crowd, LORISES, SILENT};
use memory::MIB;
use tally::Tally;

/// Pushes a second of the server that behaves: ten times what a busy one has.
const RATE: u32 = 200;
/// Devices pushed to in turn.
const DEVICES: u32 = 200;
/// Seconds without strangers, each time.
const QUIET: u32 = 12;
/// How often the crowd comes.
const CROWDS: usize = 2;
/// Seconds that a crowd is there longer than the service bears with those who do not authenticate.
const AFTER: u64 = 4;

/// A server that behaves, and the service.
struct Scene {
    world: World,
    service: Campanile,
    devices: Vec<(NodeId, Secret)>,
    settings: Settings,
    address: SocketAddr,
}

impl Scene {
    async fn set(answers: SocketAddr) -> Self {
        let world = World::start(Plan {
            listen: support::anywhere(),
            hosts: vec![(ABUSER.to_owned(), answers)],
            ..Plan::default()
        })
        .await
        .unwrap();
        world.apple.control.set_recording(false);
        // The world lets one peer carry the load of many; here the default is what has to hold.
        let pace = xmpp::Config::default().stanzas_per_second_max.to_string();
        let environment = [("CAMPANILE__XMPP__STANZAS_PER_SECOND_MAX", pace.as_str())];
        let mut settings = Settings::load(world.config_file()).unwrap();
        settings.xmpp.stanzas_per_second_max = xmpp::Config::default().stanzas_per_second_max;
        let mut service = Campanile::serve_with(world.config_file(), &environment);
        let address = service.address().await;
        world.service_is_at(address).await;
        let mut devices = Vec::new();
        for n in 0..DEVICES {
            let request = RegisterDevice {
                user: format!("user{n}"),
                node: support::uuid(n),
                device_token: support::device_token(n),
            };
            let device = world.chat.register.send(request).await.unwrap().unwrap();
            devices.push((device.node, device.secret));
        }
        Self {
            world,
            service,
            devices,
            settings,
            address,
        }
    }

    /// Publishes for so many seconds.
    fn flood(&self, seconds: u32) -> impl Future<Output = FloodReport> + use<> {
        let flood = Flood {
            devices: self.devices.clone(),
            pushes: RATE * seconds,
            pace: Pace::PerSecond(RATE),
            streams: 1,
            has_body: true,
            shape: PublishShape::Prosody,
            patience: PATIENCE,
        };
        let sent = self.world.chat.flood.send(flood);
        async move { sent.await.unwrap().unwrap() }
    }

    async fn streams_out(&self) -> u64 {
        self.world.chat.count.send(Count).await.unwrap().streams_out
    }

    /// TLS of somebody who has a certificate for a domain.
    fn tls(&self, domain: &str) -> Arc<ClientConfig> {
        let authority = self.world.authority();
        let identity = authority.issue(&[domain], Kind::ServerOnly).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(authority.roots().unwrap())
            .with_client_auth_cert(identity.chain(), identity.key())
            .unwrap();
        Arc::new(tls)
    }

    fn pid(&self) -> u32 {
        self.service.pid()
    }
}

/// Waits for something that comes by itself.
async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is().await {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Both ends of thousands of connections need a descriptor each; the service inherits the limit.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

fn quantile(reports: &[FloodReport], share: f64) -> f64 {
    let mut all = FloodReport::default();
    for report in reports {
        all.latencies_micros
            .extend_from_slice(&report.latencies_micros);
    }
    all.latencies_micros.sort_unstable();
    f64::from(all.quantile_micros(share)) / 1000.0
}

fn row(what: &str, reports: &[FloodReport]) {
    let samples: usize = reports.iter().map(|r| r.latencies_micros.len()).sum();
    println!(
        "{what:<14}{samples:>8} pushes   p50 {:>6.2}   p90 {:>6.2}   p99 {:>6.2}   p99.9 {:>7.2} ms",
        quantile(reports, 0.5),
        quantile(reports, 0.9),
        quantile(reports, 0.99),
        quantile(reports, 0.999),
    );
}

#[actix_rt::test]
async fn a_crowd_of_strangers_hurts_nobody() {
    raise_descriptors();
    // Where the answers to one that floods us should go: it accepts them, and never says a word.
    let sink = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut scene = Scene::set(sink.local_addr().unwrap()).await;
    let pid = scene.pid();
    let limits = scene.settings.xmpp.clone();
    let stay = u32::try_from(limits.authentication_timeout_seconds + AFTER).unwrap();

    let (mut quiet, mut crowded) = (Vec::new(), Vec::new());
    let mut tally = Tally::default();
    quiet.push(scene.flood(QUIET).await);
    let before = memory::resident(pid);
    let sockets = memory::sockets(pid);
    for _ in 0..CROWDS {
        // The crowd comes while pushes flow, and most of it is sent away before they end.
        let streams_out = scene.streams_out().await;
        let flooding = actix_rt::spawn(scene.flood(stay));
        until("the flood begins", async || {
            scene.streams_out().await > streams_out
        })
        .await;
        let tls = (scene.tls("stranger.localhost"), scene.tls(ABUSER));
        let mut crowd = Crowd::gather(scene.address, tls, sink.try_clone().unwrap(), &limits);
        until("all of the crowd is let in", async || {
            memory::sockets(pid) >= sockets + SILENT + LORISES
        })
        .await;
        crowded.push(flooding.await.unwrap());
        tokio::time::timeout(PATIENCE, crowd.settled())
            .await
            .expect("all who do not authenticate are sent away");
        tally.add(crowd.dismiss());
        until("all of the crowd is gone", async || {
            memory::sockets(pid) <= sockets + 1
        })
        .await;
        quiet.push(scene.flood(QUIET).await);
    }

    let peak = memory::peak(pid);
    let bound = before + memory::of_strangers(&limits, crowd::CENSUS);
    println!("{tally}");
    row("quiet", &quiet);
    row("with strangers", &crowded);
    let (calm, busy) = (quantile(&quiet, 0.99), quantile(&crowded, 0.99));
    println!("p99 with strangers to p99 without: {:.2}", busy / calm);
    println!(
        "memory: {} MiB before, {} MiB at its peak, bound {} MiB",
        before / MIB,
        peak / MIB,
        bound / MIB
    );

    for report in quiet.iter().chain(&crowded) {
        assert!(report.is_clean(), "{:?}", report.errors);
        assert_eq!(report.unanswered, 0);
    }
    tally.check(&limits, CROWDS);
    assert!(peak <= bound, "{peak} bytes, more than {bound}");
    assert!(busy <= 2.0 * calm, "p99 {busy} ms, {calm} ms without them");
    let log = scene.service.lines.len();
    // The answers to the one who does not take them are given up.
    let ended = scene.service.terminate().await;
    assert!(
        matches!(ended, Some(exit::OK | exit::ABANDONED)),
        "{ended:?}"
    );
    // Thousands of failures are few lines.
    let lines = scene.service.lines.len() - log;
    println!("{lines} lines in the log");
    assert!(lines < SILENT / 4, "{lines} lines in the log");
    scene.world.stop().await;
}
