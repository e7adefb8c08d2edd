//! One stream that a peer opened: reads stanzas, holds a ticket for each publish, answers every iq once.
//!
//! The actor has the tickets and receives outcomes; a task beside it on the same thread has the socket.
//! Answers go over the egress, or back on the stream itself where the peer wants that (XEP-0288). The actor
//! outlives its socket until all that was asked is answered.
//! A component ([`crate::component`]) is the same actor with another task, which writes the answers too.

use std::cell::{Cell, RefCell};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix::{
    Actor, ActorContext as _, Addr, AsyncContext as _, Context, Handler, MailboxError,
    ResponseFuture,
};
use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use messages::{
    CommandError, Domain, Drain, Drained, Origin, OutcomeBatch, Publish, PublishBatch, PushOutcome,
    RegistryError, Rejection, SendMessage, Ticket,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{self, sleep_until, timeout_at};

use crate::accounts::{Account, Good, Hold, Source};
use crate::back::Back;
use crate::backlog::{Chunk, Queue};
use crate::egress::{Answers, EgressBatch};
use crate::gate::{AdmitStream, Lane};
use crate::jid::{self, Jid};
use crate::pending::Pending;
use crate::reply;
use crate::service::{self, Answer, Service};
use crate::stream::framed::Framed;
use crate::stream::inbound::{self, Inbound};
use crate::stream::{Explained, Fault, Stage, Trace, ns};
use crate::throttle::Throttle;
use crate::xml::publish::{self, PublishIq, Read};
use crate::xml::splitter::Unit;
use crate::xml::stanza::IqHead;
use crate::xml::stream_error::StreamCondition;
use crate::xml::{Element, XmlError};

/// How often overdue tickets are looked for.
const TICK: Duration = Duration::from_millis(500);
/// How long after its deadline a publish is answered without the pipeline, which should have done so.
const BACKSTOP: Duration = Duration::from_secs(2);
/// How long the registry may take.
const REGISTRY_LIMIT: Duration = Duration::from_secs(5);
/// How long an erasure may take until its command is answered without it; it goes on all the same.
const QUESTION_LIMIT: Duration = Duration::from_secs(120);
/// Questions about personal data that one stream may have unanswered.
const QUESTIONS_MAX: usize = 64;
/// How long a drained or idle stream may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);

/// What the stream task shall do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Run,
    /// Read nothing more.
    Drain,
    /// Close the stream.
    Close,
}

/// Who may send to whom on a stream.
pub(crate) trait Rule {
    /// The authenticated domain that sends, and the service that receives; none to pass a stanza over.
    ///
    /// # Errors
    /// The fault that ends the stream.
    fn allow(&self, from: &str, to: &str) -> Result<Option<(Domain, &Service)>, Fault>;

    /// What an element comes to that is no stanza, or a stanza without addresses: `Ok` to pass it over.
    ///
    /// # Errors
    /// The fault that ends the stream.
    fn odd(&self, fault: Fault) -> Result<(), Fault>;
}

/// What actor and stream task share. Never borrowed across an await.
pub(crate) struct Core {
    pub(crate) lane: Rc<Lane>,
    /// Of who sends on the stream: what its answers take is on it.
    pub(crate) account: Account,
    /// Answers for a stream that takes its own; else they go over the egress.
    pub(crate) queue: Option<RefCell<Queue>>,
    pending: RefCell<Pending>,
    /// The answers that go back on the stream, while they may: between one pair of domains only.
    back: RefCell<Option<Back>>,
    /// How many of them are being written.
    writing: Cell<u64>,
    /// Publishes that the last read with any brought: the next one brings about as many, and a list that grows is
    /// copied each time.
    last_read: Cell<usize>,
    /// Registration commands without answer.
    registering: Cell<usize>,
    /// Questions of people about their data without answer.
    asking: Cell<usize>,
    pub(crate) order: Cell<Order>,
    /// Whether the stream task waits for a ticket or a registration.
    pub(crate) stalled: Cell<bool>,
    /// Whether the stream task runs.
    pub(crate) open: Cell<bool>,
    /// Wakes the stream task.
    pub(crate) changed: Notify,
    /// Wakes a drain.
    pub(crate) settled: Notify,
}

impl Core {
    pub(crate) fn is_full(&self) -> bool {
        self.pending.borrow().is_full()
            || self.registering.get() >= self.lane.ingress.config().registrations_per_stream_max
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.pending.borrow().is_empty() && self.registering.get() == 0 && self.asking.get() == 0
    }

    /// Tells those who wait that tickets or registrations came free.
    fn freed(&self) {
        if self.stalled.get() {
            self.changed.notify_one();
        }
        if self.is_settled() {
            self.settled.notify_one();
        }
    }

    fn command(&self, order: Order) {
        self.order.set(order);
        self.changed.notify_one();
    }

