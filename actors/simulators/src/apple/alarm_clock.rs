//! A timer for latencies. The runtime's own counts whole milliseconds and rounds up, by which twenty of them
//! become more than twenty-one; a thread that sleeps is as exact as the system.

use std::cell::Cell;
use std::future;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// What falls due within this time is due at once: each wake costs more than an answer.
const GRAIN: Duration = Duration::from_micros(200);

/// One alarm at a time, each later than the one before. Its thread ends with it.
pub(super) struct AlarmClock {
    alarms: Sender<Instant>,
    rings: Arc<Notify>,
    next: Cell<Option<Instant>>,
}

impl AlarmClock {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives none.
    pub(super) fn start() -> io::Result<Self> {
        let (alarms, times) = channel::<Instant>();
        let rings = Arc::new(Notify::new());
        let bell = Arc::clone(&rings);
        let ring = move || {
            for time in times {
                thread::sleep(time.saturating_duration_since(Instant::now()));
                bell.notify_one();
            }
        };
        thread::Builder::new().name("latency".into()).spawn(ring)?;
        Ok(Self {
            alarms,
            rings,
            next: Cell::new(None),
        })
    }

    /// Waits until then, and a fifth of a millisecond longer at most. It may come early for a time that was given
    /// up.
    pub(super) async fn wait(&self, until: Instant) {
        if self.next.replace(Some(until)) != Some(until) && self.alarms.send(until + GRAIN).is_err()
        {
            return future::pending().await;
        }
        self.rings.notified().await;
        self.next.set(None);
    }
}
