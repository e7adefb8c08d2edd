//! A stream that a peer opens to us.
//!
//! [`secure`] leads it through TLS, and through the clear text before it unless TLS comes at once, then [`Inbound`] answers all that is no stanza:
//! SASL EXTERNAL, and dialback in the roles of the receiving and of the authoritative server. Dialback
//! needs no restart, may come at any time and for several domains, so both go on as long as the stream.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use messages::Domain;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::external::{self, Refusal};
use super::framed::Framed;
use super::identity::Credential;
use super::limits::PeerLimits;
use super::meter::Metered;
use super::outbound::Failure;
#[cfg(not(any(test, fuzzing)))]
use super::outbound::verify;
use super::tls::{self, Kind};
use super::{Fault, Socket, Stage, Trace, ns, open_stream, proof};
use crate::Ingress;
use crate::accounts::{Account, Good, Hold, Source};
use crate::census::{Origin, Seat};
use crate::denials::Denial;
#[cfg(any(test, fuzzing))]
use crate::fuzzing::verify;
use crate::ingress::Served;
use crate::jid;
use crate::xml::stanza::{Condition, ErrorType};
use crate::xml::stream_error::StreamCondition;
use crate::xml::{Element, write};

/// How long the authoritative server may take, over all its targets.
const VERIFICATION_LIMIT: Duration = Duration::from_secs(30);

/// What a peer's stream header and ours settled.
struct Opening {
    local: Domain,
    peer: Option<Domain>,
    id: String,
}

/// Leads a new connection to a secured stream with features sent. On a fault the peer has been told and
/// the connection is closed.
pub(crate) async fn secure(
    tcp: Box<dyn Socket>,
    kind: Kind,
    address: SocketAddr,
    ingress: &Ingress,
    deadline: Instant,
    trace: &mut Trace,
) -> Result<Inbound, Fault> {
    let config = ingress.config();
    let limits = config.limits_before_authentication();
    let (tcp, before, acceptor, allowance) = match kind {
        Kind::Direct => {
            let acceptor = ingress.direct_acceptor().ok_or(Fault::Ended)?;
            let allowance = Some(config.bytes_before_authentication_max);
            (tcp, None, acceptor, allowance)
        }
        Kind::StartTls => {
            let mut clear = Framed::new(tcp, limits, config.write_stall());
            clear.set_allowance(Some(config.bytes_before_authentication_max));
            let opening = match start_tls(&mut clear, ingress, deadline, trace).await {
                Ok(opening) => opening,
                Err(fault) => {
                    clear.close_after(&fault).await;
                    return Err(fault);
                }
            };
            let served = ingress.served(opening.local.as_str()).ok_or(Fault::Ended)?;
            let (acceptor, allowance) = (served.acceptor(), clear.allowance());
            (clear.into_io(), Some(opening), acceptor, allowance)
        }
    };

    trace.stage = Stage::Tls;
    let tcp = Metered::new(tcp, config.certificate_chain_bytes_max);
    let handshake = TlsAcceptor::from(acceptor).accept(tcp);
    let mut tls = within(deadline, async { Ok(handshake.await?) }).await?;
    let (tcp, connection) = tls.get_mut();
    tcp.lift();
    trace.tls = connection.protocol_version().map(tls::version_name);
    let credential = ingress.examine(connection.peer_certificates().unwrap_or_default());

    trace.stage = Stage::Header;
    let mut framed = Framed::new(tls, limits, config.write_stall());
    framed.set_allowance(allowance);
    let before = before.as_ref();
    let secured = reopen(&mut framed, ingress, before, deadline, trace).await;
    let (local, peer, id) = match secured {
        Ok(secured) => secured,
        Err(fault) => {
            framed.close_after(&fault).await;
            return Err(fault);
        }
    };
    trace.stage = Stage::Authentication;
    let verdict = credential.proves(&peer);
    trace.certificate = Some(proof(&verdict));
    let mut stream = Inbound {
        framed,
        account: ingress.account(Source::address(address.ip())),
        ingress: ingress.clone(),
        local,
        offers_external: verdict.is_ok() && ingress.served(peer.as_str()).is_none(),
        trace: trace.clone(),
        peer,
        id,
        credential,
        sasl_attempts: 0,
        challenged: false,
        authenticated: Vec::new(),
        verifying: Vec::new(),
        accounted: false,
        bidirectional: false,
        peer_limits: PeerLimits::default(),
    };
    let mut features = Vec::new();
    stream.render_features(&mut features);
    match stream.framed.send(&features).await {
        Ok(()) => Ok(stream),
        Err(fault) => Err(fault),
    }
}

