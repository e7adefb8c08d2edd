//! What comes of pushes while APNs misbehaves: the pools of a lane against the strict simulator.
//!
//! Each fault strikes while pushes go through, each for a device of its own. The numbers grow with
//! `CAMPANILE_FAULT_PUSHES` (pushes per fault) and in a release build, where the times are those of the
//! table; in a test build they are a quarter.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "tests fail by panicking"
)]

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use actix::{Actor, Handler};
use actix_rt::Arbiter;
use apns::{AppConfig, Config, Names, Upstreams, pool, provider_tokens};
use messages::{
    AppId, Clock, DeadPushBatch, Deliver, DeliverBatch, DeviceToken, Domain, Drain,
    NotificationHint, Origin, OutcomeBatch, Probe, PushOutcome, RegistrationKey, RejectedTokens,
    Rejection, SubscribeWithdrawals, Ticket, TouchBatch, UnixMillis,
};
use simulators::apple::{self, Faults, KnownCertificate, KnownKey, Reason, Verdict};
use simulators::{Authority, Identity, Kind, SigningKey};
use tempfile::TempDir;
use testkit::Collector;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{RwLock, oneshot};
use tokio::time::{sleep, timeout};

const TOPIC: &str = "org.example.demo";
/// On the border of a slot of provider tokens.
const NOW: u64 = 1_767_225_600;
/// How long the last outcome may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How much is sent, and how long a second of the table is.
#[derive(Clone, Copy)]
struct Scale {
    pushes: u32,
    second: Duration,
}

impl Scale {
    fn of_this_run() -> Self {
        let given = std::env::var("CAMPANILE_FAULT_PUSHES");
        let given = given.ok().and_then(|pushes| pushes.parse().ok());
        let full = given.is_some() || !cfg!(debug_assertions);
        Self {
            pushes: given.unwrap_or(if full { 20_000 } else { 2_000 }),
            second: Duration::from_millis(if full { 1_000 } else { 250 }),
        }
    }
}

/// Pools, signer and simulator. The simulator has a thread of its own.
struct Rig {
    apple: apple::Handles,
    pool: pool::Handles,
    outcomes: Collector<OutcomeBatch>,
    _touches: Collector<TouchBatch>,
    rejected: Collector<RejectedTokens>,
    _withdrawals: Collector<SubscribeWithdrawals>,
    clock: Clock,
    look_ups_fail: Arc<AtomicBool>,
    arbiter: Arbiter,
    _directory: TempDir,
}

/// Answers pushes to dead tokens as a store does in which nobody has registered again.
struct Store;

impl Actor for Store {
    type Context = actix::Context<Self>;
}

impl Handler<DeadPushBatch> for Store {
    type Result = ();

    fn handle(&mut self, batch: DeadPushBatch, _: &mut Self::Context) {
        let gone = PushOutcome::Rejected(Rejection::Unregistered);
        let told = batch.items.iter().map(|push| (push.ticket, gone));
        let lost = batch.origin.tell(told.collect());
        assert_eq!(lost, 0);
    }
}

/// Who compares times wants no other test beside it.
static COMPARING: RwLock<()> = RwLock::const_new(());

/// What differs between rigs.
#[derive(Default)]
struct Setting {
    faults: Faults,
    config: Config,
    /// A second app `broken`, whose key the simulator does not know.
    with_broken: bool,
    proxy: Option<SocketAddr>,
    by_certificate: bool,
}

impl Rig {
    async fn start(setting: Setting) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        // Certificates are checked by the machine's clock, provider tokens by this one.
        let authority = Authority::new(&Clock::system()).unwrap();
        let clock = Clock::manual(UnixMillis(NOW * 1_000));
        let root = authority.write_root(at, "root").unwrap();
        let key = SigningKey::new("DEF123GHIJ", "ABC123DEFG").unwrap();
        let known = KnownKey {
            id: key.id().clone(),
            public_key: key.public_key().to_vec(),
            topics: vec![TOPIC.to_owned()],
        };
        let client = authority.issue(&["client"], Kind::ServerAndClient).unwrap();
        let edges = apple::Edges {
            identity: authority.issue(&["localhost"], Kind::ServerOnly).unwrap(),
            keys: vec![known],
            clock: clock.clone(),
        };
        let mut apple = apple::Config {
            faults: setting.faults,
            ..apple::Config::default()
        };
        if setting.by_certificate {
            apple.certificates = vec![KnownCertificate {
                der: client.chain()[0].to_vec(),
                topics: vec![TOPIC.to_owned()],
            }];
        }
        let arbiter = Arbiter::new();
        let (tell, told) = oneshot::channel();
        arbiter.spawn_fn(move || {
            let _gone = tell.send(apple::start(&apple, edges));
        });
        let apple = told.await.unwrap().unwrap();

