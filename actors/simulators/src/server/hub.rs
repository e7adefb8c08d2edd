//! What the actor and the streams of a simulated server share. All of it lives on one arbiter.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use messages::Clock;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::dialback::DialbackSecret;
use super::flood::Table;
use super::outbound::{self, Link};
use super::stanza::iq;
use super::stream::{COMPONENT, STREAMS};
use super::xml::{Element, escaped};
use super::{Answer, Config, Counters, Edges, Stanza, StanzaError, component};
use crate::{SimulatorError, tls};

/// Namespace of stanza error conditions (RFC 6120 §8.3.3).
const STANZA_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
/// Namespace of pings (XEP-0199).
const PING: &str = "urn:xmpp:ping";

pub(super) struct Hub {
    pub(super) config: Config,
    pub(super) service_address: Cell<Option<SocketAddr>>,
    pub(super) connector: TlsConnector,
    pub(super) acceptor: TlsAcceptor,
    pub(super) dialback: DialbackSecret,
    pub(super) counters: RefCell<Counters>,
    pub(super) watcher: RefCell<Option<Watcher>>,
    /// The flood that is under way.
    pub(super) flood: RefCell<Option<Table>>,
    /// True when the server stops. Listener and streams each hold a receiver.
    pub(super) stop: watch::Sender<bool>,
    /// `None` without a single root: nobody is trusted then.
    verifier: Option<Arc<WebPkiServerVerifier>>,
    clock: Clock,
    /// The stream to the push service: opened when it is first needed, or the component's.
    pub(super) link: Mutex<Option<Link>>,
    /// Number of the newest component's stream; 0 before the first. Each of them holds a receiver.
    pub(super) component: watch::Sender<u64>,
    pending: RefCell<HashMap<String, Pending>>,
    /// Told when the last pending request ends.
    settled: Notify,
    /// Makes ids that no other run has used.
    run: u64,
    sequence: Cell<u64>,
}

/// Who looks at the stanzas that no request waits for.
pub(super) struct Watcher {
    pub(super) sender: mpsc::Sender<Stanza>,
    pub(super) takes_requests: bool,
}

/// A request without an answer.
struct Pending {
    /// Who asked, which the answer must be addressed to.
    asker: String,
    answer: oneshot::Sender<Element>,
}

/// Forgets a request when whoever waits for its answer is gone.
struct Waiting<'a> {
    hub: &'a Hub,
    id: &'a str,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut pending = self.hub.pending.borrow_mut();
        pending.remove(self.id);
        if pending.is_empty() {
            self.hub.settled.notify_waiters();
        }
    }
}

