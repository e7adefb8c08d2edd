//! Question: how much memory does the service hold, and how long does it take to start?
//!
//! Unit: MiB of the process that are resident when it has nothing to do; KiB for each idle s2s stream with
//! TLS; bytes for each registration beyond the configured cache; seconds from exec to the line that it serves.
//!
//! The service runs as a process of its own each time, as `campanile serve` does. Streams are those of as many
//! servers, each with a domain and a certificate, that have proven it and then are silent. The store is
//! filled by a process beside it; a flood then goes through a part of the registrations, so that the cache is
//! as full as it gets. What the system keeps of a connection in its own memory is not counted.
//!
//! ```sh
//! cargo bench --bench memory -- --json target/memory.json
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "a bench fails by panicking and speaks to a person"
)]

#[path = "push_throughput/process.rs"]
mod process;
#[path = "memory/store.rs"]
mod store;
#[path = "push_throughput/table.rs"]
mod table;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use campanile::dev::world::{Plan, World};
use campanile::lanes::Lane;
use clap::Parser;
use messages::{Clock, NodeId, Secret};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use simulators::Kind;
use simulators::server::{self, Flood, Pace, PublishShape, SendRaw};

use process::Service;
use table::{Line, Spread, Target};

const MIB: f64 = 1024.0 * 1024.0;
/// How long nothing happens before memory is read: buffers that shrink when idle have shrunk.
const QUIET: Duration = Duration::from_secs(3);
/// What is to be reached.
const IDLE_MIB: f64 = 40.0;
const STREAM_KIB: f64 = 40.0;
const REGISTRATION_BYTES: f64 = 250.0;
const START_SECONDS: f64 = 2.0;

/// What the service holds, and how it starts.
#[derive(Debug, Parser)]
struct Options {
    /// Registrations in the store.
    #[arg(long, default_value_t = 1_000_000)]
    registrations: u32,
    /// Registrations that are pushed to.
    #[arg(long, default_value_t = 100_000)]
    active: u32,
    /// Bytes of `registration.cache_bytes`.
    #[arg(long, default_value_t = 64 << 20)]
    cache_bytes: u64,
    /// Idle streams.
    #[arg(long, default_value_t = 500)]
    streams: usize,
    /// Starts; the median is shown, with the least and the most beside it.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Writes the figures to a file as JSON, with the machine and the commit.
    #[arg(long)]
    json: Option<PathBuf>,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
    /// Fills a store instead: configuration, registrations, how many to print.
    #[arg(long, num_args = 3, hide = true)]
    fill: Option<Vec<String>>,
}

fn main() {
    let options = Options::parse();
    let system = actix_rt::System::new();
    match &options.fill {
        Some(arguments) => system.block_on(store::run(arguments)),
        None => system.block_on(measure(&options)),
    }
}

async fn measure(options: &Options) {
    raise_descriptors();
    let mut lines = Vec::new();
    let (idle, streams) = streams(options).await;
    let (full, starts) = registrations(options).await;
    let mib = |bytes: u64| bytes as f64 / MIB;
    let one = |figure: f64| Spread::of(&[figure], |figure| *figure);

    let line = Line::shown("idle, empty store, MiB", "", one(mib(idle)));
    lines.push(line.compared(5, IDLE_MIB, Target::AtMost(IDLE_MIB)));
    let stream = streams.saturating_sub(idle) as f64 / 1024.0 / options.streams as f64;
    let line = Line::shown("an idle s2s stream with TLS, KiB", "s2s", one(stream));
    lines.push(line.compared(5, STREAM_KIB, Target::AtMost(STREAM_KIB)));
    let beyond = full
        .saturating_sub(idle)
        .saturating_sub(options.cache_bytes);
    let registration = beyond as f64 / f64::from(options.registrations);
    let line = Line::shown(
        "a registration beyond the cache, bytes",
        "",
        one(registration),
    );
    lines.push(line.compared(5, REGISTRATION_BYTES, Target::AtMost(REGISTRATION_BYTES)));
    lines.push(Line::shown("all registrations, MiB", "", one(mib(full))));
    let line = Line::shown(
        "exec to serving, s",
        "",
        Spread::of(&starts, |start| *start),
    );
    lines.push(line.compared(6, START_SECONDS, Target::AtMost(START_SECONDS)));

    println!(
        "\n{} idle streams; {} registrations, {} of them pushed to, {:.0} MiB of cache\n",
        options.streams,
        options.registrations,
        options.active,
        mib(options.cache_bytes),
    );
    table::print(&lines);
    if let Some(file) = &options.json {
        let options = serde_json::json!({
            "registrations": options.registrations,
            "active": options.active,
            "cache_bytes": options.cache_bytes,
            "streams": options.streams,
            "rounds": options.rounds,
        });
        table::write(file, &options, &lines);
    }
}

