//! What people ask about their data: by commands, and by a message to the address that takes codes.
//!
//! The address is an account in name alone. Clients subscribe to it and look what it can do before they
//! write to it: a subscription is refused at once, so that nobody waits for it, and discovery is answered.

use messages::{
    BareJid, CommandAction, CommandError, CommandStage, CommandStatus, ConfirmCase, PrivacyCommand,
    RunPrivacyCommand,
};

use super::dialect::v1;
use super::{
    Answer, BAD_REQUEST, SERVICE_UNAVAILABLE, Service, disco, form, refuse, rendered, reply,
};
use crate::jid::Jid;
use crate::xml::stanza::{self, Condition, ErrorType, IqHead, StanzaError};
use crate::xml::{Element, ns, write};

/// The command that shows all that is held.
pub(super) const ACCESS: &str = "get-my-data";
/// The command that erases it.
pub(super) const ERASE: &str = "erase-my-data";

/// Longest text of a message that is looked at.
const TEXT_BYTES_MAX: usize = 4_096;

const CARBONS: &str = "urn:xmpp:carbons:2";
const FORWARD: &str = "urn:xmpp:forward:0";
const ARCHIVE: &str = "urn:xmpp:mam:2";
const ENCRYPTION: &str = "urn:xmpp:eme:0";

/// Whether an address is the one that takes codes.
pub(super) fn is_address(to: &Jid, service: &Service) -> bool {
    to.localpart.is_some() && to.localpart.as_deref() == service.privacy.localpart.as_deref()
}

/// Runs [`ACCESS`].
pub(super) fn access(request: &Element, head: &IqHead<'_>, _: &Service) -> Answer {
    run(PrivacyCommand::Access, request, head)
}

/// Runs [`ERASE`].
pub(super) fn erase(request: &Element, head: &IqHead<'_>, _: &Service) -> Answer {
    run(PrivacyCommand::Erase, request, head)
}

fn run(command: PrivacyCommand, request: &Element, head: &IqHead<'_>) -> Answer {
    let account = match v1::account(head) {
        Ok(account) => account,
        Err(error) => return refuse(head, error),
    };
    let action = match request.attribute("action") {
        None | Some("execute") => CommandAction::Execute,
        Some("next") => CommandAction::Next,
        Some("prev") => CommandAction::Previous,
        Some("complete") => CommandAction::Complete,
        Some("cancel") => CommandAction::Cancel,
        Some(_) => {
            return refuse(
                head,
                BAD_REQUEST.application("malformed-action", ns::COMMANDS),
            );
        }
    };
    let run = RunPrivacyCommand {
        account,
        command,
        session: request.attribute("sessionid").map(str::to_owned),
        action,
    };
    let pending = PendingStage {
        head: head.clone().into_owned(),
        command,
    };
    Answer::Command(run, pending)
}

/// A command that waits for its next stage.
pub(crate) struct PendingStage {
    head: IqHead<'static>,
    command: PrivacyCommand,
}

impl PendingStage {
    /// The answer.
    pub(crate) fn rendered(self, outcome: Result<CommandStage, CommandError>) -> Vec<u8> {
        match outcome {
            Ok(stage) => self.stage(&stage),
            Err(error) => rendered(|out| stanza::error(out, &self.head, command_error(error))),
        }
    }

    fn stage(&self, stage: &CommandStage) -> Vec<u8> {
        let node = match self.command {
            PrivacyCommand::Access => ACCESS,
            PrivacyCommand::Erase => ERASE,
        };
        let (status, actions) = match stage.status {
            CommandStatus::Executing { actions } => ("executing", actions),
            CommandStatus::Completed => ("completed", &[][..]),
            CommandStatus::Canceled => ("canceled", &[][..]),
        };
        rendered(|out| {
            stanza::result(out, &self.head, |out| {
                super::commands::write_command(out, node, &stage.session, status, |out| {
                    write_actions(out, actions);
                    if let Some(note) = &stage.note {
                        write::element(out, "note", &[("type", "info")], |out| {
                            write::text(out, note);
                        });
                    }
                    if !stage.fields.is_empty() {
                        write_stage(out, stage);
                    }
                });
            });
        })
    }
}

fn write_actions(out: &mut Vec<u8>, actions: &[CommandAction]) {
    let Some(default) = actions.iter().find_map(|action| name(*action)) else {
        return;
    };
    write::element(out, "actions", &[("execute", default)], |out| {
        for name in actions.iter().filter_map(|action| name(*action)) {
            write::empty(out, name, &[]);
        }
    });
}

/// The name of an action that may be offered.
const fn name(action: CommandAction) -> Option<&'static str> {
    match action {
        CommandAction::Previous => Some("prev"),
        CommandAction::Next => Some("next"),
        CommandAction::Complete => Some("complete"),
        CommandAction::Execute | CommandAction::Cancel => None,
    }
}

