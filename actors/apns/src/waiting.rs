//! Pushes that are not on the wire, at most one per registration: a wake-up has no content, so a newer
//! one takes the place of an older one that still waits.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use messages::{BuildRandom, RegistrationKey, Withdrawal};
use slab::Slab;
use tokio::time::Instant;

use crate::breaker::Family;
use crate::lately::Lately;
use crate::turns::{self, Turns};

/// Of so many registrations at least it is known that they ended or changed, until what was in flight for
/// them is back. A lane has about a thousand in flight.
const WITHDRAWN: usize = 2_048;

/// What can wait.
pub(crate) trait Waits {
    /// For whom it is.
    fn registration(&self) -> RegistrationKey;
    /// Whose turn it takes.
    fn owner(&self) -> Family;
    /// Its place in the order of arrival.
    fn serial(&self) -> u64;
    /// Becomes one with another of the same registration, as the newer of both.
    fn fold(&mut self, other: Self);
    /// Learns that its registration is held back, so that nobody waits for it.
    fn held_back(&self);
    /// Learns what became of its registration. Returns whether it was answered for that, and must not be sent.
    fn withdraw(&self, by: &Withdrawal) -> bool;
}

/// The waiting pushes of one route.
pub(crate) struct Waiting<P> {
    seats: Slab<Seat<P>>,
    by_registration: HashMap<RegistrationKey, usize, BuildRandom>,
    /// What could be sent now.
    turns: Turns,
    /// Until their pause is over.
    paused: BTreeMap<(Instant, u64), usize>,
    /// Until there is a newer provider token.
    parked: BTreeSet<usize>,
    /// Until APNs may be asked for their registration again. All that comes meanwhile folds into them.
    held: BTreeMap<(Instant, u64), usize>,
    /// Nothing new is taken, so nothing is held back any more.
    draining: bool,
    /// What was held back and let go because of that.
    let_go: u64,
    /// What became of registrations while pushes for them may have been in flight.
    withdrawn: Lately<Withdrawal>,
}

struct Seat<P> {
    push: P,
    owner: usize,
    held_until: Option<Instant>,
    place: Place,
}

/// Where a seat is to be found.
#[derive(Clone, Copy)]
enum Place {
    Turns(turns::Place),
    Paused(Instant, u64),
    Parked,
    Held(Instant, u64),
}

impl<P> Default for Waiting<P> {
    fn default() -> Self {
        Self {
            seats: Slab::new(),
            by_registration: HashMap::default(),
            turns: Turns::default(),
            paused: BTreeMap::new(),
            parked: BTreeSet::new(),
            held: BTreeMap::new(),
            draining: false,
            let_go: 0,
            withdrawn: Lately::new(WITHDRAWN),
        }
    }
}

impl<P: Waits> Waiting<P> {
    /// Takes in what was never sent; gives it back when there is no room for it, or not for its owner. What
    /// folds needs none.
    pub(crate) fn queue(&mut self, push: P, max: usize) -> Result<(), P> {
        if !self.by_registration.contains_key(&push.registration())
            && !self.turns.has_room(push.owner(), self.seats.len(), max)
        {
            return Err(push);
        }
        self.seat(push, Place::Turns(turns::Place::Line));
        Ok(())
    }

    /// Takes in what goes again at once.
    pub(crate) fn repeat(&mut self, push: P) {
        let serial = push.serial();
        self.seat_again(push, Place::Turns(turns::Place::Repeats(serial)));
    }

    /// The same for what was not looked at: its owner has the turn again that it lost. What was answered,
    /// whatever the answer, or may have been processed, has had its turn.
    pub(crate) fn repeat_in_turn(&mut self, push: P) {
        let owner = push.owner();
        self.repeat(push);
        self.turns.give_back(owner);
    }

    /// APNs calls the device token of this push bad, which costs its owner turns.
    pub(crate) fn charge(&mut self, push: &P) {
        self.turns.charge(push.owner());
    }

