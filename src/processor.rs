//! What the processor has worked for this process.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Whose time is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Span {
    /// All threads, also those that have ended.
    Process,
    /// The thread that asks.
    Thread,
}

/// CPU time used until now.
pub(crate) fn used(span: Span) -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(match span {
        Span::Process => ClockId::ProcessCPUTime,
        Span::Thread => ClockId::ThreadCPUTime,
    });
    let seconds = u64::try_from(tv_sec).unwrap_or(0);
    let nanos = u32::try_from(tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}
