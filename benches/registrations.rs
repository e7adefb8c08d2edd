//! Question: how many registrations does the service make durable in a second, and how long does one take,
//! while pushes go on at half of what the machine does?
//!
//! Unit: registrations per second, and milliseconds from when a registration was due to its answer. An answer
//! is given once the registration is on the disk.
//!
//! A whole server runs as a process of its own, as a component; the simulated server whose users register
//! publishes at the same time, on the same stream. Both loops run beside pushes at half of the rate that a
//! round without registrations reached.
//!
//! - Closed loop: `--outstanding` registrations without an answer at a time: how many there can be.
//! - Open loop: 5000 a second whatever is unanswered: how long one takes at the rate that is to be reached.
//!
//! The disk is the one of the directory for temporary files (`TMPDIR`): one in memory makes nothing durable,
//! which is said.
//!
//! ```sh
//! cargo bench --bench registrations -- --seconds 10 --rounds 3 --json target/registrations.json
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
#[path = "push_throughput/table.rs"]
mod table;

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use campanile::dev::world::{Plan, Way, World};
use clap::Parser;
use messages::{DeviceToken, NodeId, Secret};
use simulators::server::{Flood, Pace, PublishShape, RegisterDevice};
use tokio::task::JoinSet;

use process::Service;
use table::{Line, Spread, Target};

/// What is to be reached, and the rate of the open loop.
const RATE: f64 = 5_000.0;
const P99_MILLIS: f64 = 50.0;
/// Registrations that the simulator may have unanswered, with room for what else it asks.
const UNANSWERED_MAX: usize = 4_000;
/// Users have as many devices as people have.
const DEVICES_PER_USER: u32 = 2;
/// `f_type` of a file system in memory (statfs(2)).
const TMPFS: i64 = 0x0102_1994;

/// Registrations beside pushes.
#[derive(Debug, Parser)]
struct Options {
    /// Seconds of a round.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Rounds; the median is shown, with the least and the most beside it.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Registrations without an answer at a time in the closed loop.
    #[arg(long, default_value_t = 256)]
    outstanding: usize,
    /// Devices pushed to in turn.
    #[arg(long, default_value_t = 1_000)]
    devices: u32,
    /// Pushes of the round that finds out what the machine does.
    #[arg(long, default_value_t = 50_000)]
    pushes: u32,
    /// Writes the figures to a file as JSON, with the machine and the commit.
    #[arg(long)]
    json: Option<PathBuf>,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a round showed.
struct Round {
    /// Registrations per second.
    rate: f64,
    p99_millis: f64,
    /// The p99 of the pushes meanwhile.
    pushes_p99_millis: f64,
}

struct Bench {
    world: World,
    service: Service,
    devices: Vec<(NodeId, Secret)>,
    next: Cell<u32>,
}

fn main() {
    let options = Options::parse();
    actix_rt::System::new().block_on(measure(&options));
}

async fn measure(options: &Options) {
    let mut bench = Bench::start().await;
    for _ in 0..options.devices {
        let answer = bench.world.chat.register.send(bench.device());
        let device = answer.await.unwrap().unwrap();
        bench.devices.push((device.node, device.secret));
    }
    let directory = bench.world.directory();
    let is_durable = rustix::fs::statfs(directory).unwrap().f_type != TMPFS;
    // Connections to APNs begin with one stream; then what the machine does.
    let pushes = options.pushes;
    bench.flood(pushes / 10, Pace::Outstanding(500)).await;
    let most = bench.flood(pushes, Pace::Outstanding(500)).await.rate();
    let half = (most / 2.0).max(1.0) as u32;

    let (mut closed, mut open) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let outstanding = options.outstanding;
        let make = bench.as_many_as_go(options.seconds, outstanding);
        closed.push(bench.beside(half, options.seconds, make).await);
        let make = bench.at_rate(options.seconds);
        open.push(bench.beside(half, options.seconds, make).await);
    }
    let way = "component";
    let lines = vec![
        Line::shown(
            "registrations/s",
            way,
            Spread::of(&closed, |round| round.rate),
        )
        .compared(7, RATE, Target::AtLeast(RATE)),
        Line::shown(
            "p99 at 5000/s, ms",
            way,
            Spread::of(&open, |round| round.p99_millis),
        )
        .compared(7, P99_MILLIS, Target::AtMost(P99_MILLIS)),
        Line::shown(
            "reached of 5000/s",
            way,
            Spread::of(&open, |round| round.rate),
        ),
        Line::shown(
            "p99 of pushes meanwhile, ms",
            way,
            Spread::of(&open, |round| round.pushes_p99_millis),
        ),
    ];
    println!(
        "\n{} rounds of {} s beside {half} pushes/s (half of {most:.0}), {} unanswered in the closed loop\n",
        options.rounds, options.seconds, options.outstanding,
    );
    table::print(&lines);
    if !is_durable {
        println!(
            "\n{} is in memory: nothing was durable",
            directory.display()
        );
    }
    if let Some(file) = &options.json {
        let options = serde_json::json!({
            "seconds": options.seconds,
            "rounds": options.rounds,
            "outstanding": options.outstanding,
            "pushes_per_second": half,
            "durable": is_durable,
        });
        table::write(file, &options, &lines);
    }
    bench.service.stop().await;
    bench.world.stop().await;
}

