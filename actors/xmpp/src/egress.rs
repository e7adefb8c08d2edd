//! The way out, one per lane: owns the streams that we open to peers, one for each pair of served domain
//! and peer, and sends answers on them.
//!
//! A stream is opened with the first answer, reopened when it breaks, and closed when it is idle. Answers
//! wait for it in a bounded queue and for a bounded time.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::pending;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use actix::{
    Actor, AsyncContext as _, Context, Handler, Message, Recipient, ResponseFuture, Supervised,
    Supervisor,
};
use futures_util::FutureExt as _;
use messages::{Domain, Drain, Drained, Health, Probe, PublishBatch, Register, Unregister};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::accounts::{Account, Good, Hold, Source};
use crate::backlog::{Chunk, Queue, Recent};
use crate::backoff::Backoff;
use crate::gate::{self, Count, Lane};
use crate::intake::{self, Intake};
use crate::pace::{Pace, Taken};
use crate::stream::limits::PeerLimits;
use crate::stream::outbound::{self, Connection, Opened};
use crate::stream::pings::Ping;
use crate::stream::{Explained, Fault, Trace};
use crate::xml::XmlError;
use crate::xml::splitter::{Limits, Splitter, Unit};
use crate::xml::stream_error::StreamCondition;
use crate::{Config, Ingress};

/// Shorter than answers wait, so that each is still there when its peer is tried again.
const BACKOFF_MAX: Duration = Duration::from_secs(20);
/// How long a failure is remembered after the pause that it caused. With nothing to send there is nothing
/// to try, and the next answer must not begin with the shortest pause again.
const BACKOFF_MEMORY: Duration = Duration::from_secs(60);
/// Pings in a row without answer after which a peer is taken for one that does not answer pings.
const PINGS_MAX: u32 = 2;

/// Round trips after which what was written is believed to have arrived: had the peer closed the stream
/// before it came, that would be known by then. Answers are repeated only within that time, so that a peer
/// that restarts is not answered twice.
const ARRIVAL_ROUND_TRIPS: u32 = 4;
/// The bounds of that time.
const ARRIVAL_MIN: Duration = Duration::from_millis(10);
const ARRIVAL_MAX: Duration = Duration::from_secs(2);

/// Answers that may wait for a stream that is open, whatever all other answers take.
const RESERVE_BYTES: usize = 4096;

/// Answers for the stream to their peer.
#[derive(Message)]
#[rtype(result = "()")]
pub struct EgressBatch {
    pub(crate) answers: Answers,
    /// Of who asked: what the answers take is on it.
    pub(crate) account: Account,
}

/// Answers from one served domain to one peer.
pub(crate) struct Answers {
    /// The served domain that answers.
    pub(crate) local: Domain,
    /// The peer to answer.
    pub(crate) remote: Domain,
    /// Whole stanzas, one after the other.
    pub(crate) stanzas: Vec<u8>,
    /// How many they are.
    pub(crate) replies: u64,
}

/// What an egress accepts.
#[derive(Clone)]
pub struct Handles {
    /// Answers, from the sessions of all lanes.
    pub replies: Recipient<EgressBatch>,
    /// Writes what waits, then closes the streams.
    pub drain: Recipient<Drain>,
    /// Counters.
    pub probe: Recipient<Probe>,
}

/// What an egress sends: what peers ask on the streams that we open to them (XEP-0288).
pub struct Edges {
    /// Publishes, to the resolver of the same lane.
    pub publish: Recipient<PublishBatch>,
    /// Registrations.
    pub register: Recipient<Register>,
    /// Ends of registrations.
    pub unregister: Recipient<Unregister>,
    /// What people ask about their data on streams that go both ways; none where nobody answers.
    pub privacy: Option<gate::PrivacyEdges>,
}

