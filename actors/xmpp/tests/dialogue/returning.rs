//! Streams that we open: authentication, loss and return.

use std::sync::Arc;

use messages::PushOutcome;
use tokio_rustls::TlsAcceptor;

use crate::peer::{
    Caller, FAILURE, OFFER_DIALBACK, OFFER_EXTERNAL, OFFER_NOTHING, Peer, accept_external, answer,
    answer_as, answer_external, attribute, authenticated, call, content, header, proceed, publish,
    result, shows_certificate,
};
use crate::world::{Service, World};

/// Has one answer sent.
async fn answer_one(service: &mut Service, peer: &mut Caller, id: &str) {
    peer.send(&publish(id, "node")).await;
    service.settle(PushOutcome::Accepted).await;
}

const VALID: &str = "<db:result from='peer.test' to='push.test' type='valid'/>";

#[actix::test]
async fn dialback_when_the_peer_takes_no_certificate() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;

    // A certificate that proves nothing is no hindrance here.
    let identity = world.self_signed(&["peer.test"]);
    let mut answered = answer(&home, &world, &identity, "their-id", OFFER_DIALBACK).await;
    assert_eq!(attribute(&answered.opening, "from"), "push.test");
    let claim = answered.peer.until("</db:result>").await;
    assert!(
        claim.starts_with("<db:result from='push.test' to='peer.test'>"),
        "{claim}"
    );
    let key = content(&claim, "db:result");

    // The peer asks on a stream of its own, as ejabberd does.
    let mut asking = call(&service, &world, None, "peer.test", "push.test")
        .await
        .peer;
    asking
        .send(&format!(
            "<db:verify from='peer.test' to='push.test' id='their-id'>{key}</db:verify>"
        ))
        .await;
    asking
        .expect("<db:verify from='push.test' to='peer.test' id='their-id' type='valid'/>")
        .await;

    // Answers about others are not believed.
    answered
        .peer
        .send("<db:result from='other.test' to='push.test' type='valid'/>")
        .await;
    answered
        .peer
        .send("<db:result from='peer.test' to='push2.test' type='invalid'/>")
        .await;
    answered.peer.send(VALID).await;
    answered.peer.expect(&result("id-1")).await;
}

#[actix::test]
async fn dialback_on_the_same_stream_when_external_fails() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let identity = world.trusted(&["peer.test"]);
    let mut answered = answer(&home, &world, &identity, "id", OFFER_EXTERNAL).await;
    answered.peer.until("</auth>").await;
    answered.peer.send(FAILURE).await;
    answered.peer.until("</db:result>").await;
    answered.peer.send(VALID).await;
    answered.peer.expect(&result("id-1")).await;
}

#[actix::test]
async fn dialback_on_a_new_stream_when_the_peer_ends_the_first() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let identity = world.trusted(&["peer.test"]);
    let mut answered = answer(&home, &world, &identity, "id", OFFER_EXTERNAL).await;
    answered.peer.until("</auth>").await;
    answered
        .peer
        .send(&format!("{FAILURE}</stream:stream>"))
        .await;
    drop(answered);
    let mut answered = answer(&home, &world, &identity, "id", OFFER_EXTERNAL).await;
    answered.peer.until("</db:result>").await;
    answered.peer.send(VALID).await;
    answered.peer.expect(&result("id-1")).await;
    assert_eq!(service.count("egress_connects_failed_total").await, 0);
}

#[actix::test]
async fn a_challenge_is_responded_to() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let identity = world.trusted(&["peer.test"]);
    let mut answered = answer(&home, &world, &identity, "id", OFFER_EXTERNAL).await;
    answered.peer.until("</auth>").await;
    answered
        .peer
        .send("<challenge xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>")
        .await;
    answered
        .peer
        .expect("<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>cHVzaC50ZXN0</response>")
        .await;
    answered.peer.send(crate::peer::SUCCESS).await;
    answered.peer.until(" xml:lang='en'>").await;
    answered
        .peer
        .send(&(header("peer.test", "push.test") + OFFER_NOTHING))
        .await;
    answered.peer.expect(&result("id-1")).await;
}

