//! The registry: takes requests on the control arbiter and has one thread commit them in groups.
//!
//! Nothing here waits for the disk. Requests go into a bounded queue; the thread takes what has queued,
//! does it, syncs once and answers all, so that under load one sync serves many. It never waits to fill
//! a group: with little to do a group is one request, and an answer takes as long as the disk does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use actix::dev::{MessageResponse, OneshotSender};
use actix::{
    Actor, AsyncContext, Context, Handler, MessageResult, Recipient, Response, ResponseFuture,
    SpawnHandle, Supervised, Supervisor,
};
use messages::{
    Claim, DeadPush, DeadPushBatch, DescribeRegistrations, DeviceToken, Drain, Drained,
    EraseRegistrations, FindAccountKeys, FindRegistration, Health, JournalBatch, Probe,
    PushOutcome, Register, RegistrationKey, RegistryError, Rejection, RemoveTokens, RotateKeys,
    SubscribeWithdrawals, SweepExpired, TouchBatch, Unregister,
};
use tokio::sync::oneshot;

use crate::Error;
use crate::registrations::{Registrations, Shared};
use crate::writer::{Broken, Job, Reply, Sifted, lock, outlives};

/// Most requests that share one sync; it bounds how long the first of them waits.
const GROUP_MAX: usize = 256;

/// Where the registry sends.
#[derive(Clone, Default)]
pub struct Edges {
    /// Learns what happened to registrations, once it is durable; `None` if that is not recorded.
    pub journal: Option<Recipient<JournalBatch>>,
}

/// Where the registry takes messages.
#[derive(Clone)]
pub struct Handles {
    /// Registers or renews.
    pub register: Recipient<Register>,
    /// Ends the account's own registration.
    pub unregister: Recipient<Unregister>,
    /// Ends the registrations of dead tokens.
    pub remove_tokens: Recipient<RemoveTokens>,
    /// Ends idle registrations, page by page.
    pub sweep: Recipient<SweepExpired>,
    /// Remembers push times.
    pub touch: Recipient<TouchBatch>,
    /// Answers pushes to dead tokens.
    pub dead_pushes: Recipient<DeadPushBatch>,
    /// Tells from then on which registrations ended or changed.
    pub withdrawals: Recipient<SubscribeWithdrawals>,
    /// Finds a registration by its secret.
    pub find: Recipient<FindRegistration>,
    /// Finds the keys of an account.
    pub accounts: Recipient<FindAccountKeys>,
    /// Describes registrations to those they are about.
    pub describe: Recipient<DescribeRegistrations>,
    /// Erases registrations.
    pub erase: Recipient<EraseRegistrations>,
    /// Makes new keys.
    pub rotate: Recipient<RotateKeys>,
    /// Writes all that waits and stops taking requests.
    pub drain: Recipient<Drain>,
    /// Counters.
    pub probe: Recipient<Probe>,
}

/// Starts the registry on the current arbiter, and its thread. Once per store.
///
/// # Errors
/// [`Error::Thread`] when the system gives no thread.
pub fn start(registrations: &Registrations, edges: Edges) -> Result<Handles, Error> {
    let shared = Arc::clone(&registrations.0);
    lock(&shared.writer).journal = edges.journal;
    let queue_max = usize::try_from(shared.config.queue_max).unwrap_or(usize::MAX);
    let (queue, jobs) = sync_channel(queue_max);
    let (done, finished) = oneshot::channel();
    let waiting = Arc::new(AtomicU64::new(0));
    let thread = thread::Builder::new()
        .name("registry".into())
        .spawn({
            let (shared, waiting) = (Arc::clone(&shared), Arc::clone(&waiting));
            move || {
                match commit_all(&shared, &jobs, &waiting) {
                    // The registry may be gone already.
                    Ok(()) => drop(done.send(())),
                    Err(Broken) => tracing::error!(
                        "the registration store cannot be trusted before the process has started again"
                    ),
                }
            }
        })
        .map_err(Error::Thread)?;
    let registry = Registry {
        shared,
        queue: Some(Queue {
            jobs: queue,
            waiting: Arc::clone(&waiting),
        }),
        waiting,
        ending: Some((finished, thread)),
        write_behind: None,
        busy: 0,
        late_touches: 0,
        outcomes_lost: 0,
    };
    let address = Supervisor::start(|ctx: &mut Context<Registry>| {
        ctx.set_mailbox_capacity(0);
        registry
    });
    Ok(Handles {
        register: address.clone().recipient(),
        unregister: address.clone().recipient(),
        remove_tokens: address.clone().recipient(),
        sweep: address.clone().recipient(),
        touch: address.clone().recipient(),
        dead_pushes: address.clone().recipient(),
        withdrawals: address.clone().recipient(),
        find: address.clone().recipient(),
        accounts: address.clone().recipient(),
        describe: address.clone().recipient(),
        erase: address.clone().recipient(),
        rotate: address.clone().recipient(),
        drain: address.clone().recipient(),
        probe: address.recipient(),
    })
}

