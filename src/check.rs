//! Finds what would keep the service from running well, without running it.

use std::path::Path;

use messages::Clock;

use crate::facts::facts;
use crate::{Settings, descriptors, exit, telemetry};

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether the service cannot do its work; else it is a warning.
    pub fatal: bool,
    /// One line: what, where, what to do.
    pub text: String,
}

impl Finding {
    fn fatal(text: &impl ToString) -> Self {
        Self {
            fatal: true,
            text: text.to_string(),
        }
    }
}

/// `campanile check`: prints each finding in one line and returns the exit code.
#[allow(
    clippy::print_stdout,
    reason = "the findings are this command's output"
)]
#[must_use]
pub fn command(config: &Path) -> i32 {
    let findings = match Settings::load(config) {
        Ok(settings) => inspect(&settings, &Clock::system()),
        Err(errors) => errors.iter().map(Finding::fatal).collect(),
    };
    for Finding { fatal, text } in &findings {
        crate::say!("{}: {text}", if *fatal { "error" } else { "warning" });
    }
    if findings.iter().any(|finding| finding.fatal) {
        exit::CONFIGURATION
    } else {
        crate::say!("{}: fit to serve", config.display());
        exit::OK
    }
}

/// Everything found in a configuration that could be loaded.
#[must_use]
pub fn inspect(settings: &Settings, clock: &Clock) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = telemetry::inspect(&settings.log) {
        findings.push(Finding::fatal(&error));
    }
    let (xmpp, domains) = (&settings.xmpp, &settings.domains);
    let components = xmpp::component::inspect(xmpp, domains, &settings.components);
    for finding in xmpp::inspect(xmpp, domains, clock)
        .into_iter()
        .chain(components)
    {
        findings.push(Finding {
            fatal: finding.fatal,
            text: finding.error.to_string(),
        });
    }
    for error in apns::inspect(&settings.apns, &settings.apps) {
        findings.push(Finding::fatal(&error));
    }
    for warning in apns::warnings(&settings.apns, &settings.apps, clock) {
        findings.push(Finding {
            fatal: false,
            text: warning.to_string(),
        });
    }
    let needed = descriptors::needed(settings);
    if let Some(text) = descriptors::warning(descriptors::raise(), needed) {
        findings.push(Finding { fatal: false, text });
    }
    for error in registration::inspect(&settings.registration) {
        findings.push(Finding::fatal(&error));
    }
    for error in privacy::inspect(&settings.privacy) {
        findings.push(Finding::fatal(&error));
    }
    for missing in facts(settings).missing {
        findings.push(Finding {
            fatal: false,
            text: format!("{missing}: `campanile privacy statement` cannot say it"),
        });
    }
    for error in journal::inspect(&settings.journal) {
        findings.push(Finding::fatal(&error));
    }
    findings
}