async fn within<T>(
    deadline: Instant,
    step: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    timeout_at(deadline, step)
        .await
        .unwrap_or(Err(Fault::TimedOut("it did not authenticate in time")))
}

/// Headers, features and the request for TLS, all in clear text.
async fn start_tls(
    clear: &mut Framed<Box<dyn Socket>>,
    ingress: &Ingress,
    deadline: Instant,
    trace: &mut Trace,
) -> Result<Opening, Fault> {
    let mut answer = Vec::new();
    let opening = open(clear, ingress, None, deadline, &mut answer, trace).await?;
    trace.stage = Stage::StartTls;
    write::element(&mut answer, "stream:features", &[], |out| {
        write::element(out, "starttls", &[("xmlns", ns::TLS)], |out| {
            write::empty(out, "required", &[]);
        });
    });
    clear.send(&answer).await?;
    let request = within(deadline, clear.element()).await?;
    if request.is("starttls", ns::TLS) {
        clear
            .send(b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
            .await?;
        return Ok(opening);
    }
    Err(match request.namespace() {
        ns::SERVER => Fault::refuse(
            StreamCondition::NotAuthorized,
            "a stanza came before TLS and authentication",
        ),
        _ => Fault::refuse(StreamCondition::PolicyViolation, "STARTTLS is required"),
    })
}

/// The header of the secured stream, answered.
async fn reopen(
    framed: &mut Framed<TlsStream<Metered>>,
    ingress: &Ingress,
    before: Option<&Opening>,
    deadline: Instant,
    trace: &mut Trace,
) -> Result<(Domain, Domain, String), Fault> {
    let mut answer = Vec::new();
    let opening = open(framed, ingress, before, deadline, &mut answer, trace).await?;
    framed.send(&answer).await?;
    match opening.peer {
        Some(peer) => Ok((opening.local, peer, opening.id)),
        None => Err(Fault::refuse(
            StreamCondition::ImproperAddressing,
            "the stream header has no from",
        )),
    }
}

/// Reads the peer's header and renders ours. On a fault ours is already sent, since a stream error has
/// to stand in a stream (RFC 6120 §4.9.1.2).
async fn open<T>(
    framed: &mut Framed<T>,
    ingress: &Ingress,
    before: Option<&Opening>,
    deadline: Instant,
    answer: &mut Vec<u8>,
    trace: &mut Trace,
) -> Result<Opening, Fault>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let id = ingress.stream_id();
    let header = match within(deadline, framed.header()).await {
        Ok(header) => header,
        Err(fault) => {
            if fault.stream_error().is_some() {
                open_stream(answer, ingress.first(), None, Some(&id));
                framed.send(answer).await?;
            }
            return Err(fault);
        }
    };
    let to = header.to.as_deref().map(jid::prepare_domain);
    let from = header.from.as_deref().map(jid::prepare_domain);
    let local = to
        .as_ref()
        .and_then(|to| to.as_ref().ok())
        .and_then(|to| ingress.served(to.as_str()))
        .map(Served::domain);
    let peer = from.as_ref().and_then(|from| from.as_ref().ok());
    trace.local = local.cloned();
    trace.peer = peer.cloned();
    let unwanted = peer.and_then(|peer| ingress.policy().admit(peer).err());
    open_stream(
        answer,
        local.unwrap_or_else(|| ingress.first()),
        peer,
        Some(&id),
    );

    let refusal = if let Err(error) = header.check() {
        Some(Fault::Xml(error))
    } else if matches!(to, None | Some(Err(_))) {
        Some(Fault::refuse(
            StreamCondition::ImproperAddressing,
            "the stream header has no usable to",
        ))
    } else if matches!(from, Some(Err(_))) {
        Some(Fault::refuse(
            StreamCondition::ImproperAddressing,
            "the stream header has no usable from",
        ))
    } else if local.is_none() {
        Some(Fault::refuse(
            StreamCondition::HostUnknown,
            "this domain is not served here",
        ))
    } else if let Some(reason) = unwanted {
        Some(Fault::refuse(StreamCondition::PolicyViolation, reason))
    } else if before.is_some_and(|before| {
        Some(&before.local) != local || (before.peer.is_some() && before.peer.as_ref() != peer)
    }) {
        Some(Fault::refuse(
            StreamCondition::ImproperAddressing,
            "from or to changed when the stream was restarted",
        ))
    } else {
        None
    };
    match (refusal, local) {
        (None, Some(local)) => Ok(Opening {
            local: local.clone(),
            peer: peer.cloned(),
            id,
        }),
        (refusal, _) => {
            framed.send(answer).await?;
            Err(refusal.unwrap_or(Fault::Ended))
        }
    }
}