    /// Takes in what goes again later.
    pub(crate) fn pause(&mut self, push: P, due: Instant) {
        let serial = push.serial();
        self.seat_again(push, Place::Paused(due, serial));
    }

    /// Takes in what waits for a provider token.
    pub(crate) fn park(&mut self, push: P) {
        self.seat_again(push, Place::Parked);
    }

    /// Holds a registration back, and this push as the first of those that fold into one.
    pub(crate) fn hold(&mut self, push: P, until: Instant) {
        if self.is_withdrawn(&push) {
            return;
        }
        push.held_back();
        if self.draining {
            self.let_go += 1;
            return;
        }
        let (registration, serial) = (push.registration(), push.serial());
        self.seat(push, Place::Held(until, serial));
        // One that waited already is found to be held when its turn comes.
        let slot = self.by_registration.get(&registration);
        if let Some(seat) = slot.and_then(|slot| self.seats.get_mut(*slot)) {
            seat.held_until = seat.held_until.max(Some(until));
            seat.push.held_back();
        }
    }

    /// The next to be sent.
    pub(crate) fn next(&mut self) -> Option<P> {
        loop {
            let slot = self.turns.next()?;
            let seat = self.seats.get(slot)?;
            match seat.held_until {
                None => return self.leave(slot),
                Some(_) if self.draining => self.let_go_of(slot),
                Some(until) => {
                    let place = Place::Held(until, seat.push.serial());
                    self.put(slot, place);
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
            let Some(seat) = self.seats.get_mut(slot) else {
                continue;
            };
            match seat.held_until {
                // Made longer meanwhile.
                Some(until) if until > now => {
                    let place = Place::Held(until, seat.push.serial());
                    self.put(slot, place);
                }
                _ => {
                    seat.held_until = None;
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
        let gone = |(slot, seat): (usize, &Seat<P>)| {
            let stays = seat.held_until.is_some() || keep(&seat.push);
            (!stays).then_some(slot)
        };
        let gone: Vec<usize> = self.seats.iter().filter_map(gone).collect();
        for slot in gone {
            self.take_out(slot);
        }
        self.turns.tidy();
    }

    /// A registration has ended or has another device token: what waits for it goes, and so does what is in
    /// flight should it come back.
    pub(crate) fn withdraw(&mut self, by: &Withdrawal) {
        let slot = self.by_registration.get(&by.registration).copied();
        if let Some(slot) = slot
            && let Some(seat) = self.seats.get(slot)
            && seat.push.withdraw(by)
        {
            self.take_out(slot);
        }
        self.withdrawn.insert(by.registration.short(), by.clone());
    }

    fn is_withdrawn(&self, push: &P) -> bool {
        let registration = push.registration();
        let by = self.withdrawn.get(registration.short());
        by.is_some_and(|by| by.registration == registration && push.withdraw(by))
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
        self.seats.len()
    }

    /// How many could be sent now.
    pub(crate) const fn ready(&self) -> usize {
        self.turns.ready()
    }

    /// How many registrations are held back.
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes in what has been away.
    fn seat_again(&mut self, push: P, place: Place) {
        if !self.is_withdrawn(&push) {
            self.seat(push, place);
        }
    }

    /// Gives a push a seat, unless it folds into one that waits.
    fn seat(&mut self, push: P, place: Place) {
        match self.by_registration.entry(push.registration()) {
            Entry::Occupied(found) => {
                if let Some(seat) = self.seats.get_mut(*found.get()) {
                    seat.push.fold(push);
                    if seat.held_until.is_some() {
                        seat.push.held_back();
                    }
                }
            }
            Entry::Vacant(vacant) => {
                let owner = self.turns.sit(push.owner());
                let slot = *vacant.insert(self.seats.insert(Seat {
                    push,
                    owner,
                    held_until: None,
                    place,
                }));
                self.put(slot, place);
            }
        }
    }

    /// Puts a seat where it belongs that is nowhere now.
    fn put(&mut self, slot: usize, place: Place) {
        let Some(seat) = self.seats.get_mut(slot) else {
            return;
        };
        seat.place = place;
        match place {
            Place::Turns(place) => self.turns.enter(seat.owner, slot, place),
            Place::Paused(due, serial) => {
                self.paused.insert((due, serial), slot);
            }
            Place::Parked => {
                self.parked.insert(slot);
            }
            Place::Held(until, serial) => {
                self.held.insert((until, serial), slot);
            }
        }
    }

    /// Drops a push that waits, wherever it does.
    fn take_out(&mut self, slot: usize) {
        let Some(seat) = self.seats.get(slot) else {
            return;
        };
        match seat.place {
            Place::Turns(place) => self.turns.withdraw(seat.owner, slot, place),
            Place::Paused(due, serial) => {
                self.paused.remove(&(due, serial));
            }
            Place::Parked => {
                self.parked.remove(&slot);
            }
            Place::Held(until, serial) => {
                self.held.remove(&(until, serial));
            }
        }
        self.leave(slot);
    }

    /// Gives up the seat of a push that is nowhere any more.
    fn leave(&mut self, slot: usize) -> Option<P> {
        let seat = self.seats.try_remove(slot)?;
        self.by_registration.remove(&seat.push.registration());
        self.turns.rise(seat.owner);
        Some(seat.push)
    }

    fn again(&mut self, slot: usize) {
        if let Some(seat) = self.seats.get(slot) {
            let place = turns::Place::Repeats(seat.push.serial());
            self.put(slot, Place::Turns(place));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::rc::Rc;
    use std::time::Duration;

    use messages::{AppId, Change, DeviceToken, Domain};
    use proptest::prelude::*;

    use super::*;

    /// Which serials were folded into a newer one, were told that they are held back, and that they do not
    /// go any more.
    #[derive(Default)]
    struct Told {
        folded: BTreeSet<u64>,
        held_back: BTreeSet<u64>,
        withdrawn: BTreeSet<u64>,
    }

    struct Item {
        device: u8,
        /// Of its registration: one that has ended never comes back.
        life: u8,
        /// The version of the device token.
        token: u32,
        owner: u32,
        serial: u64,
        told: Rc<RefCell<Told>>,
    }

    fn token(version: u32) -> DeviceToken {
        DeviceToken::parse(&format!("{version:064x}")).unwrap()
    }

    fn registration(device: u8, life: u8) -> RegistrationKey {
        let mut key = [device; 16];
        key[0] = life;
        RegistrationKey(key)
    }

    impl Waits for Item {
        fn registration(&self) -> RegistrationKey {
            registration(self.device, self.life)
        }

        fn owner(&self) -> Family {
            Family::from(&Domain::new(&format!("chat.owner{}.test", self.owner)))
        }

        fn serial(&self) -> u64 {
            self.serial
        }

        fn fold(&mut self, mut other: Self) {
            assert_ne!(self.serial, other.serial);
            if self.serial < other.serial {
                std::mem::swap(self, &mut other);
            }
            assert!(self.told.borrow_mut().folded.insert(other.serial));
        }

        fn held_back(&self) {
            self.told.borrow_mut().held_back.insert(self.serial);
        }

        fn withdraw(&self, by: &Withdrawal) -> bool {
            let stays = match &by.change {
                Change::Ended => false,
                Change::Replaced { device_token, .. } => token(self.token) == *device_token,
            };
            assert!(stays || self.told.borrow_mut().withdrawn.insert(self.serial));
            !stays
        }
    }

    #[derive(Clone, Debug)]
    enum Act {
        Arrive(u8),
        Send,
        Repeat,
        RepeatInTurn,
        Pause(u64),
        Park,
        Hold(u64),
        Unpark,
        Time(u64),
        Expire(u8),
        End(u8),
        Replace(u8),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            8 => (0u8..5).prop_map(Act::Arrive),
            8 => Just(Act::Send),
            2 => Just(Act::Repeat),
            2 => Just(Act::RepeatInTurn),
            2 => (0u64..20).prop_map(Act::Pause),
            2 => Just(Act::Park),
            2 => (0u64..20).prop_map(Act::Hold),
            2 => Just(Act::Unpark),
            2 => (0u64..10).prop_map(Act::Time),
            1 => (0u8..5).prop_map(Act::Expire),
            1 => (0u8..5).prop_map(Act::End),
            1 => (0u8..5).prop_map(Act::Replace),
        ];
        prop::collection::vec(act, 0..160)
    }

    const QUEUE_MAX: usize = 6;

    /// The seats are where they say, each once, and owners are known as long as they have any.
    fn check_places(waiting: &mut Waiting<Item>) {
        let devices: BTreeSet<RegistrationKey> = waiting
            .seats
            .iter()
            .map(|(_, seat)| seat.push.registration())
            .collect();
        assert_eq!(devices.len(), waiting.len());
        assert_eq!(waiting.by_registration.len(), waiting.len());
        let elsewhere = waiting.paused.len() + waiting.parked.len() + waiting.held.len();
        assert_eq!(waiting.ready() + elsewhere, waiting.len());
        waiting.turns.tidy();
        let owners: BTreeSet<usize> = waiting.seats.iter().map(|(_, seat)| seat.owner).collect();
        assert_eq!(waiting.turns.owners(), owners.len());
    }

    proptest! {
        /// Whatever happens, each push is sent, folded into a newer one, withdrawn or turned away, exactly
        /// once; no registration waits twice, none is sent while it is held back, and what is sent is for a
        /// registration as it is now.
        #[test]
        fn nothing_is_lost_and_no_registration_waits_twice(acts in acts()) {
            let start = Instant::now();
            let mut now = start;
            let told = Rc::<RefCell<Told>>::default();
            let mut waiting = Waiting::default();
            let mut flying: Vec<Item> = Vec::new();
            let mut holds: HashMap<RegistrationKey, Instant> = HashMap::new();
            let mut lives = [0; 5];
            let mut tokens = [0; 5];
            let mut turned_away = 0;
            let mut expired = BTreeSet::new();
            let mut serial = 0;
            for act in acts {
                match act {
                    Act::Arrive(device) => {
                        serial += 1;
                        let index = usize::from(device);
                        let item = Item {
                            device,
                            life: lives[index],
                            token: tokens[index],
                            owner: u32::from(device % 3),
                            serial,
                            told: Rc::clone(&told),
                        };
                        turned_away += u64::from(waiting.queue(item, QUEUE_MAX).is_err());
                    }
                    Act::Send => if let Some(item) = waiting.next() {
                        let hold = holds.get(&item.registration());
                        prop_assert!(hold.is_none_or(|until| now >= *until), "sent while held back");
                        let index = usize::from(item.device);
                        prop_assert_eq!(item.life, lives[index], "sent after the end");
                        prop_assert_eq!(item.token, tokens[index], "sent to the old token");
                        flying.push(item);
                    },
                    Act::Repeat => if let Some(item) = flying.pop() { waiting.repeat(item) },
                    Act::RepeatInTurn => if let Some(item) = flying.pop() {
                        waiting.repeat_in_turn(item);
                    },
                    Act::Pause(by) => if let Some(item) = flying.pop() {
                        waiting.pause(item, now + Duration::from_secs(by));
                    },
                    Act::Park => if let Some(item) = flying.pop() { waiting.park(item) },
                    Act::Hold(by) => if let Some(item) = flying.pop() {
                        let (registration, serial) = (item.registration(), item.serial);
                        let until = now + Duration::from_secs(by);
                        waiting.hold(item, until);
                        if !told.borrow().withdrawn.contains(&serial) {
                            prop_assert!(told.borrow().held_back.contains(&serial));
                            holds.insert(registration, until);
                        }
                    },
                    Act::Unpark => waiting.unpark(),
                    Act::Time(by) => {
                        now += Duration::from_secs(by);
                        waiting.resume(now);
                    }
                    Act::Expire(device) => {
                        let gone = RefCell::new(&mut expired);
                        waiting.retain(|item| {
                            let stays = item.device != device;
                            assert!(stays || gone.borrow_mut().insert(item.serial));
                            stays
                        });
                    }
                    Act::End(device) | Act::Replace(device) => {
                        let index = usize::from(device);
                        let registration = registration(device, lives[index]);
                        let change = if matches!(act, Act::End(_)) {
                            lives[index] += 1;
                            Change::Ended
                        } else {
                            tokens[index] += 1;
                            holds.remove(&registration);
                            let device_token = token(tokens[index]);
                            Change::Replaced { app: AppId::new("app"), device_token }
                        };
                        waiting.withdraw(&Withdrawal { registration, change });
                    }
                }
                check_places(&mut waiting);
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
            check_places(&mut waiting);
            prop_assert_eq!(waiting.len(), 0);
            let sent: BTreeSet<u64> = flying.iter().map(|item| item.serial).collect();
            prop_assert_eq!(sent.len(), flying.len());
            let told = told.borrow();
            let ends = [&sent, &told.folded, &told.withdrawn, &expired];
            let all: BTreeSet<u64> = ends.iter().flat_map(|ends| ends.iter().copied()).collect();
            let sum: usize = ends.iter().map(|ends| ends.len()).sum();
            prop_assert_eq!(all.len(), sum, "two ends of one push");
            prop_assert_eq!(sum as u64 + turned_away, serial);
        }

        /// However many owners there are that have whatever waiting, and whatever comes back of theirs.
        #[test]
        fn one_push_waits_for_one_turn_of_each_owner(
            greedy in prop::collection::vec((1u32..30, 0u32..8, any::<bool>()), 0..12),
            before in 0usize..40,
        ) {
            let mut serial = 0;
            let mut item = |owner| {
                serial += 1;
                Item {
                    device: (serial % 251) as u8,
                    life: (serial / 251) as u8,
                    token: 0,
                    owner,
                    serial,
                    told: Rc::default(),
                }
            };
            let mut waiting = Waiting::default();
            for (owner, (queued, repeated, _)) in (1..).zip(&greedy) {
                for _ in 0..*queued {
                    assert!(waiting.queue(item(owner), usize::MAX).is_ok());
                }
                for _ in 0..*repeated {
                    waiting.repeat(item(owner));
                }
            }
            // What greedy owners are sent is replaced at once; a peer refuses the pushes of some of them.
            let mut turn = |waiting: &mut Waiting<Item>| {
                let sent = waiting.next();
                let owner = sent.as_ref().map(|sent| sent.owner);
                if let Some(sent) = sent.filter(|sent| sent.owner > 0) {
                    assert!(waiting.queue(item(sent.owner), usize::MAX).is_ok());
                    if greedy[sent.owner as usize - 1].2 {
                        waiting.repeat_in_turn(sent);
                    }
                }
                owner
            };
            for _ in 0..before {
                turn(&mut waiting);
            }
            let last = Item {
                device: 252,
                life: 0,
                token: 0,
                owner: 0,
                serial: u64::MAX,
                told: Rc::default(),
            };
            assert!(waiting.queue(last, usize::MAX).is_ok());
            let refused = greedy.iter().any(|(_, _, refused)| *refused);
            let max = (greedy.len() + 1) * if refused { 2 } else { 1 };
            let within = (1..=max).any(|_| turn(&mut waiting) == Some(0));
            prop_assert!(within, "not within {} turns", max);
        }
    }

    /// Which of so many pushes of owners, in this order, are taken where there are places for `max`.
    #[track_caller]
    fn check_shares(max: usize, arrivals: &[(u32, usize)], expected: &[usize]) {
        let mut waiting = Waiting::default();
        let mut serial = 0;
        let mut taken = Vec::new();
        for (owner, count) in arrivals {
            let before = waiting.len();
            for _ in 0..*count {
                serial += 1;
                let item = Item {
                    device: (serial % 251) as u8,
                    life: (serial / 251) as u8,
                    token: 0,
                    owner: *owner,
                    serial,
                    told: Rc::default(),
                };
                let _full = waiting.queue(item, max);
            }
            taken.push(waiting.len() - before);
        }
        assert_eq!(taken, expected);
    }

    #[test]
    fn no_owner_holds_more_than_is_left() {
        check_shares(100, &[(0, 200)], &[50]);
        check_shares(100, &[(0, 200), (1, 200)], &[50, 25]);
        check_shares(100, &[(0, 10), (1, 200), (0, 200)], &[10, 45, 17]);
        check_shares(
            100,
            &[(0, 200), (1, 30), (2, 30), (3, 30)],
            &[50, 25, 12, 6],
        );
        // The first is taken as long as there is a place.
        check_shares(1, &[(0, 2), (1, 1)], &[1, 0]);
        check_shares(3, &[(0, 9), (1, 9), (2, 9), (3, 9)], &[1, 1, 1, 0]);
    }

    #[test]
    fn a_bad_device_token_costs_turns_where_others_wait() {
        let item = |owner, serial: u64| Item {
            device: (serial % 251) as u8,
            life: (serial / 251) as u8,
            token: 0,
            owner,
            serial,
            told: Rc::default(),
        };
        let mut waiting = Waiting::default();
        for serial in 0..1_500 {
            let owner = u32::try_from(serial % 3).unwrap();
            assert!(waiting.queue(item(owner, serial), 2_000).is_ok());
        }
        // All that the first two send is refused, which shows after some of it.
        let send = |waiting: &mut Waiting<Item>, count| {
            let mut sent = [0; 3];
            for _ in 0..count {
                let push = waiting.next().unwrap();
                sent[push.owner as usize] += 1;
                if push.owner < 2 {
                    waiting.charge(&push);
                }
            }
            sent
        };
        let first = send(&mut waiting, 60);
        assert!(first[2] >= 30, "{first:?}");
        send(&mut waiting, 240);
        let later = send(&mut waiting, 110);
        assert!(later[2] >= 88, "{later:?}");
        // Those who are alone pay nobody.
        assert_eq!(std::iter::from_fn(|| waiting.next()).count(), 1_090);
        assert_eq!(waiting.len(), 0);
    }

    #[test]
    fn a_turn_that_came_to_nothing_is_given_back() {
        let item = |owner, device| Item {
            device,
            life: 0,
            token: 0,
            owner,
            serial: u64::from(device),
            told: Rc::default(),
        };
        let mut waiting = Waiting::default();
        for device in 1..=12 {
            assert!(
                waiting
                    .queue(item(u32::from(device % 4), device), 100)
                    .is_ok()
            );
        }
        let next = |waiting: &mut Waiting<Item>| waiting.next().unwrap().serial;
        let first = waiting.next().unwrap();
        assert_eq!(first.serial, 1);
        waiting.repeat_in_turn(first);
        assert_eq!(next(&mut waiting), 1, "before the others");
        let second = waiting.next().unwrap();
        assert_eq!(second.serial, 2);
        waiting.repeat(second);
        // What was answered waits for the next turn of its owner, and is the first then.
        let sent: Vec<u64> = (0..4).map(|_| next(&mut waiting)).collect();
        assert_eq!(sent, [3, 4, 5, 2]);
        // Every other turn at least is a regular one.
        let mut sent = Vec::new();
        for _ in 0..6 {
            let push = waiting.next().unwrap();
            sent.push(push.serial);
            if push.owner == 3 {
                waiting.repeat_in_turn(push);
            }
        }
        assert_eq!(sent, [7, 7, 8, 7, 9, 7]);
    }
}
