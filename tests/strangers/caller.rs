//! One connection of a stranger, from an address of its own.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use campanile::dev::world::SERVICE;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::tally::End;

/// What the service may say to a stranger before it closes.
const CONDITIONS: [&str; 6] = [
    "connection-timeout",
    "not-well-formed",
    "policy-violation",
    "resource-constraint",
    "restricted-xml",
    "unsupported-stanza-type",
];
const TLS: &str = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";

/// Where the service is, and where the stranger seems to be.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) service: SocketAddr,
    pub(crate) from: Ipv4Addr,
}

impl Place {
    pub(crate) async fn connect(self) -> Result<Line<TcpStream>, End> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((self.from, 0).into()).unwrap();
        let tcp = socket.connect(self.service).await.map_err(broken)?;
        tcp.set_nodelay(true).unwrap();
        Ok(Line::new(tcp))
    }

    /// As far as one comes without TLS.
    pub(crate) async fn clear(self, domain: &str) -> Result<Line<TcpStream>, End> {
        let mut clear = self.connect().await?;
        clear.say(&header(domain)).await?;
        clear.hear("</stream:features>").await?;
        clear.say(TLS).await?;
        clear
            .hear("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
            .await?;
        Ok(clear)
    }

    /// As far as one comes without proof of a domain.
    pub(crate) async fn secure(
        self,
        domain: &str,
        tls: &Arc<ClientConfig>,
    ) -> Result<Line<TlsStream<TcpStream>>, End> {
        let clear = self.clear(domain).await?;
        let name = ServerName::try_from(SERVICE).unwrap();
        let tls = TlsConnector::from(Arc::clone(tls));
        let mut secure = Line::new(tls.connect(name, clear.io).await.map_err(broken)?);
        secure.say(&header(domain)).await?;
        secure.hear("</stream:features>").await?;
        Ok(secure)
    }

    /// A stream of one who has a domain, and a certificate for it.
    pub(crate) async fn authenticated(
        self,
        domain: &str,
        tls: &Arc<ClientConfig>,
    ) -> Result<Line<TlsStream<TcpStream>>, End> {
        let mut secure = self.secure(domain, tls).await?;
        let identity = STANDARD.encode(domain);
        secure
            .say(&format!(
                "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>{identity}</auth>"
            ))
            .await?;
        secure
            .hear("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>")
            .await?;
        secure.say(&header(domain)).await?;
        secure.hear("</stream:features>").await?;
        Ok(secure)
    }
}

pub(crate) fn header(domain: &str) -> String {
    format!(
        "<?xml version='1.0'?><stream:stream xmlns='jabber:server' xmlns:db='jabber:server:dialback' \
         xmlns:stream='http://etherx.jabber.org/streams' from='{domain}' to='{SERVICE}' version='1.0'>"
    )
}

/// A connection, and what was heard on it and not yet looked at.
pub(crate) struct Line<T> {
    pub(crate) io: T,
    heard: String,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Line<T> {
    const fn new(io: T) -> Self {
        Self {
            io,
            heard: String::new(),
        }
    }

    pub(crate) async fn say(&mut self, text: &str) -> Result<(), End> {
        self.io.write_all(text.as_bytes()).await.map_err(broken)?;
        self.io.flush().await.map_err(broken)
    }

    /// Waits for these words.
    pub(crate) async fn hear(&mut self, words: &str) -> Result<(), End> {
        loop {
            if let Some(at) = self.heard.find(words) {
                self.heard.drain(..at + words.len());
                return Ok(());
            }
            if self.read().await? == 0 {
                return Err(said(&self.heard));
            }
        }
    }

    /// Listens to the end.
    pub(crate) async fn end(&mut self) -> End {
        loop {
            match self.read().await {
                Ok(0) => return said(&self.heard),
                Ok(_) => {}
                // The last words may have come before.
                Err(broken) => {
                    return match said(&self.heard) {
                        End::Closed => broken,
                        said => said,
                    };
                }
            }
        }
    }

    /// Says it again and again until the service has enough; listens all the while. Gives the bytes that
    /// it took.
    pub(crate) async fn say_on(
        &mut self,
        mut next: impl FnMut() -> Arc<str>,
        mut wrote: impl FnMut(usize),
    ) -> End {
        let (mut read, mut write) = tokio::io::split(&mut self.io);
        let heard = &mut self.heard;
        let listening = async {
            loop {
                match hear(&mut read, heard).await {
                    Ok(0) | Err(_) => return said(heard),
                    Ok(_) => {}
                }
            }
        };
        let talking = async {
            loop {
                for piece in next().as_bytes().chunks(16 * 1024) {
                    if let Err(error) = write.write_all(piece).await {
                        return broken(error);
                    }
                    wrote(piece.len());
                }
            }
        };
        // Whoever cannot write any more may still be told why.
        let broken = tokio::select! {
            end = listening => return end,
            end = talking => end,
        };
        match self.end().await {
            End::Closed => broken,
            said => said,
        }
    }

    async fn read(&mut self) -> Result<usize, End> {
        hear(&mut self.io, &mut self.heard).await
    }
}

async fn hear(io: &mut (impl AsyncRead + Unpin), heard: &mut String) -> Result<usize, End> {
    let mut bytes = [0; 1024];
    let read = io.read(&mut bytes).await.map_err(broken)?;
    heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
    Ok(read)
}

/// What the last words were.
fn said(heard: &str) -> End {
    let error = heard.split_once("<stream:error><").map(|(_, error)| error);
    let condition = error.and_then(|error| {
        CONDITIONS
            .into_iter()
            .find(|condition| error.starts_with(condition))
    });
    match (error, condition) {
        (None, _) => End::Closed,
        (Some(_), Some(condition)) => End::Error(condition),
        (Some(error), None) => panic!("no such end was expected: {error}"),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "errors are mapped by it")]
fn broken(error: io::Error) -> End {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => End::Closed,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => End::Reset,
        _ => panic!("a stranger cannot do what it wants: {error}"),
    }
}
