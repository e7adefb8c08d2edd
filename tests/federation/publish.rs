//! What a server published to the push service, as the server saw it.

/// One publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publish {
    /// All the answers that came; there must never be more than one.
    pub(crate) answers: Vec<Answer>,
}

impl Publish {
    /// Finds the answers to a publish among what came from the push service.
    pub(crate) fn find(publish: &str, answers: &[&str]) -> Self {
        let id = attribute(publish, "id");
        Self {
            answers: answers
                .iter()
                .filter(|answer| attribute(answer, "id") == id)
                .map(|answer| Answer::read(answer))
                .collect(),
        }
    }
}

/// How a publish was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Result,
    /// `type/condition`, such as `cancel/item-not-found`.
    Error(String),
    Unreadable,
}

impl Answer {
    /// Reads an answering iq, and what may stand behind it.
    pub(crate) fn read(iq: &str) -> Self {
        if attribute(iq, "type") == Some("result") {
            return Self::Result;
        }
        let error = || {
            let (_, error) = iq.split_once("<error ")?;
            let (tag, inside) = error.split_once("><")?;
            let (_, kind) = tag.split_once("type='")?;
            let kind = kind.split('\'').next()?;
            let condition = inside.split([' ', '/', '>']).next()?;
            Some(Self::Error(format!("{kind}/{condition}")))
        };
        error().unwrap_or(Self::Unreadable)
    }
}

/// The value of an attribute of the first tag.
pub(crate) fn attribute<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    let tag = stanza.split('>').next()?;
    let (_, value) = tag.split_once(&format!(" {name}='"))?;
    value.split('\'').next()
}
