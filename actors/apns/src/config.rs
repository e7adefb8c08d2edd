//! What an operator sets: the pools (`[apns]`) and one entry per app (`[apps.NAME]`).

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::Error;

/// Keys of the connection pools and of the provider tokens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seconds APNs has to answer one request. Then the push is sent once more on another connection.
    pub request_timeout_seconds: u64,
    /// Seconds for name look-up, TCP, TLS and the first SETTINGS of one connection together.
    pub connect_timeout_seconds: u64,
    /// Seconds without any answer, while requests are outstanding, before an HTTP/2 PING asks whether the
    /// peer is still there.
    pub ping_busy_seconds: u64,
    /// Seconds between PINGs on a connection without requests: below the idle limit of common NATs.
    pub ping_idle_seconds: u64,
    /// Seconds a PING may stay unanswered before the connection is taken for dead.
    pub ping_timeout_seconds: u64,
    /// Most connections of one lane to one endpoint with one signing key.
    pub connections_per_pool_max: usize,
    /// Most requests in flight on one connection, however many more APNs would allow.
    pub streams_per_connection_max: usize,
    /// Most pushes that one pool of one lane holds beside those in flight; more are `Overloaded`.
    pub queue_max: usize,
    /// Seconds after which a push is not worth another try: a later message wakes the device anyway.
    pub fresh_seconds: u64,
    /// Milliseconds before the deadline of the iq at which a push without verdict is told `Deferred`.
    pub defer_before_ms: u64,
    /// Milliseconds of the first pause after a failed connect or a failing APNs; it doubles from there.
    pub backoff_min_ms: u64,
    /// Seconds of the longest such pause.
    pub backoff_max_seconds: u64,
    /// Seconds for which a device is held back after `TooManyRequests`, unless APNs asks for more. All that
    /// comes meanwhile becomes one push.
    pub device_hold_seconds: u64,
    /// How often one push is sent again at once after APNs did certainly not process it; then it pauses
    /// before each further try.
    pub repeats_max: u8,
    /// Seconds during which an app whose configuration APNs refuses sends nothing; then one push tries.
    pub breaker_seconds: u64,
    /// Seconds of the sliding window in which `BadDeviceToken` and `DeviceTokenNotForTopic` are weighed
    /// against successes. Without a success in it no such verdict ends a registration.
    pub token_guard_window_seconds: u64,
    /// Most per cent of the window's verdicts that may be such errors for one to end a registration.
    pub token_guard_share_max_percent: u64,
    /// Seconds between two log lines on the same problem of the same app.
    pub alarm_interval_seconds: u64,
    /// Age in seconds at which a provider token is replaced: APNs takes none above 3,600.
    pub token_renew_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            request_timeout_seconds: 15,
            connect_timeout_seconds: 10,
            ping_busy_seconds: 5,
            ping_idle_seconds: 600,
            ping_timeout_seconds: 10,
            connections_per_pool_max: 4,
            streams_per_connection_max: 256,
            queue_max: 20_000,
            fresh_seconds: 300,
            defer_before_ms: 1_000,
            backoff_min_ms: 200,
            backoff_max_seconds: 30,
            device_hold_seconds: 120,
            repeats_max: 16,
            breaker_seconds: 30,
            token_guard_window_seconds: 3_600,
            token_guard_share_max_percent: 20,
            alarm_interval_seconds: 300,
            token_renew_seconds: 2_700,
        }
    }
}

