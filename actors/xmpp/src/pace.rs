//! How often something may happen.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Entries from which on a [`Pacer`] looks for those it can forget.
const FORGET_FROM: usize = 1024;

/// A stanza counts once for each of these bytes: the work is in the bytes.
const STANZA_BYTES: usize = 2048;

/// How often a stanza of `len` bytes counts.
fn weight(len: usize) -> u32 {
    u32::try_from(len.div_ceil(STANZA_BYTES).max(1)).unwrap_or(u32::MAX)
}

/// So many times a second, and more at once after a quiet time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    interval: Duration,
    /// The quiet time that can be made up for.
    burst: Duration,
}

impl Pace {
    /// `burst` is at least a second, or there might be no time for one.
    pub(crate) fn per_second(count: u32, burst: Duration) -> Self {
        let interval = Duration::from_secs(1).checked_div(count.max(1));
        Self {
            interval: interval.unwrap_or_default(),
            burst,
        }
    }
}

/// What was taken of a pace: the time at which all of it is made up for (the generic cell rate algorithm).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken(Option<Instant>);

impl Taken {
    /// Takes one.
    ///
    /// # Errors
    /// When there will be one, if there is none now.
    pub(crate) fn take(&mut self, pace: Pace, now: Instant) -> Result<(), Instant> {
        self.take_at_once(pace, 1, now)
    }

    /// Takes what a stanza of `len` bytes counts.
    ///
    /// # Errors
    /// When it has its turn, if that is not now.
    pub(crate) fn take_stanza(
        &mut self,
        pace: Pace,
        len: usize,
        now: Instant,
    ) -> Result<(), Instant> {
        self.take_at_once(pace, weight(len), now)
    }

    /// Takes so many as soon as there is one, however long it takes to make up for the others.
    fn take_at_once(&mut self, pace: Pace, count: u32, now: Instant) -> Result<(), Instant> {
        let made_up = self.0.map_or(now, |made_up| made_up.max(now));
        match (made_up + pace.interval).checked_sub(pace.burst) {
            Some(earliest) if earliest > now => Err(earliest),
            _ => {
                self.0 = Some(made_up + pace.interval.saturating_mul(count));
                Ok(())
            }
        }
    }

    /// Gives one back.
    fn give_back(&mut self, pace: Pace) {
        self.0 = self
            .0
            .and_then(|made_up| made_up.checked_sub(pace.interval));
    }

    fn is_made_up(&self, now: Instant) -> bool {
        self.0.is_none_or(|made_up| made_up <= now)
    }
}

/// A [`Taken`] that several threads share, and those who are too fast stand in line for: each has its turn
/// after those who came before it. Times are nanoseconds since a moment that is the same for all.
#[derive(Debug, Default)]
pub(crate) struct Line(AtomicU64);

impl Line {
    /// One that is as far as [`Line::made_up`] told.
    pub(crate) const fn resume(made_up: u64) -> Self {
        Self(AtomicU64::new(made_up))
    }

    /// Takes what a stanza of `len` bytes counts. Returns when it has its turn.
    pub(crate) fn stand(&self, pace: Pace, len: usize, now: u64) -> u64 {
        let interval = nanoseconds(pace.interval);
        let taken = interval.saturating_mul(weight(len).into());
        let stand = |made_up: u64| made_up.max(now).saturating_add(taken);
        let relaxed = Ordering::Relaxed;
        let before = self.0.fetch_update(relaxed, relaxed, |it| Some(stand(it)));
        let made_up = before.unwrap_or_else(|made_up| made_up).max(now);
        let turn = made_up.saturating_add(interval);
        turn.saturating_sub(nanoseconds(pace.burst)).max(now)
    }

