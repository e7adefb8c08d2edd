//! Addresses.

use std::net::IpAddr;

use crate::jid::{Host, Jid, is_domain, prepare_domain};
use crate::xml;

/// Takes `data` for an address: what is prepared stays as it is when prepared again, keeps RFC 7622's
/// limits, and names a host that names the same domain.
pub fn jid(data: &[u8]) {
    let Ok(text) = xml::utf8(data) else {
        return;
    };
    if let Ok(domain) = prepare_domain(text) {
        assert_eq!(prepare_domain(domain.as_str()).as_ref(), Ok(&domain));
        assert!(is_domain(text, &domain));
        let host = Host::of(&domain).expect("a prepared domain is a host");
        let named = match host {
            Host::Name(name) => {
                assert!(name.is_ascii() && (1..=253).contains(&name.len()), "{name}");
                let labels = || name.split('.');
                assert!(labels().all(|label| (1..=63).contains(&label.len())));
                assert!(!name.bytes().any(|byte| byte.is_ascii_uppercase()));
                name
            }
            Host::Ip(IpAddr::V4(address)) => address.to_string(),
            Host::Ip(IpAddr::V6(address)) => format!("[{address}]"),
        };
        assert_eq!(prepare_domain(&named), Ok(domain));
    }
    let Ok(jid) = Jid::parse(text) else {
        return;
    };
    let parts = [jid.localpart.as_deref(), jid.resource.as_deref()];
    for part in parts.into_iter().flatten() {
        assert!((1..=1023).contains(&part.len()));
    }
    let local = jid.localpart.as_deref().unwrap_or_default();
    assert!(!local.contains(['"', '&', '\'', '/', ':', '<', '>', '@', ' ']));
    let mut written = String::new();
    if jid.localpart.is_some() {
        written += local;
        written += "@";
    }
    written += jid.domain.as_str();
    if let Some(resource) = &jid.resource {
        written += "/";
        written += resource;
    }
    let again = Jid::parse(&written).expect("a prepared address is one");
    assert!(again == jid, "prepared twice it is another one");
    assert_eq!(jid.is_domain(), jid.domain.as_str() == written);
    let account = jid.account();
    assert_eq!(account.is_some(), jid.localpart.is_some());
    if let Some(account) = account {
        let bare = format!("{local}@{}", jid.domain.as_str());
        assert_eq!(account.as_str(), bare);
    }
}