/// A secured stream.
pub(crate) struct Inbound {
    pub(crate) framed: Framed<TlsStream<Metered>>,
    account: Account,
    ingress: Ingress,
    /// The domain the stream was opened to.
    local: Domain,
    /// The domain that opened it, as it says.
    peer: Domain,
    /// Our id of the stream, which dialback keys are bound to.
    id: String,
    /// What the peer showed in the handshake.
    credential: Credential,
    /// For what is reported before the end.
    trace: Trace,
    offers_external: bool,
    sasl_attempts: u32,
    /// Whether an empty challenge is unanswered.
    challenged: bool,
    /// The domains the peer has proven to be, each with its seat.
    authenticated: Vec<(Domain, Seat)>,
    /// The pairs of domains that are being verified: the claimed one, and the one it is claimed to.
    verifying: Vec<(Domain, Domain)>,
    /// Whether its end before authentication needs no report: it only had a key verified, or what it could
    /// not prove is reported already.
    accounted: bool,
    /// Whether the peer takes stanzas on this stream (XEP-0288).
    bidirectional: bool,
    /// Of what goes back on the stream.
    peer_limits: PeerLimits,
}

/// A dialback key that is being checked.
pub(crate) struct Verification {
    /// The domain that the peer claims.
    pub(crate) from: Domain,
    /// The served domain it was claimed to.
    pub(crate) to: Domain,
    key: String,
    id: String,
    source: Source,
    hold: Hold,
    _seats: [Seat; 2],
}

/// What the authoritative server said of it.
pub(crate) struct Verified {
    from: Domain,
    to: Domain,
    said: Result<bool, Failure>,
    /// Whether others needed its place before there was an answer.
    gave_way: bool,
}

impl Verification {
    /// Asks the authoritative server over a stream of its own.
    pub(crate) async fn run(self, ingress: Ingress) -> Verified {
        let Self {
            from,
            to,
            key,
            id,
            source,
            hold,
            _seats,
        } = self;
        let errand = ingress.calls().errand(source);
        let asked = verify(&ingress, &to, &from, &id, &key, &errand);
        let asked = tokio::time::timeout(VERIFICATION_LIMIT, asked);
        let revocation = hold.revocation();
        let (said, gave_way) = tokio::select! {
            said = asked => (said.unwrap_or(Err(Failure::TimedOut)), false),
            () = revocation.come() => (Err(Failure::TimedOut), true),
        };
        Verified {
            from,
            to,
            said,
            gave_way,
        }
    }
}

impl Inbound {
    /// Of the address that it comes from.
    pub(crate) const fn account(&self) -> &Account {
        &self.account
    }

    /// Goes on on the current thread.
    pub(crate) fn rehome(&mut self) -> io::Result<()> {
        self.framed.io_mut().get_mut().0.rehome()
    }

    /// Whether the peer may leave without a report.
    pub(crate) const fn is_accounted(&self) -> bool {
        self.accounted || self.is_authenticated()
    }

