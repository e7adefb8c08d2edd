//! How often others are called because of what strangers claim.
//!
//! Each dialback verification opens connections to where a name leads, and whoever owns a name can have it
//! lead to somebody else, any number of names to the same one. So there is a pace for what one source
//! causes, and one for what one address gets, whatever domain it is for.

use std::cell::RefCell;
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::Config;
use crate::accounts::Source;
use crate::census::network;
use crate::pace::{Pace, Pacer};

/// The quiet time that can be made up for.
const BURST: Duration = Duration::from_secs(10);
/// How long a connection waits for its turn. The verification that needs it holds its place meanwhile.
const TURN_LIMIT: Duration = Duration::from_secs(5);

/// The paces, over all lanes.
pub(crate) struct Calls {
    by_source: Mutex<Pacer<Source>>,
    dials: Mutex<Dials>,
}

struct Dials {
    to: Pacer<IpAddr>,
    /// Those of them that one source causes: half, so that the others have a half.
    because_of: Pacer<(Source, IpAddr)>,
}

impl Dials {
    fn take(&mut self, source: &Source, address: IpAddr, now: Instant) -> Result<(), Instant> {
        let caused = (source.clone(), address);
        self.because_of.turn(caused.clone(), now)?;
        self.to
            .turn(address, now)
            .inspect_err(|_| self.because_of.give_back(&caused))
    }

    fn give_back(&mut self, source: &Source, address: IpAddr) {
        self.because_of.give_back(&(source.clone(), address));
        self.to.give_back(&address);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Calls {
    pub(crate) fn new(config: &Config) -> Self {
        let begun = config.verifications_per_address_per_second_max;
        let dialled = config.verification_connections_per_address_per_second_max;
        let pacer = |count| Pace::per_second(count, BURST);
        Self {
            by_source: Mutex::new(Pacer::new(pacer(begun))),
            dials: Mutex::new(Dials {
                to: Pacer::new(pacer(dialled)),
                because_of: Pacer::new(pacer(dialled.div_ceil(2))),
            }),
        }
    }

    /// Whether a source may cause one more verification now.
    pub(crate) fn begin(&self, source: &Source, now: Instant) -> bool {
        lock(&self.by_source).take(source.clone(), now)
    }

    /// For the connections of one verification.
    pub(crate) const fn errand(&self, source: Source) -> Errand<'_> {
        Errand {
            calls: self,
            source,
            dialled: RefCell::new(Vec::new()),
        }
    }
}

/// The connections of one verification.
pub(crate) struct Errand<'a> {
    calls: &'a Calls,
    source: Source,
    dialled: RefCell<Vec<IpAddr>>,
}

impl Errand<'_> {
    /// Waits until an address may be connected to.
    ///
    /// # Errors
    /// When that takes too long.
    pub(crate) async fn turn(&self, address: IpAddr) -> io::Result<()> {
        let address = network(address);
        let limit = Instant::now() + TURN_LIMIT;
        loop {
            let taken = lock(&self.calls.dials).take(&self.source, address, Instant::now());
            match taken {
                Ok(()) => {
                    self.dialled.borrow_mut().push(address);
                    return Ok(());
                }
                Err(later) if later > limit => {
                    return Err(io::Error::other(
                        "too many were made to its address a moment ago, for other keys",
                    ));
                }
                Err(later) => sleep_until(later).await,
            }
        }
    }

    /// Gives back what an address was called: its server says that the key is its own, so it expects these
    /// calls. All others count, since a name may lead to several addresses.
    pub(crate) fn proven(&self, address: IpAddr) {
        let address = network(address);
        let mut dials = lock(&self.calls.dials);
        self.dialled.borrow_mut().retain(|dialled| {
            let is_it = *dialled == address;
            if is_it {
                dials.give_back(&self.source, address);
            }
            !is_it
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn calls() -> Calls {
        Calls::new(&Config {
            verifications_per_address_per_second_max: 2,
            verification_connections_per_address_per_second_max: 2,
            ..Config::default()
        })
    }

    fn source(last: u8) -> Source {
        Source::address([192, 0, 2, last].into())
    }

    /// How many connections to an address there are at once.
    fn at_once(errand: &Errand<'_>, address: [u8; 4]) -> usize {
        let turn = || errand.turn(address.into()).now_or_never();
        std::iter::from_fn(turn).take(100).count()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_called_so_often_whoever_causes_it() {
        let calls = calls();
        let victim = [198, 51, 100, 1];
        // Half of it for one source, and nothing of what others get.
        assert_eq!(at_once(&calls.errand(source(1)), victim), 10);
        assert_eq!(at_once(&calls.errand(source(1)), victim), 0);
        assert_eq!(at_once(&calls.errand(source(1)), [198, 51, 100, 2]), 10);
        assert_eq!(at_once(&calls.errand(source(2)), victim), 10);
        assert_eq!(at_once(&calls.errand(source(3)), victim), 0);
        // Then in turn.
        let began = Instant::now();
        let errand = calls.errand(source(1));
        for _ in 0..4 {
            errand.turn(victim.into()).await.unwrap();
        }
        assert_eq!(began.elapsed(), Duration::from_secs(4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_is_far_off_is_not_waited_for() {
        let calls = calls();
        let victim = IpAddr::from([198, 51, 100, 1]);
        let errand = calls.errand(source(1));
        assert_eq!(at_once(&errand, [198, 51, 100, 1]), 10);
        let turns = futures_util::future::join_all((0..10).map(|_| errand.turn(victim))).await;
        assert_eq!(turns.iter().filter(|turn| turn.is_ok()).count(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_prove_a_domain_do_not_count() {
        let calls = calls();
        let (home, victim) = ([198, 51, 100, 1], [198, 51, 100, 2]);
        for _ in 0..100 {
            let errand = calls.errand(source(1));
            errand.turn(home.into()).now_or_never().unwrap().unwrap();
            errand.proven(home.into());
        }
        assert_eq!(at_once(&calls.errand(source(1)), home), 10);
        // But those to another address on the way do.
        let errand = calls.errand(source(2));
        assert_eq!(at_once(&errand, victim), 10);
        errand.proven(home.into());
        assert_eq!(at_once(&calls.errand(source(2)), victim), 0);
    }

    #[test]
    fn a_source_causes_so_many_verifications() {
        let calls = calls();
        let now = Instant::now();
        let begun = |last, now| (0..100).filter(|_| calls.begin(&source(last), now)).count();
        assert_eq!(begun(1, now), 20);
        assert_eq!(begun(2, now), 20);
        assert_eq!(begun(1, now + Duration::from_secs(1)), 2);
    }
}
