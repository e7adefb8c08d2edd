//! The service as a process of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::PATIENCE;

/// A running `campanile serve`, killed when dropped.
pub struct Campanile {
    child: Child,
    log: mpsc::Receiver<String>,
    /// The log until now.
    pub lines: Vec<String>,
}

impl Campanile {
    /// Starts it; its log is JSON.
    pub fn serve(config: &Path) -> Self {
        Self::serve_with(config, &[])
    }

    pub fn serve_with(config: &Path, environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_campanile"))
            .args(["serve", "--config"])
            .arg(config)
            .env("CAMPANILE__LOG__FORMAT", "json")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut read = BufReader::new(child.stderr.take().unwrap()).lines();
        let (lines, log) = mpsc::channel(1 << 20);
        // Read all the time: a full pipe would stop the service at its next line.
        actix_rt::spawn(async move {
            while let Ok(Some(line)) = read.next_line().await {
                lines.try_send(line).unwrap();
            }
        });
        Self {
            child,
            log,
            lines: Vec::new(),
        }
    }

    /// Waits for the line that says where it listens.
    pub async fn address(&mut self) -> SocketAddr {
        let line = self.line("listening").await;
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        line["fields"]["address"].as_str().unwrap().parse().unwrap()
    }

    /// Waits for a line of the log that contains `text`.
    #[track_caller]
    pub fn line(&mut self, text: &str) -> impl Future<Output = String> {
        let caller = std::panic::Location::caller();
        async move {
            let read = async {
                loop {
                    let Some(line) = self.log.recv().await else {
                        panic!(
                            "{caller}: the log ended without {text:?}: {:#?}",
                            self.lines
                        )
                    };
                    self.lines.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
            };
            tokio::time::timeout(PATIENCE, read)
                .await
                .expect("the line must come")
        }
    }

    /// Takes what was logged until now, so that the next line that is waited for is a later one.
    pub fn catch_up(&mut self) {
        while let Ok(line) = self.log.try_recv() {
            self.lines.push(line);
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let status = std::process::Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// The exit code, once it has ended; reads the log to its end.
    pub async fn ended(&mut self) -> Option<i32> {
        let wait = async {
            while let Some(line) = self.log.recv().await {
                self.lines.push(line);
            }
            self.child.wait().await.unwrap().code()
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("the process must end")
    }

    /// SIGTERM, and the exit code.
    pub async fn terminate(&mut self) -> Option<i32> {
        self.signal("TERM");
        self.ended().await
    }
}