    /// Whether any domain is authenticated.
    pub(crate) const fn is_authenticated(&self) -> bool {
        !self.authenticated.is_empty()
    }

    /// Served domain and peer between which stanzas may go back on this stream, once that is settled: the
    /// pair of its header, not those that were proven on it beside (XEP-0288 §2). With the limits that the
    /// peer named as it asked for it (XEP-0478 §3).
    pub(crate) fn way_back(&self) -> Option<(&Domain, &Domain, PeerLimits)> {
        let is_peer = |(domain, _): &(Domain, Seat)| *domain == self.peer;
        let open = self.bidirectional && self.authenticated.iter().any(is_peer);
        open.then_some((&self.local, &self.peer, self.peer_limits))
    }

    /// The authenticated domain that an address is of.
    pub(crate) fn sender(&self, address: &str) -> Option<&Domain> {
        let known = |is: &dyn Fn(&Domain) -> bool| {
            let mut domains = self.authenticated.iter().map(|(domain, _)| domain);
            domains.find(|domain| is(domain))
        };
        known(&|domain| domain.as_str() == address).or_else(|| {
            let address = jid::Jid::parse(address).ok()?;
            known(&|domain| *domain == address.domain)
        })
    }

    /// The served domain that an address is of.
    pub(crate) fn receiver(&self, address: &str) -> Option<&Served> {
        self.ingress.served(address).or_else(|| {
            let address = jid::Jid::parse(address).ok()?;
            self.ingress.served(address.domain.as_str())
        })
    }

    /// Handles what is no stanza. Returns a key that has to be verified.
    pub(crate) async fn negotiate(
        &mut self,
        element: &Element,
    ) -> Result<Option<Verification>, Fault> {
        match (element.namespace(), element.name()) {
            (ns::SASL, name) => {
                self.sasl(name, element).await?;
                Ok(None)
            }
            (ns::DIALBACK, "result") if element.attribute("type").is_none() => {
                self.claim(element).await
            }
            (ns::DIALBACK, "verify") if element.attribute("type").is_none() => {
                self.vouch(element).await?;
                Ok(None)
            }
            // An answer to what was never asked on this stream, so it proves nothing (XEP-0220 §2.4).
            (ns::DIALBACK, _) => Ok(None),
            // In either namespace, since ejabberd confused them, and with any content. It is asked for
            // before authentication (XEP-0288 §2.2); at odd times it has no effect.
            (ns::BIDI | ns::BIDI_FEATURE, _) => {
                if element.name() == "bidi" && !self.is_authenticated() {
                    self.bidirectional = true;
                    self.peer_limits = PeerLimits::of(element);
                }
                Ok(None)
            }
            _ => Err(Fault::refuse(
                StreamCondition::UnsupportedStanzaType,
                "an element came that is not known here",
            )),
        }
    }

    async fn sasl(&mut self, name: &str, element: &Element) -> Result<(), Fault> {
        if self.is_authenticated() {
            return Err(Fault::refuse(
                StreamCondition::PolicyViolation,
                "it authenticated twice",
            ));
        }
        let challenged = std::mem::take(&mut self.challenged);
        let response = element.text();
        let checked = match name {
            "auth" if element.attribute("mechanism") != Some("EXTERNAL") => {
                Err(Refusal::InvalidMechanism)
            }
            "auth" if !self.offers_external => Err(Refusal::NotAuthorized),
            "auth" if response.trim().is_empty() => {
                self.challenged = true;
                let challenge = b"<challenge xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>";
                return self.framed.send(challenge).await;
            }
            "response" if !challenged => Err(Refusal::MalformedRequest),
            "auth" | "response" => external::check_identity(&response, &self.peer),
            "abort" => Err(Refusal::Aborted),
            _ => Err(Refusal::MalformedRequest),
        };
        match checked {
            Ok(()) => {
                self.admit(self.peer.clone(), "EXTERNAL")?;
                self.framed
                    .send(b"<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>")
                    .await?;
                self.restart().await
            }
            Err(refusal) => {
                let mut answer = Vec::new();
                write::element(&mut answer, "failure", &[("xmlns", ns::SASL)], |out| {
                    write::empty(out, refusal.name(), &[]);
                });
                self.framed.send(&answer).await?;
                self.sasl_attempts += 1;
                if self.sasl_attempts < self.ingress.config().sasl_attempts_max {
                    return Ok(());
                }
                Err(Fault::refuse(
                    StreamCondition::PolicyViolation,
                    "too many failed authentications",
                ))
            }
        }
    }

