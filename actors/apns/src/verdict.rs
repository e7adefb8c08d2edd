//! What is done about an answer of APNs.

use messages::{
    Domain, ErrorReason, PushOutcome, RejectedToken, Rejection, Touch, UnixMillis, UnixSeconds,
};
use tokio::time::Instant;

use crate::guard::Suspicion;
use crate::ledger::count;
use crate::push::Push;
use crate::reason::{Class, judge};
use crate::reply::{Details, Reply};
use crate::route::Route;

/// How far back a token's death is dated when APNs does not date it: who registered since stays.
const GRACE_MILLIS: u64 = 3_600_000;

/// A clock that differs by more from APNs' is worth a word.
const SKEW_SECONDS_MIN: u64 = 60;

/// So often a push is sent although the same provider token was called expired with it before.
const EXPIRATIONS_OF_A_PUSH_MAX: u8 = 3;

/// What becomes of the connection that brought the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes on.
    Keep,
    /// It takes no more pushes.
    Retire,
    /// It takes no more pushes, and its successor waits.
    RetireSlowly,
    /// It takes no more pushes: APNs calls every provider token expired on it from now on.
    Wedged,
}

impl Route {
    /// Acts on the answer to a push that was sent with the provider token of `issued_at`, over a connection
    /// that may have called one expired.
    pub(crate) fn conclude(
        &self,
        mut push: Push,
        reply: Reply,
        issued_at: UnixSeconds,
        expired: Option<UnixSeconds>,
        now: Instant,
    ) -> Fate {
        let details = reply.error.map(|details| *details).unwrap_or_default();
        let (class, reason) = judge(reply.status, details.reason.as_deref());
        let ledger = &self.lane.ledger;
        let touch = Touch {
            registration: push.registration,
            at: self.lane.upstreams.clock().now(),
            verdict: match class {
                Class::Accepted => Ok(push.app.acceptance),
                _ => Err(reason.clone()),
            },
        };
        ledger.touch(touch, push.was_accepted());
        if class != Class::Accepted {
            tracing::debug!(
                app = %push.app.id,
                apns_id = %push.id,
                status = reply.status,
                %reason,
                "not accepted"
            );
        }
        let reject = |push: &Push, rejection| push.claim.settle(PushOutcome::Rejected(rejection));
        match class {
            Class::Accepted => {
                push.app.guard.accepted(push.mark(), now);
                push.app.breaker.close();
                self.token_taken();
                push.claim.settle(PushOutcome::Accepted);
                Fate::Keep
            }
            Class::Dead => {
                push.app.breaker.recognised(now);
                self.bury(push, reason, details.timestamp);
                Fate::Keep
            }
            Class::Suspect => {
                self.charge(&push);
                push.app.breaker.recognised(now);
                match push
                    .app
                    .guard
                    .suspect(push.mark(), push.was_accepted(), now)
                {
                    Suspicion::Token => self.bury(push, reason, None),
                    Suspicion::Unsure => reject(&push, Rejection::Unavailable),
                    Suspicion::Configuration { proven } => {
                        if proven {
                            push.app.breaker.doubted(now);
                        }
                        let what_to_do = mismatch(reason.as_str(), &push.domain);
                        push.app.alarm(&reason, now, &what_to_do);
                        reject(&push, Rejection::Unavailable);
                    }
                }
                Fate::Keep
            }
            Class::Bug => {
                push.app
                    .alarm(&reason, now, "APNs calls our request malformed: report it");
                reject(&push, Rejection::Internal);
                Fate::Keep
            }
            Class::Config => {
                self.misconfigured(push, &reason, &details, now);
                Fate::Keep
            }
            Class::ExpiredToken => {
                if expired.is_none() {
                    self.token_expired(issued_at, now);
                }
                if expired.is_some_and(|expired| expired != issued_at) {
                    // It says nothing of the newer token.
                    self.repeat(push, now);
                } else if self.upstream.key.is_none() || !may_expire_again(&push, issued_at) {
                    push.tries.refused |= self.upstream.key.is_some();
                    self.misconfigured(push, &reason, &details, now);
                } else {
                    if let Some(skew) = self.skew(&details) {
                        push.app.alarm(&reason, now, &skew);
                    }
                    let times = push.tries.expired.map_or(0, |(_, times)| times);
                    push.tries.expired = Some((issued_at, times + 1));
                    self.park(push, now);
                }
                Fate::Wedged
            }
            Class::TokenChurn => {
                push.app.alarm(
                    &reason,
                    now,
                    "another program signs provider tokens for this team: let one sign for all; or the token in \
                     apns.token_dir was lost, then it is over within 20 minutes",
                );
                self.token_not_allowed(now);
                self.pause(push, details.retry_after, now);
                Fate::RetireSlowly
            }
            Class::WrongConnection => {
                if push.tries.reconnected {
                    push.tries.refused = true;
                    self.misconfigured(push, &reason, &details, now);
                } else {
                    push.tries.reconnected = true;
                    self.pause(push, details.retry_after, now);
                }
                Fate::RetireSlowly
            }
            Class::Throttled => {
                self.hold(push, details.retry_after, now);
                Fate::Keep
            }
            Class::Server => {
                self.pause(push, details.retry_after, now);
                Fate::Keep
            }
            Class::Reopen => {
                self.repeat(push, now);
                Fate::Retire
            }
            Class::Unknown => {
                count(&ledger.counters.unknown_reasons);
                let what_to_do = format!(
                    "APNs answers {} {reason}, which this version does not know: registrations are kept; look \
                     for an update",
                    reply.status
                );
                push.app
                    .alarm(&ErrorReason::known("unknown"), now, &what_to_do);
                reject(&push, Rejection::Unavailable);
                Fate::Keep
            }
        }
    }

