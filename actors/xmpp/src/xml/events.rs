//! A strict reader of one unit.
//!
//! quick-xml finds the events and matches end tags. It is lenient in ways that XML is not, and leaves
//! namespaces of slices without their stream header unresolved, so this reader adds: no control or
//! other forbidden characters, raw or as references; names that are names; white space between
//! attributes and no `<` in their values; no duplicate attributes; no unbound prefix or illegal
//! binding; no `]]>` in text; no entity but the predefined five; nothing outside the root; no comments,
//! processing instructions or DTDs.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::sync::Arc;

use quick_xml::Reader;
use quick_xml::events::Event as Raw;
use smallvec::SmallVec;

use super::{Namespaces, XmlError, ns};

/// Most namespace declarations in scope inside one unit. Names are resolved by a linear search, and
/// real stanzas have fewer than ten.
const BINDINGS_MAX: usize = 64;
/// So many declarations are in scope in a publish, and so many attributes in one of its tags: for them nothing
/// is allocated.
const BINDINGS_MOSTLY: usize = 4;
const ATTRIBUTES_MOSTLY: usize = 6;
/// So many attributes are compared each with each other; more are sorted.
const FEW: usize = 8;

/// What comes next in a unit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// An element begins; [`Events`] tells which.
    Start,
    /// Character data. One run may come in several pieces.
    Text(Cow<'a, str>),
    /// The innermost open element ends.
    End,
    /// The root has ended, and so has the unit.
    Eof,
}

/// An attribute that is no namespace declaration.
pub(crate) struct Attribute<'a> {
    /// Prefix as written.
    pub(crate) prefix: Option<&'a str>,
    /// Name without the prefix.
    pub(crate) name: &'a str,
    /// Unescaped value.
    pub(crate) value: Cow<'a, str>,
}

impl Attribute<'_> {
    fn is_declaration(&self) -> bool {
        match self.prefix {
            None => self.name == "xmlns",
            Some(prefix) => prefix == "xmlns",
        }
    }
}

/// A namespace declaration inside the unit.
struct Binding<'a> {
    depth: u32,
    /// `None` for the default namespace. An empty text would do, but the comparison of two empty texts
    /// is a masked load from an address that is none, which cost two thirds of the reading of a publish.
    prefix: Option<&'a str>,
    namespace: Cow<'a, str>,
    /// The namespace for those who keep it: a long name is copied once, not for each element in it.
    shared: OnceCell<Arc<str>>,
}