/// Starts an egress on the current arbiter.
#[must_use]
pub fn start(ingress: &Ingress, edges: Edges) -> Handles {
    let ingress = ingress.clone();
    let address = Supervisor::start(|ctx: &mut Context<Egress>| {
        ctx.set_mailbox_capacity(0);
        let Edges {
            publish,
            register,
            unregister,
            privacy,
        } = edges;
        let edges = gate::Edges {
            publish,
            register,
            unregister,
            privacy,
            // Who may ask on a stream of this egress is answered on it.
            egress: vec![ctx.address().recipient()],
        };
        let shared = Shared {
            lane: Rc::new(Lane::new(&ingress, edges, gate::Load::default())),
            ingress,
            links: RefCell::default(),
            draining: Cell::new(false),
            gone: Notify::new(),
            counters: Counters::default(),
        };
        Egress {
            shared: Rc::new(shared),
        }
    });
    Handles {
        replies: address.clone().recipient(),
        drain: address.clone().recipient(),
        probe: address.recipient(),
    }
}

#[derive(Default)]
struct Counters {
    streams_open: Count,
    connects: Count,
    connects_failed: Count,
    replies_written: Count,
    replies_lost: Count,
}

/// Served domain and peer.
type Pair = (Domain, Domain);

struct Shared {
    ingress: Ingress,
    /// What intakes need.
    lane: Rc<Lane>,
    links: RefCell<HashMap<Pair, Rc<Link>>>,
    draining: Cell<bool>,
    /// Wakes a drain when a link has ended.
    gone: Notify,
    counters: Counters,
}

struct Egress {
    shared: Rc<Shared>,
}

impl Actor for Egress {
    type Context = Context<Self>;
}

impl Supervised for Egress {}

impl Handler<EgressBatch> for Egress {
    type Result = ();

    fn handle(&mut self, batch: EgressBatch, _: &mut Self::Context) {
        let EgressBatch { answers, account } = batch;
        let Answers {
            local,
            remote,
            stanzas,
            replies,
        } = answers;
        let shared = &self.shared;
        let Some(link) = shared.link((local, remote), &account) else {
            return shared.counters.replies_lost.add(replies);
        };
        let room = account.take(Good::EgressBytes, stanzas.len());
        if room.is_none() && !link.has_reserve(stanzas.len()) {
            return shared.counters.replies_lost.add(replies);
        }
        let max = shared.ingress.config().egress_queue_bytes_max;
        let chunk = Chunk::new(stanzas, replies, room);
        match link.queue.borrow_mut().push(chunk, max) {
            Ok(()) => link.wake.notify_one(),
            Err(lost) => shared.counters.replies_lost.add(lost.replies),
        }
    }
}

impl Shared {
    /// The link of a pair, with a keeper if it had none; none if there are too many. A new one is on the
    /// account of who asked.
    fn link(self: &Rc<Self>, pair: Pair, account: &Account) -> Option<Rc<Link>> {
        if let Some(known) = self.links.borrow().get(&pair) {
            return Some(Rc::clone(known));
        }
        let place = account.take_revocable(Good::EgressStreams)?;
        let link = Rc::new(Link::default());
        self.links
            .borrow_mut()
            .insert(pair.clone(), Rc::clone(&link));
        let keeper = Keeper::new(Rc::clone(self), pair, Rc::clone(&link), place);
        actix_rt::spawn(keeper.run());
        Some(link)
    }
}

impl Handler<Drain> for Egress {
    type Result = ResponseFuture<Drained>;

    fn handle(&mut self, drain: Drain, _: &mut Self::Context) -> Self::Result {
        let shared = Rc::clone(&self.shared);
        shared.draining.set(true);
        let lost_before = shared.counters.replies_lost.get();
        for link in shared.links.borrow().values() {
            link.wake.notify_one();
        }
        Box::pin(async move {
            let all_gone = async {
                while !shared.links.borrow().is_empty() {
                    shared.gone.notified().await;
                }
            };
            // What is left at the deadline is counted below.
            let _ = timeout_at(drain.deadline.into(), all_gone).await;
            let links = shared.links.borrow();
            let waiting = links.values().map(|link| link.queue.borrow().replies());
            let lost = shared.counters.replies_lost.get() - lost_before;
            Drained {
                abandoned: waiting.sum::<u64>() + lost,
            }
        })
    }
}

