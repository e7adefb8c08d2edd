//! The one signer of provider tokens (Apple, "Establishing a token-based connection to APNs"): APNs counts
//! new tokens per team and refuses more than one in 20 minutes, so lanes never sign themselves, and what was
//! signed is kept for the next start and for others of the team on this machine.

use std::collections::BTreeMap;
use std::path::Path;
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
use crate::token_file::{Kept, Shut, TokenFile, Unusable};

/// APNs answers `TooManyProviderTokenUpdates` to tokens that change faster.
pub(crate) const AGE_MIN: Duration = Duration::from_secs(20 * 60);

/// A token is kept for longer by this: APNs counts from when it first sees one, which is later than its signature.
const SEEN_LATER: Duration = Duration::from_secs(60);

/// How often ages are looked at. Far below the distance between renewal and expiry.
const CHECK: Duration = Duration::from_secs(10);

/// A kept token is not begun with when APNs would call it expired this soon.
const AGE_MAX: Duration = Duration::from_secs(59 * 60);

/// By so much a token may be ahead of the clock without a word: clocks are corrected by little all the time.
const AHEAD_MAX: Duration = Duration::from_secs(60);

/// How long another process may look at the file of a token before it is asked for again. It takes it a
/// millisecond.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// So often it is asked for; then the other process hangs and is not waited for.
const BUSY_MAX: u32 = 100;

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
        .map(|key| {
            let directory = &upstreams.config().token_dir;
            let file =
                (!directory.as_os_str().is_empty()).then(|| TokenFile::new(directory, key.id()));
            (key.id().clone(), Issuer::new(Arc::clone(key), file))
        })
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
            taken: 0,
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
    taken: u64,
    refused: u64,
}

/// One key: its last token and who uses it.
struct Issuer {
    key: Arc<SigningKey>,
    file: Option<TokenFile>,
    last: Option<Issued>,
    /// APNs called the last token expired.
    refused: bool,
    /// The key file has another key than the one that signed the last token.
    rekeyed: bool,
    /// That the last token is of the future was told.
    told_ahead: bool,
    /// How often in a row another process looked at the file.
    busy: u32,
    subscribers: Vec<Recipient<UseProviderToken>>,
}

struct Issued {
    token: UseProviderToken,
    /// When it was signed, by the clock that is never set.
    at: Instant,
    /// The same by the wall, which goes on while the machine sleeps.
    wall: UnixSeconds,
}

/// What came of asking for a new token.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Issue {
    /// It was signed.
    Signed,
    /// Another process had signed it, or this one before it was started anew.
    Taken,
    /// Another process is at it.
    Busy,
    /// It cannot be signed.
    Failed,
}

impl Issuer {
    const fn new(key: Arc<SigningKey>, file: Option<TokenFile>) -> Self {
        Self {
            key,
            file,
            last: None,
            refused: false,
            rekeyed: false,
            told_ahead: false,
            busy: 0,
            subscribers: Vec::new(),
        }
    }

    /// Whether a new token is wanted and allowed.
    fn due(&self, now: UnixSeconds, slot: u64) -> bool {
        // Before anybody asks, a token would age for nothing.
        let Some(last) = &self.last else {
            return !self.subscribers.is_empty();
        };
        let in_slot = is_in_slot(last.token.issued_at, now, slot);
        let since = between(last.wall, now).max(last.at.elapsed());
        // One that was signed late in its slot would expire meanwhile.
        let is_spent = self.refused || between(last.token.issued_at, now) >= AGE_MAX;
        let seen = if is_spent {
            AGE_MIN
        } else {
            AGE_MIN + SEEN_LATER
        };
        self.rekeyed || ((self.refused || !in_slot) && since >= seen)
    }

    /// Says once of each token that the clock was set back behind it.
    fn tell_ahead(&mut self, now: UnixSeconds) {
        let Some(last) = &self.last else { return };
        let ahead = between(now, last.token.issued_at);
        if ahead > AHEAD_MAX && !self.told_ahead {
            self.told_ahead = true;
            tracing::warn!(
                key = ?self.key.id(),
                ahead_seconds = ahead.as_secs(),
                "this machine's clock was set back, and the provider token is of the future: APNs may refuse \
                 it until it is replaced, 20 minutes after it was made"
            );
        }
    }

