//! How long to wait after a failure.

use std::time::Duration;

const MIN: Duration = Duration::from_secs(1);

/// Doubled each time up to a bound, and jittered, so that many that failed at once do not come back at
/// once.
pub(crate) struct Backoff {
    wait: Duration,
    max: Duration,
}

impl Backoff {
    /// Starts at a second and never waits longer than `max`.
    pub(crate) const fn new(max: Duration) -> Self {
        Self { wait: MIN, max }
    }

    /// Starts again at a second.
    pub(crate) const fn reset(&mut self) {
        self.wait = MIN;
    }

    /// Whether nothing has failed since the start or the last reset.
    pub(crate) fn is_reset(&self) -> bool {
        self.wait == MIN
    }

    /// The next wait: between a half and the whole of what it has come to.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.wait;
        self.wait = (wait * 2).min(self.max);
        wait.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_are_bounded() {
        let max = Duration::from_secs(60);
        let mut backoff = Backoff::new(max);
        let first = backoff.next();
        assert!(first >= MIN / 2 && first <= MIN);
        for _ in 0..20 {
            backoff.next();
        }
        let long = backoff.next();
        assert!(long >= max / 2 && long <= max);
        assert!(!backoff.is_reset());
        backoff.reset();
        assert!(backoff.is_reset());
        assert!(backoff.next() <= MIN);
    }
}
