//! The publish parser.

use std::time::Instant;

use messages::{Content, Disclosure, PushOutcome, Rejection};

use super::oracle::{self, Tree};
use super::{HEADER, check_answer, namespaces};
use crate::pending::Pending;
use crate::reply;
use crate::xml::publish::{self, Read};
use crate::xml::stanza::IqHead;
use crate::xml::{self, Element, ns};

const SUMMARY: &str = "urn:xmpp:push:summary";

/// Most bytes of a text and of a sender that are kept.
const KEPT_MAX: [usize; 2] = [2048, 512];

/// Node, secret, count, body, content; or why not.
type Outcome = Result<(String, Option<String>, Option<u32>, bool, Option<Content>), &'static str>;

/// Takes `data` for a stanza: the one pass over it finds what the same rules find on a tree that
/// quick-xml made, refuses what the general reader refuses, and can be answered.
pub fn publish(data: &[u8]) {
    let Ok(text) = xml::utf8(data) else {
        return;
    };
    let namespaces = namespaces();
    let element = Element::read(text, &namespaces);
    let read = publish::read(text, &namespaces, Disclosure::BodyAndSender);
    let element = match (element, &read) {
        (Ok(element), Ok(_)) => element,
        // The rest of what is no publish is not looked at.
        (Err(_), Ok(Read::Other)) => return,
        (Err(general), Err(quick)) => return assert_eq!(general, *quick),
        (Ok(_), Err(error)) => panic!("refused by this reader only: {error}"),
        (Err(error), Ok(_)) => panic!("not refused: {error}"),
    };
    let stream = [HEADER, text].concat();
    let children = oracle::children(&stream);
    let [(_, tree)] = children.as_slice() else {
        panic!("quick-xml sees {} elements", children.len());
    };
    let (outcome, head) = match read.unwrap() {
        Read::Publish(publish) => {
            let outcome = (
                publish.node.as_str().to_owned(),
                publish.secret.map(|secret| secret.as_str().to_owned()),
                publish.hint.message_count,
                publish.hint.has_body,
                publish.content,
            );
            check_ticket(&publish.head);
            (Ok(outcome), Some(publish.head))
        }
        Read::Malformed(head) => (Err("malformed"), Some(head)),
        Read::Other => (Err("other"), None),
    };
    assert_eq!(outcome, slow(tree));
    if let Some(head) = head {
        let written = IqHead::of(&element).expect("it has addresses");
        assert_eq!(
            (&head.id, &head.from, &head.to),
            (&written.id, &written.from, &written.to)
        );
        for (outcome, kind) in [
            (PushOutcome::Accepted, "result"),
            (PushOutcome::Rejected(Rejection::UnknownNode), "error"),
            (PushOutcome::Rejected(Rejection::Malformed), "error"),
        ] {
            let mut answer = Vec::new();
            reply::render(&mut answer, &head, outcome);
            check_answer(&answer, &head, &[kind]);
        }
    }
}

/// What waits for an outcome is what was asked.
fn check_ticket(head: &IqHead<'_>) {
    let mut pending = Pending::new(1);
    let ticket = pending
        .take_ticket(head, Instant::now())
        .expect("one is free");
    let asker = pending.resolve(ticket).expect("it is open");
    let kept = asker.head();
    assert_eq!(
        (&kept.id, &kept.from, &kept.to),
        (&head.id, &head.from, &head.to)
    );
}

/// The rules of the parser, one look-up at a time.
fn slow(iq: &Tree) -> Outcome {
    let addressed = iq.attribute("from").is_some() && iq.attribute("to").is_some();
    if !iq.is("iq", ns::SERVER) || iq.attribute("type") != Some("set") || !addressed {
        return Err("other");
    }
    let first = iq.children.first().ok_or("other")?;
    let publish = match first.is("pubsub", ns::PUBSUB) {
        true => first.child("publish", ns::PUBSUB).ok_or("other")?,
        false => return Err("other"),
    };
    let secret = first
        .child("publish-options", ns::PUBSUB)
        .and_then(|options| options.child("x", ns::FORMS))
        .and_then(|form| field(form, "secret"))
        .filter(|secret| (1..=256).contains(&secret.len()));
    let node = publish
        .attribute("node")
        .filter(|node| (1..=1024).contains(&node.len()));
    let notification = publish
        .child("item", ns::PUBSUB)
        .and_then(|item| item.child("notification", ns::PUSH));
    let (Some(node), Some(notification), 1, Some(_)) =
        (node, notification, iq.children.len(), iq.attribute("id"))
    else {
        return Err("malformed");
    };
    let mut forms = notification.children.iter();
    let summary = forms.find(|form| {
        form.is("x", ns::FORMS) && field(form, "FORM_TYPE").is_none_or(|kind| kind == SUMMARY)
    });
    let count = summary.and_then(|summary| field(summary, "message-count"));
    let body = summary.and_then(|summary| field(summary, "last-message-body"));
    let sender = summary.and_then(|summary| field(summary, "last-message-sender"));
    let visible = |text: &&str| !text.trim().is_empty();
    let kept = |text: &'_ str, max: usize| text[..text.floor_char_boundary(max)].to_owned();
    let body = body.filter(visible);
    let sender = sender.filter(visible).map(|sender| {
        let sender = kept(sender, KEPT_MAX[1]);
        sender.split('/').next().unwrap().trim().to_owned()
    });
    let content = body.and_then(|body| {
        let body = kept(body, KEPT_MAX[0]);
        Content::new(Disclosure::BodyAndSender, &body, sender.as_deref())
    });
    Ok((
        node.to_owned(),
        secret.map(str::to_owned),
        count.and_then(|count| count.trim().parse().ok()),
        body.is_some(),
        content,
    ))
}

/// The first value of the first field of that name, empty without one.
fn field<'a>(form: &'a Tree, name: &str) -> Option<&'a str> {
    let mut fields = form.children.iter();
    let field = fields
        .find(|field| field.is("field", ns::FORMS) && field.attribute("var") == Some(name))?;
    let value = field.child("value", ns::FORMS);
    Some(value.map_or("", |value| &value.text))
}
