//! Dialogues of an HTTP/2 client with the simulated APNs.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures_util::future::join_all;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use messages::{Clock, DeviceToken, Drain, Drained, Probe, UnixMillis, UnixSeconds};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm,
};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use simulators::apple::{
    self, Config, Edges, Faults, Handles, KnownKey, Notification, Reason, Verdict,
};
use simulators::{Authority, Kind, SigningKey};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

const NOW: UnixSeconds = UnixSeconds(1_767_225_600);
const TOPIC: &str = "im.example.app";
const ALERT: &str = r#"{"aps":{"alert":"New message","mutable-content":1}}"#;
const ID: &str = "0b3c1c6e-5f0a-4a7e-9a55-0123456789ab";
/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A simulator with two keys of one team and one of another.
struct World {
    handles: Handles,
    clock: Clock,
    tls: Arc<ClientConfig>,
    keys: [SigningKey; 3],
}

impl World {
    fn start(config: &Config) -> Self {
        let clock = Clock::manual(NOW.millis());
        // Certificates are checked by the machine's clock, provider tokens by this one.
        let authority = Authority::new(&Clock::system()).unwrap();
        let keys = [
            ("TEAM000001", "KEY0000001"),
            ("TEAM000001", "KEY0000002"),
            ("TEAM000002", "KEY0000003"),
        ]
        .map(|(team, key)| SigningKey::new(team, key).unwrap());
        let topics: [&[&str]; 3] = [
            &[TOPIC, "im.example.second"],
            &[TOPIC],
            &["im.example.other"],
        ];
        let known = keys.iter().zip(topics).map(|(key, topics)| KnownKey {
            id: key.id().clone(),
            public_key: key.public_key().to_vec(),
            topics: topics.iter().map(ToString::to_string).collect(),
        });
        let edges = Edges {
            identity: authority.issue(&["localhost"], Kind::ServerOnly).unwrap(),
            keys: known.collect(),
            clock: clock.clone(),
        };
        let handles = apple::start(config, edges).unwrap();
        assert_eq!(handles.root_pem, authority.root_pem());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(authority.roots().unwrap())
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Self {
            handles,
            clock,
            tls: Arc::new(tls),
            keys,
        }
    }

    async fn connect(&self) -> Client {
        let socket = TcpStream::connect(self.handles.address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let tls = TlsConnector::from(Arc::clone(&self.tls));
        let tls = tls.connect(name, socket).await.unwrap();
        let (send, mut connection) = h2::client::Builder::new()
            .initial_max_send_streams(1)
            .handshake(tls)
            .await
            .unwrap();
        let mut pings = connection.ping_pong().unwrap();
        let running = actix::spawn(connection);
        // The answer comes after the peer's SETTINGS.
        pings.ping(h2::Ping::opaque()).await.unwrap();
        Client {
            send,
            pings,
            running,
        }
    }

    /// A provider token of the first key, issued now.
    fn bearer(&self) -> String {
        self.bearer_at(0, self.clock.now())
    }

    fn bearer_at(&self, key: usize, issued_at: UnixSeconds) -> String {
        let key = &self.keys[key];
        let header = json!({"alg": "ES256", "kid": *key.id().key_id});
        let claims = json!({"iss": *key.id().team_id, "iat": issued_at.0});
        format!(
            "bearer {}",
            sign(key, &header, &claims, &ECDSA_P256_SHA256_FIXED_SIGNING)
        )
    }
}

struct Client {
    send: SendRequest<Bytes>,
    pings: h2::PingPong,
    running: JoinHandle<Result<(), h2::Error>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    apns_id: String,
    body: Option<Value>,
}

impl Answer {
    fn reason(&self) -> &str {
        self.body
            .as_ref()
            .map_or("", |body| body["reason"].as_str().unwrap())
    }
}

impl Client {
    async fn ask(&self, request: Request<()>, payload: &str) -> Result<Answer, h2::Error> {
        let mut send = self.send.clone().ready().await?;
        let (response, mut body) = send.send_request(request, payload.is_empty())?;
        if !payload.is_empty() {
            body.send_data(Bytes::copy_from_slice(payload.as_bytes()), true)?;
        }
        let response = response.await?;
        let (head, mut body) = response.into_parts();
        let mut bytes = Vec::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            bytes.extend(chunk);
        }
        Ok(Answer {
            status: head.status.as_u16(),
            apns_id: head.headers["apns-id"].to_str().unwrap().to_owned(),
            body: serde_json::from_slice(&bytes).ok(),
        })
    }