        let mut demo = AppConfig {
            topic: TOPIC.to_owned(),
            endpoint: Some(format!("localhost:{}", apple.address.port())),
            ca_file: Some(root),
            proxy: setting.proxy.map(|proxy| format!("http://{proxy}")),
            ..AppConfig::default()
        };
        if setting.by_certificate {
            demo.certificate_file = Some(pem(at, &client));
        } else {
            demo.team_id = "DEF123GHIJ".to_owned();
            demo.key_id = "ABC123DEFG".to_owned();
            demo.key_file = key.write(at).unwrap();
        }
        let mut apps = BTreeMap::from([("demo".to_owned(), demo.clone())]);
        if setting.with_broken {
            let other = SigningKey::new("DEF123GHIJ", "ZZZ123DEFG").unwrap();
            let broken = AppConfig {
                key_id: "ZZZ123DEFG".to_owned(),
                key_file: other.write(at).unwrap(),
                ..demo
            };
            apps.insert("broken".to_owned(), broken);
        }
        let look_ups_fail = Arc::new(AtomicBool::new(false));
        let fail = Arc::clone(&look_ups_fail);
        let names = Names::new(move |_, port| {
            let found = if fail.load(Ordering::Relaxed) {
                Err(io::ErrorKind::NotFound.into())
            } else {
                Ok(vec![(Ipv4Addr::LOCALHOST, port).into()])
            };
            Box::pin(async { found })
        });
        let config = Config {
            token_dir: at.join("tokens"),
            ..setting.config
        };
        let upstreams = Upstreams::prepare_with(&config, &apps, clock.clone(), names)
            .unwrap_or_else(|errors| panic!("{errors:?}"));
        let signer = provider_tokens::start(&upstreams);
        let touches = Collector::start();
        let rejected = Collector::start();
        let withdrawals = Collector::start();
        let edges = pool::Edges {
            touch: touches.recipient(),
            rejected: rejected.recipient(),
            dead_pushes: Store.start().recipient(),
            journal: None,
            subscribe: signer.subscribe,
            refused: signer.refused,
            withdrawals: withdrawals.recipient(),
        };
        Self {
            apple,
            pool: pool::start(&upstreams, edges),
            outcomes: Collector::start(),
            _touches: touches,
            rejected,
            _withdrawals: withdrawals,
            clock,
            look_ups_fail,
            arbiter,
            _directory: directory,
        }
    }

    /// Delivers pushes to devices of their own.
    fn deliver(&self, app: &str, devices: std::ops::Range<u32>) {
        self.deliver_for("chat.test", app, devices);
    }

    /// The same, as a server wants it.
    fn deliver_for(&self, domain: &str, app: &str, devices: std::ops::Range<u32>) {
        let items = devices
            .map(|number| Deliver {
                ticket: Ticket {
                    slot: number,
                    generation: 1,
                },
                registration: RegistrationKey(u128::from(number).to_be_bytes()),
                app: AppId::new(app),
                device_token: device(number),
                acceptance: None,
                domain: Domain::new(domain),
                hint: NotificationHint {
                    message_count: None,
                    has_body: true,
                },
                content: None,
                trace: None,
            })
            .collect();
        let batch = DeliverBatch {
            origin: Origin::new(self.outcomes.recipient()),
            deadline: Instant::now() + Duration::from_secs(20),
            items,
        };
        self.pool.deliver.try_send(batch).unwrap();
    }

    /// The outcomes of so many pushes; each may have one.
    async fn outcomes(&mut self, count: u32) -> HashMap<u32, PushOutcome> {
        let mut told = HashMap::new();
        while told.len() < count as usize {
            let batch = timeout(PATIENCE, self.outcomes.take()).await.unwrap();
            for (ticket, outcome) in batch.items {
                let before = told.insert(ticket.slot, outcome);
                assert!(before.is_none(), "a second outcome for {}", ticket.slot);
            }
        }
        told
    }

    async fn counter(&self, name: &str) -> u64 {
        let health = self.pool.probe.send(Probe).await.unwrap();
        let found = health.counters.iter().find(|(counter, _)| *counter == name);
        found.unwrap().1
    }

    /// Lets all end, what was deferred too; no ticket is told again.
    async fn finish(mut self) {
        let deadline = Instant::now() + PATIENCE;
        let drained = self
            .pool
            .drain
            .send(Drain {
                deadline,
                farewell: Duration::from_secs(1),
            })
            .await
            .unwrap();
        assert_eq!(drained.abandoned, 0);
        assert!(self.outcomes.drain().is_empty(), "a second outcome");
        self.arbiter.stop();
    }
}

