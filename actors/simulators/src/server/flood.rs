//! Very many pushes, at little cost: stanzas are put together from prepared pieces, answers are read
//! without a tree.

use std::collections::BTreeMap;
use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use memchr::memchr;
use messages::{NodeId, Secret};
use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout};

use super::hub::{Hub, error_of};
use super::outbound::Link;
use super::stanza;
use super::stream::{COMPONENT, SERVER};
use super::xml::{Scope, escaped, parse, tag_end};
use super::{Flood, FloodReport, Pace, Progress, StanzaError, component};
use crate::SimulatorError;

/// Bytes that are put together before they are written.
const WRITE_BYTES: usize = 64 * 1024;
/// Mark of a push without an answer.
const UNANSWERED: u32 = u32::MAX;
/// Mark of a push that is not written yet, while a later one of another stream is.
const UNWRITTEN: u32 = u32::MAX;
/// Most different error answers that are told apart.
const ERRORS_MAX: usize = 64;

/// The pushes of a flood and their answers.
pub(super) struct Table {
    /// What all ids of this flood begin with.
    prefix: String,
    domain: String,
    service: String,
    /// Content namespace of the streams that answers may come on.
    namespace: &'static str,
    started: Instant,
    /// When each push was written, in microseconds since the start, or [`UNWRITTEN`]. The streams take turns:
    /// of two the first has the even numbers, so that each carries its share.
    sent: Vec<u32>,
    /// How much later that was than it was due, in microseconds.
    lateness: Vec<u32>,
    /// How long each took, in microseconds.
    latencies: Vec<u32>,
    last_answer: Instant,
    results: u64,
    errors: BTreeMap<StanzaError, u64>,
    duplicates: u64,
    strays: u64,
    streams: Vec<Stream>,
    /// Told at each answer.
    answer: Rc<Notify>,
}

/// What one stream carries.
#[derive(Default)]
struct Stream {
    written: u32,
    answered: u32,
    /// Told at each answer to what it carried.
    told: Rc<Notify>,
}

impl Table {
    fn new(hub: &Hub, streams: usize) -> Self {
        let now = Instant::now();
        Self {
            prefix: format!("{}f", hub.fresh_id()),
            domain: hub.config.domain.clone(),
            service: hub.config.service.clone(),
            namespace: match hub.config.component {
                Some(_) => COMPONENT,
                None => SERVER,
            },
            started: now,
            sent: Vec::new(),
            lateness: Vec::new(),
            latencies: Vec::new(),
            last_answer: now,
            results: 0,
            errors: BTreeMap::new(),
            duplicates: 0,
            strays: 0,
            streams: std::iter::repeat_with(Stream::default)
                .take(streams)
                .collect(),
            answer: Rc::default(),
        }
    }

    /// The streams are open: the clock runs from now.
    fn begin(&mut self) {
        self.started = Instant::now();
        self.last_answer = self.started;
    }

    /// The number of the next push of a stream.
    fn next_number(&self, stream: usize) -> u32 {
        let streams = u32::try_from(self.streams.len()).unwrap_or(u32::MAX);
        let written = self.streams.get(stream).map_or(0, |stream| stream.written);
        let turn = u32::try_from(stream).unwrap_or(u32::MAX);
        written.saturating_mul(streams).saturating_add(turn)
    }

    /// The next push of a stream is written now.
    fn push(&mut self, stream: usize, at: u32) {
        let slot = self.next_number(stream) as usize;
        if slot >= self.sent.len() {
            self.sent.resize(slot + 1, UNWRITTEN);
            self.latencies.resize(slot + 1, UNANSWERED);
        }
        if let (Some(sent), Some(stream)) = (self.sent.get_mut(slot), self.streams.get_mut(stream))
        {
            *sent = at.min(UNWRITTEN - 1);
            stream.written += 1;
        }
    }

    fn written(&self) -> u32 {
        self.streams.iter().map(|stream| stream.written).sum()
    }

    fn answered(&self) -> u32 {
        self.streams.iter().map(|stream| stream.answered).sum()
    }

