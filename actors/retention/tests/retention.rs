//! Runs begin by themselves, go page by page, and leave everything alone when the clock is wrong.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, ResponseFuture};
use messages::{
    Clock, Drain, Drained, Probe, RegistrationKey, RegistryError, SweepCursor, SweepExpired,
    SweptPage, UnixSeconds,
};
use retention::{Config, Edges, Handles};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

/// 2026-06-01T00:00:00Z.
const NOW: UnixSeconds = UnixSeconds(1_780_272_000);
const DAY: u64 = 24 * 60 * 60;
const HOUR: Duration = Duration::from_secs(3_600);

type Verdict = Result<SweptPage, RegistryError>;

/// A registry that answers when and what the test says.
struct Registry {
    requests: mpsc::Sender<(SweepExpired, oneshot::Sender<Verdict>)>,
}

impl Actor for Registry {
    type Context = Context<Self>;
}

impl Handler<SweepExpired> for Registry {
    type Result = ResponseFuture<Verdict>;

    fn handle(&mut self, request: SweepExpired, _: &mut Self::Context) -> Self::Result {
        let (answer, verdict) = oneshot::channel();
        self.requests.try_send((request, answer)).unwrap();
        Box::pin(async { verdict.await.unwrap_or(Err(RegistryError::Stopping)) })
    }
}

struct Fixture {
    retention: Handles,
    clock: Clock,
    requests: mpsc::Receiver<(SweepExpired, oneshot::Sender<Verdict>)>,
    _directory: TempDir,
}

