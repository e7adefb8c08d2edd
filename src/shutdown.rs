//! When to stop, and in which order.

use std::time::Duration;

use actix::Recipient;
use messages::{Drain, Drained};
use serde::Deserialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::{RunError, exit};

/// `[shutdown]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seconds that a stop may take. The pushes in hand have all but a fifth of them, at most two seconds
    /// less: the rest is for their answers, and for the ends of streams and connections.
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
    /// How many farewells before the end it has to give up what is left.
    pub farewells_left: u32,
    /// Who is asked.
    pub actors: Vec<Recipient<Drain>>,
}

/// How long the ends of streams and connections may take, or a tenth of the whole if that is less.
const FAREWELL: Duration = Duration::from_secs(1);

/// How much longer than it may an actor is waited for before it is taken for dead: what is left of the
/// grace is for those after it.
const PATIENCE: Duration = Duration::from_millis(250);

impl Order {
    /// Drains stage after stage and returns how many pieces of work were given up. It takes `grace` at
    /// most, and a quarter of a second for each stage with an actor that is dead by then. An actor that is gone counts
    /// as drained.
    pub async fn drain(self, grace: Duration) -> u64 {
        let farewell = FAREWELL.min(grace / 10);
        let end = Instant::now() + grace;
        let mut abandoned = 0;
        for stage in self.stages {
            let left = farewell.saturating_mul(stage.farewells_left);
            let deadline = end.checked_sub(left).unwrap_or(end);
            let now = Instant::now();
            let drain = Drain {
                deadline: deadline.into_std(),
                // One that is asked late has no more than is left.
                farewell: farewell.min(end.saturating_duration_since(now)),
            };
            let by = if left.is_zero() {
                deadline
            } else {
                deadline.max(now) + drain.farewell
            };
            let limit = by.saturating_duration_since(now) + PATIENCE;
            let mut asked = Vec::with_capacity(stage.actors.len());
            for actor in &stage.actors {
                asked.push(actix_rt::spawn(actor.send(drain).timeout(limit)));
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

#[cfg(test)]
mod tests {
    use actix::{Actor, Context, Handler, ResponseFuture};
    use tokio::time::sleep_until;

    use super::*;

    /// Takes all the time there is, for its work and for its farewell.
    struct Slow;

    impl Actor for Slow {
        type Context = Context<Self>;
    }

    impl Handler<Drain> for Slow {
        type Result = ResponseFuture<Drained>;

        fn handle(&mut self, drain: Drain, _: &mut Self::Context) -> Self::Result {
            Box::pin(async move {
                sleep_until(drain.deadline.into()).await;
                let now = Instant::now().into_std();
                let by = drain.closed_by(now, Duration::from_secs(60));
                sleep_until(by.into()).await;
                Drained { abandoned: 1 }
            })
        }
    }

    /// Never answers.
    struct Dead;

    impl Actor for Dead {
        type Context = Context<Self>;
    }

    impl Handler<Drain> for Dead {
        type Result = ResponseFuture<Drained>;

        fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
            Box::pin(std::future::pending())
        }
    }

    async fn check(grace_ms: u64, farewells_left: &[u32], expected_ms: u64) {
        let stages = farewells_left
            .iter()
            .map(|&farewells_left| Stage {
                name: "slow",
                farewells_left,
                actors: vec![Slow.start().recipient(), Slow.start().recipient()],
            })
            .collect();
        let start = Instant::now();
        let abandoned = Order { stages }
            .drain(Duration::from_millis(grace_ms))
            .await;
        assert_eq!(abandoned, 2 * farewells_left.len() as u64);
        let late = start
            .elapsed()
            .checked_sub(Duration::from_millis(expected_ms));
        // The timer's grain is a millisecond for each wait.
        assert!(
            late.is_some_and(|late| late < Duration::from_millis(20)),
            "{:?}",
            start.elapsed()
        );
    }

    #[actix_rt::test]
    async fn a_dead_actor_leaves_the_others_their_time() {
        tokio::time::pause();
        let stage = |farewells_left, actor| Stage {
            name: "stage",
            farewells_left,
            actors: vec![actor],
        };
        let stages = vec![
            stage(2, Dead.start().recipient()),
            stage(1, Slow.start().recipient()),
            stage(0, Slow.start().recipient()),
        ];
        let start = Instant::now();
        let abandoned = Order { stages }.drain(Duration::from_secs(10)).await;
        assert_eq!(abandoned, 2);
        let late = start.elapsed().checked_sub(Duration::from_secs(10));
        assert!(
            late.is_some_and(|late| late < Duration::from_millis(20)),
            "{:?}",
            start.elapsed()
        );
    }

    #[actix_rt::test]
    async fn a_stop_takes_its_grace_and_no_more() {
        tokio::time::pause();
        check(10_000, &[2], 9_000).await;
        check(10_000, &[2, 1], 10_000).await;
        check(1_000, &[2], 900).await;
        check(1_000, &[2, 1], 1_000).await;
        check(60_000, &[2, 1], 60_000).await;
        check(0, &[2, 1], 0).await;
    }
}
