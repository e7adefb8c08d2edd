//! TLS at once and behind STARTTLS: which certificate, which protocol, which version.

use std::net::SocketAddr;
use std::sync::Arc;

use messages::PushOutcome;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, version};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use xmpp::TlsVersion;

use crate::peer::{
    Caller, PROCEED, Peer, STARTTLS, SUCCESS, alpn, answer_external, attribute, connect, header,
    publish, result, shown, version,
};
use crate::world::{Identity, Service, World};

/// Shakes hands at once. `name` is whom to ask for and whose certificate to expect.
async fn connect_tls(
    address: SocketAddr,
    tls: ClientConfig,
    name: &'static str,
) -> std::io::Result<Caller> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(name).unwrap();
    let mut tls = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?;
    // With TLS 1.3 a client has finished before the server has judged it.
    tokio::io::AsyncWriteExt::flush(&mut tls).await?;
    Ok(Peer::new(tls))
}

fn client(world: &World, identity: Option<&Identity>, sni: bool) -> ClientConfig {
    ClientConfig::clone(&world.client_tls(identity, sni))
}

fn offering(world: &World, protocols: &[&str]) -> ClientConfig {
    let mut tls = client(world, None, true);
    tls.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
    tls
}

#[actix::test]
async fn with_direct_tls_a_stream_begins_where_starttls_ends() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let identity = world.trusted(&["peer.test"]);
    let tls = client(&world, Some(&identity), true);
    let mut peer = connect_tls(service.address_tls, tls, "push.test")
        .await
        .unwrap();
    peer.send(&header("peer.test", "push.test")).await;
    let opening = peer.until("<stream:features>").await;
    assert_eq!(attribute(&opening, "from"), "push.test");
    let features = peer.until("</stream:features>").await;
    assert!(features.contains("<mechanism>EXTERNAL<"), "{features}");
    assert!(!features.contains("starttls"), "{features}");
    peer.send("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>=</auth>")
        .await;
    peer.expect(SUCCESS).await;
    peer.send(&header("peer.test", "push.test")).await;
    peer.until("</stream:features>").await;
    peer.send(&publish("id-1", "node-1")).await;
    assert_eq!(service.settle(PushOutcome::Accepted).await, ["node-1"]);
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
}

/// A peer that offers these protocols with direct TLS gets this one, or is sent away.
async fn check_alpn(protocols: &[&str], expected: Result<Option<&str>, ()>) {
    let world = World::new();
    let service = world.start(&world.config());
    let tls = offering(&world, protocols);
    let selected = connect_tls(service.address_tls, tls, "push.test").await;
    let selected = selected.map(|peer| alpn(&peer)).map_err(drop);
    assert_eq!(
        selected,
        expected.map(|name| name.map(str::to_owned)),
        "{protocols:?}"
    );
}

#[actix::test]
async fn protocols_with_direct_tls() {
    check_alpn(&[], Ok(None)).await;
    check_alpn(&["xmpp-server"], Ok(Some("xmpp-server"))).await;
    check_alpn(&["xmpp-client", "xmpp-server"], Ok(Some("xmpp-server"))).await;
    check_alpn(&["xmpp-client"], Err(())).await;
    check_alpn(&["h2", "http/1.1"], Err(())).await;
}

#[actix::test]
async fn behind_starttls_any_protocol_will_do() {
    let world = World::new();
    let service = world.start(&world.config());
    for protocols in [&["xmpp-server"][..], &["xmpp-client"], &[]] {
        let tls = offering(&world, protocols);
        let peer = start_tls_as(&service, tls, "push.test", "push.test").await;
        assert_eq!(alpn(&peer), None);
    }
}

/// Opens a stream to `to` and asks for `name` in the handshake, whose certificate is expected.
async fn start_tls_as(
    service: &Service,
    tls: ClientConfig,
    to: &str,
    name: &'static str,
) -> Caller {
    let mut clear = connect(service, "peer.test", to).await;
    clear.send(STARTTLS).await;
    clear.expect(PROCEED).await;
    let name = ServerName::try_from(name).unwrap();
    let tls = TlsConnector::from(Arc::new(tls));
    Peer::new(tls.connect(name, clear.into_io()).await.unwrap())
}

