//! Question: what does a push cost through the whole server, and how far is that from the least it can
//! cost?
//!
//! Unit: pushes per second, and CPU seconds of the process per 100 000 pushes.
//!
//! The whole server runs as a process of its own: publishes come in over s2s with TLS on loopback, and
//! go out over HTTP/2 with TLS on loopback to the strict simulator. Beside it, in the same run and against
//! the same simulator, a bare `h2` client in a process of its own sends the same requests and does nothing
//! else. Only the ratio means anything on another machine.
//!
//! ```sh
//! cargo bench --bench push_throughput -- --pushes 100000 --rounds 5
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    missing_docs,
    unreachable_pub,
    reason = "a bench fails by panicking and speaks to a person"
)]

#[path = "push_throughput/bare.rs"]
mod bare;
#[path = "push_throughput/process.rs"]
mod process;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use campanile::dev::world::{Plan, World};
use clap::Parser;
use messages::{DeviceToken, NodeId};
use simulators::apple;
use simulators::server::{Flood, Pace, PublishShape, RegisterDevice};

use process::Service;

/// Pushes through the whole server, and through a bare h2 client.
#[derive(Debug, Parser)]
struct Options {
    /// Pushes in a round.
    #[arg(long, default_value_t = 50_000)]
    pushes: u32,
    /// Rounds; the median is shown, with the least and the most beside it.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Publishes without an answer at a time, and requests in flight of the bare client.
    #[arg(long, default_value_t = 256)]
    outstanding: u32,
    /// Devices pushed to in turn.
    #[arg(long, default_value_t = 1_000)]
    devices: u32,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
    /// Runs the bare client instead: address, root, key file, pushes.
    #[arg(long, num_args = 4, hide = true)]
    bare: Option<Vec<String>>,
}

/// What a round showed.
#[derive(Clone, Copy)]
struct Figures {
    /// Pushes per second.
    rate: f64,
    /// CPU seconds of the process per 100 000 pushes.
    cpu: f64,
    /// Median time from publish to answer in microseconds; 0 for the bare client.
    p50_micros: u32,
    /// The same, 99th percentile.
    p99_micros: u32,
}

fn main() {
    let options = Options::parse();
    let system = actix_rt::System::new();
    if let Some(bare) = &options.bare {
        let figures = system.block_on(bare::run(bare, options.outstanding));
        println!("{} {}", figures.rate, figures.cpu);
    } else {
        system.block_on(compare(&options));
    }
}

async fn compare(options: &Options) {
    let listen: Vec<SocketAddr> = vec![(Ipv4Addr::LOCALHOST, 0).into()];
    // The bare client makes a token of its own each round, as several processes of one team would.
    let apple = apple::Config {
        token_updates_limited: false,
        ..apple::Config::default()
    };
    let world = World::start(Plan {
        apple,
        listen,
        ..Plan::default()
    })
    .await
    .unwrap();
    let service = Service::start(world.config_file()).await;
    world.service_is_at(service.address).await;

    let mut devices = Vec::new();
    for n in 0..options.devices {
        let request = RegisterDevice {
            user: format!("user{n}"),
            node: NodeId::new(&format!("node-{n}")).unwrap(),
            device_token: DeviceToken::parse(&format!("{n:08x}").repeat(8)).unwrap(),
        };
        let device = world.chat.register.send(request).await.unwrap().unwrap();
        devices.push((device.node, device.secret));
    }
    let flood = |pushes| Flood {
        devices: devices.clone(),
        pushes,
        pace: Pace::Outstanding(options.outstanding),
        streams: 1,
        has_body: true,
        shape: PublishShape::Prosody,
        patience: Duration::from_secs(60),
    };
    world.apple.control.set_recording(false);
    // The first connection to APNs starts with one stream; that is not the question.
    world
        .chat
        .flood
        .send(flood(options.pushes.min(2_000)))
        .await
        .unwrap()
        .unwrap();

    let (mut whole, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let before = service.cpu();
        let report = world
            .chat
            .flood
            .send(flood(options.pushes))
            .await
            .unwrap()
            .unwrap();
        let cpu = service.cpu() - before;
        assert!(
            report.is_clean(),
            "not every push was answered once with result: {report:?}"
        );
        whole.push(Figures {
            rate: report.rate(),
            cpu: cpu.as_secs_f64() * 100_000.0 / f64::from(options.pushes),
            p50_micros: report.quantile_micros(0.5),
            p99_micros: report.quantile_micros(0.99),
        });
        bare.push(bare::spawn(&world, options.pushes, options.outstanding).await);
    }

    println!(
        "\n{} rounds of {} pushes, {} outstanding, {} devices, {} cores; median (least to most)\n",
        options.rounds,
        options.pushes,
        options.outstanding,
        options.devices,
        campanile::lanes::cores(),
    );
    println!(
        "{:<22}{:>34}{:>38}",
        "", "pushes/s", "CPU s per 100 000 pushes"
    );
    let whole_rate = row("whole server", &whole);
    let bare_rate = row("bare h2 client", &bare);
    println!(
        "\nratio, whole server to bare client: {:.2} of the rate, {:.2} times the CPU",
        whole_rate.rate / bare_rate.rate,
        whole_rate.cpu / bare_rate.cpu,
    );
    println!(
        "from publish to answer, all outstanding: p50 {:.1} ms, p99 {:.1} ms",
        f64::from(whole_rate.p50_micros) / 1000.0,
        f64::from(whole_rate.p99_micros) / 1000.0,
    );
    service.stop().await;
    world.stop().await;
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
    let middle = figures.len() / 2;
    let (least, most) = (0, figures.len() - 1);
    println!(
        "{name:<22}{:>34}{:>38}",
        format!(
            "{:.0} ({:.0} to {:.0})",
            rate[middle], rate[least], rate[most]
        ),
        format!("{:.2} ({:.2} to {:.2})", cpu[middle], cpu[least], cpu[most]),
    );
    let micros = |of: fn(&Figures) -> f64| sorted(of)[middle] as u32;
    Figures {
        rate: rate[middle],
        cpu: cpu[middle],
        p50_micros: micros(|figures| f64::from(figures.p50_micros)),
        p99_micros: micros(|figures| f64::from(figures.p99_micros)),
    }
}
