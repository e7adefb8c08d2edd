//! Whatever one source of streams does, something is left for the others. A source is an address here: of
//! this machine, which has many.

use std::time::{Duration, Instant};

use messages::PushOutcome;
use tokio::net::TcpListener;

use crate::peer::{
    Called, Caller, OFFER_DIALBACK, Peer, accept, answer, answer_external, authenticated,
    authenticated_at, call_at, connect_at, header, publish, result,
};
use crate::world::{Service, World};

/// Servers that take connections and say nothing.
async fn hanging(world: &mut World, domains: &[&str]) -> Vec<TcpListener> {
    let mut homes = Vec::new();
    for domain in domains {
        homes.push(world.home(domain).await);
    }
    homes
}

fn claim(domain: &str) -> String {
    format!("<db:result from='{domain}' to='push.test'>key</db:result>")
}

fn ping(domain: &str, id: &str) -> String {
    format!(
        "<iq type='get' id='{id}' from='{domain}' to='push.test'><ping xmlns='urn:xmpp:ping'/></iq>"
    )
}

/// Has one answer of peer.test sent.
async fn answer_one(service: &mut Service, peer: &mut Caller, id: &str) {
    peer.send(&publish(id, "node")).await;
    service.settle(PushOutcome::Accepted).await;
}

const EVIL: [&str; 6] = [
    "a.evil.test",
    "b.evil.test",
    "c.evil.test",
    "d.evil.test",
    "e.evil.test",
    "f.evil.test",
];

/// Proves all of these domains on one stream and asks something as each.
async fn ask_as_each(service: &Service, world: &World, address: u8, domains: &[&str]) -> Caller {
    let mut evil = authenticated_at(service, world, address, domains).await;
    for domain in domains {
        evil.send(&claim(domain)).await;
        evil.until("type='valid'/>").await;
        evil.send(&ping(domain, "p")).await;
    }
    evil
}

#[actix::test]
async fn a_source_leaves_streams_to_peers_for_others() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let _hanging = hanging(&mut world, &EVIL).await;
    let mut config = world.config();
    config.egress_streams_max = 6;
    let mut service = world.start(&config);
    let _evil = ask_as_each(&service, &world, 2, &EVIL).await;
    // Half of the streams are its own.
    service.counted("replies_lost_total", 3).await;
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    // One line tells of it, and names the key.
    assert_eq!(service.count("shortages_total").await, 3);
    assert_eq!(service.count("shortages_logged_total").await, 1);
}

#[actix::test]
async fn peers_that_were_never_reached_give_way() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let _hanging = hanging(&mut world, &EVIL).await;
    let mut config = world.config();
    config.egress_streams_max = 2;
    let mut service = world.start(&config);
    let _evil = ask_as_each(&service, &world, 2, &EVIL[..1]).await;
    let _other = ask_as_each(&service, &world, 3, &EVIL[1..2]).await;
    service.counted("egress_connects_total", 2).await;
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    // The oldest went, and its answer with it.
    service.counted("replies_lost_total", 1).await;
    // One that was reached does not: the other one goes.
    let _third = ask_as_each(&service, &world, 4, &EVIL[2..3]).await;
    service.counted("replies_lost_total", 2).await;
    answer_one(&mut service, &mut peer, "id-2").await;
    returning.expect(&result("id-2")).await;
}

#[actix::test]
async fn a_source_leaves_room_for_the_answers_of_others() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let _hanging = hanging(&mut world, &EVIL[..1]).await;
    let mut config = world.config();
    config.egress_bytes_max = 8192;
    let mut service = world.start(&config);
    let mut evil = authenticated_at(&service, &world, 2, &EVIL[..1]).await;
    for _ in 0..20 {
        evil.send(&ping(EVIL[0], &"x".repeat(1000))).await;
        evil.send(&claim(EVIL[0])).await;
        evil.until("type='valid'/>").await;
    }
    // Less than half is its own: each of its answers has more than 1000 bytes.
    service.counted("replies_lost_total", 17).await;
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    assert_eq!(service.count("shortages_logged_total").await, 1);
}