/// Commits until the queue is closed and empty, then writes what is left. Ends at once when the store is
/// broken; what queues then is answered as failed by being dropped.
fn commit_all(shared: &Shared, jobs: &Receiver<Job>, waiting: &AtomicU64) -> Result<(), Broken> {
    loop {
        let patience = lock(&shared.writer).patience();
        let Ok(first) = patience.wait(jobs) else {
            break;
        };
        if let Some(first) = first {
            let mut group = vec![first];
            group.extend(jobs.try_iter().take(GROUP_MAX - 1));
            let taken = group.len() as u64;
            let intact = lock(&shared.writer).commit(group);
            waiting.fetch_sub(taken, Ordering::Relaxed);
            intact?;
        }
        lock(&shared.writer).step()?;
    }
    lock(&shared.writer).finish()
}

struct Registry {
    shared: Arc<Shared>,
    /// Gone when draining, which ends the thread once the queue is empty.
    queue: Option<Queue>,
    /// Jobs in the queue or in the group at work.
    waiting: Arc<AtomicU64>,
    /// Joined at the end of the thread, which tells when all is on disk.
    ending: Option<(oneshot::Receiver<()>, JoinHandle<()>)>,
    /// Cancelled when draining, because a timer keeps an actor that nobody can reach alive.
    write_behind: Option<SpawnHandle>,
    busy: u64,
    late_touches: u64,
    outcomes_lost: u64,
}

/// The way to the writer.
#[derive(Clone)]
struct Queue {
    jobs: SyncSender<Job>,
    waiting: Arc<AtomicU64>,
}

impl Queue {
    fn submit(&self, job: Job) -> Result<(), RegistryError> {
        // Before the job can be done and counted off.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.jobs.try_send(job).map_err(|refused| {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            match refused {
                TrySendError::Full(_) => RegistryError::Busy,
                TrySendError::Disconnected(_) => RegistryError::Store,
            }
        })
    }

    fn ask<T: 'static>(
        &self,
        job: impl FnOnce(Reply<T>) -> Job,
    ) -> Result<impl Future<Output = Result<T, RegistryError>> + 'static, RegistryError> {
        let (reply, answer) = oneshot::channel();
        self.submit(job(reply))?;
        Ok(async { answer.await.unwrap_or(Err(RegistryError::Store)) })
    }

    /// Looks for the registrations of a device, of whatever app, page by page.
    async fn sift(&self, token: &DeviceToken) -> Result<Vec<RegistrationKey>, RegistryError> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page = self.ask(|reply| Job::Sift(token.clone(), after, reply))?;
            let Sifted { found, next } = page.await?;
            all.extend(found);
            if next.is_none() {
                return Ok(all);
            }
            after = next;
        }
    }
}

impl Registry {
    fn writer_is_dead(&self) -> bool {
        self.ending
            .as_ref()
            .is_some_and(|(_, thread)| thread.is_finished())
    }

