//! The actor of a lane: takes pushes in, hands them to the routes, keeps the time, and drains.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::{
    Actor, AsyncContext, Context, Handler, Recipient, ResponseFuture, Supervised, Supervisor,
};
use messages::{
    DeadPushBatch, DeliverBatch, Domain, Drain, Drained, ErrorReason, Health, JournalBatch, Probe,
    ProviderTokenRefused, PushOutcome, RejectedTokens, Rejection, SubscribeProviderToken,
    SubscribeWithdrawals, TouchBatch, UseProviderToken, Withdraw,
};
use tokio::time::{Instant, timeout_at};

use crate::Upstreams;
use crate::alarm::Alarm;
use crate::breaker::Family;
use crate::class::Class;
use crate::ledger::{Ledger, Owed, count};
use crate::push::{Push, Tries, new_id};
use crate::route::{Lane, Route};
use crate::upstream::App;

/// How often deadlines and pauses are looked at: one timer per lane instead of one per push.
const TICK: Duration = Duration::from_millis(100);

/// How long connections may take to close once a drain is over.
const FAREWELL: Duration = Duration::from_secs(1);

/// Who learns what besides the origins of the pushes.
#[derive(Clone)]
pub struct Edges {
    /// Learns of verdicts: of all but successes that say nothing new.
    pub touch: Recipient<TouchBatch>,
    /// Learns of dead device tokens.
    pub rejected: Recipient<RejectedTokens>,
    /// Answers the iqs of pushes to dead device tokens.
    pub dead_pushes: Recipient<DeadPushBatch>,
    /// Learns what each push was told; `None` if pushes are not recorded.
    pub journal: Option<Recipient<JournalBatch>>,
    /// Hands out provider tokens: [`crate::provider_tokens`].
    pub subscribe: Recipient<SubscribeProviderToken>,
    /// Learns of provider tokens called expired: [`crate::provider_tokens`].
    pub refused: Recipient<ProviderTokenRefused>,
    /// Tells which registrations end or change.
    pub withdrawals: Recipient<SubscribeWithdrawals>,
}

/// Where to reach the actor.
#[derive(Clone)]
pub struct Handles {
    /// Takes pushes. Each ticket is told exactly one outcome.
    pub deliver: Recipient<DeliverBatch>,
    /// Finishes what is in hand; what is left at the deadline is `Unavailable`.
    pub drain: Recipient<Drain>,
    /// Reads the counters.
    pub probe: Recipient<Probe>,
}

/// Starts the pools of one lane on the current arbiter. Connections open with the first push.
#[must_use]
pub fn start(upstreams: &Upstreams, edges: Edges) -> Handles {
    let upstreams = upstreams.clone();
    let addr = Supervisor::start(move |ctx: &mut Context<Pool>| {
        ctx.set_mailbox_capacity(0);
        Pool::new(upstreams, edges)
    });
    Handles {
        deliver: addr.clone().recipient(),
        drain: addr.clone().recipient(),
        probe: addr.recipient(),
    }
}

struct Pool {
    lane: Rc<Lane>,
    /// One per upstream, in their order.
    routes: Vec<Rc<Route>>,
    subscribe: Recipient<SubscribeProviderToken>,
    withdrawals: Recipient<SubscribeWithdrawals>,
    defer_before: Duration,
    fresh: Duration,
    draining: bool,
    alarm: Alarm,
}

impl Pool {
    fn new(upstreams: Upstreams, edges: Edges) -> Self {
        let config = upstreams.config();
        let defer_before = Duration::from_millis(config.defer_before_ms);
        let fresh = Duration::from_secs(config.fresh_seconds);
        let alarm = Alarm::new(Duration::from_secs(config.alarm_interval_seconds));
        let lane = Rc::new(Lane {
            ledger: Rc::new(Ledger::new(
                config.success_interval_seconds,
                edges.touch,
                edges.rejected,
                edges.dead_pushes,
                edges.journal,
            )),
            refused: edges.refused,
            closed: Cell::new(false),
            upstreams,
        });
        let now = Instant::now();
        let routes = lane
            .upstreams
            .all()
            .iter()
            .map(|upstream| Rc::new(Route::new(Rc::clone(&lane), Arc::clone(upstream), now)))
            .collect();
        Self {
            lane,
            routes,
            subscribe: edges.subscribe,
            withdrawals: edges.withdrawals,
            defer_before,
            fresh,
            draining: false,
            alarm,
        }
    }

