use messages::{NodeId, Registered, RegistryError, Removed, Secret};

use super::*;
use crate::xml::Namespaces;

const TOKEN: &str = "4f23c40095da0f8e8f58badfb69bd00e15f7fc0e67576c9a9925f3d0f9f298a3";

fn service() -> Service {
    Service {
        domain: Domain::new("push.test"),
        apps: vec![AppId::new("messenger"), AppId::new("other")],
        contacts: Contacts::default(),
        disclosure: messages::Disclosure::Nothing,
        privacy: Privacy::default(),
        software: "Campanile",
        version: "1.2.3",
    }
}

fn ask(stanza: &str, service: &Service) -> Answer {
    let element = Element::read(stanza, &Namespaces::server()).unwrap();
    answer(&element, service)
}

/// A request of ada's client, and the start of every answer to it.
fn iq(kind: &str, content: &str) -> String {
    format!("<iq type='{kind}' id='i&amp;1' from='ada@chat.test/x' to='push.test'>{content}</iq>")
}

fn result(content: &str) -> String {
    let head = "<iq type='result' id='i&amp;1' from='push.test' to='ada@chat.test/x'";
    match content {
        "" => format!("{head}/>"),
        content => format!("{head}>{content}</iq>"),
    }
}

fn error(kind: &str, condition: &str, more: &str) -> String {
    error_about("", kind, condition, more)
}

fn error_about(request: &str, kind: &str, condition: &str, more: &str) -> String {
    format!(
        "<iq type='error' id='i&amp;1' from='push.test' to='ada@chat.test/x'>{request}<error type='{kind}'>\
         <{condition} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>{more}</error></iq>"
    )
}

fn words(text: &str) -> String {
    format!("<text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas' xml:lang='en'>{text}</text>")
}

#[track_caller]
fn check(stanza: &str, expected: &str) {
    check_service(&service(), stanza, expected);
}

#[track_caller]
fn check_service(service: &Service, stanza: &str, expected: &str) {
    match ask(stanza, service) {
        Answer::Reply(reply) => assert_eq!(String::from_utf8(reply).unwrap(), expected),
        _ => panic!("no reply to {stanza}"),
    }
}

#[test]
fn ping_and_version() {
    check(&iq("get", "<ping xmlns='urn:xmpp:ping'/>"), &result(""));
    check(
        &iq("get", "<query xmlns='jabber:iq:version'/>"),
        &result(
            "<query xmlns='jabber:iq:version'><name>Campanile</name><version>1.2.3</version></query>",
        ),
    );
}

#[test]
fn discovery_of_the_domain() {
    const INFO: &str = "<query xmlns='http://jabber.org/protocol/disco#info'>\
        <identity category='pubsub' type='push' name='Campanile'/>\
        <feature var='http://jabber.org/protocol/disco#info'/>\
        <feature var='http://jabber.org/protocol/disco#items'/>\
        <feature var='http://jabber.org/protocol/commands'/>\
        <feature var='urn:xmpp:push:0'/>\
        <feature var='urn:xmpp:ping'/>\
        <feature var='jabber:iq:version'/>";
    let request = iq(
        "get",
        "<query xmlns='http://jabber.org/protocol/disco#info'/>",
    );
    check(&request, &result(&format!("{INFO}</query>")));

    let contacts = Contacts {
        abuse: vec!["mailto:abuse@app.test".into(), "xmpp:a&b@chat.test".into()],
        support: vec!["https://app.test/help".into()],
        ..Contacts::default()
    };
    let service = Service {
        contacts,
        ..service()
    };
    let form = "<x xmlns='jabber:x:data' type='result'>\
        <field var='FORM_TYPE' type='hidden'><value>http://jabber.org/network/serverinfo</value></field>\
        <field var='abuse-addresses' type='list-multi'><value>mailto:abuse@app.test</value>\
        <value>xmpp:a&amp;b@chat.test</value></field>\
        <field var='support-addresses' type='list-multi'><value>https://app.test/help</value></field></x>";
    check_service(
        &service,
        &request,
        &result(&format!("{INFO}{form}</query>")),
    );

    check(
        &iq(
            "get",
            "<query xmlns='http://jabber.org/protocol/disco#items'/>",
        ),
        &result("<query xmlns='http://jabber.org/protocol/disco#items'/>"),
    );
}

