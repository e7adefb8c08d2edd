//! One connection as one task: it pulls pushes, reads answers, pings, and notices its end.
//!
//! The task polls h2 itself, so that a change of SETTINGS is seen as soon as it is read, and everything
//! found in one wake leaves together.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::client::{Connection, SendRequest};
use h2::{Ping, PingPong};
use messages::{PushOutcome, Rejection, UnixSeconds};
use slab::Slab;
use tokio::net::TcpStream;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tokio_rustls::client::TlsStream;

use crate::connect::{self, Wire};
use crate::ledger::count;
use crate::paced::Paced;
use crate::push::Push;
use crate::reply::{Exchange, Loss, Reply};
use crate::request::Paper;
use crate::route::{Phase, Route, Seat};
use crate::verdict::Fate;

/// How often requests are looked through for overdue ones: one timer instead of one per push.
const TICK: Duration = Duration::from_millis(200);

/// How long the farewell (GOAWAY, TLS close) may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Most characters of a peer's words that are logged.
pub(crate) const WORDS_MAX: usize = 200;

/// Opens a connection, not before the given time, and works it until it ends.
pub(crate) async fn run(seat: Seat, not_before: Option<Instant>) {
    if let Some(at) = not_before {
        sleep_until(at).await;
    }
    let route = Rc::clone(&seat.route);
    if route.lane.closed.get() {
        return;
    }
    let limit = Duration::from_secs(route.lane.upstreams.config().connect_timeout_seconds);
    match connect::open(&route.upstream, route.lane.upstreams.names(), limit).await {
        Ok(wire) => {
            count(&route.lane.ledger.counters.connections);
            tracing::debug!(endpoint = %route.upstream.authority, "connected to APNs");
            seat.link.phase.set(Phase::Ready);
            let mut driver = Driver::new(seat, wire);
            poll_fn(|cx| driver.poll(cx)).await;
            driver.judge(Instant::now());
        }
        Err(error) => {
            route.connect_failed(&error, Instant::now());
            drop(seat);
        }
    }
    route.dispatch(Instant::now());
}

struct Driver {
    seat: Seat,
    /// Gone when the connection has ended.
    connection: Option<Connection<Paced<TlsStream<TcpStream>>, Bytes>>,
    /// Gone when no more pushes are to be sent; h2 then says farewell.
    sender: Option<SendRequest<Bytes>>,
    ping: PingPong,
    ping_sent: Option<Instant>,
    /// When the peer last showed that it is there.
    last_sign: Instant,
    /// The open streams.
    exchanges: FuturesUnordered<Exchange>,
    /// What each open stream is for.
    requests: Slab<Request>,
    paper: Paper,
    /// Requests somebody still waits for.
    live: usize,
    tick: Interval,
    farewell_since: Option<Instant>,
    /// When it last had a request.
    last_used: Instant,
    /// Answers so far.
    answered: usize,
    /// How many of them were good.
    accepted: usize,
    /// The peer has ended it.
    sent_off: bool,
    /// Whether its successor has to wait is decided.
    judged: bool,
    /// The `iat` of the first provider token that was called expired.
    expired: Option<UnixSeconds>,
    /// Since when the peer allows no request at all.
    blocked_since: Option<Instant>,
}

enum Request {
    Live {
        push: Push,
        sent_at: Instant,
        issued_at: UnixSeconds,
    },
    /// Not answered in time; its push went elsewhere.
    Overdue,
}

