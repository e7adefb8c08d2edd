//! A strict reader of one unit.
//!
//! Refused are: control or other forbidden characters, raw or as references; names that are not names; end
//! tags with another name; attributes without white space between them or with `<` in their values; duplicate
//! attributes; unbound prefixes and illegal bindings; `]]>` in text; entities but the predefined five;
//! anything outside the root; comments, processing instructions and DTDs.
//!
//! A tag in the form that servers write (one blank before each attribute, none elsewhere, values without
//! references) is taken in one pass. Of any other quick-xml finds where it ends, before what is in it is looked at.
//! Names, attributes and text go through [`super::scanner`]: quick-xml's own reader copies the name of each open
//! element to a stack that begins anew in each stanza, and knows neither what of the above it has to refuse nor the
//! namespaces of the stream header, so that each tag would be looked at once more. It is what the tests compare
//! this one with.
//!
//! What an event brings is left in [`Events`] and not returned: to hand texts and attributes on through memory cost
//! a quarter of the time.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::sync::Arc;

use quick_xml::parser::{ElementParser, Parser as _};
use smallvec::SmallVec;

pub(crate) use super::scanner::Attribute;
use super::scanner::{Name, Scanner, has_forbidden_characters, plain_text};
use super::splitter::{CDATA_END, cdata_len};
use super::{Namespaces, XmlError, ns};

/// Most namespace declarations in scope inside one unit. Names are resolved by a linear search, and
/// real stanzas have fewer than ten.
const BINDINGS_MAX: usize = 64;
/// So many declarations are in scope in a publish, so many elements are open in it, and so many attributes are in
/// one of its tags: for them nothing is allocated.
const BINDINGS_MOSTLY: usize = 4;
const OPEN_MOSTLY: usize = 8;
const ATTRIBUTES_MOSTLY: usize = 6;
/// So many attributes are compared each with each other; more are sorted.
const FEW: usize = 8;

/// What comes next in a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// An element begins; [`Events`] tells which.
    Start,
    /// Character data, to be had from [`Events::take_piece`]. One run may come in several pieces.
    Text,
    /// The innermost open element ends.
    End,
    /// The root has ended, and so has the unit.
    Eof,
}

/// A namespace declaration inside the unit.
struct Binding<'a> {
    /// See [`key`].
    key: u64,
    /// `None` for the default namespace. An empty text would do, but the comparison of two empty texts
    /// is a masked load from an address that is none, which cost two thirds of the reading of a publish.
    prefix: Option<&'a str>,
    namespace: Cow<'a, str>,
    /// The namespace for those who keep it: a long name is copied once, not for each element in it.
    shared: OnceCell<Arc<str>>,
}

/// An open element.
#[derive(Clone, Copy)]
struct Open<'a> {
    /// Its name as written.
    name: &'a str,
    /// How many declarations were in scope before it.
    declared: usize,
}

/// Where in the unit the reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the root element.
    Before,
    /// In it.
    Inside,
    /// Behind it.
    Behind,
}

/// Where a namespace was declared.
#[derive(Clone, Copy)]
enum Namespace<'n> {
    /// In the unit, by the declaration at this place.
    Declared(usize),
    /// Before it, or nowhere.
    Inherited(&'n str),
}

