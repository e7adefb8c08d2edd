//! Records as bytes. Hand-written, so that what is on disk depends on nothing but this file.
//!
//! A record is a frame: length of what follows the checksum (4 bytes), CRC-32 of it (4), then version (1),
//! kind (1), Unix seconds (8), and fields: tag (1), length (2), value. Numbers are big-endian. A reader
//! passes over tags that it does not know, so fields can be added within a version.

use std::io::{self, Read};
use std::ops::RangeInclusive;

use messages::{
    AccessedEvent, DeviceToken, EndCause, EndedEvent, ErasedEvent, JournalEntry, JournalEvent,
    JournalLine, NodeId, OverriddenEvent, PushOutcome, PushedEvent, RegisteredEvent,
    RegistrationKey, Rejection, Subject, UnixSeconds,
};

use crate::key::{Digest, HashKey};
use crate::words::names;

const VERSION: u8 = 1;
/// Length and checksum.
pub(crate) const HEAD_BYTES: usize = 8;
/// Version, kind and time.
const FIXED_BYTES: usize = 10;
/// No value is longer; what is, is cut: an operator's words, and nothing else can be.
const VALUE_BYTES_MAX: usize = OverriddenEvent::REASON_BYTES_MAX;
/// No record is longer: a longer length is none.
const RECORD_BYTES_MAX: usize = 32 << 10;
/// Bytes read at a time.
const READ_BYTES: usize = 64 << 10;
/// Bytes of possible records that a search behind damage looks at before it gives up. Of what damage leaves,
/// hardly a byte in a hundred thousand looks like the beginning of a record.
const SEARCH_BYTES_MAX: usize = 256 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Kind {
    Registered = 1,
    Renewed = 2,
    Ended = 3,
    Pushed = 4,
    Accessed = 5,
    Erased = 6,
    Overridden = 7,
}

impl Kind {
    const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Registered,
            2 => Self::Renewed,
            3 => Self::Ended,
            4 => Self::Pushed,
            5 => Self::Accessed,
            6 => Self::Erased,
            7 => Self::Overridden,
            _ => return None,
        })
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Renewed => "renewed",
            Self::Ended => "ended",
            Self::Pushed => "pushed",
            Self::Accessed => "accessed",
            Self::Erased => "erased",
            Self::Overridden => "overridden",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Tag {
    Account = 1,
    Registration = 2,
    Service = 3,
    App = 4,
    Dialect = 5,
    Node = 6,
    NodeHash = 7,
    Token = 8,
    TokenHash = 9,
    Domain = 10,
    Outcome = 11,
    Cause = 12,
    Reason = 13,
    Case = 14,
    Proof = 15,
    Registrations = 16,
    Records = 17,
    AccountKey = 18,
}

impl Tag {
    const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Account,
            2 => Self::Registration,
            3 => Self::Service,
            4 => Self::App,
            5 => Self::Dialect,
            6 => Self::Node,
            7 => Self::NodeHash,
            8 => Self::Token,
            9 => Self::TokenHash,
            10 => Self::Domain,
            11 => Self::Outcome,
            12 => Self::Cause,
            13 => Self::Reason,
            14 => Self::Case,
            15 => Self::Proof,
            16 => Self::Registrations,
            17 => Self::Records,
            18 => Self::AccountKey,
            _ => return None,
        })
    }

    /// The name that a person reads; `None` for what says nothing outside of the store.
    const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::Account => "account",
            Self::Registration | Self::AccountKey => return None,
            Self::Service => "service",
            Self::App => "app",
            Self::Dialect => "dialect",
            Self::Node | Self::NodeHash => "node",
            Self::Token | Self::TokenHash => "device-token",
            Self::Domain => "domain",
            Self::Outcome => "outcome",
            Self::Cause => "cause",
            Self::Reason => "reason",
            Self::Case => "case",
            Self::Proof => "proof",
            Self::Registrations => "registrations",
            Self::Records => "records",
        })
    }
}

const fn outcome(outcome: PushOutcome) -> &'static str {
    match outcome {
        PushOutcome::Accepted => "accepted",
        PushOutcome::Deferred => "deferred",
        PushOutcome::Rejected(rejection) => match rejection {
            Rejection::UnknownNode => "unknown-node",
            Rejection::Forbidden => "forbidden",
            Rejection::Unregistered => "token-dead",
            Rejection::Malformed => "malformed",
            Rejection::Throttled => "throttled",
            Rejection::Overloaded => "overloaded",
            Rejection::Unavailable => "unavailable",
            Rejection::TimedOut => "timed-out",
            Rejection::Internal => "internal",
            // Rejections may be added; the name of one is then missing here, not the record.
            _ => "other",
        },
    }
}

/// Writes records, one after the other, into a buffer.
pub(crate) struct Encoder<'a> {
    to: &'a mut Vec<u8>,
    key: Option<&'a HashKey>,
}

impl<'a> Encoder<'a> {
    /// Nodes and device tokens are hashed if there is a key.
    pub(crate) const fn new(to: &'a mut Vec<u8>, key: Option<&'a HashKey>) -> Self {
        Self { to, key }
    }