/// Reads a unit event by event. Strings borrow from the unit unless they need unescaping.
pub(crate) struct Events<'a, 'n> {
    unit: &'a str,
    reader: Reader<&'a [u8]>,
    inherited: &'n Namespaces,
    bindings: SmallVec<[Binding<'a>; BINDINGS_MOSTLY]>,
    /// Open elements.
    depth: u32,
    /// Whether the root was seen.
    rooted: bool,
    /// Whether the element that began last is an empty-element tag, so that its end comes next.
    empty: bool,
    /// Prefix and local name of the element that began last.
    name: (Option<&'a str>, &'a str),
    /// Attributes of the element that began last.
    attributes: SmallVec<[Attribute<'a>; ATTRIBUTES_MOSTLY]>,
}

impl<'a, 'n> Events<'a, 'n> {
    /// Reads `unit`, which inherits the declarations of its stream header.
    ///
    /// # Errors
    /// [`XmlError::NotWellFormed`] when it holds a character that XML cannot carry.
    pub(crate) fn new(unit: &'a str, inherited: &'n Namespaces) -> Result<Self, XmlError> {
        if has_forbidden_characters(unit.as_bytes()) {
            return Err(XmlError::NotWellFormed);
        }
        Ok(Self {
            unit,
            reader: Reader::from_str(unit),
            inherited,
            bindings: SmallVec::new(),
            depth: 0,
            rooted: false,
            empty: false,
            name: (None, ""),
            attributes: SmallVec::new(),
        })
    }

    /// The next event.
    ///
    /// # Errors
    /// [`XmlError::NotWellFormed`], [`XmlError::RestrictedXml`] or [`XmlError::TooManyNamespaces`].
    pub(crate) fn next(&mut self) -> Result<Event<'a>, XmlError> {
        if self.empty {
            self.empty = false;
            return self.end();
        }
        loop {
            let before = self.reader.buffer_position();
            let raw = self.reader.read_event();
            match raw.map_err(|_| XmlError::NotWellFormed)? {
                Raw::Start(_) => return self.start(before, ">"),
                Raw::Empty(_) => {
                    self.empty = true;
                    return self.start(before, "/>");
                }
                Raw::End(_) => return self.end(),
                Raw::Text(text) => {
                    let text = text.into_inner();
                    if ends_cdata(text.as_bytes()) {
                        return Err(XmlError::NotWellFormed);
                    }
                    if self.depth > 0 {
                        return Ok(Event::Text(with_plain_line_ends(text)));
                    }
                    if !text.bytes().all(is_whitespace) {
                        return Err(XmlError::NotWellFormed);
                    }
                }
                Raw::GeneralRef(reference) if self.depth > 0 => {
                    return resolve_reference(&reference.into_inner()).map(Event::Text);
                }
                Raw::GeneralRef(_) => return Err(XmlError::NotWellFormed),
                Raw::Eof if self.depth == 0 && self.rooted => return Ok(Event::Eof),
                Raw::Eof => return Err(XmlError::NotWellFormed),
                Raw::CData(text) if self.depth > 0 => {
                    return Ok(Event::Text(with_plain_line_ends(text.into_inner())));
                }
                Raw::CData(_) => return Err(XmlError::NotWellFormed),
                Raw::Comment(_) | Raw::Decl(_) | Raw::PI(_) | Raw::DocType(_) => {
                    return Err(XmlError::RestrictedXml);
                }
            }
        }
    }

    /// Goes to the root element.
    ///
    /// # Errors
    /// As [`Events::next`].
    pub(crate) fn root(&mut self) -> Result<(), XmlError> {
        match self.next()? {
            Event::Start => Ok(()),
            Event::Text(_) | Event::End | Event::Eof => Err(XmlError::NotWellFormed),
        }
    }

    /// Goes to the next child of the element whose content is being read, past any text. After `false`
    /// that element has ended. A child has to be read to its end before the next call.
    ///
    /// # Errors
    /// As [`Events::next`].
    pub(crate) fn child(&mut self) -> Result<bool, XmlError> {
        loop {
            match self.next()? {
                Event::Start => return Ok(true),
                Event::Text(_) => {}
                Event::End => return Ok(false),
                Event::Eof => return Err(XmlError::NotWellFormed),
            }
        }
    }

    /// Reads to the end of the element that began last.
    ///
    /// # Errors
    /// As [`Events::next`].
    pub(crate) fn skip(&mut self) -> Result<(), XmlError> {
        self.finish(|_| {})
    }

    /// Reads to the end of the element that began last, and hands over its own text piece by piece.
    ///
    /// # Errors
    /// As [`Events::next`].
    pub(crate) fn finish(&mut self, mut text: impl FnMut(Cow<'a, str>)) -> Result<(), XmlError> {
        let inside = self.depth;
        while self.depth >= inside {
            match self.next()? {
                Event::Text(piece) if self.depth == inside => text(piece),
                Event::Eof => return Err(XmlError::NotWellFormed),
                Event::Start | Event::Text(_) | Event::End => {}
            }
        }
        Ok(())
    }

    /// Reads to the end of the element that began last and returns its own text, borrowed when it is in
    /// one piece.
    ///
    /// # Errors
    /// As [`Events::next`].
    pub(crate) fn text(&mut self) -> Result<Cow<'a, str>, XmlError> {
        let mut whole = Cow::Borrowed("");
        self.finish(|piece| {
            if whole.is_empty() {
                whole = piece;
            } else {
                whole.to_mut().push_str(&piece);
            }
        })?;
        Ok(whole)
    }

    /// Reads to the end of the unit.
    ///
    /// # Errors
    /// As [`Events::next`].
    pub(crate) fn drain(&mut self) -> Result<(), XmlError> {
        while self.next()? != Event::Eof {}
        Ok(())
    }

    /// Whether the element that began last has this name and namespace.
    pub(crate) fn is(&self, name: &str, namespace: &str) -> bool {
        self.name() == name && self.namespace() == namespace
    }

    /// The local name of the element that began last.
    pub(crate) const fn name(&self) -> &'a str {
        self.name.1
    }

