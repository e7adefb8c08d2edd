//! What `campanile check` is told.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use messages::{Clock, UnixMillis};
use rcgen::date_time_ymd;
use xmpp::{Config, DomainConfig, Error, Ingress, inspect};

use crate::world::{World, parameters};

/// A configuration without fault.
fn good(world: &World) -> (Config, DomainConfig) {
    let domain = world.domain("push.test", &world.trusted(&["push.test"]));
    (world.config(), domain)
}

fn now() -> Clock {
    Clock::system()
}

#[track_caller]
fn check(config: &Config, domain: &DomainConfig, clock: &Clock, expected: &[(bool, &str)]) {
    let domains = [domain.clone()];
    let found: Vec<(bool, String)> = inspect(config, &domains, clock)
        .into_iter()
        .map(|finding| (finding.fatal, finding.error.to_string()))
        .collect();
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for ((fatal, text), (expected_fatal, part)) in found.iter().zip(expected) {
        assert_eq!(fatal, expected_fatal, "{text}");
        assert!(text.contains(part), "{text}");
    }
    let fatal = expected.iter().any(|(fatal, _)| *fatal);
    // Ports are not bound by preparing, and what only peers refuse does not keep the service from starting.
    let later = ["listen", "does not cover", "has expired"];
    let later = expected
        .iter()
        .all(|(_, text)| later.iter().any(|part| text.contains(part)));
    assert_eq!(
        Ingress::prepare(config, &domains, "1").is_err(),
        fatal && !later
    );
}

#[test]
fn a_good_configuration_has_no_findings_and_is_not_changed() {
    let world = World::new();
    let (config, domain) = good(&world);
    assert!(inspect(&config, &[domain], &now()).is_empty());
    assert!(!config.dialback_secret_file.exists());
}

#[test]
fn files() {
    let world = World::new();
    let (config, domain) = good(&world);
    let missing = DomainConfig {
        key: Some(world.path("missing.key")),
        ..domain.clone()
    };
    check(
        &config,
        &missing,
        &now(),
        &[(true, "missing.key cannot be read")],
    );
    let swapped = DomainConfig {
        certificate: domain.key.clone(),
        ..domain.clone()
    };
    check(
        &config,
        &swapped,
        &now(),
        &[(true, "holds no certificate in PEM format")],
    );
    let key = domain.key.as_ref().unwrap();
    std::fs::set_permissions(key, Permissions::from_mode(0o644)).unwrap();
    let exposed = [(false, "push.test.key can be read by everybody")];
    check(&config, &domain, &now(), &exposed);
    std::fs::set_permissions(key, Permissions::from_mode(0o600)).unwrap();
    let other = world.domain("push2.test", &world.trusted(&["push2.test"]));
    let mismatching = DomainConfig {
        key: other.key,
        ..domain.clone()
    };
    check(
        &config,
        &mismatching,
        &now(),
        &[(true, "is not the private key of")],
    );
    let mut authorities = config.clone();
    authorities.ca_files = vec![world.path("missing.crt")];
    check(
        &authorities,
        &domain,
        &now(),
        &[
            (true, "missing.crt cannot be read"),
            (false, "no certificate authority is trusted"),
        ],
    );
    let mut secret = config;
    let file = domain.certificate.as_ref().unwrap();
    secret.dialback_secret_file = file.join("dialback.secret");
    check(
        &secret,
        &domain,
        &now(),
        &[(true, "cannot be used as dialback secret")],
    );
}

#[test]
fn certificates_that_peers_refuse() {
    let world = World::new();
    let (config, domain) = good(&world);
    let foreign = world.domain("push.test", &world.trusted(&["other.test"]));
    check(
        &config,
        &foreign,
        &now(),
        &[(true, "does not cover the domain push.test")],
    );

    let mut ending = parameters(&["push.test"]);
    ending.not_before = date_time_ymd(2020, 1, 1);
    ending.not_after = date_time_ymd(2020, 3, 1);
    let ending = world.domain("push.test", &world.sign(&ending));
    check(&config, &ending, &now(), &[(true, "has expired: renew it")]);
    // 2020-02-20T00:00:00Z and 2020-01-15T00:00:00Z.
    let soon = Clock::manual(UnixMillis(1_582_156_800_000));
    check(
        &config,
        &ending,
        &soon,
        &[(false, "expires in 10 days: renew it")],
    );
    let early = Clock::manual(UnixMillis(1_579_046_400_000));
    check(&config, &ending, &early, &[]);
    drop(domain);
}

#[test]
fn settings() {
    let world = World::new();
    let (good_config, domain) = good(&world);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = good_config.clone();
    config.listen = vec![taken.local_addr().unwrap()];
    check(
        &config,
        &domain,
        &now(),
        &[(true, "cannot listen on 127.0.0.1:")],
    );
    let mut config = good_config.clone();
    config.stanza_bytes_max = 9_999;
    config.tickets_per_stream = 0;
    check(
        &config,
        &domain,
        &now(),
        &[
            (true, "xmpp.tickets_per_stream is too small: set it to 1"),
            (true, "set it to 10000"),
        ],
    );
    let mut config = good_config.clone();
    config.allow = vec!["*.chat.test".to_owned(), "*".to_owned()];
    config.deny = vec!["chat test".to_owned()];
    check(
        &config,
        &domain,
        &now(),
        &[
            (true, "xmpp.allow: \"*\" is no domain name"),
            (true, "xmpp.deny: \"chat test\" is no domain name"),
        ],
    );
    let unnamed = DomainConfig {
        name: "push test".to_owned(),
        ..domain.clone()
    };
    check(
        &good_config,
        &unnamed,
        &now(),
        &[(true, "\"push test\" is no domain name")],
    );
    let useless = DomainConfig {
        apps: Vec::new(),
        ..domain.clone()
    };
    check(
        &good_config,
        &useless,
        &now(),
        &[(true, "push.test serves no app")],
    );
    let twice = Ingress::prepare(&good_config, &[domain.clone(), domain], "1")
        .err()
        .unwrap();
    assert!(matches!(&twice[..], [Error::Duplicate { .. }]));
    let none = Ingress::prepare(&good_config, &[], "1").err().unwrap();
    assert!(matches!(&none[..], [Error::NoDomains]));
}
