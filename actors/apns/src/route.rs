//! The pushes of one lane for one upstream: what waits, and the connections that take it.
//!
//! Connections pull: a connection with a free stream takes the next push, so that nothing ever queues
//! inside h2, ahead of any deadline. Pushes that pause or wait for a provider token hold no stream.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use actix::Recipient;
use http::HeaderValue;
use messages::{
    ErrorReason, ProviderTokenRefused, PushOutcome, Rejection, UnixSeconds, UseProviderToken,
    Withdrawal,
};
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::backoff::{self, Backoff};
use crate::breaker::{Admission, Standing};
use crate::connection::WORDS_MAX;
use crate::ledger::{Ledger, count};
use crate::provider_tokens::AGE_MIN;
use crate::push::Push;
use crate::reply::Loss;
use crate::upstream::Upstream;
use crate::waiting::Waiting;
use crate::{Error, Upstreams, connection, request};

/// How often failed connections of one upstream get a line.
const CONNECT_ALARM: Duration = Duration::from_secs(10);

/// Where fewer than one of so many answers were good, a connection that APNs ended is followed by a pause.
const GOOD_SHARE: usize = 4;

/// The longest such pause: long enough not to look like an attack, and short enough for those whose device
/// tokens are good, since whoever may register can bring it about.
const UNWELCOME_MAX: Duration = Duration::from_secs(2);

/// How often waiting pushes are looked through for those that are not fresh any more.
const EXPIRY_CHECK: Duration = Duration::from_secs(1);

/// How long before its end a push is tried once more that had to wait for longer.
const LAST_TRY: Duration = Duration::from_secs(5);

/// So many connections in a row that call the provider token expired are the rule. One may be wrong.
const EXPIRATIONS_MAX: u32 = 3;

/// What the routes of one lane share.
pub(crate) struct Lane {
    pub(crate) upstreams: Upstreams,
    pub(crate) ledger: Rc<Ledger>,
    pub(crate) refused: Recipient<ProviderTokenRefused>,
    /// The drain is over: connections end.
    pub(crate) closed: Cell<bool>,
}

/// One upstream as one lane sees it.
pub(crate) struct Route {
    pub(crate) lane: Rc<Lane>,
    pub(crate) upstream: Arc<Upstream>,
    waiting: RefCell<Waiting<Push>>,
    links: RefCell<Vec<Rc<Link>>>,
    backoff: RefCell<Backoff>,
    /// After connections that APNs ended because of what they brought.
    unwelcome: RefCell<Backoff>,
    token: RefCell<Option<Token>>,
    /// The token was called expired: it is not used before, unless a newer one comes.
    token_held_until: Cell<Option<Instant>>,
    /// How many connections have called it expired since it was last taken.
    expirations: Cell<u32>,
    /// Since when APNs has called the token one too many, and taken none.
    one_too_many: Cell<Option<Instant>>,
    expiry_due: Cell<Instant>,
    /// Nothing new is taken.
    draining: Cell<bool>,
    /// Requests were lost in doubt since a connection last carried as many as it may.
    cautious: Cell<bool>,
    /// On connections that fail.
    alarm: Alarm,
}

/// The provider token in use.
#[derive(Clone)]
pub(crate) struct Token {
    /// Nothing when the connection's certificate says it.
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) issued_at: UnixSeconds,
    /// Which key in its file signed it.
    generation: u64,
}

/// One connection as its route sees it.
pub(crate) struct Link {
    pub(crate) phase: Cell<Phase>,
    pub(crate) in_flight: Cell<usize>,
    pub(crate) limit: Cell<usize>,
    /// APNs took a provider token on it: from then on it carries more than one push.
    pub(crate) proven: Cell<bool>,
    pub(crate) waker: Cell<Option<Waker>>,
}

/// The life of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not usable yet.
    Opening,
    /// Takes pushes.
    Ready,
    /// Takes no more, waits for answers.
    Draining,
}