/// Bytes without and with idle streams.
async fn streams(options: &Options) -> (u64, u64) {
    let world = world().await;
    let many = options.streams.to_string();
    // All of them come from one address, and at once.
    let environment = [
        ("CAMPANILE__XMPP__STREAMS_MAX", "65536"),
        ("CAMPANILE__XMPP__STREAMS_PER_ADDRESS_MAX", &many),
        ("CAMPANILE__XMPP__CONNECTIONS_PER_SECOND_MAX", "1000"),
        (
            "CAMPANILE__XMPP__CONNECTIONS_PER_ADDRESS_PER_SECOND_MAX",
            "1000",
        ),
    ];
    let service = Service::start_with(world.config_file(), &environment).await;
    tokio::time::sleep(QUIET).await;
    let idle = service.memory();
    let lane = Lane::start();
    let mut peers = Vec::new();
    for n in 0..options.streams {
        let domain = format!("peer{n}.localhost");
        let authority = world.authority();
        let edges = server::Edges {
            identity: authority.issue(&[&domain], Kind::ServerAndClient).unwrap(),
            roots: authority.roots().unwrap(),
            clock: Clock::system(),
        };
        let config = server::Config {
            domain,
            service_address: Some(service.address),
            ..server::Config::default()
        };
        let peer = lane.build(move || server::start(&config, edges)).await;
        let peer = peer.unwrap().unwrap();
        // Nothing, but the stream is opened for it, and the domain proven.
        let opened = peer.send.send(SendRaw(String::new())).await.unwrap();
        opened.unwrap();
        peers.push(peer);
    }
    tokio::time::sleep(QUIET).await;
    let busy = service.memory();
    // Whether they are all there still.
    for peer in &peers {
        let counters = peer.count.send(server::Count).await.unwrap();
        assert_eq!(counters.streams_out, 1);
        assert!(counters.violations.is_empty(), "{counters:?}");
    }
    service.stop().await;
    lane.stop().await;
    world.stop().await;
    (idle, busy)
}

/// Bytes with a full store, and seconds of each start.
async fn registrations(options: &Options) -> (u64, Vec<f64>) {
    let world = world().await;
    let active = options.active.min(options.registrations);
    let began = Instant::now();
    let devices = store::fill(&world, options.registrations, active).await;
    println!("filled the store in {:.1} s", began.elapsed().as_secs_f64());
    let cache = options.cache_bytes.to_string();
    let environment = [
        ("CAMPANILE__REGISTRATION__CACHE_BYTES", cache.as_str()),
        (
            "CAMPANILE__REGISTRATION__REGISTRATIONS_PER_OWNER_MAX",
            "1000000000",
        ),
    ];
    let mut starts = Vec::new();
    let mut full = 0;
    for round in 0..options.rounds.max(1) {
        let began = Instant::now();
        let service = Service::start_with(world.config_file(), &environment).await;
        starts.push(began.elapsed().as_secs_f64());
        if round == 0 {
            world.service_is_at(service.address).await;
            flood(&world, &devices).await;
            tokio::time::sleep(QUIET).await;
            full = service.memory();
        }
        service.stop().await;
    }
    world.stop().await;
    (full, starts)
}

/// Pushes to each device twice.
async fn flood(world: &World, devices: &[(NodeId, Secret)]) {
    world.apple.control.set_recording(false);
    let flood = Flood {
        devices: devices.to_vec(),
        pushes: 2 * devices.len() as u32,
        pace: Pace::Outstanding(500),
        streams: 1,
        has_body: true,
        shape: PublishShape::Prosody,
        patience: Duration::from_secs(60),
    };
    let report = world.chat.flood.send(flood).await.unwrap().unwrap();
    assert!(
        report.is_clean(),
        "not every push was answered once with result: {report:?}"
    );
}

async fn world() -> World {
    let listen: Vec<SocketAddr> = vec![(Ipv4Addr::LOCALHOST, 0).into()];
    World::start(Plan {
        listen,
        ..Plan::default()
    })
    .await
    .unwrap()
}

/// Both ends of many connections need a descriptor each; the service inherits the limit.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}
