//! SIGHUP: the actors look at their files again.

use std::convert::Infallible;

use actix::Recipient;
use messages::Reload;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::RunError;

/// SIGHUPs, listened for from the moment this is made: before, one ends the process.
pub struct Hangups(Signal);

impl Hangups {
    /// Listens from now on.
    ///
    /// # Errors
    /// [`RunError::System`] when the signal cannot be listened for.
    pub fn listen() -> Result<Self, RunError> {
        signal(SignalKind::hangup())
            .map(Self)
            .map_err(|source| RunError::System {
                what: "cannot listen for SIGHUP",
                source,
            })
    }

    /// Tells the actors of each, for as long as the future is polled.
    pub async fn pass_on(mut self, actors: Vec<Recipient<Reload>>) -> Infallible {
        loop {
            self.0.recv().await;
            tracing::info!("SIGHUP: looking at certificates, keys and authorities");
            for actor in &actors {
                // The guardian sees an actor that is gone.
                let _ = actor.send(Reload).await;
            }
        }
    }
}