fn write_stage(out: &mut Vec<u8>, stage: &CommandStage) {
    // A stage that waits asks nothing but to go on, so its form is filled in already.
    let kind = match stage.status {
        CommandStatus::Executing { .. } => "form",
        _ => "result",
    };
    form::write_form(out, kind, |out| {
        write::element(out, "title", &[], |out| write::text(out, &stage.title));
        write::element(out, "instructions", &[], |out| {
            write::text(out, &stage.instructions);
        });
        for field in &stage.fields {
            let lines = field.lines.iter().map(String::as_str);
            form::write_labelled(out, field.name, field.label, lines);
        }
    });
}

const fn command_error(error: CommandError) -> StanzaError<'static> {
    match error {
        CommandError::Limited => StanzaError::new(ErrorType::Wait, Condition::PolicyViolation)
            .text("asked too often: try again tomorrow"),
        CommandError::Busy => StanzaError::new(ErrorType::Wait, Condition::ResourceConstraint)
            .text("busy, try again later"),
        CommandError::Unfinished => {
            StanzaError::new(ErrorType::Wait, Condition::ResourceConstraint).text(
                "nothing was erased: too many erasures could not be finished yet, try again later",
            )
        }
        CommandError::NoSession => BAD_REQUEST.application("bad-sessionid", ns::COMMANDS),
        CommandError::BadAction => BAD_REQUEST.application("bad-action", ns::COMMANDS),
        CommandError::Failed => StanzaError::new(ErrorType::Wait, Condition::InternalServerError),
    }
}

/// Takes a message. Only what an account itself has written to the address is looked at: no error that
/// comes back, no copy of what was sent elsewhere, nothing that somebody passes on.
pub(super) fn receive(message: &Element, head: &IqHead<'_>, service: &Service) -> Answer {
    let Some((account, address)) = pair(head, service) else {
        return Answer::Nothing;
    };
    if !matches!(message.attribute("type"), None | Some("normal" | "chat")) {
        return Answer::Nothing;
    }
    let is_copy = message
        .elements()
        .any(|child| matches!(child.namespace(), CARBONS | FORWARD | ARCHIVE));
    let Some(body) = message.child("body", message.namespace()) else {
        return Answer::Nothing;
    };
    let text = body.text();
    if is_copy || text.len() > TEXT_BYTES_MAX {
        return Answer::Nothing;
    }
    let encrypted = message.elements().any(|child| {
        child.namespace() == ENCRYPTION || matches!(child.name(), "encrypted" | "openpgp")
    });
    let confirm = ConfirmCase {
        account,
        address,
        text: text.into_owned(),
        encrypted,
    };
    let pending = PendingConfirmation {
        head: head.clone().into_owned(),
        thread: message
            .child("thread", message.namespace())
            .map(|thread| thread.text().into_owned()),
        chat: message.attribute("type") == Some("chat"),
    };
    Answer::Confirm(confirm, pending)
}

/// The account that has sent something to the address, and the address.
fn pair(head: &IqHead<'_>, service: &Service) -> Option<(BareJid, BareJid)> {
    let to = Jid::parse(&head.to).ok()?;
    if !is_address(&to, service) || to.resource.is_some() {
        return None;
    }
    Some((Jid::parse(&head.from).ok()?.account()?, to.account()?))
}

/// A message that waits for what to say to it.
pub(crate) struct PendingConfirmation {
    head: IqHead<'static>,
    thread: Option<String>,
    chat: bool,
}

impl PendingConfirmation {
    /// The answer, to the account as a whole.
    pub(crate) fn rendered(self, text: &str) -> Vec<u8> {
        let Some(account) = Jid::parse(&self.head.from)
            .ok()
            .and_then(|jid| jid.account())
        else {
            return Vec::new();
        };
        let kind = if self.chat { "chat" } else { "normal" };
        let attributes = [
            ("type", kind),
            ("from", &*self.head.to),
            ("to", account.as_str()),
        ];
        rendered(|out| {
            write::element(out, "message", &attributes, |out| {
                write::element(out, "body", &[], |out| write::text(out, text));
                if let Some(thread) = &self.thread {
                    write::element(out, "thread", &[], |out| write::text(out, thread));
                }
            });
        })
    }
}

/// A chat message as it is sent.
pub(crate) fn message(from: &str, to: &str, text: &str) -> Vec<u8> {
    let attributes = [("type", "chat"), ("from", from), ("to", to)];
    rendered(|out| {
        write::element(out, "message", &attributes, |out| {
            write::element(out, "body", &[], |out| write::text(out, text));
        });
    })
}