    /// The prefix of the element that began last.
    pub(crate) const fn prefix(&self) -> Option<&'a str> {
        self.name.0
    }

    /// The namespace of the element that began last, empty for none.
    pub(crate) fn namespace(&self) -> &str {
        self.resolve(self.prefix()).unwrap_or_default()
    }

    /// An attribute without prefix of the element that began last.
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|attribute| attribute.prefix.is_none() && attribute.name == name)
            .map(|attribute| &*attribute.value)
    }

    /// Takes an attribute without prefix out of the element that began last.
    pub(crate) fn take_attribute(&mut self, name: &str) -> Option<Cow<'a, str>> {
        let at = self
            .attributes
            .iter()
            .position(|attribute| attribute.prefix.is_none() && attribute.name == name)?;
        Some(self.attributes.swap_remove(at).value)
    }

    /// All attributes of the element that began last.
    pub(crate) fn attributes(&self) -> &[Attribute<'a>] {
        &self.attributes
    }

    /// The declarations of the unit in scope, outermost first: prefix and namespace.
    pub(crate) fn declarations(&self) -> impl Iterator<Item = (Option<&str>, &str)> {
        self.bindings
            .iter()
            .map(|binding| (binding.prefix, &*binding.namespace))
    }

    /// The namespace bound to a prefix; without prefix, the default namespace, which is empty if there
    /// is none.
    pub(crate) fn resolve(&self, prefix: Option<&str>) -> Option<&str> {
        let declared = self.bindings.iter().rev();
        let mut declared = declared.filter(|binding| binding.prefix == prefix);
        match declared.next() {
            Some(binding) => Some(&binding.namespace),
            None => self.inherited.find(prefix).or(match prefix {
                None => Some(""),
                Some("xml") => Some(ns::XML),
                Some(_) => None,
            }),
        }
    }

    /// As [`Events::resolve`], to be kept.
    pub(crate) fn shared(&self, prefix: Option<&str>) -> Arc<str> {
        let mut declared = self.bindings.iter().rev();
        if let Some(binding) = declared.find(|binding| binding.prefix == prefix) {
            let shared = binding.shared.get_or_init(|| (*binding.namespace).into());
            return Arc::clone(shared);
        }
        match self.inherited.shared(prefix) {
            Some(shared) => Arc::clone(shared),
            None => self.resolve(prefix).unwrap_or_default().into(),
        }
    }

    /// Takes the tag from `before` to where the reader stands now, less `closing`.
    fn start(&mut self, before: u64, closing: &str) -> Result<Event<'a>, XmlError> {
        if self.depth == 0 && self.rooted {
            return Err(XmlError::NotWellFormed);
        }
        self.rooted = true;
        self.depth += 1;
        let tag = self.slice(before, self.reader.buffer_position())?;
        let content = tag
            .strip_prefix('<')
            .and_then(|tag| tag.strip_suffix(closing));
        let content = content.ok_or(XmlError::NotWellFormed)?;
        let end = content.bytes().position(is_whitespace);
        let (name, attributes) = content.split_at(end.unwrap_or(content.len()));
        self.name = split_name(name)?;
        self.scan_attributes(attributes)?;
        if self.prefix() == Some("xmlns") || self.resolve(self.prefix()).is_none() {
            return Err(XmlError::NotWellFormed);
        }
        Ok(Event::Start)
    }

    fn end(&mut self) -> Result<Event<'a>, XmlError> {
        while (self.bindings.last()).is_some_and(|binding| binding.depth == self.depth) {
            self.bindings.pop();
        }
        self.depth = self.depth.checked_sub(1).ok_or(XmlError::NotWellFormed)?;
        Ok(Event::End)
    }

    fn slice(&self, from: u64, to: u64) -> Result<&'a str, XmlError> {
        let from = usize::try_from(from).map_err(|_| XmlError::NotWellFormed)?;
        let to = usize::try_from(to).map_err(|_| XmlError::NotWellFormed)?;
        self.unit.get(from..to).ok_or(XmlError::NotWellFormed)
    }

    fn scan_attributes(&mut self, raw: &'a str) -> Result<(), XmlError> {
        self.attributes.clear();
        let mut declares = false;
        for attribute in scan_attributes(raw) {
            let attribute = attribute?;
            declares |= attribute.is_declaration();
            self.attributes.push(attribute);
        }
        let names = self
            .attributes
            .iter()
            .map(|attribute| (attribute.name, attribute.prefix));
        if has_twins(names) {
            return Err(XmlError::NotWellFormed);
        }
        if declares {
            self.bind()?;
        }
        self.check_prefixes()
    }

    /// Moves the declarations among the attributes to the bindings.
    fn bind(&mut self) -> Result<(), XmlError> {
        let depth = self.depth;
        let declares = |attribute: &mut Attribute<'_>| attribute.is_declaration();
        for attribute in self.attributes.drain_filter(declares) {
            let prefix = attribute.prefix.map(|_| attribute.name);
            let namespace = attribute.value;
            let reserved = namespace == ns::XML || namespace == ns::XMLNS;
            let legal = match prefix {
                None => !reserved,
                Some("xml") => namespace == ns::XML,
                Some("xmlns") => false,
                Some(_) => !reserved && !namespace.is_empty(),
            };
            if !legal {
                return Err(XmlError::NotWellFormed);
            }
            if self.bindings.len() >= BINDINGS_MAX {
                return Err(XmlError::TooManyNamespaces);
            }
            self.bindings.push(Binding {
                depth,
                prefix,
                namespace,
                shared: OnceCell::new(),
            });
        }
        Ok(())
    }

    /// Refuses unbound prefixes, and two prefixes of one namespace with the same attribute.
    fn check_prefixes(&self) -> Result<(), XmlError> {
        let prefixed = || (self.attributes.iter()).filter(|attribute| attribute.prefix.is_some());
        // Mostly there are none. The namespaces are looked up once: there may be many to search.
        if prefixed().next().is_none() {
            return Ok(());
        }
        let named: Vec<_> = prefixed()
            .map(|attribute| (attribute.name, self.resolve(attribute.prefix)))
            .collect();
        let unbound = named.iter().any(|(_, namespace)| namespace.is_none());
        match unbound || has_twins(named.into_iter()) {
            true => Err(XmlError::NotWellFormed),
            false => Ok(()),
        }
    }
}

