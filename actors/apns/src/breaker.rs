//! Stops an app whose configuration APNs refuses from hammering at it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use messages::Domain;
use tokio::time::Instant;

/// So many refusals without a success between stop the app: a single one may be a whim.
const REFUSALS_MAX: u32 = 3;

/// The first pause; each try that follows makes the next one twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// The longest pause of an app in doubt: the owner of many names shall not keep others waiting for long.
const DOUBT_MAX: Duration = Duration::from_secs(4);

/// Until so many tries have failed pushes wait for the next one. Then they are answered: whoever publishes
/// shall learn what is wrong, and not that it will be sent.
const PATIENCE: u32 = 3;

/// So many pushes of one family may wait between two tries, and so many in all: the queue is of all apps that
/// share a key.
const FAMILY_WAITS_MAX: u32 = 256;
const WAITS_MAX: u32 = 1_024;

/// Of so many families it is known how often they have tried; what comes above counts as one that has.
const FAMILIES_MAX: usize = 1_024;

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
    /// Whether device tokens were doubted, whatever else came since.
    doubted: bool,
    retry_at: Instant,
    pause: Duration,
    tries: u32,
    /// How often the pushes of each family have tried.
    tried: HashMap<Family, u32>,
    /// How many wait since the last try, of each family and in all.
    waits: HashMap<Family, u32>,
    waiting: u32,
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

