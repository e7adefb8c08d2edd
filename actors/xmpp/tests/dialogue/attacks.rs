//! Strangers who want to pass for somebody else. Each is refused, and no push of theirs is taken.

use messages::PushOutcome;

use crate::peer::{
    Called, OFFER_DIALBACK, STARTTLS, answer, attribute, authenticated, call, connect, handshake,
    header, publish,
};
use crate::world::{Service, World};

const AUTH: &str = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>";

fn failed(condition: &str) -> String {
    format!("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><{condition}/></failure>")
}

/// A stream of a server whose certificate proves nothing.
async fn stranger(service: &Service, world: &World, from: &str) -> Called {
    let identity = world.self_signed(&[from]);
    call(service, world, Some(&identity), from, "push.test").await
}

fn claim(from: &str, to: &str, key: &str) -> String {
    format!("<db:result from='{from}' to='{to}'>{key}</db:result>")
}

/// Nothing that was tried made a push.
async fn nothing_was_taken(service: &Service) {
    assert_eq!(service.count("publishes_total").await, 0);
    assert_eq!(service.count("replies_total").await, 0);
}

#[actix::test]
async fn a_stanza_from_another_domain() {
    let world = World::new();
    let service = world.start(&world.config());
    for from in [
        "victim.test",
        "ada@victim.test",
        "sub.peer.test",
        "peer.test.victim.test",
        "victim.test/peer.test",
        "peer.test@victim.test",
        "test",
        "",
    ] {
        let mut peer = authenticated(&service, &world).await;
        let forged = publish("id-1", "node-1").replace("'peer.test'", &format!("'{from}'"));
        peer.send(&forged).await;
        peer.expect_error("invalid-from").await;
    }
    nothing_was_taken(&service).await;
}

#[actix::test]
async fn a_key_of_another_stream() {
    let mut world = World::new();
    let home = world.home("victim.test").await;
    let service = world.start(&world.config());
    // The victim's own stream, and the key that its server made for it.
    let victims = stranger(&service, &world, "victim.test").await;
    let made = format!("key-for-{}", victims.id);
    let mut called = stranger(&service, &world, "victim.test").await;
    assert_ne!(called.id, victims.id);
    called
        .peer
        .send(&claim("victim.test", "push.test", &made))
        .await;
    // The victim's server is asked about the stream that the key came on.
    let identity = world.self_signed(&["victim.test"]);
    let mut asked = answer(&home, &world, &identity, "verify", OFFER_DIALBACK).await;
    let question = asked.peer.until("</db:verify>").await;
    let id = attribute(&question, "id");
    assert_eq!(id, called.id);
    assert!(question.contains(&made), "{question}");
    let verdict = match made == format!("key-for-{id}") {
        true => "valid",
        false => "invalid",
    };
    let answer =
        format!("<db:verify from='victim.test' to='push.test' id='{id}' type='{verdict}'/>");
    asked.peer.send(&answer).await;
    called
        .peer
        .expect("<db:result from='push.test' to='victim.test' type='invalid'/>")
        .await;
    called.peer.expect_error("not-authorized").await;
    nothing_was_taken(&service).await;
}

#[actix::test]
async fn an_answer_that_nobody_asked_for() {
    let world = World::new();
    let service = world.start(&world.config());
    let mut called = stranger(&service, &world, "peer.test").await;
    let id = called.id.clone();
    called
        .peer
        .send(&format!(
            "<db:result from='peer.test' to='push.test' type='valid'/>\
             <db:verify from='peer.test' to='push.test' id='{id}' type='valid'/>"
        ))
        .await;
    called.peer.send(&publish("id-1", "node-1")).await;
    called.peer.expect_error("not-authorized").await;
    nothing_was_taken(&service).await;
}

