//! What became of streams: the last outcome for each peer, and the line in the log about each failure.
//!
//! Both directions and all lanes report here; the actor answers the operator's tools and
//! tells once an interval what was not logged.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix::{
    Actor, AsyncContext as _, Context, Handler, Message, MessageResult, Recipient, Supervised,
    Supervisor,
};
use messages::{Clock, Domain, Drain, Drained, Health, Probe, UnixSeconds};

use crate::accounts::Accounts;
use crate::census;
use crate::limiter::{Limiter, Line, Subject};
use crate::stream::{Stage, Trace};
use crate::xml::stream_error::StreamError;
use crate::{Config, Ingress};

/// Who opened a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The peer.
    In,
    /// This service.
    Out,
}

/// The last thing that happened to the streams of a peer in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerOutcome {
    /// The peer, as it says; proven if `method` is there.
    pub peer: Domain,
    /// Who opened the stream.
    pub direction: Direction,
    /// When.
    pub at: UnixSeconds,
    /// Where the peer is, if a connection came about.
    pub address: Option<SocketAddr>,
    /// How far the stream came.
    pub stage: &'static str,
    /// Why it failed, in words; none if it did not.
    pub failure: Option<String>,
    /// How the opening side proved who it is.
    pub method: Option<&'static str>,
    /// The version of TLS.
    pub tls: Option<&'static str>,
    /// What the peer's certificate proves, in words.
    pub certificate: Option<String>,
    /// When a stream of this peer was last authenticated, since the start.
    pub succeeded: Option<UnixSeconds>,
}

/// How did the last streams from and to each peer end? Answered in the order of the domains. Beside what is
/// known of a peer there may be a failure of somebody who said its name.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Vec<PeerOutcome>")]
pub struct PeerOutcomes;

/// What the keeper of outcomes accepts.
#[derive(Clone)]
pub struct Handles {
    /// Tells all that is remembered.
    pub query: Recipient<PeerOutcomes>,
    /// Tells the log what it was not told yet.
    pub drain: Recipient<Drain>,
    /// Counters.
    pub probe: Recipient<Probe>,
}

/// Starts the keeper of what the lanes of `ingress` report, on the current arbiter.
#[must_use]
pub fn start(ingress: &Ingress) -> Handles {
    let interval = ingress.config().outcomes_interval_seconds.max(1);
    let keeper = Keeper {
        outcomes: ingress.outcomes().clone(),
        accounts: ingress.accounts().clone(),
        interval: Duration::from_secs(interval),
    };
    let address = Supervisor::start(|ctx: &mut Context<Keeper>| {
        ctx.set_mailbox_capacity(0);
        keeper
    });
    Handles {
        query: address.clone().recipient(),
        drain: address.clone().recipient(),
        probe: address.recipient(),
    }
}

struct Keeper {
    outcomes: Outcomes,
    accounts: Accounts,
    interval: Duration,
}

impl Keeper {
    fn tell_rest(&self) {
        self.outcomes.tell_rest();
        self.accounts.shortages().tell_rest();
    }
}

impl Actor for Keeper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(self.interval, |keeper, _| keeper.tell_rest());
    }
}

impl Supervised for Keeper {}

impl Handler<PeerOutcomes> for Keeper {
    type Result = MessageResult<PeerOutcomes>;

    fn handle(&mut self, _: PeerOutcomes, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.outcomes.lock().all())
    }
}

impl Handler<Drain> for Keeper {
    type Result = Drained;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Drained {
        self.tell_rest();
        Drained::default()
    }
}

impl Handler<Probe> for Keeper {
    type Result = Health;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Health {
        let records = self.outcomes.lock();
        let (shortages, told) = self.accounts.shortages().counts();
        Health {
            counters: vec![
                ("peers_proven", records.proven.len()),
                ("peers_claimed", records.claimed.len()),
                ("stream_failures_total", records.failures),
                ("stream_failures_logged_total", records.logged),
                ("shortages_total", shortages),
                ("shortages_logged_total", told),
            ],
        }
    }
}

/// Where all lanes report. Asked once a stream, so a lock will do.
#[derive(Clone)]
pub(crate) struct Outcomes {
    records: Arc<Mutex<Records>>,
    clock: Clock,
}

