//! The one signer of provider tokens (Apple, "Establishing a token-based connection to APNs"): APNs counts
//! new tokens per team and refuses more than one in 20 minutes, so lanes never sign themselves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler, Recipient, Supervised, Supervisor};
use messages::{
    Clock, Drain, Drained, Health, Probe, ProviderTokenRefused, SigningKeyId,
    SubscribeProviderToken, UnixSeconds, UseProviderToken,
};
use tokio::time::Instant;

use crate::Upstreams;
use crate::jwt::Signer;

/// APNs answers `TooManyProviderTokenUpdates` to tokens that change faster.
const AGE_MIN: Duration = Duration::from_secs(20 * 60);

/// How often ages are looked at. Far below the distance between renewal and expiry.
const CHECK: Duration = Duration::from_secs(10);

/// Where to reach the actor.
#[derive(Clone)]
pub struct Handles {
    /// Takes subscriptions, answered by the current token at once and by each later one.
    pub subscribe: Recipient<SubscribeProviderToken>,
    /// Takes the news that APNs called a token expired.
    pub refused: Recipient<ProviderTokenRefused>,
    /// Ends the renewals.
    pub drain: Recipient<Drain>,
    /// Reads the counters.
    pub probe: Recipient<Probe>,
}

/// Starts the signer on the current arbiter. It needs no edges: subscribers bring theirs.
#[must_use]
pub fn start(upstreams: &Upstreams) -> Handles {
    let issuers = upstreams
        .signers()
        .map(|signer| (signer.id().clone(), Issuer::new(Arc::clone(signer))))
        .collect();
    let clock = upstreams.clock().clone();
    let renew_after = Duration::from_secs(upstreams.config().token_renew_seconds);
    let addr = Supervisor::start(move |ctx: &mut Context<ProviderTokens>| {
        ctx.set_mailbox_capacity(0);
        ProviderTokens {
            issuers,
            clock,
            renew_after,
            stopped: false,
            signed: 0,
            refused: 0,
        }
    });
    Handles {
        subscribe: addr.clone().recipient(),
        refused: addr.clone().recipient(),
        drain: addr.clone().recipient(),
        probe: addr.recipient(),
    }
}

struct ProviderTokens {
    issuers: BTreeMap<SigningKeyId, Issuer>,
    clock: Clock,
    renew_after: Duration,
    stopped: bool,
    signed: u64,
    refused: u64,
}

/// One key: its last token and who uses it.
struct Issuer {
    signer: Arc<Signer>,
    last: Option<Issued>,
    /// APNs called the last token expired.
    refused: bool,
    subscribers: Vec<Recipient<UseProviderToken>>,
}

struct Issued {
    token: UseProviderToken,
    /// By the clock that is never set, for when the other one is.
    at: Instant,
}

impl Issuer {
    const fn new(signer: Arc<Signer>) -> Self {
        Self {
            signer,
            last: None,
            refused: false,
            subscribers: Vec::new(),
        }
    }

    /// Whether a new token is wanted and allowed.
    fn due(&self, now: UnixSeconds, renew_after: Duration) -> bool {
        let Some(last) = &self.last else {
            return true;
        };
        let issued_at = last.token.issued_at;
        // The wall clock may be set back, the other one stands still while the machine sleeps.
        let age = Duration::from_secs(now.0.saturating_sub(issued_at.0)).max(last.at.elapsed());
        let wanted = self.refused || age >= renew_after || now < issued_at;
        wanted && age >= AGE_MIN
    }

    /// Signs and hands out. Returns whether a token was signed.
    fn issue(&mut self, now: UnixSeconds) -> bool {
        let Ok(bearer) = self.signer.sign(now) else {
            tracing::error!(key = ?self.signer.id(), "the system gave no random bytes to sign with");
            return false;
        };
        let token = UseProviderToken {
            key: self.signer.id().clone(),
            bearer,
            issued_at: now,
        };
        tracing::info!(
            key = ?token.key,
            issued_at = now.0,
            subscribers = self.subscribers.len(),
            "new provider token"
        );
        self.subscribers
            .retain(|subscriber| subscriber.try_send(token.clone()).is_ok());
        self.last = Some(Issued {
            token,
            at: Instant::now(),
        });
        self.refused = false;
        true
    }
}

impl ProviderTokens {
    fn renew(&mut self) {
        if self.stopped {
            return;
        }
        let now = self.clock.now();
        for issuer in self.issuers.values_mut() {
            // Before anybody asks, a token would age for nothing.
            if issuer.last.is_some() && issuer.due(now, self.renew_after) {
                self.signed += u64::from(issuer.issue(now));
            }
        }
    }
}

impl Actor for ProviderTokens {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(CHECK, |actor, _| actor.renew());
    }
}

impl Supervised for ProviderTokens {}

impl Handler<SubscribeProviderToken> for ProviderTokens {
    type Result = ();

    fn handle(&mut self, message: SubscribeProviderToken, _: &mut Self::Context) {
        let Some(issuer) = self.issuers.get_mut(&message.key) else {
            tracing::error!(key = ?message.key, "no such signing key");
            return;
        };
        match &issuer.last {
            Some(last) => {
                if message.subscriber.try_send(last.token.clone()).is_ok() {
                    issuer.subscribers.push(message.subscriber);
                }
            }
            None => {
                issuer.subscribers.push(message.subscriber);
                self.signed += u64::from(issuer.issue(self.clock.now()));
            }
        }
    }
}

impl Handler<ProviderTokenRefused> for ProviderTokens {
    type Result = ();

    fn handle(&mut self, message: ProviderTokenRefused, _: &mut Self::Context) {
        self.refused += 1;
        if let Some(issuer) = self.issuers.get_mut(&message.key)
            && let Some(last) = &issuer.last
            // A token older than the last one was replaced already.
            && message.issued_at >= last.token.issued_at
        {
            issuer.refused = true;
        }
        self.renew();
    }
}

impl Handler<Drain> for ProviderTokens {
    type Result = Drained;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Drained {
        self.stopped = true;
        Drained::default()
    }
}

impl Handler<Probe> for ProviderTokens {
    type Result = Health;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Health {
        Health {
            counters: vec![
                ("provider_tokens_signed_total", self.signed),
                ("provider_tokens_refused_total", self.refused),
            ],
        }
    }
}