    /// Whether a kept token is one to go on with.
    fn takes(&self, kept: &Kept, now: UnixSeconds, slot: u64) -> bool {
        // After the clock went back, what others signed since is the newer one.
        let is_newer = self
            .last
            .as_ref()
            .is_none_or(|last| kept.issued_at > last.token.issued_at || last.token.issued_at > now);
        let is_good = kept.issued_at <= now && between(kept.issued_at, now) < AGE_MAX;
        let is_current =
            is_in_slot(kept.issued_at, now, slot) || between(kept.signed_at, now) < AGE_MIN;
        is_good && is_current && (is_newer || !self.refused)
    }

    /// Takes what others signed, or signs, and hands out.
    fn issue(&mut self, now: UnixSeconds, slot: u64) -> Issue {
        let signer = self.key.signer();
        let locked = match self.file.as_ref().map(TokenFile::lock) {
            Some(Err(Shut::Busy)) if self.busy < BUSY_MAX => {
                self.busy += 1;
                return Issue::Busy;
            }
            Some(Err(shut)) => {
                unshared(&self.key, &shut);
                None
            }
            Some(Ok(locked)) => Some(locked),
            None => None,
        };
        let read = locked.as_ref().map(|locked| locked.read(&signer));
        let found = match read.transpose() {
            Ok(kept) => kept.flatten(),
            Err(Unusable { path, problem }) => {
                pass_over(&self.key, Some(&path), &problem);
                None
            }
        };
        let found = found.filter(|kept| {
            if kept.issued_at > now {
                pass_over(
                    &self.key,
                    None,
                    "it is of the future by this machine's clock",
                );
            }
            self.takes(kept, now, slot)
        });
        let (kept, issue) = match found {
            Some(kept) => (kept, Issue::Taken),
            None => {
                // A token that was refused would come out the same.
                let issued_at = if self.refused {
                    now
                } else {
                    start_of_slot(now, slot)
                };
                let Ok(bearer) = signer.sign(issued_at) else {
                    tracing::error!(
                        key = ?self.key.id(),
                        "the system gave no random bytes to sign with"
                    );
                    return Issue::Failed;
                };
                let kept = Kept {
                    bearer,
                    issued_at,
                    signed_at: now,
                };
                if let Some(Err(error)) = locked.as_ref().map(|locked| locked.write(&signer, &kept))
                {
                    unshared(&self.key, &Shut::Failed(error));
                }
                (kept, Issue::Signed)
            }
        };
        drop(locked);
        self.hand_out(kept, issue, now);
        issue
    }

    /// Hands the token of `issued_at` out once more where it may not be replaced yet: who had it refused waits to
    /// hear whether it has to do.
    fn insist(&mut self, issued_at: UnixSeconds, now: UnixSeconds, slot: u64) {
        if self.due(now, slot) {
            return;
        }
        if let Some(last) = &self.last
            && last.token.issued_at == issued_at
        {
            let token = &last.token;
            self.subscribers
                .retain(|subscriber| subscriber.try_send(token.clone()).is_ok());
        }
    }

    fn hand_out(&mut self, kept: Kept, issue: Issue, now: UnixSeconds) {
        let token = UseProviderToken {
            key: self.key.id().clone(),
            bearer: kept.bearer,
            issued_at: kept.issued_at,
        };
        tracing::info!(
            key = ?token.key,
            issued_at = kept.issued_at.0,
            signed_here = issue == Issue::Signed,
            subscribers = self.subscribers.len(),
            "new provider token"
        );
        self.subscribers
            .retain(|subscriber| subscriber.try_send(token.clone()).is_ok());
        let age = between(kept.signed_at, now);
        let at = Instant::now();
        self.last = Some(Issued {
            token,
            at: at.checked_sub(age).unwrap_or(at),
            wall: kept.signed_at.min(now),
        });
        self.refused = false;
        self.rekeyed = false;
        self.told_ahead = false;
        self.busy = 0;
    }
}

