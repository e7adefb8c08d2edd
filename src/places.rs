//! Where the service keeps what: no place may be another one, or lie inside of it.
//!
//! Two keys in one file are one key, and whoever has it has both; a key inside of the data that it protects is in
//! each copy of these data. Files that two parts write are lost, and a directory is gone through by its owner.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use crate::Settings;
use crate::telemetry::Target;

/// A configured path.
struct Place {
    /// The key in the configuration.
    key: String,
    path: PathBuf,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The service makes it and files in it.
    Directory,
    /// The service makes it.
    File,
    /// Somebody else makes it, and may use it for more than one purpose.
    Given,
}

/// Everything that is kept where something else is, a line each.
pub(crate) fn findings(settings: &Settings) -> Vec<String> {
    let places = places(settings);
    let mut findings = Vec::new();
    for (index, one) in places.iter().enumerate() {
        for other in places.iter().skip(index + 1) {
            findings.extend(finding(one, other));
        }
    }
    findings
}

fn finding(one: &Place, other: &Place) -> Option<String> {
    if one.kind == Kind::Given && other.kind == Kind::Given {
        return None;
    }
    if one.path == other.path {
        return Some(format!(
            "{} and {} are the same, {}: give each a place of its own",
            one.key,
            other.key,
            one.path.display()
        ));
    }
    let (inner, outer) = if one.path.starts_with(&other.path) {
        (one, other)
    } else if other.path.starts_with(&one.path) {
        (other, one)
    } else {
        return None;
    };
    Some(format!(
        "{} ({}) lies inside of {} ({}): keep them apart",
        inner.key,
        inner.path.display(),
        outer.key,
        outer.path.display()
    ))
}

fn places(settings: &Settings) -> Vec<Place> {
    let mut places = Vec::new();
    let mut add = |kind: Kind, key: String, path: &Path| {
        // What is empty is complained of by its own rule.
        if !path.as_os_str().is_empty() {
            let path = resolved(path);
            places.push(Place { key, path, kind });
        }
    };
    let Settings {
        log,
        registration,
        privacy,
        journal,
        retention,
        apns,
        xmpp,
        ..
    } = settings;
    for (key, path) in [
        ("registration.path", &registration.path),
        ("privacy.path", &privacy.path),
        ("journal.path", &journal.path),
        ("apns.token_dir", &apns.token_dir),
    ] {
        add(Kind::Directory, key.to_owned(), path);
    }
    if log.to == Target::Files {
        add(Kind::Directory, "log.path".to_owned(), &log.path);
    }
    for (key, path) in [
        ("registration.key_file", &registration.key_file),
        ("privacy.key_file", &privacy.key_file),
        ("journal.key_file", &journal.key_file),
        ("privacy.socket", &privacy.socket),
        ("retention.report_file", &retention.report_file),
        ("xmpp.dialback_secret_file", &xmpp.dialback_secret_file),
    ] {
        add(Kind::File, key.to_owned(), path);
    }
    for path in &xmpp.ca_files {
        add(Kind::Given, "xmpp.ca_files".to_owned(), path);
    }
    for domain in &settings.domains {
        for (key, path) in [("certificate", &domain.certificate), ("key", &domain.key)] {
            if let Some(path) = path {
                add(
                    Kind::Given,
                    format!("domains: {}: {key}", domain.name),
                    path,
                );
            }
        }
    }
    for component in &settings.components {
        let key = format!("components: {}: secret_file", component.domain);
        add(Kind::Given, key, &component.secret_file);
    }
    for (name, app) in &settings.apps {
        add(Kind::Given, format!("apps.{name}.key_file"), &app.key_file);
        for (key, path) in [
            ("ca_file", &app.ca_file),
            ("proxy_credentials_file", &app.proxy_credentials_file),
            ("certificate_file", &app.certificate_file),
            ("certificate_password_file", &app.certificate_password_file),
            ("certificate_key_file", &app.certificate_key_file),
        ] {
            if let Some(path) = path {
                add(Kind::Given, format!("apps.{name}.{key}"), path);
            }
        }
    }
    places
}

