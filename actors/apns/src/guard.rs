//! Keeps one wrong line of configuration from ending every registration: `BadDeviceToken` and
//! `DeviceTokenNotForTopic` are also what APNs says to every token of the other environment.
//!
//! And keeps strangers who register tokens that they made up from passing for such a line. Whoever may
//! register decides what APNs says of the tokens, so many refusals alone prove nothing against the
//! configuration once APNs has taken a push for the app.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use messages::{DeviceToken, RegistrationKey};
use tokio::time::Instant;

use crate::breaker::Standing;
use crate::lately::Lately;

/// So many suspicious verdicts in a row, and no success for long: the configuration is wrong.
const STREAK_MAX: u64 = 20;

/// For so long a success proves that the configuration is right.
const PROOF: Duration = Duration::from_secs(24 * 3600);

/// So long APNs is not asked again for a device token that it has called bad twice, and so long after the
/// first time it must still call one bad that it took before.
const SUSPENSION: Duration = Duration::from_secs(300);

/// Of so many device tokens at least it is remembered that APNs took them, and that it did not.
const REMEMBERED: usize = 65_536;

/// Weighs suspicious verdicts of one app against its successes, over a window that slides by halves.
/// Shared by all lanes.
pub(crate) struct TokenGuard {
    half: Duration,
    share_max_percent: u64,
    hasher: RandomState,
    /// Whether any device token is suspicious.
    suspecting: AtomicBool,
    window: Mutex<Window>,
}

/// Whose fault a suspicious verdict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suspicion {
    /// The device token's.
    Token,
    /// Nobody's yet: APNs has taken the same device token before, and is asked once more, later.
    Unsure,
    /// Perhaps the configuration's.
    Configuration {
        /// Whether it is, as far as can be told.
        proven: bool,
    },
}

/// Names a device token of a registration among the others of an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(u64);

struct Window {
    streak: u64,
    since: Instant,
    /// How many halves there were before this one.
    turn: u64,
    current: Tally,
    previous: Tally,
    last_success: Option<Instant>,
    /// Device tokens that APNs took, with the half in which they were counted last.
    proven: Lately<u64>,
    /// Device tokens that it refused as bad, each time since it took them last.
    suspects: Lately<Suspect>,
}

#[derive(Clone, Copy)]
struct Suspect {
    first: Instant,
    last: Instant,
    times: u32,
    /// The half in which it was counted last.
    turn: u64,
}

impl Suspect {
    /// APNs has said it twice, a short while ago: it would say the same.
    fn is_suspended(&self, now: Instant) -> bool {
        self.times > 1 && self.is_recent(now)
    }

    fn is_recent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) < SUSPENSION
    }
}

