//! Claims that were not proven. Who makes one has its domain asked about again only after a pause: each claim
//! is a call to the server that the domain names, and whoever owns a name decides who that is.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use messages::Domain;
use tokio::time::Instant;

use crate::accounts::Source;

/// The pause after a first failure: a server that is being restarted is back after a few of them.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long after its pause a failure is remembered, so that the next pause is longer.
const MEMORY: Duration = Duration::from_secs(60);
/// Claims from which on those that can be forgotten are looked for, and how often at most.
const FORGET_FROM: usize = 1024;
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// Most that are remembered. More within one pause come from many sources, each with its own bounds.
const DENIALS_MAX: usize = 16 * 1024;

/// Why a claim was not proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    /// The authoritative server says that the key is wrong.
    Denied,
    /// There was no answer to be had of it.
    Failed,
}

impl Denial {
    /// What the log says of a claim that comes again within the pause.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Denied => "dialback: its server denied a key from the same address a moment ago",
            Self::Failed => {
                "dialback: its server could not be asked about a key from the same address a moment ago"
            }
        }
    }
}

struct Entry {
    denial: Denial,
    /// Failures in a row.
    failures: u32,
    /// The end of the pause.
    until: Instant,
}

impl Entry {
    fn is_of_use(&self, now: Instant) -> bool {
        let memory = match self.denial {
            Denial::Denied => Duration::ZERO,
            Denial::Failed => MEMORY,
        };
        self.until + memory > now
    }
}

/// Claims by who made them and which domain they were of, over all lanes.
#[derive(Default)]
pub(crate) struct Denials(Mutex<Table>);

#[derive(Default)]
struct Table {
    entries: HashMap<(Source, Domain), Entry>,
    /// Before that there is nothing to forget.
    sweep_from: Option<Instant>,
}

impl Table {
    /// Makes room for one more. Returns whether there is any.
    fn make_room(&mut self, now: Instant) -> bool {
        let is_time = self.sweep_from.is_none_or(|from| from <= now);
        if self.entries.len() >= FORGET_FROM && is_time {
            self.sweep_from = Some(now + FORGET_EVERY);
            self.entries.retain(|_, entry| entry.is_of_use(now));
            if self.entries.len() >= DENIALS_MAX {
                // What only makes the next pause longer goes first.
                self.entries.retain(|_, entry| entry.until > now);
            }
        }
        self.entries.len() < DENIALS_MAX
    }
}

impl Denials {
    /// Remembers a claim that was not proven: a denied one for the time of `pause`, one that failed for a
    /// second, and twice as long with each further failure in a row, `pause` at most.
    pub(crate) fn add(
        &self,
        denial: Denial,
        (source, domain): (&Source, &Domain),
        pause: Duration,
        now: Instant,
    ) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let claim = (source.clone(), domain.clone());
        let known = table.entries.get(&claim).filter(|it| it.is_of_use(now));
        let before = known.map_or(0, |known| known.failures);
        let (failures, pause) = match denial {
            Denial::Denied => (0, pause),
            // Several that were under way at a time fail for one reason.
            Denial::Failed if known.is_some_and(|known| known.until > now) => return,
            Denial::Failed => {
                let longer = FIRST_PAUSE.saturating_mul(1 << before.min(16));
                (before + 1, longer.min(pause))
            }
        };
        if known.is_some() || table.make_room(now) {
            let entry = Entry {
                denial,
                failures,
                until: now + pause,
            };
            table.entries.insert(claim, entry);
        }
    }

    /// Forgets what failed before: the claim was proven.
    pub(crate) fn clear(&self, source: &Source, domain: &Domain) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.entries.remove(&(source.clone(), domain.clone()));
    }

    /// Why the domain is not asked about now, if its pause is not over.
    pub(crate) fn holds(&self, source: &Source, domain: &Domain, now: Instant) -> Option<Denial> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = table.entries.get(&(source.clone(), domain.clone()));
        known.filter(|it| it.until > now).map(|it| it.denial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn source(last: u8) -> Source {
        Source::address([192, 0, 2, last].into())
    }

    #[test]
    fn a_denial_holds_for_its_source_and_domain_and_time() {
        let denials = Denials::default();
        let (a, b) = (Domain::new("a.test"), Domain::new("b.test"));
        let now = Instant::now();
        denials.add(Denial::Denied, (&source(1), &a), 10 * SECOND, now);
        let holds = |last, domain, after| denials.holds(&source(last), domain, now + after);
        assert_eq!(holds(1, &a, 9 * SECOND), Some(Denial::Denied));
        assert_eq!(holds(1, &a, 10 * SECOND), None);
        assert_eq!(holds(2, &a, Duration::ZERO), None);
        assert_eq!(holds(1, &b, Duration::ZERO), None);
    }

    /// How long the pause is after a failure.
    fn pause(denials: &Denials, max: Duration, now: Instant) -> Duration {
        let domain = Domain::new("a.test");
        denials.add(Denial::Failed, (&source(1), &domain), max, now);
        let mut pause = Duration::ZERO;
        while denials.holds(&source(1), &domain, now + pause).is_some() {
            pause += SECOND / 10;
        }
        pause
    }

    #[test]
    fn pauses_grow_with_failures_in_a_row() {
        let denials = Denials::default();
        let max = 10 * SECOND;
        let mut now = Instant::now();
        for seconds in [1, 2, 4, 8, 10, 10] {
            assert_eq!(pause(&denials, max, now), seconds * SECOND);
            // Another one that was under way does not count.
            assert_eq!(pause(&denials, max, now), seconds * SECOND);
            now += seconds * SECOND;
        }
        // Until they are forgotten, or the claim was proven.
        now += MEMORY;
        assert_eq!(pause(&denials, max, now), SECOND);
        assert_eq!(pause(&denials, max, now + SECOND), 2 * SECOND);
        denials.clear(&source(1), &Domain::new("a.test"));
        assert_eq!(pause(&denials, max, now + 3 * SECOND), SECOND);
        assert_eq!(
            pause(&denials, Duration::ZERO, now + 9 * SECOND),
            Duration::ZERO
        );
    }

    #[test]
    fn there_is_an_end_to_what_is_remembered() {
        for (denial, forgotten) in [(Denial::Denied, SECOND), (Denial::Failed, SECOND + MEMORY)] {
            let denials = Denials::default();
            let now = Instant::now();
            let add = |name: &str, at| {
                denials.add(denial, (&source(1), &Domain::new(name)), SECOND, at);
                denials.0.lock().unwrap().entries.len()
            };
            for n in 0..DENIALS_MAX + 10 {
                add(&format!("{n}.test"), now);
            }
            assert_eq!(add("a.test", now), DENIALS_MAX);
            // Where all places are taken only those count whose pause is not over.
            assert_eq!(add("b.test", now + SECOND), 1);
            for n in 0..FORGET_FROM {
                add(&format!("{n}.test"), now + SECOND);
            }
            assert_eq!(add("c.test", now + SECOND + forgotten), 1);
        }
    }
}
