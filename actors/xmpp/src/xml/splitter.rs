//! Cuts the receive buffer of a stream into units.
//!
//! The splitter looks at structure only (tags, quotes, depth) and holds every limit, so that nothing
//! beyond a limit is ever stored. Whether a unit is well-formed is for [`super::events`] to say.
//!
//! Tags that are short and all there, which is how they mostly come, are taken one by one in a loop. For all others
//! there are states, which can go on wherever the bytes end, and which alone say what is wrong.

use memchr::{memchr, memchr3, memmem};

use super::XmlError;
use super::word::{self, Word};

/// What opens a CDATA section, behind its `<` (XML 1.0 §2.7).
const CDATA: &[u8] = b"![CDATA[";
/// What closes it.
pub(super) const CDATA_END: &[u8] = b"]]>";

/// What ends a name or a tag mostly stands within so many bytes; setting out to search costs more than looking at
/// each of them.
const NEAR: usize = 32;

/// A tag of no more bytes is taken in one go, and so is a text before it. What is longer is looked at again.
const SHORT: usize = 256;

/// What one unit may be. Exceeding any of these is a `policy-violation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Most bytes of a unit. The receive buffer never has to be larger.
    pub(crate) stanza_bytes_max: usize,
    /// Most bytes of a tag, from `<` to `>`.
    pub(crate) tag_bytes_max: usize,
    /// Most bytes of an element's name.
    pub(crate) name_bytes_max: usize,
    /// Most attributes of a tag, namespace declarations among them.
    pub(crate) attributes_max: u32,
    /// Most namespace declarations of a unit.
    pub(crate) namespaces_max: u32,
    /// Most elements and attributes of a unit together.
    pub(crate) markup_max: u32,
    /// Most levels of elements; the stanza itself is the first.
    pub(crate) depth_max: u32,
}

#[cfg(any(test, fuzzing))]
impl Limits {
    /// What short inputs reach.
    pub(crate) const TIGHT: Self = Self {
        stanza_bytes_max: 200,
        tag_bytes_max: 60,
        name_bytes_max: 20,
        attributes_max: 3,
        namespaces_max: 4,
        markup_max: 12,
        depth_max: 4,
    };
}

/// What stands at the start of the buffer, with its length in bytes. The caller consumes that many
/// before it asks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// No whole unit yet: read more into the same buffer and ask again.
    Incomplete,
    /// A stream header, its XML declaration included.
    Header(usize),
    /// A whole child of the stream element.
    Element(usize),
    /// White space between units: a keepalive.
    Whitespace(usize),
    /// The closing tag of the stream.
    Close(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the start of a unit.
    Between,
    /// In the XML declaration.
    Declaration,
    /// Behind the XML declaration.
    Declared,
    /// In character data.
    Text,
    /// Behind `<`.
    Open,
    /// In the name of a start tag.
    Name,
    /// In a start tag.
    Tag,
    /// In an attribute value with this quote.
    Quoted(u8),
    /// In an end tag.
    End,
    /// In a CDATA section.
    CData,
}

/// A resumable state machine over one receive buffer. What is not taken in one go ([`SHORT`]) is looked at a few
/// times more, whatever is sent.
#[derive(Debug)]
pub(crate) struct Splitter {
    limits: Limits,
    /// Whether the next unit must be a stream header.
    header: bool,
    state: State,
    /// Bytes of the current unit already looked at.
    position: usize,
    /// Where the current tag began.
    tag_start: usize,
    /// Attributes of the current tag so far.
    attributes: u32,
    /// Where the next attribute of the current tag begins.
    attribute_start: usize,
    /// Namespace declarations of the current unit so far.
    namespaces: u32,
    /// Elements and attributes of the current unit so far.
    markup: u32,
    /// Open elements of the current unit.
    depth: u32,
}

enum Step {
    On,
    Starved,
    Done(Unit),
}

impl Splitter {
    /// Expects a stream header first.
    pub(crate) const fn new(limits: Limits) -> Self {
        Self {
            limits,
            header: true,
            state: State::Between,
            position: 0,
            tag_start: 0,
            attributes: 0,
            attribute_start: 0,
            namespaces: 0,
            markup: 0,
            depth: 0,
        }
    }