#[test]
fn discovery_of_commands() {
    let node = "node='http://jabber.org/protocol/commands'";
    let items = format!("<query xmlns='http://jabber.org/protocol/disco#items' {node}");
    check(
        &iq("get", &format!("{items}/>")),
        &result(&format!(
            "{items}>\
             <item jid='push.test' node='v1-register-push' name='Register for push notifications'/>\
             <item jid='push.test' node='v1-unregister-push' name='Unregister from push notifications'/>\
             </query>"
        )),
    );
    let info = format!("<query xmlns='http://jabber.org/protocol/disco#info' {node}");
    check(
        &iq("get", &format!("{info}/>")),
        &result(&format!(
            "{info}><identity category='automation' type='command-list' name='Commands'/>\
             <feature var='http://jabber.org/protocol/commands'/></query>"
        )),
    );
    let info = "<query xmlns='http://jabber.org/protocol/disco#info' node='v1-register-push'";
    check(
        &iq("get", &format!("{info}/>")),
        &result(&format!(
            "{info}><identity category='automation' type='command-node' name='Register for push notifications'/>\
             <feature var='http://jabber.org/protocol/commands'/><feature var='jabber:x:data'/></query>"
        )),
    );
    let items = "<query xmlns='http://jabber.org/protocol/disco#items' node='v1-unregister-push'/>";
    check(&iq("get", items), &result(items));

    for unknown in [
        "<query xmlns='http://jabber.org/protocol/disco#info' node='x&lt;y'/>",
        "<query xmlns='http://jabber.org/protocol/disco#items' node=''/>",
    ] {
        check(
            &iq("get", unknown),
            &error_about(unknown, "cancel", "item-not-found", ""),
        );
    }

    let none = Service {
        apps: Vec::new(),
        ..service()
    };
    let info = "<query xmlns='http://jabber.org/protocol/disco#info' node='v1-register-push'/>";
    check_service(
        &none,
        &iq("get", info),
        &error_about(info, "cancel", "item-not-found", ""),
    );
    check_service(
        &none,
        &iq("set", &command("v1-register-push", "", "")),
        &error("cancel", "item-not-found", ""),
    );
}

#[test]
fn other_requests() {
    let unavailable = error("cancel", "service-unavailable", "");
    check(&iq("get", "<vCard xmlns='vcard-temp'/>"), &unavailable);
    check(&iq("set", "<ping xmlns='urn:xmpp:ping'/>"), &unavailable);
    check(&iq("get", "<ping/>"), &unavailable);
    check(
        &iq("get", &command("v1-register-push", "", "")),
        &unavailable,
    );

    let unimplemented = error("cancel", "feature-not-implemented", "");
    for namespace in [ns::PUBSUB, ns::PUBSUB_OWNER] {
        check(
            &iq(
                "set",
                &format!("<pubsub xmlns='{namespace}'><create node='n'/></pubsub>"),
            ),
            &unimplemented,
        );
    }
    check(
        &iq("get", "<pubsub xmlns='http://jabber.org/protocol/pubsub'/>"),
        &unimplemented,
    );
}

/// At the answers to other requests ejabberd forgets the device.
#[test]
fn what_looks_like_a_push_costs_no_registration() {
    let malformed = error("wait", "bad-request", "");
    let publish =
        "<publish node='n'><item><notification xmlns='urn:xmpp:push:0'/></item></publish>";
    let pubsub = format!("<pubsub xmlns='{}'>{publish}</pubsub>", ns::PUBSUB);
    for odd in [
        pubsub.clone(),
        ["<x/>", &pubsub].concat(),
        pubsub.replace(ns::PUBSUB, "urn:other"),
        pubsub
            .replace("<publish", "<request><publish")
            .replace("</publish>", "</publish></request>"),
        "<notification xmlns='urn:xmpp:push:0'/>".to_owned(),
        format!("<pubsub xmlns='{}'><publish-options/></pubsub>", ns::PUBSUB),
    ] {
        for kind in ["get", "set", "other"] {
            check(&iq(kind, &odd), &malformed);
        }
    }
    let to_account = |text: &str| text.replace("'push.test'", "'ada@push.test'");
    check(&to_account(&iq("get", &pubsub)), &to_account(&malformed));
    assert!(matches!(
        ask(&iq("error", &pubsub), &service()),
        Answer::Nothing
    ));
}

#[test]
fn requests_that_are_none() {
    let bad = error("modify", "bad-request", "");
    check(&iq("get", ""), &bad);
    check(&iq("get", "text"), &bad);
    check(&iq("get", "<ping xmlns='urn:xmpp:ping'/><x/>"), &bad);
    check(&iq("other", "<ping xmlns='urn:xmpp:ping'/>"), &bad);
    let ping = iq("get", "<ping xmlns='urn:xmpp:ping'/>");
    check(&ping.replace("type='get'", ""), &bad);
    check(
        &ping.replace("id='i&amp;1'", ""),
        &bad.replace(" id='i&amp;1'", ""),
    );
}

