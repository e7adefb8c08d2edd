//! Every make of server with every kind of certificate: what works, what does not, and why not.
//!
//! Each cell prints a line, also when the test passes and no output is asked for.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use crate::server::{Certificate, Make, Proof, Proofs};
use crate::world::{Plan, Route, World};
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
    world.users.login("bob", &*world.server);
    cell(&mut world, "publish with reply", &|world| {
        world.assert_wakes("alice", &token);
        assert_eq!(
            world.server.proofs(campanile::DOMAIN),
            proofs(make, certificate)
        );
    });
    cell(&mut world, "peer restarts in between", &|world| {
        world.users.logout("bob");
        world.server.restart();
        world.users.login("bob", &*world.server);
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
    let line = format!("cell | {row} | {told} | {took:.1} s\n");
    let _closed = std::io::stdout().write_all(line.as_bytes());
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
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
            world.users.login("bob", &*world.server);
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
