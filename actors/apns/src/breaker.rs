//! Stops an app whose configuration APNs refuses from hammering at it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Closed: everything passes. Open: nothing does for a while, then one push at a time may try. Shared by
/// all lanes.
pub(crate) struct Breaker {
    start: Instant,
    pause: Duration,
    /// Milliseconds after `start` when the next try is due; 0 when closed.
    retry_at: AtomicU64,
}

impl Breaker {
    /// A closed breaker that, once open, lets a push try each `pause`.
    pub(crate) const fn new(pause: Duration, now: Instant) -> Self {
        Self {
            start: now,
            pause,
            retry_at: AtomicU64::new(0),
        }
    }

    /// Whether a push may be sent now.
    pub(crate) fn admits(&self, now: Instant) -> bool {
        let retry_at = self.retry_at.load(Ordering::Relaxed);
        retry_at == 0
            || (self.millis(now) >= retry_at
                && self
                    .retry_at
                    .compare_exchange(
                        retry_at,
                        self.millis(now + self.pause),
                        Ordering::Relaxed,
                        Ordering::Relaxed,
                    )
                    .is_ok())
    }

    /// APNs refused the configuration.
    pub(crate) fn open(&self, now: Instant) {
        self.retry_at
            .store(self.millis(now + self.pause), Ordering::Relaxed);
    }

    /// APNs took a push.
    pub(crate) fn close(&self) {
        if self.retry_at.load(Ordering::Relaxed) != 0 {
            self.retry_at.store(0, Ordering::Relaxed);
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.start).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_breaker_lets_one_push_try_per_pause() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let breaker = Breaker::new(Duration::from_secs(30), start);
        assert!(breaker.admits(at(0)) && breaker.admits(at(0)));
        breaker.open(at(1));
        assert!(!breaker.admits(at(30)));
        assert!(breaker.admits(at(31)), "one may try");
        assert!(!breaker.admits(at(31)), "a second one not");
        assert!(breaker.admits(at(61)), "the first try never told");
        breaker.close();
        assert!(breaker.admits(at(61)) && breaker.admits(at(61)));
    }
}
