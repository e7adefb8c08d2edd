//! The least a push can cost: a bare `h2` client that sends the same requests and does nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use campanile::dev::world::{TOPIC, World};
use http::{HeaderValue, Request, StatusCode};
use messages::Clock;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::Figures;
use crate::cores::{self, Cores};
use crate::process::cpu_of;

const PAYLOAD: &str =
    r#"{"aps":{"alert":{"title":"New message"},"mutable-content":1,"sound":"default"}}"#;

/// What is asked of the client.
#[derive(Clone, Copy)]
pub enum Task {
    /// Closed loop, on the core of what is measured: so many requests in flight.
    InFlight(u32),
    /// Open loop: so many requests a second.
    PerSecond(u32),
}

/// What it answers.
pub struct Answer {
    pub figures: Figures,
    /// Milliseconds from a request to its answer: p50 and p99.
    pub latency: [f64; 2],
}

/// Runs the bare client as a process of its own against the world's APNs.
pub async fn spawn(world: &World, task: Task, pushes: u32, devices: u32) -> Answer {
    let directory = world.directory();
    let task = match task {
        Task::InFlight(outstanding) => ["--outstanding".to_owned(), outstanding.to_string()],
        Task::PerSecond(rate) => ["--rate".to_owned(), rate.to_string()],
    };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(task)
        .args(["--devices", &devices.to_string(), "--bare"])
        .arg(world.apple.address.to_string())
        .args([
            directory.join("root.pem"),
            directory.join("AuthKey_ABC123DEFG.p8"),
        ])
        .arg(pushes.to_string())
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut figures = text
        .split_whitespace()
        .map(|figure| figure.parse::<f64>().unwrap());
    let mut next = || figures.next().unwrap();
    Answer {
        figures: Figures {
            rate: next(),
            cpu: next(),
            simulators_cpu: 0.0,
        },
        latency: [next(), next()],
    }
}

/// The bare client itself.
pub async fn run(arguments: &[String], task: Task, devices: u32) -> Answer {
    if let Task::InFlight(_) = task {
        cores::go_to(Cores::Measured);
    }
    let [address, root, key, pushes] = arguments else {
        panic!("four arguments")
    };
    let pushes: u32 = pushes.parse().unwrap();
    let authorization = HeaderValue::from_str(&bearer(key)).unwrap();

    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(root).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, tcp).await.unwrap();
    let (sender, connection) = h2::client::Builder::new()
        .initial_max_send_streams(1)
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    actix_rt::spawn(async move {
        let _ended = connection.await;
    });

    let payload = Bytes::from_static(PAYLOAD.as_bytes());
    let expiration = Clock::system().now().0 + 86_400;
    let request = move |n: u32| {
        let token = format!("{:08x}", n % devices).repeat(8);
        Request::post(format!("https://localhost/3/device/{token}"))
            .header("authorization", authorization.clone())
            .header("apns-topic", TOPIC)
            .header("apns-push-type", "alert")
            .header("apns-priority", "10")
            .header("apns-expiration", expiration)
            .header("apns-id", uuid::Uuid::new_v4().to_string())
            .body(())
            .unwrap()
    };
    let push = move |mut sender: h2::client::SendRequest<Bytes>, n: u32| {
        let (request, payload) = (request.clone(), payload.clone());
        async move {
            let sent = Instant::now();
            let (answer, mut body) = sender.send_request(request(n), false).unwrap();
            body.send_data(payload, true).unwrap();
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            sent.elapsed()
        }
    };
    // The first request opens the connection's streams.
    push(sender.clone().ready().await.unwrap(), 0).await;

    let (began, cpu) = (Instant::now(), cpu_of("self"));
    let mut in_flight = JoinSet::new();
    let mut took = Vec::new();
    for n in 0..pushes {
        match task {
            Task::InFlight(outstanding) if in_flight.len() >= outstanding as usize => {
                took.push(in_flight.join_next().await.unwrap().unwrap());
            }
            Task::InFlight(_) => {}
            Task::PerSecond(rate) => {
                let due = began + Duration::from_secs(n.into()) / rate;
                tokio::time::sleep_until(due.into()).await;
            }
        }
        in_flight.spawn_local(push(sender.clone().ready().await.unwrap(), n));
    }
    while let Some(done) = in_flight.join_next().await {
        took.push(done.unwrap());
    }
    let (elapsed, cpu) = (began.elapsed(), cpu_of("self") - cpu);
    took.sort_unstable();
    let quantile = |share: usize| {
        let took: Duration = took[(took.len() * share / 100).min(took.len() - 1)];
        took.as_secs_f64() * 1_000.0
    };
    Answer {
        figures: Figures {
            rate: f64::from(pushes) / elapsed.as_secs_f64(),
            cpu: cpu.as_secs_f64() * 100_000.0 / f64::from(pushes),
            simulators_cpu: 0.0,
        },
        latency: [quantile(50), quantile(99)],
    }
}

fn bearer(key_file: &str) -> String {
    let random = SystemRandom::new();
    let key = PrivatePkcs8KeyDer::from_pem_file(key_file).unwrap();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let key = EcdsaKeyPair::from_pkcs8(algorithm, key.secret_pkcs8_der(), &random).unwrap();
    let now = Clock::system().now().0;
    let text = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"ABC123DEFG"}"#),
        URL_SAFE_NO_PAD.encode(format!(r#"{{"iss":"DEF123GHIJ","iat":{now}}}"#)),
    );
    let signature = key.sign(&random, text.as_bytes()).unwrap();
    format!("bearer {text}.{}", URL_SAFE_NO_PAD.encode(signature))
}
