//! What an operator sets: the pools (`[apns]`) and one entry per app (`[apps.NAME]`).

use std::path::PathBuf;
use std::time::Duration;

use messages::Disclosure;
use serde::Deserialize;

use crate::Error;
use crate::class::{Class, ClassConfig};

/// The port of HTTPS.
pub(crate) const HTTPS: u16 = 443;

/// The other port of APNs.
pub(crate) const ALTERNATIVE: u16 = 2197;

/// Keys of the connection pools and of the provider tokens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seconds APNs has to answer one request. Then the push is sent again on another connection.
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
    /// Seconds without a request after which a connection is closed, unless it is the last one.
    pub connection_idle_seconds: u64,
    /// Most requests in flight on one connection, however many more APNs would allow.
    pub streams_per_connection_max: usize,
    /// Most pushes that one pool of one lane holds beside those in flight; more are `Overloaded`. The servers
    /// of one owner hold no more than is left for the others, so one alone has half of it.
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
    /// How often one push is sent again of which nobody knows whether APNs processed it, because the
    /// connection was lost or no answer came in time: at once the first time, then after a pause each. A
    /// device may be shown the notification once more for each.
    pub resends_max: u8,
    /// Seconds for which APNs may allow no request at all on a connection while pushes wait. Then another
    /// one takes its place.
    pub blocked_seconds: u64,
    /// Seconds of the longest pause of an app whose configuration APNs refuses; then one push tries. The
    /// first pause is half a second, and each further one twice as long.
    pub breaker_seconds: u64,
    /// Seconds of the sliding window in which `BadDeviceToken` and `DeviceTokenNotForTopic` are weighed
    /// against successes. Without a success in it no such verdict ends a registration.
    pub token_guard_window_seconds: u64,
    /// Most per cent of the window's verdicts that may be such errors for one to end a registration.
    pub token_guard_share_max_percent: u64,
    /// Seconds for which the first success of a registration on a lane stands for all: its time is kept, and that
    /// of later ones is not. An error on that lane ends them.
    pub success_interval_seconds: u64,
    /// Seconds between two log lines on the same problem of the same app.
    pub alarm_interval_seconds: u64,
    /// Seconds of the time slots that provider tokens are issued in: each carries the start of its slot, so
    /// that all processes of a team agree on it. The same for all of them.
    pub token_slot_seconds: u64,
    /// Directory in which the provider token of each key is kept for the next start and for other processes
    /// on the machine; empty for none.
    pub token_dir: PathBuf,
    /// Seconds between two looks at the files of signing keys.
    pub key_poll_seconds: u64,
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
            connection_idle_seconds: 7_200,
            streams_per_connection_max: 256,
            queue_max: 40_000,
            fresh_seconds: 300,
            defer_before_ms: 1_000,
            backoff_min_ms: 200,
            backoff_max_seconds: 30,
            device_hold_seconds: 120,
            repeats_max: 16,
            resends_max: 8,
            blocked_seconds: 10,
            breaker_seconds: 30,
            token_guard_window_seconds: 3_600,
            token_guard_share_max_percent: 20,
            success_interval_seconds: 3_600,
            alarm_interval_seconds: 300,
            token_slot_seconds: 2_400,
            token_dir: PathBuf::from("/var/lib/campanile/provider-tokens"),
            key_poll_seconds: 60,
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
        within(
            "connection_idle_seconds",
            self.connection_idle_seconds,
            1,
            30 * DAY,
        );
        within("queue_max", count(self.queue_max), 1, 10_000_000);
        within("fresh_seconds", self.fresh_seconds, 1, DAY);
        within("defer_before_ms", self.defer_before_ms, 0, 60_000);
        within("backoff_min_ms", self.backoff_min_ms, 1, 60_000);
        within("backoff_max_seconds", self.backoff_max_seconds, 1, 3_600);
        within("device_hold_seconds", self.device_hold_seconds, 1, DAY);
        within("blocked_seconds", self.blocked_seconds, 1, 3_600);
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
            "success_interval_seconds",
            self.success_interval_seconds,
            0,
            3_600,
        );
        within(
            "alarm_interval_seconds",
            self.alarm_interval_seconds,
            0,
            DAY,
        );
        // Apple allows a new token each 20 minutes and takes none older than 60. Who starts at the end of a
        // slot keeps its token for 20 minutes of the next.
        within("token_slot_seconds", self.token_slot_seconds, 1_200, 2_400);
        within("key_poll_seconds", self.key_poll_seconds, 1, DAY);
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
    /// The bundle id of the app, sent as `apns-topic`. Required, unless a certificate says it.
    pub topic: String,
    /// Which of Apple's two worlds the app's device tokens come from.
    pub environment: Environment,
    /// 443, or 2197 where a firewall lets nothing else out.
    pub port: u16,
    /// `host:port` to send to instead of the environment's endpoint, for private relays and tests.
    pub endpoint: Option<String>,
    /// PEM file of the only authorities to trust for that endpoint, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// `http://host:port` of a proxy that opens tunnels by CONNECT.
    pub proxy: Option<String>,
    /// File with one line `user:password` for the proxy.
    pub proxy_credentials_file: Option<PathBuf>,
    /// Apple's ten-character id of the team. Required without a certificate.
    pub team_id: String,
    /// Apple's ten-character id of the signing key. Required without a certificate.
    pub key_id: String,
    /// The signing key as Apple gives it out, `AuthKey_<key id>.p8`. Required without a certificate. It is
    /// looked at again while the service runs.
    pub key_file: PathBuf,
    /// PEM or PKCS#12 file of a client certificate of Apple, instead of a signing key. It lasts a year.
    pub certificate_file: Option<PathBuf>,
    /// File with one line, the password of a PKCS#12 file. Without it the password is empty.
    pub certificate_password_file: Option<PathBuf>,
    /// PEM file of the certificate's private key. Without it the key is in `certificate_file`.
    pub certificate_key_file: Option<PathBuf>,
    /// What a notification shows of a message and its sender, which Apple then can read.
    pub content: Shown,
    /// What is sent for a message that the user is to see: the publish has a body.
    pub important: ClassConfig,
    /// What is sent for anything else.
    pub unimportant: ClassConfig,
    /// What is sent for a call. No registration dialect leads here yet.
    pub voip: ClassConfig,
    /// What is sent when all was read on another device. No registration dialect leads here yet.
    pub clear: ClassConfig,
}

