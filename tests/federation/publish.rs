//! What a server published to the push service, as the server saw it.

/// One publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publish {
    /// All the answers that came; there must never be more than one.
    pub(crate) answers: Vec<Answer>,
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
    /// Reads an answering iq.
    pub(crate) fn read(iq: &str) -> Self {
        if iq.contains(" type='result'") {
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
