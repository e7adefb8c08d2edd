//! SASL EXTERNAL between servers (RFC 4422 appendix A, XEP-0178): the certificate is the proof, the
//! exchange only says for which domain.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use messages::Domain;

use crate::jid;

/// What is wrong with an authorization identity (RFC 6120 §6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Aborted,
    IncorrectEncoding,
    InvalidAuthzid,
    InvalidMechanism,
    MalformedRequest,
    NotAuthorized,
}

impl Refusal {
    /// The condition's element.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::IncorrectEncoding => "incorrect-encoding",
            Self::InvalidAuthzid => "invalid-authzid",
            Self::InvalidMechanism => "invalid-mechanism",
            Self::MalformedRequest => "malformed-request",
            Self::NotAuthorized => "not-authorized",
        }
    }
}

/// Checks the authorization identity of a stream from `domain`: none, written as `=` or as nothing at
/// all, or that domain.
pub(crate) fn check_identity(response: &str, domain: &Domain) -> Result<(), Refusal> {
    match response.trim() {
        "" | "=" => Ok(()),
        encoded => {
            let decoded = STANDARD
                .decode(encoded)
                .map_err(|_| Refusal::IncorrectEncoding)?;
            let identity = String::from_utf8(decoded).map_err(|_| Refusal::InvalidAuthzid)?;
            match jid::is_domain(&identity, domain) {
                true => Ok(()),
                false => Err(Refusal::InvalidAuthzid),
            }
        }
    }
}

/// The authorization identity we send: always our domain, since many servers want it spelled out.
pub(crate) fn identity(domain: &Domain) -> String {
    STANDARD.encode(domain.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(response: &str, expected: Result<(), Refusal>) {
        assert_eq!(
            check_identity(response, &Domain::new("chat.example")),
            expected
        );
    }

    #[test]
    fn identities() {
        check("=", Ok(()));
        check("", Ok(()));
        check(" \n", Ok(()));
        check("Y2hhdC5leGFtcGxl", Ok(()));
        check(&STANDARD.encode("Chat.Example"), Ok(()));
        check(
            &STANDARD.encode("other.example"),
            Err(Refusal::InvalidAuthzid),
        );
        check(
            &STANDARD.encode("sub.chat.example"),
            Err(Refusal::InvalidAuthzid),
        );
        check(
            &STANDARD.encode("ada@chat.example"),
            Err(Refusal::InvalidAuthzid),
        );
        check(&STANDARD.encode([0xff, 0xfe]), Err(Refusal::InvalidAuthzid));
        check("chat.example", Err(Refusal::IncorrectEncoding));
    }

    #[test]
    fn our_identity_is_our_domain() {
        assert_eq!(identity(&Domain::new("push.test")), "cHVzaC50ZXN0");
    }
}