/// Device tokens, each once: a busy one says no more of the configuration than any other.
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
            hasher: RandomState::new(),
            suspecting: AtomicBool::new(false),
            window: Mutex::new(Window {
                streak: 0,
                since: now,
                turn: 0,
                current: Tally::default(),
                previous: Tally::default(),
                last_success: None,
                proven: Lately::new(REMEMBERED),
                suspects: Lately::new(REMEMBERED),
            }),
        }
    }

    /// What names a device token here. A registration that is renewed with another token begins anew.
    pub(crate) fn mark(&self, registration: RegistrationKey, token: &DeviceToken) -> Mark {
        Mark(self.hasher.hash_one((registration, token)))
    }

    /// Counts an accepted push: topic, environment and key are right.
    pub(crate) fn accepted(&self, mark: Mark, now: Instant) {
        self.with_current(now, |window| {
            window.streak = 0;
            window.last_success = Some(now);
            let turn = window.turn;
            if window.proven.get(mark.0) != Some(&turn) {
                window.current.successes += 1;
                window.proven.insert(mark.0, turn);
            }
            if self.suspecting.load(Ordering::Relaxed) {
                window.suspects.remove(mark.0);
                let suspecting = !window.suspects.is_empty();
                self.suspecting.store(suspecting, Ordering::Relaxed);
            }
        });
    }

    /// Counts a suspicious verdict and says whose fault it is. `accepted` says whether the store knows that APNs
    /// has taken the device token before.
    pub(crate) fn suspect(&self, mark: Mark, accepted: bool, now: Instant) -> Suspicion {
        self.with_current(now, |window| {
            window.streak += 1;
            let known = window.suspects.get(mark.0).copied();
            let is_counted = known.is_some_and(|known| known.turn == window.turn);
            window.current.suspects += u64::from(!is_counted);
            let suspect = Suspect {
                first: known.map_or(now, |known| known.first),
                last: now,
                times: known.map_or(1, |known| known.times.saturating_add(1)),
                turn: window.turn,
            };
            window.suspects.insert(mark.0, suspect);
            self.suspecting.store(true, Ordering::Relaxed);
            let again = now.saturating_duration_since(suspect.first) >= SUSPENSION;
            let proven = accepted || window.proven.get(mark.0).is_some();
            let successes = window.current.successes + window.previous.successes;
            let suspects = window.current.suspects + window.previous.suspects;
            if successes > 0 && suspects * 100 <= self.share_max_percent * (successes + suspects) {
                return match again || !proven {
                    true => Suspicion::Token,
                    false => Suspicion::Unsure,
                };
            }
            let last_success = window.last_success;
            let works = last_success.is_some_and(|at| now.saturating_duration_since(at) < PROOF);
            Suspicion::Configuration {
                proven: !works && window.streak >= STREAK_MAX,
            }
        })
    }

    /// Whether APNs is not to be asked for a device token now.
    pub(crate) fn suspends(&self, mark: impl FnOnce() -> Mark, now: Instant) -> bool {
        self.suspecting.load(Ordering::Relaxed) && {
            let mark = mark();
            self.with_current(now, |window| {
                let suspect = window.suspects.get(mark.0);
                suspect.is_some_and(|suspect| suspect.is_suspended(now))
            })
        }
    }

    /// What APNs has said of a device token.
    pub(crate) fn standing(&self, mark: Mark, now: Instant) -> Standing {
        self.with_current(now, |window| {
            let suspect = window.suspects.get(mark.0);
            if window.proven.get(mark.0).is_some() {
                Standing::Proven
            } else if suspect.is_some_and(|suspect| suspect.is_recent(now)) {
                Standing::Bad
            } else {
                Standing::Untried
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
            window.turn += 1;
        }
        act(&mut window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(3600);
    const DAY: u64 = 24 * 3600;

    fn guard(start: Instant) -> TokenGuard {
        TokenGuard::new(WINDOW, 20, start)
    }

    /// Plays (second, accepted) verdicts on a device token each; the last one is suspicious.
    #[track_caller]
    fn check(verdicts: &[(u64, bool)], last: u64, trusted: bool) {
        let start = Instant::now();
        let guard = guard(start);
        for (number, (second, accepted)) in (0..).zip(verdicts) {
            let at = start + Duration::from_secs(*second);
            if *accepted {
                guard.accepted(Mark(number), at);
            } else {
                guard.suspect(Mark(number), false, at);
            }
        }
        let suspicion = guard.suspect(Mark(u64::MAX), false, start + Duration::from_secs(last));
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

    /// However often they are pushed to, and in whichever half of the window.
    #[test]
    fn a_busy_device_does_not_speak_for_the_others() {
        let start = Instant::now();
        let guard = guard(start);
        let unproven = Suspicion::Configuration { proven: false };
        for second in 0..3_500 {
            let at = start + Duration::from_secs(second);
            guard.accepted(Mark(0), at);
            if second % 50 == 0 {
                assert_eq!(guard.suspect(Mark(1 + second), false, at), unproven);
            }
        }
        let start = start + 10 * WINDOW;
        for second in 0..1_000 {
            let at = start + Duration::from_secs(second);
            guard.suspect(Mark(u64::MAX), false, at);
            guard.accepted(Mark(second % 4), at);
        }
        // One of five.
        let at = start + Duration::from_secs(1_001);
        assert_eq!(guard.suspect(Mark(u64::MAX), false, at), Suspicion::Token);
    }

    /// How many refusals at these seconds after a success, if there was one, prove it.
    #[track_caller]
    fn check_proof(success: bool, second: u64, streak: Option<u64>) {
        let start = Instant::now();
        let guard = guard(start);
        if success {
            guard.accepted(Mark(u64::MAX), start);
        }
        let at = start + Duration::from_secs(second);
        let proven = Suspicion::Configuration { proven: true };
        let first = (1..=1_000).find(|number| guard.suspect(Mark(*number), false, at) == proven);
        assert_eq!(first, streak);
    }

    #[test]
    fn refusals_prove_something_only_where_nothing_ever_works() {
        check_proof(false, 0, Some(STREAK_MAX));
        check_proof(true, 1, None);
        check_proof(true, DAY - 1, None);
        check_proof(true, DAY, Some(STREAK_MAX));
    }

    #[test]
    fn a_device_token_that_apns_took_is_asked_for_once_more() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let guard = guard(start);
        let (old, new) = (Mark(1), Mark(2));
        guard.accepted(old, at(0));
        for number in 100..200 {
            guard.accepted(Mark(number), at(0));
        }
        assert_eq!(guard.standing(old, at(0)), Standing::Proven);
        assert_eq!(guard.standing(new, at(0)), Standing::Untried);
        let suspends = |mark, second| guard.suspends(|| mark, at(second));
        assert_eq!(guard.suspect(new, false, at(1)), Suspicion::Token);
        assert_eq!(guard.suspect(Mark(3), true, at(1)), Suspicion::Unsure);
        assert_eq!(guard.suspect(old, false, at(1)), Suspicion::Unsure);
        assert!(!suspends(old, 1), "it may have been a whim");
        assert_eq!(guard.suspect(old, false, at(2)), Suspicion::Unsure);
        assert!(suspends(old, 2) && suspends(old, 301) && !suspends(old, 302));
        assert_eq!(guard.suspect(old, false, at(302)), Suspicion::Token);
        assert_eq!(guard.standing(old, at(302)), Standing::Proven);
        assert_eq!(guard.standing(new, at(300)), Standing::Bad);
        assert_eq!(guard.standing(new, at(301)), Standing::Untried);
        guard.accepted(old, at(303));
        assert!(!suspends(old, 303), "it lives");
        assert_eq!(guard.suspect(old, false, at(304)), Suspicion::Unsure);
    }

    #[test]
    fn a_token_of_another_registration_or_a_new_one_begins_anew() {
        let guard = guard(Instant::now());
        let token = |digit: &str| DeviceToken::parse(&digit.repeat(64)).unwrap();
        let (one, other) = (RegistrationKey([1; 16]), RegistrationKey([2; 16]));
        let mark = guard.mark(one, &token("a"));
        assert_eq!(mark, guard.mark(one, &token("A")));
        assert_ne!(mark, guard.mark(one, &token("b")));
        assert_ne!(mark, guard.mark(other, &token("a")));
    }
}
