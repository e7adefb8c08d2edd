//! Certificates are renewed under load, and no stream notices.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod support;

use std::cell::Cell;
use std::fs;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use campanile::dev::world::{Plan, SERVICE, World};
use campanile::exit;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use simulators::Kind;
use simulators::server::{Count, Flood, FloodReport, Pace, PublishShape, RegisterDevice};
use support::PATIENCE;
use support::process::Campanile;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The certificate that a new handshake shows.
async fn shown(world: &World, address: SocketAddr) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(world.authority().roots().unwrap())
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"xmpp-server".to_vec()];
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(SERVICE).unwrap();
    let tls = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await;
    let tls = tls.unwrap();
    let (_, connection) = tls.get_ref();
    connection.peer_certificates().unwrap()[0].to_vec()
}

/// Waits until new handshakes show a certificate.
async fn until_shown(world: &World, address: SocketAddr, certificate: &[u8]) {
    let begun = Instant::now();
    while shown(world, address).await != certificate {
        assert!(begun.elapsed() < PATIENCE, "it is never shown");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Issues a certificate and moves it over the one in use, the key first. Returns it.
fn renew(world: &World) -> Vec<u8> {
    let authority = world.authority();
    let identity = authority.issue(&[SERVICE], Kind::ServerOnly).unwrap();
    let at = |extension| world.directory().join(format!("{SERVICE}.{extension}"));
    for (extension, pem) in [("key", identity.key_pem()), ("crt", identity.chain_pem())] {
        fs::write(at("new"), pem).unwrap();
        fs::rename(at("new"), at(extension)).unwrap();
    }
    identity.chain()[0].to_vec()
}

#[actix_rt::test]
async fn renewed_under_load_by_time_and_by_signal_and_a_broken_one_is_not_taken() {
    let world = World::start(Plan {
        listen: support::anywhere(),
        ..Plan::default()
    })
    .await
    .unwrap();
    let environment = [
        ("CAMPANILE__XMPP__LISTEN_TLS", "127.0.0.1:0"),
        ("CAMPANILE__XMPP__TLS_MIN", "1.3"),
        ("CAMPANILE__XMPP__CERTIFICATE_CHECK_SECONDS", "1"),
    ];
    let mut service = Campanile::serve_with(world.config_file(), &environment);
    world.service_is_at(service.address().await).await;
    let address = service.address().await;

    let request = RegisterDevice {
        user: "ada".to_owned(),
        node: support::uuid(1),
        device_token: support::device_token(1),
    };
    let device = world.chat.register.send(request).await.unwrap().unwrap();
    let streams = async || {
        let counters = world.chat.count.send(Count).await.unwrap();
        (counters.streams_in, counters.streams_out)
    };
    let (streams_in, streams_out) = streams().await;
    let done = Rc::new(Cell::new(false));
    let flooding = actix_rt::spawn({
        let (done, flood) = (Rc::clone(&done), world.chat.flood.clone());
        async move {
            let mut reports: Vec<FloodReport> = Vec::new();
            while !done.get() {
                let request = Flood {
                    devices: vec![(device.node.clone(), device.secret.clone())],
                    pushes: 2_000,
                    pace: Pace::PerSecond(200),
                    streams: 1,
                    has_body: true,
                    shape: PublishShape::Prosody,
                    patience: PATIENCE,
                };
                reports.push(flood.send(request).await.unwrap().unwrap());
            }
            reports
        }
    });
    let before = shown(&world, address).await;

    // By itself.
    let second = renew(&world);
    assert_ne!(before, second);
    until_shown(&world, address, &second).await;
    service.line("a new certificate is in use").await;

    // A file that is broken: what was in use stays in use, and the log says so.
    let certificate = world.directory().join(format!("{SERVICE}.crt"));
    let good = fs::read(&certificate).unwrap();
    fs::write(&certificate, "rubbish").unwrap();
    let line = service.line("the one before stays in use").await;
    assert!(line.contains("\"ERROR\""), "{line}");
    assert!(line.contains("holds no certificate in PEM"), "{line}");
    assert_eq!(shown(&world, address).await, second);
    fs::write(&certificate, good).unwrap();

    // By signal.
    let third = renew(&world);
    service.signal("HUP");
    service.line("SIGHUP").await;
    until_shown(&world, address, &third).await;

    done.set(true);
    let reports = flooding.await.unwrap();
    for report in &reports {
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.unanswered, 0);
    }
    let sent: u64 = reports.iter().map(|report| report.sent).sum();
    println!("{sent} pushes while the certificate was replaced twice and broken once");
    // No stream was opened beside those of the floods: the registration's and the one for the answers
    // are still there.
    let floods = reports.len() as u64;
    assert_eq!(streams().await, (streams_in, streams_out + floods));
    assert_eq!(service.terminate().await, Some(exit::OK));
    let of_the_server = |line: &&String| line.contains("chat.localhost");
    for line in service.lines.iter().filter(of_the_server) {
        assert!(!line.contains("failed"), "{line}");
    }
    world.stop().await;
}
