//! Payloads (Apple, "Generating a remote notification").

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::reason::{Reason, Refusal};
use super::request::PushType;

/// Most bytes of a payload.
const BYTES_MAX: usize = 4096;
/// Most bytes of a payload for the push type `voip`.
const BYTES_MAX_VOIP: usize = 5120;
/// Different payloads that are kept parsed.
const KEPT_MAX: usize = 4096;

/// Payloads that were parsed before: one push service sends few different ones.
#[derive(Default)]
pub(super) struct Payloads(HashMap<Bytes, Option<Arc<Value>>>);

impl Payloads {
    /// Parses each distinct payload once; `None` when it is no JSON.
    pub(super) fn parse(&mut self, payload: &Bytes) -> Option<Arc<Value>> {
        if let Some(known) = self.0.get(payload) {
            return known.clone();
        }
        let parsed = serde_json::from_slice(payload).ok().map(Arc::new);
        if self.0.len() == KEPT_MAX {
            self.0.clear();
        }
        // A copy, so that a small payload does not keep a whole read buffer alive.
        self.0
            .insert(Bytes::copy_from_slice(payload), parsed.clone());
        parsed
    }
}

/// Checks the size of the bytes sent.
pub(super) fn check_size(size: usize, push_type: PushType) -> Result<(), Refusal> {
    let max = if push_type == PushType::Voip {
        BYTES_MAX_VOIP
    } else {
        BYTES_MAX
    };
    match size {
        0 => Err(Refusal::new(Reason::PayloadEmpty, "there is no payload")),
        size if size > max => Err(Refusal::new(
            Reason::PayloadTooLarge,
            "the payload is larger than 4096 bytes (voip: 5120)",
        )),
        _ => Ok(()),
    }
}

/// Checks the content against the push type.
pub(super) fn check(payload: Option<&Value>, push_type: PushType) -> Result<(), Refusal> {
    let payload = payload.ok_or(Refusal::new(
        Reason::PayloadEmpty,
        "the payload is not json",
    ))?;
    let payload = payload.as_object().ok_or(Refusal::new(
        Reason::PayloadEmpty,
        "the payload is not a json object",
    ))?;
    if push_type == PushType::Mdm {
        return Ok(());
    }
    let aps = payload
        .get("aps")
        .and_then(Value::as_object)
        .ok_or(Refusal::new(
            Reason::PayloadEmpty,
            "the payload has no dictionary named aps",
        ))?;
    check_types(aps)?;
    match push_type {
        PushType::Alert if !aps.get("alert").is_some_and(is_shown) => {
            disagreement("an alert needs an alert that is not empty")
        }
        PushType::Background if !aps.contains_key("content-available") => {
            disagreement("a background notification needs content-available 1")
        }
        PushType::Background
            if ["alert", "sound", "badge"]
                .iter()
                .any(|&key| aps.contains_key(key)) =>
        {
            disagreement("a background notification has no alert, sound or badge")
        }
        _ => Ok(()),
    }
}

/// Checks the type of each key of `aps` that Apple defines for all push types.
fn check_types(aps: &Map<String, Value>) -> Result<(), Refusal> {
    for (key, value) in aps {
        let (good, because) = match key.as_str() {
            "alert" => (
                value.is_string() || value.is_object(),
                "alert is a string or a dictionary",
            ),
            "badge" => (value.is_u64(), "badge is an integer, not negative"),
            "sound" => (
                value.is_string() || value.is_object(),
                "sound is a string or a dictionary",
            ),
            "content-available" => (
                value.as_u64() == Some(1),
                "content-available is the integer 1",
            ),
            "mutable-content" => (
                value.as_u64() == Some(1),
                "mutable-content is the integer 1",
            ),
            "thread-id" | "category" | "target-content-id" => (
                value.is_string(),
                "thread-id, category and target-content-id are strings",
            ),
            "interruption-level" => (
                matches!(
                    value.as_str(),
                    Some("passive" | "active" | "time-sensitive" | "critical")
                ),
                "interruption-level is passive, active, time-sensitive or critical",
            ),
            "relevance-score" => (value.is_number(), "relevance-score is a number"),
            _ => (true, ""),
        };
        if !good {
            return disagreement(because);
        }
    }
    Ok(())
}

/// Whether an alert has something to show.
fn is_shown(alert: &Value) -> bool {
    let is_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    match alert {
        Value::Object(parts) => [
            "title",
            "subtitle",
            "body",
            "loc-key",
            "title-loc-key",
            "subtitle-loc-key",
        ]
        .iter()
        .filter_map(|&key| parts.get(key))
        .any(is_text),
        alert => is_text(alert),
    }
}

