//! Certificates, keys and authorities that change while streams are open.

use messages::{Clock, PushOutcome, Reload, UnixMillis};
use rcgen::date_time_ymd;
use xmpp::certificates::ServedCertificates;

use crate::peer::{answer_external, authenticated, call, publish, result, shown_by_service};
use crate::tls::certificate;
use crate::world::{Identity, Service, World, parameters};

async fn reload(service: &Service) {
    service.certificates.reload.send(Reload).await.unwrap();
}

/// What the service says of push.test.
async fn refused(service: &Service) -> Option<String> {
    let served = service.certificates.served.send(ServedCertificates).await;
    let served = served.unwrap();
    assert_eq!(served[0].domain.as_str(), "push.test");
    assert_eq!(served[1].refused, None);
    served[0].refused.clone()
}

fn leaf(identity: &Identity) -> Vec<u8> {
    identity.chain[0].to_vec()
}

#[actix::test]
async fn a_new_certificate_is_shown_in_new_handshakes_and_open_streams_stay() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.idle_seconds = 1;
    let mut service = world.start(&config);
    reload(&service).await;
    let before = certificate(&service, &world).await;
    let mut peer = authenticated(&service, &world).await;

    let renewed = world.trusted(&["push.test"]);
    world.domain("push.test", &renewed);
    assert_eq!(certificate(&service, &world).await, before);
    reload(&service).await;
    assert_eq!(certificate(&service, &world).await, leaf(&renewed));
    assert_eq!(service.count("certificates_loaded_total").await, 1);

    // The stream from before works, and the way back has the new certificate.
    peer.send(&publish("id-1", "node-1")).await;
    service.settle(PushOutcome::Accepted).await;
    let mut returning = answer_external(&home, &world).await;
    assert_eq!(shown_by_service(&returning), leaf(&renewed));
    returning.expect(&result("id-1")).await;
    returning.expect_end("</stream:stream>").await;
    let again = world.trusted(&["push.test"]);
    world.domain("push.test", &again);
    reload(&service).await;
    peer.send(&publish("id-2", "node-2")).await;
    service.settle(PushOutcome::Accepted).await;
    let mut returning = answer_external(&home, &world).await;
    assert_eq!(shown_by_service(&returning), leaf(&again));
    returning.expect(&result("id-2")).await;
    assert_eq!(service.count("streams_open").await, 1);
}

#[actix::test]
async fn files_that_change_are_seen_without_being_told() {
    let world = World::new();
    let mut config = world.config();
    config.certificate_check_seconds = 1;
    let service = world.start(&config);
    let renewed = world.trusted(&["push.test"]);
    world.domain("push.test", &renewed);
    service.counted("certificates_loaded_total", 1).await;
    assert_eq!(certificate(&service, &world).await, leaf(&renewed));
}

#[actix::test]
async fn a_renewal_found_half_done_heals_by_itself() {
    let world = World::new();
    let mut config = world.config();
    config.certificate_check_seconds = 1;
    let service = world.start(&config);
    let before = certificate(&service, &world).await;
    let renewed = world.trusted(&["push.test"]);
    std::fs::write(world.path("push.test.key"), &renewed.key_pem).unwrap();
    service.counted("certificates_unusable", 1).await;
    let reason = refused(&service).await.unwrap();
    assert!(reason.contains("is not the private key of"), "{reason}");
    assert_eq!(certificate(&service, &world).await, before);
    std::fs::write(world.path("push.test.crt"), &renewed.certificate_pem).unwrap();
    service.counted("certificates_loaded_total", 1).await;
    assert_eq!(refused(&service).await, None);
    assert_eq!(certificate(&service, &world).await, leaf(&renewed));
}

#[actix::test]
async fn a_bad_certificate_leaves_the_one_before_in_use() {
    let world = World::new();
    let service = world.start(&world.config());
    let before = certificate(&service, &world).await;
    let check = async |certificate_pem: &str, key_pem: &str, expected: &str| {
        std::fs::write(world.path("push.test.crt"), certificate_pem).unwrap();
        std::fs::write(world.path("push.test.key"), key_pem).unwrap();
        reload(&service).await;
        let reason = refused(&service).await.unwrap_or_default();
        assert!(reason.contains(expected), "{reason}");
        assert_eq!(certificate(&service, &world).await, before);
    };
    let good = world.trusted(&["push.test"]);
    check("rubbish", &good.key_pem, "holds no certificate").await;
    check(&good.certificate_pem, "", "holds no private key").await;
    let half = &good.certificate_pem[..good.certificate_pem.len() / 2];
    check(half, &good.key_pem, "holds no certificate").await;
    let other = world.trusted(&["other.test"]);
    check(&other.certificate_pem, &other.key_pem, "does not cover").await;
    let mut old = parameters(&["push.test"]);
    old.not_after = date_time_ymd(2020, 1, 1);
    let old = world.sign(&old);
    check(&old.certificate_pem, &old.key_pem, "has expired").await;
    let mut young = parameters(&["push.test"]);
    young.not_before = date_time_ymd(2999, 1, 1);
    let young = world.sign(&young);
    check(&young.certificate_pem, &young.key_pem, "not valid yet").await;
    std::fs::remove_file(world.path("push.test.crt")).unwrap();
    reload(&service).await;
    let reason = refused(&service).await.unwrap();
    assert!(reason.contains("cannot be read"), "{reason}");
    assert_eq!(service.count("certificates_refused_total").await, 7);
    assert_eq!(service.count("certificates_loaded_total").await, 0);
}

#[actix::test]
async fn authorities_are_read_again() {
    let world = World::new();
    let service = world.start(&world.config());
    let identity = world.trusted(&["peer.test"]);
    let offers_external = async || {
        let called = call(&service, &world, Some(&identity), "peer.test", "push.test").await;
        called.features.contains("EXTERNAL")
    };
    assert!(offers_external().await);
    std::fs::write(world.path("authority.crt"), "rubbish").unwrap();
    reload(&service).await;
    assert!(offers_external().await);
    std::fs::copy(
        World::new().path("authority.crt"),
        world.path("authority.crt"),
    )
    .unwrap();
    reload(&service).await;
    assert!(!offers_external().await);
}

#[actix::test]
async fn the_days_that_are_left_are_known() {
    let mut world = World::new();
    // 2020-02-20T00:00:00Z.
    world.clock = Clock::manual(UnixMillis(1_582_156_800_000));
    let service = world.start(&world.config());
    let mut ending = parameters(&["push.test"]);
    ending.not_before = date_time_ymd(2020, 1, 1);
    ending.not_after = date_time_ymd(2020, 3, 1);
    world.domain("push.test", &world.sign(&ending));
    reload(&service).await;
    assert_eq!(service.count("certificate_days_left_min").await, 10);
    world.clock.set(UnixMillis(1_582_156_800_000 + 86_400_000));
    reload(&service).await;
    assert_eq!(service.count("certificate_days_left_min").await, 9);
    world.clock.set(UnixMillis(1_590_000_000_000));
    reload(&service).await;
    assert_eq!(service.count("certificate_days_left_min").await, 0);
    let reason = refused(&service).await.unwrap();
    assert!(reason.contains("has expired"), "{reason}");
}