#[actix::test]
async fn nothing_is_sent_to_a_peer_that_offers_nothing() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let identity = world.trusted(&["peer.test"]);
    let mut answered = answer(&home, &world, &identity, "id", OFFER_NOTHING).await;
    answered.peer.expect_end("</stream:stream>").await;
    service.counted("egress_connects_failed_total", 1).await;
    // After a moment it is tried again, and the answer is still there.
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    assert_eq!(service.count("replies_lost_total").await, 0);
}

#[actix::test]
async fn a_peer_without_starttls_gets_nothing() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let (socket, _) = home.accept().await.unwrap();
    let mut clear = Peer::new(socket);
    clear.until(" xml:lang='en'>").await;
    clear
        .send(&(header("peer.test", "push.test") + OFFER_DIALBACK))
        .await;
    clear.expect_end("</stream:stream>").await;
    service.counted("egress_connects_failed_total", 1).await;
}

#[actix::test]
async fn a_stream_that_broke_is_opened_again() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    // The peer restarts. Nobody knows whether it has read the last words.
    drop(returning);
    service.counted("egress_streams_open", 0).await;
    answer_one(&mut service, &mut peer, "id-2").await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&(result("id-1") + &result("id-2"))).await;
    // It closes politely, as ejabberd does after an idle hour.
    returning
        .send(
            "<stream:error><connection-timeout xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>\
             </stream:error></stream:stream>",
        )
        .await;
    returning.expect_end("</stream:stream>").await;
    answer_one(&mut service, &mut peer, "id-3").await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&(result("id-2") + &result("id-3"))).await;
    assert_eq!(service.count("replies_lost_total").await, 0);
}

#[actix::test]
async fn what_a_peer_sends_the_wrong_way_is_ignored() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    returning
        .send(&format!(" {}{VALID}", publish("x", "node")))
        .await;
    answer_one(&mut service, &mut peer, "id-2").await;
    returning.expect(&result("id-2")).await;
    assert_eq!(service.count("publishes_total").await, 2);
}

#[actix::test]
async fn an_idle_stream_is_closed_politely() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.idle_seconds = 1;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    returning.expect_end("</stream:stream>").await;
    drop(returning);
    answer_one(&mut service, &mut peer, "id-2").await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-2")).await;
}

#[actix::test]
async fn answers_to_a_peer_that_cannot_be_reached_are_bounded() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.egress_queue_bytes_max = 4096;
    config.egress_wait_seconds = 1;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    // The first stream to it is accepted by nobody but the system.
    for _ in 0..100 {
        answer_one(&mut service, &mut peer, "an-id-of-some-length").await;
    }
    let fit = 4096 / result("an-id-of-some-length").len() as u64;
    service.counted("replies_lost_total", 100 - fit).await;
    drop(home);
    service.counted("replies_lost_total", 100).await;
}

#[actix::test]
async fn external_of_ours_names_us() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let identity = world.trusted(&["peer.test"]);
    let mut answered = answer(&home, &world, &identity, "id", OFFER_EXTERNAL).await;
    assert_eq!(attribute(&answered.opening, "to"), "peer.test");
    accept_external(&mut answered.peer).await;
    answered.peer.expect(&result("id-1")).await;
}

#[actix::test]
async fn dialback_as_jabberd_has_it() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let identity = world.trusted(&["peer.test"]);
    let features = "<stream:features xmlns:stream='http://etherx.jabber.org/streams'>\
        <dialback xmlns='urn:xmpp:features:dialback'><required></required></dialback>\
        </stream:features>";
    let mut answered = answer(&home, &world, &identity, "id", features).await;
    answered.peer.until("</db:result>").await;
    answered
        .peer
        .send(
            "<db:result xmlns:db='jabber:server:dialback' to='push.test' from='peer.test' \
             type='valid'/>",
        )
        .await;
    answered.peer.expect(&result("id-1")).await;
}

