//! What a served domain answers to everything that is no publish. Pure: a stanza in, an answer out.

mod commands;
mod dialect;
mod disco;
mod form;
mod privacy;

use messages::{
    AppId, ConfirmCase, Disclosure, Domain, PushOutcome, Register, Rejection, RunPrivacyCommand,
    Unregister,
};

pub(crate) use dialect::v1::PendingCommand;
pub(crate) use privacy::{PendingConfirmation, PendingStage, message};

use crate::config::{Contacts, Privacy};
use crate::jid::Jid;
use crate::reply;
use crate::xml::stanza::{self, Condition, ErrorType, IqHead, StanzaError};
use crate::xml::{Element, ns, write};

/// One served domain.
#[derive(Debug)]
pub(crate) struct Service {
    /// The domain.
    pub(crate) domain: Domain,
    /// The apps devices may register for; the v1 dialect cannot choose and takes the first.
    pub(crate) apps: Vec<AppId>,
    /// Whom to turn to (XEP-0157).
    pub(crate) contacts: Contacts,
    /// The most that any of the apps shows of a message.
    pub(crate) disclosure: Disclosure,
    /// How people are answered about their data.
    pub(crate) privacy: Privacy,
    /// The program's name (XEP-0092).
    pub(crate) software: &'static str,
    /// The program's version (XEP-0092).
    pub(crate) version: &'static str,
}

/// What to do about a stanza.
pub(crate) enum Answer {
    /// Nothing: it is an answer itself, a message or presence.
    Nothing,
    /// Send these bytes.
    Reply(Vec<u8>),
    /// Ask the registry, then send [`PendingCommand::registered`].
    Register(Register, PendingCommand),
    /// Ask the registry, then send [`PendingCommand::unregistered`].
    Unregister(Unregister, PendingCommand),
    /// Ask whoever answers people about their data, then send [`PendingStage::rendered`].
    Command(RunPrivacyCommand, PendingStage),
    /// Ask the same, then send [`PendingConfirmation::rendered`] if there is anything to say.
    Confirm(ConfirmCase, PendingConfirmation),
    /// No stanza at all: end the stream with `unsupported-stanza-type`.
    Unsupported,
    /// A stanza without both addresses: end the stream with `improper-addressing` (RFC 6120 §8.1).
    Unaddressed,
}

/// Answers a stanza whose sender is authenticated and whose `to` is at the domain of `service`. Of which
/// kind its stream is makes no difference.
pub(crate) fn answer(stanza: &Element, service: &Service) -> Answer {
    let head = IqHead::of(stanza);
    let content = matches!(stanza.namespace(), ns::SERVER | ns::COMPONENT);
    match (content, stanza.name(), head) {
        (true, "iq", Some(head)) => answer_iq(stanza, &head, service),
        (true, "message", Some(head)) => privacy::receive(stanza, &head, service),
        (true, "presence", Some(head)) => privacy::presence(stanza, &head, service),
        (true, "iq" | "message" | "presence", None) => Answer::Unaddressed,
        _ => Answer::Unsupported,
    }
}

fn answer_iq(iq: &Element, head: &IqHead<'_>, service: &Service) -> Answer {
    let kind = iq.attribute("type");
    if matches!(kind, Some("result" | "error")) {
        return Answer::Nothing;
    }
    if looks_like_a_push(iq) {
        let malformed = PushOutcome::Rejected(Rejection::Malformed);
        return reply(|out| reply::render(out, head, malformed));
    }
    let get = match kind {
        Some("get") => true,
        Some("set") => false,
        _ => return refuse(head, BAD_REQUEST),
    };
    let mut children = iq.elements();
    let (Some(request), None, Some(_)) = (children.next(), children.next(), &head.id) else {
        return refuse(head, BAD_REQUEST);
    };
    match Jid::parse(&head.to) {
        Ok(to) if to.is_domain() => {}
        Ok(to) if get && privacy::is_address(&to, service) => {
            return privacy::discover(request, head, service);
        }
        _ => return refuse(head, SERVICE_UNAVAILABLE),
    }
    match (get, request.namespace(), request.name()) {
        (true, ns::DISCO_INFO, "query") => disco::info(request, head, service),
        (true, ns::DISCO_ITEMS, "query") => disco::items(request, head, service),
        (true, ns::PING, "ping") => reply(|out| stanza::result(out, head, |_| {})),
        (true, ns::VERSION, "query") => software_version(head, service),
        (false, ns::COMMANDS, "command") => commands::execute(request, head, service),
        (_, ns::PUBSUB | ns::PUBSUB_OWNER, "pubsub") => refuse(
            head,
            StanzaError::new(ErrorType::Cancel, Condition::FeatureNotImplemented),
        ),
        _ => refuse(head, SERVICE_UNAVAILABLE),
    }
}

/// Whether a server seems to mean a push in a form that is none. The answers to other requests would make it
/// forget the device, which may be fine.
fn looks_like_a_push(iq: &Element) -> bool {
    iq.descendants().any(|element| {
        matches!(
            (element.namespace(), element.name()),
            (ns::PUSH, "notification") | (ns::PUBSUB, "publish" | "publish-options")
        )
    })
}

fn software_version(head: &IqHead<'_>, service: &Service) -> Answer {
    reply(|out| {
        stanza::result(out, head, |out| {
            write::element(out, "query", &[("xmlns", ns::VERSION)], |out| {
                write::element(out, "name", &[], |out| write::text(out, service.software));
                write::element(out, "version", &[], |out| write::text(out, service.version));
            });
        });
    })
}

const BAD_REQUEST: StanzaError<'_> = StanzaError::new(ErrorType::Modify, Condition::BadRequest);
const SERVICE_UNAVAILABLE: StanzaError<'_> =
    StanzaError::new(ErrorType::Cancel, Condition::ServiceUnavailable);
const ITEM_NOT_FOUND: StanzaError<'_> =
    StanzaError::new(ErrorType::Cancel, Condition::ItemNotFound);

fn refuse(head: &IqHead<'_>, error: StanzaError<'_>) -> Answer {
    reply(|out| stanza::error(out, head, error))
}

fn reply(render: impl FnOnce(&mut Vec<u8>)) -> Answer {
    Answer::Reply(rendered(render))
}

fn rendered(render: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    render(&mut out);
    out
}

#[cfg(test)]
mod tests;