    /// Appends one record.
    pub(crate) fn record(&mut self, entry: &JournalEntry) {
        let start = self.to.len();
        self.to.extend([0; HEAD_BYTES]);
        match &entry.event {
            JournalEvent::Registered(event) => self.registered(entry.at, event),
            JournalEvent::Ended(event) => self.ended(entry.at, event),
            JournalEvent::Pushed(event) => self.pushed(entry.at, event),
            JournalEvent::Accessed(event) => self.accessed(entry.at, event),
            JournalEvent::Erased(event) => self.erased(entry.at, event),
            JournalEvent::Overridden(event) => self.overridden(entry.at, event),
        }
        seal(self.to, start);
    }

    fn fixed(&mut self, kind: Kind, at: UnixSeconds) {
        self.to.extend([VERSION, kind as u8]);
        self.to.extend(at.0.to_be_bytes());
    }

    fn field(&mut self, tag: Tag, value: &[u8]) {
        let value = value.get(..VALUE_BYTES_MAX).unwrap_or(value);
        let length = u16::try_from(value.len()).unwrap_or_default();
        self.to.push(tag as u8);
        self.to.extend(length.to_be_bytes());
        self.to.extend(value);
    }

    fn text(&mut self, tag: Tag, value: &str) {
        self.field(tag, value.as_bytes());
    }

    fn node(&mut self, node: &NodeId) {
        match self.key {
            None => self.text(Tag::Node, node.as_str()),
            Some(key) => self.field(Tag::NodeHash, &key.node(node)),
        }
    }

    fn device_token(&mut self, device_token: &DeviceToken) {
        match self.key {
            None => self.text(Tag::Token, device_token.as_str()),
            Some(key) => self.field(Tag::TokenHash, &key.device_token(device_token)),
        }
    }

    fn registered(&mut self, at: UnixSeconds, event: &RegisteredEvent) {
        let kind = if event.renewed {
            Kind::Renewed
        } else {
            Kind::Registered
        };
        self.fixed(kind, at);
        self.text(Tag::Account, event.account.as_str());
        self.field(Tag::Registration, &event.registration.0);
        self.text(Tag::Service, event.service.as_str());
        self.text(Tag::App, event.app.as_str());
        self.text(Tag::Dialect, event.dialect.as_str());
        self.node(&event.node);
        self.device_token(&event.device_token);
    }

    fn ended(&mut self, at: UnixSeconds, event: &EndedEvent) {
        self.fixed(Kind::Ended, at);
        if let Some(account) = &event.account {
            self.text(Tag::Account, account.as_str());
        }
        self.field(Tag::AccountKey, &event.account_key.0);
        self.field(Tag::Registration, &event.registration.0);
        self.text(Tag::Service, event.service.as_str());
        self.text(Tag::App, event.app.as_str());
        self.node(&event.node);
        self.device_token(&event.device_token);
        let cause = match &event.cause {
            EndCause::Unregistered => "unregistered",
            EndCause::Replaced => "replaced",
            EndCause::TokenDead(_) => "token-dead",
            EndCause::Idle => "idle",
        };
        self.text(Tag::Cause, cause);
        if let EndCause::TokenDead(reason) = &event.cause {
            self.text(Tag::Reason, reason.as_str());
        }
    }

    fn pushed(&mut self, at: UnixSeconds, event: &PushedEvent) {
        self.fixed(Kind::Pushed, at);
        if let Some(target) = &event.target {
            self.field(Tag::Registration, &target.registration.0);
            self.field(Tag::AccountKey, &target.account.0);
            self.node(&target.node);
        }
        self.text(Tag::Domain, event.domain.as_str());
        self.text(Tag::Outcome, outcome(event.outcome));
    }

    fn accessed(&mut self, at: UnixSeconds, event: &AccessedEvent) {
        self.fixed(Kind::Accessed, at);
        if let Some(account) = &event.account {
            self.text(Tag::Account, account.as_str());
        }
        if let Some(case) = &event.case {
            self.text(Tag::Case, case.as_str());
        }
        self.text(Tag::Proof, event.proof.as_str());
    }

    fn erased(&mut self, at: UnixSeconds, event: &ErasedEvent) {
        self.fixed(Kind::Erased, at);
        if let Some(case) = &event.case {
            self.text(Tag::Case, case.as_str());
        }
        self.text(Tag::Proof, event.proof.as_str());
        self.field(Tag::Registrations, &event.registrations.to_be_bytes());
        self.field(Tag::Records, &event.records.to_be_bytes());
    }

    fn overridden(&mut self, at: UnixSeconds, event: &OverriddenEvent) {
        self.fixed(Kind::Overridden, at);
        self.text(Tag::Case, event.case.as_str());
        self.text(Tag::Reason, cut(&event.reason));
    }
}

/// The longest beginning that is still text.
fn cut(text: &str) -> &str {
    let end = text.floor_char_boundary(VALUE_BYTES_MAX);
    text.get(..end).unwrap_or_default()
}

/// Fills in length and checksum of the record that begins at `start`.
fn seal(to: &mut [u8], start: usize) {
    let Some((head, body)) = to
        .get_mut(start..)
        .and_then(|record| record.split_first_chunk_mut::<HEAD_BYTES>())
    else {
        return;
    };
    let length = u32::try_from(body.len()).unwrap_or_default();
    let sum = crc32fast::hash(body);
    *head = (u64::from(length) << 32 | u64::from(sum)).to_be_bytes();
}

