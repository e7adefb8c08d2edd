//! Token-invalidation feedback: rejected tokens end their registrations.
//!
//! A dead token is rejected by each push until its registration is gone, so verdicts come in crowds:
//! they are de-duplicated for a while, collected while a request is under way, and handed to the
//! registry one batch at a time. What fails is tried again with a doubling, jittered delay. What finds
//! no room is dropped and counted; the next push of the token repeats the verdict.

mod recent;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, MessageResult, Recipient,
    ResponseFuture, SpawnHandle, Supervised, Supervisor, WrapFuture,
};
use messages::{
    Drain, Drained, Health, Probe, RejectedToken, RejectedTokens, RemoveTokens, Removed,
};
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::recent::Recent;

/// How long the registry may take for one batch.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// Most verdicts in one request, which the registry must manage within [`TIME_LIMIT`].
const BATCH_MAX: usize = 1_000;
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// How many verdicts are remembered and kept.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seconds for which a verdict on the same token is taken for a repetition.
    pub repetition_seconds: u32,
    /// Tokens remembered to recognise repetitions, at about 200 bytes each. Beyond that repetitions pass,
    /// which costs work and does no harm.
    pub remembered_max: u32,
    /// Verdicts that wait for the registry, at about 200 bytes each.
    pub queue_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            repetition_seconds: 60,
            remembered_max: 50_000,
            queue_max: 50_000,
        }
    }
}

/// Where feedback sends.
pub struct Edges {
    /// Ends registrations of dead tokens.
    pub remove: Recipient<RemoveTokens>,
}

/// Where feedback takes messages.
#[derive(Clone)]
pub struct Handles {
    /// Verdicts of APNs.
    pub rejected: Recipient<RejectedTokens>,
    /// Hands over what waits, then takes no more.
    pub drain: Recipient<Drain>,
    /// Counters.
    pub probe: Recipient<Probe>,
}

/// Starts feedback on the current arbiter.
#[must_use]
pub fn start(config: &Config, edges: Edges) -> Handles {
    let feedback = Feedback {
        edges,
        recent: Recent::new(
            Duration::from_secs(config.repetition_seconds.into()),
            size(config.remembered_max),
        ),
        queue: VecDeque::new(),
        queue_max: size(config.queue_max),
        in_flight: 0,
        retry: None,
        delay: RETRY_FIRST,
        draining: None,
        counters: Counters::default(),
    };
    let address = Supervisor::start(|ctx: &mut Context<Feedback>| {
        ctx.set_mailbox_capacity(0);
        feedback
    });
    Handles {
        rejected: address.clone().recipient(),
        drain: address.clone().recipient(),
        probe: address.recipient(),
    }
}

fn size(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

struct Feedback {
    edges: Edges,
    recent: Recent,
    /// Verdicts to hand over, oldest first. Those under way stay at its front until the registry has
    /// confirmed them.
    queue: VecDeque<RejectedToken>,
    queue_max: usize,
    /// How many of the queue are under way.
    in_flight: usize,
    /// The wait before the next attempt.
    retry: Option<SpawnHandle>,
    delay: Duration,
    /// Whom to tell the end of the drain; empty once told.
    draining: Option<Vec<oneshot::Sender<Drained>>>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    taken: u64,
    repeated: u64,
    dropped: u64,
    removed: u64,
    failed: u64,
}

/// Hand over what waits, unless a request is under way.
#[derive(Message)]
#[rtype(result = "()")]
struct HandOver;

/// The drain has taken as long as it may.
#[derive(Message)]
#[rtype(result = "()")]
struct GiveUp;

impl Feedback {
    fn hand_over(&mut self, ctx: &mut Context<Self>) {
        if self.in_flight > 0 {
            return;
        }
        if let Some(retry) = self.retry.take() {
            ctx.cancel_future(retry);
        }
        let items: Vec<_> = self.queue.iter().take(BATCH_MAX).cloned().collect();
        if items.is_empty() {
            self.end_drain(0);
            return;
        }
        self.in_flight = items.len();
        let request = self.edges.remove.send(RemoveTokens { items });
        ctx.spawn(
            request.timeout(TIME_LIMIT).into_actor(self).map(
                |answer, feedback, ctx| match answer {
                    Ok(Ok(removed)) => feedback.handed_over(removed, ctx),
                    Ok(Err(error)) => feedback.failed(&error, ctx),
                    Err(error) => feedback.failed(&error, ctx),
                },
            ),
        );
    }

    fn handed_over(&mut self, removed: Removed, ctx: &mut Context<Self>) {
        self.counters.removed += removed.count;
        self.queue.drain(..self.in_flight.min(self.queue.len()));
        self.in_flight = 0;
        self.delay = RETRY_FIRST;
        self.hand_over(ctx);
    }

    fn failed(&mut self, error: &dyn std::error::Error, ctx: &mut Context<Self>) {
        self.counters.failed += 1;
        self.in_flight = 0;
        // Between half of the delay and all of it, so that retries of several causes spread.
        let wait = self.delay.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.delay = (self.delay * 2).min(RETRY_MAX);
        tracing::warn!(
            waiting = self.queue.len(),
            retry_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
            "registrations of dead tokens could not be ended: {error}"
        );
        self.retry = Some(ctx.notify_later(HandOver, wait));
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

impl Actor for Feedback {
    type Context = Context<Self>;
}

impl Supervised for Feedback {}

impl Handler<RejectedTokens> for Feedback {
    type Result = ();

    fn handle(&mut self, rejected: RejectedTokens, ctx: &mut Self::Context) {
        let now = tokio::time::Instant::now();
        for item in rejected.items {
            if self.draining.is_some() || self.queue.len() >= self.queue_max {
                self.counters.dropped += 1;
            } else if self.recent.repeats(&item, now) {
                self.counters.repeated += 1;
            } else {
                self.counters.taken += 1;
                self.queue.push_back(item);
            }
        }
        // While a retry waits, the registry is not asked sooner because of more verdicts.
        if self.retry.is_none() && !self.queue.is_empty() {
            self.hand_over(ctx);
        }
    }
}

impl Handler<HandOver> for Feedback {
    type Result = ();

    fn handle(&mut self, _: HandOver, ctx: &mut Self::Context) {
        self.retry = None;
        self.hand_over(ctx);
    }
}

impl Handler<GiveUp> for Feedback {
    type Result = ();

    fn handle(&mut self, _: GiveUp, _: &mut Self::Context) {
        self.end_drain(self.queue.len() as u64);
    }
}

impl Handler<Drain> for Feedback {
    type Result = ResponseFuture<Drained>;

    fn handle(&mut self, drain: Drain, ctx: &mut Self::Context) -> Self::Result {
        let (answer, drained) = oneshot::channel();
        self.draining.get_or_insert_default().push(answer);
        let left = drain.deadline.saturating_duration_since(Instant::now());
        ctx.notify_later(GiveUp, left);
        self.delay = RETRY_FIRST;
        self.hand_over(ctx);
        Box::pin(async { drained.await.unwrap_or_default() })
    }
}

impl Handler<Probe> for Feedback {
    type Result = MessageResult<Probe>;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Self::Result {
        let counters = &self.counters;
        MessageResult(Health {
            counters: vec![
                ("feedback_verdicts_waiting", self.queue.len() as u64),
                ("feedback_verdicts_taken_total", counters.taken),
                ("feedback_verdicts_repeated_total", counters.repeated),
                ("feedback_verdicts_dropped_total", counters.dropped),
                ("feedback_requests_failed_total", counters.failed),
                ("feedback_registrations_removed_total", counters.removed),
            ],
        })
    }
}
