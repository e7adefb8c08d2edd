//! The journal: the log that tells an operator, and a person who asks, what happened to a registration.
//! It is the one place where JIDs, nodes and device tokens are written down as text, for a limited time.

use std::fmt;
use std::sync::Arc;

use actix::Message;
use thiserror::Error;

use crate::{
    AccountKey, AppId, BareJid, DeviceToken, Dialect, Domain, ErrorReason, IdError, NodeId,
    PushOutcome, RegistrationKey, UnixSeconds, redacted_debug,
};

/// Events to write down. Lost and counted when the journal cannot keep up or has no room: nothing waits
/// for it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct JournalBatch {
    /// In the order in which they are written.
    pub items: Vec<JournalEntry>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalEntry {
    /// When it happened.
    pub at: UnixSeconds,
    /// What happened.
    pub event: JournalEvent,
}

/// What the journal records. All but pushes is rare, so it is boxed: a batch of pushes stays small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalEvent {
    /// A device was registered, or its registration renewed.
    Registered(Box<RegisteredEvent>),
    /// A registration ended.
    Ended(Box<EndedEvent>),
    /// A server triggered a push.
    Pushed(PushedEvent),
    /// A person was given what is held on them.
    Accessed(Box<AccessedEvent>),
    /// What was held on a person was erased. Holds nothing of what was erased.
    Erased(Box<ErasedEvent>),
    /// An operator answered for a person's identity instead of a confirmation.
    Overridden(Box<OverriddenEvent>),
}

/// See [`JournalEvent::Registered`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredEvent {
    /// Whose it is.
    pub account: BareJid,
    /// Its key in the store.
    pub registration: RegistrationKey,
    /// The served domain it was made at.
    pub service: Domain,
    /// The app that is notified.
    pub app: AppId,
    /// How it was asked for.
    pub dialect: Dialect,
    /// Its node.
    pub node: NodeId,
    /// The device that is woken.
    pub device_token: DeviceToken,
    /// Whether it was known before.
    pub renewed: bool,
}

/// See [`JournalEvent::Ended`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedEvent {
    /// Its key in the store.
    pub registration: RegistrationKey,
    /// Whose it was, if that is known: the store keeps no JID.
    pub account: Option<BareJid>,
    /// Whose it was, as the store had it.
    pub account_key: AccountKey,
    /// The served domain it was made at.
    pub service: Domain,
    /// The app that was notified.
    pub app: AppId,
    /// Its node.
    pub node: NodeId,
    /// The device that was woken.
    pub device_token: DeviceToken,
    /// Why it ended.
    pub cause: EndCause,
}

/// Why a registration ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// Its account asked for it.
    Unregistered,
    /// Its account registered the device under another node.
    Replaced,
    /// APNs called the device token dead.
    TokenDead(ErrorReason),
    /// Neither renewed nor pushed for too long.
    Idle,
}

/// See [`JournalEvent::Pushed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushedEvent {
    /// What was pushed to; `None` when no registration was meant by node and secret. What a stranger calls a
    /// node is nobody's data, and is not written down.
    pub target: Option<PushTarget>,
    /// The publishing server.
    pub domain: Domain,
    /// What its iq was told.
    pub outcome: PushOutcome,
}

/// A registration that was pushed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushTarget {
    /// Its key in the store.
    pub registration: RegistrationKey,
    /// Whose it is, as the store has it.
    pub account: AccountKey,
    /// Its node.
    pub node: NodeId,
}

/// See [`JournalEvent::Accessed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessedEvent {
    /// Who, where it is a person with an account.
    pub account: Option<BareJid>,
    /// The operator's case, if there is one.
    pub case: Option<CaseId>,
    /// How the person was identified.
    pub proof: Proof,
}

/// See [`JournalEvent::Erased`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErasedEvent {
    /// The operator's case, if there is one.
    pub case: Option<CaseId>,
    /// How the person was identified.
    pub proof: Proof,
    /// Registrations that went.
    pub registrations: u64,
    /// Records of the journal that went.
    pub records: u64,
}