    /// Answers tickets with what became of them.
    fn answer(&self, outcomes: impl ExactSizeIterator<Item = (Ticket, PushOutcome)>) {
        let mut replies = Replies::with_room(outcomes.len());
        {
            let mut pending = self.pending.borrow_mut();
            let (before, late) = (pending.len(), pending.late());
            for (ticket, outcome) in outcomes {
                if let Some(asker) = pending.resolve(ticket) {
                    let head = asker.head();
                    replies.push(&head, |out| reply::render(out, &head, outcome));
                }
            }
            self.lane.counters.outcomes_late.add(pending.late() - late);
            self.lane.load.remove_tickets(before - pending.len());
        }
        self.send(replies);
        self.freed();
    }

    /// Answers what is overdue in the same way.
    fn answer_overdue(&self) {
        let mut replies = Replies::default();
        let mut count = 0;
        {
            let now = Instant::now();
            let mut pending = self.pending.borrow_mut();
            while let Some(asker) = pending.overdue(now) {
                let head = asker.head();
                let outcome = PushOutcome::Rejected(Rejection::TimedOut);
                replies.push(&head, |out| reply::render(out, &head, outcome));
                count += 1;
            }
        }
        if count > 0 {
            self.lane.counters.timeouts.add(count as u64);
            self.lane.load.remove_tickets(count);
            self.send(replies);
            self.freed();
        }
    }

    /// Answers all that is left. Returns how much that was.
    fn answer_rest(&self) -> u64 {
        let mut replies = Replies::default();
        let mut count = 0;
        for asker in self.pending.borrow_mut().drain() {
            let head = asker.head();
            let outcome = PushOutcome::Rejected(Rejection::Unavailable);
            replies.push(&head, |out| reply::render(out, &head, outcome));
            count += 1;
        }
        self.lane.load.remove_tickets(count);
        self.send(replies);
        (count + self.registering.get() + self.asking.get()) as u64
    }

    /// Hands answers to the stream itself if it takes its own, else back on it if the peer wants that,
    /// else to the egress.
    fn send(&self, replies: Replies) {
        for batch in replies.gathered() {
            self.lane.counters.replies.add(batch.replies);
            if let Some(queue) = &self.queue {
                self.send_along(queue, batch);
            } else if let Err(batch) = self.send_back(batch) {
                self.send_out(batch);
            }
        }
    }

    /// Lays answers down for the task of a stream that takes its own.
    fn send_along(&self, queue: &RefCell<Queue>, batch: Answers) {
        let max = self.lane.ingress.config().egress_queue_bytes_max;
        let lost = batch.replies;
        let room = self.account.take(Good::EgressBytes, batch.stanzas.len());
        let chunk = room.map(|room| Chunk::new(batch.stanzas, batch.replies, Some(room)));
        if self.open.get() && chunk.is_some_and(|chunk| queue.borrow_mut().push(chunk, max).is_ok())
        {
            self.changed.notify_one();
        } else {
            self.lane.counters.replies_lost.add(lost);
        }
    }

    /// Lays answers down for the stream task, if they may go back and there is room.
    fn send_back(&self, batch: Answers) -> Result<(), Answers> {
        match self.back.borrow_mut().as_mut() {
            Some(back) => back.push(batch)?,
            None => return Err(batch),
        }
        self.changed.notify_one();
        Ok(())
    }

    /// Answers that the stream has to write and has not written whole.
    fn unwritten(&self) -> u64 {
        let queued = self.queue.as_ref().map(|queue| queue.borrow().replies());
        let back = self.back.borrow().as_ref().map(Back::replies);
        queued.unwrap_or_default() + back.unwrap_or_default() + self.writing.get()
    }

    fn take_back(&self) -> Option<Answers> {
        self.back.borrow_mut().as_mut()?.take()
    }

    /// From now on all answers take the egress, those not yet written as well.
    fn close_back(&self) {
        if let Some(rest) = self.back.take().and_then(|mut back| back.take()) {
            self.send_out(rest);
        }
    }

    /// Hands answers to the egress that owns the peer's stream.
    fn send_out(&self, answers: Answers) {
        let lost = answers.replies;
        let lanes = &self.lane.edges.egress;
        let owner = lanes.get(owner(&answers.remote, lanes.len()));
        let batch = EgressBatch {
            answers,
            account: self.account.clone(),
        };
        if owner.is_none_or(|owner| owner.try_send(batch).is_err()) {
            self.lane.counters.replies_lost.add(lost);
        }
    }