impl Fixture {
    fn start(config: &Config) -> Self {
        tokio::time::pause();
        let directory = tempfile::tempdir().unwrap();
        let report_file = directory.path().join("retention.json");
        // Of an earlier process.
        std::fs::write(&report_file, format!(r#"{{"seen_at": {}}}"#, NOW.0)).unwrap();
        let config = &Config {
            report_file,
            ..config.clone()
        };
        let (sender, requests) = mpsc::channel(1024);
        let sweep = Registry { requests: sender }.start().recipient();
        let clock = Clock::manual(NOW.millis());
        Self {
            retention: retention::start(
                config,
                clock.clone(),
                Edges {
                    sweep,
                    keepers: Vec::new(),
                },
            ),
            clock,
            requests,
            _directory: directory,
        }
    }

    fn at(&self, now: u64) {
        self.clock.set(UnixSeconds(now).millis());
    }

    async fn request(&mut self) -> (SweepExpired, oneshot::Sender<Verdict>) {
        self.requests.recv().await.unwrap()
    }

    async fn counter(&self, name: &str) -> u64 {
        let health = self.retention.probe.send(Probe).await.unwrap();
        let found = health.counters.iter().find(|(known, _)| *known == name);
        found.unwrap().1
    }

    fn drain(&self, within: Duration) -> impl Future<Output = Drained> + use<> {
        let drain = self.retention.drain.clone();
        let deadline = Instant::now() + within;
        async move {
            drain
                .send(Drain {
                    deadline,
                    farewell: Duration::from_secs(1),
                })
                .await
                .unwrap()
        }
    }
}

const fn cursor(n: u8) -> Option<SweepCursor> {
    Some(SweepCursor(RegistrationKey([n; 16])))
}

const fn page(scanned: u64, removed: u64, next: Option<SweepCursor>) -> Verdict {
    Ok(SweptPage {
        scanned,
        removed,
        next,
    })
}

#[actix::test]
async fn a_run_goes_page_by_page_with_pauses() {
    let mut fixture = Fixture::start(&Config::default());
    let start = tokio::time::Instant::now();
    let (request, answer) = fixture.request().await;
    assert_eq!(start.elapsed().as_secs(), 60);
    assert_eq!(request.idle_since, UnixSeconds(NOW.0 - 180 * DAY));
    assert_eq!((request.after, request.limit), (None, 1_000));
    answer.send(page(1_000, 7, cursor(3))).unwrap();
    let (request, answer) = fixture.request().await;
    assert!(start.elapsed() >= Duration::from_millis(60_100));
    assert_eq!(request.after, cursor(3));
    answer.send(page(40, 1, None)).unwrap();
    let (request, _) = fixture.request().await;
    assert_eq!(request.after, None);
    assert_eq!(start.elapsed().as_secs(), 60 + HOUR.as_secs());
    assert_eq!(fixture.counter("retention_runs_total").await, 1);
    assert_eq!(
        fixture
            .counter("retention_last_run_scanned_registrations")
            .await,
        1_040
    );
    assert_eq!(
        fixture
            .counter("retention_last_run_removed_registrations")
            .await,
        8
    );
}

#[actix::test]
async fn a_failed_run_is_taken_up_where_it_stopped() {
    let mut fixture = Fixture::start(&Config::default());
    fixture
        .request()
        .await
        .1
        .send(page(9, 9, cursor(5)))
        .unwrap();
    let (_, answer) = fixture.request().await;
    answer.send(Err(RegistryError::Busy)).unwrap();
    fixture.at(NOW.0 + 3_600);
    let (request, _never_answered) = fixture.request().await;
    assert_eq!(request.after, cursor(5));
    assert_eq!(request.idle_since, UnixSeconds(NOW.0 + 3_600 - 180 * DAY));
    // The time limit of a request is far below the interval.
    let (request, _) = fixture.request().await;
    assert_eq!(request.after, cursor(5));
    assert_eq!(fixture.counter("retention_runs_failed_total").await, 2);
    assert_eq!(fixture.counter("retention_runs_total").await, 0);
}

#[actix::test]
async fn a_wrong_clock_deletes_nobody() {
    let mut fixture = Fixture::start(&Config::default());
    fixture.request().await.1.send(page(1, 0, None)).unwrap();
    let wrong = [
        0,
        // Back from 1970 is as far a jump as 200 days ahead, or one back by a second.
        NOW.0 + 3_600,
        NOW.0 + 200 * DAY,
        NOW.0 + 200 * DAY - 1,
    ];
    // Between two ticks.
    sleep(HOUR / 2).await;
    for (skipped, now) in (1..).zip(wrong) {
        fixture.at(now);
        sleep(HOUR).await;
        assert_eq!(
            fixture.counter("retention_runs_skipped_total").await,
            skipped
        );
        assert!(fixture.requests.try_recv().is_err());
    }
    // A clock that goes on evenly is believed again.
    sleep(HOUR).await;
    let (request, _) = fixture.requests.try_recv().unwrap();
    assert_eq!(request.idle_since, UnixSeconds(NOW.0 + 20 * DAY - 1));
}

#[actix::test]
async fn zero_days_keep_all_for_ever() {
    let mut fixture = Fixture::start(&Config {
        registrations_idle_days: 0,
        ..Config::default()
    });
    sleep(HOUR * 48).await;
    assert!(fixture.requests.try_recv().is_err());
}

#[actix::test]
async fn a_drain_ends_after_the_page_in_hand() {
    let mut fixture = Fixture::start(&Config::default());
    let (_, answer) = fixture.request().await;
    let drained = tokio::spawn(fixture.drain(Duration::from_secs(5)));
    assert_eq!(fixture.counter("retention_runs_total").await, 0);
    assert!(!drained.is_finished());
    answer.send(page(1_000, 0, cursor(1))).unwrap();
    assert_eq!(drained.await.unwrap().abandoned, 0);
    assert_eq!(fixture.drain(Duration::from_secs(5)).await.abandoned, 0);
    sleep(HOUR * 2).await;
    assert!(fixture.requests.try_recv().is_err());
}

#[actix::test]
async fn a_drain_does_not_wait_longer_than_told() {
    let mut fixture = Fixture::start(&Config::default());
    let (_, _never_answered) = fixture.request().await;
    assert_eq!(fixture.drain(Duration::from_secs(1)).await.abandoned, 1);
}
