//! One stream over one connection: headers, stanzas, errors (RFC 6120 §4).

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use super::xml::{self, Element, Piece, Scope, Splitter, escaped};
use crate::SimulatorError;

/// The content namespace between servers.
pub(super) const SERVER: &str = "jabber:server";
/// The content namespace between a component and its server (XEP-0114).
pub(super) const COMPONENT: &str = "jabber:component:accept";
/// Namespace of the stream's own elements.
pub(super) const STREAMS: &str = "http://etherx.jabber.org/streams";
/// Namespace of stream error conditions.
pub(super) const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";
/// STARTTLS.
pub(super) const TLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
/// SASL.
pub(super) const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
/// Dialback (XEP-0220).
pub(super) const DIALBACK: &str = "jabber:server:dialback";

/// Reads from one half of a connection.
pub(super) struct StreamReader<R> {
    io: R,
    buffer: BytesMut,
    splitter: Splitter,
    scope: Scope,
    /// The content namespace that the header must have.
    namespace: &'static str,
}

/// What came in.
pub(super) enum Received {
    /// A stream header.
    Header(Element),
    /// A whole stanza, unread: floods are not read as trees.
    Stanza(Bytes),
    /// The end of the stream, in good order or by the end of the connection.
    End,
}

impl<R: AsyncRead + Unpin> StreamReader<R> {
    /// Of a stream between servers.
    pub(super) fn new(io: R) -> Self {
        Self::of(SERVER, io)
    }

    /// Of a component's stream.
    pub(super) fn of_component(io: R) -> Self {
        Self::of(COMPONENT, io)
    }

    fn of(namespace: &'static str, io: R) -> Self {
        Self {
            io,
            buffer: BytesMut::with_capacity(64 * 1024),
            splitter: Splitter::default(),
            scope: Scope::default(),
            namespace,
        }
    }

    pub(super) async fn next(&mut self) -> Result<Received, SimulatorError> {
        loop {
            if let Some(piece) = self
                .splitter
                .next(&self.buffer)
                .map_err(SimulatorError::Protocol)?
            {
                return match piece {
                    Piece::Opening(end) => {
                        let opening = self.buffer.split_to(end);
                        let (header, scope) =
                            xml::parse_opening(&opening).map_err(SimulatorError::Protocol)?;
                        self.scope = scope;
                        check_header(&header, &self.scope, self.namespace)?;
                        Ok(Received::Header(header))
                    }
                    Piece::Stanza(end) => Ok(Received::Stanza(self.buffer.split_to(end).freeze())),
                    Piece::Closing(_) => Ok(Received::End),
                };
            }
            self.buffer.reserve(16 * 1024);
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return Ok(Received::End);
            }
        }
    }

    /// Reads a stanza as a tree.
    pub(super) fn parse(&self, stanza: &[u8]) -> Result<Element, SimulatorError> {
        xml::parse(stanza, &self.scope).map_err(SimulatorError::Protocol)
    }

    /// The header that must come next.
    pub(super) async fn header(&mut self) -> Result<Element, SimulatorError> {
        match self.next().await? {
            Received::Header(header) => Ok(header),
            Received::Stanza(_) => Err(SimulatorError::Protocol("a stanza before the header")),
            Received::End => Err(closed()),
        }
    }

    /// The element that must come next; a stream error is an error.
    pub(super) async fn element(&mut self) -> Result<Element, SimulatorError> {
        match self.next().await? {
            Received::Stanza(stanza) => {
                let element = self.parse(&stanza)?;
                if element.is("error", STREAMS) {
                    return Err(stream_error(&element));
                }
                Ok(element)
            }
            Received::Header(_) => Err(SimulatorError::Protocol("a second header")),
            Received::End => Err(closed()),
        }
    }

    /// Begins anew after TLS or SASL (RFC 6120 §4.3.3).
    pub(super) fn restart(&mut self) {
        self.splitter = Splitter::default();
    }

    /// The connection.
    pub(super) const fn get_ref(&self) -> &R {
        &self.io
    }

    /// Gives the connection back, for TLS. Bytes that came after the STARTTLS exchange in clear text
    /// would be an injection.
    pub(super) fn into_inner(self) -> Result<R, SimulatorError> {
        if self.buffer.is_empty() {
            Ok(self.io)
        } else {
            Err(SimulatorError::Protocol("clear text after starttls"))
        }
    }
}

impl<R: AsyncRead + AsyncWrite> StreamReader<R> {
    /// Takes reading and writing apart.
    pub(super) fn split(self) -> (StreamReader<ReadHalf<R>>, WriteHalf<R>) {
        let (reader, writer) = tokio::io::split(self.io);
        let reader = StreamReader {
            io: reader,
            buffer: self.buffer,
            splitter: self.splitter,
            scope: self.scope,
            namespace: self.namespace,
        };
        (reader, writer)
    }
}

impl<R: AsyncWrite + Unpin> StreamReader<R> {
    /// Writes on a connection that is not taken apart yet.
    pub(super) async fn write(&mut self, xml: &str) -> Result<(), SimulatorError> {
        write(&mut self.io, xml.as_bytes()).await
    }
}

/// Writes and flushes.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    io: &mut W,
    xml: &[u8],
) -> Result<(), SimulatorError> {
    io.write_all(xml).await?;
    io.flush().await?;
    Ok(())
}

/// A header; the answering side adds an id.
pub(super) fn header(from: &str, to: &str, id: Option<&str>) -> String {
    let id = id.map_or_else(String::new, |id| format!(" id='{id}'"));
    format!(
        "<?xml version='1.0'?><stream:stream xmlns='{SERVER}' xmlns:stream='{STREAMS}' \
         xmlns:db='{DIALBACK}' from='{}' to='{}'{id} version='1.0' xml:lang='en'>",
        escaped(from),
        escaped(to)
    )
}

/// A stream error and the end of the stream.
pub(super) fn error(condition: &str) -> String {
    format!("<stream:error><{condition} xmlns='{STREAM_ERRORS}'/></stream:error></stream:stream>")
}

pub(super) fn stream_error(error: &Element) -> SimulatorError {
    let mut conditions = error.children.iter();
    let condition =
        conditions.find(|child| child.namespace == STREAM_ERRORS && child.name != "text");
    SimulatorError::StreamError {
        condition: condition.map_or_else(String::new, |condition| condition.name.clone()),
    }
}

fn check_header(header: &Element, scope: &Scope, namespace: &str) -> Result<(), SimulatorError> {
    let wrong = SimulatorError::Protocol;
    if !header.is("stream", STREAMS) {
        return Err(wrong("the header is not a stream"));
    }
    if scope.default_namespace() != namespace {
        return Err(wrong(match namespace {
            COMPONENT => "the default namespace is not jabber:component:accept",
            _ => "the default namespace is not jabber:server",
        }));
    }
    // Components' streams are older than versions.
    if namespace != COMPONENT && header.attribute("version") != Some("1.0") {
        return Err(wrong("the version is not 1.0"));
    }
    Ok(())
}

fn closed() -> SimulatorError {
    std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()
}