impl Outcomes {
    pub(crate) fn new(config: &Config, clock: Clock) -> Self {
        let records = Records {
            proven: Places::new(config.outcomes_max),
            claimed: Places::new(config.outcomes_max),
            limiter: Limiter::new(config.outcomes_max, config.outcomes_per_address_max),
            openings: Limiter::new(config.outcomes_max, config.outcomes_per_address_max),
            failures: 0,
            logged: 0,
        };
        Self {
            records: Arc::new(Mutex::new(records)),
            clock,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A domain is authenticated on a stream. Logged when that is news, and no oftener than failures are.
    pub(crate) fn opened(&self, trace: &Trace) {
        if let Some(outcome) = self.outcome(trace, None) {
            let line = trace.line(String::new());
            let is_news = {
                let mut records = self.lock();
                let address = trace.address.map(|address| census::network(address.ip()));
                records.put(outcome, true)
                    && line.is_some_and(|line| records.openings.offer(line, address))
            };
            let what = match trace.direction {
                Direction::In => "a stream from a peer opened",
                Direction::Out => "a stream to a peer opened",
            };
            log(is_news, what, trace, None, None);
        }
    }

    /// A stream was refused or failed, or a peer could not prove a domain on one. `error` is what the peer
    /// was told.
    pub(crate) fn failed(&self, trace: &Trace, reason: &dyn Display, error: Option<StreamError>) {
        let reason = reason.to_string();
        let line = trace.line(reason.clone());
        let outcome = self.outcome(trace, Some(reason.clone()));
        let is_told = {
            let mut records = self.lock();
            if let Some(outcome) = outcome {
                let is_proven = records.is_proven(trace, &outcome);
                records.put(outcome, is_proven);
            }
            let stranger = trace.stranger();
            let is_told = line.is_some_and(|line| records.limiter.offer(line, stranger));
            records.failures += 1;
            records.logged += u64::from(is_told);
            is_told
        };
        let what = match trace.direction {
            Direction::In => "a stream from a peer failed",
            Direction::Out => "a stream to a peer failed",
        };
        // Within a handshake there is no stream to tell it on.
        let error = error.filter(|_| trace.stage != Stage::Tls);
        log(is_told, what, trace, Some(&reason), error);
    }

    fn outcome(&self, trace: &Trace, failure: Option<String>) -> Option<PeerOutcome> {
        let at = self.clock.now();
        Some(PeerOutcome {
            peer: trace.peer.clone()?,
            direction: trace.direction,
            at,
            address: trace.address,
            stage: trace.stage.as_str(),
            succeeded: failure.is_none().then_some(at),
            failure,
            method: trace.method,
            tls: trace.tls,
            certificate: trace.certificate.clone(),
        })
    }

    /// Logs what the interval left.
    fn tell_rest(&self) {
        let rest = {
            let mut records = self.lock();
            records.openings.turn();
            records.limiter.turn()
        };
        for (line, failures) in rest.again {
            let (peer, address) = match &line.subject {
                Subject::Peer(peer) => (Some(peer.as_str()), None),
                Subject::Claimed(peer, address) => {
                    (Some(peer.as_str()), Some(tracing::field::display(address)))
                }
                Subject::Address(address) => (None, Some(tracing::field::display(address))),
            };
            let (stage, reason) = (line.stage.as_str(), line.reason);
            let what = match line.direction {
                Direction::In => "streams from a peer failed again",
                Direction::Out => "streams to a peer failed again",
            };
            tracing::info!(peer, address, stage, reason, failures, "{what}");
        }
        if rest.untold > 0 {
            tracing::info!(
                failures = rest.untold,
                "streams of many other strangers failed"
            );
        }
    }
}

/// One line about a stream, for everybody or for those who look closely.
fn log(aloud: bool, what: &str, trace: &Trace, reason: Option<&str>, error: Option<StreamError>) {
    let local = trace.local.as_ref().map(Domain::as_str);
    let peer = trace.peer.as_ref().map(Domain::as_str);
    let address = trace.address.map(tracing::field::display);
    let stage = trace.stage.as_str();
    let error = error.map(|error| error.condition().as_str());
    let Trace {
        method,
        tls,
        certificate,
        ..
    } = trace;
    if aloud {
        tracing::info!(
            local,
            peer,
            address,
            stage,
            reason,
            error,
            method,
            tls,
            certificate,
            "{what}"
        );
    } else {
        tracing::debug!(
            local,
            peer,
            address,
            stage,
            reason,
            error,
            method,
            tls,
            certificate,
            "{what}"
        );
    }
}

impl Trace {
    /// The line about a failure of the stream.
    fn line(&self, reason: String) -> Option<Line> {
        let subject = match (&self.peer, self.address) {
            (Some(peer), Some(address)) if self.is_claimed() => {
                Subject::Claimed(peer.clone(), census::network(address.ip()))
            }
            (Some(peer), _) => Subject::Peer(peer.clone()),
            (None, Some(address)) => Subject::Address(census::network(address.ip())),
            (None, None) => return None,
        };
        Some(Line {
            direction: self.direction,
            subject,
            stage: self.stage,
            reason,
        })
    }

    /// Whether the peer came to us and has not proven who it is.
    const fn is_claimed(&self) -> bool {
        matches!(self.direction, Direction::In) && !matches!(self.stage, Stage::Open)
    }

    /// The address of a peer that has not proven who it is, or of one that a stranger may have sent us to.
    fn stranger(&self) -> Option<std::net::IpAddr> {
        let address = self.address.filter(|_| self.stage != Stage::Open)?;
        Some(census::network(address.ip()))
    }
}

struct Records {
    /// Peers that have proven who they are, or that have taken our proof.
    proven: Places,
    /// Others. Strangers can make up as many as they like, and push out each other only.
    claimed: Places,
    limiter: Limiter,
    /// Which streams that opened get a line.
    openings: Limiter,
    failures: u64,
    logged: u64,
}

impl Records {
    /// Whether a failure is one of the peer itself: whoever comes to us can say any name.
    fn is_proven(&self, trace: &Trace, outcome: &PeerOutcome) -> bool {
        match trace.direction {
            Direction::In => trace.stage == Stage::Open,
            Direction::Out => self.proven.has(&(outcome.peer.clone(), outcome.direction)),
        }
    }

    /// Returns whether the outcome before was another one. What a stranger says in a peer's name stands
    /// beside what is known of the peer and changes nothing of it.
    fn put(&mut self, mut outcome: PeerOutcome, is_proven: bool) -> bool {
        let key = (outcome.peer.clone(), outcome.direction);
        let places = match is_proven {
            true => &mut self.proven,
            false => &mut self.claimed,
        };
        let before = places.take(&key);
        let is_news = before.as_ref().map(|it| &it.failure) != Some(&outcome.failure);
        outcome.succeeded = outcome.succeeded.or(before.and_then(|it| it.succeeded));
        if outcome.failure.is_none() {
            self.claimed.take(&key);
        }
        match is_proven {
            true => self.proven.put(key, outcome),
            false => self.claimed.put(key, outcome),
        }
        is_news
    }

    fn all(&self) -> Vec<PeerOutcome> {
        let (proven, claimed) = (self.proven.outcomes(), self.claimed.outcomes());
        let mut all: Vec<_> = proven.chain(claimed).cloned().collect();
        all.sort_by(|a, b| (a.peer.as_str(), a.direction).cmp(&(b.peer.as_str(), b.direction)));
        all
    }
}

type Key = (Domain, Direction);

/// So many outcomes, the latest. Where all places are taken the source that holds most gives its oldest:
/// one with a name for each stream pushes out no peer of another.
struct Places {
    max: usize,
    /// By the time they came.
    outcomes: BTreeMap<u64, PeerOutcome>,
    times: HashMap<Key, u64>,
    /// The times of what came from each address; of IPv6, a /64.
    sources: HashMap<Option<IpAddr>, BTreeSet<u64>>,
    next: u64,
}

impl Places {
    fn new(max: usize) -> Self {
        Self {
            max,
            outcomes: BTreeMap::new(),
            times: HashMap::new(),
            sources: HashMap::new(),
            next: 0,
        }
    }

    fn has(&self, key: &Key) -> bool {
        self.times.contains_key(key)
    }

    fn take(&mut self, key: &Key) -> Option<PeerOutcome> {
        let time = self.times.remove(key)?;
        let outcome = self.outcomes.remove(&time)?;
        let source = source(&outcome);
        if let Some(times) = self.sources.get_mut(&source) {
            times.remove(&time);
            if times.is_empty() {
                self.sources.remove(&source);
            }
        }
        Some(outcome)
    }

    fn put(&mut self, key: Key, outcome: PeerOutcome) {
        let times = self.sources.entry(source(&outcome)).or_default();
        times.insert(self.next);
        self.times.insert(key, self.next);
        self.outcomes.insert(self.next, outcome);
        self.next += 1;
        while self.outcomes.len() > self.max {
            let Some(key) = self.oldest_of_most() else {
                return;
            };
            self.take(&key);
        }
    }

    fn oldest_of_most(&self) -> Option<Key> {
        let most = self
            .sources
            .values()
            .max_by_key(|times| (times.len(), Reverse(times.first())))?;
        let oldest = self.outcomes.get(most.first()?)?;
        Some((oldest.peer.clone(), oldest.direction))
    }

    fn outcomes(&self) -> impl Iterator<Item = &PeerOutcome> {
        self.outcomes.values()
    }

    fn len(&self) -> u64 {
        self.outcomes.len() as u64
    }
}

fn source(outcome: &PeerOutcome) -> Option<IpAddr> {
    outcome.address.map(|address| census::network(address.ip()))
}

#[cfg(test)]
mod tests {
    use messages::UnixMillis;

    use super::*;

    fn outcomes(max: usize) -> (Outcomes, Clock) {
        let config = Config {
            outcomes_max: max,
            ..Config::default()
        };
        let clock = Clock::manual(UnixMillis(0));
        (Outcomes::new(&config, clock.clone()), clock)
    }

    fn trace(peer: &str, direction: Direction, stage: Stage) -> Trace {
        Trace {
            direction,
            peer: Some(Domain::new(peer)),
            stage,
            ..Trace::from("192.0.2.1:5269".parse::<SocketAddr>().unwrap())
        }
    }

    /// Peers with the reasons of their failures.
    #[track_caller]
    fn check(outcomes: &Outcomes, expected: &[(&str, Direction, Option<&str>)]) {
        let all = outcomes.lock().all();
        let found: Vec<_> = all
            .iter()
            .map(|it| (it.peer.as_str(), it.direction, it.failure.as_deref()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_last_outcome_of_each_peer_and_direction_is_kept() {
        let (outcomes, clock) = outcomes(10);
        let incoming = |stage| trace("a.test", Direction::In, stage);
        outcomes.failed(&incoming(Stage::Tls), &"one", None);
        outcomes.opened(&incoming(Stage::Open));
        outcomes.failed(
            &trace("a.test", Direction::Out, Stage::Connect),
            &"two",
            None,
        );
        clock.set(UnixMillis(7_000));
        outcomes.failed(&incoming(Stage::Open), &"three", None);
        check(
            &outcomes,
            &[
                ("a.test", Direction::In, Some("three")),
                ("a.test", Direction::Out, Some("two")),
            ],
        );
        let all = outcomes.lock().all();
        assert_eq!(all[0].at, UnixSeconds(7));
        assert_eq!(all[0].succeeded, Some(UnixSeconds(0)));
        assert_eq!(all[0].stage, "open");
        assert_eq!(all[1].succeeded, None);
    }

    #[test]
    fn a_stranger_changes_nothing_of_what_is_known_of_a_peer() {
        let (outcomes, _) = outcomes(10);
        let told = |report: &dyn Fn()| {
            let before = outcomes.lock().logged;
            report();
            outcomes.lock().logged - before
        };
        outcomes.opened(&trace("a.test", Direction::In, Stage::Open));
        let mut stranger = trace("a.test", Direction::In, Stage::Authentication);
        stranger.address = Some("198.51.100.9:1".parse().unwrap());
        assert_eq!(told(&|| outcomes.failed(&stranger, &"no", None)), 1);
        check(
            &outcomes,
            &[
                ("a.test", Direction::In, None),
                ("a.test", Direction::In, Some("no")),
            ],
        );
        // The same failure of the peer itself, from its own address, is another line.
        let own = trace("a.test", Direction::In, Stage::Authentication);
        assert_eq!(told(&|| outcomes.failed(&own, &"no", None)), 1);
        assert_eq!(told(&|| outcomes.failed(&own, &"no", None)), 0);
        let mut records = outcomes.lock();
        let opened = outcomes.outcome(&trace("a.test", Direction::In, Stage::Open), None);
        assert!(!records.put(opened.unwrap(), true), "it is no news");
        assert_eq!(records.all().len(), 1);
    }

    #[test]
    fn openings_are_told_no_oftener_than_failures() {
        let (outcomes, _) = outcomes(10);
        let line =
            |n: usize| trace(&format!("{n}.test"), Direction::In, Stage::Open).line(String::new());
        let address = Some([192, 0, 2, 1].into());
        let max = Config::default().outcomes_per_address_max;
        for n in 0..3 * max {
            let trace = trace(&format!("{n}.test"), Direction::In, Stage::Open);
            outcomes.opened(&trace);
        }
        let mut records = outcomes.lock();
        assert!(!records.openings.offer(line(3 * max).unwrap(), address));
        records.openings.turn();
        assert!(records.openings.offer(line(3 * max).unwrap(), address));
    }

    #[test]
    fn the_oldest_goes_and_strangers_push_out_strangers_only() {
        let (outcomes, _) = outcomes(2);
        let incoming = |peer: &str, stage| trace(peer, Direction::In, stage);
        outcomes.opened(&incoming("a.test", Stage::Open));
        for peer in ["x.test", "y.test", "z.test"] {
            outcomes.failed(&incoming(peer, Stage::Tls), &"no", None);
        }
        outcomes.failed(&incoming("a.test", Stage::Open), &"broke", None);
        check(
            &outcomes,
            &[
                ("a.test", Direction::In, Some("broke")),
                ("y.test", Direction::In, Some("no")),
                ("z.test", Direction::In, Some("no")),
            ],
        );
        outcomes.opened(&incoming("z.test", Stage::Open));
        outcomes.opened(&incoming("b.test", Stage::Open));
        check(
            &outcomes,
            &[
                ("b.test", Direction::In, None),
                ("y.test", Direction::In, Some("no")),
                ("z.test", Direction::In, None),
            ],
        );
    }

    #[test]
    fn one_source_with_many_names_pushes_out_only_its_own() {
        let (outcomes, _) = outcomes(4);
        let at = |peer: &str, address: &str| Trace {
            address: Some(address.parse().unwrap()),
            ..trace(peer, Direction::In, Stage::Open)
        };
        let stays = [
            ("a.test", Direction::In, None),
            ("b.test", Direction::In, None),
        ];
        outcomes.opened(&at("a.test", "192.0.2.1:1"));
        outcomes.opened(&at("b.test", "192.0.2.2:1"));
        // Whatever port or address of its /64 it takes.
        for n in 0..10 {
            outcomes.opened(&at(
                &format!("{n}.evil.test"),
                &format!("[2001:db8::{n}]:{n}"),
            ));
        }
        let own = [
            ("8.evil.test", Direction::In, None),
            ("9.evil.test", Direction::In, None),
        ];
        check(&outcomes, &[own, stays].concat());
        // Of sources that hold the same the oldest goes.
        outcomes.opened(&at("c.test", "192.0.2.3:1"));
        outcomes.opened(&at("d.test", "192.0.2.4:1"));
        check(
            &outcomes,
            &[
                ("9.evil.test", Direction::In, None),
                ("b.test", Direction::In, None),
                ("c.test", Direction::In, None),
                ("d.test", Direction::In, None),
            ],
        );
        assert_eq!(outcomes.lock().proven.sources.len(), 4);
    }

    #[test]
    fn a_failure_is_told_once_whoever_has_it() {
        let (outcomes, _) = outcomes(100);
        let nobody = |address: &str| Trace::from(address.parse::<SocketAddr>().unwrap());
        let told = |trace: &Trace, expected| {
            let before = outcomes.lock().logged;
            outcomes.failed(trace, &"no", None);
            assert_eq!(outcomes.lock().logged - before, expected);
        };
        told(&nobody("[2001:db8::1]:1"), 1);
        told(&nobody("[2001:db8::2]:2"), 0);
        told(&nobody("[2001:db8:1::2]:2"), 1);
        told(&trace("a.test", Direction::In, Stage::Tls), 1);
        told(&trace("a.test", Direction::In, Stage::Tls), 0);
        told(&trace("a.test", Direction::In, Stage::Open), 1);
        told(&trace("a.test", Direction::Out, Stage::Open), 1);
        assert_eq!(outcomes.lock().failures, 7);
    }
}
