//! A scripted XMPP server, on streams it opens and on streams it accepts.

use std::panic::Location;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::ServerName;
use testkit::PATIENCE;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::world::{Identity, Service, World};

pub(crate) const STARTTLS: &str = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
pub(crate) const PROCEED: &str = "<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
pub(crate) const SUCCESS: &str = "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>";
pub(crate) const FAILURE: &str =
    "<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><not-authorized/></failure>";
pub(crate) const OFFER_TLS: &str = "<stream:features>\
    <starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls></stream:features>";
pub(crate) const OFFER_EXTERNAL: &str = "<stream:features>\
    <mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>EXTERNAL</mechanism></mechanisms>\
    <dialback xmlns='urn:xmpp:features:dialback'><errors/></dialback></stream:features>";
pub(crate) const OFFER_DIALBACK: &str = "<stream:features>\
    <dialback xmlns='urn:xmpp:features:dialback'/></stream:features>";
pub(crate) const OFFER_NOTHING: &str = "<stream:features/>";

/// An opening header as ejabberd writes it.
pub(crate) fn header(from: &str, to: &str) -> String {
    format!(
        "<?xml version='1.0'?><stream:stream version='1.0' xml:lang='en' \
         xmlns:db='jabber:server:dialback' xmlns:stream='http://etherx.jabber.org/streams' \
         to='{to}' from='{from}' xmlns='jabber:server'>"
    )
}

/// A publish as Prosody writes it.
pub(crate) fn publish(id: &str, node: &str) -> String {
    format!(
        "<iq id='{id}' type='set' to='push.test' from='peer.test'>\
         <pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='{node}'><item>\
         <notification xmlns='urn:xmpp:push:0'/></item></publish><publish-options>\
         <x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'>\
         <value>http://jabber.org/protocol/pubsub#publish-options</value></field>\
         <field var='secret'><value>s3cret</value></field></x></publish-options></pubsub></iq>"
    )
}

/// What is told about an accepted publish.
pub(crate) fn result(id: &str) -> String {
    format!("<iq type='result' id='{id}' from='push.test' to='peer.test'/>")
}

/// One end of a stream.
pub(crate) struct Peer<T> {
    io: T,
    unread: Vec<u8>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Peer<T> {
    pub(crate) const fn new(io: T) -> Self {
        Self {
            io,
            unread: Vec::new(),
        }
    }

    pub(crate) fn into_io(self) -> T {
        self.io
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.io.write_all(text.as_bytes()).await.unwrap();
        self.io.flush().await.unwrap();
    }

    /// Sends to somebody who may have gone. Returns whether it could be sent.
    pub(crate) async fn offer(&mut self, text: &str) -> bool {
        let sent = self.io.write_all(text.as_bytes()).await;
        sent.is_ok() && self.io.flush().await.is_ok()
    }

    /// Sends `text` over and over, reading nothing, until the service hangs up.
    pub(crate) async fn flood(&mut self, text: &str) {
        let flood = async { while self.io.write_all(text.as_bytes()).await.is_ok() {} };
        timeout(PATIENCE, flood).await.expect("no end");
    }

    /// Sends `text` over and over, reading nothing, until nothing more is taken for a second.
    pub(crate) async fn stuff(&mut self, text: &str) {
        let second = std::time::Duration::from_secs(1);
        while let Ok(sent) = timeout(second, self.io.write_all(text.as_bytes())).await {
            sent.unwrap();
        }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.unread).unwrap()
    }

    /// Reads until `done` finds how many bytes to take.
    async fn read(
        &mut self,
        caller: &Location<'_>,
        done: impl Fn(&str) -> Option<usize>,
    ) -> String {
        loop {
            if let Some(len) = done(self.text()) {
                return String::from_utf8(self.unread.drain(..len).collect()).unwrap();
            }
            let read = timeout(PATIENCE, self.io.read_buf(&mut self.unread)).await;
            match read {
                Ok(Ok(1..)) => {}
                other => panic!("{caller}: {other:?} after {:?}", self.text()),
            }
        }
    }

