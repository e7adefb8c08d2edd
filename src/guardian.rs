//! Watches that every actor answers. A panicked actor is gone for good and one that hangs is no better:
//! both end the process in order, and the service manager starts it again.
//!
//! Busy is not dead: a lane that peers keep busy answers late, and a process that ended for it would be theirs
//! to end. So a question that waits only counts against an actor when its whole thread does nothing, or when
//! the wait is out of all proportion.

use std::time::Duration;

use actix::{MailboxError, Recipient};
use messages::{Health, Probe};
use serde::Deserialize;
use tokio::runtime::{Handle, RuntimeMetrics};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

/// Time between two log lines about the same actor that answers late.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// `[guardian]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seconds between two rounds.
    pub interval_seconds: u64,
    /// Seconds an actor may take to answer until that is told.
    pub patience_seconds: u64,
    /// Rounds in a row in which an actor may fail to answer while its thread does nothing, before it is taken
    /// for dead.
    pub strikes: u32,
    /// Seconds an actor may leave a question unanswered while its thread does other work.
    pub silence_seconds_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval_seconds: 5,
            patience_seconds: 2,
            strikes: 3,
            silence_seconds_max: 60,
        }
    }
}

/// What a thread shows of its work.
#[derive(Clone, Debug)]
pub struct Pulse(RuntimeMetrics);

/// A moment of a [`Pulse`].
#[derive(Clone, Copy, PartialEq, Eq)]
struct Beat {
    /// Odd while the thread waits for something to do.
    parks: u64,
    /// Grows with each batch of tasks, however many are ready.
    busy: Duration,
}

impl Pulse {
    /// That of the current arbiter.
    #[must_use]
    pub fn here() -> Self {
        Self(Handle::current().metrics())
    }

    fn beat(&self) -> Beat {
        // An arbiter has one worker.
        Beat {
            parks: self.0.worker_park_unpark_count(0),
            busy: self.0.worker_total_busy_duration(0),
        }
    }
}

impl Beat {
    /// Whether a thread that showed `before` lives.
    fn lives_since(self, before: Self) -> bool {
        self.parks % 2 == 1 || self != before
    }
}

/// One watched actor.
pub struct Ward {
    /// For the log: the actor, with its lane if it has one.
    pub name: String,
    /// Where to ask.
    pub probe: Recipient<Probe>,
    /// The thread that it runs on.
    pub pulse: Pulse,
}

/// Who was found dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// The name of the [`Ward`].
    pub name: String,
}

/// The answer, and how long it took.
type Answer = (Result<Health, MailboxError>, Duration);

/// What is known of a ward.
struct Watched {
    ward: Ward,
    /// The question that is not answered, and when it was asked. There is one at a time.
    asked: Option<(JoinHandle<Answer>, Instant)>,
    beat: Beat,
    strikes: u32,
    /// When its lateness was told last.
    told: Option<Instant>,
}

impl Watched {
    fn new(ward: Ward) -> Self {
        let beat = ward.pulse.beat();
        Self {
            ward,
            asked: None,
            beat,
            strikes: 0,
            told: None,
        }
    }

    fn ask(&mut self) {
        if self.asked.is_none() {
            let answer = self.ward.probe.send(Probe);
            let at = Instant::now();
            let answer = actix_rt::spawn(async move { (answer.await, at.elapsed()) });
            self.asked = Some((answer, at));
        }
    }

    /// Waits for the answer and says whether the ward lives.
    async fn judge(&mut self, config: &Config, deadline: Instant) -> bool {
        let Some((answer, at)) = &mut self.asked else {
            return true;
        };
        let (at, answered) = (*at, timeout_at(deadline, answer).await);
        let beat = self.ward.pulse.beat();
        let lives = beat.lives_since(self.beat);
        self.beat = beat;
        let answered = answered.inspect(|_| self.asked = None);
        match answered {
            Ok(Ok((Ok(Health { counters }), lag))) => {
                self.strikes = 0;
                let lag_milliseconds = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
                let actor = &self.ward.name;
                tracing::debug!(actor, lag_milliseconds, ?counters, "alive");
                if lag > Duration::from_secs(config.patience_seconds) {
                    self.tell_late(lag);
                }
                true
            }
            Ok(_) => false,
            Err(_) if lives => {
                self.strikes = 0;
                let lag = at.elapsed();
                self.tell_late(lag);
                lag < Duration::from_secs(config.silence_seconds_max)
            }
            Err(_) => {
                self.strikes += 1;
                let (actor, strikes) = (&self.ward.name, self.strikes);
                tracing::warn!(
                    actor,
                    strikes,
                    "actor does not answer, and its thread does nothing"
                );
                self.strikes < config.strikes
            }
        }
    }

