//! Accepts connections and hands them to the porch, whose thread it shares.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use actix::{Actor, Context, Handler, Recipient, ResponseFuture, Supervised, Supervisor};
use messages::{Drain, Drained, Health, Probe};
use socket2::{Domain, Protocol, SockRef, Type};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::accounts::{Good, Source};
use crate::gate::Count;
use crate::pace::{Pace, Pacer, Taken};
use crate::porch::{self, ReceiveConnection};
use crate::stream::connect::Buffers;
pub use crate::stream::tls::Kind;
use crate::stream::{Stage, Trace};
use crate::{Config, Error, Ingress};

/// Connections that wait in the system while none is accepted.
const BACKLOG: i32 = 1024;
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// The quiet time after which connections may come faster for a while.
const BURST: Duration = Duration::from_secs(10);
/// The pause after a connection, so that those on the porch are led on while a crowd comes in.
const BREATH: Duration = Duration::from_millis(1);

/// What a listener accepts.
#[derive(Clone)]
pub struct Handles {
    /// Closes the listening sockets.
    pub drain: Recipient<Drain>,
    /// Counters.
    pub probe: Recipient<Probe>,
}

/// A bound socket that listens.
pub struct Socket {
    socket: TcpListener,
    kind: Kind,
}

impl Socket {
    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// How TLS comes onto its streams.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    fn listen(self) -> io::Result<Listening> {
        self.socket.set_nonblocking(true)?;
        let socket = tokio::net::TcpListener::from_std(self.socket)?;
        Ok((socket, self.kind))
    }
}

/// A socket of the runtime.
type Listening = (tokio::net::TcpListener, Kind);

/// Binds the configured addresses, those with STARTTLS first. IPv6 sockets take no IPv4 connections, so
/// that both can be bound.
///
/// # Errors
/// [`Error::Bind`] for the first address that cannot be listened on.
pub fn bind(config: &Config) -> Result<Vec<Socket>, Error> {
    let plain = config
        .listen
        .iter()
        .map(|address| (address, Kind::StartTls));
    // A service that is only a component listens on none.
    let secure = config
        .listen_tls
        .iter()
        .filter(|_| !config.listen.is_empty());
    let secure = secure.map(|address| (address, Kind::Direct));
    let bind = |(address, kind): (&SocketAddr, Kind)| match listen(*address, Buffers::new(config)) {
        Ok(socket) => Ok(Socket { socket, kind }),
        Err(source) => Err(Error::Bind {
            address: *address,
            source,
        }),
    };
    plain.chain(secure).map(bind).collect()
}

