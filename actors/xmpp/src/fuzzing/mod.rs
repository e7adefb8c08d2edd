//! What holds for any bytes, one function per fuzz target.
//!
//! The targets in `fuzz/` call these functions with what the fuzzer makes up, and `cargo test` calls
//! them with the seeds in `fuzz/seeds`, among which every finding has its place. Nothing here is in
//! a normal build.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a property that does not hold has to stop the fuzzer"
)]

mod form;
mod handshake;
mod identity;
mod jid;
mod oracle;
mod publish;
mod splitter;

pub use form::form;
pub use handshake::handshake;
pub(crate) use handshake::verify;
pub use identity::identity;
pub use jid::jid;
pub use publish::publish;
pub use splitter::splitter;

use crate::xml::header::StreamHeader;
use crate::xml::stanza::IqHead;
use crate::xml::{Element, Namespaces, ns};

/// What stanzas stand in.
const HEADER: &str = "<stream:stream xmlns='jabber:server' xmlns:db='jabber:server:dialback' \
    xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>";

fn namespaces() -> Namespaces {
    let header = StreamHeader::read(HEADER.as_bytes()).expect("the header is in order");
    header.namespaces
}

/// Reads an answer to `asked`: exactly one iq of that type, addressed back as the asker wrote it.
fn check_answer(answer: &[u8], asked: &IqHead<'_>, kind: &[&str]) {
    let text = std::str::from_utf8(answer).expect("an answer is UTF-8");
    let answer = Element::read(text, &namespaces()).expect("an answer is one element");
    assert!(answer.is("iq", ns::SERVER), "{text}");
    let type_ = answer.attribute("type").expect("an answer has a type");
    assert!(kind.contains(&type_), "{text}");
    assert_eq!(answer.attribute("id"), asked.id.as_deref(), "{text}");
    assert_eq!(answer.attribute("from"), Some(&*asked.to), "{text}");
    assert_eq!(answer.attribute("to"), Some(&*asked.from), "{text}");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Runs a target on its seeds.
    #[track_caller]
    fn check(target: &str, run: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
        let seeds: Vec<_> = std::fs::read_dir(folder.join(target))
            .unwrap()
            .map(|seed| seed.unwrap().path())
            .collect();
        assert!(seeds.len() > 2, "{target} has too few seeds");
        for seed in seeds {
            let data = std::fs::read(&seed).unwrap();
            if std::panic::catch_unwind(|| run(&data)).is_err() {
                panic!("{} fails", seed.display());
            }
        }
    }

    #[test]
    fn splitter() {
        check("splitter", super::splitter);
    }

    #[test]
    fn publish() {
        check("publish", super::publish);
    }

    #[test]
    fn form() {
        check("form", super::form);
    }

    #[test]
    fn jid() {
        check("jid", super::jid);
    }

    #[test]
    fn handshake() {
        check("handshake", super::handshake);
    }

    #[test]
    fn identity() {
        check("identity", super::identity);
    }
}
