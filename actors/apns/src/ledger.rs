//! The outcomes a lane owes, and everything it tells other actors.
//!
//! Exactly one outcome per ticket holds by construction: a ticket can be taken out of its batch once, and
//! who drops a [`Claim`] without settling it settles it as [`Rejection::Internal`].

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::{Rc, Weak};

use actix::Recipient;
use messages::{
    DeadPush, DeadPushBatch, JournalBatch, JournalEntry, JournalEvent, Origin, PushOutcome,
    PushTarget, PushTrace, PushedEvent, RegistrationKey, RejectedToken, RejectedTokens, Rejection,
    Ticket, Touch, TouchBatch, UnixSeconds,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::lately::Lately;

/// Records collected before registry or journal is told of them without waiting for a tick. Either is on
/// another thread, which a message has to wake: for hundreds of pushes that costs nothing, for those of one
/// read it was a tenth of the CPU.
const RECORDS_BATCH: usize = 256;

/// Of so many registrations at least it is known when the registry was told of a success.
const SUCCESSES: usize = 65_536;

/// What one lane owes and what it has to tell. Telling is collected: what somebody waits for leaves in
/// [`Ledger::flush`], records with many others or in [`Ledger::flush_records`].
pub(crate) struct Ledger {
    touch: Recipient<TouchBatch>,
    rejected: Recipient<RejectedTokens>,
    dead_pushes: Recipient<DeadPushBatch>,
    journal: Option<Recipient<JournalBatch>>,
    /// Batches with tickets still owed, by the time they must be told something.
    owing: RefCell<BTreeMap<(Instant, u64), Weak<Batch>>>,
    serial: Cell<u64>,
    outcomes: Cell<Vec<(Rc<Batch>, Ticket, PushOutcome)>>,
    touches: Cell<Vec<Touch>>,
    /// When the registry was last told of a success, if of no error since.
    successes: RefCell<Lately<UnixSeconds>>,
    success_interval: u64,
    dead: Cell<Vec<RejectedToken>>,
    buried: Cell<Vec<(Rc<Batch>, DeadPush)>>,
    entries: Cell<Vec<JournalEntry>>,
    /// Pushes not yet finished, answered or not.
    open: Cell<usize>,
    changed: Notify,
    /// What was counted.
    pub(crate) counters: Counters,
}

/// Counters of one lane since its start.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) received: Cell<u64>,
    pub(crate) accepted: Cell<u64>,
    pub(crate) rejected: Cell<u64>,
    pub(crate) deferred: Cell<u64>,
    pub(crate) overloaded: Cell<u64>,
    pub(crate) expired: Cell<u64>,
    pub(crate) superseded: Cell<u64>,
    pub(crate) withdrawn: Cell<u64>,
    pub(crate) repeated: Cell<u64>,
    pub(crate) resent: Cell<u64>,
    pub(crate) timed_out: Cell<u64>,
    pub(crate) doubtful: Cell<u64>,
    pub(crate) unknown_reasons: Cell<u64>,
    pub(crate) connections: Cell<u64>,
    pub(crate) connect_failures: Cell<u64>,
    pub(crate) messages_lost: Cell<u64>,
}

/// Adds one.
pub(crate) fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// The tickets of one [`messages::DeliverBatch`].
struct Batch {
    ledger: Rc<Ledger>,
    origin: Origin,
    key: (Instant, u64),
    tickets: Box<[Cell<Option<Owed>>]>,
    owed: Cell<usize>,
}

/// A ticket that was told nothing yet.
pub(crate) struct Owed {
    /// Whom to answer.
    pub(crate) ticket: Ticket,
    /// What to tell the journal with the answer.
    pub(crate) trace: Option<(RegistrationKey, PushTrace)>,
}

/// The duty to answer one ticket.
pub(crate) struct Claim {
    batch: Rc<Batch>,
    slot: usize,
}

