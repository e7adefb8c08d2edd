//! Whose push goes next: the owners of the publishing servers take turns, one push each, however much they
//! have waiting. Without turns whoever queues most decides how long everybody waits.

use std::collections::{BTreeMap, HashMap, VecDeque};

use messages::BuildRandom;
use slab::Slab;

use crate::breaker::Family;

/// So many turns an owner lets pass, if others wait, for each device token that APNs calls bad, when all of its
/// are: APNs takes many of them for an attack and ends the connection, so each of them costs everybody something.
const PRICE: u32 = 8;

/// The whole of what an owner sends.
const WHOLE: u32 = 1_024;

/// Of that APNs may call so much bad for nothing: some devices are gone, and some builds are of the other
/// environment.
const FREE: u32 = WHOLE / 8;

/// The share of bad device tokens is that of about so many pushes.
const MEMORY: u32 = 16;

/// The places of the pushes that could be sent now, in the order in which they go. A push is named by its
/// slot, and each slot is in here once at most.
///
/// An owner that comes and goes costs no allocation: the lines of all owners are linked through one table.
#[derive(Default)]
pub(crate) struct Turns {
    owners: Slab<Owner>,
    by_family: HashMap<Family, usize, BuildRandom>,
    /// Owners by their turns, each once. Whoever could send something is in it.
    round: VecDeque<usize>,
    /// Owners whose turn came to nothing through no fault of theirs, once for each such turn.
    returned: VecDeque<Family>,
    /// Whether the last turn was a returned one. The next one is not, so that a peer that refuses all the
    /// time makes nobody wait twice as long as without.
    was_returned: bool,
    /// The neighbours of each slot in the line of its owner.
    links: Vec<Link>,
    ready: usize,
}

#[derive(Default)]
struct Owner {
    family: Option<Family>,
    /// Its pushes that wait, here or elsewhere.
    seats: usize,
    in_round: bool,
    /// Turns that it lets pass, each as a whole.
    debt: u32,
    /// How much of what it sends APNs calls bad.
    bad: u32,
    /// Sent before, by age: they go before what was never sent, and the oldest first, so that a peer that
    /// keeps leaving loses none of them time and again.
    repeats: BTreeMap<u64, usize>,
    /// Never sent, in order of arrival.
    first: Option<usize>,
    last: Option<usize>,
}

#[derive(Clone, Copy, Default)]
struct Link {
    before: Option<usize>,
    behind: Option<usize>,
}

/// Where in its owner's line a push is.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// Among those that were never sent.
    Line,
    /// Among those that go again, under this serial.
    Repeats(u64),
}

impl Owner {
    fn is_ready(&self) -> bool {
        self.first.is_some() || !self.repeats.is_empty()
    }

    fn take(&mut self, links: &mut [Link]) -> Option<usize> {
        let taken = match self.repeats.pop_first() {
            Some((_, slot)) => Some(slot),
            None => self.first.inspect(|slot| self.unlink(*slot, links)),
        };
        if taken.is_some() {
            self.bad -= self.bad / MEMORY;
        }
        taken
    }

    /// By how much bad there is of it, so that a few cost hardly anything.
    fn charge(&mut self) {
        self.bad = (self.bad + WHOLE / MEMORY).min(WHOLE);
        let price = PRICE * self.bad.saturating_sub(FREE) * WHOLE / (WHOLE - FREE);
        self.debt = (self.debt + price).min(PRICE * WHOLE);
    }

    fn append(&mut self, slot: usize, links: &mut [Link]) {
        let before = self.last.replace(slot);
        if let Some(link) = links.get_mut(slot) {
            *link = Link {
                before,
                behind: None,
            };
        }
        match before.and_then(|before| links.get_mut(before)) {
            Some(before) => before.behind = Some(slot),
            None => self.first = Some(slot),
        }
    }

