//! What the command says, and with which exit code.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod support;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use campanile::dev::world::{Plan, SERVICE, World};
use campanile::exit;
use simulators::Kind;

fn campanile(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_campanile"))
        .args(arguments)
        .output()
        .unwrap()
}

fn check_file(file: &Path) -> Output {
    campanile(&["check", "--config", file.to_str().unwrap()])
}

async fn world() -> World {
    let listen = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    World::start(Plan {
        listen: vec![listen],
        ..Plan::default()
    })
    .await
    .unwrap()
}

/// Changes the text of a good configuration, and gives what `check` prints, a finding a line.
#[track_caller]
fn findings(world: &World, change: impl FnOnce(String) -> String) -> Vec<String> {
    let good = std::fs::read_to_string(world.config_file()).unwrap();
    let file = world.directory().join("changed.toml");
    std::fs::write(&file, change(good)).unwrap();
    let output = check_file(&file);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        output.status.code() == Some(exit::OK),
        text.contains("fit to serve"),
        "{text} exits {:?}",
        output.status
    );
    text.lines()
        .map(str::to_owned)
        .filter(|line| !line.contains("fit to serve"))
        .collect()
}

/// One finding, which says all of these.
#[track_caller]
fn one(findings: &[String], words: &[&str]) {
    let [finding] = findings else {
        panic!("not one finding: {findings:#?}")
    };
    says(finding, words);
}

#[track_caller]
fn says(finding: &str, words: &[&str]) {
    for word in words {
        assert!(finding.contains(word), "{finding:?} does not say {word:?}");
    }
}