fn listen(address: SocketAddr, buffers: Buffers) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A restart finds connections of the process before in TIME_WAIT.
    socket.set_reuse_address(true)?;
    buffers.set(&SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Starts accepting from bound sockets on the current arbiter, for this porch.
#[must_use]
pub fn start(ingress: &Ingress, sockets: Vec<Socket>, porch: porch::Handles) -> Handles {
    let config = ingress.config();
    let per_address = Pace::per_second(config.connections_per_address_per_second_max, BURST);
    let acceptor = Rc::new(Acceptor {
        ingress: ingress.clone(),
        porch: porch.receive,
        pace: Pace::per_second(config.connections_per_second_max, BURST),
        taken: RefCell::default(),
        addresses: RefCell::new(Pacer::new(per_address)),
        accepted: Count::default(),
        refused: Count::default(),
        failed: Count::default(),
    });
    let address = Supervisor::start(|ctx: &mut Context<Listener>| {
        ctx.set_mailbox_capacity(0);
        let accepting = Some(actix_rt::spawn(Rc::clone(&acceptor).run(sockets)));
        Listener {
            acceptor,
            accepting,
        }
    });
    Handles {
        drain: address.clone().recipient(),
        probe: address.recipient(),
    }
}

struct Listener {
    acceptor: Rc<Acceptor>,
    /// The task that has the sockets.
    accepting: Option<JoinHandle<()>>,
}

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Supervised for Listener {}

impl Handler<Drain> for Listener {
    type Result = ResponseFuture<Drained>;

    fn handle(&mut self, drain: Drain, _: &mut Self::Context) -> Self::Result {
        let accepting = self.accepting.take();
        Box::pin(async move {
            if let Some(accepting) = accepting {
                accepting.abort();
                // The sockets are closed when the task is gone.
                let _ = timeout_at(drain.deadline.into(), accepting).await;
            }
            Drained { abandoned: 0 }
        })
    }
}

impl Handler<Probe> for Listener {
    type Result = Health;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Health {
        let Acceptor {
            ingress,
            accepted,
            refused,
            failed,
            ..
        } = &*self.acceptor;
        let free = ingress.accounts().left(Good::Streams);
        Health {
            counters: vec![
                ("connections_accepted_total", accepted.get()),
                ("connections_refused_total", refused.get()),
                ("accept_errors_total", failed.get()),
                ("connection_places_free", free as u64),
            ],
        }
    }
}

struct Acceptor {
    ingress: Ingress,
    porch: Recipient<ReceiveConnection>,
    /// How fast connections are taken over, from all addresses and from each.
    pace: Pace,
    taken: RefCell<Taken>,
    addresses: RefCell<Pacer<Source>>,
    accepted: Count,
    refused: Count,
    failed: Count,
}

/// The next connection of any of the sockets. One at a time: a socket that waits would keep a place from
/// the others.
async fn accept(listening: &[Listening]) -> io::Result<(TcpStream, SocketAddr, Kind)> {
    poll_fn(|cx| {
        for (socket, kind) in listening {
            if let Poll::Ready(accepted) = socket.poll_accept(cx) {
                return Poll::Ready(accepted.map(|(socket, address)| (socket, address, *kind)));
            }
        }
        Poll::Pending
    })
    .await
}

impl Acceptor {
    async fn run(self: Rc<Self>, sockets: Vec<Socket>) {
        let listening: io::Result<Vec<_>> = sockets.into_iter().map(Socket::listen).collect();
        let mut listening = match listening {
            Ok(listening) => listening,
            Err(error) => return tracing::error!(%error, "the listening sockets cannot be used"),
        };
        let mut backoff = BACKOFF_MIN;
        loop {
            match accept(&listening).await {
                Ok((socket, address, kind)) => {
                    backoff = BACKOFF_MIN;
                    // None is served before the others for ever.
                    listening.rotate_left(1);
                    self.take_over(socket, address, kind).await;
                }
                Err(error) => {
                    self.failed.add(1);
                    tracing::warn!(%error, "cannot accept connections");
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    /// One address is refused before it can use up what is there for all of them.
    async fn take_over(&self, socket: TcpStream, address: SocketAddr, kind: Kind) {
        let source = Source::address(address.ip());
        let in_pace = self
            .addresses
            .borrow_mut()
            .take(source.clone(), Instant::now());
        if !in_pace {
            return self.refuse(
                &socket,
                address,
                "too many connections a second from its address",
            );
        }
        // It waits for a place, or for somebody who may give way, and the others wait in the backlog behind
        // it: that costs peers less than a refusal would.
        self.ingress.accounts().room(Good::Streams).await;
        let account = self.ingress.account(source);
        let Some(place) = account.take_revocable(Good::Streams) else {
            return self.refuse(&socket, address, "too many streams from its address");
        };
        loop {
            let taken = self.taken.borrow_mut().take(self.pace, Instant::now());
            match taken {
                Ok(()) => break,
                Err(later) => sleep_until(later).await,
            }
        }
        let socket = match socket.into_std() {
            Ok(socket) => socket,
            Err(error) => {
                return tracing::info!(%address, %error, "a connection could not be handed over");
            }
        };
        let received = ReceiveConnection {
            socket,
            address,
            kind,
            place,
        };
        self.accepted.add(1);
        match self.porch.try_send(received) {
            Ok(()) => sleep(BREATH).await,
            Err(_) => self.refused.add(1),
        }
    }

    /// Ends a connection at no cost: without TLS, and without a state that the system would keep for it.
    fn refuse(&self, socket: &TcpStream, address: SocketAddr, reason: &str) {
        self.refused.add(1);
        let trace = Trace {
            stage: Stage::Accept,
            ..Trace::from(address)
        };
        self.ingress.outcomes().failed(&trace, &reason, None);
        // If that cannot be set, the connection is closed in the ordinary way.
        let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
    }
}