    /// Takes a stanza from a stream with this content namespace if it answers a push of this flood.
    pub(super) fn take(&mut self, xml: &[u8], namespace: &str) -> bool {
        let Some(answer) = Reply::read(xml) else {
            return false;
        };
        let Some(number) = answer.id.strip_prefix(self.prefix.as_bytes()) else {
            return false;
        };
        let slot = str::from_utf8(number)
            .ok()
            .and_then(|number| number.parse::<usize>().ok())
            .filter(|&number| self.sent.get(number).is_some_and(|&sent| sent != UNWRITTEN));
        let is_right = answer.from == self.service.as_bytes()
            && answer.to == self.domain.as_bytes()
            && namespace == self.namespace
            && answer
                .namespace
                .is_none_or(|namespace| namespace == self.namespace.as_bytes());
        let (Some(slot), true) = (slot, is_right) else {
            self.strays += 1;
            return true;
        };
        let now = Instant::now();
        let (Some(&sent), Some(latency)) = (self.sent.get(slot), self.latencies.get_mut(slot))
        else {
            return true;
        };
        if *latency != UNANSWERED {
            self.duplicates += 1;
            return true;
        }
        *latency = micros_since(self.started)
            .saturating_sub(sent)
            .min(UNANSWERED - 1);
        self.last_answer = now;
        match answer.kind {
            b"result" => self.results += 1,
            _ => self.count_error(xml),
        }
        let turn = slot.checked_rem(self.streams.len()).unwrap_or(0);
        if let Some(stream) = self.streams.get_mut(turn) {
            stream.answered += 1;
            stream.told.notify_one();
        }
        self.answer.notify_one();
        true
    }

    fn count_error(&mut self, xml: &[u8]) {
        let scope = Scope::of_default(self.namespace);
        let error = match parse(xml, &scope) {
            Ok(element) => error_of(&element),
            Err(_) => StanzaError {
                kind: "malformed".to_owned(),
                condition: String::new(),
            },
        };
        if self.errors.len() < ERRORS_MAX || self.errors.contains_key(&error) {
            *self.errors.entry(error).or_default() += 1;
        }
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            written: self.written(),
            answered: self.answered(),
        }
    }

    fn report(self) -> FloodReport {
        let (sent, answered) = (u64::from(self.written()), u64::from(self.answered()));
        let mut latencies_micros = self.latencies;
        latencies_micros.retain(|&latency| latency != UNANSWERED);
        latencies_micros.sort_unstable();
        let mut lateness_micros = self.lateness;
        lateness_micros.sort_unstable();
        FloodReport {
            sent,
            results: self.results,
            errors: self.errors,
            duplicates: self.duplicates,
            strays: self.strays,
            unanswered: sent - answered,
            elapsed: self.last_answer.duration_since(self.started),
            latencies_micros,
            lateness_micros,
        }
    }
}

/// The attributes of an iq's tag that an answer has.
struct Reply<'a> {
    kind: &'a [u8],
    id: &'a [u8],
    from: &'a [u8],
    to: &'a [u8],
    namespace: Option<&'a [u8]>,
}

impl<'a> Reply<'a> {
    /// Reads the tag of an iq; `None` for anything else. Values are compared as they are written: the
    /// ids and domains of a flood need no escaping.
    fn read(xml: &'a [u8]) -> Option<Self> {
        let mut rest = xml.trim_ascii_start().strip_prefix(b"<iq")?;
        let end = tag_end(rest).ok()??;
        rest = rest.get(..end)?;
        let mut reply = Self {
            kind: b"",
            id: b"",
            from: b"",
            to: b"",
            namespace: None,
        };
        while let Some(equals) = memchr(b'=', rest) {
            let (name, value) = rest.split_at_checked(equals)?;
            let (&quote, value) = value.get(1..)?.trim_ascii_start().split_first()?;
            let end = memchr(quote, value)?;
            let (value, after) = value.split_at_checked(end)?;
            match name.trim_ascii() {
                b"type" => reply.kind = value,
                b"id" => reply.id = value,
                b"from" => reply.from = value,
                b"to" => reply.to = value,
                b"xmlns" => reply.namespace = Some(value),
                _ => {}
            }
            rest = after.get(1..)?;
        }
        matches!(reply.kind, b"result" | b"error").then_some(reply)
    }
}

