//! One connection of a client: takes requests, judges them in batches, answers. All of it in one task,
//! so that the simulator can be the peer of a throughput bench.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use h2::server::{Builder, SendResponse};
use h2::{Reason as Code, RecvStream};
use http::header::{CONTENT_TYPE, DATE};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use messages::UnixMillis;
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep_until;
use tokio_rustls::server::TlsStream;
use uuid::Uuid;

use super::KnownCertificate;
use super::alarm_clock::AlarmClock;
use super::control::{Control, Faults, Notification, State, Verdict};
use super::frames::{Orders, Tap};
use super::payload;
use super::provider_token::{Keys, Verified};
use super::reason::{Reason, Refusal};
use super::request::Fields;

/// Flow-control window per stream, in bytes: more than any payload.
const STREAM_WINDOW: u32 = 1 << 16;
/// Flow-control window per connection, in bytes.
const CONNECTION_WINDOW: u32 = 1 << 22;
/// Streams that h2 takes before it refuses by itself. Our own limit is lower.
const STREAMS_CEILING: u32 = 1 << 14;
/// Bytes of a payload that are kept; the rest is only counted.
const PAYLOAD_KEPT_MAX: usize = 8192;
/// Streams allowed until a provider token was good.
const STREAMS_UNTRUSTED: u32 = 1;
/// So much of the time that is spent on the requests read before it is no part of a request's latency. More is, as
/// it may have come meanwhile.
const OWN_MAX: Duration = Duration::from_micros(500);
/// How long a client may take to close its side after ours is closed.
const LINGER: Duration = Duration::from_secs(2);

/// What all connections need to know.
pub(super) struct Judge {
    pub(super) control: Control,
    pub(super) keys: Keys,
    pub(super) streams_max: u32,
    pub(super) wedging: bool,
    pub(super) certificates: Vec<Rc<KnownCertificate>>,
}

/// Serves the `number`th connection until it ends. `stop` turns true when the simulator drains.
pub(super) async fn serve(
    number: u64,
    tls: TlsStream<TcpStream>,
    judge: Rc<Judge>,
    mut faults: watch::Receiver<Faults>,
    mut stop: watch::Receiver<bool>,
) {
    let shown = tls
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[CertificateDer<'static>]>::first);
    let certificate = shown.map(|shown| judge.certificate(shown));
    let orders = Rc::new(RefCell::new(Orders::new(STREAMS_UNTRUSTED)));
    let handshake = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS_CEILING)
        .handshake(Tap::new(tls, Rc::clone(&orders)));
    let Ok(h2) = handshake.await else { return };
    // Most are without latency.
    let mut clock = None;
    let mut connection = Connection {
        h2,
        session: Session {
            judge,
            trusted: None,
            certificate,
            wedged: None,
        },
        dipped: false,
        orders,
        announced: STREAMS_UNTRUSTED,
        announced_before: STREAMS_UNTRUSTED,
        receiving: Vec::new(),
        received: Vec::new(),
        looked: Instant::now(),
        delayed: VecDeque::new(),
        stalled: Vec::new(),
        ignored: Vec::new(),
        newest: 0,
        last: None,
        closing: None,
        answers: 0,
    };
    loop {
        let current = faults.borrow_and_update().clone();
        let is_frozen = |faults: &Faults| faults.frozen || number <= faults.frozen_connections;
        if is_frozen(&current) {
            tokio::select! {
                changed = faults.changed() => if changed.is_err() { return },
                changed = stop.changed() => if changed.is_err() { return },
            }
            if is_frozen(&faults.borrow()) && *stop.borrow() {
                return;
            }
            continue;
        }
        if *stop.borrow_and_update() {
            connection.go_away(connection.newest, &current);
        }
        let due = connection.delayed.front().map(|(due, ..)| *due);
        let closing = connection.closing;
        if due.is_some() && clock.is_none() {
            match AlarmClock::start() {
                Ok(started) => clock = Some(started),
                Err(_) => return,
            }
        }
        let step = tokio::select! {
            // Changes first: what is done after a change obeys it.
            biased;
            changed = faults.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            changed = stop.changed(), if connection.last.is_none() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            step = poll_fn(|cx| connection.poll(cx, &current)) => step,
            () = wait(clock.as_ref().zip(due)) => Step::Due,
            () = linger(closing) => Step::Due,
        };
        let go_on = match step {
            Step::Arrived(requests) => connection.arrive(requests, &current),
            Step::Received => connection.judge(&current),
            Step::Due => connection.is_due(),
            Step::Closed => false,
        };
        if !go_on {
            return;
        }
    }
}

