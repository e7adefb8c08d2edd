//! Commands and their data forms.

use messages::{AppId, CommandError, Domain, NodeId, Registered, RegistryError, Removed, Secret};

use super::oracle::{self, Tree};
use super::{HEADER, check_answer, namespaces};
use crate::jid::Jid;
use crate::service::{self, Answer, Service};
use crate::xml::stanza::IqHead;
use crate::xml::{self, Element, ns};
use crate::{Contacts, Privacy};

const EITHER: &[&str] = &["result", "error"];

/// Takes `data` for a stanza, or else for what is in a command: every iq is answered once and back to
/// its sender, and what goes to the registry is what the form says as quick-xml reads it.
pub fn form(data: &[u8]) {
    let Ok(text) = xml::utf8(data) else {
        return;
    };
    if text.starts_with("<iq") {
        return ask(text);
    }
    for command in ["v1-register-push", "v1-unregister-push"] {
        ask(&format!(
            "<iq type='set' id='1' from='Ada@chat.test/x' to='push.test'>\
             <command xmlns='http://jabber.org/protocol/commands' node='{command}'>{text}</command></iq>"
        ));
    }
}

fn ask(text: &str) {
    let Ok(stanza) = Element::read(text, &namespaces()) else {
        return;
    };
    let children = oracle::children(&[HEADER, text].concat());
    let (_, tree) = &children[0];
    let apps = vec![AppId::new("app"), AppId::new("other")];
    for apps in [apps, Vec::new()] {
        check(&stanza, tree, &service(apps));
    }
}

fn service(apps: Vec<AppId>) -> Service {
    Service {
        domain: Domain::new("push.test"),
        apps,
        contacts: Contacts {
            abuse: vec!["mailto:abuse@push.test".to_owned()],
            ..Contacts::default()
        },
        disclosure: messages::Disclosure::Nothing,
        privacy: Privacy {
            localpart: Some("privacy".to_owned()),
            self_service: true,
        },
        software: "Campanile",
        version: "1.2.3",
    }
}

fn check(stanza: &Element, tree: &Tree, service: &Service) {
    let again = || service::answer(stanza, service);
    let Some(head) = IqHead::of(stanza) else {
        assert!(matches!(again(), Answer::Unaddressed | Answer::Unsupported));
        return;
    };
    let form = || {
        let command = tree.children.first().expect("there is a command");
        assert!(command.is("command", ns::COMMANDS));
        assert_eq!(tree.children.len(), 1);
        command.child("x", ns::FORMS).expect("there is a form")
    };
    let account = || {
        let account = Jid::parse(&head.from).ok().and_then(|jid| jid.account());
        account.expect("an account asks")
    };
    match again() {
        Answer::Nothing => {
            let kind = stanza.attribute("type");
            assert!(stanza.name() != "iq" || matches!(kind, Some("result" | "error")));
        }
        Answer::Reply(reply) if stanza.name() == "presence" => {
            let reply = String::from_utf8(reply).expect("it is text");
            assert_eq!(stanza.attribute("type"), Some("subscribe"));
            assert!(reply.starts_with("<presence type='unsubscribed' "));
        }
        Answer::Reply(reply) => check_answer(&reply, &head, EITHER),
        Answer::Command(run, _) => {
            let command = tree.children.first().expect("there is a command");
            assert!(command.is("command", ns::COMMANDS));
            assert_eq!(run.account, account());
            for outcome in [CommandError::Limited, CommandError::NoSession] {
                let Answer::Command(_, pending) = again() else {
                    panic!("the same request is answered differently");
                };
                check_answer(&pending.rendered(Err(outcome)), &head, &["error"]);
            }
        }
        Answer::Confirm(confirm, _) => {
            assert!(stanza.name() == "message" && stanza.attribute("type") != Some("error"));
            assert_eq!(confirm.account, account());
            assert!(confirm.address.as_str().starts_with("privacy@"));
        }
        Answer::Register(register, _) => {
            assert_eq!(field(form(), "type"), Some("apns"));
            assert_eq!(field(form(), "node"), Some(register.node.as_str()));
            let token = field(form(), "token").expect("there is a token");
            let digits = token.chars().filter(char::is_ascii_hexdigit);
            let digits: String = digits.map(|c| c.to_ascii_lowercase()).collect();
            assert_eq!(register.device_token.as_str(), digits);
            assert_eq!(register.account, account());
            assert_eq!(Some(&register.app), service.apps.first());
            for outcome in [
                Ok(Registered {
                    node: NodeId::new(register.node.as_str()).unwrap(),
                    secret: Secret::new("<s>&'\"").unwrap(),
                }),
                Err(RegistryError::TooMany),
                Err(RegistryError::Crowded),
            ] {
                let kind = if outcome.is_ok() { "result" } else { "error" };
                let Answer::Register(_, pending) = again() else {
                    panic!("the same request is answered differently");
                };
                check_answer(&pending.registered(outcome), &head, &[kind]);
            }
        }
        Answer::Unregister(unregister, _) => {
            assert_eq!(field(form(), "type"), Some("apns"));
            assert_eq!(field(form(), "node"), Some(unregister.node.as_str()));
            assert_eq!(unregister.account, account());
            for (outcome, kind) in [
                (Ok(Removed { count: 1 }), "result"),
                (Ok(Removed { count: 0 }), "error"),
                (Err(RegistryError::Busy), "error"),
            ] {
                let Answer::Unregister(_, pending) = again() else {
                    panic!("the same request is answered differently");
                };
                check_answer(&pending.unregistered(outcome), &head, &[kind]);
            }
        }
        Answer::Unsupported => {
            let known = ["iq", "message", "presence"].contains(&stanza.name());
            assert!(!known || stanza.namespace() != ns::SERVER);
        }
        Answer::Unaddressed => panic!("it has both addresses"),
    }
}

/// The first value of the first field of that name.
fn field<'a>(form: &'a Tree, name: &str) -> Option<&'a str> {
    let mut fields = form.children.iter();
    let field = fields
        .find(|field| field.is("field", ns::FORMS) && field.attribute("var") == Some(name))?;
    let value = field.child("value", ns::FORMS)?;
    Some(&value.text)
}