    fn tell_late(&mut self, lag: Duration) {
        if self.told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
            self.told = Some(Instant::now());
            let lag_milliseconds = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
            let actor = &self.ward.name;
            tracing::warn!(
                actor,
                lag_milliseconds,
                "actor is slow to answer, its thread is busy"
            );
        }
    }
}

/// Asks all wards round by round; returns when one is dead.
pub async fn watch(config: Config, wards: Vec<Ward>) -> Dead {
    let patience = Duration::from_secs(config.patience_seconds);
    let mut wards: Vec<_> = wards.into_iter().map(Watched::new).collect();
    let mut rounds = tokio::time::interval(Duration::from_secs(config.interval_seconds.max(1)));
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        for ward in &mut wards {
            ward.ask();
        }
        let deadline = Instant::now() + patience;
        for watched in &mut wards {
            if !watched.judge(&config, deadline).await {
                return Dead {
                    name: watched.ward.name.clone(),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use actix::{Actor, Context, Handler, MessageResult};

    use super::*;
    use crate::lanes::Lane;

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

    struct Healthy;

    impl Actor for Healthy {
        type Context = Context<Self>;
    }

    impl Handler<Probe> for Healthy {
        type Result = MessageResult<Probe>;

        fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Self::Result {
            MessageResult(Health::default())
        }
    }

    /// Answers when all that is ready on its thread had its turn.
    struct Patient;

    impl Actor for Patient {
        type Context = Context<Self>;
    }

    impl Handler<Probe> for Patient {
        type Result = actix::ResponseFuture<Health>;

        fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Self::Result {
            Box::pin(async {
                tokio::task::yield_now().await;
                Health::default()
            })
        }
    }

    fn ward(name: &str, probe: Recipient<Probe>) -> Ward {
        Ward {
            name: name.to_owned(),
            probe,
            pulse: Pulse::here(),
        }
    }

    async fn on(lane: &Lane, name: &'static str) -> Ward {
        let ward = lane.build(move || ward(name, Healthy.start().recipient()));
        ward.await.unwrap()
    }

    #[actix_rt::test]
    async fn a_panicked_actor_is_dead_at_once() {
        let wards = vec![ward("mortal", Mortal.start().recipient())];
        let dead = watch(Config::default(), wards).await;
        assert_eq!(dead.name, "mortal");
    }

    #[actix_rt::test]
    async fn an_actor_that_never_answers_is_dead_though_its_thread_lives() {
        tokio::time::pause();
        let began = Instant::now();
        let wards = vec![
            ward("healthy", Healthy.start().recipient()),
            ward("sleeper", Sleeper.start().recipient()),
        ];
        let dead = watch(Config::default(), wards).await;
        assert_eq!(dead.name, "sleeper");
        let took = began.elapsed();
        let bound = Duration::from_secs(60);
        assert!(
            took >= bound && took < bound + Duration::from_secs(10),
            "{took:?}"
        );
    }

    /// In real time: a paused clock would judge a thread that lives before it was given a core.
    #[actix_rt::test]
    async fn a_thread_that_blocks_for_ever_is_dead_after_its_strikes() {
        let (lane, living) = (Lane::start(), Lane::start());
        let wards = vec![on(&living, "living").await, on(&lane, "blocked").await];
        let (release, wait) = mpsc::channel::<()>();
        let (blocks, blocked) = mpsc::channel();
        lane.spawn(move || {
            blocks.send(()).unwrap();
            wait.recv().unwrap_err();
        });
        blocked.recv().unwrap();
        let config = Config {
            interval_seconds: 1,
            patience_seconds: 1,
            ..Config::default()
        };
        let began = Instant::now();
        let dead = watch(config, wards).await;
        assert_eq!(dead.name, "blocked");
        let took = began.elapsed();
        assert!(took >= Duration::from_secs(3), "{took:?}");
        drop(release);
        lane.stop().await;
        living.stop().await;
    }

    /// As many peers keep it that all send without a pause.
    #[actix_rt::test]
    async fn a_lane_that_is_busy_is_not_dead() {
        const TASKS: u32 = 2000;
        let lane = Lane::start();
        let patient = lane.build(|| ward("busy", Patient.start().recipient()));
        let wards = vec![patient.await.unwrap()];
        lane.spawn(|| {
            for _ in 0..TASKS {
                actix_rt::spawn(async {
                    loop {
                        let began = std::time::Instant::now();
                        while began.elapsed() < Duration::from_millis(2) {}
                        tokio::task::yield_now().await;
                    }
                });
            }
        });
        let config = Config {
            interval_seconds: 1,
            patience_seconds: 1,
            strikes: 1,
            ..Config::default()
        };
        let watched = tokio::time::timeout(Duration::from_secs(4), watch(config, wards)).await;
        assert!(watched.is_err(), "{watched:?}");
        lane.stop().await;
    }
}
