//! A pool between collectors on one side and scripted peers on the other.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    unreachable_pub,
    reason = "tests fail by panicking, and each uses a part of this"
)]

pub mod frames;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apns::{AppConfig, Config, Names, Upstreams, pool, provider_tokens};
use bytes::Bytes;
use h2::server::SendResponse;
use http::{Request, Response};
use messages::{
    Acceptance, AppId, Bearer, Clock, DeadPushBatch, Deliver, DeliverBatch, DeviceToken, Domain,
    Drain, Drained, NotificationHint, Origin, OutcomeBatch, Probe, ProviderTokenRefused,
    PushOutcome, RegistrationKey, RejectedToken, RejectedTokens, Rejection, SubscribeProviderToken,
    SubscribeWithdrawals, Ticket, Touch, TouchBatch, UnixMillis, UnixSeconds, UseProviderToken,
    Withdraw, Withdrawal,
};
use rcgen::{CertifiedKey, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tempfile::TempDir;
use testkit::{Collector, PATIENCE};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use frames::Frames;

pub type ServerConnection = h2::server::Connection<TlsStream<TcpStream>, Bytes>;
pub type Asked = (Request<h2::RecvStream>, SendResponse<Bytes>);

/// The time the manual clock of a [`World`] starts at.
pub const NOW: UnixMillis = UnixMillis(1_767_225_600_000);

/// An endpoint that speaks TLS and ALPN h2, and then what the test says.
pub struct Peer {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    pub directory: TempDir,
}

impl Peer {
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(directory.path().join("ca.pem"), cert.pem()).unwrap();
        let signer = KeyPair::generate().unwrap();
        std::fs::write(directory.path().join("key.p8"), signer.serialize_pem()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![cert.der().clone()],
                PrivatePkcs8KeyDer::from(signing_key.serialize_der()).into(),
            )
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Self {
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            directory,
        }
    }

    /// An app that is sent here.
    pub fn app(&self) -> AppConfig {
        let port = self.listener.local_addr().unwrap().port();
        AppConfig {
            topic: "com.example.app".to_owned(),
            endpoint: Some(format!("localhost:{port}")),
            ca_file: Some(self.directory.path().join("ca.pem")),
            team_id: "DEF123GHIJ".to_owned(),
            key_id: "ABC123DEFG".to_owned(),
            key_file: self.directory.path().join("key.p8"),
            ..AppConfig::default()
        }
    }

    /// The same endpoint at another address of this machine.
    pub async fn twin(&self) -> TcpListener {
        let port = self.listener.local_addr().unwrap().port();
        TcpListener::bind(("127.0.0.2", port)).await.unwrap()
    }

    /// The next connection at either address, and whether it was at the other one.
    pub async fn accept_at_either(&self, twin: &TcpListener, streams: u32) -> (Frames, bool) {
        let either = async {
            tokio::select! {
                accepted = self.listener.accept() => (accepted.unwrap().0, false),
                accepted = twin.accept() => (accepted.unwrap().0, true),
            }
        };
        let (tcp, other) = timeout(PATIENCE, either).await.expect("nobody connected");
        let tls = self.acceptor.accept(tcp).await.unwrap();
        (Frames::start(tls, streams).await, other)
    }

    /// The next connection, after TLS.
    pub async fn accept(&self) -> TlsStream<TcpStream> {
        let (tcp, _) = timeout(PATIENCE, self.listener.accept())
            .await
            .expect("nobody connected")
            .unwrap();
        tcp.set_nodelay(true).unwrap();
        self.acceptor.accept(tcp).await.unwrap()
    }

    /// The next connection, served by h2.
    pub async fn accept_h2(&self) -> ServerConnection {
        let tls = self.accept().await;
        h2::server::handshake(tls).await.unwrap()
    }

    /// The next connection, served frame by frame; it allows `streams` at first.
    pub async fn accept_frames(&self, streams: u32) -> Frames {
        Frames::start(self.accept().await, streams).await
    }
}

