//! Watches that every actor answers. A panicked actor is gone for good and one that hangs is no better:
//! both end the process in order, and the service manager starts it again.

use std::time::{Duration, Instant};

use actix::{MailboxError, Recipient};
use messages::{Health, Probe};
use serde::Deserialize;

/// `[guardian]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seconds between two rounds.
    pub interval_seconds: u64,
    /// Seconds an actor may take to answer.
    pub patience_seconds: u64,
    /// Rounds in a row an actor may fail to answer before it is taken for dead.
    pub strikes: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval_seconds: 5,
            patience_seconds: 2,
            strikes: 3,
        }
    }
}

/// One watched actor.
pub struct Ward {
    /// For the log: the actor, with its lane if it has one.
    pub name: String,
    /// Where to ask.
    pub probe: Recipient<Probe>,
}

/// Who was found dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// The name of the [`Ward`].
    pub name: String,
}

/// Asks all wards round by round; returns when one is dead.
pub async fn watch(config: Config, wards: Vec<Ward>) -> Dead {
    let patience = Duration::from_secs(config.patience_seconds);
    let mut strikes = vec![0_u32; wards.len()];
    let mut rounds = tokio::time::interval(Duration::from_secs(config.interval_seconds.max(1)));
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        let asked: Vec<_> = wards
            .iter()
            .map(|ward| {
                let answer = ward.probe.send(Probe).timeout(patience);
                let at = Instant::now();
                actix_rt::spawn(async move { (answer.await, at.elapsed()) })
            })
            .collect();
        for ((ward, strikes), answer) in wards.iter().zip(&mut strikes).zip(asked) {
            match answer.await {
                Ok((Ok(Health { counters }), lag)) => {
                    *strikes = 0;
                    let lag = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
                    tracing::debug!(
                        actor = ward.name,
                        lag_milliseconds = lag,
                        ?counters,
                        "alive"
                    );
                }
                Ok((Err(MailboxError::Timeout), _)) => {
                    *strikes += 1;
                    tracing::warn!(actor = ward.name, strikes, "actor is slow to answer");
                    if *strikes >= config.strikes {
                        return Dead {
                            name: ward.name.clone(),
                        };
                    }
                }
                Ok((Err(MailboxError::Closed), _)) | Err(_) => {
                    return Dead {
                        name: ward.name.clone(),
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use actix::{Actor, Context, Handler, MessageResult};

    use super::*;

    struct Mortal;

    impl Actor for Mortal {
        type Context = Context<Self>;
    }

    impl Handler<Probe> for Mortal {
        type Result = MessageResult<Probe>;

        fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Self::Result {
            panic!("the panic this test is about");
        }
    }

    struct Sleeper;

    impl Actor for Sleeper {
        type Context = Context<Self>;
    }

    impl Handler<Probe> for Sleeper {
        type Result = actix::ResponseFuture<Health>;

        fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Self::Result {
            Box::pin(std::future::pending())
        }
    }

    fn ward(name: &str, probe: Recipient<Probe>) -> Ward {
        Ward {
            name: name.to_owned(),
            probe,
        }
    }

    #[actix_rt::test]
    async fn a_panicked_actor_is_dead_at_once() {
        let wards = vec![ward("mortal", Mortal.start().recipient())];
        let dead = watch(Config::default(), wards).await;
        assert_eq!(dead.name, "mortal");
    }

    #[actix_rt::test]
    async fn a_silent_actor_is_dead_after_its_strikes() {
        tokio::time::pause();
        let began = tokio::time::Instant::now();
        let wards = vec![ward("sleeper", Sleeper.start().recipient())];
        let dead = watch(Config::default(), wards).await;
        assert_eq!(dead.name, "sleeper");
        assert!(began.elapsed() >= Duration::from_secs(2 + 5 + 5));
    }
}
