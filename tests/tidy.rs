//! What documents say about the program is true.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use std::collections::BTreeSet;

use campanile::Settings;
use campanile::settings::DEFAULTS;
use serde::de::DeserializeOwned;

#[test]
fn default_toml_says_what_the_program_does() {
    let documented: Settings = toml::from_str(DEFAULTS).unwrap();
    assert_eq!(documented, Settings::default());
}

/// The fields a table may have, as serde names them when it meets one that it may not.
fn fields<T: DeserializeOwned>(context: &str) -> BTreeSet<String> {
    let Err(error) = toml::from_str::<T>("no_such_key = 1") else {
        panic!("{context} takes unknown keys")
    };
    let text = error.message().to_owned();
    let expected = text.split_once("expected").unwrap().1;
    expected
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn check(section: &str, fields: &BTreeSet<String>) {
    let table: toml::Table = DEFAULTS.parse().unwrap();
    let documented: BTreeSet<String> = table[section].as_table().unwrap().keys().cloned().collect();
    assert_eq!(
        &documented, fields,
        "keys of [{section}] in conf/default.toml"
    );
}

#[test]
fn every_key_is_in_default_toml() {
    check(
        "runtime",
        &fields::<campanile::settings::Runtime>("runtime"),
    );
    check("log", &fields::<campanile::telemetry::Config>("log"));
    check(
        "shutdown",
        &fields::<campanile::shutdown::Config>("shutdown"),
    );
    check(
        "guardian",
        &fields::<campanile::guardian::Config>("guardian"),
    );
    check("xmpp", &fields::<xmpp::Config>("xmpp"));
    check("apns", &fields::<apns::Config>("apns"));
    check(
        "registration",
        &fields::<registration::Config>("registration"),
    );
    check("feedback", &fields::<feedback::Config>("feedback"));
    check("retention", &fields::<retention::Config>("retention"));
    check("privacy", &fields::<privacy::Config>("privacy"));
    check("journal", &fields::<journal::Config>("journal"));

    for key in fields::<apns::AppConfig>("apps") {
        let documented = DEFAULTS.contains(&format!("#   {key} = "))
            || DEFAULTS.contains(&format!("#   [apps.example.{key}]"));
        assert!(documented, "apps.NAME.{key} is not documented");
    }
    for key in fields::<apns::ClassConfig>("apps.NAME.important") {
        let documented = DEFAULTS.contains(&format!("#   {key} = "));
        assert!(documented, "apps.NAME.important.{key} is not documented");
    }
    for key in fields::<xmpp::DomainConfig>("domains") {
        let documented = DEFAULTS.contains(&format!("#   {key} = "))
            || DEFAULTS.contains(&format!("#   [domains.{key}]"));
        assert!(documented, "domains.{key} is not documented");
    }
    for key in fields::<xmpp::ComponentConfig>("components") {
        assert!(
            DEFAULTS.contains(&format!("#   {key} = ")),
            "components.{key} is not documented"
        );
    }
}

#[test]
fn every_key_in_default_toml_has_its_reason_above_it() {
    let lines: Vec<&str> = DEFAULTS.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        if line.split_once(" = ").is_some() && !line.starts_with('#') {
            let above = lines[number - 1];
            assert!(above.starts_with("# "), "line {}: {line}", number + 1);
        }
        assert!(line.len() <= 110, "line {} is too long", number + 1);
    }
}

#[test]
fn what_is_measured_has_its_place() {
    let document = include_str!("../docs/performance.md");
    let (_, rest) = document
        .split_once("<!-- figures: written by ./bench, do not edit -->\n")
        .unwrap();
    let (figures, _) = rest.split_once("<!-- end of figures -->\n").unwrap();
    assert!(figures.contains("| target |"));
    // Each bench is told of, and run by the one command.
    let command = include_str!("../bench");
    for bench in [
        "push_throughput",
        "growth",
        "memory",
        "registrations",
        "stages",
    ] {
        assert!(document.contains(&format!("| `{bench}` |")), "{bench}");
        assert!(command.contains(&format!("    run {bench}")), "{bench}");
    }
}

#[test]
fn the_example_needs_nothing_else_but_its_files() {
    let example: Settings = toml::from_str(include_str!("../conf/example.toml")).unwrap();
    assert!(
        example.inconsistencies().is_empty(),
        "{:?}",
        example.inconsistencies()
    );
}

#[test]
fn the_architecture_names_every_message() {
    let architecture = include_str!("../docs/architecture.md");
    let messages = include_str!("../actors/messages/src/lib.rs");
    let exported = messages.split_once("pub use feedback").unwrap().1;
    let plain_data = [
        "Acceptance",
        "AppId",
        "BareJid",
        "Content",
        "Disclosure",
        "DeviceToken",
        "Domain",
        "ErrorReason",
        "IdError",
        "NodeId",
        "RegistrationKey",
        "Secret",
        "SigningKeyId",
        "Bearer",
        "Change",
        "Claim",
        "CommandAction",
        "CommandError",
        "CommandField",
        "CommandStage",
        "CommandStatus",
        "PrivacyCommand",
        "RegistrationDetails",
        "AccessedEvent",
        "CaseId",
        "Dialect",
        "EndCause",
        "EndedEvent",
        "ErasedEvent",
        "AccountKey",
        "ErasedRecords",
        "JournalCursor",
        "JournalEntry",
        "JournalError",
        "JournalEvent",
        "JournalLine",
        "JournalPage",
        "OverriddenEvent",
        "Proof",
        "PushTarget",
        "BuildRandom",
        "Random",
        "PushTrace",
        "PushedEvent",
        "RegisteredEvent",
        "Subject",
        "SweepError",
        "SweepReport",
        "SweepRun",
        "SweptOutdated",
        "NotificationHint",
        "Publish",
        "Deliver",
        "DeadPush",
        "RejectedToken",
        "Registered",
        "RegistryError",
        "Removed",
        "SweepCursor",
        "SweptPage",
        "Touch",
        "Withdrawal",
        "Drained",
        "Health",
        "PushOutcome",
        "Rejection",
        "Origin",
        "Ticket",
    ];
    let names = exported
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| word.starts_with(char::is_uppercase) && !plain_data.contains(word));
    let mut seen = 0;
    for name in names {
        seen += 1;
        assert!(
            architecture.contains(&format!("| `{name}` |")),
            "{name} is not in the catalogue"
        );
    }
    assert!(seen >= 12, "looked at {seen} messages only");
}