    /// The third header, after SASL.
    async fn restart(&mut self) -> Result<(), Fault> {
        self.framed.restart();
        let before = Opening {
            local: self.local.clone(),
            peer: Some(self.peer.clone()),
            id: String::new(),
        };
        let mut answer = Vec::new();
        let mut trace = self.trace.clone();
        let deadline = Instant::now() + self.ingress.config().authentication_timeout();
        let opened = open(
            &mut self.framed,
            &self.ingress,
            Some(&before),
            deadline,
            &mut answer,
            &mut trace,
        );
        self.id = opened.await?.id;
        self.offers_external = false;
        self.render_features(&mut answer);
        self.framed.send(&answer).await
    }

    fn render_features(&self, out: &mut Vec<u8>) {
        let config = self.ingress.config();
        write::element(out, "stream:features", &[], |out| {
            if self.offers_external {
                write::element(out, "mechanisms", &[("xmlns", ns::SASL)], |out| {
                    write::element(out, "mechanism", &[], |out| write::text(out, "EXTERNAL"));
                });
            }
            if !config.require_certificates {
                write::element(out, "dialback", &[("xmlns", ns::DIALBACK_FEATURE)], |out| {
                    write::empty(out, "errors", &[]);
                });
            }
            if !self.is_authenticated() {
                write::empty(out, "bidi", &[("xmlns", ns::BIDI_FEATURE)]);
            }
            // Those of an authenticated peer: dialback has no restart at which they could be raised.
            write::element(out, "limits", &[("xmlns", ns::LIMITS)], |out| {
                let mut limit = |name, value: &str| {
                    write::element(out, name, &[], |out| write::text(out, value));
                };
                limit("max-bytes", &config.stanza_bytes_max.to_string());
                limit("idle-seconds", &config.inbound_idle_seconds.to_string());
            });
        });
    }

    /// Receiving server: the peer says that it is a domain, with a key as proof.
    async fn claim(&mut self, element: &Element) -> Result<Option<Verification>, Fault> {
        let (from, to) = addresses(element)?;
        let refusal = if self.ingress.served(to.as_str()).is_none() {
            let reason = "dialback: for a domain that is not served here";
            (ErrorType::Cancel, Condition::ItemNotFound, reason)
        } else if self.ingress.served(from.as_str()).is_some() {
            let reason = "dialback: it says that it is a domain served here";
            (ErrorType::Cancel, Condition::NotAllowed, reason)
        } else if let Err(reason) = self.ingress.policy().admit(&from) {
            (ErrorType::Cancel, Condition::PolicyViolation, reason)
        } else if self.sender(from.as_str()).is_some() || self.credential.proves(&from).is_ok() {
            // The certificate says it already, or another key did: nobody needs to be asked.
            let method = "dialback without dialling";
            return self.admit_claim(&from, &to, method).await.map(|()| None);
        } else if self.ingress.config().require_certificates {
            const REASON: &str =
                "a certificate that proves the domain is required here, dialback does not do";
            if !self.is_authenticated() {
                return Err(Fault::refuse(StreamCondition::PolicyViolation, REASON));
            }
            (ErrorType::Cancel, Condition::PolicyViolation, REASON)
        } else {
            match self.begin_verification(&from, &to) {
                Ok((hold, seats)) => {
                    self.verifying.push((from.clone(), to.clone()));
                    return Ok(Some(Verification {
                        from,
                        to,
                        key: element.text().trim().to_owned(),
                        id: self.id.clone(),
                        source: self.account.source().clone(),
                        hold,
                        _seats: seats,
                    }));
                }
                Err(reason) => (ErrorType::Wait, Condition::ResourceConstraint, reason),
            }
        };
        let (kind, condition, reason) = refusal;
        self.refuse_claim(&from, &to, kind, condition).await?;
        self.unproven(from, &reason);
        Ok(None)
    }

