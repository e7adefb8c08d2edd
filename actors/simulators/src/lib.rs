//! Simulators for trying, testing and benchmarking: a strict APNs and a small XMPP server.
//!
//! Both are implementations of their own: they share no code with the actors that they are the peers
//! of, so that a misunderstanding shows. Both are actors: `start` runs one on the current arbiter and
//! gives [`apple::Handles`] or [`server::Handles`], which work from any thread. A benchmark gives each
//! an arbiter of its own, with `Arbiter::spawn_fn` and a channel for the handles:
//!
//! ```
//! use messages::Clock;
//! use simulators::{Authority, Kind, SigningKey, apple};
//!
//! # actix::System::new().block_on(async {
//! let authority = Authority::new(&Clock::system())?;
//! let key = SigningKey::new("TEAM000001", "KEY0000001")?;
//! let edges = apple::Edges {
//!     identity: authority.issue(&["localhost"], Kind::ServerOnly)?,
//!     keys: vec![apple::KnownKey {
//!         id: key.id().clone(),
//!         public_key: key.public_key().to_vec(),
//!         topics: vec!["im.example.app".to_owned()],
//!     }],
//!     clock: Clock::system(),
//! };
//! let (tell, told) = tokio::sync::oneshot::channel();
//! let arbiter = actix_rt::Arbiter::new();
//! arbiter.spawn_fn(move || {
//!     let _caller_gone = tell.send(apple::start(&apple::Config::default(), edges));
//! });
//! let apple = told.await.map_err(|_| simulators::SimulatorError::Stopping)??;
//! assert_eq!(apple.control.counters().requests, 0);
//! # Ok::<(), simulators::SimulatorError>(())
//! # })?;
//! # Ok::<(), simulators::SimulatorError>(())
//! ```
//!
//! - [`authority`] makes certificates and Apple's kind of signing keys, and writes them as files.
//! - [`apple`] judges requests. [`apple::Control`] sets verdicts and faults at run time and shows what
//!   happened: counters, the stream of notifications, whether each device got exactly one.
//! - [`server`] registers devices, publishes pushes one by one or in floods, and counts each breach of
//!   the rules of streams ([`server::Counters::violations`]). Two that need each other's address are
//!   started first and told by [`server::ServiceAt`]; a push service that is its component
//!   ([`server::Config::component`]) comes by itself.

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
