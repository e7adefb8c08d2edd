//! Question: what does the journal cost a push?
//!
//! Unit: pushes per second at full load, and CPU seconds of the process per 100 000 pushes, at full load and at
//! a rate of 10 000 per second; each with `journal.record` at `pushes` and at `off`, and their ratio.
//!
//! Two whole servers run as processes of their own, each between its own simulators, and take turns, so that
//! what else the machine does meets both. Only the ratios mean anything on another machine.
//!
//! ```sh
//! cargo bench --bench journal_cost -- --pushes 50000 --rounds 5
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "a bench fails by panicking and speaks to a person"
)]

#[path = "push_throughput/process.rs"]
mod process;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use campanile::dev::world::{Plan, World};
use clap::Parser;
use messages::{DeviceToken, NodeId, Secret};
use simulators::server::{Flood, Pace, PublishShape, RegisterDevice};

use process::Service;

/// The server with its journal, and without.
#[derive(Debug, Parser)]
struct Options {
    /// Pushes in a round.
    #[arg(long, default_value_t = 50_000)]
    pushes: u32,
    /// Rounds; the median is shown, with the least and the most beside it.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Pushes per second of the rounds that are not at full load.
    #[arg(long, default_value_t = 10_000)]
    rate: u32,
    /// Devices pushed to in turn.
    #[arg(long, default_value_t = 1_000)]
    devices: u32,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A server with its world.
struct Side {
    world: World,
    service: Service,
    devices: Vec<(NodeId, Secret)>,
}

/// What a round showed.
#[derive(Clone, Copy)]
struct Figures {
    rate: f64,
    cpu: f64,
}

impl Side {
    async fn start(record: &str, devices: u32) -> Self {
        let listen: Vec<SocketAddr> = vec![(Ipv4Addr::LOCALHOST, 0).into()];
        let world = World::start(Plan {
            listen,
            ..Plan::default()
        })
        .await
        .unwrap();
        let environment = [("CAMPANILE__JOURNAL__RECORD", record)];
        let service = Service::start_with(world.config_file(), &environment).await;
        world.service_is_at(service.address).await;
        world.apple.control.set_recording(false);
        let mut registered = Vec::new();
        for n in 0..devices {
            let request = RegisterDevice {
                user: format!("user{n}"),
                node: NodeId::new(&format!("C0FFEE00-0000-4000-8000-{n:012}")).unwrap(),
                device_token: DeviceToken::parse(&format!("{n:08x}").repeat(8)).unwrap(),
            };
            let device = world.chat.register.send(request).await.unwrap().unwrap();
            registered.push((device.node, device.secret));
        }
        Self {
            world,
            service,
            devices: registered,
        }
    }

    async fn round(&self, pushes: u32, pace: Pace) -> Figures {
        let before = self.service.cpu();
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
        let cpu = self.service.cpu() - before;
        Figures {
            rate: report.rate(),
            cpu: cpu.as_secs_f64() * 100_000.0 / f64::from(pushes),
        }
    }
}

fn main() {
    let options = Options::parse();
    actix_rt::System::new().block_on(compare(&options));
}

async fn compare(options: &Options) {
    let off = Side::start("off", options.devices).await;
    let on = Side::start("pushes", options.devices).await;
    // The first connection to APNs starts with one stream; that is not the question.
    for side in [&off, &on] {
        side.round(options.pushes.min(2_000), Pace::Outstanding(64))
            .await;
    }
    let paces = [
        ("full load".to_owned(), Pace::Outstanding(256)),
        (
            format!("{} per second", options.rate),
            Pace::PerSecond(options.rate),
        ),
    ];
    for (name, pace) in paces {
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            without.push(off.round(options.pushes, pace).await);
            with.push(on.round(options.pushes, pace).await);
        }
        println!(
            "\n{name}: {} rounds of {} pushes in turn; median (least to most)\n",
            options.rounds, options.pushes
        );
        println!(
            "{:<20}{:>30}{:>34}",
            "journal.record", "pushes/s", "CPU s per 100 000 pushes"
        );
        let without = row("off", &without);
        let with = row("pushes", &with);
        println!(
            "\nwith the journal to without: {:.3} of the rate, {:.3} times the CPU",
            with.rate / without.rate,
            with.cpu / without.cpu,
        );
    }
    for side in [off, on] {
        side.service.stop().await;
        side.world.stop().await;
    }
}

/// Prints one row and gives the medians.
fn row(name: &str, figures: &[Figures]) -> Figures {
    let sorted = |of: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = figures.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let rate = sorted(|figures| figures.rate);
    let cpu = sorted(|figures| figures.cpu);
    let (middle, last) = (figures.len() / 2, figures.len() - 1);
    println!(
        "{name:<20}{:>30}{:>34}",
        format!("{:.0} ({:.0} to {:.0})", rate[middle], rate[0], rate[last]),
        format!("{:.2} ({:.2} to {:.2})", cpu[middle], cpu[0], cpu[last]),
    );
    Figures {
        rate: rate[middle],
        cpu: cpu[middle],
    }
}
