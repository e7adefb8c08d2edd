//! A stream that we open to a peer: to answer it ([`open`]), or to ask it for a dialback key
//! ([`verify`]).

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use messages::Domain;
use rustls::SignatureScheme;
use rustls::client::{ClientConfig, ResolvesClientCert};
use rustls::sign::CertifiedKey;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::connect::{Dial, Reached, Unreachable, Way};
use super::framed::Framed;
use super::identity::{self, Untrusted};
use super::limits::PeerLimits;
use super::resolve::{ResolveError, Security};
use super::{Explained, Fault, Stage, Trace, external, ns, open_stream, proof, tls};
use crate::Ingress;
use crate::calls::Errand;
use crate::jid::{self, Host};
use crate::xml::header::StreamHeader;
use crate::xml::stream_error::StreamCondition;
use crate::xml::{Element, write};

/// For so many attempts in their full length there is time, over all targets: whoever owns a name decides how
/// many it has.
const ATTEMPTS_IN_TIME: u32 = 4;

/// Why there is no stream. The text is for the operator's log.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Resolve(#[from] ResolveError),
    #[error("{}", Explained(fault, *stage))]
    Stream { stage: Stage, fault: Fault },
    #[error("it does not offer STARTTLS, which has to be switched on there")]
    NoStartTls,
    #[error("it answered STARTTLS with failure, which mostly means a certificate problem there")]
    StartTlsFailed,
    #[error("peer offered neither EXTERNAL nor dialback: it does not like our certificate")]
    NoMethod,
    #[error("{0}, and xmpp.require_certificates is set")]
    Untrusted(Untrusted),
    #[error("the peer sent the stream error not-authorized: it does not like our certificate")]
    CertificateRefused,
    #[error("it answered our dialback key with {0}")]
    Dialback(&'static str),
    #[error("it could not say whether the key is its own")]
    Undecided,
    #[error("it was silent before it offered a way to authenticate")]
    Silent,
    #[error("it did not answer in time")]
    TimedOut,
    #[error("the domain is not served any more")]
    NotServed,
}

impl Failure {
    /// How far the stream came, where that says more than what was reached before.
    const fn stage(&self) -> Option<Stage> {
        match self {
            Self::Resolve(_) => Some(Stage::Resolve),
            Self::Stream {
                stage: Stage::Connect,
                ..
            } => Some(Stage::Connect),
            _ => None,
        }
    }

    fn at(stage: Stage) -> impl FnOnce(Fault) -> Self {
        move |fault| Self::Stream { stage, fault }
    }

    /// Whether there is no such server, as far as can be told.
    pub(crate) const fn is_permanent(&self) -> bool {
        matches!(self, Self::Resolve(error) if error.is_permanent())
    }

    /// Whether the peer's TLS refused our certificate. In TLS 1.3 that is told after the handshake.
    fn is_certificate_alert(&self) -> bool {
        match self {
            Self::Stream {
                fault: Fault::Io(error),
                ..
            } => tls::is_certificate_alert(error),
            _ => false,
        }
    }

    /// Whether another target of the same domain may do better. A server that is there and refuses us is
    /// the same server elsewhere.
    const fn is_of_target(&self) -> bool {
        match self {
            Self::Resolve(_)
            | Self::NoStartTls
            | Self::StartTlsFailed
            | Self::Untrusted(_)
            | Self::Silent => true,
            Self::Stream { stage, fault } => match fault {
                Fault::PeerError(condition) => is_of_host(*condition),
                _ => !matches!(stage, Stage::Authentication | Stage::Open),
            },
            Self::NoMethod
            | Self::CertificateRefused
            | Self::Dialback(_)
            | Self::Undecided
            | Self::TimedOut
            | Self::NotServed => false,
        }
    }
}

impl From<Unreachable> for Failure {
    fn from(unreachable: Unreachable) -> Self {
        match unreachable {
            Unreachable::Resolve(error) => Self::Resolve(error),
            Unreachable::Connect(error) => Self::at(Stage::Connect)(error.into()),
        }
    }
}

/// Whether a stream error is about the host that sends it. `see-other-host` is not followed: whoever can
/// write it could lead us anywhere.
const fn is_of_host(condition: StreamCondition) -> bool {
    matches!(
        condition,
        StreamCondition::HostGone
            | StreamCondition::HostUnknown
            | StreamCondition::InternalServerError
            | StreamCondition::RemoteConnectionFailed
            | StreamCondition::ResourceConstraint
            | StreamCondition::SeeOtherHost
            | StreamCondition::SystemShutdown
    )
}

