//! A little world around the service: a strict APNs, an XMPP server with users, and the configuration
//! that connects the service to both. `campanile dev`, the tests of the whole and the benchmarks live in
//! it.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use messages::Clock;
use simulators::apple::{self, KnownKey};
use simulators::server;
use simulators::{Authority, Kind, SigningKey};
use tempfile::TempDir;

use crate::RunError;
use crate::lanes::Lane;
use crate::processor::{self, Span};

/// The domain of the service in its world.
pub const SERVICE: &str = "push.localhost";
/// The app whose devices are notified.
pub const APP: &str = "demo";
/// The app's bundle id.
pub const TOPIC: &str = "org.example.demo";

/// The team whose key signs for the app.
const TEAM_ID: &str = "DEF123GHIJ";
/// That key.
const KEY_ID: &str = "ABC123DEFG";
/// What the service knows as a component of the user's server.
const COMPONENT_SECRET: &str = "open-sesame";
/// The file in the world's directory that it stands in.
const COMPONENT_SECRET_FILE: &str = "component.secret";

/// How the service and the user's server meet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// As two servers, by streams with TLS in both directions.
    #[default]
    Federation,
    /// The service is a component of the user's server (XEP-0114) and listens besides.
    Component,
}

/// What the world is made of.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// How APNs behaves.
    pub apple: apple::Config,
    /// How the user's server behaves.
    pub chat: server::Config,
    /// How the service and the user's server meet.
    pub way: Way,
    /// Where the service listens; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// An APNs elsewhere, which the service pushes to instead of the world's.
    pub elsewhere: Option<Elsewhere>,
    /// Domains of peers beside the user's server, and where they listen.
    pub hosts: Vec<(String, SocketAddr)>,
    /// More configuration, as TOML: keys of `[apns]`, then others with their section headings.
    pub more: String,
}

/// An APNs that is not the world's, and what it knows the service by.
#[derive(Clone, Debug)]
pub struct Elsewhere {
    /// `host:port`.
    pub endpoint: String,
    /// PEM file of the only authorities to trust for it.
    pub ca_file: PathBuf,
    /// The app's bundle id.
    pub topic: String,
    /// The key it knows; without one the world's, which it may not know.
    pub key: Option<KnownAs>,
}

/// A signing key of Apple's kind.
#[derive(Clone, Debug)]
pub struct KnownAs {
    /// Ten characters.
    pub team_id: String,
    /// Ten characters.
    pub key_id: String,
    /// The key as Apple gives it out.
    pub key_file: PathBuf,
}

/// A running world. Its files and threads go with it.
pub struct World {
    directory: TempDir,
    config_file: PathBuf,
    authority: Authority,
    /// The strict APNs.
    pub apple: apple::Handles,
    /// The user's server.
    pub chat: server::Handles,
    lanes: Vec<Lane>,
}

impl World {
    /// Starts both simulators on threads of their own and writes the service's configuration.
    ///
    /// # Errors
    /// [`RunError::Simulator`] or [`RunError::System`].
    pub async fn start(plan: Plan) -> Result<Self, RunError> {
        let clock = Clock::system();
        let directory = tempfile::Builder::new()
            .prefix("campanile-")
            .tempdir()
            .map_err(|source| RunError::System {
                what: "cannot make a directory",
                source,
            })?;
        let at = directory.path();
        let authority = Authority::new(&clock)?;
        let root = authority.write_root(at, "root")?;
        authority
            .issue(&[SERVICE], Kind::ServerAndClient)?
            .write(at, SERVICE)?;
        let signing_key = SigningKey::new(TEAM_ID, KEY_ID)?;
        let key_file = signing_key.write(at)?;

        let lanes = vec![Lane::start(), Lane::start()];
        let known = KnownKey {
            id: signing_key.id().clone(),
            public_key: signing_key.public_key().to_vec(),
            topics: vec![TOPIC.to_owned()],
        };
        let apple_edges = apple::Edges {
            identity: authority.issue(&["localhost"], Kind::ServerAndClient)?,
            keys: vec![known],
            clock: clock.clone(),
        };
        let apple_config = plan.apple.clone();
        let apple = on(&lanes, 0, move || apple::start(&apple_config, apple_edges)).await??;
        let chat_edges = server::Edges {
            identity: authority.issue(&[&plan.chat.domain], Kind::ServerAndClient)?,
            roots: authority.roots()?,
            clock,
        };
        let mut chat_config = plan.chat.clone();
        if plan.way == Way::Component {
            chat_config.component.get_or_insert(server::ComponentPort {
                address: (Ipv4Addr::LOCALHOST, 0).into(),
                secret: COMPONENT_SECRET.to_owned(),
            });
        }
        let secret = chat_config.component.as_ref().map(|port| &port.secret);
        let secret_file = at.join(COMPONENT_SECRET_FILE);
        if let Some(secret) = secret {
            write_secret(&secret_file, secret).map_err(|source| RunError::System {
                what: "cannot write the component's secret",
                source,
            })?;
        }
        let chat = on(&lanes, 1, move || server::start(&chat_config, chat_edges)).await??;

        let config_file = at.join("campanile.toml");
        let text = configuration(&plan, at, &root, &key_file, apple.address, &chat);
        fs::write(&config_file, text).map_err(|source| RunError::System {
            what: "cannot write the configuration",
            source,
        })?;
        Ok(Self {
            directory,
            config_file,
            authority,
            apple,
            chat,
            lanes,
        })
    }

