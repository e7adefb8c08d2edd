//! What a peer may have of us, and what it is told about that.

use std::time::Instant;

use messages::PushOutcome;
use tokio::net::TcpStream;

use crate::peer::{Peer, answer_external, authenticated, call, connect, header, publish, result};
use crate::world::World;

#[actix::test]
async fn limits_are_told() {
    let world = World::new();
    let mut config = world.config();
    config.stanza_bytes_max = 20_000;
    config.inbound_idle_seconds = 77;
    let service = world.start(&config);
    let called = call(&service, &world, None, "peer.test", "push.test").await;
    let limits = "<limits xmlns='urn:xmpp:stream-limits:0'><max-bytes>20000</max-bytes>\
                  <idle-seconds>77</idle-seconds></limits>";
    assert!(called.features.contains(limits), "{}", called.features);
}

#[actix::test]
async fn a_silent_stream_is_closed_and_what_comes_meanwhile_is_served() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.inbound_idle_seconds = 1;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    peer.expect("</stream:stream>").await;
    peer.send(&(publish("id-1", "node-1") + "</stream:stream>"))
        .await;
    service.settle(PushOutcome::Accepted).await;
    peer.expect_end("").await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    // One that does not answer the goodbye is not waited for.
    let mut peer = authenticated(&service, &world).await;
    peer.expect_end("</stream:stream>").await;
}

#[actix::test]
async fn blanks_keep_a_stream() {
    let world = World::new();
    let mut config = world.config();
    config.inbound_idle_seconds = 4;
    config.keepalive_seconds = 1;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    // Ours come, and each of theirs begins the silence anew.
    for _ in 0..5 {
        peer.expect(" ").await;
        peer.send(" ").await;
    }
    peer.send(&publish("id-1", "node-1")).await;
    service.published.take().await;
}

#[actix::test]
async fn one_address_connects_so_fast() {
    let world = World::new();
    let mut config = world.config();
    config.connections_per_address_per_second_max = 1;
    let service = world.start(&config);
    let mut refused = 0;
    for _ in 0..40 {
        // The end may come before the beginning is told.
        let Ok(tcp) = TcpStream::connect(service.address).await else {
            refused += 1;
            continue;
        };
        let mut peer = Peer::new(tcp);
        peer.offer(&header("peer.test", "push.test")).await;
        refused += u64::from(!peer.is_answered().await);
    }
    assert!(refused > 0, "ten at once and one a second");
    assert_eq!(service.count("connections_refused_total").await, refused);
    let accepted = service.count("connections_accepted_total").await;
    assert_eq!(accepted, 40 - refused);
}

#[actix::test]
async fn all_addresses_connect_so_fast_and_wait() {
    let world = World::new();
    let mut config = world.config();
    config.connections_per_second_max = 1;
    let service = world.start(&config);
    let begun = Instant::now();
    for _ in 0..11 {
        connect(&service, "peer.test", "push.test").await;
    }
    assert!(begun.elapsed().as_millis() >= 900, "{:?}", begun.elapsed());
    assert_eq!(service.count("connections_refused_total").await, 0);
}

#[actix::test]
async fn a_stranger_sends_so_much() {
    let world = World::new();
    let mut config = world.config();
    config.bytes_before_authentication_max = 20_000;
    let service = world.start(&config);
    // In many small pieces, none of which is too large.
    let mut called = call(&service, &world, None, "peer.test", "push.test").await;
    let verify = "<db:verify from='peer.test' to='push.test' id='x'>key</db:verify>";
    called
        .peer
        .send(&verify.repeat(20_000 / verify.len() + 1))
        .await;
    let rest = called.peer.until("</stream:stream>").await;
    assert!(rest.contains("<stream:error><policy-violation "), "{rest}");
    // Nor before its header, which is answered with ours.
    let mut peer = Peer::new(TcpStream::connect(service.address).await.unwrap());
    peer.send(&" ".repeat(20_001)).await;
    peer.until(" xml:lang='en'>").await;
    peer.expect_error("policy-violation").await;
    // One that is authenticated sends as much as it likes.
    let mut peer = authenticated(&service, &world).await;
    peer.send(&" ".repeat(50_000)).await;
    peer.send("</stream:stream>").await;
    peer.expect_end("</stream:stream>").await;
}

