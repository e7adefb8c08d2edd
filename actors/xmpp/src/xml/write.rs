//! Appends XML to a buffer. Elements are closed by construction and all text is escaped.

/// Appends an element whose content `content` appends, as an empty-element tag if that is nothing.
pub(crate) fn element(
    out: &mut Vec<u8>,
    name: &str,
    attributes: &[(&str, &str)],
    content: impl FnOnce(&mut Vec<u8>),
) {
    start(out, name, attributes);
    let inside = out.len();
    content(out);
    if out.len() == inside {
        out.truncate(inside.saturating_sub(1));
        out.extend_from_slice(b"/>");
        return;
    }
    out.extend_from_slice(b"</");
    out.extend_from_slice(name.as_bytes());
    out.push(b'>');
}

/// Appends an element without content.
pub(crate) fn empty(out: &mut Vec<u8>, name: &str, attributes: &[(&str, &str)]) {
    element(out, name, attributes, |_| {});
}

/// Appends character data.
pub(crate) fn text(out: &mut Vec<u8>, text: &str) {
    escape(out, text);
}

/// Appends a start tag, of a stream that stays open.
pub(crate) fn start(out: &mut Vec<u8>, name: &str, attributes: &[(&str, &str)]) {
    out.push(b'<');
    out.extend_from_slice(name.as_bytes());
    for (key, value) in attributes {
        out.push(b' ');
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(b"='");
        escape(out, value);
        out.push(b'\'');
    }
    out.push(b'>');
}

/// One escape table for text and attribute values: a parser gives back exactly `text`, with white space
/// that it would normalise kept as character references. What XML cannot carry at all becomes U+FFFD.
fn escape(out: &mut Vec<u8>, text: &str) {
    let mut rest = text;
    while let Some(at) = rest.bytes().position(is_special) {
        let Some((plain, tail)) = rest.split_at_checked(at) else {
            break;
        };
        out.extend_from_slice(plain.as_bytes());
        let mut chars = tail.chars();
        match chars.next() {
            Some('&') => out.extend_from_slice(b"&amp;"),
            Some('<') => out.extend_from_slice(b"&lt;"),
            Some('>') => out.extend_from_slice(b"&gt;"),
            Some('\'') => out.extend_from_slice(b"&apos;"),
            Some('"') => out.extend_from_slice(b"&quot;"),
            Some('\t') => out.extend_from_slice(b"&#9;"),
            Some('\n') => out.extend_from_slice(b"&#10;"),
            Some('\r') => out.extend_from_slice(b"&#13;"),
            Some('\u{ffff}' | '\u{fffe}' | '\0'..='\u{1f}') => {
                out.extend_from_slice("\u{fffd}".as_bytes());
            }
            Some(other) => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            None => break,
        }
        rest = chars.as_str();
    }
    out.extend_from_slice(rest.as_bytes());
}

/// Bytes that need a look: all that is escaped, and the lead byte of U+FFFE and U+FFFF.
const fn is_special(byte: u8) -> bool {
    matches!(byte, 0..=0x1f | b'&' | b'<' | b'>' | b'\'' | b'"' | 0xef)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::xml::{Element, Namespaces};

    #[track_caller]
    fn check(input: &str, expected: &str) {
        let mut out = Vec::new();
        text(&mut out, input);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn escaping() {
        check("", "");
        check("plain", "plain");
        check("a&b<c>d'e\"f", "a&amp;b&lt;c&gt;d&apos;e&quot;f");
        check("\t\n\r", "&#9;&#10;&#13;");
        check(
            "x\u{0}\u{1f}\u{fffe}\u{ffff}y",
            "x\u{fffd}\u{fffd}\u{fffd}\u{fffd}y",
        );
        check("f\u{ff41}r\u{e9}", "f\u{ff41}r\u{e9}");
    }

    #[test]
    fn elements() {
        let mut out = Vec::new();
        element(&mut out, "a", &[("b", "it's"), ("c", "")], |out| {
            empty(out, "d", &[]);
            text(out, "x<y");
        });
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "<a b='it&apos;s' c=''><d/>x&lt;y</a>"
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in "[\\t\\n\\r -\\u{d7ff}\\u{e000}-\\u{fffd}\\u{10000}-\\u{10ffff}]{0,40}") {
            let mut out = Vec::new();
            element(&mut out, "a", &[("b", &value)], |out| text(out, &value));
            let namespaces = Namespaces::default();
            let element = Element::read(std::str::from_utf8(&out).unwrap(), &namespaces).unwrap();
            prop_assert_eq!(element.attribute("b"), Some(value.as_str()));
            prop_assert_eq!(element.text(), value.as_str());
        }
    }
}
