//! Whether the clock may be trusted with deleting.

use std::time::Duration;

use messages::UnixSeconds;
use tokio::time::Instant;

/// 2026-01-01T00:00:00Z: this program did not run before.
const EARLIEST: UnixSeconds = UnixSeconds(1_767_225_600);
/// How far the clock may run ahead of time that passed, as after a suspension of the machine or a stop.
const AHEAD_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a clock that jumped has to go on evenly before it is believed: time to set it right.
const PROBATION: Duration = Duration::from_secs(60 * 60);

/// Why the clock is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Implausible {
    #[error("the clock shows a time before 2026, set it right")]
    Early,
    #[error("the clock is {0} seconds behind the last time seen, check it")]
    Backwards(u64),
    #[error(
        "the clock is {} hours ahead of the last time seen, check it unless the service was stopped for as long",
        .0 / 3_600
    )]
    Ahead(u64),
    #[error("the time of the last run is not known, check the clock")]
    Unknown,
}

/// The clock as it was when last looked at.
pub(crate) struct LastSeen {
    /// `None` before the first look, where an earlier process has left nothing either.
    last: Option<(UnixSeconds, Instant)>,
    /// Since when the clock has to prove itself, and why.
    doubt: Option<(Instant, Implausible)>,
}

impl LastSeen {
    /// Goes on from the time that an earlier process has believed last. Nobody knows how long there was
    /// none since.
    pub(crate) fn after(believed: Option<UnixSeconds>, at: Instant) -> Self {
        Self {
            last: believed.map(|believed| (believed, at)),
            doubt: None,
        }
    }

    /// Judges the clock against its last reading and the time that really passed. A clock that jumped is
    /// believed again when it has gone on evenly for [`PROBATION`].
    ///
    /// # Errors
    /// The latest jump, until then.
    pub(crate) fn judge(&mut self, now: UnixSeconds, at: Instant) -> Result<(), Implausible> {
        let before = self.last.replace((now, at));
        if let Some(jump) = jump(before, now, at) {
            self.doubt = Some((at, jump));
        }
        match self.doubt {
            Some((since, reason)) if at.saturating_duration_since(since) < PROBATION => Err(reason),
            _ => {
                self.doubt = None;
                Ok(())
            }
        }
    }
}

fn jump(
    before: Option<(UnixSeconds, Instant)>,
    now: UnixSeconds,
    at: Instant,
) -> Option<Implausible> {
    if now < EARLIEST {
        return Some(Implausible::Early);
    }
    let Some((last, last_at)) = before else {
        return Some(Implausible::Unknown);
    };
    if now < last {
        return Some(Implausible::Backwards(last.0 - now.0));
    }
    let passed = at.saturating_duration_since(last_at).as_secs();
    let ahead = (now.0 - last.0).saturating_sub(passed);
    (ahead > AHEAD_MAX.as_secs()).then_some(Implausible::Ahead(ahead))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = EARLIEST.0 + 12 * 3_600;
    const HOUR: u64 = 3_600;
    const DAY: u64 = 24 * HOUR;

    /// Readings after a start that knows a time, each with the seconds since the one before.
    #[track_caller]
    fn check(believed: Option<u64>, readings: &[(u64, u64, Result<(), Implausible>)]) {
        let mut at = Instant::now();
        let mut last_seen = LastSeen::after(believed.map(UnixSeconds), at);
        for (passed, now, expected) in readings {
            at += Duration::from_secs(*passed);
            assert_eq!(last_seen.judge(UnixSeconds(*now), at), *expected, "{now}");
        }
    }

    #[test]
    fn a_clock_that_jumped_is_not_believed_at_once() {
        let ahead = |seconds| Err(Implausible::Ahead(seconds));
        let ok = Ok(());
        check(
            Some(NOON),
            &[
                (60, NOON, ok),
                (HOUR, NOON + HOUR, ok),
                (HOUR, 0, Err(Implausible::Early)),
            ],
        );
        check(
            Some(NOON),
            &[
                (0, 0, Err(Implausible::Early)),
                (HOUR, NOON, ahead(NOON - HOUR)),
                (HOUR, NOON, ok),
            ],
        );
        check(
            Some(NOON),
            &[
                (0, NOON - 1, Err(Implausible::Backwards(1))),
                (HOUR - 1, NOON, Err(Implausible::Backwards(1))),
                (1, NOON, ok),
            ],
        );
        check(
            Some(NOON),
            &[
                (HOUR, NOON + DAY + HOUR, ok),
                (HOUR, NOON + 3 * DAY + 2 * HOUR, ahead(2 * DAY)),
                (HOUR, NOON + 3 * DAY + 3 * HOUR, ok),
            ],
        );
    }

    #[test]
    fn a_start_with_another_clock_waits_for_an_hour() {
        let ok = Ok(());
        let wrong = NOON + 200 * DAY;
        let jump = Err(Implausible::Ahead(200 * DAY));
        let mut readings = vec![(0, wrong, jump)];
        readings.extend((1..12).map(|n| (300, wrong + 300 * n, jump)));
        check(
            Some(NOON),
            &[&readings[..], &[(300, wrong + HOUR, ok)]].concat(),
        );
        // Another jump begins the hour anew.
        let again = Err(Implausible::Backwards(198 * DAY));
        let right = NOON + 2 * DAY + 55 * 60;
        let set_right = [
            (0, right, again),
            (HOUR - 1, right + HOUR, again),
            (1, right + HOUR, ok),
        ];
        check(Some(NOON), &[&readings[..], &set_right].concat());
        // A stop of a day is none.
        check(Some(NOON), &[(60, NOON + DAY, ok)]);
        let unknown = Err(Implausible::Unknown);
        check(
            None,
            &[
                (60, NOON, unknown),
                (HOUR - 1, NOON, unknown),
                (1, NOON, ok),
            ],
        );
    }
}
