//! A stream that we open to a peer: to answer it ([`open`]), or to ask it for a dialback key
//! ([`verify`]).

use messages::Domain;
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::connect::connect;
use super::framed::Framed;
use super::identity::{self, Untrusted};
use super::resolve::{ResolveError, Target};
use super::{Fault, Stage, external, ns, open_stream};
use crate::Ingress;
use crate::jid::{self, Host};
use crate::xml::header::StreamHeader;
use crate::xml::{Element, write};

/// Why there is no stream. The text is for the operator's log.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Resolve(#[from] ResolveError),
    #[error("{}: {fault}", stage.as_str())]
    Stream { stage: Stage, fault: Fault },
    #[error("starttls: it does not offer STARTTLS, which has to be switched on there")]
    NoStartTls,
    #[error("starttls: it answered with failure, which mostly means a certificate problem there")]
    StartTlsFailed,
    #[error(
        "authentication: peer offered neither EXTERNAL nor dialback: it does not like our certificate"
    )]
    NoMethod,
    #[error("authentication: it answered our dialback key with {0}")]
    Dialback(&'static str),
    #[error("it did not answer in time")]
    TimedOut,
    #[error("the domain is not served any more")]
    NotServed,
}

impl Failure {
    fn at(stage: Stage) -> impl FnOnce(Fault) -> Self {
        move |fault| Self::Stream { stage, fault }
    }
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
    verdict: Result<(), Untrusted>,
}

/// An authenticated stream.
pub(crate) struct Opened {
    pub(crate) framed: Connection,
    /// Whether the peer's certificate proves the peer; dialback alone proves less.
    pub(crate) verdict: Result<(), Untrusted>,
    /// How we authenticated.
    pub(crate) method: &'static str,
}

/// How to authenticate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Approach {
    /// With the certificate, and with dialback if that fails.
    Any,
    /// With dialback at once, because the peer ended a stream over our certificate.
    DialbackOnly,
}

/// What authentication came to.
enum Attempt {
    Done(Box<Opened>),
    /// The peer refused EXTERNAL and ended the stream.
    RefusedAndEnded,
}

/// Opens a stream from `local` to `remote` and authenticates. Tries one target after another.
pub(crate) async fn open(
    ingress: &Ingress,
    local: &Domain,
    remote: &Domain,
) -> Result<Opened, Failure> {
    on_each_target(ingress, remote, async |target| {
        match authenticated(ingress, local, remote, target, Approach::Any).await? {
            Attempt::Done(opened) => return Ok(*opened),
            Attempt::RefusedAndEnded => {}
        }
        match authenticated(ingress, local, remote, target, Approach::DialbackOnly).await? {
            Attempt::Done(opened) => Ok(*opened),
            Attempt::RefusedAndEnded => Err(Failure::NoMethod),
        }
    })
    .await
}

/// Asks the server of `remote` whether it made `key` for the stream `id` that somebody opened to us as
/// `remote` (XEP-0220 §2.2). The answer is believed only on the stream that asked.
pub(crate) async fn verify(
    ingress: &Ingress,
    local: &Domain,
    remote: &Domain,
    id: &str,
    key: &str,
) -> Result<bool, Failure> {
    on_each_target(ingress, remote, async |target| {
        let asked = async {
            let mut secured = secure(ingress, local, remote, target).await?;
            let answered = ask(&mut secured.framed, local, remote, id, key).await;
            // Not waited for: the answer is what counts.
            actix_rt::spawn(secured.framed.close(None));
            answered.map_err(Failure::at(Stage::Open))
        };
        timeout(ingress.config().authentication_timeout(), asked)
            .await
            .unwrap_or(Err(Failure::TimedOut))
    })
    .await
}

