//! What people may ask about their data (GDPR articles 15, 17 and 20).

use actix::{Message, Recipient};
use thiserror::Error;

use crate::{
    AccountKey, AppId, BareJid, DeviceToken, Domain, ErrorReason, NodeId, RegistrationKey,
    RegistryError, Secret, UnixSeconds, redacted_debug,
};

/// Whose registrations are meant, and by what that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// All of an account.
    Account(BareJid),
    /// All of a device, of whatever account.
    Token(DeviceToken),
    /// These, found by [`FindRegistration`] before.
    Registrations(Vec<RegistrationKey>),
}

/// Finds the registration that a node and its secret open. A wrong secret finds nothing, exactly like a
/// node that nobody has.
#[derive(Debug, Message)]
#[rtype(result = "Result<Option<RegistrationKey>, RegistryError>")]
pub struct FindRegistration {
    /// The served domains at which it may have been made.
    pub services: Vec<Domain>,
    /// The node.
    pub node: NodeId,
    /// Its secret.
    pub secret: Secret,
}

/// Finds the keys that records of an account may have, whether it has registrations or not: that of the key
/// of the registrations in use first, then those of its predecessors that are kept.
#[derive(Debug, Message)]
#[rtype(result = "Vec<AccountKey>")]
pub struct FindAccountKeys {
    /// The account.
    pub account: BareJid,
}

/// Describes registrations, push times that are not written yet included.
#[derive(Debug, Message)]
#[rtype(result = "Result<Vec<RegistrationDetails>, RegistryError>")]
pub struct DescribeRegistrations {
    /// Which.
    pub claim: Claim,
}

/// Ends registrations and removes their bytes from the disk. Answered once both is done, with what was
/// there; that takes as long as copying the rest of the store does.
#[derive(Debug, Message)]
#[rtype(result = "Result<Vec<RegistrationDetails>, RegistryError>")]
pub struct EraseRegistrations {
    /// Which.
    pub claim: Claim,
}

/// Makes a new key that secrets and accounts are hashed with, and puts all registrations under it. Their
/// secrets stay what they are. Answered once nothing on disk depends on the key before but what its account
/// key finds.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), RegistryError>")]
pub struct RotateKeys;

/// All that is kept of one registration, its secret excepted, which is not kept but derived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrationDetails {
    /// Its key in the store.
    pub registration: RegistrationKey,
    /// The served domain it was made at.
    pub service: Domain,
    /// The node.
    pub node: NodeId,
    /// The app that is notified.
    pub app: AppId,
    /// The device that is woken.
    pub device_token: DeviceToken,
    /// The server that may publish.
    pub domain: Domain,
    /// When it was made.
    pub registered_at: UnixSeconds,
    /// When the client last registered it.
    pub renewed_at: UnixSeconds,
    /// When APNs last accepted a push.
    pub last_success: Option<UnixSeconds>,
    /// When APNs last refused one, and why.
    pub last_error: Option<(UnixSeconds, ErrorReason)>,
}

/// A message that an account has sent to the confirmation address. Answered with the text to send back;
/// `None` for silence, which is for everybody who is not asked for a code.
#[derive(Message)]
#[rtype(result = "Option<String>")]
pub struct ConfirmCase {
    /// The authenticated sender.
    pub account: BareJid,
    /// Whom it was sent to, exactly.
    pub address: BareJid,
    /// The text.
    pub text: String,
    /// Whether the text stands in for one that is encrypted.
    pub encrypted: bool,
}

/// Sends a chat message from an address of a served domain. Answered with whether the domain is one that the
/// receiver sends for; whether the message arrives is known to nobody.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct SendMessage {
    /// The address at a served domain.
    pub from: BareJid,
    /// The account.
    pub to: BareJid,
    /// The text.
    pub text: String,
}

/// Offers to send messages. From then on they may be sent there.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct OfferPost {
    /// Who sends.
    pub post: Recipient<SendMessage>,
}

/// Goes on with an ad-hoc command (XEP-0050) about an account's own data.
#[derive(Debug, Message)]
#[rtype(result = "Result<CommandStage, CommandError>")]
pub struct RunPrivacyCommand {
    /// The authenticated account.
    pub account: BareJid,
    /// Which command.
    pub command: PrivacyCommand,
    /// The session that the command goes on in; `None` at its beginning.
    pub session: Option<String>,
    /// What to do.
    pub action: CommandAction,
}

/// A command about an account's own data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrivacyCommand {
    /// Shows all that is held.
    Access,
    /// Erases it, after a second question.
    Erase,
}

/// What a client wants of a command (XEP-0050 §3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandAction {
    /// Begin, or do what the stage says is done by default.
    Execute,
    /// The stage before.
    Previous,
    /// The next stage.
    Next,
    /// The end.
    Complete,
    /// Nothing any more.
    Cancel,
}

/// What a command shows.
#[derive(Clone, PartialEq, Eq)]
pub struct CommandStage {
    /// The session, made by the command.
    pub session: String,
    /// How far it is.
    pub status: CommandStatus,
    /// A note for the person.
    pub note: Option<String>,
    /// What the form is called.
    pub title: String,
    /// What to do with it.
    pub instructions: String,
    /// The form.
    pub fields: Vec<CommandField>,
}

/// How far a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandStatus {
    /// It waits for one of these actions; the first is done by default.
    Executing {
        /// What may follow.
        actions: &'static [CommandAction],
    },
    /// It is done.
    Completed,
    /// It was given up.
    Canceled,
}

/// A field of a form (XEP-0004), to be read.
#[derive(Clone, PartialEq, Eq)]
pub struct CommandField {
    /// Its name.
    pub name: &'static str,
    /// What people see.
    pub label: &'static str,
    /// Its lines.
    pub lines: Vec<String>,
}

/// Why a command cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CommandError {
    /// The account or its domain has asked too often.
    #[error("too many requests")]
    Limited,
    /// Too much is being done; the same request may succeed later.
    #[error("busy")]
    Busy,
    /// So many erasures are unfinished that no further one is begun; nothing was erased.
    #[error("too many unfinished erasures")]
    Unfinished,
    /// There is no such session, not of this account and command, or not any more.
    #[error("no such session")]
    NoSession,
    /// The stage does not offer that.
    #[error("bad action")]
    BadAction,
    /// The store or the journal failed; the operator has to look.
    #[error("the store failed")]
    Failed,
}

redacted_debug!(ConfirmCase, SendMessage, CommandStage, CommandField);