    fn tick(&self) {
        let now = Instant::now();
        if self.lane.ledger.is_due(now) {
            for route in &self.routes {
                route.tell_refused(now);
            }
        }
        self.lane.ledger.defer_due(now);
        for route in &self.routes {
            route.tick(now);
        }
        self.lane.ledger.flush();
        self.lane.ledger.flush_records();
    }
}

impl Actor for Pool {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        for route in &self.routes {
            let Some(key) = &route.upstream.key else {
                continue;
            };
            let subscription = SubscribeProviderToken {
                key: key.id().clone(),
                subscriber: ctx.address().recipient(),
            };
            if self.subscribe.try_send(subscription).is_err() {
                tracing::error!(
                    key = ?key.id(),
                    "nobody signs provider tokens: nothing can be sent"
                );
            }
        }
        let subscription = SubscribeWithdrawals {
            subscriber: ctx.address().recipient(),
        };
        if self.withdrawals.try_send(subscription).is_err() {
            tracing::error!("nobody tells which registrations end: what waits for them is sent");
        }
        ctx.run_interval(TICK, |pool, _| pool.tick());
    }
}

impl Supervised for Pool {}

impl Handler<DeliverBatch> for Pool {
    type Result = ();

    fn handle(&mut self, mut batch: DeliverBatch, _: &mut Self::Context) {
        let now = Instant::now();
        let ledger = &self.lane.ledger;
        let due = Instant::from_std(batch.deadline)
            .checked_sub(self.defer_before)
            .unwrap_or(now);
        let claims = ledger.claims(
            batch.origin,
            due,
            batch.items.iter_mut().map(|item| Owed {
                ticket: item.ticket,
                trace: item.trace.take().map(|trace| (item.registration, trace)),
            }),
        );
        // Most of a batch is for one app, and of one server.
        let mut last: Option<(&Arc<App>, &Rc<Route>)> = None;
        let mut last_server: Option<(Domain, Family)> = None;
        for (item, claim) in batch.items.into_iter().zip(claims) {
            let serial = ledger.counters.received.get();
            count(&ledger.counters.received);
            if self.draining {
                claim.settle(PushOutcome::Rejected(Rejection::Unavailable));
                continue;
            }
            last = last.filter(|(app, _)| app.id == item.app).or_else(|| {
                let app = self.lane.upstreams.app(&item.app)?;
                Some((app, self.routes.get(app.upstream)?))
            });
            let Some((app, route)) = last else {
                if let Some(held_back) = self.alarm.rings(&ErrorReason::known("app"), now) {
                    tracing::error!(
                        app = %item.app,
                        held_back,
                        "registrations name an app that is not configured: they are kept; add it to \
                         [apps] again"
                    );
                }
                claim.settle(PushOutcome::Rejected(Rejection::Unavailable));
                continue;
            };
            let family = match &last_server {
                Some((domain, family)) if *domain == item.domain => *family,
                _ => {
                    let family = Family::from(&item.domain);
                    last_server = Some((item.domain.clone(), family));
                    family
                }
            };
            route.enqueue(Push {
                serial,
                claim,
                registration: item.registration,
                device_token: item.device_token,
                acceptance: item.acceptance,
                domain: item.domain,
                family,
                app: Arc::clone(app),
                class: Class::of(item.hint),
                message_count: item.hint.message_count,
                content: item
                    .content
                    .and_then(|content| content.limited_to(app.disclosure))
                    .map(Box::new),
                id: new_id(),
                fresh_until: now + self.fresh,
                tries: Tries::default(),
            });
        }
        for route in &self.routes {
            route.dispatch(now);
        }
        ledger.flush();
    }
}

