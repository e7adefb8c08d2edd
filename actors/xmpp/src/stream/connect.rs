//! A TCP connection to one of several targets, each with several addresses (RFC 8305 §5).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use super::resolve::{ResolveError, Resolver, Target};
use crate::calls::Errand;
use crate::{Config, Ingress};

/// How long an attempt runs before the next address is tried beside it.
const HEAD_START: Duration = Duration::from_millis(250);
/// How long a target is tried before the next one is tried beside it: so long that one lost SYN, which is
/// repeated after a second, does not bring a target of lower priority to the front.
const TARGET_HEAD_START: Duration = Duration::from_millis(1500);
/// Silence after which the system asks whether the peer is still there.
const KEEPALIVE: Duration = Duration::from_secs(120);
/// How long the system waits for the peer's system to acknowledge what was sent.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a target was not reached.
#[derive(Debug, Error)]
pub(crate) enum Unreachable {
    #[error("{0}")]
    Resolve(#[from] ResolveError),
    #[error("{0}")]
    Connect(#[from] io::Error),
}

/// A connection, and to which target.
pub(crate) struct Reached {
    pub(crate) target: Target,
    pub(crate) tcp: TcpStream,
    /// How long the connection took to be made: about one round trip, or more.
    pub(crate) round_trip: Duration,
}

/// Connects to one target after the other, and to the next one beside a slow one.
pub(crate) struct Dial<'a> {
    way: Way<'a>,
    waiting: std::vec::IntoIter<Target>,
    attempts: FuturesUnordered<LocalBoxFuture<'a, Result<Reached, Unreachable>>>,
}

impl<'a> Dial<'a> {
    /// Takes the targets, best first.
    pub(crate) fn new(way: Way<'a>, targets: Vec<Target>) -> Self {
        Self {
            way,
            waiting: targets.into_iter(),
            attempts: FuturesUnordered::new(),
        }
    }

    /// The next connection or failure; none when all targets have been tried. To be called again when a
    /// connection turns out to be of no use.
    pub(crate) async fn next(&mut self) -> Option<Result<Reached, Unreachable>> {
        loop {
            if let Some(target) = self.waiting.next() {
                self.attempts.push(Box::pin(self.way.reach(target)));
            }
            tokio::select! {
                attempt = self.attempts.next() => return attempt,
                () = sleep(TARGET_HEAD_START), if self.waiting.len() > 0 => {}
            }
        }
    }
}

/// What the system may keep of a connection.
#[derive(Clone, Copy)]
pub(crate) struct Buffers {
    receive: u32,
    send: u32,
}

impl Buffers {
    pub(crate) const fn new(config: &Config) -> Self {
        Self {
            receive: config.receive_buffer_bytes,
            send: config.send_buffer_bytes,
        }
    }

    /// Sets it for a socket before it listens or connects, which is when the peer is told what fits in. What
    /// a listening socket accepts has the same.
    pub(crate) fn set(self, socket: &SockRef<'_>) -> io::Result<()> {
        let size = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        socket.set_recv_buffer_size(size(self.receive))?;
        socket.set_send_buffer_size(size(self.send))
    }
}

/// How to connect.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    /// How long a connection to one target may take.
    pub(crate) limit: Duration,
    /// None to leave it to the system.
    pub(crate) buffers: Option<Buffers>,
    /// What it is for, if a stranger wants it.
    pub(crate) errand: Option<&'a Errand<'a>>,
}

/// How to get to a peer.
#[derive(Clone, Copy)]
pub(crate) struct Way<'a> {
    pub(crate) resolver: &'a Resolver,
    terms: Terms<'a>,
}

impl<'a> Way<'a> {
    pub(crate) fn new(ingress: &'a Ingress, errand: Option<&'a Errand<'a>>) -> Self {
        Self {
            resolver: ingress.resolver(),
            terms: Terms {
                limit: ingress.config().connect_timeout(),
                buffers: Some(Buffers::new(ingress.config())),
                errand,
            },
        }
    }

    /// Connects to a target.
    pub(crate) async fn reach(self, target: Target) -> Result<Reached, Unreachable> {
        let addresses = self.resolver.addresses(&target).await?;
        let (round_trip, tcp) = connect(&addresses, self.terms).await?;
        tcp.set_nodelay(true)?;
        let socket = SockRef::from(&tcp);
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        Ok(Reached {
            target,
            tcp,
            round_trip,
        })
    }
}