#[test]
fn requests_to_something_at_the_domain() {
    for to in ["ada@push.test", "push.test/x", "ada@push.test/x"] {
        let address = |text: &str| text.replace("'push.test'", &format!("'{to}'"));
        check(
            &address(&iq("get", "<ping xmlns='urn:xmpp:ping'/>")),
            &address(&error("cancel", "service-unavailable", "")),
        );
    }
    let upper = |text: &str| text.replace("'push.test'", "'PUSH.test'");
    check(
        &upper(&iq("get", "<ping xmlns='urn:xmpp:ping'/>")),
        &upper(&result("")),
    );
}

#[test]
fn what_is_never_answered() {
    let silent = |stanza: &str| matches!(ask(stanza, &service()), Answer::Nothing);
    assert!(silent(&iq("result", "")));
    assert!(silent(&iq("result", "<ping xmlns='urn:xmpp:ping'/><x/>")));
    assert!(silent(&iq("error", "<error type='cancel'/>")));
    assert!(silent(
        "<message from='a@chat.test' to='push.test'><body>x</body></message>"
    ));
    assert!(silent(
        "<presence type='subscribe' from='a@chat.test' to='push.test'/>"
    ));
}

#[test]
fn what_ends_the_stream() {
    let unsupported = |stanza: &str| matches!(ask(stanza, &service()), Answer::Unsupported);
    assert!(unsupported("<stanza from='chat.test' to='push.test'/>"));
    assert!(unsupported(
        "<iq xmlns='jabber:client' from='chat.test' to='push.test'/>"
    ));
    assert!(unsupported("<db:result from='chat.test' to='push.test'/>"));
    let unaddressed = |stanza: &str| matches!(ask(stanza, &service()), Answer::Unaddressed);
    assert!(unaddressed("<iq type='get' id='1' to='push.test'/>"));
    assert!(unaddressed("<message from='chat.test'/>"));
}

fn command(node: &str, attributes: &str, content: &str) -> String {
    format!(
        "<command xmlns='http://jabber.org/protocol/commands' node='{node}' {attributes}>{content}</command>"
    )
}

#[test]
fn actions() {
    let cancel = |session: &str| {
        command(
            "v1-register-push",
            &format!("action='cancel' {session}"),
            "",
        )
    };
    let canceled = |session: &str| {
        result(&format!(
            "<command xmlns='http://jabber.org/protocol/commands' node='v1-register-push' sessionid='{session}' status='canceled'/>"
        ))
    };
    check(&iq("set", &cancel("sessionid='s'")), &canceled("s"));
    check(&iq("set", &cancel("")), &canceled("i&amp;1"));
    for action in ["next", "prev", "complete", "", "Execute"] {
        check(
            &iq(
                "set",
                &command("v1-register-push", &format!("action='{action}'"), ""),
            ),
            &error(
                "modify",
                "bad-request",
                "<bad-action xmlns='http://jabber.org/protocol/commands'/>",
            ),
        );
    }
    for node in ["", "v2-register-push", "V1-REGISTER-PUSH"] {
        check(
            &iq("set", &command(node, "action='execute'", "")),
            &error("cancel", "item-not-found", ""),
        );
    }
}

const FORM_TYPE: &str = "https://github.com/tmolitor-stud-tu/mod_push_appserver/#";

fn form(fields: &[(&str, &str)]) -> String {
    let fields: String = fields
        .iter()
        .map(|(name, value)| format!("<field var='{name}'><value>{value}</value></field>"))
        .collect();
    format!("<x xmlns='jabber:x:data' type='submit'>{fields}</x>")
}

fn run(node: &str, fields: &[(&str, &str)]) -> String {
    iq("set", &command(node, "", &form(fields)))
}

#[track_caller]
fn registration(stanza: &str) -> (Register, PendingCommand) {
    match ask(stanza, &service()) {
        Answer::Register(register, pending) => (register, pending),
        Answer::Reply(reply) => panic!("refused: {}", String::from_utf8(reply).unwrap()),
        _ => panic!("no registration: {stanza}"),
    }
}

#[track_caller]
fn unregistration(stanza: &str) -> (Unregister, PendingCommand) {
    match ask(stanza, &service()) {
        Answer::Unregister(unregister, pending) => (unregister, pending),
        Answer::Reply(reply) => panic!("refused: {}", String::from_utf8(reply).unwrap()),
        _ => panic!("no unregistration: {stanza}"),
    }
}