impl Hub {
    pub(super) fn new(config: &Config, edges: &Edges) -> Result<Self, SimulatorError> {
        let client = tls::federation_client(&edges.identity, Arc::clone(&edges.roots))?;
        let server = tls::federation_server(&edges.identity)?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&edges.roots), tls::provider());
        Ok(Self {
            config: config.clone(),
            service_address: Cell::new(config.service_address),
            connector: TlsConnector::from(client),
            acceptor: TlsAcceptor::from(server),
            dialback: DialbackSecret::generate()
                .ok_or_else(|| rustls::Error::FailedToGetRandomBytes)?,
            counters: RefCell::default(),
            watcher: RefCell::default(),
            flood: RefCell::default(),
            stop: watch::Sender::new(false),
            verifier: verifier.build().ok(),
            clock: edges.clock.clone(),
            link: Mutex::new(None),
            component: watch::Sender::new(0),
            pending: RefCell::default(),
            settled: Notify::new(),
            run: fastrand::u64(..),
            sequence: Cell::new(0),
        })
    }

    /// Text for an id, unique over all runs.
    pub(super) fn fresh_id(&self) -> String {
        let sequence = self.sequence.get();
        self.sequence.set(sequence + 1);
        format!("{:016x}-{sequence}", self.run)
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Counts a breach of the rules.
    pub(super) fn violation(&self, explanation: &'static str) {
        let mut counters = self.counters.borrow_mut();
        *counters.violations.entry(explanation).or_default() += 1;
    }

    /// Whether a certificate chain is one that this domain's server may show. The purpose that counts
    /// is that of a server: public authorities issue no others.
    pub(super) fn trusts(&self, chain: Option<&[CertificateDer<'_>]>, domain: &str) -> bool {
        let Some((leaf, intermediates)) = chain.and_then(<[_]>::split_first) else {
            return false;
        };
        let (Some(verifier), Ok(name)) = (&self.verifier, ServerName::try_from(domain)) else {
            return false;
        };
        let now = UnixTime::since_unix_epoch(Duration::from_secs(self.clock.now().0));
        verifier
            .verify_server_cert(leaf, intermediates, &name, &[], now)
            .is_ok()
    }

    /// Writes on the stream to the push service, which is opened first if there is none. A stream that
    /// breaks under the write is replaced once. Of a component the stream is its to open.
    pub(super) async fn send(self: &Rc<Self>, xml: &[u8]) -> Result<(), SimulatorError> {
        if self.is_stopping() {
            return Err(SimulatorError::Stopping);
        }
        if self.config.component.is_some() {
            return component::send(self, xml).await;
        }
        let mut link = self.link.lock().await;
        if let Some(open) = link.as_mut().filter(|open| open.is_alive())
            && open.write(xml).await.is_ok()
        {
            return Ok(());
        }
        let mut fresh = self.connect().await?.watched(self);
        fresh.write(xml).await?;
        *link = Some(fresh);
        Ok(())
    }

    /// Opens a stream to the push service and proves our domain on it.
    pub(super) async fn connect(self: &Rc<Self>) -> Result<outbound::Outbound, SimulatorError> {
        let limit = Duration::from_millis(self.config.connect_timeout_millis);
        let stream = timeout(limit, outbound::open(self))
            .await
            .map_err(|_| SimulatorError::TimedOut)??;
        self.counters.borrow_mut().streams_out += 1;
        Ok(stream)
    }

    /// Ends our half of a stream whose other half has ended, so that the push service need not wait.
    pub(super) async fn drop_dead_link(&self) {
        let mut link = self.link.lock().await;
        if let Some(dead) = link.take_if(|link| !link.is_alive()) {
            dead.close().await;
        }
    }

    /// Closes the stream to the push service.
    pub(super) async fn disconnect(&self) {
        if let Some(link) = self.link.lock().await.take() {
            link.close().await;
        }
    }

    /// Sends an iq and waits for its answer. `asker` is whom it is from.
    pub(super) async fn ask(
        self: &Rc<Self>,
        kind: &str,
        asker: &str,
        payload: &str,
    ) -> Result<(Element, Duration), SimulatorError> {
        if self.is_stopping() {
            return Err(SimulatorError::Stopping);
        }
        if self.pending.borrow().len() >= self.config.requests_max {
            return Err(SimulatorError::Busy);
        }
        let id = self.fresh_id();
        let service = escaped(&self.config.service);
        let xml = iq(kind, &escaped(asker), &service, &id, payload);
        let (answer, answered) = oneshot::channel();
        let request = Pending {
            asker: asker.to_owned(),
            answer,
        };
        self.pending.borrow_mut().insert(id.clone(), request);
        let _waiting = Waiting { hub: self, id: &id };
        let asked = Instant::now();
        self.counters.borrow_mut().requests += 1;
        self.send(xml.as_bytes()).await?;
        let limit = Duration::from_millis(self.config.reply_timeout_millis);
        match timeout(limit, answered).await {
            Ok(Ok(answer)) => Ok((answer, asked.elapsed())),
            _ => {
                self.counters.borrow_mut().unanswered += 1;
                Err(SimulatorError::TimedOut)
            }
        }
    }

    /// Waits until no request is without an answer; how many there are at the deadline.
    pub(super) async fn settle(&self, deadline: Instant) -> u64 {
        loop {
            let settled = self.settled.notified();
            let left = self.pending.borrow().len();
            if left == 0 {
                return 0;
            }
            if tokio::time::timeout_at(deadline.into(), settled)
                .await
                .is_err()
            {
                return left as u64;
            }
        }
    }

    /// Takes a stanza from an authenticated stream with this content namespace; `may_send` tells whether
    /// a domain is authenticated on it. Gives the condition of the stream error that ends the stream, if it must end.
    pub(super) async fn deliver(
        self: &Rc<Self>,
        stanza: Element,
        xml: &[u8],
        namespace: &str,
        may_send: impl Fn(&str) -> bool,
    ) -> Result<(), &'static str> {
        if stanza.namespace != namespace {
            self.violation(match namespace {
                COMPONENT => "a stanza is not in jabber:component:accept",
                _ => "a stanza is not in jabber:server",
            });
            return Err("invalid-namespace");
        }
        let (Some(from), Some(to)) = (stanza.attribute("from"), stanza.attribute("to")) else {
            self.violation("a stanza has no from or no to");
            return Err("improper-addressing");
        };
        if !may_send(domain_of(from)) {
            self.violation("a stanza is from a domain that is not authenticated on its stream");
            return Err("invalid-from");
        }
        if domain_of(to) != self.config.domain {
            self.violation("a stanza is to a domain that is not here");
            return Err("host-unknown");
        }
        match (stanza.name.as_str(), stanza.attribute("type")) {
            ("iq", Some("result" | "error")) => self.answered(stanza, xml),
            ("iq", Some("get" | "set")) => self.asked(&stanza, xml).await,
            ("iq", _) => self.violation("an iq has no proper type"),
            ("message" | "presence", _) => self.show(&stanza, xml),
            _ => {
                self.violation("a stanza is no iq, message or presence");
                return Err("unsupported-stanza-type");
            }
        }
        Ok(())
    }

    fn answered(&self, stanza: Element, xml: &[u8]) {
        let (from, to) = (stanza.attribute("from"), stanza.attribute("to"));
        let id = stanza.attribute("id").unwrap_or_default();
        let mut pending = self.pending.borrow_mut();
        match pending.get(id) {
            Some(request) if from == Some(&self.config.service) && to == Some(&request.asker) => {
                if let Some(request) = pending.remove(id) {
                    self.counters.borrow_mut().answers += 1;
                    // Whoever asked may have given up in this very moment.
                    let _gone = request.answer.send(stanza);
                }
            }
            Some(_) => self.counters.borrow_mut().wrong_addresses += 1,
            None => {
                drop(pending);
                self.counters.borrow_mut().strays += 1;
                self.show(&stanza, xml);
            }
        }
    }

    async fn asked(self: &Rc<Self>, stanza: &Element, xml: &[u8]) {
        self.show(stanza, xml);
        if self
            .watcher
            .borrow()
            .as_ref()
            .is_some_and(|watcher| watcher.takes_requests)
        {
            return;
        }
        let (Some(from), Some(to), Some(id)) = (
            stanza.attribute("from"),
            stanza.attribute("to"),
            stanza.attribute("id"),
        ) else {
            self.violation("an iq has no id");
            return;
        };
        // The push service is the one server that this one has a stream to.
        if domain_of(from) != self.config.service {
            return;
        }
        let [payload] = stanza.children.as_slice() else {
            self.violation("an iq does not have exactly one payload");
            return;
        };
        let (kind, payload) = if payload.is("ping", PING) {
            ("result", String::new())
        } else {
            let error = format!(
                "<error type='cancel'><service-unavailable xmlns='{STANZA_ERRORS}'/></error>"
            );
            ("error", error)
        };
        let reply = iq(kind, &escaped(to), &escaped(from), &escaped(id), &payload);
        if self.send(reply.as_bytes()).await.is_err() {
            self.violation("a reply could not be sent: the stream to the service failed");
        }
    }

    fn show(&self, stanza: &Element, xml: &[u8]) {
        let mut watcher = self.watcher.borrow_mut();
        let Some(Watcher { sender, .. }) = watcher.as_ref() else {
            return;
        };
        let attribute = |name| stanza.attribute(name).map(ToOwned::to_owned);
        let shown = Stanza {
            name: stanza.name.clone(),
            from: attribute("from").unwrap_or_default(),
            to: attribute("to").unwrap_or_default(),
            kind: attribute("type"),
            id: attribute("id"),
            xml: String::from_utf8_lossy(xml).trim().to_owned(),
        };
        match sender.try_send(shown) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => self.counters.borrow_mut().unobserved += 1,
            Err(mpsc::error::TrySendError::Closed(_)) => *watcher = None,
        }
    }

    /// Takes an element that is not a stanza on a stream we opened: the peer may only end it.
    pub(super) fn unexpected(&self, element: &Element) {
        self.violation(if element.is("error", STREAMS) {
            "the service closed our stream with a stream error"
        } else {
            "the service sent a stanza on a stream that we opened"
        });
    }
}

