//! The stream that a peer opens, from its first byte to its end.
//!
//! The session is the real one, with TLS. What is played here is the connection, which is in memory; the
//! authoritative server that dialback asks; the actors behind the session; and time, which jumps to the
//! next timer when nobody has anything to do.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix::{Actor, Addr, Context, Handler};
use messages::{
    Domain, PublishBatch, PushOutcome, Register, Registered, RegistryError, Removed, Secret,
    Unregister,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::oracle::{self, Tree};
use crate::accounts::{Good, Source};
use crate::calls::Errand;
use crate::egress::EgressBatch;
use crate::gate::{AdmitStream, Edges, Lane, Load};
use crate::porch::{Door, Handshake, Shared};
use crate::session::Session;
use crate::stream::ns;
use crate::stream::outbound::{self, Failure};
use crate::stream::resolve::ResolveError;
use crate::stream::tls::Kind;
use crate::{Config, Contacts, DomainConfig, Ingress};

/// The domains served here.
const SERVED: [&str; 2] = ["push.test", "push2.test"];
/// Steps of a script that are played.
const STEPS_MAX: usize = 64;
/// Bytes that are on their way at most.
const PIPE_BYTES: usize = 1 << 16;
/// Silence that shows that nobody has anything to do. No timer of a session is shorter.
const SILENCE: Duration = Duration::from_millis(20);
/// How long the authoritative server takes.
const DELIBERATION: Duration = Duration::from_millis(5);
/// When everything has to be over that nobody waits for.
const PATIENCE: Duration = Duration::from_secs(90);

/// Plays a script: first the letter of the certificate that the peer has, a capital one for direct TLS,
/// then one letter for each step. From a `<` to the end of its line the text itself is a step; `$I` in it is the stream's id,
/// `$K` the right key for it, `$O` a key that we made.
///
/// Nobody speaks for a domain without proof, everything that is sent is well-formed, a stream ends with
/// a stream error or for a reason of the peer's, and no stranger holds one for longer than the limit.
pub fn handshake(data: &[u8]) {
    #[cfg(test)]
    let panics = panics::count();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime starts");
    let (letter, script) = data.split_first().unwrap_or((&b'n', &[]));
    let played = LocalSet::new().block_on(&runtime, play(*letter, script));
    SCENE.take();
    if let Err(failure) = played {
        panic!("{failure}");
    }
    #[cfg(test)]
    assert_eq!(panics, panics::count(), "a task panicked");
}

/// What is true of one run.
struct Scene {
    /// Domains that the peer has proven to be.
    proven: Vec<String>,
    /// Whether the peer was given a key of ours.
    knows_key: bool,
    failures: Vec<String>,
}

impl Scene {
    fn has_proof(&self, domain: &str) -> bool {
        self.proven
            .iter()
            .any(|proven| match proven.strip_prefix("*.") {
                Some(parent) => domain
                    .split_once('.')
                    .is_some_and(|(_, rest)| rest == parent),
                None => proven == domain,
            })
    }
}

thread_local! {
    static SCENE: RefCell<Option<Rc<RefCell<Scene>>>> = const { RefCell::new(None) };
}

/// Stands in for [`outbound::verify`] during a run.
pub(crate) async fn verify(
    ingress: &Ingress,
    local: &Domain,
    remote: &Domain,
    id: &str,
    key: &str,
    errand: &Errand<'_>,
) -> Result<bool, Failure> {
    let Some(scene) = SCENE.with_borrow(Clone::clone) else {
        return outbound::verify(ingress, local, remote, id, key, errand).await;
    };
    sleep(DELIBERATION).await;
    let mut scene = scene.borrow_mut();
    if SERVED.contains(&remote.as_str()) || !SERVED.contains(&local.as_str()) {
        scene
            .failures
            .push("dialback of a domain that is served".into());
    }
    match key {
        "late" => Err(Failure::TimedOut),
        "lost" => Err(Failure::Resolve(ResolveError::NotFound)),
        key if key == right_key(remote.as_str(), local.as_str(), id) => {
            scene.proven.push(remote.as_str().to_owned());
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn right_key(from: &str, to: &str, id: &str) -> String {
    format!("{from} {to} {id}")
}

/// Certificates, keys and what they are used in.
struct World {
    ingress: Ingress,
    nobody: Arc<ClientConfig>,
    /// `chat.test` and its subdomains.
    chat: Arc<ClientConfig>,
    /// `other.test`.
    other: Arc<ClientConfig>,
    /// One of the served domains.
    ours: Arc<ClientConfig>,
    /// `chat.test`, vouched for by nobody.
    self_signed: Arc<ClientConfig>,
}

impl World {
    fn shared() -> &'static Self {
        static WORLD: OnceLock<World> = OnceLock::new();
        WORLD.get_or_init(Self::new)
    }

    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = authority.self_signed(&key).unwrap();
        let ca_file = folder.path().join("ca.pem");
        std::fs::write(&ca_file, root.pem()).unwrap();
        let issuer = Issuer::new(authority, key);
        let domains = SERVED.map(|name| {
            let key = KeyPair::generate().unwrap();
            let leaf = parameters(&[name]).signed_by(&key, &issuer).unwrap();
            let file = |extension| folder.path().join([name, extension].concat());
            std::fs::write(file(".crt"), leaf.pem()).unwrap();
            std::fs::write(file(".key"), key.serialize_pem()).unwrap();
            DomainConfig {
                name: name.to_owned(),
                certificate: Some(file(".crt")),
                key: Some(file(".key")),
                apps: vec!["app".to_owned()],
                contacts: Contacts::default(),
                disclosure: messages::Disclosure::Nothing,
            }
        });
        let config = Config {
            system_roots: false,
            ca_files: vec![ca_file],
            dialback_secret_file: folder.path().join("dialback.secret"),
            ..Config::default()
        };
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        let client = |names: &[&str], issuer: Option<&Issuer<'_, KeyPair>>| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots.clone());
            if names.is_empty() {
                return Arc::new(builder.with_no_client_auth());
            }
            let key = KeyPair::generate().unwrap();
            let leaf = match issuer {
                Some(issuer) => parameters(names).signed_by(&key, issuer).unwrap(),
                None => parameters(names).self_signed(&key).unwrap(),
            };
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
            let chain = vec![leaf.der().clone()];
            Arc::new(builder.with_client_auth_cert(chain, key).unwrap())
        };
        Self {
            ingress: Ingress::prepare(&config, &domains, "1.2.3").unwrap(),
            nobody: client(&[], None),
            chat: client(&["chat.test", "*.chat.test"], Some(&issuer)),
            other: client(&["other.test"], Some(&issuer)),
            ours: client(&[SERVED[0]], Some(&issuer)),
            self_signed: client(&["chat.test"], None),
        }
    }

    /// TLS of the peer, and the domains that its certificate proves.
    fn certificate(&self, letter: u8) -> (&Arc<ClientConfig>, &'static [&'static str]) {
        match letter {
            b't' => (&self.chat, &["chat.test", "*.chat.test"]),
            b'o' => (&self.other, &["other.test"]),
            b'p' => (&self.ours, &[]),
            b's' => (&self.self_signed, &[]),
            _ => (&self.nobody, &[]),
        }
    }
}

