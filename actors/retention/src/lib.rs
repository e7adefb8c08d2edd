//! Retention sweeping: what has outlived its purpose goes.
//!
//! Registrations are swept here, page by page; who keeps other things for a limited time sweeps them itself
//! when asked ([`SweepOutdated`]), every few minutes, so that nothing outlives its time by more than that.
//!
//! A tick starts a run through all registrations, one page per request, with a pause after each page so
//! that the registry stays free for others. A run that fails is taken up by the next tick where it
//! stopped, also after a restart. Nothing is swept while the clock is implausible: a wrong clock must not delete
//! anybody. What the runs did is kept in a file, with the last time seen, so that a clock that is wrong at a start is
//! noticed as well.

mod plausible;
mod report;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, MessageResult, Recipient,
    ResponseFuture, Supervised, Supervisor, WrapFuture,
};
use messages::{
    Clock, Drain, Drained, Health, Probe, ReadSweepReport, SweepExpired, SweepOutdated, SweepRun,
    SweptPage, UnixSeconds,
};
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::plausible::{Implausible, LastSeen};
use crate::report::Report;

/// How long the registry may take for one page.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// The first run comes soon, or a service that is restarted often would never sweep.
const FIRST_TICK_MAX: Duration = Duration::from_secs(60);
/// How often others are asked to sweep. They promise days; this is how much more it may be.
const OUTDATED_PERIOD: Duration = Duration::from_secs(5 * 60);
/// Things that others may remove in one step.
const OUTDATED_STEP: u32 = 100;
/// What registrations are called in the report.
const REGISTRATIONS: &str = "registrations";
const DAY_SECONDS: u64 = 24 * 60 * 60;

/// What is kept for how long.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seconds from one run to the next, at least 1.
    pub interval_seconds: u32,
    /// Days after which a registration goes that was neither renewed nor pushed successfully. 0 keeps
    /// all for ever.
    pub registrations_idle_days: u32,
    /// Registrations looked at per request, 1 to 10,000.
    pub page: u32,
    /// Milliseconds between two pages.
    pub pause_milliseconds: u32,
    /// File that keeps what the last runs did, created with mode 0600.
    pub report_file: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval_seconds: 3_600,
            registrations_idle_days: 180,
            page: 1_000,
            pause_milliseconds: 100,
            report_file: "/var/lib/campanile/retention.json".into(),
        }
    }
}

impl Config {
    fn interval(&self) -> Duration {
        Duration::from_secs(self.interval_seconds.max(1).into())
    }
}

/// Where retention sends.
pub struct Edges {
    /// Ends the idle registrations of one page.
    pub sweep: Recipient<SweepExpired>,
    /// Those who keep other things for a limited time, by what these are called in the report.
    pub keepers: Vec<(&'static str, Recipient<SweepOutdated>)>,
}

/// Where retention takes messages.
#[derive(Clone)]
pub struct Handles {
    /// Ends after the page in hand.
    pub drain: Recipient<Drain>,
    /// What the last runs did.
    pub report: Recipient<ReadSweepReport>,
    /// Counters.
    pub probe: Recipient<Probe>,
}

/// Starts retention on the current arbiter.
#[must_use]
pub fn start(config: &Config, clock: Clock, edges: Edges) -> Handles {
    let report = Report::open(&config.report_file);
    let retention = Retention {
        config: config.clone(),
        clock,
        edges,
        last_seen: LastSeen::after(report.seen_at(), tokio::time::Instant::now()),
        run: None,
        round: None,
        in_flight: 0,
        report,
        draining: None,
        counters: Counters::default(),
    };
    let address = Supervisor::start(|ctx: &mut Context<Retention>| {
        ctx.set_mailbox_capacity(0);
        retention
    });
    Handles {
        drain: address.clone().recipient(),
        report: address.clone().recipient(),
        probe: address.recipient(),
    }
}

struct Retention {
    config: Config,
    clock: Clock,
    edges: Edges,
    last_seen: LastSeen,
    /// The run through the registrations at work.
    run: Option<Run>,
    /// The round through the keepers at work.
    round: Option<Round>,
    /// Requests and writings that are not answered.
    in_flight: u32,
    /// What was done, and where a run through the registrations stopped.
    report: Report,
    /// Whom to tell the end of the page in hand; empty once told.
    draining: Option<Vec<oneshot::Sender<Drained>>>,
    counters: Counters,
}

#[derive(Clone, Copy)]
struct Run {
    started_at: UnixSeconds,
    idle_since: UnixSeconds,
    scanned: u64,
    removed: u64,
}

/// One keeper after the other is asked until it has no more.
#[derive(Clone, Copy)]
struct Round {
    now: UnixSeconds,
    /// The keeper that is asked, as a place in the edges.
    keeper: usize,
    /// When its turn began.
    started_at: UnixSeconds,
    removed: u64,
}

#[derive(Default)]
struct Counters {
    runs: u64,
    failed: u64,
    skipped: u64,
    last_scanned: u64,
    last_removed: u64,
    outdated_removed: u64,
    outdated_failed: u64,
    outdated_skipped: u64,
}

/// Time for a round through the keepers.
#[derive(Message)]
#[rtype(result = "()")]
struct Glance;

/// Time for a run.
#[derive(Message)]
#[rtype(result = "()")]
struct Tick;

/// Time for the next page of the run.
#[derive(Message)]
#[rtype(result = "()")]
struct NextPage;

/// The drain has taken as long as it may.
#[derive(Message)]
#[rtype(result = "()")]
struct GiveUp;

impl Retention {
    /// The time, if it is plausible.
    fn plausible_now(&mut self, ctx: &mut Context<Self>) -> Result<UnixSeconds, Implausible> {
        let now = self.clock.now();
        self.last_seen.judge(now, tokio::time::Instant::now())?;
        self.report.see(now);
        self.write_report(ctx);
        Ok(now)
    }

