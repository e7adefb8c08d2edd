//! Question: what does a push cost through the whole server, how far is that from the least it can cost,
//! and how long does it take? Over both ways in: as a component and as a server among servers.
//!
//! Unit: pushes per second, CPU seconds of the process per 100 000 pushes, milliseconds from the write of a
//! push to its answer; each beside its target.
//!
//! For each way a whole server runs as a process of its own: publishes come in on loopback over a component's
//! stream (XEP-0114) or over s2s with TLS, and go out on loopback over HTTP/2 with TLS to the strict
//! simulator. The simulators run on threads of this process, which is another than the measured ones: their
//! CPU is told apart, and shown. Beside them, in the same run and against the same simulator, a bare `h2`
//! client in a process of its own sends the same requests and does nothing else. Ways and client take turns,
//! so that what else the machine does meets all of them. Only the ratios mean anything on another machine.
//!
//! - Closed loop: `--outstanding` pushes without an answer at a time, a new one for each answer. The lane of the
//!   service and the bare client have a core to themselves in their turn, all else has the others.
//! - Closed loop, APNs at 20 ms: on 1000 streams, with half as many pushes more so that all streams are in use;
//!   no client can do more than 1000 / 20 ms.
//! - Open loop: so many pushes per second whatever is unanswered, with the simulator at 0 ms, so that all of
//!   the time is the server's, the kernel's and the simulators' own. It is counted from the write, and what the
//!   bare client waits at the same rate in the same round is taken off: that is APNs' own, and the machine's.
//!   `late` is how much later than it was due a push was written: by a millisecond or two because the flood
//!   sleeps in between, by more where the server does not read in time. All threads run where they like.
//!
//! ```sh
//! cargo bench --bench push_throughput -- --pushes 50000 --rounds 5 --json target/push_throughput.json
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

#[path = "push_throughput/bare.rs"]
mod bare;
#[path = "push_throughput/cores.rs"]
mod cores;
#[path = "push_throughput/process.rs"]
mod process;
#[path = "push_throughput/table.rs"]
mod table;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use campanile::dev::world::{Plan, Way, World};
use clap::Parser;
use messages::{DeviceToken, NodeId, Secret};
use simulators::apple::{self, Faults};
use simulators::server::{Flood, FloodReport, Pace, PublishShape, RegisterDevice};
use tokio::task::JoinSet;

use cores::Cores;
use process::{Service, cpu_of};
use table::{Line, Spread, Target};

// The bare client has the allocator of the service.
#[global_allocator]
static ALLOCATOR: campanile::Allocator = campanile::Allocator;

/// APNs' latency of the rounds that have one, and the streams they may use.
const LATENCY_MILLIS: u32 = 20;
const STREAMS: u32 = 1000;
/// Connections of the service to APNs by default, which share them.
const CONNECTIONS: u32 = 4;
/// Pushes per second of the open loop, beside half of what the closed one reached.
const RATES: [u32; 2] = [200, 1_000];
/// Pushes before the first that counts: connections to APNs begin with one stream and are opened by need.
const WARM_UP: u32 = 5_000;
/// Registrations without an answer at a time, as many as the server takes of one stream.
const REGISTRATIONS: usize = 32;

/// Pushes through the whole server over both ways in, and through a bare h2 client.
#[derive(Debug, Parser)]
struct Options {
    /// Pushes in a round of the closed loop, and most in a round of the open one.
    #[arg(long, default_value_t = 50_000)]
    pushes: u32,
    /// Rounds; the median is shown, with the least and the most beside it.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Publishes without an answer at a time, and requests in flight of the bare client.
    #[arg(long, default_value_t = 500)]
    outstanding: u32,
    /// Devices pushed to in turn; no more than pushes.
    #[arg(long, default_value_t = 10_000)]
    devices: u32,
    /// Seconds of a round of the open loop.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Writes the figures to a file as JSON, with the machine and the commit.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Pushes per second of the bare client.
    #[arg(long, hide = true)]
    rate: Option<u32>,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
    /// Runs the bare client instead: address, root, key file, pushes.
    #[arg(long, num_args = 4, hide = true)]
    bare: Option<Vec<String>>,
}

