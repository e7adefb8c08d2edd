//! What an operator sets for the notifications of one class, and what it means when nothing is set.

use messages::NotificationHint;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The classes a push falls into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// The user is to see it: servers send a body with it.
    Important,
    /// The app should look when the device finds it opportune.
    Unimportant,
    /// A call. No registration dialect leads here yet.
    Voip,
    /// Everything was read on another device. No registration dialect leads here yet.
    Clear,
}

impl Class {
    /// All classes.
    pub(crate) const ALL: [Self; 4] = [Self::Important, Self::Unimportant, Self::Voip, Self::Clear];

    /// What a publish asks for: a body is how Prosody and ejabberd say that a message is important.
    pub(crate) const fn of(hint: NotificationHint) -> Self {
        if hint.has_body {
            Self::Important
        } else {
            Self::Unimportant
        }
    }

    /// What is left to send when this takes the place of an older one that waits.
    pub(crate) const fn with_older(self, older: Self) -> Self {
        match (older, self) {
            (Self::Voip, _) => Self::Voip,
            (Self::Important, Self::Unimportant) => Self::Important,
            _ => self,
        }
    }

    /// Its table in the configuration.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Important => "important",
            Self::Unimportant => "unimportant",
            Self::Voip => "voip",
            Self::Clear => "clear",
        }
    }

    const fn push_type(self) -> PushType {
        match self {
            Self::Important => PushType::Alert,
            Self::Unimportant | Self::Clear => PushType::Background,
            Self::Voip => PushType::Voip,
        }
    }
}

/// The notifications of one class of one app (`[apps.NAME.important]` and so on). What is not set depends
/// on the class and its push type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassConfig {
    /// `apns-push-type`. Without it `alert` for important, `voip` for voip, else `background`.
    pub push_type: Option<PushType>,
    /// `apns-priority`: 10 now, 5 when the device finds it opportune, 1 without waking it. Without it 10
    /// for important and voip, else 5.
    pub priority: Option<u8>,
    /// What follows the topic in `apns-topic`. Without it what the push type demands.
    pub topic_suffix: Option<String>,
    /// Seconds for which APNs keeps a notification for a device that is off, at most 30 days. Without it
    /// 28 days for alerts, so that who switches on after a holiday is still told, else 0, now or never:
    /// APNs keeps one notification per device and app, and a silent one must not replace a visible one.
    pub expiration_seconds: Option<u64>,
    /// `apns-collapse-id`: whether a notification replaces the last one on the device. Without it `none`.
    pub collapse: Collapse,
    /// Title of what is shown. Without it, and without `title_loc_key`, "New message" for alerts.
    pub title: Option<String>,
    /// Line below the title.
    pub subtitle: Option<String>,
    /// Text below both.
    pub body: Option<String>,
    /// Key of the title in the app's own translations, instead of `title`.
    pub title_loc_key: Option<String>,
    /// Key of the body in the app's own translations, instead of `body`.
    pub body_loc_key: Option<String>,
    /// Sound; empty for none. Without it `default` for important alerts, else none.
    pub sound: Option<String>,
    /// The number on the app's icon. Without it `none`.
    pub badge: Badge,
    /// How far the notification may interrupt. Without it Apple's default, `active`.
    pub interruption_level: Option<InterruptionLevel>,
    /// Groups notifications on the device. Without it they are grouped by app.
    pub thread_id: Option<String>,
    /// Names the actions that the app offers with the notification.
    pub category: Option<String>,
    /// Whether the app's extension may change the notification before it is shown. Without it true for
    /// alerts.
    pub mutable_content: Option<bool>,
    /// Keys of the payload beside `aps`, the same for all pushes. Integers stay integers.
    pub extra: Map<String, Value>,
}

/// What kind of notification APNs is told to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PushType {
    /// Shown to the user.
    Alert,
    /// Wakes the app without showing anything, a few times an hour.
    Background,
    /// Wakes the app for a call, by its PushKit token.
    Voip,
}