    fn sweep_page(&mut self, ctx: &mut Context<Self>) {
        let Some(run) = self.run else { return };
        if self.draining.is_some() {
            return;
        }
        self.in_flight += 1;
        let request = self.edges.sweep.send(SweepExpired {
            idle_since: run.idle_since,
            after: self.report.cursor(),
            limit: self.config.page.max(1),
        });
        ctx.spawn(
            request
                .timeout(TIME_LIMIT)
                .into_actor(self)
                .map(|answer, retention, ctx| {
                    match answer {
                        Ok(Ok(page)) => retention.swept(page, ctx),
                        Ok(Err(error)) => retention.failed(&error, ctx),
                        Err(error) => retention.failed(&error, ctx),
                    }
                    retention.landed();
                }),
        );
    }

    fn swept(&mut self, page: SweptPage, ctx: &mut Context<Self>) {
        let Some(run) = &mut self.run else { return };
        run.scanned += page.scanned;
        run.removed += page.removed;
        self.counters.last_scanned = run.scanned;
        self.counters.last_removed = run.removed;
        self.report.set_cursor(page.next);
        if page.next.is_some() {
            let pause = Duration::from_millis(self.config.pause_milliseconds.into());
            ctx.notify_later(NextPage, pause);
        } else {
            tracing::info!(
                scanned = run.scanned,
                removed = run.removed,
                "idle registrations swept"
            );
            self.counters.runs += 1;
            self.end_run(None);
        }
        self.write_report(ctx);
    }

    fn failed(&mut self, error: &dyn std::error::Error, ctx: &mut Context<Self>) {
        tracing::warn!("the sweep of idle registrations stopped until the next one: {error}");
        self.counters.failed += 1;
        self.end_run(Some(error.to_string()));
        self.write_report(ctx);
    }

    fn end_run(&mut self, failure: Option<String>) {
        if let Some(run) = self.run.take() {
            self.report.add(SweepRun {
                what: REGISTRATIONS.to_owned(),
                started_at: run.started_at,
                ended_at: self.clock.now(),
                removed: run.removed,
                failure,
            });
        }
    }

    /// Asks the keeper whose turn it is for a step.
    fn ask_keeper(&mut self, ctx: &mut Context<Self>) {
        let Some(round) = self.round else { return };
        let keeper = self.edges.keepers.get(round.keeper);
        let Some((_, sweep)) = keeper.filter(|_| self.draining.is_none()) else {
            self.round = None;
            return;
        };
        self.in_flight += 1;
        let request = sweep.send(SweepOutdated {
            now: round.now,
            limit: OUTDATED_STEP,
        });
        ctx.spawn(
            request
                .timeout(TIME_LIMIT)
                .into_actor(self)
                .map(|answer, retention, ctx| {
                    match answer {
                        Ok(Ok(swept)) => {
                            if let Some(round) = &mut retention.round {
                                round.removed += swept.removed;
                            }
                            if !swept.more {
                                retention.end_turn(None);
                            }
                        }
                        Ok(Err(error)) => retention.end_turn(Some(&error)),
                        Err(error) => retention.end_turn(Some(&error)),
                    }
                    retention.write_report(ctx);
                    retention.ask_keeper(ctx);
                    retention.landed();
                }),
        );
    }

    /// Ends the turn of a keeper and begins that of the next.
    fn end_turn(&mut self, failure: Option<&dyn std::error::Error>) {
        let Some(round) = &mut self.round else { return };
        let ended_at = self.clock.now();
        if let Some((what, _)) = self.edges.keepers.get(round.keeper) {
            if let Some(failure) = failure {
                tracing::warn!(what, "a sweep stopped until the next one: {failure}");
                self.counters.outdated_failed += 1;
            } else if round.removed > 0 {
                tracing::info!(
                    what,
                    removed = round.removed,
                    "what was outdated is removed"
                );
            }
            self.counters.outdated_removed += round.removed;
            self.report.add(SweepRun {
                what: (*what).to_owned(),
                started_at: round.started_at,
                ended_at,
                removed: round.removed,
                failure: failure.map(ToString::to_string),
            });
        }
        *round = Round {
            now: round.now,
            keeper: round.keeper + 1,
            started_at: ended_at,
            removed: 0,
        };
    }

