//! Question: what does a push cost when everything else has grown: registrations, streams, other peers, lanes?
//!
//! Unit: CPU seconds of the process per 100 000 pushes, milliseconds from the write of a push to its answer, and
//! pushes per CPU second of the busiest lane; each as a ratio within one run.
//!
//! Whole servers run as processes of their own and take turns, so that what else the machine does meets all of
//! them. CPU is counted while a flood is between a tenth and nine tenths of its pushes, so that streams which
//! open and close are not in it.
//!
//! - Registrations: one service with a thousand, one with a million of which 100 000 are pushed to in turn, both
//!   as components.
//! - Streams: one service, to which a server publishes on one stream or shares the same load among a thousand.
//! - Peers: nine servers publish quietly, alone and then beside a tenth that has always 1000 pushes unanswered.
//!   `xmpp.stanzas_per_second_max` is the default here, as it is what holds the tenth back. They all have one
//!   address, so the limit of an address is not.
//! - Lanes: one service with one lane, one with two, both over eight streams. A lane is a thread, so what it could
//!   do on a core of its own is its pushes by its CPU; of two it is what the busier one could.
//!
//! ```sh
//! cargo bench --bench growth -- --rounds 3 --json target/growth.json
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
    clippy::cast_lossless,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "a bench fails by panicking and speaks to a person"
)]

#[path = "growth/peers.rs"]
mod peers;
#[path = "push_throughput/process.rs"]
mod process;
#[path = "memory/store.rs"]
mod store;
#[path = "push_throughput/table.rs"]
mod table;

use std::cell::Cell;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use campanile::dev::world::{Plan, Way, World};
use campanile::lanes::Lane;
use clap::Parser;
use messages::{NodeId, Secret};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use simulators::server::{AskProgress, Flood, FloodReport, Pace, PublishShape};

use peers::Peer;
use process::Service;
use table::{Line, Spread, Target};

/// Devices of the service that is small.
const FEW: u32 = 1_000;
/// Servers of each lane, with a stream in both directions, and the devices of each for each push that waits: those to
/// one device would become one.
const SERVERS_PER_LANE: u32 = 16;
const DEVICES_PER_PUSH: u32 = 2;
/// Peers beside the one that floods, their pushes a second, and the devices of each.
const QUIET_PEERS: usize = 9;
const QUIET_RATE: u32 = 50;
const DEVICES_PER_PEER: u32 = 50;
/// Pushes unanswered at a time of the peer that floods, and how many it may have read in a second.
const FLOODING: u32 = 1_000;
/// How often a flood is asked how far it is.
const LOOK: Duration = Duration::from_millis(5);
/// What part of a flood is left out at its beginning, and at its end.
const EDGE: f64 = 0.1;

/// What a push costs when all else has grown.
#[derive(Debug, Parser)]
struct Options {
    /// Pushes in a round.
    #[arg(long, default_value_t = 100_000)]
    pushes: u32,
    /// Rounds; the median is shown, with the least and the most beside it.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Pushes without an answer at a time.
    #[arg(long, default_value_t = 500)]
    outstanding: u32,
    /// Registrations of the service that is large.
    #[arg(long, default_value_t = 1_000_000)]
    registrations: u32,
    /// Those of them that are pushed to.
    #[arg(long, default_value_t = 100_000)]
    active: u32,
    /// Streams that share a load.
    #[arg(long, default_value_t = 1_000)]
    streams: usize,
    /// Seconds of a round with quiet peers.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
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
    registrations(options, &mut lines).await;
    streams(options, &mut lines).await;
    peers(options, &mut lines).await;
    lanes(options, &mut lines).await;
    println!(
        "\n{} rounds of {} pushes, {} outstanding, {} cores\n",
        options.rounds,
        options.pushes,
        options.outstanding,
        campanile::lanes::cores(),
    );
    table::print(&lines);
    if let Some(file) = &options.json {
        let options = serde_json::json!({
            "pushes": options.pushes,
            "rounds": options.rounds,
            "outstanding": options.outstanding,
            "registrations": options.registrations,
            "active": options.active,
            "streams": options.streams,
            "seconds": options.seconds,
        });
        table::write(file, &options, &lines);
    }
}

/// A server with its world.
struct Side {
    world: World,
    service: Service,
    devices: Vec<(NodeId, Secret)>,
}

/// What a round showed, per 100 000 pushes.
struct Cpu {
    /// CPU seconds of the process.
    process: f64,
    /// CPU seconds of each thread of the actor framework, in the order of their start: the lanes come first.
    threads: Vec<f64>,
}

