//! From a name to a usable connection: usable is what has spoken TLS with ALPN `h2` and sent its SETTINGS.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Error;
use crate::tls::H2;
use crate::upstream::Upstream;

/// Answers are tiny, but an error storm has many: no window may ever stall a connection.
const WINDOW_BYTES: u32 = 1 << 20;

/// Most bytes of headers that an answer may have: Apple's have some three hundred.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;

/// A usable connection.
pub(crate) struct Wire {
    pub(crate) sender: SendRequest<Bytes>,
    pub(crate) connection: Connection<TlsStream<TcpStream>, Bytes>,
    pub(crate) ping: PingPong,
}

/// Looks the name up anew, as APNs moves, and tries all its addresses in random order, each with its
/// share of the time that is left.
pub(crate) async fn open(upstream: &Upstream, limit: Duration) -> Result<Wire, Error> {
    let deadline = Instant::now() + limit;
    let look_up = lookup_host((upstream.host.as_str(), upstream.port));
    let mut addresses: Vec<SocketAddr> = timeout_at(deadline, look_up)
        .await
        .map_err(|_| Error::ConnectTimeout)?
        .map_err(Error::LookUp)?
        .collect();
    fastrand::shuffle(&mut addresses);
    let mut last = Error::LookUp(std::io::Error::new(
        std::io::ErrorKind::NotFound,
        "the name has no address",
    ));
    let mut untried = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for address in addresses {
        let share = deadline.saturating_duration_since(Instant::now()) / untried;
        untried -= 1;
        match timeout(share, Box::pin(establish(upstream, address))).await {
            Ok(Ok(wire)) => return Ok(wire),
            Ok(Err(error)) => last = error,
            Err(_) => last = Error::ConnectTimeout,
        }
    }
    Err(last)
}

async fn establish(upstream: &Upstream, address: SocketAddr) -> Result<Wire, Error> {
    let tcp = TcpStream::connect(address).await.map_err(Error::Connect)?;
    // Without it Nagle waits for delayed acknowledgements and the rate falls to a twentieth.
    tcp.set_nodelay(true).map_err(Error::Connect)?;
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
        .handshake(tls)
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
    connection: &mut Connection<TlsStream<TcpStream>, Bytes>,
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
