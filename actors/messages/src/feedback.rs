//! Device tokens that APNs called dead.

use actix::Message;

use crate::{AppId, DeviceToken, ErrorReason, UnixMillis};

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