    /// Passes publishes on. If nobody takes them they are answered.
    fn publish(&self, session: &Addr<Session>, deadline: Instant, items: Vec<Publish>) {
        if items.is_empty() {
            return;
        }
        self.last_read.set(items.len());
        self.lane.counters.publishes.add(items.len() as u64);
        self.lane.load.add_tickets(items.len());
        let batch = PublishBatch {
            origin: Origin::new(session.clone().recipient()),
            deadline,
            items,
        };
        if let Err(returned) = self.lane.edges.publish.try_send(batch) {
            let outcome = PushOutcome::Rejected(Rejection::Internal);
            let items = returned.into_inner().items;
            self.answer(items.into_iter().map(|item| (item.ticket, outcome)));
        }
    }

    /// Asks the registry, and answers when it has answered.
    fn ask<T: 'static>(
        self: &Rc<Self>,
        route: Route,
        asked: impl Future<Output = Result<Result<T, RegistryError>, MailboxError>> + 'static,
        render: impl FnOnce(Result<T, RegistryError>) -> Vec<u8> + 'static,
    ) {
        self.lane.counters.registrations.add(1);
        self.registering.set(self.registering.get() + 1);
        let core = Rc::clone(self);
        actix_rt::spawn(async move {
            let outcome = match asked.await {
                Ok(outcome) => outcome,
                Err(MailboxError::Timeout) => Err(RegistryError::Busy),
                Err(MailboxError::Closed) => Err(RegistryError::Stopping),
            };
            let mut replies = Replies::default();
            replies.push_rendered(route, render(outcome));
            core.send(replies);
            core.registering
                .set(core.registering.get().saturating_sub(1));
            core.freed();
        });
    }
}

impl Core {
    /// Asks whoever answers people about their data, and sends what there is to say. It may take long, so
    /// the stream is read on meanwhile; what is asked beyond the bound is not heard.
    fn inquire<T: 'static>(
        self: &Rc<Self>,
        route: Route,
        asked: impl Future<Output = Result<T, MailboxError>> + 'static,
        render: impl FnOnce(Option<T>) -> Option<Vec<u8>> + 'static,
    ) -> Option<Vec<u8>> {
        if self.asking.get() >= QUESTIONS_MAX {
            return render(None);
        }
        self.asking.set(self.asking.get() + 1);
        let core = Rc::clone(self);
        actix_rt::spawn(async move {
            if let Some(stanza) = render(asked.await.ok()) {
                let mut replies = Replies::default();
                replies.push_rendered(route, stanza);
                core.send(replies);
            }
            core.asking.set(core.asking.get().saturating_sub(1));
            core.freed();
        });
        None
    }
}

/// The lane whose egress owns the streams to a domain: the same on every lane.
fn owner(remote: &Domain, lanes: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    remote.as_str().hash(&mut hasher);
    let lanes = u64::try_from(lanes).unwrap_or(u64::MAX).max(1);
    usize::try_from(hasher.finish() % lanes).unwrap_or_default()
}

/// The stream that an answer takes.
#[derive(Clone)]
struct Route {
    local: Domain,
    remote: Domain,
}

/// Bytes of most answers.
const REPLY_BYTES: usize = 128;

/// Answers, gathered by stream.
#[derive(Default)]
struct Replies {
    batches: Vec<Answers>,
    /// How many more are to be expected; most are for one stream.
    expected: usize,
}

impl Replies {
    /// For so many answers.
    fn with_room(expected: usize) -> Self {
        Self {
            expected,
            ..Self::default()
        }
    }

    /// Appends an answer to an iq.
    fn push(&mut self, head: &IqHead<'_>, render: impl FnOnce(&mut Vec<u8>)) {
        let known = self.batches.iter_mut().find(|batch| {
            jid::is_domain(&head.from, &batch.remote) && jid::is_domain(&head.to, &batch.local)
        });
        match known {
            Some(batch) => {
                render(&mut batch.stanzas);
                batch.replies += 1;
            }
            None => {
                // Both addresses were checked when the iq came.
                let domain = |text| Jid::parse(text).map(|jid| jid.domain);
                if let (Ok(remote), Ok(local)) = (domain(&head.from), domain(&head.to)) {
                    let room = std::mem::take(&mut self.expected) * REPLY_BYTES;
                    let mut stanzas = Vec::with_capacity(room);
                    render(&mut stanzas);
                    self.push_rendered(Route { local, remote }, stanzas);
                }
            }
        }
    }

    /// All of them. What waits is bounded by what is in it, so there is not much more room than that.
    fn gathered(self) -> impl Iterator<Item = Answers> {
        self.batches.into_iter().map(|mut batch| {
            if batch.stanzas.capacity() > 2 * batch.stanzas.len() {
                batch.stanzas.shrink_to_fit();
            }
            batch
        })
    }

    fn push_rendered(&mut self, route: Route, stanza: Vec<u8>) {
        let Route { local, remote } = route;
        let mut batches = self.batches.iter_mut();
        match batches.find(|batch| batch.local == local && batch.remote == remote) {
            Some(batch) => {
                batch.stanzas.extend_from_slice(&stanza);
                batch.replies += 1;
            }
            None => self.batches.push(Answers {
                local,
                remote,
                stanzas: stanza,
                replies: 1,
            }),
        }
    }
}