fn device(number: u32) -> DeviceToken {
    DeviceToken::parse(&format!("{number:08x}").repeat(8)).unwrap()
}

/// Certificate and key in one file, as it comes out of a conversion.
fn pem(directory: &std::path::Path, identity: &Identity) -> std::path::PathBuf {
    let file = directory.join("client.pem");
    let text = identity.chain_pem().to_owned() + identity.key_pem();
    std::fs::write(&file, text).unwrap();
    file
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    GoAwayEach100,
    DropEach500,
    ClosesAfterEach,
    RefusedEach50,
    DipAfterRefusals,
    Stall5s,
    HalfOpen,
    Unavailable20s,
    FailEach10,
    TlsRefused10s,
    DnsFails10s,
    TokenExpiredEarly,
}

impl Fault {
    const ALL: [Self; 13] = [
        Self::None,
        Self::GoAwayEach100,
        Self::DropEach500,
        Self::ClosesAfterEach,
        Self::RefusedEach50,
        Self::DipAfterRefusals,
        Self::Stall5s,
        Self::HalfOpen,
        Self::Unavailable20s,
        Self::FailEach10,
        Self::TlsRefused10s,
        Self::DnsFails10s,
        Self::TokenExpiredEarly,
    ];

    /// Whether it leaves requests of which nobody knows whether they were processed.
    const fn leaves_doubt(self) -> bool {
        matches!(
            self,
            Self::DropEach500 | Self::ClosesAfterEach | Self::HalfOpen
        )
    }

    /// What holds from the start.
    fn at_start(self) -> Faults {
        let none = Faults::default();
        match self {
            Self::GoAwayEach100 => Faults {
                go_away_every: 100,
                ..none
            },
            Self::DropEach500 => Faults {
                drop_every: 500,
                // So that some are processed whose answer is lost.
                latency_millis: 20,
                ..none
            },
            Self::ClosesAfterEach => Faults {
                close_after: 1,
                ..none
            },
            Self::RefusedEach50 => Faults {
                refuse_every: 50,
                ..none
            },
            Self::DipAfterRefusals => Faults {
                dip_after_refusal: true,
                ..none
            },
            Self::FailEach10 => Faults {
                fail_every: 10,
                ..none
            },
            Self::TlsRefused10s => Faults {
                handshakes_refused: true,
                ..none
            },
            _ => none,
        }
    }

    /// Checks that the simulator did what the fault is called.
    fn struck(self, counters: &apple::Counters) {
        let refused = |reason| counters.refused.get(&reason).copied().unwrap_or(0);
        let strikes = match self {
            Self::GoAwayEach100 => counters.go_aways,
            Self::DropEach500 => counters.connections_dropped,
            Self::ClosesAfterEach => counters.connections_closed,
            Self::RefusedEach50 => counters.streams_refused,
            Self::DipAfterRefusals => refused(Reason::Unregistered),
            Self::HalfOpen => counters.connections - 1,
            Self::Unavailable20s => refused(Reason::ServiceUnavailable),
            Self::FailEach10 => refused(Reason::InternalServerError),
            Self::TlsRefused10s => counters.connections_failed,
            Self::TokenExpiredEarly => {
                assert_eq!(counters.provider_tokens, 2, "the old one and its successor");
                refused(Reason::ExpiredProviderToken)
            }
            Self::None | Self::Stall5s | Self::DnsFails10s => 1,
        };
        assert!(strikes > 0, "{self:?} never struck: {counters:?}");
    }

