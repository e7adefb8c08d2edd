//! What a device receives: what the operator set for the class, and a number of messages at most. Something
//! of the message or its sender gets in only where the app's operator chose so.

use std::borrow::Cow;

use bytes::Bytes;
use messages::{Content, Disclosure};
use serde_json::{Map, Value};

use crate::class::{Badge, Style};

/// Most bytes of a title that a sender makes, so that there is room for the text.
const TITLE_BYTES_MAX: usize = 256;

/// What stands for the rest of a text.
const ELLIPSIS: char = '…';

/// The payload of one class of one app.
pub(crate) struct Payload {
    /// For all pushes that have nothing of their own.
    plain: Bytes,
    fixed: Map<String, Value>,
    has_badge: bool,
    has_content: bool,
    bytes_max: usize,
}

impl Payload {
    /// Makes the text once for all pushes, as far as they do not differ.
    pub(crate) fn new(style: &Style, disclosure: Disclosure) -> Self {
        Self {
            plain: render(&style.payload),
            fixed: style.payload.clone(),
            has_badge: style.badge == Badge::MessageCount,
            has_content: style.has_content && disclosure != Disclosure::Nothing,
            bytes_max: style.push_type.bytes_max(),
        }
    }

    /// The JSON text for a push whose publish told this number of messages and, of the last one, this.
    pub(crate) fn text(&self, message_count: Option<u32>, content: Option<&Content>) -> Bytes {
        let message_count = message_count.filter(|_| self.has_badge);
        let content = content.filter(|_| self.has_content);
        if message_count.is_none() && content.is_none() {
            return self.plain.clone();
        }
        let mut payload = self.fixed.clone();
        if let Some(Value::Object(aps)) = payload.get_mut("aps")
            && let Some(count) = message_count
        {
            aps.insert("badge".to_owned(), Value::from(count));
        }
        content
            .and_then(|content| self.with_content(&payload, content))
            .unwrap_or_else(|| render(&payload))
    }

    /// The most bytes it may have without content, which takes what is left.
    pub(crate) fn bytes_max(&self) -> usize {
        self.text(Some(u32::MAX), None).len()
    }

    /// The same with a message's text in place of the operator's, and its sender as title, as far as there
    /// is room; nothing when there is none.
    fn with_content(&self, payload: &Map<String, Value>, content: &Content) -> Option<Bytes> {
        let mut payload = payload.clone();
        {
            let alert = alert_of(&mut payload)?;
            alert.remove("loc-key");
            alert.insert("body".to_owned(), Value::from(""));
            if content.sender().is_some() {
                alert.remove("title-loc-key");
                alert.insert("title".to_owned(), Value::from(""));
            }
        }
        let room = self.bytes_max.checked_sub(render(&payload).len())?;
        let title = content
            .sender()
            .map(|sender| fitting(sender, room.min(TITLE_BYTES_MAX)));
        let used = title.as_deref().map_or(0, json_bytes);
        let body = fitting(content.body(), room - used);
        if body.is_empty() {
            return None;
        }
        let alert = alert_of(&mut payload)?;
        alert.insert("body".to_owned(), Value::from(body));
        if let Some(title) = title {
            alert.insert("title".to_owned(), Value::from(title));
        }
        Some(render(&payload))
    }
}

fn alert_of(payload: &mut Map<String, Value>) -> Option<&mut Map<String, Value>> {
    payload.get_mut("aps")?.get_mut("alert")?.as_object_mut()
}

/// The start of a text that takes no more bytes in a JSON string, with an ellipsis when it is not all.
fn fitting(text: &str, room: usize) -> Cow<'_, str> {
    if json_bytes(text) <= room {
        return Cow::Borrowed(text);
    }
    let mut used = ELLIPSIS.len_utf8();
    let fits = |next: &char| {
        used += json_char_bytes(*next);
        used <= room
    };
    let mut start: String = text.chars().take_while(fits).collect();
    if !start.is_empty() {
        start.push(ELLIPSIS);
    }
    Cow::Owned(start)
}

/// Bytes of a text within a JSON string as serde_json writes it.
fn json_bytes(text: &str) -> usize {
    text.chars().map(json_char_bytes).sum()
}

const fn json_char_bytes(c: char) -> usize {
    match c {
        '"' | '\\' | '\u{8}' | '\t' | '\n' | '\u{c}' | '\r' => 2,
        '\0'..='\u{1f}' => 6,
        _ => c.len_utf8(),
    }
}

