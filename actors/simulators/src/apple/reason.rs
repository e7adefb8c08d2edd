//! Apple's words for a refusal (Apple, "Handling notification responses from APNs").

use std::fmt;

use messages::UnixMillis;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $status:literal),+ $(,)?) => {
        /// Why APNs refuses a request, and the status it does so with.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name),+
        }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The word in the answer's body.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name)),+
                }
            }

            /// The HTTP status.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self {
                    $(Self::$name => $status),+
                }
            }
        }
    };
}

reasons! {
    /// The collapse id is too long.
    BadCollapseId = 400,
    /// The device token is malformed, or of the other environment.
    BadDeviceToken = 400,
    /// The expiration is no number.
    BadExpirationDate = 400,
    /// The `apns-id` is no UUID.
    BadMessageId = 400,
    /// The priority is none of Apple's, or does not go with the push type.
    BadPriority = 400,
    /// The topic is malformed, or does not go with the push type.
    BadTopic = 400,
    /// The device token belongs to another topic.
    DeviceTokenNotForTopic = 400,
    /// An `apns-` header came twice.
    DuplicateHeaders = 400,
    /// The connection was idle for too long.
    IdleTimeout = 400,
    /// The push type is missing or unknown, or the payload does not go with it.
    InvalidPushType = 400,
    /// The path has no device token.
    MissingDeviceToken = 400,
    /// There is no topic.
    MissingTopic = 400,
    /// There is no payload, or nothing in it that could be shown.
    PayloadEmpty = 400,
    /// The key may not push to this topic.
    TopicDisallowed = 400,
    /// The client certificate is bad.
    BadCertificate = 403,
    /// The client certificate is of the other environment.
    BadCertificateEnvironment = 403,
    /// The provider token is older than an hour.
    ExpiredProviderToken = 403,
    /// The action is not allowed.
    Forbidden = 403,
    /// The provider token cannot be verified.
    InvalidProviderToken = 403,
    /// There is no provider token.
    MissingProviderToken = 403,
    /// The connection belongs to another key of the team.
    UnrelatedKeyIdInToken = 403,
    /// The key is of the other environment.
    BadEnvironmentKeyIdInToken = 403,
    /// No such path.
    BadPath = 404,
    /// Only POST is served.
    MethodNotAllowed = 405,
    /// The device token has expired.
    ExpiredToken = 410,
    /// The app was removed from the device.
    Unregistered = 410,
    /// The payload is too large.
    PayloadTooLarge = 413,
    /// The provider token was renewed too soon.
    TooManyProviderTokenUpdates = 429,
    /// Too many notifications for one device.
    TooManyRequests = 429,
    /// A fault of APNs.
    InternalServerError = 500,
    /// APNs is not there for now.
    ServiceUnavailable = 503,
    /// This server of APNs is going away.
    Shutdown = 503,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal, and why in words that Apple would not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Apple's word.
    pub reason: Reason,
    /// What exactly is wrong with the request.
    pub because: &'static str,
    /// Since when the device token is dead, for status 410.
    pub timestamp: Option<UnixMillis>,
}

impl Refusal {
    /// A refusal without a timestamp.
    #[must_use]
    pub const fn new(reason: Reason, because: &'static str) -> Self {
        Self {
            reason,
            because,
            timestamp: None,
        }
    }

    /// The body of the answer.
    pub(super) fn body(&self) -> String {
        let reason = self.reason;
        match self.timestamp {
            Some(UnixMillis(at)) => format!(r#"{{"reason":"{reason}","timestamp":{at}}}"#),
            None => format!(r#"{{"reason":"{reason}"}}"#),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_json() {
        for &reason in Reason::ALL {
            let refusal = Refusal {
                timestamp: Some(UnixMillis(1_767_225_600_123)),
                ..Refusal::new(reason, "a test")
            };
            let body: serde_json::Value = serde_json::from_str(&refusal.body()).unwrap();
            assert_eq!(body["reason"], reason.as_str());
            assert_eq!(body["timestamp"], 1_767_225_600_123_u64);
            let body: serde_json::Value =
                serde_json::from_str(&Refusal::new(reason, "a test").body()).unwrap();
            assert_eq!(body.as_object().unwrap().len(), 1);
        }
    }
}
