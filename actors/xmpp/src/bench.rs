//! The stages of a stream one by one, for `benches/stages.rs`. Only with the feature `bench`; nothing here is
//! in a normal build.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a stage that fails has to stop the bench"
)]

use std::time::Instant;

use messages::{Disclosure, PushOutcome};

use crate::Config;
use crate::pending::Pending;
use crate::reply;
use crate::xml::header::StreamHeader;
use crate::xml::publish::{self, Read};
use crate::xml::splitter::{Splitter, Unit};
use crate::xml::stanza::IqHead;
use crate::xml::{self, Namespaces};

/// What stanzas stand in.
pub const HEADER: &str = "<stream:stream xmlns='jabber:server' xmlns:db='jabber:server:dialback' \
    xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>";

/// A stream whose header has been read.
#[derive(Debug)]
pub struct Stream {
    namespaces: Namespaces,
}

impl Default for Stream {
    fn default() -> Self {
        let header = StreamHeader::read(HEADER.as_bytes()).expect("the header is in order");
        Self {
            namespaces: header.namespaces,
        }
    }
}

impl Stream {
    /// Finds the borders of all stanzas behind [`HEADER`], as one read would bring them. How many there are.
    #[must_use]
    pub fn split(data: &[u8]) -> usize {
        let mut splitter = Splitter::new(Config::default().limits());
        let (mut rest, mut stanzas) = (data, 0);
        loop {
            let unit = splitter.next(rest).expect("the stream is in order");
            let len = match unit {
                Unit::Incomplete => return stanzas,
                Unit::Element(len) => {
                    stanzas += 1;
                    len
                }
                Unit::Header(len) | Unit::Whitespace(len) | Unit::Close(len) => len,
            };
            (_, rest) = rest.split_at_checked(len).expect("a unit is in the buffer");
        }
    }

    /// Reads a publish.
    pub fn parse(&self, stanza: &[u8]) {
        let text = xml::utf8(stanza).expect("a stanza is UTF-8");
        let read = publish::read(text, &self.namespaces, Disclosure::Nothing);
        assert!(matches!(read, Ok(Read::Publish(_))), "it is a publish");
    }
}

/// What waits for outcomes, and what is written for them.
#[derive(Debug)]
pub struct Answers {
    pending: Pending,
    written: Vec<u8>,
}

impl Answers {
    /// With room for as many.
    #[must_use]
    pub fn new(tickets: u32) -> Self {
        Self {
            pending: Pending::new(tickets),
            written: Vec::new(),
        }
    }

    /// Takes a ticket for each id, and answers each `result`, into one buffer. How many bytes there are.
    pub fn answer(&mut self, ids: &[String], from: &str, to: &str) -> usize {
        let deadline = Instant::now();
        self.written.clear();
        let tickets: Vec<_> = ids
            .iter()
            .map(|id| {
                let head = IqHead {
                    id: Some(id.as_str().into()),
                    from: from.into(),
                    to: to.into(),
                };
                let ticket = self.pending.take_ticket(&head, deadline);
                ticket.expect("there is room")
            })
            .collect();
        for ticket in tickets {
            let asker = self.pending.resolve(ticket).expect("it waits");
            reply::render(&mut self.written, &asker.head(), PushOutcome::Accepted);
        }
        self.written.len()
    }
}
