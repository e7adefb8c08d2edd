//! Which failures get a line in the log of their own, and which are only counted.
//!
//! The first of a kind is told at once. While more of it come, there is one line an interval with their
//! number. Strangers can make up names, so there is a bound for each address, and one for all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use messages::Domain;

use crate::outcomes::Direction;
use crate::stream::Stage;

/// A kind of failure: one line in the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Line {
    pub(crate) direction: Direction,
    pub(crate) subject: Subject,
    pub(crate) stage: Stage,
    pub(crate) reason: String,
}

/// Whom a failure is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    Peer(Domain),
    /// Who says that it is this peer, from where; of IPv6, by /64.
    Claimed(Domain, IpAddr),
    /// Who has not said its name, by address; of IPv6, by /64.
    Address(IpAddr),
}

#[derive(Debug, Default)]
pub(crate) struct Limiter {
    lines_max: usize,
    per_address_max: usize,
    told: HashMap<Line, Told>,
    /// How many of the lines are about strangers at an address.
    addresses: HashMap<IpAddr, usize>,
    /// Failures that no line tells of.
    untold: u64,
}

#[derive(Debug)]
struct Told {
    /// Where the stranger is that it is about.
    stranger: Option<IpAddr>,
    /// How many came since the last line.
    since: u64,
}

/// What an interval leaves to be told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Rest {
    /// Failures of kinds that had a line before, with their number.
    pub(crate) again: Vec<(Line, u64)>,
    /// Failures of kinds for which there was no room.
    pub(crate) untold: u64,
}

impl Limiter {
    pub(crate) fn new(lines_max: usize, per_address_max: usize) -> Self {
        Self {
            lines_max,
            per_address_max,
            ..Self::default()
        }
    }

    /// Counts a failure and says whether it gets a line now. `stranger` is the address of a peer that has
    /// not proven who it is.
    pub(crate) fn offer(&mut self, line: Line, stranger: Option<IpAddr>) -> bool {
        let is_room = self.told.len() < self.lines_max;
        match self.told.entry(line) {
            Entry::Occupied(mut known) => known.get_mut().since += 1,
            Entry::Vacant(new) if is_room => {
                let lines = stranger.map(|address| self.addresses.entry(address).or_default());
                if lines.as_ref().is_none_or(|it| **it < self.per_address_max) {
                    lines.into_iter().for_each(|it| *it += 1);
                    new.insert(Told { stranger, since: 0 });
                    return true;
                }
                self.untold += 1;
            }
            Entry::Vacant(_) => self.untold += 1,
        }
        false
    }

    /// Ends an interval. Kinds that did not come again are forgotten: their next one is a first one.
    pub(crate) fn turn(&mut self) -> Rest {
        let mut rest = Rest {
            again: Vec::new(),
            untold: std::mem::take(&mut self.untold),
        };
        self.addresses.clear();
        self.told.retain(|line, told| {
            let since = std::mem::take(&mut told.since);
            if since == 0 {
                return false;
            }
            rest.again.push((line.clone(), since));
            if let Some(address) = told.stranger {
                *self.addresses.entry(address).or_default() += 1;
            }
            true
        });
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(peer: &str, reason: &str) -> Line {
        Line {
            direction: Direction::In,
            subject: Subject::Peer(Domain::new(peer)),
            stage: Stage::Tls,
            reason: reason.to_owned(),
        }
    }

    fn address(last: u8) -> Option<IpAddr> {
        Some([192, 0, 2, last].into())
    }

    #[test]
    fn the_first_of_a_kind_is_told_at_once_and_the_others_once_an_interval() {
        let mut limiter = Limiter::new(10, 10);
        assert!(limiter.offer(line("a.test", "one"), None));
        assert!(limiter.offer(line("a.test", "two"), None));
        assert!(limiter.offer(line("b.test", "one"), None));
        for _ in 0..5 {
            assert!(!limiter.offer(line("a.test", "one"), None));
        }
        let rest = limiter.turn();
        assert_eq!(rest.again, [(line("a.test", "one"), 5)]);
        assert_eq!(rest.untold, 0);
        // It goes on: still one line an interval.
        assert!(!limiter.offer(line("a.test", "one"), None));
        assert!(limiter.offer(line("a.test", "two"), None));
        assert_eq!(limiter.turn().again, [(line("a.test", "one"), 1)]);
        // It was quiet: the next is a first one.
        assert_eq!(limiter.turn(), Rest::default());
        assert!(limiter.offer(line("a.test", "one"), None));
    }

    #[test]
    fn strangers_at_one_address_do_not_fill_the_log() {
        let mut limiter = Limiter::new(10, 2);
        assert!(limiter.offer(line("a.test", ""), address(1)));
        assert!(limiter.offer(line("b.test", ""), address(1)));
        assert!(!limiter.offer(line("c.test", ""), address(1)));
        assert!(limiter.offer(line("c.test", ""), address(2)));
        assert!(limiter.offer(line("d.test", ""), None));
        assert!(!limiter.offer(line("a.test", ""), address(1)));
        assert_eq!(limiter.turn().untold, 1);
        // What goes on keeps its place.
        assert!(limiter.offer(line("d.test", ""), address(1)));
        assert!(!limiter.offer(line("e.test", ""), address(1)));
    }

    #[test]
    fn there_is_an_end_to_lines() {
        let mut limiter = Limiter::new(3, 10);
        let told = (0..100).filter(|n| {
            let peer = format!("{n}.test");
            limiter.offer(line(&peer, ""), address(*n))
        });
        assert_eq!(told.count(), 3);
        assert!(limiter.addresses.len() <= 3);
        assert_eq!(limiter.turn().untold, 97);
    }
}
