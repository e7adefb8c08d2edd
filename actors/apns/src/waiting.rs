//! Pushes that are not on the wire, at most one per registration: a wake-up has no content, so a newer
//! one takes the place of an older one that still waits.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};

use messages::RegistrationKey;
use slab::Slab;
use tokio::time::Instant;

/// What can wait.
pub(crate) trait Waits {
    /// For whom it is.
    fn registration(&self) -> RegistrationKey;
    /// Its place in the order of arrival.
    fn serial(&self) -> u64;
    /// Becomes one with another of the same registration, as the newer of both.
    fn fold(&mut self, other: Self);
    /// Learns that its registration is held back, so that nobody waits for it.
    fn held_back(&self);
}

/// The waiting pushes of one route.
pub(crate) struct Waiting<P> {
    pushes: Slab<Seated<P>>,
    by_registration: HashMap<RegistrationKey, usize>,
    /// Sent before, by age: they go before what was never sent, and the oldest first, so that a peer that
    /// keeps leaving loses none of them time and again.
    repeats: BTreeMap<u64, usize>,
    /// Never sent, in order of arrival.
    queue: VecDeque<usize>,
    /// Until their pause is over.
    paused: BTreeMap<(Instant, u64), usize>,
    /// Until there is a newer provider token.
    parked: Vec<usize>,
    /// Until APNs may be asked for their registration again. All that comes meanwhile folds into them.
    held: BTreeMap<(Instant, u64), usize>,
    /// Nothing new is taken, so nothing is held back any more.
    draining: bool,
    /// What was held back and let go because of that.
    let_go: u64,
}

struct Seated<P> {
    push: P,
    held_until: Option<Instant>,
}

impl<P> Default for Waiting<P> {
    fn default() -> Self {
        Self {
            pushes: Slab::new(),
            by_registration: HashMap::new(),
            repeats: BTreeMap::new(),
            queue: VecDeque::new(),
            paused: BTreeMap::new(),
            parked: Vec::new(),
            held: BTreeMap::new(),
            draining: false,
            let_go: 0,
        }
    }
}

impl<P: Waits> Waiting<P> {
    /// Takes in what was never sent; gives it back when there is no room for it. What folds needs none.
    pub(crate) fn queue(&mut self, push: P, max: usize) -> Result<(), P> {
        if self.pushes.len() >= max && !self.by_registration.contains_key(&push.registration()) {
            return Err(push);
        }
        if let Some(slot) = self.seat(push) {
            self.queue.push_back(slot);
        }
        Ok(())
    }

    /// Takes in what goes again at once.
    pub(crate) fn repeat(&mut self, push: P) {
        let serial = push.serial();
        if let Some(slot) = self.seat(push) {
            self.repeats.insert(serial, slot);
        }
    }

    /// Takes in what goes again later.
    pub(crate) fn pause(&mut self, push: P, due: Instant) {
        let key = (due, push.serial());
        if let Some(slot) = self.seat(push) {
            self.paused.insert(key, slot);
        }
    }

    /// Takes in what waits for a provider token.
    pub(crate) fn park(&mut self, push: P) {
        if let Some(slot) = self.seat(push) {
            self.parked.push(slot);
        }
    }

    /// Holds a registration back, and this push as the first of those that fold into one.
    pub(crate) fn hold(&mut self, push: P, until: Instant) {
        push.held_back();
        if self.draining {
            self.let_go += 1;
            return;
        }
        let (registration, serial) = (push.registration(), push.serial());
        if let Some(slot) = self.seat(push) {
            self.held.insert((until, serial), slot);
        }
        // One that waited already is found to be held when its turn comes.
        let slot = self.by_registration.get(&registration);
        if let Some(seated) = slot.and_then(|slot| self.pushes.get_mut(*slot)) {
            seated.held_until = seated.held_until.max(Some(until));
            seated.push.held_back();
        }
    }

