//! What retention asks of those who keep things for a limited time, and what it reports.

use actix::Message;
use thiserror::Error;

use crate::UnixSeconds;

/// Removes what is older than its keeper's own rule allows, one bounded step of it. Whoever keeps things for
/// a time takes this message; retention asks again while there is more.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<SweptOutdated, SweepError>")]
pub struct SweepOutdated {
    /// The time to go by. Retention has found it plausible.
    pub now: UnixSeconds,
    /// Most things to remove in this step.
    pub limit: u32,
}

/// What a step removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweptOutdated {
    /// Things that are gone.
    pub removed: u64,
    /// Whether there may be more to remove.
    pub more: bool,
}

/// Why a step failed. It is tried again with the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SweepError {
    /// Too much is waiting.
    #[error("the keeper is busy")]
    Busy,
    /// Files or store failed; the keeper has logged why.
    #[error("the keeper failed")]
    Failed,
    /// The process is stopping.
    #[error("the keeper is stopping")]
    Stopping,
}

/// Reads what the last runs of retention did, the oldest first.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "SweepReport")]
pub struct ReadSweepReport;

/// The last runs of retention, those before the last restart included.
#[derive(Clone, Debug, Default, PartialEq, Eq, actix::MessageResponse)]
pub struct SweepReport {
    /// The oldest first.
    pub runs: Vec<SweepRun>,
}

/// One run over one kind of things. Runs that found nothing to do are told by the last one alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepRun {
    /// What was swept: `registrations`, `journal segments` and so on.
    pub what: String,
    /// When it began.
    pub started_at: UnixSeconds,
    /// When it ended.
    pub ended_at: UnixSeconds,
    /// Things that were removed.
    pub removed: u64,
    /// Why it ended before it was through, if it did.
    pub failure: Option<String>,
}