#[test]
fn registering_as_recorded() {
    for (stream, account, node, token) in [
        (
            include_str!("../xml/fixtures/prosody.xml"),
            "alice@prosody2.test",
            "35AA2E1B-0A02-4C38-A3F3-D8AFEE9231A0",
            "4f23c40095da0f8e8f58badfb69bd00e15f7fc0e67576c9a9925f3d0f9f298a3",
        ),
        (
            include_str!("../xml/fixtures/ejabberd.xml"),
            "alice@ejabberd.test",
            "F585C139-9B3E-4018-9F73-44B4F44B04BB",
            "02138159994df240e5a7680c4c6d3b08360280e93ba040a2d572d90893a38fd4",
        ),
    ] {
        let stanza = stream
            .lines()
            .find(|line| line.contains("<command"))
            .unwrap();
        let (register, pending) = registration(stanza);
        assert_eq!(register.account.as_str(), account);
        assert_eq!(register.service.as_str(), "push.test");
        assert_eq!(register.app.as_str(), "messenger");
        assert_eq!(register.node.as_str(), node);
        assert_eq!(register.device_token.as_str(), token);
        let reply = pending.registered(Ok(Registered {
            node: NodeId::new(node).unwrap(),
            secret: Secret::new("5ec2e7").unwrap(),
        }));
        assert_eq!(
            String::from_utf8(reply).unwrap(),
            format!(
                "<iq type='result' id='0' from='push.test' to='{account}/phone'>\
                 <command xmlns='http://jabber.org/protocol/commands' node='v1-register-push' sessionid='0' status='complete'>\
                 <x xmlns='jabber:x:data' type='form'>\
                 <field var='FORM_TYPE' type='hidden'><value>{FORM_TYPE}v1-register-push</value></field>\
                 <field var='jid' type='jid-single'><value>push.test</value></field>\
                 <field var='node'><value>{node}</value></field>\
                 <field var='secret'><value>5ec2e7</value></field></x></command></iq>"
            )
        );
    }
}

#[test]
fn registering_in_other_words() {
    let accepted = |stanza: &str| {
        let (register, _) = registration(stanza);
        assert_eq!(register.account.as_str(), "ada@chat.test");
        assert_eq!(register.device_token.as_str(), TOKEN);
        register.node.as_str().to_owned()
    };
    let form_type = format!("{FORM_TYPE}v1-register-push");
    let plain = [("type", "apns"), ("node", "n"), ("token", TOKEN)];
    assert_eq!(accepted(&run("v1-register-push", &plain)), "n");
    assert_eq!(
        accepted(&run("v1-register-push", &plain).replace("/x'", "'")),
        "n"
    );
    assert_eq!(
        accepted(&run("v1-register-push", &plain).replace("ada@chat", "Ada@CHAT")),
        "n"
    );
    let token = format!("&lt;{}&gt;", TOKEN.to_uppercase());
    let mixed = [
        ("token", token.as_str()),
        ("x", "y"),
        ("node", "a&amp;b"),
        ("FORM_TYPE", &form_type),
        ("type", "apns"),
    ];
    assert_eq!(accepted(&run("v1-register-push", &mixed)), "a&b");
    let twice = [
        ("type", "apns"),
        ("node", "n"),
        ("node", "m"),
        ("token", TOKEN),
        ("token", "x"),
    ];
    assert_eq!(accepted(&run("v1-register-push", &twice)), "n");
    assert_eq!(
        accepted(&run("v1-register-push", &plain).replace(" type='submit'", "")),
        "n"
    );
}