#[actix::test]
async fn stanzas_beyond_the_pace_are_late_and_not_refused() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.stanzas_per_second_max = 20;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    let burst: String = (0..40).map(|n| publish(&format!("i{n}"), "node")).collect();
    let begun = Instant::now();
    peer.send(&burst).await;
    let mut taken = 0;
    while taken < 40 {
        taken += service.settle(PushOutcome::Accepted).await.len();
    }
    assert!(begun.elapsed().as_millis() >= 900, "{:?}", begun.elapsed());
    let mut returning = answer_external(&home, &world).await;
    for n in 0..40 {
        returning.expect(&result(&format!("i{n}"))).await;
    }
}

/// Claims and checks of keys are work as well, and streams cost a peer nothing.
#[actix::test]
async fn all_that_one_address_sends_has_one_pace() {
    let mut world = World::new();
    let _home = world.home("peer.test").await;
    let mut config = world.config();
    config.stanzas_per_second_per_address_max = 20;
    let service = world.start(&config);
    let claim = "<db:result from='peer.test' to='push.test'>key</db:result>";
    let check = "<db:verify from='peer.test' to='push.test' id='i'>key</db:verify>";
    let begun = Instant::now();
    let mut peers = Vec::new();
    for _ in 0..4 {
        peers.push(authenticated(&service, &world).await);
    }
    for peer in &mut peers {
        peer.send(&format!("{claim}{check}").repeat(5)).await;
    }
    for peer in &mut peers {
        for _ in 0..5 {
            peer.until("type='valid'/>").await;
            peer.until("type='invalid'/>").await;
        }
    }
    // There were 20 at once, and 4 elements to authenticate.
    assert!(begun.elapsed().as_millis() >= 900, "{:?}", begun.elapsed());
}

#[actix::test]
async fn large_stanzas_count_for_more() {
    let world = World::new();
    let mut config = world.config();
    config.stanzas_per_second_max = 20;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    let large = " ".repeat(60_000) + "</pubsub>";
    let large = publish("large", "node").replace("</pubsub>", &large);
    let begun = Instant::now();
    peer.send(&format!("{large}{}", publish("next", "node")))
        .await;
    let mut taken = 0;
    while taken < 2 {
        taken += service.settle(PushOutcome::Accepted).await.len();
    }
    assert!(begun.elapsed().as_millis() >= 400, "{:?}", begun.elapsed());
}

#[actix::test]
async fn much_white_space_has_a_pace_and_is_told() {
    let world = World::new();
    let mut config = world.config();
    config.stanzas_per_second_max = 20;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    let begun = Instant::now();
    peer.send(&(" ".repeat(100_000) + &publish("next", "node")))
        .await;
    service.settle(PushOutcome::Accepted).await;
    assert!(begun.elapsed().as_millis() >= 900, "{:?}", begun.elapsed());
    assert!(service.count("shortages_total").await > 0);
}

#[actix::test]
async fn a_stanza_declares_so_many_namespaces() {
    let world = World::new();
    let mut config = world.config();
    config.namespaces_max = 16;
    let service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    let content = "<a xmlns='x'/>".repeat(17);
    peer.send(&format!(
        "<message from='peer.test' to='push.test'>{content}</message>"
    ))
    .await;
    peer.expect_error("policy-violation").await;
}

/// Claims of two streams, of which the second finds no room.
async fn check_verifications(domains: [&str; 2], change: impl FnOnce(&mut xmpp::Config)) {
    let mut world = World::new();
    let mut homes = Vec::new();
    for domain in ["a.test", "b.test"] {
        homes.push(world.home(domain).await);
    }
    let mut config = world.config();
    change(&mut config);
    let service = world.start(&config);
    let [first, second] = domains;
    let claim = |domain: &str| format!("<db:result from='{domain}' to='push.test'>key</db:result>");
    let mut one = call(&service, &world, None, first, "push.test").await;
    one.peer.send(&claim(first)).await;
    let (_asked, _) = homes[0].accept().await.unwrap();
    let mut other = call(&service, &world, None, second, "push.test").await;
    other.peer.send(&claim(second)).await;
    let answer = other.peer.until("</db:result>").await;
    assert!(
        answer.contains("<error type='wait'><resource-constraint "),
        "{answer}"
    );
}

