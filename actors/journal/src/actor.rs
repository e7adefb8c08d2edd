//! The actor: takes messages on the control arbiter, bounds what waits, and never waits for the disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use actix::{
    Actor, Context, Handler, MessageResult, Recipient, ResponseFuture, Supervised, Supervisor,
};
use messages::{
    Drain, Drained, EraseJournal, Health, JournalBatch, JournalError, JournalEvent, Probe,
    ReadJournal, SweepError, SweepOutdated, SyncJournal,
};
use tokio::sync::oneshot;

use crate::alarm::Alarm;
use crate::archive::{Archive, Task, Widened};
use crate::shared::{Shared, add};
use crate::writer::{Job, Writer};
use crate::{Error, Journal, Record};

/// Requests about closed segments that may wait; each may read all of them.
const REQUESTS_MAX: u64 = 16;

/// Where the journal takes messages.
#[derive(Clone)]
pub struct Handles {
    /// Takes everything; what is not to be recorded is dropped.
    pub record: Recipient<JournalBatch>,
    /// Pushes; `None` if they are not recorded, so that they cost nothing.
    pub pushes: Option<Recipient<JournalBatch>>,
    /// Reads what there is on a person.
    pub read: Recipient<ReadJournal>,
    /// Erases it.
    pub erase: Recipient<EraseJournal>,
    /// Makes durable what was sent before.
    pub sync: Recipient<SyncJournal>,
    /// Removes segments that are older than they may be.
    pub sweep: Recipient<SweepOutdated>,
    /// Writes all that waits.
    pub drain: Recipient<Drain>,
    /// Counters.
    pub probe: Recipient<Probe>,
}

/// Starts the journal on the current arbiter, and its threads. Once per directory.
///
/// # Errors
/// [`Error::Thread`] when the system gives no thread.
pub fn start(journal: Journal) -> Result<Handles, Error> {
    let Journal { shared, closed } = journal;
    let record = shared.config.record;
    // Neither has a bound of its own: entries and requests are counted before they are sent.
    let (jobs, queue) = channel();
    let (tasks, task_queue) = channel();
    let (done, finished) = oneshot::channel();
    let archive = Archive::new(Arc::clone(&shared), closed);
    thread::Builder::new()
        .name("journal archive".into())
        .spawn(move || {
            archive.run(&task_queue);
            // The actor may be gone already.
            let _ = done.send(());
        })
        .map_err(Error::Thread)?;
    let writer = Writer::new(Arc::clone(&shared), tasks);
    let thread = thread::Builder::new()
        .name("journal".into())
        .spawn(move || writer.run(&queue))
        .map_err(Error::Thread)?;
    let actor = JournalActor {
        shared,
        jobs: Some(jobs),
        ending: Some(finished),
        thread,
        alarm: Alarm::default(),
    };
    let address = Supervisor::start(|ctx: &mut Context<JournalActor>| {
        ctx.set_mailbox_capacity(0);
        actor
    });
    Ok(Handles {
        record: address.clone().recipient(),
        pushes: (record >= Record::Pushes).then(|| address.clone().recipient()),
        read: address.clone().recipient(),
        erase: address.clone().recipient(),
        sync: address.clone().recipient(),
        sweep: address.clone().recipient(),
        drain: address.clone().recipient(),
        probe: address.recipient(),
    })
}

struct JournalActor {
    shared: Arc<Shared>,
    /// Gone when draining, which ends the threads once their queues are empty.
    jobs: Option<Sender<Job>>,
    /// Tells when all is on disk: the archive ends after the writer.
    ending: Option<oneshot::Receiver<()>>,
    thread: JoinHandle<()>,
    /// On entries for which there was no room.
    alarm: Alarm,
}

/// The way to the writer for as long as a request takes, which may be several steps.
struct Requests {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
}

impl Requests {
    async fn ask<T>(
        &self,
        roll: bool,
        task: impl FnOnce(oneshot::Sender<Result<T, JournalError>>) -> Task,
    ) -> Result<T, JournalError> {
        if self.shared.requests.fetch_add(1, Ordering::Relaxed) >= REQUESTS_MAX {
            self.shared.requests.fetch_sub(1, Ordering::Relaxed);
            return Err(JournalError::Busy);
        }
        let (reply, answer) = oneshot::channel();
        let task = task(reply);
        if self.jobs.send(Job::Archive { task, roll }).is_err() {
            self.shared.requests.fetch_sub(1, Ordering::Relaxed);
            return Err(JournalError::Files);
        }
        answer.await.unwrap_or(Err(JournalError::Files))
    }
}

impl JournalActor {
    fn requests(&self) -> Result<Requests, JournalError> {
        let jobs = self.jobs.clone().ok_or(JournalError::Stopping)?;
        let shared = Arc::clone(&self.shared);
        Ok(Requests { shared, jobs })
    }
}

impl Actor for JournalActor {
    type Context = Context<Self>;
}

impl Supervised for JournalActor {}

impl Handler<JournalBatch> for JournalActor {
    type Result = ();

