//! A push on its way: publish, delivery, outcome.

use std::num::NonZeroU32;
use std::time::Instant;

use actix::{Message, Recipient};

use crate::{
    AccountKey, AppId, Content, DeviceToken, Domain, NodeId, RegistrationKey, Secret, UnixSeconds,
};

/// Names a slot in the table of unanswered iqs of one stream. The generation tells a late outcome from
/// the slot's next tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Index of the slot.
    pub slot: u32,
    /// How often the slot was used before.
    pub generation: u32,
}

/// What a publish says of the notification beside its [`Content`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NotificationHint {
    /// The summary's `message-count`, when it is a number.
    pub message_count: Option<u32>,
    /// Whether the summary has a non-empty `last-message-body`: Prosody's and ejabberd's sign for
    /// "important, show it to the user".
    pub has_body: bool,
}

/// Pushes read from one stream in one read, in stream order.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct PublishBatch {
    /// Where the outcomes go.
    pub origin: Origin,
    /// When each iq must have its answer. A push may stay queued beyond it, but then its outcome
    /// [`PushOutcome::Deferred`] must be told before.
    pub deadline: Instant,
    /// The pushes.
    pub items: Vec<Publish>,
}

/// One publish iq (XEP-0357 §5), reduced to what the pipeline needs.
#[derive(Debug)]
pub struct Publish {
    /// The unanswered iq.
    pub ticket: Ticket,
    /// The node published to.
    pub node: NodeId,
    /// The field `secret` of `publish-options`.
    pub secret: Option<Secret>,
    /// The publishing server, authenticated on the stream (RFC 6120 §8.1.2.2).
    pub domain: Domain,
    /// The served domain the iq was addressed to.
    pub service: Domain,
    /// What to make of it.
    pub hint: NotificationHint,
    /// What may be shown of the message, where the operator of any app of the served domain chose so.
    pub content: Option<Box<Content>>,
}

/// Resolved pushes for the APNs pools.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct DeliverBatch {
    /// Where the outcomes go.
    pub origin: Origin,
    /// See [`PublishBatch::deadline`].
    pub deadline: Instant,
    /// The pushes.
    pub items: Vec<Deliver>,
}

/// One push with its registration.
#[derive(Debug)]
pub struct Deliver {
    /// The unanswered iq.
    pub ticket: Ticket,
    /// The registration that was found.
    pub registration: RegistrationKey,
    /// The app of the registration: topic, environment, signing key.
    pub app: AppId,
    /// The device to wake.
    pub device_token: DeviceToken,
    /// Where APNs has taken a push for that device token, if it ever did.
    pub acceptance: Option<Acceptance>,
    /// See [`Publish::domain`].
    pub domain: Domain,
    /// What to make of it.
    pub hint: NotificationHint,
    /// See [`Publish::content`]; the app's own choice is still to be obeyed.
    pub content: Option<Box<Content>>,
    /// What the journal is to be told with the outcome; `None` if it records no pushes.
    pub trace: Option<PushTrace>,
}

/// Where APNs took a push for a device token: stands for endpoint and topic, by which it is good or bad. With
/// others of either it proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acceptance(pub NonZeroU32);

/// What the journal says of a push beside its registration and its outcome.
#[derive(Debug)]
pub struct PushTrace {
    /// When it was triggered.
    pub at: UnixSeconds,
    /// Whose registration it is, as the store has it.
    pub account: AccountKey,
    /// See [`Publish::node`].
    pub node: NodeId,
    /// See [`Publish::domain`].
    pub domain: Domain,
}

/// What became of pushes. Each ticket gets exactly one outcome.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct OutcomeBatch {
    /// Outcomes in no particular order.
    pub items: Vec<(Ticket, PushOutcome)>,
}

/// What became of one push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushOutcome {
    /// APNs took it.
    Accepted,
    /// Still queued when the iq's deadline came; it will be sent, and a token found dead then ends the
    /// registration, so that the next publish is told.
    Deferred,
    /// Not sent, or refused by APNs.
    Rejected(Rejection),
}

/// Why a push failed, as far as the answer to the iq depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// No such node.
    UnknownNode,
    /// The node exists, but not for this secret, domain or service.
    Forbidden,
    /// APNs says that the device token is dead.
    Unregistered,
    /// The publish could not be understood.
    Malformed,
    /// Held back or folded into a later push of the same device.
    Throttled,
    /// A queue is full.
    Overloaded,
    /// APNs cannot be reached, fails, or refuses our credentials.
    Unavailable,
    /// No verdict in time, and the push is not queued any more.
    TimedOut,
    /// A fault of this program.
    Internal,
}

/// Where outcomes go back to: the actor that holds the tickets. Clone it per batch, not per push.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Origin(Recipient<OutcomeBatch>);

impl Origin {
    /// Wraps the address of the actor that holds the tickets.
    #[must_use]
    pub const fn new(recipient: Recipient<OutcomeBatch>) -> Self {
        Self(recipient)
    }

    /// Tells outcomes; an empty batch is not sent. Returns how many were lost because the origin has
    /// ended, for the sender's counter.
    pub fn tell(&self, items: Vec<(Ticket, PushOutcome)>) -> usize {
        if items.is_empty() {
            return 0;
        }
        let lost = items.len();
        match self.0.try_send(OutcomeBatch { items }) {
            Ok(()) => 0,
            Err(_) => lost,
        }
    }
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Origin")
    }
}