    /// Expects what stands within a stream.
    pub(crate) const fn within_stream(limits: Limits) -> Self {
        let mut splitter = Self::new(limits);
        splitter.header = false;
        splitter
    }

    /// Changes the limits, for instance once the peer is authenticated.
    pub(crate) const fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Expects a stream header again (RFC 6120 §4.3.3). The buffer starts anew as well.
    pub(crate) const fn restart(&mut self) {
        *self = Self::new(self.limits);
    }

    /// Expects the next unit at the start of the buffer: the one before was dropped.
    pub(crate) const fn begin(&mut self) {
        self.state = State::Between;
        self.position = 0;
    }

    /// Finds the unit at the start of `buffer`. Between two calls that return [`Unit::Incomplete`] the
    /// buffer may only grow at its end.
    ///
    /// # Errors
    /// Anything in [`XmlError`] that structure can show. The stream is over then.
    pub(crate) fn next(&mut self, buffer: &[u8]) -> Result<Unit, XmlError> {
        let unit = head(buffer, self.limits.stanza_bytes_max);
        loop {
            match self.step(unit)? {
                Step::On => {}
                Step::Starved if unit.len() >= self.limits.stanza_bytes_max => {
                    return Err(XmlError::StanzaTooBig);
                }
                Step::Starved => return Ok(Unit::Incomplete),
                Step::Done(found) => {
                    self.header &= !matches!(found, Unit::Header(_));
                    self.begin();
                    return Ok(found);
                }
            }
        }
    }

    fn step(&mut self, unit: &[u8]) -> Result<Step, XmlError> {
        match self.state {
            State::Between => self.between(unit),
            State::Declaration => self.declaration(unit),
            State::Declared => self.declared(unit),
            State::Text => self.text(unit),
            State::Open => self.open(unit),
            State::Name => self.name(unit),
            State::Tag => self.tag(unit),
            State::Quoted(quote) => self.quoted(unit, quote),
            State::End => self.end(unit),
            State::CData => Ok(self.cdata(unit)),
        }
    }

    fn between(&mut self, unit: &[u8]) -> Result<Step, XmlError> {
        let blank = leading_whitespace(unit);
        if blank > 0 {
            return Ok(Step::Done(Unit::Whitespace(blank)));
        }
        self.depth = 0;
        self.namespaces = 0;
        self.markup = 0;
        if !self.header {
            if let Some(end) = self.whole_tags(unit) {
                return Ok(Step::Done(Unit::Element(end)));
            }
            if self.depth > 0 {
                self.state = State::Text;
                return self.next_tag(unit);
            }
        }
        self.open_at(unit, 0)
    }

    fn declared(&mut self, unit: &[u8]) -> Result<Step, XmlError> {
        self.position += leading_whitespace(tail(unit, self.position));
        self.open_at(unit, self.position)
    }

    /// Takes the `<` that has to stand at `position`.
    fn open_at(&mut self, unit: &[u8], position: usize) -> Result<Step, XmlError> {
        match unit.get(position) {
            None => Ok(Step::Starved),
            Some(b'<') => {
                self.tag_start = position;
                self.go(State::Open, position + 1);
                self.open(unit)
            }
            Some(_) if self.header => Err(XmlError::NotWellFormed),
            Some(_) => Err(XmlError::BadFormat),
        }
    }

    fn text(&mut self, unit: &[u8]) -> Result<Step, XmlError> {
        if let Some(end) = self.whole_tags(unit) {
            return Ok(Step::Done(Unit::Element(end)));
        }
        self.next_tag(unit)
    }

    /// Goes to the next tag, which is none that [`Splitter::whole_tags`] takes.
    fn next_tag(&mut self, unit: &[u8]) -> Result<Step, XmlError> {
        match memchr(b'<', tail(unit, self.position)) {
            Some(at) => self.open_at(unit, self.position + at),
            None => Ok(self.starve(unit)),
        }
    }

