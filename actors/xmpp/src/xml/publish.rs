//! Reads a XEP-0357 publish in one pass and without a tree: the hot path of the stream.

use std::borrow::Cow;

use messages::{Content, Disclosure, NodeId, NotificationHint, Secret};

use super::events::Events;
use super::stanza::IqHead;
use super::{Namespaces, XmlError, ns};

const SUMMARY: &str = "urn:xmpp:push:summary";

/// What a stanza turned out to be.
pub(crate) enum Read<'a> {
    /// A push to forward.
    Publish(PublishIq<'a>),
    /// A publish that no push can be made of. Answer it with
    /// [`Rejection::Malformed`](messages::Rejection::Malformed), which costs no registration.
    Malformed(IqHead<'a>),
    /// Something else, or a stanza without `from` or `to`. Its rest has not been looked at: read it as
    /// an [`Element`](super::Element).
    Other,
}

/// Most bytes of a text that are kept: more than a notification shows.
const BODY_BYTES_MAX: usize = 2048;
/// Most bytes of a sender that are kept.
const SENDER_BYTES_MAX: usize = 512;

/// A publish, reduced to what the pipeline needs. Its body and sender are never copied, unless an operator
/// wants them shown.
pub(crate) struct PublishIq<'a> {
    /// Whom to answer.
    pub(crate) head: IqHead<'a>,
    /// The node published to.
    pub(crate) node: NodeId,
    /// The field `secret` of the publish options, unless it is empty or too long to be one.
    pub(crate) secret: Option<Secret>,
    /// What the summary tells.
    pub(crate) hint: NotificationHint,
    /// What may be shown of the message.
    pub(crate) content: Option<Content>,
}

/// What a summary tells.
#[derive(Default)]
struct Summary {
    hint: NotificationHint,
    content: Option<Content>,
}

/// Reads a whole stanza, and of the message what may be shown.
///
/// Of several publishes, items, notifications, forms or fields of one name the first counts; unknown
/// elements and fields are passed over. A form may have any type. A summary form whose FORM_TYPE is
/// another one is no summary; publish options are what a client once wrote, so theirs is not looked at.
///
/// # Errors
/// [`XmlError::NotWellFormed`], [`XmlError::RestrictedXml`] or [`XmlError::TooManyNamespaces`].
pub(crate) fn read<'a>(
    stanza: &'a str,
    namespaces: &Namespaces,
    disclosure: Disclosure,
) -> Result<Read<'a>, XmlError> {
    let mut events = Events::new(stanza, namespaces)?;
    events.root()?;
    if !events.is("iq", namespaces.content()) || events.attribute("type") != Some("set") {
        return Ok(Read::Other);
    }
    let id = events.take_attribute("id");
    let (Some(from), Some(to)) = (events.take_attribute("from"), events.take_attribute("to"))
    else {
        return Ok(Read::Other);
    };
    if !(events.child()? && events.is("pubsub", ns::PUBSUB)) {
        return Ok(Read::Other);
    }
    let mut publish = None;
    let mut options = None;
    while events.child()? {
        if publish.is_none() && events.is("publish", ns::PUBSUB) {
            publish = Some(read_publish(&mut events, disclosure)?);
        } else if options.is_none() && events.is("publish-options", ns::PUBSUB) {
            options = Some(read_options(&mut events)?);
        } else {
            events.skip()?;
        }
    }
    let Some(publish) = publish else {
        return Ok(Read::Other);
    };
    let alone = !events.child()?;
    events.drain()?;
    let answerable = id.is_some();
    let head = IqHead { id, from, to };
    Ok(match publish {
        Some((node, summary)) if alone && answerable => Read::Publish(PublishIq {
            head,
            node,
            secret: options.flatten(),
            hint: summary.hint,
            content: summary.content,
        }),
        _ => Read::Malformed(head),
    })
}