    /// Takes exactly `text`.
    #[track_caller]
    pub(crate) fn expect<'a>(&'a mut self, text: &'a str) -> impl Future<Output = ()> + 'a {
        let caller = Location::caller();
        async move {
            let got = self
                .read(caller, |unread| {
                    let differs = !unread.starts_with(text) && !text.starts_with(unread);
                    (differs || unread.len() >= text.len()).then(|| text.len().min(unread.len()))
                })
                .await;
            assert_eq!(got, text, "{caller}");
        }
    }

    /// Takes everything up to and with `end`.
    #[track_caller]
    pub(crate) fn until<'a>(&'a mut self, end: &'a str) -> impl Future<Output = String> + 'a {
        let caller = Location::caller();
        self.read(caller, move |unread| {
            unread.find(end).map(|at| at + end.len())
        })
    }

    /// Takes a stream error of that condition, which has to be the last thing of the stream.
    #[track_caller]
    pub(crate) fn expect_error<'a>(
        &'a mut self,
        condition: &'a str,
    ) -> impl Future<Output = ()> + 'a {
        let caller = Location::caller();
        async move {
            let rest = self.rest(caller).await;
            let expected =
                format!("<stream:error><{condition} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>");
            assert!(rest.starts_with(&expected), "{caller}: {rest}");
            assert!(
                rest.ends_with("</stream:error></stream:stream>"),
                "{caller}: {rest}"
            );
        }
    }

    /// Takes what comes until the end of the stream.
    async fn rest(&mut self, caller: &Location<'_>) -> String {
        loop {
            match timeout(PATIENCE, self.io.read_buf(&mut self.unread)).await {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(_)) => {}
                Err(_) => panic!("{caller}: the stream does not end after {:?}", self.text()),
            }
        }
        let rest = self.text().to_owned();
        self.unread.clear();
        rest
    }

    /// The connection ends, after whatever comes before.
    #[track_caller]
    pub(crate) fn closed(&mut self) -> impl Future<Output = ()> + '_ {
        let caller = Location::caller();
        async move {
            loop {
                self.unread.clear();
                match timeout(PATIENCE, self.io.read_buf(&mut self.unread)).await {
                    Ok(Ok(0) | Err(_)) => return,
                    Ok(Ok(_)) => {}
                    Err(_) => panic!("{caller}: the connection does not end"),
                }
            }
        }
    }

    /// Whether anything comes before the connection ends.
    pub(crate) async fn is_answered(&mut self) -> bool {
        match timeout(PATIENCE, self.io.read_buf(&mut self.unread)).await {
            Ok(read) => matches!(read, Ok(1..)),
            Err(_) => panic!("neither an answer nor an end"),
        }
    }

    /// The stream ends with exactly `text`.
    #[track_caller]
    pub(crate) fn expect_end<'a>(&'a mut self, text: &'a str) -> impl Future<Output = ()> + 'a {
        let caller = Location::caller();
        async move { assert_eq!(self.rest(caller).await, text, "{caller}") }
    }
}

/// The value of an attribute in the first tag that has it.
pub(crate) fn attribute(text: &str, name: &str) -> String {
    let start = format!(" {name}='");
    let from = text
        .find(&start)
        .unwrap_or_else(|| panic!("no {name} in {text}"))
        + start.len();
    let to = from + text[from..].find('\'').unwrap();
    text[from..to].to_owned()
}

/// The text of the first element with that name.
pub(crate) fn content(text: &str, name: &str) -> String {
    let element = &text[text.find(&format!("<{name} ")).unwrap()..];
    let inside = &element[element.find('>').unwrap() + 1..];
    inside[..inside.find('<').unwrap()].to_owned()
}

pub(crate) type Caller = Peer<client::TlsStream<TcpStream>>;
pub(crate) type Callee = Peer<server::TlsStream<TcpStream>>;

/// A stream to the service, with the header and features of the service after TLS.
pub(crate) struct Called {
    pub(crate) peer: Caller,
    pub(crate) id: String,
    pub(crate) features: String,
}

