//! When a trouble gets a line in the log: at once, and then once per period while it lasts.

use std::time::{Duration, Instant};

/// Time between two lines.
const PERIOD: Duration = Duration::from_secs(300);

/// A trouble, or none.
#[derive(Default)]
pub(crate) struct Alarm {
    /// When the last line was written, while the trouble lasts.
    rang: Option<Instant>,
    /// Entries lost since.
    lost: u64,
}

impl Alarm {
    /// Whether to log now, and how many were lost since the last line.
    pub(crate) fn rings(&mut self, lost: u64) -> Option<u64> {
        self.lost += lost;
        if self.rang.is_some_and(|rang| rang.elapsed() < PERIOD) {
            return None;
        }
        self.rang = Some(Instant::now());
        Some(std::mem::take(&mut self.lost))
    }

    /// Whether a trouble has ended.
    pub(crate) fn ends(&mut self) -> bool {
        self.lost = 0;
        self.rang.take().is_some()
    }
}
