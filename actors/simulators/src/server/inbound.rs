//! Streams that other servers open to this one.

use std::collections::HashSet;
use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Duration, timeout};
use tokio_rustls::server::TlsStream;

use super::hub::{Hub, domain_of};
use super::outbound;
use super::stream::{self, DIALBACK, Received, SASL, SERVER, STREAMS, StreamReader, TLS};
use super::xml::{Element, escaped};
use crate::SimulatorError;

/// Takes streams until the server stops.
pub(super) async fn listen(hub: Rc<Hub>, listener: TcpListener) {
    let mut stop = hub.stop.subscribe();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    actix_rt::spawn(serve(Rc::clone(&hub), socket));
                }
                // Out of descriptors, most likely: they come back as connections close.
                Err(_) => tokio::time::sleep(crate::ACCEPT_PAUSE).await,
            },
            _ = stop.wait_for(|stopping| *stopping) => return,
        }
    }
}

async fn serve(hub: Rc<Hub>, socket: TcpStream) {
    let mut stop = hub.stop.subscribe();
    let limit = Duration::from_millis(hub.config.connect_timeout_millis);
    let ended = match timeout(limit, encrypt(&hub, socket)).await {
        Ok(Ok(stream)) => Inbound::new(&hub, stream).run(&mut stop).await,
        Ok(Err(error)) => Err(error),
        Err(_) => Err(SimulatorError::TimedOut),
    };
    // Connections may break and peers may close streams as they like.
    if let Err(SimulatorError::Protocol(explanation)) = ended {
        hub.violation(explanation);
    }
}

/// Demands STARTTLS.
async fn encrypt(
    hub: &Hub,
    socket: TcpStream,
) -> Result<StreamReader<TlsStream<TcpStream>>, SimulatorError> {
    socket.set_nodelay(true)?;
    let mut plain = StreamReader::new(socket);
    let header = plain.header().await?;
    answer_header(hub, &mut plain, &header).await?;
    plain
        .write(&format!(
            "<stream:features><starttls xmlns='{TLS}'><required/></starttls></stream:features>"
        ))
        .await?;
    if !plain.element().await?.is("starttls", TLS) {
        plain.write(&stream::error("policy-violation")).await?;
        return Err(SimulatorError::Protocol("the peer does not take starttls"));
    }
    plain.write(&format!("<proceed xmlns='{TLS}'/>")).await?;
    let encrypted = hub.acceptor.accept(plain.into_inner()?).await?;
    Ok(StreamReader::new(encrypted))
}

/// Answers a header with ours and gives the id of the stream. A header for another domain ends it.
async fn answer_header<S: AsyncRead + AsyncWrite + Unpin>(
    hub: &Hub,
    stream: &mut StreamReader<S>,
    header: &Element,
) -> Result<String, SimulatorError> {
    let id = format!("{:032x}", fastrand::u128(..));
    let domain = &hub.config.domain;
    let from = header.attribute("from").unwrap_or_default();
    stream
        .write(&stream::header(domain, from, Some(&id)))
        .await?;
    if header.attribute("to") != Some(domain) {
        stream.write(&stream::error("host-unknown")).await?;
        return Err(SimulatorError::Protocol("the header is to another domain"));
    }
    Ok(id)
}

/// An encrypted stream.
struct Inbound<'a> {
    hub: &'a Rc<Hub>,
    stream: StreamReader<TlsStream<TcpStream>>,
    /// The `from` of the first header.
    from: String,
    /// The id we gave in the last header.
    id: String,
    /// Domains that may send on this stream.
    authenticated: HashSet<String>,
    /// Whether the peer's certificate is good for `from`.
    trusted: bool,
}

impl<'a> Inbound<'a> {
    fn new(hub: &'a Rc<Hub>, stream: StreamReader<TlsStream<TcpStream>>) -> Self {
        Self {
            hub,
            stream,
            from: String::new(),
            id: String::new(),
            authenticated: HashSet::new(),
            trusted: false,
        }
    }

    /// Serves the stream until either side ends it.
    async fn run(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), SimulatorError> {
        loop {
            let limit = Duration::from_millis(self.hub.config.connect_timeout_millis);
            let received = tokio::select! {
                received = self.stream.next() => received?,
                _ = stop.wait_for(|stopping| *stopping) => {
                    return self.stream.write("</stream:stream>").await;
                }
                () = tokio::time::sleep(limit), if self.authenticated.is_empty() => {
                    return self.fail("connection-timeout").await;
                }
            };
            match received {
                Received::Header(header) => self.begin(&header).await?,
                Received::Stanza(stanza) => {
                    if let Some(flood) = self.hub.flood.borrow_mut().as_mut()
                        && self.authenticated.contains(&self.hub.config.service)
                        && flood.take(&stanza, SERVER)
                    {
                        continue;
                    }
                    let element = self.stream.parse(&stanza)?;
                    if !self.take(element, &stanza).await? {
                        return Ok(());
                    }
                }
                Received::End => {
                    // The peer may be gone already.
                    let _gone = self.stream.write("</stream:stream>").await;
                    return Ok(());
                }
            }
        }
    }

