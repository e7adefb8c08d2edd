//! Streams between servers, from the TCP connection to the authenticated domain.
//!
//! Peers open streams to us ([`inbound`]) and send requests on them; the answers go on streams that we
//! open ([`outbound`]), since a stream carries stanzas one way (RFC 6120 §4.5). Negotiation is
//! straight-line code in both directions. Everything that only computes has a file of its own.

pub(crate) mod component;
pub(crate) mod connect;
pub(crate) mod dialback;
pub(crate) mod external;
pub(crate) mod framed;
pub(crate) mod identity;
pub(crate) mod inbound;
pub(crate) mod limits;
pub(crate) mod meter;
pub(crate) mod outbound;
pub(crate) mod pings;
pub(crate) mod possession;
pub(crate) mod resolve;
pub(crate) mod scope;
pub(crate) mod tls;

use std::fmt;
use std::io;
use std::net::SocketAddr;

use messages::Domain;
use socket2::SockRef;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::outcomes::Direction;
use crate::stream::identity::Untrusted;
use crate::xml::XmlError;
use crate::xml::stream_error::{StreamCondition, StreamError};
use crate::xml::write;

/// Namespaces of stream features.
pub(crate) mod ns {
    pub(crate) use crate::xml::ns::*;

    /// RFC 6120 §5.
    pub(crate) const TLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
    /// RFC 6120 §6.
    pub(crate) const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
    /// XEP-0220 §2.3.
    pub(crate) const DIALBACK_FEATURE: &str = "urn:xmpp:features:dialback";
    /// XEP-0288, the request.
    pub(crate) const BIDI: &str = "urn:xmpp:bidi";
    /// XEP-0288, the feature.
    pub(crate) const BIDI_FEATURE: &str = "urn:xmpp:features:bidi";
    /// XEP-0478.
    pub(crate) const LIMITS: &str = "urn:xmpp:stream-limits:0";
}

/// The connection under a stream that a peer opens: TCP, or memory.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {
    /// Lets the current thread wait for it, instead of the one that did before.
    ///
    /// # Errors
    /// Those of the system: it may have no descriptor left.
    fn rehome(&mut self) -> io::Result<()>;
}

impl Socket for TcpStream {
    fn rehome(&mut self) -> io::Result<()> {
        // A second descriptor of the same connection, since the first is bound to where it was.
        let socket = SockRef::from(&*self).try_clone()?;
        *self = Self::from_std(socket.into())?;
        Ok(())
    }
}

#[cfg(any(test, fuzzing))]
impl Socket for tokio::io::DuplexStream {
    fn rehome(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why a stream is over. The text is for logs and says nothing of its stanzas.
#[derive(Debug, Error)]
pub(crate) enum Fault {
    #[error("the connection failed: {0}")]
    Io(io::Error),
    #[error("the peer closed the connection")]
    Disconnected,
    #[error("the peer closed the stream")]
    Ended,
    #[error("the peer sent the stream error {}", .0.as_str())]
    PeerError(StreamCondition),
    #[error("{0}")]
    Xml(#[from] XmlError),
    #[error("{reason}")]
    Refused {
        error: StreamError,
        reason: &'static str,
    },
    #[error("{0}")]
    TimedOut(&'static str),
    #[error("the peer did not read what it was sent")]
    Stalled,
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Many end TLS without a word, and programs that are no servers do.
            io::ErrorKind::UnexpectedEof => Self::Disconnected,
            _ => Self::Io(error),
        }
    }
}

impl Fault {
    /// What to tell the peer before the stream is closed.
    pub(crate) const fn stream_error(&self) -> Option<StreamError> {
        match self {
            Self::Xml(error) => Some(error.stream_error()),
            Self::Refused { error, .. } => Some(*error),
            Self::TimedOut(_) => Some(StreamError::new(StreamCondition::ConnectionTimeout)),
            Self::Io(_) | Self::Disconnected | Self::Ended | Self::PeerError(_) | Self::Stalled => {
                None
            }
        }
    }

    /// Whether the peer has left as peers do: when it restarts, or has not used the stream for long.
    pub(crate) const fn is_departure(&self) -> bool {
        matches!(
            self,
            Self::Ended
                | Self::Disconnected
                | Self::PeerError(
                    StreamCondition::ConnectionTimeout
                        | StreamCondition::Reset
                        | StreamCondition::SystemShutdown
                )
        )
    }

    /// We end the stream with this stream error; `reason` goes to the log and to the peer.
    pub(crate) const fn refuse(condition: StreamCondition, reason: &'static str) -> Self {
        Self::Refused {
            error: StreamError::new(condition).text(reason),
            reason,
        }
    }

    /// Its place was taken back for somebody else.
    pub(crate) const fn gave_way() -> Self {
        Self::refuse(
            StreamCondition::ResourceConstraint,
            "all streams were taken, and its address had most of them, or it had proven nothing yet: it gave way \
             to another",
        )
    }
}

/// Why a stream is over, in the words of an operator: what it mostly means, where it can be told.
#[derive(Debug)]
pub(crate) struct Explained<'a>(pub(crate) &'a Fault, pub(crate) Stage);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(fault, stage) = self;
        match fault {
            Fault::PeerError(StreamCondition::NotAuthorized)
                if matches!(stage, Stage::Tls | Stage::Authentication) =>
            {
                f.write_str("the peer sent the stream error not-authorized: it does not like our certificate")
            }
            Fault::Io(error) => match tls::explain(error) {
                Some(explained) => f.write_str(explained),
                None => fault.fmt(f),
            },
            fault => fault.fmt(f),
        }
    }
}

