//! XML as streams have it (RFC 6120 §11): cut into stanzas, and read into a small tree.

use memchr::{memchr, memchr3};
use quick_xml::Reader;
use quick_xml::XmlVersion;
use quick_xml::escape::{escape, resolve_predefined_entity};
use quick_xml::events::{BytesStart, Event};

/// Most bytes of a stanza, as Prosody has it.
const STANZA_BYTES_MAX: usize = 512 * 1024;
/// Deepest nesting of a stanza.
const DEPTH_MAX: usize = 32;
/// Namespace of the prefix `xml`, bound in every document.
const XML: &str = "http://www.w3.org/XML/1998/namespace";

/// Why bytes are no stream of stanzas, in words.
pub(super) type Fault = &'static str;

/// Finds where stanzas end, without looking at what they say. Remembers where it was, so that no
/// complete tag is looked at twice.
#[derive(Default)]
pub(super) struct Splitter {
    /// Bytes from the start of the buffer that need no second look.
    scanned: usize,
    depth: usize,
}

/// What the start of the buffer holds, and how many bytes it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// The stream's own opening tag.
    Opening(usize),
    /// A whole child of the stream.
    Stanza(usize),
    /// The stream's closing tag.
    Closing(usize),
}

impl Splitter {
    /// The first piece in the buffer, which the caller then removes; `None` when it is not whole yet.
    pub(super) fn next(&mut self, buffer: &[u8]) -> Result<Option<Piece>, Fault> {
        loop {
            let rest = buffer.get(self.scanned..).unwrap_or_default();
            let text_end = memchr(b'<', rest).unwrap_or(rest.len());
            let text = rest.get(..text_end).unwrap_or_default();
            if self.depth <= 1 && !text.iter().all(u8::is_ascii_whitespace) {
                return Err("text between stanzas");
            }
            self.scanned += text_end;
            if self.scanned > STANZA_BYTES_MAX {
                return Err("a stanza is too big");
            }
            let Some(tag_end) = tag_end(rest.get(text_end..).unwrap_or_default())? else {
                return Ok(None);
            };
            let tag = rest.get(text_end..text_end + tag_end).unwrap_or_default();
            self.scanned += tag_end;
            let is_declaration = tag.starts_with(b"<?xml");
            match tag.get(1) {
                Some(b'?') if self.depth == 0 && is_declaration => continue,
                Some(b'?' | b'!') => return Err("xml that streams do not allow"),
                Some(b'/') => {
                    self.depth = self.depth.checked_sub(1).ok_or("a stray end tag")?;
                }
                _ if tag.ends_with(b"/>") => {
                    if self.depth == 0 {
                        return Err("a stream that ends where it begins");
                    }
                }
                _ => {
                    self.depth += 1;
                    if self.depth > DEPTH_MAX {
                        return Err("a stanza is too deep");
                    }
                    if self.depth > 1 {
                        continue;
                    }
                    return Ok(Some(Piece::Opening(std::mem::take(&mut self.scanned))));
                }
            }
            match self.depth {
                0 => return Ok(Some(Piece::Closing(std::mem::take(&mut self.scanned)))),
                1 => return Ok(Some(Piece::Stanza(std::mem::take(&mut self.scanned)))),
                _ => {}
            }
        }
    }
}

/// How long the tag at the start is, quoted values considered; `None` when it is not whole.
pub(super) fn tag_end(tag: &[u8]) -> Result<Option<usize>, Fault> {
    let mut end = 1;
    while let Some(at) = tag
        .get(end..)
        .and_then(|rest| memchr3(b'>', b'"', b'\'', rest))
    {
        end += at + 1;
        let quote = match tag.get(end - 1) {
            Some(b'>') => return Ok(Some(end)),
            Some(&quote) => quote,
            None => return Ok(None),
        };
        let Some(closed) = tag.get(end..).and_then(|rest| memchr(quote, rest)) else {
            break;
        };
        end += closed + 1;
    }
    if tag.len() > STANZA_BYTES_MAX {
        return Err("a tag is too big");
    }
    Ok(None)
}

/// An element with all that is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Element {
    /// Local name.
    pub(super) name: String,
    /// Namespace, empty for none.
    pub(super) namespace: String,
    attributes: Vec<(String, String)>,
    pub(super) children: Vec<Element>,
    pub(super) text: String,
}

