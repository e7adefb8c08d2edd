//! "Adding an actor" of docs/architecture.md, done: a counting actor between resolver and pool, without a
//! change to either.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix::{Actor, Context, Handler, Recipient, Supervised, Supervisor};
use campanile::dev::world::Plan;
use campanile::wiring::Extras;
use messages::{Clock, DeliverBatch, PushOutcome, Rejection};
use simulators::server::Answer;
use support::Rig;

struct Counting {
    deliver: Recipient<DeliverBatch>,
    seen: Arc<AtomicUsize>,
}

impl Actor for Counting {
    type Context = Context<Self>;
}

impl Supervised for Counting {}

impl Handler<DeliverBatch> for Counting {
    type Result = ();

    fn handle(&mut self, batch: DeliverBatch, _: &mut Self::Context) {
        self.seen.fetch_add(batch.items.len(), Ordering::Relaxed);
        if let Err(refused) = self.deliver.try_send(batch) {
            let batch = refused.into_inner();
            let unavailable = PushOutcome::Rejected(Rejection::Unavailable);
            batch.origin.tell(
                batch
                    .items
                    .iter()
                    .map(|item| (item.ticket, unavailable))
                    .collect(),
            );
        }
    }
}

#[actix_rt::test]
async fn an_actor_between_two_stages_sees_every_push_and_changes_nothing() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let extras = Extras {
        before_pool: Some(Arc::new(move |deliver| {
            let seen = count.clone();
            let start = |ctx: &mut Context<Counting>| {
                ctx.set_mailbox_capacity(0);
                Counting { deliver, seen }
            };
            Supervisor::start(start).recipient()
        })),
        ..Extras::default()
    };
    let rig = Rig::start_with(Plan::default(), Clock::system(), extras).await;
    let device = rig.register("ada", 1).await;
    for _ in 0..5 {
        assert_eq!(rig.push(&device, true).await, Answer::Result);
    }
    assert_eq!(seen.load(Ordering::Relaxed), 5);
    rig.finish().await;
}