/// The TLS stream to a peer.
pub(crate) type Connection = Framed<TlsStream<TcpStream>>;

/// A stream with features received, not authenticated yet.
struct Secured {
    framed: Connection,
    /// The peer's header.
    header: StreamHeader,
    features: Element,
    /// Whether the certificate proves that the peer is who we wanted.
    proven: bool,
    /// Whether the peer was told that it may send on this stream.
    bidirectional: bool,
    round_trip: Duration,
}

/// An authenticated stream.
pub(crate) struct Opened {
    pub(crate) framed: Connection,
    /// How we authenticated.
    method: &'static str,
    pub(crate) limits: PeerLimits,
    /// Whether the peer may send on it (XEP-0288).
    pub(crate) bidirectional: bool,
    /// About how long a word to the peer and its answer take.
    pub(crate) round_trip: Duration,
}

/// How to authenticate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Approach {
    /// With the certificate, and with dialback if that fails.
    Any,
    /// With dialback at once and without a certificate, because the peer ended a stream over ours.
    DialbackOnly,
}

/// What authentication came to.
enum Attempt {
    Done(Box<Opened>),
    /// The peer ended the stream over our certificate.
    RefusedAndEnded,
}

/// Opens a stream from `local` to `remote` and authenticates. Tries one target after another. Reports what
/// came of it, and gives what is known of the stream for the report of its end.
pub(crate) async fn open(
    ingress: &Ingress,
    local: &Domain,
    remote: &Domain,
) -> Result<(Opened, Trace), Failure> {
    let trace = RefCell::new(Trace::from((local, remote)));
    let attempt = async |reached, approach| {
        authenticated(ingress, local, remote, reached, approach, &trace).await
    };
    let way = Way::new(ingress, None);
    let opening = on_each_target(way, remote, async |reached: Reached| {
        let target = reached.target.clone();
        match attempt(reached, Approach::Any).await? {
            Attempt::Done(opened) => return Ok(*opened),
            Attempt::RefusedAndEnded => {}
        }
        let reached = way.reach(target).await?;
        match attempt(reached, Approach::DialbackOnly).await? {
            Attempt::Done(opened) => Ok(*opened),
            Attempt::RefusedAndEnded => Err(Failure::NoMethod),
        }
    });
    let limit = ingress.config().authentication_timeout() * ATTEMPTS_IN_TIME;
    let opened = timeout(limit, opening)
        .await
        .unwrap_or(Err(Failure::TimedOut));
    let mut trace = trace.into_inner();
    match opened {
        Ok(opened) => {
            trace.stage = Stage::Open;
            trace.method = Some(opened.method);
            ingress.outcomes().opened(&trace);
            Ok((opened, trace))
        }
        Err(failure) => {
            if let Some(stage) = failure.stage() {
                trace = Trace::from((local, remote));
                trace.stage = stage;
            }
            ingress.outcomes().failed(&trace, &failure, None);
            Err(failure)
        }
    }
}

/// Asks the server of `remote` whether it made `key` for the stream `id` that somebody opened to us as
/// `remote` (XEP-0220 §2.2). The answer is believed only on the stream that asked.
pub(crate) async fn verify(
    ingress: &Ingress,
    local: &Domain,
    remote: &Domain,
    id: &str,
    key: &str,
    errand: &Errand<'_>,
) -> Result<bool, Failure> {
    let asked = async |reached, approach| {
        let asked = async {
            let trace = RefCell::new(Trace::from((local, remote)));
            let mut secured = secure(ingress, local, remote, reached, approach, &trace).await?;
            let answered = ask(&mut secured.framed, local, remote, id, key).await;
            if let (Ok(Some(true)), Some(address)) = (&answered, trace.into_inner().address) {
                errand.proven(address.ip());
            }
            // Not waited for: the answer is what counts.
            actix_rt::spawn(secured.framed.close(None));
            answered
                .map_err(Failure::at(Stage::Open))?
                .ok_or(Failure::Undecided)
        };
        timeout(ingress.config().authentication_timeout(), asked)
            .await
            .unwrap_or(Err(Failure::TimedOut))
    };
    let way = Way::new(ingress, Some(errand));
    on_each_target(way, remote, async |reached: Reached| {
        let target = reached.target.clone();
        match asked(reached, Approach::Any).await {
            Err(failure) if failure.is_certificate_alert() => {}
            settled => return settled,
        }
        let reached = way.reach(target).await?;
        asked(reached, Approach::DialbackOnly).await
    })
    .await
}