    /// When all that was taken is made up for.
    pub(crate) fn made_up(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A time as a [`Line`] has it.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// One pace for each of many. Those that are quiet are forgotten.
pub(crate) struct Pacer<K> {
    pace: Pace,
    taken: HashMap<K, Taken>,
    forget_from: usize,
}

impl<K: Eq + Hash> Pacer<K> {
    pub(crate) fn new(pace: Pace) -> Self {
        Self {
            pace,
            taken: HashMap::new(),
            forget_from: FORGET_FROM,
        }
    }

    /// Takes one for `key`. Returns whether there was one.
    pub(crate) fn take(&mut self, key: K, now: Instant) -> bool {
        self.turn(key, now).is_ok()
    }

    /// Takes one for `key`.
    ///
    /// # Errors
    /// When there will be one, if there is none now.
    pub(crate) fn turn(&mut self, key: K, now: Instant) -> Result<(), Instant> {
        if self.taken.len() >= self.forget_from {
            self.taken.retain(|_, taken| !taken.is_made_up(now));
            self.forget_from = FORGET_FROM.max(2 * self.taken.len());
        }
        let taken = self.taken.entry(key).or_default();
        taken.take(self.pace, now)
    }

    /// Gives one of `key` back.
    pub(crate) fn give_back(&mut self, key: &K) {
        if let Some(taken) = self.taken.get_mut(key) {
            taken.give_back(self.pace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_passes_then_the_pace_holds() {
        let pace = Pace::per_second(10, 2 * SECOND);
        let mut taken = Taken::default();
        let start = Instant::now();
        let passed = (0..100).filter(|_| taken.take(pace, start).is_ok()).count();
        assert_eq!(passed, 20);
        let next = taken.take(pace, start).unwrap_err();
        assert_eq!(next - start, SECOND / 10);
        assert!(taken.take(pace, next).is_ok());
        assert!(taken.take(pace, next).is_err());
        let later = start + 60 * SECOND;
        let passed = (0..100).filter(|_| taken.take(pace, later).is_ok()).count();
        assert_eq!(passed, 20);
    }

    #[test]
    fn large_stanzas_are_made_up_for_by_their_size() {
        let pace = Pace::per_second(10, SECOND);
        let mut taken = Taken::default();
        let start = Instant::now();
        assert!(taken.take_stanza(pace, 64 * STANZA_BYTES, start).is_ok());
        let next = taken.take_stanza(pace, 1, start).unwrap_err();
        assert_eq!(next - start, SECOND / 10 * (64 - 9));
        assert!(taken.take_stanza(pace, STANZA_BYTES, next).is_ok());
        let next = taken.take(pace, next).unwrap_err();
        assert_eq!(next - start, SECOND / 10 * (64 - 8));
    }

    #[test]
    fn those_in_line_have_their_turns_one_after_the_other() {
        let pace = Pace::per_second(10, SECOND);
        let line = Line::default();
        let tenth = nanoseconds(SECOND / 10);
        let start = nanoseconds(5 * SECOND);
        let turns: Vec<_> = (0..12).map(|_| line.stand(pace, 1, start)).collect();
        let mut expected = vec![start; 10];
        expected.extend([start + tenth, start + 2 * tenth]);
        assert_eq!(turns, expected);
        // What is large is not late itself, but who comes after it.
        let later = start + nanoseconds(60 * SECOND);
        assert_eq!(line.stand(pace, 30 * STANZA_BYTES, later), later);
        assert_eq!(line.stand(pace, 1, later), later + 21 * tenth);
        let again = Line::resume(line.made_up());
        assert_eq!(again.stand(pace, 1, later), later + 22 * tenth);
    }

    #[test]
    fn one_a_second_is_possible() {
        let pace = Pace::per_second(1, SECOND);
        let mut taken = Taken::default();
        let start = Instant::now();
        assert!(taken.take(pace, start).is_ok());
        assert_eq!(taken.take(pace, start), Err(start + SECOND));
        assert!(taken.take(pace, start + SECOND).is_ok());
    }

    #[test]
    fn each_has_its_own_pace_and_the_quiet_are_forgotten() {
        let mut pacer = Pacer::new(Pace::per_second(1, SECOND));
        let start = Instant::now();
        assert!(pacer.take(1, start));
        assert!(!pacer.take(1, start));
        assert!(pacer.take(2, start));
        let mut now = start;
        for key in 0..10 * FORGET_FROM {
            now += Duration::from_millis(10);
            assert!(pacer.take(key + 3, now));
            assert!(pacer.taken.len() <= FORGET_FROM);
        }
        // One that has something to make up for is remembered.
        assert!(!pacer.take(10 * FORGET_FROM + 2, now));
    }
}