#[actix::test]
async fn dialback_on_a_new_stream_when_external_ends_in_an_error() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let identity = world.trusted(&["peer.test"]);
    let mut answered = answer(&home, &world, &identity, "id", OFFER_EXTERNAL).await;
    answered.peer.until("</auth>").await;
    answered
        .peer
        .send(
            "<stream:error><not-authorized xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>\
             </stream:error></stream:stream>",
        )
        .await;
    let mut answered = answer(&home, &world, &identity, "id", OFFER_EXTERNAL).await;
    answered.peer.until("</db:result>").await;
    answered.peer.send(VALID).await;
    answered.peer.expect(&result("id-1")).await;
}

#[actix::test]
async fn a_key_that_is_refused_ends_the_stream() {
    for kind in ["invalid", "error"] {
        let mut world = World::new();
        let home = world.home("peer.test").await;
        let mut service = world.start(&world.config());
        let mut peer = authenticated(&service, &world).await;
        answer_one(&mut service, &mut peer, "id-1").await;
        let identity = world.trusted(&["peer.test"]);
        let mut answered = answer(&home, &world, &identity, "id", OFFER_DIALBACK).await;
        answered.peer.until("</db:result>").await;
        answered.peer.send(&VALID.replace("valid", kind)).await;
        answered.peer.expect_end("</stream:stream>").await;
        service.counted("egress_connects_failed_total", 1).await;
        // After a pause it is tried again.
        let mut answered = answer(&home, &world, &identity, "id", OFFER_DIALBACK).await;
        answered.peer.until("</db:result>").await;
        answered.peer.send(VALID).await;
        answered.peer.expect(&result("id-1")).await;
    }
}

#[actix::test]
async fn a_certificate_of_version_1_is_no_hindrance_to_dialback() {
    let versions: [&[_]; 2] = [&[&rustls::version::TLS12], &[&rustls::version::TLS13]];
    for versions in versions {
        let mut world = World::new();
        let home = world.home("peer.test").await;
        let mut service = world.start(&world.config());
        let mut peer = authenticated(&service, &world).await;
        answer_one(&mut service, &mut peer, "id-1").await;
        let identity = world.self_signed(&["peer.test"]).version_1();
        let tls = world.server_tls_of(&identity, versions);
        let mut answered = answer_as(&home, tls, "id", OFFER_DIALBACK).await;
        answered.peer.until("</db:result>").await;
        answered.peer.send(VALID).await;
        answered.peer.expect(&result("id-1")).await;
    }
}

#[actix::test]
async fn dialback_without_certificate_when_ours_ends_the_handshake() {
    let versions: [&[_]; 2] = [&[&rustls::version::TLS12], &[&rustls::version::TLS13]];
    for versions in versions {
        let mut world = World::new();
        let home = world.home("peer.test").await;
        let mut service = world.start(&world.config());
        let mut peer = authenticated(&service, &world).await;
        answer_one(&mut service, &mut peer, "id-1").await;
        // A server that trusts another authority, and says so in the handshake.
        let tls = World::new().server_tls_of(&world.trusted(&["peer.test"]), versions);
        let refused = TlsAcceptor::from(Arc::clone(&tls));
        let refused = refused.accept(proceed(&home).await.into_io()).await;
        assert!(refused.is_err());
        let mut answered = answer_as(&home, tls, "id", OFFER_DIALBACK).await;
        assert!(!shows_certificate(&answered.peer));
        answered.peer.until("</db:result>").await;
        answered.peer.send(VALID).await;
        answered.peer.expect(&result("id-1")).await;
        assert_eq!(service.count("egress_connects_failed_total").await, 0);
    }
}

#[actix::test]
async fn a_peer_must_have_a_certificate_if_the_operator_says_so() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.require_certificates = true;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let tls = world.server_tls(&world.self_signed(&["peer.test"]));
    let refused = TlsAcceptor::from(tls).accept(proceed(&home).await.into_io());
    let mut refused = Peer::new(refused.await.unwrap());
    refused.expect_end("").await;
    service.counted("egress_connects_failed_total", 1).await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
}
