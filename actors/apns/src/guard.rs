//! Keeps one wrong line of configuration from ending every registration: `BadDeviceToken` and
//! `DeviceTokenNotForTopic` are also what APNs says to every token of the other environment.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Weighs suspicious verdicts of one app against its successes, over a window that slides by halves.
/// Shared by all lanes.
pub(crate) struct TokenGuard {
    half: Duration,
    share_max_percent: u64,
    window: Mutex<Window>,
}

/// Whose fault a suspicious verdict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suspicion {
    /// The device token's.
    Token,
    /// Perhaps the configuration's; the last so many verdicts of the app were all suspicious.
    Configuration { streak: u64 },
}

struct Window {
    streak: u64,
    since: Instant,
    current: Tally,
    previous: Tally,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    successes: u64,
    suspects: u64,
}

impl TokenGuard {
    /// Trusts nothing until there is a success.
    pub(crate) fn new(window: Duration, share_max_percent: u64, now: Instant) -> Self {
        Self {
            half: window / 2,
            share_max_percent,
            window: Mutex::new(Window {
                streak: 0,
                since: now,
                current: Tally::default(),
                previous: Tally::default(),
            }),
        }
    }

    /// Counts an accepted push: topic, environment and key are right.
    pub(crate) fn accepted(&self, now: Instant) {
        self.with_current(now, |window| {
            window.streak = 0;
            window.current.successes += 1;
        });
    }

    /// Counts a suspicious verdict and says whose fault it is.
    pub(crate) fn suspect(&self, now: Instant) -> Suspicion {
        self.with_current(now, |window| {
            window.streak += 1;
            window.current.suspects += 1;
            let successes = window.current.successes + window.previous.successes;
            let suspects = window.current.suspects + window.previous.suspects;
            if successes > 0 && suspects * 100 <= self.share_max_percent * (successes + suspects) {
                Suspicion::Token
            } else {
                Suspicion::Configuration {
                    streak: window.streak,
                }
            }
        })
    }

    fn with_current<T>(&self, now: Instant, act: impl FnOnce(&mut Window) -> T) -> T {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let age = now.saturating_duration_since(window.since);
        if age >= self.half {
            window.previous = if age < self.half * 2 {
                window.current
            } else {
                Tally::default()
            };
            window.current = Tally::default();
            window.since = now;
        }
        act(&mut window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(3600);

    /// Plays (second, accepted) verdicts; the last one is suspicious.
    #[track_caller]
    fn check(verdicts: &[(u64, bool)], last: u64, trusted: bool) {
        let start = Instant::now();
        let guard = TokenGuard::new(WINDOW, 20, start);
        for (second, accepted) in verdicts {
            let at = start + Duration::from_secs(*second);
            if *accepted {
                guard.accepted(at);
            } else {
                guard.suspect(at);
            }
        }
        let suspicion = guard.suspect(start + Duration::from_secs(last));
        assert_eq!(suspicion == Suspicion::Token, trusted);
    }

    #[test]
    fn trust() {
        check(&[], 0, false);
        check(&[(0, true)], 1, false);
        check(&[(0, true); 4], 1, true);
        check(&[(0, true); 400], 1, true);
        check(&[(0, false); 400], 1, false);
        // The other half of the window still counts, what is older does not.
        check(&[(0, true); 4], 2_000, true);
        check(&[(0, true); 4], 3_601, false);
        let mut wrong_environment = vec![(0, true); 100];
        wrong_environment.extend([(10, false); 30]);
        check(&wrong_environment, 11, false);
        let mut long_ago = vec![(0, false); 100];
        long_ago.extend([(4_000, true); 10]);
        check(&long_ago, 4_001, true);
    }

    #[test]
    fn a_success_ends_a_streak() {
        let start = Instant::now();
        let guard = TokenGuard::new(WINDOW, 20, start);
        for streak in 1..=3 {
            let expected = Suspicion::Configuration { streak };
            assert_eq!(guard.suspect(start), expected);
        }
        guard.accepted(start);
        let expected = Suspicion::Configuration { streak: 1 };
        assert_eq!(guard.suspect(start), expected);
    }
}
