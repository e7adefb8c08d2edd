//! What can go wrong while trying something against a simulator.

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

use crate::server::StanzaError;

/// One variant per decision a caller can take. No text holds a token, a secret, an address of a user
/// or stanza text.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SimulatorError {
    /// A certificate or key could not be made.
    #[error("cannot make a test certificate")]
    Certificate(#[from] rcgen::Error),
    /// TLS could not be set up with the given certificate.
    #[error("cannot set up tls for a simulator")]
    Tls(#[from] rustls::Error),
    /// A file could not be written.
    #[error("cannot write test certificates: give a writable directory without older ones")]
    Write(#[source] io::Error),
    /// The listening socket could not be opened.
    #[error("cannot listen on {address}: choose a free port, or 0")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The simulated server was not told where the push service listens.
    #[error("the address of the push service is not set")]
    NoServiceAddress,
    /// The push service could not be connected to, or the connection broke.
    #[error("the stream to the push service failed")]
    Connection(#[from] io::Error),
    /// The push service broke a rule of the stream, in words.
    #[error("the push service broke a rule of the stream: {0}")]
    Protocol(&'static str),
    /// The push service ended the stream with a stream error (RFC 6120 §4.9.3).
    #[error("the push service closed the stream: {condition}")]
    StreamError {
        /// The condition's element name.
        condition: String,
    },
    /// The push service does not authenticate this server.
    #[error("the push service does not authenticate this server: check its roots and this domain")]
    NotAuthenticated,
    /// The request was answered with an error stanza.
    #[error("the push service answered with an error: {0}")]
    Refused(StanzaError),
    /// No answer in time.
    #[error("the push service did not answer in time")]
    TimedOut,
    /// As many requests are unanswered as may be.
    #[error("too many requests are unanswered")]
    Busy,
    /// The simulator is stopping.
    #[error("the simulator is stopping")]
    Stopping,
}
