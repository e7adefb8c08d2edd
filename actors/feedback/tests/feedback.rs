//! Verdicts come in crowds; the registry sees each token once, one batch at a time.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, Recipient, ResponseFuture};
use feedback::{Config, Edges, Handles};
use messages::{
    AppId, DeviceToken, Drain, Drained, ErrorReason, Probe, RegistryError, RejectedToken,
    RejectedTokens, RemoveTokens, Removed, UnixMillis,
};
use tokio::sync::{mpsc, oneshot};

type Verdict = Result<Removed, RegistryError>;

/// A registry that answers when and what the test says.
struct Registry {
    requests: mpsc::Sender<(RemoveTokens, oneshot::Sender<Verdict>)>,
}

impl Actor for Registry {
    type Context = Context<Self>;
}

impl Handler<RemoveTokens> for Registry {
    type Result = ResponseFuture<Verdict>;

    fn handle(&mut self, request: RemoveTokens, _: &mut Self::Context) -> Self::Result {
        let (answer, verdict) = oneshot::channel();
        self.requests.try_send((request, answer)).unwrap();
        Box::pin(async { verdict.await.unwrap_or(Err(RegistryError::Stopping)) })
    }
}

struct Fixture {
    feedback: Handles,
    requests: mpsc::Receiver<(RemoveTokens, oneshot::Sender<Verdict>)>,
}

impl Fixture {
    fn start(config: &Config) -> Self {
        tokio::time::pause();
        let (sender, requests) = mpsc::channel(1024);
        let remove = Registry { requests: sender }.start().recipient();
        Self {
            feedback: feedback::start(config, Edges { remove }),
            requests,
        }
    }

    fn reject(&self, tokens: impl IntoIterator<Item = u32>) {
        let items = tokens.into_iter().map(rejected).collect();
        self.feedback
            .rejected
            .try_send(RejectedTokens { items })
            .unwrap();
    }

    /// The tokens of the next request, which stays open.
    async fn request(&mut self) -> (Vec<u32>, oneshot::Sender<Verdict>) {
        let (request, answer) = self.requests.recv().await.unwrap();
        let tokens = request
            .items
            .iter()
            .map(|item| u32::from_str_radix(item.device_token.as_str(), 16).unwrap());
        (tokens.collect(), answer)
    }

    async fn counter(&self, name: &str) -> u64 {
        let health = self.feedback.probe.send(Probe).await.unwrap();
        let found = health.counters.iter().find(|(known, _)| *known == name);
        found.unwrap().1
    }

    fn drain(&self, within: Duration) -> impl Future<Output = Drained> + use<> {
        let drain: Recipient<Drain> = self.feedback.drain.clone();
        let deadline = Instant::now() + within;
        async move {
            drain
                .send(Drain {
                    deadline,
                    farewell: Duration::from_secs(1),
                })
                .await
                .unwrap()
        }
    }
}

fn rejected(n: u32) -> RejectedToken {
    RejectedToken {
        app: AppId::new("app"),
        device_token: DeviceToken::parse(&format!("{n:064x}")).unwrap(),
        reason: ErrorReason::known("Unregistered"),
        invalid_since: UnixMillis(u64::from(n)),
    }
}

const fn removed(count: u64) -> Verdict {
    Ok(Removed { count })
}

#[actix::test]
async fn what_comes_meanwhile_is_one_request_and_repetitions_are_none() {
    let mut fixture = Fixture::start(&Config::default());
    fixture.reject([1]);
    let (tokens, answer) = fixture.request().await;
    assert_eq!(tokens, [1]);
    fixture.reject([2, 1]);
    fixture.reject([3, 2]);
    assert_eq!(fixture.counter("feedback_verdicts_waiting").await, 3);
    assert!(fixture.requests.try_recv().is_err());
    answer.send(removed(1)).unwrap();
    let (tokens, answer) = fixture.request().await;
    assert_eq!(tokens, [2, 3]);
    answer.send(removed(4)).unwrap();
    assert_eq!(fixture.drain(Duration::from_secs(5)).await.abandoned, 0);
    assert_eq!(
        fixture
            .counter("feedback_registrations_removed_total")
            .await,
        5
    );
    assert_eq!(fixture.counter("feedback_verdicts_repeated_total").await, 2);
    assert_eq!(fixture.counter("feedback_verdicts_taken_total").await, 3);
}