fn parameters(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    CertificateParams::new(names).unwrap()
}

async fn play(letter: u8, script: &[u8]) -> Result<(), String> {
    let world = World::shared();
    let (tls, proven) = world.certificate(letter.to_ascii_lowercase());
    let kind = match letter.is_ascii_uppercase() {
        true => Kind::Direct,
        false => Kind::StartTls,
    };
    let scene = Rc::new(RefCell::new(Scene {
        proven: proven.iter().map(ToString::to_string).collect(),
        knows_key: false,
        failures: Vec::new(),
    }));
    SCENE.set(Some(Rc::clone(&scene)));
    let (near, far) = duplex(PIPE_BYTES);
    let received = receive(&world.ingress, &scene, far, kind);
    let mut peer = Peer {
        pipe: Pipe::Clear(near),
        tls: Arc::clone(tls),
        scene: Rc::clone(&scene),
        heard: Vec::new(),
        ended: false,
        provoked: false,
    };
    if kind == Kind::Direct {
        peer.secure().await;
    }
    for step in steps(script).take(STEPS_MAX) {
        peer.step(step).await;
    }
    peer.listen(SILENCE).await;
    let authenticated = peer.check()?;
    if !authenticated && !peer.provoked {
        let limit = world.ingress.config().authentication_timeout();
        peer.listen(limit + PATIENCE).await;
        if !peer.ended {
            return Err("a stranger holds its stream for longer than the limit".into());
        }
        peer.check()?;
    }
    drop(peer);
    let over = async {
        while !received.is_over() {
            sleep(SILENCE).await;
        }
    };
    if timeout(PATIENCE, over).await.is_err() {
        return Err("a stream outlives its connection".into());
    }
    let scene = scene.borrow();
    match scene.failures.first() {
        Some(failure) => Err(failure.clone()),
        None => Ok(()),
    }
}

