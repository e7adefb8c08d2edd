//! What is asked of a load.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use simulators::server::Pace;

use super::endpoint::Endpoint;
use crate::RunError;
use crate::dev::world::{self, Elsewhere, KnownAs};

/// Streams that one server may open for a load: each costs a handshake, and they come at once.
const STREAMS_MAX: u16 = 100;

/// What the load is, where it goes, and what is told of it.
#[derive(Clone, Debug, Args)]
#[command(
    group = clap::ArgGroup::new("pace").args(["rate", "window"]),
    group = clap::ArgGroup::new("extent").args(["pushes", "seconds"])
)]
pub struct Options {
    /// How the service and the simulated XMPP server meet.
    #[arg(long, value_enum, default_value_t = Way::Component)]
    way: Way,
    /// Streams that the server publishes on; more than one with `--way s2s` only.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=STREAMS_MAX.into()))]
    pub(super) streams: u16,
    /// Publishes N pushes a second, whatever is unanswered.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Keeps N pushes unanswered: a new one for each answer. Without it and --rate, 500.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    window: Option<u32>,
    /// Devices pushed to in turn. Pushes to one that wait together become one, so have more than unanswered
    /// pushes.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) devices: u32,
    /// Stops after N pushes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pushes: Option<u64>,
    /// Stops after N seconds. Without it and --pushes, 30.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    seconds: Option<u32>,
    /// Seconds between two lines on rate, times and memory.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub(super) every: u32,
    /// Pushes before the first that counts: connections to APNs begin with one request at a time.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(super) warm_up: u32,
    /// Milliseconds that the built-in APNs takes for an answer.
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub(super) latency: u64,
    /// An APNs of your own (https://host:port) to push to instead of the built-in one. Never Apple's.
    #[arg(long, value_name = "URL", requires = "ca", conflicts_with = "latency")]
    pub(super) endpoint: Option<Endpoint>,
    /// PEM file of the authorities of the endpoint's certificate.
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    ca: Option<PathBuf>,
    /// Bundle id of the app.
    #[arg(long, value_name = "TOPIC", default_value = world::TOPIC)]
    topic: String,
    /// Team id of a signing key that the endpoint knows. Without a key, one is made up.
    #[arg(long, value_name = "ID", requires_all = ["endpoint", "key_id", "key"])]
    team_id: Option<String>,
    /// Key id of it.
    #[arg(long, value_name = "ID", requires_all = ["endpoint", "team_id", "key"])]
    key_id: Option<String>,
    /// File of it, as Apple gives out its own: AuthKey_ID.p8.
    #[arg(long, value_name = "FILE", requires_all = ["endpoint", "team_id", "key_id"])]
    key: Option<PathBuf>,
    /// Prints one JSON object at the end, and nothing else.
    #[arg(long)]
    pub(super) json: bool,
}

/// How the service and the simulated XMPP server meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// The service is a component of the server (XEP-0114).
    Component,
    /// Both are servers, with TLS between them.
    S2s,
}

/// When a load ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// After so many pushes.
    Pushes(u64),
    /// After so many seconds.
    Seconds(u32),
}

impl Options {
    pub(super) fn way(&self) -> Result<world::Way, RunError> {
        match self.way {
            Way::S2s => Ok(world::Way::Federation),
            Way::Component if self.streams == 1 => Ok(world::Way::Component),
            Way::Component => Err(RunError::Usage(
                "--streams: a component has one stream; use --way s2s".to_owned(),
            )),
        }
    }

    pub(super) const fn way_name(&self) -> &'static str {
        match self.way {
            Way::Component => "component",
            Way::S2s => "s2s",
        }
    }

    pub(super) fn pace(&self) -> Pace {
        match self.rate {
            Some(rate) => Pace::PerSecond(rate),
            None => Pace::Outstanding(self.window.unwrap_or(500)),
        }
    }

    pub(super) fn extent(&self) -> Extent {
        match (self.pushes, self.seconds.unwrap_or(30), self.rate) {
            (Some(pushes), ..) => Extent::Pushes(pushes),
            (None, seconds, Some(rate)) => Extent::Pushes(u64::from(rate) * u64::from(seconds)),
            (None, seconds, None) => Extent::Seconds(seconds),
        }
    }

    pub(super) fn elsewhere(&self) -> Option<Elsewhere> {
        let (endpoint, ca) = (self.endpoint.as_ref()?, self.ca.as_ref()?);
        let key = match (&self.team_id, &self.key_id, &self.key) {
            (Some(team_id), Some(key_id), Some(key)) => Some(KnownAs {
                team_id: team_id.clone(),
                key_id: key_id.clone(),
                key_file: key.clone(),
            }),
            _ => None,
        };
        Some(Elsewhere {
            endpoint: endpoint.to_string(),
            ca_file: ca.clone(),
            topic: self.topic.clone(),
            key,
        })
    }
}
