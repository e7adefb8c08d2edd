//! The resolver: one per lane, finds the registration a publish means. Reads only.

use std::sync::Arc;
use std::time::Instant;

use actix::{Actor, Context, Handler, MessageResult, Recipient, Supervised, Supervisor};
use messages::{
    AccountKey, AppId, Deliver, DeliverBatch, DeviceToken, Drain, Drained, Health, JournalBatch,
    JournalEntry, JournalEvent, Probe, Publish, PublishBatch, PushOutcome, PushTarget, PushTrace,
    PushedEvent, Rejection, UnixSeconds,
};

use crate::Error;
use crate::keys::Keys;
use crate::registrations::{Living, Registrations, Shared};
use crate::store::Record;

/// Most app names kept for reuse; more apps than that cost an allocation per push.
const APPS_MAX: usize = 64;

/// Where the resolver sends.
pub struct Edges {
    /// Takes the pushes whose registration was found.
    pub deliver: Recipient<DeliverBatch>,
    /// Learns of pushes that go no further; `None` if pushes are not recorded. The others carry what it
    /// shall learn with them.
    pub journal: Option<Recipient<JournalBatch>>,
}

/// Where the resolver takes messages.
#[derive(Clone)]
pub struct Handles {
    /// Pushes to resolve.
    pub publish: Recipient<PublishBatch>,
    /// Answered at once: a batch is done when its handler returns.
    pub drain: Recipient<Drain>,
    /// Counters.
    pub probe: Recipient<Probe>,
}

/// Starts a resolver on the current arbiter.
#[must_use]
pub fn start(registrations: &Registrations, edges: Edges) -> Handles {
    let shared = Arc::clone(&registrations.0);
    let address = Supervisor::start(|ctx: &mut Context<Resolver>| {
        ctx.set_mailbox_capacity(0);
        Resolver {
            shared,
            edges,
            apps: Vec::new(),
            counters: Counters::default(),
        }
    });
    Handles {
        publish: address.clone().recipient(),
        drain: address.clone().recipient(),
        probe: address.recipient(),
    }
}

struct Resolver {
    shared: Arc<Shared>,
    edges: Edges,
    /// Names of apps seen, so that a push clones a name instead of making one.
    apps: Vec<AppId>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    found: u64,
    unknown: u64,
    forbidden: u64,
    failed: u64,
    overdue: u64,
    undeliverable: u64,
    lost: u64,
    unrecorded: u64,
}

impl Resolver {
    fn resolve(
        &mut self,
        living: &Living,
        publish: &mut Publish,
    ) -> Result<(Option<AccountKey>, Result<Deliver, Rejection>), Error> {
        let Living { store, keys } = living;
        let apps = &mut self.apps;
        // Without a secret the same work finds nothing: no registration has an empty one.
        let secret = publish.secret.as_ref().map_or("", |secret| secret.as_str());
        let service = publish.service.as_str();
        let node = publish.node.as_str();
        let key = keys.registration(service, node, secret);
        let mut verdict = Ok(Err(Rejection::UnknownNode));
        let mut account = None;
        store.read(key, &mut |record: &Record<'_>| {
            let secret_fits = keys.secret(&record.salt, &record.mask).is(secret);
            account = Some(record.account);
            let may_publish = bool::from(secret_fits)
                & (record.service == service)
                & (record.domain == publish.domain.as_str());
            verdict = if !may_publish {
                Ok(Err(Rejection::Forbidden))
            } else if let Ok(device_token) = DeviceToken::parse(record.device_token) {
                Ok(Ok(Deliver {
                    ticket: publish.ticket,
                    registration: key,
                    app: app(apps, record.app),
                    device_token,
                    acceptance: record.acceptance,
                    domain: publish.domain.clone(),
                    hint: publish.hint,
                    content: publish.content.take(),
                    trace: None,
                }))
            } else {
                Err(Error::Record)
            };
        })?;
        verdict.map(|verdict| (account, verdict))
    }

    /// What the journal says of a push that was refused here.
    fn refused(
        keys: &Keys,
        publish: Publish,
        account: Option<AccountKey>,
        rejection: Rejection,
        at: UnixSeconds,
    ) -> JournalEntry {
        // Forbidden is what has a registration: node and secret are right, the server is not.
        let account = account.filter(|_| rejection == Rejection::Forbidden);
        let target = account.map(|account| {
            let secret = publish.secret.as_ref().map_or("", |secret| secret.as_str());
            let service = publish.service.as_str();
            PushTarget {
                registration: keys.registration(service, publish.node.as_str(), secret),
                account,
                node: publish.node,
            }
        });
        JournalEntry {
            at,
            event: JournalEvent::Pushed(PushedEvent {
                target,
                domain: publish.domain,
                outcome: PushOutcome::Rejected(rejection),
            }),
        }
    }

    fn tell_journal(&mut self, items: Vec<JournalEntry>) {
        let untold = items.len() as u64;
        if let Some(journal) = &self.edges.journal
            && untold > 0
            && journal.try_send(JournalBatch { items }).is_err()
        {
            self.counters.unrecorded += untold;
        }
    }

    fn count(&mut self, rejection: Rejection) {
        let counter = match rejection {
            Rejection::UnknownNode => &mut self.counters.unknown,
            Rejection::Forbidden => &mut self.counters.forbidden,
            _ => &mut self.counters.failed,
        };
        *counter += 1;
    }
}

