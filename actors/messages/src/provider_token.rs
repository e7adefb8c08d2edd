//! Provider tokens: the JWTs that APNs takes for authentication (Apple, "Establishing a token-based
//! connection to APNs").

use std::sync::Arc;

use actix::{Message, Recipient};

use crate::{SigningKeyId, UnixSeconds, redacted_debug};

/// The value of the `authorization` header: `bearer ` and the JWT. Never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Bearer(Arc<str>);

impl Bearer {
    /// Takes the whole header value.
    #[must_use]
    pub fn new(header_value: &str) -> Self {
        Self(header_value.into())
    }

    /// The whole header value.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

redacted_debug!(Bearer);

/// Asks for the tokens of one key, now and at each renewal.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SubscribeProviderToken {
    /// The key that signs.
    pub key: SigningKeyId,
    /// Who wants the tokens.
    pub subscriber: Recipient<UseProviderToken>,
}

impl std::fmt::Debug for SubscribeProviderToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SubscribeProviderToken")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// The token to use for every request from now on.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct UseProviderToken {
    /// The key that signed.
    pub key: SigningKeyId,
    /// The header value.
    pub bearer: Bearer,
    /// The `iat` claim.
    pub issued_at: UnixSeconds,
}

/// APNs called a token expired. Answered by a [`UseProviderToken`]: with a newer one, or with the same where that
/// is too young to be replaced (Apple allows one per 20 minutes).
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct ProviderTokenRefused {
    /// The key that signed.
    pub key: SigningKeyId,
    /// The `iat` claim of the refused token: a newer one is not replaced.
    pub issued_at: UnixSeconds,
}
