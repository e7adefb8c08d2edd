//! The service as a process, and what CPU it has used.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
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

    /// Bytes of memory that are resident now.
    pub fn memory(&self) -> u64 {
        let pid = self.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.unwrap().parse::<u64>().unwrap() * 1024
    }

    /// CPU time of each thread of the actor framework until now, in the order of their start: lanes come first.
    pub fn threads_cpu(&self) -> Vec<Duration> {
        let threads = self.actor_threads().into_iter();
        threads.map(|(_, thread)| cpu_of_thread(&thread)).collect()
    }

    /// The threads of the actor framework by number, but for its main one, which has the name of the program.
    pub fn actor_threads(&self) -> Vec<(u32, PathBuf)> {
        let tasks = format!("/proc/{}/task", self.pid());
        let mut threads: Vec<(u32, PathBuf)> = fs::read_dir(tasks)
            .unwrap()
            .filter_map(|thread| {
                let thread = thread.unwrap().path();
                let name = fs::read_to_string(thread.join("comm")).ok()?;
                let number = thread.file_name()?.to_str()?.parse().ok()?;
                name.starts_with("actix-rt").then_some((number, thread))
            })
            .collect();
        threads.sort_unstable();
        threads
    }

    pub fn pid(&self) -> String {
        self.child.id().unwrap().to_string()
    }

    /// CPU time of all its threads until now.
    pub fn cpu(&self) -> Duration {
        cpu_of(&self.pid())
    }

    pub async fn stop(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// CPU time of all living threads of a process, from `/proc/PID/task/TID/schedstat`.
pub fn cpu_of(pid: &str) -> Duration {
    fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|thread| cpu_of_thread(&thread.unwrap().path()))
        .sum()
}

fn cpu_of_thread(thread: &Path) -> Duration {
    // A thread may end in between; what it used is not seen again.
    let text = fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}
