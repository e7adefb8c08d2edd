//! What the actor and its two threads share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use messages::{Clock, RegistrationKey};

use crate::Config;
use crate::key::HashKey;

/// How long a push may still be on its way whose registration was erased; the longest that APNs' pool tries
/// is minutes.
const ECHO: Duration = Duration::from_secs(30 * 60);

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    /// Present if identifiers are hashed, or were.
    pub(crate) key: Option<HashKey>,
    /// Entries in the queue.
    pub(crate) waiting: AtomicU64,
    /// Requests about closed segments that wait or are at work.
    pub(crate) requests: AtomicU64,
    /// Bytes of all segments.
    pub(crate) bytes: AtomicU64,
    /// Closed segments.
    pub(crate) segments: AtomicU64,
    pub(crate) written: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) syncs: AtomicU64,
    /// Closed segments of which some could not be read, at the last look.
    pub(crate) damaged: AtomicU64,
    /// Whether the last attempt to write failed.
    pub(crate) failing: AtomicBool,
    /// Registrations that were erased, for as long as a push may still speak of them.
    forgotten: Mutex<HashMap<RegistrationKey, Instant>>,
    has_forgotten: AtomicBool,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Shared {
    pub(crate) fn new(config: Config, clock: Clock, key: Option<HashKey>) -> Self {
        Self {
            config,
            clock,
            key,
            waiting: AtomicU64::default(),
            requests: AtomicU64::default(),
            bytes: AtomicU64::default(),
            segments: AtomicU64::default(),
            written: AtomicU64::default(),
            lost: AtomicU64::default(),
            syncs: AtomicU64::default(),
            damaged: AtomicU64::default(),
            failing: AtomicBool::default(),
            forgotten: Mutex::default(),
            has_forgotten: AtomicBool::default(),
        }
    }

    /// Nothing is written of these registrations from now on.
    pub(crate) fn forget(&self, registrations: &[RegistrationKey]) {
        let now = Instant::now();
        let mut forgotten = self.lock();
        forgotten.retain(|_, since| now.saturating_duration_since(*since) < ECHO);
        forgotten.extend(registrations.iter().map(|key| (*key, now)));
        self.has_forgotten
            .store(!forgotten.is_empty(), Ordering::Release);
    }

    pub(crate) fn is_forgotten(&self, registration: RegistrationKey) -> bool {
        self.has_forgotten.load(Ordering::Acquire) && self.lock().contains_key(&registration)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RegistrationKey, Instant>> {
        // Also after a panic of another holder: the map is whole at each step.
        self.forgotten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