/// Whether two of these are the same.
fn has_twins<T: Ord>(named: impl ExactSizeIterator<Item = T> + Clone) -> bool {
    // Real stanzas have few attributes, and those are compared without a copy.
    if named.len() <= FEW {
        let mut rest = named;
        while let Some(one) = rest.next() {
            if rest.clone().any(|other| other == one) {
                return true;
            }
        }
        return false;
    }
    let mut sorted: Vec<T> = named.collect();
    sorted.sort_unstable();
    sorted
        .windows(2)
        .any(|pair| matches!(pair, [one, other] if one == other))
}

/// Reads what follows the name in a tag: attributes, each after white space.
pub(super) fn scan_attributes(raw: &str) -> impl Iterator<Item = Result<Attribute<'_>, XmlError>> {
    let mut rest = Some(raw);
    std::iter::from_fn(move || {
        let raw = rest.take()?;
        let trimmed = trim_start(raw);
        if trimmed.is_empty() {
            return None;
        }
        if trimmed.len() == raw.len() {
            return Some(Err(XmlError::NotWellFormed));
        }
        Some(scan_attribute(trimmed).map(|(attribute, behind)| {
            rest = Some(behind);
            attribute
        }))
    })
}

fn scan_attribute(raw: &str) -> Result<(Attribute<'_>, &str), XmlError> {
    let (name, rest) = split_at_byte(raw, b'=').ok_or(XmlError::NotWellFormed)?;
    let (prefix, name) = split_name(name.trim_end_matches(WHITESPACE))?;
    let rest = trim_start(rest);
    let (value, rest) = match rest.strip_prefix('\'') {
        Some(rest) => split_at_byte(rest, b'\''),
        None => (rest.strip_prefix('"')).and_then(|rest| split_at_byte(rest, b'"')),
    }
    .ok_or(XmlError::NotWellFormed)?;
    let attribute = Attribute {
        prefix,
        name,
        value: unescape_value(value)?,
    };
    Ok((attribute, rest))
}