impl PushType {
    /// The value of `apns-push-type`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::Background => "background",
            Self::Voip => "voip",
        }
    }

    const fn topic_suffix(self) -> &'static str {
        match self {
            Self::Alert | Self::Background => "",
            Self::Voip => ".voip",
        }
    }

    /// Most bytes of a payload (Apple, "Generating a remote notification").
    pub(crate) const fn bytes_max(self) -> usize {
        match self {
            Self::Alert | Self::Background => 4096,
            Self::Voip => 5120,
        }
    }
}

/// Which notifications replace each other on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Collapse {
    /// None do.
    #[default]
    None,
    /// Those of one registration: the id is a hash of its key, which tells nothing of user or node.
    Registration,
}

/// What the number on the app's icon becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Badge {
    /// It stays as it is.
    #[default]
    None,
    /// The publish's `message-count`, when it has one. Prosody always says 1.
    MessageCount,
}

/// How far a notification may interrupt (Apple, "UNNotificationInterruptionLevel").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterruptionLevel {
    /// Goes to the list without light or sound.
    Passive,
    /// Lights the screen.
    Active,
    /// Breaks through a focus.
    TimeSensitive,
    /// Breaks through silence; needs Apple's permission.
    Critical,
}

impl InterruptionLevel {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Passive => "passive",
            Self::Active => "active",
            Self::TimeSensitive => "time-sensitive",
            Self::Critical => "critical",
        }
    }
}

/// What is wrong: the key and in words.
pub(crate) type Problem = (&'static str, &'static str);

/// A class with nothing left open.
pub(crate) struct Style {
    pub(crate) push_type: PushType,
    pub(crate) priority: u8,
    pub(crate) topic_suffix: String,
    pub(crate) expiration_seconds: u64,
    pub(crate) collapse: Collapse,
    pub(crate) badge: Badge,
    /// Whether there is a place to show something of a message.
    pub(crate) has_content: bool,
    /// The payload, but for what differs between pushes.
    pub(crate) payload: Map<String, Value>,
}

impl Style {
    /// Settles what the operator left open.
    ///
    /// # Errors
    /// All that APNs would refuse, or drop without a word.
    pub(crate) fn new(class: Class, config: &ClassConfig) -> Result<Self, Vec<Problem>> {
        const KEPT_MAX: u64 = 30 * 86_400;
        let push_type = config.push_type.unwrap_or(class.push_type());
        let is_alert = push_type == PushType::Alert;
        let priority = config.priority.unwrap_or(match (class, push_type) {
            (_, PushType::Voip) | (Class::Important, PushType::Alert) => 10,
            _ => 5,
        });
        let expiration_seconds =
            config
                .expiration_seconds
                .unwrap_or(if is_alert { 28 * 86_400 } else { 0 });

        let mut problems = Vec::new();
        if !matches!(priority, 1 | 5 | 10) {
            problems.push(("priority", "APNs knows 10, 5 and 1"));
        }
        if push_type == PushType::Background && priority == 10 {
            problems.push(("priority", "APNs refuses 10 with background pushes; use 5"));
        }
        if expiration_seconds > KEPT_MAX {
            problems.push((
                "expiration_seconds",
                "APNs keeps nothing longer than 2592000 s (30 days)",
            ));
        }
        if config.extra.contains_key("aps") {
            problems.push(("extra", "aps is Apple's own key; use the other keys for it"));
        }
        let is_silent = push_type == PushType::Background;
        for (key, is_set) in [
            ("title", config.title.is_some()),
            ("subtitle", config.subtitle.is_some()),
            ("body", config.body.is_some()),
            ("title_loc_key", config.title_loc_key.is_some()),
            ("body_loc_key", config.body_loc_key.is_some()),
            ("sound", config.sound.is_some()),
            ("badge", config.badge != Badge::None),
            ("interruption_level", config.interruption_level.is_some()),
        ] {
            if is_silent && is_set {
                problems.push((
                    key,
                    "a background push shows nothing; leave the key out or set push_type = \"alert\"",
                ));
            }
        }
        let title = match (&config.title, &config.title_loc_key) {
            (None, None) if is_alert => Some("New message"),
            (title, _) => title.as_deref(),
        };
        let mut alert = Map::new();
        text(&mut alert, "title", title);
        text(&mut alert, "subtitle", config.subtitle.as_deref());
        text(&mut alert, "body", config.body.as_deref());
        text(&mut alert, "title-loc-key", config.title_loc_key.as_deref());
        text(&mut alert, "loc-key", config.body_loc_key.as_deref());
        if is_alert && alert.is_empty() {
            problems.push((
                "title",
                "an alert without any text is not shown; set title, body or their loc keys",
            ));
        }
        if !problems.is_empty() {
            return Err(problems);
        }

        let mut aps = Map::new();
        if !alert.is_empty() {
            aps.insert("alert".to_owned(), Value::Object(alert));
        }
        let loud = is_alert && class == Class::Important;
        let sound = config.sound.as_deref().or(loud.then_some("default"));
        text(&mut aps, "sound", sound);
        let level = config.interruption_level.map(InterruptionLevel::as_str);
        text(&mut aps, "interruption-level", level);
        text(&mut aps, "thread-id", config.thread_id.as_deref());
        text(&mut aps, "category", config.category.as_deref());
        if config.mutable_content.unwrap_or(is_alert) {
            aps.insert("mutable-content".to_owned(), Value::from(1));
        }
        if is_silent {
            aps.insert("content-available".to_owned(), Value::from(1));
        }
        let mut payload = config.extra.clone();
        payload.insert("aps".to_owned(), Value::Object(aps));
        Ok(Self {
            push_type,
            priority,
            topic_suffix: config
                .topic_suffix
                .clone()
                .unwrap_or_else(|| push_type.topic_suffix().to_owned()),
            expiration_seconds,
            collapse: config.collapse,
            badge: config.badge,
            has_content: loud,
            payload,
        })
    }
}

