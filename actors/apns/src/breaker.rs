//! Stops an app whose configuration APNs refuses from hammering at it.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use messages::Domain;
use tokio::time::Instant;

/// So many refusals without a success between stop the app: a single one may be a whim.
const REFUSALS_MAX: u32 = 3;

/// The first pause; each try that follows makes the next one twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// The longest pause between the tries of one owner for an app in doubt, where few owners try.
const DOUBT_MAX: Duration = Duration::from_secs(4);

/// Owners that have not tried yet do so in turn, this far apart: with forty of them, nearly all strangers, the
/// last one has its try within three seconds.
const TURN: Duration = Duration::from_micros(62_500);

/// So many owners may try in one pause. Where there are more each has its next try after so many pauses: whoever
/// has many names shall not have APNs asked more for it.
const OWNERS_PER_PAUSE: u32 = 16;

/// Who has not tried for so long although it might have is not counted among them any more.
const ABSENCE_MAX: Duration = Duration::from_secs(30);

/// Until so many tries have failed pushes wait for the next one. Then they are answered: whoever publishes
/// shall learn what is wrong, and not that it will be sent.
const PATIENCE: u32 = 3;

/// So many pushes may wait for their try, since the queue is of all apps that share a key: divided among the
/// owners, so that none is without.
const WAITS_MAX: usize = 2_048;

/// What one of them has of it at most, and at least.
const SHARE: (usize, usize) = (4, 256);

/// Of so many owners it is known when they try; those above come last.
const OWNERS_MAX: usize = 1_024;

/// Closed: everything passes. Open: nothing does for a while, then one push at a time may try. Shared by
/// all lanes.
pub(crate) struct Breaker {
    pause_max: Duration,
    /// Whether there is more in the state than nothing.
    touched: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    refusals: u32,
    open: Option<Open>,
}

struct Open {
    cause: Cause,
    /// When the next push tries, or in doubt the next owner that has not tried yet.
    retry_at: Instant,
    pause: Duration,
    tries: u32,
    owners: HashMap<Family, Owner>,
}

/// What one owner's pushes have tried.
#[derive(Clone, Copy)]
struct Owner {
    times: u32,
    /// When the next of them tries, in doubt.
    due: Instant,
    /// How many wait for the next try.
    waits: usize,
}

/// Why an app is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// APNs refuses key, certificate or topic: no push can pass.
    Refused,
    /// No device token is good: most of them may be made up.
    Doubted,
}

/// The servers of one owner, see [`Domain::owner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Family(u64);

/// Nobody outside of the process can choose names that come to the same.
static FAMILIES: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl From<&Domain> for Family {
    fn from(domain: &Domain) -> Self {
        Self(FAMILIES.hash_one(domain.owner()))
    }
}

/// What APNs has said of a device token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It took it.
    Proven,
    /// Nothing.
    Untried,
    /// That it is bad, a short while ago: there is nothing to be learned from it.
    Bad,
}

/// What becomes of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is sent.
    Go,
    /// It is asked about again then.
    Wait(Instant),
    /// It is not sent.
    Refuse,
}

impl Open {
    fn new(cause: Cause, pause_max: Duration, now: Instant) -> Self {
        let first = PAUSE_MIN.min(pause_max);
        Self {
            cause,
            retry_at: now + first,
            pause: (first * 2).min(pause_max),
            tries: 0,
            owners: HashMap::new(),
        }
    }

    fn turn_to(&mut self, cause: Cause, retry_at: Instant) {
        self.cause = cause;
        self.retry_at = retry_at;
        self.owners.clear();
    }

    /// For an app that APNs refuses: one push tries per pause, whosever it is.
    fn admit(&mut self, family: Family, now: Instant, pause_max: Duration) -> Admission {
        if now >= self.retry_at {
            self.retry_at = now + self.pause;
            self.pause = (self.pause * 2).min(pause_max);
            self.tries = self.tries.saturating_add(1);
            self.owners.clear();
            return Admission::Go;
        }
        let due = self.retry_at;
        if self.tries >= PATIENCE || !self.knows(family, due, now) {
            return Admission::Refuse;
        }
        self.hold(family, due, self.pause.min(DOUBT_MAX))
    }