    /// What happens while pushes go through.
    async fn play(self, rig: &Rig, second: Duration) {
        let control = &rig.apple.control;
        match self {
            Self::Stall5s => {
                let frozen = true;
                control.set_faults(Faults {
                    frozen,
                    ..Faults::default()
                });
                sleep(second * 5).await;
                control.set_faults(Faults::default());
            }
            Self::HalfOpen => control.set_faults(Faults {
                frozen_connections: control.counters().connections,
                ..Faults::default()
            }),
            Self::Unavailable20s => {
                control.set_default_verdict(Verdict::refuse(Reason::ServiceUnavailable));
                sleep(second * 20).await;
                control.set_default_verdict(Verdict::Accept);
            }
            Self::TlsRefused10s => {
                sleep(second * 10).await;
                control.set_faults(Faults::default());
            }
            Self::DnsFails10s => {
                sleep(second * 10).await;
                rig.look_ups_fail.store(false, Ordering::Relaxed);
            }
            Self::TokenExpiredEarly => {
                // Old enough to be replaced, and young enough to be good, as APNs otherwise says.
                rig.clock.set(UnixMillis((NOW + 21 * 60) * 1_000));
                control.set_faults(Faults {
                    issued_at_min: NOW + 1,
                    ..Faults::default()
                });
            }
            _ => {}
        }
    }
}