impl Config {
    /// Every value that cannot work.
    pub(crate) fn problems(&self) -> Vec<Error> {
        let mut found = Vec::new();
        let mut within = |key: &'static str, value: u64, min: u64, max: u64| {
            if !(min..=max).contains(&value) {
                found.push(Error::OutOfRange {
                    key,
                    value,
                    min,
                    max,
                });
            }
        };
        const DAY: u64 = 86_400;
        let count = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        within(
            "request_timeout_seconds",
            self.request_timeout_seconds,
            1,
            300,
        );
        within(
            "connect_timeout_seconds",
            self.connect_timeout_seconds,
            1,
            300,
        );
        within("ping_busy_seconds", self.ping_busy_seconds, 1, 3_600);
        within("ping_idle_seconds", self.ping_idle_seconds, 1, 3_600);
        within("ping_timeout_seconds", self.ping_timeout_seconds, 1, 300);
        within(
            "connections_per_pool_max",
            count(self.connections_per_pool_max),
            1,
            1_000,
        );
        within(
            "streams_per_connection_max",
            count(self.streams_per_connection_max),
            1,
            10_000,
        );
        within("queue_max", count(self.queue_max), 1, 10_000_000);
        within("fresh_seconds", self.fresh_seconds, 1, DAY);
        within("defer_before_ms", self.defer_before_ms, 0, 60_000);
        within("backoff_min_ms", self.backoff_min_ms, 1, 60_000);
        within("backoff_max_seconds", self.backoff_max_seconds, 1, 3_600);
        within("device_hold_seconds", self.device_hold_seconds, 1, DAY);
        within("breaker_seconds", self.breaker_seconds, 1, DAY);
        within(
            "token_guard_window_seconds",
            self.token_guard_window_seconds,
            2,
            30 * DAY,
        );
        within(
            "token_guard_share_max_percent",
            self.token_guard_share_max_percent,
            0,
            100,
        );
        within(
            "alarm_interval_seconds",
            self.alarm_interval_seconds,
            0,
            DAY,
        );
        // Apple allows a new token each 20 minutes and takes none older than 60.
        within(
            "token_renew_seconds",
            self.token_renew_seconds,
            1_200,
            3_000,
        );
        found
    }

    /// The pauses between tries.
    pub(crate) const fn backoff(&self) -> (Duration, Duration) {
        (
            Duration::from_millis(self.backoff_min_ms),
            Duration::from_secs(self.backoff_max_seconds),
        )
    }
}

/// One app that can be woken: whose key signs for it, and what its notifications look like.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AppConfig {
    /// The bundle id of the app, sent as `apns-topic`. Required.
    pub topic: String,
    /// Which of Apple's two worlds the app's device tokens come from.
    pub environment: Environment,
    /// `host:port` to send to instead of the environment's endpoint, for private relays and tests.
    pub endpoint: Option<String>,
    /// PEM file of the only authorities to trust for that endpoint, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Apple's ten-character id of the team. Required.
    pub team_id: String,
    /// Apple's ten-character id of the signing key. Required.
    pub key_id: String,
    /// The signing key as Apple gives it out, `AuthKey_<key id>.p8`. Required.
    pub key_file: PathBuf,
    /// Title of the notification that is shown. Never anything of a message.
    pub alert_title: String,
    /// Text below the title; empty for none.
    pub alert_body: String,
    /// Sound of the notification that is shown; empty for none.
    pub sound: String,
    /// Seconds for which APNs keeps a notification for a device that is off, at most 30 days. The default
    /// is 28 days: who switches on after a holiday is still told, and APNs keeps only the last one.
    pub alert_expiration_seconds: u64,
    /// The same for silent pushes. The default is 0, deliver now or never: APNs keeps one notification
    /// per device and app, so that a kept silent push would take the place of a kept visible one.
    pub background_expiration_seconds: u64,
}

impl Default for AppConfig {
    fn default() -> Self {
        Self {
            topic: String::new(),
            environment: Environment::Production,
            endpoint: None,
            ca_file: None,
            team_id: String::new(),
            key_id: String::new(),
            key_file: PathBuf::new(),
            alert_title: "New message".to_owned(),
            alert_body: String::new(),
            sound: "default".to_owned(),
            alert_expiration_seconds: 28 * 86_400,
            background_expiration_seconds: 0,
        }
    }
}

/// Apple's environments. A device token of one is unknown in the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Environment {
    /// Apps from the App Store and TestFlight.
    #[default]
    Production,
    /// Apps run from Xcode.
    Sandbox,
}

impl Environment {
    /// Apple's host, to be reached at port 443.
    pub(crate) const fn host(self) -> &'static str {
        match self {
            Self::Production => "api.push.apple.com",
            Self::Sandbox => "api.sandbox.push.apple.com",
        }
    }

    /// The name as configured.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Sandbox => "sandbox",
        }
    }
}