impl Element {
    pub(super) fn is(&self, name: &str, namespace: &str) -> bool {
        self.name == name && self.namespace == namespace
    }

    /// An attribute without a prefix.
    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        let mut attributes = self.attributes.iter();
        attributes
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub(super) fn child(&self, name: &str, namespace: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.is(name, namespace))
    }
}

/// Namespace declarations in force, the innermost last: prefix (empty for the default) and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scope(Vec<(String, String)>);

impl Scope {
    /// A scope in which only the default namespace is declared.
    pub(super) fn of_default(namespace: &str) -> Self {
        Self(vec![(String::new(), namespace.to_owned())])
    }

    fn resolve(&self, prefix: &str) -> Result<&str, Fault> {
        if prefix == "xml" {
            return Ok(XML);
        }
        let bound = self.0.iter().rev().find(|(bound, _)| bound == prefix);
        match bound {
            Some((_, namespace)) => Ok(namespace),
            None if prefix.is_empty() => Ok(""),
            None => Err("a prefix that is not declared"),
        }
    }

    /// The default namespace.
    pub(super) fn default_namespace(&self) -> &str {
        self.resolve("").unwrap_or_default()
    }

    /// Enters an element: takes its declarations, resolves its name.
    fn enter(&mut self, tag: &BytesStart<'_>) -> Result<Element, Fault> {
        let mut attributes = Vec::new();
        for attribute in tag.attributes() {
            let attribute = attribute.map_err(|_| "a malformed attribute")?;
            let key = attribute.key.as_ref();
            let value = attribute
                .normalized_value(XmlVersion::Implicit1_0)
                .map_err(|_| "a malformed attribute value")?
                .into_owned();
            if key == "xmlns" {
                self.0.push((String::new(), value));
            } else if let Some(prefix) = key.strip_prefix("xmlns:") {
                self.0.push((prefix.to_owned(), value));
            } else {
                attributes.push((key.to_owned(), value));
            }
        }
        for (key, _) in &attributes {
            if let Some((prefix, _)) = key.split_once(':') {
                self.resolve(prefix)?;
            }
        }
        let name = tag.name();
        let (prefix, local) = match name.as_ref().split_once(':') {
            Some((prefix, local)) => (prefix, local),
            None => ("", name.as_ref()),
        };
        Ok(Element {
            name: local.to_owned(),
            namespace: self.resolve(prefix)?.to_owned(),
            attributes,
            ..Element::default()
        })
    }
}

/// Reads the opening tag of a stream: the element without its children, and what it declares.
pub(super) fn parse_opening(xml: &[u8]) -> Result<(Element, Scope), Fault> {
    let mut reader = Reader::from_str(str::from_utf8(xml).map_err(|_| "text that is not utf-8")?);
    let mut scope = Scope::default();
    loop {
        match reader.read_event().map_err(|_| "malformed xml")? {
            Event::Start(tag) => return Ok((scope.enter(&tag)?, scope)),
            Event::Decl(_) | Event::Text(_) => {}
            _ => return Err("a stream that does not begin with a tag"),
        }
    }
}

/// Reads a whole stanza under the declarations of its stream.
pub(super) fn parse(xml: &[u8], scope: &Scope) -> Result<Element, Fault> {
    let mut reader = Reader::from_str(str::from_utf8(xml).map_err(|_| "text that is not utf-8")?);
    let mut scope = scope.clone();
    // The open elements, each with the declarations there were outside it.
    let mut open: Vec<(Element, usize)> = Vec::new();
    loop {
        let closed = match reader.read_event().map_err(|_| "malformed xml")? {
            Event::Start(tag) => {
                let outside = scope.0.len();
                open.push((scope.enter(&tag)?, outside));
                None
            }
            Event::Empty(tag) => {
                let outside = scope.0.len();
                Some((scope.enter(&tag)?, outside))
            }
            Event::End(_) => open.pop(),
            Event::Text(text) => {
                append(&mut open, &text.xml10_content());
                None
            }
            Event::GeneralRef(reference) => {
                let character = reference
                    .resolve_char_ref()
                    .map_err(|_| "a malformed character reference")?;
                match character {
                    Some(character) => append(&mut open, character.encode_utf8(&mut [0; 4])),
                    None => append(
                        &mut open,
                        resolve_predefined_entity(&reference.xml10_content())
                            .ok_or("an entity that is not predefined")?,
                    ),
                }
                None
            }
            Event::Eof => return Err("a stanza that does not end"),
            _ => return Err("xml that streams do not allow"),
        };
        if let Some((element, outside)) = closed {
            scope.0.truncate(outside);
            match open.last_mut() {
                Some((parent, _)) => parent.children.push(element),
                None => return Ok(element),
            }
        }
    }
}