impl Driver {
    fn new(seat: Seat, wire: Wire) -> Self {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            seat,
            connection: Some(wire.connection),
            sender: Some(wire.sender),
            ping: wire.ping,
            ping_sent: None,
            last_sign: Instant::now(),
            exchanges: FuturesUnordered::new(),
            requests: Slab::new(),
            paper: Paper::new(),
            live: 0,
            tick,
            farewell_since: None,
            last_used: Instant::now(),
            answered: 0,
            accepted: 0,
            sent_off: false,
            judged: false,
            expired: None,
            blocked_since: None,
        }
    }

    /// Runs until the connection has ended and every push on it has gone its way.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let route = Rc::clone(&self.seat.route);
        let link = Rc::clone(&self.seat.link);
        link.waker.set(Some(cx.waker().clone()));
        let now = Instant::now();
        loop {
            self.poll_time(cx, now);
            self.poll_connection(cx);
            while let Poll::Ready(Some((place, answer))) = self.exchanges.poll_next_unpin(cx) {
                self.land(place, answer, now);
            }
            if self.connection.is_none() {
                self.abandon(|route, push| route.lost(push, Loss::Broken, now));
            }
            if !self.fill(cx, now) {
                break;
            }
        }
        if route.lane.closed.get() {
            self.retire("the pool closes");
            self.abandon(|_, push| {
                push.claim
                    .settle(PushOutcome::Rejected(Rejection::Unavailable));
            });
        }
        if self.live == 0 && link.phase.get() == Phase::Draining && self.farewell_since.is_none() {
            // Without a sender and streams h2 says GOAWAY and closes; it has to be polled for that.
            self.farewell_since = Some(now);
            self.sender = None;
            self.exchanges.clear();
            self.requests.clear();
            cx.waker().wake_by_ref();
        }
        link.in_flight.set(self.exchanges.len());
        if self.sent_off {
            self.judge(now);
        }
        route.dispatch(now);
        route.lane.ledger.flush();
        if self.connection.is_none() {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Decides, once and before there is a successor, whether that has to wait.
    fn judge(&mut self, now: Instant) {
        if std::mem::replace(&mut self.judged, true) {
            return;
        }
        if !self.seat.link.proven.get() {
            // Open, close, open looks like an attack, whoever closes.
            self.seat.route.slow_down(now);
        } else if self.sent_off {
            self.seat.route.sent_off(self.accepted, self.answered, now);
        }
    }

    fn poll_connection(&mut self, cx: &mut Context<'_>) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        if let Poll::Ready(end) = Pin::new(connection).poll(cx) {
            match end {
                Ok(()) => self.sent_off("closed"),
                Err(error) => self.sent_off(&words(&error)),
            }
            // Dropping it ends every stream that is still open.
            self.connection = None;
        }
    }

    /// An exchange has ended.
    fn land(&mut self, place: usize, answer: Result<Reply, (Loss, h2::Error)>, now: Instant) {
        let Some(Request::Live {
            push, issued_at, ..
        }) = self.requests.try_remove(place)
        else {
            return;
        };
        self.live -= 1;
        let route = Rc::clone(&self.seat.route);
        match answer {
            Ok(reply) => {
                self.last_sign = now;
                if reply.proves_token() {
                    if !self.seat.link.proven.replace(true) {
                        route.speed_up();
                    }
                    self.answered += 1;
                    self.accepted += usize::from(reply.status == 200);
                    route.answered(self.answered);
                    route.token_proven(issued_at);
                }
                match route.conclude(push, reply, issued_at, self.expired, now) {
                    Fate::Keep => {}
                    Fate::Retire => self.retire("APNs asked for another connection"),
                    Fate::Wedged => {
                        self.expired.get_or_insert(issued_at);
                        self.retire("APNs calls provider tokens expired on it");
                    }
                    Fate::RetireSlowly => {
                        route.slow_down(now);
                        self.retire("APNs asked for another connection");
                    }
                }
            }
            Err((loss, error)) => {
                if error.is_go_away() {
                    self.sent_off(&words(&error));
                }
                route.lost(push, loss, now);
            }
        }
    }

    /// Sends what waits, as far as the limits of the peer and of the configuration go. Says whether
    /// anything was sent.
    fn fill(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let route = Rc::clone(&self.seat.route);
        let link = Rc::clone(&self.seat.link);
        if link.phase.get() != Phase::Ready {
            return false;
        }
        let Some(sender) = &mut self.sender else {
            return false;
        };
        // The first request goes alone: before APNs has taken a token it allows no more.
        let theirs = sender.current_max_send_streams();
        let limit = theirs.min(route.streams_max(self.answered));
        link.limit.set(limit);
        self.blocked_since = match (theirs, self.blocked_since) {
            (0, None) => Some(now),
            (0, since) => since,
            _ => None,
        };
        let Some(token) = route.token(now) else {
            return false;
        };
        let wall = route.lane.upstreams.clock().now();
        let mut sent = false;
        let mut refused = None;
        while self.exchanges.len() < limit {
            match sender.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    refused = Some(error);
                    break;
                }
                Poll::Pending => {
                    // The socket takes no more. Whoever looks for a free stream shall not look here.
                    link.limit.set(self.exchanges.len());
                    break;
                }
            }
            let Some(push) = route.next(now) else {
                break;
            };
            let template = push.app.template(push.class);
            let authorization = token.authorization.as_ref();
            let head = template.head(&mut self.paper, &route.upstream, authorization, &push, wall);
            let Ok(head) = head else {
                // Hex digits always make a path; dropping the push answers it `Internal`.
                continue;
            };
            match sender.send_request(head, false) {
                Ok((response, mut body)) => {
                    // Should this fail, the answer fails too and tells why.
                    let payload = template
                        .payload()
                        .text(push.message_count, push.content.as_deref());
                    let _ = body.send_data(payload, true);
                    let place = self.requests.insert(Request::Live {
                        push,
                        sent_at: now,
                        issued_at: token.issued_at,
                    });
                    self.live += 1;
                    self.exchanges.push(Exchange::new(place, response));
                    sent = true;
                }
                Err(error) => {
                    // Never written.
                    route.repeat_in_turn(push, now);
                    refused = Some(error);
                    break;
                }
            }
        }
        if let Some(error) = refused {
            self.sent_off(&words(&error));
        }
        sent
    }

    fn poll_time(&mut self, cx: &mut Context<'_>, now: Instant) {
        if self.ping_sent.is_some()
            && let Poll::Ready(Ok(_)) = self.ping.poll_pong(cx)
        {
            self.ping_sent = None;
            self.last_sign = now;
        }
        while self.tick.poll_tick(cx).is_ready() {
            self.check_requests(now);
            self.check_need(now);
            self.check_peer(now);
        }
    }

    /// Sends overdue pushes elsewhere. Their streams stay: h2 keeps few reset ones, so the connection goes
    /// instead.
    fn check_requests(&mut self, now: Instant) {
        let route = Rc::clone(&self.seat.route);
        let limit = Duration::from_secs(route.lane.upstreams.config().request_timeout_seconds);
        let mut overdue = false;
        for (_, request) in &mut self.requests {
            let Request::Live { sent_at, .. } = request else {
                continue;
            };
            if now.duration_since(*sent_at) < limit {
                continue;
            }
            if let Request::Live { push, .. } = std::mem::replace(request, Request::Overdue) {
                self.live -= 1;
                overdue = true;
                route.lost(push, Loss::TimedOut, now);
            }
        }
        if overdue {
            self.retire("a request was not answered in time");
        }
    }

    /// Leaves when nothing came for long and another connection is there. The last one stays: APNs wants
    /// connections to be kept. Leaves as well when pushes wait and APNs allows no request.
    fn check_need(&mut self, now: Instant) {
        let route = Rc::clone(&self.seat.route);
        let config = route.lane.upstreams.config();
        let blocked = Duration::from_secs(config.blocked_seconds);
        if self
            .blocked_since
            .is_some_and(|since| now.duration_since(since) >= blocked)
            && route.has_work()
            && self.seat.link.phase.get() == Phase::Ready
        {
            route.slow_down(now);
            self.retire("no request is allowed on it");
            return;
        }
        if self.live > 0 {
            self.last_used = now;
            return;
        }
        let limit = Duration::from_secs(config.connection_idle_seconds);
        if now.duration_since(self.last_used) >= limit && route.has_ready_beside(&self.seat.link) {
            self.retire("not needed for long");
        }
    }

    /// Asks a silent peer whether it is there, and believes no answer to be an answer.
    fn check_peer(&mut self, now: Instant) {
        let route = Rc::clone(&self.seat.route);
        let config = route.lane.upstreams.config();
        if let Some(sent) = self.ping_sent {
            if now.duration_since(sent) >= Duration::from_secs(config.ping_timeout_seconds) {
                tracing::info!(
                    endpoint = %route.upstream.authority,
                    in_flight = self.live,
                    "APNs answers no ping: connection given up"
                );
                self.end();
            }
        } else {
            let pause = Duration::from_secs(if self.live > 0 {
                config.ping_busy_seconds
            } else {
                config.ping_idle_seconds
            });
            if now.duration_since(self.last_sign) >= pause
                && self.ping.send_ping(Ping::opaque()).is_ok()
            {
                self.ping_sent = Some(now);
            }
        }
        if self
            .farewell_since
            .is_some_and(|since| now.duration_since(since) >= FAREWELL)
        {
            self.end();
        }
    }

    /// Drops the connection without a farewell.
    fn end(&mut self) {
        self.seat.link.phase.set(Phase::Draining);
        self.connection = None;
    }

    /// The peer lets it take no more pushes.
    fn sent_off(&mut self, why: &str) {
        self.sent_off |= self.seat.link.phase.get() != Phase::Draining;
        self.retire(why);
    }

    /// Takes no more pushes; what is in flight is waited for, and a successor may open.
    fn retire(&self, why: &str) {
        if self.seat.link.phase.replace(Phase::Draining) != Phase::Draining {
            tracing::debug!(
                endpoint = %self.seat.route.upstream.authority,
                in_flight = self.live,
                "leaving a connection: {why}"
            );
        }
    }

    /// Takes all pushes off the connection.
    fn abandon(&mut self, mut act: impl FnMut(&Route, Push)) {
        if self.live == 0 {
            return;
        }
        self.live = 0;
        for request in self.requests.drain() {
            if let Request::Live { push, .. } = request {
                act(&self.seat.route, push);
            }
        }
        self.exchanges.clear();
    }
}

/// What h2 says of an error, with the peer's own words cut to a length that suits a log.
fn words(error: &h2::Error) -> String {
    error.to_string().chars().take(WORDS_MAX).collect()
}