/// What the journal says of a push that nobody took.
fn undeliverable(item: Deliver, outcome: PushOutcome) -> Option<JournalEntry> {
    let PushTrace {
        at,
        account,
        node,
        domain,
    } = item.trace?;
    let target = Some(PushTarget {
        registration: item.registration,
        account,
        node,
    });
    Some(JournalEntry {
        at,
        event: JournalEvent::Pushed(PushedEvent {
            target,
            domain,
            outcome,
        }),
    })
}

/// The name of an app, from those seen before if possible.
fn app(seen: &mut Vec<AppId>, name: &str) -> AppId {
    if let Some(app) = seen.iter().find(|app| app.as_str() == name) {
        return app.clone();
    }
    let app = AppId::new(name);
    if seen.len() < APPS_MAX {
        seen.push(app.clone());
    }
    app
}

impl Actor for Resolver {
    type Context = Context<Self>;
}

impl Supervised for Resolver {}

impl Handler<PublishBatch> for Resolver {
    type Result = ();

    fn handle(&mut self, batch: PublishBatch, _: &mut Self::Context) {
        let PublishBatch {
            origin,
            deadline,
            items,
        } = batch;
        // One time for the batch: it was read at once.
        let at = self
            .edges
            .journal
            .is_some()
            .then(|| self.shared.clock.now());
        let living = self.shared.living.load_full();
        let mut entries = Vec::new();
        if Instant::now() >= deadline {
            self.counters.overdue += items.len() as u64;
            let overdue = PushOutcome::Rejected(Rejection::TimedOut);
            let outcomes = items.iter().map(|item| (item.ticket, overdue)).collect();
            self.counters.lost += origin.tell(outcomes) as u64;
            if let Some(at) = at {
                let keys = &living.keys;
                let refused = |publish| Self::refused(keys, publish, None, Rejection::TimedOut, at);
                entries.extend(items.into_iter().map(refused));
                self.tell_journal(entries);
            }
            return;
        }
        let mut found = Vec::with_capacity(items.len());
        let mut refused = Vec::new();
        let mut fault = None;
        for mut publish in items {
            let (account, resolved) = self.resolve(&living, &mut publish).unwrap_or_else(|error| {
                fault = Some(error);
                (None, Err(Rejection::Internal))
            });
            match resolved {
                Ok(mut deliver) => {
                    deliver.trace = at.zip(account).map(|(at, account)| PushTrace {
                        at,
                        account,
                        node: publish.node,
                        domain: publish.domain,
                    });
                    found.push(deliver);
                }
                Err(rejection) => {
                    self.count(rejection);
                    refused.push((publish.ticket, PushOutcome::Rejected(rejection)));
                    entries.extend(
                        at.map(|at| Self::refused(&living.keys, publish, account, rejection, at)),
                    );
                }
            }
        }
        if let Some(error) = fault {
            tracing::error!("pushes could not be resolved: {error}");
        }
        if !found.is_empty() {
            self.counters.found += found.len() as u64;
            let batch = DeliverBatch {
                origin: origin.clone(),
                deadline,
                items: found,
            };
            if let Err(closed) = self.edges.deliver.try_send(batch) {
                let undelivered = closed.into_inner().items;
                self.counters.undeliverable += undelivered.len() as u64;
                let unavailable = PushOutcome::Rejected(Rejection::Unavailable);
                refused.extend(undelivered.iter().map(|item| (item.ticket, unavailable)));
                let traced = undelivered.into_iter();
                entries.extend(traced.filter_map(|item| undeliverable(item, unavailable)));
            }
        }
        self.tell_journal(entries);
        self.counters.lost += origin.tell(refused) as u64;
    }
}