/// See [`JournalEvent::Overridden`].
#[derive(Clone, PartialEq, Eq)]
pub struct OverriddenEvent {
    /// The operator's case.
    pub case: CaseId,
    /// The operator's words. Erasing an account erases the record if its JID is in them.
    pub reason: Box<str>,
}

impl OverriddenEvent {
    /// Longest reason in bytes. The journal cuts what is longer, and would not find a JID that is cut in two.
    pub const REASON_BYTES_MAX: usize = 4 << 10;
}

/// How a person who asks was identified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By the stream that the command came on.
    SelfService,
    /// By a confirmation from the JID.
    Confirmation,
    /// By the operator, see [`JournalEvent::Overridden`].
    Override,
    /// By node and secret.
    NodeAndSecret,
    /// By device token.
    DeviceToken,
}

impl Proof {
    /// All there are.
    pub const ALL: [Self; 5] = [
        Self::SelfService,
        Self::Confirmation,
        Self::Override,
        Self::NodeAndSecret,
        Self::DeviceToken,
    ];

    /// In words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SelfService => "self-service",
            Self::Confirmation => "confirmation",
            Self::Override => "override",
            Self::NodeAndSecret => "node-and-secret",
            Self::DeviceToken => "device-token",
        }
    }
}

/// The name of a case, made by this program: letters, digits and hyphens, at most
/// [`CaseId::BYTES_MAX`]. It tells nothing of the person and may be logged.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CaseId(Arc<str>);

impl CaseId {
    /// Longest name.
    pub const BYTES_MAX: usize = 64;

    /// Takes a name.
    ///
    /// # Errors
    /// [`IdError`] when it is empty, too long, or has another character.
    pub fn new(text: &str) -> Result<Self, IdError> {
        match text.len() {
            0 => Err(IdError::Empty),
            n if n > Self::BYTES_MAX => Err(IdError::TooLong {
                max: Self::BYTES_MAX,
            }),
            _ if text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') =>
            {
                Ok(Self(text.into()))
            }
            _ => Err(IdError::Malformed),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose records are meant. A record belongs to the subject if it has the account, one of the
/// registrations or of the device tokens, or one of the nodes; and so do all records of a registration that
/// is found in one of them ([`Subject::widen`]).
///
/// In the v1 dialect a node is a device's UUID that several accounts may share: name nodes for a person who
/// has proven the secret, and only registrations otherwise.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// The person's JID.
    pub account: Option<BareJid>,
    /// Its keys in the store ([`crate::FindAccountKeys`]): records that were made without the JID have one.
    pub account_keys: Vec<AccountKey>,
    /// Keys of registrations, such as the store has for the account.
    pub registrations: Vec<RegistrationKey>,
    /// Nodes.
    pub nodes: Vec<NodeId>,
    /// Device tokens.
    pub device_tokens: Vec<DeviceToken>,
}

impl Subject {
    /// Adds a registration. Returns whether it is new.
    pub fn widen(&mut self, registration: RegistrationKey) -> bool {
        let new = !self.registrations.contains(&registration);
        if new {
            self.registrations.push(registration);
        }
        new
    }

    /// Whether nothing can belong to it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.account.is_none()
            && self.account_keys.is_empty()
            && self.registrations.is_empty()
            && self.nodes.is_empty()
            && self.device_tokens.is_empty()
    }
}

/// Reads one page of a subject's records, oldest first. What was sent before by the same sender is on disk
/// when the first page is answered.
#[derive(Debug, Message)]
#[rtype(result = "Result<JournalPage, JournalError>")]
pub struct ReadJournal {
    /// Whose. For further pages: the subject of the page before.
    pub subject: Subject,
    /// Where the page before ended; `None` for the first page.
    pub after: Option<JournalCursor>,
    /// Most lines of the page, 1 to 10,000.
    pub limit: u32,
}

/// Where the next page begins. Opaque to the reader; it may find less after an erasure, never the same twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JournalCursor {
    /// Start of the segment's hour, in Unix seconds.
    pub hour: u64,
    /// Number of the segment within the hour.
    pub part: u32,
    /// Records of the segment that were passed.
    pub records: u64,
}

