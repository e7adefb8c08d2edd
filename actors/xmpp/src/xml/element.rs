//! A small owned tree, for all that is no publish.

use std::borrow::Cow;
use std::sync::Arc;

use messages::redacted_debug;

use super::events::{Event, Events};
use super::{Namespaces, XmlError};

/// An element with everything in it.
#[derive(PartialEq, Eq)]
pub(crate) struct Element {
    name: Box<str>,
    namespace: Arc<str>,
    attributes: Vec<Attribute>,
    children: Vec<Node>,
}

#[derive(PartialEq, Eq)]
struct Attribute {
    /// None for an attribute without prefix.
    namespace: Option<Arc<str>>,
    /// Name and value, one behind the other: one allocation.
    text: Box<str>,
    /// Bytes of the name.
    name: usize,
}

impl Attribute {
    fn value_of(&self, name: &str) -> Option<&str> {
        let is_it = self.namespace.is_none() && self.name == name.len();
        is_it.then(|| self.text.strip_prefix(name)).flatten()
    }
}

#[derive(PartialEq, Eq)]
enum Node {
    Element(Element),
    Text(String),
}

// Stanzas are personal data.
redacted_debug!(Element);

impl Element {
    /// Reads a whole unit.
    ///
    /// # Errors
    /// [`XmlError::NotWellFormed`], [`XmlError::RestrictedXml`] or [`XmlError::TooManyNamespaces`].
    pub(crate) fn read(unit: &str, namespaces: &Namespaces) -> Result<Self, XmlError> {
        let mut events = Events::new(unit, namespaces)?;
        events.root()?;
        let mut element = Self::of(&events);
        let mut parents = Vec::new();
        loop {
            match events.next()? {
                Event::Start => {
                    parents.push(std::mem::replace(&mut element, Self::of(&events)));
                }
                Event::Text => element.push_text(&events.take_piece()),
                Event::End => match parents.pop() {
                    Some(mut parent) => {
                        std::mem::swap(&mut element, &mut parent);
                        element.children.push(Node::Element(parent));
                    }
                    None => break,
                },
                Event::Eof => return Err(XmlError::NotWellFormed),
            }
        }
        events.drain()?;
        Ok(element)
    }

    /// The local name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The namespace, empty for none.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Whether the element has this name and namespace.
    pub(crate) fn is(&self, name: &str, namespace: &str) -> bool {
        *self.name == *name && *self.namespace == *namespace
    }

