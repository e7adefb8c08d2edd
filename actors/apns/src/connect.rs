//! From a name to a usable connection: usable is what has spoken TLS with ALPN `h2` and sent its SETTINGS.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Error;
use crate::paced::Paced;
use crate::tls::H2;
use crate::upstream::Upstream;

/// Answers are tiny, but an error storm has many: no window may ever stall a connection.
const WINDOW_BYTES: u32 = 1 << 20;

/// Most bytes of headers that an answer may have: Apple's have some three hundred.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;

/// How long an address has to answer before the next one is tried beside it (RFC 8305 §5).
const HEAD_START: Duration = Duration::from_millis(250);

/// Where names are looked up.
#[derive(Clone)]
pub struct Names(Arc<LookUp>);

type LookUp = dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

impl Names {
    /// Where the system looks them up.
    #[must_use]
    pub fn system() -> Self {
        Self::new(|host, port| {
            Box::pin(async move { Ok(lookup_host((host.as_str(), port)).await?.collect()) })
        })
    }

    /// Where `look_up` says, for tests.
    #[must_use]
    pub fn new(
        look_up: impl Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self(Arc::new(look_up))
    }
}

/// A usable connection.
pub(crate) struct Wire {
    pub(crate) sender: SendRequest<Bytes>,
    pub(crate) connection: Connection<Paced<TlsStream<TcpStream>>, Bytes>,
    pub(crate) ping: PingPong,
}

/// Looks the name up anew, as APNs moves, and races its addresses in random order and both families in
/// turn. When TLS or HTTP/2 fails at one, the others still have their share of the time that is left.
pub(crate) async fn open(
    upstream: &Upstream,
    names: &Names,
    limit: Duration,
) -> Result<Wire, Error> {
    let deadline = Instant::now() + limit;
    let (host, port) = upstream.proxy.as_ref().map_or(
        (&upstream.host, upstream.port),
        // The proxy looks the endpoint up.
        |proxy| (&proxy.host, proxy.port),
    );
    let mut addresses = timeout_at(deadline, (names.0)(host.clone(), port))
        .await
        .map_err(|_| Error::ConnectTimeout)?
        .map_err(Error::LookUp)?;
    fastrand::shuffle(&mut addresses);
    let mut untried = in_turn(addresses);
    loop {
        let tcp = timeout_at(deadline, race(&mut untried, TcpStream::connect))
            .await
            .map_err(|_| Error::ConnectTimeout)??;
        let left = u32::try_from(untried.len() + 1).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        let error = match timeout(share, Box::pin(establish(upstream, tcp))).await {
            Ok(Ok(wire)) => return Ok(wire),
            Ok(Err(error)) => error,
            Err(_) => Error::ConnectTimeout,
        };
        if untried.is_empty() {
            return Err(error);
        }
    }
}

/// Both families in turn, IPv6 first, so that a network where one of them leads nowhere costs one head
/// start and no more.
fn in_turn(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let (six, four): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    let mut turns = VecDeque::new();
    loop {
        let pair = (six.next(), four.next());
        if pair == (None, None) {
            return turns;
        }
        turns.extend(pair.0);
        turns.extend(pair.1);
    }
}