impl Ledger {
    pub(crate) fn new(
        success_interval: u64,
        touch: Recipient<TouchBatch>,
        rejected: Recipient<RejectedTokens>,
        dead_pushes: Recipient<DeadPushBatch>,
        journal: Option<Recipient<JournalBatch>>,
    ) -> Self {
        Self {
            touch,
            rejected,
            dead_pushes,
            journal,
            owing: RefCell::default(),
            serial: Cell::default(),
            outcomes: Cell::default(),
            touches: Cell::default(),
            successes: RefCell::new(Lately::new(SUCCESSES)),
            success_interval,
            dead: Cell::default(),
            buried: Cell::default(),
            entries: Cell::default(),
            open: Cell::default(),
            changed: Notify::new(),
            counters: Counters::default(),
        }
    }

    /// Takes over tickets that must be told something by `due`; one claim per ticket, in order.
    pub(crate) fn claims(
        self: &Rc<Self>,
        origin: Origin,
        due: Instant,
        tickets: impl ExactSizeIterator<Item = Owed>,
    ) -> Vec<Claim> {
        let owed = tickets.len();
        let key = (due, self.serial.replace(self.serial.get() + 1));
        let batch = Rc::new(Batch {
            ledger: Rc::clone(self),
            origin,
            key,
            tickets: tickets.map(|owed| Cell::new(Some(owed))).collect(),
            owed: Cell::new(owed),
        });
        if owed > 0 {
            self.owing.borrow_mut().insert(key, Rc::downgrade(&batch));
        }
        self.open.set(self.open.get() + owed);
        (0..owed)
            .map(|slot| Claim {
                batch: Rc::clone(&batch),
                slot,
            })
            .collect()
    }

    /// Remembers a verdict for its registration. `known` says whether the store has it that APNs takes the
    /// device token: then of many successes the first counts.
    pub(crate) fn touch(&self, touch: Touch, known: bool) {
        let key = touch.registration.short();
        let mut successes = self.successes.borrow_mut();
        if touch.verdict.is_err() {
            successes.remove(key);
        } else {
            // A clock that was set back silences nobody.
            let since = successes.get(key);
            let ago = since.and_then(|since| touch.at.0.checked_sub(since.0));
            if known && ago.is_some_and(|ago| ago < self.success_interval) {
                return;
            }
            successes.insert(key, touch.at);
        }
        push(&self.touches, touch);
    }

    /// A registration has ended or has another device token.
    pub(crate) fn forget(&self, registration: RegistrationKey) {
        self.successes.borrow_mut().remove(registration.short());
    }

    /// Remembers a dead token.
    pub(crate) fn dead(&self, token: RejectedToken) {
        push(&self.dead, token);
    }

