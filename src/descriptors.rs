//! How many files and connections the process may have open at a time.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{Settings, lanes};

/// What is open beside connections that the configuration bounds: the store, sockets that listen, the log,
/// look-ups in the DNS.
const OTHERS: u64 = 256;

/// Takes all that the system allows to this process, which mostly begins with less. Returns how much that
/// is.
#[must_use]
pub fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    };
    allowed.unwrap_or(u64::MAX)
}

/// How much a configuration can come to need. With less, strangers could take what the way to APNs and to
/// other servers needs.
#[must_use]
pub fn needed(settings: &Settings) -> u64 {
    let lanes = settings.runtime.lanes_on(lanes::cores());
    let xmpp = &settings.xmpp;
    let upstream = settings.apns.connections_per_pool_max;
    let upstreams = lanes * settings.apps.len() * upstream;
    let connections = xmpp.streams_max
        + xmpp.egress_streams_max
        + xmpp.verifications_max
        + settings.components.len()
        + upstreams;
    OTHERS + connections as u64
}

/// What an operator is told when it is too little.
#[must_use]
pub fn warning(allowed: u64, needed: u64) -> Option<String> {
    (allowed < needed).then(|| {
        format!(
            "only {allowed} files and connections may be open, and up to {needed} are needed: raise the limit \
             (LimitNOFILE= of systemd, ulimit -n), or lower xmpp.streams_max and xmpp.egress_streams_max"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_fit_in_what_the_readme_sets() {
        let needed = needed(&Settings::default());
        assert_eq!(needed, 256 + 4096 + 4096 + 128);
        assert_eq!(warning(65_536, needed), None);
        let warning = warning(4096, needed).unwrap();
        assert!(warning.starts_with("only 4096 "), "{warning}");
    }

    #[test]
    fn all_that_is_allowed_is_taken() {
        let allowed = raise();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(limit.current.unwrap_or(u64::MAX), allowed);
    }
}
