//! Where strangers wait: leads each new connection through TLS, and hands it to the lane that has least to do.
//!
//! It runs on a thread of its own that yields to the lanes: who has not come through a handshake yet, which takes
//! as long as eighty pushes, takes little from those who are inside.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use actix::{
    Actor, Context, Handler, Message, MessageResult, Recipient, ResponseFuture, Supervised,
    Supervisor,
};
use messages::{Drain, Drained, Health, Probe};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Ingress;
use crate::accounts::Hold;
use crate::gate::{self, AdmitStream, Count, Load};
use crate::stream::tls::Kind;
use crate::stream::{Explained, Fault, Socket, Trace, inbound};

/// Silence after which the system asks whether the peer is still there.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(120);
/// How often it asks, and how many times without an answer it does.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_RETRIES: u32 = 3;

/// What the porch accepts.
#[derive(Clone)]
pub struct Handles {
    /// New connections, from the listener.
    pub receive: Recipient<ReceiveConnection>,
    /// Ends handshakes that are not over.
    pub drain: Recipient<Drain>,
    /// Counters.
    pub probe: Recipient<Probe>,
}

/// A connection that was accepted.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ReceiveConnection {
    pub(crate) socket: std::net::TcpStream,
    pub(crate) address: SocketAddr,
    pub(crate) kind: Kind,
    /// Its place among all, given back when it ends.
    pub(crate) place: Hold,
}

/// Starts the porch of these lanes on the current arbiter.
#[must_use]
pub fn start(ingress: &Ingress, lanes: Vec<gate::Handles>) -> Handles {
    let lanes = lanes
        .into_iter()
        .map(|gate::Handles { admit, load, .. }| Door { admit, load });
    let porch = Porch {
        shared: Rc::new(Shared::new(ingress, lanes.collect())),
        handshakes: JoinSet::new(),
    };
    let address = Supervisor::start(|ctx: &mut Context<Porch>| {
        ctx.set_mailbox_capacity(0);
        porch
    });
    Handles {
        receive: address.clone().recipient(),
        drain: address.clone().recipient(),
        probe: address.recipient(),
    }
}

/// The way into a lane.
pub(crate) struct Door {
    pub(crate) admit: Recipient<AdmitStream>,
    pub(crate) load: Load,
}

/// What the handshakes share.
pub(crate) struct Shared {
    ingress: Ingress,
    doors: Vec<Door>,
    /// Where the search for the least busy lane begins, so that equals take turns.
    next: Cell<usize>,
    waiting: Count,
    failed: Count,
}

struct Porch {
    shared: Rc<Shared>,
    handshakes: JoinSet<()>,
}

impl Actor for Porch {
    type Context = Context<Self>;
}

impl Supervised for Porch {}

impl Handler<ReceiveConnection> for Porch {
    type Result = ();

    fn handle(&mut self, received: ReceiveConnection, _: &mut Self::Context) {
        let ReceiveConnection {
            socket,
            address,
            kind,
            place,
        } = received;
        while self.handshakes.try_join_next().is_some() {}
        match prepare(socket) {
            Ok(socket) => {
                let handshake = Handshake::new(Rc::clone(&self.shared), address, place);
                self.handshakes
                    .spawn_local(handshake.run(Box::new(socket), kind, address));
            }
            Err(error) => {
                self.shared.failed.add(1);
                let outcomes = self.shared.ingress.outcomes();
                outcomes.failed(&Trace::from(address), &Fault::Io(error), None);
            }
        }
    }
}

fn prepare(socket: std::net::TcpStream) -> io::Result<TcpStream> {
    socket.set_nonblocking(true)?;
    socket.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
    TcpStream::from_std(socket)
}

impl Handler<Drain> for Porch {
    type Result = ResponseFuture<Drained>;

    /// Nobody on the porch has asked for anything yet.
    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        let mut handshakes = std::mem::take(&mut self.handshakes);
        Box::pin(async move {
            handshakes.shutdown().await;
            Drained { abandoned: 0 }
        })
    }
}

impl Handler<Probe> for Porch {
    type Result = MessageResult<Probe>;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Self::Result {
        MessageResult(Health {
            counters: vec![
                ("handshakes_open", self.shared.waiting.get()),
                ("handshakes_failed_total", self.shared.failed.get()),
            ],
        })
    }
}

impl Shared {
    pub(crate) fn new(ingress: &Ingress, doors: Vec<Door>) -> Self {
        Self {
            ingress: ingress.clone(),
            doors,
            next: Cell::new(0),
            waiting: Count::default(),
            failed: Count::default(),
        }
    }

    fn least_busy(&self) -> Option<&Door> {
        let first = self.next.get();
        self.next.set(first.wrapping_add(1));
        let turn = first.checked_rem(self.doors.len())?;
        let (after, before) = self.doors.split_at_checked(turn)?;
        let doors = before.iter().chain(after);
        doors.min_by_key(|door| door.load.get())
    }
}

/// A connection on its way to a secured stream.
pub(crate) struct Handshake {
    shared: Rc<Shared>,
    trace: Trace,
    place: Hold,
    _waiting: Waiting,
}

/// Counts one who waits.
struct Waiting(Rc<Shared>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.remove(1);
    }
}

impl Handshake {
    pub(crate) fn new(shared: Rc<Shared>, address: SocketAddr, place: Hold) -> Self {
        shared.waiting.add(1);
        Self {
            _waiting: Waiting(Rc::clone(&shared)),
            shared,
            trace: Trace::from(address),
            place,
        }
    }

    pub(crate) async fn run(mut self, socket: Box<dyn Socket>, kind: Kind, address: SocketAddr) {
        let ingress = &self.shared.ingress;
        let deadline = Instant::now() + ingress.config().authentication_timeout();
        let revocation = self.place.revocation();
        let secured = tokio::select! {
            secured = inbound::secure(socket, kind, address, ingress, deadline, &mut self.trace) => secured,
            () = revocation.come() => Err(Fault::gave_way()),
        };
        let stream = match secured {
            Ok(stream) => stream,
            Err(fault) => {
                self.shared.failed.add(1);
                let reason = Explained(&fault, self.trace.stage);
                let outcomes = ingress.outcomes();
                return outcomes.failed(&self.trace, &reason, fault.stream_error());
            }
        };
        let admitted = AdmitStream {
            stream: Box::new(stream),
            place: self.place,
            trace: self.trace,
            deadline,
        };
        // A lane that is gone takes nobody; the guardian knows.
        let door = self.shared.least_busy();
        if door.is_none_or(|door| door.admit.try_send(admitted).is_err()) {
            self.shared.failed.add(1);
        }
    }
}
