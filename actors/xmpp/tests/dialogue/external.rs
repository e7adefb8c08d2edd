//! Certificates: the stream is authenticated by SASL EXTERNAL.

use messages::PushOutcome;

use crate::peer::{
    SUCCESS, answer_external, authenticated, call, header, publish, result, shows_certificate,
};
use crate::world::{Identity, World};

const AUTH: &str = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>";

#[actix::test]
async fn a_publish_is_answered_on_a_stream_of_our_own() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;

    peer.send(&publish("id-1", "node-1")).await;
    let batch = service.published.take().await;
    let item = &batch.items[0];
    assert_eq!(batch.items.len(), 1);
    assert_eq!(item.node.as_str(), "node-1");
    assert_eq!(item.secret.as_ref().unwrap().as_str(), "s3cret");
    assert_eq!(item.domain.as_str(), "peer.test");
    assert_eq!(item.service.as_str(), "push.test");
    batch
        .origin
        .tell(vec![(item.ticket, PushOutcome::Accepted)]);

    let mut returning = answer_external(&home, &world).await;
    assert!(shows_certificate(&returning));
    returning.expect(&result("id-1")).await;

    // The next answer takes the same stream.
    peer.send(&publish("id-2", "node-2")).await;
    service.settle(PushOutcome::Accepted).await;
    returning.expect(&result("id-2")).await;
    assert_eq!(service.count("egress_connects_total").await, 1);
    // An outcome that comes twice changes nothing.
    batch
        .origin
        .tell(vec![(item.ticket, PushOutcome::Accepted)]);
    service.counted("outcomes_late_total", 1).await;
    assert_eq!(service.count("replies_total").await, 2);
}

#[actix::test]
async fn the_identity_may_be_left_out() {
    let world = World::new();
    let service = world.start(&world.config());
    let identity = world.trusted(&["peer.test"]);
    let call = || call(&service, &world, Some(&identity), "peer.test", "push.test");

    let mut called = call().await;
    assert!(called.features.contains("<mechanism>EXTERNAL</mechanism>"));
    assert!(
        called
            .features
            .contains("<dialback xmlns='urn:xmpp:features:dialback'><errors/>")
    );
    called.peer.send(&format!("{AUTH}=</auth>")).await;
    called.peer.expect(SUCCESS).await;

    let mut called = call().await;
    called.peer.send(&format!("{AUTH}</auth>")).await;
    let challenge = "<challenge xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>";
    called.peer.expect(challenge).await;
    let response = "<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>=</response>";
    called.peer.send(response).await;
    called.peer.expect(SUCCESS).await;
}

#[actix::test]
async fn a_wrong_identity_fails_and_the_stream_stays_for_some_attempts() {
    let world = World::new();
    let service = world.start(&world.config());
    let identity = world.trusted(&["peer.test", "also.test"]);
    let mut called = call(&service, &world, Some(&identity), "peer.test", "push.test").await;
    let failed = |condition: &str| {
        format!("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><{condition}/></failure>")
    };
    // also.test, which the certificate would prove, but which did not open the stream.
    called
        .peer
        .send(&format!("{AUTH}YWxzby50ZXN0</auth>"))
        .await;
    called.peer.expect(&failed("invalid-authzid")).await;
    called
        .peer
        .send("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGEAYg==</auth>")
        .await;
    called.peer.expect(&failed("invalid-mechanism")).await;
    called.peer.send(&format!("{AUTH}peer.test</auth>")).await;
    called.peer.expect(&failed("incorrect-encoding")).await;
    called.peer.expect_error("policy-violation").await;
}

#[actix::test]
async fn external_is_offered_only_to_whom_the_certificate_names() {
    let world = World::new();
    let service = world.start(&world.config());
    let wildcard = world.trusted(&["*.peer.test"]);
    let offers = async |identity: Option<&Identity>, from: &str| {
        let called = call(&service, &world, identity, from, "push.test").await;
        called.features.contains("EXTERNAL")
    };
    assert!(offers(Some(&world.trusted(&["peer.test"])), "peer.test").await);
    assert!(offers(Some(&wildcard), "chat.peer.test").await);
    assert!(!offers(Some(&wildcard), "peer.test").await);
    assert!(!offers(Some(&world.trusted(&["other.test"])), "peer.test").await);
    assert!(!offers(Some(&world.self_signed(&["peer.test"])), "peer.test").await);
    assert!(!offers(None, "peer.test").await);
    // Nobody else speaks for a served domain.
    assert!(!offers(Some(&world.trusted(&["push2.test"])), "push2.test").await);
}

#[actix::test]
async fn the_certificate_is_chosen_by_the_stream_header_without_sni() {
    let world = World::new();
    let service = world.start(&world.config());
    // The caller verifies what it is shown.
    for served in ["push.test", "push2.test"] {
        let called = call(&service, &world, None, "peer.test", served).await;
        assert!(called.features.contains("dialback"));
    }
}

#[actix::test]
async fn refused_external_leads_to_dialback_on_the_same_stream() {
    let world = World::new();
    let service = world.start(&world.config());
    let identity = world.self_signed(&["peer.test"]);
    let mut called = call(&service, &world, Some(&identity), "peer.test", "push.test").await;
    called.peer.send(&format!("{AUTH}=</auth>")).await;
    called.peer.expect(crate::peer::FAILURE).await;
    // The peer is not in any DNS, but the stream goes on.
    called
        .peer
        .send("<db:result from='peer.test' to='push.test'>abc</db:result>")
        .await;
    let answer = called.peer.until("</db:result>").await;
    assert!(answer.contains("type='error'"), "{answer}");
}

#[actix::test]
async fn the_stream_header_after_external_must_be_the_same() {
    let world = World::new();
    let service = world.start(&world.config());
    let identity = world.trusted(&["peer.test", "also.test"]);
    let mut called = call(&service, &world, Some(&identity), "peer.test", "push.test").await;
    called.peer.send(&format!("{AUTH}=</auth>")).await;
    called.peer.expect(SUCCESS).await;
    called.peer.send(&header("also.test", "push.test")).await;
    called.peer.until(" xml:lang='en'>").await;
    called.peer.expect_error("improper-addressing").await;
}
