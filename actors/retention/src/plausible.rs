//! Whether the clock may be trusted with deleting.

use std::time::Duration;

use messages::UnixSeconds;
use tokio::time::Instant;

/// 2026-01-01T00:00:00Z: this program did not run before.
const EARLIEST: UnixSeconds = UnixSeconds(1_767_225_600);
/// How far the clock may run ahead of time that passed, as after a suspension of the machine.
const AHEAD_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Why the clock is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Implausible {
    #[error("the clock shows a time before 2026, set it right")]
    Early,
    #[error("the clock was set back since the last run, check it")]
    Backwards,
    #[error("the clock was set ahead by over a day since the last run, check it")]
    Ahead,
}

/// The clock as it was when last looked at.
#[derive(Default)]
pub(crate) struct LastSeen(Option<(UnixSeconds, Instant)>);

impl LastSeen {
    /// Judges the clock against its last reading and the time that really passed. A clock that jumped is
    /// believed again when it has gone on evenly until the next reading.
    pub(crate) fn judge(&mut self, now: UnixSeconds, at: Instant) -> Result<(), Implausible> {
        let before = self.0.replace((now, at));
        if now < EARLIEST {
            return Err(Implausible::Early);
        }
        let Some((last, last_at)) = before else {
            return Ok(());
        };
        if now < last {
            return Err(Implausible::Backwards);
        }
        let passed = at.saturating_duration_since(last_at);
        if Duration::from_secs(now.0 - last.0) > passed + AHEAD_MAX {
            return Err(Implausible::Ahead);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = EARLIEST.0 + 12 * 3_600;

    /// Readings one hour apart.
    #[track_caller]
    fn check(readings: &[(u64, Result<(), Implausible>)]) {
        let mut last_seen = LastSeen::default();
        let mut at = Instant::now();
        for (now, expected) in readings {
            assert_eq!(last_seen.judge(UnixSeconds(*now), at), *expected, "{now}");
            at += Duration::from_secs(3_600);
        }
    }

    #[test]
    fn a_clock_that_jumped_is_not_believed_at_once() {
        let day = 24 * 3_600;
        check(&[(NOON, Ok(())), (NOON + 3_600, Ok(()))]);
        check(&[
            (0, Err(Implausible::Early)),
            (NOON, Err(Implausible::Ahead)),
            (NOON, Ok(())),
        ]);
        check(&[
            (EARLIEST.0 - 1, Err(Implausible::Early)),
            (EARLIEST.0, Ok(())),
        ]);
        check(&[
            (NOON, Ok(())),
            (NOON - 1, Err(Implausible::Backwards)),
            (NOON, Ok(())),
        ]);
        check(&[
            (NOON, Ok(())),
            (NOON + day + 3_600, Ok(())),
            (NOON + 3 * day, Err(Implausible::Ahead)),
            (NOON + 3 * day + 3_600, Ok(())),
        ]);
    }
}