    /// Answers a header and offers what fits the peer's certificate.
    async fn begin(&mut self, header: &Element) -> Result<(), SimulatorError> {
        let from = header.attribute("from").unwrap_or_default();
        if from.is_empty() || (!self.from.is_empty() && self.from != from) {
            answer_header(self.hub, &mut self.stream, header).await?;
            self.stream
                .write(&stream::error("improper-addressing"))
                .await?;
            return Err(SimulatorError::Protocol(
                "the header's from is missing or has changed",
            ));
        }
        self.from = from.to_owned();
        let chain = self.stream.get_ref().get_ref().1.peer_certificates();
        self.trusted = self.hub.trusts(chain, from);
        self.id = answer_header(self.hub, &mut self.stream, header).await?;
        let external = if self.trusted && self.authenticated.is_empty() {
            format!("<mechanisms xmlns='{SASL}'><mechanism>EXTERNAL</mechanism></mechanisms>")
        } else {
            String::new()
        };
        self.stream
            .write(&format!(
                "<stream:features>{external}\
                 <dialback xmlns='urn:xmpp:features:dialback'><errors/></dialback>\
                 </stream:features>"
            ))
            .await
    }

    /// Takes an element. False when the stream is over.
    async fn take(&mut self, element: Element, xml: &[u8]) -> Result<bool, SimulatorError> {
        if self.from.is_empty() {
            return Err(SimulatorError::Protocol("a stanza before the header"));
        }
        if element.is("error", STREAMS) {
            return Err(stream::stream_error(&element));
        }
        if element.is("auth", SASL) {
            self.authenticate(&element).await?;
        } else if element.is("result", DIALBACK) {
            self.check_result(&element).await?;
        } else if element.is("verify", DIALBACK) {
            self.verify(&element).await?;
        } else if self.authenticated.is_empty() {
            self.hub.violation("a stanza before authentication");
            self.fail("not-authorized").await?;
            return Ok(false);
        } else {
            let authenticated = &self.authenticated;
            let may_send = |domain: &str| authenticated.contains(domain);
            if let Err(condition) = self.hub.deliver(element, xml, SERVER, may_send).await {
                self.fail(condition).await?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// SASL EXTERNAL as the receiving server. A failure leaves the stream open for dialback.
    async fn authenticate(&mut self, auth: &Element) -> Result<(), SimulatorError> {
        let is_name_right = match auth.text.trim() {
            "" | "=" => true,
            authzid => STANDARD
                .decode(authzid)
                .is_ok_and(|authzid| authzid == self.from.as_bytes()),
        };
        let condition = if auth.attribute("mechanism") != Some("EXTERNAL") {
            Some("invalid-mechanism")
        } else if !is_name_right {
            Some("invalid-authzid")
        } else if !self.trusted {
            Some("not-authorized")
        } else {
            None
        };
        if let Some(condition) = condition {
            let failure = format!("<failure xmlns='{SASL}'><{condition}/></failure>");
            return self.stream.write(&failure).await;
        }
        self.admit(self.from.clone());
        self.stream.restart();
        self.stream
            .write(&format!("<success xmlns='{SASL}'/>"))
            .await
    }

    fn admit(&mut self, domain: String) {
        if self.authenticated.is_empty() {
            self.hub.counters.borrow_mut().streams_in += 1;
        }
        self.authenticated.insert(domain);
    }

    /// Dialback as the receiving server: asks the authoritative one, which for all we know is the push
    /// service.
    async fn check_result(&mut self, result: &Element) -> Result<(), SimulatorError> {
        let config = &self.hub.config;
        let (from, to) = (result.attribute("from"), result.attribute("to"));
        let answer = if to != Some(&config.domain) {
            "error"
        } else if from != Some(&config.service) {
            "invalid"
        } else {
            let limit = Duration::from_millis(config.connect_timeout_millis);
            let verified = outbound::verify(self.hub, &self.id, result.text.trim());
            match timeout(limit, verified).await {
                Ok(Ok(true)) => "valid",
                Ok(Ok(false)) => "invalid",
                Ok(Err(_)) | Err(_) => "error",
            }
        };
        if answer == "valid" {
            self.admit(config.service.clone());
        }
        let (from, to) = (from.unwrap_or_default(), to.unwrap_or_default());
        let (from, to) = (escaped(from), escaped(to));
        let error = if answer == "error" {
            "<error type='cancel'>\
             <item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error>"
        } else {
            ""
        };
        self.stream
            .write(&format!(
                "<db:result from='{to}' to='{from}' type='{answer}'>{error}</db:result>"
            ))
            .await
    }

    /// Dialback as the authoritative server: tells whether a key is ours.
    async fn verify(&mut self, verify: &Element) -> Result<(), SimulatorError> {
        let attribute = |name| verify.attribute(name).unwrap_or_default();
        let (from, to, id) = (attribute("from"), attribute("to"), attribute("id"));
        let is_ours = to == self.hub.config.domain
            && verify.text.trim() == self.hub.dialback.key(domain_of(from), to, id);
        let answer = if is_ours { "valid" } else { "invalid" };
        let (from, to, id) = (escaped(from), escaped(to), escaped(id));
        self.stream
            .write(&format!(
                "<db:verify from='{to}' to='{from}' id='{id}' type='{answer}'/>"
            ))
            .await
    }

    async fn fail(&mut self, condition: &str) -> Result<(), SimulatorError> {
        self.stream.write(&stream::error(condition)).await
    }
}
