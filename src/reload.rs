//! SIGHUP: the actors look at their files again.

use std::convert::Infallible;

use actix::Recipient;
use messages::Reload;
use tokio::signal::unix::{SignalKind, signal};

/// Passes each SIGHUP on, for as long as the future is polled.
pub async fn on_hangup(actors: Vec<Recipient<Reload>>) -> Infallible {
    match signal(SignalKind::hangup()) {
        Ok(mut hangup) => {
            while hangup.recv().await.is_some() {
                tracing::info!("SIGHUP: looking at certificates, keys and authorities");
                for actor in &actors {
                    // The guardian sees an actor that is gone.
                    let _ = actor.send(Reload).await;
                }
            }
        }
        Err(error) => tracing::error!(%error, "cannot listen for SIGHUP"),
    }
    std::future::pending().await
}