impl Link {
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Route {
    pub(crate) fn new(lane: Rc<Lane>, upstream: Arc<Upstream>, now: Instant) -> Self {
        let limits = lane.upstreams.config().backoff();
        let unwelcome = Backoff::new((limits.0, limits.1.min(UNWELCOME_MAX)));
        let none_needed = Token {
            authorization: None,
            issued_at: UnixSeconds(0),
            generation: 0,
        };
        let token = upstream.key.is_none().then_some(none_needed);
        Self {
            lane,
            upstream,
            waiting: RefCell::default(),
            links: RefCell::default(),
            backoff: RefCell::new(Backoff::new(limits)),
            unwelcome: RefCell::new(unwelcome),
            token: RefCell::new(token),
            token_held_until: Cell::default(),
            expirations: Cell::default(),
            one_too_many: Cell::default(),
            expiry_due: Cell::new(now + EXPIRY_CHECK),
            draining: Cell::default(),
            cautious: Cell::default(),
            alarm: Alarm::new(CONNECT_ALARM),
        }
    }

    /// Takes a new push in, or answers that there is no room.
    pub(crate) fn enqueue(&self, push: Push) {
        let max = self.lane.upstreams.config().queue_max;
        let refused = self.waiting.borrow_mut().queue(push, max);
        if let Err(push) = refused {
            count(&self.lane.ledger.counters.overloaded);
            push.claim
                .settle(PushOutcome::Rejected(Rejection::Overloaded));
        }
    }

    /// The next push to send. What is not worth sending is answered on the way.
    pub(crate) fn next(&self, now: Instant) -> Option<Push> {
        let mut waiting = self.waiting.borrow_mut();
        loop {
            let push = waiting.next()?;
            let app = &push.app;
            if now >= push.fresh_until {
                self.give_up(&push);
                continue;
            }
            if app.guard.suspends(|| push.mark(), now) {
                push.claim
                    .settle(PushOutcome::Rejected(Rejection::Unavailable));
                continue;
            }
            let standing = || match push.was_accepted() {
                true => Standing::Proven,
                false => app.guard.standing(push.mark(), now),
            };
            match app.breaker.admits(push.family, standing, now) {
                Admission::Go => return Some(push),
                Admission::Wait(until) if !self.draining.get() => waiting.pause(push, until),
                Admission::Wait(_) | Admission::Refuse => push
                    .claim
                    .settle(PushOutcome::Rejected(Rejection::Unavailable)),
            }
        }
    }

    /// The provider token to send with, if there is one to use.
    pub(crate) fn token(&self, now: Instant) -> Option<Token> {
        if self.token_held_until.get().is_some_and(|until| now < until) {
            return None;
        }
        self.token.borrow().clone()
    }

    /// Uses a fresh provider token from now on; pushes that waited for it go again. They do so too when it is the
    /// one that there was: there is no newer one, and unless all connections refuse it, it has to do.
    pub(crate) fn use_token(self: &Rc<Self>, message: &UseProviderToken, now: Instant) {
        let Ok(authorization) = request::authorization(&message.bearer) else {
            tracing::error!(key = ?message.key, "a provider token is no header value");
            return;
        };
        let generation = self.upstream.key.as_ref().map_or(0, |key| key.generation());
        let last = self
            .token
            .borrow()
            .as_ref()
            .map(|token| (token.issued_at, token.generation));
        if last.is_some_and(|(_, last)| last != generation) {
            // The file has another key, and each connection belongs to the key of its first push.
            self.leave_all();
        }
        if last != Some((message.issued_at, generation)) {
            *self.token.borrow_mut() = Some(Token {
                authorization: Some(authorization),
                issued_at: message.issued_at,
                generation,
            });
            self.expirations.set(0);
            self.release();
        } else if self.expirations.get() < EXPIRATIONS_MAX {
            self.release();
        }
        self.dispatch(now);
    }

    fn release(&self) {
        if self.token_held_until.take().is_some() {
            self.waiting.borrow_mut().unpark();
        }
    }

    /// The connections there are take no more pushes, and end when all is answered.
    fn leave_all(&self) {
        for link in self.links.borrow().iter() {
            if link.phase.get() == Phase::Ready {
                link.phase.set(Phase::Draining);
                link.wake();
            }
        }
    }

    /// Whether another connection takes pushes.
    pub(crate) fn has_ready_beside(&self, one: &Rc<Link>) -> bool {
        self.links
            .borrow()
            .iter()
            .any(|link| !Rc::ptr_eq(link, one) && link.phase.get() == Phase::Ready)
    }

    /// A connection called the provider token of `issued_at` too old, as it had not before. Until it is known
    /// whether there is a newer one nothing is sent.
    pub(crate) fn token_expired(&self, issued_at: UnixSeconds, now: Instant) {
        if self.has_replaced(issued_at) {
            return;
        }
        self.expirations.set(self.expirations.get() + 1);
        if self.token(now).is_none() {
            return;
        }
        // The signer answers by a newer one, or by the same if there may be none yet: for up to 20 minutes. A
        // token that all connections refuse is tried again now and then, for the case that the fault was not
        // ours.
        self.token_held_until
            .set(Some(now + self.lane.upstreams.config().backoff().1));
        let Some(key) = &self.upstream.key else {
            return;
        };
        let refused = ProviderTokenRefused {
            key: key.id().clone(),
            issued_at,
        };
        if self.lane.refused.try_send(refused).is_err() {
            count(&self.lane.ledger.counters.messages_lost);
        }
    }

    /// Sends a push again whose provider token was too old, now or as soon as there is one to use.
    pub(crate) fn park(&self, push: Push, now: Instant) {
        let mut waiting = self.waiting.borrow_mut();
        match self.token(now) {
            Some(_) => waiting.repeat(push),
            None => waiting.park(push),
        }
    }

    fn has_replaced(&self, issued_at: UnixSeconds) -> bool {
        let token = self.token.borrow();
        token
            .as_ref()
            .is_some_and(|token| token.issued_at != issued_at)
    }

    /// APNs has looked at a push with the token of `issued_at`: whoever calls it expired is wrong.
    pub(crate) fn token_proven(&self, issued_at: UnixSeconds) {
        if self.expirations.get() > 0 && !self.has_replaced(issued_at) {
            self.expirations.set(0);
            self.release();
        }
    }

    /// APNs has called the token one too many of its team.
    pub(crate) fn token_not_allowed(&self, now: Instant) {
        let since = self.one_too_many.get();
        if since.is_none_or(|since| now >= since + AGE_MIN) {
            self.one_too_many.set(Some(now));
        }
    }

    /// APNs has taken the token.
    pub(crate) fn token_taken(&self) {
        self.one_too_many.set(None);
    }

    /// Tells those that must be told something now that their pushes will hardly go, if APNs may refuse the
    /// token for longer than a push stays fresh.
    pub(crate) fn tell_refused(&self, now: Instant) {
        let fresh = Duration::from_secs(self.lane.upstreams.config().fresh_seconds);
        let until = self.one_too_many.get().map(|since| since + AGE_MIN);
        if until.is_none_or(|until| until <= now + fresh) {
            return;
        }
        self.waiting.borrow_mut().retain(|push| {
            if push.claim.is_due(now) {
                push.claim
                    .settle(PushOutcome::Rejected(Rejection::Unavailable));
            }
            true
        });
    }

    /// Sends a push again at once: APNs has certainly not processed it. After many such times it pauses,
    /// so that no peer can keep us in a loop.
    pub(crate) fn repeat(&self, push: Push, now: Instant) {
        if let Some(push) = self.repeatable(push, now) {
            self.waiting.borrow_mut().repeat(push);
        }
    }

    /// The same for a push that APNs has not even looked at: the turn it took was none.
    pub(crate) fn repeat_in_turn(&self, push: Push, now: Instant) {
        if let Some(push) = self.repeatable(push, now) {
            self.waiting.borrow_mut().repeat_in_turn(push);
        }
    }

    fn repeatable(&self, mut push: Push, now: Instant) -> Option<Push> {
        if push.tries.unprocessed >= self.lane.upstreams.config().repeats_max {
            self.pause(push, None, now);
            return None;
        }
        push.tries.unprocessed += 1;
        count(&self.lane.ledger.counters.repeated);
        Some(push)
    }

    /// APNs calls the device token of a push bad.
    pub(crate) fn charge(&self, push: &Push) {
        self.waiting.borrow_mut().charge(push);
    }

    /// A registration has ended or has another device token: what waits for it does not go.
    pub(crate) fn withdraw(&self, by: &Withdrawal) {
        self.waiting.borrow_mut().withdraw(by);
    }

    /// A request ended without an answer. In doubt a push goes again with the same id: at once the first
    /// time, then after a pause, up to a number of times that bounds what a device may be shown twice.
    pub(crate) fn lost(&self, mut push: Push, loss: Loss, now: Instant) {
        let counters = &self.lane.ledger.counters;
        let rejection = match loss {
            Loss::Unprocessed => {
                self.repeat_in_turn(push, now);
                return;
            }
            Loss::TimedOut => {
                count(&counters.timed_out);
                Rejection::TimedOut
            }
            Loss::Broken => Rejection::Unavailable,
        };
        self.cautious.set(true);
        if push.tries.resent >= self.lane.upstreams.config().resends_max {
            count(&counters.doubtful);
            push.claim.settle(PushOutcome::Rejected(rejection));
            return;
        }
        push.tries.resent += 1;
        count(&counters.resent);
        if push.tries.resent == 1 {
            self.waiting.borrow_mut().repeat(push);
        } else {
            self.pause(push, None, now);
        }
    }

    /// How many requests a connection may carry that has given so many answers. After requests were lost
    /// it begins with one and may have as many in doubt as it has answered, until one has shown that it
    /// carries them all: whoever cuts each connection after a few answers is then given few to cut.
    pub(crate) fn streams_max(&self, answered: usize) -> usize {
        let all = self.lane.upstreams.config().streams_per_connection_max;
        if answered == 0 {
            return 1;
        }
        if !self.cautious.get() {
            return all;
        }
        answered.min(all)
    }

    /// A connection has given so many answers.
    pub(crate) fn answered(&self, answers: usize) {
        if answers == self.lane.upstreams.config().streams_per_connection_max {
            self.cautious.set(false);
        }
    }

    /// Sends a push again after a pause, if it is still fresh then.
    pub(crate) fn pause(&self, mut push: Push, at_least: Option<Duration>, now: Instant) {
        let limits = self.lane.upstreams.config().backoff();
        let pause = backoff::pause(limits, push.tries.pauses);
        push.tries.pauses = push.tries.pauses.saturating_add(1);
        let wanted = now + pause.max(at_least.unwrap_or_default());
        // Whoever asks for a longer pause than the push is worth gets one more try at the end of it.
        let due = match push.fresh_until.checked_sub(LAST_TRY) {
            Some(last) if now + pause < last => wanted.min(last),
            _ => wanted,
        };
        if due >= push.fresh_until {
            self.give_up(&push);
            return;
        }
        self.waiting.borrow_mut().pause(push, due);
    }

    /// APNs wants no more for this device for now: this push and all later ones become one that goes when
    /// the hold is over, if it is still fresh by then.
    pub(crate) fn hold(&self, push: Push, at_least: Option<Duration>, now: Instant) {
        let config = self.lane.upstreams.config();
        let hold = Duration::from_secs(config.device_hold_seconds);
        // Whoever asks for a day would make the device deaf.
        let at_least = at_least.map(|asked| asked.min(Duration::from_secs(config.fresh_seconds)));
        let until = now + hold.max(at_least.unwrap_or_default());
        self.waiting.borrow_mut().hold(push, until);
    }

    /// Lets go of devices that are held back: their pushes are answered and cannot go in time.
    pub(crate) fn drain(&self, now: Instant) {
        self.draining.set(true);
        let mut waiting = self.waiting.borrow_mut();
        waiting.drain();
        // What waits for the next try of an app that is stopped is told that there is none for it.
        let fresh = Duration::from_secs(self.lane.upstreams.config().fresh_seconds);
        waiting.resume(now + fresh);
    }

    /// Ends pauses that are over, and pushes that are not fresh any more.
    pub(crate) fn tick(self: &Rc<Self>, now: Instant) {
        self.waiting.borrow_mut().resume(now);
        if self
            .token_held_until
            .get()
            .is_some_and(|until| now >= until)
        {
            self.release();
        }
        if now >= self.expiry_due.get() {
            self.expiry_due.set(now + EXPIRY_CHECK);
            self.waiting.borrow_mut().retain(|push| {
                let fresh = now < push.fresh_until;
                if !fresh {
                    self.give_up(push);
                }
                fresh
            });
        }
        self.dispatch(now);
    }

    /// A push is not fresh any more.
    fn give_up(&self, push: &Push) {
        count(&self.lane.ledger.counters.expired);
        push.claim
            .settle(PushOutcome::Rejected(Rejection::Unavailable));
    }

    /// Wakes connections for what waits, and opens another one when those there are cannot take it.
    pub(crate) fn dispatch(self: &Rc<Self>, now: Instant) {
        let mut left = self.waiting.borrow().ready();
        if left == 0 || self.lane.closed.get() || self.token(now).is_none() {
            return;
        }
        let mut ready = 0;
        // One connection opens at a time, and none while the newest has still to prove itself: many at
        // once look like an attack.
        let mut settled = true;
        for link in self.links.borrow().iter() {
            match link.phase.get() {
                Phase::Opening => settled = false,
                Phase::Draining => {}
                Phase::Ready => {
                    ready += 1;
                    settled &= link.proven.get();
                    let free = link.limit.get().saturating_sub(link.in_flight.get());
                    if left > 0 && free > 0 {
                        link.wake();
                        left = left.saturating_sub(free);
                    }
                }
            }
        }
        let connections_max = self.lane.upstreams.config().connections_per_pool_max;
        if left > 0 && settled && ready < connections_max {
            self.open();
        }
    }

    fn open(self: &Rc<Self>) {
        let link = Rc::new(Link {
            phase: Cell::new(Phase::Opening),
            in_flight: Cell::new(0),
            limit: Cell::new(1),
            proven: Cell::new(false),
            waker: Cell::default(),
        });
        self.links.borrow_mut().push(Rc::clone(&link));
        let unwelcome = self.unwelcome.borrow().not_before();
        let not_before = self.backoff.borrow().not_before().max(unwelcome);
        let seat = Seat {
            route: Rc::clone(self),
            link,
        };
        actix_rt::spawn(connection::run(seat, not_before));
    }

    /// A connection could not be opened: the next one waits longer.
    pub(crate) fn connect_failed(&self, error: &Error, now: Instant) {
        count(&self.lane.ledger.counters.connect_failures);
        self.slow_down(now);
        let Some(held_back) = self.alarm.rings(&ErrorReason::known("connect"), now) else {
            return;
        };
        let error: String = error.to_string().chars().take(WORDS_MAX).collect();
        tracing::warn!(
            endpoint = %self.upstream.authority,
            key = self.upstream.key.as_ref().map(|key| &*key.id().key_id),
            waiting = self.waiting.borrow().len(),
            held_back,
            "no connection to APNs: {error}"
        );
    }

    /// The next connection waits longer.
    pub(crate) fn slow_down(&self, now: Instant) {
        self.backoff.borrow_mut().failed(now);
    }

    /// APNs has ended a connection that worked, after so many answers and good ones among them. Many refused
    /// device tokens make it do that, and coming back at once with more of them looks like an attack. Where
    /// most are good the next connection need not wait.
    pub(crate) fn sent_off(&self, accepted: usize, answered: usize, now: Instant) {
        let mut unwelcome = self.unwelcome.borrow_mut();
        if is_unwelcome(accepted, answered) {
            unwelcome.failed(now);
        } else {
            unwelcome.succeeded();
        }
    }

    /// A connection works: the next one need not wait.
    pub(crate) fn speed_up(&self) {
        self.backoff.borrow_mut().succeeded();
    }

    /// Pushes of devices held back that a drain let go: their iqs had been answered.
    pub(crate) fn abandoned(&self) -> u64 {
        self.waiting.borrow().abandoned()
    }

    /// Ends everything: the outcomes have been told.
    pub(crate) fn close(&self) {
        let waiting = self.waiting.take();
        drop(waiting);
        for link in self.links.borrow().iter() {
            link.wake();
        }
    }

    /// Pushes that wait.
    pub(crate) fn queued(&self) -> usize {
        self.waiting.borrow().len()
    }

    /// Whether any of them could go now.
    pub(crate) fn has_work(&self) -> bool {
        self.waiting.borrow().ready() > 0
    }

    /// Devices held back.
    pub(crate) fn held(&self) -> usize {
        self.waiting.borrow().held()
    }

    /// Usable connections and the requests in flight on them.
    pub(crate) fn connections(&self) -> (usize, usize) {
        self.links
            .borrow()
            .iter()
            .filter(|link| link.phase.get() != Phase::Opening)
            .fold((0, 0), |(links, in_flight), link| {
                (links + 1, in_flight + link.in_flight.get())
            })
    }
}

/// Whether so few of a connection's answers were good that APNs may have ended it for that.
const fn is_unwelcome(accepted: usize, answered: usize) -> bool {
    accepted.saturating_mul(GOOD_SHARE) < answered
}

/// The place of a connection in its route. Dropping it frees the place, whatever ended the connection.
pub(crate) struct Seat {
    pub(crate) route: Rc<Route>,
    pub(crate) link: Rc<Link>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Not borrowed now in any case; a panic on the way here must not become an abort.
        if let Ok(mut links) = self.route.links.try_borrow_mut() {
            links.retain(|link| !Rc::ptr_eq(link, &self.link));
        }
        self.route.lane.ledger.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_unwelcome_that_brought_little_but_refusals() {
        for (accepted, answered, expected) in [
            (0, 0, false),
            (0, 1, true),
            (1, 1, false),
            (1, 4, false),
            (1, 5, true),
            (4, 20, true),
            (5, 20, false),
            (95, 100, false),
            (1_000_000, 1_000_500, false),
        ] {
            assert_eq!(
                is_unwelcome(accepted, answered),
                expected,
                "{accepted} of {answered}"
            );
        }
    }
}
