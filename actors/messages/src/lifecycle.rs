//! How actors are watched and stopped.

use std::time::{Duration, Instant};

use actix::Message;

/// Finish what is in hand and take nothing new. Answered when done, or at the deadline and the time for
/// farewells.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Drained")]
pub struct Drain {
    /// When to give up.
    pub deadline: Instant,
    /// How long courtesies may take beyond it: the ends of streams and connections.
    pub farewell: Duration,
}

impl Drain {
    /// When all must be closed that is closed from `now` on in at most `limit`.
    #[must_use]
    pub fn closed_by(&self, now: Instant, limit: Duration) -> Instant {
        (now + limit).min(self.deadline.max(now) + self.farewell)
    }
}

/// What a drain left undone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, actix::MessageResponse)]
pub struct Drained {
    /// Pieces of work (iqs, pushes, replies) given up.
    pub abandoned: u64,
}

/// Are you there? An actor that does not answer in time is taken for dead.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Health")]
pub struct Probe;

/// Look at the files you work with and take what changed into use. What cannot be used is reported by the
/// actor, which then goes on with what it has. Answered when done.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Reload;

/// Counters since the actor started, as `<subject>_<name>_<unit>[_total]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, actix::MessageResponse)]
pub struct Health {
    /// Name and value; the same names each time.
    pub counters: Vec<(&'static str, u64)>,
}
