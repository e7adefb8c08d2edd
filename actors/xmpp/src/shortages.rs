//! What was refused because there was too little of it, told as failures are: the first at once, then how
//! many there were once an interval.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::accounts::{Good, Source};

/// What there was too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Of all that there is.
    OfAll,
    /// Of the share that the others leave to a source.
    Share,
    /// Of what a source may have at most.
    OfSource,
}

impl Kind {
    const fn what(self) -> &'static str {
        match self {
            Self::OfAll => "a limit for all is reached: somebody was refused, or had to give way",
            Self::Share => {
                "one source holds as much as is left for all others: it was refused more"
            }
            Self::OfSource => "one source holds as much as it may: it was refused more",
        }
    }

    const fn key(self, good: Good) -> &'static str {
        match self {
            Self::OfAll | Self::Share => good.key(),
            Self::OfSource => good.key_of_source(),
        }
    }
}

/// What somebody came too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shortage {
    /// There was too little of it.
    Good(Good, Kind),
    /// Elements of a stream came faster than they are taken.
    StreamPace,
    /// Elements of all streams of a source did.
    SourcePace,
}

impl Shortage {
    const fn what(self) -> &'static str {
        match self {
            Self::Good(_, kind) => kind.what(),
            Self::StreamPace => "one stream sends faster than it may: it is read more slowly",
            Self::SourcePace => "one source sends faster than it may: it is read more slowly",
        }
    }

    const fn key(self) -> &'static str {
        match self {
            Self::Good(good, kind) => kind.key(good),
            Self::StreamPace => "xmpp.stanzas_per_second_max",
            Self::SourcePace => "xmpp.stanzas_per_second_per_address_max",
        }
    }
}

/// Counts them over all lanes.
#[derive(Default)]
pub(crate) struct Shortages(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    /// How many came since the last line about each kind.
    since: HashMap<Shortage, u64>,
    all: u64,
    logged: u64,
}

impl Counts {
    /// Returns whether it gets a line now.
    fn count(&mut self, shortage: Shortage) -> bool {
        self.all += 1;
        match self.since.entry(shortage) {
            Entry::Occupied(mut known) => {
                *known.get_mut() += 1;
                false
            }
            Entry::Vacant(new) => {
                new.insert(0);
                self.logged += 1;
                true
            }
        }
    }

    /// Ends an interval: what came again, with its number. What did not is forgotten.
    fn turn(&mut self) -> Vec<(Shortage, u64)> {
        let mut again = Vec::new();
        self.since.retain(|shortage, since| {
            let times = std::mem::take(since);
            if times > 0 {
                again.push((*shortage, times));
            }
            times > 0
        });
        self.logged += again.len() as u64;
        again
    }
}

impl Shortages {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `source` wanted more than there was.
    pub(crate) fn note(&self, shortage: Shortage, source: Option<&Source>) {
        if self.lock().count(shortage) {
            let source = source.map(tracing::field::display);
            tracing::warn!(key = shortage.key(), source, "{}", shortage.what());
        }
    }

    /// Logs what the interval left.
    pub(crate) fn tell_rest(&self) {
        let again = self.lock().turn();
        for (shortage, times) in again {
            tracing::warn!(key = shortage.key(), times, "{}", shortage.what());
        }
    }

    /// How many there were, and how many lines were written about them.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let counts = self.lock();
        (counts.all, counts.logged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_the_others_once_an_interval() {
        let mut counts = Counts::default();
        let share = Shortage::Good(Good::EgressStreams, Kind::Share);
        assert!(counts.count(Shortage::SourcePace));
        assert!(counts.count(share));
        for _ in 0..5 {
            assert!(!counts.count(share));
        }
        assert_eq!(counts.turn(), [(share, 5)]);
        assert!(!counts.count(share));
        assert!(counts.count(Shortage::SourcePace));
        assert_eq!(counts.turn(), [(share, 1)]);
        assert_eq!(counts.turn(), []);
        assert!(counts.count(share));
        assert_eq!((counts.all, counts.logged), (10, 6));
    }

    #[test]
    fn the_key_to_raise_is_named() {
        let key = |kind, good| Shortage::Good(good, kind).key();
        assert_eq!(key(Kind::Share, Good::EgressBytes), "xmpp.egress_bytes_max");
        assert_eq!(
            key(Kind::OfSource, Good::Streams),
            "xmpp.streams_per_address_max"
        );
        assert_eq!(
            Shortage::SourcePace.key(),
            "xmpp.stanzas_per_second_per_address_max"
        );
    }
}
