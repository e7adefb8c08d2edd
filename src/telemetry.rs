//! Trace logs: to standard error or to a file a day, as text or JSON.

use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;
use thiserror::Error;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_appender::rolling::{InitError, RollingFileAppender, Rotation};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Names of log files begin with this, end with [`SUFFIX`], and have the day in UTC between.
pub(crate) const PREFIX: &str = "campanile";
/// See [`PREFIX`].
pub(crate) const SUFFIX: &str = "log";

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What is logged: a level, or `target=level` directives separated by commas.
    pub filter: String,
    /// How a line is written.
    pub format: Format,
    /// Where lines go.
    pub to: Target,
    /// Directory of the files, created with mode 0700; only with [`Target::Files`].
    pub path: PathBuf,
    /// Days after which a file is removed, 1 to 3,650; only with [`Target::Files`].
    pub keep_days: u32,
    /// Lines that may wait for the disk, at least 1; only with [`Target::Files`]. What comes above is lost and
    /// counted, because nothing waits for its log.
    pub queue_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: Format::Text,
            to: Target::Stderr,
            path: "/var/log/campanile".into(),
            keep_days: 14,
            queue_max: 65_536,
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

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// To standard error, which a service manager keeps by its own rules.
    Stderr,
    /// To a file a day.
    Files,
}

/// Why nothing can be logged.
#[derive(Debug, Error)]
pub enum LogError {
    /// `log.filter` is no filter.
    #[error("log.filter is no list of levels or target=level directives: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// A word in `log.filter` that is no level would log nothing but the target of that name.
    #[error(
        "log.filter: {0:?} is no level: write off, error, warn, info, debug or trace, or target=level"
    )]
    Level(String),
    /// A value is out of bounds.
    #[error("log.{key} {rule}")]
    Bounds {
        /// The key within `[log]`.
        key: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// The directory cannot be made.
    #[error("the log directory {path} cannot be used: {source}; check its owner and permissions")]
    Directory {
        /// The configured directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file cannot be made in it.
    #[error(
        "no log file can be written in {path}: {source}; check its disk, owner and permissions"
    )]
    File {
        /// The configured directory.
        path: PathBuf,
        /// What the appender says.
        source: InitError,
    },
}

/// What has to live as long as something is logged: with it the lines that wait are written.
#[must_use]
pub struct Logging {
    _waiting: Option<WorkerGuard>,
}

/// Counts the lines that had to be dropped. There is one subscriber in a process, and so one counter.
static LOST: OnceLock<ErrorCounter> = OnceLock::new();

/// Lines lost since the start, because the disk did not keep up.
#[must_use]
pub fn lines_lost() -> u64 {
    LOST.get().map_or(0, |lost| {
        lost.dropped_lines().try_into().unwrap_or(u64::MAX)
    })
}

/// Checks the configuration without installing anything.
///
/// # Errors
/// The first [`LogError`] found.
pub fn inspect(config: &Config) -> Result<EnvFilter, LogError> {
    const KEEP_DAYS_MAX: u32 = 3_650;
    // People put blanks behind commas.
    let text: String = config.filter.split_whitespace().collect();
    let filter = EnvFilter::builder().parse(&text)?;
    let mut words = text.split(',');
    let is_level = |word: &str| word.contains(['=', '[']) || word.parse::<LevelFilter>().is_ok();
    if let Some(word) = words.find(|word| !word.is_empty() && !is_level(word)) {
        return Err(LogError::Level(word.to_owned()));
    }
    if config.to == Target::Files {
        let rules = [
            (
                config.path.as_os_str().is_empty(),
                "path",
                "must name a directory",
            ),
            (
                !(1..=KEEP_DAYS_MAX).contains(&config.keep_days),
                "keep_days",
                "must be 1 to 3650",
            ),
            (config.queue_max == 0, "queue_max", "must be at least 1"),
        ];
        if let Some((_, key, rule)) = rules.into_iter().find(|(broken, ..)| *broken) {
            return Err(LogError::Bounds { key, rule });
        }
        files::writable(&config.path).map_err(|source| LogError::Directory {
            path: config.path.clone(),
            source,
        })?;
    }
    Ok(filter)
}

/// Installs the process's subscriber. A second call changes nothing.
///
/// # Errors
/// [`LogError`] when nothing could be logged.
pub fn install(config: &Config) -> Result<Logging, LogError> {
    let filter = inspect(config)?;
    match config.to {
        Target::Stderr => {
            let ansi = io::stderr().is_terminal();
            subscribe(filter, config.format, io::stderr, ansi);
            Ok(Logging { _waiting: None })
        }
        Target::Files => {
            let appender = appender(&config.path)?;
            let (writer, guard) = NonBlockingBuilder::default()
                .lossy(true)
                .buffered_lines_limit(config.queue_max)
                .thread_name("log")
                .finish(appender);
            // Taken by the first call, whose subscriber is the one installed.
            let _ = LOST.set(writer.error_counter());
            subscribe(filter, config.format, writer, false);
            Ok(Logging {
                _waiting: Some(guard),
            })
        }
    }
}

fn subscribe<W>(filter: EnvFilter, format: Format, writer: W, ansi: bool)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(ansi);
    let _already_installed = match format {
        Format::Text => registry.with(layer).try_init(),
        Format::Json => registry.with(layer.json()).try_init(),
    };
}

fn appender(path: &Path) -> Result<RollingFileAppender, LogError> {
    if !path.is_dir() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| LogError::Directory {
                path: path.to_owned(),
                source,
            })?;
    }
    RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix(PREFIX)
        .filename_suffix(SUFFIX)
        .build(path)
        .map_err(|source| LogError::File {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut Config), expected: Option<&str>) {
        let mut config = Config::default();
        change(&mut config);
        let found = inspect(&config).err().map(|error| error.to_string());
        match expected {
            None => assert_eq!(found, None, "{config:?}"),
            Some(start) => assert!(
                found.as_ref().is_some_and(|found| found.starts_with(start)),
                "{found:?}"
            ),
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        check(|_| {}, None);
        check(|c| c.filter = "info,=,".to_owned(), Some("log.filter"));
        check(
            |c| c.filter = "loud".to_owned(),
            Some("log.filter: \"loud\""),
        );
        check(
            |c| c.filter = "info, quiet".to_owned(),
            Some("log.filter: \"quiet\""),
        );
        for filter in ["", "off", "warn,xmpp=debug", "info, apns=trace", "INFO"] {
            check(|c| c.filter = filter.to_owned(), None);
        }
        check(|c| c.keep_days = 0, None);
        let directory = tempfile::tempdir().unwrap();
        let files = |config: &mut Config| {
            config.to = Target::Files;
            config.path = directory.path().join("below");
        };
        check(files, None);
        check(
            |c| {
                files(c);
                c.keep_days = 0;
            },
            Some("log.keep_days"),
        );
        check(
            |c| {
                files(c);
                c.queue_max = 0;
            },
            Some("log.queue_max"),
        );
        check(
            |c| {
                files(c);
                c.path = PathBuf::new();
            },
            Some("log.path"),
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        check(
            |c| {
                files(c);
                c.path = file.path().join("below");
            },
            Some("the log directory"),
        );
    }

    #[test]
    fn a_directory_that_cannot_be_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = appender(&file.path().join("below")).unwrap_err();
        assert!(matches!(refused, LogError::Directory { .. }));
    }
}