impl Handler<UseProviderToken> for Pool {
    type Result = ();

    fn handle(&mut self, message: UseProviderToken, _: &mut Self::Context) {
        let now = Instant::now();
        for route in &self.routes {
            let key = route.upstream.key.as_ref();
            if key.is_some_and(|key| *key.id() == message.key) {
                route.use_token(&message, now);
            }
        }
    }
}

impl Handler<Withdraw> for Pool {
    type Result = ();

    fn handle(&mut self, withdraw: Withdraw, _: &mut Self::Context) {
        for by in &withdraw.items {
            for route in &self.routes {
                route.withdraw(by);
            }
            self.lane.ledger.forget(by.registration);
        }
        let ledger = &self.lane.ledger;
        ledger.flush();
        // What an erasure withdraws is told to the journal before that is erased as well.
        ledger.flush_records();
    }
}

impl Handler<Drain> for Pool {
    type Result = ResponseFuture<Drained>;

    fn handle(&mut self, drain: Drain, _: &mut Self::Context) -> Self::Result {
        self.draining = true;
        for route in &self.routes {
            route.drain(Instant::now());
        }
        let lane = Rc::clone(&self.lane);
        let routes = self.routes.clone();
        Box::pin(async move {
            let deadline = Instant::from_std(drain.deadline);
            let ledger = &lane.ledger;
            while ledger.open() > 0 && timeout_at(deadline, ledger.changed()).await.is_ok() {}
            // Whoever waits for an outcome counts it as given up; nobody else knows of the others.
            let unowed = ledger.open().saturating_sub(ledger.owed()) as u64;
            let held: u64 = routes.iter().map(|route| route.abandoned()).sum();
            ledger.settle_all(PushOutcome::Rejected(Rejection::Unavailable));
            lane.closed.set(true);
            for route in &routes {
                route.close();
            }
            ledger.flush();
            ledger.flush_records();
            let farewell = drain.closed_by(Instant::now().into_std(), FAREWELL).into();
            while routes.iter().any(|route| route.connections().0 > 0)
                && timeout_at(farewell, ledger.changed()).await.is_ok()
            {}
            // What a connection brought on its way out.
            ledger.flush_records();
            Drained {
                abandoned: unowed + held,
            }
        })
    }
}

impl Handler<Probe> for Pool {
    type Result = Health;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Health {
        let counters = &self.lane.ledger.counters;
        let queued: usize = self.routes.iter().map(|route| route.queued()).sum();
        let held: usize = self.routes.iter().map(|route| route.held()).sum();
        let (connections, in_flight) = self
            .routes
            .iter()
            .map(|route| route.connections())
            .fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1));
        Health {
            counters: vec![
                ("apns_pushes_received_total", counters.received.get()),
                ("apns_outcomes_accepted_total", counters.accepted.get()),
                ("apns_outcomes_rejected_total", counters.rejected.get()),
                ("apns_outcomes_deferred_total", counters.deferred.get()),
                ("apns_pushes_overloaded_total", counters.overloaded.get()),
                ("apns_pushes_expired_total", counters.expired.get()),
                ("apns_pushes_superseded_total", counters.superseded.get()),
                ("apns_pushes_withdrawn_total", counters.withdrawn.get()),
                ("apns_pushes_repeated_total", counters.repeated.get()),
                ("apns_pushes_resent_total", counters.resent.get()),
                ("apns_pushes_doubtful_total", counters.doubtful.get()),
                ("apns_requests_timed_out_total", counters.timed_out.get()),
                ("apns_reasons_unknown_total", counters.unknown_reasons.get()),
                ("apns_connections_opened_total", counters.connections.get()),
                (
                    "apns_connects_failed_total",
                    counters.connect_failures.get(),
                ),
                ("apns_messages_lost_total", counters.messages_lost.get()),
                ("apns_pushes_queued", queued as u64),
                ("apns_devices_held", held as u64),
                ("apns_pushes_in_flight", in_flight as u64),
                ("apns_connections_open", connections as u64),
            ],
        }
    }
}
