//! Stream errors (RFC 6120 §4.9). A stream error is always the last thing of a stream.

use super::element::Element;
use super::{ns, write};

macro_rules! stream_conditions {
    ($($variant:ident = $name:literal,)+) => {
        /// The defined conditions of RFC 6120 §4.9.3.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum StreamCondition {
            $(#[doc = concat!("`", $name, "`")] $variant,)+
        }

        impl StreamCondition {
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The element's name.
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            fn named(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

stream_conditions! {
    BadFormat = "bad-format",
    BadNamespacePrefix = "bad-namespace-prefix",
    Conflict = "conflict",
    ConnectionTimeout = "connection-timeout",
    HostGone = "host-gone",
    HostUnknown = "host-unknown",
    ImproperAddressing = "improper-addressing",
    InternalServerError = "internal-server-error",
    InvalidFrom = "invalid-from",
    InvalidNamespace = "invalid-namespace",
    InvalidXml = "invalid-xml",
    NotAuthorized = "not-authorized",
    NotWellFormed = "not-well-formed",
    PolicyViolation = "policy-violation",
    RemoteConnectionFailed = "remote-connection-failed",
    Reset = "reset",
    ResourceConstraint = "resource-constraint",
    RestrictedXml = "restricted-xml",
    SeeOtherHost = "see-other-host",
    SystemShutdown = "system-shutdown",
    UndefinedCondition = "undefined-condition",
    UnsupportedEncoding = "unsupported-encoding",
    UnsupportedFeature = "unsupported-feature",
    UnsupportedStanzaType = "unsupported-stanza-type",
    UnsupportedVersion = "unsupported-version",
}

/// A stream error to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamError {
    condition: StreamCondition,
    text: Option<&'static str>,
    stanza_too_big: bool,
}

impl StreamError {
    /// The bare condition.
    pub(crate) const fn new(condition: StreamCondition) -> Self {
        Self {
            condition,
            text: None,
            stanza_too_big: false,
        }
    }

    /// Adds words for the peer's operator.
    pub(crate) const fn text(self, text: &'static str) -> Self {
        Self {
            text: Some(text),
            ..self
        }
    }

    /// Adds the application condition that Prosody and ejabberd use for their size limits.
    pub(crate) const fn stanza_too_big(self) -> Self {
        Self {
            stanza_too_big: true,
            ..self
        }
    }

    /// The condition, for logs and counters.
    pub(crate) const fn condition(self) -> StreamCondition {
        self.condition
    }

    /// Reads the condition of a peer's `stream:error`. An unknown one is `undefined-condition`
    /// (RFC 6120 §4.9.3.21).
    pub(crate) fn read(error: &Element) -> StreamCondition {
        error
            .elements()
            .filter(|child| child.namespace() == ns::STREAM_ERRORS)
            .find_map(|child| StreamCondition::named(child.name()))
            .unwrap_or(StreamCondition::UndefinedCondition)
    }

    /// Appends `<stream:error>` without the closing tag of the stream.
    pub(crate) fn render(self, out: &mut Vec<u8>) {
        write::element(out, "stream:error", &[], |out| {
            let xmlns = [("xmlns", ns::STREAM_ERRORS)];
            write::empty(out, self.condition.as_str(), &xmlns);
            if let Some(text) = self.text {
                let attributes = [("xmlns", ns::STREAM_ERRORS), ("xml:lang", "en")];
                write::element(out, "text", &attributes, |out| write::text(out, text));
            }
            if self.stanza_too_big {
                write::empty(out, "stanza-too-big", &[("xmlns", ns::ERRORS)]);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::{Namespaces, XmlError};

    #[track_caller]
    fn check(error: StreamError, expected: &str) {
        let mut out = Vec::new();
        error.render(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn rendering() {
        check(
            StreamError::new(StreamCondition::HostUnknown),
            "<stream:error><host-unknown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>",
        );
        check(
            XmlError::StanzaTooBig.stream_error(),
            "<stream:error><policy-violation xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>\
             <text xmlns='urn:ietf:params:xml:ns:xmpp-streams' xml:lang='en'>stanza too big</text>\
             <stanza-too-big xmlns='urn:xmpp:errors'/></stream:error>",
        );
        check(
            XmlError::NotUtf8.stream_error(),
            "<stream:error><unsupported-encoding xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>",
        );
    }

    #[test]
    fn every_condition_is_read_back() {
        let namespaces = Namespaces::server();
        for condition in StreamCondition::ALL {
            let mut out = Vec::new();
            StreamError::new(*condition).text("why").render(&mut out);
            let text = std::str::from_utf8(&out).unwrap();
            let element = Element::read(text, &namespaces).unwrap();
            assert_eq!(StreamError::read(&element), *condition);
        }
    }

    #[test]
    fn an_unknown_condition_is_undefined() {
        let text = "<stream:error><invalid-id xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>";
        let element = Element::read(text, &Namespaces::server()).unwrap();
        assert_eq!(
            StreamError::read(&element),
            StreamCondition::UndefinedCondition
        );
    }
}