async fn wait(alarm: Option<(&AlarmClock, Instant)>) {
    match alarm {
        Some((clock, until)) => clock.wait(until).await,
        None => std::future::pending().await,
    }
}

async fn linger(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

enum Step {
    Arrived(Vec<(Request<RecvStream>, SendResponse<Bytes>)>),
    Received,
    Due,
    Closed,
}

struct Connection {
    h2: h2::server::Connection<Tap<TlsStream<TcpStream>>, Bytes>,
    session: Session,
    orders: Rc<RefCell<Orders>>,
    /// The last answer was a refusal, and a fault wants the limit to show it.
    dipped: bool,
    /// The stream limit that the client was told last.
    announced: u32,
    /// The one before: streams opened before the client knew of the last one obey this.
    announced_before: u32,
    /// Requests whose payload is still coming.
    receiving: Vec<Received>,
    /// Requests that are here as a whole, to be judged.
    received: Vec<Received>,
    /// When what is being read was looked for.
    looked: Instant,
    /// Answers that wait for their time, the next first.
    delayed: VecDeque<(Instant, SendResponse<Bytes>, Answer)>,
    /// Requests that never get an answer.
    stalled: Vec<SendResponse<Bytes>>,
    /// Streams after the GOAWAY. Kept, because dropping one would reset it, and APNs says nothing.
    ignored: Vec<(Request<RecvStream>, SendResponse<Bytes>)>,
    /// The newest stream seen.
    newest: u32,
    /// The last stream that is processed, once a GOAWAY or a fault said so.
    last: Option<u32>,
    /// When to give up waiting for the client to close.
    closing: Option<Instant>,
    /// Requests judged that get an answer.
    answers: u64,
}

/// A request with as much of its payload as has come.
struct Received {
    parts: Parts,
    body: RecvStream,
    payload: Bytes,
    size: usize,
    respond: SendResponse<Bytes>,
    at: Instant,
}

impl Connection {
    fn poll(&mut self, cx: &mut Context<'_>, faults: &Faults) -> Poll<Step> {
        let mut arrived = Vec::new();
        self.looked = Instant::now();
        loop {
            match self.h2.poll_accept(cx) {
                Poll::Ready(Some(Ok(request))) => arrived.push(request),
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Step::Closed),
                // What is announced now still has to be written.
                Poll::Pending if self.announce(faults) => {}
                Poll::Pending => break,
            }
        }
        if !arrived.is_empty() {
            return Poll::Ready(Step::Arrived(arrived));
        }
        let mut index = 0;
        while let Some(request) = self.receiving.get_mut(index) {
            match request.poll(cx) {
                Poll::Pending => index += 1,
                Poll::Ready(whole) => {
                    let request = self.receiving.swap_remove(index);
                    if whole {
                        self.received.push(request);
                    }
                }
            }
        }
        if !self.received.is_empty() {
            return Poll::Ready(Step::Received);
        }
        // A client that gives up on a request makes room for another.
        self.stalled
            .retain_mut(|respond| respond.poll_reset(cx).is_pending());
        if self.close_if_done() {
            return Poll::Ready(Step::Due);
        }
        Poll::Pending
    }

    /// Tells the client its stream limit when it has changed; true when it has just done so. h2 has one
    /// SETTINGS frame on the way at a time; the acknowledgement of the last one wakes this task.
    fn announce(&mut self, faults: &Faults) -> bool {
        let wanted = if self.dipped || !self.session.is_trusted() {
            STREAMS_UNTRUSTED
        } else {
            faults.streams_max.unwrap_or(self.session.judge.streams_max)
        };
        let is_due =
            wanted != self.announced && self.h2.set_initial_window_size(STREAM_WINDOW).is_ok();
        if is_due {
            self.orders.borrow_mut().streams_max = wanted;
            self.announced_before = self.announced;
            self.announced = wanted;
        }
        is_due
    }

    /// Takes new streams and lets the faults strike. False ends the connection without a word.
    fn arrive(
        &mut self,
        arrived: Vec<(Request<RecvStream>, SendResponse<Bytes>)>,
        faults: &Faults,
    ) -> bool {
        let control = self.session.judge.control.clone();
        let mut state = control.state();
        let strikes = |every: u64, n: u64| every != 0 && n.is_multiple_of(every);
        for (request, mut respond) in arrived {
            self.newest = respond.stream_id().into();
            if self.last.is_some_and(|last| self.newest > last) {
                state.counters.streams_ignored += 1;
                self.ignored.push((request, respond));
                continue;
            }
            if self.open() >= self.announced.max(self.announced_before) as usize {
                state.counters.streams_over_limit += 1;
                respond.send_reset(Code::REFUSED_STREAM);
                continue;
            }
            let n = state.next_request();
            if strikes(faults.drop_every, n) {
                state.counters.connections_dropped += 1;
                return false;
            }
            if strikes(faults.refuse_every, n) {
                state.counters.streams_refused += 1;
                respond.send_reset(Code::REFUSED_STREAM);
                continue;
            }
            if strikes(faults.go_away_every, n) {
                state.counters.go_aways += 1;
                self.go_away(self.newest, faults);
            }
            let (parts, body) = request.into_parts();
            self.receiving.push(Received {
                parts,
                body,
                payload: Bytes::new(),
                size: 0,
                respond,
                at: self.looked,
            });
        }
        true
    }

    fn open(&self) -> usize {
        self.receiving.len() + self.received.len() + self.delayed.len() + self.stalled.len()
    }

    /// Judges what has come and answers it, or puts the answers aside for their time.
    fn judge(&mut self, faults: &Faults) -> bool {
        let latency = Duration::from_millis(faults.latency_millis);
        let mut received = std::mem::take(&mut self.received);
        let control = self.session.judge.control.clone();
        let mut state = control.state();
        let now = state.clock.now_millis();
        let late = Instant::now().checked_sub(OWN_MAX).unwrap_or(self.looked);
        for request in received.drain(..) {
            if faults.close_after != 0 && self.answers >= faults.close_after {
                state.counters.streams_ignored += 1;
                self.stalled.push(request.respond);
                continue;
            }
            let (verdict, apns_id) = self.session.judge(&mut state, now, &request, faults);
            let date = now
                .seconds()
                .0
                .saturating_add_signed(faults.date_ahead_seconds);
            self.dipped = match verdict {
                Verdict::Accept => false,
                Verdict::Refuse(refusal) if refusal.reason.status() < 500 => {
                    self.dipped || faults.dip_after_refusal
                }
                Verdict::Refuse(_) | Verdict::Stall => self.dipped,
            };
            let (respond, due) = (request.respond, request.at.max(late) + latency);
            if verdict != Verdict::Stall {
                self.answers += 1;
                if self.answers == faults.close_after {
                    state.counters.connections_closed += 1;
                    self.last.get_or_insert(respond.stream_id().into());
                    self.orders.borrow_mut().await_write();
                }
            }
            match verdict {
                Verdict::Stall => self.stalled.push(respond),
                Verdict::Accept if latency.is_zero() => {
                    Answer::new(apns_id, None, date).send(respond);
                }
                Verdict::Refuse(refusal) if latency.is_zero() => {
                    Answer::new(apns_id, Some(refusal), date).send(respond);
                }
                Verdict::Accept => {
                    self.delay(due, respond, Answer::new(apns_id, None, date));
                }
                Verdict::Refuse(refusal) => {
                    let answer = Answer::new(apns_id, Some(refusal), date);
                    self.delay(due, respond, answer);
                }
            }
        }
        // Its room is used again for the next batch.
        self.received = received;
        true
    }

    fn delay(&mut self, due: Instant, respond: SendResponse<Bytes>, answer: Answer) {
        self.delayed.push_back((due, respond, answer));
    }

    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        while self.delayed.front().is_some_and(|(due, ..)| *due <= now) {
            if let Some((_, respond, answer)) = self.delayed.pop_front() {
                answer.send(respond);
            }
        }
        self.closing.is_none_or(|closing| closing > now)
    }

    /// Says that no stream after this one is processed. Only the first time counts.
    fn go_away(&mut self, last: u32, faults: &Faults) {
        if self.last.is_none() {
            self.last = Some(last);
            let reason = faults.go_away_reason.as_deref().unwrap_or("Shutdown");
            self.orders.borrow_mut().go_away(last, reason);
        }
    }

    /// After a GOAWAY: closes our side when all that was taken is answered and written.
    /// True when it has just done so.
    fn close_if_done(&mut self) -> bool {
        let is_answered =
            self.receiving.is_empty() && self.received.is_empty() && self.delayed.is_empty();
        let is_done = self.last.is_some()
            && self.closing.is_none()
            && is_answered
            && self.orders.borrow().is_idle();
        if is_done {
            self.orders.borrow_mut().close();
            self.closing = Some(Instant::now() + LINGER);
        }
        is_done
    }
}

