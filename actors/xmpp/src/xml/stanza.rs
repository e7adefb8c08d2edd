//! Answers to iqs (RFC 6120 §8.2.3, §8.3).

use std::borrow::Cow;

use super::element::Element;
use super::{ns, write};

/// What an answer needs of an iq, all of it as the peer wrote it: servers compare ids and addresses with
/// what they sent, octet by octet.
#[derive(Clone)]
pub(crate) struct IqHead<'a> {
    /// The id; an answer without one is the best there is for a request without one.
    pub(crate) id: Option<Cow<'a, str>>,
    /// Who asked.
    pub(crate) from: Cow<'a, str>,
    /// Whom they asked.
    pub(crate) to: Cow<'a, str>,
}

impl<'a> IqHead<'a> {
    /// The head of a stanza; `None` without both addresses, which RFC 6120 §8.1 requires between servers.
    pub(crate) fn of(stanza: &'a Element) -> Option<Self> {
        Some(Self {
            id: stanza.attribute("id").map(Cow::Borrowed),
            from: Cow::Borrowed(stanza.attribute("from")?),
            to: Cow::Borrowed(stanza.attribute("to")?),
        })
    }

    /// Copies what is borrowed.
    pub(crate) fn into_owned(self) -> IqHead<'static> {
        IqHead {
            id: self.id.map(|id| Cow::Owned(id.into_owned())),
            from: Cow::Owned(self.from.into_owned()),
            to: Cow::Owned(self.to.into_owned()),
        }
    }
}

/// What the asker should do about an error (RFC 6120 §8.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorType {
    /// Do not ask again.
    Cancel,
    /// Ask something else.
    Modify,
    /// Ask again later.
    Wait,
}

impl ErrorType {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Modify => "modify",
            Self::Wait => "wait",
        }
    }
}

/// The defined conditions of RFC 6120 §8.3.3 that this service answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    BadRequest,
    FeatureNotImplemented,
    InternalServerError,
    ItemNotFound,
    JidMalformed,
    NotAcceptable,
    NotAllowed,
    PolicyViolation,
    RemoteServerNotFound,
    RemoteServerTimeout,
    ResourceConstraint,
    ServiceUnavailable,
}

impl Condition {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::FeatureNotImplemented => "feature-not-implemented",
            Self::InternalServerError => "internal-server-error",
            Self::ItemNotFound => "item-not-found",
            Self::JidMalformed => "jid-malformed",
            Self::NotAcceptable => "not-acceptable",
            Self::NotAllowed => "not-allowed",
            Self::PolicyViolation => "policy-violation",
            Self::RemoteServerNotFound => "remote-server-not-found",
            Self::RemoteServerTimeout => "remote-server-timeout",
            Self::ResourceConstraint => "resource-constraint",
            Self::ServiceUnavailable => "service-unavailable",
        }
    }
}

/// A stanza error to answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StanzaError<'a> {
    /// What the asker should do.
    pub(crate) kind: ErrorType,
    /// What went wrong.
    pub(crate) condition: Condition,
    /// Words for a person.
    pub(crate) text: Option<&'a str>,
    /// Name and namespace of a condition that is more exact.
    pub(crate) application: Option<(&'static str, &'static str)>,
}

impl<'a> StanzaError<'a> {
    /// The bare condition.
    pub(crate) const fn new(kind: ErrorType, condition: Condition) -> Self {
        Self {
            kind,
            condition,
            text: None,
            application: None,
        }
    }

    /// Adds words for a person.
    pub(crate) const fn text(self, text: &'a str) -> Self {
        Self {
            text: Some(text),
            ..self
        }
    }

    /// Adds an application condition.
    pub(crate) const fn application(self, name: &'static str, namespace: &'static str) -> Self {
        Self {
            application: Some((name, namespace)),
            ..self
        }
    }
}

/// Appends an iq of type `result`; `content` appends its payload.
pub(crate) fn result(out: &mut Vec<u8>, head: &IqHead<'_>, content: impl FnOnce(&mut Vec<u8>)) {
    iq(out, "result", head, content);
}

/// Appends an iq of type `error`.
pub(crate) fn error(out: &mut Vec<u8>, head: &IqHead<'_>, error: StanzaError<'_>) {
    error_about(out, head, error, |_| {});
}

/// Appends an iq of type `error` in which `request` repeats what the error is about.
pub(crate) fn error_about(
    out: &mut Vec<u8>,
    head: &IqHead<'_>,
    error: StanzaError<'_>,
    request: impl FnOnce(&mut Vec<u8>),
) {
    iq(out, "error", head, |out| {
        request(out);
        write::element(out, "error", &[("type", error.kind.as_str())], |out| {
            let xmlns = ("xmlns", ns::STANZA_ERRORS);
            write::empty(out, error.condition.as_str(), &[xmlns]);
            if let Some(text) = error.text {
                let attributes = [xmlns, ("xml:lang", "en")];
                write::element(out, "text", &attributes, |out| write::text(out, text));
            }
            if let Some((name, namespace)) = error.application {
                write::empty(out, name, &[("xmlns", namespace)]);
            }
        });
    });
}

fn iq(out: &mut Vec<u8>, kind: &str, head: &IqHead<'_>, content: impl FnOnce(&mut Vec<u8>)) {
    let addressed = [("type", kind), ("from", &*head.to), ("to", &*head.from)];
    match &head.id {
        Some(id) => {
            let [kind, from, to] = addressed;
            write::element(out, "iq", &[kind, ("id", id), from, to], content);
        }
        None => write::element(out, "iq", &addressed, content),
    }
}