impl Handler<Drain> for Resolver {
    type Result = Drained;

    fn handle(&mut self, _: Drain, _: &mut Self::Context) -> Self::Result {
        Drained::default()
    }
}

impl Handler<Probe> for Resolver {
    type Result = MessageResult<Probe>;

    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Self::Result {
        let counters = &self.counters;
        MessageResult(Health {
            counters: vec![
                ("resolver_pushes_found_total", counters.found),
                ("resolver_pushes_unknown_total", counters.unknown),
                ("resolver_pushes_forbidden_total", counters.forbidden),
                ("resolver_pushes_failed_total", counters.failed),
                ("resolver_pushes_overdue_total", counters.overdue),
                (
                    "resolver_pushes_undeliverable_total",
                    counters.undeliverable,
                ),
                ("resolver_outcomes_lost_total", counters.lost),
                ("resolver_pushes_unrecorded_total", counters.unrecorded),
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use messages::{Clock, Domain, NodeId, NotificationHint, Origin, OutcomeBatch, Ticket};
    use testkit::Collector;

    use super::*;
    use crate::Config;
    use crate::keys::{Keys, MasterKey};
    use crate::store::memory::MemoryStore;

    #[actix::test]
    async fn a_store_that_fails_is_an_internal_fault() {
        let mut store = MemoryStore::default();
        store.unreadable = true;
        let keys = Keys::derive(&MasterKey::generate().unwrap());
        let registrations =
            Registrations::new(&Config::default(), Clock::system(), Arc::new(store), keys);
        let mut delivered = Collector::start();
        let deliver = delivered.recipient();
        let journal = None;
        let handles = start(&registrations, Edges { deliver, journal });
        let mut outcomes = Collector::<OutcomeBatch>::start();
        let ticket = Ticket {
            slot: 1,
            generation: 0,
        };
        let publish = Publish {
            ticket,
            node: NodeId::new("node").unwrap(),
            secret: None,
            domain: Domain::new("chat.example"),
            service: Domain::new("push.example"),
            hint: NotificationHint::default(),
            content: None,
        };
        let batch = PublishBatch {
            origin: Origin::new(outcomes.recipient()),
            deadline: Instant::now() + Duration::from_secs(20),
            items: vec![publish],
        };
        handles.publish.try_send(batch).unwrap();
        assert_eq!(
            outcomes.take().await.items,
            [(ticket, PushOutcome::Rejected(Rejection::Internal))]
        );
        assert!(delivered.drain().is_empty());
    }

    #[test]
    fn app_names_are_made_once() {
        let mut seen = Vec::new();
        for name in ["a", "b", "a"] {
            assert_eq!(app(&mut seen, name).as_str(), name);
        }
        assert_eq!(seen.len(), 2);
        for n in 0..2 * APPS_MAX {
            app(&mut seen, &n.to_string());
        }
        assert_eq!(seen.len(), APPS_MAX);
    }
}