impl Received {
    /// Reads what there is of the payload. Ready with whether the request is whole; if not, the client
    /// took it back.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            if self.body.is_end_stream() {
                return Poll::Ready(true);
            }
            match self.body.poll_data(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(true),
                Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                Poll::Ready(Some(Ok(chunk))) => self.take(chunk),
            }
        }
    }

    fn take(&mut self, chunk: Bytes) {
        // Only fails when more is released than was received.
        let _released = self.body.flow_control().release_capacity(chunk.len());
        self.size += chunk.len();
        if self.size > PAYLOAD_KEPT_MAX {
            return;
        }
        if self.payload.is_empty() {
            self.payload = chunk;
        } else {
            let mut joined = BytesMut::from(&*self.payload);
            joined.extend_from_slice(&chunk);
            self.payload = joined.freeze();
        }
    }
}

/// What a connection remembers of its client.
struct Session {
    judge: Rc<Judge>,
    /// The last good token, and what it says: a client sends the same one for most of an hour.
    trusted: Option<(HeaderValue, Verified)>,
    /// The client certificate that was shown; no topics when it is not known.
    certificate: Option<Option<Rc<KnownCertificate>>>,
    /// The refusal that everything gets from now on.
    wedged: Option<Refusal>,
}

impl Judge {
    fn certificate(&self, shown: &CertificateDer<'_>) -> Option<Rc<KnownCertificate>> {
        let mut known = self.certificates.iter();
        known.find(|known| known.der == shown.as_ref()).cloned()
    }
}