/// Connects from an address of this machine.
pub(crate) async fn connect_at(service: &Service, address: u8) -> Peer<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, address], 0).into()).unwrap();
    Peer::new(socket.connect(service.address).await.unwrap())
}

/// Connects and takes the features in clear text.
pub(crate) async fn connect(service: &Service, from: &str, to: &str) -> Peer<TcpStream> {
    begin(connect_at(service, 1).await, from, to).await
}

async fn begin(mut peer: Peer<TcpStream>, from: &str, to: &str) -> Peer<TcpStream> {
    peer.send(&header(from, to)).await;
    let answer = peer.until("</stream:features>").await;
    assert_eq!(attribute(&answer, "from"), to);
    assert!(answer.ends_with(OFFER_TLS), "{answer}");
    peer
}

/// Asks for TLS and shakes hands.
pub(crate) async fn start_tls(
    mut peer: Peer<TcpStream>,
    world: &World,
    identity: Option<&Identity>,
    to: &str,
) -> Caller {
    peer.send(STARTTLS).await;
    handshake(peer, world, identity, to).await
}

/// Shakes hands. Like Prosody and jabberd2, it names no server in it.
pub(crate) async fn handshake(
    mut peer: Peer<TcpStream>,
    world: &World,
    identity: Option<&Identity>,
    to: &str,
) -> Caller {
    peer.expect(PROCEED).await;
    let tls = TlsConnector::from(world.client_tls(identity, false));
    let name = ServerName::try_from(to.to_owned()).unwrap();
    Peer::new(tls.connect(name, peer.io).await.unwrap())
}

/// Opens a stream as `from`, up to the features after TLS.
pub(crate) async fn call(
    service: &Service,
    world: &World,
    identity: Option<&Identity>,
    from: &str,
    to: &str,
) -> Called {
    call_at(service, world, 1, identity, from, to).await
}

/// The same from another address of this machine.
pub(crate) async fn call_at(
    service: &Service,
    world: &World,
    address: u8,
    identity: Option<&Identity>,
    from: &str,
    to: &str,
) -> Called {
    let clear = begin(connect_at(service, address).await, from, to).await;
    let mut peer = start_tls(clear, world, identity, to).await;
    peer.send(&header(from, to)).await;
    let opening = peer.until("<stream:features>").await;
    let id = attribute(&opening, "id");
    let features = peer.until("</stream:features>").await;
    Called { peer, id, features }
}

/// Opens a stream from peer.test to push.test and authenticates with a trusted certificate.
pub(crate) async fn authenticated(service: &Service, world: &World) -> Caller {
    authenticated_at(service, world, 1, &["peer.test"]).await
}

/// The same from another address of this machine, with a certificate for these domains as the first of them.
pub(crate) async fn authenticated_at(
    service: &Service,
    world: &World,
    address: u8,
    domains: &[&str],
) -> Caller {
    let identity = world.trusted(domains);
    let domain = domains[0];
    let mut called = call_at(
        service,
        world,
        address,
        Some(&identity),
        domain,
        "push.test",
    )
    .await;
    let peer = &mut called.peer;
    peer.send("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>=</auth>")
        .await;
    peer.expect(SUCCESS).await;
    peer.send(&header(domain, "push.test")).await;
    let features = peer.until("</stream:features>").await;
    assert!(!features.contains("EXTERNAL"), "{features}");
    called.peer
}

/// A stream that the service opened.
pub(crate) struct Answered {
    pub(crate) peer: Callee,
    pub(crate) opening: String,
}

/// Accepts a stream from the service, up to our features after TLS, which are `features`.
pub(crate) async fn answer(
    home: &TcpListener,
    world: &World,
    identity: &Identity,
    id: &str,
    features: &str,
) -> Answered {
    answer_as(home, world.server_tls(identity), id, features).await
}

/// The same with a TLS configuration of its own.
pub(crate) async fn answer_as(
    home: &TcpListener,
    tls: Arc<ServerConfig>,
    id: &str,
    features: &str,
) -> Answered {
    let clear = proceed(home).await;
    let peer = Peer::new(TlsAcceptor::from(tls).accept(clear.io).await.unwrap());
    greet(peer, id, features).await
}

