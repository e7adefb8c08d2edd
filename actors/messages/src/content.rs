//! What an operator may choose to show of a message.

use crate::redacted_debug;

/// How much of a message the notifications of an app show: nothing, unless its operator says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disclosure {
    /// Neither text nor sender.
    #[default]
    Nothing,
    /// The text.
    Body,
    /// The text and who wrote it.
    BodyAndSender,
}

/// What a publish says of its message. Nobody makes one for an app whose operator did not ask for it.
/// Never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    body: Box<str>,
    sender: Option<Box<str>>,
}

redacted_debug!(Content);

impl Content {
    /// What may be shown of a text and its sender; nothing when nothing may.
    #[must_use]
    pub fn new(disclosure: Disclosure, body: &str, sender: Option<&str>) -> Option<Self> {
        let sender = match disclosure {
            Disclosure::Nothing => return None,
            Disclosure::Body => None,
            Disclosure::BodyAndSender => sender.map(Into::into),
        };
        let body = body.into();
        Some(Self { body, sender })
    }

    /// What is left of it where less may be shown.
    #[must_use]
    pub fn limited_to(self, disclosure: Disclosure) -> Option<Self> {
        match disclosure {
            Disclosure::Nothing => None,
            Disclosure::Body => Some(Self {
                sender: None,
                ..self
            }),
            Disclosure::BodyAndSender => Some(self),
        }
    }

    /// The text.
    #[must_use]
    pub fn body(&self) -> &str {
        &self.body
    }

    /// Who wrote it, as the server said.
    #[must_use]
    pub fn sender(&self) -> Option<&str> {
        self.sender.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(content: Option<Content>) -> Option<(String, Option<String>)> {
        content.map(|content| {
            let sender = content.sender().map(str::to_owned);
            (content.body().to_owned(), sender)
        })
    }

    #[test]
    fn no_more_is_kept_than_may_be_shown() {
        let text = || Some(("hello".to_owned(), None));
        let all = || Some(("hello".to_owned(), Some("bob@chat.test".to_owned())));
        for (disclosure, expected) in [
            (Disclosure::Nothing, None),
            (Disclosure::Body, text()),
            (Disclosure::BodyAndSender, all()),
        ] {
            let made = Content::new(disclosure, "hello", Some("bob@chat.test"));
            assert_eq!(parts(made), expected);
            let whole = Content::new(Disclosure::BodyAndSender, "hello", Some("bob@chat.test"));
            assert_eq!(parts(whole.unwrap().limited_to(disclosure)), expected);
        }
        let content = Content::new(Disclosure::Body, "hello", None).unwrap();
        assert_eq!(format!("{content:?}"), "Content(..)");
    }
}
