//! What is erased is in no file any more, and never comes back.

use std::fs;
use std::path::Path;
use std::time::Duration;

use messages::{
    Claim, DescribeRegistrations, ErrorReason, FindRegistration, NodeId, RegistrationDetails,
    RegistryError, Secret, Touch, TouchBatch,
};
use registration::registry::{self, Handles};

use crate::fixture::{
    ADA, EVE, Fixture, HERE, NODE, OTHER_NODE, account, after, counter, drain, only, register,
    secret, service, token,
};

/// Whether any file below a directory has these bytes.
fn holds(directory: &Path, needle: &str) -> bool {
    fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, needle);
        }
        let bytes = fs::read(&path).unwrap();
        bytes
            .windows(needle.len())
            .any(|window| window == needle.as_bytes())
    })
}

async fn erase(
    registry: &Handles,
    claim: Claim,
) -> Result<Vec<RegistrationDetails>, RegistryError> {
    let erase = messages::EraseRegistrations { claim };
    registry.erase.send(erase).await.unwrap()
}

async fn describe(registry: &Handles, claim: Claim) -> Vec<RegistrationDetails> {
    let describe = DescribeRegistrations { claim };
    registry.describe.send(describe).await.unwrap().unwrap()
}

#[actix::test]
async fn after_an_erasure_no_file_has_the_bytes() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    let eve = secret(&registry, EVE, OTHER_NODE, "e").await;
    secret(&registry, ADA, NODE, "a").await;
    // A token that was replaced is in the log as well.
    secret(&registry, ADA, NODE, "b").await;
    let bytes = |digit: &str| digit.repeat(64);
    for needle in [NODE, &bytes("a"), &bytes("b")] {
        assert!(holds(fixture.directory.path(), needle));
    }
    let erased = erase(&registry, Claim::Account(account(ADA)))
        .await
        .unwrap();
    assert_eq!(erased.len(), 1);
    assert!(erased[0].node.as_str() == NODE && erased[0].device_token == token("b"));
    for needle in [NODE, &bytes("a"), &bytes("b")] {
        assert!(!holds(fixture.directory.path(), needle), "{needle}");
    }
    assert!(holds(fixture.directory.path(), OTHER_NODE));
    assert_eq!(
        counter(&registry.probe, "registry_store_rewrites_total").await,
        1
    );

    // The others go on as if nothing had been.
    assert_eq!(secret(&registry, EVE, OTHER_NODE, "e").await, eve);
    assert!(registrations.describe(&account(ADA)).unwrap().is_empty());
    Fixture::stop(registrations, registry).await;
    let (registrations, registry) = fixture.start();
    assert_eq!(only(&registrations, EVE).node.as_str(), OTHER_NODE);
    assert!(registrations.describe(&account(ADA)).unwrap().is_empty());
    // And again, from a later generation.
    erase(&registry, Claim::Account(account(EVE)))
        .await
        .unwrap();
    assert!(!holds(fixture.directory.path(), OTHER_NODE));
    assert!(fixture.config.path.join("2").is_dir());
    assert!(!fixture.config.path.join("1").exists());
}

#[actix::test]
async fn what_is_done_meanwhile_is_in_both_stores() {
    let mut fixture = Fixture::new();
    fixture.config.registrations_per_device_token_max = 1_000;
    let (registrations, registry) = fixture.start();
    // More than a page.
    for n in 0..600 {
        register(&registry, &format!("user{n}"), &format!("node{n}"), "c")
            .await
            .unwrap();
    }
    secret(&registry, ADA, NODE, "a").await;
    let erasing = registry.erase.send(messages::EraseRegistrations {
        claim: Claim::Account(account(ADA)),
    });
    let meanwhile = async {
        let mut rewrites = 0;
        for n in 0..600 {
            let name = format!("user{n}");
            match n % 3 {
                0 => {
                    secret(&registry, &name, &format!("node{n}"), "d").await;
                }
                1 => {
                    crate::fixture::unregister(&registry, &name, &format!("node{n}")).await;
                }
                _ => {
                    secret(&registry, &format!("new{n}"), "node", "f").await;
                }
            }
            rewrites = counter(&registry.probe, "registry_store_rewrites_total").await;
            if rewrites > 0 {
                break;
            }
        }
        rewrites
    };
    let (erased, _) = tokio::join!(erasing, meanwhile);
    assert_eq!(erased.unwrap().unwrap().len(), 1);
    let names: Vec<_> = (0..600)
        .flat_map(|n| [format!("user{n}"), format!("new{n}")])
        .collect();
    let shown = |registrations: &registration::Registrations| -> Vec<_> {
        names
            .iter()
            .flat_map(|name| registrations.describe(&account(name)).unwrap())
            .collect()
    };
    let before = shown(&registrations);
    assert!(before.len() >= 400);
    Fixture::stop(registrations, registry).await;
    assert!(shown(&fixture.open().unwrap()) == before);
}