/// Reads `publish`; `None` when node, item or notification is missing.
fn read_publish(
    events: &mut Events<'_, '_>,
    disclosure: Disclosure,
) -> Result<Option<(NodeId, Summary)>, XmlError> {
    let node = events.attribute("node").map(NodeId::new);
    let summary = first_child(events, "item", ns::PUBSUB, |events| {
        first_child(events, "notification", ns::PUSH, |events| {
            read_notification(events, disclosure)
        })
    })?;
    Ok(match (node, summary.flatten()) {
        (Some(Ok(node)), Some(summary)) => Some((node, summary)),
        _ => None,
    })
}

fn read_notification(
    events: &mut Events<'_, '_>,
    disclosure: Disclosure,
) -> Result<Summary, XmlError> {
    let mut summary = None;
    while events.child()? {
        if summary.is_none() && events.is("x", ns::FORMS) {
            summary = read_summary(events, disclosure)?;
        } else {
            events.skip()?;
        }
    }
    Ok(summary.unwrap_or_default())
}

/// Reads a form in a notification; `None` when it says that it is another one.
fn read_summary(
    events: &mut Events<'_, '_>,
    disclosure: Disclosure,
) -> Result<Option<Summary>, XmlError> {
    let keep = |kept: Disclosure, bytes: usize| if disclosure >= kept { bytes } else { 0 };
    let body_max = keep(Disclosure::Body, BODY_BYTES_MAX);
    let sender_max = keep(Disclosure::BodyAndSender, SENDER_BYTES_MAX);
    let mut form_type = None;
    let mut count = None;
    let mut body = None;
    let mut sender = None;
    while events.child()? {
        if !events.is("field", ns::FORMS) {
            events.skip()?;
            continue;
        }
        match events.attribute("var") {
            Some("FORM_TYPE") if form_type.is_none() => form_type = Some(read_value(events)?),
            Some("message-count") if count.is_none() => count = Some(read_value(events)?),
            Some("last-message-body") if body.is_none() => {
                body = Some(read_text(events, body_max)?);
            }
            Some("last-message-sender") if sender_max > 0 && sender.is_none() => {
                sender = Some(read_text(events, sender_max)?);
            }
            _ => events.skip()?,
        }
    }
    if form_type.is_some_and(|form_type| form_type != SUMMARY) {
        return Ok(None);
    }
    let body = body.unwrap_or_default();
    let sender = sender.filter(|sender| sender.visible);
    let content = body
        .visible
        .then(|| {
            // Which of their devices wrote it is of no use to people.
            let sender = sender.as_ref().map(|sender| bare(&sender.start));
            Content::new(disclosure, &body.start, sender)
        })
        .flatten();
    Ok(Some(Summary {
        hint: NotificationHint {
            message_count: count.and_then(|count| count.trim().parse().ok()),
            has_body: body.visible,
        },
        content,
    }))
}

/// A JID without its resource. Whoever is no JID is shown all the same.
fn bare(jid: &str) -> &str {
    jid.split('/').next().unwrap_or_default().trim()
}

/// Reads `publish-options`.
fn read_options(events: &mut Events<'_, '_>) -> Result<Option<Secret>, XmlError> {
    let secret = first_child(events, "x", ns::FORMS, |events| {
        let mut secret = None;
        while events.child()? {
            let wanted = events.is("field", ns::FORMS) && events.attribute("var") == Some("secret");
            if wanted && secret.is_none() {
                secret = Some(read_value(events)?);
            } else {
                events.skip()?;
            }
        }
        Ok(secret)
    })?;
    Ok(secret
        .flatten()
        .and_then(|secret| Secret::new(&secret).ok()))
}

/// The first value of a field, empty without one.
fn read_value<'a>(events: &mut Events<'a, '_>) -> Result<Cow<'a, str>, XmlError> {
    Ok(first_child(events, "value", ns::FORMS, Events::text)?.unwrap_or_default())
}

/// The first value of a field as far as it is kept.
#[derive(Default)]
struct Text {
    /// Whether it has more than white space.
    visible: bool,
    start: String,
}

