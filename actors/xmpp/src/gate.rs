//! The way in, one per lane: starts a session for each stream, counts what sessions do, and drains them.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix::{
    Actor, Addr, AsyncContext as _, Context, Handler, Message, Recipient, ResponseFuture,
    Supervised, Supervisor,
};
use futures_util::future::join_all;
use messages::{
    ConfirmCase, Drain, Drained, Health, OfferPost, Probe, PublishBatch, Register,
    RunPrivacyCommand, SendMessage, Unregister,
};
use tokio::time::Instant;

use crate::Ingress;
use crate::accounts::Hold;
use crate::component::{self, Component};
use crate::egress::EgressBatch;
use crate::session::{self, Session};
use crate::stream::inbound::Inbound;
use crate::stream::{Fault, Trace};

/// How often a component's session that is gone is looked for.
const REVIVAL: Duration = Duration::from_secs(5);
/// What an idle stream weighs against open tickets when a lane is chosen.
const STREAM_WEIGHT: usize = 16;
/// The fewest sessions among which those that ended are looked for.
const SWEEP_MIN: usize = 64;

/// What a gate's sessions send.
pub struct Edges {
    /// Publishes, to the resolver of the same lane.
    pub publish: Recipient<PublishBatch>,
    /// Registrations.
    pub register: Recipient<Register>,
    /// Ends of registrations.
    pub unregister: Recipient<Unregister>,
    /// What people ask about their data; none where nobody answers.
    pub privacy: Option<PrivacyEdges>,
    /// Answers, to the egresses of all lanes in the same order on each lane: the peer's domain decides
    /// which one owns its stream.
    pub egress: Vec<Recipient<EgressBatch>>,
}

/// Who answers people about their data.
#[derive(Clone)]
pub struct PrivacyEdges {
    /// Takes codes.
    pub confirm: Recipient<ConfirmCase>,
    /// Goes on with commands.
    pub command: Recipient<RunPrivacyCommand>,
    /// Is told by each gate that it sends messages.
    pub offer: Recipient<OfferPost>,
}

/// What a gate accepts.
#[derive(Clone)]
pub struct Handles {
    /// Secured streams, from the porch.
    pub admit: Recipient<AdmitStream>,
    /// Components to keep connected.
    pub attach: Recipient<Component>,
    /// Stops reading, lets all that is unanswered be answered, closes the streams.
    pub drain: Recipient<Drain>,
    /// Counters of the gate and its sessions.
    pub probe: Recipient<Probe>,
    /// How busy the lane is.
    pub load: Load,
}

/// How busy a lane is, readable from every thread.
#[derive(Clone, Debug, Default)]
pub struct Load(Arc<AtomicUsize>);

impl Load {
    /// Open tickets, and some for each stream.
    #[must_use]
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add_stream(&self) {
        self.0.fetch_add(STREAM_WEIGHT, Ordering::Relaxed);
    }

    pub(crate) fn remove_stream(&self) {
        self.0.fetch_sub(STREAM_WEIGHT, Ordering::Relaxed);
    }

    pub(crate) fn add_tickets(&self, count: usize) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn remove_tickets(&self, count: usize) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }
}

/// A secured stream for a lane to take over.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AdmitStream {
    pub(crate) stream: Box<Inbound>,
    /// Its place among all, given back when it ends.
    pub(crate) place: Hold,
    pub(crate) trace: Trace,
    /// When it has to be authenticated.
    pub(crate) deadline: Instant,
}

/// What the sessions of a lane count.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) streams_open: Count,
    pub(crate) streams: Count,
    pub(crate) streams_refused: Count,
    pub(crate) stanzas: Count,
    pub(crate) publishes: Count,
    pub(crate) registrations: Count,
    pub(crate) stalls: Count,
    pub(crate) timeouts: Count,
    pub(crate) outcomes_late: Count,
    pub(crate) replies: Count,
    pub(crate) replies_back: Count,
    pub(crate) replies_lost: Count,
    pub(crate) components_open: Count,
    pub(crate) component_connects: Count,
    pub(crate) component_connects_failed: Count,
    pub(crate) component_replies: Count,
    pub(crate) passed_over: Count,
}

/// One counter of one thread.
#[derive(Default)]
pub(crate) struct Count(Cell<u64>);

impl Count {
    pub(crate) fn add(&self, count: u64) {
        self.0.set(self.0.get().saturating_add(count));
    }

    pub(crate) fn remove(&self, count: u64) {
        self.0.set(self.0.get().saturating_sub(count));
    }

    pub(crate) const fn get(&self) -> u64 {
        self.0.get()
    }
}

/// Starts a gate on the current arbiter.
#[must_use]
pub fn start(ingress: &Ingress, edges: Edges) -> Handles {
    let load = Load::default();
    let gate = Gate {
        lane: Rc::new(Lane::new(ingress, edges, load.clone())),
        sessions: Vec::new(),
        sweep_at: SWEEP_MIN,
        components: Vec::new(),
    };
    let offer = gate.lane.edges.privacy.as_ref();
    let offer = offer.map(|privacy| privacy.offer.clone());
    let address = Supervisor::start(|ctx: &mut Context<Gate>| {
        ctx.set_mailbox_capacity(0);
        gate
    });
    if let Some(offer) = offer {
        let post = address.clone().recipient();
        if offer.try_send(OfferPost { post }).is_err() {
            tracing::error!("nobody answers people about their data");
        }
    }
    Handles {
        admit: address.clone().recipient(),
        attach: address.clone().recipient(),
        drain: address.clone().recipient(),
        probe: address.recipient(),
        load,
    }
}

