//! Every make of server with every kind of certificate: what works, what does not, and why not.
//!
//! Each cell prints a line, also when the test passes and no output is asked for.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use crate::server::{Certificate, Make, Proof, Proofs};
use crate::world::{Link, Plan, Route, World};
use crate::{DEVICE, alices_token, campanile};

macro_rules! cells {
    ($($name:ident: $make:ident, $certificate:ident;)*) => {$(
        #[test]
        fn $name() {
            all_flows(Make::$make, Certificate::$certificate);
        }
    )*};
}

cells! {
    prosody_external: Prosody, Trusted;
    prosody_self_signed: Prosody, SelfSigned;
    prosody_expired: Prosody, Expired;
    prosody_server_only: Prosody, ServerOnly;
    ejabberd_external: Ejabberd, Trusted;
    ejabberd_self_signed: Ejabberd, SelfSigned;
    ejabberd_expired: Ejabberd, Expired;
    ejabberd_server_only: Ejabberd, ServerOnly;
    jabberd_external: Jabberd, Trusted;
    jabberd_self_signed: Jabberd, SelfSigned;
    jabberd_expired: Jabberd, Expired;
    jabberd_server_only: Jabberd, ServerOnly;
}

/// How the two prove their domains: the server to Campanile, and Campanile to the server.
fn proofs(make: Make, certificate: Certificate) -> Proofs {
    use Proof::{Dialback, External};
    match (make, certificate) {
        // It knows no SASL between servers, whatever the certificate.
        (Make::Jabberd, _) => Proofs::of(Dialback, Dialback),
        (Make::Ejabberd | Make::Prosody, Certificate::SelfSigned) => Proofs::of(Dialback, Dialback),
        (Make::Ejabberd | Make::Prosody, Certificate::Expired) => Proofs::of(Dialback, External),
        // ejabberd before 25.07 takes no certificate from us that is not good for clients.
        (Make::Ejabberd, Certificate::ServerOnly) => Proofs::of(External, Dialback),
        (Make::Ejabberd | Make::Prosody, _) => Proofs::of(External, External),
    }
}

/// What a peer cannot do of a cell, and what is done instead.
fn instead(make: Make, certificate: Certificate, flow: &str) -> Option<&'static str> {
    match (make, certificate, flow) {
        (Make::Jabberd, Certificate::Trusted | Certificate::ServerOnly, "register") => {
            Some("jabberd2 has no SASL EXTERNAL between servers: it proved itself by dialback")
        }
        (Make::Jabberd, _, "publish with reply" | "peer restarts in between") => Some(
            "jabberd2 has no push module (XEP-0357): a component of it registered and published",
        ),
        _ => None,
    }
}

fn all_flows(make: Make, certificate: Certificate) {
    let name = format!("{} {}", make.name(), certificate.name());
    let plan = Plan {
        own_certificate: if certificate == Certificate::ServerOnly {
            Certificate::ServerOnly
        } else {
            Certificate::Trusted
        },
        ..Plan::new(&name, make, certificate)
    };
    let mut world = World::start(&plan, &["alice", "bob"]);
    let token = alices_token();
    let cell = |world: &mut World, flow: &str, run: &dyn Fn(&mut World)| {
        let row = format!("{} | {} | {flow}", make.name(), certificate.name());
        cell(&row, instead(make, certificate, flow), || run(world));
    };
    cell(&mut world, "register", &|world| {
        world.sign_up("alice", DEVICE, &token);
    });
    world.login("bob");
    cell(&mut world, "publish with reply", &|world| {
        world.assert_wakes("alice", &token);
        assert_eq!(
            world.server.proofs(campanile::DOMAIN),
            proofs(make, certificate)
        );
    });
    cell(&mut world, "peer restarts in between", &|world| {
        world.logout("bob");
        world.restart_server();
        world.login("bob");
        if let Some(component) = world.server.stand_in() {
            world.users.attach(&component);
        }
        world.assert_wakes("alice", &token);
        assert_eq!(
            world.server.proofs(campanile::DOMAIN),
            proofs(make, certificate)
        );
    });
    world.finish(2);
}

/// Runs a cell and tells its outcome past what the test harness captures: who runs the tests reads the
/// table.
pub(crate) fn cell(row: &str, instead: Option<&str>, run: impl FnOnce()) {
    let began = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(run));
    let told = match (&outcome, instead) {
        (Ok(()), None) => "works".to_owned(),
        (Ok(()), Some(instead)) => format!("works; {instead}"),
        (Err(_), _) => "FAILS".to_owned(),
    };
    let took = began.elapsed().as_secs_f32();
    tell(row, &format!("{told} | {took:.1} s"));
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}

fn tell(row: &str, outcome: &str) {
    let line = format!("cell | {row} | {outcome}\n");
    let _closed = std::io::stdout().write_all(line.as_bytes());
}

