//! Waiting for something that can be observed.

use std::thread;
use std::time::{Duration, Instant};

/// How long anything here may take: far more than it takes on a slow machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks until there is something to see, and fails the test when there is nothing within [`LIMIT`].
#[track_caller]
pub(crate) fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(LIMIT, what, look)
}

/// The same with a limit of its own.
#[track_caller]
pub(crate) fn until_within<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(
            Instant::now() < deadline,
            "waited {} s in vain: {what}",
            limit.as_secs()
        );
        thread::sleep(PAUSE);
    }
}
