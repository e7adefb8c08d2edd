//! Trace logs: to standard error, as text or JSON.

use std::io::IsTerminal;

use serde::Deserialize;
use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What is logged: a level, or `target=level` directives separated by commas.
    pub filter: String,
    /// How a line is written.
    pub format: Format,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: Format::Text,
        }
    }
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

/// `log.filter` is no filter.
#[derive(Debug, Error)]
#[error("log.filter is no list of levels or target=level directives: {0}")]
pub struct FilterError(#[from] tracing_subscriber::filter::ParseError);

/// Checks a filter without installing it.
///
/// # Errors
/// [`FilterError`] when it cannot be read.
pub fn parse_filter(config: &Config) -> Result<EnvFilter, FilterError> {
    Ok(EnvFilter::builder().parse(&config.filter)?)
}

/// Installs the process's subscriber. A second call changes nothing.
///
/// # Errors
/// [`FilterError`] when the filter cannot be read.
pub fn install(config: &Config) -> Result<(), FilterError> {
    let filter = parse_filter(config)?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let _already_installed = match config.format {
        Format::Text => registry
            .with(layer.with_ansi(std::io::stderr().is_terminal()))
            .try_init(),
        Format::Json => registry.with(layer.json().with_ansi(false)).try_init(),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_refused() {
        let config = Config {
            filter: "info,=,".to_owned(),
            format: Format::Text,
        };
        assert!(parse_filter(&config).is_err());
        assert!(parse_filter(&Config::default()).is_ok());
    }
}