#[actix::test]
async fn a_peer_that_takes_its_answers_gets_them_though_no_room_is_left() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let _hanging = hanging(&mut world, &EVIL[..1]).await;
    let mut config = world.config();
    config.egress_bytes_max = 4096;
    config.id_bytes_max = 4000;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    // All at once, which is the first that this source wants.
    let mut evil = authenticated_at(&service, &world, 2, &EVIL[..1]).await;
    evil.send(&ping(EVIL[0], &"x".repeat(3800))).await;
    evil.send(&claim(EVIL[0])).await;
    evil.until("type='valid'/>").await;
    let id = "y".repeat(600);
    answer_one(&mut service, &mut peer, &id).await;
    returning.expect(&result(&id)).await;
    assert_eq!(service.count("replies_lost_total").await, 0);
    assert_eq!(service.count("shortages_total").await, 1);
}

#[actix::test]
async fn a_stanza_with_an_endless_id_is_passed_over() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    let longest = "x".repeat(1023);
    let longer = "x".repeat(1024);
    let malformed = publish(&longer, "n").replace("<notification xmlns='urn:xmpp:push:0'/>", "");
    peer.send(&publish(&longer, "node")).await;
    peer.send(&malformed).await;
    peer.send(&ping("peer.test", &longer)).await;
    answer_one(&mut service, &mut peer, &longest).await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result(&longest)).await;
    assert_eq!(service.count("stanzas_passed_over_total").await, 3);
    assert_eq!(service.count("publishes_total").await, 1);
    assert_eq!(service.count("replies_total").await, 1);
}

async fn stranger(service: &Service, world: &World, address: u8, domain: &str) -> Called {
    call_at(service, world, address, None, domain, "push.test").await
}

const CONSTRAINT: &str = "<error type='wait'><resource-constraint ";
const TIMEOUT: &str = "<error type='wait'><remote-server-timeout ";

#[actix::test]
async fn a_source_leaves_verifications_for_others() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let _hanging = hanging(&mut world, &EVIL).await;
    let mut config = world.config();
    config.verifications_max = 4;
    let service = world.start(&config);
    let mut evil = stranger(&service, &world, 2, EVIL[0]).await;
    for domain in &EVIL[..3] {
        evil.peer.send(&claim(domain)).await;
    }
    let answer = evil.peer.until("</db:result>").await;
    assert!(answer.contains(" to='c.evil.test' "), "{answer}");
    assert!(answer.contains(CONSTRAINT), "{answer}");
    let mut called = stranger(&service, &world, 1, "peer.test").await;
    called.peer.send(&claim("peer.test")).await;
    accept(&home).await;
    assert_eq!(service.count("shortages_logged_total").await, 1);
}

#[actix::test]
async fn the_verification_that_takes_longest_gives_way() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let homes = hanging(&mut world, &EVIL[..2]).await;
    let mut config = world.config();
    config.verifications_max = 2;
    let service = world.start(&config);
    let mut streams = Vec::new();
    for (address, (domain, home)) in (2..).zip(EVIL.iter().zip(&homes)) {
        let mut evil = stranger(&service, &world, address, domain).await;
        evil.peer.send(&claim(domain)).await;
        streams.push((evil, accept(home).await));
    }
    let mut called = stranger(&service, &world, 1, "peer.test").await;
    called.peer.send(&claim("peer.test")).await;
    let answer = streams[0].0.peer.until("</db:result>").await;
    assert!(answer.contains(CONSTRAINT), "{answer}");
    accept(&home).await;
}