    /// Goes past all short tags that are there from end to end and within every limit, up to the first that is not.
    /// Where the unit ends, if it does on the way.
    fn whole_tags(&mut self, unit: &[u8]) -> Option<usize> {
        loop {
            let rest = tail(unit, self.position);
            let text = match rest.first()? {
                b'<' => 0,
                _ if self.depth == 0 => return None,
                _ => word::find(head(rest, SHORT), |word| word.is(b'<'))?,
            };
            let tag = Tag::whole(tail(rest, text), &self.limits)?;
            self.count_whole(&tag)?;
            self.position += text + tag.len;
            if self.depth == 0 {
                return Some(self.position);
            }
        }
    }

    /// Counts a tag, unless that is more than may be.
    fn count_whole(&mut self, tag: &Tag) -> Option<()> {
        if tag.kind == Kind::End {
            self.depth = self.depth.checked_sub(1)?;
            return Some(());
        }
        let markup = self.markup + 1 + tag.attributes;
        let namespaces = self.namespaces + tag.namespaces;
        let fits = self.depth < self.limits.depth_max
            && tag.attributes <= self.limits.attributes_max
            && markup <= self.limits.markup_max
            && namespaces <= self.limits.namespaces_max;
        if !fits {
            return None;
        }
        self.markup = markup;
        self.namespaces = namespaces;
        self.depth += u32::from(tag.kind == Kind::Start);
        Some(())
    }

    fn open(&mut self, unit: &[u8]) -> Result<Step, XmlError> {
        match unit.get(self.position) {
            None => Ok(Step::Starved),
            Some(b'/') if self.header => Err(XmlError::NotWellFormed),
            Some(b'/') => {
                self.go(State::End, self.position + 1);
                self.end(unit)
            }
            Some(b'?') if self.header && self.tag_start == 0 => {
                Ok(self.go(State::Declaration, self.position + 1))
            }
            Some(b'!') if self.depth > 0 => self.open_cdata(unit),
            Some(b'!' | b'?') => Err(XmlError::RestrictedXml),
            Some(_) if self.depth >= self.limits.depth_max => Err(XmlError::TooDeep),
            Some(_) => {
                self.attributes = 0;
                self.count_markup()?;
                self.state = State::Name;
                self.name(unit)
            }
        }
    }

    /// Takes what opens a CDATA section. RFC 6120 §11.1 restricts comments, declarations and the like, not
    /// this, which is character data in another notation.
    fn open_cdata(&mut self, unit: &[u8]) -> Result<Step, XmlError> {
        let seen = tail(unit, self.position);
        if seen.starts_with(CDATA) {
            Ok(self.go(State::CData, self.position + CDATA.len()))
        } else if CDATA.starts_with(seen) {
            Ok(Step::Starved)
        } else {
            Err(XmlError::RestrictedXml)
        }
    }

    fn cdata(&mut self, unit: &[u8]) -> Step {
        match cdata_len(tail(unit, self.position)) {
            Some(len) => self.go(State::Text, self.position + len + CDATA_END.len()),
            None => {
                // The last two bytes may be the beginning of the end.
                let seen = unit.len().saturating_sub(CDATA_END.len() - 1);
                self.position = self.position.max(seen);
                Step::Starved
            }
        }
    }

    fn declaration(&mut self, unit: &[u8]) -> Result<Step, XmlError> {
        let Some(end) = self.find_in_tag(unit, |rest| memchr(b'>', rest))? else {
            return Ok(Step::Starved);
        };
        let declaration = head(unit, end);
        if !matches!(
            declaration.strip_prefix(b"<?xml"),
            Some([b' ' | b'\t' | b'\r' | b'\n', ..])
        ) {
            return Err(XmlError::RestrictedXml);
        }
        if declaration.last() != Some(&b'?') {
            return Err(XmlError::NotWellFormed);
        }
        Ok(self.go(State::Declared, end + 1))
    }

    fn name(&mut self, unit: &[u8]) -> Result<Step, XmlError> {
        let start = self.tag_start + 1;
        let longest = start.saturating_add(self.limits.name_bytes_max);
        let window = head(unit, longest.saturating_add(1));
        let rest = tail(window, self.position);
        match rest.iter().position(|byte| ends_name(*byte)) {
            Some(at) if self.position + at == start => Err(XmlError::NotWellFormed),
            Some(at) => {
                self.attribute_start = self.position + at;
                self.go(State::Tag, self.attribute_start);
                self.tag(unit)
            }
            None if window.len() > longest => Err(XmlError::NameTooLong),
            None => Ok(self.starve(window)),
        }
    }

