//! Lanes: the threads a push lives on, from the bytes of its publish to the answer.

use std::thread::available_parallelism;

use actix_rt::Arbiter;
use rustix::process::{getpriority_process, setpriority_process};
use tokio::sync::oneshot;

/// The most niceness that the system knows.
pub(crate) const NICENESS_MAX: u8 = 19;

/// How many lanes to run: one core is left to the control arbiter and the kernel, and there is always
/// one lane.
#[must_use]
pub const fn count(cores: usize, lanes_max: usize) -> usize {
    let spare = cores.saturating_sub(1);
    let wanted = if spare < lanes_max { spare } else { lanes_max };
    if wanted == 0 { 1 } else { wanted }
}

/// The cores this process may use, as the operating system tells.
#[must_use]
pub fn cores() -> usize {
    available_parallelism().map_or(1, std::num::NonZero::get)
}

/// One thread with its own runtime. Its actors share nothing with other lanes.
pub struct Lane {
    arbiter: Arbiter,
}

impl Lane {
    /// Starts the thread.
    #[must_use]
    pub fn start() -> Self {
        Self {
            arbiter: Arbiter::new(),
        }
    }

    /// Starts the thread at a lower priority, of so much more niceness than this one: it has what others leave.
    #[must_use]
    pub fn start_nice(niceness: u8) -> Self {
        let lane = Self::start();
        lane.arbiter.spawn_fn(move || {
            // On Linux each thread has a niceness of its own, and that of the caller is meant.
            let set = getpriority_process(None).and_then(|own| {
                let niceness = own.saturating_add(niceness.into());
                setpriority_process(None, niceness.min(NICENESS_MAX.into()))
            });
            if let Err(error) = set {
                tracing::warn!(%error, "the thread of handshakes cannot be made to yield to the others");
            }
        });
        lane
    }

    /// Runs `build` on the lane's thread and hands back what it made. `None` when the thread is gone.
    pub async fn build<T, F>(&self, build: F) -> Option<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let (made, wait) = oneshot::channel();
        self.arbiter.spawn_fn(move || drop(made.send(build())));
        wait.await.ok()
    }

    /// Runs `work` on the lane's thread when it has its turn.
    #[cfg(test)]
    pub(crate) fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        self.arbiter.spawn_fn(work);
    }

    /// Stops the thread and waits for its end without blocking the caller's.
    pub async fn stop(self) {
        self.arbiter.stop();
        let arbiter = self.arbiter;
        let _lane_panicked = actix_rt::task::spawn_blocking(move || arbiter.join()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(cores: usize, lanes_max: usize, expected: usize) {
        assert_eq!(count(cores, lanes_max), expected);
    }

    #[test]
    fn one_core_is_left_to_control_and_one_lane_always_runs() {
        check(1, 8, 1);
        check(2, 8, 1);
        check(4, 8, 3);
        check(64, 8, 8);
        check(0, 8, 1);
        check(4, 0, 1);
    }

    #[actix_rt::test]
    async fn one_that_yields_is_nicer_than_the_others() {
        let niceness = || getpriority_process(None).unwrap();
        for more in [0, 7, 200] {
            let lane = Lane::start_nice(more);
            let there = lane.build(niceness).await.unwrap();
            let expected = niceness() + i32::from(more);
            assert_eq!(there, expected.min(19));
            lane.stop().await;
        }
    }

    #[actix_rt::test]
    async fn a_lane_builds_on_its_own_thread_and_stops() {
        let lane = Lane::start();
        let here = std::thread::current().id();
        let there = lane.build(|| std::thread::current().id()).await.unwrap();
        assert_ne!(here, there);
        lane.stop().await;
    }
}
