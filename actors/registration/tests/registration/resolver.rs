//! A publish finds its registration, or is refused.

use std::time::{Duration, Instant};

use actix::{Actor, ActorContext, Context, Handler, Recipient};
use messages::{
    Content, DeliverBatch, Disclosure, Domain, FindAccountKeys, JournalBatch, JournalEvent, NodeId,
    NotificationHint, Origin, OutcomeBatch, Publish, PublishBatch, PushOutcome, Rejection, Secret,
    Ticket,
};
use registration::resolver::{self, Edges, Handles};
use testkit::Collector;

use crate::fixture::{
    ADA, EVE, Fixture, HERE, NODE, account, after, counter, drain, only, secret, service, token,
    touch, unregister,
};

struct Lane {
    resolver: Handles,
    delivered: Collector<DeliverBatch>,
    journal: Collector<JournalBatch>,
    outcomes: Collector<OutcomeBatch>,
}

impl Lane {
    fn start(registrations: &registration::Registrations) -> Self {
        let delivered = Collector::start();
        let journal = Collector::start();
        Self {
            resolver: resolver::start(
                registrations,
                Edges {
                    deliver: delivered.recipient(),
                    journal: Some(journal.recipient()),
                },
            ),
            delivered,
            journal,
            outcomes: Collector::start(),
        }
    }

    fn publish(&self, items: Vec<Publish>, deadline: Instant) {
        let origin = Origin::new(self.outcomes.recipient());
        let batch = PublishBatch {
            origin,
            deadline,
            items,
        };
        self.resolver.publish.try_send(batch).unwrap();
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

const fn ticket(slot: u32) -> Ticket {
    Ticket {
        slot,
        generation: 3,
    }
}

fn publish(slot: u32, node: &str, secret: Option<&str>) -> Publish {
    Publish {
        ticket: ticket(slot),
        node: NodeId::new(node).unwrap(),
        secret: secret.map(|secret| Secret::new(secret).unwrap()),
        domain: Domain::new("chat.example"),
        service: service(),
        hint: NotificationHint {
            message_count: Some(slot),
            has_body: true,
        },
        content: Content::new(Disclosure::Body, &format!("text {slot}"), None).map(Box::new),
    }
}

#[actix::test]
async fn a_batch_is_split_into_found_and_refused() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    let ada = secret(&registry, ADA, NODE, "a").await;
    let eve = secret(&registry, EVE, NODE, "e").await;
    let mut lane = Lane::start(&registrations);
    let foreign = Publish {
        domain: Domain::new("evil.example"),
        ..publish(4, NODE, Some(&ada))
    };
    let elsewhere = Publish {
        service: Domain::new("other.example"),
        ..publish(5, NODE, Some(&ada))
    };
    let items = vec![
        publish(1, NODE, Some(&eve)),
        publish(2, NODE, Some(&"0".repeat(64))),
        publish(3, "nobody", Some(&ada)),
        foreign,
        elsewhere,
        publish(6, NODE, None),
        publish(7, NODE, Some(&ada)),
        publish(8, NODE, Some(&ada.to_uppercase())),
    ];
    lane.publish(items, soon());

    let delivered = lane.delivered.take().await;
    let found: Vec<_> = delivered
        .items
        .iter()
        .map(|item| (item.ticket.slot, item.hint.message_count))
        .collect();
    assert_eq!(found, [(1, Some(1)), (7, Some(7))]);
    assert!(delivered.items[0].device_token == token("e"));
    assert!(delivered.items[1].device_token == token("a"));
    assert!(delivered.items[1].registration == only(&registrations, ADA).registration);
    assert_eq!(delivered.items[1].app.as_str(), "app");

    let outcomes = lane.outcomes.take().await.items;
    let refused = |rejection| PushOutcome::Rejected(rejection);
    assert_eq!(
        outcomes,
        [
            (ticket(2), refused(Rejection::UnknownNode)),
            (ticket(3), refused(Rejection::UnknownNode)),
            (ticket(4), refused(Rejection::Forbidden)),
            (ticket(5), refused(Rejection::UnknownNode)),
            (ticket(6), refused(Rejection::UnknownNode)),
            (ticket(8), refused(Rejection::UnknownNode)),
        ]
    );
    // What is found takes with it what the journal is to be told, the rest is told at once: with the
    // registration where there is one, and without what a stranger calls a node.
    let mut hers = Vec::new();
    for account in [account(EVE), account(ADA)] {
        let find = FindAccountKeys { account };
        hers.extend(registry.accounts.send(find).await.unwrap());
    }
    for (item, hers) in delivered.items.iter().zip(&hers) {
        let trace = item.trace.as_ref().unwrap();
        assert_eq!(trace.at, fixture.clock.now());
        assert!(trace.node.as_str() == NODE);
        assert_eq!(trace.domain.as_str(), "chat.example");
        assert_eq!(trace.account, *hers);
    }
    let entries = lane.journal.take().await.items;
    let told: Vec<_> = entries
        .iter()
        .map(|entry| {
            let JournalEvent::Pushed(pushed) = &entry.event else {
                panic!("{entry:?}");
            };
            let target = pushed.target.as_ref().map(|target| {
                assert_eq!(target.account, hers[1]);
                target.registration
            });
            (target, pushed.domain.as_str(), pushed.outcome)
        })
        .collect();
    let unknown = (None, "chat.example", refused(Rejection::UnknownNode));
    let forbidden = (
        Some(delivered.items[1].registration),
        "evil.example",
        refused(Rejection::Forbidden),
    );
    assert_eq!(
        told,
        [unknown, unknown, forbidden, unknown, unknown, unknown]
    );
    let probe = &lane.resolver.probe;
    assert_eq!(counter(probe, "resolver_pushes_found_total").await, 2);
    assert_eq!(counter(probe, "resolver_pushes_unknown_total").await, 5);
    assert_eq!(counter(probe, "resolver_pushes_forbidden_total").await, 1);
    assert_eq!(drain(&lane.resolver.drain).await.abandoned, 0);
    assert!(lane.delivered.drain().is_empty() && lane.outcomes.drain().is_empty());
}

#[actix::test]
async fn a_registration_that_ended_is_unknown() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    let ada = secret(&registry, ADA, NODE, "a").await;
    crate::fixture::unregister(&registry, ADA, NODE).await;
    let mut lane = Lane::start(&registrations);
    lane.publish(vec![publish(1, NODE, Some(&ada))], soon());
    assert_eq!(
        lane.outcomes.take().await.items,
        [(ticket(1), PushOutcome::Rejected(Rejection::UnknownNode))]
    );
}

