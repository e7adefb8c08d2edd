//! Service discovery (XEP-0030), with contact addresses (XEP-0157).

use super::{Answer, ITEM_NOT_FOUND, Service, commands, form, reply};
use crate::xml::stanza::{self, IqHead};
use crate::xml::{Element, ns, write};

const FEATURES: [&str; 6] = [
    ns::DISCO_INFO,
    ns::DISCO_ITEMS,
    ns::COMMANDS,
    ns::PUSH,
    ns::PING,
    ns::VERSION,
];

/// Answers `disco#info`.
pub(super) fn info(query: &Element, head: &IqHead<'_>, service: &Service) -> Answer {
    match query.attribute("node") {
        None => found(query, head, |out| {
            identity(out, "pubsub", "push", service.software);
            FEATURES
                .iter()
                .for_each(|feature| write_feature(out, feature));
            contacts(out, service);
        }),
        Some(ns::COMMANDS) => found(query, head, |out| {
            identity(out, "automation", "command-list", "Commands");
            write_feature(out, ns::COMMANDS);
        }),
        Some(node) => match commands::named(node, service) {
            Some(command) => found(query, head, |out| {
                identity(out, "automation", "command-node", command.title);
                write_feature(out, ns::COMMANDS);
                write_feature(out, ns::FORMS);
            }),
            None => not_found(query, head),
        },
    }
}

/// Answers `disco#items`.
pub(super) fn items(query: &Element, head: &IqHead<'_>, service: &Service) -> Answer {
    match query.attribute("node") {
        None => found(query, head, |_| {}),
        Some(ns::COMMANDS) => found(query, head, |out| {
            for command in commands::offered(service) {
                let attributes = [
                    ("jid", &*head.to),
                    ("node", command.node),
                    ("name", command.title),
                ];
                write::empty(out, "item", &attributes);
            }
        }),
        Some(node) => match commands::named(node, service) {
            Some(_) => found(query, head, |_| {}),
            None => not_found(query, head),
        },
    }
}

/// Answers `disco#info` about an address that is an account of the service in name alone.
pub(super) fn account(query: &Element, head: &IqHead<'_>) -> Answer {
    if query.attribute("node").is_some() {
        return not_found(query, head);
    }
    found(query, head, |out| {
        identity(out, "account", "registered", "Requests about personal data");
        write_feature(out, ns::DISCO_INFO);
    })
}

/// Answers `disco#items` about such an address.
pub(super) fn nothing(query: &Element, head: &IqHead<'_>) -> Answer {
    match query.attribute("node") {
        Some(_) => not_found(query, head),
        None => found(query, head, |_| {}),
    }
}

fn found(query: &Element, head: &IqHead<'_>, content: impl FnOnce(&mut Vec<u8>)) -> Answer {
    reply(|out| stanza::result(out, head, |out| write_query(out, query, content)))
}

fn not_found(query: &Element, head: &IqHead<'_>) -> Answer {
    reply(|out| {
        stanza::error_about(out, head, ITEM_NOT_FOUND, |out| {
            write_query(out, query, |_| {});
        });
    })
}

/// The query again, its node echoed.
fn write_query(out: &mut Vec<u8>, query: &Element, content: impl FnOnce(&mut Vec<u8>)) {
    let xmlns = ("xmlns", query.namespace());
    match query.attribute("node") {
        Some(node) => write::element(out, "query", &[xmlns, ("node", node)], content),
        None => write::element(out, "query", &[xmlns], content),
    }
}

fn identity(out: &mut Vec<u8>, category: &str, kind: &str, name: &str) {
    let attributes = [("category", category), ("type", kind), ("name", name)];
    write::empty(out, "identity", &attributes);
}

fn write_feature(out: &mut Vec<u8>, feature: &str) {
    write::empty(out, "feature", &[("var", feature)]);
}

fn contacts(out: &mut Vec<u8>, service: &Service) {
    let fields = service.contacts.each();
    let known = || fields.iter().filter(|(_, addresses)| !addresses.is_empty());
    if known().next().is_none() {
        return;
    }
    form::write_form(out, "result", |out| {
        form::write_form_type(out, "http://jabber.org/network/serverinfo");
        for (name, addresses) in known() {
            let name = format!("{name}-addresses");
            let addresses = addresses.iter().map(String::as_str);
            form::write_field(out, &name, Some("list-multi"), addresses);
        }
    });
}