async fn on_each_target<T>(
    way: Way<'_>,
    remote: &Domain,
    attempt: impl AsyncFn(Reached) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let targets = way.resolver.targets(remote).await?;
    let mut dial = Dial::new(way, targets);
    let mut last = None;
    while let Some(reached) = dial.next().await {
        let attempted = match reached {
            Ok(reached) => attempt(reached).await,
            Err(unreachable) => Err(unreachable.into()),
        };
        match attempted {
            Err(failure) if failure.is_of_target() => {
                // One target that may come back makes the whole peer one that may come back.
                if last.is_none() || !failure.is_permanent() {
                    last = Some(failure);
                }
            }
            settled => return settled,
        }
    }
    Err(last.unwrap_or(Failure::Resolve(ResolveError::NotFound)))
}

async fn authenticated(
    ingress: &Ingress,
    local: &Domain,
    remote: &Domain,
    reached: Reached,
    approach: Approach,
    trace: &RefCell<Trace>,
) -> Result<Attempt, Failure> {
    let negotiated = async {
        match secure(ingress, local, remote, reached, approach, trace).await {
            Ok(secured) => authenticate(ingress, local, remote, secured, approach).await,
            Err(failure) if approach == Approach::Any && failure.is_certificate_alert() => {
                Ok(Attempt::RefusedAndEnded)
            }
            Err(failure) => Err(failure),
        }
    };
    timeout(ingress.config().authentication_timeout(), negotiated)
        .await
        .unwrap_or(Err(Failure::TimedOut))
}

/// TLS, at once or by STARTTLS, and the headers and features behind it.
async fn secure(
    ingress: &Ingress,
    local: &Domain,
    remote: &Domain,
    reached: Reached,
    approach: Approach,
    trace: &RefCell<Trace>,
) -> Result<Secured, Failure> {
    let Reached {
        target,
        tcp,
        round_trip,
    } = reached;
    note(trace, Stage::Header, |trace| {
        trace.address = tcp.peer_addr().ok();
        trace.tls = None;
        trace.certificate = None;
    });
    let secured = async {
        let served = ingress.served(local.as_str()).ok_or(Failure::NotServed)?;
        let connector = match approach {
            Approach::Any => served.connector(),
            Approach::DialbackOnly => anonymous(&served.connector()),
        };
        let connector = TlsConnector::from(connector);
        let tcp = match target.security {
            Security::Direct => tcp,
            Security::StartTls => start_tls(ingress, local, remote, tcp, trace).await?,
        };
        let host = Host::of(remote).map_err(|_| ResolveError::NotFound)?;
        let name = identity::server_name(&host).ok_or(ResolveError::NotFound)?;
        note(trace, Stage::Tls, |_| {});
        let handshake = match target.security {
            Security::Direct => connector
                .with_alpn(vec![tls::ALPN.to_vec()])
                .connect(name, tcp),
            Security::StartTls => connector.connect(name, tcp),
        };
        let tls = handshake
            .await
            .map_err(|error| Failure::at(Stage::Tls)(error.into()))?;
        let mut secured = greet(ingress, local, remote, tls, trace).await?;
        secured.round_trip = round_trip;
        Ok(secured)
    };
    timeout(ingress.config().connect_timeout(), secured)
        .await
        .unwrap_or(Err(Failure::Silent))
}