fn render(payload: &Map<String, Value>) -> Bytes {
    Bytes::from(Value::Object(payload.clone()).to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::class::{Class, ClassConfig, InterruptionLevel, PushType};

    #[track_caller]
    fn check(class: Class, config: &ClassConfig, count: Option<u32>, expected: &str) {
        let style = Style::new(class, config).unwrap_or_else(|problems| panic!("{problems:?}"));
        let payload = Payload::new(&style, Disclosure::Nothing);
        assert_eq!(payload.text(count, None), expected);
        // What is not to be shown is not, even if it came so far.
        let content = Content::new(Disclosure::BodyAndSender, "secret", Some("eve@chat.test"));
        assert_eq!(payload.text(count, content.as_ref()), expected);
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

    #[track_caller]
    fn check_content(class: Class, config: &ClassConfig, content: &Content, expected: &str) {
        let style = Style::new(class, config).unwrap_or_else(|problems| panic!("{problems:?}"));
        let payload = Payload::new(&style, Disclosure::BodyAndSender);
        assert_eq!(payload.text(Some(2), Some(content)), expected);
    }

    fn content(body: &str, sender: Option<&str>) -> Content {
        Content::new(Disclosure::BodyAndSender, body, sender).unwrap()
    }

    #[test]
    fn what_the_operator_wants_shown_takes_the_place_of_the_usual_texts() {
        let plain = ClassConfig::default();
        check_content(
            Class::Important,
            &plain,
            &content("Say \"hi\"\n\u{1}", None),
            r#"{"aps":{"alert":{"body":"Say \"hi\"\n\u0001","title":"New message"},"mutable-content":1,"sound":"default"}}"#,
        );
        let translated = ClassConfig {
            title_loc_key: Some("NEW_TITLE".to_owned()),
            body_loc_key: Some("NEW_BODY".to_owned()),
            badge: Badge::MessageCount,
            ..plain.clone()
        };
        check_content(
            Class::Important,
            &translated,
            &content("hi", Some("bob@chat.test")),
            r#"{"aps":{"alert":{"body":"hi","title":"bob@chat.test"},"badge":2,"mutable-content":1,"sound":"default"}}"#,
        );
        // Where nothing is shown there is no place for it.
        let silent = ClassConfig {
            push_type: Some(PushType::Background),
            ..plain.clone()
        };
        for (class, config) in [(Class::Important, &silent), (Class::Unimportant, &plain)] {
            let expected = r#"{"aps":{"content-available":1}}"#;
            check_content(class, config, &content("hi", None), expected);
        }
        let voip = r#"{"aps":{}}"#;
        check_content(Class::Voip, &plain, &content("hi", None), voip);
    }

    #[test]
    fn content_is_cut_where_the_operators_own_keys_leave_little_room() {
        let text = |bytes: usize, body: &str| {
            let Value::Object(extra) = json!({"fill": "x".repeat(bytes)}) else {
                panic!("an object")
            };
            let config = ClassConfig {
                extra,
                ..ClassConfig::default()
            };
            let style = Style::new(Class::Important, &config)
                .unwrap_or_else(|problems| panic!("{problems:?}"));
            let payload = Payload::new(&style, Disclosure::Body);
            let content = Content::new(Disclosure::Body, body, None);
            let text = payload.text(None, content.as_ref());
            assert!(text.len() <= 4096, "{}", text.len());
            let json: Value = serde_json::from_slice(&text).unwrap();
            json["aps"]["alert"]["body"].as_str().map(str::to_owned)
        };
        let long = "é".repeat(1_000);
        assert_eq!(text(1_000, &long), Some(long.clone()));
        let cut = text(3_000, &long).unwrap();
        assert!(cut.ends_with("é…") && cut.len() > 900, "{}", cut.len());
        // No room at all: as if it were not wanted.
        assert_eq!(text(3_996, &long), None);
    }

    proptest! {
        #[test]
        fn a_cut_text_takes_the_room_there_is_and_no_more(text in any::<String>(), room in 0usize..64) {
            let written = serde_json::to_string(&text).unwrap().len() - 2;
            prop_assert_eq!(json_bytes(&text), written);
            let cut = fitting(&text, room);
            prop_assert!(json_bytes(&cut) <= room);
            if written <= room {
                prop_assert_eq!(&*cut, &text);
            } else if let Some(start) = cut.strip_suffix(ELLIPSIS) {
                prop_assert!(text.starts_with(start));
                let next = text.chars().nth(start.chars().count()).unwrap();
                prop_assert!(json_bytes(&cut) + json_char_bytes(next) > room);
            } else {
                prop_assert!(cut.is_empty());
            }
        }
    }
}
