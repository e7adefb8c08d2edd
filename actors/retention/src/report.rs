//! What the last runs did, and where a run has come to: kept in a file, so that a restart forgets neither.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use messages::{RegistrationKey, SweepCursor, SweepReport, SweepRun, UnixSeconds};
use serde::{Deserialize, Serialize};

/// Runs that are remembered: months of them, because those that removed nothing are told by the last alone.
const RUNS_MAX: usize = 200;

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Stored {
    runs: Vec<StoredRun>,
    /// Where the sweep of registrations stopped, in hex.
    cursor: Option<String>,
    /// The last time of the clock that was believed, in Unix seconds.
    seen_at: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoredRun {
    what: String,
    started_at: u64,
    ended_at: u64,
    removed: u64,
    failure: Option<String>,
}

/// The report in memory and its file.
pub(crate) struct Report {
    file: PathBuf,
    stored: Stored,
    /// Whether the file is behind.
    changed: bool,
    /// Whether it is being written.
    writing: bool,
}

impl Report {
    /// Reads the file. One that is missing or cannot be understood is begun anew: nothing depends on it but
    /// what is told, where a sweep goes on, and how soon the clock is believed.
    pub(crate) fn open(file: &Path) -> Self {
        let stored = match fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(file = %file.display(), "the report of retention is begun anew: {error}");
                Stored::default()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(file = %file.display(), "the report of retention cannot be read: {error}");
                }
                Stored::default()
            }
        };
        Self {
            file: file.to_owned(),
            stored,
            changed: false,
            writing: false,
        }
    }

    pub(crate) fn cursor(&self) -> Option<SweepCursor> {
        let hex = self.stored.cursor.as_deref()?;
        let key = u128::from_str_radix(hex, 16).ok()?;
        Some(SweepCursor(RegistrationKey(key.to_be_bytes())))
    }

    pub(crate) fn set_cursor(&mut self, cursor: Option<SweepCursor>) {
        let hex = |SweepCursor(RegistrationKey(key))| format!("{:032x}", u128::from_be_bytes(key));
        self.stored.cursor = cursor.map(hex);
        self.changed = true;
    }

    /// The last time of the clock that was believed.
    pub(crate) fn seen_at(&self) -> Option<UnixSeconds> {
        self.stored.seen_at.map(UnixSeconds)
    }

    /// Remembers a time of the clock, which has to be plausible.
    pub(crate) fn see(&mut self, now: UnixSeconds) {
        self.changed |= self.stored.seen_at != Some(now.0);
        self.stored.seen_at = Some(now.0);
    }

    /// Adds a run.
    pub(crate) fn add(&mut self, run: SweepRun) {
        let SweepRun {
            what,
            started_at,
            ended_at,
            removed,
            failure,
        } = run;
        let run = StoredRun {
            what,
            started_at: started_at.0,
            ended_at: ended_at.0,
            removed,
            failure,
        };
        let is_idle = |run: &StoredRun| run.removed == 0 && run.failure.is_none();
        let runs = &mut self.stored.runs;
        let before = runs.iter().rposition(|known| known.what == run.what);
        if let Some(before) = before.filter(|_| is_idle(&run))
            && runs.get(before).is_some_and(is_idle)
        {
            runs.remove(before);
        }
        runs.push(run);
        let excess = runs.len().saturating_sub(RUNS_MAX);
        runs.drain(..excess);
        self.changed = true;
    }

    pub(crate) fn read(&self) -> SweepReport {
        let runs = self.stored.runs.iter().map(|run| SweepRun {
            what: run.what.clone(),
            started_at: UnixSeconds(run.started_at),
            ended_at: UnixSeconds(run.ended_at),
            removed: run.removed,
            failure: run.failure.clone(),
        });
        SweepReport {
            runs: runs.collect(),
        }
    }

    /// What has to be written where, if something has; [`Self::written`] has to follow before it is given
    /// again.
    pub(crate) fn pending_write(
        &mut self,
    ) -> Option<impl FnOnce() -> io::Result<()> + Send + use<>> {
        if self.writing || !self.changed {
            return None;
        }
        self.writing = true;
        self.changed = false;
        let (file, stored) = (self.file.clone(), self.stored.clone());
        Some(move || {
            let text = serde_json::to_vec_pretty(&stored)?;
            replace(&file, &text)
        })
    }

    /// Takes the result of what [`Self::pending_write`] gave.
    pub(crate) fn written(&mut self, result: io::Result<()>) {
        self.writing = false;
        if let Err(error) = result {
            tracing::warn!(file = %self.file.display(), "the report of retention cannot be written: {error}");
        }
    }
}

/// Writes a file for its owner alone so that a crash leaves the old one or the new one.
fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = file.parent().filter(|parent| !parent.is_dir()) {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)?;
    }
    let unfinished = file.with_extension("unfinished");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut to: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)?;
    to.write_all(bytes)?;
    to.sync_all()?;
    fs::rename(&unfinished, file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn run(what: &str, at: u64, removed: u64, failure: Option<&str>) -> SweepRun {
        SweepRun {
            what: what.to_owned(),
            started_at: UnixSeconds(at),
            ended_at: UnixSeconds(at + 1),
            removed,
            failure: failure.map(str::to_owned),
        }
    }

    #[test]
    fn idle_runs_are_told_by_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("below").join("report.json");
        let mut report = Report::open(&file);
        let runs = [
            run("a", 1, 0, None),
            run("b", 2, 0, None),
            run("a", 3, 0, None),
            run("a", 4, 7, None),
            run("a", 5, 0, None),
            run("a", 6, 0, Some("busy")),
            run("a", 7, 0, None),
        ];
        for run in runs.clone() {
            report.add(run);
        }
        let kept: Vec<_> = [1, 2, 3, 4, 5, 6]
            .iter()
            .map(|at| runs[*at].clone())
            .collect();
        assert_eq!(report.read().runs, kept);
        let cursor = Some(SweepCursor(RegistrationKey([3; 16])));
        report.set_cursor(cursor);
        report.see(UnixSeconds(9));
        let write = report.pending_write().unwrap();
        assert!(report.pending_write().is_none(), "one at a time");
        report.written(write());
        assert!(report.pending_write().is_none(), "nothing is new");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);

        let mut report = Report::open(&file);
        assert_eq!(report.read().runs, kept);
        assert_eq!(report.cursor(), cursor);
        assert_eq!(report.seen_at(), Some(UnixSeconds(9)));
        for at in 0..2 * RUNS_MAX as u64 {
            report.add(run("a", at, 1, None));
        }
        assert_eq!(report.read().runs.len(), RUNS_MAX);
        fs::write(&file, "{").unwrap();
        assert!(Report::open(&file).read().runs.is_empty());
    }
}
