//! Erasure: the living registrations are copied into a store that never held what was erased, which then
//! takes the place of the one that did.
//!
//! The copy goes on in pages between the requests, on the thread of the single writer, so a request waits
//! for a page at most, and pushes wait for nothing. Meanwhile each write goes to both stores. The exchange
//! is one rename; cut short before it the copy is worthless and goes at the next start, after it the store
//! that was replaced does. The store remembers that an erasure is owed until it is replaced itself.
//!
//! An erasure that comes during a copy waits for the next one, since what it erases may have been copied;
//! all that came until a copy begins share it.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use messages::{RegistrationKey, RegistryError};

use crate::Error;
use crate::keys::{Keys, MasterKey};
use crate::store::{Record, RegistrationStore};

/// Registrations copied at a time; about 20 ms.
const PAGE: usize = 256;
/// Pages after which what was copied goes to the disk, so that not all of it goes at the end.
const PAGES_PER_SYNC: u32 = 64;
/// How many times as long as a copy took there is none afterwards: people who erase themselves without
/// end must not keep the disk busy.
const REST: u32 = 4;
/// How long after a copy that failed the next one is tried.
const REST_AFTER_FAILURE: Duration = Duration::from_secs(60);

/// Somebody who waits until the bytes are gone.
pub(crate) type Owed = Box<dyn FnOnce(Result<(), RegistryError>) + Send>;

/// A store that took the place of another.
pub(crate) struct Exchange {
    pub(crate) store: Arc<dyn RegistrationStore>,
    /// The keys it was written with, where those are new.
    pub(crate) keys: Option<Arc<Keys>>,
    /// Who is told once the bytes of the store before are gone.
    pub(crate) owed: Vec<Owed>,
}

/// The erasures that are owed, and the copy in the making.
#[derive(Default)]
pub(crate) struct Erasure {
    owed: Vec<Owed>,
    due: bool,
    /// The keys that the next copy is written with.
    rotation: Option<Arc<Keys>>,
    copy: Option<Copy>,
    not_before: Option<Instant>,
}

struct Copy {
    store: Arc<dyn RegistrationStore>,
    rekey: Option<Rekey>,
    after: Option<RegistrationKey>,
    pages: u32,
    began: Instant,
    owed: Vec<Owed>,
}

/// From which keys to which.
struct Rekey {
    from: Arc<Keys>,
    to: Arc<Keys>,
}

impl Rekey {
    /// The record under the new keys, with the same secret. The account's key stays until the account
    /// registers again: nobody else knows its JID.
    fn record<'a>(&self, record: &Record<'a>) -> Record<'a> {
        Record {
            mask: self.from.mask_for(&self.to, &record.salt, &record.mask),
            ..*record
        }
    }
}

impl Erasure {
    /// With an erasure that an earlier process has left undone, if there is one.
    pub(crate) fn new(due: bool) -> Self {
        Self {
            due,
            ..Self::default()
        }
    }

    /// Takes on an erasure of what is removed from the store already.
    pub(crate) fn owe(&mut self, answer: Owed) {
        self.due = true;
        self.owed.push(answer);
    }

    /// Whether new keys are on their way. There is room on disk for one key that is prepared, and until
    /// it has its name nothing else has it.
    pub(crate) fn rotates(&self) -> bool {
        self.rotation.is_some() || self.copy.as_ref().is_some_and(|copy| copy.rekey.is_some())
    }

    /// Takes on a copy under new keys, which are prepared on disk, unless it [`Self::rotates`].
    pub(crate) fn owe_rotation(&mut self, keys: Arc<Keys>, answer: Owed) {
        self.rotation = Some(keys);
        self.owe(answer);
    }

    /// How long the writer may wait for a job before there is something to do here.
    pub(crate) fn patience(&self) -> Patience {
        match (self.copy.is_some(), self.due, self.not_before) {
            (true, ..) | (false, true, None) => Patience::None,
            (false, true, Some(at)) => Patience::Until(at),
            (false, false, _) => Patience::Endless,
        }
    }

    /// Repeats a write to the store in the copy.
    pub(crate) fn mirror(
        &mut self,
        write: impl FnOnce(&dyn RegistrationStore) -> Result<(), Error>,
    ) {
        let written = self
            .copy
            .as_ref()
            .map_or(Ok(()), |copy| write(&*copy.store));
        if let Err(error) = written {
            self.failed(&error);
        }
    }

    /// Repeats a registration to the store in the copy.
    pub(crate) fn mirror_put(&mut self, key: RegistrationKey, record: &Record<'_>) {
        let put = self
            .copy
            .as_ref()
            .map_or(Ok(()), |copy| copy.put(key, record));
        if let Err(error) = put {
            self.failed(&error);
        }
    }

    /// Does the next piece of work: begins a copy of `store`, copies a page, or makes the copy the store
    /// to be opened, which the caller then has to use.
    ///
    /// # Errors
    /// When nobody can tell which of the two stores a next start opens. What fails before that is logged,
    /// told to whoever waits, and tried again.
    pub(crate) fn step(
        &mut self,
        store: &Arc<dyn RegistrationStore>,
        keys: &Arc<Keys>,
        key_file: &Path,
    ) -> Result<Option<Exchange>, Error> {
        let now = Instant::now();
        let Some(copy) = &mut self.copy else {
            if self.due && self.not_before.is_none_or(|at| at <= now) {
                self.begin(store, keys, now);
            }
            return Ok(None);
        };
        let page = copy.page(&**store).and_then(|last| match &copy.rekey {
            // The store would have a key that is in no file.
            Some(Rekey { to, .. }) if last => {
                MasterKey::check_prepared(key_file, to).map(|()| last)
            }
            _ => Ok(last),
        });
        match page {
            Ok(false) => Ok(None),
            Ok(true) => self.exchange(now),
            Err(error) => {
                self.failed(&error);
                Ok(None)
            }
        }
    }