#[actix::test]
async fn an_answer_on_another_stream_than_the_one_that_asked() {
    let mut world = World::new();
    let home = world.home("victim.test").await;
    let service = world.start(&world.config());
    let mut called = stranger(&service, &world, "victim.test").await;
    called
        .peer
        .send(&claim("victim.test", "push.test", "forged"))
        .await;
    let identity = world.self_signed(&["victim.test"]);
    let mut asked = answer(&home, &world, &identity, "verify", OFFER_DIALBACK).await;
    asked.peer.until("</db:verify>").await;
    // While the question is open the attacker answers it himself, on the same stream and on another.
    let id = called.id.clone();
    let forged = format!(
        "<db:verify from='victim.test' to='push.test' id='{id}' type='valid'>x</db:verify>"
    );
    called.peer.send(&forged).await;
    let mut second = stranger(&service, &world, "evil.test").await;
    second.peer.send(&forged).await;
    // Neither of these on the right stream is the answer either.
    for (from, to, id) in [
        ("evil.test", "push.test", id.as_str()),
        ("victim.test", "push2.test", &id),
        ("victim.test", "push.test", &second.id),
    ] {
        let forged = format!("<db:verify from='{from}' to='{to}' id='{id}' type='valid'/>");
        asked.peer.send(&forged).await;
    }
    let answer = format!("<db:verify from='victim.test' to='push.test' id='{id}' type='invalid'/>");
    asked.peer.send(&answer).await;
    called
        .peer
        .expect("<db:result from='push.test' to='victim.test' type='invalid'/>")
        .await;
    called.peer.expect_error("not-authorized").await;
    second.peer.send(&publish("id-1", "node-1")).await;
    second.peer.expect_error("not-authorized").await;
    nothing_was_taken(&service).await;
}

#[actix::test]
async fn external_with_the_identity_of_another_domain() {
    let world = World::new();
    let service = world.start(&world.config());
    // Not even one that the certificate would prove.
    let identity = world.trusted(&["peer.test", "also.test"]);
    // victim.test, also.test, ada@peer.test
    for identity_text in ["dmljdGltLnRlc3Q=", "YWxzby50ZXN0", "YWRhQHBlZXIudGVzdA=="] {
        let mut called = call(&service, &world, Some(&identity), "peer.test", "push.test").await;
        let auth = format!("{AUTH}{identity_text}</auth>");
        called.peer.send(&auth).await;
        called.peer.expect(&failed("invalid-authzid")).await;
        called.peer.send(&publish("id-1", "node-1")).await;
        called.peer.expect_error("not-authorized").await;
    }
    // Nor by a response, nor without a certificate.
    let mut called = call(&service, &world, Some(&identity), "peer.test", "push.test").await;
    called.peer.send(&format!("{AUTH}</auth>")).await;
    called
        .peer
        .expect("<challenge xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>")
        .await;
    called
        .peer
        .send("<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>dmljdGltLnRlc3Q=</response>")
        .await;
    called.peer.expect(&failed("invalid-authzid")).await;
    let mut called = stranger(&service, &world, "peer.test").await;
    called.peer.send(&format!("{AUTH}=</auth>")).await;
    called.peer.expect(&failed("not-authorized")).await;
    nothing_was_taken(&service).await;
}

#[actix::test]
async fn a_response_without_a_challenge() {
    let world = World::new();
    let service = world.start(&world.config());
    let identity = world.self_signed(&["peer.test"]);
    let mut called = call(&service, &world, Some(&identity), "peer.test", "push.test").await;
    called
        .peer
        .send("<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>=</response>")
        .await;
    called.peer.expect(&failed("malformed-request")).await;
    called
        .peer
        .send("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>")
        .await;
    called.peer.expect(&failed("malformed-request")).await;
    called.peer.send(&publish("id-1", "node-1")).await;
    called.peer.expect_error("not-authorized").await;
    nothing_was_taken(&service).await;
}

#[actix::test]
async fn a_stanza_before_authentication() {
    let world = World::new();
    let service = world.start(&world.config());
    let stanzas = [
        publish("id-1", "node-1"),
        "<iq type='get' id='p' from='peer.test' to='push.test'><ping xmlns='urn:xmpp:ping'/></iq>"
            .to_owned(),
        "<message from='peer.test' to='push.test'/>".to_owned(),
    ];
    for stanza in stanzas {
        let mut clear = connect(&service, "peer.test", "push.test").await;
        clear.send(&stanza).await;
        clear.expect_error("not-authorized").await;
        // A certificate that would do is no proof before it is used.
        let identity = world.trusted(&["peer.test"]);
        let mut called = call(&service, &world, Some(&identity), "peer.test", "push.test").await;
        called.peer.send(&stanza).await;
        called.peer.expect_error("not-authorized").await;
    }
    nothing_was_taken(&service).await;
}