    /// The device token is dead. Whether its registration is, the store knows: it answers the iq.
    fn bury(&self, push: Push, reason: ErrorReason, since: Option<UnixMillis>) {
        let now = self.lane.upstreams.clock().now_millis();
        // Nobody can know of a death to come: with clocks that differ, whoever registers from now on stays.
        let invalid_since =
            since.map_or_else(|| now.minus_millis(GRACE_MILLIS), |since| since.min(now));
        let rejected = RejectedToken {
            app: push.app.id.clone(),
            device_token: push.device_token,
            reason,
            invalid_since,
        };
        push.claim.bury(push.registration, rejected.clone());
        self.lane.ledger.dead(rejected);
    }

    /// In words how wrong this machine's clock is by that of APNs.
    fn skew(&self, details: &Details) -> Option<String> {
        skew(self.lane.upstreams.clock().now(), details.date?)
    }

    /// APNs refuses what the operator configured. Unless it has been asked again already it is asked once
    /// more: a single refusal may be a whim.
    fn misconfigured(&self, mut push: Push, reason: &ErrorReason, details: &Details, now: Instant) {
        let stopped = push.app.breaker.refused(now);
        if stopped || push.tries.refused {
            let skew = self.skew(details);
            let what_to_do = skew.as_deref().unwrap_or(match self.upstream.key {
                Some(_) => {
                    "APNs refuses this app's configuration: check topic, environment, team_id, key_id and \
                     key_file"
                }
                None => {
                    "APNs refuses this app's configuration: check topic, environment and certificate_file; \
                     if they are right, the certificate may have been revoked: make a new one"
                }
            });
            push.app.alarm(reason, now, what_to_do);
        }
        if push.tries.refused {
            push.claim
                .settle(PushOutcome::Rejected(Rejection::Unavailable));
            return;
        }
        push.tries.refused = true;
        self.pause(push, None, now);
    }
}

/// Whether a push goes again for which APNs called the provider token of `issued_at` expired. One that had another
/// token refused before shows that a clock is wrong.
fn may_expire_again(push: &Push, issued_at: UnixSeconds) -> bool {
    push.tries
        .expired
        .is_none_or(|(before, times)| before == issued_at && times < EXPIRATIONS_OF_A_PUSH_MAX)
}

/// In words what refuses so many device tokens, and whose server asked for the last of them.
fn mismatch(reason: &str, domain: &Domain) -> String {
    let cause = match reason {
        "DeviceTokenNotForTopic" => {
            "device tokens belong to another app: registrations are kept; correct topic"
        }
        _ => {
            "device tokens belong to Apple's other environment, or somebody made them up: registrations are \
             kept; if none is accepted, correct environment"
        }
    };
    format!("{cause} (the last one was from {domain})")
}

/// In words how wrong this machine's clock is, measured by a peer's.
fn skew(ours: UnixSeconds, theirs: UnixSeconds) -> Option<String> {
    let seconds = ours.0.abs_diff(theirs.0);
    if seconds < SKEW_SECONDS_MIN {
        return None;
    }
    let direction = if ours < theirs { "behind" } else { "ahead of" };
    Some(format!(
        "this machine's clock is {seconds} s {direction} APNs': set it, provider tokens carry its time"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_skew_in_words() {
        let at = UnixSeconds;
        assert_eq!(skew(at(1_000), at(1_059)), None);
        assert_eq!(skew(at(1_059), at(1_000)), None);
        let behind = skew(at(1_000), at(4_600)).unwrap();
        assert!(behind.contains("3600 s behind"), "{behind}");
        let ahead = skew(at(4_600), at(1_000)).unwrap();
        assert!(ahead.contains("3600 s ahead of"), "{ahead}");
    }
}
