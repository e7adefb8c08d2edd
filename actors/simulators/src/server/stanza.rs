//! The stanzas that the simulated server writes, in the shapes that real servers and clients have.

use super::xml::escaped;
use super::{PublishShape, SENDER, TEXT};

/// FORM_TYPE of legacy Monal's registration; the command's node follows.
pub(super) const FORM_TYPE: &str = "https://github.com/tmolitor-stud-tu/mod_push_appserver/#";
/// The commands' namespace (XEP-0050).
pub(super) const COMMANDS: &str = "http://jabber.org/protocol/commands";
/// The forms' namespace (XEP-0004).
pub(super) const FORMS: &str = "jabber:x:data";

/// An iq with its payload. Ids, addresses and payload must be fit for XML.
pub(super) fn iq(kind: &str, from: &str, to: &str, id: &str, payload: &str) -> String {
    format!("<iq type='{kind}' from='{from}' to='{to}' id='{id}'>{payload}</iq>")
}

/// `v1-register-push` as legacy Monal sends it.
pub(super) fn register(node: &str, device_token: &str) -> String {
    command(
        "v1-register-push",
        &[("type", "apns"), ("node", node), ("token", device_token)],
    )
}

/// `v1-unregister-push` as legacy Monal sends it.
pub(super) fn unregister(node: &str) -> String {
    command("v1-unregister-push", &[("type", "apns"), ("node", node)])
}

fn command(name: &str, fields: &[(&str, &str)]) -> String {
    let mut xml = format!(
        "<command xmlns='{COMMANDS}' node='{name}' action='execute'>\
         <x xmlns='{FORMS}' type='submit'>\
         <field var='FORM_TYPE' type='hidden'><value>{FORM_TYPE}{name}</value></field>"
    );
    for (var, value) in fields {
        let value = escaped(value);
        xml.push_str(&format!(
            "<field var='{var}'><value>{value}</value></field>"
        ));
    }
    xml.push_str("</x></command>");
    xml
}

/// A publish (XEP-0357 §5).
pub(super) fn publish(
    shape: PublishShape,
    node: &str,
    secret: Option<&str>,
    has_body: bool,
) -> String {
    let summary = match (shape, has_body) {
        (PublishShape::Prosody | PublishShape::ProsodyWithContent, _) => {
            let with_content = shape == PublishShape::ProsodyWithContent;
            let field = |kind: &str, var: &str, value: Option<&str>| {
                let value = value.map(|value| format!("<value>{}</value>", escaped(value)));
                let value = value.unwrap_or_default();
                format!("<field type='{kind}' var='{var}'>{value}</field>")
            };
            let text = if with_content { TEXT } else { "New Message!" };
            let body = field("text-single", "last-message-body", has_body.then_some(text));
            let sender = with_content.then_some(SENDER);
            let sender = field("jid-single", "last-message-sender", sender);
            format!(
                "<notification xmlns='urn:xmpp:push:0'><x xmlns='{FORMS}' type='form'>\
                 <field type='hidden' var='FORM_TYPE'><value>urn:xmpp:push:summary</value></field>\
                 <field type='text-single' var='message-count'><value>1</value></field>\
                 <field type='text-single' var='pending-subscription-count'/>\
                 {sender}{body}</x></notification>"
            )
        }
        (PublishShape::Ejabberd, true) => format!(
            "<notification xmlns='urn:xmpp:push:0'><x type='submit' xmlns='{FORMS}'>\
             <field var='FORM_TYPE' type='hidden'><value>urn:xmpp:push:summary</value></field>\
             <field var='last-message-body' type='text-single' \
             label='The body text of the last received message'>\
             <value>New message</value></field></x></notification>"
        ),
        (PublishShape::Ejabberd, false) => "<notification xmlns='urn:xmpp:push:0'/>".to_owned(),
    };
    let options = secret.map_or_else(String::new, |secret| {
        format!(
            "<publish-options><x xmlns='{FORMS}' type='submit'><field var='FORM_TYPE'>\
             <value>http://jabber.org/protocol/pubsub#publish-options</value></field>\
             <field var='secret'><value>{}</value></field></x></publish-options>",
            escaped(secret)
        )
    });
    format!(
        "<pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='{}'>\
         <item>{summary}</item></publish>{options}</pubsub>",
        escaped(node)
    )
}

#[cfg(test)]
mod tests {
    use super::super::xml::{Scope, parse};
    use super::*;

    #[test]
    fn all_of_it_is_xml() {
        let hostile = "a'b<c>&\"d";
        let mut payloads = vec![register(hostile, "ab"), unregister(hostile)];
        let shapes = [
            PublishShape::Prosody,
            PublishShape::ProsodyWithContent,
            PublishShape::Ejabberd,
        ];
        for shape in shapes {
            for has_body in [true, false] {
                for secret in [None, Some(hostile)] {
                    payloads.push(publish(shape, hostile, secret, has_body));
                }
            }
        }
        for payload in payloads {
            let xml = iq("set", "a.test", "b.test", "1", &payload);
            let iq = parse(xml.as_bytes(), &Scope::default()).unwrap();
            assert_eq!(iq.children.len(), 1, "{xml}");
        }
    }

    #[test]
    fn only_a_body_makes_a_body_field() {
        for shape in [PublishShape::Prosody, PublishShape::Ejabberd] {
            let with = publish(shape, "n", None, true);
            assert!(with.to_lowercase().contains("<value>new message"));
            let without = publish(shape, "n", None, false);
            assert!(!without.to_lowercase().contains("new message"));
        }
    }
}