    fn tag(&mut self, unit: &[u8]) -> Result<Step, XmlError> {
        let marks = |byte| matches!(byte, b'>' | b'\'' | b'"');
        let search = |rest: &[u8]| memchr3(b'>', b'\'', b'"', rest);
        loop {
            let Some(at) = self.find_in_tag(unit, |rest| find(rest, marks, search))? else {
                return Ok(Step::Starved);
            };
            match unit.get(at) {
                Some(b'>') => return self.start_tag(unit, at + 1),
                Some(_) if self.attributes >= self.limits.attributes_max => {
                    return Err(XmlError::TooManyAttributes);
                }
                Some(quote) => {
                    self.attributes += 1;
                    self.count_markup()?;
                    let name = tail(head(unit, at), self.attribute_start).trim_ascii_start();
                    self.namespaces += u32::from(name.starts_with(b"xmlns"));
                    if self.namespaces > self.limits.namespaces_max {
                        return Err(XmlError::TooManyNamespaces);
                    }
                    self.go(State::Quoted(*quote), at + 1);
                    if !self.close_quote(unit, *quote)? {
                        return Ok(Step::Starved);
                    }
                }
                None => return Ok(Step::Starved),
            }
        }
    }

    fn count_markup(&mut self) -> Result<(), XmlError> {
        self.markup += 1;
        match self.markup > self.limits.markup_max {
            true => Err(XmlError::TooMuchMarkup),
            false => Ok(()),
        }
    }

    fn quoted(&mut self, unit: &[u8], quote: u8) -> Result<Step, XmlError> {
        match self.close_quote(unit, quote)? {
            true => self.tag(unit),
            false => Ok(Step::Starved),
        }
    }

    /// Goes to the end of an attribute value. Whether it has come.
    fn close_quote(&mut self, unit: &[u8], quote: u8) -> Result<bool, XmlError> {
        let found = self.find_in_tag(unit, |rest| memchr(quote, rest))?;
        if let Some(at) = found {
            self.attribute_start = at + 1;
            self.go(State::Tag, at + 1);
        }
        Ok(found.is_some())
    }

    /// Takes a whole start tag that ends before `end`.
    fn start_tag(&mut self, unit: &[u8], end: usize) -> Result<Step, XmlError> {
        let empty = head(unit, end).ends_with(b"/>");
        if self.header {
            return match empty {
                true => Err(XmlError::BadFormat),
                false => Ok(Step::Done(Unit::Header(end))),
            };
        }
        self.depth += u32::from(!empty);
        if self.depth == 0 {
            return Ok(Step::Done(Unit::Element(end)));
        }
        Ok(self.go(State::Text, end))
    }

    fn end(&mut self, unit: &[u8]) -> Result<Step, XmlError> {
        let search = |rest: &[u8]| memchr(b'>', rest);
        let find = |rest: &_| find(rest, |byte| byte == b'>', search);
        let Some(at) = self.find_in_tag(unit, find)? else {
            return Ok(Step::Starved);
        };
        let end = at + 1;
        match self.depth {
            0 => match tail(head(unit, at), 2).trim_ascii_end() {
                b"stream:stream" => Ok(Step::Done(Unit::Close(end))),
                _ => Err(XmlError::NotWellFormed),
            },
            1 => Ok(Step::Done(Unit::Element(end))),
            _ => {
                self.depth -= 1;
                Ok(self.go(State::Text, end))
            }
        }
    }

    /// Searches on in the current tag, as far as the tag may reach.
    fn find_in_tag(
        &mut self,
        unit: &[u8],
        find: impl FnOnce(&[u8]) -> Option<usize>,
    ) -> Result<Option<usize>, XmlError> {
        let longest = self.tag_start.saturating_add(self.limits.tag_bytes_max);
        let window = head(unit, longest);
        if let Some(at) = find(tail(window, self.position)) {
            return Ok(Some(self.position + at));
        }
        if window.len() >= longest {
            return Err(XmlError::TagTooLong);
        }
        self.starve(window);
        Ok(None)
    }

    const fn go(&mut self, state: State, position: usize) -> Step {
        self.state = state;
        self.position = position;
        Step::On
    }