/// What stands before the first `byte`, which is ASCII, and what stands behind it. Names and values are so
/// short that looking at each byte costs less than setting out to search.
fn split_at_byte(text: &str, byte: u8) -> Option<(&str, &str)> {
    let at = text.bytes().position(|other| other == byte)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// The text behind leading white space.
fn trim_start(text: &str) -> &str {
    let blank = text.bytes().take_while(|byte| is_whitespace(*byte)).count();
    text.get(blank..).unwrap_or_default()
}

/// Unescapes and normalises an attribute value (XML 1.0 §3.3.3).
fn unescape_value(raw: &str) -> Result<Cow<'_, str>, XmlError> {
    let special = |byte| matches!(byte, b'<' | b'&' | b'\t' | b'\n' | b'\r');
    if !raw.bytes().any(special) {
        return Ok(Cow::Borrowed(raw));
    }
    let mut value = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.bytes().position(special) {
        let (plain, tail) = rest.split_at(at);
        value.push_str(plain);
        if let Some(tail) = tail.strip_prefix('&') {
            let (reference, tail) = tail.split_once(';').ok_or(XmlError::NotWellFormed)?;
            value.push_str(&resolve_reference(reference)?);
            rest = tail;
        } else if tail.starts_with('<') {
            return Err(XmlError::NotWellFormed);
        } else {
            value.push(' ');
            let tail = tail.strip_prefix("\r\n").or_else(|| tail.get(1..));
            rest = tail.unwrap_or_default();
        }
    }
    value.push_str(rest);
    Ok(Cow::Owned(value))
}

/// The text of `&reference;`.
fn resolve_reference(reference: &str) -> Result<Cow<'static, str>, XmlError> {
    let code = match reference {
        "amp" => return Ok(Cow::Borrowed("&")),
        "lt" => return Ok(Cow::Borrowed("<")),
        "gt" => return Ok(Cow::Borrowed(">")),
        "apos" => return Ok(Cow::Borrowed("'")),
        "quot" => return Ok(Cow::Borrowed("\"")),
        other => match other.strip_prefix('#') {
            Some(code) => code,
            None if is_name(other) => return Err(XmlError::RestrictedXml),
            None => return Err(XmlError::NotWellFormed),
        },
    };
    let (digits, radix) = match code.strip_prefix('x') {
        Some(digits) => (digits, 16),
        None => (code, 10),
    };
    if !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(XmlError::NotWellFormed);
    }
    u32::from_str_radix(digits, radix)
        .ok()
        .and_then(char::from_u32)
        .filter(|c| is_character(*c))
        .map(|c| Cow::Owned(c.to_string()))
        .ok_or(XmlError::NotWellFormed)
}

