//! Debian's ejabberd with mod_push, as a host of the network.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::process::Process;
use crate::publish::{Publish, attribute};
use crate::server::{COMPONENT_PORT, COMPONENT_SECRET, Make, Proofs, Server, Setup, fill};
use crate::world::{Link, PASSWORD, Route};

/// A running ejabberd.
pub(crate) struct Ejabberd {
    domain: &'static str,
    address: IpAddr,
    trust: Option<PathBuf>,
    process: Process,
}

impl Ejabberd {
    /// Starts it for one domain with these accounts.
    pub(crate) fn start(setup: &Setup<'_>) -> Self {
        let domain = Make::Ejabberd.domain();
        let directory = setup.directory.join("ejabberd");
        fs::create_dir(&directory).expect("the directory of the test can be written");
        let identity = setup.certificate.issue(setup.authority, &[domain]);
        let trust = setup.write_trust(&identity, &directory);
        let certificate = directory.join("certificate.pem");
        let pem = format!("{}{}", identity.chain_pem(), identity.key_pem());
        fs::write(&certificate, pem).expect("the directory of the test can be written");
        let configuration = directory.join("ejabberd.yml");
        let port = match setup.route {
            Route::DirectTls => 5299,
            Route::Srv | Route::V6Only | Route::DeadFirst => setup.port,
        };
        let text = fill(
            include_str!("ejabberd.yml"),
            &[
                ("DOMAIN", domain),
                ("CERTIFICATE", &certificate.display().to_string()),
                ("CA_FILE", &trust.display().to_string()),
                ("S2S_PORT", &port.to_string()),
                ("LISTEN", &listen(setup)),
            ],
        );
        fs::write(&configuration, text).expect("the directory of the test can be written");

        // It logs to its output as well, like all others, so its own file is of no use.
        let log = directory.join("ejabberd.log");
        let accounts: String = setup
            .accounts
            .iter()
            .map(|name| {
                format!("_ = ejabberd_auth:try_register(<<\"{name}\">>, <<\"{domain}\">>, <<\"{PASSWORD}\">>), ")
            })
            .collect();
        let mut command = setup.host.command("erl");
        // Without a name for the node no port mapper is started, which would outlive the test.
        command
            .env("ERL_LIBS", libraries())
            .env("EJABBERD_CONFIG_PATH", &configuration)
            .env("EJABBERD_LOG_PATH", directory.join("ejabberd.own"))
            .env("SPOOL_DIR", directory.join("database"))
            .env("HOME", &directory)
            .args(["-noinput", "-mnesia", "dir"])
            .arg(format!("\"{}\"", directory.join("database").display()))
            .args(["-kernel", "inetrc", "\"/etc/ejabberd/inetrc\""])
            .args(["-s", "ejabberd", "-eval"])
            .arg(format!("{accounts}logger:notice(\"{READY}\")."));
        let mut process = Process::start("ejabberd", command, &log);
        wait_until_ready(&mut process);
        Self {
            domain,
            address: setup.host.v4.into(),
            trust: setup.trust_of_clients(trust),
            process,
        }
    }
}

/// Where it listens beside its usual ports.
fn listen(setup: &Setup<'_>) -> String {
    let direct_tls = (setup.route == Route::DirectTls).then(|| {
        format!(
            "  -\n    port: {}\n    ip: \"::\"\n    module: ejabberd_s2s_in\n    tls: true\n",
            setup.port
        )
    });
    let component = (setup.link == Link::Component).then(|| {
        format!(
            "  -\n    port: {COMPONENT_PORT}\n    ip: \"::\"\n    module: ejabberd_service\n    \
             access: all\n    hosts:\n      \"{}\":\n        password: \"{COMPONENT_SECRET}\"\n",
            setup.service
        )
    });
    [direct_tls, component].into_iter().flatten().collect()
}

/// What it is told to log when it has its accounts.
const READY: &str = "the accounts of the test are there";

fn wait_until_ready(process: &mut Process) {
    process.wait_for(READY, |log| log.contains(READY).then_some(()));
}

/// Where the package keeps its code: below the directory of the machine's architecture.
fn libraries() -> PathBuf {
    let all = fs::read_dir("/usr/lib").expect("every machine has it");
    all.flatten()
        .map(|entry| entry.path())
        .find(|path| {
            let inside = fs::read_dir(path).into_iter().flatten().flatten();
            inside
                .map(|entry| entry.file_name())
                .any(|name| name.to_string_lossy().starts_with("ejabberd-"))
        })
        .expect("the package ejabberd is installed")
}

impl Server for Ejabberd {
    fn domain(&self) -> &'static str {
        self.domain
    }

    fn client_address(&self) -> (IpAddr, u16) {
        (self.address, 5222)
    }

    fn trust(&self) -> Option<&Path> {
        self.trust.as_deref()
    }

    fn publishes(&self, service: &str) -> Vec<Publish> {
        let log = self.process.log();
        let stanzas = |direction: &'static str| {
            log.lines()
                .filter_map(move |line| line.split_once(direction))
                // What one line shows may be several stanzas.
                .flat_map(|(_, text)| text.split("<iq").skip(1))
        };
        let answers: Vec<_> = stanzas(" Received XML on stream = ")
            .filter(|stanza| attribute(stanza, "from") == Some(service))
            .collect();
        stanzas(" Send XML on stream = ")
            .filter(|stanza| attribute(stanza, "to") == Some(service))
            .filter(|stanza| stanza.contains("<publish node="))
            .map(|stanza| Publish::find(stanza, &answers))
            .collect()
    }

    fn awaits(&self, user: &str) -> bool {
        let text = format!("for {user}@{}", self.domain);
        let log = self.process.log();
        log.lines()
            .any(|line| line.contains("for stream resumption") && line.contains(&text))
    }

    fn proofs(&self, service: &str) -> Proofs {
        let domain = self.domain;
        let line = |direction: &str, how: &str, from: &str, to: &str| {
            format!("Accepted {direction} s2s {how} authentication {from} -> {to}")
        };
        Proofs::read(
            &self.process.log(),
            [
                &line("outbound", "EXTERNAL", domain, service),
                &line("outbound", "dialback", domain, service),
            ],
            [
                &line("inbound", "EXTERNAL", service, domain),
                &line("inbound", "dialback", service, domain),
            ],
        )
    }

    fn restart(&mut self) {
        self.process.restart();
        wait_until_ready(&mut self.process);
    }
}
