//! The life of a registration.

use actix::{Message, Recipient};
use thiserror::Error;

use crate::{
    Acceptance, AppId, BareJid, DeviceToken, Domain, ErrorReason, NodeId, RegistrationKey,
    RejectedToken, Secret, UnixSeconds,
};

/// Registers a device, or renews its registration. Answered once it is durable on disk.
///
/// The same account and node again keeps the secret and takes the new token. The same node from
/// another account is a registration of its own.
#[derive(Debug, Message)]
#[rtype(result = "Result<Registered, RegistryError>")]
pub struct Register {
    /// The authenticated bare JID: owner of the registration. Only its domain may publish.
    pub account: BareJid,
    /// The served domain the request was addressed to.
    pub service: Domain,
    /// The app to notify.
    pub app: AppId,
    /// The node: in the v1 dialect the client's device UUID.
    pub node: NodeId,
    /// The device to wake.
    pub device_token: DeviceToken,
    /// How it is asked for.
    pub dialect: Dialect,
}

/// How clients ask to be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dialect {
    /// The ad-hoc command `v1-register-push`.
    V1,
}

impl Dialect {
    /// All there are.
    pub const ALL: [Self; 1] = [Self::V1];

    /// Its name in records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
        }
    }
}

/// A durable registration.
#[derive(Debug)]
pub struct Registered {
    /// The node to enable push with.
    pub node: NodeId,
    /// The secret to enable push with.
    pub secret: Secret,
}

/// Ends the account's own registration of a node. Answered once that is durable on disk; a node the
/// account has not registered counts 0 removed, whoever else has.
#[derive(Debug, Message)]
#[rtype(result = "Result<Removed, RegistryError>")]
pub struct Unregister {
    /// The authenticated bare JID.
    pub account: BareJid,
    /// The served domain the request was addressed to.
    pub service: Domain,
    /// The node registered.
    pub node: NodeId,
}

/// Ends all registrations of device tokens that APNs called dead, unless renewed since.
#[derive(Debug, Message)]
#[rtype(result = "Result<Removed, RegistryError>")]
pub struct RemoveTokens {
    /// The dead tokens.
    pub items: Vec<RejectedToken>,
}

/// How many registrations ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Registrations that are gone.
    pub count: u64,
}

/// Ends the registrations of one page that were neither renewed nor pushed successfully since
/// `idle_since`.
#[derive(Debug, Message)]
#[rtype(result = "Result<SweptPage, RegistryError>")]
pub struct SweepExpired {
    /// What was last renewed and last pushed before this goes.
    pub idle_since: UnixSeconds,
    /// Where the page before ended; `None` for the first page.
    pub after: Option<SweepCursor>,
    /// Most registrations to look at.
    pub limit: u32,
}

/// Where the next page of a sweep begins. Opaque to the sweeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepCursor(pub RegistrationKey);

/// What one page of a sweep did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweptPage {
    /// Registrations looked at.
    pub scanned: u64,
    /// Registrations that ended.
    pub removed: u64,
    /// Where to go on; `None` after the last page.
    pub next: Option<SweepCursor>,
}

/// Verdicts of APNs to remember with their registrations. Folded in memory and written behind.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct TouchBatch {
    /// One entry per verdict, oldest first.
    pub items: Vec<Touch>,
}

/// When a push of a registration last succeeded or failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    /// The registration pushed to.
    pub registration: RegistrationKey,
    /// When the verdict came.
    pub at: UnixSeconds,
    /// Where APNs took it, or its reason not to.
    pub verdict: Result<Acceptance, ErrorReason>,
}

/// Asks to be told by [`Withdraw`] from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SubscribeWithdrawals {
    /// Whom to tell.
    pub subscriber: Recipient<Withdraw>,
}

impl std::fmt::Debug for SubscribeWithdrawals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SubscribeWithdrawals")
    }
}

/// What waits to be sent for these registrations must not go any more. Told once their change is durable.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Withdraw {
    /// At most [`Withdraw::ITEMS_MAX`], in the order in which the registrations changed.
    pub items: Vec<Withdrawal>,
}

impl Withdraw {
    /// Most registrations of one message: more of them would keep the threads that push busy for long.
    pub const ITEMS_MAX: usize = 256;
}

/// A registration that was pushed to, and is no more what it was then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withdrawal {
    /// The registration.
    pub registration: RegistrationKey,
    /// What became of it.
    pub change: Change,
}

/// What became of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has ended: a push is answered as one to a node that nobody knows.
    Ended,
    /// It was renewed for another device token or app. A push to the old one is answered as one that failed
    /// for now.
    Replaced {
        /// The app it has now.
        app: AppId,
        /// The device token it has now.
        device_token: DeviceToken,
    },
}

/// Why the registry could not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RegistryError {
    /// Too much is waiting; the same request may succeed later.
    #[error("the registry is busy")]
    Busy,
    /// The store failed; the operator has to look.
    #[error("the registration store failed")]
    Store,
    /// The account has as many registrations as it may have.
    #[error("the account has too many registrations")]
    TooMany,
    /// The account's server, or all together, have as many registrations as they may have, or new ones come
    /// too fast.
    #[error("too many registrations")]
    Crowded,
    /// The process is stopping.
    #[error("the registry is stopping")]
    Stopping,
}
