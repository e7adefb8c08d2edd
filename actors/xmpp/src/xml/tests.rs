//! The modules of `xml` together, on recorded streams and on generated ones.

use messages::Disclosure;
use proptest::prelude::*;
use quick_xml::NsReader;
use quick_xml::events::Event;
use quick_xml::name::ResolveResult;

use super::header::StreamHeader;
use super::publish::{self, Read};
use super::splitter::{Limits, Splitter, Unit};
use super::{Element, Namespaces, XmlError, ns};

const LIMITS: Limits = Limits {
    stanza_bytes_max: 65_536,
    tag_bytes_max: 8192,
    name_bytes_max: 256,
    attributes_max: 64,
    namespaces_max: 256,
    markup_max: 2048,
    depth_max: 32,
};

/// Reads a stream as a session does and returns its elements.
fn read_stream(mut stream: &[u8]) -> Result<(Namespaces, Vec<String>), XmlError> {
    let mut splitter = Splitter::new(LIMITS);
    let mut namespaces = Namespaces::default();
    let mut elements = Vec::new();
    loop {
        let len = match splitter.next(stream)? {
            Unit::Incomplete => return Ok((namespaces, elements)),
            Unit::Header(len) => {
                namespaces = StreamHeader::read(&stream[..len])?.namespaces;
                len
            }
            Unit::Element(len) => {
                elements.push(super::utf8(&stream[..len])?.to_owned());
                len
            }
            Unit::Whitespace(len) | Unit::Close(len) => len,
        };
        stream = &stream[len..];
    }
}

/// What a stanza is for the session.
fn kind(stanza: &str, namespaces: &Namespaces) -> String {
    match publish::read(stanza, namespaces, Disclosure::BodyAndSender).unwrap() {
        Read::Publish(publish) => format!(
            "{} -> {}: {} {} {:?} {}",
            publish.head.from,
            publish.head.to,
            publish.node.as_str(),
            publish.secret.map_or("none".to_owned(), |secret| {
                secret.as_str().chars().take(8).collect()
            }),
            publish.hint.message_count,
            publish.hint.has_body,
        ),
        Read::Malformed(_) => "malformed".to_owned(),
        Read::Other => {
            let element = Element::read(stanza, namespaces).unwrap();
            let inner = element.elements().next().map_or("", Element::name);
            format!("{} {inner}", element.name())
        }
    }
}

#[track_caller]
fn check_recorded(stream: &str, expected: &[&str]) {
    let (namespaces, elements) = read_stream(stream.as_bytes()).unwrap();
    let kinds: Vec<_> = elements
        .iter()
        .map(|element| kind(element, &namespaces))
        .collect();
    assert_eq!(kinds, expected);
}

#[test]
fn a_recorded_stream_of_prosody() {
    check_recorded(
        include_str!("fixtures/prosody.xml"),
        &[
            "result ",
            "iq command",
            "prosody2.test -> push.test: 35AA2E1B-0A02-4C38-A3F3-D8AFEE9231A0 780a1559 Some(1) true",
        ],
    );
}

#[test]
fn a_recorded_stream_of_ejabberd() {
    check_recorded(
        include_str!("fixtures/ejabberd.xml"),
        &[
            "iq command",
            "ejabberd.test -> push.test: F585C139-9B3E-4018-9F73-44B4F44B04BB dc44242b None false",
            "ejabberd.test -> push.test: F585C139-9B3E-4018-9F73-44B4F44B04BB dc44242b None true",
        ],
    );
}

/// A generated element, independent of how it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tree {
    namespace: String,
    name: String,
    attributes: Vec<(String, String)>,
    children: Vec<Child>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Child {
    Tree(Tree),
    Text(String),
}

/// Choices of the writer: prefix or default namespace, quotes, blanks, empty tags, references.
struct Choices<'a>(&'a [u8], usize);

impl Choices<'_> {
    fn next(&mut self) -> u8 {
        self.1 += 1;
        self.0[self.1 % self.0.len()]
    }

    fn blank(&mut self) -> &'static str {
        [" ", "\n", "\t ", "  "][usize::from(self.next() % 4)]
    }

    fn escape(&mut self, text: &str) -> String {
        text.chars()
            .map(|c| match c {
                '&' => "&amp;".to_owned(),
                '<' => "&lt;".to_owned(),
                '\'' => "&apos;".to_owned(),
                '"' => "&quot;".to_owned(),
                '\t' | '\n' | '\r' | '>' => format!("&#{};", u32::from(c)),
                c if self.next() < 20 => format!("&#x{:X};", u32::from(c)),
                c => c.to_string(),
            })
            .collect()
    }
}

