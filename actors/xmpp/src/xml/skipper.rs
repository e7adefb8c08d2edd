//! Finds the end of a unit that is beyond a limit, without keeping any of it.

use super::XmlError;

/// What follows `<!` in a CDATA section (XML 1.0 §2.7).
const CDATA: &[u8] = b"[CDATA[";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// In character data, or before the unit.
    #[default]
    Text,
    /// Behind `<`.
    Open,
    /// In a start tag; whether the last byte was `/`.
    Tag { slash: bool },
    /// In an attribute value with this quote.
    Quoted(u8),
    /// In an end tag.
    End,
    /// Behind `<!` and so many bytes of what opens a CDATA section.
    Opening(usize),
    /// In a CDATA section, behind so many `]`, of which two count.
    CData(u8),
}

/// Reads one unit from its first byte on, in pieces of any size.
#[derive(Debug, Default)]
pub(crate) struct Skipper {
    state: State,
    depth: u64,
}

impl Skipper {
    /// Takes the next bytes. Returns how many of them are of the unit if it ends within them.
    ///
    /// # Errors
    /// [`XmlError::RestrictedXml`]: the end of a comment or the like is not looked for.
    pub(crate) fn skip(&mut self, bytes: &[u8]) -> Result<Option<usize>, XmlError> {
        for (at, byte) in bytes.iter().enumerate() {
            self.state = match (self.state, byte) {
                (State::Text, b'<') => State::Open,
                (State::Text, _) => State::Text,
                (State::Open, b'/') => State::End,
                (State::Open, b'!') if self.depth > 0 => State::Opening(0),
                (State::Open, b'!' | b'?') => return Err(XmlError::RestrictedXml),
                (State::Open, _) => State::Tag { slash: false },
                (State::Tag { .. }, b'\'' | b'"') => State::Quoted(*byte),
                (State::Tag { slash }, b'>') => {
                    self.depth += u64::from(!slash);
                    State::Text
                }
                (State::Tag { .. }, byte) => State::Tag {
                    slash: *byte == b'/',
                },
                (State::Quoted(quote), byte) if *byte == quote => State::Tag { slash: false },
                (State::Quoted(quote), _) => State::Quoted(quote),
                (State::End, b'>') => {
                    self.depth = self.depth.saturating_sub(1);
                    State::Text
                }
                (State::End, _) => State::End,
                (State::Opening(seen), byte) if CDATA.get(seen) != Some(byte) => {
                    return Err(XmlError::RestrictedXml);
                }
                (State::Opening(seen), _) if seen + 1 == CDATA.len() => State::CData(0),
                (State::Opening(seen), _) => State::Opening(seen + 1),
                (State::CData(2), b'>') => State::Text,
                (State::CData(brackets), b']') => State::CData(2.min(brackets + 1)),
                (State::CData(_), _) => State::CData(0),
            };
            if *byte == b'>' && self.state == State::Text && self.depth == 0 {
                return Ok(Some(at + 1));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<Option<usize>, XmlError>) {
        assert_eq!(Skipper::default().skip(text.as_bytes()), expected, "{text}");
    }

    #[test]
    fn ends() {
        check("<a/><b/>", Ok(Some(4)));
        check("<a></a><b/>", Ok(Some(7)));
        check("<a b='>/' c=\"'/>\"/>x", Ok(Some(19)));
        check("<a><a/>></a >", Ok(Some(13)));
        check("<a b='/'>text</a>", Ok(Some(17)));
        check("<a><b></b>", Ok(None));
        check("<a><![CDATA[</a>]]]>]]></a>x", Ok(Some(27)));
        check("<a><![CDATA[]>]]", Ok(None));
        check("<a><!-- </a> -->", Err(XmlError::RestrictedXml));
        check("<a><![CDATX", Err(XmlError::RestrictedXml));
        check("<![CDATA[x]]>", Err(XmlError::RestrictedXml));
    }

    proptest! {
        #[test]
        fn ends_where_the_splitter_does_in_pieces_of_any_size(
            text in "<a( b='[>/\"]{0,3}')?>(x?<b(/>| c=\"[>']\"></b>|><!\\[CDATA\\[[<>x\\]]{0,3}\\]\\]></b>)){0,5}</a ?>",
            piece in 1..9usize,
        ) {
            let mut skipper = Skipper::default();
            let whole = format!("{text}<next/>");
            let mut seen = 0;
            let mut found = None;
            for bytes in whole.as_bytes().chunks(piece) {
                if let Some(len) = skipper.skip(bytes).unwrap() {
                    found = Some(seen + len);
                    break;
                }
                seen += bytes.len();
            }
            prop_assert_eq!(found, Some(text.len()));
        }
    }
}