impl Handler<Probe> for Egress {
    type Result = Health;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Health {
        let counters = &self.shared.counters;
        Health {
            counters: vec![
                ("egress_streams_open", counters.streams_open.get()),
                ("egress_connects_total", counters.connects.get()),
                (
                    "egress_connects_failed_total",
                    counters.connects_failed.get(),
                ),
                ("replies_written_total", counters.replies_written.get()),
                ("replies_lost_total", counters.replies_lost.get()),
                (
                    "egress_publishes_total",
                    self.shared.lane.counters.publishes.get(),
                ),
            ],
        }
    }
}

/// What actor and keeper of one stream share. Never borrowed across an await.
#[derive(Default)]
struct Link {
    queue: RefCell<Queue>,
    /// Wakes the keeper.
    wake: Notify,
    /// Whether the stream is open.
    open: Cell<bool>,
}

impl Link {
    /// Whether so much may wait although no room is left: a peer that takes its answers does without.
    fn has_reserve(&self, bytes: usize) -> bool {
        self.open.get() && bytes <= RESERVE_BYTES && self.queue.borrow().is_empty()
    }
}

/// Why a stream ended.
enum End {
    /// Nothing to send for long, or draining.
    Done,
    Broken(Fault),
}

/// The task that keeps one stream.
struct Keeper {
    shared: Rc<Shared>,
    pair: Pair,
    link: Rc<Link>,
    backoff: Backoff,
    /// Pings in a row that the peer did not answer.
    unanswered: u32,
    /// Taken back at any time until the peer was reached once, and then for one whose source has less.
    place: Hold,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let left = self.link.queue.borrow().replies();
        self.shared.counters.replies_lost.add(left);
        self.shared.links.borrow_mut().remove(&self.pair);
        self.shared.gone.notify_one();
    }
}

impl Keeper {
    const fn new(shared: Rc<Shared>, pair: Pair, link: Rc<Link>, place: Hold) -> Self {
        Self {
            shared,
            pair,
            link,
            backoff: Backoff::new(BACKOFF_MAX),
            unanswered: 0,
            place,
        }
    }

    /// Runs until the end, or until another needs the place of a peer that was never reached.
    async fn run(mut self) {
        let revocation = self.place.revocation();
        tokio::select! {
            biased;
            () = revocation.come() => {
                let (local, remote) = &self.pair;
                tracing::debug!(%local, peer = %remote, "a stream to a peer gave way to another");
                if self.link.open.get() {
                    self.shared.counters.streams_open.remove(1);
                }
            }
            () = self.keep() => {}
        }
    }

    /// Runs while there is anything to send, and while a failure is remembered. Between the last look into
    /// the queue and the end there is no await, so no answer falls between two keepers.
    async fn keep(&mut self) {
        while self.has_work() || self.work_comes().await {
            let (local, remote) = &self.pair;
            self.shared.counters.connects.add(1);
            match outbound::open(&self.shared.ingress, local, remote).await {
                Ok((opened, trace)) => {
                    if !self.place.keep() {
                        return;
                    }
                    self.link.open.set(true);
                    self.shared.counters.streams_open.add(1);
                    let served = self.converse(opened, trace).await;
                    self.shared.counters.streams_open.remove(1);
                    self.link.open.set(false);
                    match served {
                        true => self.backoff.reset(),
                        false => self.pause().await,
                    }
                }
                Err(_) => {
                    self.shared.counters.connects_failed.add(1);
                    self.pause().await;
                }
            }
        }
    }

    /// Drops what is too old and tells whether anything is left.
    fn has_work(&self) -> bool {
        let wait = self.shared.ingress.config().egress_wait();
        let mut queue = self.link.queue.borrow_mut();
        if let Some(before) = Instant::now().checked_sub(wait) {
            self.shared.counters.replies_lost.add(queue.expire(before));
        }
        !queue.is_empty()
    }

