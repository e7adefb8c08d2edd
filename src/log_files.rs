//! The keeper of log files: removes those that are older than they may be, whenever retention asks, so that a
//! service that was down for weeks catches up at its next start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use actix::{
    Actor, Context, Handler, MessageResult, Recipient, ResponseFuture, Supervised, Supervisor,
};
use messages::{Health, Probe, SweepError, SweepOutdated, SweptOutdated};
use time::{Date, Month, OffsetDateTime};

use crate::telemetry::{self, Config, PREFIX, SUFFIX};

/// Where the keeper takes messages.
#[derive(Clone)]
pub(crate) struct Handles {
    /// Removes outdated files.
    pub(crate) sweep: Recipient<SweepOutdated>,
    /// Counters.
    pub(crate) probe: Recipient<Probe>,
}

/// Starts the keeper on the current arbiter.
#[must_use]
pub(crate) fn start(config: &Config) -> Handles {
    let keeper = LogFiles {
        path: config.path.clone(),
        keep_days: config.keep_days,
    };
    let address = Supervisor::start(|ctx: &mut Context<LogFiles>| {
        ctx.set_mailbox_capacity(0);
        keeper
    });
    Handles {
        sweep: address.clone().recipient(),
        probe: address.recipient(),
    }
}

struct LogFiles {
    /// Also when lines go elsewhere now: files of before have to go too.
    path: PathBuf,
    keep_days: u32,
}

impl Actor for LogFiles {
    type Context = Context<Self>;
}

impl Supervised for LogFiles {}

impl Handler<SweepOutdated> for LogFiles {
    type Result = ResponseFuture<Result<SweptOutdated, SweepError>>;

    fn handle(&mut self, sweep: SweepOutdated, _: &mut Self::Context) -> Self::Result {
        let (path, keep_days) = (self.path.clone(), self.keep_days);
        Box::pin(async move {
            let swept = tokio::task::spawn_blocking(move || remove(&path, keep_days, sweep));
            swept
                .await
                .map_err(|_| SweepError::Failed)?
                .map_err(|error| {
                    tracing::error!("old log files cannot be removed: {error}");
                    SweepError::Failed
                })
        })
    }
}

impl Handler<Probe> for LogFiles {
    type Result = MessageResult<Probe>;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Self::Result {
        MessageResult(Health {
            counters: vec![("log_lines_lost_total", telemetry::lines_lost())],
        })
    }
}

/// Removes files whose day began longer ago than they are kept, so that no line is older than that.
fn remove(path: &Path, keep_days: u32, sweep: SweepOutdated) -> io::Result<SweptOutdated> {
    let now = i64::try_from(sweep.now.0).unwrap_or(i64::MAX);
    let today = OffsetDateTime::from_unix_timestamp(now)
        .map_err(io::Error::other)?
        .to_julian_day();
    let limit = u64::from(sweep.limit.max(1));
    let mut swept = SweptOutdated::default();
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(swept),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(day) = day(&name.to_string_lossy()) else {
            continue;
        };
        if i64::from(day.to_julian_day()) + i64::from(keep_days) > i64::from(today) {
            continue;
        }
        if swept.removed == limit {
            swept.more = true;
            break;
        }
        fs::remove_file(entry.path())?;
        swept.removed += 1;
    }
    Ok(swept)
}

/// The day of a log file; `None` for what is none.
fn day(name: &str) -> Option<Date> {
    let day = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let day = day.strip_prefix('.')?.strip_suffix('.')?;
    let mut parts = day.split('-');
    let year = parts.next()?.parse().ok()?;
    let month = Month::try_from(parts.next()?.parse::<u8>().ok()?).ok()?;
    let day = parts.next()?.parse().ok()?;
    let date = Date::from_calendar_date(year, month, day).ok()?;
    parts.next().is_none().then_some(date)
}

#[cfg(test)]
mod tests {
    use messages::UnixSeconds;

    use super::*;
    use crate::telemetry::Target;

    /// 2026-06-15T00:00:00Z.
    const NOW: UnixSeconds = UnixSeconds(1_781_481_600);

    #[test]
    fn files_go_by_their_day_and_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let all = [
            "campanile.2025-12-31.log",
            "campanile.2026-05-31.log",
            "campanile.2026-06-01.log",
            "campanile.2026-06-02.log",
            "campanile.2026-06-15.log",
            "campanile.2026-13-01.log",
            "campanile.log",
            "other.2025-01-01.log",
        ];
        for name in all {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let sweep = |now, limit| remove(directory.path(), 14, SweepOutdated { now, limit });
        let before = UnixSeconds(NOW.0 - 1);
        let first = SweptOutdated {
            removed: 1,
            more: true,
        };
        assert_eq!(sweep(before, 1).unwrap(), first);
        assert_eq!(sweep(before, 5).unwrap().removed, 1);
        assert_eq!(sweep(NOW, 5).unwrap().removed, 1);
        assert_eq!(sweep(NOW, 5).unwrap(), SweptOutdated::default());
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, all[3..]);
    }

    /// The service has never written one.
    #[test]
    fn there_may_be_no_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none");
        let sweep = SweepOutdated { now: NOW, limit: 1 };
        assert_eq!(remove(&path, 14, sweep).unwrap(), SweptOutdated::default());
    }

    #[test]
    fn the_appender_writes_files_that_are_found_here() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs");
        let config = Config {
            to: Target::Files,
            path: path.clone(),
            ..Config::default()
        };
        let logging = telemetry::install(&config).unwrap();
        tracing::info!("a line");
        drop(logging);
        let names: Vec<_> = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names.len(), 1);
        assert!(day(&names[0]).is_some(), "{names:?}");
        let text = fs::read_to_string(path.join(&names[0])).unwrap();
        assert!(text.contains("a line"), "{text}");
        assert_eq!(telemetry::lines_lost(), 0);
    }
}