/// A connection that was handed over.
struct Received {
    handshake: JoinHandle<()>,
    load: Load,
    /// That of the stream, once there is one.
    session: Rc<OnceCell<Addr<Session>>>,
}

impl Received {
    fn is_over(&self) -> bool {
        let session = self.session.get();
        self.handshake.is_finished()
            && self.load.get() == 0
            && session.is_none_or(|session| !session.connected())
    }
}

/// Starts the session of a stream as a gate does.
struct Inside {
    lane: Rc<Lane>,
    session: Rc<OnceCell<Addr<Session>>>,
}

impl Actor for Inside {
    type Context = Context<Self>;
}

impl Handler<AdmitStream> for Inside {
    type Result = ();

    fn handle(&mut self, admitted: AdmitStream, _: &mut Self::Context) {
        let session = Session::start(Rc::clone(&self.lane), admitted);
        assert!(self.session.set(session).is_ok(), "one stream");
    }
}

/// Takes a connection as the porch does.
fn receive(
    ingress: &Ingress,
    scene: &Rc<RefCell<Scene>>,
    socket: DuplexStream,
    kind: Kind,
) -> Received {
    let behind = Behind(Rc::clone(scene)).start();
    let load = Load::default();
    let edges = Edges {
        publish: behind.clone().recipient(),
        register: behind.clone().recipient(),
        unregister: behind.clone().recipient(),
        privacy: None,
        egress: vec![behind.recipient()],
    };
    let lane = Rc::new(Lane::new(ingress, edges, load.clone()));
    let address = ([192, 0, 2, 1], 40_000).into();
    let account = ingress.account(Source::address(std::net::SocketAddr::ip(&address)));
    let place = account.take_revocable(Good::Streams).unwrap();
    let session = Rc::<OnceCell<_>>::default();
    let inside = Inside {
        lane,
        session: Rc::clone(&session),
    };
    let door = Door {
        admit: inside.start().recipient(),
        load: load.clone(),
    };
    let shared = Rc::new(Shared::new(ingress, vec![door]));
    let handshake = Handshake::new(shared, address, place).run(Box::new(socket), kind, address);
    Received {
        handshake: actix_rt::spawn(handshake),
        load,
        session,
    }
}

/// The actors behind the session. They answer at once.
struct Behind(Rc<RefCell<Scene>>);

impl Behind {
    /// Notes when somebody acts who has not proven who it is.
    fn check(&self, domain: &Domain, service: &Domain) {
        let mut scene = self.0.borrow_mut();
        if !scene.has_proof(domain.as_str()) || !SERVED.contains(&service.as_str()) {
            scene.failures.push("somebody acts without proof".into());
        }
    }
}

impl Actor for Behind {
    type Context = Context<Self>;
}

