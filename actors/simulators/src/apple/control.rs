//! What a test sets and sees of the simulated APNs, at run time and from any thread.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use messages::{Clock, DeviceToken, UnixMillis};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::Config;
use super::payload::Payloads;
use super::provider_token::Updates;
use super::reason::{Reason, Refusal};

/// Most devices whose notifications are counted one by one.
const DEVICES_MAX: usize = 1 << 20;

/// Misbehaviour, changeable at run time. Requests are counted over all connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Time between a request and its answer, in milliseconds. Default 0.
    pub latency_millis: u64,
    /// Each n-th request is the last that its connection takes: GOAWAY names it, what came before is
    /// answered, what the client sent after it is not processed, then the connection is closed.
    /// Default 0: never.
    pub go_away_every: u64,
    /// Each n-th request makes its connection break without a word, it and all other unanswered ones
    /// with it. Default 0: never.
    pub drop_every: u64,
    /// Each connection is closed after so many answers without a GOAWAY; what the client sent after them is
    /// not processed. Default 0: never.
    pub close_after: u64,
    /// Each n-th request is reset with `REFUSED_STREAM`: not processed. Default 0: never.
    pub refuse_every: u64,
    /// Streams allowed at a time on each connection instead of the configured number, announced at
    /// once. Default none.
    pub streams_max: Option<u32>,
    /// Stops reading and writing on all connections: not even a PING is answered. Default false.
    pub frozen: bool,
    /// The same for this many connections, the oldest since the start: half-open sockets. Default 0.
    pub frozen_connections: u64,
    /// Accepts sockets and closes them before TLS. Default false.
    pub handshakes_refused: bool,
    /// The reason that a GOAWAY names. Default `Shutdown`.
    pub go_away_reason: Option<String>,
    /// Each n-th request that is faultless is answered with 500 `InternalServerError` instead. Default 0:
    /// never.
    pub fail_every: u64,
    /// Announces one stream at a time after each answer of status 4xx, until the next accepted one.
    /// Default false.
    pub dip_after_refusal: bool,
    /// Provider tokens with an `iat` before this one are called expired. Default 0: none but the old.
    pub issued_at_min: u64,
    /// How far the clock in the `date` header of error answers is ahead, in seconds. Default 0.
    pub date_ahead_seconds: i64,
}

/// What the simulator says of a device token that came with a faultless request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// 200.
    #[default]
    Accept,
    /// An error answer.
    Refuse(Refusal),
    /// No answer ever.
    Stall,
}

impl Verdict {
    /// An error answer without a timestamp.
    #[must_use]
    pub const fn refuse(reason: Reason) -> Self {
        Self::Refuse(Refusal::new(reason, "the verdict set for this device"))
    }

    /// 410 `Unregistered`: dead since then.
    #[must_use]
    pub const fn unregistered(since: UnixMillis) -> Self {
        Self::Refuse(Refusal {
            reason: Reason::Unregistered,
            because: "the verdict set for this device",
            timestamp: Some(since),
        })
    }
}

/// One request as it was judged.
#[derive(Clone)]
pub struct Notification {
    /// When.
    pub at: UnixMillis,
    /// The answer.
    pub verdict: Verdict,
    /// The device token, when it is one.
    pub device_token: Option<DeviceToken>,
    /// `apns-topic`.
    pub topic: Option<Box<str>>,
    /// `apns-push-type`.
    pub push_type: Option<Box<str>>,
    /// `apns-priority`; `None` when absent or refused.
    pub priority: Option<u8>,
    /// `apns-expiration`, in seconds since 1970; `None` when absent or refused.
    pub expiration: Option<u64>,
    /// `apns-collapse-id`.
    pub collapse_id: Option<Box<str>>,
    /// The `apns-id` of the answer.
    pub apns_id: Uuid,
    /// The payload, when it is JSON.
    pub payload: Option<Arc<Value>>,
}

impl fmt::Debug for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notification")
            .field("at", &self.at)
            .field("verdict", &self.verdict)
            .field("topic", &self.topic)
            .field("push_type", &self.push_type)
            .field("priority", &self.priority)
            .field("expiration", &self.expiration)
            .field("apns_id", &self.apns_id)
            .finish_non_exhaustive()
    }
}

