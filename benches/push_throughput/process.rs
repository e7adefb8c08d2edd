//! The service as a process, and what CPU it has used.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A running `campanile serve`.
pub struct Service {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Service {
    pub async fn start(config: &Path) -> Self {
        Self::start_with(config, &[]).await
    }

    pub async fn start_with(config: &Path, environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_campanile"))
            .args(["serve", "--config"])
            .arg(config)
            .env("CAMPANILE__LOG__FORMAT", "json")
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = log
                .next_line()
                .await
                .unwrap()
                .expect("the service says where it listens");
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if line["fields"]["message"] == "listening" {
                break line["fields"]["address"].as_str().unwrap().parse().unwrap();
            }
        };
        actix_rt::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Self { child, address }
    }

    /// CPU time of all its threads until now.
    pub fn cpu(&self) -> Duration {
        cpu_of(&self.child.id().unwrap().to_string())
    }

    pub async fn stop(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// CPU time of all living threads of a process, from `/proc/PID/task/TID/schedstat`.
pub fn cpu_of(pid: &str) -> Duration {
    let nanos = fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|thread| {
            let file = thread.unwrap().path().join("schedstat");
            // A thread may end in between; what it used is not seen again.
            let text = fs::read_to_string(file).unwrap_or_default();
            text.split(' ')
                .next()
                .and_then(|nanos| nanos.parse::<u64>().ok())
                .unwrap_or(0)
        });
    Duration::from_nanos(nanos.sum())
}