impl Handler<PublishBatch> for Behind {
    type Result = ();

    fn handle(&mut self, batch: PublishBatch, _: &mut Self::Context) {
        for item in &batch.items {
            self.check(&item.domain, &item.service);
        }
        let accepted = |item: &messages::Publish| (item.ticket, PushOutcome::Accepted);
        batch
            .origin
            .tell(batch.items.iter().map(accepted).collect());
    }
}

impl Handler<Register> for Behind {
    type Result = Result<Registered, RegistryError>;

    fn handle(&mut self, register: Register, _: &mut Self::Context) -> Self::Result {
        self.check(register.account.domain(), &register.service);
        Ok(Registered {
            node: register.node,
            secret: Secret::new("secret").unwrap(),
        })
    }
}

impl Handler<Unregister> for Behind {
    type Result = Result<Removed, RegistryError>;

    fn handle(&mut self, unregister: Unregister, _: &mut Self::Context) -> Self::Result {
        self.check(unregister.account.domain(), &unregister.service);
        Ok(Removed { count: 1 })
    }
}

impl Handler<EgressBatch> for Behind {
    type Result = ();

    fn handle(&mut self, batch: EgressBatch, _: &mut Self::Context) {
        let batch = batch.answers;
        self.check(&batch.remote, &batch.local);
        let stanzas = String::from_utf8(batch.stanzas).expect("answers are UTF-8");
        let answers = oracle::children(&[super::HEADER, &stanzas].concat());
        assert_eq!(answers.len() as u64, batch.replies, "answers are counted");
        for (_, answer) in answers {
            assert!(answer.is("iq", ns::SERVER));
            let kind = answer.attribute("type");
            assert!(matches!(kind, Some("result" | "error")));
        }
    }
}

/// Cuts a script into steps: a letter, or a line that begins with `<`.
fn steps(script: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = script;
    std::iter::from_fn(move || {
        while let Some((b'\n', behind)) = rest.split_first() {
            rest = behind;
        }
        let len = match rest.first()? {
            b'<' => rest
                .iter()
                .position(|byte| *byte == b'\n')
                .unwrap_or(rest.len()),
            _ => 1,
        };
        let (step, behind) = rest.split_at(len);
        rest = behind;
        Some(step)
    })
}

const OPEN: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:server' \
    xmlns:stream='http://etherx.jabber.org/streams' xmlns:db='jabber:server:dialback'";

