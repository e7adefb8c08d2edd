//! The program itself, as a host of the network.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use simulators::Authority;

use crate::apple::{self, Apple};
use crate::net::Host;
use crate::process::Process;
use crate::server::{COMPONENT_PORT, COMPONENT_SECRET, Certificate};

/// The domains it serves, each with a certificate of its own.
pub(crate) const DOMAIN: &str = "push.test";
pub(crate) const OTHER_DOMAIN: &str = "push2.test";
pub(crate) const DOMAINS: [&str; 2] = [DOMAIN, OTHER_DOMAIN];

/// Where it takes streams of other servers.
pub(crate) const PORT: u16 = 5269;
pub(crate) const TLS_PORT: u16 = 5270;

/// What of its own code it logs: everything.
const FILTER: &str = "info,campanile=trace,xmpp=trace,registration=trace,apns=trace,feedback=trace,\
                      retention=trace,privacy=trace,journal=trace,messages=trace";

/// A running Campanile.
pub(crate) struct Campanile {
    process: Process,
    /// Where all that it keeps is.
    pub(crate) directory: PathBuf,
}

/// One to start.
pub(crate) struct Setup<'a> {
    pub(crate) host: &'a Host,
    pub(crate) apple: &'a Apple,
    pub(crate) authority: &'a Authority,
    pub(crate) certificate: Certificate,
    /// The server of which it is a component, under the domain `service`.
    pub(crate) component_of: Option<&'a Host>,
    pub(crate) service: &'a str,
    pub(crate) directory: &'a Path,
}

impl Setup<'_> {
    pub(crate) fn start(&self) -> Campanile {
        let Self {
            apple, authority, ..
        } = self;
        let directory = self.directory.join("campanile");
        fs::create_dir(&directory).expect("the directory of the test can be written");
        let root = authority
            .write_root(&directory, "authority")
            .expect("it can be written");
        let domains = match self.component_of {
            Some(server) => self.component(server, &directory),
            None => self.domains(&directory),
        };
        let text = format!(
            r#"
[log]
filter = "{FILTER}"

[xmpp]
listen = {listen}
listen_tls = {listen_tls}
system_roots = false
ca_files = ["{root}"]
dialback_secret_file = "{dialback_secret}"
allow_private_targets = true

{domains}
[apps.demo]
topic = "{topic}"
team_id = "{team_id}"
key_id = "{key_id}"
key_file = "{key_file}"
endpoint = "{endpoint}:{port}"
ca_file = "{root}"

[apns]
token_dir = "{tokens}"

[registration]
path = "{store}"
key_file = "{store_key}"

[privacy]
path = "{at}/privacy"
key_file = "{at}/privacy.key"
socket = "{at}/admin.sock"
[retention]
report_file = "{report}"

[journal]
path = "{journal}"
key_file = "{journal_key}"
"#,
            at = directory.display(),
            listen = self.listen(PORT),
            listen_tls = self.listen(TLS_PORT),
            root = root.display(),
            topic = apple::TOPIC,
            team_id = apple::TEAM_ID,
            key_id = apple::KEY_ID,
            key_file = apple.key_file.display(),
            endpoint = apple::NAME,
            port = apple::PORT,
            dialback_secret = directory.join("dialback.secret").display(),
            tokens = directory.join("provider-tokens").display(),
            store = directory.join("store").display(),
            store_key = directory.join("registration.key").display(),
            report = directory.join("retention.json").display(),
            journal = directory.join("journal").display(),
            journal_key = directory.join("journal.key").display(),
        );
        let configuration = directory.join("campanile.toml");
        fs::write(&configuration, text).expect("the directory of the test can be written");
        let mut command = self.host.command(env!("CARGO_BIN_EXE_campanile"));
        command.args(["serve", "--config"]).arg(configuration);
        // Beside the directory, where only data is.
        let log = self.directory.join("campanile.log");
        let mut process = Process::start("campanile", command, &log);
        wait_until_ready(&mut process);
        Campanile { process, directory }
    }
}