#[actix::test]
async fn a_verdict_counts_again_after_a_minute() {
    let mut fixture = Fixture::start(&Config::default());
    for _ in 0..2 {
        fixture.reject([1]);
        let (tokens, answer) = fixture.request().await;
        assert_eq!(tokens, [1]);
        answer.send(removed(1)).unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(fixture.counter("feedback_verdicts_repeated_total").await, 0);
}

#[actix::test]
async fn a_failed_request_is_repeated_with_growing_delays() {
    let mut fixture = Fixture::start(&Config::default());
    fixture.reject([1]);
    let start = tokio::time::Instant::now();
    let mut failed_at = Vec::new();
    for _ in 0..5 {
        let (tokens, answer) = fixture.request().await;
        // What came while a retry was awaited goes with it.
        assert!(tokens == [1] || tokens == [1, 2], "{tokens:?}");
        failed_at.push(start.elapsed());
        answer.send(Err(RegistryError::Busy)).unwrap();
        fixture.reject([2]);
    }
    for (n, pair) in failed_at.windows(2).enumerate() {
        let delay = Duration::from_millis(500 << n);
        let waited = pair[1] - pair[0];
        // A timer of tokio is exact to the millisecond.
        let bounds = delay / 2..=delay + Duration::from_millis(2);
        assert!(bounds.contains(&waited), "{n}: {waited:?}");
    }
    let (tokens, answer) = fixture.request().await;
    assert_eq!(tokens, [1, 2]);
    answer.send(removed(2)).unwrap();
    assert_eq!(fixture.counter("feedback_requests_failed_total").await, 5);
}

#[actix::test]
async fn a_registry_that_does_not_answer_is_asked_again() {
    let mut fixture = Fixture::start(&Config::default());
    fixture.reject([1]);
    let start = tokio::time::Instant::now();
    let (_, _never_answered) = fixture.request().await;
    let (tokens, _) = fixture.request().await;
    assert_eq!(tokens, [1]);
    assert!(start.elapsed() >= Duration::from_secs(10));
    assert!(start.elapsed() < Duration::from_secs(11));
}

#[actix::test]
async fn what_has_no_room_is_dropped_and_may_come_again() {
    let mut fixture = Fixture::start(&Config {
        queue_max: 2,
        ..Config::default()
    });
    fixture.reject([1, 2, 3]);
    let (tokens, answer) = fixture.request().await;
    assert_eq!(tokens, [1, 2]);
    assert_eq!(fixture.counter("feedback_verdicts_dropped_total").await, 1);
    answer.send(removed(2)).unwrap();
    assert_eq!(fixture.counter("feedback_verdicts_waiting").await, 2);
    tokio::time::sleep(Duration::from_millis(1)).await;
    fixture.reject([3]);
    assert_eq!(fixture.request().await.0, [3]);
}

#[actix::test]
async fn a_crowd_goes_in_batches() {
    let mut fixture = Fixture::start(&Config::default());
    fixture.reject(0..2_500);
    for expected in [1_000, 1_000, 500] {
        let (tokens, answer) = fixture.request().await;
        assert_eq!(tokens.len(), expected);
        answer.send(removed(1)).unwrap();
    }
    assert_eq!(fixture.drain(Duration::from_secs(5)).await.abandoned, 0);
}

#[actix::test]
async fn a_drain_does_not_wait_for_a_retry_and_takes_nothing_new() {
    let mut fixture = Fixture::start(&Config::default());
    fixture.reject([1]);
    let (_, answer) = fixture.request().await;
    answer.send(Err(RegistryError::Busy)).unwrap();
    while fixture.counter("feedback_requests_failed_total").await == 0 {
        tokio::task::yield_now().await;
    }
    let start = tokio::time::Instant::now();
    let drained = tokio::spawn(fixture.drain(Duration::from_secs(60)));
    let (tokens, answer) = fixture.request().await;
    assert_eq!((tokens, start.elapsed()), (vec![1], Duration::ZERO));
    fixture.reject([2]);
    assert_eq!(fixture.counter("feedback_verdicts_dropped_total").await, 1);
    answer.send(removed(1)).unwrap();
    assert_eq!(drained.await.unwrap().abandoned, 0);
    assert!(fixture.requests.try_recv().is_err());
}

#[actix::test]
async fn a_drain_ends_at_its_deadline_and_tells_what_is_left() {
    let mut fixture = Fixture::start(&Config::default());
    fixture.reject([1, 2]);
    let (_, _never_answered) = fixture.request().await;
    assert_eq!(fixture.drain(Duration::from_secs(3)).await.abandoned, 2);
}
