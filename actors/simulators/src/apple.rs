//! A strict APNs: HTTP/2 over TLS, the provider API of Apple's "Sending notification requests to APNs"
//! with every rule checked and every answer of "Handling notification responses from APNs".
//!
//! It is stricter than Apple where Apple drops a notification without a word: a payload that does not
//! agree with its push type is refused here, with the reason in words in
//! [`Notification::verdict`].

mod alarm_clock;
mod connection;
mod control;
mod frames;
mod payload;
mod provider_token;
mod reason;
mod request;

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use actix::{Actor, Context, Handler, Recipient, ResponseFuture};
use messages::{Clock, Drain, Drained, Health, Probe, SigningKeyId};
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::{Identity, SimulatorError, tls};

pub use control::{Control, Counters, Coverage, Duplicates, Faults, Notification, Verdict};
pub use reason::{Reason, Refusal};

/// How long a TLS handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// How the simulated APNs listens and behaves.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen; port 0 takes a free one. Default 127.0.0.1:0.
    pub address: SocketAddr,
    /// Streams allowed at a time on a connection once a provider token was good; until then it is one,
    /// as Apple does. Default 1000.
    pub streams_max: u32,
    /// Whether a second new provider token of a team within 20 minutes is refused. Default true.
    pub token_updates_limited: bool,
    /// Whether a connection on which a provider token expired or was renewed too soon refuses all that
    /// follows with the same reason, as Apple's do. Default true.
    pub wedging: bool,
    /// Whether notifications are counted per device, and duplicates too. A benchmark switches it off.
    /// Default true.
    pub recording: bool,
    /// How many `apns-id`s are remembered to find duplicates. Default 65536; 0 switches it off.
    pub remembered_ids: usize,
    /// Client certificates that it knows. With any, clients are asked for one; a client that shows one
    /// needs no provider token. Default none.
    pub certificates: Vec<KnownCertificate>,
    /// Misbehaviour at the start. Default none.
    pub faults: Faults,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            streams_max: 1000,
            token_updates_limited: true,
            wedging: true,
            recording: true,
            remembered_ids: 1 << 16,
            certificates: Vec::new(),
            faults: Faults::default(),
        }
    }
}

/// A client certificate as Apple knows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownCertificate {
    /// The certificate, in DER.
    pub der: Vec<u8>,
    /// What it may push to, suffixes included.
    pub topics: Vec<String>,
}

/// What the simulated APNs stands on.
pub struct Edges {
    /// Its certificate, for the name that the client connects to.
    pub identity: Identity,
    /// The keys that it knows.
    pub keys: Vec<KnownKey>,
    /// What provider tokens are compared with.
    pub clock: Clock,
}

/// A provider's key as Apple knows it.
#[derive(Clone, Debug)]
pub struct KnownKey {
    /// Team and key id.
    pub id: SigningKeyId,
    /// The public key, an uncompressed point of 65 bytes ([`crate::SigningKey::public_key`]).
    pub public_key: Vec<u8>,
    /// The bundle ids it may push to. With a push type that has a suffix, the topic is one of these
    /// and the suffix.
    pub topics: Vec<String>,
}

/// How to reach a running simulator.
#[derive(Clone, Debug)]
pub struct Handles {
    /// Where it listens.
    pub address: SocketAddr,
    /// The root to trust, as PEM.
    pub root_pem: String,
    /// Sets verdicts and faults and reads what happened.
    pub control: Control,
    /// Stops it: no new connections, GOAWAY on the open ones, what was taken is answered.
    pub drain: Recipient<Drain>,
    /// Tells its counters.
    pub probe: Recipient<Probe>,
}