/// Connects to the first of `addresses` that answers, all of it within the limit, and tells how long it took.
pub(crate) async fn connect(
    addresses: &[SocketAddr],
    terms: Terms<'_>,
) -> io::Result<(Duration, TcpStream)> {
    timeout(terms.limit, race(addresses, terms))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn connect_one(address: SocketAddr, terms: Terms<'_>) -> io::Result<(Duration, TcpStream)> {
    if let Some(errand) = terms.errand {
        errand.turn(address.ip()).await?;
    }
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(buffers) = terms.buffers {
        buffers.set(&SockRef::from(&socket))?;
    }
    let began = Instant::now();
    let tcp = socket.connect(address).await?;
    Ok((began.elapsed(), tcp))
}

async fn race(addresses: &[SocketAddr], terms: Terms<'_>) -> io::Result<(Duration, TcpStream)> {
    let mut waiting = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        let next = waiting.next();
        attempts.extend(next.map(|address| connect_one(*address, terms)));
        tokio::select! {
            attempt = attempts.next() => match attempt {
                Some(Ok(connected)) => return Ok(connected),
                Some(Err(error)) => failure = error,
                None => return Err(failure),
            },
            () = sleep(HEAD_START), if waiting.len() > 0 => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::super::resolve::Security;
    use super::*;

    const fn terms(limit: Duration) -> Terms<'static> {
        Terms {
            limit,
            buffers: None,
            errand: None,
        }
    }

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// An address that never answers: its backlog is full.
    async fn silent() -> (TcpListener, SocketAddr, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        let patience = Duration::from_millis(300);
        while let Ok(stream) = timeout(patience, TcpStream::connect(address)).await {
            queued.push(stream.unwrap());
        }
        (listener, address, queued)
    }

    #[actix::test]
    async fn the_next_address_is_tried_when_one_refuses() {
        let (closed, refusing) = listener().await;
        drop(closed);
        let (_open, answering) = listener().await;

        let limit = Duration::from_secs(10);
        let connected = connect(&[refusing, answering], terms(limit)).await;
        let (_, connected) = connected.unwrap();
        assert_eq!(connected.peer_addr().unwrap(), answering);
        let failed = connect(&[refusing], terms(limit)).await.unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::ConnectionRefused);
        let nowhere = connect(&[], terms(limit)).await.unwrap_err();
        assert_eq!(nowhere.kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[actix::test]
    async fn the_next_address_is_tried_beside_one_that_is_silent() {
        let (_full, silent, _queued) = silent().await;
        let (_open, answering) = listener().await;
        let begun = Instant::now();
        let limit = Duration::from_secs(20);
        let connected = connect(&[silent, answering], terms(limit)).await;
        let (_, connected) = connected.unwrap();
        assert_eq!(connected.peer_addr().unwrap(), answering);
        assert!(begun.elapsed() >= HEAD_START);
        assert!(begun.elapsed() < Duration::from_secs(10));
        let failed = connect(&[silent], terms(HEAD_START)).await.unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
    }

    #[actix::test]
    async fn targets_are_tried_in_order_and_beside_a_silent_one() {
        let (_full, silent, _queued) = silent().await;
        let (closed, refusing) = listener().await;
        drop(closed);
        let (_one, first) = listener().await;
        let (_two, second) = listener().await;
        let targets = [refusing, silent, first, second]
            .map(|address| Target::listed(address, Security::Direct));
        let resolver = Resolver::new(crate::stream::resolve::Hosts::new(), &Config::default());
        let begun = Instant::now();
        let limit = Duration::from_secs(20);
        let way = Way {
            resolver: &resolver,
            terms: terms(limit),
        };
        let mut dial = Dial::new(way, targets.into());
        let refused = dial.next().await.unwrap();
        assert!(matches!(refused, Err(Unreachable::Connect(_))));
        let mut reached = Vec::new();
        for _ in 0..2 {
            let next = dial.next().await.unwrap().ok().unwrap();
            assert_eq!(next.target.security, Security::Direct);
            reached.push(next.tcp.peer_addr().unwrap());
        }
        assert_eq!(reached, [first, second]);
        // The silent one cost its head start, not its limit.
        assert!(begun.elapsed() < limit / 2);
    }
}