    /// Whether somebody must be told something now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let owing = self.owing.borrow();
        owing.first_key_value().is_some_and(|(key, _)| key.0 <= now)
    }

    /// Tells [`PushOutcome::Deferred`] to what is due now and still owed.
    pub(crate) fn defer_due(&self, now: Instant) {
        while let Some(batch) = self.first_due(now) {
            batch.settle_rest(PushOutcome::Deferred);
        }
    }

    /// Tells `outcome` to everything still owed.
    pub(crate) fn settle_all(&self, outcome: PushOutcome) {
        let owing = self.owing.take();
        for batch in owing.into_values().filter_map(|batch| batch.upgrade()) {
            batch.settle_rest(outcome);
        }
    }

    fn first_due(&self, now: Instant) -> Option<Rc<Batch>> {
        let mut owing = self.owing.borrow_mut();
        loop {
            let first = owing.first_entry().filter(|first| first.key().0 <= now)?;
            if let Some(batch) = first.remove().upgrade() {
                return Some(batch);
            }
        }
    }

    /// How many pushes are not finished.
    pub(crate) const fn open(&self) -> usize {
        self.open.get()
    }

    /// How many of them somebody still waits for.
    pub(crate) fn owed(&self) -> usize {
        let owing = self.owing.borrow();
        let batches = owing.values().filter_map(Weak::upgrade);
        batches.map(|batch| batch.owed.get()).sum()
    }

    /// Wakes who waits in [`Ledger::changed`].
    pub(crate) fn notify(&self) {
        self.changed.notify_one();
    }

    /// Waits until the last open push is finished or a connection has ended.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Sends what was collected, one message per receiver; records only if there are many.
    pub(crate) fn flush(&self) {
        self.ask_about_dead();
        let mut outcomes = self.outcomes.take();
        self.tell_origins(&outcomes);
        // Its room is used again: growing it anew each time was one in a hundred instructions.
        outcomes.clear();
        self.outcomes.set(outcomes);
        let items = self.dead.take();
        let dead = items.len();
        if dead > 0 && self.rejected.try_send(RejectedTokens { items }).is_err() {
            self.lost(dead);
        }
        let touches = self.touches.take();
        if touches.len() < RECORDS_BATCH {
            self.touches.set(touches);
        } else {
            self.tell_registry(touches);
        }
        let entries = self.entries.take();
        if entries.len() < RECORDS_BATCH {
            self.entries.set(entries);
        } else {
            self.tell_journal(entries);
        }
    }

    fn tell_origins(&self, outcomes: &[(Rc<Batch>, Ticket, PushOutcome)]) {
        let Some((first, ..)) = outcomes.first() else {
            return;
        };
        let others = |(batch, ..): &(Rc<Batch>, _, _)| batch.origin != first.origin;
        if !outcomes.iter().any(others) {
            let items = outcomes.iter();
            let items = items.map(|(_, ticket, outcome)| (*ticket, *outcome));
            self.lost(first.origin.tell(items.collect()));
            return;
        }
        let mut by_origin: HashMap<&Origin, Vec<(Ticket, PushOutcome)>> = HashMap::new();
        for (batch, ticket, outcome) in outcomes {
            let items = by_origin.entry(&batch.origin).or_default();
            items.push((*ticket, *outcome));
        }
        for (origin, items) in by_origin {
            self.lost(origin.tell(items));
        }
    }

    /// Tells registry and journal what was collected, however little it is.
    pub(crate) fn flush_records(&self) {
        self.tell_registry(self.touches.take());
        self.tell_journal(self.entries.take());
    }

    fn tell_registry(&self, items: Vec<Touch>) {
        if items.is_empty() {
            return;
        }
        if let Err(returned) = self.touch.try_send(TouchBatch { items }) {
            let items = returned.into_inner().items;
            self.lost(items.len());
            for touch in items {
                self.forget(touch.registration);
            }
        }
    }

    fn tell_journal(&self, items: Vec<JournalEntry>) {
        let told = items.len();
        if let Some(journal) = &self.journal
            && told > 0
            && journal.try_send(JournalBatch { items }).is_err()
        {
            self.lost(told);
        }
    }

    fn ask_about_dead(&self) {
        let mut by_origin: HashMap<Origin, (Rc<Batch>, Vec<DeadPush>)> = HashMap::new();
        for (batch, push) in self.buried.take() {
            by_origin
                .entry(batch.origin.clone())
                .or_insert_with(|| (batch, Vec::new()))
                .1
                .push(push);
        }
        for (origin, (batch, items)) in by_origin {
            let asked = self.dead_pushes.try_send(DeadPushBatch { origin, items });
            let Err(returned) = asked else { continue };
            for dead in returned.into_inner().items {
                let unknown = PushOutcome::Rejected(Rejection::Unavailable);
                push(&self.outcomes, (Rc::clone(&batch), dead.ticket, unknown));
            }
        }
    }

    fn lost(&self, items: usize) {
        let lost = &self.counters.messages_lost;
        lost.set(lost.get() + items as u64);
    }

    fn tell(&self, batch: &Rc<Batch>, owed: Owed, outcome: PushOutcome) {
        count(match outcome {
            PushOutcome::Accepted => &self.counters.accepted,
            PushOutcome::Deferred => &self.counters.deferred,
            PushOutcome::Rejected(_) => &self.counters.rejected,
        });
        push(&self.outcomes, (Rc::clone(batch), owed.ticket, outcome));
        self.note(owed.trace, outcome);
    }

    /// Remembers for the journal what a push was told.
    fn note(&self, trace: Option<(RegistrationKey, PushTrace)>, outcome: PushOutcome) {
        if let Some((
            registration,
            PushTrace {
                at,
                account,
                node,
                domain,
            },
        )) = trace
        {
            let target = Some(PushTarget {
                registration,
                account,
                node,
            });
            let event = JournalEvent::Pushed(PushedEvent {
                target,
                domain,
                outcome,
            });
            push(&self.entries, JournalEntry { at, event });
        }
    }
}

