//! Debian's Prosody with mod_cloud_notify, as a host of the network.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::net::Host;
use crate::process::Process;
use crate::publish::{Publish, attribute};
use crate::server::{
    COMPONENT_PORT, COMPONENT_SECRET, Component, Make, Proofs, Server, Setup, fill,
};
use crate::world::{Link, PASSWORD, Route};

/// The second domain, if there is one.
pub(crate) const ELSEWHERE: &str = "elsewhere.prosody.test";

/// A running Prosody.
pub(crate) struct Prosody {
    domain: &'static str,
    address: IpAddr,
    trust: Option<PathBuf>,
    process: Process,
}

impl Prosody {
    /// Starts it for one domain with these accounts.
    pub(crate) fn start(setup: &Setup<'_>) -> Self {
        let domain = Make::Prosody.domain();
        let directory = setup.directory.join("prosody");
        let certificates = directory.join("certificates");
        let accounts_path = directory
            .join("data")
            .join(domain.replace('.', "%2e"))
            .join("accounts");
        let modules = directory.join("modules");
        for path in [&certificates, &accounts_path, &modules] {
            fs::create_dir_all(path).expect("the directory of the test can be written");
        }
        let module = include_str!("mod_log_routes.lua");
        fs::write(modules.join("mod_log_routes.lua"), module)
            .expect("the directory of the test can be written");
        for account in setup.accounts {
            fs::write(
                accounts_path.join(format!("{account}.dat")),
                format!("return {{ [\"password\"] = \"{PASSWORD}\" }};\n"),
            )
            .expect("the directory of the test can be written");
        }
        let identity = setup.certificate.issue(setup.authority, &[domain]);
        identity
            .write(&certificates, domain)
            .expect("the directory of the test can be written");
        let trust = setup.write_trust(&identity, &directory);

        let log = directory.join("prosody.log");
        let configuration = directory.join("prosody.cfg.lua");
        let modules_more = match setup.link {
            Link::Bidi => "\"s2s_bidi\";",
            Link::Streams | Link::Component => "",
        };
        let (port, more) = match setup.route {
            Route::DirectTls => (5299, direct_tls(setup.port, &certificates)),
            Route::Srv | Route::V6Only | Route::DeadFirst => (setup.port, String::new()),
        };
        let component = match setup.link {
            Link::Component => format!(
                "Component \"{}\"\n\tcomponent_secret = \"{COMPONENT_SECRET}\"\n\
                 \tmodules_enabled = {{ \"log_routes\" }}\n",
                setup.service
            ),
            Link::Streams | Link::Bidi if setup.elsewhere => {
                let identity = setup.certificate.issue(setup.authority, &[ELSEWHERE]);
                identity
                    .write(&certificates, ELSEWHERE)
                    .expect("the directory of the test can be written");
                format!("Component \"{ELSEWHERE}\"\n\tcomponent_secret = \"{COMPONENT_SECRET}\"\n")
            }
            Link::Streams | Link::Bidi => String::new(),
        };
        let text = fill(
            include_str!("prosody.cfg.lua"),
            &[
                ("DIRECTORY", &directory.display().to_string()),
                ("LOG", &log.display().to_string()),
                ("DOMAIN", domain),
                ("S2S_PORT", &port.to_string()),
                ("S2S_SECURE_AUTH", &setup.certificate.is_good().to_string()),
                ("CA_FILE", &trust.display().to_string()),
                ("MODULES", modules_more),
                ("MORE", &more),
                ("COMPONENT", &component),
            ],
        );
        fs::write(&configuration, text).expect("the directory of the test can be written");

        let mut command = setup.host.command("prosody");
        command.arg("--config").arg(configuration).arg("-F");
        let mut process = Process::start("prosody", command, &log);
        wait_until_ready(&mut process);
        Self {
            domain,
            address: setup.host.v4.into(),
            trust: setup.trust_of_clients(trust),
            process,
        }
    }
}

/// Streams with TLS from the first byte, beside the others, which nobody is told of.
fn direct_tls(port: u16, certificates: &Path) -> String {
    let file = certificates.join(Make::Prosody.domain());
    let file = file.display();
    format!(
        "s2s_direct_tls_ports = {{ {port} }}\n\
         s2s_direct_tls_ssl = {{ certificate = \"{file}.crt\", key = \"{file}.key\" }}\n"
    )
}

fn wait_until_ready(process: &mut Process) {
    for service in ["s2s", "c2s"] {
        let activated = format!("Activated service '{service}' on");
        process.wait_for(&activated, |log| log.contains(&activated).then_some(()));
    }
}

impl Prosody {
    /// The component at the second domain.
    pub(crate) fn elsewhere(host: &Host) -> Component {
        Component {
            domain: ELSEWHERE,
            address: (host.v4.into(), COMPONENT_PORT),
            secret: COMPONENT_SECRET,
        }
    }
}

impl Server for Prosody {
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
                .map(|(_, stanza)| stanza)
                .filter(|stanza| stanza.starts_with("<iq "))
        };
        // Of a component only the first tag is shown.
        let answers: Vec<_> = stanzas("\tRECV: ")
            .chain(stanzas("\tReceived[component]: "))
            .filter(|stanza| attribute(stanza, "from") == Some(service))
            .collect();
        stanzas("\tROUTE: ")
            .filter(|stanza| attribute(stanza, "to") == Some(service))
            .filter(|stanza| stanza.contains("<publish node="))
            .map(|stanza| Publish::find(stanza, &answers))
            .collect()
    }

    fn awaits(&self, user: &str) -> bool {
        let log = self.process.log();
        let bound = format!(" for {user}@{}/", self.domain);
        let session = log
            .lines()
            .filter(|line| line.contains(&bound))
            .find_map(|line| line.split_whitespace().find(|word| word.starts_with("c2s")));
        session.is_some_and(|session| {
            log.lines()
                .any(|line| line.contains(session) && line.contains("going into hibernation"))
        })
    }

    fn proofs(&self, service: &str) -> Proofs {
        Proofs::read(
            &self.process.log(),
            [
                &format!("SASL EXTERNAL with {service} succeeded"),
                "sent dialback key on outgoing s2s stream",
            ],
            [
                &format!("Accepting SASL EXTERNAL identity from {service}"),
                &format!("asking {service} if key "),
            ],
        )
    }

    fn restart(&mut self) {
        self.process.restart();
        wait_until_ready(&mut self.process);
    }
}
