//! A program that runs as long as the test needs it, with its log.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// A running program; killed when dropped.
pub(crate) struct Process {
    name: &'static str,
    command: Command,
    child: Child,
    log: PathBuf,
    /// Length of the log when it was last started.
    begin: usize,
}

impl Process {
    /// Starts a program that writes what it has to say into a log file.
    #[track_caller]
    pub(crate) fn start(name: &'static str, mut command: Command, log: &Path) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(append(log))
            .stderr(append(log));
        Self::spawn(name, command, log)
    }

    /// Starts a program that is talked with; only its errors go into the log file.
    #[track_caller]
    pub(crate) fn converse(name: &'static str, mut command: Command, log: &Path) -> Self {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(append(log));
        Self::spawn(name, command, log)
    }

    #[track_caller]
    fn spawn(name: &'static str, mut command: Command, log: &Path) -> Self {
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot run: {error}"));
        Self {
            name,
            command,
            child,
            log: log.to_owned(),
            begin: 0,
        }
    }

    /// Ends it as a service manager does, and starts it again.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.terminate();
        self.start_again();
    }

    /// Starts a program that has ended once more; it goes on with its log.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        self.begin = self.log().len();
        self.child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot run again: {error}", self.name));
    }

    /// Ends it without notice.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    /// Both ends of the conversation.
    pub(crate) fn pipes(&mut self) -> (std::process::ChildStdin, std::process::ChildStdout) {
        let stdin = self
            .child
            .stdin
            .take()
            .expect("started to converse, and asked once");
        let stdout = self
            .child
            .stdout
            .take()
            .expect("started to converse, and asked once");
        (stdin, stdout)
    }

    /// All it has logged.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until the log shows something since the last start; fails at once when the program has ended.
    #[track_caller]
    pub(crate) fn wait_for<T>(&mut self, what: &str, look: impl Fn(&str) -> Option<T>) -> T {
        wait::until(&format!("{}: {what}", self.name), || {
            let ended = self.child.try_wait().expect("a child can be waited for");
            let seen = look(self.log().get(self.begin..).unwrap_or_default());
            assert!(
                ended.is_none() || seen.is_some(),
                "{} has ended ({}) before: {what}\n{}",
                self.name,
                ended.expect("just tested"),
                self.log()
            );
            seen
        })
    }

    /// Asks it to end, and waits until it has.
    #[track_caller]
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("a child that was not waited for can be signalled");
        wait::until(&format!("{} ends", self.name), || {
            self.child.try_wait().expect("a child can be waited for")
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _has_ended = self.child.kill();
        let _has_ended = self.child.wait();
    }
}

#[track_caller]
fn append(log: &Path) -> File {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .expect("the log can be written")
}