/// The actor.
pub(crate) struct Session {
    core: Rc<Core>,
}

impl Session {
    /// Starts on the current arbiter.
    pub(crate) fn start(lane: Rc<Lane>, admitted: AdmitStream) -> Addr<Self> {
        let account = admitted.stream.account().clone();
        Self::start_with(lane, account, None, |core, session| {
            let AdmitStream {
                stream,
                place,
                trace,
                deadline,
            } = admitted;
            StreamTask::new(core, session, trace, place).run(*stream, deadline)
        })
    }

    /// Starts on the current arbiter with the task that `task` makes, which has the socket.
    pub(crate) fn start_with<T>(
        lane: Rc<Lane>,
        account: Account,
        queue: Option<RefCell<Queue>>,
        task: impl FnOnce(Rc<Core>, Addr<Self>) -> T,
    ) -> Addr<Self>
    where
        T: Future<Output = ()> + 'static,
    {
        let (core, session) = Self::begin(lane, account, queue);
        actix_rt::spawn(task(core, session.clone()));
        session
    }

    /// Starts on the current arbiter for somebody who has the socket, and clears `open` at the end of it.
    pub(crate) fn begin(
        lane: Rc<Lane>,
        account: Account,
        queue: Option<RefCell<Queue>>,
    ) -> (Rc<Core>, Addr<Self>) {
        let tickets = lane.ingress.config().tickets_per_stream;
        let core = Rc::new(Core {
            lane,
            account,
            queue,
            pending: RefCell::new(Pending::new(tickets)),
            back: RefCell::default(),
            writing: Cell::new(0),
            last_read: Cell::new(0),
            registering: Cell::new(0),
            asking: Cell::new(0),
            order: Cell::new(Order::Run),
            stalled: Cell::new(false),
            open: Cell::new(true),
            changed: Notify::new(),
            settled: Notify::new(),
        });
        let session = Self::create(|ctx| {
            ctx.set_mailbox_capacity(0);
            Self {
                core: Rc::clone(&core),
            }
        });
        (core, session)
    }
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(TICK, |session, ctx| {
            session.core.answer_overdue();
            if !session.core.open.get() && session.core.is_settled() {
                ctx.stop();
            }
        });
    }
}

impl Handler<OutcomeBatch> for Session {
    type Result = ();

    fn handle(&mut self, batch: OutcomeBatch, _: &mut Self::Context) {
        self.core.answer(batch.items.into_iter());
    }
}

impl Handler<SendMessage> for Session {
    type Result = bool;

    fn handle(&mut self, message: SendMessage, _: &mut Self::Context) -> Self::Result {
        self.core.send(Replies {
            batches: vec![batch_of(&message)],
            ..Replies::default()
        });
        true
    }
}

/// Hands a message to the egress that owns the stream to its addressee's server.
pub(crate) fn post(lane: &Lane, message: &SendMessage) -> bool {
    let lanes = &lane.edges.egress;
    let owner = lanes.get(owner(message.to.domain(), lanes.len()));
    let batch = EgressBatch {
        answers: batch_of(message),
        account: lane.ingress.account(Source::Service),
    };
    owner.is_some_and(|owner| owner.try_send(batch).is_ok())
}

fn batch_of(message: &SendMessage) -> Answers {
    Answers {
        local: message.from.domain().clone(),
        remote: message.to.domain().clone(),
        stanzas: service::message(message.from.as_str(), message.to.as_str(), &message.text),
        replies: 1,
    }
}

impl Handler<Drain> for Session {
    type Result = ResponseFuture<Drained>;

    fn handle(&mut self, drain: Drain, _: &mut Self::Context) -> Self::Result {
        let core = Rc::clone(&self.core);
        core.command(Order::Drain);
        Box::pin(async move {
            let settled = async {
                while !core.is_settled() {
                    core.settled.notified().await;
                }
            };
            let in_time = timeout_at(drain.deadline.into(), settled).await;
            let abandoned = match in_time {
                Ok(()) => 0,
                Err(_) => core.answer_rest(),
            };
            core.command(Order::Close);
            let closed = async {
                while core.open.get() {
                    core.settled.notified().await;
                }
            };
            // The stream's end is a courtesy; the answers are out.
            let by = drain.closed_by(Instant::now(), CLOSE_LIMIT);
            let _ = timeout_at(by.into(), closed).await;
            Drained {
                abandoned: abandoned + core.unwritten(),
            }
        })
    }
}

/// The task that has the socket.
struct StreamTask {
    core: Rc<Core>,
    session: Addr<Session>,
    trace: Trace,
    throttle: Throttle,
    /// Revocable until a domain is authenticated.
    place: Hold,
}