/// The stream in clear text, up to where the TLS handshake begins.
async fn start_tls(
    ingress: &Ingress,
    local: &Domain,
    remote: &Domain,
    tcp: TcpStream,
    trace: &RefCell<Trace>,
) -> Result<TcpStream, Failure> {
    let config = ingress.config();
    let mut clear = Framed::new(tcp, config.limits(), config.write_stall());
    clear.set_allowance(Some(config.bytes_before_authentication_max));
    let (_, features) = hello(&mut clear, local, remote)
        .await
        .map_err(Failure::at(Stage::Header))?;
    note(trace, Stage::StartTls, |_| {});
    if features.child("starttls", ns::TLS).is_none() {
        clear.close(None).await;
        return Err(Failure::NoStartTls);
    }
    let start = async {
        clear
            .send(b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
            .await?;
        clear.element().await
    };
    let answer = start.await.map_err(Failure::at(Stage::StartTls))?;
    match answer.is("proceed", ns::TLS) {
        true => Ok(clear.into_io()),
        false => Err(Failure::StartTlsFailed),
    }
}

/// The peer's certificate, headers and features.
async fn greet(
    ingress: &Ingress,
    local: &Domain,
    remote: &Domain,
    tls: TlsStream<TcpStream>,
    trace: &RefCell<Trace>,
) -> Result<Secured, Failure> {
    let config = ingress.config();
    let (_, connection) = tls.get_ref();
    let version = connection.protocol_version().map(tls::version_name);
    let shown = connection.peer_certificates().unwrap_or_default();
    let verdict = ingress.examine(shown).proves(remote);
    note(trace, Stage::Authentication, |trace| {
        trace.tls = version;
        trace.certificate = Some(proof(&verdict));
    });
    if let (true, Err(untrusted)) = (config.require_certificates, &verdict) {
        return Err(Failure::Untrusted(untrusted.clone()));
    }
    let mut framed = Framed::new(tls, config.limits(), config.write_stall());
    framed.set_allowance(Some(config.bytes_before_authentication_max));
    let (header, features) = match hello(&mut framed, local, remote).await {
        Ok(greeting) => greeting,
        Err(Fault::PeerError(StreamCondition::NotAuthorized)) => {
            return Err(Failure::CertificateRefused);
        }
        Err(fault) => return Err(Failure::at(Stage::Header)(fault)),
    };
    Ok(Secured {
        framed,
        header,
        features,
        proven: verdict.is_ok(),
        bidirectional: false,
        round_trip: Duration::ZERO,
    })
}

/// The same TLS without a certificate of ours.
fn anonymous(connector: &ClientConfig) -> Arc<ClientConfig> {
    let mut anonymous = connector.clone();
    anonymous.client_auth_cert_resolver = Arc::new(NoCertificate);
    Arc::new(anonymous)
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Notes how far a stream came and what is known of it now.
fn note(trace: &RefCell<Trace>, stage: Stage, add: impl FnOnce(&mut Trace)) {
    let mut trace = trace.borrow_mut();
    trace.stage = stage;
    add(&mut trace);
}

/// Sends our header; takes the peer's and its features.
async fn hello<T>(
    framed: &mut Framed<T>,
    local: &Domain,
    remote: &Domain,
) -> Result<(StreamHeader, Element), Fault>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut opening = Vec::new();
    open_stream(&mut opening, local, Some(remote), None);
    framed.send(&opening).await?;
    let header = framed.header().await?;
    header.check()?;
    loop {
        let element = framed.element().await?;
        if element.is("features", ns::STREAMS) {
            return Ok((header, element));
        }
    }
}

async fn authenticate(
    ingress: &Ingress,
    local: &Domain,
    remote: &Domain,
    mut secured: Secured,
    approach: Approach,
) -> Result<Attempt, Failure> {
    let external = secured
        .features
        .child("mechanisms", ns::SASL)
        .is_some_and(|mechanisms| {
            mechanisms
                .elements()
                .any(|mechanism| mechanism.text().trim() == "EXTERNAL")
        });
    let feature = secured
        .features
        .child("dialback", ns::DIALBACK_FEATURE)
        .is_some();
    let declared = secured.header.namespaces.resolve("db") == Some(ns::DIALBACK);
    let at = || Failure::at(Stage::Authentication);

    secured.invite().await.map_err(at())?;
    if external && approach == Approach::Any {
        match present_certificate(&mut secured.framed, local).await {
            Ok(true) => {
                secured.framed.restart();
                let (_, features) = hello(&mut secured.framed, local, remote)
                    .await
                    .map_err(at())?;
                return Ok(secured.opened("EXTERNAL", Some(&features)));
            }
            Ok(false) if feature || declared => {}
            Ok(false) => return Ok(Attempt::RefusedAndEnded),
            // Some end the stream instead of saying failure.
            Err(_) if feature || declared => return Ok(Attempt::RefusedAndEnded),
            Err(fault) => return Err(at()(fault)),
        }
        // The peer may close the stream after its refusal, before or after it reads our key.
        return match prove_by_dialback(ingress, &mut secured, local, remote).await {
            Ok(()) => Ok(secured.opened("dialback after EXTERNAL was refused", None)),
            Err(Failure::Stream { .. }) => Ok(Attempt::RefusedAndEnded),
            Err(failure) => Err(failure),
        };
    }
    if !(feature || (declared && approach == Approach::DialbackOnly)) {
        secured.framed.close(None).await;
        return Err(Failure::NoMethod);
    }
    match prove_by_dialback(ingress, &mut secured, local, remote).await {
        Ok(()) => Ok(secured.opened("dialback", None)),
        Err(failure) => {
            // Not waited for: there is nothing more to hear.
            actix_rt::spawn(secured.framed.close(None));
            Err(failure)
        }
    }
}

impl Secured {
    /// Lets the peer send on this stream, if it would and its certificate proves who it is: dialback proves
    /// us to it, not it to us.
    async fn invite(&mut self) -> Result<(), Fault> {
        let offered = self.features.child("bidi", ns::BIDI_FEATURE).is_some();
        self.bidirectional = offered && self.proven;
        if self.bidirectional {
            let request = b"<bidi xmlns='urn:xmpp:bidi'/>";
            self.framed.send(request).await?;
        }
        Ok(())
    }

    /// `features` are those after a restart, if there was one.
    fn opened(mut self, method: &'static str, features: Option<&Element>) -> Attempt {
        self.framed.set_allowance(None);
        let limits = features.map(PeerLimits::of).unwrap_or_default();
        Attempt::Done(Box::new(Opened {
            framed: self.framed,
            method,
            bidirectional: self.bidirectional,
            round_trip: self.round_trip,
            limits: limits.or(PeerLimits::of(&self.features)),
        }))
    }
}

/// SASL EXTERNAL. Returns whether the peer accepted.
async fn present_certificate(framed: &mut Connection, local: &Domain) -> Result<bool, Fault> {
    let identity = external::identity(local);
    let mut request = Vec::new();
    let attributes = [("xmlns", ns::SASL), ("mechanism", "EXTERNAL")];
    write::element(&mut request, "auth", &attributes, |out| {
        write::text(out, &identity);
    });
    framed.send(&request).await?;
    loop {
        let answer = framed.element().await?;
        match (answer.namespace(), answer.name()) {
            (ns::SASL, "success") => return Ok(true),
            (ns::SASL, "failure") => return Ok(false),
            (ns::SASL, "challenge") => {
                let mut response = Vec::new();
                write::element(&mut response, "response", &[("xmlns", ns::SASL)], |out| {
                    write::text(out, &identity);
                });
                framed.send(&response).await?;
            }
            _ => {}
        }
    }
}

/// Originating server: sends a key and waits until the peer has asked us about it, on a stream of its
/// own or on one it has (XEP-0220 §2.1).
async fn prove_by_dialback(
    ingress: &Ingress,
    secured: &mut Secured,
    local: &Domain,
    remote: &Domain,
) -> Result<(), Failure> {
    let id = secured.header.id.as_deref().unwrap_or_default();
    let key = ingress.key_maker().key(remote.as_str(), local.as_str(), id);
    let exchange = async {
        let mut claim = Vec::new();
        let attributes = [("from", local.as_str()), ("to", remote.as_str())];
        write::element(&mut claim, "db:result", &attributes, |out| {
            write::text(out, &key);
        });
        secured.framed.send(&claim).await?;
        loop {
            let answer = secured.framed.element().await?;
            if answer.is("result", ns::DIALBACK) && is_between(&answer, remote, local) {
                return Ok(answer.attribute("type").map(str::to_owned));
            }
        }
    };
    match exchange
        .await
        .map_err(Failure::at(Stage::Authentication))?
        .as_deref()
    {
        Some("valid") => Ok(()),
        Some("invalid") => Err(Failure::Dialback("invalid")),
        _ => Err(Failure::Dialback("an error")),
    }
}

/// Receiving server: asks the authoritative one. `None` when that answers with an error, which says nothing
/// of the key (XEP-0220 §2.4).
async fn ask(
    framed: &mut Connection,
    local: &Domain,
    remote: &Domain,
    id: &str,
    key: &str,
) -> Result<Option<bool>, Fault> {
    let mut question = Vec::new();
    let attributes = [
        ("from", local.as_str()),
        ("to", remote.as_str()),
        ("id", id),
    ];
    write::element(&mut question, "db:verify", &attributes, |out| {
        write::text(out, key);
    });
    framed.send(&question).await?;
    loop {
        let answer = framed.element().await?;
        let ours = answer.is("verify", ns::DIALBACK)
            && is_between(&answer, remote, local)
            && answer.attribute("id") == Some(id);
        if ours {
            return Ok(match answer.attribute("type") {
                Some("valid") => Some(true),
                Some("error") => None,
                _ => Some(false),
            });
        }
    }
}

fn is_between(element: &Element, from: &Domain, to: &Domain) -> bool {
    let is = |name, domain| {
        element
            .attribute(name)
            .is_some_and(|text| jid::is_domain(text, domain))
    };
    is("from", from) && is("to", to)
}