    const fn starve(&mut self, seen: &[u8]) -> Step {
        self.position = seen.len();
        Step::Starved
    }
}

/// A tag that is there from end to end.
struct Tag {
    kind: Kind,
    /// Bytes of it.
    len: usize,
    /// Its attributes, namespace declarations among them.
    attributes: u32,
    /// Its namespace declarations.
    namespaces: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Start,
    /// Start and end in one.
    Empty,
    End,
}

impl Tag {
    /// Takes the tag at the start of `bytes` if it is a short one of an element and all of it is there.
    #[inline]
    fn whole(bytes: &[u8], limits: &Limits) -> Option<Self> {
        let bytes = head(bytes, limits.tag_bytes_max.min(SHORT));
        let mut tag = Self {
            kind: Kind::End,
            len: 2,
            attributes: 0,
            namespaces: 0,
        };
        match bytes.get(1)? {
            b'/' => {
                tag.len += word::find(tail(bytes, 2), |word| word.is(b'>'))? + 1;
                return Some(tag);
            }
            b'!' | b'?' => return None,
            _ => {}
        }
        let mut name = head(tail(bytes, 1), NEAR).iter();
        let name = name.position(|byte| ends_name(*byte))?;
        if name == 0 || name > limits.name_bytes_max {
            return None;
        }
        tag.len = 1 + name;
        loop {
            let rest = tail(bytes, tag.len);
            let marks = |word: Word| word.is(b'>') | word.is(b'\'') | word.is(b'"');
            let before = match rest.first()? {
                b'>' => 0,
                _ => word::find(rest, marks)?,
            };
            tag.len += before + 1;
            let quote = match rest.get(before)? {
                b'>' => break,
                quote => *quote,
            };
            tag.attributes += 1;
            let name = head(rest, before).trim_ascii_start();
            tag.namespaces += u32::from(name.starts_with(b"xmlns"));
            tag.len += word::find(tail(bytes, tag.len), |word| word.is(quote))? + 1;
        }
        tag.kind = match head(bytes, tag.len).ends_with(b"/>") {
            true => Kind::Empty,
            false => Kind::Start,
        };
        Some(tag)
    }
}

fn head(bytes: &[u8], len: usize) -> &[u8] {
    bytes.get(..len).unwrap_or(bytes)
}

fn tail(bytes: &[u8], from: usize) -> &[u8] {
    bytes.get(from..).unwrap_or_default()
}

/// Bytes of a CDATA section before its end. Whoever sends many of them sends short ones.
pub(super) fn cdata_len(section: &[u8]) -> Option<usize> {
    let mut near = head(section, NEAR).windows(CDATA_END.len());
    let near = near.position(|bytes| bytes == CDATA_END);
    near.or_else(|| memmem::find(section, CDATA_END))
}

/// Where such a byte stands first; beyond [`NEAR`] it is searched.
fn find(
    bytes: &[u8],
    such: impl Fn(u8) -> bool,
    search: impl FnOnce(&[u8]) -> Option<usize>,
) -> Option<usize> {
    let near = head(bytes, NEAR).iter().position(|byte| such(*byte));
    near.or_else(|| Some(NEAR + search(bytes.get(NEAR..)?)?))
}

fn leading_whitespace(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
        .count()
}