#[test]
fn forms_that_are_refused() {
    #[track_caller]
    fn check_refused(node: &str, fields: &[(&str, &str)], text: &str) {
        check(
            &run(node, fields),
            &error("modify", "not-acceptable", &words(text)),
        );
    }
    let register = "v1-register-push";
    let unregister = "v1-unregister-push";
    check(
        &iq("set", &command(register, "", "")),
        &error("modify", "not-acceptable", &words("the form is missing")),
    );
    let other = format!("{FORM_TYPE}v1-unregister-push");
    for form_type in ["", "x", FORM_TYPE, &other] {
        check_refused(
            register,
            &[
                ("FORM_TYPE", form_type),
                ("type", "apns"),
                ("node", "n"),
                ("token", TOKEN),
            ],
            "FORM_TYPE is unknown",
        );
    }
    for command in [register, unregister] {
        check_refused(
            command,
            &[("node", "n"), ("token", TOKEN)],
            "the field type is missing",
        );
        check_refused(
            command,
            &[("type", "fcm"), ("node", "n"), ("token", TOKEN)],
            "type fcm is not served here, only apns",
        );
        for kind in ["", "wns", "APNS"] {
            check_refused(
                command,
                &[("type", kind), ("node", "n"), ("token", TOKEN)],
                "type is unknown: only apns is served here",
            );
        }
        check_refused(
            command,
            &[("type", "apns"), ("token", TOKEN)],
            "the field node is missing",
        );
        for node in ["", &*"n".repeat(1025)] {
            check_refused(
                command,
                &[("type", "apns"), ("node", node), ("token", TOKEN)],
                "node is empty or longer than 1024 bytes",
            );
        }
    }
    check_refused(
        register,
        &[("type", "apns"), ("node", "n")],
        "the field token is missing",
    );
    for token in ["", "x", "abcd", &*"a".repeat(201)] {
        check_refused(
            register,
            &[("type", "apns"), ("node", "n"), ("token", token)],
            "token is no APNs device token in hex",
        );
    }
}

#[test]
fn only_accounts_register() {
    for node in ["v1-register-push", "v1-unregister-push"] {
        let fields = [("type", "apns"), ("node", "n"), ("token", TOKEN)];
        for from in ["chat.test", "chat.test/x"] {
            let address = |text: &str| text.replace("ada@chat.test/x", from);
            check(
                &address(&run(node, &fields)),
                &address(&error(
                    "cancel",
                    "not-allowed",
                    &words("only accounts may register devices"),
                )),
            );
        }
        let address = |text: &str| text.replace("ada@chat.test/x", "a b@chat.test");
        check(
            &address(&run(node, &fields)),
            &address(&error("modify", "jid-malformed", "")),
        );
    }
}

#[test]
fn unregistering() {
    let fields = [("type", "apns"), ("node", "n&lt;1")];
    let stanza = run("v1-unregister-push", &fields);
    let (unregister, pending) = unregistration(&stanza);
    assert_eq!(unregister.account.as_str(), "ada@chat.test");
    assert_eq!(unregister.service.as_str(), "push.test");
    assert_eq!(unregister.node.as_str(), "n<1");
    let reply = pending.unregistered(Ok(Removed { count: 1 }));
    assert_eq!(
        String::from_utf8(reply).unwrap(),
        result(&format!(
            "<command xmlns='http://jabber.org/protocol/commands' node='v1-unregister-push' sessionid='i&amp;1' status='complete'>\
             <x xmlns='jabber:x:data' type='form'>\
             <field var='FORM_TYPE' type='hidden'><value>{FORM_TYPE}v1-unregister-push</value></field>\
             <field var='jid' type='jid-single'><value>push.test</value></field>\
             <field var='node'><value>n&lt;1</value></field></x></command>"
        ))
    );
    let (_, pending) = unregistration(&stanza);
    let reply = pending.unregistered(Ok(Removed { count: 0 }));
    assert_eq!(
        String::from_utf8(reply).unwrap(),
        error("cancel", "item-not-found", &words("node not registered"))
    );
    // What another dialect's server wants besides does no harm.
    unregistration(&run(
        "v1-unregister-push",
        &[("type", "apns"), ("node", "n"), ("token", "x")],
    ));
}

#[test]
fn failures_of_the_registry() {
    let busy = error(
        "wait",
        "resource-constraint",
        &words("busy, try again later"),
    );
    let many = words("this account has too many registered devices: unregister one first");
    for (failure, expected) in [
        (RegistryError::Busy, busy.clone()),
        (RegistryError::Stopping, busy),
        (
            RegistryError::Crowded,
            error(
                "wait",
                "resource-constraint",
                &words("too many devices of this server are registered, try again later"),
            ),
        ),
        (
            RegistryError::Store,
            error("wait", "internal-server-error", ""),
        ),
        (
            RegistryError::TooMany,
            error("cancel", "not-allowed", &many),
        ),
    ] {
        let fields = [("type", "apns"), ("node", "n"), ("token", TOKEN)];
        let (_, pending) = registration(&run("v1-register-push", &fields));
        let reply = pending.registered(Err(failure));
        assert_eq!(String::from_utf8(reply).unwrap(), expected);
        let (_, pending) = unregistration(&run("v1-unregister-push", &fields));
        let reply = pending.unregistered(Err(failure));
        assert_eq!(String::from_utf8(reply).unwrap(), expected);
    }
}
