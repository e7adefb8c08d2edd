//! Device tokens that APNs called dead.

use actix::Message;

use crate::{AppId, DeviceToken, ErrorReason, Origin, RegistrationKey, Ticket, UnixMillis};

/// Verdicts that end registrations.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct RejectedTokens {
    /// One entry per verdict.
    pub items: Vec<RejectedToken>,
}

/// One dead token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedToken {
    /// The app whose topic was used: a token is dead for one topic and environment.
    pub app: AppId,
    /// The dead token.
    pub device_token: DeviceToken,
    /// Apple's reason.
    pub reason: ErrorReason,
    /// A registration renewed at or after this time stays: the app was installed again since.
    pub invalid_since: UnixMillis,
}

/// Pushes whose device token APNs called dead. Their iqs are answered by what the store says now: a
/// registration may have been renewed or given another token while its push was on the wire, and the
/// answer for a dead one makes servers forget the device at once. Each ticket is told one outcome:
/// [`Rejection::Unregistered`](crate::Rejection::Unregistered) if the registration ends or has ended, else
/// [`Rejection::Unavailable`](crate::Rejection::Unavailable).
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct DeadPushBatch {
    /// Where the outcomes go.
    pub origin: Origin,
    /// The pushes.
    pub items: Vec<DeadPush>,
}

/// One push to a dead token.
#[derive(Debug)]
pub struct DeadPush {
    /// The unanswered iq.
    pub ticket: Ticket,
    /// The registration pushed to.
    pub registration: RegistrationKey,
    /// The verdict.
    pub rejected: RejectedToken,
}
