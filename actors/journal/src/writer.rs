//! The thread that appends.
//!
//! What has queued is encoded into one buffer and written with one call. The end of the process loses
//! nothing that was written; against a loss of power the file is synced at most once per period, and at once
//! when somebody asks. When a file cannot be written, or there is no room, what was to be written is lost
//! and counted, and the next batch is tried again: nobody waits for the journal.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use messages::{JournalEntry, JournalError, JournalEvent};
use tokio::sync::oneshot;

use crate::alarm::Alarm;
use crate::archive::Task;
use crate::codec::Encoder;
use crate::segment::{self, Form, SegmentId, hour_of};
use crate::shared::{Shared, add};
use crate::{Error, Record};

/// Bytes encoded before they are written.
const BUFFER_BYTES: usize = 256 << 10;
/// How often the file system is asked how much room is left.
const ROOM_PERIOD: Duration = Duration::from_secs(1);
/// How long the thread sleeps when there is nothing to sync.
const IDLE: Duration = Duration::from_secs(60);

/// What the writer is asked.
pub(crate) enum Job {
    Append(Vec<JournalEntry>),
    /// Appends these and makes all durable.
    Sync {
        items: Vec<JournalEntry>,
        reply: oneshot::Sender<Result<(), JournalError>>,
    },
    /// Something about closed segments. `roll` closes the open one first, so that the task sees all that was
    /// written; without, it is closed only if its hour is over.
    Archive {
        task: Task,
        roll: bool,
    },
}

/// The segment that is written to.
struct Active {
    id: SegmentId,
    file: File,
    /// Bytes of whole records.
    length: u64,
    /// Whether some of them may not be on disk, and since when.
    dirty: Option<Instant>,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    archive: Sender<Task>,
    active: Option<Active>,
    /// The last segment that was opened: no name is used twice.
    last: Option<SegmentId>,
    buffer: Vec<u8>,
    /// Entries in the buffer.
    buffered: u64,
    room: Room,
    alarm: Alarm,
}

/// Why nothing can be written.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Files(#[from] Error),
    #[error("its segments have reached journal.bytes_max")]
    Full,
    #[error("its file system has less than journal.free_bytes_min left")]
    NoRoom,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, archive: Sender<Task>) -> Self {
        Self {
            shared,
            archive,
            active: None,
            last: None,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            buffered: 0,
            room: Room::default(),
            alarm: Alarm::default(),
        }
    }

    /// Works until the queue is closed and empty; then all is on disk, or counted as lost.
    pub(crate) fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let wait = self.until_sync().unwrap_or(IDLE);
            match jobs.recv_timeout(wait) {
                Ok(first) => {
                    self.work(first);
                    while let Ok(job) = jobs.try_recv() {
                        self.work(job);
                        if self.until_sync().is_some_and(|wait| wait.is_zero()) {
                            break;
                        }
                    }
                    self.write();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.until_sync().is_some_and(|wait| wait.is_zero()) {
                // Counted and logged.
                let _ = self.sync();
            }
        }
        self.write();
        let _ = self.sync();
    }

    fn work(&mut self, job: Job) {
        match job {
            Job::Append(items) => {
                let count = u64::try_from(items.len()).unwrap_or(u64::MAX);
                self.append(&items);
                self.shared.waiting.fetch_sub(count, Ordering::Relaxed);
            }
            Job::Sync { items, reply } => {
                // Apart from what was buffered before: its loss is not theirs, nor theirs its.
                let before = self.write();
                let written = self.append(&items) && self.write() && before;
                let synced = self.sync();
                // Whoever asked may have gone.
                let _ = reply.send(if written && synced {
                    Ok(())
                } else {
                    Err(JournalError::Files)
                });
            }
            Job::Archive { task, roll } => {
                self.write();
                let hour = hour_of(self.shared.clock.now());
                let over = |active: &Active| active.id.hour != hour;
                if roll || self.active.as_ref().is_some_and(over) {
                    self.close();
                }
                // Without an archive the task is dropped, which is an answer.
                let _ = self.archive.send(task);
            }
        }
    }

    /// Whether nothing was lost.
    fn append(&mut self, items: &[JournalEntry]) -> bool {
        for entry in items {
            if self.is_wanted(&entry.event) {
                Encoder::new(&mut self.buffer, self.shared.key.as_ref()).record(entry);
                self.buffered += 1;
            }
        }
        self.buffer.len() < BUFFER_BYTES || self.write()
    }

    fn is_wanted(&self, event: &JournalEvent) -> bool {
        let registration = match event {
            JournalEvent::Pushed(pushed) => {
                if self.shared.config.record < Record::Pushes {
                    return false;
                }
                pushed.target.as_ref().map(|target| target.registration)
            }
            JournalEvent::Ended(ended) => Some(ended.registration),
            _ => None,
        };
        self.shared.config.record > Record::Off
            && !registration.is_some_and(|registration| self.shared.is_forgotten(registration))
    }

    /// Hands the buffer to the system. What cannot be written is lost and counted; then it gives `false`.
    fn write(&mut self) -> bool {
        if self.buffer.is_empty() {
            return true;
        }
        let entries = std::mem::take(&mut self.buffered);
        let written = self.write_out();
        let is_written = written.is_ok();
        match written {
            Ok(()) => {
                add(&self.shared.written, entries);
                if self.alarm.ends() {
                    tracing::info!("the journal is written again");
                }
                self.shared.failing.store(false, Ordering::Relaxed);
            }
            Err(trouble) => self.lose(entries, &trouble),
        }
        self.buffer.clear();
        is_written
    }

    fn lose(&mut self, entries: u64, trouble: &Trouble) {
        add(&self.shared.lost, entries);
        self.shared.failing.store(true, Ordering::Relaxed);
        if let Some(lost) = self.alarm.rings(entries) {
            tracing::error!(
                lost,
                "the journal cannot be written, pushes go on without it: {trouble}"
            );
        }
    }

    fn write_out(&mut self) -> Result<(), Trouble> {
        let bytes = self.buffer.len() as u64;
        let config = &self.shared.config;
        if self.shared.bytes.load(Ordering::Relaxed) + bytes > config.bytes_max {
            return Err(Trouble::Full);
        }
        self.room.check(&self.shared, bytes)?;
        let hour = hour_of(self.shared.clock.now());
        let segment_bytes_max = config.segment_bytes_max;
        let ends =
            |active: &Active| active.id.hour != hour || active.length + bytes > segment_bytes_max;
        if self.active.as_ref().is_some_and(ends) {
            self.close();
        }
        let active = match &mut self.active {
            Some(active) => active,
            empty => empty.insert(open(&self.shared.config.path, &mut self.last, hour)?),
        };
        if let Err(source) = active.file.write_all(&self.buffer) {
            // Half a record would hide what comes after it.
            let whole = active.file.set_len(active.length);
            let path = active.id.path(&self.shared.config.path, Form::Raw);
            if whole.is_err() {
                self.close();
            }
            return Err(Trouble::Files(Error::Segment { path, source }));
        }
        active.length += bytes;
        active.dirty.get_or_insert_with(Instant::now);
        add(&self.shared.bytes, bytes);
        Ok(())
    }

    /// Time until the next sync; `None` when there is nothing to sync.
    fn until_sync(&self) -> Option<Duration> {
        let since = self.active.as_ref()?.dirty?;
        let period = self.shared.config.sync_period();
        Some(period.saturating_sub(since.elapsed()))
    }

    /// Makes all durable that was written. After a failure nothing is known of the file, so that no more is
    /// written to it.
    fn sync(&mut self) -> bool {
        let Some(active) = self.active.as_mut().filter(|active| active.dirty.is_some()) else {
            return true;
        };
        match active.file.sync_data() {
            Ok(()) => {
                active.dirty = None;
                add(&self.shared.syncs, 1);
                true
            }
            Err(source) => {
                let path = active.id.path(&self.shared.config.path, Form::Raw);
                active.dirty = None;
                self.close();
                self.lose(0, &Trouble::Files(Error::Segment { path, source }));
                false
            }
        }
    }

    /// Closes the segment and leaves it to the archive.
    fn close(&mut self) {
        // A failure to sync closes as well.
        self.sync();
        if let Some(active) = self.active.take() {
            // At the next start the archive finds it by itself.
            let _ = self.archive.send(Task::Closed(active.id));
        }
    }
}