/// A page of a subject's records.
#[derive(Debug, PartialEq, Eq)]
pub struct JournalPage {
    /// The subject with all registrations that its records led to.
    pub subject: Subject,
    /// The records.
    pub lines: Vec<JournalLine>,
    /// Where to go on; `None` after the last page.
    pub next: Option<JournalCursor>,
    /// Segments between this page's beginning and its end that are there and could not be read, or not
    /// whole. What they have of the subject is missing.
    pub unreadable: u64,
}

/// One record as it is shown: to the person it is about, or as JSON.
#[derive(Clone, PartialEq, Eq)]
pub struct JournalLine {
    /// When it happened.
    pub at: UnixSeconds,
    /// `registered`, `renewed`, `ended`, `pushed`, `accessed`, `erased`, `overridden`.
    pub event: &'static str,
    /// Names and values. Nodes and device tokens that were written as hashes read `hmac-sha256:…`.
    pub fields: Vec<(&'static str, String)>,
}

/// Removes all records of a subject, also those that its records lead to ([`Subject`]). Answered once none of
/// them is in any file, but for those that are counted as unreached, and none can come back.
#[derive(Debug, Message)]
#[rtype(result = "Result<ErasedRecords, JournalError>")]
pub struct EraseJournal {
    /// Whose.
    pub subject: Subject,
    /// Records that were made later stay: whose data was erased then may have come back since. `None`
    /// removes all.
    pub until: Option<UnixSeconds>,
}

/// What an erasure removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErasedRecords {
    /// Records that are gone.
    pub records: u64,
    /// Segments that were rewritten.
    pub segments: u64,
    /// Segments of these that were damaged. What could not be read of them is gone, whoever it was about.
    pub dropped: u64,
    /// Segments that could not be read or rewritten: what they have of the subject is still there, and may
    /// lead to more. The same request may reach them later.
    pub unreached: u64,
}

/// Writes entries down and makes them durable, and with them all that was sent before by the same sender.
/// Answered with an error when any of these entries was lost; one that is not to be recorded is none.
#[derive(Clone, Debug, Default, Message)]
#[rtype(result = "Result<(), JournalError>")]
pub struct SyncJournal {
    /// In the order in which they are written. They have room however much waits: whoever sends them waits.
    pub items: Vec<JournalEntry>,
}

/// Why the journal could not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JournalError {
    /// Too much is waiting; the same request may succeed later.
    #[error("the journal is busy")]
    Busy,
    /// A file could not be read or written; the operator has to look.
    #[error("the journal's files failed")]
    Files,
    /// The process is stopping.
    #[error("the journal is stopping")]
    Stopping,
}

redacted_debug!(OverriddenEvent, Subject, JournalLine);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_names_are_plain() {
        assert_eq!(CaseId::new("2026-11-a4").unwrap().as_str(), "2026-11-a4");
        assert_eq!(CaseId::new(""), Err(IdError::Empty));
        assert_eq!(CaseId::new("a b"), Err(IdError::Malformed));
        assert_eq!(CaseId::new("../x"), Err(IdError::Malformed));
        let long = "x".repeat(65);
        assert_eq!(CaseId::new(&long), Err(IdError::TooLong { max: 64 }));
    }

    #[test]
    fn a_push_costs_a_batch_no_more_than_a_cache_line_and_a_half() {
        assert!(size_of::<JournalEntry>() <= 96);
    }

    #[test]
    fn a_subject_is_widened_once() {
        let mut subject = Subject::default();
        assert!(subject.is_empty());
        assert!(subject.widen(RegistrationKey([1; 16])));
        assert!(!subject.widen(RegistrationKey([1; 16])));
        assert!(!subject.is_empty());
    }
}
