//! A TCP connection to one of several targets, each with several addresses (RFC 8305 §5).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::resolve::{ResolveError, Resolver, Target};

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
    resolver: &'a Resolver,
    limit: Duration,
    waiting: std::vec::IntoIter<Target>,
    attempts: FuturesUnordered<LocalBoxFuture<'a, Result<Reached, Unreachable>>>,
}

impl<'a> Dial<'a> {
    /// Takes the targets, best first. A connection to one of them may take as long as `limit`.
    pub(crate) fn new(resolver: &'a Resolver, targets: Vec<Target>, limit: Duration) -> Self {
        Self {
            resolver,
            limit,
            waiting: targets.into_iter(),
            attempts: FuturesUnordered::new(),
        }
    }

    /// The next connection or failure; none when all targets have been tried. To be called again when a
    /// connection turns out to be of no use.
    pub(crate) async fn next(&mut self) -> Option<Result<Reached, Unreachable>> {
        loop {
            if let Some(target) = self.waiting.next() {
                let attempt = reach(self.resolver, target, self.limit);
                self.attempts.push(Box::pin(attempt));
            }
            tokio::select! {
                attempt = self.attempts.next() => return attempt,
                () = sleep(TARGET_HEAD_START), if self.waiting.len() > 0 => {}
            }
        }
    }
}

/// Connects to a target.
pub(crate) async fn reach(
    resolver: &Resolver,
    target: Target,
    limit: Duration,
) -> Result<Reached, Unreachable> {
    let addresses = resolver.addresses(&target).await?;
    let began = Instant::now();
    let tcp = connect(&addresses, limit).await?;
    let round_trip = began.elapsed();
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

/// Connects to the first of `addresses` that answers, all of it within `limit`.
pub(crate) async fn connect(addresses: &[SocketAddr], limit: Duration) -> io::Result<TcpStream> {
    timeout(limit, race(addresses))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn race(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut waiting = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        attempts.extend(waiting.next().map(|address| TcpStream::connect(*address)));
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

    use tokio::net::{TcpListener, TcpSocket};

    use super::super::resolve::Security;
    use super::*;
    use crate::Config;

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
        let connected = connect(&[refusing, answering], limit).await.unwrap();
        assert_eq!(connected.peer_addr().unwrap(), answering);
        let failed = connect(&[refusing], limit).await.unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::ConnectionRefused);
        let nowhere = connect(&[], limit).await.unwrap_err();
        assert_eq!(nowhere.kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[actix::test]
    async fn the_next_address_is_tried_beside_one_that_is_silent() {
        let (_full, silent, _queued) = silent().await;
        let (_open, answering) = listener().await;
        let begun = Instant::now();
        let limit = Duration::from_secs(20);
        let connected = connect(&[silent, answering], limit).await.unwrap();
        assert_eq!(connected.peer_addr().unwrap(), answering);
        assert!(begun.elapsed() >= HEAD_START);
        assert!(begun.elapsed() < Duration::from_secs(10));
        let failed = connect(&[silent], HEAD_START).await.unwrap_err();
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
        let mut dial = Dial::new(&resolver, targets.into(), limit);
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