#[actix::test]
async fn verifications_are_bounded_in_every_direction() {
    check_verifications(["a.test", "b.test"], |config| config.verifications_max = 1).await;
    check_verifications(["a.test", "b.test"], |config| {
        config.verifications_per_address_max = 1;
    })
    .await;
    check_verifications(["a.test", "a.test"], |config| {
        config.verifications_per_domain_max = 1;
    })
    .await;
}

#[actix::test]
async fn one_stream_speaks_for_so_many_domains() {
    let world = World::new();
    let mut config = world.config();
    config.domains_per_stream_max = 2;
    let service = world.start(&config);
    let identity = world.trusted(&["a.test", "b.test", "c.test"]);
    let mut called = call(&service, &world, Some(&identity), "a.test", "push.test").await;
    for domain in ["a.test", "b.test", "a.test"] {
        called
            .peer
            .send(&format!(
                "<db:result from='{domain}' to='push.test'>key</db:result>"
            ))
            .await;
        called
            .peer
            .expect(&format!(
                "<db:result from='push.test' to='{domain}' type='valid'/>"
            ))
            .await;
    }
    let claim = "<db:result from='c.test' to='push.test'>key</db:result>";
    called.peer.send(claim).await;
    let refusal = called.peer.until("</db:result>").await;
    assert!(refusal.contains("<resource-constraint "), "{refusal}");
    // The stream goes on for those that it has.
    called
        .peer
        .send("<db:result from='a.test' to='push.test'>key</db:result>")
        .await;
    let valid = "<db:result from='push.test' to='a.test' type='valid'/>";
    called.peer.expect(valid).await;
}

#[actix::test]
async fn the_operator_chooses_the_peers() {
    let world = World::new();
    let mut config = world.config();
    config.allow = vec!["peer.test".to_owned(), "*.allowed.test".to_owned()];
    config.deny = vec!["bad.allowed.test".to_owned()];
    let service = world.start(&config);
    for refused in ["other.test", "allowed.test", "bad.allowed.test"] {
        let mut peer = Peer::new(TcpStream::connect(service.address).await.unwrap());
        peer.send(&header(refused, "push.test")).await;
        peer.until(" xml:lang='en'>").await;
        peer.expect_error("policy-violation").await;
    }
    let identity = world.trusted(&["a.allowed.test", "bad.allowed.test"]);
    let mut called = call(
        &service,
        &world,
        Some(&identity),
        "a.allowed.test",
        "push.test",
    )
    .await;
    // One who is let in brings nobody else.
    let claim = "<db:result from='bad.allowed.test' to='push.test'>key</db:result>";
    called.peer.send(claim).await;
    let answer = called.peer.until("</db:result>").await;
    assert!(
        answer.contains("<error type='cancel'><policy-violation "),
        "{answer}"
    );
}

#[actix::test]
async fn the_operator_may_require_certificates() {
    let world = World::new();
    let mut config = world.config();
    config.require_certificates = true;
    let service = world.start(&config);
    let claim = "<db:result from='peer.test' to='push.test'>key</db:result>";
    let mut called = call(&service, &world, None, "peer.test", "push.test").await;
    assert!(!called.features.contains("dialback"), "{}", called.features);
    // Who only asks about keys of ours is served.
    let verify = "<db:verify from='peer.test' to='push.test' id='x'>key</db:verify>";
    called.peer.send(verify).await;
    called.peer.until("type='invalid'/>").await;
    called.peer.send(claim).await;
    called.peer.expect_error("policy-violation").await;
    // A certificate does, in whichever way it is presented.
    authenticated(&service, &world).await;
    let identity = world.trusted(&["peer.test"]);
    let mut called = call(&service, &world, Some(&identity), "peer.test", "push.test").await;
    called.peer.send(claim).await;
    called.peer.until("type='valid'/>").await;
    // It is no ticket for others.
    let other = claim.replace("peer.test", "other.test");
    called.peer.send(&other).await;
    let answer = called.peer.until("</db:result>").await;
    assert!(
        answer.contains("<error type='cancel'><policy-violation "),
        "{answer}"
    );
}