impl Session {
    /// Whether the client has proven who it is.
    const fn is_trusted(&self) -> bool {
        self.trusted.is_some() || matches!(self.certificate, Some(Some(_)))
    }

    /// Checks a request of a client that showed a certificate.
    fn check_certificate(
        certificate: Option<&KnownCertificate>,
        fields: &Fields<'_>,
        topic: &str,
    ) -> Result<(), Refusal> {
        let Some(certificate) = certificate else {
            return Err(Refusal::new(
                Reason::BadCertificate,
                "the client certificate is not a known one",
            ));
        };
        if fields.authorization.is_some() {
            return Err(Refusal::new(
                Reason::InvalidProviderToken,
                "there is a certificate and a provider token",
            ));
        }
        if !certificate.topics.iter().any(|known| known == topic) {
            return Err(Refusal::new(
                Reason::BadTopic,
                "apns-topic is not one of the certificate's",
            ));
        }
        Ok(())
    }

    /// Finds the verdict and takes note of it. Also gives the id of the answer.
    fn judge(
        &mut self,
        state: &mut State,
        now: UnixMillis,
        request: &Received,
        faults: &Faults,
    ) -> (Verdict, Uuid) {
        let fields = Fields::of(&request.parts);
        let mut parsed = None;
        let checked = self.check(state, now, request, &fields, faults, &mut parsed);
        let wants_device = state.knows_devices() || state.is_recording();
        let device_token = wants_device.then(|| fields.device_token()).flatten();
        let verdict = match checked {
            Ok(()) => state.verdict(device_token.as_ref(), faults),
            Err(refusal) => Verdict::Refuse(refusal),
        };
        state.count(verdict);
        let chosen = fields.apns_id();
        let apns_id = chosen.unwrap_or_else(random_id);
        if state.is_watched() {
            state.show(Notification {
                at: now,
                verdict,
                device_token: device_token.clone(),
                topic: fields.topic.map(Into::into),
                push_type: fields.push_type.map(Into::into),
                priority: fields.priority(),
                expiration: fields.expiration(),
                collapse_id: fields.collapse_id.map(Into::into),
                apns_id,
                payload: parsed,
            });
        }
        if state.is_recording()
            && verdict == Verdict::Accept
            && let Some(device_token) = device_token
        {
            state.remember(device_token, chosen);
        }
        (verdict, apns_id)
    }

