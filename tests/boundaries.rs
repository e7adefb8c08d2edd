//! Invariant I1: a crate under `actors/` depends on `messages` and `files` and on no other actor; tests may use
//! `testkit` besides. Invariant I3: `src/wiring.rs` is the only file that names two actors.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn actors() -> BTreeSet<String> {
    let found: BTreeSet<String> = fs::read_dir(root().join("actors"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        found.contains("messages") && found.len() > 5,
        "looked in the wrong place: {found:?}"
    );
    found
}

fn dependencies(manifest: &toml::Table, section: &str) -> BTreeSet<String> {
    manifest
        .get(section)
        .and_then(toml::Value::as_table)
        .map(|table| table.keys().cloned().collect())
        .unwrap_or_default()
}

#[test]
fn an_actor_knows_messages_and_no_other_actor() {
    let actors = actors();
    for actor in &actors {
        let path = root().join("actors").join(actor).join("Cargo.toml");
        let manifest: toml::Table = fs::read_to_string(path).unwrap().parse().unwrap();
        for (section, allowed) in [
            ("dependencies", &["messages", "files"][..]),
            ("dev-dependencies", &["messages", "files", "testkit"]),
        ] {
            for name in dependencies(&manifest, section) {
                let member = actors.contains(&name) || name == "testkit" || name == "campanile";
                assert!(
                    !member || allowed.contains(&name.as_str()),
                    "actors/{actor} must not have {name} in [{section}]"
                );
            }
        }
        assert!(
            !manifest.contains_key("build-dependencies"),
            "actors/{actor} has a build script"
        );
    }
}

#[test]
fn only_the_owners_know_storage_xml_and_http2() {
    let owners = [
        ("sled", &["registration"][..]),
        ("quick-xml", &["xmpp", "simulators"]),
        ("h2", &["apns", "simulators"]),
        ("zstd", &["journal"]),
    ];
    for actor in actors() {
        let path = root().join("actors").join(&actor).join("Cargo.toml");
        let manifest: toml::Table = fs::read_to_string(path).unwrap().parse().unwrap();
        let dependencies = dependencies(&manifest, "dependencies");
        for (name, owners) in owners {
            assert!(
                !dependencies.contains(name) || owners.contains(&actor.as_str()),
                "actors/{actor} must not depend on {name}"
            );
        }
    }
}

#[test]
fn wiring_alone_names_two_actors() {
    let pipeline = [
        "xmpp",
        "registration",
        "apns",
        "feedback",
        "retention",
        "privacy",
        "journal",
    ];
    let starts: Vec<String> = pipeline.iter().map(|actor| format!("{actor}::")).collect();
    let mut wiring_names = 0;
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let starting: BTreeSet<&str> = pipeline
            .iter()
            .zip(&starts)
            .filter(|(_, prefix)| {
                text.match_indices(prefix.as_str()).any(|(at, _)| {
                    let line = text.get(at..).unwrap().lines().next().unwrap();
                    line.contains("::start(")
                })
            })
            .map(|(actor, _)| *actor)
            .collect();
        if path.ends_with("wiring.rs") {
            wiring_names = starting.len();
        } else {
            assert!(
                starting.is_empty(),
                "{} starts {starting:?}",
                path.display()
            );
        }
    }
    assert_eq!(wiring_names, pipeline.len());
}