impl Drop for StreamTask {
    fn drop(&mut self) {
        self.core.close_back();
        self.core.open.set(false);
        self.core.settled.notify_one();
        self.core.lane.counters.streams_open.remove(1);
        self.core.lane.load.remove_stream();
    }
}

type Verifications = FuturesUnordered<LocalBoxFuture<'static, inbound::Verified>>;

/// Why units stay in the buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    /// All tickets or registrations are in use.
    Full,
    /// They came too fast; the next one has its turn then.
    Until(time::Instant),
    /// The others of the lane have to have their turn.
    Turn,
}

/// What has to be done when nothing happens.
#[derive(Clone, Copy)]
enum Due {
    /// Go on with what is in the buffer.
    Read,
    /// Send away who is not authenticated.
    Refuse,
    /// End a stream that is silent.
    End,
    /// Show that we are there.
    Blank,
}

/// When what is due.
struct Agenda {
    refuse: time::Instant,
    end: time::Instant,
    blank: time::Instant,
}

impl Agenda {
    /// The next thing. A stream that is not read is not silent.
    fn next(&self, authenticated: bool, pause: Option<Pause>) -> (time::Instant, Due) {
        let mut next = match authenticated {
            false => (self.refuse, Due::Refuse),
            true => (self.blank, Due::Blank),
        };
        let mut earlier = |at, due| {
            if at < next.0 {
                next = (at, due);
            }
        };
        match pause {
            None if authenticated => earlier(self.end, Due::End),
            Some(Pause::Until(at)) => earlier(at, Due::Read),
            None | Some(Pause::Full | Pause::Turn) => {}
        }
        next
    }
}

/// What one read brought.
pub(crate) struct Batch {
    deadline: Instant,
    publishes: Vec<Publish>,
    replies: Replies,
}

impl Batch {
    /// A batch whose publishes are answered within the time that there is for it.
    pub(crate) fn new(lane: &Lane) -> Self {
        Self {
            deadline: Instant::now() + lane.ingress.config().reply_deadline(),
            publishes: Vec::new(),
            replies: Replies::default(),
        }
    }
}

impl StreamTask {
    fn new(core: Rc<Core>, session: Addr<Session>, trace: Trace, place: Hold) -> Self {
        core.lane.counters.streams_open.add(1);
        core.lane.counters.streams.add(1);
        core.lane.load.add_stream();
        let throttle = Throttle::new(core.lane.ingress.config());
        Self {
            core,
            session,
            trace,
            throttle,
            place,
        }
    }

    async fn run(mut self, mut stream: Inbound, deadline: time::Instant) {
        let served = self.serve(&mut stream, deadline).await;
        self.core.close_back();
        let fault = match served {
            Ok(()) => {
                stream.into_framed().leave().await;
                return;
            }
            Err(fault) => fault,
        };
        match fault {
            _ if fault.is_departure() && stream.is_accounted() => {
                tracing::debug!(trace = ?self.trace, "the peer closed its stream");
            }
            _ => self.report(&fault),
        }
        stream.into_framed().close_after(&fault).await;
    }

    fn report(&self, fault: &Fault) {
        self.core.lane.counters.streams_refused.add(1);
        let reason = Explained(fault, self.trace.stage);
        let outcomes = self.core.lane.ingress.outcomes();
        outcomes.failed(&self.trace, &reason, fault.stream_error());
    }

    /// Reads until the stream ends, or `Ok` when it shall be closed.
    async fn serve(&mut self, stream: &mut Inbound, deadline: time::Instant) -> Result<(), Fault> {
        let config = self.core.lane.ingress.config();
        let (idle, keepalive) = (config.inbound_idle(), config.keepalive());
        let revocation = self.place.revocation();
        let mut verifications = FuturesUnordered::new();
        let mut agenda = Agenda {
            refuse: deadline,
            end: time::Instant::now() + idle,
            blank: time::Instant::now() + keepalive,
        };
        loop {
            let pause = self.take_units(stream, &mut verifications).await?;
            self.settle(stream)?;
            if self.write_back(stream).await? {
                agenda.blank = time::Instant::now() + keepalive;
            }
            let order = self.core.order.get();
            if order == Order::Close {
                return Ok(());
            }
            if pause == Some(Pause::Turn) {
                stream.framed.rest().await;
                continue;
            }
            let reading = order == Order::Run && pause.is_none();
            let (at, due) = agenda.next(stream.is_authenticated(), pause);
            tokio::select! {
                () = self.core.changed.notified() => {}
                () = revocation.come() => return Err(Fault::gave_way()),
                read = stream.framed.fill(), if reading => {
                    read?;
                    if !stream.framed.is_ended() {
                        agenda.end = time::Instant::now() + idle;
                    }
                }
                Some(verified) = verifications.next() => stream.verified(verified).await?,
                () = sleep_until(at) => match due {
                    Due::Read => {}
                    Due::Refuse => {
                        return Err(Fault::TimedOut("it did not authenticate in time"));
                    }
                    Due::End if stream.framed.is_ended() => return Ok(()),
                    Due::End => {
                        // What it sends before it does the same is served still (RFC 6120 §4.4).
                        self.core.close_back();
                        stream.framed.end().await?;
                        agenda.end = time::Instant::now() + CLOSE_LIMIT;
                        agenda.blank = agenda.end + keepalive;
                    }
                    Due::Blank => {
                        stream.framed.send(b" ").await?;
                        agenda.blank = time::Instant::now() + keepalive;
                    }
                }
            }
            self.core.stalled.set(false);
            self.settle(stream)?;
            if !reading {
                stream.framed.rested();
            }
        }
    }