/// Splits a qualified name into prefix and local name.
fn split_name(name: &str) -> Result<(Option<&str>, &str), XmlError> {
    let (prefix, local) = match split_at_byte(name, b':') {
        Some((prefix, local)) if is_name(prefix) => (Some(prefix), local),
        Some(_) => return Err(XmlError::NotWellFormed),
        None => (None, name),
    };
    match is_name(local) {
        true => Ok((prefix, local)),
        false => Err(XmlError::NotWellFormed),
    }
}

/// Whether this is a name without colon (XML Names §3). Beyond ASCII everything counts as a letter.
fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_' || b >= 0x80)
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.') || b >= 0x80)
}

const WHITESPACE: [char; 4] = [' ', '\t', '\r', '\n'];

const fn is_whitespace(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// Whether XML can carry this character (XML 1.0 §2.2).
const fn is_character(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

fn has_forbidden_characters(bytes: &[u8]) -> bool {
    // Without a branch per byte, so that it vectorises.
    let control = |chunk: &[u8]| {
        let bad = |byte: u8| u8::from(byte < 0x20) & u8::from(!is_whitespace(byte));
        chunk.iter().fold(0, |found, byte| found | bad(*byte)) != 0
    };
    let beyond = |at| matches!(bytes.get(at..at + 3), Some([_, 0xbf, 0xbe | 0xbf]));
    bytes.chunks(256).any(control) || memchr::memchr_iter(0xef, bytes).any(beyond)
}

/// Whether text has in it what only a CDATA section may end with.
fn ends_cdata(text: &[u8]) -> bool {
    let closed = |at: usize| text.get(..at).is_some_and(|before| before.ends_with(b"]]"));
    memchr::memchr_iter(b'>', text).any(closed)
}

/// Line ends as XML reports them (XML 1.0 §2.11).
fn with_plain_line_ends(text: Cow<'_, str>) -> Cow<'_, str> {
    match memchr::memchr(b'\r', text.as_bytes()) {
        Some(_) => Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n")),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything in a unit, or the first error.
    fn read(unit: &str) -> Result<String, XmlError> {
        let namespaces = Namespaces::server();
        let mut events = Events::new(unit, &namespaces)?;
        let mut seen = String::new();
        loop {
            match events.next()? {
                Event::Start => {
                    seen += &format!("({{{}}}{}", events.namespace(), events.name());
                    for attribute in events.attributes() {
                        let prefix = match attribute.prefix {
                            None => "",
                            prefix => events.resolve(prefix).unwrap(),
                        };
                        seen += &format!(" {{{prefix}}}{}={}", attribute.name, attribute.value);
                    }
                    seen += ":";
                }
                Event::Text(text) => seen += &text,
                Event::End => seen += ")",
                Event::Eof => return Ok(seen),
            }
        }
    }

    #[track_caller]
    fn check(unit: &str, expected: &str) {
        assert_eq!(read(unit), Ok(expected.to_owned()), "{unit}");
    }

    #[track_caller]
    fn check_error(unit: &str, expected: XmlError) {
        assert_eq!(read(unit), Err(expected), "{unit}");
    }

    #[test]
    fn names_and_namespaces() {
        check("<iq/>", "({jabber:server}iq:)");
        check(" <iq/>\n", "({jabber:server}iq:)");
        check("<iq ></iq >", "({jabber:server}iq:)");
        check("<db:result/>", "({jabber:server:dialback}result:)");
        check("<a xmlns=''/>", "({}a:)");
        check(
            "<a xmlns='x'><b/><c xmlns='y'/><b/></a>",
            "({x}a:({x}b:)({y}c:)({x}b:))",
        );
        check(
            "<p:a xmlns:p='x'><p:b xmlns:p='y'/><p:b/></p:a>",
            "({x}a:({y}b:)({x}b:))",
        );
        check(
            "<a><p:b xmlns:p='x' xmlns='y'><c/></p:b><c/></a>",
            "({jabber:server}a:({x}b:({y}c:))({jabber:server}c:))",
        );
        check(
            "<a xml:lang='en' id='1'/>",
            "({jabber:server}a {http://www.w3.org/XML/1998/namespace}lang=en {}id=1:)",
        );
        check(
            "<a xmlns:p='x' p:id='1' id='2'/>",
            "({jabber:server}a {x}id=1 {}id=2:)",
        );
        check(
            "<\u{e9}l\u{e9}ment _a-b.c1='x'/>",
            "({jabber:server}\u{e9}l\u{e9}ment {}_a-b.c1=x:)",
        );
        check(
            "<a xmlns:xml='http://www.w3.org/XML/1998/namespace'/>",
            "({jabber:server}a:)",
        );
    }

    #[test]
    fn text() {
        check(
            "<a>x&amp;y&#65;&#x42;&lt;&gt;&apos;&quot;</a>",
            "({jabber:server}a:x&yAB<>'\")",
        );
        check(
            "<a>1\r\n2\r3\n4&#13;</a>",
            "({jabber:server}a:1\n2\n3\n4\r)",
        );
        check("<a>]] > ]]&gt;</a>", "({jabber:server}a:]] > ]]>)");
        check(
            "<a>x<![CDATA[<b>&amp;</b>\r\n]]]]><![CDATA[>]]>y<![CDATA[]]></a>",
            "({jabber:server}a:x<b>&amp;</b>\n]]>y)",
        );
        check(
            "<a>x<b>y</b>z</a>",
            "({jabber:server}a:x({jabber:server}b:y)z)",
        );
        check(
            "<a>\u{1f600}\u{fffd}\u{85}</a>",
            "({jabber:server}a:\u{1f600}\u{fffd}\u{85})",
        );
    }

    #[test]
    fn attributes() {
        check("<a b='\"' c=\"'\"/>", "({jabber:server}a {}b=\" {}c=':)");
        check(
            "<a\tb\n=\r'x'  c = \"y\" />",
            "({jabber:server}a {}b=x {}c=y:)",
        );
        check(
            "<a b='&lt;&#9;&#x1F600;&quot;'/>",
            "({jabber:server}a {}b=<\t\u{1f600}\":)",
        );
        check(
            "<a b='1\n2\t3\r\n4\r5'/>",
            "({jabber:server}a {}b=1 2 3 4 5:)",
        );
        check("<a b='>/>'/>", "({jabber:server}a {}b=>/>:)");
    }

    #[test]
    fn what_is_not_well_formed() {
        for unit in [
            // The parser lets these pass.
            "<a>\u{1}</a>",
            "<a b='\u{1f}'/>",
            "<a>\u{fffe}</a>",
            "<a>\u{ffff}</a>",
            "<a>&#1;</a>",
            "<a>&#x1;</a>",
            "<a b='&#x1;'/>",
            "<a>&#xFFFE;</a>",
            "<a>&#xD800;</a>",
            "<a>&#x110000;</a>",
            "<a>&#99999999999;</a>",
            "<a>&#+65;</a>",
            "<a>&#x+41;</a>",
            "<a>&#X41;</a>",
            "<a>&#;</a>",
            "<a>&#x;</a>",
            "<a>&;</a>",
            "<a>& b;</a>",
            "<a b='<'/>",
            "<a b='x'c='y'/>",
            "<a b='x'/ >",
            "<a/b='x'>",
            "<1a/>",
            "<-a/>",
            "<a 1b='x'/>",
            "<a b!='x'/>",
            "<a<b/>",
            "<p:a xmlns:p=''/>",
            "<p:a/>",
            "<a p:b='x'/>",
            "<a><p:b xmlns:p='x'/><p:b/></a>",
            "<:a/>",
            "<p:/>",
            "<stream:a:b/>",
            "<xmlns:a/>",
            "<a xmlns:xmlns='http://www.w3.org/2000/xmlns/'/>",
            "<a xmlns:xml='x'/>",
            "<a xmlns:p='http://www.w3.org/XML/1998/namespace'/>",
            "<a xmlns='http://www.w3.org/2000/xmlns/'/>",
            "<a>]]></a>",
            "<a/><b/>",
            "<a/>x",
            "x<a/>",
            "&amp;<a/>",
            "<a/>&amp;",
            // And these it refuses, or does when it is asked.
            "",
            " ",
            "<a>",
            "<a",
            "</a>",
            "<a></b>",
            "<a></A>",
            "<a></a b='x'>",
            "<a b/>",
            "<a b=/>",
            "<a b=x/>",
            "<a b='x/>",
            "<a ='x'/>",
            "<a b='x' b='y'/>",
            "<a xmlns='x' xmlns='x'/>",
            "<a xmlns:p='x' xmlns:q='x' p:b='1' q:b='2'/>",
            "<a>&amp</a>",
            "<a b='&amp'/>",
            "<![CDATA[x]]><a/>",
            "<a/><![CDATA[]]>",
            "<a><![CDATA[\u{1}]]></a>",
            "<a><![CDATA[x]]></b>",
            "<a>&amp <b/>;</a>",
            "<>",
            "< a/>",
        ] {
            check_error(unit, XmlError::NotWellFormed);
        }
    }

    /// However many there are, and wherever among them the two stand.
    #[test]
    fn no_two_attributes_are_the_same() {
        let many = 3 * FEW;
        let named = |name: &dyn Fn(usize) -> String| -> String {
            (0..many).map(|n| format!(" {}='{n}'", name(n))).collect()
        };
        let declared: String = (0..many).map(|n| format!(" xmlns:p{n}='x{n}'")).collect();
        let plain = named(&|n| format!("a{n}"));
        let prefixed = named(&|n| format!("p{n}:a"));
        assert!(read(&format!("<a{plain}/>")).is_ok());
        assert!(read(&format!("<a{declared}{prefixed} a=''/>")).is_ok());
        for n in [0, 1, many - 1] {
            let unit = format!("<a{plain} a{n}=''/>");
            check_error(&unit, XmlError::NotWellFormed);
            let unit = format!("<a{declared} xmlns:q='x{n}'{prefixed} q:a=''/>");
            check_error(&unit, XmlError::NotWellFormed);
        }
        let unbound = format!("<a{declared}{prefixed} q:a=''/>");
        check_error(&unbound, XmlError::NotWellFormed);
    }

    #[test]
    fn what_is_restricted() {
        for unit in [
            "<a>&nbsp;</a>",
            "<a b='&custom;'/>",
            "<a><!-- c --></a>",
            "<a><?pi?></a>",
            "<!DOCTYPE a><a/>",
            "<?xml version='1.0'?><a/>",
        ] {
            check_error(unit, XmlError::RestrictedXml);
        }
    }

    #[test]
    fn namespaces_are_limited() {
        let declarations =
            |n: usize| -> String { (0..n).map(|n| format!(" xmlns:p{n}='x'")).collect() };
        check(
            &format!("<a{}/>", declarations(BINDINGS_MAX)),
            "({jabber:server}a:)",
        );
        check_error(
            &format!("<a{}/>", declarations(BINDINGS_MAX + 1)),
            XmlError::TooManyNamespaces,
        );
        check_error(
            &format!("<a{}><b xmlns='y'/></a>", declarations(BINDINGS_MAX)),
            XmlError::TooManyNamespaces,
        );
        let siblings = "<b xmlns='y'/>".repeat(2 * BINDINGS_MAX);
        assert!(read(&format!("<a>{siblings}</a>")).is_ok());
    }

    #[test]
    fn plain_strings_are_borrowed() {
        let unit = "<a b='value'>text</a>";
        let namespaces = Namespaces::default();
        let mut events = Events::new(unit, &namespaces).unwrap();
        events.root().unwrap();
        assert!(matches!(
            events.take_attribute("b"),
            Some(Cow::Borrowed("value"))
        ));
        assert!(events.attribute("b").is_none());
        assert!(matches!(events.text(), Ok(Cow::Borrowed("text"))));
    }
}
