//! The only map from the outcome of a push to the answer of its iq.
//!
//! What servers do with an error decides over users' registrations, and they do not do what the RFC's
//! words suggest: ejabberd drops a registration at the first error whose type is not `wait`, Prosody
//! after some of them, MongooseIM at `cancel`, and Tigase goes by the condition alone. So:
//!
//! - `cancel`/`item-not-found` only for a registration that is really gone, and the same bytes whatever
//!   the reason, so that a stranger learns nothing;
//! - everything else that is no success is `wait` with one of the conditions that Tigase keeps;
//! - a push held back or folded into another is a success: there is nothing the server should do.

use messages::{PushOutcome, Rejection};

use crate::xml::stanza::{self, Condition, ErrorType, IqHead, StanzaError};

/// Appends the answer to a publish.
pub(crate) fn render(out: &mut Vec<u8>, head: &IqHead<'_>, outcome: PushOutcome) {
    match error_of(outcome) {
        None => stanza::result(out, head, |_| {}),
        Some(error) => stanza::error(out, head, error),
    }
}

const fn error_of(outcome: PushOutcome) -> Option<StanzaError<'static>> {
    let rejection = match outcome {
        PushOutcome::Accepted | PushOutcome::Deferred => return None,
        PushOutcome::Rejected(rejection) => rejection,
    };
    Some(match rejection {
        Rejection::Throttled => return None,
        Rejection::UnknownNode | Rejection::Forbidden | Rejection::Unregistered => {
            StanzaError::new(ErrorType::Cancel, Condition::ItemNotFound)
                .text("not a registered node")
        }
        Rejection::Malformed => StanzaError::new(ErrorType::Wait, Condition::BadRequest),
        Rejection::TimedOut => StanzaError::new(ErrorType::Wait, Condition::RemoteServerTimeout),
        Rejection::Overloaded | Rejection::Unavailable | Rejection::Internal => {
            StanzaError::new(ErrorType::Wait, Condition::InternalServerError)
        }
        // A reason of the future must not cost anybody a registration.
        _ => StanzaError::new(ErrorType::Wait, Condition::InternalServerError),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(outcome: PushOutcome, expected: &str) {
        let head = IqHead {
            id: Some("rr-1+GyG5=-7&".into()),
            from: "chat.test".into(),
            to: "Push.test".into(),
        };
        let mut out = b"before".to_vec();
        render(&mut out, &head, outcome);
        assert_eq!(String::from_utf8(out).unwrap(), format!("before{expected}"));
    }

    #[track_caller]
    fn check_error(rejection: Rejection, kind: &str, content: &str) {
        check(
            PushOutcome::Rejected(rejection),
            &format!(
                "<iq type='error' id='rr-1+GyG5=-7&amp;' from='Push.test' to='chat.test'>\
                 <error type='{kind}'>{content}</error></iq>"
            ),
        );
    }

    #[test]
    fn successes() {
        let result = "<iq type='result' id='rr-1+GyG5=-7&amp;' from='Push.test' to='chat.test'/>";
        check(PushOutcome::Accepted, result);
        check(PushOutcome::Deferred, result);
        check(PushOutcome::Rejected(Rejection::Throttled), result);
    }

    #[test]
    fn a_registration_that_is_gone() {
        let content = "<item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>\
                       <text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas' xml:lang='en'>not a registered node</text>";
        check_error(Rejection::UnknownNode, "cancel", content);
        check_error(Rejection::Forbidden, "cancel", content);
        check_error(Rejection::Unregistered, "cancel", content);
    }

    #[test]
    fn what_passes() {
        let bare = |name: &str| format!("<{name} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>");
        check_error(Rejection::Malformed, "wait", &bare("bad-request"));
        check_error(Rejection::TimedOut, "wait", &bare("remote-server-timeout"));
        for rejection in [
            Rejection::Overloaded,
            Rejection::Unavailable,
            Rejection::Internal,
        ] {
            check_error(rejection, "wait", &bare("internal-server-error"));
        }
    }
}
