//! Retention sweeping: what has outlived its purpose goes.
//!
//! A tick starts a run through all registrations, one page per request, with a pause after each page so
//! that the registry stays free for others. A run that fails is taken up by the next tick where it
//! stopped. Nothing is swept while the clock is implausible: a wrong clock must not delete anybody.

mod plausible;

use std::time::{Duration, Instant};

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, MessageResult, Recipient,
    ResponseFuture, Supervised, Supervisor, WrapFuture,
};
use messages::{
    Clock, Drain, Drained, Health, Probe, SweepCursor, SweepExpired, SweptPage, UnixSeconds,
};
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::plausible::LastSeen;

/// How long the registry may take for one page.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// The first run comes soon, or a service that is restarted often would never sweep.
const FIRST_TICK_MAX: Duration = Duration::from_secs(60);
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
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval_seconds: 3_600,
            registrations_idle_days: 180,
            page: 1_000,
            pause_milliseconds: 100,
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
}

/// Where retention takes messages.
#[derive(Clone)]
pub struct Handles {
    /// Ends after the page in hand.
    pub drain: Recipient<Drain>,
    /// Counters.
    pub probe: Recipient<Probe>,
}

/// Starts retention on the current arbiter.
#[must_use]
pub fn start(config: &Config, clock: Clock, edges: Edges) -> Handles {
    let retention = Retention {
        config: config.clone(),
        clock,
        edges,
        last_seen: LastSeen::default(),
        run: None,
        in_flight: false,
        cursor: None,
        draining: None,
        counters: Counters::default(),
    };
    let address = Supervisor::start(|ctx: &mut Context<Retention>| {
        ctx.set_mailbox_capacity(0);
        retention
    });
    Handles {
        drain: address.clone().recipient(),
        probe: address.recipient(),
    }
}

struct Retention {
    config: Config,
    clock: Clock,
    edges: Edges,
    last_seen: LastSeen,
    /// The run at work.
    run: Option<Run>,
    /// Whether a page is with the registry.
    in_flight: bool,
    /// Where a failed run stopped.
    cursor: Option<SweepCursor>,
    /// Whom to tell the end of the page in hand; empty once told.
    draining: Option<Vec<oneshot::Sender<Drained>>>,
    counters: Counters,
}

#[derive(Clone, Copy)]
struct Run {
    idle_since: UnixSeconds,
    scanned: u64,
    removed: u64,
}

#[derive(Default)]
struct Counters {
    runs: u64,
    failed: u64,
    skipped: u64,
    last_scanned: u64,
    last_removed: u64,
}

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
    fn sweep_page(&mut self, ctx: &mut Context<Self>) {
        let Some(run) = self.run else { return };
        if self.draining.is_some() {
            return;
        }
        self.in_flight = true;
        let request = self.edges.sweep.send(SweepExpired {
            idle_since: run.idle_since,
            after: self.cursor,
            limit: self.config.page.max(1),
        });
        ctx.spawn(
            request
                .timeout(TIME_LIMIT)
                .into_actor(self)
                .map(|answer, retention, ctx| {
                    retention.in_flight = false;
                    match answer {
                        Ok(Ok(page)) => retention.swept(page, ctx),
                        Ok(Err(error)) => retention.failed(&error),
                        Err(error) => retention.failed(&error),
                    }
                    retention.end_drain(0);
                }),
        );
    }

    fn swept(&mut self, page: SweptPage, ctx: &mut Context<Self>) {
        let Some(run) = &mut self.run else { return };
        run.scanned += page.scanned;
        run.removed += page.removed;
        self.counters.last_scanned = run.scanned;
        self.counters.last_removed = run.removed;
        self.cursor = page.next;
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
            self.run = None;
        }
    }

    fn failed(&mut self, error: &dyn std::error::Error) {
        tracing::warn!("the sweep of idle registrations stopped until the next one: {error}");
        self.counters.failed += 1;
        self.run = None;
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
        let now = self.clock.now();
        if let Err(implausible) = self.last_seen.judge(now, tokio::time::Instant::now()) {
            tracing::warn!("nothing is swept this time: {implausible}");
            self.counters.skipped += 1;
            return;
        }
        if self.run.is_none() {
            let kept = u64::from(self.config.registrations_idle_days) * DAY_SECONDS;
            self.run = Some(Run {
                idle_since: UnixSeconds(now.0.saturating_sub(kept)),
                scanned: 0,
                removed: 0,
            });
            self.sweep_page(ctx);
        }
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
        if self.in_flight {
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
            ],
        })
    }
}