    /// The next to be sent.
    pub(crate) fn next(&mut self) -> Option<P> {
        loop {
            let slot = match self.repeats.pop_first() {
                Some((_, slot)) => slot,
                None => self.queue.pop_front()?,
            };
            let seated = self.pushes.get(slot)?;
            match seated.held_until {
                None => return self.leave(slot),
                Some(_) if self.draining => self.let_go_of(slot),
                Some(until) => {
                    self.held.insert((until, seated.push.serial()), slot);
                }
            }
        }
    }

    /// Ends pauses and holds that are over.
    pub(crate) fn resume(&mut self, now: Instant) {
        while let Some(first) = self.paused.first_entry()
            && first.key().0 <= now
        {
            let slot = first.remove();
            self.again(slot);
        }
        while let Some(first) = self.held.first_entry()
            && first.key().0 <= now
        {
            let slot = first.remove();
            let Some(seated) = self.pushes.get_mut(slot) else {
                continue;
            };
            match seated.held_until {
                // Made longer meanwhile.
                Some(until) if until > now => {
                    self.held.insert((until, seated.push.serial()), slot);
                }
                _ => {
                    seated.held_until = None;
                    self.again(slot);
                }
            }
        }
    }

    /// Lets go what waited for a provider token.
    pub(crate) fn unpark(&mut self) {
        for slot in std::mem::take(&mut self.parked) {
            self.again(slot);
        }
    }

    /// Keeps what is to be kept. Held registrations stay: their pushes are judged when the hold is over.
    pub(crate) fn retain(&mut self, keep: impl Fn(&P) -> bool) {
        let Self {
            pushes,
            by_registration,
            ..
        } = self;
        let mut keep = |slot: usize| {
            let stays = pushes
                .get(slot)
                .is_some_and(|seated| seated.held_until.is_some() || keep(&seated.push));
            if !stays && let Some(seated) = pushes.try_remove(slot) {
                by_registration.remove(&seated.push.registration());
            }
            stays
        };
        self.repeats.retain(|_, slot| keep(*slot));
        self.queue.retain(|slot| keep(*slot));
        self.parked.retain(|slot| keep(*slot));
        self.paused.retain(|_, slot| keep(*slot));
    }

