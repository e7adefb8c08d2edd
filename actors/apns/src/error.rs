//! Why an app cannot be served, as far as its configuration says, and why a connection failed.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A fault of the configuration, or of a connection. The text names the app and the key, and says what to
/// do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A number of `[apns]` that cannot work.
    #[error("[apns] {key} = {value}: choose a value from {min} to {max}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// Its value.
        value: u64,
        /// Smallest value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
    },
    /// A required key is absent or empty.
    #[error("[apps.{app}] {key} is missing: set it to {what}")]
    Missing {
        /// The app's name.
        app: String,
        /// The key.
        key: &'static str,
        /// What belongs there.
        what: &'static str,
    },
    /// A value has the wrong form.
    #[error("[apps.{app}] {key} is wrong: {problem}")]
    Invalid {
        /// The app's name.
        app: String,
        /// The key.
        key: &'static str,
        /// What is wrong with it and what it should be.
        problem: String,
    },
    /// A file cannot be read.
    #[error("[apps.{app}] {key}: cannot read {}: {source}", path.display())]
    Unreadable {
        /// The app's name.
        app: String,
        /// The key that names the file.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("[apps.{app}] {key}: {}: {problem}", path.display())]
    Unusable {
        /// The app's name.
        app: String,
        /// The key that names the file.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// Two apps name one signing key and give different files for it.
    #[error(
        "[apps.{app}] key_file is not the key that [apps.{other}] has for the same team_id and key_id: \
         correct the key_id of one of them"
    )]
    ConflictingKeys {
        /// The later app's name.
        app: String,
        /// The earlier app's name.
        other: String,
    },
    /// A client certificate ends soon. Not a fault yet.
    #[error(
        "[apps.{app}] certificate_file: ends in {days} days: make a new one in Apple's console"
    )]
    CertificateEnds {
        /// The app's name.
        app: String,
        /// Whole days left.
        days: u64,
    },
    /// Notifications show what people write. Not a fault, but nothing to be surprised by.
    #[error(
        "[apps.{app}] content: Apple, and whoever sees the locked phone, can read {what}: set it to \"none\" \
         unless all users know"
    )]
    ContentShown {
        /// The app's name.
        app: String,
        /// What can be read.
        what: &'static str,
    },
    /// A file with a secret is open to others. Not a fault of what is sent.
    #[error("[apps.{app}] {key}: others than its owner may use {}: chmod 600", path.display())]
    Exposed {
        /// The app's name.
        app: String,
        /// The key that names the file.
        key: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Apple names key files by their keys, and this one has another name. Perhaps it was renamed.
    #[error(
        "[apps.{app}] key_id is not the {named} in the name of key_file: correct the one that is wrong, else \
         Apple refuses all pushes"
    )]
    OtherKeyId {
        /// The app's name.
        app: String,
        /// The id in the name.
        named: String,
    },
    /// Provider tokens cannot be kept.
    #[error(
        "[apns] token_dir: {} cannot be used: {source}; let the service's user write there, else Apple may \
         refuse pushes after a restart", path.display()
    )]
    TokenDir {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Others may look into the directory of provider tokens.
    #[error("[apns] token_dir: others than its owner may use {}: chmod 700", path.display())]
    TokenDirExposed {
        /// The directory.
        path: PathBuf,
    },
    /// The proxy refused a tunnel.
    #[error("the proxy answers {status}: {}", proxy_advice(*status))]
    ProxyRefused {
        /// Its HTTP status.
        status: u16,
    },
    /// The proxy's answer is none.
    #[error("the proxy does not speak HTTP/1: check proxy")]
    ProxyUnclear,
    /// The name of the endpoint has no address, or looking it up failed.
    #[error("cannot look up the address: {0}: check the endpoint and the name servers")]
    LookUp(#[source] io::Error),
    /// TCP or TLS failed.
    #[error(
        "cannot connect: {0}: check that a firewall lets TCP to it pass, and ca_file if there is one"
    )]
    Connect(#[source] io::Error),
    /// TLS succeeded, but the peer did not choose HTTP/2.
    #[error(
        "the peer does not speak HTTP/2 (ALPN h2): check endpoint; something on the way may open TLS"
    )]
    NotHttp2,
    /// HTTP/2 failed before the connection was usable.
    #[error(
        "HTTP/2 failed before the first SETTINGS: {0}: check endpoint; something on the way may open TLS"
    )]
    Handshake(#[source] h2::Error),
    /// The peer closed the connection before it was usable.
    #[error(
        "the peer closed before the first SETTINGS: check endpoint, certificate_file if there is one, and \
         what is on the way"
    )]
    ClosedEarly,
    /// The connection was not usable in time.
    #[error("no usable connection in time: check that a firewall lets TCP to it pass")]
    ConnectTimeout,
}

const fn proxy_advice(status: u16) -> &'static str {
    match status {
        407 => "check proxy_credentials_file",
        403 => "let it allow the endpoint's name and port",
        _ => "see its log",
    }
}