fn write_tree(tree: &Tree, choices: &mut Choices<'_>) -> String {
    let prefix = match choices.next() % 3 {
        0 => "p:",
        1 if tree.namespace == ns::SERVER => "",
        1 if tree.namespace == ns::DIALBACK => "db:",
        _ => "d",
    };
    let (name, declaration) = match prefix {
        "p:" => (format!("p:{}", tree.name), Some("xmlns:p")),
        "db:" => (format!("db:{}", tree.name), None),
        // The default namespace may be another one here, so it is always declared.
        _ => (tree.name.clone(), Some("xmlns")),
    };
    let mut attributes = tree.attributes.clone();
    if let Some(declaration) = declaration {
        let at = usize::from(choices.next()) % (attributes.len() + 1);
        attributes.insert(at, (declaration.to_owned(), tree.namespace.clone()));
    }
    let mut out = format!("<{name}");
    for (key, value) in &attributes {
        let quote = ['\'', '"'][usize::from(choices.next() % 2)];
        let (before, blank) = (choices.blank(), ["", " "][usize::from(choices.next() % 2)]);
        // quick-xml alone takes namespace names as they are written.
        let value = match key.starts_with("xmlns") {
            true => value.clone(),
            false => choices.escape(value),
        };
        out += &format!("{before}{key}{blank}={blank}{quote}{value}{quote}");
    }
    if tree.children.is_empty() && choices.next().is_multiple_of(2) {
        return out + "/>";
    }
    out += ">";
    for child in &tree.children {
        out += &match child {
            Child::Tree(tree) => write_tree(tree, choices),
            Child::Text(text) => choices.escape(text),
        };
    }
    out + &format!("</{name}>")
}

fn text() -> impl Strategy<Value = String> {
    "[a-z<>&'\" \\]\\t\\n\u{e9}\u{1f600}]{1,12}"
}

fn namespace() -> impl Strategy<Value = String> {
    prop::sample::select(vec![ns::SERVER, ns::DIALBACK, ns::FORMS, "urn:x"]).prop_map(str::to_owned)
}

fn tree() -> impl Strategy<Value = Tree> {
    let head = || {
        let attributes = prop::collection::btree_map("[a-w][a-z0-9.-]{0,5}", text(), 0..4);
        (namespace(), "[a-z_\u{e9}][a-z0-9._-]{0,6}", attributes)
    };
    let leaf = head().prop_map(|(namespace, name, attributes)| Tree {
        namespace,
        name,
        attributes: attributes.into_iter().collect(),
        children: Vec::new(),
    });
    leaf.prop_recursive(4, 24, 5, move |inner| {
        let child = prop_oneof![inner.prop_map(Child::Tree), text().prop_map(Child::Text),];
        (head(), prop::collection::vec(child, 0..5)).prop_map(
            |((namespace, name, attributes), children)| Tree {
                namespace,
                name,
                attributes: attributes.into_iter().collect(),
                children: joined(children),
            },
        )
    })
}

/// Neighbouring texts are one text.
fn joined(children: Vec<Child>) -> Vec<Child> {
    let mut out: Vec<Child> = Vec::new();
    for child in children {
        match (out.last_mut(), child) {
            (Some(Child::Text(last)), Child::Text(text)) => last.push_str(&text),
            (_, child) => out.push(child),
        }
    }
    out
}

/// The tree that an element holds. It keeps the order of elements, and their text joined.
fn tree_of(element: &Element, like: &Tree) -> Tree {
    let mut elements = element.elements();
    let children = like.children.iter().filter_map(|child| match child {
        Child::Tree(like) => elements
            .next()
            .map(|inner| Child::Tree(tree_of(inner, like))),
        Child::Text(text) => Some(Child::Text(text.clone())),
    });
    let children: Vec<_> = children.collect();
    let whole: String = like
        .children
        .iter()
        .map(|child| match child {
            Child::Text(text) => text.as_str(),
            Child::Tree(_) => "",
        })
        .collect();
    assert_eq!(element.text(), whole.as_str());
    assert!(elements.next().is_none());
    Tree {
        namespace: element.namespace().to_owned(),
        name: element.name().to_owned(),
        attributes: (like.attributes.iter())
            .filter_map(|(name, _)| Some((name.clone(), element.attribute(name)?.to_owned())))
            .collect(),
        children,
    }
}