    /// From now on nothing is held back: what was has been answered, and cannot go in time.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
        for slot in std::mem::take(&mut self.held).into_values() {
            self.let_go_of(slot);
        }
    }

    fn let_go_of(&mut self, slot: usize) {
        if self.leave(slot).is_some() {
            self.let_go += 1;
        }
    }

    /// How many pushes of devices that were held back a drain let go.
    pub(crate) const fn abandoned(&self) -> u64 {
        self.let_go
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.pushes.len()
    }

    /// How many could be sent now.
    pub(crate) fn ready(&self) -> usize {
        self.repeats.len() + self.queue.len()
    }

    /// How many registrations are held back.
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// Gives a push a slot, unless it folds into one that waits.
    fn seat(&mut self, push: P) -> Option<usize> {
        match self.by_registration.entry(push.registration()) {
            Entry::Occupied(found) => {
                if let Some(seated) = self.pushes.get_mut(*found.get()) {
                    seated.push.fold(push);
                    if seated.held_until.is_some() {
                        seated.push.held_back();
                    }
                }
                None
            }
            Entry::Vacant(place) => Some(*place.insert(self.pushes.insert(Seated {
                push,
                held_until: None,
            }))),
        }
    }

    fn leave(&mut self, slot: usize) -> Option<P> {
        let seated = self.pushes.try_remove(slot)?;
        self.by_registration.remove(&seated.push.registration());
        Some(seated.push)
    }

    fn again(&mut self, slot: usize) {
        if let Some(seated) = self.pushes.get(slot) {
            self.repeats.insert(seated.push.serial(), slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::rc::Rc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// Which serials were folded into a newer one, and which were told that they are held back.
    #[derive(Default)]
    struct Told {
        folded: BTreeSet<u64>,
        held_back: BTreeSet<u64>,
    }

    struct Item {
        device: u8,
        serial: u64,
        told: Rc<RefCell<Told>>,
    }

    impl Waits for Item {
        fn registration(&self) -> RegistrationKey {
            RegistrationKey([self.device; 16])
        }

        fn serial(&self) -> u64 {
            self.serial
        }

        fn fold(&mut self, other: Self) {
            assert_ne!(self.serial, other.serial);
            let older = self.serial.min(other.serial);
            assert!(self.told.borrow_mut().folded.insert(older));
            self.serial = self.serial.max(other.serial);
        }

        fn held_back(&self) {
            self.told.borrow_mut().held_back.insert(self.serial);
        }
    }

    #[derive(Clone, Debug)]
    enum Act {
        Arrive(u8),
        Send,
        Repeat,
        Pause(u64),
        Park,
        Hold(u64),
        Unpark,
        Time(u64),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            4 => (0u8..5).prop_map(Act::Arrive),
            4 => Just(Act::Send),
            1 => Just(Act::Repeat),
            1 => (0u64..20).prop_map(Act::Pause),
            1 => Just(Act::Park),
            1 => (0u64..20).prop_map(Act::Hold),
            1 => Just(Act::Unpark),
            1 => (0u64..10).prop_map(Act::Time),
        ];
        prop::collection::vec(act, 0..120)
    }

    const QUEUE_MAX: usize = 4;

    proptest! {
        /// Whatever happens, each push is sent, folded into a newer one, or turned away, exactly once; no
        /// registration waits twice, and none is sent while it is held back.
        #[test]
        fn nothing_is_lost_and_no_registration_waits_twice(acts in acts()) {
            let start = Instant::now();
            let mut now = start;
            let told = Rc::<RefCell<Told>>::default();
            let mut waiting = Waiting::default();
            let mut flying: Vec<Item> = Vec::new();
            let mut holds: HashMap<u8, Instant> = HashMap::new();
            let mut turned_away = 0;
            let mut serial = 0;
            for act in acts {
                match act {
                    Act::Arrive(device) => {
                        serial += 1;
                        let item = Item { device, serial, told: Rc::clone(&told) };
                        turned_away += u64::from(waiting.queue(item, QUEUE_MAX).is_err());
                    }
                    Act::Send => if let Some(item) = waiting.next() {
                        let held = holds.get(&item.device).is_some_and(|until| now < *until);
                        prop_assert!(!held, "sent while held back");
                        flying.push(item);
                    },
                    Act::Repeat => if let Some(item) = flying.pop() { waiting.repeat(item) },
                    Act::Pause(by) => if let Some(item) = flying.pop() {
                        waiting.pause(item, now + Duration::from_secs(by));
                    },
                    Act::Park => if let Some(item) = flying.pop() { waiting.park(item) },
                    Act::Hold(by) => if let Some(item) = flying.pop() {
                        let (device, serial) = (item.device, item.serial);
                        let until = now + Duration::from_secs(by);
                        holds.insert(device, until);
                        waiting.hold(item, until);
                        prop_assert!(told.borrow().held_back.contains(&serial));
                    },
                    Act::Unpark => waiting.unpark(),
                    Act::Time(by) => {
                        now += Duration::from_secs(by);
                        waiting.resume(now);
                    }
                }
                let devices: BTreeSet<u8> =
                    waiting.pushes.iter().map(|(_, seated)| seated.push.device).collect();
                prop_assert_eq!(devices.len(), waiting.len());
                prop_assert_eq!(waiting.by_registration.len(), waiting.len());
            }
            waiting.unpark();
            waiting.resume(now + Duration::from_secs(1_000));
            while let Some(item) = waiting.next() {
                flying.push(item);
                waiting.resume(now + Duration::from_secs(2_000));
            }
            waiting.resume(now + Duration::from_secs(2_000));
            while let Some(item) = waiting.next() {
                flying.push(item);
            }
            prop_assert_eq!(waiting.len(), 0);
            let sent: BTreeSet<u64> = flying.iter().map(|item| item.serial).collect();
            prop_assert_eq!(sent.len(), flying.len());
            let told = told.borrow();
            prop_assert!(sent.is_disjoint(&told.folded));
            prop_assert_eq!(sent.len() as u64 + told.folded.len() as u64 + turned_away, serial);
        }
    }
}