/// What a round of the closed loop showed.
#[derive(Clone, Copy)]
struct Figures {
    /// Pushes per second.
    rate: f64,
    /// CPU seconds of the process per 100 000 pushes.
    cpu: f64,
    /// The same of the simulators; 0 for the bare client.
    simulators_cpu: f64,
}

fn main() {
    let options = Options::parse();
    let system = actix_rt::System::new();
    if let Some(bare) = &options.bare {
        let task = options.rate.map_or(
            bare::Task::InFlight(options.outstanding),
            bare::Task::PerSecond,
        );
        let answer = system.block_on(bare::run(bare, task, options.devices));
        let (figures, [p50, p99]) = (answer.figures, answer.latency);
        println!("{} {} {p50} {p99}", figures.rate, figures.cpu);
    } else {
        system.block_on(compare(&options));
    }
}

/// A server with its world.
struct Side {
    name: &'static str,
    /// What CPU may be at most, times the bare client's.
    cpu_ratio_max: f64,
    world: World,
    service: Service,
    devices: Vec<(NodeId, Secret)>,
}

impl Side {
    async fn start(way: Way, options: &Options) -> Self {
        let listen: Vec<SocketAddr> = vec![(Ipv4Addr::LOCALHOST, 0).into()];
        let apple = apple::Config {
            // The bare client makes a token of its own each round, as several processes of one team would.
            token_updates_limited: false,
            streams_max: STREAMS,
            ..apple::Config::default()
        };
        let world = World::start(Plan {
            apple,
            way,
            listen,
            ..Plan::default()
        })
        .await
        .unwrap();
        let streams = (STREAMS / CONNECTIONS).to_string();
        let streams = ("CAMPANILE__APNS__STREAMS_PER_CONNECTION_MAX", &*streams);
        // One stream stands for those of many servers.
        let tickets = ("CAMPANILE__XMPP__TICKETS_PER_STREAM", "2048");
        let lane = ("CAMPANILE__RUNTIME__LANES", "1");
        let service = Service::start_with(world.config_file(), &[streams, tickets, lane]).await;
        world.service_is_at(service.address).await;
        world.apple.control.set_recording(false);
        let devices = register(&world, options.devices).await;
        let (name, cpu_ratio_max) = match way {
            Way::Component => ("component", 2.5),
            Way::Federation => ("s2s", 3.0),
        };
        let side = Self {
            name,
            cpu_ratio_max,
            world,
            service,
            devices,
        };
        let warm_up = options.pushes.min(WARM_UP);
        side.flood(warm_up, Pace::Outstanding(STREAMS)).await;
        side
    }

    async fn flood(&self, pushes: u32, pace: Pace) -> FloodReport {
        let flood = Flood {
            devices: self.devices.clone(),
            pushes,
            pace,
            streams: 1,
            has_body: true,
            shape: PublishShape::Prosody,
            patience: Duration::from_secs(60),
        };
        let report = self.world.chat.flood.send(flood).await.unwrap().unwrap();
        assert!(
            report.is_clean(),
            "not every push was answered once with result: {report:?}"
        );
        report
    }

    /// A round of the closed loop.
    async fn closed(&self, pushes: u32, outstanding: u32) -> Figures {
        let before = (self.service.cpu(), cpu_of("self"));
        let report = self.flood(pushes, Pace::Outstanding(outstanding)).await;
        let after = (self.service.cpu(), cpu_of("self"));
        let per_push = |cpu: Duration| cpu.as_secs_f64() * 100_000.0 / f64::from(pushes);
        Figures {
            rate: report.rate(),
            cpu: per_push(after.0 - before.0),
            simulators_cpu: per_push(after.1 - before.1),
        }
    }
}

async fn register(world: &World, devices: u32) -> Vec<(NodeId, Secret)> {
    let mut registered = Vec::new();
    let mut asked = JoinSet::new();
    for n in 0..devices {
        if asked.len() >= REGISTRATIONS {
            registered.push(asked.join_next().await.unwrap().unwrap());
        }
        let request = RegisterDevice {
            user: format!("user{n}"),
            node: NodeId::new(&format!("node-{n}")).unwrap(),
            device_token: DeviceToken::parse(&format!("{n:08x}").repeat(8)).unwrap(),
        };
        let answer = world.chat.register.send(request);
        asked.spawn_local(async move {
            let device = answer.await.unwrap().unwrap();
            (device.node, device.secret)
        });
    }
    while let Some(device) = asked.join_next().await {
        registered.push(device.unwrap());
    }
    registered
}

