//! Typed messages the actors exchange, and the words they are made of.
//!
//! The rules a message obeys:
//!
//! - It is `Send + 'static` plain data and derives no serde: storage and wire formats stay inside the
//!   crate that owns them.
//! - Its `Debug` shows no personal data and no secret ([`redact`]).
//! - Whoever may have to be answered travels in the message ([`Origin`], a `Recipient` field).
//! - Requests are verbs ([`Register`]), facts are nouns or participles ([`RejectedTokens`]), and what
//!   moves many items at once ends in `Batch`.
//!
//! `docs/architecture.md` has the catalogue: who sends what to whom and what happens when the receiver
//! is gone. Actors hold `Recipient<M>`, never the address of another actor's type.

pub mod clock;
mod content;
mod feedback;
mod ids;
mod journal;
mod lifecycle;
mod privacy;
mod provider_token;
mod push;
mod random;
pub mod redact;
mod registration;
mod retention;

pub use clock::{Clock, UnixMillis, UnixSeconds};
pub use content::{Content, Disclosure};
pub use feedback::{DeadPush, DeadPushBatch, RejectedToken, RejectedTokens};
pub use ids::{
    AccountKey, AppId, BareJid, DeviceToken, Domain, ErrorReason, IdError, NodeId, RegistrationKey,
    Secret, SigningKeyId,
};
pub use journal::{
    AccessedEvent, CaseId, EndCause, EndedEvent, EraseJournal, ErasedEvent, ErasedRecords,
    JournalBatch, JournalCursor, JournalEntry, JournalError, JournalEvent, JournalLine,
    JournalPage, OverriddenEvent, Proof, PushTarget, PushedEvent, ReadJournal, RegisteredEvent,
    Subject, SyncJournal,
};
pub use lifecycle::{Drain, Drained, Health, Probe, Reload};
pub use privacy::{
    Claim, CommandAction, CommandError, CommandField, CommandStage, CommandStatus, ConfirmCase,
    DescribeRegistrations, EraseRegistrations, FindAccountKeys, FindRegistration, OfferPost,
    PrivacyCommand, RegistrationDetails, RotateKeys, RunPrivacyCommand, SendMessage,
};
pub use provider_token::{Bearer, ProviderTokenRefused, SubscribeProviderToken, UseProviderToken};
pub use push::{
    Acceptance, Deliver, DeliverBatch, NotificationHint, Origin, OutcomeBatch, Publish,
    PublishBatch, PushOutcome, PushTrace, Rejection, Ticket,
};
pub use random::{BuildRandom, Random};
pub use registration::{
    Change, Dialect, Register, Registered, RegistryError, RemoveTokens, Removed,
    SubscribeWithdrawals, SweepCursor, SweepExpired, SweptPage, Touch, TouchBatch, Unregister,
    Withdraw, Withdrawal,
};
pub use retention::{
    ReadSweepReport, SweepError, SweepOutdated, SweepReport, SweepRun, SweptOutdated,
};