    fn request<T: 'static>(
        &mut self,
        job: impl FnOnce(Reply<T>) -> Job,
    ) -> Response<Result<T, RegistryError>> {
        let queue = self.queue.as_ref().ok_or(RegistryError::Stopping);
        match queue.and_then(|queue| queue.ask(job)) {
            Ok(answer) => Response::fut(answer),
            Err(refused) => {
                self.busy += u64::from(refused == RegistryError::Busy);
                Response::reply(Err(refused))
            }
        }
    }

    fn verdict(&self, push: &DeadPush) -> Result<Rejection, Error> {
        let mut verdict = Rejection::Unregistered;
        self.shared
            .living
            .load()
            .store
            .read(push.registration, &mut |record| {
                if outlives(record, &push.rejected) {
                    verdict = Rejection::Unavailable;
                }
            })?;
        Ok(verdict)
    }

    /// The same about registrations, which are looked for first if they are those of a device.
    fn request_about<T: 'static>(
        &mut self,
        claim: Claim,
        job: impl FnOnce(Claim, Reply<T>) -> Job + 'static,
    ) -> Response<Result<T, RegistryError>> {
        let Claim::Token(token) = claim else {
            return self.request(|reply| job(claim, reply));
        };
        let Some(queue) = self.queue.clone() else {
            return Response::reply(Err(RegistryError::Stopping));
        };
        Response::fut(async move {
            let found = queue.sift(&token).await?;
            queue
                .ask(|reply| job(Claim::Registrations(found), reply))?
                .await
        })
    }

    fn write_touches(&self) {
        let mut touches = lock(&self.shared.touches);
        if touches.len() > 0 && !touches.asked {
            // Refused while the queue is full or closed: the next batch, period or drain asks again.
            let queue = self.queue.as_ref();
            touches.asked = queue.is_some_and(|queue| queue.submit(Job::WriteTouches).is_ok());
        }
    }
}

impl Actor for Registry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let period = self.shared.config.write_behind();
        self.write_behind = Some(ctx.run_interval(period, |registry, _| registry.write_touches()));
    }
}

impl Supervised for Registry {}

impl Handler<Register> for Registry {
    type Result = Response<<Register as actix::Message>::Result>;

    fn handle(&mut self, register: Register, _: &mut Self::Context) -> Self::Result {
        self.request(|reply| Job::Register(register, reply))
    }
}

impl Handler<Unregister> for Registry {
    type Result = Response<<Unregister as actix::Message>::Result>;

    fn handle(&mut self, unregister: Unregister, _: &mut Self::Context) -> Self::Result {
        self.request(|reply| Job::Unregister(unregister, reply))
    }
}

impl Handler<RemoveTokens> for Registry {
    type Result = Response<<RemoveTokens as actix::Message>::Result>;

    fn handle(&mut self, remove: RemoveTokens, _: &mut Self::Context) -> Self::Result {
        self.request(|reply| Job::RemoveTokens(remove.items, reply))
    }
}

impl Handler<SweepExpired> for Registry {
    type Result = Response<<SweepExpired as actix::Message>::Result>;

    fn handle(&mut self, sweep: SweepExpired, _: &mut Self::Context) -> Self::Result {
        self.request(|reply| Job::Sweep(sweep, reply))
    }
}

impl Handler<FindRegistration> for Registry {
    type Result = Response<<FindRegistration as actix::Message>::Result>;

    fn handle(&mut self, find: FindRegistration, _: &mut Self::Context) -> Self::Result {
        self.request(|reply| Job::Find(find, reply))
    }
}

impl Handler<FindAccountKeys> for Registry {
    type Result = MessageResult<FindAccountKeys>;

    fn handle(&mut self, find: FindAccountKeys, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.shared.living.load().keys.accounts(&find.account))
    }
}

impl Handler<DescribeRegistrations> for Registry {
    type Result = Response<<DescribeRegistrations as actix::Message>::Result>;

    fn handle(&mut self, describe: DescribeRegistrations, _: &mut Self::Context) -> Self::Result {
        self.request_about(describe.claim, Job::Describe)
    }
}

impl Handler<EraseRegistrations> for Registry {
    type Result = Response<<EraseRegistrations as actix::Message>::Result>;

    fn handle(&mut self, erase: EraseRegistrations, _: &mut Self::Context) -> Self::Result {
        self.request_about(erase.claim, Job::Erase)
    }
}

impl Handler<RotateKeys> for Registry {
    type Result = Response<<RotateKeys as actix::Message>::Result>;

