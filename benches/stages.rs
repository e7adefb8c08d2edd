//! Question: what does each stage of a push cost by itself?
//!
//! Unit: nanoseconds and allocations per push, in a thread that does nothing else.
//!
//! | stage | what it is |
//! |---|---|
//! | splitter | borders of stanzas in what one read brought, 100 publishes in Prosody's form |
//! | publish parse | one pass over a stanza, node and secret copied out |
//! | resolve | a batch of 16 through the resolver's actor: point read in a store with `--registrations`, secret compared |
//! | request | head and body of one request; encoding it as HTTP/2 is `h2`'s and not here |
//! | reply | a ticket taken, resolved and rendered, 16 into one buffer |
//!
//! Each round runs a stage for `--milliseconds`; the median of the rounds is shown. The allocator counts, which
//! costs each allocation some ten nanoseconds. There are no targets: it shows where to look.
//!
//! ```sh
//! cargo bench --bench stages --features stages -- --json target/stages.json
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

#[path = "push_throughput/table.rs"]
mod table;

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use messages::{
    AppId, BareJid, Bearer, Clock, DeliverBatch, DeviceToken, Dialect, Domain, NodeId,
    NotificationHint, Origin, OutcomeBatch, Publish, PublishBatch, Register, RegistrationKey,
    Secret, Ticket,
};
use registration::{Registrations, registry, resolver};
use testkit::Collector;
use tokio::task::JoinSet;
use xmpp::bench::{Answers, HEADER, Stream};

use table::{Line, Spread};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const SERVICE: &str = "push.localhost";
const HOME: &str = "chat.localhost";
/// Stanzas that one read brings.
const READ: usize = 100;
/// Pushes of a batch.
const BATCH: usize = 16;
/// Batches that go through the resolver's actor in one turn.
const BATCHES: usize = 64;
/// Registrations that wait for the disk at a time.
const WAITING: usize = 2_048;

