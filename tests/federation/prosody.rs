//! Debian's Prosody with mod_cloud_notify, as a host of the network.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use simulators::{Authority, Kind};

use crate::net::Host;
use crate::process::Process;
use crate::publish::{Answer, Publish};
use crate::world::{Mode, PASSWORD};

/// A running Prosody.
pub(crate) struct Prosody {
    domain: &'static str,
    address: IpAddr,
    trust: PathBuf,
    process: Process,
}

impl Prosody {
    /// Starts it for one domain with these accounts.
    pub(crate) fn start(
        host: &Host,
        mode: Mode,
        accounts: &[&str],
        authority: &Authority,
        directory: &Path,
    ) -> Self {
        let domain = mode.domain();
        let directory = directory.join("prosody");
        let certificates = directory.join("certificates");
        let accounts_path = directory
            .join("data")
            .join(domain.replace('.', "%2e"))
            .join("accounts");
        for path in [&certificates, &accounts_path] {
            fs::create_dir_all(path).expect("the directory of the test can be written");
        }
        for account in accounts {
            fs::write(
                accounts_path.join(format!("{account}.dat")),
                format!("return {{ [\"password\"] = \"{PASSWORD}\" }};\n"),
            )
            .expect("the directory of the test can be written");
        }
        let kind = match mode {
            Mode::Certificate => Kind::ServerOnly,
            Mode::Dialback => Kind::SelfSigned,
        };
        let identity = authority
            .issue(&[domain], kind)
            .expect("a domain is a name");
        identity
            .write(&certificates, domain)
            .expect("the directory of the test can be written");
        // Whom clients trust, and whom it trusts itself: with a self-signed certificate nobody else.
        let trust = directory.join("trust.pem");
        fs::write(&trust, identity.root_pem()).expect("the directory of the test can be written");

        let log = directory.join("prosody.log");
        let configuration = directory.join("prosody.cfg.lua");
        let text = [
            ("@DIRECTORY@", directory.display().to_string()),
            ("@LOG@", log.display().to_string()),
            ("@DOMAIN@", domain.to_owned()),
            ("@S2S_PORT@", mode.server_port().to_string()),
            ("@S2S_SECURE_AUTH@", (mode == Mode::Certificate).to_string()),
            ("@CA_FILE@", trust.display().to_string()),
        ]
        .into_iter()
        .fold(
            include_str!("prosody.cfg.lua").to_owned(),
            |text, (name, value)| text.replace(name, &value),
        );
        fs::write(&configuration, text).expect("the directory of the test can be written");

        let mut command = host.command("prosody");
        command.arg("--config").arg(configuration).arg("-F");
        let mut process = Process::start("prosody", command, &log);
        for service in ["s2s", "c2s"] {
            let activated = format!("Activated service '{service}' on");
            process.wait_for(&activated, |log| log.contains(&activated).then_some(()));
        }
        Self {
            domain,
            address: host.v4.into(),
            trust,
            process,
        }
    }

    pub(crate) const fn domain(&self) -> &'static str {
        self.domain
    }

    /// Where clients connect to.
    pub(crate) const fn client_address(&self) -> (IpAddr, u16) {
        (self.address, 5222)
    }

    /// The certificate file that clients trust.
    pub(crate) fn trust(&self) -> &Path {
        &self.trust
    }

    /// What it has published to a push service until now, in order, and how that was answered.
    pub(crate) fn publishes(&self, service: &str) -> Vec<Publish> {
        let log = self.process.log();
        let stanzas = |direction: &'static str| {
            log.lines()
                .filter_map(move |line| line.split_once(direction))
                .map(|(_, stanza)| stanza)
                .filter(|stanza| stanza.starts_with("<iq "))
        };
        let answers: Vec<_> = stanzas("\tRECV: ")
            .filter(|stanza| attribute(stanza, "from") == Some(service))
            .collect();
        stanzas("\tSEND: ")
            .filter(|stanza| attribute(stanza, "to") == Some(service))
            .filter(|stanza| stanza.contains("<publish node="))
            .map(|stanza| {
                let id = attribute(stanza, "id");
                Publish {
                    answers: answers
                        .iter()
                        .filter(|answer| attribute(answer, "id") == id)
                        .map(|answer| Answer::read(answer))
                        .collect(),
                }
            })
            .collect()
    }

    /// Fails unless both directions were authenticated this way, and no direction in the other.
    #[track_caller]
    pub(crate) fn assert_federated(&self, mode: Mode, service: &str) {
        let domain = self.domain;
        let external = [
            format!("SASL EXTERNAL with {service} succeeded"),
            format!("Accepting SASL EXTERNAL identity from {service}"),
        ];
        let dialback = [
            "sent dialback key on outgoing s2s stream".to_owned(),
            "verified dialback key... it is valid".to_owned(),
            format!("asking {service} if key "),
        ];
        let both = [
            format!("Outgoing s2s connection {domain}->{service} complete"),
            format!("Incoming s2s connection {service}->{domain} complete"),
        ];
        let (seen, unseen) = match mode {
            Mode::Certificate => (&external[..], &dialback[..]),
            Mode::Dialback => (&dialback[..], &external[..]),
        };
        let log = self.process.log();
        for line in seen.iter().chain(&both) {
            assert!(log.contains(line.as_str()), "{domain} did not log: {line}");
        }
        for line in unseen {
            assert!(!log.contains(line.as_str()), "{domain} logged: {line}");
        }
    }
}

/// The value of an attribute of the first tag.
fn attribute<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    let tag = stanza.split('>').next()?;
    let (_, value) = tag.split_once(&format!(" {name}='"))?;
    value.split('\'').next()
}
