//! The program itself, as a host of the network.

use std::fs;
use std::path::Path;

use simulators::Authority;

use crate::apple::{self, Apple};
use crate::net::Host;
use crate::process::Process;
use crate::server::Certificate;

/// The domain it serves.
pub(crate) const DOMAIN: &str = "push.test";

/// Where it takes streams of other servers.
pub(crate) const PORT: u16 = 5269;

/// What of its own code it logs: everything.
const FILTER: &str = "info,campanile=trace,xmpp=trace,registration=trace,apns=trace,feedback=trace,\
                      retention=trace,messages=trace";

/// A running Campanile.
pub(crate) struct Campanile {
    process: Process,
}

/// One to start.
pub(crate) struct Setup<'a> {
    pub(crate) host: &'a Host,
    pub(crate) apple: &'a Apple,
    pub(crate) authority: &'a Authority,
    pub(crate) certificate: Certificate,
    pub(crate) directory: &'a Path,
}

impl Setup<'_> {
    pub(crate) fn start(&self) -> Campanile {
        let Self {
            host,
            apple,
            authority,
            ..
        } = self;
        let directory = self.directory.join("campanile");
        fs::create_dir(&directory).expect("the directory of the test can be written");
        let root = authority
            .write_root(&directory, "authority")
            .expect("it can be written");
        let (certificate, key) = self
            .certificate
            .issue(authority, &[DOMAIN])
            .write(&directory, DOMAIN)
            .expect("it can be written");
        let text = format!(
            r#"
[log]
filter = "{FILTER}"

[xmpp]
listen = ["[{v6}]:{PORT}", "{v4}:{PORT}"]
system_roots = false
ca_files = ["{root}"]
dialback_secret_file = "{dialback_secret}"
allow_private_targets = true

[[domains]]
name = "{DOMAIN}"
certificate = "{certificate}"
key = "{key}"
apps = ["demo"]

[apps.demo]
topic = "{topic}"
team_id = "{team_id}"
key_id = "{key_id}"
key_file = "{key_file}"
endpoint = "{endpoint}:{port}"
ca_file = "{root}"

[registration]
path = "{store}"
key_file = "{store_key}"
"#,
            v4 = host.v4,
            v6 = host.v6,
            root = root.display(),
            certificate = certificate.display(),
            key = key.display(),
            topic = apple::TOPIC,
            team_id = apple::TEAM_ID,
            key_id = apple::KEY_ID,
            key_file = apple.key_file.display(),
            endpoint = apple::NAME,
            port = apple::PORT,
            dialback_secret = directory.join("dialback.secret").display(),
            store = directory.join("store").display(),
            store_key = directory.join("registration.key").display(),
        );
        let configuration = directory.join("campanile.toml");
        fs::write(&configuration, text).expect("the directory of the test can be written");
        let mut command = host.command(env!("CARGO_BIN_EXE_campanile"));
        command.args(["serve", "--config"]).arg(configuration);
        let mut process = Process::start("campanile", command, &directory.join("campanile.log"));
        wait_until_ready(&mut process);
        Campanile { process }
    }
}

fn wait_until_ready(process: &mut Process) {
    process.wait_for("serves", |log| log.contains("serving").then_some(()));
}

impl Campanile {
    /// All it has logged.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Ends it as a power cut does.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it after its end, on what it has left on disk.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        self.process.start_again();
        wait_until_ready(&mut self.process);
    }

    /// Asks it to end, as a service manager does, and fails unless it says that all work is done.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        let status = self.process.terminate();
        assert_eq!(
            status.code(),
            Some(0),
            "campanile ends with {status}\n{}",
            self.log()
        );
    }
}