/// The next request of an h2 connection, body read.
pub async fn next(connection: &mut ServerConnection) -> Asked {
    timeout(PATIENCE, connection.accept())
        .await
        .expect("no request came")
        .expect("the client closed")
        .unwrap()
}

/// Serves a connection until it ends, without taking further requests.
pub fn keep_open(mut connection: ServerConnection) {
    actix_rt::spawn(async move { while connection.accept().await.is_some() {} });
}

pub fn header<'a>(asked: &'a Asked, name: &str) -> &'a str {
    asked.0.headers()[name].to_str().unwrap()
}

/// Answers with a status and the parts of a body, each in a frame of its own.
pub fn answer(asked: Asked, status: u16, parts: &[&str]) {
    answer_with(asked, Response::builder().status(status), parts);
}

pub fn answer_with(mut asked: Asked, head: http::response::Builder, parts: &[&str]) {
    let head = head.body(()).unwrap();
    let mut body = asked.1.send_response(head, parts.is_empty()).unwrap();
    for (index, part) in parts.iter().enumerate() {
        let last = index + 1 == parts.len();
        body.send_data(Bytes::copy_from_slice(part.as_bytes()), last)
            .unwrap();
    }
}

/// A pool and everything around it.
pub struct World {
    pub clock: Clock,
    pool: pool::Handles,
    pub outcomes: Collector<OutcomeBatch>,
    pub touches: Collector<TouchBatch>,
    pub rejected: Collector<RejectedTokens>,
    dead_pushes: Collector<DeadPushBatch>,
    /// Registrations that a dead token does not end, as the store would know.
    pub outliving: Vec<RegistrationKey>,
    /// What the store was asked about.
    pub looked_up: Vec<RejectedToken>,
    pub subscriptions: Collector<SubscribeProviderToken>,
    pub refused: Collector<ProviderTokenRefused>,
    withdrawals: Collector<SubscribeWithdrawals>,
    told: Vec<(Ticket, PushOutcome)>,
    /// What is known of the devices that [`Self::deliver_one`] pushes to.
    pub acceptance: Option<Acceptance>,
    sent: u32,
}

/// Small numbers where the defaults would make a test wait.
pub fn config() -> Config {
    Config {
        backoff_min_ms: 10,
        ping_busy_seconds: 30,
        ..Config::default()
    }
}

impl World {
    /// One app `app` at `peer`; provider tokens come from the real signer.
    pub fn start(config: &Config, peer: &Peer) -> Self {
        Self::with_apps(config, &[("app", peer.app())], true)
    }

    /// The same; the test itself answers the subscription.
    pub fn without_signer(config: &Config, peer: &Peer) -> Self {
        Self::with_apps(config, &[("app", peer.app())], false)
    }

    pub fn with_apps(config: &Config, apps: &[(&str, AppConfig)], signer: bool) -> Self {
        Self::with_names(config, apps, signer, Names::system())
    }

    pub fn with_names(
        config: &Config,
        apps: &[(&str, AppConfig)],
        signer: bool,
        names: Names,
    ) -> Self {
        let apps: BTreeMap<String, AppConfig> = apps
            .iter()
            .map(|(name, app)| ((*name).to_owned(), app.clone()))
            .collect();
        let clock = Clock::manual(NOW);
        let beside = apps
            .values()
            .next()
            .unwrap()
            .key_file
            .with_file_name("tokens");
        let config = Config {
            token_dir: beside,
            ..config.clone()
        };
        let upstreams = Upstreams::prepare_with(&config, &apps, clock.clone(), names)
            .unwrap_or_else(|errors| panic!("{errors:?}"));
        let touches = Collector::start();
        let rejected = Collector::start();
        let dead_pushes = Collector::start();
        let subscriptions = Collector::start();
        let refused = Collector::start();
        let withdrawals = Collector::start();
        let (subscribe, refuse) = if signer {
            let signer = provider_tokens::start(&upstreams);
            (signer.subscribe, signer.refused)
        } else {
            (subscriptions.recipient(), refused.recipient())
        };
        let edges = pool::Edges {
            touch: touches.recipient(),
            rejected: rejected.recipient(),
            dead_pushes: dead_pushes.recipient(),
            journal: None,
            subscribe,
            refused: refuse,
            withdrawals: withdrawals.recipient(),
        };
        Self {
            clock,
            pool: pool::start(&upstreams, edges),
            outcomes: Collector::start(),
            touches,
            rejected,
            dead_pushes,
            outliving: Vec::new(),
            looked_up: Vec::new(),
            subscriptions,
            refused,
            withdrawals,
            told: Vec::new(),
            acceptance: None,
            sent: 0,
        }
    }