/// The payload of a ping.
pub(super) fn ping() -> String {
    format!("<ping xmlns='{PING}'/>")
}

/// What an answer says.
pub(super) fn answer_of(stanza: &Element) -> Answer {
    if stanza.attribute("type") == Some("result") {
        return Answer::Result;
    }
    Answer::Error(error_of(stanza))
}

/// Type and condition of an error stanza; empty where it has none.
pub(super) fn error_of(stanza: &Element) -> StanzaError {
    let error = stanza.child("error", &stanza.namespace);
    let condition = error.and_then(|error| {
        let mut conditions = error.children.iter();
        conditions.find(|child| child.namespace == STANZA_ERRORS && child.name != "text")
    });
    StanzaError {
        kind: error
            .and_then(|error| error.attribute("type"))
            .unwrap_or_default()
            .to_owned(),
        condition: condition.map_or_else(String::new, |condition| condition.name.clone()),
    }
}

/// The domain of an address (RFC 7622 §3.2).
pub(super) fn domain_of(jid: &str) -> &str {
    let bare = jid.split_once('/').map_or(jid, |(bare, _)| bare);
    bare.split_once('@').map_or(bare, |(_, domain)| domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_of_addresses() {
        for jid in [
            "a.test",
            "u@a.test",
            "u@a.test/r",
            "a.test/r@x/y",
            "u@a.test/b@c",
        ] {
            assert_eq!(domain_of(jid), "a.test", "{jid}");
        }
    }
}