    /// The service's configuration file.
    #[must_use]
    pub fn config_file(&self) -> &Path {
        &self.config_file
    }

    /// The directory with certificates, keys, and the service's state.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Who issued the certificates, and can issue more.
    #[must_use]
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Tells the user's server where the service listens now.
    pub async fn service_is_at(&self, address: SocketAddr) {
        let _stopped = self.chat.service_at.send(server::ServiceAt(address)).await;
    }

    /// CPU time that the simulators' threads have used until now.
    pub async fn simulators_cpu(&self) -> Duration {
        let mut used = Duration::ZERO;
        for lane in &self.lanes {
            let cpu = lane.build(|| processor::used(Span::Thread)).await;
            used += cpu.unwrap_or_default();
        }
        used
    }

    /// Ends the simulators' threads and removes the files.
    pub async fn stop(self) {
        for lane in self.lanes {
            lane.stop().await;
        }
    }
}

async fn on<T: Send + 'static>(
    lanes: &[Lane],
    index: usize,
    build: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RunError> {
    let gone = || RunError::Simulator("a thread did not start".to_owned());
    lanes
        .get(index)
        .ok_or_else(gone)?
        .build(build)
        .await
        .ok_or_else(gone)
}

impl From<simulators::SimulatorError> for RunError {
    fn from(error: simulators::SimulatorError) -> Self {
        Self::Simulator(error.to_string())
    }
}

/// Writes a secret that nobody else can read.
fn write_secret(file: &Path, secret: &str) -> io::Result<()> {
    let mut open = OpenOptions::new();
    let mut file = open.write(true).create_new(true).mode(0o600).open(file)?;
    file.write_all(secret.as_bytes())
}

/// A string as TOML writes it, whatever is in it. JSON's are written so too.
fn toml_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn configuration(
    plan: &Plan,
    at: &Path,
    root: &Path,
    key_file: &Path,
    apple: SocketAddr,
    chat: &server::Handles,
) -> String {
    let listen: Vec<String> = plan
        .listen
        .iter()
        .map(|address| format!("\"{address}\""))
        .collect();
    let elsewhere = plan.elsewhere.clone().unwrap_or_else(|| Elsewhere {
        endpoint: format!("localhost:{}", apple.port()),
        ca_file: root.to_owned(),
        topic: TOPIC.to_owned(),
        key: None,
    });
    let known_as = elsewhere.key.unwrap_or_else(|| KnownAs {
        team_id: TEAM_ID.to_owned(),
        key_id: KEY_ID.to_owned(),
        key_file: key_file.to_owned(),
    });
    let (at, root) = (at.display(), root.display());
    let mut text = format!(
        r#"[xmpp]
listen = [{listen}]
listen_tls = []
ca_files = ["{root}"]
dialback_secret_file = "{at}/dialback.secret"
# One peer carries the load of many here.
stanzas_per_second_max = 1000000
stanzas_per_second_per_address_max = 1000000

[[domains]]
name = "{SERVICE}"
certificate = "{at}/{SERVICE}.crt"
key = "{at}/{SERVICE}.key"
apps = ["{APP}"]

[apps.{APP}]
topic = {topic}
team_id = {team_id}
key_id = {key_id}
key_file = {key_file}
endpoint = {endpoint}
ca_file = {ca_file}

[registration]
path = "{at}/store"
key_file = "{at}/registration.key"
# As above.
new_registrations_per_second_max = 1000000

[privacy]
path = "{at}/privacy"
key_file = "{at}/privacy.key"
socket = "{at}/admin.sock"
controller = "whoever runs this command"
contact = ["xmpp:ada@chat.localhost"]
locations = ["this machine"]
[retention]
report_file = "{at}/retention.json"

[journal]
path = "{at}/journal"
key_file = "{at}/journal.key"
"#,
        listen = listen.join(", "),
        topic = toml_text(&elsewhere.topic),
        team_id = toml_text(&known_as.team_id),
        key_id = toml_text(&known_as.key_id),
        key_file = toml_text(&known_as.key_file.display().to_string()),
        endpoint = toml_text(&elsewhere.endpoint),
        ca_file = toml_text(&elsewhere.ca_file.display().to_string()),
    );
    let component = chat.component;
    let chat = (chat.domain.to_string(), chat.address);
    if let Some(connect) = component {
        let _into_a_string = write!(
            text,
            r#"
[[components]]
domain = "{SERVICE}"
connect = "{connect}"
secret_file = "{at}/{COMPONENT_SECRET_FILE}"
"#
        );
    }
    for (domain, address) in plan.hosts.iter().chain([&chat]) {
        let host =
            format!("\n[[xmpp.hosts]]\ndomain = \"{domain}\"\naddresses = [\"{address}\"]\n");
        text.push_str(&host);
    }
    let _into_a_string = writeln!(
        text,
        "\n[apns]\ntoken_dir = \"{at}/provider-tokens\"\n{}",
        plan.more
    );
    text
}
