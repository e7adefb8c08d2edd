//! Measures where a push spends its time: actors put between the stages of the real pipeline.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use actix::{Actor, Addr, AsyncContext, Context, Handler, Recipient, Supervised, Supervisor};
use messages::{
    DeliverBatch, NodeId, Origin, OutcomeBatch, PublishBatch, PushOutcome, Rejection, Ticket,
};
use tokio::sync::mpsc;

use crate::wiring::{Extras, Interpose};

/// Pushes whose hops are held until somebody reads them.
const HOPS_MAX: usize = 1024;

/// When one push passed which stage.
#[derive(Debug)]
pub struct Hops {
    /// The node published to.
    pub node: NodeId,
    /// The publish left its stream.
    pub received: Instant,
    /// Its registration was found. `None` if there was none.
    pub resolved: Option<Instant>,
    /// Its outcome came.
    pub decided: Instant,
    /// The outcome.
    pub outcome: PushOutcome,
}

struct Begun {
    node: NodeId,
    received: Instant,
    resolved: Option<Instant>,
}

/// What the actors of all lanes write down together.
#[derive(Clone)]
struct Notebook {
    begun: Arc<Mutex<HashMap<(Origin, Ticket), Begun>>>,
    finished: mpsc::Sender<Hops>,
}

impl Notebook {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<(Origin, Ticket), Begun>) -> T) -> T {
        act(&mut self.begun.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Actors to put between the stages, and where the hops of each push can be read.
#[must_use]
pub fn extras() -> (Extras, mpsc::Receiver<Hops>) {
    let (finished, hops) = mpsc::channel(HOPS_MAX);
    let notebook = Notebook {
        begun: Arc::default(),
        finished,
    };
    let behind = notebook.clone();
    let before_resolver: Interpose<PublishBatch> = Arc::new(move |resolver| {
        let notebook = notebook.clone();
        start(Receiving {
            resolver,
            notebook,
            stand_ins: HashMap::new(),
        })
        .recipient()
    });
    let before_pool: Interpose<DeliverBatch> = Arc::new(move |pool| {
        start(Resolved {
            pool,
            notebook: behind.clone(),
        })
        .recipient()
    });
    let extras = Extras {
        before_resolver: Some(before_resolver),
        before_pool: Some(before_pool),
    };
    (extras, hops)
}

fn start<A: Actor<Context = Context<A>> + Supervised>(actor: A) -> Addr<A> {
    Supervisor::start(|ctx: &mut Context<A>| {
        ctx.set_mailbox_capacity(0);
        actor
    })
}

/// In front of the resolver: notes the arrival and puts itself into the way of the answer.
struct Receiving {
    resolver: Recipient<PublishBatch>,
    notebook: Notebook,
    stand_ins: HashMap<Origin, Origin>,
}

impl Actor for Receiving {
    type Context = Context<Self>;
}

impl Supervised for Receiving {}

impl Handler<PublishBatch> for Receiving {
    type Result = ();

    fn handle(&mut self, batch: PublishBatch, _: &mut Self::Context) {
        let received = Instant::now();
        let stand_in = self
            .stand_ins
            .entry(batch.origin.clone())
            .or_insert_with(|| {
                let (origin, notebook) = (batch.origin, self.notebook.clone());
                let deciding = Supervisor::start(|ctx: &mut Context<Deciding>| {
                    ctx.set_mailbox_capacity(0);
                    let own = Origin::new(ctx.address().recipient());
                    Deciding {
                        origin,
                        own,
                        notebook,
                    }
                });
                Origin::new(deciding.recipient())
            })
            .clone();
        self.notebook.with(|begun| {
            for item in &batch.items {
                let push = Begun {
                    node: item.node.clone(),
                    received,
                    resolved: None,
                };
                begun.insert((stand_in.clone(), item.ticket), push);
            }
        });
        let batch = PublishBatch {
            origin: stand_in,
            ..batch
        };
        if let Err(refused) = self.resolver.try_send(batch) {
            let batch = refused.into_inner();
            let internal = PushOutcome::Rejected(Rejection::Internal);
            batch.origin.tell(
                batch
                    .items
                    .iter()
                    .map(|item| (item.ticket, internal))
                    .collect(),
            );
        }
    }
}

/// In front of the pool: notes that the registration was found.
struct Resolved {
    pool: Recipient<DeliverBatch>,
    notebook: Notebook,
}

impl Actor for Resolved {
    type Context = Context<Self>;
}

impl Supervised for Resolved {}

impl Handler<DeliverBatch> for Resolved {
    type Result = ();

    fn handle(&mut self, batch: DeliverBatch, _: &mut Self::Context) {
        let now = Instant::now();
        self.notebook.with(|begun| {
            for item in &batch.items {
                if let Some(push) = begun.get_mut(&(batch.origin.clone(), item.ticket)) {
                    push.resolved = Some(now);
                }
            }
        });
        if let Err(refused) = self.pool.try_send(batch) {
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

/// In the way of the answer: notes the outcome and passes it on.
struct Deciding {
    origin: Origin,
    own: Origin,
    notebook: Notebook,
}

impl Actor for Deciding {
    type Context = Context<Self>;
}

impl Supervised for Deciding {}

impl Handler<OutcomeBatch> for Deciding {
    type Result = ();

    fn handle(&mut self, batch: OutcomeBatch, _: &mut Self::Context) {
        let decided = Instant::now();
        for (ticket, outcome) in &batch.items {
            let begun = self
                .notebook
                .with(|begun| begun.remove(&(self.own.clone(), *ticket)));
            if let Some(Begun {
                node,
                received,
                resolved,
            }) = begun
            {
                let hops = Hops {
                    node,
                    received,
                    resolved,
                    decided,
                    outcome: *outcome,
                };
                let _nobody_reads_that_fast = self.notebook.finished.try_send(hops);
            }
        }
        self.origin.tell(batch.items);
    }
}