/// Appends without a borrow that could be held twice.
fn push<T>(list: &Cell<Vec<T>>, item: T) {
    let mut items = list.take();
    items.push(item);
    list.set(items);
}

impl Batch {
    fn settle(self: &Rc<Self>, slot: usize, outcome: PushOutcome) {
        if let Some(owed) = self.take(slot) {
            self.ledger.tell(self, owed, outcome);
        }
    }

    /// The ticket, if it was told nothing yet; from now on it is the taker's to tell.
    fn take(&self, slot: usize) -> Option<Owed> {
        let owed = self.tickets.get(slot).and_then(Cell::take)?;
        self.owed.set(self.owed.get() - 1);
        // A batch that owes nothing is not to be found when it falls due.
        if self.owed.get() == 0
            && let Ok(mut owing) = self.ledger.owing.try_borrow_mut()
        {
            owing.remove(&self.key);
        }
        Some(owed)
    }

    fn settle_rest(self: &Rc<Self>, outcome: PushOutcome) {
        for slot in 0..self.tickets.len() {
            self.settle(slot, outcome);
        }
    }
}

impl Claim {
    /// Tells the outcome, unless the ticket was told something before.
    pub(crate) fn settle(&self, outcome: PushOutcome) {
        self.batch.settle(self.slot, outcome);
    }