/// Runs one fault and gives its line.
async fn row(fault: Fault, scale: Scale) -> String {
    let mut rig = Rig::start(Setting {
        faults: fault.at_start(),
        ..Setting::default()
    })
    .await;
    let dead = if fault == Fault::DipAfterRefusals {
        for number in (0..scale.pushes).step_by(10) {
            let verdict = Verdict::unregistered(UnixMillis(NOW * 1_000));
            rig.apple.control.set_verdict(&device(number), verdict);
        }
        scale.pushes.div_ceil(10)
    } else {
        0
    };
    if fault == Fault::DnsFails10s {
        rig.look_ups_fail.store(true, Ordering::Relaxed);
    }
    let start = Instant::now();
    // A quarter first, then the fault, then the rest in ten parts while it lasts.
    let first = scale.pushes / 4;
    rig.deliver("demo", 0..first);
    let strikes_at_once = matches!(fault, Fault::TlsRefused10s | Fault::DnsFails10s);
    let mut told = HashMap::new();
    if !strikes_at_once {
        told = rig.outcomes(first).await;
    }
    let parts = async {
        let part = (scale.pushes - first) / 10;
        for index in 0..10 {
            let end = if index == 9 {
                scale.pushes
            } else {
                first + part * (index + 1)
            };
            rig.deliver("demo", first + part * index..end);
            sleep(scale.second / 5).await;
        }
    };
    tokio::join!(parts, fault.play(&rig, scale.second));
    let left = scale.pushes - u32::try_from(told.len()).unwrap();
    told.extend(rig.outcomes(left).await);
    let elapsed = start.elapsed();
    assert_eq!(told.len(), scale.pushes as usize, "{fault:?}");

    // What was deferred goes on; wait for it, so that the devices can be counted.
    let waiting = async {
        while rig.counter("apns_pushes_queued").await + rig.counter("apns_pushes_in_flight").await
            > 0
        {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap();
    let resent = rig.counter("apns_pushes_resent_total").await;
    let repeated = rig.counter("apns_pushes_repeated_total").await;
    let expired = rig.counter("apns_pushes_expired_total").await;
    let mut by_outcome: BTreeMap<String, u32> = BTreeMap::new();
    for outcome in told.values() {
        *by_outcome.entry(format!("{outcome:?}")).or_default() += 1;
    }
    let control = &rig.apple.control;
    let tokens: Vec<DeviceToken> = (0..scale.pushes)
        .filter(|number| dead == 0 || number % 10 != 0)
        .map(device)
        .collect();
    let coverage = control.coverage(&tokens);
    let duplicates = control.duplicates();
    let counters = control.counters();
    fault.struck(&counters);
    assert_eq!(counters.streams_over_limit, 0, "{fault:?}");
    let count = |outcome: PushOutcome| told.values().filter(|told| **told == outcome).count();
    let gone = count(PushOutcome::Rejected(Rejection::Unregistered));
    let delivered = count(PushOutcome::Accepted) + count(PushOutcome::Deferred);
    assert_eq!(gone, dead as usize, "{fault:?}: {by_outcome:?}");
    assert_eq!(delivered, tokens.len(), "{fault:?}: {by_outcome:?}");
    assert_eq!(coverage.missing, 0, "{fault:?}: {coverage:?}");
    assert_eq!(
        duplicates.by_device, duplicates.by_id,
        "{fault:?}: a repeat had an id of its own"
    );
    assert!(
        duplicates.by_device <= resent,
        "{fault:?}: {duplicates:?}, {resent} resent"
    );
    if !fault.leaves_doubt() {
        assert_eq!(resent, 0, "{fault:?}: fate was known");
    }
    if fault == Fault::HalfOpen {
        assert!(elapsed < Duration::from_secs(30), "found after {elapsed:?}");
        assert!(resent > 0, "nothing was in flight");
    }
    rig.finish().await;
    format!(
        "{fault:?}: {} pushes in {:.1} s: {by_outcome:?}; sent again {repeated} unprocessed, {resent} in \
         doubt; {expired} not fresh any more; at the devices {} once, {} more than once, {} not",
        scale.pushes,
        elapsed.as_secs_f64(),
        coverage.once,
        coverage.repeated,
        coverage.missing,
    )
}

#[actix_rt::test]
async fn no_push_is_lost_whatever_apns_does() {
    let _beside_others = COMPARING.read().await;
    let scale = Scale::of_this_run();
    let rows = Fault::ALL.map(|fault| actix_rt::spawn(row(fault, scale)));
    for row in rows {
        println!("{}", row.await.unwrap());
    }
}

/// Pushes of the healthy app that wait for their answer at a time.
const OUTSTANDING: u32 = 40;

/// What one round of the healthy app came to.
struct Round {
    per_second: f64,
    p99: Duration,
}

impl Rig {
    /// Pushes of the healthy app, each as soon as one before it was answered, and beside each, if wanted,
    /// one of the broken app.
    async fn round(&mut self, base: u32, pushes: u32, with_broken: bool) -> Round {
        let start = Instant::now();
        let mut sent_at = Vec::new();
        let mut took = Vec::new();
        let mut room = OUTSTANDING;
        let mut refused = 0;
        let broken = if with_broken { pushes } else { 0 };
        let mut elapsed = Duration::ZERO;
        while took.len() < pushes as usize || refused < broken {
            let next = u32::try_from(sent_at.len()).unwrap();
            let more = room.min(pushes - next);
            if more > 0 {
                if with_broken {
                    let first = base + 500_000 + next;
                    self.deliver("broken", first..first + more);
                }
                self.deliver("demo", base + next..base + next + more);
                sent_at.resize((next + more) as usize, Instant::now());
                room -= more;
            }
            let batch = timeout(PATIENCE, self.outcomes.take()).await.unwrap();
            for (ticket, outcome) in batch.items {
                let index = ticket.slot - base;
                if index < 500_000 {
                    assert_eq!(outcome, PushOutcome::Accepted);
                    took.push(sent_at[index as usize].elapsed());
                    room += 1;
                    elapsed = start.elapsed();
                } else {
                    assert_eq!(outcome, PushOutcome::Rejected(Rejection::Unavailable));
                    refused += 1;
                }
            }
        }
        took.sort_unstable();
        Round {
            per_second: f64::from(pushes) / elapsed.as_secs_f64(),
            p99: took[took.len() * 99 / 100],
        }
    }
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One app alone and beside another one whose key is refused, in pairs of short rounds that follow each other, either
/// first: what else this machine does strikes both of a pair, or few pairs of many. APNs answers after a tenth of a
/// second, as it may: what is compared is what the one app does to the other, not how fast this machine is.
#[actix_rt::test]
async fn a_broken_key_is_its_own_apps_trouble() {
    const PAIRS: u32 = 21;
    const PUSHES: u32 = 240;
    let _alone = COMPARING.write().await;
    let mut rig = Rig::start(Setting {
        with_broken: true,
        faults: Faults {
            latency_millis: 100,
            ..Faults::default()
        },
        config: Config {
            // So that it is tried again and again.
            breaker_seconds: 1,
            ..Config::default()
        },
        ..Setting::default()
    })
    .await;
    // Connections open and prove themselves.
    rig.round(0, PUSHES, true).await;
    let before = rig.apple.control.counters().refused_total();
    let mut ratios: [Vec<f64>; 2] = Default::default();
    for pair in 1..=PAIRS {
        let base = pair * 2_000_000;
        let broken_first = pair % 2 == 1;
        let first = rig.round(base, PUSHES, broken_first).await;
        let second = rig.round(base + 1_000_000, PUSHES, !broken_first).await;
        let (alone, beside) = match broken_first {
            true => (second, first),
            false => (first, second),
        };
        let [rates, tails] = &mut ratios;
        rates.push(beside.per_second / alone.per_second);
        tails.push(beside.p99.as_secs_f64() / alone.p99.as_secs_f64());
        println!(
            "healthy app alone {:.0} pushes/s, p99 {:.1} ms; beside a broken one {:.0} pushes/s, p99 {:.1} ms",
            alone.per_second,
            alone.p99.as_secs_f64() * 1e3,
            beside.per_second,
            beside.p99.as_secs_f64() * 1e3,
        );
    }
    let [rate, p99] = ratios.map(median);
    println!("medians of the ratios of {PAIRS} pairs: {rate:.3} and {p99:.3}");
    assert!(rate >= 0.9, "throughput {rate:.3}");
    assert!(p99 <= 1.1, "p99 {p99:.3}");
    let refused = rig.apple.control.counters().refused_total();
    assert!(refused > before + 5, "the broken app was hardly tried");
    // The breaker stops it after the answers to what was in flight, and lets one try at a time after that.
    assert!(refused <= 512, "{refused} requests of the broken app");
    rig.finish().await;
}

/// Keeps what is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

thread_local! {
    static LOG: RefCell<Option<Log>> = const { RefCell::new(None) };
}

/// Writes to the log of the thread it is used on, if there is one.
struct ToThread;

impl Write for ToThread {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        LOG.with_borrow(|log| {
            if let Some(Log(kept)) = log {
                kept.lock().unwrap().extend(text);
            }
        });
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Kept;

impl Drop for Kept {
    fn drop(&mut self) {
        LOG.set(None);
    }
}

impl Log {
    /// Begins to keep it, until the guard is dropped. One subscriber is for all threads: one for each would leave
    /// it to chance whether what other tests have logged before is heard.
    fn start() -> (Self, Kept) {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let subscriber = tracing_subscriber::fmt()
                .with_ansi(false)
                .with_writer(|| ToThread)
                .finish();
            tracing::subscriber::set_global_default(subscriber).unwrap();
        });
        let log = Self::default();
        LOG.set(Some(log.clone()));
        (log, Kept)
    }

    /// The first line of an error.
    fn error(&self) -> String {
        let log = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        log.lines()
            .find(|line| line.contains("ERROR"))
            .unwrap()
            .to_owned()
    }
}

/// All of them have device tokens of the other environment. The breaker opens after twenty answers; what was
/// in flight then is answered too.
async fn check_wrong_environment(config: Config, asked_max: u64) {
    const REGISTRATIONS: u32 = 10_000;
    let (log, logging) = Log::start();
    let mut rig = Rig::start(Setting {
        config,
        ..Setting::default()
    })
    .await;
    let control = rig.apple.control.clone();
    control.set_default_verdict(Verdict::refuse(Reason::BadDeviceToken));
    rig.deliver("demo", 0..REGISTRATIONS);
    for (device, outcome) in rig.outcomes(REGISTRATIONS).await {
        let kept = PushOutcome::Rejected(Rejection::Unavailable);
        assert_eq!(outcome, kept, "device {device}");
    }
    drop(logging);
    let asked = control.counters().requests;
    println!("{REGISTRATIONS} registrations, {asked} answers until the breaker was open for all");
    assert!(asked <= asked_max, "{asked} answers");
    assert!(rig.rejected.drain().is_empty(), "no registration ends");
    let line = log.error();
    for word in [
        "app=demo",
        "environment=\"production\"",
        "reason=BadDeviceToken",
        "other environment",
    ] {
        assert!(line.contains(word), "{word} is not in {line}");
    }
    rig.finish().await;

    // A restart with what is right.
    let mut rig = Rig::start(Setting::default()).await;
    rig.deliver("demo", 0..REGISTRATIONS);
    for (device, outcome) in rig.outcomes(REGISTRATIONS).await {
        assert_eq!(outcome, PushOutcome::Accepted, "device {device}");
    }
    rig.finish().await;
}

#[actix_rt::test]
async fn a_wrong_environment_costs_no_registration() {
    let _beside_others = COMPARING.read().await;
    let one_by_fifty = Config {
        connections_per_pool_max: 1,
        streams_per_connection_max: 50,
        ..Config::default()
    };
    check_wrong_environment(one_by_fifty, 100).await;
    let default = Config::default();
    let in_flight = default.connections_per_pool_max * default.streams_per_connection_max;
    check_wrong_environment(default, 20 + in_flight as u64).await;
}

/// A stranger registers what he likes and publishes to all of it: neither before the first success nor beside
/// others does that keep anybody's push from its device, and APNs is hardly asked about it.
#[actix_rt::test]
async fn made_up_device_tokens_silence_nobody() {
    let _beside_others = COMPARING.read().await;
    const MADE_UP: u32 = 45;
    const HONEST: u32 = 200;
    const ROUNDS: u32 = 20;
    let mut rig = Rig::start(Setting::default()).await;
    let control = rig.apple.control.clone();
    for number in 0..MADE_UP {
        control.set_verdict(&device(number), Verdict::refuse(Reason::BadDeviceToken));
    }
    for round in 0..ROUNDS {
        // A certificate for all names below one is cheap.
        let names = format!("{round}.evil{}.test", round % 3);
        rig.deliver_for(&names, "demo", 0..MADE_UP);
        rig.deliver_for("chat.good.test", "demo", 1_000..1_000 + HONEST);
        for (device, outcome) in rig.outcomes(MADE_UP + HONEST).await {
            let accepted = outcome == PushOutcome::Accepted;
            assert_eq!(accepted, device >= MADE_UP, "{device}: {outcome:?}");
        }
    }
    let asked = control.counters().requests - u64::from(ROUNDS * HONEST);
    println!("{MADE_UP} made-up device tokens, {asked} requests for them in {ROUNDS} rounds");
    assert!(asked <= u64::from(3 * MADE_UP), "{asked} requests");
    rig.finish().await;
}

/// Owners who queue without end, be their device tokens good or made up, wait for each other and keep nobody waiting:
/// neither is there no room left, nor do others wait for more than a turn of each.
#[actix_rt::test]
async fn greedy_owners_leave_turns_and_room_to_others() {
    let _beside_others = COMPARING.read().await;
    const OWNERS: u32 = 10;
    const ROUNDS: u32 = 30;
    const EACH: u32 = 10;
    const HONEST: std::ops::Range<u32> = 20_000..20_020;
    let mut rig = Rig::start(Setting {
        config: Config {
            connections_per_pool_max: 1,
            streams_per_connection_max: 1,
            queue_max: 1_100,
            ..Config::default()
        },
        ..Setting::default()
    })
    .await;
    let control = rig.apple.control.clone();
    control.set_default_verdict(Verdict::refuse(Reason::BadDeviceToken));
    let each = |owner| owner * 1_000..owner * 1_000 + ROUNDS * EACH;
    for number in HONEST.chain((0..OWNERS / 2).flat_map(each)) {
        control.set_verdict(&device(number), Verdict::Accept);
    }
    rig.deliver("demo", HONEST);
    rig.outcomes(20).await;
    let honest: HashSet<DeviceToken> = HONEST.map(device).collect();
    let mut judged = control.watch(1 << 14);
    for round in 0..ROUNDS {
        for owner in 0..OWNERS {
            let names = format!("{round}.greedy{owner}.test");
            let first = each(owner).start + round * EACH;
            rig.deliver_for(&names, "demo", first..first + EACH);
        }
    }
    rig.deliver("demo", HONEST);
    let greedy = OWNERS * ROUNDS * EACH;
    let told = rig.outcomes(greedy + 20).await;
    for number in HONEST {
        assert_eq!(told[&number], PushOutcome::Accepted, "device {number}");
    }
    let full = PushOutcome::Rejected(Rejection::Overloaded);
    let turned_away = told.values().filter(|outcome| **outcome == full).count();
    let mut asked = 0;
    let mut served = 0;
    while served < 20 {
        asked += 1;
        let device = judged.try_recv().unwrap().device_token.unwrap();
        served += u32::from(honest.contains(&device));
    }
    println!("{turned_away} of {greedy} had no room; 20 others were served by {asked} requests");
    // A turn of each owner before each, and what was sent before they came.
    let turns = (OWNERS + 1) * 20;
    assert!(asked <= turns + OWNERS, "{asked} requests");
    assert!(turned_away >= 1_900, "{turned_away}");
    rig.finish().await;
}

#[actix_rt::test]
async fn a_clock_that_is_wrong_is_named_with_its_fault() {
    let _beside_others = COMPARING.read().await;
    let (log, logging) = Log::start();
    let mut rig = Rig::start(Setting {
        with_broken: true,
        faults: Faults {
            date_ahead_seconds: 7_200,
            ..Faults::default()
        },
        ..Setting::default()
    })
    .await;
    rig.deliver("broken", 0..1);
    let refused = PushOutcome::Rejected(Rejection::Unavailable);
    assert_eq!(rig.outcomes(1).await[&0], refused);
    drop(logging);
    let line = log.error();
    for word in [
        "app=broken",
        "InvalidProviderToken",
        "clock is 7200 s behind APNs'",
    ] {
        assert!(line.contains(word), "{word} is not in {line}");
    }
    rig.finish().await;
}

#[actix_rt::test]
async fn a_client_certificate_does_instead_of_a_key() {
    let _beside_others = COMPARING.read().await;
    let mut rig = Rig::start(Setting {
        by_certificate: true,
        ..Setting::default()
    })
    .await;
    rig.deliver("demo", 0..300);
    for (device, outcome) in rig.outcomes(300).await {
        assert_eq!(outcome, PushOutcome::Accepted, "device {device}");
    }
    let counters = rig.apple.control.counters();
    assert_eq!((counters.accepted, counters.provider_tokens), (300, 0));
    rig.finish().await;
}

/// A proxy that opens tunnels, how many it opened, and what they carried.
async fn proxy() -> (SocketAddr, Arc<AtomicU64>, Arc<AtomicU64>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let carried = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&carried);
    let tunnels = Arc::new(AtomicU64::new(0));
    let opened = Arc::clone(&tunnels);
    actix_rt::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            opened.fetch_add(1, Ordering::Relaxed);
            let counter = Arc::clone(&counter);
            actix_rt::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(client.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                let target = request.split(' ').nth(1).unwrap().to_owned();
                assert!(request.starts_with("CONNECT localhost:"), "{request}");
                let mut server = TcpStream::connect(target).await.unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let (up, _) = copy_bidirectional(&mut client, &mut server)
                    .await
                    .unwrap_or_default();
                counter.fetch_add(up, Ordering::Relaxed);
            });
        }
    });
    (address, tunnels, carried)
}

#[actix_rt::test]
async fn all_goes_through_the_proxy() {
    let _beside_others = COMPARING.read().await;
    let (address, tunnels, carried) = proxy().await;
    let mut rig = Rig::start(Setting {
        proxy: Some(address),
        ..Setting::default()
    })
    .await;
    rig.deliver("demo", 0..1_000);
    for (device, outcome) in rig.outcomes(1_000).await {
        assert_eq!(outcome, PushOutcome::Accepted, "device {device}");
    }
    let connections = rig.apple.control.counters().connections;
    assert_eq!(
        connections,
        tunnels.load(Ordering::Relaxed),
        "none went past it"
    );
    rig.finish().await;
    timeout(PATIENCE, async {
        while carried.load(Ordering::Relaxed) < 1_000 * 100 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    println!(
        "{connections} tunnels, {} bytes sent",
        carried.load(Ordering::Relaxed)
    );
}