async fn compare(options: &Options) {
    let options = &Options {
        devices: options.devices.min(options.pushes),
        json: options.json.clone(),
        bare: None,
        ..*options
    };
    let sides = [
        Side::start(Way::Component, options).await,
        Side::start(Way::Federation, options).await,
    ];
    let mut lines = Vec::new();
    pin(&sides);
    let rates = closed_loop(&sides, options, &mut lines).await;
    with_latency(&sides, options, &mut lines).await;
    unpin(&sides);
    for rate in RATES {
        let rates = [rate; 2];
        open_loop(
            &sides,
            rates,
            &format!("at {rate}/s"),
            [0.3, 1.0],
            options,
            &mut lines,
        )
        .await;
    }
    let halves = rates.map(|rate| (rate / 2.0) as u32);
    let targets = [f64::INFINITY, 5.0];
    open_loop(
        &sides,
        halves,
        "at half of the most",
        targets,
        options,
        &mut lines,
    )
    .await;

    println!(
        "\n{} rounds of {} pushes, {} outstanding, {} devices, {} cores\n",
        options.rounds,
        options.pushes,
        options.outstanding,
        options.devices,
        campanile::lanes::cores(),
    );
    table::print(&lines);
    println!(
        "\nratio: to the bare client, with latency to streams / latency, of times to the target; \
         late: milliseconds the flood itself was behind"
    );
    if let Some(file) = &options.json {
        let options = serde_json::json!({
            "pushes": options.pushes,
            "rounds": options.rounds,
            "outstanding": options.outstanding,
            "devices": options.devices,
            "seconds": options.seconds,
        });
        table::write(file, &options, &lines);
    }
    for side in sides {
        side.service.stop().await;
        side.world.stop().await;
    }
}

/// Gives the lane of each service a core, which they have in turn, and all else the others.
fn pin(sides: &[Side; 2]) {
    for Side { service, .. } in sides {
        let lane = service.actor_threads().first().map(|(number, _)| *number);
        cores::put(&service.pid(), |thread| match Some(thread) == lane {
            true => Cores::Measured,
            false => Cores::Others,
        });
    }
    cores::put("self", |_| Cores::Others);
}

fn unpin(sides: &[Side; 2]) {
    for Side { service, .. } in sides {
        cores::put(&service.pid(), |_| Cores::All);
    }
    cores::put("self", |_| Cores::All);
}

/// Rows 1 and 2. Gives the rate of each side.
async fn closed_loop(sides: &[Side; 2], options: &Options, lines: &mut Vec<Line>) -> [f64; 2] {
    let (measured, bare) = rounds(sides, options, [options.outstanding; 2]).await;
    let [cpu, rate] = ["CPU s per 100 000 pushes", "pushes/s"];
    let bare_cpu = Spread::of(&bare, |figures| figures.cpu);
    lines.push(Line::shown(cpu, "bare h2", bare_cpu));
    for (side, figures) in sides.iter().zip(&measured) {
        let spread = Spread::of(figures, |figures| figures.cpu);
        let target = Target::RatioAtMost(side.cpu_ratio_max);
        lines.push(Line::shown(cpu, side.name, spread).compared(1, bare_cpu.median, target));
    }
    for (side, figures) in sides.iter().zip(&measured) {
        let spread = Spread::of(figures, |figures| figures.simulators_cpu);
        let question = "the same of the simulators";
        lines.push(Line::shown(question, side.name, spread));
    }
    let bare_rate = Spread::of(&bare, |figures| figures.rate);
    lines.push(Line::shown(rate, "bare h2", bare_rate));
    let mut rates = [0.0; 2];
    for ((side, figures), reached) in sides.iter().zip(&measured).zip(&mut rates) {
        let spread = Spread::of(figures, |figures| figures.rate);
        let target = Target::RatioAtLeast(0.7);
        lines.push(Line::shown(rate, side.name, spread).compared(2, bare_rate.median, target));
        *reached = spread.median;
    }
    rates
}

