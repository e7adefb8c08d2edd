//! Two weeks pass: what was to be forgotten is in no file, what was not is still there, and the report says so.
//!
//! Registry, journal and retention with real files, wired as the service wires them, and a clock that the test
//! sets. The runtime's time goes only as far as the test moves it, while the threads that write take real
//! time.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use messages::{
    AppId, BareJid, Clock, DeviceToken, Dialect, Domain, NodeId, Probe, ReadSweepReport, Register,
    SyncJournal, UnixSeconds,
};

/// 2026-06-01T00:00:00Z.
const NOW: u64 = 1_780_272_000;
const STEP: u64 = 30 * 60;
const DAY: u64 = 24 * 60 * 60;

struct Desk {
    clock: Clock,
    now: u64,
    registry: registration::registry::Handles,
    registrations: registration::Registrations,
    journal: journal::Handles,
    retention: retention::Handles,
    /// As long as it lives the runtime's time stands still between steps, also while threads work.
    _still: mpsc::Sender<()>,
}

impl Desk {
    fn start(directory: &Path) -> Self {
        let (still, released) = mpsc::channel();
        tokio::task::spawn_blocking(move || released.recv());
        tokio::time::pause();
        let clock = Clock::manual(UnixSeconds(NOW).millis());
        let config = journal::Config {
            path: directory.join("journal"),
            key_file: directory.join("journal.key"),
            free_bytes_min: 0,
            ..journal::Config::default()
        };
        let opened = journal::Journal::open(&config, clock.clone()).unwrap();
        let journal = journal::start(opened).unwrap();
        let config = registration::Config {
            path: directory.join("store"),
            key_file: directory.join("registration.key"),
            cache_bytes: 1 << 20,
            ..registration::Config::default()
        };
        let registrations = registration::Registrations::open(&config, clock.clone()).unwrap();
        let edges = registration::registry::Edges {
            journal: Some(journal.record.clone()),
        };
        let registry = registration::registry::start(&registrations, edges).unwrap();
        let report_file = directory.join("retention.json");
        // Of an earlier process, whose clock went right.
        fs::write(&report_file, format!(r#"{{"seen_at": {NOW}}}"#)).unwrap();
        let config = retention::Config {
            // Falls due in each step, once.
            interval_seconds: u32::try_from(STEP - 60).unwrap(),
            report_file,
            ..retention::Config::default()
        };
        let edges = retention::Edges {
            sweep: registry.sweep.clone(),
            keepers: vec![("journal segments", journal.sweep.clone())],
        };
        let retention = retention::start(&config, clock.clone(), edges);
        Self {
            clock,
            now: NOW,
            registry,
            registrations,
            journal,
            retention,
            _still: still,
        }
    }

    async fn register(&self, name: &str) {
        let register = Register {
            account: BareJid::new(name, Domain::new("chat.example")),
            service: Domain::new("push.example"),
            app: AppId::new("app"),
            node: NodeId::new(&format!("node-of-{name}")).unwrap(),
            device_token: DeviceToken::parse(&token(name)).unwrap(),
            dialect: Dialect::V1,
        };
        self.registry
            .register
            .send(register)
            .await
            .unwrap()
            .unwrap();
        self.journal
            .sync
            .send(SyncJournal::default())
            .await
            .unwrap()
            .unwrap();
    }

    /// Lets time pass, a multiple of [`STEP`], in steps in which each actor does what falls due.
    async fn pass(&mut self, seconds: u64) {
        let until = self.now + seconds;
        while self.now < until {
            let (rounds, sweeps) = (self.rounds().await, self.sweeps().await);
            self.now += STEP;
            self.clock.set(UnixSeconds(self.now).millis());
            tokio::time::advance(Duration::from_secs(STEP)).await;
            // A sweep and a round through the keepers fall due in each step, and are over before the next.
            while self.rounds().await == rounds || self.sweeps().await == sweeps {
                tokio::task::yield_now().await;
            }
        }
    }

    /// How many sweeps of registrations there were.
    async fn sweeps(&self) -> u64 {
        let health = self.retention.probe.send(Probe).await.unwrap();
        let runs = health.counters.iter();
        runs.filter(|(name, _)| name.starts_with("retention_runs"))
            .map(|(_, count)| count)
            .sum()
    }

    /// When the last round through the keepers ended.
    async fn rounds(&self) -> Option<UnixSeconds> {
        let report = self.retention.report.send(ReadSweepReport).await.unwrap();
        let rounds = report.runs.iter();
        rounds
            .filter(|run| run.what == "journal segments")
            .map(|run| run.ended_at)
            .max()
    }
}

fn token(name: &str) -> String {
    let hex: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    hex.repeat(8)
}

/// Whether a text is in any file below a directory, packed or not.
fn is_in(directory: &Path, text: &str) -> bool {
    fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return is_in(&path, text);
        }
        let bytes = fs::read(&path).unwrap();
        let unpacked = zstd::decode_all(bytes.as_slice()).unwrap_or_default();
        [bytes, unpacked].iter().any(|bytes| {
            bytes
                .windows(text.len())
                .any(|window| window == text.as_bytes())
        })
    })
}

#[actix_rt::test]
async fn on_day_fourteen_and_an_hour_no_byte_of_day_zero_is_in_the_journal() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let mut desk = Desk::start(directory.path());
    desk.register("anna").await;
    desk.pass(DAY).await;
    desk.register("bert").await;
    for name in ["anna", "bert"] {
        assert!(is_in(&path, &format!("{name}@")), "{name}");
        assert!(is_in(&path, &token(name)), "{name}");
    }
    desk.pass(12 * DAY + DAY / 2).await;
    assert!(is_in(&path, "anna@"), "too early");
    desk.pass(DAY / 2 + 2 * STEP).await;
    // Day 14 and one hour after the first.
    for text in ["anna@", "node-of-anna", &token("anna")] {
        assert!(!is_in(&path, text), "{text}");
    }
    for text in ["bert@", "node-of-bert", &token("bert")] {
        assert!(is_in(&path, text), "{text}");
    }
    let report = desk.retention.report.send(ReadSweepReport).await.unwrap();
    let removal = report.runs.iter().find(|run| run.removed > 0).unwrap();
    assert_eq!(removal.what, "journal segments");
    assert_eq!((removal.removed, &removal.failure), (1, &None));
    let age = removal.started_at.0 - NOW;
    assert!(
        (14 * DAY..=14 * DAY + 3_600).contains(&age),
        "removed at an age of {age} s"
    );
    // Registrations follow their own rule.
    let anna = BareJid::new("anna", Domain::new("chat.example"));
    assert_eq!(desk.registrations.describe(&anna).unwrap().len(), 1);
    let health = desk.retention.probe.send(Probe).await.unwrap();
    let skipped = health.counters.iter();
    assert!(
        skipped
            .filter(|(name, _)| name.contains("skipped") || name.contains("failed"))
            .all(|(_, count)| *count == 0)
    );
    let stored = fs::read_to_string(directory.path().join("retention.json")).unwrap();
    assert!(stored.contains("journal segments") && !stored.contains("anna"));
}