    fn begin(&mut self, store: &Arc<dyn RegistrationStore>, keys: &Arc<Keys>, now: Instant) {
        let to = self.rotation.take();
        match store.successor(to.as_ref().unwrap_or(keys).check()) {
            Ok(store) => {
                self.due = false;
                self.copy = Some(Copy {
                    store,
                    rekey: to.map(|to| Rekey {
                        from: Arc::clone(keys),
                        to,
                    }),
                    after: None,
                    pages: 0,
                    began: now,
                    owed: std::mem::take(&mut self.owed),
                });
            }
            Err(error) => self.failed(&error),
        }
    }

    fn exchange(&mut self, now: Instant) -> Result<Option<Exchange>, Error> {
        let Some(Copy {
            store,
            rekey,
            began,
            owed,
            ..
        }) = self.copy.take()
        else {
            return Ok(None);
        };
        store.take_over()?;
        if self.due {
            // Noted in the store that goes.
            store.owe_erasure()?;
            store.flush()?;
            store.sync()?;
        }
        self.not_before = Some(now + now.duration_since(began) * REST);
        let keys = rekey.map(|rekey| rekey.to);
        Ok(Some(Exchange { store, keys, owed }))
    }

    fn failed(&mut self, error: &Error) {
        tracing::error!(
            "what was erased is out of use but not yet off the disk, will be tried again: {error}"
        );
        self.give_up(RegistryError::Store);
        self.due = true;
        self.not_before = Some(Instant::now() + REST_AFTER_FAILURE);
    }

    /// Drops the copy in the making. Who waits is told; the store still knows what is owed.
    pub(crate) fn give_up(&mut self, reason: RegistryError) {
        self.rotation = None;
        let mut owed = std::mem::take(&mut self.owed);
        if let Some(copy) = self.copy.take() {
            owed.extend(copy.owed);
            if let Err(error) = copy.store.discard() {
                tracing::warn!(
                    "an unfinished copy of the store stays until the next start: {error}"
                );
            }
        }
        for answer in owed {
            answer(Err(reason));
        }
    }
}

impl Copy {
    fn put(&self, key: RegistrationKey, record: &Record<'_>) -> Result<(), Error> {
        match &self.rekey {
            Some(rekey) => self.store.put(key, &rekey.record(record)),
            None => self.store.put(key, record),
        }
    }

    /// Copies the next page; true after the last.
    fn page(&mut self, from: &dyn RegistrationStore) -> Result<bool, Error> {
        let to = &*self.store;
        let mut copied = Ok(());
        let page = from.page(self.after, PAGE, &mut |key, record| {
            if copied.is_ok() {
                copied = self
                    .put(key, record)
                    .and_then(|()| to.add_times(key, &from.times(key)?));
            }
        })?;
        copied?;
        if page.unreadable > 0 {
            tracing::error!(records = page.unreadable, "not copied: {}", Error::Record);
        }
        self.pages += 1;
        if self.pages.is_multiple_of(PAGES_PER_SYNC) {
            to.flush()?;
            to.sync()?;
        }
        self.after = page.last;
        Ok(page.last.is_none())
    }
}

/// Removes the bytes of a store that was replaced, and tells who waits for that. It waits for readers, so
/// it has a thread of its own.
pub(crate) fn discard(replaced: Arc<dyn RegistrationStore>, owed: Vec<Owed>) {
    let discard = move || {
        let discarded = replaced.discard().map_err(|error| {
            tracing::error!("what was erased stays on the disk until the next start: {error}");
            RegistryError::Store
        });
        for answer in owed {
            answer(discarded);
        }
    };
    let spawned = thread::Builder::new().name("erasure".into()).spawn(discard);
    if let Err(error) = spawned {
        // Who waits is told by the answer that is dropped; the next start does the rest.
        tracing::error!("what was erased stays on the disk until the next start: {error}");
    }
}

/// How long the writer may wait for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    None,
    Until(Instant),
    Endless,
}

impl Patience {
    /// The next job, or `None` when it is time for something else.
    ///
    /// # Errors
    /// [`Closed`] when there will be none any more.
    pub(crate) fn wait<J>(self, jobs: &Receiver<J>) -> Result<Option<J>, Closed> {
        match self {
            Self::None => match jobs.try_recv() {
                Ok(job) => Ok(Some(job)),
                Err(TryRecvError::Empty) => Ok(None),
                Err(TryRecvError::Disconnected) => Err(Closed),
            },
            Self::Until(at) => {
                match jobs.recv_timeout(at.saturating_duration_since(Instant::now())) {
                    Ok(job) => Ok(Some(job)),
                    Err(RecvTimeoutError::Timeout) => Ok(None),
                    Err(RecvTimeoutError::Disconnected) => Err(Closed),
                }
            }
            Self::Endless => jobs.recv().map(Some).map_err(|_| Closed),
        }
    }
}

/// There will be no job any more.
#[derive(Debug)]
pub(crate) struct Closed;
