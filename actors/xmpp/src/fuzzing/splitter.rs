//! The stream splitter, and the strict reader behind it.

use std::hash::{DefaultHasher, Hasher as _};
use std::ops::Range;

use super::oracle;
use crate::Config;
use crate::xml::header::StreamHeader;
use crate::xml::skipper::Skipper;
use crate::xml::splitter::{Limits, Splitter, Unit};
use crate::xml::{self, Element, Namespaces, XmlError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Header,
    Element,
    Whitespace,
    Close,
}

/// Kind and place of each unit, white space in one piece, and what ended the stream.
type Units = (Vec<(Kind, Range<usize>)>, Option<XmlError>);

/// Takes `data` for what a peer sends from its first byte on: units are the same whatever the borders
/// of the pieces it comes in, and what is accepted reads as quick-xml reads the whole.
pub fn splitter(data: &[u8]) {
    let limits = Config::default().limits();
    for limits in [limits, Limits::TIGHT] {
        let whole = split(data, limits, || usize::MAX);
        assert_eq!(split(data, limits, || 1), whole, "byte by byte");
        let mut lot = lot(data);
        assert_eq!(split(data, limits, || lot.usize(1..=32)), whole, "by lot");
    }
    let (units, _) = split(data, limits, || usize::MAX);
    for (_, unit) in units.iter().filter(|(kind, _)| *kind == Kind::Element) {
        skip(&data[unit.start..], unit.len(), lot(data));
    }
    read(data, &units);
}

/// The same borders for the same bytes.
fn lot(data: &[u8]) -> fastrand::Rng {
    let mut hasher = DefaultHasher::new();
    hasher.write(data);
    fastrand::Rng::with_seed(hasher.finish())
}

/// Reads like a session does, which has a window of the bytes so far.
fn split(data: &[u8], limits: Limits, mut chunk: impl FnMut() -> usize) -> Units {
    let mut splitter = Splitter::new(limits);
    let mut units: Vec<(Kind, Range<usize>)> = Vec::new();
    let (mut start, mut end) = (0, 0);
    loop {
        let (kind, len) = match splitter.next(&data[start..end]) {
            Err(error) => return (units, Some(error)),
            Ok(Unit::Incomplete) if end == data.len() => return (units, None),
            Ok(Unit::Incomplete) => {
                end = end.saturating_add(chunk()).min(data.len());
                continue;
            }
            Ok(Unit::Header(len)) => (Kind::Header, len),
            Ok(Unit::Element(len)) => (Kind::Element, len),
            Ok(Unit::Whitespace(len)) => (Kind::Whitespace, len),
            Ok(Unit::Close(len)) => (Kind::Close, len),
        };
        assert!(len > 0 && start + len <= end, "a unit is in the buffer");
        assert!(
            kind == Kind::Whitespace || len <= limits.stanza_bytes_max,
            "a unit is within its limit"
        );
        match units.last_mut() {
            Some((Kind::Whitespace, last)) if kind == Kind::Whitespace => last.end += len,
            _ => units.push((kind, start..start + len)),
        }
        start += len;
    }
}

/// A unit that is passed over ends where the splitter says, whatever pieces it comes in.
fn skip(data: &[u8], len: usize, mut lot: fastrand::Rng) {
    let mut skipper = Skipper::default();
    let mut start = 0;
    loop {
        let end = start + lot.usize(1..=32);
        let piece = &data[start..end.min(data.len())];
        match skipper.skip(piece).expect("the splitter took it") {
            Some(rest) => return assert_eq!(start + rest, len),
            None => assert!(end < len, "the skipper misses the end"),
        }
        start = end;
    }
}

/// Reads what the splitter found as far as a session would.
fn read(data: &[u8], units: &[(Kind, Range<usize>)]) {
    let mut namespaces = Namespaces::default();
    let mut accepted = Vec::new();
    for (kind, place) in units {
        let unit = &data[place.clone()];
        match kind {
            Kind::Header => match StreamHeader::read(unit) {
                Ok(header) => namespaces = header.namespaces,
                Err(_) => return,
            },
            Kind::Element => match xml::utf8(unit).and_then(|t| Element::read(t, &namespaces)) {
                Ok(element) => accepted.push((place.clone(), element)),
                Err(_) => break,
            },
            Kind::Whitespace => {}
            Kind::Close => break,
        }
    }
    let Some((last, _)) = accepted.last() else {
        return;
    };
    let stream = std::str::from_utf8(&data[..last.end]).expect("units were UTF-8");
    let children = oracle::children(stream);
    assert_eq!(children.len(), accepted.len());
    for ((place, element), (other, tree)) in accepted.iter().zip(&children) {
        assert_eq!(place, other);
        oracle::check_same(element, tree);
    }
}
