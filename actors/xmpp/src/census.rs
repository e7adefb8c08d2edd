//! How many streams and verifications a domain has.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use messages::Domain;

use crate::accounts::Source;

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// Streams a domain is authenticated on.
    Domain(Domain),
    /// Dialback verifications of a claimed domain.
    VerificationsOf(Domain),
    /// Those of them that one source causes.
    VerificationsBy(Source, Domain),
}

/// What one host gets: of IPv6, a /64.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            Ipv6Addr::from_bits(network).into()
        }
    }
}

/// Counts over all lanes. Asked once per stream or verification, so a lock will do.
#[derive(Clone, Default)]
pub(crate) struct Census(Arc<Mutex<HashMap<Origin, usize>>>);

impl Census {
    /// Takes a seat unless `max` are taken.
    pub(crate) fn seat(&self, origin: Origin, max: usize) -> Option<Seat> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(origin.clone()).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Seat {
            census: self.clone(),
            origin,
        })
    }
}

/// One place, given back when dropped.
pub(crate) struct Seat {
    census: Census,
    origin: Origin,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.census.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_given_back() {
        let census = Census::default();
        let here = || Origin::Domain(Domain::new("a.test"));
        let first = census.seat(here(), 2).unwrap();
        let _second = census.seat(here(), 2).unwrap();
        assert!(census.seat(here(), 2).is_none());
        let there = Origin::Domain(Domain::new("b.test"));
        assert!(census.seat(there, 2).is_some());
        drop(first);
        let third = census.seat(here(), 2);
        assert!(third.is_some());
    }
}
