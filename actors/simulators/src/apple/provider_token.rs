//! Provider tokens (Apple, "Establishing a token-based connection to APNs"; RFC 7515, RFC 7518).

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use messages::UnixSeconds;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde_json::Value;

use super::KnownKey;
use super::reason::{Reason, Refusal};

/// How old a provider token may be, in seconds.
const AGE_MAX: u64 = 60 * 60;
/// How far ahead of ours the provider's clock may be, in seconds.
const AHEAD_MAX: u64 = 60;
/// How long a team keeps a token before it may make another, in seconds.
const UPDATE_MIN: u64 = 20 * 60;
/// Tokens of a team that are remembered; with one per 20 minutes, those of the last hours.
const TOKENS_MAX: usize = 16;
/// The length of r||s for P-256 (RFC 7518 §3.4).
const SIGNATURE_BYTES: usize = 64;

/// The keys that the simulator knows, by key id.
pub(super) struct Keys(HashMap<String, Rc<KnownKey>>);

/// What a good provider token says.
#[derive(Clone)]
pub(super) struct Verified {
    pub(super) key: Rc<KnownKey>,
    issued_at: u64,
}

impl Keys {
    pub(super) fn new(keys: Vec<KnownKey>) -> Self {
        let by_id = |key: KnownKey| (key.id.key_id.to_string(), Rc::new(key));
        Self(keys.into_iter().map(by_id).collect())
    }

    /// Whether any key may push to this topic.
    pub(super) fn know_topic(&self, topic: &str, suffix: &str) -> bool {
        self.0.values().any(|key| key.allows(topic, suffix))
    }

    /// Verifies the value of `authorization`, except for its age.
    pub(super) fn verify(&self, authorization: Option<&str>) -> Result<Verified, Refusal> {
        let missing = Refusal::new(
            Reason::MissingProviderToken,
            "authorization is not bearer and a token",
        );
        let (scheme, token) = authorization
            .and_then(|value| value.split_once(' '))
            .ok_or(missing)?;
        if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
            return Err(missing);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(invalid(THREE_PARTS))?;
        let (header, claims) = signed.split_once('.').ok_or(invalid(THREE_PARTS))?;
        if claims.contains('.') {
            return Err(invalid(THREE_PARTS));
        }
        let header = json(header).ok_or(invalid("the jwt header is not base64url of json"))?;
        let claims = json(claims).ok_or(invalid("the jwt claims are not base64url of json"))?;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| invalid("the jwt signature is not base64url"))?;
        if text(&header, "alg") != Some("ES256") {
            return Err(invalid("the jwt alg is not ES256"));
        }
        if header.get("typ").is_some_and(|typ| typ != "JWT") {
            return Err(invalid("the jwt typ is not JWT"));
        }
        let key = text(&header, "kid")
            .and_then(|key_id| self.0.get(key_id))
            .ok_or(invalid("the jwt kid is not a known key"))?;
        if text(&claims, "iss") != Some(&*key.id.team_id) {
            return Err(invalid("the jwt iss is not the team of the key"));
        }
        let issued_at = claims
            .get("iat")
            .and_then(Value::as_u64)
            .ok_or(invalid("the jwt iat is not an integer"))?;
        if signature.len() != SIGNATURE_BYTES {
            return Err(invalid("the jwt signature is not 64 bytes of r and s"));
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key.public_key)
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| invalid("the jwt signature is wrong"))?;
        Ok(Verified {
            key: Rc::clone(key),
            issued_at,
        })
    }
}

impl Verified {
    /// Checks the age, which changes while a connection goes on with the same token.
    /// Nothing issued before `oldest` is good either.
    pub(super) const fn check_age(&self, now: UnixSeconds, oldest: u64) -> Result<(), Refusal> {
        if self.issued_at > now.0.saturating_add(AHEAD_MAX) {
            return Err(invalid("the jwt iat is in the future"));
        }
        if now.0 > self.issued_at.saturating_add(AGE_MAX) || self.issued_at < oldest {
            return Err(Refusal::new(
                Reason::ExpiredProviderToken,
                "the jwt iat is more than 60 minutes ago",
            ));
        }
        Ok(())
    }
}

impl KnownKey {
    /// Whether the key may push to a topic that is one of its bundle ids and this suffix.
    pub(super) fn allows(&self, topic: &str, suffix: &str) -> bool {
        topic
            .strip_suffix(suffix)
            .is_some_and(|bundle_id| self.topics.iter().any(|known| known == bundle_id))
    }
}

/// How often each team makes new tokens: the quota counts over its keys and all connections. The first
/// token of each key is free.
pub(super) struct Updates {
    limited: bool,
    teams: HashMap<Arc<str>, Team>,
}

#[derive(Default)]
struct Team {
    /// Key id and token, the oldest first.
    tokens: VecDeque<(Arc<str>, Box<str>)>,
    last_update: Option<UnixSeconds>,
}

impl Updates {
    pub(super) fn new(limited: bool) -> Self {
        Self {
            limited,
            teams: HashMap::new(),
        }
    }

    /// Takes note of a verified token and tells whether it is a new one.
    pub(super) fn admit(
        &mut self,
        key: &KnownKey,
        token: &str,
        now: UnixSeconds,
    ) -> Result<bool, Refusal> {
        let team = self.teams.entry(Arc::clone(&key.id.team_id)).or_default();
        if team.tokens.iter().any(|(_, known)| **known == *token) {
            return Ok(false);
        }
        let is_first = team
            .tokens
            .iter()
            .all(|(key_id, _)| *key_id != key.id.key_id);
        let is_early = team
            .last_update
            .is_some_and(|last| now.0 < last.0.saturating_add(UPDATE_MIN));
        if self.limited && is_early && !is_first {
            return Err(Refusal::new(
                Reason::TooManyProviderTokenUpdates,
                "the team made a new token within 20 minutes",
            ));
        }
        team.last_update = Some(now);
        if team.tokens.len() == TOKENS_MAX {
            team.tokens.pop_front();
        }
        team.tokens
            .push_back((Arc::clone(&key.id.key_id), token.into()));
        Ok(true)
    }
}

const THREE_PARTS: &str = "the jwt does not have three parts";

const fn invalid(because: &'static str) -> Refusal {
    Refusal::new(Reason::InvalidProviderToken, because)
}

fn json(part: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

fn text<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str)
}
