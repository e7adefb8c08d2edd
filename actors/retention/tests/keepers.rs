//! Keepers of other things sweep them when asked, and the report says what was done.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::path::Path;
use std::time::Duration;

use actix::{Actor, Context, Handler, Recipient, ResponseFuture};
use messages::{
    Clock, Probe, ReadSweepReport, RegistrationKey, SweepCursor, SweepError, SweepExpired,
    SweepOutdated, SweepRun, SweptOutdated, SweptPage, UnixSeconds,
};
use retention::{Config, Edges, Handles};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

/// 2026-06-01T00:00:00Z.
const NOW: u64 = 1_780_272_000;

type Answer<T> = oneshot::Sender<T>;
type Swept = Result<SweptOutdated, SweepError>;

/// Passes what it is asked to the test, which answers.
struct Ask<M: actix::Message> {
    asked: mpsc::Sender<(M, Answer<M::Result>)>,
}

impl<M> Actor for Ask<M>
where
    M: actix::Message + Unpin + 'static,
{
    type Context = Context<Self>;
}

impl<M, T> Handler<M> for Ask<M>
where
    M: actix::Message<Result = T> + Unpin + 'static,
    T: 'static,
    ResponseFuture<T>: actix::dev::MessageResponse<Self, M>,
{
    type Result = ResponseFuture<T>;

    fn handle(&mut self, message: M, _: &mut Self::Context) -> Self::Result {
        let (answer, answered) = oneshot::channel();
        self.asked.try_send((message, answer)).unwrap();
        Box::pin(async { answered.await.unwrap() })
    }
}

struct Keeper {
    asked: mpsc::Receiver<(SweepOutdated, Answer<Swept>)>,
    sweep: Recipient<SweepOutdated>,
}

impl Keeper {
    fn start() -> Self {
        let (sender, asked) = mpsc::channel(100);
        let sweep = Ask { asked: sender }.start().recipient();
        Self { asked, sweep }
    }

    async fn answers(&mut self, swept: Swept) -> SweepOutdated {
        let (request, answer) = self.asked.recv().await.unwrap();
        answer.send(swept).unwrap();
        request
    }
}

struct Desk {
    retention: Handles,
    clock: Clock,
    registry: mpsc::Receiver<(
        SweepExpired,
        Answer<Result<SweptPage, messages::RegistryError>>,
    )>,
    segments: Keeper,
    cases: Keeper,
}

impl Desk {
    fn start(directory: &Path, registrations_idle_days: u32) -> Self {
        let (sender, registry) = mpsc::channel(100);
        let sweep = Ask { asked: sender }.start().recipient();
        let (segments, cases) = (Keeper::start(), Keeper::start());
        let config = Config {
            registrations_idle_days,
            report_file: directory.join("retention.json"),
            ..Config::default()
        };
        let clock = Clock::manual(UnixSeconds(NOW).millis());
        let edges = Edges {
            sweep,
            keepers: vec![
                ("segments", segments.sweep.clone()),
                ("cases", cases.sweep.clone()),
            ],
        };
        Self {
            retention: retention::start(&config, clock.clone(), edges),
            clock,
            registry,
            segments,
            cases,
        }
    }

    fn at(&self, now: u64) {
        self.clock.set(UnixSeconds(now).millis());
    }

    async fn runs(&self) -> Vec<(String, u64, Option<String>)> {
        let report = self.retention.report.send(ReadSweepReport).await.unwrap();
        report
            .runs
            .into_iter()
            .map(|run| (run.what, run.removed, run.failure))
            .collect()
    }

    async fn counter(&self, name: &str) -> u64 {
        let health = self.retention.probe.send(Probe).await.unwrap();
        let found = health.counters.iter().find(|(known, _)| *known == name);
        found.unwrap().1
    }

    async fn drain(self) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        let farewell = Duration::ZERO;
        let drain = messages::Drain { deadline, farewell };
        assert_eq!(self.retention.drain.send(drain).await.unwrap().abandoned, 0);
    }
}

const fn swept(removed: u64, more: bool) -> Swept {
    Ok(SweptOutdated { removed, more })
}

fn run(what: &str, removed: u64, failure: Option<&str>) -> (String, u64, Option<String>) {
    (what.to_owned(), removed, failure.map(str::to_owned))
}

/// With the time that an earlier process saw last.
fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let report = format!(r#"{{"seen_at": {NOW}}}"#);
    std::fs::write(directory.path().join("retention.json"), report).unwrap();
    directory
}