    async fn push(&self, bearer: &str, device: &DeviceToken) -> Result<Answer, h2::Error> {
        self.ask(request(bearer, device, &[]), ALERT).await
    }

    /// Waits until the peer's limit is this.
    async fn await_limit(&self, limit: usize) {
        let reached = async {
            while self.send.current_max_send_streams() != limit {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, reached).await.unwrap();
    }
}

fn device(n: u64) -> DeviceToken {
    DeviceToken::parse(&format!("{n:064x}")).unwrap()
}

/// A faultless alert with some headers replaced, or taken out if the value is empty.
fn request(bearer: &str, device: &DeviceToken, changes: &[(&str, &str)]) -> Request<()> {
    let mut headers = HeaderMap::new();
    let defaults = [
        ("authorization", bearer),
        ("apns-topic", TOPIC),
        ("apns-push-type", "alert"),
        ("apns-priority", "10"),
    ];
    for (name, value) in defaults.iter().chain(changes) {
        let name: http::HeaderName = name.parse().unwrap();
        if value.is_empty() {
            headers.remove(name);
        } else {
            headers.insert(name, value.parse().unwrap());
        }
    }
    let mut request = Request::post(format!("https://localhost/3/device/{}", device.as_str()))
        .body(())
        .unwrap();
    *request.headers_mut() = headers;
    request
}

fn sign(
    key: &SigningKey,
    header: &Value,
    claims: &Value,
    with: &'static EcdsaSigningAlgorithm,
) -> String {
    let pkcs8: String = key
        .p8_pem()
        .lines()
        .filter(|line| !line.starts_with('-'))
        .collect();
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(with, &STANDARD.decode(pkcs8).unwrap(), &random).unwrap();
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = pair.sign(&random, signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

async fn take(observed: &mut tokio::sync::mpsc::Receiver<Notification>) -> Notification {
    timeout(PATIENCE, observed.recv()).await.unwrap().unwrap()
}

#[actix::test]
async fn a_good_request_is_accepted_and_shown() {
    let world = World::start(&Config::default());
    let mut observed = world.handles.control.watch(10);
    let (client, bearer) = (world.connect().await, world.bearer());
    let changes = [
        ("apns-id", ID),
        ("apns-expiration", "1767312000"),
        ("apns-collapse-id", "c"),
    ];
    let answer = client
        .ask(request(&bearer, &device(1), &changes), ALERT)
        .await
        .unwrap();
    assert_eq!(
        answer,
        Answer {
            status: 200,
            apns_id: ID.to_owned(),
            body: None
        }
    );
    let seen = take(&mut observed).await;
    assert_eq!(seen.verdict, Verdict::Accept);
    assert_eq!(seen.at, NOW.millis());
    assert_eq!(seen.device_token, Some(device(1)));
    assert_eq!(seen.topic.as_deref(), Some(TOPIC));
    assert_eq!(seen.push_type.as_deref(), Some("alert"));
    assert_eq!(seen.priority, Some(10));
    assert_eq!(seen.expiration, Some(1_767_312_000));
    assert_eq!(seen.collapse_id.as_deref(), Some("c"));
    assert_eq!(seen.apns_id.to_string(), ID);
    assert_eq!(seen.payload.unwrap()["aps"]["mutable-content"], 1);

    // Without an id of the client's, APNs makes one.
    let made = client.push(&bearer, &device(2)).await.unwrap().apns_id;
    assert_eq!(take(&mut observed).await.apns_id.to_string(), made);

    // The same id again is the same notification twice.
    let again = client
        .ask(request(&bearer, &device(1), &changes), ALERT)
        .await
        .unwrap();
    assert_eq!(again.status, 200);
    let counters = world.handles.control.counters();
    assert_eq!((counters.accepted, counters.duplicates), (3, 1));
    assert_eq!((counters.connections, counters.provider_tokens), (1, 1));
    assert_eq!(world.handles.control.delivered(&device(1)), 2);
    let coverage = world.handles.control.coverage(&[device(1), device(3)]);
    assert_eq!((coverage.once, coverage.missing), (0, 1));
    assert_eq!((coverage.repeated, coverage.others), (1, 1));
    let health = world.handles.probe.send(Probe).await.unwrap();
    assert!(health.counters.contains(&("apple_accepted_total", 3)));
}

/// Headers to change, payload, the reason to be refused for.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, Option<Reason>);

#[actix::test]
async fn every_fault_of_a_request_has_its_answer() {
    let world = World::start(&Config::default());
    let bearer = world.bearer();
    let large = format!(r#"{{"aps":{{"alert":"{}"}}}}"#, "x".repeat(4096));
    let larger = format!(r#"{{"aps":{{"alert":"{}"}}}}"#, "x".repeat(60_000));
    let background = [("apns-push-type", "background"), ("apns-priority", "5")];
    let cases: &[Case<'_>] = &[
        (&[], ALERT, None),
        (&background, r#"{"aps":{"content-available":1}}"#, None),
        (&background, ALERT, Some(Reason::InvalidPushType)),
        (
            &[("apns-push-type", "")],
            ALERT,
            Some(Reason::InvalidPushType),
        ),
        (&[("apns-priority", "11")], ALERT, Some(Reason::BadPriority)),
        (
            &[("apns-expiration", "-1")],
            ALERT,
            Some(Reason::BadExpirationDate),
        ),
        (&[("apns-id", "no")], ALERT, Some(Reason::BadMessageId)),
        (&[("apns-topic", "")], ALERT, Some(Reason::MissingTopic)),
        (&[("apns-topic", "im.example.second")], ALERT, None),
        (
            &[("apns-topic", "im.example.other")],
            ALERT,
            Some(Reason::TopicDisallowed),
        ),
        (
            &[("apns-topic", "im.example.none")],
            ALERT,
            Some(Reason::BadTopic),
        ),
        (&[("apns-push-type", "voip")], ALERT, Some(Reason::BadTopic)),
        (
            &[
                ("apns-push-type", "voip"),
                ("apns-topic", "im.example.app.voip"),
            ],
            ALERT,
            None,
        ),
        (
            &[
                ("apns-push-type", "voip"),
                ("apns-topic", "im.example.app.voip"),
            ],
            &large,
            None,
        ),
        (&[], &large, Some(Reason::PayloadTooLarge)),
        (&[], &larger, Some(Reason::PayloadTooLarge)),
        (&[], "", Some(Reason::PayloadEmpty)),
        (&[], "{}", Some(Reason::PayloadEmpty)),
        (
            &[("authorization", "")],
            ALERT,
            Some(Reason::MissingProviderToken),
        ),
    ];
    let client = world.connect().await;
    for (changes, payload, expected) in cases {
        let request = request(&bearer, &device(1), changes);
        let answer = client.ask(request, payload).await.unwrap();
        let expected = expected.map_or((200, ""), |reason| (reason.status(), reason.as_str()));
        assert_eq!((answer.status, answer.reason()), expected, "{changes:?}");
        assert_eq!(answer.apns_id.len(), 36);
    }
    let refused = world.handles.control.counters().refused;
    assert_eq!(refused[&Reason::PayloadTooLarge], 2);
}

#[actix::test]
async fn every_fault_of_a_provider_token_has_its_answer() {
    let world = World::start(&Config {
        token_updates_limited: false,
        ..Config::default()
    });
    let [key, second, _] = &world.keys;
    let header = json!({"alg": "ES256", "kid": *key.id().key_id});
    let claims = json!({"iss": *key.id().team_id, "iat": NOW.0});
    let raw = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let with = |key: &SigningKey, header: Value, claims: Value| sign(key, &header, &claims, raw);
    let changed = |value: &Value, name: &str, to: Value| {
        let mut value = value.clone();
        value[name] = to;
        value
    };
    let good = with(key, header.clone(), claims.clone());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let padded = URL_SAFE.encode(URL_SAFE_NO_PAD.decode(signature).unwrap());
    let mut flipped = URL_SAFE_NO_PAD.decode(signature).unwrap();
    flipped[40] ^= 1;
    let invalid = "InvalidProviderToken";
    let old = changed(&claims, "iat", json!(NOW.0 - 3601));
    let cases = [
        (format!("bearer {good}"), ""),
        (format!("Bearer {good}"), ""),
        (good.clone(), "MissingProviderToken"),
        (format!("basic {good}"), "MissingProviderToken"),
        ("bearer ".to_owned(), "MissingProviderToken"),
        ("bearer abc".to_owned(), invalid),
        (format!("bearer {signed}"), invalid),
        (format!("bearer {signed}.{signature}.{signature}"), invalid),
        (format!("bearer {signed}.{padded}"), invalid),
        (
            format!("bearer {signed}.{}", URL_SAFE_NO_PAD.encode(&flipped)),
            invalid,
        ),
        (
            format!(
                "bearer {}",
                sign(key, &header, &claims, &ECDSA_P256_SHA256_ASN1_SIGNING)
            ),
            invalid,
        ),
        (
            format!("bearer {}", with(second, header.clone(), claims.clone())),
            invalid,
        ),
        (
            format!(
                "bearer {}",
                with(key, changed(&header, "alg", json!("HS256")), claims.clone())
            ),
            invalid,
        ),
        (
            format!(
                "bearer {}",
                with(key, changed(&header, "alg", json!("none")), claims.clone())
            ),
            invalid,
        ),
        (
            format!(
                "bearer {}",
                with(key, changed(&header, "typ", json!("JWS")), claims.clone())
            ),
            invalid,
        ),
        (
            format!(
                "bearer {}",
                with(key, changed(&header, "typ", json!("JWT")), claims.clone())
            ),
            "",
        ),
        (
            format!(
                "bearer {}",
                with(
                    key,
                    changed(&header, "kid", json!("KEY0000009")),
                    claims.clone()
                )
            ),
            invalid,
        ),
        (
            format!(
                "bearer {}",
                with(
                    key,
                    header.clone(),
                    changed(&claims, "iss", json!("TEAM000002"))
                )
            ),
            invalid,
        ),
        (
            format!(
                "bearer {}",
                with(
                    key,
                    header.clone(),
                    changed(&claims, "iat", json!(NOW.0.to_string()))
                )
            ),
            invalid,
        ),
        (
            format!(
                "bearer {}",
                with(
                    key,
                    header.clone(),
                    changed(&claims, "iat", json!(NOW.0 + 61))
                )
            ),
            invalid,
        ),
        (
            format!(
                "bearer {}",
                with(
                    key,
                    header.clone(),
                    changed(&claims, "iat", json!(NOW.0 + 60))
                )
            ),
            "",
        ),
        (
            format!("bearer {}", with(key, header.clone(), old)),
            "ExpiredProviderToken",
        ),
    ];
    for (n, (authorization, expected)) in cases.iter().enumerate() {
        // A connection each, so that none is pinned or wedged by the one before.
        let client = world.connect().await;
        let answer = client.push(authorization, &device(1)).await.unwrap();
        assert_eq!(answer.reason(), *expected, "case {n}");
    }
}

#[actix::test]
async fn a_connection_belongs_to_the_key_of_its_first_push() {
    let world = World::start(&Config::default());
    let client = world.connect().await;
    let reason = async |key| {
        let bearer = world.bearer_at(key, NOW);
        client
            .push(&bearer, &device(1))
            .await
            .unwrap()
            .reason()
            .to_owned()
    };
    assert_eq!(reason(0).await, "");
    assert_eq!(reason(1).await, "UnrelatedKeyIdInToken");
    assert_eq!(reason(2).await, "InvalidProviderToken");
    assert_eq!(
        reason(0).await,
        "TooManyProviderTokenUpdates",
        "another signature is another token"
    );
}

#[actix::test]
async fn provider_tokens_expire_and_wedge_their_connection() {
    let world = World::start(&Config::default());
    let (wedged, bearer) = (world.connect().await, world.bearer());
    assert_eq!(wedged.push(&bearer, &device(1)).await.unwrap().status, 200);
    world.clock.set(UnixMillis((NOW.0 + 3600) * 1000));
    assert_eq!(wedged.push(&bearer, &device(1)).await.unwrap().status, 200);
    world.clock.set(UnixMillis((NOW.0 + 3601) * 1000));
    let expired = "ExpiredProviderToken";
    assert_eq!(
        wedged.push(&bearer, &device(1)).await.unwrap().reason(),
        expired
    );
    let renewed = world.bearer();
    assert_eq!(
        wedged.push(&renewed, &device(1)).await.unwrap().reason(),
        expired
    );
    let fresh = world.connect().await;
    assert_eq!(fresh.push(&renewed, &device(1)).await.unwrap().status, 200);
}

#[actix::test]
async fn a_team_may_renew_its_token_every_twenty_minutes() {
    let config = Config {
        wedging: false,
        ..Config::default()
    };
    let world = World::start(&config);
    let push = async |bearer: &str| {
        let client = world.connect().await;
        client
            .push(bearer, &device(1))
            .await
            .unwrap()
            .reason()
            .to_owned()
    };
    let first = world.bearer();
    assert_eq!(push(&first).await, "");
    assert_eq!(
        push(&world.bearer_at(1, NOW)).await,
        "",
        "the first of another key"
    );
    world.clock.set(UnixMillis((NOW.0 + 1199) * 1000));
    assert_eq!(push(&world.bearer()).await, "TooManyProviderTokenUpdates");
    assert_eq!(push(&first).await, "", "the old one goes on");
    world.clock.set(UnixMillis((NOW.0 + 1200) * 1000));
    let second = world.bearer();
    assert_eq!(push(&second).await, "");
    assert_eq!(push(&second).await, "", "on every connection");
    assert_eq!(
        push(&world.bearer_at(1, world.clock.now())).await,
        "TooManyProviderTokenUpdates"
    );
    assert_eq!(world.handles.control.counters().provider_tokens, 3);
}

#[actix::test]
async fn devices_have_the_verdicts_that_were_set() {
    let world = World::start(&Config::default());
    let control = &world.handles.control;
    let (client, bearer) = (world.connect().await, world.bearer());
    control.set_verdict(
        &device(1),
        Verdict::unregistered(UnixMillis(1_767_000_000_123)),
    );
    control.set_verdict(&device(2), Verdict::refuse(Reason::TooManyRequests));
    control.set_verdict(&device(3), Verdict::Stall);
    let dead = client.push(&bearer, &device(1)).await.unwrap();
    assert_eq!((dead.status, dead.reason()), (410, "Unregistered"));
    assert_eq!(dead.body.unwrap()["timestamp"], 1_767_000_000_123_u64);
    assert_eq!(client.push(&bearer, &device(2)).await.unwrap().status, 429);
    assert_eq!(client.push(&bearer, &device(4)).await.unwrap().status, 200);
    client.await_limit(1000).await;

    // The stalled one stays open, and giving up on it does no harm.
    let mut observed = control.watch(1);
    let third = device(3);
    let mut stalled = Box::pin(client.push(&bearer, &third));
    tokio::select! {
        _ = &mut stalled => panic!("a stalled request was answered"),
        seen = take(&mut observed) => assert_eq!(seen.verdict, Verdict::Stall),
    }
    drop(stalled);
    control.set_verdict(&device(3), Verdict::Accept);
    control.set_default_verdict(Verdict::refuse(Reason::ServiceUnavailable));
    assert_eq!(client.push(&bearer, &device(3)).await.unwrap().status, 200);
    assert_eq!(client.push(&bearer, &device(5)).await.unwrap().status, 503);
    assert_eq!(control.counters().unobserved, 1);
}

#[actix::test]
async fn streams_are_one_until_a_token_is_good_and_change_at_run_time() {
    let world = World::start(&Config {
        streams_max: 50,
        ..Config::default()
    });
    let client = world.connect().await;
    assert_eq!(client.send.current_max_send_streams(), 1);
    let refused = client.push("bearer no", &device(1)).await.unwrap();
    assert_eq!(refused.status, 403);
    assert_eq!(client.send.current_max_send_streams(), 1);
    let bearer = world.bearer();
    assert_eq!(client.push(&bearer, &device(1)).await.unwrap().status, 200);
    client.await_limit(50).await;
    let mut faults = Faults {
        streams_max: Some(3),
        ..Faults::default()
    };
    world.handles.control.set_faults(faults.clone());
    client.await_limit(3).await;
    faults.streams_max = None;
    world.handles.control.set_faults(faults);
    client.await_limit(50).await;
}

#[actix::test]
async fn a_client_that_does_not_wait_for_the_limit_is_refused() {
    let world = World::start(&Config {
        faults: Faults {
            latency_millis: 50,
            ..Faults::default()
        },
        ..Config::default()
    });
    let socket = TcpStream::connect(world.handles.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = TlsConnector::from(Arc::clone(&world.tls))
        .connect(name, socket)
        .await
        .unwrap();
    let (mut send, connection) = h2::client::handshake(tls).await.unwrap();
    let mut start = |n| {
        let request = request(&world.bearer(), &device(n), &[]);
        let (response, mut body) = send.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(ALERT.as_bytes()), true)
            .unwrap();
        response
    };
    let (first, second) = (start(1), start(2));
    actix::spawn(connection);
    let error = second.await.unwrap_err();
    assert!(error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM));
    assert_eq!(first.await.unwrap().status(), 200);
    let counters = world.handles.control.counters();
    assert_eq!((counters.streams_over_limit, counters.requests), (1, 1));
}

/// Pushes to many devices at a time, with as many connections as it takes, and repeats only what is
/// certainly not processed.
async fn deliver(world: &World, mut todo: Vec<DeviceToken>) -> usize {
    let bearer = world.bearer();
    let mut connections = 0;
    while !todo.is_empty() {
        connections += 1;
        assert!(connections < 1000, "no connection makes progress");
        let client = world.connect().await;
        let mut next = Vec::new();
        while let Some(first) = todo.pop() {
            // One alone until the connection is trusted.
            let count = match client.send.current_max_send_streams() {
                1 => 0,
                _ => 29.min(todo.len()),
            };
            let mut batch = vec![first];
            batch.extend(todo.drain(todo.len() - count..));
            let answers = join_all(batch.iter().map(|device| client.push(&bearer, device))).await;
            for (device, answer) in batch.into_iter().zip(answers) {
                match answer {
                    Ok(answer) => assert_eq!(answer.status, 200),
                    Err(error) => {
                        let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
                        let unprocessed = error.is_go_away() || (error.is_reset() && refused);
                        assert!(error.is_remote() && unprocessed, "{error:?}");
                        next.push(device);
                    }
                }
            }
            if !next.is_empty() {
                break;
            }
        }
        todo.append(&mut next);
        drop(client.send);
        // The end of the connection is in good order: no answer was cut off.
        timeout(PATIENCE, client.running)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
    connections
}

#[actix::test]
async fn what_comes_after_a_go_away_is_not_processed_and_all_else_is_answered() {
    let world = World::start(&Config {
        faults: Faults {
            go_away_every: 10,
            ..Faults::default()
        },
        ..Config::default()
    });
    let devices: Vec<DeviceToken> = (0..300).map(device).collect();
    let connections = deliver(&world, devices.clone()).await;
    let control = &world.handles.control;
    assert_eq!(control.coverage(&devices).once, 300);
    let counters = control.counters();
    assert_eq!((counters.accepted, counters.duplicates), (300, 0));
    assert_eq!(counters.go_aways, 30);
    assert!(counters.streams_ignored > 0, "{counters:?}");
    assert!(connections >= 30);
}

#[actix::test]
async fn a_go_away_waits_for_answers_that_take_time() {
    let world = World::start(&Config {
        faults: Faults {
            go_away_every: 7,
            latency_millis: 20,
            ..Faults::default()
        },
        ..Config::default()
    });
    let devices: Vec<DeviceToken> = (0..50).map(device).collect();
    deliver(&world, devices.clone()).await;
    assert_eq!(world.handles.control.coverage(&devices).once, 50);
}

#[actix::test]
async fn a_connection_may_close_after_some_answers_without_a_word() {
    let world = World::start(&Config {
        faults: Faults {
            close_after: 2,
            ..Faults::default()
        },
        ..Config::default()
    });
    let (client, bearer) = (world.connect().await, world.bearer());
    assert_eq!(client.push(&bearer, &device(0)).await.unwrap().status, 200);
    client.await_limit(1000).await;
    let devices: Vec<DeviceToken> = (1..=5).map(device).collect();
    let answers = join_all(devices.iter().map(|device| client.push(&bearer, device))).await;
    let errors: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert_eq!(errors.len(), 4);
    assert!(errors.iter().all(|error| !error.is_go_away()), "{errors:?}");
    let counters = world.handles.control.counters();
    assert_eq!((counters.accepted, counters.connections_closed), (2, 1));
}

#[actix::test]
async fn refused_streams_are_not_processed() {
    let world = World::start(&Config {
        faults: Faults {
            refuse_every: 10,
            ..Faults::default()
        },
        ..Config::default()
    });
    let devices: Vec<DeviceToken> = (0..100).map(device).collect();
    deliver(&world, devices.clone()).await;
    let counters = world.handles.control.counters();
    assert_eq!(world.handles.control.coverage(&devices).once, 100);
    assert_eq!(counters.requests, 100);
    assert!(counters.streams_refused >= 10);
}

#[actix::test]
async fn a_dropped_connection_takes_what_is_unanswered_with_it() {
    let world = World::start(&Config::default());
    let (client, bearer) = (world.connect().await, world.bearer());
    assert_eq!(client.push(&bearer, &device(0)).await.unwrap().status, 200);
    client.await_limit(1000).await;
    world.handles.control.set_faults(Faults {
        drop_every: 20,
        ..Faults::default()
    });
    let devices: Vec<DeviceToken> = (1..=30).map(device).collect();
    let answers = join_all(devices.iter().map(|device| client.push(&bearer, device))).await;
    let errors: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert!(errors.len() >= 11, "{}", errors.len());
    assert!(
        errors
            .iter()
            .all(|error| error.is_io() && !error.is_go_away())
    );
    assert_eq!(world.handles.control.counters().connections_dropped, 1);
}

#[actix::test]
async fn a_frozen_connection_answers_nothing_until_it_thaws() {
    let world = World::start(&Config::default());
    let (mut client, bearer) = (world.connect().await, world.bearer());
    assert_eq!(client.push(&bearer, &device(0)).await.unwrap().status, 200);
    world.handles.control.set_faults(Faults {
        frozen: true,
        ..Faults::default()
    });
    // Another connection is served its TLS only; the first knows nothing of it.
    client.pings.send_ping(h2::Ping::opaque()).unwrap();
    let pong = timeout(
        Duration::from_millis(100),
        poll_fn(|cx| client.pings.poll_pong(cx)),
    );
    assert!(pong.await.is_err());
    world.handles.control.set_faults(Faults::default());
    let pong = timeout(PATIENCE, poll_fn(|cx| client.pings.poll_pong(cx)));
    pong.await.unwrap().unwrap();
    assert_eq!(client.push(&bearer, &device(0)).await.unwrap().status, 200);
}

#[actix::test]
async fn a_drain_answers_what_was_taken() {
    let world = World::start(&Config::default());
    let (client, bearer) = (world.connect().await, world.bearer());
    assert_eq!(client.push(&bearer, &device(0)).await.unwrap().status, 200);
    world.handles.control.set_faults(Faults {
        latency_millis: 50,
        ..Faults::default()
    });
    let mut observed = world.handles.control.watch(1);
    let last = actix::spawn({
        let (send, bearer) = (client.send.clone(), bearer.clone());
        async move {
            let mut send = send.ready().await.unwrap();
            let (response, mut body) = send
                .send_request(request(&bearer, &device(1), &[]), false)
                .unwrap();
            body.send_data(Bytes::from_static(ALERT.as_bytes()), true)
                .unwrap();
            response.await.unwrap().status()
        }
    });
    take(&mut observed).await;
    let deadline = Instant::now() + PATIENCE;
    let drained = world.handles.drain.send(Drain {
        deadline,
        farewell: Duration::from_secs(1),
    });
    let (drained, status) = tokio::join!(drained, last);
    assert_eq!(status.unwrap(), 200);
    drop(client.send);
    assert_eq!(drained.unwrap(), Drained { abandoned: 0 });
    assert_eq!(world.handles.control.counters().connections_open, 0);
    assert!(TcpStream::connect(world.handles.address).await.is_err());
}

#[actix::test]
async fn a_client_that_does_not_agree_on_http_2_is_turned_away() {
    let world = World::start(&Config::default());
    let mut tls = (*world.tls).clone();
    tls.alpn_protocols.clear();
    let socket = TcpStream::connect(world.handles.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = TlsConnector::from(Arc::new(tls))
        .connect(name, socket)
        .await
        .unwrap();
    let ended = async {
        let (_send, connection) = h2::client::handshake::<_>(tls).await?;
        connection.await
    };
    assert!(ended.await.is_err());
    assert_eq!(world.handles.control.counters().connections_failed, 1);
}

#[actix::test]
async fn the_limit_dips_after_a_refusal_until_the_next_success() {
    let world = World::start(&Config {
        streams_max: 50,
        faults: Faults {
            dip_after_refusal: true,
            ..Faults::default()
        },
        ..Config::default()
    });
    let control = &world.handles.control;
    control.set_verdict(&device(2), Verdict::refuse(Reason::BadDeviceToken));
    let (client, bearer) = (world.connect().await, world.bearer());
    for (n, status, limit) in [(1, 200, 50), (2, 400, 1), (2, 400, 1), (1, 200, 50)] {
        assert_eq!(
            client.push(&bearer, &device(n)).await.unwrap().status,
            status
        );
        client.await_limit(limit).await;
    }
}

#[actix::test]
async fn each_nth_faultless_request_fails_and_dates_its_answer() {
    let world = World::start(&Config {
        faults: Faults {
            fail_every: 2,
            date_ahead_seconds: -3_600,
            ..Faults::default()
        },
        ..Config::default()
    });
    let (client, bearer) = (world.connect().await, world.bearer());
    for reason in ["", "InternalServerError", "", "InternalServerError"] {
        let answer = client.push(&bearer, &device(1)).await.unwrap();
        assert_eq!(answer.reason(), reason);
    }
    let mut send = client.send.clone().ready().await.unwrap();
    let (response, _) = send
        .send_request(request(&bearer, &device(1), &[]), true)
        .unwrap();
    let head = response.await.unwrap();
    assert_eq!(head.headers()["date"], "Wed, 31 Dec 2025 23:00:00 GMT");
    assert_eq!(world.handles.control.duplicates().by_device, 1);
}

#[actix::test]
async fn old_connections_freeze_while_new_ones_work() {
    let world = World::start(&Config::default());
    let control = &world.handles.control;
    let (old, bearer) = (world.connect().await, world.bearer());
    assert_eq!(old.push(&bearer, &device(1)).await.unwrap().status, 200);
    control.set_faults(Faults {
        frozen_connections: 1,
        ..Faults::default()
    });
    let new = world.connect().await;
    let second = device(2);
    tokio::select! {
        biased;
        _ = old.push(&bearer, &second) => panic!("the old one answers"),
        answer = new.push(&bearer, &second) => assert_eq!(answer.unwrap().status, 200),
    }
    // Not even the request of before the answer was seen.
    assert_eq!(control.delivered(&second), 1);
    control.set_faults(Faults {
        issued_at_min: NOW.0 + 1,
        ..Faults::default()
    });
    // Tokens of before are called expired from now on.
    let answer = new.push(&bearer, &device(3)).await.unwrap();
    assert_eq!(answer.reason(), "ExpiredProviderToken");
}

#[actix::test]
async fn refused_handshakes_end_before_tls() {
    let world = World::start(&Config {
        faults: Faults {
            handshakes_refused: true,
            ..Faults::default()
        },
        ..Config::default()
    });
    let socket = TcpStream::connect(world.handles.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = TlsConnector::from(Arc::clone(&world.tls));
    assert!(tls.connect(name, socket).await.is_err());
    let counters = world.handles.control.counters();
    assert_eq!((counters.connections, counters.connections_failed), (0, 1));
}

#[actix::test]
async fn a_known_client_certificate_needs_no_token_and_no_other_does() {
    let authority = Authority::new(&Clock::system()).unwrap();
    let [known, stranger] =
        ["known", "stranger"].map(|name| authority.issue(&[name], Kind::ServerAndClient).unwrap());
    let mut world = World::start(&Config {
        certificates: vec![apple::KnownCertificate {
            der: known.chain()[0].to_vec(),
            topics: vec![TOPIC.to_owned()],
        }],
        ..Config::default()
    });
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(world.handles.root_pem.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let bearer = world.bearer();
    let without = [("authorization", "")];
    let other_topic = [("authorization", ""), ("apns-topic", "im.example.second")];
    for (identity, headers, expected) in [
        (&known, &without[..], ""),
        (&known, &other_topic[..], "BadTopic"),
        (&known, &[][..], "InvalidProviderToken"),
        (&stranger, &without[..], "BadCertificate"),
    ] {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(identity.chain(), identity.key())
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        world.tls = Arc::new(tls);
        let client = world.connect().await;
        let request = request(&bearer, &device(1), headers);
        let answer = client.ask(request, ALERT).await.unwrap();
        assert_eq!(answer.reason(), expected);
    }
}

#[actix::test]
async fn a_go_away_names_the_reason_that_was_set() {
    let world = World::start(&Config {
        faults: Faults {
            go_away_every: 2,
            go_away_reason: Some("IdleTimeout".to_owned()),
            ..Faults::default()
        },
        ..Config::default()
    });
    let (client, bearer) = (world.connect().await, world.bearer());
    assert_eq!(client.push(&bearer, &device(1)).await.unwrap().status, 200);
    client.await_limit(1000).await;
    let (second, third) = (device(2), device(3));
    let (last, after) = tokio::join!(client.push(&bearer, &second), client.push(&bearer, &third));
    assert_eq!(last.unwrap().status, 200);
    let after = after.unwrap_err();
    assert!(after.is_go_away(), "{after}");
    assert!(after.to_string().contains("IdleTimeout"), "{after}");
}
