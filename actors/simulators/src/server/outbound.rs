//! The stream that this server opens to the push service.

use std::cell::Cell;
use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::Authentication;
use super::hub::Hub;
use super::stream::{self, DIALBACK, Received, SASL, STREAMS, StreamReader, TLS};
use super::xml::Element;
use crate::SimulatorError;

/// An authenticated stream.
pub(super) struct Outbound {
    pub(super) reader: StreamReader<ReadHalf<TlsStream<TcpStream>>>,
    pub(super) writer: WriteHalf<TlsStream<TcpStream>>,
}

/// The writing half of an authenticated stream whose reading half is watched.
pub(super) struct Link {
    writer: Box<dyn AsyncWrite + Unpin>,
    alive: Rc<Cell<bool>>,
}

/// Connects, encrypts and proves our domain.
pub(super) async fn open(hub: &Hub) -> Result<Outbound, SimulatorError> {
    let mut stream = encrypt(hub).await?;
    let (id, features) = begin(hub, &mut stream).await?;
    match hub.config.authentication {
        Authentication::External => authenticate(hub, &mut stream, &id, &features).await?,
        Authentication::Dialback => dial_back(hub, &mut stream, &id).await?,
    }
    let (reader, writer) = stream.split();
    Ok(Outbound { reader, writer })
}

/// Asks the service whether it made a dialback key (XEP-0220 §2.2, as the receiving server).
pub(super) async fn verify(hub: &Hub, stream_id: &str, key: &str) -> Result<bool, SimulatorError> {
    let mut stream = encrypt(hub).await?;
    begin(hub, &mut stream).await?;
    let (domain, service) = (&hub.config.domain, &hub.config.service);
    stream
        .write(&format!(
            "<db:verify from='{domain}' to='{service}' id='{stream_id}'>{key}</db:verify>"
        ))
        .await?;
    let answer = stream.element().await?;
    let is_answer = answer.is("verify", DIALBACK)
        && answer.attribute("from") == Some(service)
        && answer.attribute("to") == Some(domain)
        && answer.attribute("id") == Some(stream_id);
    stream.write("</stream:stream>").await?;
    if !is_answer {
        return Err(SimulatorError::Protocol("db:verify is not answered"));
    }
    Ok(answer.attribute("type") == Some("valid"))
}

async fn encrypt(hub: &Hub) -> Result<StreamReader<TlsStream<TcpStream>>, SimulatorError> {
    let address = hub
        .service_address
        .get()
        .ok_or(SimulatorError::NoServiceAddress)?;
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let mut plain = StreamReader::new(socket);
    let (_, features) = begin(hub, &mut plain).await?;
    if features.child("starttls", TLS).is_none() {
        return Err(SimulatorError::Protocol("starttls is not offered"));
    }
    plain.write(&format!("<starttls xmlns='{TLS}'/>")).await?;
    if !plain.element().await?.is("proceed", TLS) {
        return Err(SimulatorError::Protocol("starttls is refused"));
    }
    let name = ServerName::try_from(hub.config.service.clone())
        .map_err(|_| SimulatorError::Protocol("the service's domain is no host name"))?;
    let encrypted = hub.connector.connect(name, plain.into_inner()?).await?;
    Ok(StreamReader::new(encrypted))
}

/// Sends our header and takes theirs and the features. Gives the stream id.
async fn begin<S: AsyncRead + AsyncWrite + Unpin>(
    hub: &Hub,
    stream: &mut StreamReader<S>,
) -> Result<(String, Element), SimulatorError> {
    let (domain, service) = (&hub.config.domain, &hub.config.service);
    stream.write(&stream::header(domain, service, None)).await?;
    let header = stream.header().await?;
    if header.attribute("from") != Some(service) || header.attribute("to") != Some(domain) {
        // A header in front of a stream error may not know the domains.
        stream.element().await?;
        return Err(SimulatorError::Protocol("the header's from or to is wrong"));
    }
    let id = header.attribute("id").unwrap_or_default().to_owned();
    if id.is_empty() {
        return Err(SimulatorError::Protocol("the header has no id"));
    }
    let features = stream.element().await?;
    if !features.is("features", STREAMS) {
        return Err(SimulatorError::Protocol(
            "the header has no features after it",
        ));
    }
    Ok((id, features))
}