/// What was counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that agreed on HTTP/2.
    pub connections: u64,
    /// Connections that are open now.
    pub connections_open: u64,
    /// Connections that did not: TLS failed, or ALPN was not `h2`.
    pub connections_failed: u64,
    /// Requests judged. Streams refused or ignored by a fault are none.
    pub requests: u64,
    /// Requests answered with 200.
    pub accepted: u64,
    /// Requests answered with an error, by reason.
    pub refused: BTreeMap<Reason, u64>,
    /// Requests that a verdict leaves without an answer.
    pub stalled: u64,
    /// Requests accepted whose `apns-id` had been accepted before.
    pub duplicates: u64,
    /// Different provider tokens that were verified.
    pub provider_tokens: u64,
    /// Streams reset with `REFUSED_STREAM` because a fault says so.
    pub streams_refused: u64,
    /// Streams reset with `REFUSED_STREAM` because the client had as many open as it may.
    pub streams_over_limit: u64,
    /// Streams not processed because they came after a GOAWAY.
    pub streams_ignored: u64,
    /// GOAWAY frames sent because a fault says so.
    pub go_aways: u64,
    /// Connections broken because a fault says so.
    pub connections_dropped: u64,
    /// Connections closed without a GOAWAY because a fault says so.
    pub connections_closed: u64,
    /// Notifications that no watcher could take.
    pub unobserved: u64,
}

impl Counters {
    /// Requests answered with an error.
    #[must_use]
    pub fn refused_total(&self) -> u64 {
        self.refused.values().sum()
    }
}

/// What was accepted more than once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Duplicates {
    /// Notifications beyond the first of their device.
    pub by_device: u64,
    /// Notifications whose `apns-id` had been accepted before.
    pub by_id: u64,
}

/// How the devices of a test were served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Devices with exactly one accepted notification.
    pub once: u64,
    /// Devices with none.
    pub missing: u64,
    /// Devices with more than one.
    pub repeated: u64,
    /// Devices served that were not asked about.
    pub others: u64,
}

/// Sets verdicts and faults and reads what happened. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Control(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    faults: watch::Sender<Faults>,
}

impl Control {
    pub(super) fn new(config: &Config, clock: Clock) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                clock,
                counters: Counters::default(),
                default_verdict: Verdict::Accept,
                verdicts: HashMap::new(),
                recording: config.recording,
                devices: HashMap::new(),
                ids: RecentIds::new(config.remembered_ids),
                watcher: None,
                payloads: Payloads::default(),
                updates: Updates::new(config.token_updates_limited),
                sequence: 0,
                faultless: 0,
            }),
            faults: watch::Sender::new(config.faults.clone()),
        }))
    }

    /// Sets what is said of one device.
    pub fn set_verdict(&self, device_token: &DeviceToken, verdict: Verdict) {
        self.state().verdicts.insert(device_token.clone(), verdict);
    }

    /// Sets what is said of all devices without a verdict of their own.
    pub fn set_default_verdict(&self, verdict: Verdict) {
        self.state().default_verdict = verdict;
    }

    /// Replaces all faults, on open connections too.
    pub fn set_faults(&self, faults: Faults) {
        self.0.faults.send_replace(faults);
    }

    /// Switches counting per device and of duplicates, and the stream of notifications.
    pub fn set_recording(&self, recording: bool) {
        self.state().recording = recording;
    }

    /// Opens the stream of judged requests, in order; a stream opened before ends. What does not fit
    /// is counted in [`Counters::unobserved`].
    #[must_use]
    pub fn watch(&self, capacity: usize) -> mpsc::Receiver<Notification> {
        let (sender, receiver) = mpsc::channel(capacity.max(1));
        self.state().watcher = Some(sender);
        receiver
    }

    /// What was counted until now.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.state().counters.clone()
    }

    /// How many notifications of a device were accepted. Counts while recording.
    #[must_use]
    pub fn delivered(&self, device_token: &DeviceToken) -> u64 {
        self.state().devices.get(device_token).copied().unwrap_or(0)
    }

    /// What was accepted more than once. Counts while recording.
    #[must_use]
    pub fn duplicates(&self) -> Duplicates {
        let state = self.state();
        Duplicates {
            by_device: state.devices.values().map(|times| times - 1).sum(),
            by_id: state.counters.duplicates,
        }
    }

    /// Whether each of these devices got exactly one notification, and no other device any.
    #[must_use]
    pub fn coverage(&self, device_tokens: &[DeviceToken]) -> Coverage {
        let state = self.state();
        let mut coverage = Coverage::default();
        let asked: HashSet<&DeviceToken> = device_tokens.iter().collect();
        for &device_token in &asked {
            match state.devices.get(device_token) {
                None => coverage.missing += 1,
                Some(1) => coverage.once += 1,
                Some(_) => coverage.repeated += 1,
            }
        }
        let strangers = state
            .devices
            .keys()
            .filter(|device| !asked.contains(device));
        coverage.others = strangers.count() as u64;
        coverage
    }

    pub(super) fn faults(&self) -> watch::Receiver<Faults> {
        self.0.faults.subscribe()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and counters stay readable if something does.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Control")
    }
}