    /// For an app in doubt: each owner tries by itself, one push at a time, and those that have not tried yet
    /// before others do again. Whoever fills the queue with made-up tokens, under however many names, keeps
    /// nobody from his first tries.
    fn admit_doubted(&mut self, family: Family, now: Instant, pause_max: Duration) -> Admission {
        if !self.owners.contains_key(&family) {
            let due = self.retry_at.max(now);
            if self.knows(family, due, now) {
                self.retry_at = due + TURN;
            } else if now >= self.retry_at {
                self.retry_at = now + TURN;
                return Admission::Go;
            }
        }
        let Some(owner) = self.owners.get_mut(&family) else {
            return Admission::Refuse;
        };
        if now < owner.due {
            return match owner.times < PATIENCE {
                true => {
                    let due = owner.due;
                    self.hold(family, due, PAUSE_MIN)
                }
                false => Admission::Refuse,
            };
        }
        let growth = 1 << owner.times.min(16);
        let longest = pause_max.min(DOUBT_MAX);
        let pause = PAUSE_MIN.saturating_mul(growth).min(longest);
        owner.times = owner.times.saturating_add(1);
        owner.waits = 0;
        self.forget_absent(now);
        let owners = u32::try_from(self.owners.len()).unwrap_or(u32::MAX);
        if let Some(owner) = self.owners.get_mut(&family) {
            owner.due = now + pause * (owners / OWNERS_PER_PAUSE + 1);
        }
        Admission::Go
    }

    /// Whether there is a place for what an owner tries; makes it, for a first try when it is `due`.
    fn knows(&mut self, family: Family, due: Instant, now: Instant) -> bool {
        if self.owners.contains_key(&family) {
            return true;
        }
        if self.owners.len() >= OWNERS_MAX {
            self.forget_absent(now);
        }
        let has_place = self.owners.len() < OWNERS_MAX;
        if has_place {
            let owner = Owner {
                times: 0,
                due,
                waits: 0,
            };
            self.owners.insert(family, owner);
        }
        has_place
    }

    fn forget_absent(&mut self, now: Instant) {
        self.owners.retain(|_, owner| owner.due + ABSENCE_MAX > now);
    }

    /// One more waits for the next try, if its owner's share allows.
    fn hold(&mut self, family: Family, due: Instant, spread: Duration) -> Admission {
        let share = WAITS_MAX / self.owners.len().max(1);
        let Some(owner) = self.owners.get_mut(&family) else {
            return Admission::Refuse;
        };
        if owner.waits >= share.clamp(SHARE.0, SHARE.1) {
            return Admission::Refuse;
        }
        owner.waits += 1;
        match owner.waits {
            1 => Admission::Wait(due),
            // Not all of them at the same time.
            _ => Admission::Wait(due + spread.mul_f64(fastrand::f64())),
        }
    }
}