/// Accepts a stream from the service that begins with TLS.
pub(crate) async fn answer_direct(
    home: &TcpListener,
    world: &World,
    identity: &Identity,
    id: &str,
    features: &str,
) -> Answered {
    let tls = TlsAcceptor::from(world.server_tls(identity));
    let peer = Peer::new(tls.accept(accept(home).await.io).await.unwrap());
    greet(peer, id, features).await
}

/// Accepts a connection.
pub(crate) async fn accept(home: &TcpListener) -> Peer<TcpStream> {
    let accepted = timeout(PATIENCE, home.accept()).await;
    Peer::new(accepted.expect("no stream").unwrap().0)
}

/// Accepts a stream from the service, up to where TLS begins.
pub(crate) async fn proceed(home: &TcpListener) -> Peer<TcpStream> {
    let mut clear = accept(home).await;
    let opening = clear.until(" xml:lang='en'>").await;
    clear.send(&(reply(&opening, "clear") + OFFER_TLS)).await;
    clear.expect(STARTTLS).await;
    clear.send(PROCEED).await;
    clear
}

async fn greet(mut peer: Callee, id: &str, features: &str) -> Answered {
    let opening = peer.until(" xml:lang='en'>").await;
    // Header and features may come in one segment or in two.
    peer.send(&reply(&opening, id)).await;
    peer.send(features).await;
    Answered { peer, opening }
}

/// The header that answers `opening`.
pub(crate) fn reply(opening: &str, id: &str) -> String {
    header(&attribute(opening, "to"), &attribute(opening, "from"))
        .replace("<stream:stream ", &format!("<stream:stream id='{id}' "))
}

/// Takes the EXTERNAL of push.test and opens the stream.
pub(crate) async fn accept_external(peer: &mut Callee) {
    peer.expect(
        "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>cHVzaC50ZXN0</auth>",
    )
    .await;
    peer.send(SUCCESS).await;
    peer.until(" xml:lang='en'>").await;
    let header = header("peer.test", "push.test");
    peer.send(&(header + OFFER_DIALBACK)).await;
}

/// Accepts a stream from push.test by EXTERNAL.
pub(crate) async fn answer_external(home: &TcpListener, world: &World) -> Callee {
    let identity = world.trusted(&["peer.test"]);
    let mut answered = answer(home, world, &identity, "out-1", OFFER_EXTERNAL).await;
    accept_external(&mut answered.peer).await;
    answered.peer
}

/// The certificate that the service showed to a caller.
pub(crate) fn shown(peer: &Caller) -> Vec<u8> {
    let (_, connection) = peer.io.get_ref();
    connection.peer_certificates().unwrap()[0].to_vec()
}

/// The certificate that the service showed on a stream of its own.
pub(crate) fn shown_by_service(peer: &Callee) -> Vec<u8> {
    let (_, connection) = peer.io.get_ref();
    connection.peer_certificates().unwrap()[0].to_vec()
}

/// The protocol that the service selected.
pub(crate) fn alpn(peer: &Caller) -> Option<String> {
    let (_, connection) = peer.io.get_ref();
    let protocol = connection.alpn_protocol()?;
    Some(String::from_utf8(protocol.to_vec()).unwrap())
}

pub(crate) fn version(peer: &Caller) -> rustls::ProtocolVersion {
    let (_, connection) = peer.io.get_ref();
    connection.protocol_version().unwrap()
}

/// The name and the protocol that the service asked for in the handshake.
pub(crate) fn asked_for(peer: &Callee) -> (Option<&str>, Option<&[u8]>) {
    let (_, connection) = peer.io.get_ref();
    (connection.server_name(), connection.alpn_protocol())
}

/// The client certificate that the service showed.
pub(crate) fn shows_certificate(peer: &Callee) -> bool {
    let (_, connection) = peer.io.get_ref();
    connection
        .peer_certificates()
        .is_some_and(|chain| !chain.is_empty())
}