    /// After a failure, waits for more to send. Returns whether it came.
    async fn work_comes(&self) -> bool {
        let until = Instant::now() + BACKOFF_MEMORY;
        while !self.backoff.is_reset() && !self.shared.draining.get() && !self.has_work() {
            tokio::select! {
                () = sleep_until(until) => break,
                () = self.link.wake.notified() => {}
            }
        }
        self.has_work()
    }

    async fn pause(&mut self) {
        let until = Instant::now() + self.backoff.next();
        // A drain cannot wait for a peer that is away.
        while !self.shared.draining.get() {
            tokio::select! {
                () = sleep_until(until) => return,
                () = self.link.wake.notified() => {}
            }
        }
        let lost = self.link.queue.borrow_mut().expire(Instant::now());
        self.shared.counters.replies_lost.add(lost);
    }

    /// Sends what comes until the stream ends. Returns whether it was of use: a peer that ends each stream
    /// before or as soon as anything is written is given time.
    async fn converse(&mut self, opened: Opened, trace: Trace) -> bool {
        let (local, remote) = &self.pair;
        let account = self.account(&trace);
        let mut talk = Talk::new(&self.shared.ingress, opened);
        talk.framed.account_for(account.hold(Good::UnreadBytes));
        let intake = talk
            .bidirectional
            .then(|| Intake::start(&self.shared.lane, local, remote, account));
        let mut first_written = None;
        let end = loop {
            // An end that is here already is seen before anything is written behind it.
            let listening = listen(&mut talk.framed, intake.as_ref(), &mut talk.junk);
            if let Some(fault) = listening.now_or_never() {
                break End::Broken(fault);
            }
            match self.write(&mut talk).await {
                Ok(false) => {}
                Ok(true) => {
                    first_written.get_or_insert_with(Instant::now);
                    continue;
                }
                Err(fault) => break End::Broken(fault),
            }
            if self.shared.draining.get() {
                match &intake {
                    Some(intake) if !intake.is_settled() => intake.stop(),
                    _ => break End::Done,
                }
            }
            let due = talk.due();
            tokio::select! {
                () = self.link.wake.notified() => {}
                fault = listen(&mut talk.framed, intake.as_ref(), &mut talk.junk) => {
                    break End::Broken(fault);
                }
                () = answered(&mut talk.ping) => {
                    self.unanswered = 0;
                    talk.proven();
                }
                () = sleep_until(due) => match talk.tick().await {
                    Ok(Tick::On) => {}
                    Ok(Tick::Idle) => break End::Done,
                    Ok(Tick::Dead) => {
                        self.unanswered += 1;
                        break End::Broken(Fault::TimedOut("it did not answer a ping"));
                    }
                    Err(fault) => break End::Broken(fault),
                },
            }
        };
        let (local, remote) = &self.pair;
        let Talk {
            framed,
            mut recent,
            arrival,
            ping,
            ..
        } = talk;
        if ping.is_none()
            && let Some(before) = Instant::now().checked_sub(arrival)
        {
            recent.forget(before);
        }
        match end {
            End::Done => {
                tracing::debug!(%local, peer = %remote, "stream to a peer closed");
                framed.leave().await;
                true
            }
            End::Broken(fault) => {
                if fault.is_departure() {
                    tracing::debug!(%local, peer = %remote, reason = %fault, "stream to a peer ended");
                } else {
                    let reason = Explained(&fault, trace.stage);
                    let outcomes = self.shared.ingress.outcomes();
                    outcomes.failed(&trace, &reason, fault.stream_error());
                }
                self.put_back(recent.into_chunks());
                framed.close_after(&fault).await;
                first_written.is_some_and(|at| at.elapsed() > ARRIVAL_MAX)
            }
        }
    }