/// Appends a record that was read, as it was.
pub(crate) fn copy(record: &Record<'_>, to: &mut Vec<u8>) {
    let start = to.len();
    to.extend([0; HEAD_BYTES]);
    to.extend(record.0);
    seal(to, start);
}

/// Whether a file of so many bytes that begins so ends within its first record.
pub(crate) fn is_beginning(head: &[u8], length: u64) -> bool {
    let Some((head, _)) = head.split_first_chunk::<HEAD_BYTES>() else {
        return true;
    };
    let record = u64::from_be_bytes(*head) >> 32;
    (FIXED_BYTES as u64..=RECORD_BYTES_MAX as u64).contains(&record)
        && length < HEAD_BYTES as u64 + record
}

/// Why no further record can be read.
#[derive(Debug)]
pub(crate) enum End {
    /// There is none.
    Clean,
    /// So many bytes follow with no whole record in them: the writer was cut short there, or the file is
    /// damaged.
    Torn(u64),
    /// The file is damaged so that what follows cannot be decompressed.
    Undecodable,
    /// The file cannot be read.
    Failed(io::Error),
}

/// Why nothing more comes from a file.
#[derive(Debug)]
enum Over {
    End,
    Undecodable,
    Failed(io::Error),
}

/// Reads records one after the other, borrowing each. What is no whole record is passed over: behind it, the
/// next one is looked for at every byte.
pub(crate) struct Records<R> {
    from: R,
    /// What was read and is not passed; nothing before `at` is of use.
    buffer: Vec<u8>,
    /// Where in the buffer the next record is looked for.
    at: usize,
    over: Option<Over>,
    /// Bytes passed over since the last whole record.
    passed: u64,
    /// Bytes from the beginning to the end of the last whole record.
    pub(crate) whole: u64,
    /// Bytes passed over in front of whole records.
    pub(crate) skipped: u64,
    /// Bytes that the search may still look at.
    search: usize,
}

impl<R: Read> Records<R> {
    pub(crate) const fn new(from: R) -> Self {
        Self {
            from,
            buffer: Vec::new(),
            at: 0,
            over: None,
            passed: 0,
            whole: 0,
            skipped: 0,
            search: SEARCH_BYTES_MAX,
        }
    }

    /// The next record.
    ///
    /// # Errors
    /// [`End`], also the clean one.
    pub(crate) fn next(&mut self) -> Result<Record<'_>, End> {
        let length = loop {
            if let Some(length) = self.length() {
                break length;
            }
            if self.rest().is_empty() {
                return Err(self.end());
            }
            self.at += 1;
            self.passed += 1;
        };
        self.skipped += self.passed;
        self.whole += std::mem::take(&mut self.passed) + (HEAD_BYTES + length) as u64;
        let start = self.at + HEAD_BYTES;
        self.at = start + length;
        let body = self.buffer.get(start..self.at).unwrap_or_default();
        Ok(Record(body))
    }

    /// Where they come from.
    pub(crate) const fn source(&self) -> &R {
        &self.from
    }

    /// Whether the search has given up, so that whole records may be left.
    pub(crate) const fn gave_up(&self) -> bool {
        self.search == 0
    }

    /// The length of the whole record that begins here, without its frame.
    fn length(&mut self) -> Option<usize> {
        self.fill(HEAD_BYTES);
        let (head, _) = self.rest().split_first_chunk()?;
        let head = u64::from_be_bytes(*head);
        let length = (head >> 32) as usize;
        if !(FIXED_BYTES..=RECORD_BYTES_MAX).contains(&length) || self.gave_up() {
            return None;
        }
        self.fill(HEAD_BYTES + length);
        let is_found = self.passed > 0;
        let body = self.rest().get(HEAD_BYTES..HEAD_BYTES + length)?;
        if is_found {
            // Most of what is none ends here. What a newer version wrote does as well: nothing but its length
            // and checksum would tell it from chance.
            Record(body).kind()?;
            let (is_whole, left) = (Record(body).has_fields_alone(), self.search);
            self.search = left.saturating_sub(length);
            if !is_whole {
                return None;
            }
        }
        // A checksum of 32 bits: cutting it out of the head is meant.
        #[allow(clippy::cast_possible_truncation, reason = "the lower half")]
        let sum = head as u32;
        let body = self.rest().get(HEAD_BYTES..HEAD_BYTES + length)?;
        (crc32fast::hash(body) == sum).then_some(length)
    }

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.at..).unwrap_or_default()
    }

    /// Reads until so many bytes are there or nothing is left.
    fn fill(&mut self, bytes: usize) {
        while self.over.is_none() && self.rest().len() < bytes {
            self.buffer.drain(..self.at);
            self.at = 0;
            let filled = self.buffer.len();
            self.buffer.resize(filled + READ_BYTES, 0);
            let room = self.buffer.get_mut(filled..).unwrap_or_default();
            let read = self.from.read(room);
            self.buffer.truncate(filled + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => self.over = Some(Over::End),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What the decompressor says of a damaged or cut file.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::UnexpectedEof
                            | io::ErrorKind::InvalidData
                            | io::ErrorKind::Other
                    ) =>
                {
                    self.over = Some(Over::Undecodable);
                }
                Err(error) => self.over = Some(Over::Failed(error)),
            }
        }
    }

    fn end(&mut self) -> End {
        match &self.over {
            Some(Over::Failed(error)) => {
                let again = Over::Failed(error.kind().into());
                match self.over.replace(again) {
                    Some(Over::Failed(error)) => End::Failed(error),
                    _ => End::Undecodable,
                }
            }
            Some(Over::Undecodable) => End::Undecodable,
            Some(Over::End) | None if self.passed == 0 => End::Clean,
            Some(Over::End) | None => End::Torn(self.passed),
        }
    }
}

