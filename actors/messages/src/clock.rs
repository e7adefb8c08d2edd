//! Wall-clock time, injected so that tests can set it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixSeconds(pub u64);

/// Milliseconds since 1970-01-01T00:00:00Z, the unit of APNs' `timestamp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// Drops the milliseconds.
    #[must_use]
    pub const fn seconds(self) -> UnixSeconds {
        UnixSeconds(self.0 / 1000)
    }

    /// This instant moved `millis` milliseconds into the past, at the earliest the epoch.
    #[must_use]
    pub const fn minus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_sub(millis))
    }
}

impl UnixSeconds {
    /// The start of this second.
    #[must_use]
    pub const fn millis(self) -> UnixMillis {
        UnixMillis(self.0.saturating_mul(1000))
    }
}

#[derive(Clone)]
enum Source {
    System,
    Manual(Arc<AtomicU64>),
}

/// Where actors read the wall clock. Clones of a manual clock share one hand.
#[derive(Clone)]
pub struct Clock(Source);

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands still until [`Clock::set`] moves it.
    #[must_use]
    pub fn manual(now: UnixMillis) -> Self {
        Self(Source::Manual(Arc::new(AtomicU64::new(now.0))))
    }

    /// Moves a manual clock; without effect on the machine's clock.
    pub fn set(&self, now: UnixMillis) {
        if let Source::Manual(hand) = &self.0 {
            hand.store(now.0, Ordering::Relaxed);
        }
    }

    /// The time now, in milliseconds. A machine clock before 1970 reads as 0.
    #[must_use]
    pub fn now_millis(&self) -> UnixMillis {
        match &self.0 {
            Source::System => {
                #[allow(clippy::disallowed_methods, reason = "the one place that reads it")]
                let since = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
            }
            Source::Manual(hand) => UnixMillis(hand.load(Ordering::Relaxed)),
        }
    }

    /// The time now, in whole seconds.
    #[must_use]
    pub fn now(&self) -> UnixSeconds {
        self.now_millis().seconds()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Source::System => "Clock(system)",
            Source::Manual(_) => "Clock(manual)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_for_all_its_clones() {
        let clock = Clock::manual(UnixMillis(5_999));
        let other = clock.clone();
        assert_eq!(other.now(), UnixSeconds(5));
        clock.set(UnixMillis(6_000));
        assert_eq!(other.now(), UnixSeconds(6));
    }
}