#[actix::test]
async fn an_erasure_that_was_cut_short_is_done_by_the_next_start() {
    let mut fixture = Fixture::new();
    fixture.config.registrations_per_device_token_max = 1_000;
    let (registrations, registry) = fixture.start();
    for n in 0..600 {
        register(&registry, &format!("user{n}"), &format!("node{n}"), "c")
            .await
            .unwrap();
    }
    secret(&registry, ADA, NODE, "a").await;
    let erasing = registry.erase.send(messages::EraseRegistrations {
        claim: Claim::Account(account(ADA)),
    });
    let waiting = async {
        // Once the group of the erasure is through; its copy is not.
        while counter(&registry.probe, "registry_registrations_erased_total").await == 0 {}
        drain(&registry.drain).await
    };
    let (erased, drained) = tokio::join!(erasing, waiting);
    assert_eq!(drained.abandoned, 0);
    let done = erased.unwrap().is_ok();
    drop((registrations, registry));

    let (copy, registrations) = fixture.open_copy();
    assert!(registrations.describe(&account(ADA)).unwrap().is_empty());
    assert_eq!(only(&registrations, "user7").node.as_str(), "node7");
    if !done {
        assert!(holds(copy.path(), NODE));
    }
    let registry = registry::start(&registrations, registry::Edges::default()).unwrap();
    // Another one waits for the one that is owed.
    erase(&registry, Claim::Account(account(EVE)))
        .await
        .unwrap();
    assert!(!holds(copy.path(), NODE));
    assert_eq!(only(&registrations, "user7").node.as_str(), "node7");
}

#[actix::test]
async fn a_device_is_found_whatever_its_account() {
    let fixture = Fixture::new();
    let (_registrations, registry) = fixture.start();
    secret(&registry, ADA, NODE, "a").await;
    secret(&registry, EVE, NODE, "a").await;
    secret(&registry, EVE, OTHER_NODE, "e").await;
    let found = describe(&registry, Claim::Token(token("a"))).await;
    assert_eq!(found.len(), 2);
    assert!(
        describe(&registry, Claim::Token(token("f")))
            .await
            .is_empty()
    );
    let erased = erase(&registry, Claim::Token(token("a"))).await.unwrap();
    assert_eq!(erased.len(), 2);
    assert!(
        describe(&registry, Claim::Token(token("a")))
            .await
            .is_empty()
    );
    assert_eq!(describe(&registry, Claim::Token(token("e"))).await.len(), 1);
    assert!(!holds(fixture.directory.path(), &"a".repeat(64)));
}

#[actix::test]
async fn a_registration_is_found_by_its_secret_and_by_no_other() {
    let fixture = Fixture::new();
    let (_registrations, registry) = fixture.start();
    let ada = secret(&registry, ADA, NODE, "a").await;
    let eve = secret(&registry, EVE, NODE, "e").await;
    let find = |secret: &str, service| {
        registry.find.send(FindRegistration {
            services: vec![messages::Domain::new("other.example"), service],
            node: NodeId::new(NODE).unwrap(),
            secret: Secret::new(secret).unwrap(),
        })
    };
    let found = find(&ada, service()).await.unwrap().unwrap().unwrap();
    let details = describe(&registry, Claim::Registrations(vec![found])).await;
    assert!(details.len() == 1 && details[0].device_token == token("a"));
    let others = find(&eve, service()).await.unwrap().unwrap().unwrap();
    assert_ne!(found, others);
    let wrong = "0".repeat(64);
    assert!(find(&wrong, service()).await.unwrap().unwrap().is_none());
    let elsewhere = messages::Domain::new("third.example");
    assert!(find(&ada, elsewhere).await.unwrap().unwrap().is_none());
}