/// A whole record: its checksum was right.
#[derive(Clone, Copy)]
pub(crate) struct Record<'a>(&'a [u8]);

/// Whom a record is about, in the form that records have it in.
pub(crate) struct Search {
    subject: Subject,
    /// Records of these times do not count.
    passes_over: Option<RangeInclusive<u64>>,
    /// The nodes as hashes; empty without a key.
    nodes: Vec<Digest>,
    /// The device tokens as hashes; empty without a key.
    device_tokens: Vec<Digest>,
}

impl Search {
    /// Prepares a search. With a key records are found whether they were hashed with it or not.
    pub(crate) fn new(subject: Subject, key: Option<&HashKey>) -> Self {
        let (nodes, device_tokens) = match key {
            None => (Vec::new(), Vec::new()),
            Some(key) => (
                subject.nodes.iter().map(|node| key.node(node)).collect(),
                subject
                    .device_tokens
                    .iter()
                    .map(|device_token| key.device_token(device_token))
                    .collect(),
            ),
        };
        Self {
            subject,
            passes_over: None,
            nodes,
            device_tokens,
        }
    }

    /// Lets records count that are not later than `until`. What comes after now was written while the clock
    /// was ahead: nobody knows when, so it counts.
    pub(crate) const fn until(mut self, until: UnixSeconds, now: UnixSeconds) -> Self {
        self.passes_over = Some(until.0.saturating_add(1)..=now.0);
        self
    }

    /// The subject, with what it was widened by.
    pub(crate) fn into_subject(self) -> Subject {
        self.subject
    }

    /// Adds the registration of a record that belongs to the subject by itself.
    pub(crate) fn widen(&mut self, record: &Record<'_>) {
        if !self.counts(record) {
            return;
        }
        let mut registration = None;
        let mut own = false;
        for (tag, value) in record.fields() {
            match tag {
                Tag::Registration => registration = value.try_into().ok().map(RegistrationKey),
                _ => own |= self.has(tag, value),
            }
        }
        if let (true, Some(registration)) = (own, registration) {
            self.subject.widen(registration);
        }
    }

    /// Whether a record is about the subject.
    pub(crate) fn matches(&self, record: &Record<'_>) -> bool {
        self.counts(record) && record.fields().any(|(tag, value)| self.has(tag, value))
    }

    fn counts(&self, record: &Record<'_>) -> bool {
        let Some(passed_over) = &self.passes_over else {
            return true;
        };
        !record.at().is_some_and(|at| passed_over.contains(&at.0))
    }

    fn has(&self, tag: Tag, value: &[u8]) -> bool {
        let Subject {
            account,
            account_keys,
            registrations,
            nodes,
            device_tokens,
        } = &self.subject;
        let account = account.as_ref().map(|account| account.as_str().as_bytes());
        match tag {
            Tag::Account => account == Some(value),
            Tag::AccountKey => account_keys.iter().any(|known| known.0 == value),
            Tag::Registration => registrations.iter().any(|known| known.0 == value),
            Tag::Node => nodes.iter().any(|known| known.as_str().as_bytes() == value),
            Tag::Token => device_tokens
                .iter()
                .any(|known| known.as_str().as_bytes() == value),
            Tag::NodeHash => self.nodes.iter().any(|known| known == value),
            Tag::TokenHash => self.device_tokens.iter().any(|known| known == value),
            // An operator's words may name a person.
            Tag::Reason => account.is_some_and(|account| names(value, account)),
            _ => false,
        }
    }
}

impl<'a> Record<'a> {
    /// Bytes without the frame.
    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }

    /// `None` for a version or a kind that this program does not know.
    fn kind(self) -> Option<Kind> {
        match self.0 {
            [VERSION, kind, ..] => Kind::of(*kind),
            _ => None,
        }
    }

    /// Whether nothing but whole fields follows the time.
    fn has_fields_alone(self) -> bool {
        let mut rest = self.0.get(FIXED_BYTES..).unwrap_or_default();
        while let Some((_, _, behind)) = field(rest) {
            rest = behind;
        }
        rest.is_empty()
    }

    /// When it was made; `None` for a version that this program does not know.
    fn at(self) -> Option<UnixSeconds> {
        let ([VERSION, _], rest) = self.0.split_first_chunk()? else {
            return None;
        };
        let (at, _) = rest.split_first_chunk()?;
        Some(UnixSeconds(u64::from_be_bytes(*at)))
    }

    /// The fields, those with unknown tags left out. What is no field ends them.
    fn fields(self) -> impl Iterator<Item = (Tag, &'a [u8])> {
        let known_version = self.0.first() == Some(&VERSION);
        let fields = self.0.get(FIXED_BYTES..).filter(|_| known_version);
        let mut rest = fields.unwrap_or_default();
        std::iter::from_fn(move || {
            let (tag, value, behind) = field(rest)?;
            rest = behind;
            Some((tag, value))
        })
        .filter_map(|(tag, value)| Some((Tag::of(tag)?, value)))
    }

    /// The record as it is shown; `None` for a version or a kind that this program does not know.
    pub(crate) fn line(self) -> Option<JournalLine> {
        let kind = self.kind()?;
        let fields = self.fields().filter_map(|(tag, value)| {
            let shown = match tag {
                Tag::NodeHash | Tag::TokenHash => format!("hmac-sha256:{}", hex(value)),
                Tag::Registrations | Tag::Records => {
                    u64::from_be_bytes(value.try_into().ok()?).to_string()
                }
                _ => String::from_utf8_lossy(value).into_owned(),
            };
            Some((tag.name()?, shown))
        });
        Some(JournalLine {
            at: self.at()?,
            event: kind.as_str(),
            fields: fields.collect(),
        })
    }
}

