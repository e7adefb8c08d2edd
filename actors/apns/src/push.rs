//! One push between its arrival and its verdict.

use std::sync::Arc;

use messages::{
    Acceptance, Change, Content, DeviceToken, Domain, PushOutcome, RegistrationKey, Rejection,
    UnixSeconds, Withdrawal,
};
use tokio::time::Instant;
use uuid::Uuid;

use crate::breaker::Family;
use crate::class::Class;
use crate::guard::Mark;
use crate::ledger::Claim;
use crate::upstream::App;
use crate::waiting::Waits;

/// A push and what was tried with it. Dropping it answers its iq, see [`Claim`].
pub(crate) struct Push {
    /// Its place in the order of arrival on this lane.
    pub(crate) serial: u64,
    /// The outcome it owes.
    pub(crate) claim: Claim,
    /// The registration it is for.
    pub(crate) registration: RegistrationKey,
    /// The device to wake.
    pub(crate) device_token: DeviceToken,
    /// Where it was ever taken.
    pub(crate) acceptance: Option<Acceptance>,
    /// The server that wants it.
    pub(crate) domain: Domain,
    /// Whose server that is.
    pub(crate) family: Family,
    /// The app it is for.
    pub(crate) app: Arc<App>,
    /// What to send.
    pub(crate) class: Class,
    /// How many messages wait, as the publish said.
    pub(crate) message_count: Option<u32>,
    /// What is shown of the message, where the app's operator wants it.
    pub(crate) content: Option<Box<Content>>,
    /// The `apns-id`: the same for each try, so that a repeat can be recognised.
    pub(crate) id: Uuid,
    /// When another try is not worth it any more.
    pub(crate) fresh_until: Instant,
    /// What was tried.
    pub(crate) tries: Tries,
}

/// Which of its second chances a push has had.
#[derive(Default)]
pub(crate) struct Tries {
    /// Times it was certainly not processed.
    pub(crate) unprocessed: u8,
    /// Pauses it has made.
    pub(crate) pauses: u32,
    /// Times it was sent again although it was perhaps processed.
    pub(crate) resent: u8,
    /// The provider token that was called expired when it was sent, by its `iat`, and how often.
    pub(crate) expired: Option<(UnixSeconds, u8)>,
    /// Sent again although its app's configuration was refused.
    pub(crate) refused: bool,
    /// Sent again on a connection of its own key.
    pub(crate) reconnected: bool,
}

impl Push {
    /// What names its device token to the guard of its app.
    pub(crate) fn mark(&self) -> Mark {
        self.app.guard.mark(self.registration, &self.device_token)
    }

    /// Whether APNs has taken its device token before, as the store knows.
    pub(crate) fn was_accepted(&self) -> bool {
        self.acceptance == Some(self.app.acceptance)
    }
}

impl Waits for Push {
    fn registration(&self) -> RegistrationKey {
        self.registration
    }

    fn owner(&self) -> Family {
        self.family
    }

    fn serial(&self) -> u64 {
        self.serial
    }

    /// The newer one goes; who waits for the older one is told that it is part of a later push. What one
    /// of both would show is shown.
    fn fold(&mut self, mut other: Self) {
        if self.serial < other.serial {
            std::mem::swap(self, &mut other);
        }
        let older = other;
        self.class = self.class.with_older(older.class);
        self.content = self.content.take().or(older.content);
        self.tries.pauses = self.tries.pauses.max(older.tries.pauses);
        older.claim.superseded();
    }

    fn held_back(&self) {
        self.claim
            .settle(PushOutcome::Rejected(Rejection::Throttled));
    }

    /// As a publish would be answered now, and a dead device token that was replaced: the server shall forget
    /// what has ended, and keep what lives on.
    fn withdraw(&self, by: &Withdrawal) -> bool {
        let rejection = match &by.change {
            Change::Ended => Rejection::UnknownNode,
            Change::Replaced { app, device_token } => {
                if self.app.id == *app && self.device_token == *device_token {
                    return false;
                }
                Rejection::Unavailable
            }
        };
        self.claim.withdrawn(PushOutcome::Rejected(rejection));
        true
    }
}

/// A random id (RFC 9562 §5.4). It names a push among those of a few minutes and hides nothing, so a fast
/// source does.
pub(crate) fn new_id() -> Uuid {
    uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid()
}
