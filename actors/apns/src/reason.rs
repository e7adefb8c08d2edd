//! What an answer of APNs means: the one translation from (status, reason) to what is done about it
//! (Apple, "Handling notification responses from APNs").

use messages::ErrorReason;

/// What is done about an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// APNs took the push.
    Accepted,
    /// The device token is dead: its registrations end.
    Dead,
    /// The device token is wrong, or our configuration is: the guard decides.
    Suspect,
    /// The request was wrong: a fault of this program, not sent again.
    Bug,
    /// APNs refuses what the operator configured: alarm, the app pauses, tokens stay.
    Config,
    /// The provider token is too old: a new one, a new connection, once more.
    ExpiredToken,
    /// Provider tokens changed too often: keep this one, new connection, pause.
    TokenChurn,
    /// The connection belongs to another key: new connection, once more, then as [`Class::Config`].
    WrongConnection,
    /// Too many pushes for this device: it is held back, what comes meanwhile becomes one push.
    Throttled,
    /// APNs fails: pause, then once more while the push is fresh.
    Server,
    /// The connection is at its end: once more elsewhere.
    Reopen,
    /// Not known, and the status says that the fault is ours: not sent again, tokens stay.
    Unknown,
}

/// One row of Apple's table.
struct Row(u16, &'static str, Class);

const TABLE: &[Row] = &[
    Row(400, "BadCollapseId", Class::Bug),
    Row(400, "BadDeviceToken", Class::Suspect),
    Row(400, "BadExpirationDate", Class::Bug),
    Row(400, "BadMessageId", Class::Bug),
    Row(400, "BadPriority", Class::Bug),
    Row(400, "BadTopic", Class::Config),
    Row(400, "DeviceTokenNotForTopic", Class::Suspect),
    Row(400, "DuplicateHeaders", Class::Bug),
    Row(400, "IdleTimeout", Class::Reopen),
    Row(400, "InvalidPushType", Class::Bug),
    Row(400, "MissingDeviceToken", Class::Bug),
    Row(400, "MissingTopic", Class::Config),
    Row(400, "PayloadEmpty", Class::Bug),
    Row(400, "TopicDisallowed", Class::Config),
    Row(403, "BadCertificate", Class::Config),
    Row(403, "BadCertificateEnvironment", Class::Config),
    Row(403, "BadEnvironmentKeyIdInToken", Class::WrongConnection),
    Row(403, "ExpiredProviderToken", Class::ExpiredToken),
    Row(403, "Forbidden", Class::Config),
    Row(403, "InvalidProviderToken", Class::Config),
    Row(403, "MissingProviderToken", Class::Config),
    Row(403, "UnrelatedKeyIdInToken", Class::WrongConnection),
    Row(404, "BadPath", Class::Bug),
    Row(405, "MethodNotAllowed", Class::Bug),
    Row(410, "ExpiredToken", Class::Dead),
    Row(410, "Unregistered", Class::Dead),
    Row(413, "PayloadTooLarge", Class::Bug),
    Row(429, "TooManyProviderTokenUpdates", Class::TokenChurn),
    Row(429, "TooManyRequests", Class::Throttled),
    Row(500, "InternalServerError", Class::Server),
    Row(503, "ServiceUnavailable", Class::Server),
    Row(503, "Shutdown", Class::Reopen),
];

/// Judges an answer by its status and the reason in its body, if one could be read. What Apple's table
/// does not have is judged by the status, and never ends a registration.
pub(crate) fn judge(status: u16, reason: Option<&str>) -> (Class, ErrorReason) {
    let Some(reason) = reason else {
        return match status {
            200 => (Class::Accepted, ErrorReason::known("Success")),
            // 410 has one meaning, body or not.
            410 => (Class::Dead, ErrorReason::known("Unregistered")),
            _ => (
                by_status(status),
                ErrorReason::foreign(&format!("Status{status}")),
            ),
        };
    };
    TABLE
        .iter()
        .find(|row| row.0 == status && row.1 == reason)
        .map_or_else(
            || (by_status(status), ErrorReason::foreign(reason)),
            |row| (row.2, ErrorReason::known(row.1)),
        )
}

const fn by_status(status: u16) -> Class {
    match status {
        // Too early, too much, or the peer's own fault: another time may do.
        408 | 429 | 500..=599 => Class::Server,
        421 => Class::Reopen,
        _ => Class::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: u16, reason: Option<&str>, class: Class, told: &str) {
        let (got, text) = judge(status, reason);
        assert_eq!((got, text.as_str()), (class, told), "{status} {reason:?}");
    }

    #[test]
    fn apples_table() {
        for (status, reason, class) in [
            (400, "BadCollapseId", Class::Bug),
            (400, "BadDeviceToken", Class::Suspect),
            (400, "BadExpirationDate", Class::Bug),
            (400, "BadMessageId", Class::Bug),
            (400, "BadPriority", Class::Bug),
            (400, "InvalidPushType", Class::Bug),
            (400, "DuplicateHeaders", Class::Bug),
            (400, "PayloadEmpty", Class::Bug),
            (400, "BadTopic", Class::Config),
            (400, "MissingTopic", Class::Config),
            (400, "TopicDisallowed", Class::Config),
            (400, "DeviceTokenNotForTopic", Class::Suspect),
            (400, "IdleTimeout", Class::Reopen),
            (400, "MissingDeviceToken", Class::Bug),
            (403, "BadCertificate", Class::Config),
            (403, "BadCertificateEnvironment", Class::Config),
            (403, "ExpiredProviderToken", Class::ExpiredToken),
            (403, "InvalidProviderToken", Class::Config),
            (403, "MissingProviderToken", Class::Config),
            (403, "Forbidden", Class::Config),
            (403, "UnrelatedKeyIdInToken", Class::WrongConnection),
            (403, "BadEnvironmentKeyIdInToken", Class::WrongConnection),
            (404, "BadPath", Class::Bug),
            (405, "MethodNotAllowed", Class::Bug),
            (410, "Unregistered", Class::Dead),
            (410, "ExpiredToken", Class::Dead),
            (413, "PayloadTooLarge", Class::Bug),
            (429, "TooManyProviderTokenUpdates", Class::TokenChurn),
            (429, "TooManyRequests", Class::Throttled),
            (500, "InternalServerError", Class::Server),
            (503, "ServiceUnavailable", Class::Server),
            (503, "Shutdown", Class::Reopen),
        ] {
            check(status, Some(reason), class, reason);
        }
        assert_eq!(TABLE.len(), 32, "each row of the table is listed above");
    }

    #[test]
    fn what_the_table_does_not_have() {
        check(200, None, Class::Accepted, "Success");
        check(400, None, Class::Unknown, "Status400");
        check(403, Some("NewRule"), Class::Unknown, "NewRule");
        check(410, None, Class::Dead, "Unregistered");
        check(410, Some("NewReason"), Class::Unknown, "NewReason");
        check(400, Some("Unregistered"), Class::Unknown, "Unregistered");
        check(429, Some("SlowDown"), Class::Server, "SlowDown");
        check(429, None, Class::Server, "Status429");
        check(408, None, Class::Server, "Status408");
        check(421, Some("Elsewhere"), Class::Reopen, "Elsewhere");
        check(502, None, Class::Server, "Status502");
        check(503, Some("New\nLine"), Class::Server, "New?Line");
        check(204, None, Class::Unknown, "Status204");
        check(302, None, Class::Unknown, "Status302");
    }

    #[test]
    fn only_410_is_dead_for_certain() {
        for row in TABLE {
            assert_eq!(row.2 == Class::Dead, row.0 == 410, "{}", row.1);
        }
    }
}