    /// An attribute without prefix.
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        let mut attributes = self.attributes.iter();
        attributes.find_map(|attribute| attribute.value_of(name))
    }

    /// The child elements.
    pub(crate) fn elements(&self) -> impl Iterator<Item = &Self> {
        self.children.iter().filter_map(|child| match child {
            Node::Element(element) => Some(element),
            Node::Text(_) => None,
        })
    }

    /// The first child element with this name and namespace.
    pub(crate) fn child(&self, name: &str, namespace: &str) -> Option<&Self> {
        self.elements().find(|child| child.is(name, namespace))
    }

    /// The element and everything in it, in no particular order.
    pub(crate) fn descendants(&self) -> impl Iterator<Item = &Self> {
        let mut open = vec![self];
        std::iter::from_fn(move || {
            let next = open.pop()?;
            open.extend(next.elements());
            Some(next)
        })
    }

    /// The element's own text.
    pub(crate) fn text(&self) -> Cow<'_, str> {
        let mut whole = Cow::Borrowed("");
        for child in &self.children {
            match child {
                Node::Text(text) => whole += text.as_str(),
                Node::Element(_) => {}
            }
        }
        whole
    }

    /// The element that began last, still without content.
    fn of(events: &Events<'_, '_>) -> Self {
        let attributes = events.attributes().iter().map(|attribute| Attribute {
            namespace: attribute.prefix.map(|prefix| events.shared(Some(prefix))),
            text: [attribute.name, &attribute.value].concat().into(),
            name: attribute.name.len(),
        });
        Self {
            name: events.name().into(),
            namespace: events.shared(events.prefix()),
            attributes: attributes.collect(),
            children: Vec::new(),
        }
    }

    fn push_text(&mut self, text: &str) {
        match self.children.last_mut() {
            Some(Node::Text(last)) => last.push_str(text),
            _ => self.children.push(Node::Text(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::ns;

    fn read(unit: &str) -> Element {
        Element::read(unit, &Namespaces::server()).unwrap()
    }

    #[test]
    fn a_form() {
        let element = read(
            "<iq id='1' xml:lang='en'> <x xmlns='jabber:x:data'><y/>a<y/>&lt;b</x><x/><x xmlns='jabber:x:data'/></iq>",
        );
        assert!(element.is("iq", ns::SERVER));
        assert_eq!((element.name(), element.namespace()), ("iq", ns::SERVER));
        assert_eq!(element.attribute("id"), Some("1"));
        assert_eq!(element.attribute("lang"), None);
        assert_eq!(element.elements().count(), 3);
        let form = element.child("x", ns::FORMS).unwrap();
        assert_eq!(form.text(), "a<b");
        assert_eq!(form.elements().count(), 2);
        assert!(element.child("x", ns::SERVER).is_some());
        assert!(element.child("y", ns::FORMS).is_none());
        let mut names: Vec<_> = element.descendants().map(Element::name).collect();
        names.sort_unstable();
        assert_eq!(names, ["iq", "x", "x", "x", "y", "y"]);
    }

    #[test]
    fn a_prefix_declared_again_or_only_here() {
        let result = "<db:result xmlns:db='jabber:server:dialback' to='push.test' from='jabberd.test'>656c9c50e2744e81b488e920e06dd85e78c239bd</db:result>";
        let element = Element::read(result, &Namespaces::default()).unwrap();
        assert!(element.is("result", ns::DIALBACK));
        assert_eq!(element.text(), "656c9c50e2744e81b488e920e06dd85e78c239bd");
        assert_eq!(read(result), element);
        let features = read(
            "<stream:features xmlns:stream='http://etherx.jabber.org/streams'><dialback xmlns='urn:xmpp:features:dialback'><required></required></dialback></stream:features>",
        );
        assert!(features.is("features", ns::STREAMS));
        let dialback = features
            .child("dialback", "urn:xmpp:features:dialback")
            .unwrap();
        assert!(
            dialback
                .child("required", "urn:xmpp:features:dialback")
                .is_some()
        );
    }

    /// Names are as long as a tag may be, and elements in them as short as `<a/>`.
    #[test]
    fn the_name_of_a_namespace_is_kept_once() {
        let long = "u".repeat(4000);
        let element = read(&format!(
            "<x xmlns='{long}' xmlns:p='{long}p' xmlns:q='urn:q'>\
             <a p:b=''/><a/><p:c/><c xmlns='urn:c'/><stream:d/></x>"
        ));
        let children: Vec<&Element> = element.elements().collect();
        assert_eq!(children.len(), 5);
        for child in &children[..2] {
            assert!(Arc::ptr_eq(&child.namespace, &element.namespace));
        }
        let prefixed = children[0].attributes[0].namespace.as_ref();
        assert!(Arc::ptr_eq(prefixed.unwrap(), &children[2].namespace));
        assert!(children[2].is("c", &format!("{long}p")));
        assert!(children[3].is("c", "urn:c"));
        assert!(children[4].is("d", ns::STREAMS));
        assert_eq!(children[0].attribute("b"), None);
    }

    #[test]
    fn attributes_are_told_apart_from_the_beginnings_of_others() {
        let element = read("<a id1='2' id='1' i='d'/>");
        for (name, value) in [
            ("id", Some("1")),
            ("id1", Some("2")),
            ("i", Some("d")),
            ("id12", None),
            ("", None),
        ] {
            assert_eq!(element.attribute(name), value, "{name}");
        }
    }

    #[test]
    fn nothing_of_it_is_shown() {
        assert_eq!(
            format!("{:?}", read("<iq id='secret'>secret</iq>")),
            "Element(..)"
        );
    }

    #[test]
    fn what_the_reader_refuses_is_refused() {
        let refused = |unit| Element::read(unit, &Namespaces::server()).unwrap_err();
        assert_eq!(refused("<a><b></a>"), XmlError::NotWellFormed);
        assert_eq!(refused("<a/><b/>"), XmlError::NotWellFormed);
        assert_eq!(refused("<a/><!-- -->"), XmlError::RestrictedXml);
    }
}
