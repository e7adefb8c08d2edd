//! People ask about their data: by themselves, and by way of an operator.

use std::fs;
use std::process::Output;

use serde_json::Value;

use crate::campanile;
use crate::prosody::{ELSEWHERE, Prosody};
use crate::publish::Answer;
use crate::server::{Certificate, Make};
use crate::world::{Plan, World};
use crate::{DEVICE, alices_token, wait};

const ADDRESS: &str = "privacy@push.test";
const ACCESS: &str = "get-my-data";
const ERASE: &str = "erase-my-data";

#[track_caller]
fn printed(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}{errors}");
    text
}

/// What is refused, and why.
#[track_caller]
fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

struct Case {
    name: String,
    code: String,
}

impl Case {
    #[track_caller]
    fn open(world: &World, jid: &str) -> Self {
        let text = printed(&world.campanile.privacy(&["request", "--jid", jid]));
        assert!(text.lines().any(|line| line.trim() == ADDRESS), "{text}");
        let name = text
            .split_whitespace()
            .nth(1)
            .expect("the name of the case");
        let code = text
            .split_whitespace()
            .find(|word| word.len() == 19 && word.matches('-').count() == 3 && !word.contains('@'))
            .expect("the code");
        Self {
            name: name.to_owned(),
            code: code.to_owned(),
        }
    }

    #[track_caller]
    fn state(&self, world: &World) -> String {
        let list = printed(&world.campanile.privacy(&["list"]));
        let line = list
            .lines()
            .find(|line| line.starts_with(&self.name))
            .expect("the case is listed");
        // Name, "opened", time, state.
        line.split_whitespace().nth(3).expect("a state").to_owned()
    }
}

/// What came from the address, once this user has been answered something sent later.
#[track_caller]
fn answers(world: &mut World, user: &str) -> Vec<String> {
    let info = world.users.info(user, ADDRESS);
    assert_eq!(info.kind, "result", "{info:?}");
    world.users.bodies(user)
}

/// Waits for the next answer to a user.
#[track_caller]
fn next_answer(world: &mut World, user: &str, before: usize) -> String {
    wait::until("the address answers", || {
        world.users.bodies(user).get(before).cloned()
    })
}