/// Each stage of a push by itself.
#[derive(Debug, Parser)]
struct Options {
    /// Registrations in the store.
    #[arg(long, default_value_t = 100_000)]
    registrations: u32,
    /// Milliseconds of a round.
    #[arg(long, default_value_t = 300)]
    milliseconds: u64,
    /// Rounds; the median is shown, with the least and the most beside it.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Writes the figures to a file as JSON, with the machine and the commit.
    #[arg(long)]
    json: Option<PathBuf>,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a stage costs a push.
struct Cost {
    stage: &'static str,
    /// Of each round.
    nanos: Vec<f64>,
    allocations: f64,
}

fn main() {
    let options = Options::parse();
    actix_rt::System::new().block_on(measure(&options));
}

async fn measure(options: &Options) {
    let stanza = publish("4b1c8a52-ff03-4b8e-9b0a-0c6f2d3b5a77", &"s".repeat(43));
    let read = [HEADER.as_bytes(), stanza.repeat(READ).as_bytes()].concat();
    assert_eq!(Stream::split(&read), READ);
    let stream = Stream::default();
    let mut requests = apns::bench::Requests::new("org.example.demo", &bearer());
    let token = DeviceToken::parse(&"ab".repeat(32)).unwrap();
    let (key, now) = (RegistrationKey([7; 16]), Clock::system().now());
    let mut answers = Answers::new(BATCH as u32);
    let ids: Vec<String> = (0..BATCH).map(|n| format!("push:{n:08x}-4b1c")).collect();

    let costs = [
        cost("splitter", READ, options, || {
            black_box(Stream::split(black_box(&read)));
        }),
        cost("publish parse", 1, options, || {
            stream.parse(black_box(stanza.as_bytes()));
        }),
        resolve(options).await,
        cost("request", 1, options, || {
            black_box(requests.make(black_box(&token), key, now));
        }),
        cost("reply", BATCH, options, || {
            black_box(answers.answer(black_box(&ids), HOME, SERVICE));
        }),
    ];

    let mut lines = Vec::new();
    for Cost { stage, nanos, .. } in &costs {
        let nanos = Spread::of(nanos, |nanos| *nanos);
        lines.push(Line::shown("ns per push", stage, nanos));
    }
    for Cost {
        stage, allocations, ..
    } in &costs
    {
        let allocations = Spread::of(&[*allocations], |allocations| *allocations);
        lines.push(Line::shown("allocations per push", stage, allocations));
    }
    println!(
        "\n{} rounds of {} ms; {} bytes a publish, {} registrations\n",
        options.rounds,
        options.milliseconds,
        stanza.len(),
        options.registrations,
    );
    println!(
        "{:<16}{:>12}{:>28}{:>14}",
        "stage", "ns per push", "(least to most)", "allocations"
    );
    for Cost {
        stage,
        nanos,
        allocations,
    } in &costs
    {
        let nanos = Spread::of(nanos, |nanos| *nanos);
        let range = format!("({:.0} to {:.0})", nanos.least, nanos.most);
        println!(
            "{stage:<16}{:>12.0}{range:>28}{allocations:>14.2}",
            nanos.median
        );
    }
    if let Some(file) = &options.json {
        let options = serde_json::json!({
            "registrations": options.registrations,
            "milliseconds": options.milliseconds,
            "rounds": options.rounds,
            "publish_bytes": stanza.len(),
        });
        table::write(file, &options, &lines);
    }
}

/// Runs a stage for `items` pushes each time.
fn cost(stage: &'static str, items: usize, options: &Options, mut run: impl FnMut()) -> Cost {
    let round = Duration::from_millis(options.milliseconds);
    let mut nanos = Vec::new();
    // The first round warms up.
    for _ in 0..=options.rounds {
        let (began, mut runs) = (Instant::now(), 0);
        while began.elapsed() < round {
            run();
            runs += 1;
        }
        nanos.push(began.elapsed().as_nanos() as f64 / f64::from(runs) / items as f64);
    }
    nanos.remove(0);
    let (runs, counted) = (100, Counted::begin());
    for _ in 0..runs {
        run();
    }
    Cost {
        stage,
        nanos,
        allocations: counted.so_far() as f64 / f64::from(runs) / items as f64,
    }
}

/// Counts what is allocated from now on.
struct Counted {
    _profiler: dhat::Profiler,
    before: u64,
}

impl Counted {
    fn begin() -> Self {
        let profiler = dhat::Profiler::builder().testing().build();
        Self {
            _profiler: profiler,
            before: dhat::HeapStats::get().total_blocks,
        }
    }