/// The path without links, `.` and `..`, as far as it is there; the rest as it is written.
fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut there = path.as_path();
    let mut rest: Vec<OsString> = Vec::new();
    loop {
        if let Ok(real) = there.canonicalize() {
            return rest.iter().rev().fold(real, joined);
        }
        let last = there.components().next_back();
        let (Some(parent), Some(last)) = (there.parent(), last) else {
            return path;
        };
        rest.push(last.as_os_str().to_owned());
        there = parent;
    }
}

fn joined(mut path: PathBuf, name: &OsString) -> PathBuf {
    if Path::new(name).components().next() == Some(Component::ParentDir) {
        path.pop();
    } else {
        path.push(name);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets keys and gives what is found, each with the words that it has to have.
    #[track_caller]
    fn check(change: impl FnOnce(&mut Settings), expected: &[&[&str]]) {
        let mut settings = Settings::default();
        change(&mut settings);
        let found = findings(&settings);
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (finding, words) in found.iter().zip(expected) {
            for word in *words {
                assert!(finding.contains(word), "{finding} does not say {word}");
            }
        }
    }

    #[test]
    fn defaults_are_apart() {
        check(|_| {}, &[]);
        check(|s| s.log.to = Target::Files, &[]);
    }

    #[test]
    fn each_key_is_in_a_file_of_its_own() {
        check(
            |s| s.journal.key_file = s.registration.key_file.clone(),
            &[&["registration.key_file", "journal.key_file", "are the same"]],
        );
        check(
            |s| s.privacy.key_file = s.journal.key_file.clone(),
            &[&["privacy.key_file", "journal.key_file", "are the same"]],
        );
        check(
            |s| s.xmpp.dialback_secret_file = s.registration.key_file.clone(),
            &[&["registration.key_file", "xmpp.dialback_secret_file"]],
        );
        check(
            |s| s.retention.report_file = s.privacy.socket.clone(),
            &[&["privacy.socket", "retention.report_file"]],
        );
    }

    #[test]
    fn data_have_directories_of_their_own() {
        check(
            |s| s.privacy.path = s.registration.path.clone(),
            &[&["registration.path", "privacy.path", "are the same"]],
        );
        check(
            |s| s.journal.path = s.registration.path.join("journal"),
            &[&["journal.path (", "lies inside of registration.path ("]],
        );
        check(
            |s| s.privacy.path = "/var/lib/campanile/journal/cases".into(),
            &[&["privacy.path (", "lies inside of journal.path ("]],
        );
        check(
            |s| {
                s.log.to = Target::Files;
                s.log.path = s.journal.path.clone();
            },
            &[&["journal.path", "log.path", "are the same"]],
        );
        check(|s| s.log.path = s.journal.path.clone(), &[]);
    }

    #[test]
    fn keys_lie_outside_of_data() {
        for (key, others) in [("store", "registration"), ("journal", "journal")] {
            let inside = Path::new("/var/lib/campanile").join(key).join("x.key");
            let outer = format!("lies inside of {others}.path (");
            check(
                |s| s.privacy.key_file = inside.clone(),
                &[&["privacy.key_file (", &outer]],
            );
        }
        check(
            |s| s.registration.path = "/var/lib/campanile/registration.key/store".into(),
            &[&[
                "registration.path (",
                "lies inside of registration.key_file (",
            ]],
        );
    }

    #[test]
    fn what_is_given_may_be_shared_but_not_written_to() {
        let domain = |name: &str, file: &str| {
            toml::from_str(&format!(
                "name = '{name}'\ncertificate = '{file}'\nkey = '{file}'\napps = []"
            ))
            .unwrap()
        };
        check(
            |s| {
                s.domains = vec![
                    domain("a.example", "/etc/c.pem"),
                    domain("b.example", "/etc/c.pem"),
                ];
            },
            &[],
        );
        check(
            |s| s.domains = vec![domain("a.example", "/var/lib/campanile/privacy.key")],
            &[
                &["privacy.key_file", "domains: a.example: certificate"],
                &["privacy.key_file", "domains: a.example: key"],
            ],
        );
    }

    #[test]
    fn ways_round_about_lead_to_the_same_place() {
        check(
            |s| s.journal.path = "/var/lib/campanile/x/../store/./".into(),
            &[&["registration.path", "journal.path", "are the same"]],
        );
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        check(
            |s| {
                s.registration.path = real.join("store");
                s.privacy.path = link.join("store");
            },
            &[&["registration.path", "privacy.path", "are the same"]],
        );
    }
}