    /// Writes the report, on a thread that may block.
    fn write_report(&mut self, ctx: &mut Context<Self>) {
        let Some(write) = self.report.pending_write() else {
            return;
        };
        self.in_flight += 1;
        let written = tokio::task::spawn_blocking(write);
        ctx.spawn(written.into_actor(self).map(|result, retention, ctx| {
            let result = result.unwrap_or_else(|error| Err(io::Error::other(error)));
            retention.report.written(result);
            // What came meanwhile.
            retention.write_report(ctx);
            retention.landed();
        }));
    }

    /// Something that was waited for is over.
    fn landed(&mut self) {
        self.in_flight -= 1;
        if self.in_flight == 0 {
            self.end_drain(0);
        }
    }

    fn end_drain(&mut self, abandoned: u64) {
        for answer in self
            .draining
            .iter_mut()
            .flat_map(|waiting| waiting.drain(..))
        {
            // Who asked may have given up.
            let _ = answer.send(Drained { abandoned });
        }
    }
}

impl Actor for Retention {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.notify_later(Tick, self.config.interval().min(FIRST_TICK_MAX));
        if !self.edges.keepers.is_empty() {
            ctx.notify_later(Glance, FIRST_TICK_MAX);
        }
    }
}

impl Supervised for Retention {}

impl Handler<Tick> for Retention {
    type Result = ();

    fn handle(&mut self, _: Tick, ctx: &mut Self::Context) {
        ctx.notify_later(Tick, self.config.interval());
        if self.draining.is_some() || self.config.registrations_idle_days == 0 {
            return;
        }
        let now = match self.plausible_now(ctx) {
            Ok(now) => now,
            Err(implausible) => {
                tracing::warn!("no registration is swept this time: {implausible}");
                self.counters.skipped += 1;
                return;
            }
        };
        if self.run.is_none() {
            let kept = u64::from(self.config.registrations_idle_days) * DAY_SECONDS;
            self.run = Some(Run {
                started_at: now,
                idle_since: UnixSeconds(now.0.saturating_sub(kept)),
                scanned: 0,
                removed: 0,
            });
            self.sweep_page(ctx);
        }
    }
}

impl Handler<Glance> for Retention {
    type Result = ();

    fn handle(&mut self, _: Glance, ctx: &mut Self::Context) {
        ctx.notify_later(Glance, OUTDATED_PERIOD);
        if self.draining.is_some() {
            return;
        }
        let now = match self.plausible_now(ctx) {
            Ok(now) => now,
            Err(implausible) => {
                tracing::warn!("nothing that is outdated is removed this time: {implausible}");
                self.counters.outdated_skipped += 1;
                return;
            }
        };
        if self.round.is_none() {
            self.round = Some(Round {
                now,
                keeper: 0,
                started_at: now,
                removed: 0,
            });
            self.ask_keeper(ctx);
        }
    }
}

impl Handler<ReadSweepReport> for Retention {
    type Result = MessageResult<ReadSweepReport>;

    fn handle(&mut self, _: ReadSweepReport, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.report.read())
    }
}

impl Handler<NextPage> for Retention {
    type Result = ();

    fn handle(&mut self, _: NextPage, ctx: &mut Self::Context) {
        self.sweep_page(ctx);
    }
}

impl Handler<GiveUp> for Retention {
    type Result = ();

    fn handle(&mut self, _: GiveUp, _: &mut Self::Context) {
        self.end_drain(1);
    }
}

impl Handler<Drain> for Retention {
    type Result = ResponseFuture<Drained>;

    fn handle(&mut self, drain: Drain, ctx: &mut Self::Context) -> Self::Result {
        let (answer, drained) = oneshot::channel();
        self.draining.get_or_insert_default().push(answer);
        if self.in_flight > 0 {
            let left = drain.deadline.saturating_duration_since(Instant::now());
            ctx.notify_later(GiveUp, left);
        } else {
            self.end_drain(0);
        }
        Box::pin(async { drained.await.unwrap_or_default() })
    }
}

impl Handler<Probe> for Retention {
    type Result = MessageResult<Probe>;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Self::Result {
        let counters = &self.counters;
        MessageResult(Health {
            counters: vec![
                ("retention_runs_total", counters.runs),
                ("retention_runs_failed_total", counters.failed),
                ("retention_runs_skipped_total", counters.skipped),
                (
                    "retention_last_run_scanned_registrations",
                    counters.last_scanned,
                ),
                (
                    "retention_last_run_removed_registrations",
                    counters.last_removed,
                ),
                (
                    "retention_outdated_removed_total",
                    counters.outdated_removed,
                ),
                ("retention_outdated_failed_total", counters.outdated_failed),
                (
                    "retention_outdated_skipped_total",
                    counters.outdated_skipped,
                ),
            ],
        })
    }
}