    /// Delivers `count` pushes for `app`, to be answered within 20 s.
    pub fn deliver(&mut self, count: u32) {
        self.deliver_to("app", count, Duration::from_secs(20));
    }

    /// Tells the pool what became of registrations, as the registry does.
    pub async fn withdraw(&mut self, items: Vec<Withdrawal>) {
        let pool = self.withdrawals.take().await.subscriber;
        pool.send(Withdraw { items }).await.unwrap();
    }

    /// How many pushes were delivered.
    pub fn delivered(&self) -> u32 {
        self.sent
    }

    /// Delivers one push for a device, to be answered within 20 s; gives its slot.
    pub fn deliver_one(&mut self, device: u32, hint: NotificationHint) -> u32 {
        let slot = self.sent;
        self.sent += 1;
        let item = Deliver {
            ticket: Ticket {
                slot,
                generation: 7,
            },
            registration: registration(device),
            app: AppId::new("app"),
            device_token: token(device),
            acceptance: self.acceptance,
            domain: Domain::new("chat.example"),
            hint,
            content: None,
            trace: None,
        };
        self.deliver_items(vec![item], Duration::from_secs(20));
        slot
    }

    /// Delivers a push for each of these devices, as a server wants them; gives the slot of the first.
    pub fn deliver_for(&mut self, domain: &str, devices: impl IntoIterator<Item = u32>) -> u32 {
        let first = self.sent;
        let items = (first..).zip(devices).map(|(slot, device)| Deliver {
            ticket: Ticket {
                slot,
                generation: 7,
            },
            registration: registration(device),
            app: AppId::new("app"),
            device_token: token(device),
            acceptance: None,
            domain: Domain::new(domain),
            hint: NotificationHint {
                message_count: None,
                has_body: true,
            },
            content: None,
            trace: None,
        });
        let items: Vec<Deliver> = items.collect();
        self.sent += u32::try_from(items.len()).unwrap();
        self.deliver_items(items, Duration::from_secs(20));
        first
    }

    pub fn deliver_to(&mut self, app: &str, count: u32, within: Duration) {
        let items = (self.sent..self.sent + count)
            .map(|number| Deliver {
                ticket: Ticket {
                    slot: number,
                    generation: 7,
                },
                registration: registration(number),
                app: AppId::new(app),
                device_token: token(number),
                acceptance: None,
                domain: Domain::new("chat.example"),
                hint: NotificationHint {
                    message_count: None,
                    has_body: true,
                },
                content: None,
                trace: None,
            })
            .collect();
        self.sent += count;
        self.deliver_items(items, within);
    }

    fn deliver_items(&self, items: Vec<Deliver>, within: Duration) {
        self.pool
            .deliver
            .try_send(DeliverBatch {
                origin: Origin::new(self.outcomes.recipient()),
                deadline: (Instant::now() + within).into_std(),
                items,
            })
            .unwrap();
    }

    /// The next `count` outcomes, by ticket.
    pub async fn outcomes(&mut self, count: usize) -> Vec<(u32, PushOutcome)> {
        while self.told.len() < count {
            tokio::select! {
                batch = self.outcomes.take() => self.told.extend(batch.items),
                batch = self.dead_pushes.take() => self.look_up(batch),
            }
        }
        let mut outcomes: Vec<(u32, PushOutcome)> = self
            .told
            .drain(..count)
            .map(|(ticket, outcome)| (ticket.slot, outcome))
            .collect();
        outcomes.sort_by_key(|(slot, _)| *slot);
        outcomes
    }