/// Reads a unit event by event. Strings borrow from the unit unless they need unescaping.
pub(crate) struct Events<'a, 'n> {
    scanner: Scanner<'a>,
    inherited: &'n Namespaces,
    bindings: SmallVec<[Binding<'a>; BINDINGS_MOSTLY]>,
    open: SmallVec<[Open<'a>; OPEN_MOSTLY]>,
    place: Place,
    /// Whether the element that began last is an empty-element tag, so that its end comes next.
    empty: bool,
    /// Name of the element that began last.
    name: Name<'a>,
    /// Its namespace.
    namespace: Namespace<'n>,
    /// Attributes of the element that began last.
    attributes: SmallVec<[Attribute<'a>; ATTRIBUTES_MOSTLY]>,
    /// The character data that came last.
    piece: Cow<'a, str>,
}

impl<'a, 'n> Events<'a, 'n> {
    /// Reads `unit`, which inherits the declarations of its stream header.
    ///
    /// # Errors
    /// [`XmlError::NotWellFormed`] when it holds a character that XML cannot carry.
    pub(crate) fn new(unit: &'a str, inherited: &'n Namespaces) -> Result<Self, XmlError> {
        if has_forbidden_characters(unit) {
            return Err(XmlError::NotWellFormed);
        }
        Ok(Self {
            scanner: Scanner::new(unit),
            inherited,
            bindings: SmallVec::new(),
            open: SmallVec::new(),
            place: Place::Before,
            empty: false,
            name: Name::default(),
            namespace: Namespace::Inherited(""),
            attributes: SmallVec::new(),
            piece: Cow::Borrowed(""),
        })
    }

    /// The next event.
    ///
    /// # Errors
    /// [`XmlError::NotWellFormed`], [`XmlError::RestrictedXml`] or [`XmlError::TooManyNamespaces`].
    pub(crate) fn next(&mut self) -> Result<Event, XmlError> {
        if self.empty {
            self.empty = false;
            self.end();
            return Ok(Event::End);
        }
        loop {
            match self.scanner.rest().as_bytes() {
                [b'<', b'/', ..] => return self.end_tag(),
                [b'<', b'!' | b'?', ..] => return self.other_markup(),
                [b'<', ..] => return self.start_tag(),
                [_, ..] if self.place == Place::Inside => {
                    self.piece = match self.scanner.plain_text() {
                        Some(text) => Cow::Borrowed(text),
                        None => self.scanner.text()?,
                    };
                    return Ok(Event::Text);
                }
                [] if self.place == Place::Behind => return Ok(Event::Eof),
                [] => return Err(XmlError::NotWellFormed),
                // Outside the root only white space may stand.
                [_, ..] if self.scanner.skip_blanks() => {}
                [_, ..] => return Err(XmlError::NotWellFormed),
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
            Event::Text | Event::End | Event::Eof => Err(XmlError::NotWellFormed),
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
                Event::Text => {}
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
        let inside = self.open.len();
        while self.open.len() >= inside {
            match self.next()? {
                Event::Text if self.open.len() == inside => text(self.take_piece()),
                Event::Eof => return Err(XmlError::NotWellFormed),
                Event::Start | Event::Text | Event::End => {}
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

    /// Takes the character data of the last [`Event::Text`].
    pub(crate) fn take_piece(&mut self) -> Cow<'a, str> {
        std::mem::take(&mut self.piece)
    }

    /// Whether the element that began last has this name and namespace.
    #[inline]
    pub(crate) fn is(&self, name: &str, namespace: &str) -> bool {
        self.name() == name && self.namespace() == namespace
    }

    /// The local name of the element that began last.
    pub(crate) const fn name(&self) -> &'a str {
        self.name.local
    }

    /// The prefix of the element that began last.
    pub(crate) const fn prefix(&self) -> Option<&'a str> {
        self.name.prefix
    }

    /// The namespace of the element that began last, as long as it is open; empty for none.
    #[inline]
    pub(crate) fn namespace(&self) -> &str {
        match self.namespace {
            Namespace::Declared(at) => self
                .bindings
                .get(at)
                .map_or("", |binding| &*binding.namespace),
            Namespace::Inherited(namespace) => namespace,
        }
    }

    /// An attribute without prefix of the element that began last.
    #[inline]
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
        match self.binding(prefix) {
            Some(at) => self.bindings.get(at).map(|binding| &*binding.namespace),
            None => self.inherit(prefix),
        }
    }

    /// The innermost declaration of a prefix in the unit.
    fn binding(&self, prefix: Option<&str>) -> Option<usize> {
        let key = key(prefix);
        (self.bindings.iter()).rposition(|binding| binding.key == key && binding.prefix == prefix)
    }

    /// The namespace bound to a prefix before the unit.
    fn inherit(&self, prefix: Option<&str>) -> Option<&'n str> {
        self.inherited.find(prefix).or(match prefix {
            None => Some(""),
            Some("xml") => Some(ns::XML),
            Some(_) => None,
        })
    }

    /// As [`Events::resolve`], to be kept.
    pub(crate) fn shared(&self, prefix: Option<&str>) -> Arc<str> {
        let binding = self.binding(prefix);
        if let Some(binding) = binding.and_then(|at| self.bindings.get(at)) {
            let shared = binding.shared.get_or_init(|| (*binding.namespace).into());
            return Arc::clone(shared);
        }
        match self.inherited.shared(prefix) {
            Some(shared) => Arc::clone(shared),
            None => self.resolve(prefix).unwrap_or_default().into(),
        }
    }

    fn start_tag(&mut self) -> Result<Event, XmlError> {
        if self.place == Place::Behind {
            return Err(XmlError::NotWellFormed);
        }
        self.place = Place::Inside;
        self.scanner.take(1);
        self.attributes.clear();
        let declared = self.bindings.len();
        if self.plain_tag().is_none() {
            self.attributes.clear();
            self.bindings.truncate(declared);
            self.any_tag()?;
        }
        self.open.push(Open {
            name: self.name.whole,
            declared,
        });
        self.check_attributes(declared)?;
        if self.prefix() == Some("xmlns") {
            return Err(XmlError::NotWellFormed);
        }
        self.namespace = match self.binding(self.prefix()) {
            Some(at) => Namespace::Declared(at),
            None => self
                .inherit(self.prefix())
                .map(Namespace::Inherited)
                .ok_or(XmlError::NotWellFormed)?,
        };
        Ok(Event::Start)
    }

    /// Takes a start tag in the form that servers write. If it has another, what was taken of it has to be undone.
    fn plain_tag(&mut self) -> Option<()> {
        let mut tag = self.scanner;
        self.name = tag.name().ok()?;
        loop {
            match tag.rest().as_bytes() {
                [b' ', ..] => {
                    tag.take(1);
                    let (name, value) = tag.plain_attribute()?;
                    self.add(name.prefix, name.local, Cow::Borrowed(value));
                }
                [b'>', ..] => {
                    tag.take(1);
                    break;
                }
                [b'/', b'>', ..] => {
                    tag.take(2);
                    self.empty = true;
                    break;
                }
                _ => return None,
            }
        }
        self.scanner = tag;
        Some(())
    }

    /// Takes a start tag in whatever form, or says what is wrong with it.
    #[cold]
    fn any_tag(&mut self) -> Result<(), XmlError> {
        let end = ElementParser::default().feed(self.scanner.rest().as_bytes());
        let tag = self.scanner.take(end.ok_or(XmlError::NotWellFormed)?);
        self.scanner.take(1);
        let mut tag = Scanner::new(tag);
        self.name = tag.name()?;
        loop {
            let blank = tag.skip_blanks();
            match tag.rest().as_bytes() {
                [] => return Ok(()),
                [b'/'] => {
                    self.empty = true;
                    return Ok(());
                }
                _ if blank => {
                    let Attribute {
                        prefix,
                        name,
                        value,
                    } = tag.attribute()?;
                    self.add(prefix, name, value);
                }
                _ => return Err(XmlError::NotWellFormed),
            }
        }
    }

    /// Keeps an attribute or a declaration of the element that begins. Inlined, so that nothing is moved twice.
    #[inline(always)]
    fn add(&mut self, prefix: Option<&'a str>, name: &'a str, value: Cow<'a, str>) {
        match prefix {
            None if name == "xmlns" => self.bind(None, value),
            Some("xmlns") => self.bind(Some(name), value),
            _ => self.attributes.push(Attribute {
                prefix,
                name,
                value,
            }),
        }
    }

    fn end_tag(&mut self) -> Result<Event, XmlError> {
        self.scanner.take(2);
        let open = self.open.last().ok_or(XmlError::NotWellFormed)?;
        let matches = self.scanner.skip(open.name);
        self.scanner.skip_blanks();
        if !matches || !self.scanner.skip(">") {
            return Err(XmlError::NotWellFormed);
        }
        self.end();
        Ok(Event::End)
    }

    /// Forgets the innermost element and what it declared.
    fn end(&mut self) {
        if let Some(open) = self.open.pop() {
            self.bindings.truncate(open.declared);
        }
        if self.open.is_empty() {
            self.place = Place::Behind;
        }
    }

    /// Takes a CDATA section; there is no other markup that may come.
    fn other_markup(&mut self) -> Result<Event, XmlError> {
        if !self.scanner.skip("<![CDATA[") {
            return Err(XmlError::RestrictedXml);
        }
        let section = self.scanner.rest();
        let len = cdata_len(section.as_bytes());
        match len {
            Some(len) if self.place == Place::Inside => {
                self.scanner.take(len + CDATA_END.len());
                let section = section.get(..len).unwrap_or_default();
                self.piece = plain_text(section)?;
                Ok(Event::Text)
            }
            _ => Err(XmlError::NotWellFormed),
        }
    }

    #[inline(always)]
    fn bind(&mut self, prefix: Option<&'a str>, namespace: Cow<'a, str>) {
        self.bindings.push(Binding {
            key: key(prefix),
            prefix,
            namespace,
            shared: OnceCell::new(),
        });
    }

    /// Checks the declarations of a tag, the first of which is the one at `first`.
    fn check_bindings(&self, first: usize) -> Result<(), XmlError> {
        let new = self.bindings.get(first..).unwrap_or_default();
        if has_twins(new.iter().map(|binding| binding.prefix)) {
            return Err(XmlError::NotWellFormed);
        }
        for (at, binding) in new.iter().enumerate() {
            let namespace = &*binding.namespace;
            let reserved = namespace == ns::XML || namespace == ns::XMLNS;
            let legal = match binding.prefix {
                None => !reserved,
                Some("xml") => namespace == ns::XML,
                Some("xmlns") => false,
                Some(_) => !reserved && !namespace.is_empty(),
            };
            if !legal {
                return Err(XmlError::NotWellFormed);
            }
            if first + at >= BINDINGS_MAX {
                return Err(XmlError::TooManyNamespaces);
            }
        }
        Ok(())
    }

    /// Refuses two of the same attributes and unbound prefixes; the first declaration of the tag is the one at
    /// `declared`.
    fn check_attributes(&self, declared: usize) -> Result<(), XmlError> {
        let bound = self.check_bindings(declared);
        let mut attributes = self.attributes.iter();
        let wrong = if bound.is_ok() && attributes.any(|attribute| attribute.prefix.is_some()) {
            // Attributes of one prefix are of one namespace, so that these need not be compared by prefix. The
            // namespaces are looked up once: there may be many to search.
            let named = self.attributes.iter().map(|attribute| {
                let prefix = attribute.prefix;
                (
                    attribute.name,
                    prefix.map(|prefix| self.resolve(Some(prefix))),
                )
            });
            let named: SmallVec<[_; ATTRIBUTES_MOSTLY]> = named.collect();
            named.iter().any(|(_, namespace)| *namespace == Some(None)) || has_twins(named.iter())
        } else {
            let attributes = self.attributes.iter();
            has_twins(attributes.map(|attribute| (attribute.name, attribute.prefix)))
        };
        match wrong {
            true => Err(XmlError::NotWellFormed),
            false => bound,
        }
    }
}

/// Something of a prefix that differs between most of them and is quicker to compare: its beginning, after a one.
fn key(prefix: Option<&str>) -> u64 {
    let beginning = prefix.unwrap_or_default().bytes().take(7);
    beginning.fold(u64::from(prefix.is_some()), |key, byte| {
        key << 8 | u64::from(byte)
    })
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use quick_xml::Reader;
    use quick_xml::events::Event as Raw;

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
                Event::Text => seen += &events.take_piece(),
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
        check("<a b='1\t>'/>", "({jabber:server}a {}b=1 >:)");
        check("<a b='1\n/>'></a>", "({jabber:server}a {}b=1 />:)");
    }

    #[test]
    fn a_tag_reads_alike_in_any_form() {
        let expected = "({x}a {}b=1 {y}c=2:({y}d {}e=:)({x}f:({z}g:))({x}h:))";
        check(
            "<a xmlns='x' xmlns:p='y' b='1' p:c=\"2\"><p:d e=''/><f><g xmlns='z'/></f><h></h></a>",
            expected,
        );
        check(
            "<a  xmlns='x'\txmlns:p='y'\nb='1' p:c = \"2\" ><p:d e='' /><f ><g xmlns= 'z'/></f\n><h\n></h></a>",
            expected,
        );
        // Of what was taken before the tag turned out to be no plain one nothing is left.
        check(
            "<a xmlns='x' xmlns:p='y' b='1' p:c='&#50;'><p:d e='' /><f><g xmlns='&#122;'/></f><h /></a>",
            expected,
        );
        check_error("<a><p:b xmlns:p='x' c='&x;'/></a>", XmlError::RestrictedXml);
        check_error("<a><b c='&x;' d='", XmlError::NotWellFormed);
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
            "<a b='1< c='2'/>",
            "<a b='1& c='2'/>",
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
            // End tags.
            "<a></b>",
            "<a></ab>",
            "<ab></a>",
            "<a:b xmlns:a='x'></b>",
            "<b xmlns:a='x'></a:b>",
            "<a xmlns:p='x' xmlns:q='x'><p:b></q:b></a>",
            "<a></ a>",
            "<a></\na>",
            "<a></a/>",
            "<a></a x>",
            "<a></a b='>'>",
            "<a></a",
            "<a></a ",
            "<a></",
            "<a></>",
            "<a><b></a></b>",
            "<a></a></a>",
            "<a/></a>",
            "<a><b/></b></a>",
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
        // Prefixes that begin alike, and one that is the beginning of another.
        let alike = "xmlns:prefixes='x' xmlns:prefixed='y' xmlns:prefix='z'";
        let unit = format!("<a {alike} prefixes:a='' prefixed:a='' prefix:a=''/>");
        assert_eq!(
            read(&unit),
            Ok("({jabber:server}a {x}a= {y}a= {z}a=:)".to_owned())
        );
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

    /// Whether quick-xml alone finds that all tags match.
    fn tags_match(unit: &str) -> bool {
        let mut reader = Reader::from_str(unit);
        let mut depth = 0;
        loop {
            match reader.read_event() {
                Ok(Raw::Start(_)) => depth += 1,
                Ok(Raw::End(_)) => depth -= 1,
                Ok(Raw::Eof) => return depth == 0,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    fn any_tag() -> impl Strategy<Value = &'static str> {
        let usual = [
            "<a>",
            "</a>",
            "</a \t\r\n>",
            "<ab>",
            "</ab>",
            "<p:a b='>'>",
            "</p:a>",
            "<a:a >",
            "</a:a >",
            "<a/>",
        ];
        let odd = [
            "</ a>",
            "</a b=''>",
            "</>",
            "</a/>",
            "x",
            "&amp;",
            "</r>",
            "</A>",
        ];
        prop_oneof![
            12 => prop::sample::select(usual.to_vec()),
            1 => prop::sample::select(odd.to_vec()),
        ]
    }

    /// What opens and what closes it, around whatever is in between.
    fn any_content() -> impl Strategy<Value = String> {
        let leaf = prop::collection::vec(any_tag(), 0..3).prop_map(|tags| tags.concat());
        let pairs = vec![
            ["<a>", "</a>"],
            ["<ab>", "</ab\n>"],
            ["<p:a b='/>'>", "</p:a>"],
            ["<a:a>", "</a:a>"],
        ];
        let pair = prop::sample::select(pairs);
        leaf.prop_recursive(6, 24, 3, move |inner| {
            (pair.clone(), prop::collection::vec(inner, 0..3))
                .prop_map(|([open, close], inner)| [open, &inner.concat(), close].concat())
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn end_tags_match_as_quick_xml_matches_them(content in any_content()) {
            let unit = format!("<r xmlns:p='x' xmlns:a='x'>{content}</r>");
            prop_assert_eq!(read(&unit).is_ok(), tags_match(&unit), "{}", unit);
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