#[test]
fn usage() {
    for (arguments, code) in [
        (&[][..], exit::USAGE),
        (&["serve"], exit::USAGE),
        (&["dev", "--pushes", "0"], exit::USAGE),
        (&["sing"], exit::USAGE),
        (&["--help"], exit::OK),
        (&["--version"], exit::OK),
    ] {
        let output = campanile(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
    let version = String::from_utf8(campanile(&["--version"]).stdout).unwrap();
    assert_eq!(version.trim(), format!("campanile {}", campanile::VERSION));
}

#[test]
fn a_missing_file_is_one_line_with_the_code_of_configuration() {
    for command in ["serve", "check"] {
        let output = campanile(&[command, "--config", "/nowhere/campanile.toml"]);
        assert_eq!(output.status.code(), Some(exit::CONFIGURATION));
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        says(&text, &["/nowhere/campanile.toml", "cannot be read"]);
    }
}

#[actix_rt::test]
async fn a_good_configuration_has_no_findings() {
    let world = world().await;
    assert_eq!(findings(&world, |good| good), Vec::<String>::new());
    world.stop().await;
}

#[actix_rt::test]
async fn what_is_kept_is_kept_apart() {
    let world = world().await;
    let at = world.directory().display().to_string();
    let found = findings(&world, |good| {
        good.replace("/journal.key", "/registration.key")
            .replace("/privacy\"", "/store\"")
    });
    assert_eq!(found.len(), 2, "{found:#?}");
    let text = found.join("\n");
    says(
        &text,
        &[
            &format!("error: registration.path and privacy.path are the same, {at}/store"),
            &format!(
                "error: registration.key_file and journal.key_file are the same, {at}/registration.key"
            ),
        ],
    );
    // Nor does the service begin to use them.
    let file = world.directory().join("changed.toml");
    let refused = campanile(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(exit::CONFIGURATION));
    assert!(!world.directory().join("registration.key").exists());
    world.stop().await;
}

#[actix_rt::test]
async fn keys() {
    let world = world().await;
    let found = findings(&world, |good| {
        let good = good.replace("[xmpp]", "[xmpp]\nstreamz_max = 3\ndepth_max = \"deep\"");
        format!("{good}\n[shutdown]\ngrace = 3\n")
    });
    assert_eq!(found.len(), 3, "{found:#?}");
    let text = found.join("\n");
    says(
        &text,
        &["changed.toml: shutdown.grace: there is no such key: is it grace_seconds?"],
    );
    says(
        &text,
        &["changed.toml: xmpp.streamz_max: there is no such key: is it streams_max?"],
    );
    says(
        &text,
        &["changed.toml: xmpp.depth_max: must be a whole number"],
    );

    one(
        &findings(&world, |good| good.replace("[xmpp]", "[xmpp")),
        &["changed.toml: line 1"],
    );
    one(
        &findings(&world, |good| {
            good.replace("apps = [\"demo\"]", "apps = [\"demo\", \"other\"]")
        }),
        &["push.localhost", "[apps.other]"],
    );
    let found = findings(&world, |good| {
        good.replace("topic = \"org.example.demo\"\n", "")
    });
    one(&found, &["demo", "topic", "missing"]);
    let found = findings(&world, |good| {
        good.replace("team_id = \"DEF123GHIJ\"\n", "")
    });
    one(&found, &["demo", "team_id", "missing"]);
    let found = findings(&world, |good| {
        good.replace(
            "apps = [\"demo\"]",
            "apps = [\"demo\"]\ncontacts = { admin = [\"ada@chat.localhost\", \"xmpp:ada@chat.localhost\"] }",
        )
    });
    one(
        &found,
        &["contacts.admin", "\"ada@chat.localhost\" is no URI"],
    );
    world.stop().await;
}

#[actix_rt::test]
async fn numbers_without_bound() {
    let world = world().await;
    let found = findings(&world, |good| {
        let endless = "streams_max = 9223372036854775807\nidle_seconds = 9223372036854775807";
        good.replace("[xmpp]", &format!("[xmpp]\n{endless}"))
    });
    assert_eq!(found.len(), 2, "{found:?}");
    says(&found[0], &["xmpp.idle_seconds", "1099511627776 or less"]);
    says(&found[1], &["xmpp.streams_max", "1099511627776 or less"]);
    world.stop().await;
}

#[actix_rt::test]
async fn certificates() {
    let world = world().await;
    let at = world.directory();
    let certificate = format!("{SERVICE}.crt");
    let issue = |names: &[&str], kind, file: &str| {
        world
            .authority()
            .issue(names, kind)
            .unwrap()
            .write(at, file)
            .unwrap()
    };

    issue(&[SERVICE], Kind::ServerAndClient, "other-key");
    let found = findings(&world, |good| good.replace(&certificate, "other-key.crt"));
    one(
        &found,
        &[
            "push.localhost.key",
            "is not the private key of",
            "other-key.crt",
        ],
    );

    issue(&["elsewhere.localhost"], Kind::ServerAndClient, "elsewhere");
    let found = findings(&world, |good| {
        good.replace(&format!("{SERVICE}.crt"), "elsewhere.crt")
            .replace(&format!("{SERVICE}.key"), "elsewhere.key")
    });
    one(&found, &["elsewhere.crt", SERVICE]);

    issue(&[SERVICE], Kind::Expired, "expired");
    let found = findings(&world, |good| {
        good.replace(&format!("{SERVICE}.crt"), "expired.crt")
            .replace(&format!("{SERVICE}.key"), "expired.key")
    });
    one(&found, &["expired.crt", "expired"]);

    let found = findings(&world, |good| good.replace(&certificate, "nowhere.crt"));
    one(&found, &["nowhere.crt", "cannot be read"]);
    let found = findings(&world, |good| {
        good.replace(&certificate, &format!("{SERVICE}.key"))
    });
    one(&found, &["push.localhost.key", "certificate"]);
    world.stop().await;
}

#[actix_rt::test]
async fn apple_keys() {
    let world = world().await;
    std::fs::write(world.directory().join("garbage.p8"), "not a key").unwrap();
    let found = findings(&world, |good| {
        good.replace("AuthKey_ABC123DEFG.p8", "garbage.p8")
    });
    one(&found, &["demo", "garbage.p8"]);

    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    std::fs::write(world.directory().join("p384.p8"), p384.serialize_pem()).unwrap();
    let found = findings(&world, |good| {
        good.replace("AuthKey_ABC123DEFG.p8", "p384.p8")
    });
    one(&found, &["demo", "p384.p8", "P-256"]);
    world.stop().await;
}

#[actix_rt::test]
async fn stores_and_ports() {
    let world = world().await;
    std::fs::write(world.directory().join("a-file"), "").unwrap();
    let found = findings(&world, |good| good.replace("/store\"", "/a-file\""));
    one(&found, &["a-file"]);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let found = findings(&world, |good| {
        let (before, after) = good.split_once("listen = [").unwrap();
        let (_, after) = after.split_once(']').unwrap();
        format!("{before}listen = [\"{address}\"]{after}")
    });
    one(&found, &["cannot listen", &address]);

    let mut service = support::process::Campanile::serve(world.config_file());
    service.address().await;
    let found = findings(&world, |good| good);
    assert_eq!(found.len(), 2, "{found:#?}");
    says(&found.join("\n"), &["cannot listen", "store"]);
    let output = campanile(&["serve", "--config", world.config_file().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(exit::UNAVAILABLE));
    assert_eq!(service.terminate().await, Some(exit::OK));
    world.stop().await;
}

#[actix_rt::test]
async fn the_environment_overrides_the_file() {
    let world = world().await;
    let file = world.config_file().to_str().unwrap();
    let run = |key: &str, value: &str| {
        Command::new(env!("CARGO_BIN_EXE_campanile"))
            .args(["check", "--config", file])
            .env(key, value)
            .output()
            .unwrap()
    };
    assert_eq!(
        run("CAMPANILE__XMPP__DEPTH_MAX", "40").status.code(),
        Some(exit::OK)
    );
    for (key, value, finding) in [
        (
            "CAMPANILE__XMPP__DEPTH_MAX",
            "deep",
            "must be a whole number",
        ),
        (
            "CAMPANILE__XMPP__DEPTHS_MAX",
            "1",
            "there is no such key: is it depth_max?",
        ),
        ("CAMPANILE__XMPP__LISTEN", "here", "must be an IP address"),
    ] {
        let output = run(key, value);
        assert_eq!(output.status.code(), Some(exit::CONFIGURATION));
        let text = String::from_utf8(output.stdout).unwrap();
        says(&text, &[&format!("error: {key}: {finding}")]);
    }
    for (key, value) in [
        ("CAMPANILE__XMPP__LISTEN", "127.0.0.1:0,[::1]:0"),
        ("CAMPANILE__XMPP__ALLOW", "chat.example,*.chat.example"),
        ("CAMPANILE__XMPP__DENY", "bad.example"),
        (
            "CAMPANILE__XMPP__NAME_SERVERS",
            "192.0.2.53:53,[2001:db8::53]:53",
        ),
    ] {
        let output = run(key, value);
        assert_eq!(output.status.code(), Some(exit::OK), "{output:?}");
    }
    world.stop().await;
}