/// Refuses subscriptions to the address, and takes no notice of other presence.
pub(super) fn presence(presence: &Element, head: &IqHead<'_>, service: &Service) -> Answer {
    let Some((account, address)) = pair(head, service) else {
        return Answer::Nothing;
    };
    if presence.attribute("type") != Some("subscribe") {
        return Answer::Nothing;
    }
    let attributes = [
        ("type", "unsubscribed"),
        ("from", address.as_str()),
        ("to", account.as_str()),
    ];
    reply(|out| write::empty(out, "presence", &attributes))
}

/// Answers what may be asked of the address.
pub(super) fn discover(request: &Element, head: &IqHead<'_>, _: &Service) -> Answer {
    match (request.namespace(), request.name()) {
        (ns::DISCO_INFO, "query") => disco::account(request, head),
        (ns::DISCO_ITEMS, "query") => disco::nothing(request, head),
        _ => refuse(head, SERVICE_UNAVAILABLE),
    }
}

#[cfg(test)]
mod tests {
    use messages::CommandField;

    use super::super::answer;
    use super::*;
    use crate::config::{Contacts, Privacy};
    use crate::xml::Namespaces;

    fn service() -> Service {
        Service {
            domain: messages::Domain::new("push.test"),
            apps: vec![messages::AppId::new("messenger")],
            contacts: Contacts::default(),
            disclosure: messages::Disclosure::Nothing,
            privacy: Privacy {
                localpart: Some("privacy".to_owned()),
                self_service: true,
            },
            software: "Campanile",
            version: "1.2.3",
        }
    }

    fn ask(stanza: &str) -> Answer {
        let element = Element::read(stanza, &Namespaces::server()).unwrap();
        answer(&element, &service())
    }

    fn message(attributes: &str, content: &str) -> Answer {
        ask(&format!(
            "<message from='ada@chat.test/phone' {attributes}>{content}</message>"
        ))
    }

    const BODY: &str = "<body>ABCD</body>";

    #[test]
    fn a_message_of_an_account_to_the_address_is_a_code() {
        for (kind, answered) in [
            ("type='chat'", "type='chat'"),
            ("type='normal'", "type='normal'"),
            ("", "type='normal'"),
        ] {
            let attributes = format!("to='Privacy@push.test' {kind}");
            let thread = format!("{BODY}<thread>t</thread>");
            let Answer::Confirm(confirm, pending) = message(&attributes, &thread) else {
                panic!("{kind} is no code");
            };
            assert_eq!(confirm.account.as_str(), "ada@chat.test");
            assert_eq!(confirm.address.as_str(), "privacy@push.test");
            assert!(confirm.text == "ABCD" && !confirm.encrypted);
            assert_eq!(
                String::from_utf8(pending.rendered("a < b")).unwrap(),
                format!(
                    "<message {answered} from='Privacy@push.test' to='ada@chat.test'>\
                     <body>a &lt; b</body><thread>t</thread></message>"
                )
            );
        }
        let encrypted = format!("{BODY}<encrypted xmlns='eu.siacs.conversations.axolotl'/>");
        assert!(matches!(message("to='privacy@push.test'", &encrypted),
            Answer::Confirm(confirm, _) if confirm.encrypted));
    }

    #[test]
    fn nothing_else_is() {
        let forwarded = "<forwarded xmlns='urn:xmpp:forward:0'><message \
                         xmlns='jabber:client' to='privacy@push.test'><body>ABCD</body></message>\
                         </forwarded>";
        let long = format!("<body>{}</body>", "x".repeat(5_000));
        for (attributes, content) in [
            ("to='help@push.test'", BODY),
            ("to='push.test'", BODY),
            ("to='privacy@push.test/desk'", BODY),
            ("to='privacy@push.test' type='error'", BODY),
            ("to='privacy@push.test' type='groupchat'", BODY),
            ("to='privacy@push.test' type='headline'", BODY),
            ("to='privacy@push.test'", "<body xmlns='other'>ABCD</body>"),
            ("to='privacy@push.test'", "<subject>ABCD</subject>"),
            ("to='privacy@push.test'", forwarded),
            ("to='privacy@push.test'", &format!("{BODY}{forwarded}")),
            (
                "to='privacy@push.test'",
                &format!("{BODY}<received xmlns='urn:xmpp:carbons:2'>{forwarded}</received>"),
            ),
            (
                "to='privacy@push.test'",
                &format!("{BODY}<sent xmlns='urn:xmpp:carbons:2'>{forwarded}</sent>"),
            ),
            (
                "to='privacy@push.test'",
                &format!("{BODY}<result xmlns='urn:xmpp:mam:2'>{forwarded}</result>"),
            ),
            ("to='privacy@push.test'", &long),
        ] {
            assert!(
                matches!(message(attributes, content), Answer::Nothing),
                "{attributes} {content}"
            );
        }
        let of_a_server =
            "<message from='chat.test' to='privacy@push.test'><body>A</body></message>";
        assert!(matches!(ask(of_a_server), Answer::Nothing));
    }