    fn so_far(&self) -> u64 {
        dhat::HeapStats::get().total_blocks - self.before
    }
}

/// The resolver is an actor, so its cost has the message in it, shared by the batch.
async fn resolve(options: &Options) -> Cost {
    let directory = tempfile::tempdir().unwrap();
    let config = registration::Config {
        path: directory.path().join("store"),
        key_file: directory.path().join("key"),
        registrations_per_owner_max: u32::MAX,
        registrations_max: u32::MAX,
        new_registrations_per_second_max: u32::MAX,
        ..registration::Config::default()
    };
    let registrations = Registrations::open(&config, Clock::system()).unwrap();
    let devices = register(&registrations, options.registrations).await;
    let mut delivered = Collector::<DeliverBatch>::start();
    let outcomes = Collector::<OutcomeBatch>::start();
    let edges = resolver::Edges {
        deliver: delivered.recipient(),
        journal: None,
    };
    let resolver = resolver::start(&registrations, edges);
    let origin = Origin::new(outcomes.recipient());
    let mut devices = devices.iter().cycle();
    let mut batches = || -> Vec<PublishBatch> {
        let batch = |_| PublishBatch {
            origin: origin.clone(),
            deadline: Instant::now() + Duration::from_secs(60),
            items: devices.by_ref().take(BATCH).map(publication).collect(),
        };
        (0..BATCHES).map(batch).collect()
    };
    let pushes = (BATCH * BATCHES) as f64;
    let round = Duration::from_millis(options.milliseconds);
    let mut nanos = Vec::new();
    for _ in 0..=options.rounds {
        let (began, mut spent, mut runs) = (Instant::now(), Duration::ZERO, 0);
        while began.elapsed() < round {
            let batches = batches();
            let sent = Instant::now();
            through(&resolver, batches, &mut delivered).await;
            spent += sent.elapsed();
            runs += 1;
        }
        nanos.push(spent.as_nanos() as f64 / f64::from(runs) / pushes);
    }
    nanos.remove(0);
    let batches = batches();
    let counted = Counted::begin();
    through(&resolver, batches, &mut delivered).await;
    let allocations = counted.so_far() as f64 / pushes;
    Cost {
        stage: "resolve",
        nanos,
        allocations,
    }
}

async fn through(
    resolver: &resolver::Handles,
    batches: Vec<PublishBatch>,
    delivered: &mut Collector<DeliverBatch>,
) {
    for batch in batches {
        assert!(
            resolver.publish.try_send(batch).is_ok(),
            "the resolver is there"
        );
    }
    for _ in 0..BATCHES {
        assert_eq!(delivered.take().await.items.len(), BATCH);
    }
}

async fn register(registrations: &Registrations, count: u32) -> Vec<(NodeId, Secret)> {
    let registry = registry::start(registrations, registry::Edges::default()).unwrap();
    let (mut asked, mut devices) = (JoinSet::new(), Vec::new());
    for n in 0..count {
        if asked.len() >= WAITING {
            devices.push(asked.join_next().await.unwrap().unwrap());
        }
        let answer = registry.register.send(Register {
            account: BareJid::new(&format!("user{n}"), Domain::new(HOME)),
            service: Domain::new(SERVICE),
            app: AppId::new("demo"),
            node: NodeId::new(&format!("6A1B0C1E-0000-4000-8000-{n:012X}")).unwrap(),
            device_token: DeviceToken::parse(&format!("{n:08x}").repeat(8)).unwrap(),
            dialect: Dialect::V1,
        });
        asked.spawn_local(async move {
            let made = answer.await.unwrap().unwrap();
            (made.node, made.secret)
        });
    }
    devices.extend(asked.join_all().await);
    devices
}

fn publication((node, secret): &(NodeId, Secret)) -> Publish {
    Publish {
        ticket: Ticket {
            slot: 0,
            generation: 0,
        },
        node: node.clone(),
        secret: Some(secret.clone()),
        domain: Domain::new(HOME),
        service: Domain::new(SERVICE),
        hint: NotificationHint {
            message_count: Some(1),
            has_body: true,
        },
        content: None,
    }
}

/// As Prosody writes it.
fn publish(node: &str, secret: &str) -> String {
    format!(
        "<iq type='set' from='{HOME}' to='{SERVICE}' id='push:0000002a-4b1c'>\
         <pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='{node}'><item>\
         <notification xmlns='urn:xmpp:push:0'><x xmlns='jabber:x:data' type='form'>\
         <field type='hidden' var='FORM_TYPE'><value>urn:xmpp:push:summary</value></field>\
         <field type='text-single' var='message-count'><value>1</value></field>\
         <field type='text-single' var='pending-subscription-count'/>\
         <field type='jid-single' var='last-message-sender'/>\
         <field type='text-single' var='last-message-body'><value>New Message!</value></field></x>\
         </notification></item></publish><publish-options>\
         <x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'>\
         <value>http://jabber.org/protocol/pubsub#publish-options</value></field>\
         <field var='secret'><value>{secret}</value></field></x></publish-options></pubsub></iq>"
    )
}

/// As long as a real one.
fn bearer() -> Bearer {
    let part = |bytes: usize| "a".repeat(bytes);
    Bearer::new(&format!("bearer {}.{}.{}", part(48), part(48), part(86)))
}
