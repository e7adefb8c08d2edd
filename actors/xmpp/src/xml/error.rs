//! What can be wrong with bytes from a peer. All of it ends the stream.

use thiserror::Error;

use super::stream_error::{StreamCondition, StreamError};

/// Why a unit was refused. Carries nothing of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum XmlError {
    /// Violates XML or XML namespaces.
    #[error("xml is not well-formed")]
    NotWellFormed,
    /// Well-formed, but nothing that can stand in a stream at this place.
    #[error("unexpected xml in the stream")]
    BadFormat,
    /// A comment, processing instruction, DTD or custom entity.
    #[error("restricted xml")]
    RestrictedXml,
    /// Bytes that are not UTF-8.
    #[error("not utf-8")]
    NotUtf8,
    /// More bytes than `stanza_bytes_max`.
    #[error("stanza too big")]
    StanzaTooBig,
    /// More bytes in one tag than `tag_bytes_max`.
    #[error("tag too long")]
    TagTooLong,
    /// More bytes in one name than `name_bytes_max`.
    #[error("name too long")]
    NameTooLong,
    /// More levels than `depth_max`.
    #[error("elements nested too deeply")]
    TooDeep,
    /// More attributes in one tag than `attributes_max`.
    #[error("too many attributes")]
    TooManyAttributes,
    /// More namespace declarations in scope than there is any need for.
    #[error("too many namespaces")]
    TooManyNamespaces,
    /// More elements and attributes in one unit than `markup_max`.
    #[error("too many elements and attributes")]
    TooMuchMarkup,
    /// The stream's own namespace or its content namespace is a wrong one.
    #[error("invalid namespace")]
    InvalidNamespace,
    /// The streams namespace is bound to another prefix than `stream`.
    #[error("bad namespace prefix")]
    BadNamespacePrefix,
    /// No version, or one below 1.0.
    #[error("stream version 1.0 is required")]
    UnsupportedVersion,
}

impl XmlError {
    /// Whether the unit may be sound and is only more than we take.
    pub(crate) const fn is_limit(self) -> bool {
        matches!(
            self,
            Self::StanzaTooBig
                | Self::TagTooLong
                | Self::NameTooLong
                | Self::TooDeep
                | Self::TooManyAttributes
                | Self::TooManyNamespaces
                | Self::TooMuchMarkup
        )
    }

    /// The stream error that tells the peer (RFC 6120 §4.9.3, §11).
    pub(crate) const fn stream_error(self) -> StreamError {
        let error = match self {
            Self::NotWellFormed => StreamError::new(StreamCondition::NotWellFormed),
            Self::BadFormat => StreamError::new(StreamCondition::BadFormat),
            Self::RestrictedXml => StreamError::new(StreamCondition::RestrictedXml),
            Self::NotUtf8 => StreamError::new(StreamCondition::UnsupportedEncoding),
            Self::StanzaTooBig => {
                StreamError::new(StreamCondition::PolicyViolation).stanza_too_big()
            }
            Self::TagTooLong
            | Self::NameTooLong
            | Self::TooDeep
            | Self::TooManyAttributes
            | Self::TooManyNamespaces
            | Self::TooMuchMarkup => StreamError::new(StreamCondition::PolicyViolation),
            Self::InvalidNamespace => StreamError::new(StreamCondition::InvalidNamespace),
            Self::BadNamespacePrefix => StreamError::new(StreamCondition::BadNamespacePrefix),
            Self::UnsupportedVersion => StreamError::new(StreamCondition::UnsupportedVersion),
        };
        match self {
            Self::StanzaTooBig => error.text("stanza too big"),
            Self::TagTooLong => error.text("tag too long"),
            Self::NameTooLong => error.text("name too long"),
            Self::TooDeep => error.text("elements nested too deeply"),
            Self::TooManyAttributes => error.text("too many attributes"),
            Self::TooManyNamespaces => error.text("too many namespaces"),
            Self::TooMuchMarkup => error.text("too many elements and attributes"),
            _ => error,
        }
    }
}