impl Bench {
    async fn start() -> Self {
        let listen: Vec<SocketAddr> = vec![(Ipv4Addr::LOCALHOST, 0).into()];
        let world = World::start(Plan {
            way: Way::Component,
            listen,
            ..Plan::default()
        })
        .await
        .unwrap();
        // One server has the users of many here.
        let environment = [
            ("CAMPANILE__XMPP__REGISTRATIONS_PER_STREAM_MAX", "4096"),
            (
                "CAMPANILE__REGISTRATION__REGISTRATIONS_PER_OWNER_MAX",
                "10000000",
            ),
            ("CAMPANILE__REGISTRATION__REGISTRATIONS_MAX", "10000000"),
        ];
        let service = Service::start_with(world.config_file(), &environment).await;
        world.apple.control.set_recording(false);
        Self {
            world,
            service,
            devices: Vec::new(),
            next: Cell::new(0),
        }
    }

    /// One that has not been registered.
    fn device(&self) -> RegisterDevice {
        let n = self.next.replace(self.next.get() + 1);
        RegisterDevice {
            user: format!("user{}", n / DEVICES_PER_USER),
            node: NodeId::new(&format!("6A1B0C1E-0000-4000-8000-{n:012X}")).unwrap(),
            device_token: DeviceToken::parse(&format!("{n:08x}").repeat(8)).unwrap(),
        }
    }

    async fn flood(&self, pushes: u32, pace: Pace) -> simulators::server::FloodReport {
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

    /// Registers while pushes go on.
    async fn beside(
        &self,
        rate: u32,
        seconds: u32,
        register: impl Future<Output = Round>,
    ) -> Round {
        let flood = self.flood(rate * seconds, Pace::PerSecond(rate));
        let (round, pushes) = tokio::join!(register, flood);
        Round {
            pushes_p99_millis: f64::from(pushes.quantile_micros(0.99)) / 1_000.0,
            ..round
        }
    }

    async fn as_many_as_go(&self, seconds: u32, outstanding: usize) -> Round {
        let (began, seconds) = (Instant::now(), Duration::from_secs(seconds.into()));
        let mut asked = JoinSet::new();
        let mut took = Vec::new();
        while began.elapsed() < seconds {
            while asked.len() < outstanding {
                self.register(&mut asked, Instant::now());
            }
            took.push(asked.join_next().await.unwrap().unwrap());
        }
        took.extend(asked.join_all().await);
        round(began, took)
    }

    async fn at_rate(&self, seconds: u32) -> Round {
        let (began, all) = (Instant::now(), (f64::from(seconds) * RATE) as usize);
        let due = |n: usize| began + Duration::from_secs_f64(n as f64 / RATE);
        let (mut asked, mut took) = (JoinSet::new(), Vec::new());
        let mut next = 0;
        while next < all {
            while next < all && due(next) <= Instant::now() && asked.len() < UNANSWERED_MAX {
                self.register(&mut asked, due(next));
                next += 1;
            }
            while let Some(answered) = asked.try_join_next() {
                took.push(answered.unwrap());
            }
            // A millisecond or two late, which counts as the service's.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        took.extend(asked.join_all().await);
        round(began, took)
    }

    /// Registers a device that was due then. Gives how long it took, and when it was done.
    fn register(&self, asked: &mut JoinSet<(Duration, Instant)>, due: Instant) {
        let answer = self.world.chat.register.send(self.device());
        asked.spawn_local(async move {
            answer.await.unwrap().expect("a registration is refused");
            (due.elapsed(), Instant::now())
        });
    }
}

fn round(began: Instant, mut took: Vec<(Duration, Instant)>) -> Round {
    let last = took.iter().map(|(_, done)| *done).max().unwrap();
    took.sort_unstable();
    let p99 = took[(took.len() - 1) * 99 / 100].0;
    Round {
        rate: took.len() as f64 / last.duration_since(began).as_secs_f64(),
        p99_millis: p99.as_secs_f64() * 1_000.0,
        pushes_p99_millis: 0.0,
    }
}