impl From<&Domain> for Family {
    fn from(domain: &Domain) -> Self {
        let mut hasher = DefaultHasher::new();
        domain.owner().hash(&mut hasher);
        Self(hasher.finish())
    }
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
    /// Whether one more may wait; counts it.
    fn has_room(&mut self, family: Family) -> bool {
        let waits = self.waits.get(&family).copied().unwrap_or_default();
        let room = self.waiting < WAITS_MAX && waits < FAMILY_WAITS_MAX;
        if room {
            self.waits.insert(family, waits + 1);
            self.waiting += 1;
        }
        room
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

    /// Whether a push from a server may be sent now. `proven` says whether APNs has taken its device token
    /// before.
    pub(crate) fn admits(
        &self,
        domain: &Domain,
        proven: impl FnOnce() -> bool,
        now: Instant,
    ) -> Admission {
        if !self.touched.load(Ordering::Relaxed) {
            return Admission::Go;
        }
        let mut state = self.state();
        let Some(open) = &mut state.open else {
            return Admission::Go;
        };
        let family = Family::from(domain);
        let mut due = open.retry_at;
        let mut waits = open.tries < PATIENCE;
        if open.cause == Cause::Doubted {
            if proven() {
                return Admission::Go;
            }
            // Whoever fills the queue with made-up tokens does not get each try.
            let unknown = u32::from(open.tried.len() >= FAMILIES_MAX);
            let tried = open.tried.get(&family).copied().unwrap_or(unknown);
            due += open.pause.saturating_mul(tried);
            waits |= tried == 0;
        }
        if now >= due {
            open.retry_at = now + open.pause;
            let max = match open.cause {
                Cause::Refused => self.pause_max,
                Cause::Doubted => self.pause_max.min(DOUBT_MAX),
            };
            open.pause = (open.pause * 2).min(max);
            open.tries = open.tries.saturating_add(1);
            open.waits.clear();
            open.waiting = 0;
            if open.tried.len() < FAMILIES_MAX || open.tried.contains_key(&family) {
                *open.tried.entry(family).or_default() += 1;
            }
            return Admission::Go;
        }
        match waits && open.has_room(family) {
            // Not all of them at the same time.
            true => Admission::Wait(due + open.pause.mul_f64(fastrand::f64())),
            false => Admission::Refuse,
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
    /// whoever's device token that was.
    pub(crate) fn recognised(&self) {
        if !self.touched.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state();
        state.refusals = 0;
        match &mut state.open {
            Some(open) if open.cause == Cause::Refused && open.doubted => {
                open.cause = Cause::Doubted;
            }
            Some(open) if open.cause == Cause::Refused => state.open = None,
            _ => {}
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
        let doubted = cause == Cause::Doubted;
        match &mut state.open {
            Some(open) => {
                open.doubted |= doubted;
                if !doubted {
                    open.cause = cause;
                }
            }
            None => {
                let first = PAUSE_MIN.min(self.pause_max);
                state.open = Some(Open {
                    cause,
                    doubted,
                    retry_at: now + first,
                    pause: (first * 2).min(self.pause_max),
                    tries: 0,
                    tried: HashMap::new(),
                    waits: HashMap::new(),
                    waiting: 0,
                });
            }
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
            let domain = Domain::new(domain);
            self.breaker.admits(&domain, || proven, self.at(millis))
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

    #[test]
    fn who_has_failed_leaves_the_next_try_to_others() {
        let f = Fixture::new();
        f.breaker.doubted(f.at(0));
        f.waits("evil.test", 499);
        f.is("evil.test", 500, Go);
        f.waits("evil.test", 1_500);
        f.waits("more.evil.test", 3_499);
        f.is("more.evil.test", 3_500, Go);
        // The next one is due after two seconds, and for names that have tried twice after eight more.
        f.waits("evil.test", 5_500);
        f.waits("chat.good.test", 5_499);
        f.is("chat.good.test", 5_500, Go);
        f.is("chat.good.test", 5_500, Refuse);
        f.is("evil.test", 5_500, Refuse);
        f.waits("other.org", 5_500);
        f.breaker.close();
        f.is("evil.test", 5_500, Go);
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

    /// Who floods has each try while the key is refused, and none of them succeeds.
    #[test]
    fn a_judged_device_token_ends_the_refusal_of_a_key() {
        let f = Fixture::new();
        f.breaker.recognised();
        for _ in 0..REFUSALS_MAX - 1 {
            f.breaker.refused(f.at(0));
        }
        f.breaker.recognised();
        for _ in 0..REFUSALS_MAX {
            f.is("good.org", 0, Go);
            f.breaker.refused(f.at(0));
        }
        f.waits("good.org", 0);
        f.is("evil.test", 500, Go);
        f.breaker.recognised();
        f.is("good.org", 500, Go);
        f.is("good.org", 500, Go);
    }

    #[test]
    fn doubts_outlast_the_refusal_of_a_key() {
        let f = Fixture::new();
        f.breaker.doubted(f.at(0));
        f.is("evil.test", 500, Go);
        for _ in 0..REFUSALS_MAX {
            f.breaker.refused(f.at(500));
        }
        assert!(matches!(f.asks("a.test", true, 500), Wait(_)));
        f.breaker.recognised();
        assert_eq!(f.asks("a.test", true, 500), Go);
        // Who has tried before is still known.
        f.waits("evil.test", 1_500);
        f.is("good.org", 1_500, Go);
        f.breaker.recognised();
        f.waits("other.org", 1_501);
    }

    /// However many names there are that push what somebody made up, and however much.
    #[test]
    fn names_that_have_tried_least_go_first() {
        let f = Fixture::new();
        f.breaker.doubted(f.at(0));
        let mut tries = 0;
        let first = (0..60_000).find(|millis| {
            for name in 0..10 {
                let admission = f.asks(&format!("evil{name}.test"), false, *millis);
                tries += u32::from(admission == Go);
            }
            *millis > 20_000 && f.asks("good.org", false, *millis) == Go
        });
        // It comes when all of the others have tried, and has the next one.
        assert!(first.is_some_and(|millis| millis < 45_000), "{first:?}");
        assert_eq!(tries, 10);
    }

    #[test]
    fn few_wait() {
        let f = Fixture::new();
        f.breaker.doubted(f.at(0));
        let waiting = |name: &str| {
            let asked = (0..5_000).map(|_| f.asks(name, false, 0));
            asked.filter(|asked| matches!(asked, Wait(_))).count()
        };
        assert_eq!(waiting("a.test"), FAMILY_WAITS_MAX as usize);
        let all: usize = (0..10).map(|n| waiting(&format!("{n}.test"))).sum();
        assert_eq!(all, (WAITS_MAX - FAMILY_WAITS_MAX) as usize);
    }
}
