//! The budget of the hot path: how often a push allocates, counted over the whole process of a service that
//! is pushed to without a pause.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a test fails by panicking and speaks to a person"
)]

use std::io::BufRead as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use campanile::dev::world::{Plan, World};
use campanile::wiring::Extras;
use campanile::{Settings, serve};
use messages::{Clock, DeviceToken, NodeId};
use simulators::server::{Flood, Pace, PublishShape, RegisterDevice};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Allocations that a push may cost with 256 outstanding, all libraries included: h2 has six (the copies of path
/// and authority, the answer's headers), the request's head two. What is above is a leak of somebody's
/// attention.
const BUDGET: f64 = 16.0;

const PUSHES: u32 = 4_000;
const DEVICES: u32 = 100;
const NAME: &str = "a_push_allocates_within_its_budget";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, config] = arguments.as_slice()
        && flag == "--serve"
    {
        return serve(Path::new(config));
    }
    // What those who run tests ask of each.
    if arguments.iter().any(|argument| argument == "--list") {
        if !arguments.iter().any(|argument| argument == "--ignored") {
            println!("{NAME}: test");
        }
        return;
    }
    let per_push = actix_rt::System::new().block_on(measure());
    println!("{per_push:.2} allocations a push, {BUDGET} allowed");
    assert!(per_push <= BUDGET, "{per_push:.2} allocations a push");
    println!("test {NAME} ... ok");
}

/// The service; tells for each line that it is sent how often it has allocated.
fn serve(config: &Path) {
    let _profiler = match std::env::var_os("DHAT_FILE") {
        Some(file) => dhat::Profiler::builder()
            .file_name(file)
            .trim_backtraces(Some(24))
            .build(),
        None => dhat::Profiler::builder().testing().build(),
    };
    actix_rt::System::new().block_on(async {
        let settings = Settings::load(config).unwrap();
        let listeners = xmpp::listener::bind(&settings.xmpp).unwrap();
        println!("{}", listeners.first().unwrap().local_addr().unwrap());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                line.unwrap();
                println!("{}", dhat::HeapStats::get().total_blocks);
            }
            stop.send(()).unwrap();
        });
        let clock = Clock::system();
        let stop = async { stopped.await.unwrap() };
        serve::run(settings, listeners, clock, Extras::default(), stop)
            .await
            .unwrap();
    });
}

struct Counted {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    address: SocketAddr,
}

impl Counted {
    async fn start(config: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("--serve")
            .arg(config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines.next_line().await.unwrap().unwrap().parse().unwrap();
        Self {
            child,
            stdin,
            lines,
            address,
        }
    }

    async fn allocations(&mut self) -> u64 {
        self.stdin.write_all(b"\n").await.unwrap();
        let line = self.lines.next_line().await.unwrap();
        line.unwrap().parse().unwrap()
    }

    async fn stop(mut self) {
        drop(self.stdin);
        assert!(self.child.wait().await.unwrap().success());
    }
}

async fn measure() -> f64 {
    let world = World::start(Plan {
        listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
        ..Plan::default()
    })
    .await
    .unwrap();
    let mut service = Counted::start(world.config_file()).await;
    world.service_is_at(service.address).await;
    world.apple.control.set_recording(false);
    let mut devices = Vec::new();
    for n in 0..DEVICES {
        let request = RegisterDevice {
            user: format!("user{n}"),
            node: NodeId::new(&format!("node-{n}")).unwrap(),
            device_token: DeviceToken::parse(&format!("{n:08x}").repeat(8)).unwrap(),
        };
        let device = world.chat.register.send(request).await.unwrap().unwrap();
        devices.push((device.node, device.secret));
    }
    let flood = || Flood {
        devices: devices.clone(),
        pushes: PUSHES,
        pace: Pace::Outstanding(256),
        streams: 1,
        has_body: true,
        shape: PublishShape::Prosody,
        patience: Duration::from_secs(60),
    };
    // Buffers grow to their size, and connections to their streams.
    let warm = world.chat.flood.send(flood()).await.unwrap().unwrap();
    assert!(warm.is_clean(), "{warm:?}");
    let before = service.allocations().await;
    let report = world.chat.flood.send(flood()).await.unwrap().unwrap();
    assert!(report.is_clean(), "{report:?}");
    let after = service.allocations().await;
    service.stop().await;
    world.stop().await;
    (after - before) as f64 / f64::from(PUSHES)
}
