//! The stream of a component to its server (XEP-0114 §3): one for both ways, without TLS of its own.

use std::fmt;
use std::io;
use std::net::ToSocketAddrs as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use messages::Domain;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixStream, lookup_host};
use tokio::time::timeout;

use super::connect::{Terms, connect};
use super::framed::Framed;
use super::{Fault, ns};
use crate::porch::KEEPALIVE;
use crate::xml::stream_error::StreamCondition;
use crate::xml::{XmlError, write};
use crate::{Config, Error};

/// A connection of either kind.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// The stream of a component.
pub(crate) type Connection = Framed<Box<dyn Io>>;

/// Where a server takes components.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Host and port. The host is looked up at each connection.
    Tcp(String),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Target {
    /// Reads `host:port` or `unix:/path`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return path.starts_with('/').then(|| Self::Unix(path.into()));
        }
        let (host, port) = text.rsplit_once(':')?;
        let port: u16 = port.parse().ok()?;
        let bare = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        (!host.is_empty() && !bare && port > 0).then(|| Self::Tcp(text.to_owned()))
    }

    async fn connect(&self, limit: Duration) -> io::Result<Box<dyn Io>> {
        match self {
            Self::Tcp(target) => {
                let addresses: Vec<_> = lookup_host(target).await?.collect();
                let terms = Terms {
                    limit,
                    buffers: None,
                    errand: None,
                };
                let (_, socket) = connect(&addresses, terms).await?;
                socket.set_nodelay(true)?;
                let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
                SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
                Ok(Box::new(socket))
            }
            Self::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        }
    }

    /// Connects and hangs up, blocking the thread, to see whether anybody is there.
    pub(crate) fn probe(&self, limit: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(target) => {
                let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
                for address in target.to_socket_addrs()? {
                    match std::net::TcpStream::connect_timeout(&address, limit) {
                        Ok(_) => return Ok(()),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            Self::Unix(path) => std::os::unix::net::UnixStream::connect(path).map(drop),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(target) => f.write_str(target),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Reads a component's secret: the only line of a file that not everybody can read.
///
/// # Errors
/// What is wrong with the file.
pub(crate) fn secret(file: &Path) -> Result<String, Error> {
    let unreadable = |source| Error::Unreadable {
        file: file.to_owned(),
        source,
    };
    if std::fs::metadata(file).map_err(unreadable)?.mode() & 0o007 != 0 {
        return Err(Error::ExposedSecret {
            file: file.to_owned(),
        });
    }
    let text = files::read_text(file, files::SMALL).map_err(unreadable)?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(Error::NoSecret {
            file: file.to_owned(),
        }),
        secret => Ok(secret.to_owned()),
    }
}

/// Why there is no stream. The text is for the operator's log.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Secret(#[from] Error),
    #[error("cannot connect ({0}): the server must run and take components there")]
    Connect(io::Error),
    #[error("{}", Words(.0))]
    Stream(#[from] Fault),
    #[error("the server did not answer in time")]
    TimedOut,
}

/// A fault in the words of someone who runs the server and the component.
pub(crate) struct Words<'a>(pub(crate) &'a Fault);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Fault::PeerError(StreamCondition::HostUnknown) => {
                "the server knows no such component (host-unknown): add it to its configuration"
            }
            Fault::PeerError(StreamCondition::Conflict) => {
                "the component is connected a second time (conflict): stop one of the two"
            }
            Fault::PeerError(StreamCondition::NotAuthorized) => {
                "the server refused the secret (not-authorized): secret_file must hold the one that the \
                 server has for this component"
            }
            Fault::PeerError(StreamCondition::InvalidNamespace)
            | Fault::Xml(XmlError::InvalidNamespace) => {
                "the port is not for components (invalid-namespace): connect to the server's component \
                 port"
            }
            other => return other.fmt(f),
        })
    }
}

/// Connects and authenticates as `domain`.
pub(crate) async fn open(
    config: &Config,
    domain: &Domain,
    target: &Target,
    secret_file: &Path,
) -> Result<Connection, Failure> {
    let secret = secret(secret_file)?;
    let negotiated = async {
        let io = target.connect(config.connect_timeout());
        let io = io.await.map_err(Failure::Connect)?;
        let mut framed = Framed::new(io, config.limits(), config.write_stall());
        authenticate(&mut framed, domain, &secret).await?;
        Ok(framed)
    };
    timeout(config.authentication_timeout(), negotiated)
        .await
        .unwrap_or(Err(Failure::TimedOut))
}

