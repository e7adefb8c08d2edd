//! Where a load may go: anywhere but to Apple, whose service is no place for made-up devices.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

use crate::RunError;

/// Domains that are Apple's, or that APNs' names lead to.
const APPLE_DOMAINS: [&str; 4] = [
    "apple.com",
    "apple-dns.net",
    "aaplimg.com",
    "push-apple.com.akadns.net",
];

/// The first 16 bits of addresses that are Apple's alone, beside 17.0.0.0/8: 2620:149::/32,
/// 2403:300::/32 and 2a01:b740::/32 (Apple, "If your clients aren't getting Apple push notifications").
const APPLE_V6: [[u16; 2]; 3] = [[0x2620, 0x149], [0x2403, 0x300], [0x2a01, 0xb740]];

/// The prefix under which IPv4 is reached over IPv6 alone (RFC 6052 §2.1).
const NAT64: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];

const HTTPS: u16 = 443;

/// Why an endpoint is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// It is APNs, or another service of Apple.
    #[error(
        "it is Apple's, which is not for made-up devices: use the built-in APNs, or one of your own"
    )]
    Apple,
    /// It cannot be read.
    #[error("write it as https://host:port")]
    Malformed,
}

/// Host and port of an APNs that is not Apple's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// In lower case, without a dot at the end; of IPv6 without brackets.
    host: String,
    port: u16,
}

impl Endpoint {
    /// Looks the name up: one that leads to Apple is refused as Apple's own are.
    ///
    /// # Errors
    /// [`RunError::Usage`].
    pub(super) async fn refuse_apples_addresses(&self) -> Result<(), RunError> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let addresses = found.map_err(|error| {
            RunError::Usage(format!("--endpoint {self}: cannot be looked up ({error})"))
        })?;
        for address in addresses {
            if is_apples(address.ip()) {
                let refused = EndpointError::Apple;
                return Err(RunError::Usage(format!(
                    "--endpoint {self}, at {}: {refused}",
                    address.ip()
                )));
            }
        }
        Ok(())
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    /// Reads `https://host:port`, of which only the host is needed.
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let rest = match text.split_at_checked("https://".len()) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https://") => rest,
            _ => text,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or(EndpointError::Malformed)?,
            None => rest.split_at(rest.find(':').unwrap_or(rest.len())),
        };
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let address: Option<IpAddr> = host.parse().ok();
        // No other character is in a name that can be looked up; many of them mean something to somebody.
        let is_name = host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
        if host.is_empty() || rest.starts_with('[') != matches!(address, Some(IpAddr::V6(_))) {
            return Err(EndpointError::Malformed);
        }
        if address.is_none() && !is_name {
            return Err(EndpointError::Malformed);
        }
        if address.is_some_and(is_apples) || APPLE_DOMAINS.iter().any(|apple| is_in(&host, apple)) {
            return Err(EndpointError::Apple);
        }
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| EndpointError::Malformed)?,
            None if port.is_empty() => HTTPS,
            None => return Err(EndpointError::Malformed),
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for Endpoint {
    /// `host:port`, as `apps.NAME.endpoint` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

fn is_in(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain)
        .is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn is_apples(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => matches!(address.octets(), [17, ..]),
        IpAddr::V6(address) => is_apples_v6(address),
    }
}

const fn is_apples_v6(address: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, _] = address.segments();
    let [nat_a, nat_b, nat_c, nat_d, nat_e, nat_f] = NAT64;
    let is_nat64 = a == nat_a && b == nat_b && c == nat_c && d == nat_d && e == nat_e && f == nat_f;
    let [[a1, b1], [a2, b2], [a3, b3]] = APPLE_V6;
    (a == a1 && b == b1)
        || (a == a2 && b == b2)
        || (a == a3 && b == b3)
        || (is_nat64 && g >> 8 == 17)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(given: &str, expected: Result<&str, EndpointError>) {
        let read = given.parse::<Endpoint>().map(|found| found.to_string());
        assert_eq!(read, expected.map(str::to_owned), "{given}");
    }

    #[test]
    fn an_endpoint_of_ones_own_is_taken() {
        check("https://localhost:8443", Ok("localhost:8443"));
        check("localhost:8443", Ok("localhost:8443"));
        check(
            "https://APNs.Staging.Example/",
            Ok("apns.staging.example:443"),
        );
        check("HTTPS://relay.example.:2197", Ok("relay.example:2197"));
        check("https://192.0.2.7:443", Ok("192.0.2.7:443"));
        check("https://[::1]:8443", Ok("[::1]:8443"));
        // Names that only look like Apple's.
        check("https://pineapple.com", Ok("pineapple.com:443"));
        check(
            "https://apple.com.relay.example",
            Ok("apple.com.relay.example:443"),
        );
        check("https://118.17.0.1", Ok("118.17.0.1:443"));
        check("https://[2620:14a::1]", Ok("[2620:14a::1]:443"));
    }

    #[test]
    fn apples_are_refused_however_they_are_written() {
        for given in [
            "https://api.push.apple.com",
            "https://api.push.apple.com:443",
            "https://api.push.apple.com:2197",
            "https://api.sandbox.push.apple.com",
            "https://api.development.push.apple.com/",
            "api.push.apple.com:2197",
            "https://API.Push.APPLE.com",
            "HTTPS://api.push.apple.com.",
            "https://api.push.apple.com.:2197",
            "https://api.push.apple.com..",
            "https://anything.push.apple.com",
            "https://push.apple.com",
            "https://apple.com",
            "https://gateway.apple.com",
            "https://api.push-apple.com.akadns.net",
            "https://pop-eur-central-courier.push-apple.com.akadns.net",
            "https://17.188.143.10",
            "https://17.57.144.1:2197",
            "https://[::ffff:17.188.143.10]",
            "https://[64:ff9b::17.188.143.10]:443",
            "https://[2620:149:a44::1]",
            "https://[2403:300:a42::1]:2197",
            "https://[2a01:b740:a42::1]",
        ] {
            check(given, Err(EndpointError::Apple));
        }
    }

    #[test]
    fn what_others_might_read_otherwise_is_refused() {
        for given in [
            "",
            "https://",
            "http://localhost:8443",
            "https://relay.example@api.push.apple.com",
            "https://relay.example/../api.push.apple.com",
            "https://relay.example/path",
            "https://relay.example#api.push.apple.com",
            "https://relay.example\\api.push.apple.com",
            "https://api.push.apple%2Ecom",
            "https://api.push.apple。com",
            "https://api.push.аpple.com",
            "https://relay.example api.push.apple.com",
            "https://relay.example:99999",
            "https://relay.example:",
            "https://::1",
            "https://[::1",
            "https://[relay.example]:443",
        ] {
            check(given, Err(EndpointError::Malformed));
        }
    }

    #[actix_rt::test]
    async fn a_number_that_the_system_reads_as_apples_address_is_refused() {
        // 17.0.0.1, as inet_aton reads it: no address to us, but one to who looks it up.
        let endpoint: Endpoint = "https://0x11.1:443".parse().unwrap();
        let refused = endpoint.refuse_apples_addresses().await;
        assert!(matches!(refused, Err(RunError::Usage(text)) if text.contains("17.0.0.1")));
        let own: Endpoint = "https://localhost:443".parse().unwrap();
        own.refuse_apples_addresses().await.unwrap();
    }
}