    /// Writes one piece of the queue. Returns whether there was any.
    async fn write(&self, talk: &mut Talk) -> Result<bool, Fault> {
        // To find the peer may have taken longer than what waits is of use.
        if !self.has_work() {
            return Ok(false);
        }
        let chunks = self.link.queue.borrow_mut().take();
        let mut stanzas = Vec::new();
        let mut refused = 0;
        for chunk in &chunks {
            refused += talk.append(&mut stanzas, &chunk.stanzas);
        }
        let asks = self.unanswered < PINGS_MAX && talk.wants_ping();
        let ping = asks.then(|| {
            let ingress = &self.shared.ingress;
            let (local, remote) = &self.pair;
            let id = ingress.stream_id();
            ingress.pings().ask(&mut stanzas, id, local, remote)
        });
        if let Err(fault) = talk.send(&stanzas).await {
            self.put_back(chunks);
            return Err(fault);
        }
        let replies: u64 = chunks.iter().map(|chunk| chunk.replies).sum();
        let counters = &self.shared.counters;
        counters
            .replies_written
            .add(replies.saturating_sub(refused));
        counters.replies_lost.add(refused);
        talk.written(chunks, ping);
        Ok(true)
    }

    /// The account of the peer that was reached.
    fn account(&self, trace: &Trace) -> Account {
        let source = match trace.address {
            Some(address) => Source::address(address.ip()),
            // It has gone already.
            None => Source::address(Ipv4Addr::UNSPECIFIED.into()),
        };
        self.shared.ingress.account(source)
    }

    fn put_back(&self, chunks: Vec<Chunk>) {
        let lost = self.link.queue.borrow_mut().put_back(chunks);
        self.shared.counters.replies_lost.add(lost);
    }
}

/// What time has brought.
enum Tick {
    On,
    /// There was nothing to send for long.
    Idle,
    /// A ping was not answered.
    Dead,
}

/// One stream and its clocks.
struct Talk {
    framed: Connection,
    /// Whether the peer may send on it (XEP-0288).
    bidirectional: bool,
    junk: Junk,
    limits: PeerLimits,
    recent: Recent,
    /// After what time an answer is believed to have arrived.
    arrival: Duration,
    /// The ping that is not answered, and until when it should be.
    ping: Option<(Ping, Instant)>,
    /// When it was last known that what we write arrives.
    proof: Instant,
    /// When anything was written last.
    spoken: Instant,
    /// When an answer was written last.
    used: Instant,
    idle: Duration,
    keepalive: Duration,
    ping_after: Duration,
    ping_timeout: Duration,
}

impl Talk {
    fn new(ingress: &Ingress, opened: Opened) -> Self {
        let Opened {
            framed,
            bidirectional,
            limits,
            round_trip,
            ..
        } = opened;
        let config = ingress.config();
        let now = Instant::now();
        Self {
            framed,
            bidirectional,
            junk: Junk::new(config),
            limits,
            recent: Recent::default(),
            arrival: (round_trip * ARRIVAL_ROUND_TRIPS).clamp(ARRIVAL_MIN, ARRIVAL_MAX),
            ping: None,
            proof: now,
            spoken: now,
            used: now,
            idle: limits.idle_within(config.idle()),
            keepalive: config.keepalive(),
            ping_after: config.ping_after(),
            ping_timeout: config.ping_timeout(),
        }
    }

    /// Appends stanzas, except for those that the peer would not take. Returns how many these are.
    fn append(&self, out: &mut Vec<u8>, stanzas: &[u8]) -> u64 {
        let max = match self.limits.stanza_bytes_max {
            Some(max) if stanzas.len() > max => max,
            _ => {
                out.extend_from_slice(stanzas);
                return 0;
            }
        };
        let mut refused = 0;
        for stanza in split(stanzas) {
            match stanza.len() <= max {
                true => out.extend_from_slice(stanza),
                false => refused += 1,
            }
        }
        refused
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.framed.send(bytes).await?;
        self.spoken = Instant::now();
        Ok(())
    }

    fn written(&mut self, chunks: Vec<Chunk>, ping: Option<Ping>) {
        self.used = self.spoken;
        self.recent.add(chunks, self.spoken);
        if let Some(ping) = ping {
            self.ping = Some((ping, self.spoken + self.ping_timeout));
        }
    }

    /// Whether it is long ago that anything proved this stream.
    fn wants_ping(&self) -> bool {
        self.ping.is_none() && self.proof.elapsed() >= self.ping_after
    }

    /// The peer has answered a ping: what was written before it has arrived.
    fn proven(&mut self) {
        self.ping = None;
        self.proof = Instant::now();
    }

