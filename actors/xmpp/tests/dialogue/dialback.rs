//! Dialback in the roles of the receiving and of the authoritative server; the originating one is in
//! `returning`.

use messages::PushOutcome;

use crate::peer::{
    Called, OFFER_DIALBACK, answer, answer_external, attribute, authenticated, call, publish,
    result,
};
use crate::world::{Service, World};

async fn call_self_signed(service: &Service, world: &World, from: &str) -> Called {
    let identity = world.self_signed(&[from]);
    let called = call(service, world, Some(&identity), from, "push.test").await;
    assert!(!called.features.contains("EXTERNAL"), "{}", called.features);
    called
}

/// Claims to be `from` with a key and plays the authoritative server, which answers `says`.
async fn claim(
    called: &mut Called,
    home: &tokio::net::TcpListener,
    world: &World,
    (from, to): (&str, &str),
    says: &str,
) {
    let key = format!("key-of-{from}");
    called
        .peer
        .send(&format!(
            "<db:result from='{from}' to='{to}'>{key}</db:result>"
        ))
        .await;
    let identity = world.self_signed(&[from]);
    let mut asked = answer(home, world, &identity, "verify-1", OFFER_DIALBACK).await;
    assert_eq!(attribute(&asked.opening, "from"), to);
    assert_eq!(attribute(&asked.opening, "to"), from);
    let id = &called.id;
    asked
        .peer
        .expect(&format!(
            "<db:verify from='{to}' to='{from}' id='{id}'>{key}</db:verify>"
        ))
        .await;
    asked.peer.send(&says.replace("ID", id)).await;
    asked.peer.expect_end("</stream:stream>").await;
}

#[actix::test]
async fn a_verified_key_authenticates_without_a_restart() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut called = call_self_signed(&service, &world, "peer.test").await;
    // Prosody repeats the key, ejabberd and jabberd2 do not. Answers about other streams do not count.
    let says = "<db:verify id='other' type='valid' from='peer.test' to='push.test'/>\
                <db:verify id='ID' type='invalid' from='other.test' to='push.test'/>\
                <db:verify id='ID' type='valid' from='peer.test' to='push.test'>key</db:verify>";
    claim(&mut called, &home, &world, ("peer.test", "push.test"), says).await;
    called
        .peer
        .expect("<db:result from='push.test' to='peer.test' type='valid'/>")
        .await;

    called.peer.send(&publish("id-1", "node-1")).await;
    assert_eq!(service.settle(PushOutcome::Accepted).await, ["node-1"]);
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
}

#[actix::test]
async fn a_denied_key_ends_the_stream() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let service = world.start(&world.config());
    let mut called = call_self_signed(&service, &world, "peer.test").await;
    let says = "<db:verify id='ID' type='invalid' from='peer.test' to='push.test'/>";
    claim(&mut called, &home, &world, ("peer.test", "push.test"), says).await;
    called
        .peer
        .expect("<db:result from='push.test' to='peer.test' type='invalid'/>")
        .await;
    called.peer.expect_error("not-authorized").await;
}

/// Its authoritative server may be overloaded. Only `invalid` says that the key is wrong.
#[actix::test]
async fn a_key_that_nobody_could_judge_may_be_tried_again() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut config = world.config();
    // Not only after it.
    config.verification_pause_seconds = 0;
    let service = world.start(&config);
    let mut called = call_self_signed(&service, &world, "peer.test").await;
    let between = ("peer.test", "push.test");
    let error = "<db:verify id='ID' type='error' from='peer.test' to='push.test'><error type='wait'>\
                 <resource-constraint xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></db:verify>";
    claim(&mut called, &home, &world, between, error).await;
    let answered = called.peer.until("</db:result>").await;
    assert!(
        answered.contains("type='error'><error type='wait'>"),
        "{answered}"
    );
    let valid = "<db:verify id='ID' type='valid' from='peer.test' to='push.test'/>";
    claim(&mut called, &home, &world, between, valid).await;
    called
        .peer
        .expect("<db:result from='push.test' to='peer.test' type='valid'/>")
        .await;
}

#[actix::test]
async fn several_domains_share_one_stream() {
    let mut world = World::new();
    let first = world.home("peer.test").await;
    let second = world.home("second.test").await;
    let mut service = world.start(&world.config());
    let mut called = call_self_signed(&service, &world, "peer.test").await;
    let says = "<db:verify id='ID' type='valid' from='peer.test' to='push.test'/>";
    claim(
        &mut called,
        &first,
        &world,
        ("peer.test", "push.test"),
        says,
    )
    .await;
    called.peer.until("type='valid'/>").await;
    let says = "<db:verify id='ID' type='valid' from='second.test' to='push2.test'/>";
    claim(
        &mut called,
        &second,
        &world,
        ("second.test", "push2.test"),
        says,
    )
    .await;
    called
        .peer
        .expect("<db:result from='push2.test' to='second.test' type='valid'/>")
        .await;
    // The same domain for another of ours needs no second question.
    called
        .peer
        .send("<db:result from='peer.test' to='push2.test'>x</db:result>")
        .await;
    called
        .peer
        .expect("<db:result from='push2.test' to='peer.test' type='valid'/>")
        .await;
    let theirs = publish("id-1", "node-1")
        .replace("peer.test", "second.test")
        .replace("push.test", "push2.test");
    called
        .peer
        .send(&(publish("id-2", "node-2") + &theirs))
        .await;
    let batch = service.published.take().await;
    let addressed: Vec<_> = batch
        .items
        .iter()
        .map(|item| (item.domain.as_str(), item.service.as_str()))
        .collect();
    assert_eq!(
        addressed,
        [("peer.test", "push.test"), ("second.test", "push2.test")]
    );
}

