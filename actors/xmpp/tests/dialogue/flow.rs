//! Tickets, batches and answers on an authenticated stream.

use actix::{Actor, ActorContext as _, Context, Handler};
use messages::{PublishBatch, PushOutcome, Rejection};

use crate::peer::{answer_external, attribute, authenticated, publish, result};
use crate::world::{World, nodes};

fn error(id: &str, kind: &str, condition: &str) -> String {
    format!(
        "<iq type='error' id='{id}' from='push.test' to='peer.test'><error type='{kind}'>\
         <{condition} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>"
    )
}

#[actix::test]
async fn one_read_is_one_batch() {
    let world = World::new();
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    let burst: String = (0..3).map(|n| publish("id", &format!("n{n}"))).collect();
    peer.send(&format!(" {burst}\n")).await;
    assert_eq!(nodes(&service.published.take().await), ["n0", "n1", "n2"]);
}

#[actix::test]
async fn without_tickets_the_stream_is_not_read() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.tickets_per_stream = 2;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    let burst: String = (0..5)
        .map(|n| publish(&format!("i{n}"), &format!("n{n}")))
        .collect();
    peer.send(&burst).await;

    let first = service.published.take().await;
    assert_eq!(nodes(&first), ["n0", "n1"]);
    service.counted("stream_stalls_total", 1).await;
    assert!(service.published.drain().is_empty());
    // One ticket comes free, one publish is read.
    first
        .origin
        .tell(vec![(first.items[1].ticket, PushOutcome::Accepted)]);
    let second = service.published.take().await;
    assert_eq!(nodes(&second), ["n2"]);
    first
        .origin
        .tell(vec![(first.items[0].ticket, PushOutcome::Accepted)]);
    second
        .origin
        .tell(vec![(second.items[0].ticket, PushOutcome::Accepted)]);
    let mut rest = Vec::new();
    while rest.len() < 2 {
        rest.extend(service.settle(PushOutcome::Accepted).await);
    }
    assert_eq!(rest, ["n3", "n4"]);

    let mut returning = answer_external(&home, &world).await;
    for id in ["i1", "i0", "i2", "i3", "i4"] {
        returning.expect(&result(id)).await;
    }
    assert_eq!(service.gate.load.get(), 16, "one stream without tickets");
}

#[actix::test]
async fn more_publishes_than_tickets_are_all_answered() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.tickets_per_stream = 4;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    let burst: String = (0..64)
        .map(|n| publish(&format!("i{n}"), &format!("n{n}")))
        .collect();
    peer.send(&burst).await;
    // Every third registration is gone: each iq has its own verdict.
    let gone = |n: usize| n.is_multiple_of(3);
    let mut settled = 0;
    while settled < 64 {
        let batch = service.published.take().await;
        assert!(batch.items.len() <= 4);
        let outcomes = batch.items.iter().map(|item| {
            assert_eq!(item.node.as_str(), format!("n{settled}"));
            let outcome = match gone(settled) {
                true => PushOutcome::Rejected(Rejection::UnknownNode),
                false => PushOutcome::Accepted,
            };
            settled += 1;
            (item.ticket, outcome)
        });
        let outcomes = outcomes.collect();
        batch.origin.tell(outcomes);
    }
    let mut returning = answer_external(&home, &world).await;
    for n in 0..64 {
        if gone(n) {
            let refused = returning.until("</iq>").await;
            assert_eq!(attribute(&refused, "id"), format!("i{n}"));
            assert!(refused.contains("<item-not-found "), "{refused}");
        } else {
            returning.expect(&result(&format!("i{n}"))).await;
        }
    }
    assert_eq!(service.count("publishes_total").await, 64);
    assert_eq!(service.count("replies_total").await, 64);
}

#[actix::test]
async fn an_answer_comes_from_exactly_where_the_publish_went() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    let addresses = [
        "node@push.test",
        "push.test/res",
        "a@push.test/B c",
        "Push.test",
    ];
    for (n, to) in addresses.iter().enumerate() {
        let iq = publish(&format!("i{n}"), "node").replace("'push.test'", &format!("'{to}'"));
        peer.send(&iq).await;
        let batch = service.published.take().await;
        assert_eq!(batch.items[0].service.as_str(), "push.test");
        batch
            .origin
            .tell(vec![(batch.items[0].ticket, PushOutcome::Accepted)]);
    }
    let mut returning = answer_external(&home, &world).await;
    for (n, to) in addresses.iter().enumerate() {
        returning
            .expect(&format!(
                "<iq type='result' id='i{n}' from='{to}' to='peer.test'/>"
            ))
            .await;
    }
}

#[actix::test]
async fn servers_ping_each_other() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    peer.send(
        "<iq type='get' id='p' from='peer.test' to='push.test'><ping xmlns='urn:xmpp:ping'/></iq>",
    )
    .await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("p")).await;
}

