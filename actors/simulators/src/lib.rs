//! Simulators for trying, testing and benchmarking: a strict APNs and a small XMPP server.

pub mod apple;
pub mod authority;
mod error;
pub mod server;
mod tls;

pub use authority::{Authority, Identity, Kind, SigningKey};
pub use error::SimulatorError;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;

/// How long a listener rests when the system has no socket for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Opens a listening socket for the current arbiter and tells its address.
fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), SimulatorError> {
    std::net::TcpListener::bind(address)
        .and_then(|listener| {
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((TcpListener::from_std(listener)?, address))
        })
        .map_err(|source| SimulatorError::Bind { address, source })
}