/// What all connections share. Locked once per batch of requests.
pub(super) struct State {
    pub(super) clock: Clock,
    pub(super) counters: Counters,
    pub(super) payloads: Payloads,
    pub(super) updates: Updates,
    default_verdict: Verdict,
    verdicts: HashMap<DeviceToken, Verdict>,
    recording: bool,
    devices: HashMap<DeviceToken, u64>,
    ids: RecentIds,
    watcher: Option<mpsc::Sender<Notification>>,
    /// Requests that arrived over all connections, for the faults that strike each n-th.
    sequence: u64,
    /// Requests without a fault of their own.
    faultless: u64,
}

impl State {
    /// The number of the request that has just arrived, from 1.
    pub(super) const fn next_request(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    pub(super) const fn is_recording(&self) -> bool {
        self.recording
    }

    pub(super) const fn is_watched(&self) -> bool {
        self.recording && self.watcher.is_some()
    }

    /// Whether verdicts differ between devices, so that the token has to be looked at.
    pub(super) fn knows_devices(&self) -> bool {
        !self.verdicts.is_empty()
    }

    fn verdict_of(&self, device_token: Option<&DeviceToken>) -> Verdict {
        device_token
            .and_then(|device_token| self.verdicts.get(device_token))
            .copied()
            .unwrap_or(self.default_verdict)
    }

    /// The verdict for a faultless request: the device's, unless a fault strikes.
    pub(super) fn verdict(
        &mut self,
        device_token: Option<&DeviceToken>,
        faults: &Faults,
    ) -> Verdict {
        self.faultless += 1;
        if faults.fail_every != 0 && self.faultless.is_multiple_of(faults.fail_every) {
            return Verdict::Refuse(Refusal::new(
                Reason::InternalServerError,
                "a fault strikes each so many requests",
            ));
        }
        self.verdict_of(device_token)
    }

    pub(super) fn count(&mut self, verdict: Verdict) {
        self.counters.requests += 1;
        match verdict {
            Verdict::Accept => self.counters.accepted += 1,
            Verdict::Refuse(refusal) => {
                *self.counters.refused.entry(refusal.reason).or_default() += 1;
            }
            Verdict::Stall => self.counters.stalled += 1,
        }
    }

    /// Remembers an accepted notification; `apns_id` is the one the client chose.
    pub(super) fn remember(&mut self, device_token: DeviceToken, apns_id: Option<Uuid>) {
        if self.devices.len() < DEVICES_MAX || self.devices.contains_key(&device_token) {
            *self.devices.entry(device_token).or_default() += 1;
        }
        if let Some(apns_id) = apns_id
            && self.ids.seen(apns_id)
        {
            self.counters.duplicates += 1;
        }
    }

    pub(super) fn show(&mut self, notification: Notification) {
        let Some(watcher) = &self.watcher else { return };
        match watcher.try_send(notification) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => self.counters.unobserved += 1,
            Err(mpsc::error::TrySendError::Closed(_)) => self.watcher = None,
        }
    }
}

/// The last ids that were accepted.
struct RecentIds {
    known: HashSet<Uuid>,
    order: VecDeque<Uuid>,
    max: usize,
}

impl RecentIds {
    fn new(max: usize) -> Self {
        Self {
            known: HashSet::new(),
            order: VecDeque::new(),
            max,
        }
    }

    /// Takes note of an id and tells whether it was known.
    fn seen(&mut self, id: Uuid) -> bool {
        if self.max == 0 {
            return false;
        }
        if !self.known.insert(id) {
            return true;
        }
        if self.order.len() == self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(id);
        false
    }
}