#[actix::test]
async fn keepers_are_asked_in_turn_until_they_have_no_more() {
    tokio::time::pause();
    let directory = directory();
    let mut desk = Desk::start(directory.path(), 0);
    let start = tokio::time::Instant::now();
    let first = desk.segments.answers(swept(100, true)).await;
    assert_eq!(first.now, UnixSeconds(NOW));
    assert_eq!(start.elapsed().as_secs(), 60);
    desk.segments.answers(swept(7, false)).await;
    desk.cases.answers(Err(SweepError::Busy)).await;
    desk.at(NOW + 300);
    let second = desk.segments.answers(swept(0, false)).await;
    assert_eq!(second.now, UnixSeconds(NOW + 300));
    assert_eq!(start.elapsed().as_secs(), 360);
    desk.cases.answers(swept(2, false)).await;
    desk.at(NOW + 600);
    desk.segments.answers(swept(0, false)).await;
    // The turn of the next says that of this one is over.
    let _turn = desk.cases.asked.recv().await.unwrap();
    assert_eq!(
        desk.runs().await,
        [
            run("segments", 107, None),
            run("cases", 0, Some("the keeper is busy")),
            run("cases", 2, None),
            // Instead of the one before, which found nothing either.
            run("segments", 0, None),
        ]
    );
    assert_eq!(desk.counter("retention_outdated_removed_total").await, 109);
    assert_eq!(desk.counter("retention_outdated_failed_total").await, 1);
}

#[actix::test]
async fn a_wrong_clock_removes_nothing_that_others_keep() {
    tokio::time::pause();
    let directory = directory();
    let mut desk = Desk::start(directory.path(), 0);
    desk.segments.answers(swept(0, false)).await;
    desk.cases.answers(swept(0, false)).await;
    desk.at(NOW + 40 * 24 * 3_600);
    sleep(Duration::from_secs(301)).await;
    assert!(desk.segments.asked.try_recv().is_err());
    assert_eq!(desk.counter("retention_outdated_skipped_total").await, 1);
    // A clock that goes on evenly for an hour is believed.
    desk.at(NOW + 40 * 24 * 3_600 + 300);
    desk.segments.answers(swept(0, false)).await;
    assert_eq!(desk.counter("retention_outdated_skipped_total").await, 12);
}

#[actix::test]
async fn a_clock_that_is_wrong_at_a_start_removes_nothing_for_an_hour() {
    const DAY: u64 = 24 * 3_600;
    tokio::time::pause();
    let directory = directory();
    let file = directory.path().join("retention.json");
    let seen_at = || {
        let report: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        report["seen_at"].as_u64().unwrap()
    };
    // Far ahead, or behind; what was not believed is not remembered.
    for wrong in [NOW + 200 * DAY, NOW - 2 * DAY] {
        let mut desk = Desk::start(directory.path(), 180);
        desk.at(wrong);
        sleep(Duration::from_secs(3_600)).await;
        assert!(desk.segments.asked.try_recv().is_err());
        assert!(desk.registry.try_recv().is_err());
        assert_eq!(desk.counter("retention_outdated_skipped_total").await, 12);
        assert_eq!(desk.counter("retention_runs_skipped_total").await, 1);
        desk.drain().await;
        assert_eq!(seen_at(), NOW);
    }
    // Nor is it where nothing is known of an earlier time.
    std::fs::remove_file(&file).unwrap();
    let mut desk = Desk::start(directory.path(), 180);
    let start = tokio::time::Instant::now();
    let (_, _unanswered) = desk.registry.recv().await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 60 + 3_600);
    desk.segments.answers(swept(0, false)).await;
    drop(desk);
}

#[actix::test]
async fn a_restart_forgets_neither_the_report_nor_where_the_sweep_stopped() {
    tokio::time::pause();
    let directory = directory();
    let mut desk = Desk::start(directory.path(), 180);
    let cursor = Some(SweepCursor(RegistrationKey([7; 16])));
    let (_, answer) = desk.registry.recv().await.unwrap();
    let page = SweptPage {
        scanned: 10,
        removed: 3,
        next: cursor,
    };
    answer.send(Ok(page)).unwrap();
    desk.segments.answers(swept(5, false)).await;
    desk.cases.answers(swept(0, false)).await;
    // The process ends in the middle of the run.
    let (_, answer) = desk.registry.recv().await.unwrap();
    answer.send(Err(messages::RegistryError::Stopping)).unwrap();
    let before = loop {
        let runs = desk.runs().await;
        if runs.len() == 3 {
            break runs;
        }
    };
    desk.drain().await;

    let mut desk = Desk::start(directory.path(), 180);
    assert_eq!(desk.runs().await, before);
    let (request, answer) = desk.registry.recv().await.unwrap();
    assert_eq!(request.after, cursor);
    let page = SweptPage {
        scanned: 1,
        removed: 1,
        next: None,
    };
    answer.send(Ok(page)).unwrap();
    let last = loop {
        let report = desk.retention.report.send(ReadSweepReport).await.unwrap();
        if report.runs.len() > before.len() {
            break report.runs.last().unwrap().clone();
        }
    };
    let expected = SweepRun {
        what: "registrations".to_owned(),
        started_at: UnixSeconds(NOW),
        ended_at: UnixSeconds(NOW),
        removed: 1,
        failure: None,
    };
    assert_eq!(last, expected);
    desk.drain().await;
    // The run was through, so the next begins at the beginning.
    let mut desk = Desk::start(directory.path(), 180);
    assert_eq!(desk.registry.recv().await.unwrap().0.after, None);
}
