//! Stream headers (RFC 6120 §4.7, §4.8).

use super::events::Events;
use super::scanner::Scanner;
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
    /// What is wrong with the element's name and its namespace.
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
            fault: name_fault(&events),
            namespaces,
        })
    }

    /// Whether a stream can go on from this header.
    ///
    /// # Errors
    /// [`XmlError::InvalidNamespace`], [`XmlError::BadNamespacePrefix`], [`XmlError::BadFormat`] for
    /// another element than `stream`, or [`XmlError::UnsupportedVersion`].
    pub(crate) fn check(&self) -> Result<(), XmlError> {
        self.check_names(ns::SERVER)?;
        match self.version {
            Some((1.., _)) => Ok(()),
            _ => Err(XmlError::UnsupportedVersion),
        }
    }

    /// The same for a component's stream, which has no version (XEP-0114 §3).
    ///
    /// # Errors
    /// As [`StreamHeader::check`], but for the version.
    pub(crate) fn check_component(&self) -> Result<(), XmlError> {
        self.check_names(ns::COMPONENT)
    }

    fn check_names(&self, content: &str) -> Result<(), XmlError> {
        match self.fault {
            Some(fault) => Err(fault),
            None if self.namespaces.content() == content => Ok(()),
            None => Err(XmlError::InvalidNamespace),
        }
    }
}

fn name_fault(events: &Events<'_, '_>) -> Option<XmlError> {
    if events.namespace() != ns::STREAMS {
        return Some(XmlError::InvalidNamespace);
    }
    if events.prefix() != Some("stream") {
        return Some(XmlError::BadNamespacePrefix);
    }
    (events.name() != "stream").then_some(XmlError::BadFormat)
}

/// Checks the inside of `<?xml …?>`.
fn check_declaration(declaration: &str) -> Result<(), XmlError> {
    let mut version = None;
    let mut scanner = Scanner::new(declaration);
    while scanner.skip_blanks() && !scanner.rest().is_empty() {
        let attribute = scanner.attribute()?;
        match (attribute.prefix, attribute.name) {
            (None, "version") => version = Some(attribute.value),
            (None, "encoding") if !attribute.value.eq_ignore_ascii_case("utf-8") => {
                return Err(XmlError::NotUtf8);
            }
            (None, "encoding" | "standalone") => {}
            _ => return Err(XmlError::NotWellFormed),
        }
    }
    match version.as_deref() {
        Some("1.0") if scanner.rest().is_empty() => Ok(()),
        _ => Err(XmlError::NotWellFormed),
    }
}

