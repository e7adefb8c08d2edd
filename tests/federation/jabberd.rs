//! Debian's jabberd2, as a host of the network: four programs behind a router.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::Process;
use crate::publish::Publish;
use crate::server::{
    COMPONENT_PORT, COMPONENT_SECRET, Component, Make, Proof, Proofs, Server, Setup, fill,
};
use crate::world::PASSWORD;

/// The domain of a component that does what a push module would do.
pub(crate) const STAND_IN: &str = "notify.jabberd.test";

/// Each with its configuration and what it logs when it serves. The router is first.
const PROGRAMS: [(&str, &str, &str); 4] = [
    (
        "router",
        include_str!("jabberd-router.xml"),
        "listening for incoming connections",
    ),
    ("sm", include_str!("jabberd-sm.xml"), "ready for sessions"),
    (
        "s2s",
        include_str!("jabberd-s2s.xml"),
        "listening for connections",
    ),
    (
        "c2s",
        include_str!("jabberd-c2s.xml"),
        "listening for connections",
    ),
];

/// A running jabberd2.
pub(crate) struct Jabberd {
    domain: &'static str,
    address: IpAddr,
    trust: Option<PathBuf>,
    /// In the order of [`PROGRAMS`].
    processes: Vec<Process>,
}

impl Jabberd {
    /// Starts it for one domain with these accounts.
    pub(crate) fn start(setup: &Setup<'_>) -> Self {
        let domain = Make::Jabberd.domain();
        let directory = setup.directory.join("jabberd");
        fs::create_dir_all(directory.join("storage"))
            .expect("the directory of the test can be written");
        let identity = setup
            .certificate
            .issue(setup.authority, &[domain, STAND_IN]);
        let trust = setup.write_trust(&identity, &directory);
        let certificate = directory.join("certificate.pem");
        let pem = format!("{}{}", identity.chain_pem(), identity.key_pem());
        fs::write(&certificate, pem).expect("the directory of the test can be written");
        let users = format!(
            "<users><user><name>jabberd</name><secret>{COMPONENT_SECRET}</secret></user></users>"
        );
        fs::write(directory.join("router-users.xml"), users)
            .expect("the directory of the test can be written");
        make_accounts(&directory.join("accounts.db"), domain, setup.accounts);

        let processes = PROGRAMS
            .into_iter()
            .map(|(name, template, ready)| {
                let log = directory.join(format!("{name}.log"));
                let text = fill(
                    template,
                    &[
                        ("DOMAIN", domain),
                        ("CERTIFICATE", &certificate.display().to_string()),
                        ("DIRECTORY", &directory.display().to_string()),
                        ("LOG", &log.display().to_string()),
                        ("MODULES", &modules().display().to_string()),
                        ("S2S_PORT", &setup.port.to_string()),
                        ("SECRET", COMPONENT_SECRET),
                    ],
                );
                let configuration = directory.join(format!("{name}.xml"));
                fs::write(&configuration, text).expect("the directory of the test can be written");
                let mut command = setup.host.command(&format!("jabberd2-{name}"));
                command.arg("-c").arg(configuration);
                let mut process = Process::start(name, command, &log);
                wait_until_ready(&mut process, ready);
                process
            })
            .collect();
        Self {
            domain,
            address: setup.host.v4.into(),
            trust: setup.trust_of_clients(trust),
            processes,
        }
    }

    fn log(&self, program: &str) -> String {
        let pairs = PROGRAMS.iter().zip(&self.processes);
        pairs
            .filter(|((name, ..), _)| *name == program)
            .map(|(_, process)| process.log())
            .collect()
    }
}

fn wait_until_ready(process: &mut Process, ready: &str) {
    process.wait_for(ready, |log| log.contains(ready).then_some(()));
}

/// The table that its `sqlite` module looks accounts up in.
fn make_accounts(file: &Path, domain: &str, accounts: &[&str]) {
    let rows: String = accounts
        .iter()
        .map(|name| format!("insert into authreg values ('{name}', '{domain}', '{PASSWORD}');"))
        .collect();
    let script = format!("create table authreg (username text, realm text, password text);{rows}");
    let program = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.argv[2])";
    let made = Command::new("/usr/bin/python3")
        .args(["-c", program])
        .arg(file)
        .arg(script)
        .status()
        .expect("Debian's python3 runs");
    assert!(made.success(), "the accounts of jabberd2 cannot be made");
}

/// Where the package keeps its modules: below the directory of the machine's architecture.
fn modules() -> PathBuf {
    let all = fs::read_dir("/usr/lib").expect("every machine has it");
    all.flatten()
        .map(|entry| entry.path().join("jabberd2"))
        .find(|path| path.join("authreg_sqlite.so").exists())
        .expect("the package jabberd2 is installed")
}

impl Server for Jabberd {
    fn domain(&self) -> &'static str {
        self.domain
    }

    fn client_address(&self) -> (IpAddr, u16) {
        (self.address, 5222)
    }

    fn trust(&self) -> Option<&Path> {
        self.trust.as_deref()
    }

    fn stand_in(&self) -> Option<Component> {
        Some(Component {
            domain: STAND_IN,
            address: (self.address, COMPONENT_PORT),
            secret: COMPONENT_SECRET,
        })
    }

    /// It has no push module.
    fn publishes(&self, _service: &str) -> Vec<Publish> {
        Vec::new()
    }

    /// Who comes on the socket of one who has not left yet is sent away with an internal error.
    fn has_left(&self, user: &str) -> bool {
        let log = self.log("sm");
        let count = |what: &str| {
            let line = format!("{what}: jid={user}@{}/", self.domain);
            log.matches(&line).count()
        };
        count("session started") == count("session ended")
    }

    /// It knows no resumption.
    fn awaits(&self, _user: &str) -> bool {
        false
    }

    fn proofs(&self, service: &str) -> Proofs {
        let log = self.log("s2s");
        let domain = self.domain;
        let valid = |line: String| log.contains(&line).then_some(Proof::Dialback);
        Proofs::new(
            valid(format!("outgoing route '{domain}/{service}' is now valid")),
            valid(format!("incoming route '{domain}/{service}' is now valid")),
        )
    }

    fn restart(&mut self) {
        for process in self.processes.iter_mut().rev() {
            process.terminate();
        }
        for (process, (_, _, ready)) in self.processes.iter_mut().zip(PROGRAMS) {
            process.start_again();
            wait_until_ready(process, ready);
        }
    }
}