#[actix::test]
async fn all_that_is_kept_is_described() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    secret(&registry, ADA, NODE, "a").await;
    fixture.at(60);
    let registration = only(&registrations, ADA).registration;
    let items = [
        (5, None),
        (7, Some(ErrorReason::known("InternalServerError"))),
    ]
    .map(|(seconds, error)| Touch {
        registration,
        at: after(seconds),
        verdict: error.map_or(Ok(HERE), Err),
    })
    .to_vec();
    registry.touch.try_send(TouchBatch { items }).unwrap();
    tokio::task::yield_now().await;
    let described = describe(&registry, Claim::Account(account(ADA))).await;
    assert_eq!(described.len(), 1);
    assert_eq!(described[0].last_success, Some(after(5)));
    assert_eq!(
        described[0].last_error,
        Some((after(7), ErrorReason::known("InternalServerError")))
    );
    tokio::time::timeout(Duration::from_secs(30), async {
        erase(&registry, Claim::Account(account(ADA)))
            .await
            .unwrap();
    })
    .await
    .unwrap();
    assert!(!holds(fixture.directory.path(), "InternalServerError"));
}

#[actix::test]
async fn nobody_notices_new_keys() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    let ada = secret(&registry, ADA, NODE, "a").await;
    let eve = secret(&registry, EVE, NODE, "e").await;
    let key = || fs::read(&fixture.config.key_file).unwrap();
    let first = key();
    let before = only(&registrations, ADA);
    for rotation in 1..=2 {
        let rotating = registry.rotate.send(messages::RotateKeys);
        // One that comes meanwhile is put under the new key as well.
        let name = format!("new{rotation}");
        let meanwhile = secret(&registry, &name, NODE, "f");
        let (rotated, new) = tokio::join!(rotating, meanwhile);
        rotated.unwrap().unwrap();
        assert!(!key().starts_with(&first));
        assert_eq!(key().len(), 32 * (2 + rotation));
        // All that is known of a registration stays, its secret included.
        assert_eq!(only(&registrations, ADA), before);
        assert_eq!(secret(&registry, &name, NODE, "f").await, new);
        let find = FindRegistration {
            services: vec![service()],
            node: NodeId::new(NODE).unwrap(),
            secret: Secret::new(&ada).unwrap(),
        };
        let found = registry.find.send(find).await.unwrap().unwrap();
        assert_eq!(found, Some(before.registration));
    }
    let old = &first[..32];
    assert!(!key().windows(32).any(|window| window == old));
    // Renewing, ending and a restart.
    assert_eq!(secret(&registry, EVE, NODE, "b").await, eve);
    assert_eq!(registrations.describe(&account(EVE)).unwrap().len(), 1);
    Fixture::stop(registrations, registry).await;
    let (registrations, registry) = fixture.start();
    assert_eq!(secret(&registry, ADA, NODE, "a").await, ada);
    assert_eq!(crate::fixture::unregister(&registry, EVE, NODE).await, 1);
    assert!(registrations.describe(&account(EVE)).unwrap().is_empty());
}

#[actix::test]
async fn rotations_at_once_are_done_or_refused() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    let ada = secret(&registry, ADA, NODE, "a").await;
    let rotate = || registry.rotate.send(messages::RotateKeys);
    let (first, second, third) = tokio::join!(rotate(), rotate(), rotate());
    first.unwrap().unwrap();
    for later in [second, third] {
        assert!(matches!(later.unwrap(), Ok(()) | Err(RegistryError::Busy)));
    }
    assert_eq!(secret(&registry, ADA, NODE, "a").await, ada);
    Fixture::stop(registrations, registry).await;
    let (_registrations, registry) = fixture.start();
    assert_eq!(secret(&registry, ADA, NODE, "a").await, ada);
}

#[actix::test]
async fn a_rotation_that_was_cut_short_after_the_exchange_is_finished() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    let ada = secret(&registry, ADA, NODE, "a").await;
    let old = fs::read(&fixture.config.key_file).unwrap();
    registry
        .rotate
        .send(messages::RotateKeys)
        .await
        .unwrap()
        .unwrap();
    Fixture::stop(registrations, registry).await;
    // As if the new key had not got its name yet.
    let unfinished = fixture.config.key_file.with_extension("unfinished");
    fs::rename(&fixture.config.key_file, &unfinished).unwrap();
    fs::write(&fixture.config.key_file, &old).unwrap();
    fs::set_permissions(
        &fixture.config.key_file,
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    assert!(registration::inspect(&fixture.config).is_empty());
    let (_registrations, registry) = fixture.start();
    assert!(!unfinished.exists());
    assert_eq!(secret(&registry, ADA, NODE, "a").await, ada);
}