/// Starts on the current arbiter. To give it a thread of its own, call this inside
/// `actix::Arbiter::spawn_fn`.
///
/// # Errors
/// [`SimulatorError::Bind`] and [`SimulatorError::Tls`].
pub fn start(config: &Config, edges: Edges) -> Result<Handles, SimulatorError> {
    let Edges {
        identity,
        keys,
        clock,
    } = edges;
    let asks_clients = !config.certificates.is_empty();
    let tls = tls::alpn_server(&identity, b"h2", asks_clients)?;
    let (listener, address) = crate::bind(config.address)?;
    let control = Control::new(config, clock);
    let judge = Rc::new(connection::Judge {
        control: control.clone(),
        keys: provider_token::Keys::new(keys),
        streams_max: config.streams_max,
        wedging: config.wedging,
        certificates: config.certificates.iter().cloned().map(Rc::new).collect(),
    });
    let stop = watch::Sender::new(false);
    actix_rt::spawn(listen(
        listener,
        TlsAcceptor::from(tls),
        judge,
        stop.subscribe(),
    ));
    let apple = Apple {
        control: control.clone(),
        stop: Rc::new(stop),
    }
    .start();
    Ok(Handles {
        address,
        root_pem: identity.root_pem().to_owned(),
        control,
        drain: apple.clone().recipient(),
        probe: apple.recipient(),
    })
}

async fn listen(
    listener: TcpListener,
    tls: TlsAcceptor,
    judge: Rc<connection::Judge>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let socket = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(_) => {
                    // Out of descriptors, most likely: they come back as connections close.
                    tokio::time::sleep(crate::ACCEPT_PAUSE).await;
                    continue;
                }
            },
            // Also when the actor is gone.
            _ = stop.changed() => return,
        };
        let (tls, judge, stop) = (tls.clone(), Rc::clone(&judge), stop.clone());
        actix_rt::spawn(serve(socket, tls, judge, stop));
    }
}

async fn serve(
    socket: TcpStream,
    tls: TlsAcceptor,
    judge: Rc<connection::Judge>,
    stop: watch::Receiver<bool>,
) {
    let control = judge.control.clone();
    if control.faults().borrow().handshakes_refused {
        control.state().counters.connections_failed += 1;
        return;
    }
    // Without it, small answers wait for acknowledgements; a socket without it still works.
    let _nodelay = socket.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_MAX, tls.accept(socket)).await;
    let tls = match handshake {
        Ok(Ok(tls)) if tls.get_ref().1.alpn_protocol() == Some(b"h2") => tls,
        _ => {
            control.state().counters.connections_failed += 1;
            return;
        }
    };
    let number = {
        let counters = &mut control.state().counters;
        counters.connections += 1;
        counters.connections_open += 1;
        counters.connections
    };
    let faults = control.faults();
    connection::serve(number, tls, judge, faults, stop).await;
    control.state().counters.connections_open -= 1;
}

struct Apple {
    control: Control,
    /// Listener and connections each hold a receiver, so it is closed when they have all ended.
    stop: Rc<watch::Sender<bool>>,
}

impl Actor for Apple {
    type Context = Context<Self>;
}

impl Handler<Drain> for Apple {
    type Result = ResponseFuture<Drained>;

    fn handle(&mut self, drain: Drain, _: &mut Self::Context) -> Self::Result {
        let (control, stop) = (self.control.clone(), Rc::clone(&self.stop));
        stop.send_replace(true);
        Box::pin(async move {
            let ended = tokio::time::timeout_at(drain.deadline.into(), stop.closed()).await;
            Drained {
                abandoned: match ended {
                    Ok(()) => 0,
                    Err(_) => control.counters().connections_open,
                },
            }
        })
    }
}

impl Handler<Probe> for Apple {
    type Result = Health;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Self::Result {
        let counters = self.control.counters();
        Health {
            counters: vec![
                ("apple_connections_total", counters.connections),
                ("apple_requests_total", counters.requests),
                ("apple_accepted_total", counters.accepted),
                ("apple_refused_total", counters.refused_total()),
                ("apple_stalled_total", counters.stalled),
                ("apple_duplicates_total", counters.duplicates),
            ],
        }
    }
}