#[actix::test]
async fn outcomes_become_answers() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    peer.send(&publish("a", "n")).await;
    service.settle(PushOutcome::Deferred).await;
    let mut returning = answer_external(&home, &world).await;
    returning.expect(&result("a")).await;
    peer.send(&publish("b", "n")).await;
    service
        .settle(PushOutcome::Rejected(Rejection::Unavailable))
        .await;
    returning
        .expect(&error("b", "wait", "internal-server-error"))
        .await;
    // A publish that cannot be understood, and one of a user instead of her server.
    peer.send(&publish("c", "n").replace("<notification xmlns='urn:xmpp:push:0'/>", ""))
        .await;
    returning.expect(&error("c", "wait", "bad-request")).await;
    peer.send(&publish("d", "n").replace("'peer.test'", "'ada@peer.test/x'"))
        .await;
    let refused = returning.until("</iq>").await;
    assert!(refused.contains(" to='ada@peer.test/x'"), "{refused}");
    assert!(
        refused.contains("<error type='cancel'><item-not-found "),
        "{refused}"
    );
    assert_eq!(service.count("publishes_total").await, 2);
}

#[actix::test]
async fn a_pipeline_that_stays_silent_is_not_waited_for() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let mut config = world.config();
    config.reply_deadline_seconds = 1;
    let mut service = world.start(&config);
    let mut peer = authenticated(&service, &world).await;
    peer.send(&publish("a", "n")).await;
    let batch = service.published.take().await;
    // The stream may end before: its iqs are answered all the same.
    peer.send("</stream:stream>").await;
    peer.expect_end("</stream:stream>").await;
    let mut returning = answer_external(&home, &world).await;
    returning
        .expect(&error("a", "wait", "remote-server-timeout"))
        .await;
    assert_eq!(service.count("publishes_timed_out_total").await, 1);
    // Then the session is over, and a verdict finds nobody.
    let begun = std::time::Instant::now();
    while batch
        .origin
        .tell(vec![(batch.items[0].ticket, PushOutcome::Accepted)])
        == 0
    {
        assert!(
            begun.elapsed() < testkit::PATIENCE,
            "the session does not end"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(service.gate.load.get(), 0);
}

/// Ends at once.
struct Dead;

impl Actor for Dead {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl Handler<PublishBatch> for Dead {
    type Result = ();

    fn handle(&mut self, _: PublishBatch, _: &mut Self::Context) {}
}

#[actix::test]
async fn a_dead_pipeline_is_answered_for() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let dead = Dead.start();
    while dead.connected() {
        tokio::task::yield_now().await;
    }
    let service = world.start_with(&world.config(), Some(dead.recipient()));
    let mut peer = authenticated(&service, &world).await;
    peer.send(&publish("a", "n")).await;
    let mut returning = answer_external(&home, &world).await;
    returning
        .expect(&error("a", "wait", "internal-server-error"))
        .await;
}

pub(crate) const COMMAND: &str = "<iq id='r' type='set' from='ada@peer.test/phone' to='push.test'>\
    <command xmlns='http://jabber.org/protocol/commands' node='NODE'>\
    <x xmlns='jabber:x:data' type='submit'><field var='type'><value>apns</value></field>\
    <field var='node'><value>UUID</value></field><field var='token'>\
    <value>80c0ffee80c0ffee80c0ffee80c0ffee80c0ffee80c0ffee80c0ffee80c0ffee</value></field>\
    </x></command></iq>";

#[actix::test]
async fn registrations_are_asked_for_and_answered() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    let register = COMMAND.replace("NODE", "v1-register-push");
    peer.send(&register).await;
    let mut returning = answer_external(&home, &world).await;
    let answer = returning.until("</iq>").await;
    assert!(
        answer.starts_with("<iq type='result' id='r' from='push.test' to='ada@peer.test/phone'>")
    );
    assert!(
        answer.contains("<value>secret of ada@peer.test</value>"),
        "{answer}"
    );
    peer.send(&register.replace("UUID", "busy")).await;
    let answer = returning.until("</iq>").await;
    assert!(answer.contains("<error type='wait'>"), "{answer}");
    peer.send(&COMMAND.replace("NODE", "v1-unregister-push"))
        .await;
    let answer = returning.until("</iq>").await;
    assert!(answer.contains(" status='complete'"), "{answer}");
    assert_eq!(service.count("registrations_total").await, 3);
}

#[actix::test]
async fn other_requests_are_answered_and_answers_are_not() {
    let mut world = World::new();
    let home = world.home("peer.test").await;
    let service = world.start(&world.config());
    let mut peer = authenticated(&service, &world).await;
    peer.send(
        "<iq type='result' id='x' from='peer.test' to='push.test'/>\
         <message from='ada@peer.test' to='push.test'><body>hello</body></message>\
         <presence from='ada@peer.test' to='push.test' type='subscribe'/>\
         <bidi xmlns='urn:xmpp:bidi'/>\
         <iq type='get' id='v' from='peer.test' to='push2.test'><query xmlns='jabber:iq:version'/></iq>",
    )
    .await;
    // It was asked as push2.test, so that is who answers.
    let identity = world.trusted(&["peer.test"]);
    let offer = crate::peer::OFFER_DIALBACK;
    let mut answered = crate::peer::answer(&home, &world, &identity, "out", offer).await;
    let claim = answered.peer.until("</db:result>").await;
    assert!(
        claim.starts_with("<db:result from='push2.test' to='peer.test'>"),
        "{claim}"
    );
    let valid = "<db:result from='peer.test' to='push2.test' type='valid'/>";
    answered.peer.send(valid).await;
    let answer = answered.peer.until("</iq>").await;
    assert!(answer.starts_with("<iq type='result' id='v' from='push2.test' to='peer.test'>"));
    assert!(answer.contains("<version>1.2.3</version>"), "{answer}");
    assert_eq!(service.count("replies_total").await, 1);
}