/// Runs a flood to its end.
pub(super) async fn run(hub: &Rc<Hub>, flood: Flood) -> Result<FloodReport, SimulatorError> {
    if hub.is_stopping() {
        return Err(SimulatorError::Stopping);
    }
    if hub.flood.borrow().is_some() {
        return Err(SimulatorError::Busy);
    }
    let streams = match hub.config.component {
        Some(_) => 1,
        None => flood.streams.max(1),
    };
    let table = Table::new(hub, streams);
    let answer = Rc::clone(&table.answer);
    let told: Vec<_> = table
        .streams
        .iter()
        .map(|stream| Rc::clone(&stream.told))
        .collect();
    *hub.flood.borrow_mut() = Some(table);
    let _cleared = Cleared(hub);
    let mut links = Vec::new();
    for _ in &told {
        links.push(Outlet::open(hub).await?);
    }
    let source = Source::new(hub, &flood, streams);
    if let Some(table) = hub.flood.borrow_mut().as_mut() {
        table.begin();
    }
    let writing = links.iter_mut().zip(&told).enumerate();
    try_join_all(writing.map(|(stream, (outlet, told))| source.pour(stream, outlet, told))).await?;
    source.await_answers(&answer).await;
    for outlet in links {
        outlet.close().await;
    }
    let table = hub.flood.borrow_mut().take();
    table.map(Table::report).ok_or(SimulatorError::Stopping)
}

/// What pushes are written on.
enum Outlet<'a> {
    /// A stream of the flood's own.
    Own(Link),
    /// The component's stream, which others write on too.
    Component(&'a Hub),
}

impl<'a> Outlet<'a> {
    async fn open(hub: &'a Rc<Hub>) -> Result<Self, SimulatorError> {
        if hub.config.component.is_none() {
            return Ok(Self::Own(hub.connect().await?.watched(hub)));
        }
        // Nothing, but it waits for the component.
        component::send(hub, b"").await?;
        Ok(Self::Component(hub))
    }

    async fn write(&mut self, xml: &[u8]) -> Result<(), SimulatorError> {
        match self {
            Self::Own(link) => link.write(xml).await,
            Self::Component(hub) => component::send(hub, xml).await,
        }
    }

    async fn close(self) {
        if let Self::Own(link) = self {
            link.close().await;
        }
    }
}

/// Makes room for the next flood, however this one ends.
struct Cleared<'a>(&'a Hub);

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        self.0.flood.borrow_mut().take();
    }
}

/// Where the pushes come from.
struct Source<'a> {
    hub: &'a Hub,
    /// Everything before the number in the id.
    head: String,
    /// Everything after it, for each device.
    tails: Vec<String>,
    pushes: u32,
    pace: Pace,
    streams: u32,
    patience: Duration,
}

impl<'a> Source<'a> {
    fn new(hub: &'a Hub, flood: &Flood, streams: usize) -> Self {
        let (from, to) = (escaped(&hub.config.domain), escaped(&hub.config.service));
        let prefix = hub
            .flood
            .borrow()
            .as_ref()
            .map(|table| table.prefix.clone());
        let prefix = prefix.unwrap_or_default();
        let tail = |(node, secret): &(NodeId, Secret)| {
            let secret = Some(secret.as_str());
            let payload = stanza::publish(flood.shape, node.as_str(), secret, flood.has_body);
            format!("'>{payload}</iq>")
        };
        let streams = u32::try_from(streams).unwrap_or(u32::MAX).max(1);
        Self {
            hub,
            head: format!("<iq type='set' from='{from}' to='{to}' id='{prefix}"),
            tails: flood.devices.iter().map(tail).collect(),
            pushes: if flood.devices.is_empty() {
                0
            } else {
                flood.pushes
            },
            pace: flood.pace,
            streams,
            patience: flood.patience,
        }
    }

