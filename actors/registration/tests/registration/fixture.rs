//! A store in a directory of its own, and words of the tests.

use std::fs;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::{Duration, Instant};

use actix::Recipient;
use messages::{
    Acceptance, AppId, BareJid, Clock, DeviceToken, Dialect, Domain, Drain, Drained, JournalBatch,
    NodeId, Probe, Register, Registered, RegistrationDetails, RegistrationKey, RegistryError,
    Removed, Touch, TouchBatch, UnixMillis, UnixSeconds, Unregister,
};
use registration::registry::{Edges, Handles};
use registration::{Config, Error, Registrations, registry};
use tempfile::TempDir;
use testkit::Collector;

/// 2026-06-01T00:00:00Z.
pub(crate) const START: UnixSeconds = UnixSeconds(1_780_272_000);
pub(crate) const ADA: &str = "ada";
pub(crate) const EVE: &str = "eve";
pub(crate) const NODE: &str = "6A1B0C1E-0000-4000-8000-000000000001";
pub(crate) const OTHER_NODE: &str = "6A1B0C1E-0000-4000-8000-000000000002";

pub(crate) struct Fixture {
    pub(crate) directory: TempDir,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = config_in(directory.path());
        Self {
            directory,
            config,
            clock: Clock::manual(START.millis()),
        }
    }

    pub(crate) fn open(&self) -> Result<Registrations, Error> {
        Registrations::open(&self.config, self.clock.clone())
    }

    pub(crate) fn start(&self) -> (Registrations, Handles) {
        let registrations = self.open().unwrap();
        let registry = registry::start(&registrations, Edges::default()).unwrap();
        (registrations, registry)
    }

    /// The same, with a journal at the registry's edge.
    pub(crate) fn start_with_journal(&self) -> (Registrations, Handles, Collector<JournalBatch>) {
        let registrations = self.open().unwrap();
        let journal = Collector::start();
        let edges = Edges {
            journal: Some(journal.recipient()),
        };
        let registry = registry::start(&registrations, edges).unwrap();
        (registrations, registry, journal)
    }

    /// Drains and lets go of everything.
    pub(crate) async fn stop(registrations: Registrations, registry: Handles) {
        assert_eq!(drain(&registry.drain).await.abandoned, 0);
        drop((registrations, registry));
        // The arbiter notices that nobody can reach the actor any more.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    /// Moves the clock to some seconds after the start.
    pub(crate) fn at(&self, seconds: u64) {
        self.clock
            .set(UnixMillis(START.millis().0 + seconds * 1000));
    }

    /// What a process that died now would leave, opened.
    pub(crate) fn open_copy(&self) -> (TempDir, Registrations) {
        let directory = tempfile::tempdir().unwrap();
        copy(self.directory.path(), directory.path());
        let config = config_in(directory.path());
        let registrations = Registrations::open(&config, self.clock.clone()).unwrap();
        (directory, registrations)
    }
}

fn config_in(directory: &Path) -> Config {
    Config {
        path: directory.join("store"),
        key_file: directory.join("registration.key"),
        cache_bytes: 1 << 20,
        ..Config::default()
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            fs::set_permissions(&target, entry.metadata().unwrap().permissions()).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub(crate) const fn after(seconds: u64) -> UnixSeconds {
    UnixSeconds(START.0 + seconds)
}

pub(crate) fn account(name: &str) -> BareJid {
    BareJid::new(name, Domain::new("chat.example"))
}

pub(crate) fn service() -> Domain {
    Domain::new("push.example")
}

/// The token with this digit throughout.
pub(crate) fn token(digit: &str) -> DeviceToken {
    DeviceToken::parse(&digit.repeat(64)).unwrap()
}

pub(crate) fn request(name: &str, node: &str, device_token: DeviceToken) -> Register {
    Register {
        account: account(name),
        service: service(),
        app: AppId::new("app"),
        node: NodeId::new(node).unwrap(),
        device_token,
        dialect: Dialect::V1,
    }
}

pub(crate) async fn register(
    registry: &Handles,
    name: &str,
    node: &str,
    digit: &str,
) -> Result<Registered, RegistryError> {
    let request = request(name, node, token(digit));
    registry.register.send(request).await.unwrap()
}

/// Registers and gives the secret.
pub(crate) async fn secret(registry: &Handles, name: &str, node: &str, digit: &str) -> String {
    let registered = register(registry, name, node, digit).await.unwrap();
    assert_eq!(registered.node.as_str(), node);
    registered.secret.as_str().to_owned()
}

pub(crate) async fn unregister(registry: &Handles, name: &str, node: &str) -> u64 {
    let request = Unregister {
        account: account(name),
        service: service(),
        node: NodeId::new(node).unwrap(),
    };
    let Removed { count } = registry.unregister.send(request).await.unwrap().unwrap();
    count
}

/// The only registration of an account.
#[track_caller]
pub(crate) fn only(registrations: &Registrations, name: &str) -> RegistrationDetails {
    let mut all = registrations.describe(&account(name)).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// Where APNs takes what it takes.
pub(crate) const HERE: Acceptance = Acceptance(NonZeroU32::MIN);

pub(crate) fn touch(registry: &Handles, registration: RegistrationKey, at: UnixSeconds) {
    let success = Touch {
        registration,
        at,
        verdict: Ok(HERE),
    };
    let items = vec![success];
    assert!(registry.touch.try_send(TouchBatch { items }).is_ok());
}

pub(crate) async fn counter(probe: &Recipient<Probe>, name: &str) -> u64 {
    let health = probe.send(Probe).await.unwrap();
    let found = health.counters.iter().find(|(known, _)| *known == name);
    found.unwrap().1
}

pub(crate) async fn drain(recipient: &Recipient<Drain>) -> Drained {
    let deadline = Instant::now() + Duration::from_secs(30);
    recipient
        .send(Drain {
            deadline,
            farewell: Duration::from_secs(1),
        })
        .await
        .unwrap()
}
