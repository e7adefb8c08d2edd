//! What `campanile dev` prints.
#![allow(clippy::print_stdout, reason = "this is what the command is for")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use messages::{PushOutcome, Rejection};
use simulators::SimulatorError;
use simulators::server::{Answer, Answered};

use super::OWN_SERVER_PORT;
use super::hops::Hops;
use super::world::{SERVICE, World};

/// Tells where everything is and how to take part.
pub(super) fn welcome(world: &World, service: SocketAddr) {
    let directory = world.directory().display();
    println!(
        "\
Campanile {version} serves {SERVICE} at {service}
  users' server  {domain} at {chat} (simulated)
  APNs           localhost:{apple} (simulated, strict)
  files          {directory}

A Prosody of your own, on this machine, can take part: give it the host \"localhost\", and
    s2s_ports = {{ {OWN_SERVER_PORT} }}                         -- {port_note}
    s2s_secure_auth = false
    modules_enabled = {{ \"smacks\", \"cloud_notify\", \"dialback\" }}
    ssl = {{ cafile = \"{directory}/root.pem\" }}
Then register a device at {SERVICE} with the command v1-register-push, and enable push there.
",
        version = crate::VERSION,
        domain = world.chat.domain,
        chat = world.chat.address,
        apple = world.apple.address.port(),
        port_note = if service.port() == super::PORT {
            "Campanile has 5269"
        } else {
            "port 5269 is taken: free it first, then start again"
        },
    );
}

/// Tells that a device is registered.
pub(super) fn registered(device: &str, took: Duration) {
    println!("registered {device:<14} in {:.1} ms", millis(took));
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
        answered: Result<Answered, SimulatorError>,
    ) {
        self.sent += 1;
        let since = |at: Instant| millis(at.saturating_duration_since(sent));
        let mut line = format!("#{number:<4} {device:<14}");
        let mut expected = None;
        if let Some(hops) = hops {
            let resolved = match hops.resolved {
                Some(at) => format!("resolved {:.2}", since(at)),
                None => "not resolved".to_owned(),
            };
            line = format!(
                "{line} received {:.2} → {resolved} → {} {:.2} →",
                since(hops.received),
                verdict(hops.outcome),
                since(hops.decided),
            );
            expected = Some(hops.outcome);
        }
        match answered {
            Ok(Answered { answer, took }) => {
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
        println!("{line}");
    }

    /// Prints the summary.
    pub(super) fn print(&mut self) {
        self.took.sort_unstable();
        println!(
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