    /// When there is something to do.
    fn due(&self) -> Instant {
        let mut due = (self.used + self.idle).min(self.spoken + self.keepalive);
        match &self.ping {
            Some((_, until)) => due = due.min(*until),
            None => {
                if let Some(oldest) = self.recent.oldest() {
                    due = due.min(oldest + self.arrival);
                }
            }
        }
        due
    }

    async fn tick(&mut self) -> Result<Tick, Fault> {
        let now = Instant::now();
        match &self.ping {
            Some((_, until)) if *until <= now => return Ok(Tick::Dead),
            // Until it is answered nothing is known to have arrived.
            Some(_) => {}
            None => {
                if let Some(before) = now.checked_sub(self.arrival) {
                    self.recent.forget(before);
                }
            }
        }
        if self.used + self.idle <= now {
            return Ok(Tick::Idle);
        }
        if self.spoken + self.keepalive <= now {
            self.send(b" ").await?;
        }
        Ok(Tick::On)
    }
}

async fn answered(ping: &mut Option<(Ping, Instant)>) {
    match ping {
        Some((ping, _)) => ping.answered().await,
        None => pending().await,
    }
}

/// Reads so that the end of the stream is seen at once. Without an intake, stanzas here go the wrong way
/// (RFC 6120 §4.5), and dialback was settled before; both are passed over. Dropping the future loses nothing.
async fn listen(framed: &mut Connection, intake: Option<&Intake>, junk: &mut Junk) -> Fault {
    loop {
        let heard = match intake {
            Some(intake) => intake.take(framed).await,
            None => junk.take(framed).await,
        };
        if let Err(fault) = heard {
            return fault;
        }
    }
}

/// What comes on a stream that only takes answers. There is nothing to be slowed down: who sends as much as
/// one who may send is let, is left.
struct Junk {
    pace: Pace,
    taken: Taken,
}

impl Junk {
    fn new(config: &Config) -> Self {
        Self {
            pace: Pace::per_second(config.stanzas_per_second_max, intake::BURST),
            taken: Taken::default(),
        }
    }

    /// Passes over what is there and reads on once.
    async fn take(&mut self, framed: &mut Connection) -> Result<(), Fault> {
        let now = Instant::now();
        loop {
            let (len, is_element) = match framed.unit()? {
                Unit::Element(len) => (len, true),
                Unit::Whitespace(len) => (len, false),
                Unit::Incomplete => return framed.fill().await,
                Unit::Close(_) => return Err(Fault::Ended),
                Unit::Header(_) => return Err(XmlError::BadFormat.into()),
            };
            if self.taken.take_stanza(self.pace, len, now).is_err() {
                return Err(Fault::refuse(
                    StreamCondition::PolicyViolation,
                    "it sends without end on a stream that is for our answers",
                ));
            }
            if is_element {
                framed.read(len)?;
            }
            framed.consume(len);
        }
    }
}

/// The stanzas of a text of ours.
pub(crate) fn split(mut text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut splitter = Splitter::within_stream(Limits {
        stanza_bytes_max: usize::MAX,
        tag_bytes_max: usize::MAX,
        name_bytes_max: usize::MAX,
        attributes_max: u32::MAX,
        namespaces_max: u32::MAX,
        markup_max: u32::MAX,
        depth_max: u32::MAX,
    });
    std::iter::from_fn(move || {
        let Ok(Unit::Element(len)) = splitter.next(text) else {
            return None;
        };
        let (stanza, rest) = text.split_at_checked(len)?;
        text = rest;
        Some(stanza)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_are_told_apart() {
        let text = b"<iq id='1'/><iq id='2'><error><a/></error></iq><iq id='3>'/>";
        let stanzas: Vec<&[u8]> = split(text).collect();
        let expected: [&[u8]; 3] = [
            b"<iq id='1'/>",
            b"<iq id='2'><error><a/></error></iq>",
            b"<iq id='3>'/>",
        ];
        assert_eq!(stanzas, expected);
    }
}