/// What was used until so many pushes were answered.
struct Used {
    answered: u32,
    process: Duration,
    threads: Vec<Duration>,
}

impl Cpu {
    fn between(from: &Used, until: &Used) -> Self {
        let answered = f64::from(until.answered.saturating_sub(from.answered)).max(1.0);
        let per_push = |cpu: Duration| cpu.as_secs_f64() * 100_000.0 / answered;
        let threads = until.threads.iter().zip(&from.threads);
        Self {
            process: per_push(until.process - from.process),
            threads: threads
                .map(|(then, before)| per_push(*then - *before))
                .collect(),
        }
    }

    /// Of so many lanes, what the busiest had.
    fn busiest(&self, lanes: usize) -> f64 {
        let lanes = self.threads[..lanes].iter().copied();
        lanes.fold(0.0, f64::max)
    }

    /// Of so many lanes, what the one that had least had.
    fn idlest(&self, lanes: usize) -> f64 {
        let lanes = self.threads[..lanes].iter().copied();
        lanes.fold(f64::INFINITY, f64::min)
    }
}

impl Side {
    /// With a store of so many registrations, and variables that say otherwise than the configuration.
    async fn start(
        way: Way,
        (registrations, active): (u32, u32),
        environment: &[(&str, &str)],
    ) -> Self {
        let world = world(way, Vec::new()).await;
        let devices = store::fill(&world, registrations, active).await;
        let service = Service::start_with(world.config_file(), environment).await;
        world.service_is_at(service.address).await;
        world.apple.control.set_recording(false);
        Self {
            world,
            service,
            devices,
        }
    }

    fn flood(&self, pushes: u32, outstanding: u32, streams: usize) -> Flood {
        Flood {
            devices: self.devices.clone(),
            pushes,
            pace: Pace::Outstanding(outstanding),
            streams,
            has_body: true,
            shape: PublishShape::Prosody,
            patience: Duration::from_secs(60),
        }
    }

    /// Connections to APNs begin with one stream, and the cache is empty. With the first push to a device it is written
    /// down that APNs takes it, so that its record is read once more.
    async fn warm_up(&self, options: &Options) {
        let pushes = 3 * self.devices.len() as u32;
        self.round(pushes, options.outstanding, 1).await;
    }

    async fn round(&self, pushes: u32, outstanding: u32, streams: usize) -> Cpu {
        let flood = self.flood(pushes, outstanding, streams);
        let flood = self.world.chat.flood.send(flood);
        let before = used(&self.service, 0);
        let middle = Cell::new(None);
        let flooding = async {
            tokio::select! {
                report = flood => report.unwrap().unwrap(),
                never = self.look(pushes, &middle) => match never {},
            }
        };
        let report: FloodReport = flooding.await;
        assert!(
            report.is_clean(),
            "not every push was answered once with result: {report:?}"
        );
        // One that is too short to be looked at counts with its ends.
        let (from, until) = middle
            .take()
            .unwrap_or((before, used(&self.service, pushes)));
        Cpu::between(&from, &until)
    }

    /// Looks at the flood that has just begun, and keeps what was used until a part of it was done and until
    /// most was.
    async fn look(&self, pushes: u32, middle: &Cell<Option<(Used, Used)>>) -> Infallible {
        let edge = (f64::from(pushes) * EDGE) as u32;
        let from = self.when(edge).await;
        let until = self.when(pushes - edge).await;
        middle.set(Some((from, until)));
        std::future::pending().await
    }