/// Show: an operator gives a person's data to who confirms from the person's own account, and to nobody
/// else.
#[test]
fn an_operator_answers_whoever_confirms() {
    let plan = Plan {
        elsewhere: true,
        // It is killed and started again.
        token_updates_limited: false,
        ..Plan::new("operator", Make::Prosody, Certificate::Trusted)
    };
    let mut world = World::start(&plan, &["alice", "bob", "mallory"]);
    let token = alices_token();
    let secret = world.sign_up("alice", DEVICE, &token);
    let alice = format!("alice@{}", world.server.domain());
    for user in ["alice", "bob", "mallory"] {
        world.login(user);
    }
    let case = Case::open(&world, &alice);
    assert_eq!(case.state(&world), "open");
    let directory = world.campanile.directory.clone();
    let out = directory
        .parent()
        .expect("it lies in the test's")
        .join("report");
    let out = out.to_str().expect("it is text").to_owned();
    let export = |world: &World, case: &Case| {
        let arguments = ["export", case.name.as_str(), "--out", out.as_str()];
        world.campanile.privacy(&arguments)
    };
    assert!(refused(&export(&world, &case)).contains("not confirmed"));
    assert!(!world.campanile.holds(&case.code));
    assert!(
        world.campanile.exposed().is_empty(),
        "{:?}",
        world.campanile.exposed()
    );
    world
        .step("a case is open; nothing is exported before it is confirmed; the code is in no file");

    // Clients do this before they write to somebody.
    world.users.subscribe("alice", ADDRESS);
    let presence = wait::until("the subscription is answered", || {
        world.users.presences("alice").first().cloned()
    });
    assert_eq!(presence, ["unsubscribed", ADDRESS]);
    let info = world.users.info("alice", ADDRESS);
    assert!(info.xml.contains("account"), "{info:?}");
    world.step(
        "a subscription to the address is answered with unsubscribed, discovery with an account",
    );

    world.users.message("mallory", ADDRESS, &case.code);
    assert!(answers(&mut world, "mallory").is_empty());
    assert_eq!(case.state(&world), "open");
    world.step("the right code from another account is answered with silence");

    let component = Prosody::elsewhere(&world.server_host);
    world.users.attach(&component);
    let other = format!("alice@{ELSEWHERE}");
    let outcome = world
        .users
        .command_from(Some(&other), ELSEWHERE, campanile::DOMAIN, ACCESS, &[]);
    assert_eq!(
        outcome.kind, "result",
        "the other server is one that is heard: {outcome:?}"
    );
    world
        .users
        .message_from(&other, ELSEWHERE, ADDRESS, &case.code);
    let outcome = world
        .users
        .command_from(Some(&other), ELSEWHERE, campanile::DOMAIN, ACCESS, &[]);
    assert_eq!(outcome.kind, "result", "{outcome:?}");
    assert_eq!(case.state(&world), "open");
    world.step("so is the right code from the same account name on another server");

    let code = &case.code;
    let body = format!("<body>{code}</body>");
    let inner = format!(
        "<forwarded xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client' from='{alice}/phone' \
         to='{ADDRESS}' type='chat'>{body}</message></forwarded>"
    );
    for (kind, copy) in [
        (
            "chat",
            format!("{body}<received xmlns='urn:xmpp:carbons:2'>{inner}</received>"),
        ),
        (
            "chat",
            format!("{body}<sent xmlns='urn:xmpp:carbons:2'>{inner}</sent>"),
        ),
        (
            "chat",
            format!("<received xmlns='urn:xmpp:carbons:2'>{inner}</received>"),
        ),
        ("chat", format!("{body}{inner}")),
        (
            "error",
            format!(
                "{body}<error type='cancel'><item-not-found \
             xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error>"
            ),
        ),
    ] {
        let stanza = format!("<message to='{ADDRESS}' type='{kind}' id='copy'>{copy}</message>");
        world.users.raw("alice", &stanza);
        assert!(answers(&mut world, "alice").is_empty(), "{stanza}");
        assert_eq!(case.state(&world), "open", "{stanza}");
    }
    world.step("so are carbons, forwarded messages and errors with the code");

    world.users.message("alice", ADDRESS, "AAAA-BBBB-CCCC-DDDD");
    let answer = next_answer(&mut world, "alice", 0);
    assert!(
        answer.contains("not the code") && answer.contains("left: 4"),
        "{answer}"
    );
    assert_eq!(case.state(&world), "open");
    world.users.message("alice", ADDRESS, code);
    let answer = next_answer(&mut world, "alice", 1);
    assert!(answer.contains("is confirmed"), "{answer}");
    assert_eq!(case.state(&world), "confirmed");
    world.users.message("alice", ADDRESS, code);
    let answer = next_answer(&mut world, "alice", 2);
    assert!(answer.contains("used already"), "{answer}");
    world.step("a wrong code is told so, the right one confirms, and the used one is told so");

    let text = printed(&export(&world, &case));
    assert!(
        text.contains("report.json") && text.contains("report.html"),
        "{text}"
    );
    let json = fs::read_to_string(format!("{out}.json")).expect("it was written");
    let report: Value = serde_json::from_str(&json).expect("it is JSON");
    let registration = &report["registrations"][0];
    assert_eq!(report["subject"]["jid"], alice);
    assert_eq!(registration["node"], DEVICE);
    assert_eq!(registration["device_token"], token.as_str());
    assert_eq!(registration["server"], world.server.domain());
    assert!(report["processing"]["recipients"][0]["name"].is_string());
    let first = &report["journal"][0];
    assert_eq!(first["event"], "registered", "{json}");
    assert_eq!(first["account"], alice, "{json}");
    let page = fs::read_to_string(format!("{out}.html")).expect("it was written");
    for text in [DEVICE, token.as_str(), &alice] {
        assert!(page.contains(text), "{text}");
    }
    assert!(!json.contains(&secret) && !page.contains(&secret));
    assert!(refused(&export(&world, &case)).contains("exists already"));
    world.step("the export has all of it, as JSON and as a page");

    let before = world.users.bodies("alice").len();
    let arguments = ["export", case.name.as_str(), "--to-jid"];
    let text = printed(&world.campanile.privacy(&arguments));
    assert!(
        text.contains(&format!("sent to {alice} in 2 messages")),
        "{text}"
    );
    let shown = next_answer(&mut world, "alice", before);
    assert!(
        shown.contains(DEVICE) && shown.contains(token.as_str()),
        "{shown}"
    );
    let json = next_answer(&mut world, "alice", before + 1);
    let report: Value = serde_json::from_str(&json).expect("it is JSON");
    assert_eq!(report["registrations"][0]["node"], DEVICE);
    world.step("and may be sent to the account itself");

    expired(&mut world, &alice);

    let bob = format!("bob@{}", world.server.domain());
    let overridden = Case::open(&world, &bob);
    let arguments = [
        "erase",
        overridden.name.as_str(),
        "--override",
        "showed a passport",
    ];
    printed(&world.campanile.privacy(&arguments));
    assert_eq!(overridden.state(&world), "erased");
    assert!(!world.campanile.holds(&bob));
    world.step("an operator may answer for a person's identity, with a reason");

    let text = printed(&world.campanile.privacy(&["erase", &case.name]));
    assert!(text.contains("Registrations erased: 1"), "{text}");
    for bytes in [DEVICE, token.as_str(), alice.as_str()] {
        assert!(!world.campanile.holds(bytes), "{bytes}");
    }
    assert_eq!(case.state(&world), "erased");
    world.logout("alice");
    let gone = Answer::Error("cancel/item-not-found".to_owned());
    assert_eq!(world.publish("alice"), gone);
    world.step("after the erasure no file has anything of alice, and her server is told");

    // Prosody wakes alice's device for what the address answers, as for any message.
    let requests = world.apple.requests();
    world.finish(requests);
    world.assert_log_tells_nothing(&["alice", "mallory", DEVICE, token.as_str(), &secret, code]);

    // Without a running service the same commands open the store themselves.
    let list = printed(&world.campanile.privacy(&["list"]));
    assert!(list.contains(&case.name), "{list}");
    let late = Case::open(&world, &alice);
    assert_eq!(late.state(&world), "open");
    printed(&world.campanile.privacy(&["close", &late.name]));
    assert_eq!(late.state(&world), "closed");
    assert!(!world.campanile.holds(&alice));
    world.step("without a running service the commands work as well");
}