    fn handle(&mut self, _: RotateKeys, _: &mut Self::Context) -> Self::Result {
        self.request(Job::Rotate)
    }
}

impl Handler<TouchBatch> for Registry {
    type Result = ();

    fn handle(&mut self, batch: TouchBatch, _: &mut Self::Context) {
        if self.queue.is_none() {
            self.late_touches += batch.items.len() as u64;
            return;
        }
        let pressing = {
            let mut touches = lock(&self.shared.touches);
            touches.fold(batch.items);
            touches.is_pressing()
        };
        if pressing {
            self.write_touches();
        }
    }
}

impl Handler<SubscribeWithdrawals> for Registry {
    type Result = ();

    fn handle(&mut self, subscription: SubscribeWithdrawals, _: &mut Self::Context) {
        self.shared.subscribers.add(subscription.subscriber);
    }
}

impl Handler<DeadPushBatch> for Registry {
    type Result = ();

    /// Reads only, and such pushes are rare, so that this may be done here.
    fn handle(&mut self, batch: DeadPushBatch, _: &mut Self::Context) {
        let mut fault = None;
        let outcomes = batch.items.iter().map(|push| {
            let rejection = self.verdict(push).unwrap_or_else(|error| {
                fault = Some(error);
                Rejection::Internal
            });
            (push.ticket, PushOutcome::Rejected(rejection))
        });
        self.outcomes_lost += batch.origin.tell(outcomes.collect()) as u64;
        if let Some(error) = fault {
            tracing::error!("pushes to dead tokens could not be looked up: {error}");
        }
    }
}

impl Handler<Drain> for Registry {
    type Result = ResponseFuture<Drained>;

    fn handle(&mut self, drain: Drain, ctx: &mut Self::Context) -> Self::Result {
        self.queue = None;
        if let Some(timer) = self.write_behind.take() {
            ctx.cancel_future(timer);
        }
        let ending = self.ending.take();
        let waiting = Arc::clone(&self.waiting);
        let touches = lock(&self.shared.touches).len() as u64;
        Box::pin(async move {
            let Some((finished, thread)) = ending else {
                return Drained::default();
            };
            let finished = tokio::time::timeout_at(drain.deadline.into(), finished).await;
            if finished.is_ok() {
                // Over but for its last statement.
                let _ = thread.join();
            }
            if matches!(finished, Ok(Ok(()))) {
                return Drained::default();
            }
            let requests = waiting.load(Ordering::Relaxed);
            tracing::error!(
                requests,
                touches,
                "the registration store could not be finished"
            );
            // Even with nothing that waited, the end of the store itself is not on disk.
            Drained {
                abandoned: (requests + touches).max(1),
            }
        })
    }
}

/// Without health the question is dropped, which whoever asks cannot tell from a closed mailbox: death.
struct Pulse(Option<Health>);

impl MessageResponse<Registry, Probe> for Pulse {
    fn handle(self, _: &mut Context<Registry>, asker: Option<OneshotSender<Health>>) {
        if let (Self(Some(health)), Some(asker)) = (self, asker) {
            // Whoever asked may have lost patience.
            let _ = asker.send(health);
        }
    }
}

impl Handler<Probe> for Registry {
    type Result = Pulse;