#[actix::test]
async fn a_domain_is_not_called_because_of_one_source_without_end() {
    let mut world = World::new();
    let home = world.home("victim.test").await;
    let mut config = world.config();
    config.verifications_per_domain_max = 4;
    let service = world.start(&config);
    // Once for each stream.
    let mut evil = Vec::new();
    for _ in 0..3 {
        evil.push(stranger(&service, &world, 2, "victim.test").await);
    }
    evil[0].peer.send(&claim("victim.test").repeat(2)).await;
    let answer = evil[0].peer.until("</db:result>").await;
    assert!(answer.contains(CONSTRAINT), "{answer}");
    // And half of what there is for that domain.
    evil[1].peer.send(&claim("victim.test")).await;
    evil[2].peer.send(&claim("victim.test")).await;
    let answer = evil[2].peer.until("</db:result>").await;
    assert!(answer.contains(CONSTRAINT), "{answer}");
    // The victim is not kept from it.
    let mut victim = stranger(&service, &world, 1, "victim.test").await;
    victim.peer.send(&claim("victim.test")).await;
    let mut asked = Vec::new();
    for _ in 0..3 {
        asked.push(accept(&home).await);
    }
}

#[actix::test]
async fn who_was_denied_is_not_believed_again_at_once() {
    let mut world = World::new();
    let home = world.home("victim.test").await;
    let service = world.start(&world.config());
    let identity = world.self_signed(&["victim.test"]);
    let mut evil = stranger(&service, &world, 2, "victim.test").await;
    evil.peer.send(&claim("victim.test")).await;
    let mut asked = answer(&home, &world, &identity, "verify", OFFER_DIALBACK).await;
    asked.peer.until("</db:verify>").await;
    let denial = format!(
        "<db:verify from='victim.test' to='push.test' id='{}' type='invalid'/>",
        evil.id
    );
    asked.peer.send(&denial).await;
    evil.peer.until("type='invalid'/>").await;
    evil.peer.expect_error("not-authorized").await;
    let mut again = stranger(&service, &world, 2, "victim.test").await;
    again.peer.send(&claim("victim.test")).await;
    let answered = again.peer.until("</db:result>").await;
    assert!(answered.contains(CONSTRAINT), "{answered}");
    // The victim itself is somewhere else.
    let mut victim = stranger(&service, &world, 1, "victim.test").await;
    victim.peer.send(&claim("victim.test")).await;
    let mut asked = answer(&home, &world, &identity, "verify", OFFER_DIALBACK).await;
    asked.peer.until("</db:verify>").await;
}

#[actix::test]
async fn a_server_that_cannot_be_asked_is_left_alone_for_a_moment() {
    let mut world = World::new();
    let gone = world.home("victim.test").await;
    drop(gone);
    let service = world.start(&world.config());
    let mut evil = stranger(&service, &world, 2, "victim.test").await;
    let mut answered = Vec::new();
    // The second in the same pause, on the same stream or on another.
    for _ in 0..2 {
        evil.peer.send(&claim("victim.test")).await;
        answered.push(evil.peer.until("</db:result>").await);
    }
    let mut evil = stranger(&service, &world, 2, "victim.test").await;
    evil.peer.send(&claim("victim.test")).await;
    answered.push(evil.peer.until("</db:result>").await);
    assert!(answered[0].contains(TIMEOUT), "{}", answered[0]);
    assert!(answered[1].contains(CONSTRAINT), "{}", answered[1]);
    assert!(answered[2].contains(CONSTRAINT), "{}", answered[2]);
    // The victim itself is somewhere else.
    let mut victim = stranger(&service, &world, 1, "victim.test").await;
    victim.peer.send(&claim("victim.test")).await;
    let answered = victim.peer.until("</db:result>").await;
    assert!(answered.contains(TIMEOUT), "{answered}");
}

/// So many names of one address, at which nobody listens.
async fn names(world: &mut World, count: u32) -> Vec<String> {
    let names: Vec<_> = (0..count).map(|n| format!("{n}.evil.test")).collect();
    for name in &names {
        drop(world.home(name).await);
    }
    names
}