/// SASL EXTERNAL (XEP-0178 §3).
async fn authenticate(
    hub: &Hub,
    stream: &mut StreamReader<TlsStream<TcpStream>>,
    id: &str,
    features: &Element,
) -> Result<(), SimulatorError> {
    let is_offered = features
        .child("mechanisms", SASL)
        .is_some_and(|mechanisms| {
            let mut mechanisms = mechanisms.children.iter();
            mechanisms.any(|child| child.is("mechanism", SASL) && child.text == "EXTERNAL")
        });
    if !is_offered {
        return Err(SimulatorError::NotAuthenticated);
    }
    let authzid = STANDARD.encode(&hub.config.domain);
    stream
        .write(&format!(
            "<auth xmlns='{SASL}' mechanism='EXTERNAL'>{authzid}</auth>"
        ))
        .await?;
    if !stream.element().await?.is("success", SASL) {
        return Err(SimulatorError::NotAuthenticated);
    }
    stream.restart();
    let (fresh, _) = begin(hub, stream).await?;
    if fresh == id {
        return Err(SimulatorError::Protocol(
            "the stream id is the same after a restart",
        ));
    }
    Ok(())
}

/// Dialback as the originating server (XEP-0220 §2.1).
async fn dial_back(
    hub: &Hub,
    stream: &mut StreamReader<TlsStream<TcpStream>>,
    id: &str,
) -> Result<(), SimulatorError> {
    let (domain, service) = (&hub.config.domain, &hub.config.service);
    let key = hub.dialback.key(service, domain, id);
    stream
        .write(&format!(
            "<db:result from='{domain}' to='{service}'>{key}</db:result>"
        ))
        .await?;
    let answer = stream.element().await?;
    let is_valid = answer.is("result", DIALBACK)
        && answer.attribute("from") == Some(service)
        && answer.attribute("to") == Some(domain)
        && answer.attribute("type") == Some("valid");
    is_valid
        .then_some(())
        .ok_or(SimulatorError::NotAuthenticated)
}

impl Outbound {
    /// Goes on reading in a task, so that the end of the stream is noticed before the next write.
    pub(super) fn watched(self, hub: &Rc<Hub>) -> Link {
        let Self { mut reader, writer } = self;
        let alive = Rc::new(Cell::new(true));
        let (hub, still_alive) = (Rc::clone(hub), Rc::clone(&alive));
        actix_rt::spawn(async move {
            let mut stop = hub.stop.subscribe();
            loop {
                let received = tokio::select! {
                    received = reader.next() => received,
                    _ = stop.wait_for(|stopping| *stopping) => break,
                };
                let Ok(Received::Stanza(stanza)) = received else {
                    break;
                };
                if let Ok(element) = reader.parse(&stanza) {
                    hub.unexpected(&element);
                }
            }
            still_alive.set(false);
            hub.drop_dead_link().await;
        });
        Link::new(writer, alive)
    }
}

impl Link {
    /// `alive` is for the one who reads to keep.
    pub(super) fn new(writer: impl AsyncWrite + Unpin + 'static, alive: Rc<Cell<bool>>) -> Self {
        Self {
            writer: Box::new(writer),
            alive,
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.alive.get()
    }

    pub(super) async fn write(&mut self, xml: &[u8]) -> Result<(), SimulatorError> {
        stream::write(&mut self.writer, xml).await
    }

    /// Ends the stream in good order.
    pub(super) async fn close(mut self) {
        // The peer may have gone before; then there is nothing to end.
        if self.write(b"</stream:stream>").await.is_ok() {
            let _gone = self.writer.shutdown().await;
        }
    }
}
