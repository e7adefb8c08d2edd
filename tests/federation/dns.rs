//! The DNS of a network: dnsmasq, which knows what the test tells it and denies all else.

use std::fs;
use std::path::Path;

use crate::net::Host;
use crate::process::Process;

/// The records to serve.
#[derive(Default)]
pub(crate) struct Zone(String);

impl Zone {
    /// An A record.
    pub(crate) fn v4(self, name: &str, host: &Host) -> Self {
        self.record(&format!("host-record={name},{}", host.v4))
    }

    /// An AAAA record.
    pub(crate) fn v6(self, name: &str, host: &Host) -> Self {
        self.record(&format!("host-record={name},{}", host.v6))
    }

    /// An A record of an address of the network that no host has.
    pub(crate) fn nobody(self, name: &str) -> Self {
        self.record(&format!("host-record={name},198.18.77.250"))
    }

    /// An SRV record of a domain for servers (RFC 6120 §3.2.1).
    pub(crate) fn server(self, domain: &str, target: &str, port: u16, priority: u16) -> Self {
        self.record(&format!(
            "srv-host=_xmpp-server._tcp.{domain},{target},{port},{priority},5"
        ))
    }

    /// The SRV record of a domain for direct TLS (XEP-0368).
    pub(crate) fn direct_tls(self, domain: &str, target: &str, port: u16) -> Self {
        self.record(&format!(
            "srv-host=_xmpps-server._tcp.{domain},{target},{port},10,5"
        ))
    }

    fn record(mut self, line: &str) -> Self {
        self.0.push_str(line);
        self.0.push('\n');
        self
    }
}

/// A running DNS server.
pub(crate) struct Dns {
    process: Process,
}

impl Dns {
    pub(crate) fn start(host: &Host, zone: &Zone, directory: &Path) -> Self {
        let configuration = directory.join("dnsmasq.conf");
        let text = format!(
            "no-daemon\nlog-queries\n\
             no-resolv\nno-hosts\nbind-interfaces\nlisten-address={},{}\naddress=/#/\n{}",
            host.v4, host.v6, zone.0
        );
        fs::write(&configuration, text).expect("the directory of the test can be written");
        let mut command = host.command("dnsmasq");
        command.arg(format!("--conf-file={}", configuration.display()));
        let mut process = Process::start("dnsmasq", command, &directory.join("dnsmasq.log"));
        process.wait_for("starts", |log| {
            log.contains("started, version").then_some(())
        });
        Self { process }
    }

    /// Whether a host has asked for a record, `A`, `AAAA` or `SRV`.
    pub(crate) fn was_asked(&self, kind: &str, name: &str, by: &Host) -> bool {
        let question = format!("query[{kind}] {name} from ");
        self.process.log().lines().any(|line| {
            line.split_once(&question)
                .is_some_and(|(_, from)| from == by.v4.to_string() || from == by.v6.to_string())
        })
    }
}