impl Default for AppConfig {
    fn default() -> Self {
        Self {
            topic: String::new(),
            environment: Environment::Production,
            port: HTTPS,
            endpoint: None,
            ca_file: None,
            proxy: None,
            proxy_credentials_file: None,
            team_id: String::new(),
            key_id: String::new(),
            key_file: PathBuf::new(),
            certificate_file: None,
            certificate_password_file: None,
            certificate_key_file: None,
            content: Shown::None,
            important: ClassConfig::default(),
            unimportant: ClassConfig::default(),
            voip: ClassConfig::default(),
            clear: ClassConfig::default(),
        }
    }
}

impl AppConfig {
    /// What is set for a class.
    pub(crate) const fn class(&self, class: Class) -> &ClassConfig {
        match class {
            Class::Important => &self.important,
            Class::Unimportant => &self.unimportant,
            Class::Voip => &self.voip,
            Class::Clear => &self.clear,
        }
    }
}

/// What notifications show of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shown {
    /// Nothing: the app fetches the message itself.
    #[default]
    None,
    /// The text.
    Body,
    /// The text, and its sender as the title.
    BodyAndSender,
}

impl Shown {
    /// The same for those who read publishes.
    #[must_use]
    pub const fn disclosure(self) -> Disclosure {
        match self {
            Self::None => Disclosure::Nothing,
            Self::Body => Disclosure::Body,
            Self::BodyAndSender => Disclosure::BodyAndSender,
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
    /// Apple's host.
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