/// A code whose time is over. Two weeks pass by what the file of the cases says.
fn expired(world: &mut World, alice: &str) {
    let case = Case::open(world, alice);
    world.campanile.kill();
    let path = world.campanile.directory.join("privacy").join("cases.json");
    let text = fs::read_to_string(&path).expect("there are cases");
    let mut cases: Value = serde_json::from_str(&text).expect("they are JSON");
    for entry in cases["cases"].as_array_mut().expect("they are a list") {
        if entry["id"] == case.name.as_str() {
            entry["expires_at"] = Value::from(1);
        }
    }
    fs::write(&path, cases.to_string()).expect("the directory is the test's own");
    world.campanile.start_again();
    let before = world.users.bodies("alice").len();
    world.users.message("alice", ADDRESS, &case.code);
    let answer = next_answer(world, "alice", before);
    assert!(answer.contains("expired"), "{answer}");
    assert_eq!(case.state(world), "expired");
    world.step("a code is good for its time and no longer");
}

#[test]
fn people_of_prosody_get_and_erase_their_data() {
    people_get_and_erase_their_data(Make::Prosody);
}

#[test]
fn people_of_ejabberd_get_and_erase_their_data() {
    people_get_and_erase_their_data(Make::Ejabberd);
}

/// Show: a person gets and erases her own data with a client; afterwards her server is told that she is
/// gone, and nothing of her is in any file.
fn people_get_and_erase_their_data(make: Make) {
    let name = format!("self-service-{make:?}").to_lowercase();
    let mut world = World::start(
        &Plan::new(&name, make, Certificate::Trusted),
        &["alice", "bob"],
    );
    let token = alices_token();
    let secret = world.sign_up("alice", DEVICE, &token);
    world.login("bob");
    world.assert_wakes("alice", &token);
    world.login("alice");
    let service = campanile::DOMAIN;
    let alice = format!("alice@{}", world.server.domain());

    // Lanes tell the journal of pushes now and then.
    wait::until("the push is in the journal", || {
        (world.campanile.journalled(DEVICE) >= 2).then_some(())
    });
    let shown = world.users.stage("alice", service, ACCESS, "execute", None);
    let (lines, json) = whole_report(&mut world, shown);
    for text in [DEVICE, token.as_str(), &alice, world.server.domain()] {
        assert!(lines.contains(text), "{text}: {lines}");
    }
    let report: Value = serde_json::from_str(&json).expect("the parts are JSON together");
    let registration = &report["registrations"][0];
    assert_eq!(registration["node"], DEVICE);
    assert_eq!(registration["device_token"], token.as_str());
    assert!(registration["renewed_at"].is_string());
    let events: Vec<_> = report["journal"]
        .as_array()
        .expect("the journal is a list")
        .iter()
        .map(|line| line["event"].as_str().expect("each line is an event"))
        .collect();
    assert_eq!(events, ["registered", "pushed"]);
    assert!(!json.contains(&secret) && !lines.contains(&secret));
    let bobs = world.users.stage("bob", service, ACCESS, "execute", None);
    assert!(!bobs.xml.contains(DEVICE) && !bobs.xml.contains(token.as_str()));
    world.step("alice has all that is held on her, lines of the journal too, as text and as JSON, and bob nothing of it");

    let asked = world.users.stage("alice", service, ERASE, "execute", None);
    assert_eq!(asked.status.as_deref(), Some("executing"), "{asked:?}");
    assert_eq!(asked.actions, ["complete"]);
    let session = asked.session.as_deref();
    let foreign = world
        .users
        .stage("bob", service, ERASE, "complete", session);
    assert_eq!(
        foreign.error.as_deref(),
        Some("modify/bad-request"),
        "{foreign:?}"
    );
    let canceled = world
        .users
        .stage("alice", service, ERASE, "cancel", session);
    assert_eq!(canceled.status.as_deref(), Some("canceled"), "{canceled:?}");
    let late = world
        .users
        .stage("alice", service, ERASE, "complete", session);
    assert_eq!(
        late.error.as_deref(),
        Some("modify/bad-request"),
        "{late:?}"
    );
    let at_once = world.users.stage("alice", service, ERASE, "complete", None);
    assert_eq!(
        at_once.error.as_deref(),
        Some("modify/bad-request"),
        "{at_once:?}"
    );
    assert!(world.campanile.holds(DEVICE) && world.campanile.holds(&alice));
    world.step("an erasure that was canceled, or is another's, erases nothing");

    let asked = world.users.stage("alice", service, ERASE, "execute", None);
    let session = asked.session.as_deref();
    let erased = world
        .users
        .stage("alice", service, ERASE, "complete", session);
    assert_eq!(erased.status.as_deref(), Some("completed"), "{erased:?}");
    assert!(
        erased.lines["data"]
            .join("\n")
            .contains("Registrations erased: 1"),
        "{erased:?}"
    );
    for bytes in [DEVICE, token.as_str(), alice.as_str(), &secret] {
        assert!(!world.campanile.holds(bytes), "{bytes}");
    }
    world.step("once alice is told that her data is erased, no file has any of it");

    world.logout("alice");
    let gone = Answer::Error("cancel/item-not-found".to_owned());
    assert_eq!(world.publish("alice"), gone);
    world.step("her server's next publish is answered with item-not-found");
    world.finish(1);
    world.assert_log_tells_nothing(&["alice", DEVICE, token.as_str(), &secret]);
}

/// Both halves of a report, all parts of them.
#[track_caller]
fn whole_report(world: &mut World, first: crate::client::Reply) -> (String, String) {
    let (mut lines, mut json) = (Vec::new(), Vec::new());
    let mut shown = first;
    loop {
        lines.extend(shown.lines["data"].clone());
        json.extend(shown.lines["json"].clone());
        match shown.status.as_deref() {
            Some("completed") => break,
            Some("executing") => {
                let session = shown.session.clone();
                let service = campanile::DOMAIN;
                shown = world
                    .users
                    .stage("alice", service, ACCESS, "next", session.as_deref());
            }
            _ => panic!("{shown:?}"),
        }
    }
    (lines.join("\n"), json.join("\n"))
}