    /// Whether it must be told something now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.batch.key.0 <= now
    }

    /// Has the outcome told by who knows whether the registration lives on without this token.
    pub(crate) fn bury(&self, registration: RegistrationKey, rejected: RejectedToken) {
        let batch = &self.batch;
        if let Some(Owed { ticket, trace }) = batch.take(self.slot) {
            // What Apple said; who answers the iq knows better only what to make of it.
            let dead = PushOutcome::Rejected(Rejection::Unregistered);
            batch.ledger.note(trace, dead);
            let dead = DeadPush {
                ticket,
                registration,
                rejected,
            };
            count(&batch.ledger.counters.rejected);
            push(&batch.ledger.buried, (Rc::clone(batch), dead));
        }
    }

    /// Tells that a newer push took the place of this one.
    pub(crate) fn superseded(&self) {
        count(&self.batch.ledger.counters.superseded);
        self.settle(PushOutcome::Rejected(Rejection::Throttled));
    }

    /// Tells why this push is not sent any more.
    pub(crate) fn withdrawn(&self, outcome: PushOutcome) {
        count(&self.batch.ledger.counters.withdrawn);
        self.settle(outcome);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.settle(PushOutcome::Rejected(Rejection::Internal));
        let ledger = &self.batch.ledger;
        ledger.open.set(ledger.open.get() - 1);
        if ledger.open.get() == 0 {
            ledger.notify();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use messages::{Acceptance, AccountKey, Domain, ErrorReason, NodeId};
    use proptest::prelude::*;
    use testkit::Collector;

    use super::*;

    const SUCCESS_INTERVAL: u64 = 3_600;
    const UNAVAILABLE: PushOutcome = PushOutcome::Rejected(Rejection::Unavailable);
    const INTERNAL: PushOutcome = PushOutcome::Rejected(Rejection::Internal);

    struct Desk {
        ledger: Rc<Ledger>,
        outcomes: Collector<messages::OutcomeBatch>,
        dead_pushes: Collector<DeadPushBatch>,
        journal: Collector<JournalBatch>,
        touches: Collector<TouchBatch>,
        now: Instant,
    }

    impl Desk {
        fn start() -> Self {
            let touches = Collector::start();
            let rejected = Collector::start().recipient();
            let dead_pushes = Collector::start();
            let journal = Collector::start();
            let ledger = Ledger::new(
                SUCCESS_INTERVAL,
                touches.recipient(),
                rejected,
                dead_pushes.recipient(),
                Some(journal.recipient()),
            );
            Self {
                ledger: Rc::new(ledger),
                dead_pushes,
                journal,
                touches,
                outcomes: Collector::start(),
                now: Instant::now(),
            }
        }

        fn claims(&self, slots: std::ops::Range<u32>, due_seconds: u64) -> Vec<Claim> {
            let origin = Origin::new(self.outcomes.recipient());
            let tickets: Vec<Owed> = slots
                .map(|slot| Owed {
                    ticket: Ticket {
                        slot,
                        generation: 1,
                    },
                    trace: Some((
                        RegistrationKey([7; 16]),
                        PushTrace {
                            at: UnixSeconds(slot.into()),
                            account: AccountKey([8; 16]),
                            node: NodeId::new("node").unwrap(),
                            domain: Domain::new("chat.example"),
                        },
                    )),
                })
                .collect();
            self.ledger
                .claims(origin, self.at(due_seconds), tickets.into_iter())
        }

        fn at(&self, seconds: u64) -> Instant {
            self.now + Duration::from_secs(seconds)
        }

        fn touch(&self, registration: u8, at: u64, is_good: bool, known: bool) {
            let touch = Touch {
                registration: RegistrationKey([registration; 16]),
                at: UnixSeconds(at),
                verdict: match is_good {
                    true => Ok(Acceptance(NonZeroU32::MIN)),
                    false => Err(ErrorReason::known("Shutdown")),
                },
            };
            self.ledger.touch(touch, known);
        }

        /// Registration and time of each verdict that the registry is told in the end.
        async fn touched(&mut self) -> Vec<(u8, u64)> {
            self.ledger.flush_records();
            let batch = self.touches.take().await;
            let touches = batch.items.into_iter();
            touches
                .map(|touch| (touch.registration.0[0], touch.at.0))
                .collect()
        }

        /// What one flush tells.
        async fn told(&mut self) -> Vec<(u32, PushOutcome)> {
            self.ledger.flush();
            let batch = self.outcomes.take().await;
            batch
                .items
                .into_iter()
                .map(|(ticket, outcome)| (ticket.slot, outcome))
                .collect()
        }
    }

    #[actix::test]
    async fn the_outcomes_of_a_wake_leave_as_one_batch_per_origin() {
        let mut desk = Desk::start();
        let first = desk.claims(0..2, 20);
        let second = desk.claims(2..3, 20);
        first[0].settle(PushOutcome::Accepted);
        second[0].settle(UNAVAILABLE);
        first[0].settle(UNAVAILABLE);
        assert_eq!(
            desk.told().await,
            [(0, PushOutcome::Accepted), (2, UNAVAILABLE)]
        );
        // Whoever loses a push answers it.
        drop((first, second));
        assert_eq!(desk.ledger.open(), 0);
        assert_eq!(desk.told().await, [(1, INTERNAL)]);
        assert!(desk.ledger.owing.borrow().is_empty());
    }

    #[actix::test]
    async fn what_is_due_is_deferred_once() {
        let mut desk = Desk::start();
        let late = desk.claims(0..1, 30);
        let soon = desk.claims(1..3, 10);
        soon[0].settle(PushOutcome::Accepted);
        desk.ledger.defer_due(desk.at(10));
        assert_eq!(
            desk.told().await,
            [(1, PushOutcome::Accepted), (2, PushOutcome::Deferred)]
        );
        soon[1].settle(PushOutcome::Accepted);
        assert_eq!(desk.ledger.open(), 3, "deferred is not finished");
        drop(soon);
        desk.ledger.settle_all(UNAVAILABLE);
        assert_eq!(desk.told().await, [(0, UNAVAILABLE)]);
        drop(late);
        desk.ledger.flush();
        assert!(desk.outcomes.drain().is_empty());
    }

    fn rejected() -> RejectedToken {
        RejectedToken {
            app: messages::AppId::new("app"),
            device_token: messages::DeviceToken::parse(&"a".repeat(64)).unwrap(),
            reason: messages::ErrorReason::known("Unregistered"),
            invalid_since: messages::UnixMillis(1),
        }
    }

    #[actix::test]
    async fn a_push_to_a_dead_token_is_handed_over_unless_it_was_answered() {
        let mut desk = Desk::start();
        let rejected = rejected();
        let registration = |n| RegistrationKey([n; 16]);
        let claims = desk.claims(0..3, 20);
        claims[0].settle(PushOutcome::Deferred);
        for (claim, n) in claims.iter().zip(0..) {
            claim.bury(registration(n), rejected.clone());
        }
        drop(claims);
        assert_eq!(desk.told().await, [(0, PushOutcome::Deferred)]);
        let batch = desk.dead_pushes.take().await;
        assert_eq!(batch.origin, Origin::new(desk.outcomes.recipient()));
        let asked = batch.items.iter();
        let asked: Vec<_> = asked
            .map(|push| (push.ticket.slot, push.registration, &push.rejected))
            .collect();
        assert_eq!(
            asked,
            [
                (1, registration(1), &rejected),
                (2, registration(2), &rejected)
            ]
        );
        assert_eq!(desk.ledger.open(), 0);
        desk.ledger.flush_records();
        let told = desk.journal.take().await.items;
        let told: Vec<_> = told
            .iter()
            .map(|entry| match &entry.event {
                JournalEvent::Pushed(pushed) => pushed.outcome,
                other => panic!("{other:?}"),
            })
            .collect();
        let dead = PushOutcome::Rejected(Rejection::Unregistered);
        assert_eq!(told, [PushOutcome::Deferred, dead, dead]);
    }

    /// Takes nothing.
    struct Gone;

    impl actix::Actor for Gone {
        type Context = actix::Context<Self>;

        fn started(&mut self, ctx: &mut Self::Context) {
            actix::ActorContext::stop(ctx);
        }
    }

    impl actix::Handler<DeadPushBatch> for Gone {
        type Result = ();

        fn handle(&mut self, _: DeadPushBatch, _: &mut Self::Context) {}
    }

    #[actix::test]
    async fn without_the_store_a_dead_token_costs_no_registration() {
        let mut desk = Desk::start();
        let gone = actix::Actor::start(Gone);
        while gone.connected() {
            tokio::task::yield_now().await;
        }
        Rc::get_mut(&mut desk.ledger).unwrap().dead_pushes = gone.recipient();
        let claims = desk.claims(0..1, 20);
        claims[0].bury(RegistrationKey([0; 16]), rejected());
        assert_eq!(desk.told().await, [(0, UNAVAILABLE)]);
    }

    #[actix::test]
    async fn the_journal_is_told_each_outcome_once_in_large_batches() {
        let mut desk = Desk::start();
        let many = u32::try_from(RECORDS_BATCH).unwrap();
        let claims = desk.claims(0..many + 1, 20);
        for claim in &claims[1..] {
            claim.settle(PushOutcome::Accepted);
        }
        desk.told().await;
        let batch = desk.journal.take().await;
        assert_eq!(batch.items.len(), RECORDS_BATCH);
        drop(claims);
        desk.told().await;
        assert!(desk.journal.drain().is_empty(), "a few wait for a tick");
        desk.ledger.flush_records();
        let batch = desk.journal.take().await;
        let event = JournalEvent::Pushed(PushedEvent {
            target: Some(PushTarget {
                registration: RegistrationKey([7; 16]),
                account: AccountKey([8; 16]),
                node: NodeId::new("node").unwrap(),
            }),
            domain: Domain::new("chat.example"),
            outcome: INTERNAL,
        });
        let at = UnixSeconds(0);
        assert_eq!(batch.items, [JournalEntry { at, event }]);
        desk.ledger.flush_records();
        assert!(desk.journal.drain().is_empty());
    }

    #[actix::test]
    async fn the_registry_is_told_in_large_batches() {
        let mut desk = Desk::start();
        let many = u64::try_from(RECORDS_BATCH).unwrap();
        for at in 1..many {
            desk.touch(1, at, false, true);
        }
        // Too few for a message.
        desk.ledger.flush();
        desk.touch(1, many, false, true);
        desk.ledger.flush();
        assert_eq!(desk.touches.take().await.items.len(), RECORDS_BATCH);
        desk.touch(2, 7, true, true);
        assert_eq!(desk.touched().await, [(2, 7)]);
    }

    #[actix::test]
    async fn of_many_successes_the_first_of_an_hour_is_told() {
        let mut desk = Desk::start();
        let (now, hour) = (1_000_000, SUCCESS_INTERVAL);
        for at in [now, now + 1, now + hour - 1, now + hour, now + hour + 1] {
            desk.touch(1, at, true, true);
        }
        desk.touch(2, now, true, true);
        assert_eq!(desk.touched().await, [(1, now), (1, now + hour), (2, now)]);
        // A clock that was set back must not silence a device until then.
        desk.touch(2, now - 1, true, true);
        assert_eq!(desk.touched().await, [(2, now - 1)]);
    }

    #[actix::test]
    async fn a_success_that_says_something_new_is_told() {
        let mut desk = Desk::start();
        let now = 1_000_000;
        // The store does not know yet that APNs takes the device token.
        desk.touch(1, now, true, false);
        desk.touch(1, now + 1, true, false);
        desk.touch(1, now + 2, true, true);
        assert_eq!(desk.touched().await, [(1, now), (1, now + 1)]);
        // After an error, which is told itself.
        desk.touch(1, now + 3, false, true);
        desk.touch(1, now + 4, true, true);
        assert_eq!(desk.touched().await, [(1, now + 3), (1, now + 4)]);
        // Another device token, or another life.
        desk.ledger.forget(RegistrationKey([1; 16]));
        desk.touch(1, now + 5, true, true);
        assert_eq!(desk.touched().await, [(1, now + 5)]);
    }

    #[derive(Clone, Debug)]
    enum Act {
        Settle(usize),
        Drop(usize),
        Time(u64),
        Flush,
    }

    proptest! {
        #[test]
        fn each_ticket_is_told_exactly_one_outcome(
            sizes in prop::collection::vec(0u32..5, 1..6),
            acts in prop::collection::vec(
                prop_oneof![
                    (0usize..25).prop_map(Act::Settle),
                    (0usize..25).prop_map(Act::Drop),
                    (0u64..40).prop_map(Act::Time),
                    Just(Act::Flush),
                ],
                0..60,
            ),
        ) {
            let told = actix::System::new().block_on(async {
                let mut desk = Desk::start();
                let mut claims = Vec::new();
                let mut next = 0;
                for (index, size) in sizes.iter().enumerate() {
                    let due = 10 * index as u64;
                    claims.extend(desk.claims(next..next + size, due).into_iter().map(Some));
                    next += size;
                }
                for act in acts {
                    match act {
                        Act::Settle(at) => {
                            if let Some(Some(claim)) = claims.get(at) {
                                claim.settle(PushOutcome::Accepted);
                            }
                        }
                        Act::Drop(at) => {
                            if let Some(claim) = claims.get_mut(at) {
                                *claim = None;
                            }
                        }
                        Act::Time(seconds) => desk.ledger.defer_due(desk.at(seconds)),
                        Act::Flush => desk.ledger.flush(),
                    }
                }
                drop(claims);
                desk.ledger.flush();
                assert_eq!(desk.ledger.open(), 0);
                assert!(desk.ledger.owing.borrow().is_empty());
                let mut told: Vec<u32> = Vec::new();
                while told.len() < next as usize {
                    let batch = desk.outcomes.take().await;
                    told.extend(batch.items.iter().map(|(ticket, _)| ticket.slot));
                }
                assert!(desk.outcomes.drain().is_empty());
                told.sort_unstable();
                (told, next)
            });
            prop_assert_eq!(told.0, (0..told.1).collect::<Vec<_>>());
        }
    }
}