impl Breaker {
    /// A closed breaker whose pauses grow up to `pause_max`.
    pub(crate) fn new(pause_max: Duration) -> Self {
        Self {
            pause_max,
            touched: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    /// Whether a push from a server may be sent now, by how its device token stands.
    pub(crate) fn admits(
        &self,
        family: Family,
        standing: impl FnOnce() -> Standing,
        now: Instant,
    ) -> Admission {
        if !self.touched.load(Ordering::Relaxed) {
            return Admission::Go;
        }
        let mut state = self.state();
        let Some(open) = &mut state.open else {
            return Admission::Go;
        };
        if open.cause == Cause::Refused {
            return open.admit(family, now, self.pause_max);
        }
        match standing() {
            Standing::Proven => Admission::Go,
            Standing::Untried => open.admit_doubted(family, now, self.pause_max),
            // It would take the try of another one of the same owner.
            Standing::Bad => Admission::Refuse,
        }
    }

    /// APNs refused the configuration. Returns whether the app is stopped.
    pub(crate) fn refused(&self, now: Instant) -> bool {
        let mut state = self.state();
        state.refusals = state.refusals.saturating_add(1);
        self.touched.store(true, Ordering::Relaxed);
        if state.refusals >= REFUSALS_MAX {
            self.open(&mut state, Cause::Refused, now);
        }
        state.open.is_some()
    }

    /// APNs calls every device token bad.
    pub(crate) fn doubted(&self, now: Instant) {
        let mut state = self.state();
        self.touched.store(true, Ordering::Relaxed);
        self.open(&mut state, Cause::Doubted, now);
    }

    /// APNs judged a device token: it knows key, certificate and topic. So what it refused them for is over,
    /// whoever's device token that was; whether any is good is not known.
    pub(crate) fn recognised(&self, now: Instant) {
        if !self.touched.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state();
        // That there were refusals stays: one more, before anything is taken, and it is stopped again.
        if let Some(open) = &mut state.open
            && open.cause == Cause::Refused
        {
            open.turn_to(Cause::Doubted, now);
        }
    }

    /// APNs took a push.
    pub(crate) fn close(&self) {
        if self.touched.load(Ordering::Relaxed) {
            let mut state = self.state();
            *state = State::default();
            self.touched.store(false, Ordering::Relaxed);
        }
    }

    /// Answers of pushes that were in flight come when it is open already.
    fn open(&self, state: &mut State, cause: Cause, now: Instant) {
        match &mut state.open {
            Some(open) if cause == Cause::Refused && open.cause == Cause::Doubted => {
                open.turn_to(cause, now + open.pause);
            }
            Some(_) => {}
            None => state.open = Some(Open::new(cause, self.pause_max, now)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        start: Instant,
        breaker: Breaker,
    }

    impl Fixture {
        fn new() -> Self {
            Self {
                start: Instant::now(),
                breaker: Breaker::new(Duration::from_secs(30)),
            }
        }

        fn at(&self, millis: u64) -> Instant {
            self.start + Duration::from_millis(millis)
        }

        fn asks(&self, domain: &str, proven: bool, millis: u64) -> Admission {
            let standing = match proven {
                true => Standing::Proven,
                false => Standing::Untried,
            };
            self.asks_as(&Domain::new(domain), standing, millis)
        }

        fn asks_as(&self, domain: &Domain, standing: Standing, millis: u64) -> Admission {
            self.breaker
                .admits(domain.into(), || standing, self.at(millis))
        }

        #[track_caller]
        fn waits(&self, domain: &str, millis: u64) {
            let admission = self.asks(domain, false, millis);
            assert!(
                matches!(admission, Admission::Wait(_)),
                "{domain} at {millis}: {admission:?}"
            );
        }

        #[track_caller]
        fn is(&self, domain: &str, millis: u64, expected: Admission) {
            assert_eq!(
                self.asks(domain, false, millis),
                expected,
                "{domain} at {millis}"
            );
        }
    }

    use Admission::{Go, Refuse, Wait};

    #[test]
    fn one_refusal_is_a_whim_and_three_are_not() {
        let f = Fixture::new();
        assert!(!f.breaker.refused(f.at(0)) && !f.breaker.refused(f.at(0)));
        f.is("a.test", 0, Go);
        f.breaker.close();
        assert!(!f.breaker.refused(f.at(0)) && !f.breaker.refused(f.at(0)));
        assert!(f.breaker.refused(f.at(0)));
        f.waits("a.test", 499);
        f.breaker.close();
        f.is("a.test", 499, Go);
        f.is("a.test", 499, Go);
    }

    #[test]
    fn one_push_tries_per_pause_and_pauses_grow() {
        let f = Fixture::new();
        for _ in 0..300 {
            f.breaker.refused(f.at(0));
        }
        // Proven device tokens do not help where the key is refused.
        assert!(matches!(f.asks("a.test", true, 0), Wait(_)));
        for (due, pause) in [(500, 1_000), (1_500, 2_000)] {
            f.waits("a.test", due - 1);
            f.is("a.test", due, Go);
            assert!(f.breaker.refused(f.at(due)));
            let Wait(until) = f.asks("a.test", false, due) else {
                panic!("it waits");
            };
            assert!(until >= f.at(due + pause) && until <= f.at(due + 3 * pause));
        }
        // Now it is certain, and whoever publishes is told.
        for due in [3_500, 7_500, 15_500, 31_500, 61_500, 91_500] {
            f.is("b.test", due, Go);
            f.is("a.test", due, Refuse);
            f.is("b.test", due + 1, Refuse);
        }
    }

    /// Its tries are no more than four seconds apart, for however long nothing is taken.
    #[test]
    fn the_only_owner_there_is_keeps_trying() {
        let f = Fixture::new();
        f.breaker.doubted(f.at(0));
        let mut tries = Vec::new();
        for second in 0..86_400 {
            if f.asks("a.test", false, second * 1_000) == Go {
                f.breaker.doubted(f.at(second * 1_000));
                tries.push(second);
            }
        }
        let widest = tries.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert_eq!((tries[0], widest), (1, Some(4)));
    }

    #[test]
    fn who_has_tried_waits_for_a_pause_and_others_do_not() {
        let f = Fixture::new();
        f.breaker.doubted(f.at(0));
        f.is("evil.test", 400, Wait(f.at(500)));
        f.waits("more.evil.test", 400);
        f.is("evil.test", 500, Go);
        f.waits("more.evil.test", 600);
        f.is("chat.good.test", 600, Go);
        f.is("other.org", 600, Wait(f.at(600) + TURN));
        f.is("evil.test", 1_000, Go);
        f.waits("evil.test", 1_999);
        f.is("more.evil.test", 2_000, Go);
        // By now it is certain for this one.
        f.is("evil.test", 2_001, Refuse);
        f.is("other.org", 2_001, Go);
        f.is("evil.test", 3_999, Refuse);
        f.is("evil.test", 4_000, Go);
        f.is("evil.test", 7_999, Refuse);
        f.is("evil.test", 8_000, Go);
        f.breaker.close();
        f.is("evil.test", 8_001, Go);
    }

    #[test]
    fn a_device_token_that_was_taken_passes_doubts() {
        let f = Fixture::new();
        f.breaker.doubted(f.at(0));
        assert_eq!(f.asks("a.test", true, 0), Go);
        assert_eq!(f.asks("a.test", true, 0), Go);
        f.waits("a.test", 0);
        for _ in 0..REFUSALS_MAX {
            f.breaker.refused(f.at(0));
        }
        assert!(matches!(f.asks("a.test", true, 0), Wait(_)));
    }

    #[test]
    fn a_device_token_that_was_called_bad_takes_no_try() {
        let f = Fixture::new();
        let domain = Domain::new("a.test");
        f.breaker.doubted(f.at(0));
        assert_eq!(f.asks_as(&domain, Standing::Bad, 600), Refuse);
        f.is("a.test", 600, Go);
        f.breaker.close();
        assert_eq!(f.asks_as(&domain, Standing::Bad, 600), Go);
    }

    /// Who floods has each try while the key is refused, and none of them succeeds.
    #[test]
    fn a_judged_device_token_ends_the_refusal_of_a_key() {
        let f = Fixture::new();
        f.breaker.recognised(f.at(0));
        for _ in 0..REFUSALS_MAX {
            f.is("good.org", 0, Go);
            f.breaker.refused(f.at(0));
        }
        assert!(matches!(f.asks("good.org", true, 0), Wait(_)));
        f.is("evil.test", 500, Go);
        f.breaker.recognised(f.at(500));
        assert_eq!(f.asks("good.org", true, 500), Go);
        assert_eq!(f.asks("good.org", true, 500), Go);
        f.is("good.org", 500, Go);
        f.breaker.close();
        f.is("evil.test", 501, Go);
    }

    /// Where made-up device tokens are judged before the key, whoever pushes them cannot have the app go on.
    #[test]
    fn a_key_that_is_really_refused_is_not_tried_more_often_for_it() {
        let f = Fixture::new();
        let mut asked = 0;
        for millis in 0..60_000 {
            if f.asks("evil.test", false, millis) == Go {
                f.breaker.recognised(f.at(millis));
            }
            if f.asks("good.org", true, millis) == Go {
                asked += 1;
                f.breaker.refused(f.at(millis));
            }
        }
        assert!(asked < 40, "{asked}");
    }

    /// An owner comes with one push so long after so many others, whose pushes never end. Returns how long it is
    /// kept waiting, and how often the others had APNs asked in half a minute.
    fn held_back_by(names: u32, after: u64) -> (u64, u32) {
        let f = Fixture::new();
        f.breaker.doubted(f.at(0));
        let names: Vec<Domain> = (0..names)
            .map(|name| Domain::new(&format!("chat.evil{name}.test")))
            .collect();
        let mut tries = 0;
        let mut asks_at = f.at(after);
        let mut admitted = None;
        for millis in (0..30_000).step_by(50) {
            for name in &names {
                let admission = f.asks_as(name, Standing::Untried, millis);
                tries += u32::from(admission == Go);
            }
            if admitted.is_none() && f.at(millis) >= asks_at {
                match f.asks("good.org", false, millis) {
                    Go => admitted = Some(millis - after),
                    Wait(until) => asks_at = until,
                    Refuse => panic!("not tried"),
                }
            }
        }
        (admitted.unwrap(), tries)
    }

    /// However many names there are that push what somebody made up, and however much.
    #[test]
    fn one_more_owner_is_soon_admitted() {
        for (names, after, longest, tries_max) in [
            (1, 0, 600, 20),
            (40, 0, 3_100, 320),
            (40, 10_000, 0, 320),
            (40, 20_000, 0, 320),
            // For twelve seconds there are some that come for the first time.
            (200, 5_000, 8_100, 900),
            (200, 20_000, 0, 900),
        ] {
            let (waited, tries) = held_back_by(names, after);
            assert!(
                waited <= longest,
                "{names} names, after {after} ms: {waited} ms"
            );
            assert!(tries <= tries_max, "{names} names: {tries} tries");
        }
    }

    #[test]
    fn names_without_end_take_no_room_without_end() {
        let f = Fixture::new();
        f.breaker.doubted(f.at(0));
        let owners = || {
            f.breaker
                .state()
                .open
                .as_ref()
                .map(|open| open.owners.len())
        };
        for round in 1..10_000 {
            f.asks(&format!("evil{round}.test"), false, round);
            assert!(owners().is_some_and(|owners| owners <= OWNERS_MAX));
        }
        assert_eq!(owners(), Some(OWNERS_MAX));
        // Once all of these have had their turn there is one for who has no place.
        f.is("good.org", 70_000, Go);
        for _ in 0..REFUSALS_MAX {
            f.breaker.refused(f.at(70_000));
        }
        for round in 1..10_000 {
            f.asks(&format!("evil{round}.test"), false, 70_000);
            assert!(owners().is_some_and(|owners| owners <= OWNERS_MAX));
        }
    }

    /// How many pushes of each of so many owners may wait for a try.
    fn waiting(f: &Fixture, owners: u32) -> Vec<usize> {
        let waiting = |name: u32| {
            let domain = Domain::new(&format!("chat.{name}.test"));
            let asked = (0..300).map(|_| f.asks_as(&domain, Standing::Untried, 0));
            asked.filter(|asked| matches!(asked, Wait(_))).count()
        };
        (0..owners).map(waiting).collect()
    }

    #[test]
    fn few_wait_and_none_is_without() {
        let f = Fixture::new();
        f.breaker.doubted(f.at(0));
        let doubted = waiting(&f, 1_024);
        let f = Fixture::new();
        for _ in 0..REFUSALS_MAX {
            f.breaker.refused(f.at(0));
        }
        assert_eq!(waiting(&f, 1_024), doubted);
        assert_eq!((doubted[0], doubted[40], doubted[1_023]), (256, 49, 4));
        let all: usize = doubted.iter().sum();
        assert!(all <= 13_000, "{all}");
    }
}