    /// A registry whose writer has ended can do nothing any more: it is as good as closed.
    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Self::Result {
        if self.writer_is_dead() {
            tracing::error!("the registry's writer is dead: the process has to start again");
            return Pulse(None);
        }
        let (touches_waiting, touches_dropped) = {
            let touches = lock(&self.shared.touches);
            (touches.len() as u64, touches.dropped() + self.late_touches)
        };
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let health = Health {
            counters: vec![
                ("registry_requests_waiting", read(&self.waiting)),
                ("registry_requests_answered_total", read(&counters.answered)),
                ("registry_requests_busy_total", self.busy),
                ("registry_store_syncs_total", read(&counters.syncs)),
                ("registry_store_failures_total", read(&counters.failures)),
                (
                    "registry_registrations_removed_total",
                    read(&counters.removed),
                ),
                (
                    "registry_registrations_erased_total",
                    read(&counters.erased),
                ),
                ("registry_store_rewrites_total", read(&counters.rewrites)),
                ("registry_touches_waiting", touches_waiting),
                (
                    "registry_touches_written_total",
                    read(&counters.touches_written),
                ),
                ("registry_touches_dropped_total", touches_dropped),
                ("registry_outcomes_lost_total", self.outcomes_lost),
            ],
        };
        Pulse(Some(health))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use actix::MailboxError;
    use messages::{
        AppId, BareJid, Clock, DeviceToken, Dialect, Domain, NodeId, Registered, RegistrationKey,
        Touch, UnixMillis, UnixSeconds,
    };

    use super::*;
    use crate::Config;
    use crate::keys::{Keys, MasterKey};
    use crate::store::memory::MemoryStore;

    /// A registry whose syncs tell that they have begun and wait for their result.
    struct Gate {
        handles: Handles,
        begun: mpsc::Receiver<()>,
        results: mpsc::Sender<Result<(), Error>>,
    }

    impl Gate {
        fn start(queue_max: u32) -> Self {
            let (begin, begun) = mpsc::channel();
            let (results, given) = mpsc::channel::<Result<(), Error>>();
            let given = Mutex::new(given);
            let store = MemoryStore::syncing(move || {
                begin.send(()).unwrap();
                // Without a test that gives results, all is well: the last sync of a drain.
                lock(&given).recv().unwrap_or(Ok(()))
            });
            let config = Config {
                queue_max,
                registrations_per_device_token_max: 1_000,
                touches_max: 4,
                ..Config::default()
            };
            let clock = Clock::manual(UnixMillis(1_800_000_000_000));
            let keys = Keys::derive(&MasterKey::generate().unwrap());
            let registrations = Registrations::new(&config, clock, Arc::new(store), keys);
            Self {
                handles: start(&registrations, Edges::default()).unwrap(),
                begun,
                results,
            }
        }

        /// Sends a request at once, to be awaited later.
        fn register(
            &self,
            node: u32,
        ) -> impl Future<Output = Result<Registered, RegistryError>> + use<> {
            let request = self.handles.register.send(Register {
                account: BareJid::new(&node.to_string(), Domain::new("chat.example")),
                service: Domain::new("push.example"),
                app: AppId::new("app"),
                node: NodeId::new("node").unwrap(),
                device_token: DeviceToken::parse(&"a".repeat(64)).unwrap(),
                dialect: Dialect::V1,
            });
            async { request.await.unwrap() }
        }

        /// Once this is answered, all requests sent before are in the queue.
        async fn counter(&self, name: &str) -> u64 {
            let health = self.handles.probe.send(Probe).await.unwrap();
            let found = health.counters.iter().find(|(known, _)| *known == name);
            found.unwrap().1
        }

        /// One request in the middle of its sync.
        async fn occupy(&self) -> impl Future<Output = Result<Registered, RegistryError>> + use<> {
            let first = self.register(0);
            self.counter("registry_requests_waiting").await;
            self.begun.recv().unwrap();
            first
        }

        /// Until a probe gets no answer, at once, as from an actor that is gone.
        async fn dies(&self) {
            let closed = loop {
                if let Err(error) = self.handles.probe.send(Probe).await {
                    break error;
                }
            };
            assert_eq!(closed, MailboxError::Closed);
        }

        /// Begins to drain at once, to be awaited later.
        fn drain(&self, within: Duration) -> impl Future<Output = Drained> + use<> {
            let deadline = Instant::now() + within;
            let request = self.handles.drain.send(Drain {
                deadline,
                farewell: Duration::from_secs(1),
            });
            async { request.await.unwrap() }
        }
    }

    fn touch(registration: u8) -> Touch {
        Touch {
            registration: RegistrationKey([registration; 16]),
            at: UnixSeconds(1),
            verdict: Ok(messages::Acceptance(std::num::NonZeroU32::MIN)),
        }
    }

    #[actix::test]
    async fn what_queued_meanwhile_shares_one_sync() {
        let gate = Gate::start(4096);
        let first = gate.occupy().await;
        let others: Vec<_> = (1..=100).map(|node| gate.register(node)).collect();
        assert_eq!(gate.counter("registry_requests_waiting").await, 101);
        gate.results.send(Ok(())).unwrap();
        gate.results.send(Ok(())).unwrap();
        first.await.unwrap();
        for other in others {
            other.await.unwrap();
        }
        assert_eq!(gate.counter("registry_store_syncs_total").await, 2);
        assert_eq!(gate.counter("registry_requests_answered_total").await, 101);
    }

    #[actix::test]
    async fn nothing_is_confirmed_that_is_not_on_disk() {
        let gate = Gate::start(4096);
        let first = gate.occupy().await;
        let others: Vec<_> = (1..=3).map(|node| gate.register(node)).collect();
        gate.counter("registry_requests_waiting").await;
        let full = Error::Sync(std::io::ErrorKind::StorageFull.into());
        gate.results.send(Ok(())).unwrap();
        gate.results.send(Err(full)).unwrap();
        first.await.unwrap();
        for other in others {
            assert_eq!(other.await.unwrap_err(), RegistryError::Store);
        }
        // The next sync would succeed, and prove nothing: nobody may come to it.
        gate.results.send(Ok(())).unwrap();
        gate.dies().await;
        assert_eq!(gate.register(4).await.unwrap_err(), RegistryError::Store);
        assert!(gate.drain(Duration::from_secs(30)).await.abandoned > 0);
        assert_eq!(gate.begun.try_iter().count(), 1);
    }

    #[actix::test]
    async fn a_last_sync_that_fails_abandons_what_waited() {
        let gate = Gate::start(4096);
        let full = Error::Sync(std::io::ErrorKind::StorageFull.into());
        gate.results.send(Err(full)).unwrap();
        assert_eq!(gate.drain(Duration::from_secs(30)).await.abandoned, 1);

        let gate = Gate::start(4096);
        let first = gate.occupy().await;
        let items = vec![touch(1), touch(2)];
        gate.handles.touch.try_send(TouchBatch { items }).unwrap();
        let drain = gate.drain(Duration::from_secs(30));
        // Draining before the first request is through.
        gate.counter("registry_touches_waiting").await;
        let full = Error::Sync(std::io::ErrorKind::StorageFull.into());
        gate.results.send(Ok(())).unwrap();
        gate.results.send(Err(full)).unwrap();
        assert_eq!(drain.await.abandoned, 2);
        first.await.unwrap();
    }

    #[actix::test]
    async fn a_full_queue_is_busy() {
        let gate = Gate::start(2);
        let first = gate.occupy().await;
        let queued = [gate.register(1), gate.register(2)];
        assert_eq!(gate.register(3).await.unwrap_err(), RegistryError::Busy);
        assert_eq!(gate.counter("registry_requests_busy_total").await, 1);
        gate.results.send(Ok(())).unwrap();
        gate.results.send(Ok(())).unwrap();
        first.await.unwrap();
        for queued in queued {
            queued.await.unwrap();
        }
    }

    #[actix::test]
    async fn push_times_do_not_crowd_the_queue() {
        let gate = Gate::start(4096);
        let first = gate.occupy().await;
        for n in 0..10 {
            let items = vec![touch(n)];
            gate.handles.touch.try_send(TouchBatch { items }).unwrap();
        }
        assert_eq!(gate.counter("registry_requests_waiting").await, 2);
        gate.results.send(Ok(())).unwrap();
        first.await.unwrap();
    }

    #[actix::test]
    async fn a_drain_ends_at_its_deadline_and_tells_what_is_left() {
        let gate = Gate::start(4096);
        let first = gate.occupy().await;
        let second = gate.register(1);
        assert_eq!(gate.drain(Duration::from_millis(1)).await.abandoned, 2);
        drop(gate.results);
        first.await.unwrap();
        second.await.unwrap();
    }

    #[actix::test]
    async fn a_registry_without_its_writer_answers_no_probe() {
        let mut gate = Gate::start(16);
        // The store panics in its next sync, because nobody is there to be told.
        gate.begun = mpsc::channel().1;
        let answer = gate.register(0).await;
        assert_eq!(answer.unwrap_err(), RegistryError::Store);
        gate.dies().await;
        assert_eq!(gate.drain(Duration::from_secs(30)).await.abandoned, 1);
    }
}