#[actix::test]
async fn a_certificate_that_proves_the_domain_saves_the_question() {
    let world = World::new();
    let service = world.start(&world.config());
    // As jabberd2 does: it takes no EXTERNAL.
    let identity = world.trusted(&["peer.test"]);
    let mut called = call(&service, &world, Some(&identity), "peer.test", "push.test").await;
    called
        .peer
        .send(
            "<db:result xmlns:db='jabber:server:dialback' to='push.test' \
             from='peer.test'>656c9c50</db:result>",
        )
        .await;
    called
        .peer
        .expect("<db:result from='push.test' to='peer.test' type='valid'/>")
        .await;
}

#[actix::test]
async fn claims_that_nobody_can_prove() {
    let mut world = World::new();
    let gone = world.home("peer.test").await;
    drop(gone);
    let service = world.start(&world.config());
    let mut called = call_self_signed(&service, &world, "peer.test").await;
    let mut refused = async |from: &str, to: &str, kind: &str, condition: &str| {
        let claim = format!("<db:result from='{from}' to='{to}'>key</db:result>");
        called.peer.send(&claim).await;
        called
            .peer
            .expect(&format!(
                "<db:result from='{to}' to='{from}' type='error'><error type='{kind}'>\
                 <{condition} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></db:result>"
            ))
            .await;
    };
    refused("push.test", "push.test", "cancel", "not-allowed").await;
    refused("push2.test", "push.test", "cancel", "not-allowed").await;
    refused("peer.test", "nowhere.test", "cancel", "item-not-found").await;
    refused("peer.test", "push.test", "wait", "remote-server-timeout").await;
}

#[actix::test]
async fn verifications_are_bounded() {
    let mut world = World::new();
    let silent = world.home("peer.test").await;
    let mut config = world.config();
    config.verifications_per_stream_max = 1;
    let service = world.start(&config);
    let mut called = call_self_signed(&service, &world, "peer.test").await;
    let claim = "<db:result from='peer.test' to='push.test'>key</db:result>";
    called.peer.send(claim).await;
    let (_open, _) = silent.accept().await.unwrap();
    called.peer.send(claim).await;
    let answer = called.peer.until("</db:result>").await;
    assert!(
        answer.contains("<error type='wait'><resource-constraint "),
        "{answer}"
    );
}

/// The key for a stream with an id that is known, by the secret in the service's file.
fn key(world: &World, receiving: &str, originating: &str, id: &str) -> String {
    use ring::{digest, hmac};
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let secret = std::fs::read(world.path("dialback.secret")).unwrap();
    let hashed = hex(digest::digest(&digest::SHA256, &secret).as_ref());
    let key = hmac::Key::new(hmac::HMAC_SHA256, hashed.as_bytes());
    let message = format!("{receiving} {originating} {id}");
    hex(hmac::sign(&key, message.as_bytes()).as_ref())
}

#[actix::test]
async fn keys_of_ours_are_vouched_for_in_every_state() {
    let world = World::new();
    let service = world.start(&world.config());
    let good = key(&world, "peer.test", "push.test", "their-id");
    let verify = |id: &str, to: &str| {
        format!("<db:verify from='peer.test' to='{to}' id='{id}'>{good}</db:verify>")
    };
    let answered = |id: &str, to: &str, kind: &str| {
        format!("<db:verify from='{to}' to='peer.test' id='{id}' type='{kind}'/>")
    };
    // Before authentication, from a server that is none of the domains concerned.
    let mut stranger = call(&service, &world, None, "stranger.test", "push.test")
        .await
        .peer;
    stranger.send(&verify("their-id", "push.test")).await;
    stranger
        .expect(&answered("their-id", "push.test", "valid"))
        .await;
    stranger.send(&verify("other-id", "push.test")).await;
    stranger
        .expect(&answered("other-id", "push.test", "invalid"))
        .await;
    stranger.send(&verify("their-id", "push2.test")).await;
    stranger
        .expect(&answered("their-id", "push2.test", "invalid"))
        .await;
    stranger.send(&verify("their-id", "nowhere.test")).await;
    stranger
        .expect(&answered("their-id", "nowhere.test", "invalid"))
        .await;
    stranger.send("</stream:stream>").await;
    stranger.expect_end("</stream:stream>").await;

    // On the authenticated stream, as Prosody and jabberd2 do.
    let mut peer = authenticated(&service, &world).await;
    peer.send(&verify("their-id", "push.test")).await;
    peer.expect(&answered("their-id", "push.test", "valid"))
        .await;
}