/// What the sessions of a lane share.
pub(crate) struct Lane {
    pub(crate) ingress: Ingress,
    pub(crate) edges: Edges,
    pub(crate) counters: Counters,
    pub(crate) load: Load,
}

impl Lane {
    pub(crate) fn new(ingress: &Ingress, edges: Edges, load: Load) -> Self {
        Self {
            ingress: ingress.clone(),
            edges,
            counters: Counters::default(),
            load,
        }
    }
}

struct Gate {
    lane: Rc<Lane>,
    sessions: Vec<Addr<Session>>,
    /// At so many sessions those that ended are removed: they have doubled since the last time, so that a
    /// crowd that comes at once costs no more by the stream than one does.
    sweep_at: usize,
    /// Sessions that must not end before the drain.
    components: Vec<(Component, Addr<Session>)>,
}

impl Actor for Gate {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // A component's session ends by itself only after a panic in it.
        ctx.run_interval(REVIVAL, |gate, _| {
            for (component, session) in &mut gate.components {
                if !session.connected() {
                    tracing::error!(component = %component.domain(), "a component is started again");
                    *session = component::start(Rc::clone(&gate.lane), component.clone());
                }
            }
        });
    }
}

impl Supervised for Gate {}

impl Handler<AdmitStream> for Gate {
    type Result = ();

    fn handle(&mut self, mut admitted: AdmitStream, _: &mut Self::Context) {
        if let Err(error) = admitted.stream.rehome() {
            self.lane.counters.streams_refused.add(1);
            let outcomes = self.lane.ingress.outcomes();
            return outcomes.failed(&admitted.trace, &Fault::Io(error), None);
        }
        if self.sessions.len() >= self.sweep_at {
            self.sessions.retain(Addr::connected);
            self.sweep_at = SWEEP_MIN.max(2 * self.sessions.len());
        }
        let session = Session::start(Rc::clone(&self.lane), admitted);
        self.sessions.push(session);
    }
}

impl Handler<Component> for Gate {
    type Result = ();

    fn handle(&mut self, component: Component, _: &mut Self::Context) {
        let session = component::start(Rc::clone(&self.lane), component.clone());
        self.components.push((component, session));
    }
}

impl Handler<SendMessage> for Gate {
    type Result = bool;

    /// Over the stream of a component, if the domain is one of this lane, else over a stream to the peer.
    fn handle(&mut self, message: SendMessage, _: &mut Self::Context) -> Self::Result {
        let domain = message.from.domain();
        let mut components = self.components.iter();
        if let Some((_, session)) = components.find(|(known, _)| known.domain() == domain) {
            return session.try_send(message).is_ok();
        }
        self.lane.ingress.served(domain.as_str()).is_some() && session::post(&self.lane, &message)
    }
}

impl Handler<Drain> for Gate {
    type Result = ResponseFuture<Drained>;

    fn handle(&mut self, drain: Drain, _: &mut Self::Context) -> Self::Result {
        let sessions = std::mem::take(&mut self.sessions);
        let components = std::mem::take(&mut self.components);
        let components = components.into_iter().map(|(_, session)| session);
        let drains = sessions.into_iter().chain(components).map(move |session| {
            let drained = session.send(drain);
            // A session that has ended has nothing unanswered.
            async { drained.await.unwrap_or_default().abandoned }
        });
        Box::pin(async move {
            Drained {
                abandoned: join_all(drains).await.into_iter().sum(),
            }
        })
    }
}

impl Handler<Probe> for Gate {
    type Result = Health;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Health {
        let counters = &self.lane.counters;
        Health {
            counters: vec![
                ("streams_open", counters.streams_open.get()),
                ("streams_total", counters.streams.get()),
                ("streams_refused_total", counters.streams_refused.get()),
                ("stanzas_total", counters.stanzas.get()),
                ("publishes_total", counters.publishes.get()),
                ("registrations_total", counters.registrations.get()),
                ("stream_stalls_total", counters.stalls.get()),
                ("publishes_timed_out_total", counters.timeouts.get()),
                ("outcomes_late_total", counters.outcomes_late.get()),
                ("replies_total", counters.replies.get()),
                ("replies_back_total", counters.replies_back.get()),
                ("replies_unsent_total", counters.replies_lost.get()),
                ("components_open", counters.components_open.get()),
                (
                    "component_connects_total",
                    counters.component_connects.get(),
                ),
                (
                    "component_connects_failed_total",
                    counters.component_connects_failed.get(),
                ),
                (
                    "component_replies_written_total",
                    counters.component_replies.get(),
                ),
                ("stanzas_passed_over_total", counters.passed_over.get()),
            ],
        }
    }
}