async fn authenticate(framed: &mut Connection, domain: &Domain, secret: &str) -> Result<(), Fault> {
    let mut opening = b"<?xml version='1.0'?>".to_vec();
    let attributes = [
        ("xmlns", ns::COMPONENT),
        ("xmlns:stream", ns::STREAMS),
        ("to", domain.as_str()),
    ];
    write::start(&mut opening, "stream:stream", &attributes);
    framed.send(&opening).await?;
    let header = framed.header().await?;
    header.check_component()?;
    let mut proof = Vec::new();
    write::element(&mut proof, "handshake", &[], |out| {
        let id = header.id.as_deref().unwrap_or_default();
        write::text(out, &handshake(id, secret));
    });
    // A server that refuses the header may have hung up by now, but has said why.
    let sent = framed.send(&proof).await;
    let answer = match framed.element().await {
        Err(Fault::Io(_) | Fault::Disconnected) => return sent.and(Err(Fault::Disconnected)),
        answer => answer?,
    };
    match answer.is("handshake", ns::COMPONENT) {
        true => Ok(()),
        false => Err(Fault::refuse(
            StreamCondition::UnsupportedStanzaType,
            "something else than a handshake came",
        )),
    }
}

/// What proves that we know the secret.
fn handshake(id: &str, secret: &str) -> String {
    use std::fmt::Write as _;

    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, [id, secret].concat().as_bytes());
    hash.as_ref().iter().fold(String::new(), |mut hex, byte| {
        let _into_a_string = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_handshake_is_as_agreed() {
        assert_eq!(
            handshake("c0ffee42", "open-sesame"),
            "b837926650f1013de2fea94cab83fed1a3b9464e"
        );
    }

    #[test]
    fn refusals_say_what_to_do() {
        let words = |condition| Words(&Fault::PeerError(condition)).to_string();
        for (condition, part) in [
            (StreamCondition::HostUnknown, "add it to its configuration"),
            (StreamCondition::Conflict, "stop one of the two"),
            (StreamCondition::NotAuthorized, "secret_file must hold"),
            (StreamCondition::InvalidNamespace, "component port"),
            (
                StreamCondition::SystemShutdown,
                "stream error system-shutdown",
            ),
        ] {
            assert!(words(condition).contains(part), "{}", words(condition));
        }
        let other = Words(&Fault::Xml(XmlError::InvalidNamespace)).to_string();
        assert_eq!(other, words(StreamCondition::InvalidNamespace));
        assert_eq!(
            Words(&Fault::Stalled).to_string(),
            Fault::Stalled.to_string()
        );
    }

    #[track_caller]
    fn check(text: &str, expected: Option<Target>) {
        assert_eq!(Target::parse(text), expected, "{text}");
        if let Some(target) = expected {
            assert_eq!(target.to_string(), text);
        }
    }

    #[test]
    fn targets() {
        let tcp = |text: &str| Some(Target::Tcp(text.to_owned()));
        check("localhost:5347", tcp("localhost:5347"));
        check("127.0.0.1:5347", tcp("127.0.0.1:5347"));
        check("[::1]:5347", tcp("[::1]:5347"));
        check("unix:/run/x", Some(Target::Unix("/run/x".into())));
        for bad in [
            "",
            "localhost",
            ":5347",
            "localhost:",
            "localhost:0",
            "localhost:65536",
            "::1:5347",
            "unix:",
            "unix:run/x",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn secrets() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        let write = |text: &str, mode| {
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            secret(&file)
        };
        assert!(matches!(secret(&file), Err(Error::Unreadable { .. })));
        assert_eq!(write("open sesame\n", 0o600).unwrap(), "open sesame");
        assert_eq!(write(" x \r\n", 0o640).unwrap(), " x ");
        assert!(matches!(write("\n", 0o600), Err(Error::NoSecret { .. })));
        for mode in [0o604, 0o602] {
            assert!(matches!(write("x", mode), Err(Error::ExposedSecret { .. })));
        }
    }
}
