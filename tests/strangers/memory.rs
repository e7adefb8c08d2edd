//! What the service holds, as the system counts it, and what strangers may make it hold.

use std::fs;

use xmpp::Config;

pub(crate) const MIB: u64 = 1 << 20;
/// What a connection costs that has proven nothing (docs/federation.md, section 6).
const STRANGER: u64 = 64 * 1024;
/// What one costs that is authenticated, beside the beginning of a large stanza.
const PEER: u64 = 256 * 1024;

/// How many strangers there are at a time, and how many of them have proven a domain.
#[derive(Clone, Copy)]
pub(crate) struct Census {
    pub(crate) strangers: usize,
    pub(crate) authenticated: usize,
}

/// What so many may cost, by the formula of docs/federation.md, section 6.
pub(crate) fn of_strangers(limits: &Config, census: Census) -> u64 {
    let Census {
        strangers,
        authenticated,
    } = census;
    let largest = 2 * limits.stanza_bytes_max as u64;
    let unread = (authenticated as u64 * largest).min(limits.unread_bytes_max as u64);
    strangers as u64 * STRANGER
        + authenticated as u64 * PEER
        + unread
        // They are of one domain.
        + limits.egress_queue_bytes_max.min(limits.egress_bytes_max) as u64
}

fn status(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kib: u64 = line
        .split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib * 1024
}

/// Bytes of memory that are resident now.
pub(crate) fn resident(pid: u32) -> u64 {
    status(pid, "VmRSS:")
}

/// The most bytes that ever were.
pub(crate) fn peak(pid: u32) -> u64 {
    status(pid, "VmHWM:")
}

/// Open sockets.
pub(crate) fn sockets(pid: u32) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    descriptors
        .filter_map(|descriptor| fs::read_link(descriptor.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}