async fn on_each_target<T>(
    ingress: &Ingress,
    remote: &Domain,
    attempt: impl AsyncFn(&Target) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut last = Failure::Resolve(ResolveError::NotFound);
    for target in ingress.resolver().targets(remote).await? {
        match attempt(&target).await {
            Ok(done) => return Ok(done),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

async fn authenticated(
    ingress: &Ingress,
    local: &Domain,
    remote: &Domain,
    target: &Target,
    approach: Approach,
) -> Result<Attempt, Failure> {
    let negotiated = async {
        let secured = secure(ingress, local, remote, target).await?;
        authenticate(ingress, local, remote, secured, approach).await
    };
    timeout(ingress.config().authentication_timeout(), negotiated)
        .await
        .unwrap_or(Err(Failure::TimedOut))
}

/// TCP, STARTTLS, TLS, and the headers and features behind it.
async fn secure(
    ingress: &Ingress,
    local: &Domain,
    remote: &Domain,
    target: &Target,
) -> Result<Secured, Failure> {
    let config = ingress.config();
    let served = ingress.served(local.as_str()).ok_or(Failure::NotServed)?;
    let host = Host::of(remote).map_err(|_| ResolveError::NotFound)?;
    let name = identity::server_name(&host).ok_or(ResolveError::NotFound)?;
    let addresses = ingress.resolver().addresses(target).await?;
    let tcp = connect(&addresses, config.connect_timeout())
        .await
        .map_err(|error| Failure::at(Stage::Connect)(error.into()))?;
    tcp.set_nodelay(true)
        .map_err(|error| Failure::at(Stage::Connect)(error.into()))?;

    let limits = config.limits();
    let mut clear = Framed::new(tcp, limits, config.write_stall());
    let (_, features) = hello(&mut clear, local, remote)
        .await
        .map_err(Failure::at(Stage::Header))?;
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
    if !answer.is("proceed", ns::TLS) {
        return Err(Failure::StartTlsFailed);
    }

    let tls = TlsConnector::from(served.connector())
        .connect(name, clear.into_io())
        .await
        .map_err(|error| Failure::at(Stage::Tls)(error.into()))?;
    let chain: Vec<CertificateDer<'static>> = tls
        .get_ref()
        .1
        .peer_certificates()
        .unwrap_or_default()
        .to_vec();
    let verdict = ingress.judge(&chain, remote);
    let mut framed = Framed::new(tls, limits, config.write_stall());
    let (header, features) = hello(&mut framed, local, remote)
        .await
        .map_err(Failure::at(Stage::Authentication))?;
    Ok(Secured {
        framed,
        header,
        features,
        verdict,
    })
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

    if external && approach == Approach::Any {
        match present_certificate(&mut secured.framed, local).await {
            Ok(true) => {
                secured.framed.restart();
                hello(&mut secured.framed, local, remote)
                    .await
                    .map_err(at())?;
                return Ok(secured.opened("EXTERNAL"));
            }
            Ok(false) if feature || declared => {}
            Ok(false) => return Ok(Attempt::RefusedAndEnded),
            Err(fault) => return Err(at()(fault)),
        }
        // The peer may close the stream after its refusal, before or after it reads our key.
        return match prove_by_dialback(ingress, &mut secured, local, remote).await {
            Ok(()) => Ok(secured.opened("dialback after EXTERNAL was refused")),
            Err(Failure::Stream { .. }) => Ok(Attempt::RefusedAndEnded),
            Err(failure) => Err(failure),
        };
    }
    if !(feature || (declared && approach == Approach::DialbackOnly)) {
        secured.framed.close(None).await;
        return Err(Failure::NoMethod);
    }
    prove_by_dialback(ingress, &mut secured, local, remote).await?;
    Ok(secured.opened("dialback"))
}

impl Secured {
    fn opened(self, method: &'static str) -> Attempt {
        Attempt::Done(Box::new(Opened {
            framed: self.framed,
            verdict: self.verdict,
            method,
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

/// Receiving server: asks the authoritative one.
async fn ask(
    framed: &mut Connection,
    local: &Domain,
    remote: &Domain,
    id: &str,
    key: &str,
) -> Result<bool, Fault> {
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
            return Ok(answer.attribute("type") == Some("valid"));
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