/// Apple has no word for a payload that contradicts its push type, and drops some of these without
/// one; its documentation wants the push type to reflect the content.
const fn disagreement(because: &'static str) -> Result<(), Refusal> {
    Err(Refusal::new(Reason::InvalidPushType, because))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_text(payload: &str, push_type: PushType, expected: Result<(), Reason>) {
        let value = Payloads::default().parse(&Bytes::copy_from_slice(payload.as_bytes()));
        let got = check(value.as_deref(), push_type).map_err(|refusal| refusal.reason);
        assert_eq!(got, expected, "{payload}");
    }

    #[test]
    fn content_must_agree_with_the_push_type() {
        use PushType::{Alert, Background, Mdm, Voip};
        let wrong = Err(Reason::InvalidPushType);
        let empty = Err(Reason::PayloadEmpty);
        check_text(r#"{"aps":{"alert":"hello"}}"#, Alert, Ok(()));
        check_text(
            r#"{"aps":{"alert":{"title":"t"},"mutable-content":1,"badge":0,"sound":"default"}}"#,
            Alert,
            Ok(()),
        );
        check_text(
            r#"{"aps":{"alert":{"loc-key":"K"}},"own":"x"}"#,
            Alert,
            Ok(()),
        );
        check_text(r#"{"aps":{"alert":""}}"#, Alert, wrong);
        check_text(r#"{"aps":{"alert":{}}}"#, Alert, wrong);
        check_text(r#"{"aps":{"alert":{"body":""}}}"#, Alert, wrong);
        check_text(r#"{"aps":{"alert":7}}"#, Alert, wrong);
        check_text(r#"{"aps":{"sound":"default"}}"#, Alert, wrong);
        check_text(
            r#"{"aps":{"alert":"a","mutable-content":"1"}}"#,
            Alert,
            wrong,
        );
        check_text(
            r#"{"aps":{"alert":"a","mutable-content":true}}"#,
            Alert,
            wrong,
        );
        check_text(
            r#"{"aps":{"alert":"a","mutable-content":1.0}}"#,
            Alert,
            wrong,
        );
        check_text(r#"{"aps":{"alert":"a","badge":"1"}}"#, Alert, wrong);
        check_text(r#"{"aps":{"alert":"a","badge":-1}}"#, Alert, wrong);
        check_text(r#"{"aps":{"alert":"a","badge":1.5}}"#, Alert, wrong);
        check_text(r#"{"aps":{"alert":"a","thread-id":1}}"#, Alert, wrong);
        check_text(r#"{"aps":{"alert":"a","sound":1}}"#, Alert, wrong);
        check_text(
            r#"{"aps":{"alert":"a","relevance-score":"1"}}"#,
            Alert,
            wrong,
        );
        check_text(
            r#"{"aps":{"alert":"a","interruption-level":"loud"}}"#,
            Alert,
            wrong,
        );
        check_text(r#"{"aps":{"content-available":1}}"#, Background, Ok(()));
        check_text(r#"{"aps":{"content-available":true}}"#, Background, wrong);
        check_text(r#"{"aps":{"content-available":0}}"#, Background, wrong);
        check_text(r#"{"aps":{}}"#, Background, wrong);
        check_text(
            r#"{"aps":{"content-available":1,"alert":"a"}}"#,
            Background,
            wrong,
        );
        check_text(
            r#"{"aps":{"content-available":1,"sound":"a"}}"#,
            Background,
            wrong,
        );
        check_text(
            r#"{"aps":{"content-available":1,"badge":0}}"#,
            Background,
            wrong,
        );
        check_text(r#"{"aps":{}}"#, Voip, Ok(()));
        check_text(r#"{"mdm":"x"}"#, Mdm, Ok(()));
        check_text(r#"{"mdm":"x"}"#, Voip, empty);
        check_text(r#"{"aps":1}"#, Alert, empty);
        check_text(r"[1]", Alert, empty);
        check_text(r#"{"aps":{"alert":"a"}"#, Alert, empty);
        check_text("hello", Alert, empty);
    }

    #[test]
    fn sizes() {
        let reason =
            |size, push_type| check_size(size, push_type).map_err(|refusal| refusal.reason);
        assert_eq!(reason(0, PushType::Alert), Err(Reason::PayloadEmpty));
        assert_eq!(reason(4096, PushType::Alert), Ok(()));
        assert_eq!(reason(4097, PushType::Alert), Err(Reason::PayloadTooLarge));
        assert_eq!(reason(5120, PushType::Voip), Ok(()));
        assert_eq!(reason(5121, PushType::Voip), Err(Reason::PayloadTooLarge));
    }

    #[test]
    fn payloads_are_forgotten_when_there_are_too_many() {
        let mut payloads = Payloads::default();
        for n in 0..=KEPT_MAX {
            assert!(
                payloads
                    .parse(&Bytes::from(format!("{{\"n\":{n}}}")))
                    .is_some()
            );
        }
        assert_eq!(payloads.0.len(), 1);
    }
}