/// The first address that answers; an earlier one goes on while later ones are tried. What was not tried
/// is left.
async fn race<T, F>(
    untried: &mut VecDeque<SocketAddr>,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<T, Error>
where
    F: Future<Output = io::Result<T>>,
{
    let mut running = FuturesUnordered::new();
    let mut last = Error::LookUp(io::Error::new(
        io::ErrorKind::NotFound,
        "the name has no address",
    ));
    loop {
        if let Some(address) = untried.pop_front() {
            running.push(connect(address));
        }
        tokio::select! {
            first = running.next() => match first {
                Some(Ok(connected)) => return Ok(connected),
                Some(Err(error)) => last = Error::Connect(error),
                None => return Err(last),
            },
            () = sleep(HEAD_START), if !untried.is_empty() => {}
        }
    }
}

async fn establish(upstream: &Upstream, mut tcp: TcpStream) -> Result<Wire, Error> {
    // Without it Nagle waits for delayed acknowledgements and the rate falls to a twentieth.
    tcp.set_nodelay(true).map_err(Error::Connect)?;
    if let Some(proxy) = &upstream.proxy {
        proxy
            .tunnel(&mut tcp, &upstream.host, upstream.port)
            .await?;
    }
    let tls = TlsConnector::from(upstream.tls.clone())
        .connect(upstream.server_name.clone(), tcp)
        .await
        .map_err(Error::Connect)?;
    if tls.get_ref().1.alpn_protocol() != Some(H2) {
        return Err(Error::NotHttp2);
    }
    let (sender, mut connection) = Builder::new()
        .enable_push(false)
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_header_list_size(HEADERS_BYTES_MAX)
        // Until the peer says otherwise; h2 would take 100 for granted.
        .initial_max_send_streams(1)
        .handshake(Paced::new(tls))
        .await
        .map_err(Error::Handshake)?;
    let mut ping = connection.ping_pong().ok_or(Error::ClosedEarly)?;
    // The peer's SETTINGS come before anything else it sends, hence before this answer.
    ping.send_ping(Ping::opaque()).map_err(Error::Handshake)?;
    poll_fn(|cx| poll_settings(&mut connection, &mut ping, cx)).await?;
    Ok(Wire {
        sender,
        connection,
        ping,
    })
}

fn poll_settings(
    connection: &mut Connection<Paced<TlsStream<TcpStream>>, Bytes>,
    ping: &mut PingPong,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Error>> {
    if let Poll::Ready(end) = Pin::new(connection).poll(cx) {
        return Poll::Ready(Err(match end {
            Ok(()) => Error::ClosedEarly,
            Err(error) => Error::Handshake(error),
        }));
    }
    ping.poll_pong(cx)
        .map(|answer| answer.map(drop).map_err(Error::Handshake))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[track_caller]
    fn check_turns(found: &[&str], expected: &[&str]) {
        assert_eq!(in_turn(addresses(found)), addresses(expected));
    }

    #[test]
    fn families_take_turns() {
        check_turns(&[], &[]);
        check_turns(
            &[
                "10.0.0.1:1",
                "10.0.0.2:1",
                "10.0.0.3:1",
                "[::1]:1",
                "[::2]:1",
            ],
            &[
                "[::1]:1",
                "10.0.0.1:1",
                "[::2]:1",
                "10.0.0.2:1",
                "10.0.0.3:1",
            ],
        );
        check_turns(&["10.0.0.1:1"], &["10.0.0.1:1"]);
    }

    /// Ports tell how the address behaves: 1 is silent, 2 refuses, 3 answers, 4 answers after 400 ms.
    async fn connect(address: SocketAddr) -> io::Result<SocketAddr> {
        match address.port() {
            1 => std::future::pending().await,
            2 => Err(io::ErrorKind::ConnectionRefused.into()),
            3 => Ok(address),
            _ => {
                sleep(Duration::from_millis(400)).await;
                Ok(address)
            }
        }
    }

    async fn check_race(order: &[&str], winner: Option<&str>, after_ms: u64, left: usize) {
        let start = Instant::now();
        let mut untried = addresses(order).into();
        let got = race(&mut untried, connect).await.ok();
        assert_eq!(got, winner.map(|text| text.parse().unwrap()), "{order:?}");
        // The timer's grain is a millisecond for each wait.
        let late = start
            .elapsed()
            .saturating_sub(Duration::from_millis(after_ms));
        assert!(
            late < Duration::from_millis(10),
            "{order:?}: {:?}",
            start.elapsed()
        );
        assert!(
            start.elapsed() >= Duration::from_millis(after_ms),
            "{order:?}"
        );
        assert_eq!(untried.len(), left, "{order:?}");
    }

    #[actix::test]
    async fn a_silent_address_costs_a_head_start() {
        tokio::time::pause();
        check_race(&[], None, 0, 0).await;
        check_race(&["[::1]:3", "10.0.0.1:3"], Some("[::1]:3"), 0, 1).await;
        check_race(&["[::1]:1", "10.0.0.1:3"], Some("10.0.0.1:3"), 250, 0).await;
        check_race(&["[::1]:2", "10.0.0.1:3"], Some("10.0.0.1:3"), 0, 0).await;
        check_race(&["[::1]:2", "10.0.0.1:2"], None, 0, 0).await;
        // A slow first one still wins when the second one leads nowhere.
        check_race(&["[::1]:4", "10.0.0.1:1"], Some("[::1]:4"), 400, 0).await;
        check_race(
            &["[::1]:1", "10.0.0.1:1", "[::1]:1", "10.0.0.1:3", "[::1]:3"],
            Some("10.0.0.1:3"),
            750,
            1,
        )
        .await;
    }
}