/// What a letter stands for. The last ones are no text.
fn text(step: u8) -> Option<String> {
    let header = |addresses: &str| format!("{OPEN} {addresses} version='1.0'>");
    let auth = |identity: &str| {
        format!(
            "<auth xmlns='{}' mechanism='EXTERNAL'>{identity}</auth>",
            ns::SASL
        )
    };
    let claim = |from: &str, key: &str| {
        format!("<db:result from='{from}' to='push.test'>{key}</db:result>")
    };
    let iq = |from: &str, content: &str| {
        format!("<iq type='set' id='1' from='{from}' to='push.test'>{content}</iq>")
    };
    const PUBLISH: &str = "<pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='n'><item>\
        <notification xmlns='urn:xmpp:push:0'/></item></publish></pubsub>";
    Some(match step {
        b'H' => header("from='chat.test' to='push.test'"),
        b'h' => header("from='chat.test' to='push2.test'"),
        b'O' => header("from='other.test' to='push.test'"),
        b'N' => header("to='push.test'"),
        b'n' => header("from='push.test' to='push.test'"),
        b'U' => header("from='chat.test' to='unknown.test'"),
        b'S' => format!("<starttls xmlns='{}'/>", ns::TLS),
        b'E' => auth("="),
        b'B' => auth("Y2hhdC50ZXN0"),
        b'X' => auth("b3RoZXIudGVzdA=="),
        b'M' => auth(""),
        b'R' => format!("<response xmlns='{}'>=</response>", ns::SASL),
        b'A' => format!("<abort xmlns='{}'/>", ns::SASL),
        b'D' => claim("chat.test", "chat.test push.test $I"),
        b'd' => claim("sub.chat.test", "sub.chat.test push.test $I"),
        b'G' => claim("other.test", "other.test push.test $I"),
        b'F' => claim("chat.test", "false"),
        b'I' => claim("chat.test", "late"),
        b'i' => claim("other.test", "lost"),
        b'J' => claim("push2.test", "push2.test push.test $I"),
        b'Y' => "<db:result from='chat.test' to='push.test' type='valid'/>".to_owned(),
        b'y' => "<db:verify id='$I' from='chat.test' to='push.test' type='valid'/>".to_owned(),
        b'V' => "<db:verify id='sid' from='chat.test' to='push.test'>$O</db:verify>".to_owned(),
        b'v' => "<db:verify id='sid' from='chat.test' to='push.test'>false</db:verify>".to_owned(),
        b'P' => iq("chat.test", PUBLISH),
        b'p' => iq("ada@chat.test", PUBLISH),
        b'Q' => iq("other.test", PUBLISH),
        b'C' => iq(
            "ada@chat.test",
            "<command xmlns='http://jabber.org/protocol/commands' node='v1-unregister-push'>\
             <x xmlns='jabber:x:data'><field var='type'><value>apns</value></field>\
             <field var='node'><value>n</value></field></x></command>",
        ),
        b'K' => iq("chat.test", "<ping xmlns='urn:xmpp:ping'/>").replace("'set'", "'get'"),
        b'b' => "<bidi xmlns='urn:xmpp:bidi'/>".to_owned(),
        b'L' => " ".to_owned(),
        b'e' => format!(
            "<stream:error><reset xmlns='{}'/></stream:error>",
            ns::STREAM_ERRORS
        ),
        b'Z' => "</stream:stream>".to_owned(),
        _ => return None,
    })
}

enum Pipe {
    Clear(DuplexStream),
    Tls(Box<TlsStream<DuplexStream>>),
    Gone,
}

struct Peer {
    pipe: Pipe,
    tls: Arc<ClientConfig>,
    scene: Rc<RefCell<Scene>>,
    /// What came since the connection was made or secured.
    heard: Vec<u8>,
    /// Whether the other side has no more to say.
    ended: bool,
    /// Whether the peer did what ends a stream without a stream error.
    provoked: bool,
}

impl Peer {
    async fn step(&mut self, step: &[u8]) {
        match step {
            b"T" => self.proceed().await,
            b"W" => self.listen(SILENCE).await,
            b"c" => {
                self.listen(SILENCE).await;
                self.provoked = true;
                self.pipe = Pipe::Gone;
            }
            [letter] => {
                if let Some(text) = text(*letter) {
                    self.say(text.as_bytes()).await;
                }
            }
            text => self.say(text).await,
        }
    }

    async fn say(&mut self, text: &[u8]) {
        let text = self.fill_in(text).await;
        self.provoked |= has(&text, b"</stream") || has(&text, b"error");
        let said = async {
            match &mut self.pipe {
                Pipe::Clear(pipe) => pipe.write_all(&text).await,
                Pipe::Tls(pipe) => {
                    pipe.write_all(&text).await?;
                    pipe.flush().await
                }
                Pipe::Gone => Ok(()),
            }
        };
        // That the other side is gone shows when listening.
        let _ = timeout(PATIENCE, said).await;
    }

    /// Puts in what only a run knows.
    async fn fill_in(&mut self, text: &[u8]) -> Vec<u8> {
        if !text.contains(&b'$') {
            return text.to_vec();
        }
        self.listen(SILENCE).await;
        let heard = String::from_utf8_lossy(&self.heard);
        let header = heard
            .rsplit_once("<stream:stream")
            .map_or("", |(_, header)| header);
        let id = header
            .split_once(" id='")
            .and_then(|(_, rest)| rest.split_once('\''));
        let id = id.map_or("", |(id, _)| id);
        let mut text = String::from_utf8_lossy(text).replace("$I", id);
        text = text.replace("$K", &right_key("chat.test", SERVED[0], id));
        if text.contains("$O") {
            self.scene.borrow_mut().knows_key = true;
            let maker = World::shared().ingress.key_maker();
            text = text.replace("$O", &maker.key("chat.test", SERVED[0], "sid"));
        }
        text.into_bytes()
    }