    /// Checks a request in the order: line and headers, payload, provider token, topic.
    fn check(
        &mut self,
        state: &mut State,
        now: UnixMillis,
        request: &Received,
        fields: &Fields<'_>,
        faults: &Faults,
        parsed: &mut Option<Arc<Value>>,
    ) -> Result<(), Refusal> {
        if let Some(refusal) = self.wedged {
            return Err(refusal);
        }
        let head = fields.check()?;
        payload::check_size(request.size, head.push_type)?;
        *parsed = state.payloads.parse(&request.payload);
        payload::check(parsed.as_deref(), head.push_type)?;
        if let Some(certificate) = &self.certificate {
            return Self::check_certificate(certificate.as_deref(), fields, head.topic);
        }
        let oldest = faults.issued_at_min;
        if let Err(refusal) = self.authenticate(state, now, request, fields, oldest) {
            let ends_all = matches!(
                refusal.reason,
                Reason::ExpiredProviderToken | Reason::TooManyProviderTokenUpdates
            );
            if ends_all && self.judge.wedging {
                self.wedged = Some(refusal);
            }
            return Err(refusal);
        }
        let suffix = head.push_type.topic_suffix();
        if !head.topic.ends_with(suffix) {
            return Err(Refusal::new(
                Reason::BadTopic,
                "apns-topic does not have the suffix of the push type",
            ));
        }
        let may = |(_, verified): &(_, Verified)| verified.key.allows(head.topic, suffix);
        if self.trusted.as_ref().is_some_and(may) {
            Ok(())
        } else if self.judge.keys.know_topic(head.topic, suffix) {
            Err(Refusal::new(
                Reason::TopicDisallowed,
                "apns-topic belongs to another key",
            ))
        } else {
            Err(Refusal::new(
                Reason::BadTopic,
                "apns-topic belongs to no key",
            ))
        }
    }

    /// Checks the provider token: its age each time, all else once for each token.
    fn authenticate(
        &mut self,
        state: &mut State,
        now: UnixMillis,
        request: &Received,
        fields: &Fields<'_>,
        oldest: u64,
    ) -> Result<(), Refusal> {
        let header = request.parts.headers.get(http::header::AUTHORIZATION);
        if let (Some((trusted, verified)), Some(header)) = (&self.trusted, header)
            && trusted == header
        {
            return verified.check_age(now.seconds(), oldest);
        }
        let verified = self.judge.keys.verify(fields.authorization)?;
        verified.check_age(now.seconds(), oldest)?;
        if let Some((_, before)) = &self.trusted {
            if before.key.id.team_id != verified.key.id.team_id {
                return Err(Refusal::new(
                    Reason::InvalidProviderToken,
                    "the connection belongs to another team",
                ));
            }
            if before.key.id.key_id != verified.key.id.key_id {
                return Err(Refusal::new(
                    Reason::UnrelatedKeyIdInToken,
                    "the connection belongs to another key",
                ));
            }
        }
        let token = fields.authorization.unwrap_or_default();
        if state.updates.admit(&verified.key, token, now.seconds())? {
            state.counters.provider_tokens += 1;
        }
        if let Some(header) = header {
            self.trusted = Some((header.clone(), verified));
        }
        Ok(())
    }
}

/// An answer on its way.
struct Answer {
    apns_id: Uuid,
    refusal: Option<Refusal>,
    /// The time that an error tells, in seconds since 1970.
    date: u64,
}

impl Answer {
    const fn new(apns_id: Uuid, refusal: Option<Refusal>, date: u64) -> Self {
        Self {
            apns_id,
            refusal,
            date,
        }
    }

    /// Sends it. Fails only when the client has taken the request back.
    fn send(self, mut respond: SendResponse<Bytes>) {
        let mut buffer = Uuid::encode_buffer();
        let apns_id = self.apns_id.hyphenated().encode_lower(&mut buffer);
        let mut response = Response::new(());
        if let Ok(apns_id) = HeaderValue::from_str(apns_id) {
            response.headers_mut().insert("apns-id", apns_id);
        }
        let Some(refusal) = self.refusal else {
            let _gone = respond.send_response(response, true);
            return;
        };
        *response.status_mut() = StatusCode::from_u16(refusal.reason.status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let date = UNIX_EPOCH.checked_add(Duration::from_secs(self.date));
        if let Some(date) = date
            && let Ok(date) = HeaderValue::from_str(&httpdate::fmt_http_date(date))
        {
            response.headers_mut().insert(DATE, date);
        }
        if let Ok(mut body) = respond.send_response(response, false) {
            let _gone = body.send_data(refusal.body().into(), true);
        }
    }
}

/// A random UUID, as APNs makes when the client chose none.
fn random_id() -> Uuid {
    uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid()
}
