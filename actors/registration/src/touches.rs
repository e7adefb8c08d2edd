//! Push times that wait to be written.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use messages::{BuildRandom, RegistrationKey, Touch};

use crate::store::PushTimes;

/// Verdicts folded into one entry per registration, so that a busy device costs one write per period.
pub(crate) struct Touches {
    folded: HashMap<RegistrationKey, PushTimes, BuildRandom>,
    max: usize,
    dropped: u64,
    /// Whether the writer has been asked to take them. It is asked once, however many batches come
    /// before it gets to it.
    pub(crate) asked: bool,
}

impl Touches {
    /// Holds push times of at most `max` registrations.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            folded: HashMap::default(),
            max,
            dropped: 0,
            asked: false,
        }
    }

    /// Adds verdicts. One of a registration that has no room is dropped and counted.
    pub(crate) fn fold(&mut self, touches: Vec<Touch>) {
        for touch in touches {
            let full = self.folded.len() >= self.max;
            match self.folded.entry(touch.registration) {
                Entry::Occupied(mut entry) => entry.get_mut().fold(touch),
                Entry::Vacant(_) if full => self.dropped += 1,
                Entry::Vacant(entry) => entry.insert(PushTimes::default()).fold(touch),
            }
        }
    }

    /// Registrations with something to write.
    pub(crate) fn len(&self) -> usize {
        self.folded.len()
    }

    /// Whether it is time to write before the period is over.
    pub(crate) fn is_pressing(&self) -> bool {
        self.folded.len() >= self.max.div_ceil(2)
    }

    /// Verdicts that had no room.
    pub(crate) const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// What waits for one registration.
    pub(crate) fn get(&self, key: RegistrationKey) -> Option<&PushTimes> {
        self.folded.get(&key)
    }

    /// Takes all there is, to write it.
    pub(crate) fn take(&mut self) -> HashMap<RegistrationKey, PushTimes, BuildRandom> {
        self.asked = false;
        std::mem::take(&mut self.folded)
    }
}

#[cfg(test)]
mod tests {
    use messages::{ErrorReason, UnixSeconds};

    use super::*;

    fn touch(registration: u8, at: u64, error: Option<&'static str>) -> Touch {
        Touch {
            registration: RegistrationKey([registration; 16]),
            at: UnixSeconds(at),
            verdict: match error {
                None => Ok(messages::Acceptance(std::num::NonZeroU32::MIN)),
                Some(reason) => Err(ErrorReason::known(reason)),
            },
        }
    }

    #[test]
    fn a_success_keeps_the_last_error_and_order_does_not_matter() {
        let mut touches = Touches::new(10);
        touches.fold(vec![
            touch(1, 5, Some("Shutdown")),
            touch(1, 9, None),
            touch(1, 7, None),
            touch(1, 4, Some("InternalServerError")),
        ]);
        let times = touches.get(RegistrationKey([1; 16])).unwrap();
        assert_eq!(times.last_success, Some(UnixSeconds(9)));
        assert_eq!(
            times.last_error,
            Some((UnixSeconds(5), ErrorReason::known("Shutdown")))
        );
    }

    #[test]
    fn what_has_no_room_is_counted() {
        let mut touches = Touches::new(2);
        touches.fold(vec![touch(1, 1, None)]);
        assert!(touches.is_pressing());
        touches.fold(vec![
            touch(2, 1, None),
            touch(3, 1, None),
            touch(1, 2, None),
        ]);
        assert_eq!((touches.len(), touches.dropped()), (2, 1));
        assert_eq!(touches.take().len(), 2);
        assert!(!touches.is_pressing());
    }
}