fn append(open: &mut [(Element, usize)], text: &str) {
    if let Some((element, _)) = open.last_mut() {
        element.text.push_str(text);
    }
}

/// Text fit for an attribute in single quotes, or between tags.
pub(super) fn escaped(text: &str) -> std::borrow::Cow<'_, str> {
    escape(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENING: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:server' \
        xmlns:stream='http://etherx.jabber.org/streams' xmlns:db='jabber:server:dialback' \
        from='a.test' to='b.test' version='1.0'>";

    /// Cuts a text that arrives in pieces of `step` bytes.
    fn split(text: &str, step: usize) -> Result<Vec<String>, Fault> {
        let mut splitter = Splitter::default();
        let (mut buffer, mut pieces) = (Vec::new(), Vec::new());
        for chunk in text.as_bytes().chunks(step) {
            buffer.extend(chunk);
            while let Some(piece) = splitter.next(&buffer)? {
                let (Piece::Opening(end) | Piece::Stanza(end) | Piece::Closing(end)) = piece;
                let piece: Vec<u8> = buffer.drain(..end).collect();
                pieces.push(String::from_utf8(piece).unwrap().trim().to_owned());
            }
        }
        Ok(pieces)
    }

    #[test]
    fn stanzas_are_cut_wherever_the_reads_end() {
        let stanzas = [
            "<iq id='a>b' type=\"result\"/>",
            "<message><body>a &lt; b > c</body><x y='/>'/></message>",
            "<db:result from='a'/>",
            "</stream:stream>",
        ];
        let text = format!("{OPENING}{}", stanzas.join(" \n "));
        for step in 1..text.len() {
            let pieces = split(&text, step).unwrap();
            assert_eq!(pieces[0], OPENING);
            assert_eq!(pieces[1..], stanzas);
        }
    }

    #[test]
    fn what_streams_do_not_allow_is_refused() {
        for wrong in [
            "<!-- a -->",
            "<!DOCTYPE a>",
            "<?php ?>",
            "text",
            "<a><![CDATA[b]]></a>",
        ] {
            assert!(split(&format!("{OPENING}{wrong}"), 7).is_err(), "{wrong}");
        }
        let deep = format!("{OPENING}{}", "<a>".repeat(DEPTH_MAX));
        assert_eq!(split(&deep, 100), Err("a stanza is too deep"));
        assert_eq!(
            split("<stream/>", 100),
            Err("a stream that ends where it begins")
        );
        let big = format!("{OPENING}<a>{}", "b".repeat(STANZA_BYTES_MAX));
        assert_eq!(split(&big, 10_000), Err("a stanza is too big"));
    }

    #[test]
    fn names_are_resolved_by_declaration() {
        let (opening, scope) = parse_opening(OPENING.as_bytes()).unwrap();
        assert!(opening.is("stream", "http://etherx.jabber.org/streams"));
        assert_eq!(opening.attribute("to"), Some("b.test"));
        assert_eq!(scope.default_namespace(), "jabber:server");
        let element = parse(
            b"<iq id='1&amp;2'><q xmlns='urn:q'><r/>a&lt;&#98;</q><db:verify/></iq>",
            &scope,
        )
        .unwrap();
        assert!(element.is("iq", "jabber:server"));
        assert_eq!(element.attribute("id"), Some("1&2"));
        let q = element.child("q", "urn:q").unwrap();
        assert_eq!(q.text, "a<b");
        assert!(q.children[0].is("r", "urn:q"));
        assert!(element.children[1].is("verify", "jabber:server:dialback"));
    }

    #[test]
    fn malformed_stanzas_are_refused() {
        let (_, scope) = parse_opening(OPENING.as_bytes()).unwrap();
        for wrong in [
            "<a:iq/>",
            "<iq x:y='1'/>",
            "<iq a='1' a='2'/>",
            "<iq>&nbsp;</iq>",
            "<iq></query>",
            "<iq>",
            "<iq a=1/>",
        ] {
            assert!(parse(wrong.as_bytes(), &scope).is_err(), "{wrong}");
        }
    }
}