/// Reads `major.minor` as two numbers (RFC 6120 §4.7.5).
fn parse_version(text: &str) -> Option<(u16, u16)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(unit: &str) -> StreamHeader {
        StreamHeader::read(unit.as_bytes()).unwrap()
    }

    #[test]
    fn headers_of_known_servers() {
        let prosody = read(
            "<?xml version='1.0'?><stream:stream xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams' from='prosody.test' id='' version='1.0' xml:lang='en' to='push.test' xmlns:db='jabber:server:dialback'>",
        );
        assert_eq!(prosody.from.as_deref(), Some("prosody.test"));
        assert_eq!(prosody.to.as_deref(), Some("push.test"));
        assert_eq!(prosody.id.as_deref(), Some(""));
        assert_eq!(prosody.version, Some((1, 0)));
        assert_eq!(prosody.namespaces.find(None), Some(ns::SERVER));
        assert_eq!(prosody.namespaces.resolve("db"), Some(ns::DIALBACK));
        assert_eq!(prosody.namespaces.resolve("x"), None);
        assert_eq!(prosody.check(), Ok(()));

        let ejabberd = read(
            "<?xml version='1.0'?><stream:stream id='13036381164486848211' version='1.0' xml:lang='en' xmlns:db='jabber:server:dialback' xmlns:stream='http://etherx.jabber.org/streams' to='push.test' from='ejabberd.test' xmlns='jabber:server'>",
        );
        assert_eq!(ejabberd.id.as_deref(), Some("13036381164486848211"));
        assert_eq!(ejabberd.check(), Ok(()));
    }

    #[track_caller]
    fn check(attributes: &str, expected: Result<(), XmlError>) {
        check_whole(&format!("<stream:stream {attributes}>"), expected);
    }

    #[track_caller]
    fn check_whole(header: &str, expected: Result<(), XmlError>) {
        let read = StreamHeader::read(header.as_bytes());
        assert_eq!(read.and_then(|header| header.check()), expected, "{header}");
    }

    const STREAM: &str = "xmlns:stream='http://etherx.jabber.org/streams'";

    #[test]
    fn names_and_versions() {
        let server = format!("{STREAM} xmlns='jabber:server'");
        check(&format!("{server} version='1.0'"), Ok(()));
        check(&format!("{server} version='1.7'"), Ok(()));
        check(&format!("{server} version='10.0'"), Ok(()));
        for version in [
            "",
            "version='0.9'",
            "version='1'",
            "version=''",
            "version='x.0'",
            "version='-1.0'",
        ] {
            check(
                &format!("{server} {version}"),
                Err(XmlError::UnsupportedVersion),
            );
        }
        check(
            &format!("{STREAM} version='1.0'"),
            Err(XmlError::InvalidNamespace),
        );
        check(
            &format!("{STREAM} xmlns='jabber:client' version='1.0'"),
            Err(XmlError::InvalidNamespace),
        );
        check(
            "xmlns:stream='x' xmlns='jabber:server' version='1.0'",
            Err(XmlError::InvalidNamespace),
        );
        check(
            "xmlns='jabber:server' version='1.0'",
            Err(XmlError::NotWellFormed),
        );
        check_whole(
            "<s:stream xmlns:s='http://etherx.jabber.org/streams' xmlns='jabber:server' version='1.0'>",
            Err(XmlError::BadNamespacePrefix),
        );
        check_whole(
            "<stream xmlns='http://etherx.jabber.org/streams' version='1.0'>",
            Err(XmlError::BadNamespacePrefix),
        );
        check_whole(
            &format!("<stream:features {server} version='1.0'>"),
            Err(XmlError::BadFormat),
        );
    }

    #[test]
    fn headers_of_components() {
        let namespaces = "xmlns:stream='http://etherx.jabber.org/streams'";
        let component =
            format!("<stream:stream {namespaces} xmlns='jabber:component:accept' id='1'>");
        assert_eq!(read(&component).check_component(), Ok(()));
        assert_eq!(read(&component).check(), Err(XmlError::InvalidNamespace));
        let server = format!("<stream:stream {namespaces} xmlns='jabber:server' version='1.0'>");
        let server = read(&server);
        assert_eq!(server.check_component(), Err(XmlError::InvalidNamespace));
    }

    #[test]
    fn declarations() {
        let header = format!("<stream:stream {STREAM} xmlns='jabber:server' version='1.0'>");
        let with = |declaration: &str| format!("<?xml {declaration}?>\n{header}");
        check_whole(&with("version='1.0'"), Ok(()));
        check_whole(
            &with("version=\"1.0\" encoding=\"UTF-8\" standalone='yes' "),
            Ok(()),
        );
        check_whole(&with("version='1.0' encoding='utf-8'"), Ok(()));
        check_whole(
            &with("version='1.0' encoding='ISO-8859-1'"),
            Err(XmlError::NotUtf8),
        );
        check_whole(&with("version='1.1'"), Err(XmlError::NotWellFormed));
        check_whole(&with("encoding='utf-8'"), Err(XmlError::NotWellFormed));
        check_whole(&with("version='1.0' x='y'"), Err(XmlError::NotWellFormed));
        assert_eq!(
            StreamHeader::read(b"<stream:stream a='\xff'>").err(),
            Some(XmlError::NotUtf8)
        );
    }
}
