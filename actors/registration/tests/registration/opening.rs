//! First start, later starts, and starts that must fail.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use registration::{Error, Fault, inspect};

use crate::fixture::{ADA, Fixture, NODE, only, secret, unregister};

/// Both ways of looking must find the same.
#[track_caller]
fn check(fixture: &Fixture, expected: fn(&Error) -> bool) {
    let inspected = inspect(&fixture.config);
    assert!(
        inspected.len() == 1 && expected(&inspected[0]),
        "{inspected:?}"
    );
    let opened = fixture.open().unwrap_err();
    assert!(expected(&opened), "{opened:?}");
}

async fn with_a_registration() -> Fixture {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    secret(&registry, ADA, NODE, "a").await;
    Fixture::stop(registrations, registry).await;
    fixture
}

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[actix::test]
async fn the_first_start_creates_what_only_the_owner_reads() {
    let fixture = Fixture::new();
    assert!(inspect(&fixture.config).is_empty());
    assert_eq!(fs::read_dir(fixture.directory.path()).unwrap().count(), 0);
    fixture.open().unwrap();
    assert_eq!(mode(&fixture.config.path), 0o700);
    assert_eq!(mode(&fixture.config.key_file), 0o600);
    assert!(inspect(&fixture.config).is_empty());
}

#[actix::test]
async fn a_restart_keeps_everything() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    let before = secret(&registry, ADA, NODE, "a").await;
    let description = only(&registrations, ADA);
    Fixture::stop(registrations, registry).await;

    let (registrations, registry) = fixture.start();
    assert_eq!(only(&registrations, ADA), description);
    assert_eq!(secret(&registry, ADA, NODE, "a").await, before);
}

#[actix::test]
async fn what_was_confirmed_survives_an_abrupt_end() {
    let fixture = Fixture::new();
    let (_registrations, registry) = fixture.start();
    secret(&registry, ADA, NODE, "a").await;
    let (_kept, copy) = fixture.open_copy();
    assert_eq!(only(&copy, ADA).node.as_str(), NODE);
    unregister(&registry, ADA, NODE).await;
    let (_kept, copy) = fixture.open_copy();
    assert!(
        copy.describe(&crate::fixture::account(ADA))
            .unwrap()
            .is_empty()
    );
}

#[actix::test]
async fn a_store_with_data_is_never_given_a_new_key() {
    let fixture = with_a_registration().await;
    let key = fs::read(&fixture.config.key_file).unwrap();
    fs::remove_file(&fixture.config.key_file).unwrap();
    check(&fixture, |e| matches!(e, Error::KeyFileMissing { .. }));
    assert!(!fixture.config.key_file.exists());

    fs::write(&fixture.config.key_file, [7; 32]).unwrap();
    fs::set_permissions(&fixture.config.key_file, Permissions::from_mode(0o600)).unwrap();
    check(&fixture, |e| matches!(e, Error::KeyFileMismatch { .. }));

    fs::write(&fixture.config.key_file, [7; 31]).unwrap();
    check(&fixture, |e| matches!(e, Error::KeyFileLength { .. }));

    fs::write(&fixture.config.key_file, &key).unwrap();
    fs::set_permissions(&fixture.config.key_file, Permissions::from_mode(0o644)).unwrap();
    check(&fixture, |e| matches!(e, Error::KeyFileExposed { .. }));

    fs::set_permissions(&fixture.config.key_file, Permissions::from_mode(0o600)).unwrap();
    only(&fixture.open().unwrap(), ADA);
}

#[actix::test]
async fn a_store_that_others_may_read_is_refused() {
    let fixture = with_a_registration().await;
    fs::set_permissions(&fixture.config.path, Permissions::from_mode(0o750)).unwrap();
    check(&fixture, |e| matches!(e, Error::StoreExposed { .. }));
}

#[actix::test]
async fn a_store_is_used_once_at_a_time() {
    let fixture = with_a_registration().await;
    let _first = fixture.open().unwrap();
    check(&fixture, |e| matches!(e, Error::StoreLocked { .. }));
}

#[actix::test]
async fn a_directory_that_cannot_be_made_is_reported() {
    let mut fixture = Fixture::new();
    let file = fixture.directory.path().join("file");
    fs::write(&file, "").unwrap();
    fixture.config.path = file.join("store");
    check(&fixture, |e| matches!(e, Error::StoreDirectory { .. }));
}

#[actix::test]
async fn a_key_is_never_given_a_new_store() {
    let fixture = with_a_registration().await;
    let (store, away) = (&fixture.config.path, fixture.directory.path().join("away"));
    fs::rename(store, &away).unwrap();
    check(&fixture, |e| matches!(e, Error::StoreMissing { .. }));
    assert!(!store.exists());

    // A volume that is not mounted.
    fs::create_dir(store).unwrap();
    fs::set_permissions(store, Permissions::from_mode(0o700)).unwrap();
    check(&fixture, |e| matches!(e, Error::StoreMissing { .. }));
    assert_eq!(fs::read_dir(store).unwrap().count(), 0);

    fs::remove_dir(store).unwrap();
    fs::rename(&away, store).unwrap();
    only(&fixture.open().unwrap(), ADA);

    // What the message advises to whoever begins anew.
    fs::rename(store, &away).unwrap();
    fs::remove_file(&fixture.config.key_file).unwrap();
    assert!(inspect(&fixture.config).is_empty());
    fixture.open().unwrap();
}

#[actix::test]
async fn a_store_that_was_never_whole_is_not_served() {
    let fixture = with_a_registration().await;
    fs::remove_file(fixture.config.path.join("complete")).unwrap();
    check(&fixture, |e| matches!(e, Error::StoreMissing { .. }));
    fs::remove_file(&fixture.config.key_file).unwrap();
    check(&fixture, |e| matches!(e, Error::KeyFileMissing { .. }));
}

#[actix::test]
async fn a_store_without_its_data_is_damaged_and_not_new() {
    let fixture = with_a_registration().await;
    let data = fixture.config.path.join("db");
    fs::remove_file(&data).unwrap();
    check(
        &fixture,
        |e| matches!(e, Error::StoreUnopenable { cause, .. } if matches!(cause, Fault::Missing)),
    );
    assert!(!data.exists());
}

#[actix::test]
async fn a_store_is_a_directory() {
    let fixture = with_a_registration().await;
    fs::remove_dir_all(&fixture.config.path).unwrap();
    fs::write(&fixture.config.path, "").unwrap();
    check(&fixture, |e| matches!(e, Error::StoreNotDirectory { .. }));
    fs::remove_file(&fixture.config.key_file).unwrap();
    check(&fixture, |e| matches!(e, Error::StoreNotDirectory { .. }));
}

#[actix::test]
async fn an_emptied_store_is_damaged_and_not_new() {
    let fixture = with_a_registration().await;
    // Once the engine's threads have let go of it.
    drop(fixture.open().unwrap());
    assert!(inspect(&fixture.config).is_empty());
    for entry in fs::read_dir(&fixture.config.path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && path.file_name().unwrap() != "complete" {
            fs::write(path, "").unwrap();
        }
    }
    check(&fixture, |e| matches!(e, Error::StoreUnopenable { .. }));
}

#[actix::test]
async fn inspecting_changes_nothing() {
    let fixture = with_a_registration().await;
    // The first opening after a stop writes a snapshot; from then on there is nothing to recover.
    drop(fixture.open().unwrap());
    assert!(inspect(&fixture.config).is_empty());
    let files = || {
        let mut files: Vec<_> = fs::read_dir(&fixture.config.path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = files();
    assert!(inspect(&fixture.config).is_empty());
    assert!(before == files());
}