    #[track_caller]
    fn check(stanza: &str, expected: &str) {
        match ask(stanza) {
            Answer::Reply(reply) => assert_eq!(String::from_utf8(reply).unwrap(), expected),
            Answer::Nothing => assert_eq!("", expected),
            _ => panic!("neither reply nor silence to {stanza}"),
        }
    }

    #[test]
    fn clients_that_look_at_the_address_are_answered() {
        let presence = |kind: &str, to: &str| {
            format!("<presence from='ada@chat.test' to='{to}' type='{kind}'/>")
        };
        check(
            &presence("subscribe", "privacy@push.test"),
            "<presence type='unsubscribed' from='privacy@push.test' to='ada@chat.test'/>",
        );
        check(&presence("unsubscribe", "privacy@push.test"), "");
        check(&presence("probe", "privacy@push.test"), "");
        check(&presence("subscribe", "help@push.test"), "");
        check(&presence("subscribe", "push.test"), "");

        let iq = |to: &str, content: &str| {
            format!("<iq type='get' id='1' from='ada@chat.test/x' to='{to}'>{content}</iq>")
        };
        let info = "<query xmlns='http://jabber.org/protocol/disco#info'/>";
        check(
            &iq("privacy@push.test", info),
            "<iq type='result' id='1' from='privacy@push.test' to='ada@chat.test/x'>\
             <query xmlns='http://jabber.org/protocol/disco#info'><identity category='account' \
             type='registered' name='Requests about personal data'/>\
             <feature var='http://jabber.org/protocol/disco#info'/></query></iq>",
        );
        let unavailable = |to: &str| {
            format!(
                "<iq type='error' id='1' from='{to}' to='ada@chat.test/x'><error type='cancel'>\
                 <service-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>"
            )
        };
        check(&iq("help@push.test", info), &unavailable("help@push.test"));
        let vcard = "<vCard xmlns='vcard-temp'/>";
        check(
            &iq("privacy@push.test", vcard),
            &unavailable("privacy@push.test"),
        );
    }

    fn command(attributes: &str) -> Answer {
        ask(&format!(
            "<iq type='set' id='1' from='ada@chat.test/x' to='push.test'>\
             <command xmlns='http://jabber.org/protocol/commands' {attributes}/></iq>"
        ))
    }

    #[test]
    fn commands_carry_session_and_action() {
        for (attributes, expected) in [
            ("node='get-my-data'", (None, CommandAction::Execute)),
            (
                "node='get-my-data' action='execute'",
                (None, CommandAction::Execute),
            ),
            (
                "node='get-my-data' sessionid='s' action='prev'",
                (Some("s"), CommandAction::Previous),
            ),
            (
                "node='get-my-data' sessionid='s' action='cancel'",
                (Some("s"), CommandAction::Cancel),
            ),
        ] {
            let Answer::Command(run, _) = command(attributes) else {
                panic!("{attributes} is no command");
            };
            assert_eq!((run.session.as_deref(), run.action), expected);
            assert_eq!(run.account.as_str(), "ada@chat.test");
            assert_eq!(run.command, PrivacyCommand::Access);
        }
        assert!(matches!(
            command("node='erase-my-data' action='sing'"),
            Answer::Reply(_)
        ));
        let without = Service {
            privacy: Privacy::default(),
            ..service()
        };
        let stanza = "<iq type='set' id='1' from='ada@chat.test/x' to='push.test'>\
                      <command xmlns='http://jabber.org/protocol/commands' node='get-my-data'/></iq>";
        let element = Element::read(stanza, &Namespaces::server()).unwrap();
        assert!(matches!(answer(&element, &without), Answer::Reply(_)));
    }

    #[test]
    fn stages_are_forms_with_actions() {
        let Answer::Command(_, pending) = command("node='erase-my-data'") else {
            panic!("no command");
        };
        let stage = CommandStage {
            session: "s".to_owned(),
            status: CommandStatus::Executing {
                actions: &[CommandAction::Next, CommandAction::Complete],
            },
            note: None,
            title: "T".to_owned(),
            instructions: "I".to_owned(),
            fields: vec![CommandField {
                name: "data",
                label: "D",
                lines: vec!["a".to_owned(), "b".to_owned()],
            }],
        };
        assert_eq!(
            String::from_utf8(pending.rendered(Ok(stage))).unwrap(),
            "<iq type='result' id='1' from='push.test' to='ada@chat.test/x'>\
             <command xmlns='http://jabber.org/protocol/commands' node='erase-my-data' sessionid='s' \
             status='executing'><actions execute='next'><next/><complete/></actions>\
             <x xmlns='jabber:x:data' type='form'><title>T</title><instructions>I</instructions>\
             <field var='data' type='text-multi' label='D'><value>a</value><value>b</value></field></x>\
             </command></iq>"
        );
    }
}
