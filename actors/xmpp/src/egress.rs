//! The way out, one per lane: owns the streams that we open to peers, one for each pair of served domain
//! and peer, and sends answers on them.
//!
//! A stream is opened with the first answer, reopened when it breaks, and closed when it is idle. Answers
//! wait for it in a bounded queue and for a bounded time.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use actix::{Actor, Context, Handler, Message, Recipient, ResponseFuture, Supervised, Supervisor};
use messages::{Domain, Drain, Drained, Health, Probe};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::Ingress;
use crate::backoff::Backoff;
use crate::gate::Count;
use crate::stream::Fault;
use crate::stream::outbound::{self, Connection, Opened};

/// Bytes written at once; more are written in several steps, so that less is sent twice when a stream
/// breaks.
const WRITE_BYTES: usize = 64 * 1024;
/// Times an answer is tried to be written: what was on a stream that broke goes once more on the next.
const TRIES_MAX: u32 = 2;
/// The longest wait between two tries to reach a peer.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Answers for one stream.
#[derive(Message)]
#[rtype(result = "()")]
pub struct EgressBatch {
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

/// Starts an egress on the current arbiter.
#[must_use]
pub fn start(ingress: &Ingress) -> Handles {
    let egress = Egress {
        shared: Rc::new(Shared {
            ingress: ingress.clone(),
            links: RefCell::default(),
            draining: Cell::new(false),
            gone: Notify::new(),
            counters: Counters::default(),
        }),
    };
    let address = Supervisor::start(|ctx: &mut Context<Egress>| {
        ctx.set_mailbox_capacity(0);
        egress
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
        let EgressBatch {
            local,
            remote,
            stanzas,
            replies,
        } = batch;
        let chunk = Chunk::new(stanzas, replies);
        let shared = &self.shared;
        let pair = (local, remote);
        let known = shared.links.borrow().get(&pair).map(Rc::clone);
        let link = known.unwrap_or_else(|| {
            let link = Rc::new(Link::default());
            shared
                .links
                .borrow_mut()
                .insert(pair.clone(), Rc::clone(&link));
            actix_rt::spawn(Keeper::new(Rc::clone(shared), pair, Rc::clone(&link)).run());
            link
        });
        let max = shared.ingress.config().egress_queue_bytes_max;
        match link.queue.borrow_mut().push(chunk, max) {
            Ok(()) => link.wake.notify_one(),
            Err(lost) => shared.counters.replies_lost.add(lost.replies),
        }
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
}

/// Answers of one batch.
pub(crate) struct Chunk {
    since: Instant,
    pub(crate) stanzas: Vec<u8>,
    pub(crate) replies: u64,
    tries: u32,
}

impl Chunk {
    pub(crate) fn new(stanzas: Vec<u8>, replies: u64) -> Self {
        Self {
            since: Instant::now(),
            stanzas,
            replies,
            tries: 0,
        }
    }
}

/// Answers that wait for a stream, bounded in bytes.
#[derive(Default)]
pub(crate) struct Queue {
    chunks: VecDeque<Chunk>,
    bytes: usize,
}

impl Queue {
    pub(crate) fn push(&mut self, chunk: Chunk, bytes_max: usize) -> Result<(), Chunk> {
        if self.bytes.saturating_add(chunk.stanzas.len()) > bytes_max {
            return Err(chunk);
        }
        self.bytes += chunk.stanzas.len();
        self.chunks.push_back(chunk);
        Ok(())
    }

    /// Takes what can be written at once, at least one chunk if there is any.
    pub(crate) fn take(&mut self) -> Vec<Chunk> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(chunk) = self.chunks.pop_front() {
            if !taken.is_empty() && bytes + chunk.stanzas.len() > WRITE_BYTES {
                self.chunks.push_front(chunk);
                break;
            }
            bytes += chunk.stanzas.len();
            taken.push(chunk);
        }
        self.bytes -= bytes;
        taken
    }

    /// Puts back what could not be written. Returns the answers that were tried often enough.
    pub(crate) fn put_back(&mut self, taken: Vec<Chunk>) -> u64 {
        let mut lost = 0;
        for mut chunk in taken.into_iter().rev() {
            chunk.tries += 1;
            if chunk.tries < TRIES_MAX {
                self.bytes += chunk.stanzas.len();
                self.chunks.push_front(chunk);
            } else {
                lost += chunk.replies;
            }
        }
        lost
    }

    /// Drops what has waited since `before`. Returns how many answers that were.
    pub(crate) fn expire(&mut self, before: Instant) -> u64 {
        let mut lost = 0;
        while let Some(chunk) = self.chunks.pop_front_if(|chunk| chunk.since <= before) {
            self.bytes -= chunk.stanzas.len();
            lost += chunk.replies;
        }
        lost
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(crate) fn replies(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.replies).sum()
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
    const fn new(shared: Rc<Shared>, pair: Pair, link: Rc<Link>) -> Self {
        Self {
            shared,
            pair,
            link,
            backoff: Backoff::new(BACKOFF_MAX),
        }
    }

    /// Runs while there is anything to send. Between the last look into the queue and the end there is no
    /// await, so no answer falls between two keepers.
    async fn run(mut self) {
        while self.has_work() {
            let (local, remote) = &self.pair;
            self.shared.counters.connects.add(1);
            match outbound::open(&self.shared.ingress, local, remote).await {
                Ok(Opened {
                    framed,
                    verdict,
                    method,
                }) => {
                    let certificate = verdict.err().map(|untrusted| untrusted.to_string());
                    tracing::info!(%local, peer = %remote, method, certificate, "stream to a peer opened");
                    self.shared.counters.streams_open.add(1);
                    let wrote = self.converse(framed).await;
                    self.shared.counters.streams_open.remove(1);
                    if !wrote {
                        self.pause().await;
                    }
                }
                Err(failure) => {
                    tracing::info!(%local, peer = %remote, reason = %failure, "no stream to a peer");
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

    /// Sends what comes until the stream ends. Returns whether anything was written: a peer that ends each
    /// stream before that is given time.
    async fn converse(&mut self, mut framed: Connection) -> bool {
        let mut wrote = false;
        let end = loop {
            match self.write(&mut framed).await {
                Ok(0) => {}
                Ok(_) => {
                    wrote = true;
                    self.backoff.reset();
                    continue;
                }
                Err(fault) => break End::Broken(fault),
            }
            if self.shared.draining.get() {
                break End::Done;
            }
            let idle = Instant::now() + self.shared.ingress.config().idle();
            tokio::select! {
                () = self.link.wake.notified() => {}
                fault = ignore(&mut framed) => break End::Broken(fault),
                () = sleep_until(idle) => break End::Done,
            }
        };
        let (local, remote) = &self.pair;
        match end {
            End::Done => {
                tracing::debug!(%local, peer = %remote, "stream to a peer closed");
                framed.close(None).await;
            }
            End::Broken(fault) => {
                tracing::debug!(%local, peer = %remote, reason = %fault, "stream to a peer ended");
                framed.close_after(&fault).await;
            }
        }
        wrote
    }

    /// Writes one piece of the queue. Returns how many answers that were.
    async fn write(&self, framed: &mut Connection) -> Result<u64, Fault> {
        let chunks = self.link.queue.borrow_mut().take();
        let written = match chunks.as_slice() {
            [] => return Ok(0),
            [only] => framed.send(&only.stanzas).await,
            several => {
                let stanzas: Vec<&[u8]> = several.iter().map(|c| c.stanzas.as_slice()).collect();
                framed.send(&stanzas.concat()).await
            }
        };
        match written {
            Ok(()) => {
                let replies = chunks.iter().map(|chunk| chunk.replies).sum();
                self.shared.counters.replies_written.add(replies);
                Ok(replies)
            }
            Err(fault) => {
                let lost = self.link.queue.borrow_mut().put_back(chunks);
                self.shared.counters.replies_lost.add(lost);
                Err(fault)
            }
        }
    }
}

/// Reads so that the end of the stream is seen at once. Stanzas here go the wrong way (RFC 6120 §4.5), and
/// dialback was settled before; both are passed over.
async fn ignore(framed: &mut Connection) -> Fault {
    loop {
        if let Err(fault) = framed.element().await {
            return fault;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(text: &str) -> Chunk {
        Chunk::new(text.into(), 1)
    }

    fn texts(chunks: &[Chunk]) -> Vec<&str> {
        chunks
            .iter()
            .map(|chunk| std::str::from_utf8(&chunk.stanzas).unwrap())
            .collect()
    }

    #[test]
    fn a_queue_is_bounded_and_in_order() {
        let mut queue = Queue::default();
        assert!(queue.push(chunk("one"), 6).is_ok());
        assert!(queue.push(chunk("two"), 6).is_ok());
        assert!(queue.push(chunk("3"), 6).is_err());
        assert_eq!(queue.replies(), 2);
        let taken = queue.take();
        assert_eq!(texts(&taken), ["one", "two"]);
        assert!(queue.push(chunk("three!"), 6).is_ok());
        assert_eq!(queue.put_back(taken), 0);
        let taken = queue.take();
        assert_eq!(texts(&taken), ["one", "two", "three!"]);
        assert_eq!(queue.put_back(taken), 2);
        assert_eq!(texts(&queue.take()), ["three!"]);
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn large_queues_are_written_in_pieces() {
        let mut queue = Queue::default();
        let large = "x".repeat(WRITE_BYTES);
        for text in ["a", &large, "b"] {
            assert!(queue.push(chunk(text), usize::MAX).is_ok());
        }
        assert_eq!(texts(&queue.take()), ["a"]);
        assert_eq!(texts(&queue.take()), [large.as_str()]);
        assert_eq!(texts(&queue.take()), ["b"]);
        assert!(queue.take().is_empty());
    }

    #[test]
    fn what_is_too_old_is_dropped() {
        let mut queue = Queue::default();
        queue.push(chunk("old"), 100).ok();
        let between = Instant::now();
        let mut young = chunk("young");
        young.since = between + Duration::from_secs(1);
        queue.push(young, 100).ok();
        assert_eq!(queue.expire(between), 1);
        assert_eq!(texts(&queue.take()), ["young"]);
        assert_eq!(queue.bytes, 0);
    }
}
