//! Stream headers (RFC 6120 §4.7, §4.8).

use super::events::{Events, scan_attributes};
use super::{Namespaces, XmlError, ns};

/// A stream header. Nothing in it is checked yet but its XML, so that an answer can be addressed before
/// a stream error is sent: call [`StreamHeader::check`] after the own header is written.
pub(crate) struct StreamHeader {
    /// Who the peer says it is, unprepared.
    pub(crate) from: Option<Box<str>>,
    /// Whom the peer wants, unprepared.
    pub(crate) to: Option<Box<str>>,
    /// The stream id; initiators have none, or send an empty one.
    pub(crate) id: Option<Box<str>>,
    /// Major and minor version; `None` is a server from before XMPP 1.0.
    pub(crate) version: Option<(u16, u16)>,
    /// Needed to read everything inside the stream.
    pub(crate) namespaces: Namespaces,
    /// What is wrong with the element's name and namespaces.
    fault: Option<XmlError>,
}

impl StreamHeader {
    /// Reads a header with its XML declaration.
    ///
    /// # Errors
    /// What XML forbids; [`XmlError::NotUtf8`] also when the declaration names another encoding.
    pub(crate) fn read(unit: &[u8]) -> Result<Self, XmlError> {
        let unit = super::utf8(unit)?;
        let header = match unit.strip_prefix("<?xml") {
            None => unit,
            Some(rest) => {
                let (declaration, header) = rest.split_once("?>").ok_or(XmlError::NotWellFormed)?;
                check_declaration(declaration)?;
                header
            }
        };
        let none = Namespaces::default();
        let mut events = Events::new(header, &none)?;
        events.root()?;
        let mut namespaces = Namespaces::default();
        for (prefix, namespace) in events.declarations() {
            namespaces.bind(prefix, namespace);
        }
        Ok(Self {
            from: events.attribute("from").map(Box::from),
            to: events.attribute("to").map(Box::from),
            id: events.attribute("id").map(Box::from),
            version: events.attribute("version").and_then(parse_version),
            fault: name_fault(&events, &namespaces),
            namespaces,
        })
    }

    /// Whether a stream can go on from this header.
    ///
    /// # Errors
    /// [`XmlError::InvalidNamespace`], [`XmlError::BadNamespacePrefix`], [`XmlError::BadFormat`] for
    /// another element than `stream`, or [`XmlError::UnsupportedVersion`].
    pub(crate) fn check(&self) -> Result<(), XmlError> {
        match (self.fault, self.version) {
            (Some(fault), _) => Err(fault),
            (None, Some((1.., _))) => Ok(()),
            (None, _) => Err(XmlError::UnsupportedVersion),
        }
    }
}

fn name_fault(events: &Events<'_, '_>, namespaces: &Namespaces) -> Option<XmlError> {
    if events.namespace() != ns::STREAMS {
        return Some(XmlError::InvalidNamespace);
    }
    if events.prefix() != "stream" {
        return Some(XmlError::BadNamespacePrefix);
    }
    if events.name() != "stream" {
        return Some(XmlError::BadFormat);
    }
    (namespaces.resolve("") != Some(ns::SERVER)).then_some(XmlError::InvalidNamespace)
}

/// Checks the inside of `<?xml …?>`.
fn check_declaration(declaration: &str) -> Result<(), XmlError> {
    let mut version = None;
    for attribute in scan_attributes(declaration) {
        let attribute = attribute?;
        match (attribute.prefix, attribute.name) {
            ("", "version") => version = Some(attribute.value),
            ("", "encoding") if !attribute.value.eq_ignore_ascii_case("utf-8") => {
                return Err(XmlError::NotUtf8);
            }
            ("", "encoding" | "standalone") => {}
            _ => return Err(XmlError::NotWellFormed),
        }
    }
    match version.as_deref() {
        Some("1.0") => Ok(()),
        _ => Err(XmlError::NotWellFormed),
    }
}

/// Reads `major.minor` as two numbers (RFC 6120 §4.7.5).
fn parse_version(text: &str) -> Option<(u16, u16)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