/// How far a stream has come, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    Accept,
    Resolve,
    Connect,
    Header,
    StartTls,
    Tls,
    Authentication,
    Open,
}

impl Stage {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Header => "stream header",
            Self::StartTls => "starttls",
            Self::Tls => "tls",
            Self::Authentication => "authentication",
            Self::Open => "open",
        }
    }
}

/// What is known of a stream, for the log and the operator.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    pub(crate) direction: Direction,
    pub(crate) address: Option<SocketAddr>,
    /// The served domain.
    pub(crate) local: Option<Domain>,
    /// The domain that the peer says it is, or that we want it to be.
    pub(crate) peer: Option<Domain>,
    pub(crate) stage: Stage,
    /// The version of TLS.
    pub(crate) tls: Option<&'static str>,
    /// What the peer's certificate proves.
    pub(crate) certificate: Option<String>,
    /// How the opening side proved who it is.
    pub(crate) method: Option<&'static str>,
}

/// A stream that a peer opens from an address.
impl From<SocketAddr> for Trace {
    fn from(address: SocketAddr) -> Self {
        Self {
            direction: Direction::In,
            address: Some(address),
            local: None,
            peer: None,
            stage: Stage::Header,
            tls: None,
            certificate: None,
            method: None,
        }
    }
}

/// A stream that we open from a served domain to a peer.
impl From<(&Domain, &Domain)> for Trace {
    fn from((local, peer): (&Domain, &Domain)) -> Self {
        Self {
            direction: Direction::Out,
            address: None,
            local: Some(local.clone()),
            peer: Some(peer.clone()),
            stage: Stage::Resolve,
            tls: None,
            certificate: None,
            method: None,
        }
    }
}

/// What is proven by a certificate, in words.
pub(crate) fn proof(verdict: &Result<(), Untrusted>) -> String {
    match verdict {
        Ok(()) => "valid".to_owned(),
        Err(untrusted) => untrusted.to_string(),
    }
}

/// Appends our stream header.
pub(crate) fn open_stream(out: &mut Vec<u8>, from: &Domain, to: Option<&Domain>, id: Option<&str>) {
    out.extend_from_slice(b"<?xml version='1.0'?>");
    let mut attributes = vec![
        ("xmlns", ns::SERVER),
        ("xmlns:stream", ns::STREAMS),
        ("xmlns:db", ns::DIALBACK),
        ("from", from.as_str()),
    ];
    attributes.extend(to.map(|to| ("to", to.as_str())));
    attributes.extend(id.map(|id| ("id", id)));
    attributes.extend([("version", "1.0"), ("xml:lang", "en")]);
    write::start(out, "stream:stream", &attributes);
}