/// The second half of row 2.
async fn with_latency(sides: &[Side; 2], options: &Options, lines: &mut Vec<Line>) {
    let set = |latency_millis: u32| {
        for side in sides {
            side.world.apple.control.set_faults(Faults {
                latency_millis: latency_millis.into(),
                ..Faults::default()
            });
        }
    };
    set(LATENCY_MILLIS);
    let (measured, bare) = rounds(sides, options, [STREAMS + STREAMS / 2, STREAMS]).await;
    set(0);
    let question = format!("pushes/s, APNs at {LATENCY_MILLIS} ms, {STREAMS} streams");
    let most = f64::from(STREAMS) * 1000.0 / f64::from(LATENCY_MILLIS);
    let rate = |figures: &[Figures]| Spread::of(figures, |figures| figures.rate);
    lines.push(Line::shown(&question, "bare h2", rate(&bare)));
    for (side, figures) in sides.iter().zip(&measured) {
        let line = Line::shown(&question, side.name, rate(figures));
        lines.push(line.compared(2, most, Target::RatioAtLeast(0.9)));
    }
}

/// Rounds of the closed loop of both sides and of the bare client, in turn, each with so many pushes at a time.
async fn rounds(
    sides: &[Side; 2],
    options: &Options,
    [outstanding, of_bare]: [u32; 2],
) -> ([Vec<Figures>; 2], Vec<Figures>) {
    let (mut measured, mut bare) = ([Vec::new(), Vec::new()], Vec::new());
    for _ in 0..options.rounds {
        for (side, figures) in sides.iter().zip(&mut measured) {
            figures.push(side.closed(options.pushes, outstanding).await);
        }
        let [Side { world, .. }, _] = sides;
        let task = bare::Task::InFlight(of_bare);
        let answer = bare::spawn(world, task, options.pushes, options.devices).await;
        bare.push(answer.figures);
    }
    (measured, bare)
}

/// Row 3 at one rate for each side: what is added to p50 and p99, against their targets in milliseconds.
async fn open_loop(
    sides: &[Side; 2],
    rates: [u32; 2],
    what: &str,
    targets: [f64; 2],
    options: &Options,
    lines: &mut Vec<Line>,
) {
    let mut measured = [Vec::new(), Vec::new()];
    for _ in 0..options.rounds {
        for ((side, rate), reports) in sides.iter().zip(rates).zip(&mut measured) {
            let rate = rate.max(1);
            let pushes = rate.saturating_mul(options.seconds).min(options.pushes);
            let report = side.flood(pushes, Pace::PerSecond(rate)).await;
            let task = bare::Task::PerSecond(rate);
            let bare = bare::spawn(&side.world, task, pushes, options.devices).await;
            reports.push((report, bare.latency));
        }
    }
    for ((at, quantile), limit) in [0.5, 0.99].into_iter().enumerate().zip(targets) {
        let question = format!("p{:.0} {what}, ms", quantile * 100.0);
        let [first, second] = &measured;
        let bare: Vec<f64> = [first, second]
            .into_iter()
            .flatten()
            .map(|(_, bare)| bare[at])
            .collect();
        lines.push(Line::shown(
            &question,
            "bare h2",
            Spread::of(&bare, |millis| *millis),
        ));
        for (side, reports) in sides.iter().zip(&measured) {
            let whole = Spread::of(reports, |(report, _)| {
                f64::from(report.quantile_micros(quantile)) / 1000.0
            });
            lines.push(Line::shown(&question, side.name, whole));
            let added = Spread::of(reports, |(report, bare)| {
                f64::from(report.quantile_micros(quantile)) / 1000.0 - bare[at]
            });
            let late = Spread::of(reports, |(report, _)| {
                f64::from(report.lateness_quantile_micros(quantile)) / 1000.0
            });
            let line = Line::shown(&format!("{question}, added"), side.name, added);
            let line = match limit.is_finite() {
                true => line.compared(3, limit, Target::AtMost(limit)),
                false => line,
            };
            lines.push(Line {
                late: Some(late.median),
                ..line
            });
        }
    }
}