#[actix::test]
async fn a_stanza_while_dialback_is_under_way() {
    let mut world = World::new();
    let _home = world.home("victim.test").await;
    let service = world.start(&world.config());
    let mut called = stranger(&service, &world, "victim.test").await;
    let forged = publish("id-1", "node-1").replace("peer.test", "victim.test");
    called
        .peer
        .send(&(claim("victim.test", "push.test", "key") + &forged))
        .await;
    called.peer.expect_error("not-authorized").await;
    nothing_was_taken(&service).await;
}

#[actix::test]
async fn clear_text_behind_starttls() {
    let world = World::new();
    let service = world.start(&world.config());
    let identity = world.trusted(&["peer.test"]);
    for injected in [
        header("evil.test", "push.test"),
        header("peer.test", "push.test") + AUTH + "=</auth>" + &publish("id-1", "node-1"),
    ] {
        let mut clear = connect(&service, "peer.test", "push.test").await;
        clear.send(&format!("{STARTTLS}{injected}")).await;
        let mut peer = handshake(clear, &world, Some(&identity), "push.test").await;
        // The stream begins with what comes behind the handshake, and nothing has happened before.
        peer.send(&header("peer.test", "push.test")).await;
        let opening = peer.until("<stream:features>").await;
        assert!(opening.contains(" to='peer.test'"), "{opening}");
        let features = peer.until("</stream:features>").await;
        assert!(features.contains("EXTERNAL"), "{features}");
        peer.send("</stream:stream>").await;
        peer.expect_end("</stream:stream>").await;
    }
    nothing_was_taken(&service).await;
}

#[actix::test]
async fn dialback_for_a_domain_of_ours() {
    let world = World::new();
    let service = world.start(&world.config());
    for own in ["push.test", "push2.test", "PUSH.test."] {
        let mut called = stranger(&service, &world, "peer.test").await;
        called.peer.send(&claim(own, "push.test", "key")).await;
        let answer = called.peer.until("</db:result>").await;
        assert!(
            answer.contains("type='error'><error type='cancel'><not-allowed "),
            "{answer}"
        );
        let forged = publish("id-1", "node-1").replace("'peer.test'", &format!("'{own}'"));
        called.peer.send(&forged).await;
        called.peer.expect_error("not-authorized").await;
    }
    // Not even with a certificate for it.
    let identity = world.trusted(&["push2.test"]);
    let mut called = call(&service, &world, Some(&identity), "push2.test", "push.test").await;
    assert!(!called.features.contains("EXTERNAL"), "{}", called.features);
    called.peer.send(&format!("{AUTH}=</auth>")).await;
    called.peer.expect(&failed("not-authorized")).await;
    called
        .peer
        .send(&claim("push2.test", "push.test", "key"))
        .await;
    let answer = called.peer.until("</db:result>").await;
    assert!(answer.contains("<not-allowed "), "{answer}");
    nothing_was_taken(&service).await;
}

#[actix::test]
async fn bidi_of_a_stream_that_proves_nothing() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    // Somebody who says that he is peer.test wants its answers.
    let mut called = stranger(&service, &world, "peer.test").await;
    called.peer.send("<bidi xmlns='urn:xmpp:bidi'/>").await;
    let mut peer = authenticated(&service, &world).await;
    peer.send(&publish("id-1", "node-1")).await;
    service.settle(PushOutcome::Accepted).await;
    let mut returning = crate::peer::answer_external(&home, &world).await;
    returning.expect(&crate::peer::result("id-1")).await;
    called.peer.send("</stream:stream>").await;
    called.peer.expect_end("</stream:stream>").await;
}