    /// Once a domain is authenticated the stream keeps its place, and answers may go back on it.
    fn settle(&mut self, stream: &Inbound) -> Result<(), Fault> {
        if stream.is_authenticated() {
            if self.trace.stage != Stage::Open && !self.place.keep() {
                return Err(Fault::gave_way());
            }
            self.trace.stage = Stage::Open;
            self.open_back(stream);
        }
        Ok(())
    }

    /// Lets answers go back on the stream if the peer wants that.
    fn open_back(&self, stream: &Inbound) {
        let mut back = self.core.back.borrow_mut();
        if back.is_some() || stream.framed.is_ended() {
            return;
        }
        if let Some((local, remote, limits)) = stream.way_back() {
            let max = self.core.lane.ingress.config().egress_queue_bytes_max;
            *back = Some(Back::new(local, remote, limits, max));
        }
    }

    /// Writes the answers that go back on the stream. Returns whether there were any.
    async fn write_back(&self, stream: &mut Inbound) -> Result<bool, Fault> {
        let Some(batch) = self.core.take_back() else {
            return Ok(false);
        };
        self.core.writing.set(batch.replies);
        let written = stream.framed.send(&batch.stanzas).await;
        match written {
            Ok(()) => self.core.lane.counters.replies_back.add(batch.replies),
            Err(_) => self.core.send_out(batch),
        }
        self.core.writing.set(0);
        written.map(|()| true)
    }

    /// Takes all whole units off the buffer. Returns why it stopped before, if it did.
    async fn take_units(
        &mut self,
        stream: &mut Inbound,
        verifications: &mut Verifications,
    ) -> Result<Option<Pause>, Fault> {
        if self.core.order.get() != Order::Run {
            return Ok(None);
        }
        let mut batch = Batch::new(&self.core.lane);
        let taken = self.take_each(stream, verifications, &mut batch).await;
        self.core.pass_on(&self.session, &mut batch);
        taken
    }

    async fn take_each(
        &mut self,
        stream: &mut Inbound,
        verifications: &mut Verifications,
        batch: &mut Batch,
    ) -> Result<Option<Pause>, Fault> {
        let now = time::Instant::now();
        loop {
            if self.core.is_full() {
                self.core.stalled.set(true);
                self.core.lane.counters.stalls.add(1);
                return Ok(Some(Pause::Full));
            }
            let (len, is_blank) = match stream.framed.unit()? {
                Unit::Element(len) => (len, false),
                Unit::Whitespace(len) => (len, true),
                Unit::Incomplete => return Ok(None),
                Unit::Close(_) => return Err(Fault::Ended),
                Unit::Header(_) => return Err(XmlError::BadFormat.into()),
            };
            if stream.framed.is_turn_over() {
                return Ok(Some(Pause::Turn));
            }
            let (throttle, account) = (&mut self.throttle, &self.core.account);
            let taken = match is_blank {
                true => throttle.take_blank(account, len, now),
                false => throttle.take(account, len, now),
            };
            if let Err(later) = taken {
                return Ok(Some(Pause::Until(later)));
            }
            if is_blank {
                stream.framed.consume(len);
                continue;
            }
            let rest = self.take_stanza(stream, len, batch)?;
            stream.framed.consume(len);
            if let Some(element) = rest {
                // Negotiation writes, so what was read before it goes first.
                self.core.pass_on(&self.session, batch);
                if let Some(verification) = stream.negotiate(&element).await? {
                    let ingress = self.core.lane.ingress.clone();
                    verifications.push(Box::pin(verification.run(ingress)));
                }
            }
        }
    }

