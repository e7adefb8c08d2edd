//! Why the service did not start, or stopped by itself.

use thiserror::Error;

use crate::exit;
use crate::settings::SettingsError;

/// Why the service did not start, or stopped by itself. Each variant has its exit code.
#[derive(Debug, Error)]
pub enum RunError {
    /// The configuration cannot be used.
    #[error("the configuration cannot be used; `campanile check` lists what is wrong with it")]
    Settings(Vec<SettingsError>),
    /// What the configuration points to (certificates, keys, the store) cannot be used.
    #[error("the service cannot start; `campanile check` lists what is wrong")]
    Unusable(Vec<String>),
    /// A listening address cannot be bound.
    #[error("{0}")]
    Bind(String),
    /// An actor panicked or hangs.
    #[error("the actor {0} is dead; the process ends so that the service manager starts it again")]
    Dead(String),
    /// The operating system refused something basic.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// The simulators of `dev` and `load` could not run.
    #[error("the simulators: {0}")]
    Simulator(String),
    /// Values on the command line that cannot be used.
    #[error("{0}")]
    Usage(String),
}

impl RunError {
    /// The exit code of the process.
    #[must_use]
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::Settings(_) | Self::Unusable(_) => exit::CONFIGURATION,
            Self::Bind(_) => exit::UNAVAILABLE,
            Self::Usage(_) => exit::USAGE,
            Self::Dead(_) | Self::System { .. } | Self::Simulator(_) => exit::INTERNAL,
        }
    }

    /// What to print: one line per cause.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Settings(causes) => causes.iter().map(ToString::to_string).collect(),
            Self::Unusable(causes) => causes.clone(),
            other => vec![other.to_string()],
        }
    }
}
