//! What a device receives: one of two fixed texts, made once per app. Nothing of a message or a sender
//! can get in, because neither is known here.

use bytes::Bytes;
use messages::NotificationHint;
use serde_json::{Map, Value, json};

use crate::AppConfig;

/// Most bytes of a payload (Apple, "Generating a remote notification").
pub(crate) const BYTES_MAX: usize = 4096;

/// The two kinds of notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Shown to the user; the app may change the text before (`mutable-content`).
    Alert,
    /// Wakes the app without showing anything, when the device finds it opportune.
    Background,
}

impl Kind {
    /// What a publish asks for: servers send a body when a message is important.
    pub(crate) const fn of(hint: NotificationHint) -> Self {
        if hint.has_body {
            Self::Alert
        } else {
            Self::Background
        }
    }

    /// What is left to send when this takes the place of an older one.
    pub(crate) const fn with_older(self, older: Self) -> Self {
        match (older, self) {
            (Self::Alert, Self::Background) => Self::Alert,
            _ => self,
        }
    }

    /// The value of `apns-push-type`.
    pub(crate) const fn push_type(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::Background => "background",
        }
    }

    /// The value of `apns-priority`: 10 with a background push is refused.
    pub(crate) const fn priority(self) -> &'static str {
        match self {
            Self::Alert => "10",
            Self::Background => "5",
        }
    }

    /// The JSON text for an app.
    pub(crate) fn payload(self, app: &AppConfig) -> Bytes {
        let aps = match self {
            Self::Alert => {
                let mut alert = Map::new();
                text(&mut alert, "title", &app.alert_title);
                text(&mut alert, "body", &app.alert_body);
                let mut aps = Map::new();
                aps.insert("alert".to_owned(), Value::Object(alert));
                aps.insert("mutable-content".to_owned(), json!(1));
                text(&mut aps, "sound", &app.sound);
                Value::Object(aps)
            }
            Self::Background => json!({ "content-available": 1 }),
        };
        Bytes::from(json!({ "aps": aps }).to_string())
    }
}

fn text(object: &mut Map<String, Value>, key: &str, value: &str) {
    if !value.is_empty() {
        object.insert(key.to_owned(), Value::from(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: Kind, app: &AppConfig, expected: &str) {
        assert_eq!(kind.payload(app), expected);
    }

    #[test]
    fn payloads() {
        let app = AppConfig::default();
        check(
            Kind::Alert,
            &app,
            r#"{"aps":{"alert":{"title":"New message"},"mutable-content":1,"sound":"default"}}"#,
        );
        check(Kind::Background, &app, r#"{"aps":{"content-available":1}}"#);
        let app = AppConfig {
            alert_title: "Neue \"Nachricht\"".to_owned(),
            alert_body: "Bitte öffnen".to_owned(),
            sound: String::new(),
            ..app
        };
        check(
            Kind::Alert,
            &app,
            r#"{"aps":{"alert":{"body":"Bitte öffnen","title":"Neue \"Nachricht\""},"mutable-content":1}}"#,
        );
    }

    #[test]
    fn a_body_makes_it_an_alert() {
        let hint = |has_body| NotificationHint {
            message_count: Some(3),
            has_body,
        };
        assert_eq!(Kind::of(hint(true)), Kind::Alert);
        assert_eq!(Kind::of(hint(false)), Kind::Background);
    }
}
