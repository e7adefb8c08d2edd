//! What a device receives: what the operator set for the class, and a number of messages at most. Nothing
//! of a message or a sender can get in, because neither is known here.

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::class::{Badge, Style};

/// The payload of one class of one app.
pub(crate) struct Payload {
    without_badge: Bytes,
    /// What a badge is put into, when the operator wants one.
    fixed: Option<Map<String, Value>>,
}

impl Payload {
    /// Makes the text once for all pushes, unless they differ.
    pub(crate) fn new(style: &Style) -> Self {
        Self {
            without_badge: render(&style.payload),
            fixed: (style.badge == Badge::MessageCount).then(|| style.payload.clone()),
        }
    }

    /// The JSON text for a push whose publish told this number of messages.
    pub(crate) fn text(&self, message_count: Option<u32>) -> Bytes {
        let (Some(fixed), Some(count)) = (&self.fixed, message_count) else {
            return self.without_badge.clone();
        };
        let mut payload = fixed.clone();
        if let Some(Value::Object(aps)) = payload.get_mut("aps") {
            aps.insert("badge".to_owned(), Value::from(count));
        }
        render(&payload)
    }

    /// The most bytes it may have.
    pub(crate) fn bytes_max(&self) -> usize {
        self.text(Some(u32::MAX)).len()
    }
}

fn render(payload: &Map<String, Value>) -> Bytes {
    Bytes::from(Value::Object(payload.clone()).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::class::{Class, ClassConfig, InterruptionLevel, PushType};

    #[track_caller]
    fn check(class: Class, config: &ClassConfig, count: Option<u32>, expected: &str) {
        let style = Style::new(class, config).unwrap_or_else(|problems| panic!("{problems:?}"));
        assert_eq!(Payload::new(&style).text(count), expected);
    }

    #[test]
    fn payloads() {
        let plain = ClassConfig::default();
        check(
            Class::Important,
            &plain,
            Some(3),
            r#"{"aps":{"alert":{"title":"New message"},"mutable-content":1,"sound":"default"}}"#,
        );
        for silent in [Class::Unimportant, Class::Clear] {
            check(
                silent,
                &plain,
                Some(3),
                r#"{"aps":{"content-available":1}}"#,
            );
        }
        check(Class::Voip, &plain, None, r#"{"aps":{}}"#);
        let set = |text: &str| Some(text.to_owned());
        check(
            Class::Important,
            &ClassConfig {
                title: set("Neue \"Nachricht\""),
                body: set("Bitte öffnen"),
                sound: set(""),
                ..plain.clone()
            },
            None,
            r#"{"aps":{"alert":{"body":"Bitte öffnen","title":"Neue \"Nachricht\""},"mutable-content":1}}"#,
        );
        let Value::Object(extra) = json!({"v": 2, "nested": {"big": 9_007_199_254_740_993u64}})
        else {
            panic!("an object")
        };
        let all = ClassConfig {
            push_type: Some(PushType::Alert),
            title_loc_key: set("NEW_TITLE"),
            body_loc_key: set("NEW_BODY"),
            badge: Badge::MessageCount,
            interruption_level: Some(InterruptionLevel::TimeSensitive),
            thread_id: set("chat"),
            category: set("MESSAGE"),
            mutable_content: Some(false),
            extra,
            ..plain
        };
        check(
            Class::Unimportant,
            &all,
            Some(3),
            r#"{"aps":{"alert":{"loc-key":"NEW_BODY","title-loc-key":"NEW_TITLE"},"badge":3,"category":"MESSAGE","interruption-level":"time-sensitive","thread-id":"chat"},"nested":{"big":9007199254740993},"v":2}"#,
        );
        check(
            Class::Unimportant,
            &all,
            None,
            r#"{"aps":{"alert":{"loc-key":"NEW_BODY","title-loc-key":"NEW_TITLE"},"category":"MESSAGE","interruption-level":"time-sensitive","thread-id":"chat"},"nested":{"big":9007199254740993},"v":2}"#,
        );
    }
}