    /// Takes a stanza; gives back what is none.
    fn take_stanza(
        &self,
        stream: &Inbound,
        len: usize,
        batch: &mut Batch,
    ) -> Result<Option<Element>, Fault> {
        if stream.is_authenticated() {
            return self.core.take_stanza(&stream.framed, len, stream, batch);
        }
        let element = stream.framed.read(len)?;
        if element.namespace() == ns::SERVER {
            return Err(Fault::refuse(
                StreamCondition::NotAuthorized,
                "a stanza came before authentication",
            ));
        }
        Ok(Some(element))
    }
}

impl Core {
    /// Passes on what a read brought, answers first.
    pub(crate) fn pass_on(&self, session: &Addr<Session>, batch: &mut Batch) {
        self.send(std::mem::take(&mut batch.replies));
        let publishes = std::mem::take(&mut batch.publishes);
        self.publish(session, batch.deadline, publishes);
    }

    /// Takes the stanza of `len` bytes at the start of an authenticated stream's buffer; gives back what
    /// is none.
    pub(crate) fn take_stanza<T>(
        self: &Rc<Self>,
        framed: &Framed<T>,
        len: usize,
        rule: &impl Rule,
        batch: &mut Batch,
    ) -> Result<Option<Element>, Fault>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let (text, namespaces) = framed.text(len)?;
        match publish::read(text, namespaces, self.lane.ingress.disclosure())? {
            Read::Publish(iq) if self.is_overlong(iq.head.id.as_deref()) => {}
            Read::Publish(iq) => self.take_publish(rule, iq, batch)?,
            Read::Malformed(head) if self.is_overlong(head.id.as_deref()) => {}
            Read::Malformed(head) => {
                if rule.allow(&head.from, &head.to)?.is_some() {
                    let outcome = PushOutcome::Rejected(Rejection::Malformed);
                    batch
                        .replies
                        .push(&head, |out| reply::render(out, &head, outcome));
                }
            }
            Read::Other => {
                let element = framed.read(len)?;
                if element.namespace() != namespaces.content() {
                    return Ok(Some(element));
                }
                self.lane.counters.stanzas.add(1);
                if self.is_overlong(element.attribute("id")) {
                    return Ok(None);
                }
                self.take_other(rule, &element, batch)?;
                return Ok(None);
            }
        }
        self.lane.counters.stanzas.add(1);
        Ok(None)
    }

    /// Whether a stanza is passed over for its id, which waits until there is an answer and is repeated in it.
    /// Without an answer servers keep the registration; no error says "your id is too long" to all of them.
    fn is_overlong(&self, id: Option<&str>) -> bool {
        let max = self.lane.ingress.config().id_bytes_max;
        let overlong = id.is_some_and(|id| id.len() > max);
        self.lane.counters.passed_over.add(u64::from(overlong));
        overlong
    }

    /// The addressee is whatever the client wrote when it enabled push: with a localpart or a resource it
    /// is a publish all the same, and the reply comes from exactly there.
    fn take_publish(
        &self,
        rule: &impl Rule,
        iq: PublishIq<'_>,
        batch: &mut Batch,
    ) -> Result<(), Fault> {
        let PublishIq {
            head,
            node,
            secret,
            hint,
            content,
        } = iq;
        let Some((domain, service)) = rule.allow(&head.from, &head.to)? else {
            return Ok(());
        };
        if !jid::is_domain(&head.from, &domain) {
            // Servers publish, not their users (XEP-0357 §5).
            let outcome = PushOutcome::Rejected(Rejection::Forbidden);
            batch
                .replies
                .push(&head, |out| reply::render(out, &head, outcome));
            return Ok(());
        }
        let deadline = batch.deadline + BACKSTOP;
        if batch.publishes.is_empty() {
            batch.publishes.reserve(self.last_read.get());
        }
        let ticket = self.pending.borrow_mut().take_ticket(&head, deadline);
        match ticket {
            Some(ticket) => batch.publishes.push(Publish {
                ticket,
                node,
                secret,
                domain,
                service: service.domain.clone(),
                hint,
                content: content
                    .and_then(|content| content.limited_to(service.disclosure))
                    .map(Box::new),
            }),
            None => {
                let outcome = PushOutcome::Rejected(Rejection::Overloaded);
                batch
                    .replies
                    .push(&head, |out| reply::render(out, &head, outcome));
            }
        }
        Ok(())
    }

    fn take_other(
        self: &Rc<Self>,
        rule: &impl Rule,
        stanza: &Element,
        batch: &mut Batch,
    ) -> Result<(), Fault> {
        let (Some(from), Some(to)) = (stanza.attribute("from"), stanza.attribute("to")) else {
            return rule.odd(unaddressed());
        };
        let Some((remote, service)) = rule.allow(from, to)? else {
            return Ok(());
        };
        let kind = stanza.attribute("type");
        if let (Some("result" | "error"), Some(id)) = (kind, stanza.attribute("id")) {
            let pings = self.lane.ingress.pings();
            pings.answered(id, &remote, &service.domain);
        }
        let route = Route {
            local: service.domain.clone(),
            remote,
        };
        let edges = &self.lane.edges;
        match service::answer(stanza, service) {
            Answer::Nothing => {}
            Answer::Reply(reply) => batch.replies.push_rendered(route, reply),
            Answer::Register(register, command) => {
                let asked = edges.register.send(register).timeout(REGISTRY_LIMIT);
                let render = |outcome| command.registered(outcome);
                self.ask(route, asked, render);
            }
            Answer::Unregister(unregister, command) => {
                let asked = edges.unregister.send(unregister).timeout(REGISTRY_LIMIT);
                let render = |outcome| command.unregistered(outcome);
                self.ask(route, asked, render);
            }
            Answer::Command(run, stage) => {
                let Some(privacy) = &edges.privacy else {
                    return Ok(());
                };
                let asked = privacy.command.send(run).timeout(QUESTION_LIMIT);
                let render = |outcome: Option<_>| {
                    Some(stage.rendered(outcome.unwrap_or(Err(CommandError::Busy))))
                };
                let refused = self.inquire(route.clone(), asked, render);
                if let Some(refused) = refused {
                    batch.replies.push_rendered(route, refused);
                }
            }
            Answer::Confirm(confirm, pending) => {
                let Some(privacy) = &edges.privacy else {
                    return Ok(());
                };
                let asked = privacy.confirm.send(confirm).timeout(QUESTION_LIMIT);
                let render = |text: Option<Option<String>>| {
                    text.flatten().map(|text| pending.rendered(&text))
                };
                // Beyond the bound it is silence.
                let _silence = self.inquire(route, asked, render);
            }
            Answer::Unsupported => {
                return rule.odd(Fault::refuse(
                    StreamCondition::UnsupportedStanzaType,
                    "an element came that is no stanza",
                ));
            }
            Answer::Unaddressed => return rule.odd(unaddressed()),
        }
        Ok(())
    }
}