/// What ends a name. A quote or a second `<` there is left for the reader of the unit to refuse.
const fn ends_name(byte: u8) -> bool {
    matches!(
        byte,
        b' ' | b'\t' | b'\r' | b'\n' | b'/' | b'>' | b'\'' | b'"'
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits::TIGHT;

    /// What a stream of bytes comes to: a letter and the text of each unit, white space in one piece.
    type Units = (Vec<(char, String)>, Result<(), XmlError>);

    /// Reads like a session does: never more in the buffer than the largest unit.
    fn split(input: &[u8], chunks: impl IntoIterator<Item = usize>) -> Units {
        let mut splitter = Splitter::new(LIMITS);
        let mut units: Vec<(char, String)> = Vec::new();
        let mut buffer: Vec<u8> = Vec::new();
        let mut input = input.iter().copied();
        let mut chunks = chunks.into_iter();
        loop {
            let (letter, len) = match splitter.next(&buffer) {
                Err(error) => return (units, Err(error)),
                Ok(Unit::Incomplete) => {
                    let room = LIMITS.stanza_bytes_max - buffer.len();
                    assert!(room > 0, "a full buffer has to be a unit or an error");
                    let before = buffer.len();
                    let chunk = chunks.next().unwrap_or(usize::MAX).clamp(1, room);
                    buffer.extend(input.by_ref().take(chunk));
                    if buffer.len() == before {
                        return (units, Ok(()));
                    }
                    continue;
                }
                Ok(Unit::Header(len)) => ('h', len),
                Ok(Unit::Element(len)) => ('e', len),
                Ok(Unit::Whitespace(len)) => ('w', len),
                Ok(Unit::Close(len)) => ('c', len),
            };
            let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
            buffer.drain(..len);
            match units.last_mut() {
                Some(('w', last)) if letter == 'w' => last.push_str(&text),
                _ => units.push((letter, text)),
            }
        }
    }

    #[track_caller]
    fn check(input: &str, expected: &[(char, &str)], end: Result<(), XmlError>) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(k, t)| (*k, (*t).to_owned()))
            .collect();
        for chunk in [usize::MAX, 1, 2, 3, 7] {
            let got = split(input.as_bytes(), std::iter::repeat(chunk));
            assert_eq!(got, (expected.clone(), end), "in chunks of {chunk}");
        }
    }

    /// Checks what follows a header.
    #[track_caller]
    fn check_inside(input: &str, expected: &[(char, &str)], end: Result<(), XmlError>) {
        let units: Vec<_> = [('h', "<s>")].iter().chain(expected).copied().collect();
        check(&format!("<s>{input}"), &units, end);
    }

    #[test]
    fn units() {
        check("", &[], Ok(()));
        check(" \r\n", &[('w', " \r\n")], Ok(()));
        check("<s>", &[('h', "<s>")], Ok(()));
        check(
            "<?xml version='1.0'?>\n<s a='>'>",
            &[('h', "<?xml version='1.0'?>\n<s a='>'>")],
            Ok(()),
        );
        check_inside("<a/>", &[('e', "<a/>")], Ok(()));
        check_inside("<a b='/'/>", &[('e', "<a b='/'/>")], Ok(()));
        check_inside(
            "<a b='\"</a>' c=\"'/>\">x</a>",
            &[('e', "<a b='\"</a>' c=\"'/>\">x</a>")],
            Ok(()),
        );
        check_inside(
            "<a><b/>t<b></b ></a>  <c/>\n</stream:stream >",
            &[
                ('e', "<a><b/>t<b></b ></a>"),
                ('w', "  "),
                ('e', "<c/>"),
                ('w', "\n"),
                ('c', "</stream:stream >"),
            ],
            Ok(()),
        );
        check_inside(
            "<a><![CDATA[</a>]] ><b>]]]>x</a><c/>",
            &[('e', "<a><![CDATA[</a>]] ><b>]]]>x</a>"), ('e', "<c/>")],
            Ok(()),
        );
        check_inside("<a", &[], Ok(()));
        check_inside("<a><b/>", &[], Ok(()));
        check_inside("<a><![CDA", &[], Ok(()));
        check_inside("<a><![CDATA[ ]]", &[], Ok(()));
    }

    #[test]
    fn what_cannot_stand_in_a_stream() {
        check("x", &[], Err(XmlError::NotWellFormed));
        check("\u{16}\u{3}\u{1}", &[], Err(XmlError::NotWellFormed));
        check("</s>", &[], Err(XmlError::NotWellFormed));
        check("<s/>", &[], Err(XmlError::BadFormat));
        check("<?xml version='1.0'>", &[], Err(XmlError::NotWellFormed));
        check("<?xml version='1.0'?>x", &[], Err(XmlError::NotWellFormed));
        check("<?xml?><s>", &[], Err(XmlError::RestrictedXml));
        check("<?xmlx a?><s>", &[], Err(XmlError::RestrictedXml));
        check("<?xml a?><?xml a?>", &[], Err(XmlError::RestrictedXml));
        check("<!DOCTYPE s><s>", &[], Err(XmlError::RestrictedXml));
        check_inside("x", &[], Err(XmlError::BadFormat));
        check_inside("<?xml version='1.0'?>", &[], Err(XmlError::RestrictedXml));
        check_inside("<!-- c -->", &[], Err(XmlError::RestrictedXml));
        check_inside("<a><!-- c -->", &[], Err(XmlError::RestrictedXml));
        check_inside("<a><![CDATx", &[], Err(XmlError::RestrictedXml));
        check_inside("<![CDATA[x]]>", &[], Err(XmlError::RestrictedXml));
        check("<![CDATA[x]]>", &[], Err(XmlError::RestrictedXml));
        check_inside("<a><?pi?>", &[], Err(XmlError::RestrictedXml));
        check_inside("</s>", &[], Err(XmlError::NotWellFormed));
        check_inside("<>", &[], Err(XmlError::NotWellFormed));
        check_inside("< a>", &[], Err(XmlError::NotWellFormed));
    }

    #[test]
    fn what_ends_something_is_found_however_far_it_is() {
        for far in 0..NEAR + 12 {
            let (blank, filler) = (" ".repeat(far), "]".repeat(far));
            for whole in [
                format!("<a{blank}/>"),
                format!("<a b='{filler}'/>"),
                format!("<a {blank}b=''/>"),
                format!("<a></a{blank}>"),
                format!("<a><![CDATA[{filler}]]></a>"),
                format!("<a><![CDATA[{blank}]>{filler}]]></a>"),
            ] {
                check_inside(&whole, &[('e', &whole)], Ok(()));
            }
        }
    }

    #[test]
    fn limits() {
        let name = "n".repeat(20);
        let whole = format!("<{name}/>");
        check_inside(&whole, &[('e', &whole)], Ok(()));
        check_inside(&format!("<n{name}/>"), &[], Err(XmlError::NameTooLong));

        let whole = "<a><b><c><d/></c></b></a>";
        check_inside(whole, &[('e', whole)], Ok(()));
        check_inside("<a><b><c><d><e/>", &[], Err(XmlError::TooDeep));

        let whole = "<a b='' c='' d=''/>";
        check_inside(whole, &[('e', whole)], Ok(()));
        check_inside(
            "<a b='' c='' d='' e=''/>",
            &[],
            Err(XmlError::TooManyAttributes),
        );
        check(
            "<a b='' c='' d='' e=''>",
            &[],
            Err(XmlError::TooManyAttributes),
        );

        let whole = "<a xmlns='' b=''><b xmlns:c='' xmlns=''/><b xmlns = ''/></a>";
        check_inside(&whole.repeat(2), &[('e', whole), ('e', whole)], Ok(()));
        check_inside(
            "<a xmlns=''><b xmlns:c='' xmlns=''/><b xmlns=''/><b\nxmlns=''/>",
            &[],
            Err(XmlError::TooManyNamespaces),
        );

        // Elements and attributes, wherever they stand.
        let whole = "<a b='' c=''><d e=''>f</d><g/><h i='' j='' k=''/><l m=''/></a>";
        check_inside(&whole.repeat(2), &[('e', whole), ('e', whole)], Ok(()));
        let more = [
            whole.replace("</a>", "<n/></a>"),
            whole.replace("m=''", "m='' n=''"),
        ];
        for more in more {
            check_inside(&more, &[], Err(XmlError::TooMuchMarkup));
        }

        let whole = format!("<a b='{}'/>", "x".repeat(51));
        assert_eq!(whole.len(), 60);
        check_inside(&whole, &[('e', &whole)], Ok(()));
        check_inside(
            &format!("<a b='{}'/>", "x".repeat(52)),
            &[],
            Err(XmlError::TagTooLong),
        );
        check_inside(
            &format!("<a></a{}>", " ".repeat(60)),
            &[],
            Err(XmlError::TagTooLong),
        );
        check(
            &format!("<?xml {}?><s>", "x".repeat(60)),
            &[],
            Err(XmlError::TagTooLong),
        );

        let whole = format!("<a>{}</a>", "x".repeat(193));
        assert_eq!(whole.len(), 200);
        check_inside(&whole, &[('e', &whole)], Ok(()));
        check_inside(
            &format!("<a>{}</a>", "x".repeat(194)),
            &[],
            Err(XmlError::StanzaTooBig),
        );
        check_inside(
            &format!("<a><![CDATA[{}", "]".repeat(200)),
            &[],
            Err(XmlError::StanzaTooBig),
        );
        check(
            &format!("<?xml a?>{}<s>", " ".repeat(200)),
            &[],
            Err(XmlError::StanzaTooBig),
        );
        check(
            &format!("{}<s>", " ".repeat(500)),
            &[('w', &" ".repeat(500)), ('h', "<s>")],
            Ok(()),
        );
    }

    #[test]
    fn a_restart_expects_a_header() {
        let mut splitter = Splitter::new(LIMITS);
        assert_eq!(splitter.next(b"<s>"), Ok(Unit::Header(3)));
        assert_eq!(splitter.next(b"<a><b"), Ok(Unit::Incomplete));
        splitter.restart();
        assert_eq!(splitter.next(b"<?xml a?><s>"), Ok(Unit::Header(12)));
    }

    #[test]
    fn limits_can_be_raised() {
        let mut splitter = Splitter::new(LIMITS);
        assert_eq!(splitter.next(b"<s>"), Ok(Unit::Header(3)));
        splitter.set_limits(Limits {
            depth_max: 5,
            ..LIMITS
        });
        let deep = b"<a><b><c><d><e/></d></c></b></a>";
        assert_eq!(splitter.next(deep), Ok(Unit::Element(deep.len())));
    }

    /// A tag or a text is taken in one go or by the states, depending on its length and on what has come of it.
    #[test]
    fn the_length_of_a_tag_or_text_does_not_matter() {
        let limits = Limits {
            name_bytes_max: 2 * SHORT,
            ..crate::Config::default().limits()
        };
        for far in (0..2 * NEAR).chain(SHORT - 12..SHORT + 12) {
            let filler = "x".repeat(far);
            for whole in [
                format!("<a b='{filler}'/>"),
                format!("<a b='{filler}'><c/></a>"),
                format!("<a>{filler}<b c='>'/></a>"),
                format!("<a{filler}><b c=\"'{filler}>\"></b></a{filler}>"),
            ] {
                let next = [whole.as_str(), "<d/>"].concat();
                let len = Ok(Unit::Element(whole.len()));
                assert_eq!(
                    Splitter::within_stream(limits).next(next.as_bytes()),
                    len,
                    "{whole}"
                );
                let mut splitter = Splitter::within_stream(limits);
                for seen in 0..whole.len() {
                    let unit = splitter.next(&whole.as_bytes()[..seen]);
                    assert_eq!(unit, Ok(Unit::Incomplete), "{whole}");
                }
                assert_eq!(splitter.next(whole.as_bytes()), len, "{whole}");
            }
        }
    }

    proptest! {
        #[test]
        fn chunk_borders_do_not_matter(
            pieces in prop::collection::vec(prop::sample::select(vec![
                "<", ">", "/", "</", "/>", "'", "\"", "=", " ", "\n", "?", "!", "a", "b='c'", "é", "&amp;",
                "<s>", "<a>", "</a>", "<a/>", "<a b='", "<?xml a?>", "</stream:stream>", "aaaaaaaaaaaaaaaaaaaaa",
                "<![CDATA[", "]", "]]>", "<bcd e='f' g=\"h\">text</bcd>", " xmlns='x'", " xmlns:p=''", "xmlns",
                "<a xmlns='x' xmlns:p='y'/>", "                                        ",
            ]), 0..40),
            header in any::<bool>(),
            chunks in prop::collection::vec(1..20usize, 0..60),
        ) {
            let input = [if header { "<s>" } else { "" }, &pieces.concat()].concat();
            let whole = split(input.as_bytes(), []);
            prop_assert_eq!(split(input.as_bytes(), chunks), whole);
        }

        #[test]
        fn any_bytes_are_survived(
            input in prop::collection::vec(any::<u8>(), 0..300),
            chunks in prop::collection::vec(1..50usize, 0..20),
        ) {
            let inside = [b"<s>", &input[..]].concat();
            prop_assert_eq!(split(&inside, chunks), split(&inside, []));
            prop_assert!(split(&input, []).0.len() <= input.len());
        }
    }
}