    /// What is left of it for the farewell: its domains have their seats back before.
    pub(crate) fn into_framed(self) -> Framed<TlsStream<Metered>> {
        self.framed
    }

    /// Room for the verification of a claim, or why there is none.
    fn begin_verification(
        &self,
        from: &Domain,
        to: &Domain,
    ) -> Result<(Hold, [Seat; 2]), &'static str> {
        let is_it = |(one, other): &(Domain, Domain)| one == from && other == to;
        if self.verifying.iter().any(is_it) {
            return Err("dialback: a key is being verified for it on this stream already");
        }
        if self.verifying.len() >= self.ingress.config().verifications_per_stream_max {
            return Err("dialback: too many keys are being verified on this stream");
        }
        let (source, now) = (self.account.source(), Instant::now());
        if let Some(denial) = self.ingress.denials().holds(source, from, now) {
            return Err(denial.reason());
        }
        // Before the room, for which another verification may have to give way.
        if !self.ingress.calls().begin(source, now) {
            return Err("dialback: too many keys a second from its address");
        }
        let room = self.ingress.verification(&self.account, from);
        room.ok_or("dialback: too many keys are being verified for it")
    }

    /// Receiving server: tells the peer what became of its claim.
    pub(crate) async fn verified(&mut self, verified: Verified) -> Result<(), Fault> {
        let Verified {
            from,
            to,
            said,
            gave_way,
        } = verified;
        let is_it = |(one, other): &(Domain, Domain)| *one == from && *other == to;
        self.verifying.retain(|pair| !is_it(pair));
        if gave_way {
            const REASON: &str = "dialback: its server did not answer, and others needed the place";
            let condition = Condition::ResourceConstraint;
            self.refuse_claim(&from, &to, ErrorType::Wait, condition)
                .await?;
            self.unproven(from, &REASON);
            return Ok(());
        }
        match said {
            Ok(true) => {
                let denials = self.ingress.denials();
                denials.clear(self.account.source(), &from);
                self.admit_claim(&from, &to, "dialback").await
            }
            Ok(false) => {
                const REASON: &str = "dialback: the authoritative server denies the key";
                self.pause(Denial::Denied, &from);
                self.answer_claim(&from, &to, false).await?;
                if !self.is_authenticated() && self.verifying.is_empty() {
                    return Err(Fault::refuse(StreamCondition::NotAuthorized, REASON));
                }
                self.unproven(from, &REASON);
                Ok(())
            }
            Err(failure) => {
                let (kind, condition) = match failure.is_permanent() {
                    true => (ErrorType::Cancel, Condition::RemoteServerNotFound),
                    false => (ErrorType::Wait, Condition::RemoteServerTimeout),
                };
                self.pause(Denial::Failed, &from);
                self.refuse_claim(&from, &to, kind, condition).await?;
                let reason =
                    format!("dialback: the authoritative server cannot be asked: {failure}");
                self.unproven(from, &reason);
                Ok(())
            }
        }
    }

    /// Leaves the server of a domain that was not proven alone for a while.
    fn pause(&self, denial: Denial, domain: &Domain) {
        let pause = self.ingress.config().verification_pause();
        let claim = (self.account.source(), domain);
        let denials = self.ingress.denials();
        denials.add(denial, claim, pause, Instant::now());
    }

    /// Reports a domain that the peer could not prove, while the stream goes on.
    fn unproven(&mut self, domain: Domain, reason: &dyn Display) {
        self.accounted = true;
        let trace = Trace {
            peer: Some(domain),
            stage: Stage::Authentication,
            ..self.trace.clone()
        };
        self.ingress.outcomes().failed(&trace, reason, None);
    }

    /// Authoritative server: somebody asks whether a stream is ours.
    async fn vouch(&mut self, element: &Element) -> Result<(), Fault> {
        let (from, to) = addresses(element)?;
        let id = element.attribute("id").unwrap_or_default();
        let kind = match self.ingress.served(to.as_str()) {
            None => "invalid",
            Some(_) => {
                let key = element.text();
                match self
                    .ingress
                    .key_maker()
                    .made(&key, from.as_str(), to.as_str(), id)
                {
                    true => "valid",
                    false => "invalid",
                }
            }
        };
        let mut answer = Vec::new();
        let attributes = [
            ("from", to.as_str()),
            ("to", from.as_str()),
            ("id", id),
            ("type", kind),
        ];
        write::empty(&mut answer, "db:verify", &attributes);
        self.accounted = true;
        self.framed.send(&answer).await
    }

    /// Admits a domain that is proven. Where there is no room for it, it is refused alone: the domains that
    /// the stream has already stay.
    async fn admit_claim(
        &mut self,
        from: &Domain,
        to: &Domain,
        method: &'static str,
    ) -> Result<(), Fault> {
        match self.admit(from.clone(), method) {
            Ok(()) => self.answer_claim(from, to, true).await,
            Err(_) if self.is_authenticated() => {
                let condition = Condition::ResourceConstraint;
                self.refuse_claim(from, to, ErrorType::Wait, condition)
                    .await
            }
            Err(fault) => Err(fault),
        }
    }

    async fn answer_claim(&mut self, from: &Domain, to: &Domain, valid: bool) -> Result<(), Fault> {
        let kind = if valid { "valid" } else { "invalid" };
        let attributes = [("from", to.as_str()), ("to", from.as_str()), ("type", kind)];
        let mut answer = Vec::new();
        write::empty(&mut answer, "db:result", &attributes);
        self.framed.send(&answer).await
    }

    async fn refuse_claim(
        &mut self,
        from: &Domain,
        to: &Domain,
        kind: ErrorType,
        condition: Condition,
    ) -> Result<(), Fault> {
        let attributes = [
            ("from", to.as_str()),
            ("to", from.as_str()),
            ("type", "error"),
        ];
        let mut answer = Vec::new();
        write::element(&mut answer, "db:result", &attributes, |out| {
            write::element(out, "error", &[("type", kind.as_str())], |out| {
                write::empty(out, condition.as_str(), &[("xmlns", ns::STANZA_ERRORS)]);
            });
        });
        self.framed.send(&answer).await
    }

    /// Takes a domain as authenticated on this stream.
    fn admit(&mut self, domain: Domain, method: &'static str) -> Result<(), Fault> {
        if self.authenticated.iter().any(|(known, _)| *known == domain) {
            return Ok(());
        }
        let config = self.ingress.config();
        let max = config.streams_per_domain_max;
        let seat = self
            .ingress
            .census()
            .seat(Origin::Domain(domain.clone()), max);
        match seat {
            Some(seat) if self.authenticated.len() < config.domains_per_stream_max => {
                if self.authenticated.is_empty() {
                    self.framed.set_limits(config.limits());
                    self.framed.set_allowance(None);
                    let room = self.account.hold(Good::UnreadBytes);
                    self.framed.account_for(room);
                }
                self.ingress.outcomes().opened(&Trace {
                    peer: Some(domain.clone()),
                    stage: Stage::Open,
                    method: Some(method),
                    ..self.trace.clone()
                });
                self.authenticated.push((domain, seat));
                Ok(())
            }
            _ => Err(Fault::refuse(
                StreamCondition::ResourceConstraint,
                "too many streams of this domain, or too many domains on this stream",
            )),
        }
    }
}

fn addresses(element: &Element) -> Result<(Domain, Domain), Fault> {
    let address = |name| {
        element
            .attribute(name)
            .and_then(|text| jid::prepare_domain(text).ok())
    };
    match (address("from"), address("to")) {
        (Some(from), Some(to)) => Ok((from, to)),
        _ => Err(Fault::refuse(
            StreamCondition::ImproperAddressing,
            "dialback without usable from and to",
        )),
    }
}