/// Opens a segment for the hour, with a name that was never used.
fn open(directory: &Path, last: &mut Option<SegmentId>, hour: u64) -> Result<Active, Error> {
    let mut part = match last {
        Some(last) if last.hour == hour => last.part + 1,
        _ => 1,
    };
    loop {
        let id = SegmentId { hour, part };
        let path = id.path(directory, Form::Raw);
        let is_used = id.path(directory, Form::Compressed).exists();
        match segment::create(&path) {
            Ok(file) if !is_used => {
                *last = Some(id);
                // Not synced here: the first sync of the file would be worth nothing without its name.
                segment::sync_directory(directory)?;
                return Ok(Active {
                    id,
                    file,
                    length: 0,
                    dirty: None,
                });
            }
            Ok(_) => std::fs::remove_file(&path).map_err(segment::at(&path))?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(segment::at(&path)(error)),
        }
        part = part.saturating_add(1);
    }
}

/// How much room the file system had when last looked at.
#[derive(Default)]
struct Room {
    /// Bytes left for the journal, and when that was found.
    left: Option<(u64, Instant)>,
}

impl Room {
    fn check(&mut self, shared: &Shared, bytes: u64) -> Result<(), Trouble> {
        let fresh = self
            .left
            .filter(|(_, found)| found.elapsed() < ROOM_PERIOD)
            .map(|(left, _)| left);
        let left = match fresh {
            Some(left) => left,
            None => {
                let path = &shared.config.path;
                let found = rustix::fs::statvfs(path).map_err(|errno| Error::Directory {
                    path: path.clone(),
                    source: errno.into(),
                })?;
                let free = found.f_bavail.saturating_mul(found.f_frsize);
                free.saturating_sub(shared.config.free_bytes_min)
            }
        };
        if left < bytes {
            self.left.get_or_insert((left, Instant::now()));
            return Err(Trouble::NoRoom);
        }
        let found = match self.left {
            Some((_, found)) if fresh.is_some() => found,
            _ => Instant::now(),
        };
        self.left = Some((left - bytes, found));
        Ok(())
    }
}