    /// Answers pushes to dead tokens as the registry does.
    fn look_up(&mut self, batch: DeadPushBatch) {
        for push in batch.items {
            let rejection = match self.outliving.contains(&push.registration) {
                true => Rejection::Unavailable,
                false => Rejection::Unregistered,
            };
            self.told
                .push((push.ticket, PushOutcome::Rejected(rejection)));
            self.looked_up.push(push.rejected);
        }
    }

    /// The next outcome.
    pub async fn outcome(&mut self) -> PushOutcome {
        self.outcomes(1).await[0].1
    }

    /// The next outcome, while `connection` is served and gets no further request.
    pub async fn outcome_while(&mut self, connection: &mut ServerConnection) -> PushOutcome {
        tokio::select! {
            outcome = self.outcome() => outcome,
            request = connection.accept() => match request {
                Some(_) => panic!("a request that was not to be sent"),
                // The client has closed, as it may.
                None => self.outcome().await,
            },
        }
    }

    /// Checks that the next `count` outcomes are `Accepted`.
    #[track_caller]
    pub fn all_accepted(&mut self, count: u32) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let outcomes = self.outcomes(count as usize).await;
            for (slot, outcome) in outcomes {
                assert_eq!(outcome, PushOutcome::Accepted, "{caller}: push {slot}");
            }
        }
    }

    /// Drains, and checks that no ticket was told a second outcome.
    pub async fn end(mut self) -> Drained {
        let drained = self.drain(Duration::from_secs(10)).await;
        let late = self.outcomes.drain();
        assert!(
            late.is_empty() && self.told.is_empty(),
            "more outcomes than asked for: {late:?} {:?}",
            self.told
        );
        drained
    }

    pub fn drain(&self, within: Duration) -> impl Future<Output = Drained> + use<> {
        let drain = self.pool.drain.clone();
        async move {
            let deadline = (Instant::now() + within).into_std();
            drain
                .send(Drain {
                    deadline,
                    farewell: Duration::from_secs(1),
                })
                .await
                .unwrap()
        }
    }

    pub async fn counter(&self, name: &str) -> u64 {
        let health = self.pool.probe.send(Probe).await.unwrap();
        let found = health.counters.iter().find(|(counter, _)| *counter == name);
        found.unwrap().1
    }

    /// Where APNs took the one push that was sent, as it is told to the registry.
    pub async fn accepted_at(&mut self) -> Acceptance {
        let [touch] = <[Touch; 1]>::try_from(self.touches.take().await.items).unwrap();
        touch.verdict.unwrap()
    }

    /// The error told to the registry for each of the next `count` verdicts.
    pub async fn touched(&mut self, count: usize) -> Vec<Option<String>> {
        let mut touches: Vec<Touch> = Vec::new();
        while touches.len() < count {
            touches.extend(self.touches.take().await.items);
        }
        assert_eq!(touches.len(), count);
        touches
            .into_iter()
            .map(|touch| touch.verdict.err().map(|reason| reason.to_string()))
            .collect()
    }
}

/// Hands a provider token out as the signer would.
pub fn hand_out(subscription: &SubscribeProviderToken, name: &str, issued_at: u64) {
    subscription
        .subscriber
        .try_send(UseProviderToken {
            key: subscription.key.clone(),
            bearer: Bearer::new(&format!("bearer {name}")),
            issued_at: UnixSeconds(issued_at),
        })
        .unwrap();
}

/// The registration of the `number`th push.
pub fn registration(number: u32) -> RegistrationKey {
    // Both halves tell it from others.
    let half = u128::from(number);
    RegistrationKey((half << 64 | half).to_be_bytes())
}

/// The device token of the `number`th push.
pub fn token(number: u32) -> DeviceToken {
    DeviceToken::parse(&format!("{number:064x}")).unwrap()
}
