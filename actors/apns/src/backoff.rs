//! Pauses that double up to a limit, with jitter, so that many do not try again at once.

use std::time::Duration;

use tokio::time::Instant;

/// The pause after the `failures`th failure in a row, counted from 0: between half and the whole of
/// `min × 2^failures`, at most `max`.
pub(crate) fn pause((min, max): (Duration, Duration), failures: u32) -> Duration {
    let whole = min.saturating_mul(1 << failures.min(20)).min(max);
    whole.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// When the next connection may be opened.
pub(crate) struct Backoff {
    limits: (Duration, Duration),
    failures: u32,
    not_before: Option<Instant>,
}

impl Backoff {
    /// Nothing has failed yet.
    pub(crate) const fn new(limits: (Duration, Duration)) -> Self {
        Self {
            limits,
            failures: 0,
            not_before: None,
        }
    }

    /// One more failure: pause, longer than the last time.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.not_before = Some(now + pause(self.limits, self.failures));
        self.failures = self.failures.saturating_add(1);
    }

    /// A success: the next failure pauses shortly again.
    pub(crate) const fn succeeded(&mut self) {
        self.failures = 0;
        self.not_before = None;
    }

    /// The end of the pause, if there is one.
    pub(crate) const fn not_before(&self) -> Option<Instant> {
        self.not_before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_with_jitter_up_to_the_limit() {
        let limits = (Duration::from_millis(200), Duration::from_secs(30));
        for (failures, whole_ms) in [(0, 200), (1, 400), (5, 6_400), (8, 30_000), (99, 30_000)] {
            for _ in 0..50 {
                let pause = pause(limits, failures).as_millis();
                assert!(
                    (whole_ms / 2..=whole_ms).contains(&pause),
                    "{failures}: {pause}"
                );
            }
        }
    }

    #[test]
    fn a_success_starts_over() {
        let limits = (Duration::from_secs(1), Duration::from_secs(30));
        let now = Instant::now();
        let mut backoff = Backoff::new(limits);
        assert_eq!(backoff.not_before(), None);
        for _ in 0..6 {
            backoff.failed(now);
        }
        assert!(backoff.not_before() >= Some(now + Duration::from_secs(15)));
        backoff.succeeded();
        assert_eq!(backoff.not_before(), None);
        backoff.failed(now);
        assert!(backoff.not_before() <= Some(now + Duration::from_secs(1)));
    }
}
