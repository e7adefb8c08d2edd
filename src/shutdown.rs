//! When to stop, and in which order.

use std::time::{Duration, Instant};

use actix::Recipient;
use messages::{Drain, Drained};
use serde::Deserialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{RunError, exit};

/// `[shutdown]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seconds that the pushes in hand may take before they are given up.
    pub grace_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { grace_seconds: 10 }
    }
}

/// The actors to drain, stage by stage. A stage is asked once the one before has finished.
pub struct Order {
    /// What is asked together, in the order of `docs/architecture.md`, shutdown.
    pub stages: Vec<Stage>,
}

/// Actors that are drained together.
pub struct Stage {
    /// For the log.
    pub name: &'static str,
    /// Who is asked.
    pub actors: Vec<Recipient<Drain>>,
}

/// Time each stage has beyond the deadline to say what it gave up.
const LAST_WORD: Duration = Duration::from_secs(2);

impl Order {
    /// Drains stage after stage and returns how many pieces of work were given up. An actor that is
    /// gone counts as drained.
    pub async fn drain(self, grace: Duration) -> u64 {
        let deadline = Instant::now() + grace;
        let mut abandoned = 0;
        for stage in self.stages {
            let mut asked = Vec::with_capacity(stage.actors.len());
            for actor in &stage.actors {
                let limit = deadline.saturating_duration_since(Instant::now()) + LAST_WORD;
                asked.push(actix_rt::spawn(
                    actor.send(Drain { deadline }).timeout(limit),
                ));
            }
            let mut given_up = 0;
            for answer in asked {
                match answer.await {
                    Ok(Ok(Drained { abandoned })) => given_up += abandoned,
                    Ok(Err(actix::MailboxError::Timeout)) => {
                        tracing::warn!(stage = stage.name, "an actor did not finish draining");
                    }
                    Ok(Err(actix::MailboxError::Closed)) | Err(_) => {}
                }
            }
            tracing::debug!(stage = stage.name, given_up, "drained");
            abandoned += given_up;
        }
        abandoned
    }
}

/// SIGTERM and SIGINT, listened for from the moment this is made.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// [`RunError::System`] when the signals cannot be listened for.
    pub fn listen() -> Result<Self, RunError> {
        let listen = |kind| {
            signal(kind).map_err(|source| RunError::System {
                what: "cannot listen for signals",
                source,
            })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Resolves at the first signal. A second one then ends the process at once, with the exit code of
    /// abandoned work.
    pub async fn requested(mut self) {
        self.next().await;
        actix_rt::spawn(async move {
            self.next().await;
            tracing::warn!("second signal: ending without waiting for the pushes in hand");
            std::process::exit(exit::ABANDONED);
        });
    }
}
