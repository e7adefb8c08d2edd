//! What the machine must have.

use std::process::Command;

use rustix::process::geteuid;

const PACKAGES: [&str; 9] = [
    "prosody",
    "prosody-modules",
    "lua-unbound",
    "lua-event",
    "ejabberd",
    "jabberd2",
    "dnsmasq-base",
    "python3-slixmpp",
    "iproute2",
];

/// Fails with what to do unless everything is there.
#[track_caller]
pub(crate) fn require() {
    assert!(
        geteuid().is_root(),
        "run this test as root: it makes network namespaces"
    );
    let missing: Vec<_> = PACKAGES
        .into_iter()
        .filter(|package| !is_installed(package))
        .collect();
    assert!(
        missing.is_empty(),
        "run ./test, or: apt-get install --no-install-recommends {}",
        missing.join(" ")
    );
}

#[track_caller]
fn is_installed(package: &str) -> bool {
    let query = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output()
        .expect("run this test on Debian or its kin: dpkg-query is missing");
    query.stdout == b"installed"
}
