//! What became of the strangers.

use std::collections::BTreeMap;
use std::fmt;

use xmpp::Config;

use crate::crowd::{LORISES, SILENT};

/// How a connection of a stranger ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// With this stream error, told before the connection was closed.
    Error(&'static str),
    /// With the end of the connection and without a stream error.
    Closed,
    /// By a reset.
    Reset,
    /// By the stranger: the show was over.
    Dismissed,
}

/// Counts of ends, by kind of stranger, and of bytes written.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) ends: BTreeMap<(&'static str, End), usize>,
    pub(crate) bytes: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub(crate) fn note(&mut self, kind: &'static str, end: End) {
        *self.ends.entry((kind, end)).or_default() += 1;
    }

    pub(crate) fn wrote(&mut self, kind: &'static str, bytes: usize) {
        *self.bytes.entry(kind).or_default() += bytes as u64;
    }

    pub(crate) fn add(&mut self, other: Self) {
        for (key, count) in other.ends {
            *self.ends.entry(key).or_default() += count;
        }
        for (kind, bytes) in other.bytes {
            *self.bytes.entry(kind).or_default() += bytes;
        }
    }

    fn count(&self, kind: &'static str, end: End) -> usize {
        self.ends.get(&(kind, end)).copied().unwrap_or_default()
    }

    /// Whether all strangers of so many crowds ended as they should: those who authenticate by nothing in
    /// time, the others as soon as they were beyond a limit, and each was told why.
    pub(crate) fn check(&self, limits: &Config, crowds: usize) {
        let only = |kind, ends: &[End]| {
            let known = self.ends.keys().filter(|(of, _)| *of == kind);
            let others: Vec<_> = known.filter(|(_, end)| !ends.contains(end)).collect();
            assert!(others.is_empty(), "{kind}: {others:?}");
            ends.iter().map(|end| self.count(kind, *end)).sum::<usize>()
        };
        let late = End::Error("connection-timeout");
        assert_eq!(only("silent", &[late]), crowds * SILENT);
        let slow = only("slow header", &[late])
            + only("slow key", &[late])
            // Within the handshake nothing can be said.
            + only("slow handshake", &[End::Closed, End::Reset]);
        assert_eq!(slow, crowds * LORISES);

        let refused = |kind, condition, each: usize| {
            let end = End::Error(condition);
            only(kind, &[end, End::Dismissed]);
            let count = self.count(kind, end);
            assert!(count >= crowds * each, "{kind}: only {count}");
        };
        refused("billion laughs", "restricted-xml", 20);
        refused("maximal stanzas", "policy-violation", 20);
        refused("giant", "policy-violation", 20);
        refused("giant of a peer", "policy-violation", 5);
        // One who is slowed down has no reason to leave.
        assert_eq!(only("stanzas of a peer", &[End::Dismissed]), crowds);
        let flooded = self.bytes["stanzas of a peer"];
        let least = 100 * limits.stanza_bytes_max as u64;
        assert!(flooded > least, "it sent no more than {flooded} bytes");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((kind, end), count) in &self.ends {
            writeln!(f, "{kind:<24}{count:>6} × {end:?}")?;
        }
        for (kind, bytes) in &self.bytes {
            writeln!(f, "{kind:<24}{:>6} MiB written", bytes >> 20)?;
        }
        Ok(())
    }
}