/// Of the targets in the DNS the first has an address that no host has, and the second a port that is
/// closed; so both ways.
#[test]
fn first_targets_are_dead() {
    let plan = Plan {
        route: Route::DeadFirst,
        ..Plan::new("dead targets", Make::Prosody, Certificate::Trusted)
    };
    let mut world = World::start(&plan, &["alice", "bob"]);
    cell(
        "Prosody | EXTERNAL | first SRV targets are dead",
        None,
        || {
            let token = alices_token();
            world.sign_up("alice", DEVICE, &token);
            world.login("bob");
            world.assert_wakes("alice", &token);
        },
    );
    for (domain, host) in [
        (campanile::DOMAIN, &world.server_host),
        (world.server.domain(), &world.campanile_host),
    ] {
        let dead = format!("dead.{domain}");
        assert!(
            world.dns.was_asked("A", &dead, host),
            "{dead} was not tried"
        );
    }
    world.finish(1);
}

/// A message to a registered user wakes her device.
fn wakes(plan: &Plan, row: &str, check: impl FnOnce(&mut World)) {
    let mut world = World::start(plan, &["alice", "bob"]);
    cell(row, None, || {
        let token = alices_token();
        world.sign_up("alice", DEVICE, &token);
        world.login("bob");
        world.assert_wakes("alice", &token);
        check(&mut world);
    });
    world.finish(1);
}

fn direct_tls(make: Make) {
    let name = format!("{} direct TLS", make.name());
    let plan = Plan {
        route: Route::DirectTls,
        ..Plan::new(&name, make, Certificate::Trusted)
    };
    let row = format!("{} | EXTERNAL | direct TLS, both ways", make.name());
    wakes(&plan, &row, |world| {
        assert_eq!(
            world.server.proofs(campanile::DOMAIN),
            Proofs::of(Proof::External, Proof::External)
        );
    });
}

#[test]
fn prosody_direct_tls() {
    direct_tls(Make::Prosody);
}

#[test]
fn ejabberd_direct_tls() {
    direct_tls(Make::Ejabberd);
}

#[test]
fn prosody_bidi() {
    let plan = Plan {
        link: Link::Bidi,
        ..Plan::new("bidi", Make::Prosody, Certificate::Trusted)
    };
    wakes(
        &plan,
        "Prosody | EXTERNAL | answers on its own stream (XEP-0288)",
        |world| {
            assert_eq!(
                world.server.proofs(campanile::DOMAIN),
                Proofs::new([Proof::External], []),
                "Campanile opens no stream"
            );
        },
    );
}

fn two_domains(make: Make) {
    let name = format!("{} two domains", make.name());
    let plan = Plan::new(&name, make, Certificate::Trusted);
    let mut world = World::start(&plan, &["alice", "bob"]);
    let row = format!(
        "{} | EXTERNAL | two served domains, each with its certificate",
        make.name()
    );
    let token = alices_token();
    cell(
        &row,
        instead(make, Certificate::Trusted, "register"),
        || {
            for domain in campanile::DOMAINS {
                world.service = domain.to_owned();
                world.sign_up("alice", DEVICE, &token);
                world.login("bob");
                world.assert_wakes("alice", &token);
                assert_eq!(
                    world.server.proofs(domain),
                    proofs(make, Certificate::Trusted)
                );
                world.logout("bob");
                world.disable("alice");
            }
        },
    );
    world.finish(2);
}

#[test]
fn prosody_two_domains() {
    two_domains(Make::Prosody);
}

#[test]
fn ejabberd_two_domains() {
    two_domains(Make::Ejabberd);
}

#[test]
fn jabberd_two_domains() {
    two_domains(Make::Jabberd);
}

fn component(make: Make) {
    let name = format!("component of {}", make.name());
    let plan = Plan {
        link: Link::Component,
        ..Plan::new(&name, make, Certificate::Trusted)
    };
    let row = format!(
        "{} | component (XEP-0114) | register, publish, restart",
        make.name()
    );
    let mut world = World::start(&plan, &["alice", "bob"]);
    let token = alices_token();
    cell(&row, None, || {
        world.campanile.wait_for_component(1);
        world.sign_up("alice", DEVICE, &token);
        world.login("bob");
        world.assert_wakes("alice", &token);
        world.logout("bob");
        world.restart_server();
        // Until then the server answers for it, as for any component that is away.
        world.campanile.wait_for_component(2);
        world.login("bob");
        world.assert_wakes("alice", &token);
    });
    world.finish(2);
}

#[test]
fn prosody_component() {
    component(Make::Prosody);
}

#[test]
fn ejabberd_component() {
    component(Make::Ejabberd);
}

/// What no cell can show, and why.
#[test]
fn what_peers_cannot_do() {
    for (row, reason) in [
        ("jabberd2 | direct TLS", "it does not know XEP-0368"),
        ("jabberd2 | bidi", "it does not know XEP-0288"),
        (
            "ejabberd | bidi",
            "it knows XEP-0288 from 24.10 on; Debian has 23.01",
        ),
        (
            "jabberd2 | stream management",
            "it does not keep the streams of users that broke",
        ),
        (
            "jabberd2 | component (XEP-0114)",
            "it would add nothing: components are what publishes in its other cells",
        ),
    ] {
        tell(row, &format!("not possible: {reason}"));
    }
}