#[actix::test]
async fn certificates_are_chosen_by_name() {
    let world = World::new();
    let service = world.start(&world.config());
    // The caller verifies the certificate it is shown against the name.
    let sni = |sni| client(&world, None, sni);
    for (to, name) in [("push.test", "push2.test"), ("push2.test", "push.test")] {
        start_tls_as(&service, sni(true), to, name).await;
        start_tls_as(&service, sni(false), to, to).await;
        connect_tls(service.address_tls, sni(true), name)
            .await
            .unwrap();
    }
    let unnamed = connect_tls(service.address_tls, sni(false), "push.test").await;
    assert!(unnamed.is_ok());
    let unnamed = connect_tls(service.address_tls, sni(false), "push2.test").await;
    assert!(unnamed.is_err(), "without a name it is the first domain's");
}

/// A peer that asked for push.test in the handshake opens with `opening`.
async fn check_opening(opening: &str, condition: Option<&str>) {
    let world = World::new();
    let service = world.start(&world.config());
    let tls = client(&world, None, true);
    let mut peer = connect_tls(service.address_tls, tls, "push.test")
        .await
        .unwrap();
    peer.send(opening).await;
    peer.until(" xml:lang='en'>").await;
    match condition {
        Some(condition) => peer.expect_error(condition).await,
        None => drop(peer.until("</stream:features>").await),
    }
}

#[actix::test]
async fn openings_with_direct_tls() {
    let good = header("peer.test", "push.test");
    check_opening(&good, None).await;
    // Another served domain than the certificate was asked for: streams may well be shared.
    check_opening(&header("peer.test", "push2.test"), None).await;
    let unknown = header("peer.test", "nowhere.test");
    check_opening(&unknown, Some("host-unknown")).await;
    let anonymous = good.replace(" from='peer.test'", "");
    check_opening(&anonymous, Some("improper-addressing")).await;
}

#[actix::test]
async fn a_stream_without_tls_on_the_port_for_it_is_no_stream() {
    let world = World::new();
    let service = world.start(&world.config());
    let mut peer = Peer::new(TcpStream::connect(service.address_tls).await.unwrap());
    peer.send(&header("peer.test", "push.test")).await;
    peer.closed().await;
    service.counted("handshakes_failed_total", 1).await;
    assert_eq!(service.count("streams_total").await, 0);
}

#[actix::test]
async fn the_oldest_version_is_configured() {
    let world = World::new();
    let old = || {
        let mut tls =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[&version::TLS12])
                .unwrap()
                .with_root_certificates(world.roots())
                .with_no_client_auth();
        tls.enable_sni = true;
        tls
    };
    let mut config = world.config();
    let service = world.start(&config);
    let peer = connect_tls(service.address_tls, old(), "push.test").await;
    assert_eq!(version(&peer.unwrap()), rustls::ProtocolVersion::TLSv1_2);
    let new = client(&world, None, true);
    let peer = connect_tls(service.address_tls, new, "push.test").await;
    assert_eq!(version(&peer.unwrap()), rustls::ProtocolVersion::TLSv1_3);

    config.tls_min = TlsVersion::V1_3;
    let service = world.start(&config);
    let refused = connect_tls(service.address_tls, old(), "push.test").await;
    assert!(refused.is_err());
    let new = client(&world, None, true);
    assert!(
        connect_tls(service.address_tls, new, "push.test")
            .await
            .is_ok()
    );
}

/// The certificate that the service shows for push.test.
pub(crate) async fn certificate(service: &Service, world: &World) -> Vec<u8> {
    let tls = client(world, None, true);
    let peer = connect_tls(service.address_tls, tls, "push.test").await;
    shown(&peer.unwrap())
}