#[actix::test]
async fn an_overdue_batch_is_answered_and_not_sent() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    let ada = secret(&registry, ADA, NODE, "a").await;
    let mut lane = Lane::start(&registrations);
    lane.publish(vec![publish(1, NODE, Some(&ada))], Instant::now());
    assert_eq!(
        lane.outcomes.take().await.items,
        [(ticket(1), PushOutcome::Rejected(Rejection::TimedOut))]
    );
    assert!(lane.delivered.drain().is_empty());
    assert_eq!(lane.journal.take().await.items.len(), 1);
}

#[actix::test]
async fn without_a_journal_pushes_carry_nothing_for_it() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    let ada = secret(&registry, ADA, NODE, "a").await;
    let mut lane = Lane::start(&registrations);
    lane.resolver = resolver::start(
        &registrations,
        Edges {
            deliver: lane.delivered.recipient(),
            journal: None,
        },
    );
    lane.publish(
        vec![publish(1, NODE, Some(&ada)), publish(2, NODE, None)],
        soon(),
    );
    assert!(lane.delivered.take().await.items[0].trace.is_none());
    assert!(lane.journal.drain().is_empty());
}

/// A pool that has ended.
struct Gone;

impl Actor for Gone {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl Handler<DeliverBatch> for Gone {
    type Result = ();

    fn handle(&mut self, _: DeliverBatch, _: &mut Self::Context) {}
}

#[actix::test]
async fn without_a_pool_pushes_are_unavailable() {
    let fixture = Fixture::new();
    let (registrations, registry) = fixture.start();
    let ada = secret(&registry, ADA, NODE, "a").await;
    let deliver: Recipient<DeliverBatch> = Gone.start().recipient();
    while deliver.connected() {
        tokio::task::yield_now().await;
    }
    let mut lane = Lane::start(&registrations);
    let journal = Some(lane.journal.recipient());
    lane.resolver = resolver::start(&registrations, Edges { deliver, journal });
    let items = vec![publish(1, NODE, Some(&ada)), publish(2, "nobody", None)];
    lane.publish(items, soon());
    assert_eq!(
        lane.outcomes.take().await.items,
        [
            (ticket(2), PushOutcome::Rejected(Rejection::UnknownNode)),
            (ticket(1), PushOutcome::Rejected(Rejection::Unavailable)),
        ]
    );
    let told = lane.journal.take().await.items;
    let JournalEvent::Pushed(unavailable) = &told[1].event else {
        panic!("{told:?}");
    };
    assert!(unavailable.target.as_ref().unwrap().node.as_str() == NODE);
}

#[actix::test]
async fn where_apns_took_a_device_token_is_known_until_there_is_another() {
    let mut fixture = Fixture::new();
    // Each is written at once.
    fixture.config.touches_max = 2;
    let (registrations, registry) = fixture.start();
    let ada = secret(&registry, ADA, NODE, "a").await;
    let mut lane = Lane::start(&registrations);
    let took = async |seconds| {
        touch(
            &registry,
            only(&registrations, ADA).registration,
            after(seconds),
        );
        // Answered after what queued before it.
        assert_eq!(unregister(&registry, EVE, NODE).await, 0);
    };
    let mut known = async || {
        lane.publish(vec![publish(1, NODE, Some(&ada))], soon());
        let items = lane.delivered.take().await.items;
        assert_eq!(items.len(), 1);
        items[0].acceptance
    };
    assert_eq!(known().await, None);
    took(0).await;
    assert_eq!(known().await, None, "it may have been the one before");
    took(1).await;
    assert_eq!(known().await, Some(HERE));
    secret(&registry, ADA, NODE, "a").await;
    assert_eq!(known().await, Some(HERE));
    registry
        .rotate
        .send(messages::RotateKeys)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(known().await, Some(HERE));
    secret(&registry, ADA, NODE, "b").await;
    assert_eq!(known().await, None);
    took(2).await;
    assert_eq!(known().await, Some(HERE));
}
