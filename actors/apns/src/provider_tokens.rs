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
use crate::signing_key::SigningKey;

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
        .keys()
        .map(|key| (key.id().clone(), Issuer::new(Arc::clone(key))))
        .collect();
    let clock = upstreams.clock().clone();
    let slot = upstreams.config().token_slot_seconds;
    let poll = Duration::from_secs(upstreams.config().key_poll_seconds);
    let addr = Supervisor::start(move |ctx: &mut Context<ProviderTokens>| {
        ctx.set_mailbox_capacity(0);
        ProviderTokens {
            issuers,
            clock,
            slot,
            poll,
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
    slot: u64,
    poll: Duration,
    stopped: bool,
    signed: u64,
    refused: u64,
}

/// One key: its last token and who uses it.
struct Issuer {
    key: Arc<SigningKey>,
    last: Option<Issued>,
    /// APNs called the last token expired.
    refused: bool,
    subscribers: Vec<Recipient<UseProviderToken>>,
}

struct Issued {
    token: UseProviderToken,
    /// When it was signed, by the clock that is never set.
    at: Instant,
    /// The same by the wall, which goes on while the machine sleeps.
    wall: UnixSeconds,
}

impl Issuer {
    const fn new(key: Arc<SigningKey>) -> Self {
        Self {
            key,
            last: None,
            refused: false,
            subscribers: Vec::new(),
        }
    }

    /// Whether a new token is wanted and allowed.
    fn due(&self, now: UnixSeconds, slot: u64) -> bool {
        let Some(last) = &self.last else {
            return true;
        };
        let issued_at = last.token.issued_at;
        let in_slot = (start_of_slot(now, slot)..=now).contains(&issued_at);
        let since = Duration::from_secs(now.0.saturating_sub(last.wall.0)).max(last.at.elapsed());
        (self.refused || !in_slot) && since >= AGE_MIN
    }

    /// Signs and hands out. Returns whether a token was signed.
    fn issue(&mut self, now: UnixSeconds, slot: u64) -> bool {
        // A token that was refused would come out the same.
        let issued_at = if self.refused {
            now
        } else {
            start_of_slot(now, slot)
        };
        let Ok(bearer) = self.key.signer().sign(issued_at) else {
            tracing::error!(key = ?self.key.id(), "the system gave no random bytes to sign with");
            return false;
        };
        let token = UseProviderToken {
            key: self.key.id().clone(),
            bearer,
            issued_at,
        };
        tracing::info!(
            key = ?token.key,
            issued_at = issued_at.0,
            subscribers = self.subscribers.len(),
            "new provider token"
        );
        self.subscribers
            .retain(|subscriber| subscriber.try_send(token.clone()).is_ok());
        self.last = Some(Issued {
            token,
            at: Instant::now(),
            wall: now,
        });
        self.refused = false;
        true
    }
}

/// What all processes of a team agree on without talking.
const fn start_of_slot(now: UnixSeconds, slot: u64) -> UnixSeconds {
    UnixSeconds(now.0 - now.0 % slot)
}

impl ProviderTokens {
    /// Signs with what replaced a key's file: connections of the old key end when all is answered.
    fn look_at_files(&mut self) {
        if self.stopped {
            return;
        }
        let now = self.clock.now();
        for issuer in self.issuers.values_mut() {
            match issuer.key.reload() {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(key = ?issuer.key.id(), "the key file has another key: using it");
                    if issuer.last.is_some() {
                        self.signed += u64::from(issuer.issue(now, self.slot));
                    }
                }
                Err(problem) => tracing::error!(
                    key = ?issuer.key.id(),
                    "key_file {problem}; the key that was there stays in use"
                ),
            }
        }
    }

    fn renew(&mut self) {
        if self.stopped {
            return;
        }
        let now = self.clock.now();
        for issuer in self.issuers.values_mut() {
            // Before anybody asks, a token would age for nothing.
            if issuer.last.is_some() && issuer.due(now, self.slot) {
                self.signed += u64::from(issuer.issue(now, self.slot));
            }
        }
    }
}

impl Actor for ProviderTokens {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(CHECK, |actor, _| actor.renew());
        ctx.run_interval(self.poll, |actor, _| actor.look_at_files());
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
                self.signed += u64::from(issuer.issue(self.clock.now(), self.slot));
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
