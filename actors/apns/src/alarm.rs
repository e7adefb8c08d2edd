//! Log lines that an operator must see, without flooding the log.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use messages::ErrorReason;
use tokio::time::Instant;

/// Lets one line per problem pass in each interval. Shared by all lanes.
pub(crate) struct Alarm {
    interval: Duration,
    told: Mutex<HashMap<ErrorReason, Told>>,
}

struct Told {
    at: Instant,
    held_back: u64,
}

impl Alarm {
    /// Has told nothing yet.
    pub(crate) fn new(interval: Duration) -> Self {
        Self {
            interval,
            told: Mutex::new(HashMap::new()),
        }
    }

    /// Says whether to tell of `problem` now, and then how often it was held back since the last time.
    /// Problems come from a fixed set: each is remembered for good.
    pub(crate) fn rings(&self, problem: &ErrorReason, now: Instant) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = told.get_mut(problem) else {
            told.insert(
                problem.clone(),
                Told {
                    at: now,
                    held_back: 0,
                },
            );
            return Some(0);
        };
        if now.saturating_duration_since(last.at) < self.interval {
            last.held_back += 1;
            return None;
        }
        last.at = now;
        Some(std::mem::take(&mut last.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_rings_once_per_interval() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let alarm = Alarm::new(Duration::from_secs(300));
        let bad_topic = ErrorReason::known("BadTopic");
        assert_eq!(alarm.rings(&bad_topic, at(0)), Some(0));
        assert_eq!(alarm.rings(&bad_topic, at(1)), None);
        assert_eq!(alarm.rings(&bad_topic, at(299)), None);
        assert_eq!(
            alarm.rings(&ErrorReason::known("Forbidden"), at(2)),
            Some(0)
        );
        assert_eq!(alarm.rings(&bad_topic, at(300)), Some(2));
        assert_eq!(alarm.rings(&bad_topic, at(301)), None);
    }
}
