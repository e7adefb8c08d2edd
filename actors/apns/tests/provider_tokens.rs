//! The signer alone: a day of it, and what happens when APNs refuses.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
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
    apps: BTreeMap<String, AppConfig>,
    directory: TempDir,
}

impl Signer {
    fn start() -> Self {
        Self::start_at(START)
    }

    fn start_at(seconds: u64) -> Self {
        tokio::time::pause();
        let directory = tempfile::tempdir().unwrap();
        let key_file = directory.path().join("key.p8");
        let pair = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&key_file, pair.serialize_pem()).unwrap();
        let authority = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, authority.cert.pem()).unwrap();
        let app = app_in(directory.path());
        let clock = Clock::manual(UnixMillis(seconds * 1_000));
        let apps = BTreeMap::from([("app".to_owned(), app)]);
        let tokens = directory.path().join("tokens");
        Self {
            handles: process(&apps, &clock, tokens),
            clock,
            seconds,
            apps,
            directory,
        }
    }

    /// Another process of the same team, under the same clock, with a directory of its own.
    fn stranger(&self) -> provider_tokens::Handles {
        process(&self.apps, &self.clock, self.directory.path().join("other"))
    }

    /// Another process with the same directory, or the same one after a restart.
    fn colleague(&self) -> provider_tokens::Handles {
        process(&self.apps, &self.clock, self.tokens())
    }

    fn tokens(&self) -> PathBuf {
        self.directory.path().join("tokens")
    }

    /// The token that a process uses.
    async fn first_of(handles: &provider_tokens::Handles) -> UseProviderToken {
        Self::subscribe_to(handles).take().await
    }

    fn subscribe(&self) -> Collector<UseProviderToken> {
        Self::subscribe_to(&self.handles)
    }

    fn subscribe_to(handles: &provider_tokens::Handles) -> Collector<UseProviderToken> {
        let tokens = Collector::start();
        handles
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

/// An app whose key and authority lie there.
fn app_in(directory: &Path) -> AppConfig {
    AppConfig {
        topic: "com.example.app".to_owned(),
        team_id: "DEF123GHIJ".to_owned(),
        key_id: "ABC123DEFG".to_owned(),
        key_file: directory.join("key.p8"),
        ca_file: Some(directory.join("ca.pem")),
        ..AppConfig::default()
    }
}

fn process(
    apps: &BTreeMap<String, AppConfig>,
    clock: &Clock,
    token_dir: PathBuf,
) -> provider_tokens::Handles {
    let config = Config {
        token_dir,
        ..Config::default()
    };
    let upstreams = Upstreams::prepare(&config, apps, clock.clone())
        .unwrap_or_else(|errors| panic!("{errors:?}"));
    provider_tokens::start(&upstreams)
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
    assert!(
        (35..=36).contains(&ages.len()),
        "{} renewals in a day",
        ages.len()
    );
    println!("{} tokens in a day, {ages:?} s apart", tokens.len());
    for age in ages {
        assert_eq!(age, 40 * 60);
    }
    // All lanes use one token.
    let same: Vec<&str> = tokens.iter().map(|token| token.bearer.as_str()).collect();
    let other = other_lane.drain();
    let other: Vec<&str> = other.iter().map(|token| token.bearer.as_str()).collect();
    assert_eq!(same, other);
    assert_eq!(signer.settle().await, same.len() as u64);
}

/// Header and claims: all of a token but its signature.
fn claims(token: &UseProviderToken) -> String {
    token.bearer.as_str().rsplit_once('.').unwrap().0.to_owned()
}

#[actix::test]
async fn processes_of_a_team_agree_without_talking() {
    let mut signer = Signer::start_at(START + 7 * 60);
    let mut one = signer.subscribe();
    signer.pass(22).await;
    let stranger = signer.stranger();
    let mut other = Signer::subscribe_to(&stranger);
    signer.pass(5 * 60).await;
    // The last look of each may be on either side of a border.
    let one: Vec<String> = one.drain().iter().map(claims).take(8).collect();
    let other: Vec<String> = other.drain().iter().map(claims).take(8).collect();
    assert_eq!(one.len(), 8);
    assert_eq!(one, other);
}

/// The bytes as APNs gets them.
fn texts(tokens: &[UseProviderToken]) -> Vec<&str> {
    tokens.iter().map(|token| token.bearer.as_str()).collect()
}

/// A process that is being started holds the locks of this one for a moment, which is long where time is paused.
static STARTING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[actix::test]
async fn processes_with_one_directory_use_one_token_byte_by_byte() {
    let _nobody_is = STARTING.lock().await;
    let mut signer = Signer::start_at(START + 7 * 60);
    let mut one = signer.subscribe();
    signer.pass(22).await;
    let colleague = signer.colleague();
    let mut other = Signer::subscribe_to(&colleague);
    signer.pass(24 * 60).await;
    let (one, other) = (one.drain(), other.drain());
    assert_eq!(one.len(), 37);
    assert_eq!(texts(&one), texts(&other));
    // Between them they signed each once.
    let mut signed = 0;
    for handles in [&signer.handles, &colleague] {
        let health = handles.probe.send(Probe).await.unwrap();
        signed += health.counters[0].1;
    }
    assert_eq!(signed, 37);
    for gap in ages(&one) {
        assert!((20 * 60..=50 * 60).contains(&gap), "{gap}");
    }
}

#[actix::test]
async fn a_restart_keeps_the_token_as_long_as_it_would_have_been_kept() {
    let mut signer = Signer::start_at(START + 35 * 60);
    let first = Signer::first_of(&signer.handles).await;
    for minutes in [1, 10, 8] {
        signer.pass(minutes).await;
        let again = Signer::first_of(&signer.colleague()).await;
        assert_eq!(again.bearer, first.bearer);
        assert_eq!(again.issued_at, first.issued_at);
    }
    // In the next slot, and 20 minutes old.
    signer.pass(2).await;
    let next = Signer::first_of(&signer.colleague()).await;
    assert_eq!(next.issued_at.0, START + 40 * 60);
    // A day later nothing is left of it.
    signer.clock.set(UnixMillis((START + 86_400) * 1_000));
    let later = Signer::first_of(&signer.colleague()).await;
    assert_eq!(later.issued_at.0, START + 86_400);
    // A clock set back: not a token of the future.
    signer.clock.set(UnixMillis(START * 1_000));
    let before = Signer::first_of(&signer.colleague()).await;
    assert_eq!(before.issued_at.0, START);
}

#[actix::test]
async fn what_one_process_made_of_a_refused_token_serves_the_others() {
    let mut signer = Signer::start();
    let mut one = signer.subscribe();
    let first = one.take().await;
    let colleague = signer.colleague();
    let mut other = Signer::subscribe_to(&colleague);
    assert_eq!(other.take().await.bearer, first.bearer);
    signer.pass(21).await;
    signer.refuse(START);
    signer.settle().await;
    let second = one.take().await;
    assert_ne!(second.bearer, first.bearer);
    let refused = ProviderTokenRefused {
        key: key(),
        issued_at: UnixSeconds(START),
    };
    colleague.refused.try_send(refused).unwrap();
    assert_eq!(other.take().await.bearer, second.bearer);
}

#[actix::test]
async fn a_process_that_hangs_with_the_lock_does_not_stop_the_others() {
    let signer = Signer::start();
    let mut one = signer.subscribe();
    let first = one.take().await;
    let lock = File::open(signer.tokens().join("DEF123GHIJ-ABC123DEFG.lock")).unwrap();
    lock.lock().unwrap();
    // For a moment it is waited for.
    let waiting = signer.colleague();
    let mut other = Signer::subscribe_to(&waiting);
    waiting.probe.send(Probe).await.unwrap();
    tokio::time::advance(Duration::from_millis(500)).await;
    waiting.probe.send(Probe).await.unwrap();
    assert!(other.drain().is_empty());
    lock.unlock().unwrap();
    tokio::time::advance(Duration::from_millis(100)).await;
    assert_eq!(other.take().await.bearer, first.bearer);
    // For ever it is not.
    lock.lock().unwrap();
    let alone = Signer::first_of(&signer.colleague()).await;
    assert_eq!(claims(&alone), claims(&first));
    assert_ne!(alone.bearer, first.bearer);
}

#[actix::test]
async fn without_a_place_to_keep_tokens_they_are_made_all_the_same() {
    let signer = Signer::start();
    let first = Signer::first_of(&signer.handles).await;
    fs::remove_dir_all(signer.tokens()).unwrap();
    fs::write(signer.tokens(), "not a directory").unwrap();
    let alone = Signer::first_of(&signer.colleague()).await;
    assert_eq!(claims(&alone), claims(&first));
    let none = process(&signer.apps, &signer.clock, PathBuf::new());
    let alone = Signer::first_of(&none).await;
    assert_eq!(claims(&alone), claims(&first));
}

#[actix::test]
async fn who_starts_at_the_end_of_a_slot_keeps_its_token_for_20_minutes() {
    let mut signer = Signer::start_at(START + 35 * 60);
    let mut lane = signer.subscribe();
    signer.settle().await;
    assert_eq!(lane.take().await.issued_at.0, START);
    // APNs saw it later than it was signed.
    signer.pass(20).await;
    assert!(lane.drain().is_empty());
    signer.pass(2).await;
    let tokens = lane.drain();
    assert_eq!(tokens.len(), 1);
    assert_eq!(
        tokens[0].issued_at.0,
        START + 40 * 60,
        "and then agrees with the others"
    );
    signer.pass(25).await;
    assert_eq!(lane.drain()[0].issued_at.0, START + 80 * 60);
}

#[actix::test]
async fn a_replaced_key_file_signs_from_the_next_look_on() {
    let mut signer = Signer::start();
    let mut lane = signer.subscribe();
    signer.settle().await;
    let first = lane.take().await;
    let file = signer.directory.path().join("key.p8");
    std::fs::write(&file, "half a file").unwrap();
    signer.pass(2).await;
    assert!(lane.drain().is_empty(), "the old key stays");
    let pair = rcgen::KeyPair::generate().unwrap();
    std::fs::write(&file, pair.serialize_pem()).unwrap();
    signer.pass(2).await;
    let tokens = lane.drain();
    assert_eq!(tokens.len(), 1);
    assert_eq!(claims(&tokens[0]), claims(&first));
    assert_ne!(tokens[0].bearer.as_str(), first.bearer.as_str());
}

/// A new token would be one more than APNs allows.
#[actix::test]
async fn the_wrong_key_for_a_while_takes_no_token_away() {
    let mut signer = Signer::start();
    let mut lane = signer.subscribe();
    signer.settle().await;
    let first = lane.take().await;
    let file = signer.directory.path().join("key.p8");
    let right = std::fs::read(&file).unwrap();
    let wrong = rcgen::KeyPair::generate().unwrap();
    std::fs::write(&file, wrong.serialize_pem()).unwrap();
    signer.pass(2).await;
    let other = lane.take().await;
    assert_ne!(other.bearer, first.bearer);
    signer.refuse(other.issued_at.0);
    signer.settle().await;
    assert_eq!(
        texts(&lane.drain()),
        [other.bearer.as_str()],
        "it has to do"
    );
    std::fs::write(&file, right).unwrap();
    signer.pass(2).await;
    assert_eq!(texts(&lane.drain()), [first.bearer.as_str()]);
    // After a restart too.
    let again = Signer::first_of(&signer.colleague()).await;
    assert_eq!(again.bearer, first.bearer);
}

#[actix::test]
async fn a_refused_token_is_replaced_when_20_minutes_old() {
    let mut signer = Signer::start();
    let mut lane = signer.subscribe();
    signer.settle().await;
    let first = lane.take().await.issued_at.0;

    // Too young: not before 20 minutes are over. Whoever asks is told that it has to do.
    signer.pass(5).await;
    signer.refuse(first);
    signer.settle().await;
    assert_eq!(lane.take().await.issued_at.0, first);
    signer.pass(14).await;
    assert!(lane.drain().is_empty());
    signer.pass(2).await;
    let tokens = lane.drain();
    assert_eq!(tokens.len(), 1);
    let second = tokens[0].issued_at.0;
    assert!((20 * 60..=20 * 60 + 20).contains(&(second - first)));

    // News of the one before changes nothing, and the next slot comes in its time.
    signer.pass(10).await;
    signer.refuse(first);
    signer.pass(1).await;
    assert!(lane.drain().is_empty());
    signer.pass(9).await;
    let tokens = lane.drain();
    assert_eq!(tokens.len(), 1);
    let third = tokens[0].issued_at.0;
    assert_eq!(third, START + 40 * 60);

    // Old enough: at once, however many lanes tell.
    signer.pass(21).await;
    signer.refuse(third);
    signer.refuse(third);
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
async fn after_a_clock_was_set_back_the_token_of_the_first_that_renewed_serves_all() {
    let mut signer = Signer::start();
    let mut one = signer.subscribe();
    let future = one.take().await;
    signer.pass(5).await;
    signer.seconds -= 4 * 3_600;
    signer.pass(1).await;
    // Who starts anew does not begin with a token of the future.
    let colleague = signer.colleague();
    let mut other = Signer::subscribe_to(&colleague);
    let early = other.take().await;
    assert!(early.issued_at < future.issued_at);
    // APNs refused it to the one that had to keep it, which takes what the other signed.
    signer.refuse(future.issued_at.0);
    signer.settle().await;
    assert_eq!(texts(&one.drain()), [future.bearer.as_str()]);
    signer.pass(15).await;
    assert_eq!(texts(&one.drain()), [early.bearer.as_str()]);
    assert_eq!(signer.settle().await, 1);
    // A late word of the token of the future is not about this one.
    signer.refuse(future.issued_at.0);
    signer.pass(8).await;
    assert!(one.drain().is_empty());
    assert!(other.drain().is_empty());
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
    signer.pass(4 * 60 - 1).await;
    assert!(!short.connected());
    assert_eq!(long.drain().len(), 6, "the others go on");
}

/// Where a process of [`processes_that_start_at_once_use_one_token`] finds key and authority.
const FILES: &str = "PROVIDER_TOKENS_FILES";

/// What it has as `token_dir`.
const TOKENS: &str = "PROVIDER_TOKENS_DIRECTORY";

/// What stands before the token that such a process prints.
const FOUND: &str = "provider token: ";

/// Each is this program once more, with the system's clock, and waits for its input to end before it asks.
#[actix::test]
async fn processes_that_start_at_once_use_one_token() {
    const ROUNDS: usize = 5;
    const PROCESSES: usize = 2;
    if let Some(directory) = std::env::var_os(FILES).map(PathBuf::from) {
        let apps = BTreeMap::from([("app".to_owned(), app_in(&directory))]);
        std::io::read_to_string(std::io::stdin()).unwrap();
        let handles = process(
            &apps,
            &Clock::system(),
            std::env::var_os(TOKENS).unwrap().into(),
        );
        println!(
            "\n{FOUND}{}",
            Signer::first_of(&handles).await.bearer.as_str()
        );
        return;
    }
    let signer = Signer::start();
    let _nobody_else_is = STARTING.lock().await;
    for round in 0..ROUNDS {
        let mut children: Vec<_> = (0..PROCESSES)
            .map(|_| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "processes_that_start_at_once_use_one_token"])
                    .arg("--nocapture")
                    .env(FILES, signer.directory.path())
                    .env(
                        TOKENS,
                        signer.directory.path().join(format!("round-{round}")),
                    )
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for child in &mut children {
            drop(child.stdin.take());
        }
        let tokens: BTreeSet<String> = children
            .into_iter()
            .map(|child| {
                let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
                let token = output.lines().find_map(|line| line.strip_prefix(FOUND));
                token.expect("it prints its token").to_owned()
            })
            .collect();
        assert_eq!(tokens.len(), 1, "{PROCESSES} processes");
    }
}
