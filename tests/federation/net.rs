//! A network of its own: hosts are network namespaces on a bridge that has no way out.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps the namespaces, and what it binds over `/etc` inside each.
const NAMESPACES: &str = "/run/netns";
const ETC: &str = "/etc/netns";

/// Names begin with this, the process id and the number of the network in the process.
const PREFIX: &str = "campanile";

/// The number of the host that serves DNS; every host asks it.
const DNS: u8 = 2;

/// One network.
pub(crate) struct Net {
    name: String,
    switch: Namespace,
    next: u8,
}

impl Net {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{number}", process::id());
        if number == 0 {
            remove_leftovers();
        }
        let switch = Namespace::new(format!("{name}-switch"));
        ip(&[
            "-n",
            &switch.name,
            "link",
            "add",
            "name",
            "bridge",
            "type",
            "bridge",
        ]);
        ip(&["-n", &switch.name, "link", "set", "dev", "bridge", "up"]);
        Self {
            name,
            switch,
            next: DNS,
        }
    }

    /// Adds a host; the first one is to serve DNS.
    pub(crate) fn host(&mut self, label: &str) -> Host {
        let number = self.next;
        self.next += 1;
        let namespace = Namespace::new(format!("{}-{label}", self.name));
        let port = format!("port{number}");
        let host = Host {
            port: port.clone(),
            v4: Ipv4Addr::new(198, 18, 77, number),
            v6: Ipv6Addr::new(0xfd43, 0x6170, 0, 0, 0, 0, 0, number.into()),
            namespace,
        };
        let inside = host.namespace.name.as_str();
        ip(&[
            "-n",
            &self.switch.name,
            "link",
            "add",
            "name",
            &port,
            "type",
            "veth",
        ]
        .into_iter()
        .chain(["peer", "name", "eth0", "netns", inside])
        .collect::<Vec<_>>());
        ip(&[
            "-n",
            &self.switch.name,
            "link",
            "set",
            "dev",
            &port,
            "master",
            "bridge",
            "up",
        ]);
        ip(&[
            "-n",
            inside,
            "address",
            "add",
            &format!("{}/24", host.v4),
            "dev",
            "eth0",
        ]);
        // Without duplicate address detection, which leaves the address unusable for a second or two.
        ip(&[
            "-n",
            inside,
            "address",
            "add",
            &format!("{}/64", host.v6),
            "dev",
            "eth0",
            "nodad",
        ]);
        ip(&["-n", inside, "link", "set", "dev", "eth0", "up"]);
        ip(&["-n", inside, "link", "set", "dev", "lo", "up"]);
        host
    }
}

impl Net {
    /// Pulls the cable of a host out of the switch, or puts it in again.
    pub(crate) fn connect(&self, host: &Host, connected: bool) {
        let state = if connected { "up" } else { "down" };
        ip(&[
            "-n",
            &self.switch.name,
            "link",
            "set",
            "dev",
            &host.port,
            state,
        ]);
    }
}

/// One machine of the network.
pub(crate) struct Host {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    /// The end of its cable at the switch.
    port: String,
    namespace: Namespace,
}

impl Host {
    /// A program that will run on this host, and not outlive the thread that spawns it.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace.name]).args([
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
            program,
        ]);
        command
    }

    /// Runs a part of this process on this host: sockets it opens, and threads it starts, are there.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let namespace = fs::File::open(Path::new(NAMESPACES).join(&self.namespace.name))
            .expect("the namespace of a host is there");
        thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter a network namespace");
            run()
        })
    }
}

/// A network namespace with its view of `/etc`.
struct Namespace {
    name: String,
}

impl Namespace {
    #[track_caller]
    fn new(name: String) -> Self {
        let namespace = Self { name };
        let etc = etc(&namespace.name);
        let _one_at_a_time = one_at_a_time();
        fs::create_dir_all(&etc).expect("/etc/netns can be written");
        fs::write(
            etc.join("resolv.conf"),
            format!("nameserver 198.18.77.{DNS}\n"),
        )
        .expect("/etc/netns can be written");
        fs::write(etc.join("hosts"), "127.0.0.1 localhost\n::1 localhost\n")
            .expect("/etc/netns can be written");
        ip(&["netns", "add", &namespace.name]);
        namespace
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// The first namespace makes the directories that all share, and the last one takes them away.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static DIRECTORIES: Mutex<()> = Mutex::new(());
    DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn etc(namespace: &str) -> PathBuf {
    Path::new(ETC).join(namespace)
}

/// What cannot be removed is left: the next run tries again, and a failing test shall tell its own cause.
fn remove(namespace: &str) {
    let _one_at_a_time = one_at_a_time();
    let _left = Command::new("ip")
        .args(["netns", "delete", namespace])
        .output();
    let _left = fs::remove_dir_all(etc(namespace));
    let _others_use_it = fs::remove_dir(ETC);
}

/// Removes the networks of runs that were killed. Their programs ended with them.
fn remove_leftovers() {
    for entry in fs::read_dir(NAMESPACES).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let mut parts = name.split('-');
        if parts.next() == Some(PREFIX)
            && let Some(Ok(pid)) = parts.next().map(str::parse::<u32>)
            && !Path::new("/proc").join(pid.to_string()).exists()
        {
            remove(&name);
        }
    }
}

#[track_caller]
fn ip(arguments: &[&str]) {
    let done = Command::new("ip")
        .args(arguments)
        .output()
        .expect("ip runs");
    assert!(
        done.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&done.stderr)
    );
}