fn text(object: &mut Map<String, Value>, key: &str, value: Option<&str>) {
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        object.insert(key.to_owned(), Value::from(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(class: Class, config: &ClassConfig, expected: &[&str]) {
        let problems: Vec<String> = Style::new(class, config)
            .err()
            .unwrap_or_default()
            .into_iter()
            .map(|(key, problem)| format!("{key}: {problem}"))
            .collect();
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.starts_with(expected), "{problem} | {expected}");
        }
    }

    #[test]
    fn what_apns_would_refuse_is_told() {
        for class in Class::ALL {
            check(class, &ClassConfig::default(), &[]);
        }
        let set = |text: &str| Some(text.to_owned());
        check(
            Class::Unimportant,
            &ClassConfig {
                priority: Some(10),
                sound: set("default"),
                badge: Badge::MessageCount,
                ..ClassConfig::default()
            },
            &[
                "priority: APNs refuses 10",
                "sound: a background",
                "badge: a background",
            ],
        );
        check(
            Class::Unimportant,
            &ClassConfig {
                push_type: Some(PushType::Alert),
                priority: Some(10),
                ..ClassConfig::default()
            },
            &[],
        );
        let mut extra = Map::new();
        extra.insert("aps".to_owned(), Value::from(1));
        check(
            Class::Important,
            &ClassConfig {
                title: set(""),
                priority: Some(7),
                expiration_seconds: Some(31 * 86_400),
                extra,
                ..ClassConfig::default()
            },
            &[
                "priority: APNs knows",
                "expiration_seconds: APNs keeps",
                "extra: aps is",
                "title: an alert without",
            ],
        );
    }

    #[test]
    fn a_body_makes_it_important() {
        let hint = |has_body| NotificationHint {
            message_count: Some(3),
            has_body,
        };
        assert_eq!(Class::of(hint(true)), Class::Important);
        assert_eq!(Class::of(hint(false)), Class::Unimportant);
    }

    #[test]
    fn the_newer_class_wins_but_nothing_important_is_lost() {
        use Class::{Clear, Important, Unimportant, Voip};
        for (older, newer, left) in [
            (Unimportant, Important, Important),
            (Important, Unimportant, Important),
            (Important, Clear, Clear),
            (Unimportant, Clear, Clear),
            (Clear, Unimportant, Unimportant),
            (Voip, Important, Voip),
        ] {
            assert_eq!(newer.with_older(older), left, "{older:?} {newer:?}");
        }
    }
}