    /// What was used when so many had been answered.
    async fn when(&self, answered: u32) -> Used {
        loop {
            let progress = self.world.chat.progress.send(AskProgress).await.unwrap();
            if progress.answered >= answered {
                return used(&self.service, progress.answered);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn stop(self) {
        self.service.stop().await;
        self.world.stop().await;
    }
}

fn used(service: &Service, answered: u32) -> Used {
    Used {
        answered,
        process: service.cpu(),
        threads: service.threads_cpu(),
    }
}

/// Row 4, registrations.
async fn registrations(options: &Options, lines: &mut Vec<Line>) {
    let active = options.active.min(options.registrations);
    let none: [(&str, &str); 0] = [];
    let few = Side::start(Way::Component, (FEW, FEW), &none).await;
    let many = Side::start(Way::Component, (options.registrations, active), &none).await;
    let (mut with_few, mut with_many) = (Vec::new(), Vec::new());
    few.warm_up(options).await;
    many.warm_up(options).await;
    for _ in 0..options.rounds {
        with_few.push(few.round(options.pushes, options.outstanding, 1).await);
        with_many.push(many.round(options.pushes, options.outstanding, 1).await);
    }
    few.stop().await;
    many.stop().await;
    let question = |count: u32| format!("CPU s, {count} registrations");
    let base = Spread::of(&with_few, |cpu| cpu.process);
    lines.push(Line::shown(&question(FEW), "component", base));
    let grown = Spread::of(&with_many, |cpu| cpu.process);
    let line = Line::shown(&question(options.registrations), "component", grown);
    lines.push(line.compared(4, base.median, Target::RatioAtMost(1.2)));
}

/// Row 4, streams.
async fn streams(options: &Options, lines: &mut Vec<Line>) {
    let most = (2 * options.streams).to_string();
    // All of them come from one server, and at once.
    let environment = [
        ("CAMPANILE__XMPP__STREAMS_MAX", "65536"),
        ("CAMPANILE__XMPP__STREAMS_PER_ADDRESS_MAX", &most),
        ("CAMPANILE__XMPP__STREAMS_PER_DOMAIN_MAX", &most),
        ("CAMPANILE__XMPP__CONNECTIONS_PER_SECOND_MAX", "1000"),
        (
            "CAMPANILE__XMPP__CONNECTIONS_PER_ADDRESS_PER_SECOND_MAX",
            "1000",
        ),
    ];
    let registrations = (10 * FEW, 10 * FEW);
    let side = Side::start(Way::Federation, registrations, &environment).await;
    side.warm_up(options).await;
    let outstanding = options.outstanding.max(options.streams as u32);
    let (mut with_one, mut with_many) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        with_one.push(side.round(options.pushes, outstanding, 1).await);
        let many = side.round(options.pushes, outstanding, options.streams);
        with_many.push(many.await);
    }
    side.stop().await;
    let base = Spread::of(&with_one, |cpu| cpu.process);
    lines.push(Line::shown("CPU s, 1 stream", "s2s", base));
    let grown = Spread::of(&with_many, |cpu| cpu.process);
    let line = Line::shown(&format!("CPU s, {} streams", options.streams), "s2s", grown);
    lines.push(line.compared(4, base.median, Target::RatioAtMost(1.5)));
}

/// Row 4, peers.
async fn peers(options: &Options, lines: &mut Vec<Line>) {
    let hosts = peers::hosts(QUIET_PEERS + 1);
    let world = world(Way::Federation, hosts.clone()).await;
    let pace = xmpp::Config::default().stanzas_per_second_max;
    let text = pace.to_string();
    let environment = [("CAMPANILE__XMPP__STANZAS_PER_SECOND_MAX", text.as_str())];
    let service = Service::start_with(world.config_file(), &environment).await;
    world.apple.control.set_recording(false);
    let lanes = [Lane::start(), Lane::start()];
    let [quiet_lane, flooding_lane] = &lanes;
    let (last, quiet_hosts) = hosts.split_last().unwrap();
    let flooding = Peer::start(
        &world,
        service.address,
        last,
        DEVICES_PER_PEER,
        flooding_lane,
    )
    .await;
    let mut quiet = Vec::new();
    for host in quiet_hosts {
        quiet.push(Peer::start(&world, service.address, host, DEVICES_PER_PEER, quiet_lane).await);
    }
    quietly(&quiet, 1).await;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        alone.push(quietly(&quiet, options.seconds).await);
        // As much as it can have read meanwhile, with a second's worth at once, and more.
        let pushes = pace * (options.seconds + 5);
        let flood = flooding.flood(pushes, Pace::Outstanding(FLOODING));
        let then = async {
            // The second's worth that it may have at once is over in a tenth of one: it would be the slowest hundredth
            // of what the quiet peers do meanwhile, or not, by how long they are looked at.
            while flooding.answered().await < pace + FLOODING {
                tokio::time::sleep(LOOK).await;
            }
            let p99 = quietly(&quiet, options.seconds).await;
            (p99, flooding.answered().await)
        };
        let (_, (p99, answered)) = tokio::join!(flood, then);
        assert!(answered > 0, "the flood ended before the quiet peers did");
        beside.push(p99);
    }
    service.stop().await;
    for lane in lanes {
        lane.stop().await;
    }
    world.stop().await;
    let base = Spread::of(&alone, |p99| *p99);
    let question = format!("p99 of {QUIET_PEERS} quiet peers");
    lines.push(Line::shown(&format!("{question}, ms"), "s2s", base));
    let grown = Spread::of(&beside, |p99| *p99);
    let line = Line::shown(&format!("{question} beside a flood"), "s2s", grown);
    lines.push(line.compared(4, base.median, Target::RatioAtMost(2.0)));
}

/// The p99 of the pushes of all, in milliseconds.
async fn quietly(peers: &[Peer], seconds: u32) -> f64 {
    let mut floods = Vec::new();
    for peer in peers {
        floods.push(peer.flood(QUIET_RATE * seconds, Pace::PerSecond(QUIET_RATE)));
    }
    let mut all = FloodReport::default();
    for report in futures_util::future::join_all(floods).await {
        all.latencies_micros.extend(report.latencies_micros);
    }
    all.latencies_micros.sort_unstable();
    f64::from(all.quantile_micros(0.99)) / 1_000.0
}

/// Row 8.
async fn lanes(options: &Options, lines: &mut Vec<Line>) {
    let flooding = [Lane::start(), Lane::start()];
    let mut sides = Vec::new();
    for lanes in [1, 2] {
        let outstanding = options.outstanding / SERVERS_PER_LANE;
        sides.push(Shared::start(lanes, outstanding, &flooding).await);
    }
    let mut measured = [Vec::new(), Vec::new()];
    for round in 0..=options.rounds {
        for ((lanes, side), measured) in (1..).zip(&sides).zip(&mut measured) {
            let cpu = side.round(lanes * options.pushes).await;
            // Connections to APNs begin with one stream.
            if round > 0 {
                measured.push(cpu);
            }
        }
    }
    // Pushes per second that the busiest lane could carry with a core of its own.
    let [one, two] = &measured;
    let capacity =
        |lanes: usize, rounds: &[Cpu]| Spread::of(rounds, |cpu| 100_000.0 / cpu.busiest(lanes));
    let question = |lanes: usize| format!("pushes/CPU s of {lanes} lane(s)");
    let alone = capacity(1, one);
    lines.push(Line::shown(&question(1), "s2s", alone));
    let line = Line::shown(&question(2), "s2s", capacity(2, two));
    lines.push(line.compared(8, alone.median, Target::RatioAtLeast(1.8)));
    let share = Spread::of(two, |cpu| cpu.idlest(2) / cpu.busiest(2));
    let question = "the idler lane's CPU to the busier's";
    lines.push(Line::shown(question, "s2s", share));
    for side in sides {
        side.service.stop().await;
        side.world.stop().await;
    }
    for lane in flooding {
        lane.stop().await;
    }
}

/// A service that several servers share: as many for each lane, and as much at a time from each, because what is
/// read at once is what makes a push cheap.
struct Shared {
    world: World,
    service: Service,
    peers: Vec<Peer>,
    outstanding: u32,
}

impl Shared {
    async fn start(lanes: u32, outstanding: u32, flooding: &[Lane; 2]) -> Self {
        let hosts = peers::hosts((lanes * SERVERS_PER_LANE) as usize);
        let world = world(Way::Federation, hosts.clone()).await;
        let (lanes, outstanding) = (lanes.to_string(), outstanding.max(1));
        let environment = [
            ("CAMPANILE__RUNTIME__LANES", lanes.as_str()),
            (
                "CAMPANILE__XMPP__CONNECTIONS_PER_ADDRESS_PER_SECOND_MAX",
                "1000",
            ),
        ];
        let service = Service::start_with(world.config_file(), &environment).await;
        world.apple.control.set_recording(false);
        let mut peers = Vec::new();
        for (host, lane) in hosts.iter().zip(flooding.iter().cycle()) {
            let devices = DEVICES_PER_PUSH * outstanding;
            let peer = Peer::start(&world, service.address, host, devices, lane);
            peers.push(peer.await);
        }
        Self {
            world,
            service,
            peers,
            outstanding,
        }
    }

    async fn round(&self, pushes: u32) -> Cpu {
        let servers = self.peers.len() as u32;
        let share = pushes / servers;
        let pace = Pace::Outstanding(self.outstanding);
        let floods = self.peers.iter().map(|peer| peer.flood(share, pace));
        let before = used(&self.service, 0);
        futures_util::future::join_all(floods).await;
        Cpu::between(&before, &used(&self.service, share * servers))
    }
}

async fn world(way: Way, hosts: Vec<peers::Host>) -> World {
    let listen: Vec<SocketAddr> = vec![(Ipv4Addr::LOCALHOST, 0).into()];
    World::start(Plan {
        way,
        listen,
        hosts,
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
