//! Dialback keys (XEP-0220, XEP-0185).

use std::fmt::Write;

use ring::hmac;
use ring::rand::SystemRandom;

/// Makes keys and recognises them.
pub(super) struct DialbackSecret(hmac::Key);

impl DialbackSecret {
    /// A fresh secret; `None` when the system has no randomness.
    pub(super) fn generate() -> Option<Self> {
        hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .ok()
            .map(Self)
    }

    /// The key for a stream with this id that `originating` opened to `receiving`.
    pub(super) fn key(&self, receiving: &str, originating: &str, stream_id: &str) -> String {
        let text = format!("{receiving} {originating} {stream_id}");
        let tag = hmac::sign(&self.0, text.as_bytes());
        tag.as_ref().iter().fold(String::new(), |mut hex, byte| {
            // Writing into a string does not fail.
            let _infallible = write!(hex, "{byte:02x}");
            hex
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_depend_on_every_part() {
        // XEP-0185's key of the secret, so that its vector can be checked.
        let digest = ring::digest::digest(&ring::digest::SHA256, b"s3cr3tf0rd14lb4ck");
        let hex: String = digest
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let secret = DialbackSecret(hmac::Key::new(hmac::HMAC_SHA256, hex.as_bytes()));
        let key = secret.key("xmpp.example.com", "example.org", "D60000229F");
        assert_eq!(
            key,
            "37c69b1cf07a3f67c04a5ef5902fa5114f2c76fe4a2686482ba5b89323075643"
        );
        let other = DialbackSecret::generate().unwrap();
        assert_ne!(
            other.key("xmpp.example.com", "example.org", "D60000229F"),
            key
        );
    }
}