/// Each fault of addressing ends a stream between servers (RFC 6120 §8.1).
impl Rule for Inbound {
    fn allow(&self, from: &str, to: &str) -> Result<Option<(Domain, &Service)>, Fault> {
        let domain = self.sender(from).ok_or(Fault::refuse(
            StreamCondition::InvalidFrom,
            "a stanza came from a domain that is not authenticated on this stream",
        ))?;
        let served = self.receiver(to).ok_or(Fault::refuse(
            StreamCondition::HostUnknown,
            "a stanza came for a domain that is not served here",
        ))?;
        Ok(Some((domain.clone(), served.service())))
    }

    fn odd(&self, fault: Fault) -> Result<(), Fault> {
        Err(fault)
    }
}

const fn unaddressed() -> Fault {
    Fault::refuse(
        StreamCondition::ImproperAddressing,
        "a stanza came without from or to",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_has_its_share_of_peers() {
        let mut shares = [0; 4];
        for n in 0..1000 {
            let remote = Domain::new(&format!("{n}.test"));
            shares[owner(&remote, shares.len())] += 1;
            assert_eq!(owner(&remote, 1), 0);
        }
        assert!(shares.iter().all(|share| *share > 150), "{shares:?}");
    }

    #[test]
    fn few_answers_take_little_room() {
        let mut replies = Replies::with_room(1_000);
        for from in ["a.test", "b.test", "b.test"] {
            let head = IqHead {
                id: Some("1".into()),
                from: from.into(),
                to: "push.test".into(),
            };
            replies.push(&head, |out| out.extend_from_slice(b"<iq/>"));
        }
        for batch in replies.gathered() {
            assert!(
                batch.stanzas.capacity() <= 32,
                "{:?}",
                batch.stanzas.capacity()
            );
        }
    }

    #[test]
    fn answers_are_gathered_by_stream() {
        let mut replies = Replies::default();
        let mut answer = |from: &str, to: &str| {
            let head = IqHead {
                id: Some("1".into()),
                from: from.into(),
                to: to.into(),
            };
            replies.push(&head, |out| out.extend_from_slice(from.as_bytes()));
        };
        answer("a.test", "push.test");
        answer("ada@A.test/x", "push.test");
        answer("a.test", "push2.test");
        answer("b.test", "push.test");
        answer("a.test", "Push.test");
        let gathered: Vec<_> = replies
            .batches
            .iter()
            .map(|batch| {
                let stanzas = std::str::from_utf8(&batch.stanzas).unwrap();
                (
                    batch.local.as_str(),
                    batch.remote.as_str(),
                    batch.replies,
                    stanzas,
                )
            })
            .collect();
        assert_eq!(
            gathered,
            [
                ("push.test", "a.test", 3, "a.testada@A.test/xa.test"),
                ("push2.test", "a.test", 1, "a.test"),
                ("push.test", "b.test", 1, "b.test"),
            ]
        );
    }
}
