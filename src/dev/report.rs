//! What `campanile dev` prints.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use messages::{PushOutcome, Rejection};
use simulators::SimulatorError;
use simulators::server::Answer;

use super::OWN_SERVER_PORT;
use super::hops::Hops;
use super::world::{SERVICE, World};
use crate::say;

/// Tells where everything is and how to take part.
pub(super) fn welcome(world: &World, service: SocketAddr) {
    say!(
        "\
Campanile {} serves {SERVICE} at {service}
  users' server  {} at {} (simulated)
  APNs           localhost:{} (simulated, strict)
  files          {}
",
        crate::VERSION,
        world.chat.domain,
        world.chat.address,
        world.apple.address.port(),
        world.directory().display(),
    );
    if service.port() == super::PORT {
        say!(
            "\
A Prosody of your own, on this machine, can take part. In its configuration:
  - a VirtualHost \"localhost\" with a certificate (prosodyctl cert generate localhost)
  - \"smacks\", \"cloud_notify\" and \"dialback\" among its modules_enabled
  - s2s_ports = {{ {OWN_SERVER_PORT} }}, because Campanile has {port} here
  - s2s_secure_auth = false
Then let a client register at {SERVICE} with the command v1-register-push and enable push there: its
pushes are printed here as well.
",
            port = super::PORT,
        );
    } else {
        say!(
            "Port {} is taken. Free it and start again, if a Prosody of your own is to take part.\n",
            super::PORT
        );
    }
}

/// Tells that a device is registered.
pub(super) fn registered(device: &str, took: Duration) {
    say!("registered {device:<14} in {:.1} ms", millis(took));
}

/// Prints a push of somebody else's server.
pub(super) fn guest(hops: &Hops) {
    let since = |at: Instant| millis(at.saturating_duration_since(hops.received));
    say!(
        "      device {}  received → {} → {} {:.2} ms",
        hops.node.short_hash(),
        resolved(hops, &since),
        verdict(hops.outcome),
        since(hops.decided),
    );
}

fn resolved(hops: &Hops, since: &impl Fn(Instant) -> f64) -> String {
    match hops.resolved {
        Some(at) => format!("resolved {:.2}", since(at)),
        None => "not resolved".to_owned(),
    }
}

/// What became of all pushes.
#[derive(Default)]
pub(super) struct Report {
    accepted: u64,
    refused: u64,
    wrong: u64,
    /// From publish to answer, of each answered push.
    took: Vec<Duration>,
    sent: u64,
}

impl Report {
    /// Prints one push and counts it.
    pub(super) fn push(
        &mut self,
        number: u64,
        device: &str,
        sent: Instant,
        hops: Option<Hops>,
        answered: Result<(Answer, Instant), SimulatorError>,
    ) {
        self.sent += 1;
        let since = |at: Instant| millis(at.saturating_duration_since(sent));
        let mut line = format!("#{number:<4} {device:<14}");
        let mut expected = None;
        if let Some(hops) = hops {
            line = format!(
                "{line} received {:.2} → {} → {} {:.2} →",
                since(hops.received),
                resolved(&hops, &since),
                verdict(hops.outcome),
                since(hops.decided),
            );
            expected = Some(hops.outcome);
        }
        match answered {
            Ok((answer, at)) => {
                let took = at.saturating_duration_since(sent);
                self.took.push(took);
                let (word, right) = match &answer {
                    Answer::Result => {
                        self.accepted += 1;
                        ("result".to_owned(), expected == Some(PushOutcome::Accepted))
                    }
                    Answer::Error(error) => {
                        self.refused += 1;
                        (error.to_string(), false)
                    }
                };
                self.wrong += u64::from(!right);
                line = format!("{line} answered {word} {:.2} ms", millis(took));
            }
            Err(error) => {
                self.wrong += 1;
                line = format!("{line} not answered: {error}");
            }
        }
        say!("{line}");
    }

    /// Prints the summary.
    pub(super) fn print(&mut self) {
        self.took.sort_unstable();
        say!(
            "\n{} sent, {} accepted, {} refused, {} answered wrongly or not at all; \
             p50 {:.2} ms, p99 {:.2} ms from publish to answer",
            self.sent,
            self.accepted,
            self.refused,
            self.wrong,
            millis(self.percentile(50)),
            millis(self.percentile(99)),
        );
    }

    /// Whether every push was accepted and its iq answered so.
    pub(super) const fn is_faultless(&self) -> bool {
        self.wrong == 0 && self.accepted == self.sent
    }

    fn percentile(&self, percent: usize) -> Duration {
        let last = self.took.len().saturating_sub(1);
        self.took
            .get((last * percent).div_ceil(100))
            .copied()
            .unwrap_or_default()
    }
}

fn verdict(outcome: PushOutcome) -> &'static str {
    match outcome {
        PushOutcome::Accepted => "APNs accepted",
        PushOutcome::Deferred => "still queued",
        PushOutcome::Rejected(Rejection::Unregistered) => "APNs: device gone",
        PushOutcome::Rejected(Rejection::UnknownNode | Rejection::Forbidden) => "no registration",
        PushOutcome::Rejected(_) => "failed",
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