    /// Takes what comes until nothing comes for a time.
    async fn listen(&mut self, silence: Duration) {
        let Self { pipe, heard, .. } = self;
        let mut heard = async || match pipe {
            Pipe::Clear(pipe) => pipe.read_buf(heard).await,
            Pipe::Tls(pipe) => pipe.read_buf(heard).await,
            Pipe::Gone => Ok(0),
        };
        while !self.ended {
            match timeout(silence, heard()).await {
                Ok(Ok(1..)) => {}
                Ok(_) => self.ended = true,
                Err(_) => return,
            }
        }
    }

    /// Takes up TLS when it was told to.
    async fn proceed(&mut self) {
        self.listen(SILENCE).await;
        let proceed = format!("<proceed xmlns='{}'/>", ns::TLS);
        if !self.ended && self.heard.ends_with(proceed.as_bytes()) {
            self.heard.clear();
            self.secure().await;
        }
    }

    async fn secure(&mut self) {
        let Pipe::Clear(pipe) = std::mem::replace(&mut self.pipe, Pipe::Gone) else {
            return;
        };
        let name = ServerName::try_from(SERVED[0]).unwrap();
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        match timeout(PATIENCE, connector.connect(name, pipe)).await {
            Ok(Ok(tls)) => self.pipe = Pipe::Tls(Box::new(tls)),
            // Clear text stood in the way.
            _ => self.provoked = true,
        }
    }

    /// Checks all that was heard. Returns whether the peer was authenticated.
    fn check(&self) -> Result<bool, String> {
        let heard = std::str::from_utf8(&self.heard).map_err(|_| "what was sent is not UTF-8")?;
        let scene = self.scene.borrow();
        let mut authenticated = false;
        let mut own_key = false;
        let mut last = None;
        // One stream after the other.
        for stream in heard.split("<?xml version='1.0'?>").skip(1) {
            for (_, element) in oracle::children(stream) {
                if last
                    .as_ref()
                    .is_some_and(|last: &Tree| last.is("error", ns::STREAMS))
                {
                    return Err("something follows a stream error".into());
                }
                let kind = element.attribute("type");
                if element.is("success", ns::SASL) {
                    authenticated = true;
                    if scene.proven.is_empty() {
                        return Err("success without proof".into());
                    }
                } else if element.is("result", ns::DIALBACK) && kind == Some("valid") {
                    authenticated = true;
                    let domain = element.attribute("to").unwrap_or_default();
                    if !scene.has_proof(domain) {
                        return Err("a dialback without proof is valid".into());
                    }
                } else if element.is("verify", ns::DIALBACK) && kind == Some("valid") {
                    own_key = true;
                }
                last = Some(element);
            }
        }
        if own_key && !scene.knows_key {
            return Err("a key that is not ours is valid".into());
        }
        let proceeds = last
            .as_ref()
            .is_some_and(|last| last.is("proceed", ns::TLS));
        if self.ended && !self.provoked && !proceeds {
            let told = last.is_some_and(|last| last.is("error", ns::STREAMS));
            if !told || !heard.ends_with("</stream:stream>") {
                return Err(format!("a stream ends without a stream error: {heard}"));
            }
        }
        Ok(authenticated)
    }
}

fn has(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Panics of this thread, those in tasks among them, which a runtime keeps to itself.
#[cfg(test)]
mod panics {
    use std::cell::Cell;
    use std::panic;
    use std::sync::Once;

    thread_local! {
        static COUNT: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn count() -> usize {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let report = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                COUNT.set(COUNT.get() + 1);
                report(info);
            }));
        });
        COUNT.get()
    }
}
