//! A stream as quick-xml alone reads it, all of it at once.

use std::ops::Range;

use quick_xml::events::{BytesStart, Event};
use quick_xml::name::ResolveResult;
use quick_xml::{NsReader, XmlVersion};

use crate::xml::Element;

/// An element.
#[derive(Default)]
pub(super) struct Tree {
    name: String,
    namespace: String,
    /// Attributes without prefix.
    attributes: Vec<(String, String)>,
    /// The element's own text.
    pub(super) text: String,
    pub(super) children: Vec<Tree>,
}

impl Tree {
    pub(super) fn is(&self, name: &str, namespace: &str) -> bool {
        self.name == name && self.namespace == namespace
    }

    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        let mut attributes = self.attributes.iter();
        attributes
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    pub(super) fn child(&self, name: &str, namespace: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.is(name, namespace))
    }

    fn of(tag: &BytesStart<'_>, namespace: &ResolveResult<'_>) -> Self {
        let attributes = tag
            .attributes()
            .map(|attribute| attribute.expect("quick-xml reads the attribute"))
            .filter(|attribute| attribute.key.prefix().is_none())
            .filter(|attribute| attribute.key.as_namespace_binding().is_none())
            .map(|attribute| {
                let value = attribute.normalized_value(XmlVersion::Implicit1_0);
                let value = value.expect("quick-xml reads the value");
                (attribute.key.as_ref().to_owned(), value.into_owned())
            })
            .collect();
        Self {
            name: tag.local_name().as_ref().to_owned(),
            namespace: match namespace {
                ResolveResult::Bound(namespace) => namespace_name(namespace.as_ref()),
                ResolveResult::Unbound => String::new(),
                ResolveResult::Unknown(_) => panic!("quick-xml knows no such prefix"),
            },
            attributes,
            ..Self::default()
        }
    }
}

/// quick-xml takes a namespace's name as it is written; it is an attribute value like others.
fn namespace_name(raw: &str) -> String {
    let plain = raw.replace("\r\n", " ").replace(['\r', '\n', '\t'], " ");
    quick_xml::escape::unescape(&plain)
        .expect("quick-xml reads the value")
        .into_owned()
}

/// The children of the stream element, which may be open at the end, and where they stand.
pub(super) fn children(stream: &str) -> Vec<(Range<usize>, Tree)> {
    let mut reader = NsReader::from_str(stream);
    let mut found = Vec::new();
    let mut open: Vec<(usize, Tree)> = Vec::new();
    loop {
        let before = usize::try_from(reader.buffer_position()).unwrap();
        let (namespace, event) = reader.read_resolved_event().expect("quick-xml reads it");
        let ended = match event {
            Event::Start(tag) => {
                let tree = Tree::of(&tag, &namespace);
                open.push((before, tree));
                None
            }
            Event::Empty(tag) => Some((before, Tree::of(&tag, &namespace))),
            Event::End(_) => open.pop(),
            Event::Text(text) => {
                if let Some((_, top)) = open.last_mut() {
                    let text = text.into_inner();
                    top.text += &text.replace("\r\n", "\n").replace('\r', "\n");
                }
                None
            }
            Event::CData(text) => {
                if let Some((_, top)) = open.last_mut() {
                    let text = text.into_inner();
                    top.text += &text.replace("\r\n", "\n").replace('\r', "\n");
                }
                None
            }
            Event::GeneralRef(reference) => {
                let text = match reference.resolve_char_ref().expect("it is a character") {
                    Some(c) => c.to_string(),
                    None => quick_xml::escape::resolve_predefined_entity(&reference.into_inner())
                        .expect("it is one of the five")
                        .to_owned(),
                };
                if let Some((_, top)) = open.last_mut() {
                    top.text += &text;
                }
                None
            }
            // White space may come before it, which keeps a connection open.
            Event::Decl(_) if open.is_empty() => None,
            Event::Eof => return found,
            other => panic!("quick-xml sees {other:?}"),
        };
        if let Some((start, tree)) = ended {
            let after = usize::try_from(reader.buffer_position()).unwrap();
            match open.as_mut_slice() {
                [] => return found,
                [_] => found.push((start..after, tree)),
                [.., (_, parent)] => parent.children.push(tree),
            }
        }
    }
}

/// Panics unless both say the same.
pub(super) fn check_same(element: &Element, tree: &Tree) {
    assert!(element.is(&tree.name, &tree.namespace));
    assert_eq!(element.text(), tree.text.as_str());
    for (name, value) in &tree.attributes {
        assert_eq!(element.attribute(name), Some(value.as_str()));
    }
    assert_eq!(element.elements().count(), tree.children.len());
    for (element, tree) in element.elements().zip(&tree.children) {
        check_same(element, tree);
    }
}
