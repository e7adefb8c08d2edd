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

/// The longest pause between the tries of one owner for an app in doubt.
const DOUBT_MAX: Duration = Duration::from_secs(4);

/// So many owners may try in one such pause. Where there are more each has its turn in so many pauses that there is
/// one left for the next: whoever has many names shall not keep the others waiting.
const OWNERS_PER_PAUSE: u32 = 16;

/// Who has not tried for so long although it might have is not counted among them any more.
const ABSENCE_MAX: Duration = Duration::from_secs(30);

/// Until so many tries have failed pushes wait for the next one. Then they are answered: whoever publishes
/// shall learn what is wrong, and not that it will be sent.
const PATIENCE: u32 = 3;

/// So many pushes of one family may wait in a pause, and so many in all: the queue is of all apps that share a
/// key.
const FAMILY_WAITS_MAX: u32 = 256;
const WAITS_MAX: u32 = 1_024;

/// Of so many families it is known when they have tried; those above come last.
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
    retry_at: Instant,
    pause: Duration,
    tries: u32,
    tried: HashMap<Family, Tried>,
    /// How many wait in this pause, of each family and in all.
    waits: HashMap<Family, u32>,
    waiting: u32,
    waits_until: Instant,
}

/// What one owner's pushes have tried.
#[derive(Clone, Copy)]
struct Tried {
    times: u32,
    again_at: Instant,
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
    /// For an app that APNs refuses: one push tries per pause, whosever it is.
    fn admit(&mut self, family: Family, now: Instant, pause_max: Duration) -> Admission {
        if now >= self.retry_at {
            self.retry_at = now + self.pause;
            self.pause = (self.pause * 2).min(pause_max);
            self.tries = self.tries.saturating_add(1);
            return Admission::Go;
        }
        self.hold(family, self.tries < PATIENCE, self.retry_at, now)
    }

    /// For an app in doubt: one push of each owner tries per pause. Whoever fills the queue with made-up tokens
    /// gets no more of them than anybody else.
    fn admit_doubted(&mut self, family: Family, now: Instant, pause_max: Duration) -> Admission {
        let longest = pause_max.min(DOUBT_MAX);
        let pause = self.pause.min(longest);
        let known = self.tried.get(&family).copied();
        if known.is_none() && self.tried.len() >= FAMILIES_MAX {
            self.tried.retain(|_, tried| tried.again_at > now);
        }
        let has_place = known.is_some() || self.tried.len() < FAMILIES_MAX;
        let due = match known {
            Some(tried) => tried.again_at.max(self.retry_at),
            None if has_place => self.retry_at,
            None => self.retry_at + pause,
        };
        let times = known.map_or(0, |known| known.times);
        if now >= due {
            self.retry_at = now + pause / OWNERS_PER_PAUSE;
            self.pause = self.pause.max((pause * 2).min(longest));
            self.tries = self.tries.saturating_add(1);
            if has_place {
                self.tried
                    .retain(|_, tried| tried.again_at + ABSENCE_MAX > now);
                let owners = u32::try_from(self.tried.len()).unwrap_or(u32::MAX);
                let tried = Tried {
                    times: times.saturating_add(1),
                    again_at: now + pause * (owners / OWNERS_PER_PAUSE + 1),
                };
                self.tried.insert(family, tried);
            }
            return Admission::Go;
        }
        self.hold(family, times < PATIENCE, due, now)
    }

    fn hold(&mut self, family: Family, waits: bool, due: Instant, now: Instant) -> Admission {
        match waits && self.has_room(family, now) {
            // Not all of them at the same time.
            true => Admission::Wait(due + self.pause.min(DOUBT_MAX).mul_f64(fastrand::f64())),
            false => Admission::Refuse,
        }
    }

    /// Whether one more may wait; counts it.
    fn has_room(&mut self, family: Family, now: Instant) -> bool {
        if now >= self.waits_until {
            self.waits.clear();
            self.waiting = 0;
            self.waits_until = now + self.pause;
        }
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
        match open.cause {
            Cause::Refused => open.admit(family, now, self.pause_max),
            Cause::Doubted if proven() => Admission::Go,
            Cause::Doubted => open.admit_doubted(family, now, self.pause_max),
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
            open.cause = Cause::Doubted;
            open.retry_at = now;
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
                open.cause = cause;
                open.retry_at = now + open.pause;
            }
            Some(_) => {}
            None => {
                let first = PAUSE_MIN.min(self.pause_max);
                state.open = Some(Open {
                    cause,
                    retry_at: now + first,
                    pause: (first * 2).min(self.pause_max),
                    tries: 0,
                    tried: HashMap::new(),
                    waits: HashMap::new(),
                    waiting: 0,
                    waits_until: now + first,
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
        f.waits("evil.test", 499);
        f.is("evil.test", 500, Go);
        f.waits("more.evil.test", 600);
        f.waits("chat.good.test", 561);
        f.is("chat.good.test", 563, Go);
        f.waits("evil.test", 1_499);
        f.is("more.evil.test", 1_500, Go);
        f.is("evil.test", 5_500, Go);
        // By now it is certain for this one.
        f.is("evil.test", 5_501, Refuse);
        f.waits("other.org", 5_501);
        f.breaker.close();
        f.is("evil.test", 5_501, Go);
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

    /// However many names there are that push what somebody made up, and however much.
    #[test]
    fn one_more_name_is_soon_admitted() {
        let f = Fixture::new();
        f.breaker.doubted(f.at(0));
        let mut tries = 0;
        let first = (0..60_000).find(|millis| {
            for name in 0..40 {
                let admission = f.asks(&format!("evil{name}.test"), false, *millis);
                tries += u32::from(admission == Go);
            }
            *millis > 20_000 && f.asks("good.org", false, *millis) == Go
        });
        assert!(first.is_some_and(|millis| millis < 25_000), "{first:?}");
        assert!(tries < 100, "{tries}");
    }

    #[test]
    fn names_without_end_take_no_room_without_end() {
        let f = Fixture::new();
        f.breaker.doubted(f.at(0));
        for round in 1..10_000 {
            f.asks(&format!("evil{round}.test"), false, round * 250);
        }
        let known = f.breaker.state().open.as_ref().map(|open| open.tried.len());
        assert!(
            known.is_some_and(|known| known <= FAMILIES_MAX),
            "{known:?}"
        );
        f.is("good.org", 2_500_000, Go);
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
