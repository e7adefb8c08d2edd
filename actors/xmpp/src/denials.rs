//! Claims that were denied. Who claims a domain that is not its own has it asked about again only after a
//! pause: each claim is a call to the server of that domain.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use messages::Domain;
use tokio::time::Instant;

use crate::accounts::Source;

/// Denials from which on those that are over are looked for.
const FORGET_FROM: usize = 1024;
/// Most that are remembered. More within one pause come from many sources, each with its own bounds.
const DENIALS_MAX: usize = 16 * 1024;

/// Denied claims by who made them and which domain they were of, over all lanes.
#[derive(Default)]
pub(crate) struct Denials(Mutex<HashMap<(Source, Domain), Instant>>);

impl Denials {
    pub(crate) fn add(&self, source: &Source, domain: &Domain, pause: Duration, now: Instant) {
        let mut denials = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if denials.len() >= FORGET_FROM {
            denials.retain(|_, until| *until > now);
        }
        if denials.len() < DENIALS_MAX {
            denials.insert((source.clone(), domain.clone()), now + pause);
        }
    }

    /// Whether the pause after a denial is not over.
    pub(crate) fn holds(&self, source: &Source, domain: &Domain, now: Instant) -> bool {
        let denials = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let until = denials.get(&(source.clone(), domain.clone()));
        until.is_some_and(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_denial_holds_for_its_source_and_domain_and_time() {
        let denials = Denials::default();
        let source = |last| Source::address([192, 0, 2, last].into());
        let (a, b) = (Domain::new("a.test"), Domain::new("b.test"));
        let now = Instant::now();
        denials.add(&source(1), &a, 10 * SECOND, now);
        assert!(denials.holds(&source(1), &a, now + 9 * SECOND));
        assert!(!denials.holds(&source(1), &a, now + 10 * SECOND));
        assert!(!denials.holds(&source(2), &a, now));
        assert!(!denials.holds(&source(1), &b, now));
    }

    #[test]
    fn there_is_an_end_to_what_is_remembered() {
        let denials = Denials::default();
        let source = Source::address([192, 0, 2, 1].into());
        let now = Instant::now();
        for n in 0..DENIALS_MAX + 10 {
            let domain = Domain::new(&format!("{n}.test"));
            denials.add(&source, &domain, SECOND, now);
        }
        let len = || denials.0.lock().unwrap().len();
        assert_eq!(len(), DENIALS_MAX);
        denials.add(&source, &Domain::new("a.test"), SECOND, now + SECOND);
        assert_eq!(len(), 1);
    }
}
