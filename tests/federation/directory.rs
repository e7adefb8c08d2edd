//! Where a test keeps its files; when the test fails, the logs survive it.

use std::fs;
use std::path::Path;
use std::thread;

use tempfile::TempDir;

/// A temporary directory.
pub(crate) struct Directory {
    test: String,
    place: TempDir,
}

impl Directory {
    pub(crate) fn new(test: &str) -> Self {
        Self {
            test: test.to_owned(),
            place: TempDir::new().expect("a temporary directory can be made"),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.place.path()
    }
}

impl Drop for Directory {
    #[allow(
        clippy::print_stderr,
        reason = "who reads the failure wants to know where the logs are"
    )]
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("federation")
            .join(&self.test);
        let _not_there = fs::remove_dir_all(&kept);
        if fs::create_dir_all(&kept).is_ok() {
            keep_logs(self.path(), &kept);
            eprintln!("[{}] the logs are in {}", self.test, kept.display());
        }
    }
}

fn keep_logs(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            keep_logs(&path, to);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            let _as_far_as_possible = fs::copy(&path, to.join(entry.file_name()));
        }
    }
}
