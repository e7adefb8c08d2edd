//! How far a load is, for whoever watches.

use std::io::{IsTerminal as _, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::options::Extent;

/// How often it moves.
pub(super) const STEP: Duration = Duration::from_millis(200);

/// A bar on the terminal; nothing where standard error is none.
pub(super) struct Progress {
    bar: ProgressBar,
    extent: Extent,
    began: Instant,
}

impl Progress {
    pub(super) fn new(extent: Extent) -> Self {
        let length = match extent {
            Extent::Pushes(pushes) => pushes,
            Extent::Seconds(seconds) => seconds.into(),
        };
        let bar = match stderr().is_terminal() {
            true => ProgressBar::new(length),
            false => ProgressBar::hidden(),
        };
        let template = "{bar:40} {percent}% {elapsed}, {eta} left, {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self {
            bar,
            extent,
            began: Instant::now(),
        }
    }

    pub(super) fn is_shown(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// So many pushes have been answered.
    pub(super) fn at(&self, answered: u64) {
        self.bar.set_position(match self.extent {
            Extent::Pushes(_) => answered,
            Extent::Seconds(_) => self.began.elapsed().as_secs(),
        });
        self.bar.set_message(format!("{answered} pushes"));
    }

    /// Prints something beside the bar.
    pub(super) fn beside(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