    fn unlink(&mut self, slot: usize, links: &mut [Link]) {
        let Link { before, behind } = links.get_mut(slot).map(std::mem::take).unwrap_or_default();
        match before.and_then(|before| links.get_mut(before)) {
            Some(link) => link.behind = behind,
            None => self.first = behind,
        }
        match behind.and_then(|behind| links.get_mut(behind)) {
            Some(link) => link.before = before,
            None => self.last = before,
        }
    }
}

impl Turns {
    /// Whether an owner may have one more waiting where `taken` of `max` places are: no owner holds more
    /// than is left for the others; its first is taken as long as there is room.
    pub(crate) fn has_room(&self, family: Family, taken: usize, max: usize) -> bool {
        let owner = self.by_family.get(&family);
        let held = owner
            .and_then(|owner| self.owners.get(*owner))
            .map_or(0, |owner| owner.seats);
        let left = max.checked_sub(taken + 1);
        left.is_some_and(|left| held == 0 || held < left)
    }

    /// Counts one more that waits; names its owner here until it is counted off.
    pub(crate) fn sit(&mut self, family: Family) -> usize {
        let owners = &mut self.owners;
        let owner = *self.by_family.entry(family).or_insert_with(|| {
            owners.insert(Owner {
                family: Some(family),
                ..Owner::default()
            })
        });
        if let Some(owner) = owners.get_mut(owner) {
            owner.seats += 1;
        }
        owner
    }

    /// Counts one off that is in no line any more.
    pub(crate) fn rise(&mut self, owner: usize) {
        if let Some(known) = self.owners.get_mut(owner) {
            known.seats = known.seats.saturating_sub(1);
        }
        self.forget_idle(owner);
    }

    /// Puts a push into its owner's line: as the last one, or by its age among those that go again.
    pub(crate) fn enter(&mut self, owner: usize, slot: usize, place: Place) {
        if self.links.len() <= slot {
            self.links.resize(slot + 1, Link::default());
        }
        let Some(known) = self.owners.get_mut(owner) else {
            return;
        };
        match place {
            Place::Line => known.append(slot, &mut self.links),
            Place::Repeats(serial) => {
                known.repeats.insert(serial, slot);
            }
        }
        self.ready += 1;
        if !std::mem::replace(&mut known.in_round, true) {
            self.round.push_back(owner);
        }
    }

    /// Takes a push out of its owner's line before its turn.
    pub(crate) fn withdraw(&mut self, owner: usize, slot: usize, place: Place) {
        if let Some(known) = self.owners.get_mut(owner) {
            match place {
                Place::Line => known.unlink(slot, &mut self.links),
                Place::Repeats(serial) => {
                    known.repeats.remove(&serial);
                }
            }
            self.ready -= 1;
        }
    }

    /// An owner's turn came to nothing: it has another one, outside of the round. There are no more of these than
    /// there is to be sent, however long a peer refuses everything.
    pub(crate) fn give_back(&mut self, family: Family) {
        if self.returned.len() < self.ready {
            self.returned.push_back(family);
        }
    }

    /// A push of an owner was refused for its device token. Whoever has nothing waiting does not pay.
    pub(crate) fn charge(&mut self, family: Family) {
        let owner = self.by_family.get(&family).copied();
        if let Some(known) = owner.and_then(|owner| self.owners.get_mut(owner)) {
            known.charge();
        }
    }

    /// The push whose turn it is.
    pub(crate) fn next(&mut self) -> Option<usize> {
        let taken = self.next_returned();
        self.was_returned = taken.is_some();
        let taken = taken.or_else(|| self.next_in_round());
        self.ready -= usize::from(taken.is_some());
        taken
    }

    fn next_returned(&mut self) -> Option<usize> {
        while !self.was_returned
            && let Some(family) = self.returned.pop_front()
        {
            let owner = self.by_family.get(&family).copied();
            let owner = owner.and_then(|owner| self.owners.get_mut(owner));
            let taken = owner.and_then(|owner| owner.take(&mut self.links));
            if taken.is_some() {
                return taken;
            }
        }
        None
    }