    /// Writes the pushes of one stream until there are no more, or answers stay out.
    async fn pour(
        &self,
        stream: usize,
        outlet: &mut Outlet<'_>,
        told: &Notify,
    ) -> Result<(), SimulatorError> {
        let mut buffer = Vec::with_capacity(2 * WRITE_BYTES);
        loop {
            buffer.clear();
            let is_more = self.fill(stream, &mut buffer);
            if !buffer.is_empty() {
                outlet.write(&buffer).await?;
            } else if !is_more {
                return Ok(());
            } else if let Pace::PerSecond(rate) = self.pace {
                self.await_due(stream, rate).await;
            } else if timeout(self.patience, told.notified()).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Puts together what may be written now. False when all has been.
    fn fill(&self, stream: usize, buffer: &mut Vec<u8>) -> bool {
        let mut flood = self.hub.flood.borrow_mut();
        let Some(table) = flood.as_mut() else {
            return false;
        };
        let now = micros_since(table.started);
        // How many may be written, and the number before which they must be.
        let (room, end) = match self.pace {
            Pace::Outstanding(outstanding) => {
                let waiting = table
                    .streams
                    .get(stream)
                    .map_or(0, |stream| stream.written - stream.answered);
                let room = self.share(stream, outstanding).saturating_sub(waiting);
                (room, self.pushes)
            }
            Pace::PerSecond(rate) => {
                let due = u64::from(now) * u64::from(rate) / 1_000_000 + 1;
                let due = u32::try_from(due).unwrap_or(u32::MAX);
                (u32::MAX, due.min(self.pushes))
            }
        };
        for _ in 0..room {
            let number = table.next_number(stream);
            if number >= end || buffer.len() >= WRITE_BYTES {
                break;
            }
            let Some(tail) = self.tails.get(self.tail_of(number)) else {
                break;
            };
            buffer.extend(self.head.as_bytes());
            // Writing into a vector does not fail.
            let _infallible = write!(buffer, "{number}");
            buffer.extend(tail.as_bytes());
            table.push(stream, now);
            if let Pace::PerSecond(rate) = self.pace {
                table.lateness.push(now.saturating_sub(due(number, rate)));
            }
        }
        table.next_number(stream) < self.pushes
    }

    /// Pushes that a stream may have unanswered: its part of all, and one at least.
    fn share(&self, stream: usize, outstanding: u32) -> u32 {
        let rest = (outstanding % self.streams) as usize;
        (outstanding / self.streams + u32::from(stream < rest)).max(1)
    }

    /// Sleeps until the next push is due. The timer's steps are milliseconds, and it wakes after the
    /// time rather than before it.
    async fn await_due(&self, stream: usize, rate: u32) {
        let next = self.hub.flood.borrow().as_ref().map(|table| {
            let due = Duration::from_micros(due(table.next_number(stream), rate).into());
            table.started + due
        });
        if let Some(next) = next {
            sleep_until(next.into()).await;
        }
    }

    /// Which device the push with this number goes to.
    fn tail_of(&self, number: u32) -> usize {
        (number as usize).checked_rem(self.tails.len()).unwrap_or(0)
    }

    fn is_answer_missing(&self) -> bool {
        let flood = self.hub.flood.borrow();
        flood
            .as_ref()
            .is_some_and(|table| table.answered() < table.written())
    }

    /// Waits for the last answers.
    async fn await_answers(&self, told: &Notify) {
        let answered = async {
            while self.is_answer_missing() {
                told.notified().await;
            }
        };
        // Running out of patience leaves pushes unanswered, which the report tells.
        let _out_of_patience = timeout(self.patience, answered).await;
    }
}

/// When a push of a flood with a rate is due, in microseconds since the start.
fn due(number: u32, rate: u32) -> u32 {
    let due = u64::from(number) * 1_000_000 / u64::from(rate.max(1));
    u32::try_from(due).unwrap_or(u32::MAX)
}

fn micros_since(start: Instant) -> u32 {
    u32::try_from(start.elapsed().as_micros()).unwrap_or(UNANSWERED)
}