    fn handle(&mut self, batch: JournalBatch, _: &mut Self::Context) {
        let count = batch.items.len() as u64;
        let max = u64::from(self.shared.config.queue_max);
        // Pushes are many and worth less: they leave half of the queue to the rest.
        let is_push =
            |first: &messages::JournalEntry| matches!(first.event, JournalEvent::Pushed(_));
        let max = if batch.items.first().is_some_and(is_push) {
            max / 2
        } else {
            max
        };
        let waiting = &self.shared.waiting;
        let sent = waiting.load(Ordering::Relaxed) + count <= max
            && self.jobs.as_ref().is_some_and(|jobs| {
                // Before it can be written and counted off.
                add(waiting, count);
                let sent = jobs.send(Job::Append(batch.items)).is_ok();
                if !sent {
                    waiting.fetch_sub(count, Ordering::Relaxed);
                }
                sent
            });
        if !sent {
            add(&self.shared.lost, count);
            if self.jobs.is_some()
                && let Some(lost) = self.alarm.rings(count)
            {
                tracing::error!(
                    lost,
                    "the journal's disk does not keep up, or its writer is dead: entries are lost, pushes go on"
                );
            }
        }
    }
}

impl Handler<ReadJournal> for JournalActor {
    type Result = ResponseFuture<Result<messages::JournalPage, JournalError>>;

    fn handle(&mut self, request: ReadJournal, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests();
        Box::pin(async move {
            // Later pages go on with what the first has seen.
            let roll = request.after.is_none();
            requests?
                .ask(roll, |reply| Task::Read(request, reply))
                .await
        })
    }
}

impl Handler<EraseJournal> for JournalActor {
    type Result = ResponseFuture<Result<messages::ErasedRecords, JournalError>>;

    fn handle(&mut self, erase: EraseJournal, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests();
        Box::pin(async move {
            let requests = requests?;
            let until = erase.until;
            let Widened { subject, unreached } = requests
                .ask(true, |reply| Task::Widen(erase, reply))
                .await?;
            // From here on nothing more is written of them, so what there is lies in what is closed next.
            // What is erased up to a time that is over has no more to come, but its person may be back.
            if until.is_none_or(|until| until >= requests.shared.clock.now()) {
                requests.shared.forget(&subject.registrations);
            }
            let erase = EraseJournal { subject, until };
            let mut erased = requests
                .ask(true, |reply| Task::Erase(erase, reply))
                .await?;
            // What could be read the second time may have led to more.
            erased.unreached = erased.unreached.max(unreached);
            Ok(erased)
        })
    }
}

impl Handler<SyncJournal> for JournalActor {
    type Result = ResponseFuture<Result<(), JournalError>>;

    fn handle(&mut self, sync: SyncJournal, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests();
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let SyncJournal { items } = sync;
            requests?
                .jobs
                .send(Job::Sync { items, reply })
                .map_err(|_| JournalError::Files)?;
            answer.await.unwrap_or(Err(JournalError::Files))
        })
    }
}

impl Handler<SweepOutdated> for JournalActor {
    type Result = ResponseFuture<Result<messages::SweptOutdated, SweepError>>;

    fn handle(&mut self, sweep: SweepOutdated, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests();
        Box::pin(async move {
            let requests = requests.map_err(|_| SweepError::Stopping)?;
            let (reply, answer) = oneshot::channel();
            let task = Task::Sweep(sweep, reply);
            requests
                .jobs
                .send(Job::Archive { task, roll: false })
                .map_err(|_| SweepError::Failed)?;
            answer.await.unwrap_or(Err(SweepError::Failed))
        })
    }
}

impl Handler<Drain> for JournalActor {
    type Result = ResponseFuture<Drained>;

    /// Nothing of the journal counts as abandoned work: nobody waits for it.
    fn handle(&mut self, drain: Drain, _: &mut Self::Context) -> Self::Result {
        self.jobs = None;
        let ending = self.ending.take();
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let Some(finished) = ending else {
                return Drained::default();
            };
            let finished = tokio::time::timeout_at(drain.deadline.into(), finished).await;
            let entries = shared.waiting.load(Ordering::Relaxed);
            if !matches!(finished, Ok(Ok(()))) || entries > 0 {
                tracing::error!(entries, "the end of the journal is not on disk");
            }
            Drained::default()
        })
    }
}

impl Handler<Probe> for JournalActor {
    type Result = MessageResult<Probe>;

    /// Answers also without its writer: pushes shall go on.
    fn handle(&mut self, _: Probe, _: &mut Self::Context) -> Self::Result {
        let shared = &self.shared;
        let dead = self.jobs.is_some() && self.thread.is_finished();
        if dead {
            tracing::error!(
                "the journal's writer is dead, nothing is recorded before the process has started again"
            );
        }
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let failing = dead || shared.failing.load(Ordering::Relaxed);
        MessageResult(Health {
            counters: vec![
                ("journal_entries_waiting", read(&shared.waiting)),
                ("journal_entries_written_total", read(&shared.written)),
                ("journal_entries_lost_total", read(&shared.lost)),
                ("journal_failing", u64::from(failing)),
                ("journal_syncs_total", read(&shared.syncs)),
                ("journal_segments", read(&shared.segments)),
                ("journal_segments_damaged_total", read(&shared.damaged)),
                ("journal_bytes", read(&shared.bytes)),
            ],
        })
    }
}