/// Reads the first value of a field without copying more than `max` bytes of it.
fn read_text(events: &mut Events<'_, '_>, max: usize) -> Result<Text, XmlError> {
    let text = first_child(events, "value", ns::FORMS, |events| {
        let mut text = Text::default();
        let mut room = max;
        events.finish(|piece| {
            text.visible |= !piece.trim().is_empty();
            let end = piece.floor_char_boundary(room);
            text.start.push_str(piece.get(..end).unwrap_or_default());
            // What comes after a gap does not belong to the start.
            room = if end < piece.len() { 0 } else { room - end };
        })?;
        Ok(text)
    })?;
    Ok(text.unwrap_or_default())
}

/// Reads the first child of that name with `read`, which has to read it to its end, and passes over all
/// others.
fn first_child<'a, 'n, T>(
    events: &mut Events<'a, 'n>,
    name: &str,
    namespace: &str,
    read: impl FnOnce(&mut Events<'a, 'n>) -> Result<T, XmlError>,
) -> Result<Option<T>, XmlError> {
    let mut read = Some(read);
    let mut found = None;
    while events.child()? {
        match read.take_if(|_| events.is(name, namespace)) {
            Some(read) => found = Some(read(events)?),
            None => events.skip()?,
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a reading comes to: node, secret, count, body; or why not.
    type Outcome<S> = Result<(S, Option<S>, Option<u32>, bool), &'static str>;

    fn outcome(stanza: &str) -> Outcome<String> {
        match read(stanza, &Namespaces::server(), Disclosure::Nothing).unwrap() {
            Read::Publish(publish) => {
                let head = publish.head;
                assert_eq!(
                    (head.id.as_deref(), &*head.from, &*head.to),
                    (Some("1"), "chat.test", "push.test")
                );
                assert_eq!(publish.content, None);
                Ok((
                    publish.node.as_str().to_owned(),
                    publish.secret.map(|secret| secret.as_str().to_owned()),
                    publish.hint.message_count,
                    publish.hint.has_body,
                ))
            }
            Read::Malformed(head) => {
                assert_eq!((&*head.from, &*head.to), ("chat.test", "push.test"));
                Err("malformed")
            }
            Read::Other => Err("other"),
        }
    }

    #[track_caller]
    fn check(stanza: &str, expected: Outcome<&str>) {
        let expected = expected.map(|(node, secret, count, body)| {
            (node.to_owned(), secret.map(str::to_owned), count, body)
        });
        assert_eq!(outcome(stanza), expected, "{stanza}");
    }

    fn iq(content: &str) -> String {
        format!("<iq type='set' id='1' from='chat.test' to='push.test'>{content}</iq>")
    }

    fn pubsub(content: &str) -> String {
        iq(&format!(
            "<pubsub xmlns='{}'>{content}</pubsub>",
            ns::PUBSUB
        ))
    }

    fn options(form: &str) -> String {
        format!("<publish-options>{form}</publish-options>")
    }

    fn notification(content: &str) -> String {
        format!(
            "<publish node='n'><item><notification xmlns='{}'>{content}</notification></item></publish>",
            ns::PUSH
        )
    }

    fn summary(fields: &str) -> String {
        pubsub(&notification(&format!(
            "<x xmlns='jabber:x:data'>{fields}</x>"
        )))
    }

    fn secret(fields: &str) -> String {
        let form = format!("<x xmlns='jabber:x:data'>{fields}</x>");
        pubsub(&[notification(""), options(&form)].concat())
    }

    fn field(name: &str, value: &str) -> String {
        format!("<field var='{name}'><value>{value}</value></field>")
    }

    #[test]
    fn servers_as_they_are() {
        let form = |kind: &str| {
            pubsub(&[
                "<publish node='AA90C90E'><item><notification xmlns='urn:xmpp:push:0'>",
                &format!("<x xmlns='jabber:x:data'{kind}>"),
                "<field type='hidden' var='FORM_TYPE'><value>urn:xmpp:push:summary</value></field>",
                "<field type='text-single' var='message-count'><value>3</value></field>",
                "<field type='text-single' var='pending-subscription-count'/>",
                "<field type='jid-single' var='last-message-sender'><value>bob@prosody.test/desk</value></field>",
                "<field type='text-single' var='last-message-body'/></x>",
                "</notification></item></publish><publish-options><x xmlns='jabber:x:data' type='form'>",
                "<field var='FORM_TYPE'><value>http://jabber.org/protocol/pubsub#publish-options</value></field>",
                "<field var='secret'><value>s&amp;1</value></field></x></publish-options>",
            ].concat())
        };
        for kind in [" type='form'", " type='submit'", ""] {
            check(&form(kind), Ok(("AA90C90E", Some("s&1"), Some(3), false)));
        }
        check(&pubsub(&notification("")), Ok(("n", None, None, false)));
        check(
            &pubsub(&notification(
                "<priority xmlns='tigase:push:priority:0'>high</priority>text<x xmlns='y'/>",
            )),
            Ok(("n", None, None, false)),
        );
    }

    #[test]
    fn summaries() {
        let form_type = field("FORM_TYPE", SUMMARY);
        let count = field("message-count", "3");
        check(&summary(""), Ok(("n", None, None, false)));
        check(&summary(&count), Ok(("n", None, Some(3), false)));
        check(
            &summary(&[count.as_str(), &form_type].concat()),
            Ok(("n", None, Some(3), false)),
        );
        for bad in ["", "-1", "1.5", "three", "99999999999", "<b>3</b>"] {
            check(
                &summary(&field("message-count", bad)),
                Ok(("n", None, None, false)),
            );
        }
        check(
            &summary(&field("message-count", " 0 ")),
            Ok(("n", None, Some(0), false)),
        );
        check(
            &summary(&field("last-message-body", "x")),
            Ok(("n", None, None, true)),
        );
        check(
            &summary(&field("last-message-body", "&#120;")),
            Ok(("n", None, None, true)),
        );
        check(
            &summary(&field("last-message-body", "<b>x</b>")),
            Ok(("n", None, None, false)),
        );
        for empty in ["", " ", "\n\t", "&#32;"] {
            check(
                &summary(&field("last-message-body", empty)),
                Ok(("n", None, None, false)),
            );
        }
        check(
            &summary("<field var='last-message-body'/>"),
            Ok(("n", None, None, false)),
        );
        check(
            &summary("<field var='last-message-body'><value/><value>x</value></field>"),
            Ok(("n", None, None, false)),
        );
        check(
            &summary("<field xmlns='x' var='message-count'><value>3</value></field>"),
            Ok(("n", None, None, false)),
        );
        check(
            &summary("<field/><reported/>text"),
            Ok(("n", None, None, false)),
        );
        check(
            &summary(&field("last-message-sender", "not @ jid /")),
            Ok(("n", None, None, false)),
        );
        let twice = [field("message-count", "3"), field("message-count", "4")].concat();
        check(&summary(&twice), Ok(("n", None, Some(3), false)));
        let other = field("FORM_TYPE", "urn:other");
        check(
            &summary(&[count.as_str(), &other].concat()),
            Ok(("n", None, None, false)),
        );
        let forms =
            format!("<x xmlns='jabber:x:data'>{other}</x><x xmlns='jabber:x:data'>{count}</x>");
        check(
            &pubsub(&notification(&forms)),
            Ok(("n", None, Some(3), false)),
        );
    }

    #[track_caller]
    fn check_content(fields: &str, disclosure: Disclosure, expected: Option<(&str, Option<&str>)>) {
        let stanza = summary(fields);
        let Read::Publish(publish) = read(&stanza, &Namespaces::server(), disclosure).unwrap()
        else {
            panic!("{stanza}")
        };
        let content = publish.content.as_ref();
        let content = content.map(|content| (content.body(), content.sender()));
        assert_eq!(content, expected, "{disclosure:?} {stanza}");
    }

    #[test]
    fn of_a_message_what_may_be_shown() {
        use Disclosure::{Body, BodyAndSender, Nothing};
        let sender = field("last-message-sender", "bob@chat.test/desk");
        let body = field("last-message-body", "a &amp; b");
        let both = [sender.as_str(), &body].concat();
        check_content(&both, Nothing, None);
        check_content(&both, Body, Some(("a & b", None)));
        check_content(&both, BodyAndSender, Some(("a & b", Some("bob@chat.test"))));
        let reversed = [body.as_str(), &sender].concat();
        check_content(
            &reversed,
            BodyAndSender,
            Some(("a & b", Some("bob@chat.test"))),
        );
        // A sender alone makes nothing to show, and neither does a form of something else.
        check_content(&sender, BodyAndSender, None);
        let blank = [sender.as_str(), &field("last-message-body", " ")].concat();
        check_content(&blank, BodyAndSender, None);
        let nobody = [&field("last-message-sender", " "), body.as_str()].concat();
        check_content(&nobody, BodyAndSender, Some(("a & b", None)));
        let foreign = [both.as_str(), &field("FORM_TYPE", "urn:other")].concat();
        check_content(&foreign, BodyAndSender, None);
        // Long ones are cut between characters.
        let long = "\u{e9}".repeat(1_500);
        let cut = "\u{e9}".repeat(1_024);
        check_content(&field("last-message-body", &long), Body, Some((&cut, None)));
        let odd = format!("x&amp;{long}");
        let cut = format!("x&{}", "\u{e9}".repeat(1_023));
        check_content(&field("last-message-body", &odd), Body, Some((&cut, None)));
        let long = field("last-message-sender", &"s".repeat(3_000));
        let long = [long.as_str(), &body].concat();
        let cut = "s".repeat(512);
        check_content(&long, BodyAndSender, Some(("a & b", Some(&cut))));
    }

    #[test]
    fn secrets() {
        check(
            &secret(&field("secret", "s")),
            Ok(("n", Some("s"), None, false)),
        );
        let many: String = (0..50).map(|n| field(&format!("f{n}"), "x")).collect();
        check(
            &secret(&[many, field("secret", "s")].concat()),
            Ok(("n", Some("s"), None, false)),
        );
        check(
            &secret(&[field("FORM_TYPE", "any"), field("secret", "s")].concat()),
            Ok(("n", Some("s"), None, false)),
        );
        check(
            &secret(&[field("secret", "s"), field("secret", "t")].concat()),
            Ok(("n", Some("s"), None, false)),
        );
        check(
            &secret("<field type='hidden' label='l' var='secret'><value>s</value></field>"),
            Ok(("n", Some("s"), None, false)),
        );
        check(&secret(&field("secret", "")), Ok(("n", None, None, false)));
        check(
            &secret("<field var='secret'/>"),
            Ok(("n", None, None, false)),
        );
        check(
            &secret(&field("secret", &"s".repeat(257))),
            Ok(("n", None, None, false)),
        );
        check(
            &pubsub(&[notification(""), options("")].concat()),
            Ok(("n", None, None, false)),
        );
        let first = options(&format!(
            "<x xmlns='jabber:x:data'>{}</x>",
            field("secret", "s")
        ));
        check(
            &pubsub(&[first.as_str(), &notification("")].concat()),
            Ok(("n", Some("s"), None, false)),
        );
    }

    #[test]
    fn shapes() {
        let good = "<notification xmlns='urn:xmpp:push:0'/>";
        let publish = |attributes: &str, content: &str| {
            pubsub(&format!("<publish{attributes}>{content}</publish>"))
        };
        let item = format!("<item id='x'>{good}</item>");
        check(&publish(" node='n'", &item), Ok(("n", None, None, false)));
        check(
            &publish(" node='a&amp;\u{e9}'", &item),
            Ok(("a&\u{e9}", None, None, false)),
        );
        check(
            &publish(" node='n'", &format!("<x/>{item}<item/>")),
            Ok(("n", None, None, false)),
        );
        check(
            &publish(" node='n'", &format!("<item>text<y/>{good}</item>")),
            Ok(("n", None, None, false)),
        );
        check(
            &publish(&format!(" node='{}'", "n".repeat(1024)), &item),
            Ok((&"n".repeat(1024), None, None, false)),
        );
        for (attributes, content) in [
            ("", &*item),
            (" node=''", &item),
            (&format!(" node='{}'", "n".repeat(1025)), &item),
            (" node='n'", ""),
            (" node='n'", "<item/>"),
            (
                " node='n'",
                "<item><entry xmlns='http://www.w3.org/2005/Atom'/></item>",
            ),
            (" node='n'", "<item><notification/></item>"),
            (" node='n'", good),
            (" node='n'", &format!("<item/>{item}")),
        ] {
            check(&publish(attributes, content), Err("malformed"));
        }
        let pubsub_of = |inner: &str| format!("<pubsub xmlns='{}'>{inner}</pubsub>", ns::PUBSUB);
        check(
            &iq(&[pubsub_of(&notification("")), "<x/>".to_owned()].concat()),
            Err("malformed"),
        );
        let without_id = pubsub(&notification("")).replace(" id='1'", "");
        check(&without_id, Err("malformed"));
    }

    #[test]
    fn what_is_no_publish() {
        let good = pubsub(&notification(""));
        for other in [
            "<message/>".to_owned(),
            "<iq/>".to_owned(),
            iq(""),
            iq("<ping xmlns='urn:xmpp:ping'/>"),
            pubsub(""),
            pubsub("<subscribe node='n' jid='j'/>"),
            pubsub(&options("")),
            good.replace("type='set'", "type='get'"),
            good.replace("type='set'", ""),
            good.replace("from='chat.test'", ""),
            good.replace("to='push.test'", ""),
            good.replace("<iq ", "<iq xmlns='jabber:client' "),
            good.replace("protocol/pubsub", "protocol/pubsub#owner"),
            good.replace("publish node", "retract node")
                .replace("/publish>", "/retract>"),
        ] {
            check(&other, Err("other"));
        }
    }

    #[test]
    fn prefixes_do_not_matter() {
        let stanza = "<j:iq xmlns:j='jabber:server' to=\"push.test\" id=\"1\" xml:lang='en' from=\"chat.test\" type=\"set\">\
            <p:pubsub xmlns:p='http://jabber.org/protocol/pubsub'><p:publish node='n'><p:item>\
            <n:notification xmlns:n='urn:xmpp:push:0'><f:x xmlns:f='jabber:x:data'><f:field var='message-count'>\
            <f:value>7</f:value></f:field></f:x></n:notification></p:item></p:publish></p:pubsub></j:iq>";
        check(stanza, Ok(("n", None, Some(7), false)));
    }

    #[test]
    fn the_whole_stanza_has_to_be_well_formed() {
        let refused = |stanza: &str| read(stanza, &Namespaces::server(), Disclosure::Nothing).err();
        let good = pubsub(&notification("<q/>"));
        assert_eq!(refused(&good), None);
        for (part, bad) in [
            ("<q/>", "<1/>"),
            ("<q/>", "&#1;"),
            ("<q/>", "<q>"),
            ("</iq>", "</iq>x"),
            ("</pubsub>", "</pubsub>&"),
        ] {
            let bad = good.replace(part, bad);
            assert_eq!(refused(&bad), Some(XmlError::NotWellFormed), "{bad}");
        }
        assert_eq!(
            refused(&good.replace("<q/>", "&x;")),
            Some(XmlError::RestrictedXml)
        );
    }

    /// A value with odd corners.
    fn any_value() -> impl Strategy<Value = String> {
        let pieces = vec![
            "",
            "x",
            " ",
            "3",
            "17",
            "&amp;",
            "&#x33;",
            "<b>y</b>",
            "\n",
            "\u{e9}",
            "long text",
        ];
        prop::collection::vec(prop::sample::select(pieces), 0..4).prop_map(|pieces| pieces.concat())
    }

    fn any_field() -> impl Strategy<Value = String> {
        let names = vec![
            "message-count",
            "last-message-body",
            "last-message-sender",
            "secret",
            "other",
        ];
        let plain = (
            prop::sample::select(names),
            prop::collection::vec(any_value(), 1..3),
        );
        let form_type = mostly(SUMMARY, &["urn:other", ""]).prop_map(str::to_owned);
        let form_type = (Just("FORM_TYPE"), prop::collection::vec(form_type, 1..3));
        (prop_oneof![5 => plain, 1 => form_type], 0..20u8).prop_map(|((name, values), odd)| {
            let values: String = values
                .iter()
                .map(|value| format!("<value>{value}</value>"))
                .collect();
            match odd {
                0 => format!("<field>{values}</field>"),
                1 => format!("<field xmlns='urn:x' var='{name}'>{values}</field>"),
                2 => format!("<other var='{name}'>{values}</other>"),
                3 => format!("<field var='{name}'><other>{values}</other></field>"),
                4 => format!("<field var='{name}'/>"),
                _ => format!("<field type='hidden' var=\"{name}\">{values}</field>"),
            }
        })
    }

    fn any_form() -> impl Strategy<Value = String> {
        let fields = prop::collection::vec(any_field(), 0..8).prop_map(|fields| fields.concat());
        (fields, mostly("xmlns='jabber:x:data'", &["xmlns='urn:x'"]))
            .prop_map(|(fields, attributes)| format!("<x {attributes}>{fields}</x>"))
    }

    /// The usual, nine times of ten.
    fn mostly(usual: &'static str, odd: &[&'static str]) -> impl Strategy<Value = &'static str> {
        prop_oneof![9 => Just(usual), 1 => prop::sample::select(odd.to_vec())]
    }

    /// An element around some of `inner`.
    fn around(
        name: &'static str,
        attributes: impl Strategy<Value = &'static str>,
        inner: impl Strategy<Value = String>,
    ) -> impl Strategy<Value = String> {
        let inner = prop_oneof![
            9 => prop::collection::vec(inner, 1..3),
            1 => Just(Vec::new()),
        ];
        (attributes, inner).prop_map(move |(attributes, inner)| {
            format!("<{name} {attributes}>{}</{name}>", inner.join(" "))
        })
    }

    fn any_stanza() -> impl Strategy<Value = String> {
        let notification = mostly("xmlns='urn:xmpp:push:0'", &[""]);
        let notification = around("notification", notification, any_form());
        let item = around("item", mostly("", &["id='x'"]), notification);
        let node = mostly(
            "node='n'",
            &["node='a&lt;b'", "node='x' id='y'", "", "node=''"],
        );
        let publish = around("publish", node, item).boxed();
        let options = around("publish-options", Just(""), any_form());
        let parts = (
            prop_oneof![1 => Just(0..=0usize), 9 => Just(1..=2)]
                .prop_flat_map(move |size| prop::collection::vec(publish.clone(), size)),
            prop::collection::vec(options, 0..3),
            prop::option::weighted(0.1, Just("<other/>".to_owned())),
        );
        let parts = parts
            .prop_map(|(publish, options, other)| {
                [publish, options, other.into_iter().collect()].concat()
            })
            .prop_shuffle()
            .prop_map(|parts| parts.concat());
        let pubsub = mostly(
            "xmlns='http://jabber.org/protocol/pubsub'",
            &["xmlns='urn:x'"],
        );
        let pubsub = (pubsub, parts)
            .prop_map(|(attributes, parts)| format!("<pubsub {attributes}>{parts}</pubsub>"));
        let head = mostly(
            "type='set' id='1' from='chat.test' to='push.test'",
            &[
                "to=\"push.test\" from=\"chat.test\" id=\"1\" type=\"set\" xml:lang='en'",
                "type='set' from='chat.test' to='push.test'",
                "type='get' id='1' from='chat.test' to='push.test'",
                "type='set' id='1' to='push.test'",
            ],
        );
        (head, pubsub, mostly("", &["<more/>"]))
            .prop_map(|(head, inner, more)| format!("<iq {head}>{inner}{more}</iq>"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn one_pass_reads_what_a_tree_shows(stanza in any_stanza()) {
            crate::fuzzing::publish(stanza.as_bytes());
        }
    }
}
