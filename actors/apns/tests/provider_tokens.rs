//! The signer alone: a day of it, and what happens when APNs refuses.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use apns::{AppConfig, Config, Upstreams, provider_tokens};
use messages::{
    Clock, Probe, ProviderTokenRefused, SigningKeyId, SubscribeProviderToken, UnixMillis,
    UnixSeconds, UseProviderToken,
};
use tempfile::TempDir;
use testkit::Collector;

const START: u64 = 1_767_225_600;

struct Signer {
    clock: Clock,
    seconds: u64,
    handles: provider_tokens::Handles,
    _directory: TempDir,
}

impl Signer {
    fn start() -> Self {
        tokio::time::pause();
        let directory = tempfile::tempdir().unwrap();
        let key_file = directory.path().join("key.p8");
        let pair = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&key_file, pair.serialize_pem()).unwrap();
        let authority = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, authority.cert.pem()).unwrap();
        let app = AppConfig {
            topic: "com.example.app".to_owned(),
            team_id: "DEF123GHIJ".to_owned(),
            key_id: "ABC123DEFG".to_owned(),
            key_file,
            ca_file: Some(ca_file),
            ..AppConfig::default()
        };
        let clock = Clock::manual(UnixMillis(START * 1_000));
        let apps = BTreeMap::from([("app".to_owned(), app)]);
        let upstreams = Upstreams::prepare(&Config::default(), &apps, clock.clone())
            .unwrap_or_else(|errors| panic!("{errors:?}"));
        Self {
            clock,
            seconds: START,
            handles: provider_tokens::start(&upstreams),
            _directory: directory,
        }
    }

    fn subscribe(&self) -> Collector<UseProviderToken> {
        let tokens = Collector::start();
        self.handles
            .subscribe
            .try_send(SubscribeProviderToken {
                key: key(),
                subscriber: tokens.recipient(),
            })
            .unwrap();
        tokens
    }

    fn refuse(&self, issued_at: u64) {
        self.handles
            .refused
            .try_send(ProviderTokenRefused {
                key: key(),
                issued_at: UnixSeconds(issued_at),
            })
            .unwrap();
    }

    /// Lets both clocks run for some minutes, in steps.
    async fn pass(&mut self, minutes: u64) {
        for _ in 0..minutes * 6 {
            self.seconds += 10;
            self.clock.set(UnixMillis(self.seconds * 1_000));
            tokio::time::advance(Duration::from_secs(10)).await;
            self.settle().await;
        }
    }

    /// Waits until the actor has handled what was sent, and its messages have arrived.
    async fn settle(&self) -> u64 {
        let health = self.handles.probe.send(Probe).await.unwrap();
        tokio::task::yield_now().await;
        let signed = &health.counters[0];
        assert_eq!(signed.0, "provider_tokens_signed_total");
        signed.1
    }
}

fn key() -> SigningKeyId {
    SigningKeyId {
        team_id: "DEF123GHIJ".into(),
        key_id: "ABC123DEFG".into(),
    }
}

fn ages(tokens: &[UseProviderToken]) -> Vec<u64> {
    tokens
        .windows(2)
        .map(|pair| pair[1].issued_at.0 - pair[0].issued_at.0)
        .collect()
}

#[actix::test]
async fn a_day_of_renewals() {
    let mut signer = Signer::start();
    // Nobody asks, nothing ages.
    signer.pass(120).await;
    assert_eq!(signer.settle().await, 0);

    let mut lane = signer.subscribe();
    signer.settle().await;
    signer.pass(10).await;
    let mut other_lane = signer.subscribe();
    signer.pass(24 * 60 - 10).await;

    let tokens = lane.drain();
    assert_eq!(tokens[0].issued_at, UnixSeconds(START + 120 * 60));
    assert_eq!(tokens[0].key, key());
    let ages = ages(&tokens);
    assert!(ages.len() >= 31, "{} renewals in a day", ages.len());
    for age in ages {
        assert!((45 * 60..=46 * 60).contains(&age), "{age} s");
    }
    // All lanes use one token.
    let same: Vec<&str> = tokens.iter().map(|token| token.bearer.as_str()).collect();
    let other = other_lane.drain();
    let other: Vec<&str> = other.iter().map(|token| token.bearer.as_str()).collect();
    assert_eq!(same, other);
    assert_eq!(signer.settle().await, same.len() as u64);
}

#[actix::test]
async fn a_refused_token_is_replaced_when_20_minutes_old() {
    let mut signer = Signer::start();
    let mut lane = signer.subscribe();
    signer.settle().await;
    let first = lane.take().await.issued_at.0;

    // Too young: not before 20 minutes are over.
    signer.pass(5).await;
    signer.refuse(first);
    signer.pass(14).await;
    assert!(lane.drain().is_empty());
    signer.pass(2).await;
    let tokens = lane.drain();
    assert_eq!(tokens.len(), 1);
    let second = tokens[0].issued_at.0;
    assert!((20 * 60..=20 * 60 + 20).contains(&(second - first)));

    // News of the one before changes nothing.
    signer.pass(21).await;
    signer.refuse(first);
    signer.pass(1).await;
    assert!(lane.drain().is_empty());

    // Old enough: at once, however many lanes tell.
    signer.refuse(second);
    signer.refuse(second);
    signer.settle().await;
    let tokens = lane.drain();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].issued_at.0, signer.seconds);
}

#[actix::test]
async fn a_clock_set_back_does_not_keep_a_token_of_the_future() {
    let mut signer = Signer::start();
    let mut lane = signer.subscribe();
    signer.settle().await;
    let first = lane.take().await.issued_at.0;
    signer.seconds -= 3 * 3_600;
    signer.pass(19).await;
    assert!(lane.drain().is_empty());
    signer.pass(2).await;
    let tokens = lane.drain();
    assert_eq!(tokens.len(), 1);
    assert!(tokens[0].issued_at.0 < first);
}

#[actix::test]
async fn subscribers_that_are_gone_are_dropped() {
    use actix::{Actor, ActorContext, Context, Handler};

    struct Lane(u32);
    impl Actor for Lane {
        type Context = Context<Self>;
    }
    impl Handler<UseProviderToken> for Lane {
        type Result = ();
        fn handle(&mut self, _: UseProviderToken, ctx: &mut Self::Context) {
            self.0 -= 1;
            if self.0 == 0 {
                ctx.stop();
            }
        }
    }

    let mut signer = Signer::start();
    let short = Lane(2).start();
    signer
        .handles
        .subscribe
        .try_send(SubscribeProviderToken {
            key: key(),
            subscriber: short.clone().recipient(),
        })
        .unwrap();
    let mut long = signer.subscribe();
    signer.pass(4 * 60).await;
    assert!(!short.connected());
    assert_eq!(long.drain().len(), 6, "the others go on");
}
