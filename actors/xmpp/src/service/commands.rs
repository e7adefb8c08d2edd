//! Ad-hoc commands (XEP-0050). Those of dialects have a single stage; those about people's data have more,
//! which [`privacy`] keeps.

use super::dialect::v1;
use super::privacy;
use super::{Answer, BAD_REQUEST, ITEM_NOT_FOUND, Service, refuse, reply};
use crate::xml::stanza::{self, IqHead};
use crate::xml::{Element, ns, write};

/// A command on offer.
pub(super) struct Command {
    /// What it is called by.
    pub(super) node: &'static str,
    /// What it is called for people.
    pub(super) title: &'static str,
    /// Whether a service has it.
    is_offered: fn(&Service) -> bool,
    /// Whether it takes all actions itself.
    has_stages: bool,
    run: fn(&Element, &IqHead<'_>, &Service) -> Answer,
}

const fn has_apps(service: &Service) -> bool {
    !service.apps.is_empty()
}

const fn is_self_service(service: &Service) -> bool {
    service.privacy.self_service
}

const COMMANDS: [Command; 4] = [
    Command {
        node: v1::REGISTER,
        title: "Register for push notifications",
        is_offered: has_apps,
        has_stages: false,
        run: v1::register,
    },
    Command {
        node: v1::UNREGISTER,
        title: "Unregister from push notifications",
        is_offered: has_apps,
        has_stages: false,
        run: v1::unregister,
    },
    Command {
        node: privacy::ACCESS,
        title: "Get my data",
        is_offered: is_self_service,
        has_stages: true,
        run: privacy::access,
    },
    Command {
        node: privacy::ERASE,
        title: "Erase my data",
        is_offered: is_self_service,
        has_stages: true,
        run: privacy::erase,
    },
];

/// The commands that this service offers.
pub(super) fn offered(service: &Service) -> impl Iterator<Item = &'static Command> {
    const { &COMMANDS }
        .iter()
        .filter(|command| (command.is_offered)(service))
}

/// The command on offer with that node.
pub(super) fn named(node: &str, service: &Service) -> Option<&'static Command> {
    offered(service).find(|command| command.node == node)
}

/// Runs a command.
pub(super) fn execute(request: &Element, head: &IqHead<'_>, service: &Service) -> Answer {
    let node = request.attribute("node").unwrap_or_default();
    let Some(command) = named(node, service) else {
        return refuse(head, ITEM_NOT_FOUND);
    };
    match request.attribute("action") {
        _ if command.has_stages => (command.run)(request, head, service),
        // Absent means execute; some clients leave it out.
        None | Some("execute") => (command.run)(request, head, service),
        Some("cancel") => canceled(request, command, head),
        Some(_) => refuse(head, BAD_REQUEST.application("bad-action", ns::COMMANDS)),
    }
}

fn canceled(request: &Element, command: &Command, head: &IqHead<'_>) -> Answer {
    let id = head.id.as_deref().unwrap_or_default();
    let session = request.attribute("sessionid").unwrap_or(id);
    reply(|out| {
        stanza::result(out, head, |out| {
            write_command(out, command.node, session, "canceled", |_| {});
        });
    })
}

/// Appends a command element of an answer.
pub(super) fn write_command(
    out: &mut Vec<u8>,
    node: &str,
    session: &str,
    status: &str,
    content: impl FnOnce(&mut Vec<u8>),
) {
    let attributes = [
        ("xmlns", ns::COMMANDS),
        ("node", node),
        ("sessionid", session),
        ("status", status),
    ];
    write::element(out, "command", &attributes, content);
}