/// The children of the stream element as quick-xml alone sees them, reading the whole stream at once.
fn oracle(stream: &str) -> Vec<Tree> {
    let mut reader = NsReader::from_str(stream);
    let mut open: Vec<Tree> = Vec::new();
    loop {
        let (namespace, event) = reader.read_resolved_event().unwrap();
        let namespace = match namespace {
            ResolveResult::Bound(namespace) => namespace.into_inner().to_owned(),
            _ => String::new(),
        };
        let start = |start: &quick_xml::events::BytesStart<'_>| Tree {
            namespace,
            name: start.local_name().as_ref().to_owned(),
            attributes: start
                .attributes()
                .map(Result::unwrap)
                .filter(|attribute| attribute.key.as_namespace_binding().is_none())
                .map(|attribute| {
                    let value = attribute.normalized_value(quick_xml::XmlVersion::Implicit1_0);
                    (
                        attribute.key.as_ref().to_owned(),
                        value.unwrap().into_owned(),
                    )
                })
                .collect(),
            children: Vec::new(),
        };
        let push = |open: &mut Vec<Tree>, child| open.last_mut().unwrap().children.push(child);
        match event {
            Event::Start(tag) => open.push(start(&tag)),
            Event::Empty(tag) => {
                let tree = start(&tag);
                push(&mut open, Child::Tree(tree));
            }
            Event::End(_) => {
                let tree = open.pop().unwrap();
                if open.is_empty() {
                    let children = tree.children.into_iter();
                    let trees = children.filter_map(|child| match child {
                        Child::Tree(tree) => Some(tree),
                        Child::Text(_) => None,
                    });
                    return trees.collect();
                }
                push(&mut open, Child::Tree(tree));
            }
            Event::Text(text) if !open.is_empty() => {
                push(&mut open, Child::Text(text.into_inner().into_owned()));
            }
            Event::GeneralRef(reference) => {
                let text = match reference.resolve_char_ref().unwrap() {
                    Some(c) => c.to_string(),
                    None => {
                        let name = reference.into_inner();
                        quick_xml::escape::resolve_predefined_entity(&name)
                            .unwrap()
                            .to_owned()
                    }
                };
                push(&mut open, Child::Text(text));
            }
            Event::Text(_) | Event::Decl(_) => {}
            other => panic!("{other:?}"),
        }
        if let Some(top) = open.last_mut() {
            top.children = joined(std::mem::take(&mut top.children));
        }
    }
}

const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:server' \
    xmlns:stream='http://etherx.jabber.org/streams' xmlns:db='jabber:server:dialback' version='1.0'>";

/// Pieces that documents, good and bad, are made of.
fn soup() -> impl Strategy<Value = String> {
    let pieces = vec![
        "<",
        ">",
        "/",
        "</",
        "/>",
        "'",
        "\"",
        "=",
        " ",
        "\n",
        "\r",
        "&",
        ";",
        ":",
        "?",
        "!",
        "]]>",
        "a",
        "p:a",
        "xmlns",
        "xmlns:p",
        "xmlns='x'",
        " xmlns:p='x'",
        " p:b='1'",
        " b='1'",
        "&amp;",
        "&#x1;",
        "&#65;",
        "&x;",
        "<a>",
        "</a>",
        "<a/>",
        "<iq type='set' from='a' to='b' id='c'>",
        "<pubsub xmlns='http://jabber.org/protocol/pubsub'>",
        "<publish node='n'>",
        "<item>",
        "</iq>",
        "</pubsub>",
        "</publish>",
        "\u{1}",
        "\u{ffff}",
        "\u{e9}",
        "<!--",
        "-->",
        "<![CDATA[",
        "<?xml version='1.0'?>",
        "stream:stream",
    ];
    prop::collection::vec(prop::sample::select(pieces), 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn generated_streams_read_as_quick_xml_reads_them(
        trees in prop::collection::vec(tree(), 0..4),
        choices in prop::collection::vec(any::<u8>(), 1..64),
    ) {
        let mut choices = Choices(&choices, 0);
        let mut stream = HEADER.to_owned();
        for tree in &trees {
            stream += &write_tree(tree, &mut choices);
            stream += ["", " ", "\n\n"][usize::from(choices.next() % 3)];
        }
        stream += "</stream:stream>";
        let (namespaces, elements) = read_stream(stream.as_bytes()).unwrap();
        prop_assert_eq!(elements.len(), trees.len());
        for (element, tree) in elements.iter().zip(&trees) {
            let element = Element::read(element, &namespaces).unwrap();
            prop_assert_eq!(&tree_of(&element, tree), tree);
        }
        prop_assert_eq!(oracle(&stream), trees);
    }

    #[test]
    fn what_is_accepted_quick_xml_accepts(document in soup()) {
        crate::fuzzing::splitter(format!("{HEADER}<a>{document}</a>").as_bytes());
    }

    #[test]
    fn any_text_is_survived(document in prop_oneof![soup(), "\\PC{0,60}", ".{0,60}"]) {
        let namespaces = Namespaces::server();
        let read = Element::read(&document, &namespaces);
        let _ = StreamHeader::read(document.as_bytes());
        let pass = publish::read(&document, &namespaces, Disclosure::BodyAndSender);
        // The short way never accepts what the general one refuses.
        if matches!(pass, Ok(Read::Publish(_) | Read::Malformed(_))) {
            prop_assert!(read.is_ok());
        }
        let _ = read_stream(document.as_bytes());
        let _ = read_stream(format!("{HEADER}{document}").as_bytes());
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = StreamHeader::read(&bytes);
        let _ = read_stream(&bytes);
        let _ = read_stream(&[HEADER.as_bytes(), &bytes].concat());
    }
}