#[actix::test]
async fn one_source_has_so_many_keys_verified() {
    let mut world = World::new();
    let names = names(&mut world, 100).await;
    let mut config = world.config();
    config.verifications_per_address_per_second_max = 1;
    let service = world.start(&config);
    let mut evil = stranger(&service, &world, 2, "evil.test").await;
    let mut refused = 0;
    for name in &names {
        evil.peer.send(&claim(name)).await;
        let answered = evil.peer.until("</db:result>").await;
        refused += u32::from(answered.contains(CONSTRAINT));
    }
    assert!(refused > 0, "ten at once and one a second");
    // Others have their own.
    let mut other = stranger(&service, &world, 3, "evil.test").await;
    other.peer.send(&claim(&names[0])).await;
    let answered = other.peer.until("</db:result>").await;
    assert!(answered.contains(TIMEOUT), "{answered}");
}

/// It may be anybody's: whoever owns names says where they lead.
#[actix::test]
async fn one_address_is_called_so_often_whatever_name_leads_there() {
    let mut world = World::new();
    let names = names(&mut world, 12).await;
    let mut config = world.config();
    config.verification_connections_per_address_per_second_max = 1;
    let service = world.start(&config);
    let mut evil = stranger(&service, &world, 2, "evil.test").await;
    let began = Instant::now();
    for name in &names {
        evil.peer.send(&claim(name)).await;
        let answered = evil.peer.until("</db:result>").await;
        assert!(answered.contains(TIMEOUT), "{answered}");
    }
    // Ten at once, and the others a second after each other.
    assert!(began.elapsed() >= Duration::from_secs(2));
}

#[actix::test]
async fn silent_strangers_give_way_to_who_comes() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.streams_max = 3;
    let mut service = world.start(&config);
    let mut silent = Vec::new();
    for address in 2..5 {
        silent.push(connect_at(&service, address).await);
        service
            .counted("connections_accepted_total", (address - 1).into())
            .await;
    }
    let mut peer = authenticated(&service, &world).await;
    silent[0].closed().await;
    // Who has proven something stays, whoever comes.
    for address in 5..15 {
        let mut stranger = connect_at(&service, address).await;
        stranger.send(&header("evil.test", "push.test")).await;
        stranger.until("</stream:features>").await;
        silent.push(stranger);
    }
    answer_one(&mut service, &mut peer, "id-1").await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("id-1")).await;
    assert_eq!(service.count("shortages_logged_total").await, 1);
    assert_eq!(service.count("connections_refused_total").await, 0);
}

#[actix::test]
async fn half_of_a_large_stanza_does_not_wait_in_any_number() {
    let world = World::new();
    let mut config = world.config();
    config.unread_bytes_max = 320 << 10;
    let mut service = world.start(&config);
    let begin = |domain: &str| {
        let content = "x".repeat(100 << 10);
        format!("<message from='{domain}' to='push.test'><body>{content}")
    };
    let mut evil = authenticated_at(&service, &world, 2, &EVIL[..1]).await;
    evil.send(&begin(EVIL[0])).await;
    let mut again = authenticated_at(&service, &world, 2, &EVIL[..1]).await;
    again.offer(&begin(EVIL[0])).await;
    again.expect_error("resource-constraint").await;
    // Others have as much as before.
    let mut peer = authenticated(&service, &world).await;
    peer.send(&begin("peer.test")).await;
    peer.send("</body></message>").await;
    answer_one(&mut service, &mut peer, "id-1").await;
    assert_eq!(service.count("shortages_logged_total").await, 1);
}

#[actix::test]
async fn what_came_too_late_is_not_sent_when_the_peer_is_found_at_last() {
    let mut world = World::new();
    let silent = world.home("peer.test").await;
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.egress_wait_seconds = 1;
    config.connect_timeout_seconds = 2;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    answer_one(&mut service, &mut peer, "id-1").await;
    let _silent: Peer<_> = accept(&silent).await;
    let mut returning = answer_external(&home, &world).await;
    service.counted("replies_lost_total", 1).await;
    answer_one(&mut service, &mut peer, "id-2").await;
    returning.expect(&result("id-2")).await;
    assert_eq!(service.count("egress_connects_total").await, 1);
}