impl Setup<'_> {
    /// Where it takes streams of other servers; a component takes none.
    fn listen(&self, port: u16) -> String {
        let Host { v4, v6, .. } = self.host;
        match self.component_of {
            Some(_) => "[]".to_owned(),
            None => format!("[\"[{v6}]:{port}\", \"{v4}:{port}\"]"),
        }
    }

    fn domains(&self, directory: &Path) -> String {
        let domain = |name: &str| {
            let identity = self.certificate.issue(self.authority, &[name]);
            let (certificate, key) = identity.write(directory, name).expect("it can be written");
            let (certificate, key) = (certificate.display(), key.display());
            format!(
                "[[domains]]\nname = \"{name}\"\ncertificate = \"{certificate}\"\nkey = \"{key}\"\n\
                 apps = [\"demo\"]\n"
            )
        };
        DOMAINS.map(domain).concat()
    }

    fn component(&self, server: &Host, directory: &Path) -> String {
        let name = self.service;
        let secret = directory.join("component.secret");
        fs::write(&secret, COMPONENT_SECRET).expect("the directory of the test can be written");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))
            .expect("the owner may say who reads it");
        let (address, secret) = (server.v4, secret.display());
        format!(
            "[[domains]]\nname = \"{name}\"\napps = [\"demo\"]\n\
             [[components]]\ndomain = \"{name}\"\nconnect = \"{address}:{COMPONENT_PORT}\"\n\
             secret_file = \"{secret}\"\n"
        )
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

    /// Runs `campanile privacy` as an operator does.
    pub(crate) fn privacy(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_campanile"))
            .arg("privacy")
            .args(arguments)
            .arg("--config")
            .arg(self.directory.join("campanile.toml"))
            .output()
            .expect("the program runs")
    }

    /// How often this is in the journal, in segments that are not compressed yet.
    pub(crate) fn journalled(&self, needle: &str) -> usize {
        let segments = fs::read_dir(self.directory.join("journal")).expect("there is a journal");
        let bytes = segments.flatten().map(|entry| fs::read(entry.path()));
        let windows = |bytes: Vec<u8>| {
            let windows = bytes.windows(needle.len());
            windows
                .filter(|window| *window == needle.as_bytes())
                .count()
        };
        bytes.flatten().map(windows).sum()
    }

    /// What it has made that others may read.
    pub(crate) fn exposed(&self) -> Vec<PathBuf> {
        let made = [
            "store",
            "privacy",
            "registration.key",
            "privacy.key",
            "admin.sock",
        ];
        let mut exposed = Vec::new();
        for name in made {
            find_exposed(&self.directory.join(name), &mut exposed);
        }
        exposed
    }

    /// Whether any file of its directory has these bytes.
    pub(crate) fn holds(&self, needle: &str) -> bool {
        holds(&self.directory, needle)
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

    /// Waits until it has connected as a component for so many times.
    #[track_caller]
    pub(crate) fn wait_for_component(&mut self, times: usize) {
        self.process.wait_for("component connected", |log| {
            (log.matches("component connected").count() >= times).then_some(())
        });
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

fn holds(directory: &Path, needle: &str) -> bool {
    let entries = fs::read_dir(directory).expect("the directory is the test's own");
    entries.flatten().any(|entry| {
        let path = entry.path();
        let kind = entry.file_type().expect("the file is the test's own");
        if kind.is_dir() {
            return holds(&path, needle);
        }
        // A file may be gone since it was listed, and a socket has no bytes.
        let bytes = fs::read(&path).unwrap_or_default();
        bytes
            .windows(needle.len())
            .any(|window| window == needle.as_bytes())
    })
}

fn find_exposed(path: &Path, exposed: &mut Vec<PathBuf>) {
    let found = fs::symlink_metadata(path).expect("the program has made it");
    if found.permissions().mode() & 0o077 != 0 {
        exposed.push(path.to_owned());
    }
    if found.is_dir() {
        for entry in fs::read_dir(path).expect("it can be read").flatten() {
            find_exposed(&entry.path(), exposed);
        }
    }
}