/// The tag and the value of the first field, and what is behind it.
fn field(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let ([tag, high, low], behind) = bytes.split_first_chunk()?;
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let (value, behind) = behind.split_at_checked(length)?;
    Some((*tag, value, behind))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use messages::{
        AccountKey, AppId, BareJid, CaseId, Dialect, Domain, ErrorReason, Proof, PushTarget,
    };
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn domain() -> impl Strategy<Value = Domain> {
        "[a-z]{1,20}".prop_map(|text| Domain::new(&text))
    }

    fn account() -> impl Strategy<Value = BareJid> {
        ("[a-zäß]{1,30}", domain()).prop_map(|(local, domain)| BareJid::new(&local, domain))
    }

    fn node() -> impl Strategy<Value = NodeId> {
        "[ -~é]{1,500}".prop_map(|text| NodeId::new(&text).unwrap())
    }

    fn device_token() -> impl Strategy<Value = DeviceToken> {
        "([0-9a-f]{2}){16,100}".prop_map(|text| DeviceToken::parse(&text).unwrap())
    }

    fn registration() -> impl Strategy<Value = RegistrationKey> {
        any::<[u8; 16]>().prop_map(RegistrationKey)
    }

    fn outcomes() -> impl Strategy<Value = PushOutcome> {
        prop_oneof![
            Just(PushOutcome::Accepted),
            Just(PushOutcome::Deferred),
            Just(PushOutcome::Rejected(Rejection::UnknownNode)),
            Just(PushOutcome::Rejected(Rejection::Throttled)),
        ]
    }

    fn causes() -> impl Strategy<Value = EndCause> {
        prop_oneof![
            Just(EndCause::Unregistered),
            Just(EndCause::Replaced),
            Just(EndCause::Idle),
            "[A-Za-z]{1,64}".prop_map(|text| EndCause::TokenDead(ErrorReason::foreign(&text))),
        ]
    }

    fn case() -> impl Strategy<Value = CaseId> {
        "[a-z0-9-]{1,20}".prop_map(|text| CaseId::new(&text).unwrap())
    }

    fn events() -> impl Strategy<Value = JournalEvent> {
        let registered = (
            account(),
            registration(),
            domain(),
            node(),
            device_token(),
            any::<bool>(),
        )
            .prop_map(
                |(account, registration, service, node, device_token, renewed)| {
                    JournalEvent::Registered(Box::new(RegisteredEvent {
                        account,
                        registration,
                        service,
                        app: AppId::new("app"),
                        dialect: Dialect::V1,
                        node,
                        device_token,
                        renewed,
                    }))
                },
            );
        let ended = (
            registration(),
            prop::option::of(account()),
            domain(),
            node(),
            device_token(),
            causes(),
        )
            .prop_map(
                |(registration, account, service, node, device_token, cause)| {
                    JournalEvent::Ended(Box::new(EndedEvent {
                        registration,
                        account,
                        account_key: AccountKey(registration.0),
                        service,
                        app: AppId::new("app"),
                        node,
                        device_token,
                        cause,
                    }))
                },
            );
        let target = prop::option::of((registration(), node()));
        let pushed = (target, domain(), outcomes()).prop_map(|(target, domain, outcome)| {
            JournalEvent::Pushed(PushedEvent {
                target: target.map(|(registration, node)| PushTarget {
                    registration,
                    account: AccountKey(registration.0),
                    node,
                }),
                domain,
                outcome,
            })
        });
        let accessed =
            (prop::option::of(account()), prop::option::of(case())).prop_map(|(account, case)| {
                JournalEvent::Accessed(Box::new(AccessedEvent {
                    account,
                    case,
                    proof: Proof::SelfService,
                }))
            });
        let erased = (prop::option::of(case()), any::<(u64, u64)>()).prop_map(
            |(case, (registrations, records))| {
                JournalEvent::Erased(Box::new(ErasedEvent {
                    case,
                    proof: Proof::Confirmation,
                    registrations,
                    records,
                }))
            },
        );
        let overridden = (case(), "[ -~é]{0,5000}").prop_map(|(case, reason)| {
            JournalEvent::Overridden(Box::new(OverriddenEvent {
                case,
                reason: reason.into(),
            }))
        });
        prop_oneof![registered, ended, pushed, accessed, erased, overridden]
    }

    fn entries() -> impl Strategy<Value = Vec<JournalEntry>> {
        let entry = (any::<u64>(), events()).prop_map(|(at, event)| JournalEntry {
            at: UnixSeconds(at),
            event,
        });
        vec(entry, 0..12)
    }

    fn encode(entries: &[JournalEntry], key: Option<&HashKey>) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for entry in entries {
            Encoder::new(&mut bytes, key).record(entry);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    /// What is read, how it ended, and the bytes up to the end of the last whole record and passed over.
    fn decode(bytes: &[u8]) -> (Vec<JournalLine>, End, u64, u64) {
        let mut records = Records::new(bytes);
        let mut lines = Vec::new();
        loop {
            match records.next() {
                Ok(record) => lines.push(record.line().unwrap()),
                Err(end) => return (lines, end, records.whole, records.skipped),
            }
        }
    }

    /// What a line must say of an entry, made without the codec.
    fn expected(entry: &JournalEntry) -> Vec<String> {
        let text = |text: &str| text.to_owned();
        match &entry.event {
            JournalEvent::Registered(event) => vec![
                text(event.account.as_str()),
                text(event.service.as_str()),
                text("app"),
                text("v1"),
                text(event.node.as_str()),
                text(event.device_token.as_str()),
            ],
            JournalEvent::Ended(event) => {
                let mut all: Vec<_> = event.account.iter().map(|a| text(a.as_str())).collect();
                all.extend([
                    text(event.service.as_str()),
                    text("app"),
                    text(event.node.as_str()),
                    text(event.device_token.as_str()),
                ]);
                match &event.cause {
                    EndCause::Unregistered => all.push(text("unregistered")),
                    EndCause::Replaced => all.push(text("replaced")),
                    EndCause::Idle => all.push(text("idle")),
                    EndCause::TokenDead(reason) => {
                        all.extend([text("token-dead"), text(reason.as_str())]);
                    }
                }
                all
            }
            JournalEvent::Pushed(event) => {
                let mut all: Vec<_> = event.target.iter().map(|t| text(t.node.as_str())).collect();
                all.extend([text(event.domain.as_str()), text(outcome(event.outcome))]);
                all
            }
            JournalEvent::Accessed(event) => {
                let mut all: Vec<_> = event.account.iter().map(|a| text(a.as_str())).collect();
                all.extend(event.case.iter().map(|case| text(case.as_str())));
                all.push(text("self-service"));
                all
            }
            JournalEvent::Erased(event) => {
                let mut all: Vec<_> = event.case.iter().map(|case| text(case.as_str())).collect();
                all.extend([
                    text("confirmation"),
                    event.registrations.to_string(),
                    event.records.to_string(),
                ]);
                all
            }
            JournalEvent::Overridden(event) => {
                vec![text(event.case.as_str()), text(cut(&event.reason))]
            }
        }
    }

    proptest! {
        #[test]
        fn records_come_back(entries in entries()) {
            let (bytes, _) = encode(&entries, None);
            let (lines, end, length, skipped) = decode(&bytes);
            prop_assert!(matches!(end, End::Clean));
            prop_assert_eq!(skipped, 0);
            prop_assert_eq!(length, bytes.len() as u64);
            prop_assert_eq!(lines.len(), entries.len());
            for (line, entry) in lines.iter().zip(&entries) {
                prop_assert_eq!(line.at, entry.at);
                let shown: Vec<_> = line.fields.iter().map(|(_, value)| value.clone()).collect();
                prop_assert_eq!(shown, expected(entry));
            }
        }

        #[test]
        fn what_is_cut_ends_with_the_last_whole_record(
            entries in entries(),
            at: prop::sample::Index,
        ) {
            let (mut bytes, ends) = encode(&entries, None);
            prop_assume!(!bytes.is_empty());
            let at = at.index(bytes.len());
            bytes.truncate(at);
            let whole = ends.iter().filter(|end| **end <= at).count();
            let (lines, end, length, skipped) = decode(&bytes);
            prop_assert_eq!(lines.len(), whole);
            prop_assert_eq!(skipped, 0);
            prop_assert_eq!(length as usize, whole.checked_sub(1).map_or(0, |last| ends[last]));
            match end {
                End::Clean => prop_assert_eq!(length as usize, bytes.len()),
                End::Torn(torn) => prop_assert_eq!(length + torn, bytes.len() as u64),
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn what_is_spoilt_costs_no_other_record(
            entries in entries(),
            begin: prop::sample::Index,
            spoilt: prop::sample::Index,
            with in prop_oneof![Just(0_u8), Just(0xff), any::<u8>()],
            is_one: bool,
        ) {
            let (whole, ends) = encode(&entries, None);
            prop_assume!(!whole.is_empty());
            let begin = begin.index(whole.len());
            // One byte, or up to everything.
            let length = if is_one { 1 } else { spoilt.index(whole.len() - begin) + 1 };
            let end = begin + length;
            let mut bytes = whole.clone();
            bytes[begin..end].fill(with);
            prop_assume!(bytes != whole);
            let starts = std::iter::once(&0).chain(&ends);
            let kept: Vec<_> = starts
                .zip(&ends)
                .zip(&entries)
                .filter(|((start, end), _)| bytes[**start..**end] == whole[**start..**end])
                .collect();
            let (lines, ended, length, skipped) = decode(&bytes);
            let times: Vec<_> = kept.iter().map(|(_, entry)| entry.at).collect();
            prop_assert_eq!(lines.iter().map(|line| line.at).collect::<Vec<_>>(), times);
            prop_assert_eq!(length as usize, kept.last().map_or(0, |((_, end), _)| **end));
            let whole_bytes: usize = kept.iter().map(|((start, end), _)| *end - *start).sum();
            prop_assert_eq!((length - skipped) as usize, whole_bytes);
            match ended {
                End::Clean => prop_assert_eq!(length as usize, bytes.len()),
                End::Torn(torn) => prop_assert_eq!(length + torn, bytes.len() as u64),
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn random_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..600), sealed: bool) {
            let mut frame = vec![0; HEAD_BYTES];
            frame.extend(&bytes);
            if let (true, Some(version)) = (sealed, frame.get_mut(HEAD_BYTES)) {
                *version = VERSION;
                seal(&mut frame, 0);
            }
            let mut records = Records::new(frame.as_slice());
            let search = Search::new(Subject::default(), None);
            while let Ok(record) = records.next() {
                let _ = record.line();
                assert!(!search.matches(&record));
            }
        }

        #[test]
        fn copies_are_the_same(entries in entries()) {
            let (bytes, _) = encode(&entries, None);
            let mut copied = Vec::new();
            let mut records = Records::new(bytes.as_slice());
            while let Ok(record) = records.next() {
                copy(&record, &mut copied);
            }
            prop_assert_eq!(copied, bytes);
        }

        #[test]
        fn hashed_records_show_no_identifier_and_are_found_by_it(
            entries in entries(),
            chosen: prop::sample::Index,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let key = HashKey::load_or_create(&directory.path().join("key")).unwrap();
            let (bytes, _) = encode(&entries, Some(&key));
            let identifiers: Vec<(Option<NodeId>, Option<DeviceToken>)> = entries
                .iter()
                .map(|entry| match &entry.event {
                    JournalEvent::Registered(event) => {
                        (Some(event.node.clone()), Some(event.device_token.clone()))
                    }
                    JournalEvent::Ended(event) => {
                        (Some(event.node.clone()), Some(event.device_token.clone()))
                    }
                    JournalEvent::Pushed(event) => {
                        (event.target.as_ref().map(|target| target.node.clone()), None)
                    }
                    _ => (None, None),
                })
                .collect();
            for (node, device_token) in &identifiers {
                // Short ones are anywhere by chance.
                let long = node.iter().filter(|node| node.as_str().len() >= 12);
                let texts = long
                    .map(|node| node.as_str())
                    .chain(device_token.iter().map(|token| token.as_str()));
                for text in texts {
                    prop_assert!(!bytes.windows(text.len()).any(|part| part == text.as_bytes()));
                }
            }
            if entries.is_empty() {
                return Ok(());
            }
            let (node, device_token) = &identifiers[chosen.index(entries.len())];
            let subject = Subject {
                nodes: node.iter().cloned().collect(),
                device_tokens: device_token.iter().cloned().collect(),
                ..Subject::default()
            };
            let search = Search::new(subject, Some(&key));
            let mut records = Records::new(bytes.as_slice());
            for (entry_node, entry_token) in &identifiers {
                let record = records.next().unwrap();
                let same = (node.is_some() && node == entry_node)
                    || (device_token.is_some() && device_token == entry_token);
                prop_assert_eq!(search.matches(&record), same);
            }
        }
    }

    /// Each byte of it may begin a record of 32 KiB, which is looked at and is none.
    #[test]
    fn a_search_ends_however_much_looks_like_records() {
        let mut pattern = Vec::new();
        while pattern.len() < 4 << 20 {
            // A possible length, and where its record would begin: version, kind, time and no field.
            pattern.extend([0, 0, 0x7f, 0xff, 0, 0, 0, 0, VERSION, Kind::Pushed as u8]);
        }
        let entry = JournalEntry {
            at: UnixSeconds(1),
            event: JournalEvent::Pushed(PushedEvent {
                target: None,
                domain: Domain::new("d"),
                outcome: PushOutcome::Accepted,
            }),
        };
        let (record, _) = encode(std::slice::from_ref(&entry), None);
        let short = [&pattern[..40_000], &record].concat();
        let mut records = Records::new(short.as_slice());
        assert!(records.next().is_ok() && !records.gave_up());
        let long = [&pattern[..], &record].concat();
        let mut records = Records::new(long.as_slice());
        assert!(matches!(records.next(), Err(End::Torn(bytes)) if bytes == long.len() as u64));
        assert!(records.gave_up());
    }

    #[test]
    fn what_is_erased_later_is_not_about_what_came_after() {
        let (until, now) = (UnixSeconds(100), UnixSeconds(200));
        for (at, counts) in [
            (1, true),
            (100, true),
            (101, false),
            (200, false),
            (201, true),
        ] {
            let entry = JournalEntry {
                at: UnixSeconds(at),
                event: JournalEvent::Ended(Box::new(EndedEvent {
                    registration: RegistrationKey([2; 16]),
                    account: None,
                    account_key: AccountKey([1; 16]),
                    service: Domain::new("d"),
                    app: AppId::new("app"),
                    node: NodeId::new("n").unwrap(),
                    device_token: DeviceToken::parse(&"ab".repeat(32)).unwrap(),
                    cause: EndCause::Idle,
                })),
            };
            let (bytes, _) = encode(&[entry], None);
            let mut records = Records::new(bytes.as_slice());
            let record = records.next().unwrap();
            let subject = Subject {
                account_keys: vec![AccountKey([1; 16])],
                ..Subject::default()
            };
            assert!(Search::new(subject.clone(), None).matches(&record));
            let mut search = Search::new(subject, None).until(until, now);
            assert_eq!(search.matches(&record), counts, "{at}");
            search.widen(&record);
            assert_eq!(!search.into_subject().registrations.is_empty(), counts);
        }
    }

    #[test]
    fn the_layout_on_disk_stays() {
        let entry = JournalEntry {
            at: UnixSeconds(0x0102),
            event: JournalEvent::Pushed(PushedEvent {
                target: Some(PushTarget {
                    registration: RegistrationKey([0xaa; 16]),
                    account: AccountKey([0xbb; 16]),
                    node: NodeId::new("no").unwrap(),
                }),
                domain: Domain::new("d"),
                outcome: PushOutcome::Accepted,
            }),
        };
        let mut body = vec![1, 4, 0, 0, 0, 0, 0, 0, 1, 2];
        body.extend(b"\x02\0\x10");
        body.extend([0xaa; 16]);
        body.extend(b"\x12\0\x10");
        body.extend([0xbb; 16]);
        body.extend(b"\x06\0\x02no\x0a\0\x01d\x0b\0\x08accepted");
        let mut bytes = Vec::new();
        Encoder::new(&mut bytes, None).record(&entry);
        assert_eq!(bytes[8..], body);
        assert_eq!(bytes[..4], (body.len() as u32).to_be_bytes());
        assert_eq!(bytes[4..8], crc32fast::hash(&body).to_be_bytes());
        // A version from the future is passed over, whole.
        bytes[8] = 2;
        seal(&mut bytes, 0);
        let mut records = Records::new(bytes.as_slice());
        assert!(records.next().unwrap().line().is_none());
        assert!(matches!(records.next(), Err(End::Clean)));
    }

    #[test]
    fn an_operators_words_are_found_by_the_name_in_them() {
        let found = |localpart: &str, reason: &str| {
            let entry = JournalEntry {
                at: UnixSeconds(1),
                event: JournalEvent::Overridden(Box::new(OverriddenEvent {
                    case: CaseId::new("c1").unwrap(),
                    reason: reason.into(),
                })),
            };
            let (bytes, _) = encode(&[entry], None);
            let subject = Subject {
                account: Some(BareJid::new(localpart, Domain::new("chat.example"))),
                ..Subject::default()
            };
            let mut records = Records::new(bytes.as_slice());
            Search::new(subject, None).matches(&records.next().unwrap())
        };
        for own in [
            "called: Ada@chat.example, passport seen",
            "ada@chat.example",
            "xmpp:ada@chat.example/phone.",
            "it is (ada@chat.example).",
            "not bada@chat.example but <ada@chat.example>",
            "\u{201e}ada@chat.example\u{201c}",
            "\u{201c}ada@chat.example\u{201d} called",
            "\u{2018}ada@chat.example\u{2019}",
            "\u{201a}ada@chat.example\u{2018}",
            "\u{ab}ada@chat.example\u{bb}",
            "\u{ab}\u{a0}ada@chat.example\u{a0}\u{bb}",
            "\u{bb}ada@chat.example\u{ab}",
            "\u{2039}ada@chat.example\u{203a}",
            "\u{300c}ada@chat.example\u{300d}",
            "\u{ff08}ada@chat.example\u{ff09}",
            "\u{2013}ada@chat.example\u{2014}",
            "her JID\u{2192}ada@chat.example\u{2026}",
            "\u{2022}ada@chat.example",
            "\u{b7}ada@chat.example",
            "\u{200e}ada@chat.example\u{200f}",
            "\u{feff}ada@chat.example",
            "\u{201e}ada@chat.example.\u{201c}",
            "\u{201e}Ada@Chat.example\u{201c}, passport seen",
        ] {
            assert!(found("ada", own), "{own}");
        }
        for other in [
            "bada@chat.example",
            "a.ada@chat.example",
            "a-ada@chat.example",
            "ada@chat.example.org",
            "ada@chat.examples",
            "ada@chat.example-2",
            "ada at chat.example",
            "\u{201e}bada@chat.example\u{201c}",
            "\u{e9}ada@chat.example",
            // The same in two characters.
            "e\u{301}ada@chat.example",
            "l\u{b7}ada@chat.example",
            "\u{ff42}ada@chat.example",
            "\u{201e}ada@chat.example.org\u{201c}",
            "ada@chat.example\u{301}",
        ] {
            assert!(!found("ada", other), "{other}");
        }
        assert!(found("ädä", "saw Ädä@chat.example"));
        // A name that ends another: what joins its first letter is a mark.
        assert!(found("राम", "„राम@chat.example“"));
        assert!(!found("राम", "श्राम@chat.example"));
    }
}