/// A token serves this process alone: others may sign one more, and so will the next start.
fn unshared(key: &SigningKey, shut: &Shut) {
    const TROUBLE: &str = "APNs may refuse the next start's";
    match shut {
        Shut::Busy => tracing::warn!(
            key = ?key.id(),
            "another process holds the lock in token_dir for seconds: signing without it; {TROUBLE}"
        ),
        Shut::Failed(error) => tracing::warn!(
            key = ?key.id(),
            "a provider token cannot be kept in token_dir: {error}; {TROUBLE}"
        ),
    }
}

/// A token that is kept is not gone on with, and APNs allows another one only 20 minutes after it.
fn pass_over(key: &SigningKey, file: Option<&Path>, problem: &str) {
    tracing::warn!(
        key = ?key.id(),
        file = file.map(|path| tracing::field::display(path.display())),
        "the provider token in token_dir is passed over and another is signed: {problem}; APNs may refuse \
         new tokens of the team for up to 20 minutes"
    );
}

/// How long after `since` it is; nothing when it is before.
const fn between(since: UnixSeconds, now: UnixSeconds) -> Duration {
    Duration::from_secs(now.0.saturating_sub(since.0))
}

fn is_in_slot(issued_at: UnixSeconds, now: UnixSeconds, slot: u64) -> bool {
    (start_of_slot(now, slot)..=now).contains(&issued_at)
}

/// What all processes of a team agree on without talking.
const fn start_of_slot(now: UnixSeconds, slot: u64) -> UnixSeconds {
    UnixSeconds(now.0 - now.0 % slot)
}

impl ProviderTokens {
    /// Signs with what replaced a key's file: connections of the old key end when all is answered.
    fn look_at_files(&mut self, ctx: &mut Context<Self>) {
        if self.stopped {
            return;
        }
        for issuer in self.issuers.values_mut() {
            match issuer.key.reload() {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(key = ?issuer.key.id(), "the key file has another key: using it");
                    issuer.rekeyed = issuer.last.is_some();
                    // That was said of the other key's.
                    issuer.refused = false;
                }
                Err(problem) => tracing::error!(
                    key = ?issuer.key.id(),
                    "key_file {problem}; the key that was there stays in use"
                ),
            }
        }
        self.renew(ctx);
    }

    /// Sees to it that each key has the token it should have.
    fn renew(&mut self, ctx: &mut Context<Self>) {
        if self.stopped {
            return;
        }
        let now = self.clock.now();
        let mut busy = false;
        for issuer in self.issuers.values_mut() {
            if !issuer.due(now, self.slot) {
                issuer.tell_ahead(now);
                continue;
            }
            match issuer.issue(now, self.slot) {
                Issue::Signed => self.signed += 1,
                Issue::Taken => self.taken += 1,
                Issue::Busy => busy = true,
                Issue::Failed => {}
            }
        }
        if busy {
            ctx.run_later(BUSY_PAUSE, Self::renew);
        }
    }
}

impl Actor for ProviderTokens {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(CHECK, Self::renew);
        ctx.run_interval(self.poll, Self::look_at_files);
    }
}

impl Supervised for ProviderTokens {}

impl Handler<SubscribeProviderToken> for ProviderTokens {
    type Result = ();

    fn handle(&mut self, message: SubscribeProviderToken, ctx: &mut Self::Context) {
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
                self.renew(ctx);
            }
        }
    }
}

impl Handler<ProviderTokenRefused> for ProviderTokens {
    type Result = ();

    fn handle(&mut self, message: ProviderTokenRefused, ctx: &mut Self::Context) {
        self.refused += 1;
        if let Some(issuer) = self.issuers.get_mut(&message.key)
            && let Some(last) = &issuer.last
            // Any other was replaced already: by a newer one, or by an older one when the clock went back.
            && message.issued_at == last.token.issued_at
        {
            issuer.refused = true;
        }
        self.renew(ctx);
        if let Some(issuer) = self.issuers.get_mut(&message.key)
            && !self.stopped
        {
            issuer.insist(message.issued_at, self.clock.now(), self.slot);
        }
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
                ("provider_tokens_taken_total", self.taken),
                ("provider_tokens_refused_total", self.refused),
            ],
        }
    }
}