    fn next_in_round(&mut self) -> Option<usize> {
        while let Some(owner) = self.round.pop_front() {
            let Some(known) = self.owners.get_mut(owner) else {
                continue;
            };
            if known.debt >= WHOLE && !self.round.is_empty() {
                known.debt -= WHOLE;
                self.round.push_back(owner);
                continue;
            }
            let taken = known.take(&mut self.links);
            known.in_round = known.is_ready();
            if known.in_round {
                self.round.push_back(owner);
            }
            if taken.is_some() {
                return taken;
            }
            self.forget_idle(owner);
        }
        None
    }

    /// How many could be sent now.
    pub(crate) const fn ready(&self) -> usize {
        self.ready
    }

    /// Forgets owners that had a turn to come and have nothing left for it.
    pub(crate) fn tidy(&mut self) {
        for _ in 0..self.round.len() {
            let Some(owner) = self.round.pop_front() else {
                return;
            };
            let Some(known) = self.owners.get_mut(owner) else {
                continue;
            };
            known.in_round = known.is_ready();
            match known.in_round {
                true => self.round.push_back(owner),
                false => self.forget_idle(owner),
            }
        }
    }

    fn forget_idle(&mut self, owner: usize) {
        let idle = |known: &Owner| known.seats == 0 && !known.in_round;
        if self.owners.get(owner).is_some_and(idle)
            && let Some(family) = self.owners.try_remove(owner).and_then(|known| known.family)
        {
            self.by_family.remove(&family);
        }
    }
}

#[cfg(test)]
impl Turns {
    /// How many owners are remembered.
    pub(crate) fn owners(&self) -> usize {
        assert_eq!(self.owners.len(), self.by_family.len());
        self.owners.len()
    }
}

#[cfg(test)]
mod tests {
    use messages::Domain;

    use super::*;

    #[test]
    fn a_peer_that_refuses_everything_leaves_no_endless_list() {
        let mut turns = Turns::default();
        let family = Family::from(&Domain::new("chat.example.org"));
        let mut owners = HashMap::new();
        for slot in 0..3 {
            let owner = turns.sit(family);
            owners.insert(slot, owner);
            turns.enter(owner, slot, Place::Line);
        }
        for serial in 0..1_000 {
            let slot = turns.next().unwrap();
            turns.enter(owners[&slot], slot, Place::Repeats(serial));
            turns.give_back(family);
            assert!(turns.returned.len() <= 3, "{serial}");
        }
        assert_eq!(turns.ready(), 3);
    }

    /// How many turns an owner has for a hundred of each of two others, where so many in a hundred of its device
    /// tokens are bad and all have enough to send.
    fn turns_with(bad_percent: u32) -> u32 {
        let mut random = fastrand::Rng::with_seed(1);
        let mut turns = Turns::default();
        let families = [0, 1, 2].map(|name| Family::from(&Domain::new(&format!("{name}.test"))));
        let mut owner_of = Vec::new();
        for slot in 0..300 {
            let owner = turns.sit(families[slot % 3]);
            owner_of.push(owner);
            turns.enter(owner, slot, Place::Line);
        }
        let mut taken = [0; 3];
        while taken[1] < 10_000 {
            let slot = turns.next().unwrap();
            taken[slot % 3] += 1;
            if slot % 3 == 0 && random.u32(0..100) < bad_percent {
                turns.charge(families[0]);
            }
            turns.enter(owner_of[slot], slot, Place::Line);
        }
        assert!(taken[2] >= 9_999, "{taken:?}");
        taken[0] / 100
    }

    #[test]
    fn a_few_bad_device_tokens_cost_no_turns_and_many_do() {
        for (bad_percent, turns) in [
            (0, 100..=100),
            (1, 100..=100),
            (3, 99..=100),
            (5, 98..=100),
            (10, 92..=100),
            (30, 50..=80),
            (60, 20..=30),
            (100, 11..=12),
        ] {
            let found = turns_with(bad_percent);
            assert!(turns.contains(&found), "{bad_percent} % bad: {found} turns");
        }
    }
}
