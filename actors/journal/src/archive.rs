//! The thread that works with closed segments: compresses, reads, erases, removes. It never touches the one
//! that is written to, so that nothing here holds up the writer.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;

use messages::{
    ErasedRecords, JournalCursor, JournalError, JournalPage, ReadJournal, Subject, SweepError,
    SweepOutdated, SweptOutdated,
};
use tokio::sync::oneshot;

use crate::Error;
use crate::codec::{End, Record, Search, copy};
use crate::segment::{
    self, Form, HOUR_SECONDS, Rewriter, SegmentId, at, hour_of, read, sync_directory,
};
use crate::shared::{Shared, add};

/// Most lines of a page.
const LINES_MAX: u32 = 10_000;
/// Bytes of records that a page looks at before it ends, however few lines it has.
const PAGE_BYTES_MAX: u64 = 512 << 20;
/// Parts from this number on are segments whose hour was put right.
const REDATED: u32 = 1_000_000;

/// What the archive is asked.
pub(crate) enum Task {
    /// The writer has closed this one.
    Closed(SegmentId),
    Read(
        ReadJournal,
        oneshot::Sender<Result<JournalPage, JournalError>>,
    ),
    /// Finds the registrations that the subject's records lead to.
    Widen(Subject, oneshot::Sender<Result<Subject, JournalError>>),
    Erase(
        Subject,
        oneshot::Sender<Result<ErasedRecords, JournalError>>,
    ),
    Sweep(
        SweepOutdated,
        oneshot::Sender<Result<SweptOutdated, SweepError>>,
    ),
}

pub(crate) struct Archive {
    shared: Arc<Shared>,
    closed: BTreeMap<SegmentId, Form>,
}

impl Archive {
    pub(crate) const fn new(shared: Arc<Shared>, closed: BTreeMap<SegmentId, Form>) -> Self {
        Self { shared, closed }
    }

    /// Works until nobody can ask any more.
    pub(crate) fn run(mut self, tasks: &Receiver<Task>) {
        self.compress_rest();
        while let Ok(task) = tasks.recv() {
            match task {
                Task::Closed(id) => {
                    self.closed.insert(id, Form::Raw);
                    self.compress(id);
                }
                Task::Read(request, reply) => self.answer(reply, |archive| archive.page(request)),
                Task::Widen(subject, reply) => self.answer(reply, |archive| archive.widen(subject)),
                Task::Erase(subject, reply) => self.answer(reply, |archive| archive.erase(subject)),
                Task::Sweep(sweep, reply) => {
                    let swept = self.sweep(sweep).map_err(|error| {
                        tracing::error!("{error}");
                        SweepError::Failed
                    });
                    // Whoever asked may have gone.
                    let _ = reply.send(swept);
                }
            }
        }
    }

    fn answer<T>(
        &mut self,
        reply: oneshot::Sender<Result<T, JournalError>>,
        work: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) {
        // Nobody to be told of an erasure is no reason not to erase; a reader who has gone is one.
        let done = work(self).map_err(|error| {
            tracing::error!("{error}");
            JournalError::Files
        });
        self.shared.requests.fetch_sub(1, Ordering::Relaxed);
        let _ = reply.send(done);
    }

    fn directory(&self) -> &Path {
        &self.shared.config.path
    }

    fn search(&self, subject: Subject) -> Search {
        Search::new(subject, self.shared.key.as_ref())
    }

    /// Shows the records of a segment until `visit` has enough. Gives `false` if the rest of the segment
    /// cannot be read.
    fn scan(
        &self,
        id: SegmentId,
        form: Form,
        mut visit: impl FnMut(Record<'_>) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        let mut records = read(self.directory(), id, form)?;
        loop {
            match records.next() {
                Ok(record) => {
                    if !visit(record)? {
                        return Ok(true);
                    }
                }
                Err(End::Clean) => return Ok(true),
                Err(End::Torn) => {
                    add(&self.shared.damaged, 1);
                    tracing::error!(
                        segment = %id.path(self.directory(), form).display(),
                        "the journal's segment is damaged, the rest of it cannot be read: check the disk"
                    );
                    return Ok(false);
                }
                Err(End::Failed(source)) => {
                    return Err(at(&id.path(self.directory(), form))(source));
                }
            }
        }
    }

    fn widen(&self, subject: Subject) -> Result<Subject, Error> {
        let mut search = self.search(subject);
        for (id, form) in &self.closed {
            self.scan(*id, *form, |record| {
                search.widen(&record);
                Ok(true)
            })?;
        }
        Ok(search.into_subject())
    }

    fn page(&self, request: ReadJournal) -> Result<JournalPage, Error> {
        let ReadJournal {
            subject,
            after,
            limit,
        } = request;
        let limit = limit.clamp(1, LINES_MAX) as usize;
        let (subject, start, passed) = match after {
            None => (self.widen(subject)?, None, 0),
            Some(JournalCursor {
                hour,
                part,
                records,
            }) => (subject, Some(SegmentId { hour, part }), records),
        };
        let search = self.search(subject);
        let mut lines = Vec::new();
        let mut next = None;
        let mut bytes = 0;
        let rest = self
            .closed
            .iter()
            .filter(|(id, _)| start.is_none_or(|start| **id >= start));
        for (id, form) in rest {
            let skip = if Some(*id) == start { passed } else { 0 };
            let mut number = 0;
            self.scan(*id, *form, |record| {
                if number >= skip {
                    if lines.len() == limit || bytes > PAGE_BYTES_MAX {
                        next = Some(JournalCursor {
                            hour: id.hour,
                            part: id.part,
                            records: number,
                        });
                        return Ok(false);
                    }
                    bytes += record.len() as u64;
                    if search.matches(&record) {
                        lines.extend(record.line());
                    }
                }
                number += 1;
                Ok(true)
            })?;
            if next.is_some() {
                break;
            }
        }
        Ok(JournalPage {
            subject: search.into_subject(),
            lines,
            next,
        })
    }

    fn erase(&mut self, subject: Subject) -> Result<ErasedRecords, Error> {
        let search = self.search(subject);
        let mut erased = ErasedRecords::default();
        for (id, form) in self.closed.clone() {
            let mut found = false;
            let readable = self.scan(id, form, |record| {
                found = search.matches(&record);
                Ok(!found)
            })?;
            // What cannot be read may be about anybody, so it goes as well.
            if found || !readable {
                let before = self.length(id, form);
                let mut kept = 0_u64;
                let records = self.rewrite(id, form, |record| {
                    let keeps = !search.matches(record);
                    kept += u64::from(keeps);
                    keeps
                })?;
                erased.records += records - kept;
                erased.segments += 1;
                if kept == 0 {
                    self.remove(id)?;
                }
                sync_directory(self.directory())?;
                self.account(id, before);
            }
        }
        Ok(erased)
    }

    /// Writes a segment anew, compressed, with the records that are kept. Gives how many there were.
    fn rewrite(
        &mut self,
        id: SegmentId,
        form: Form,
        mut keeps: impl FnMut(&Record<'_>) -> bool,
    ) -> Result<u64, Error> {
        let mut to = Rewriter::new(self.directory(), id)?;
        let mut frame = Vec::new();
        let mut records = 0;
        self.scan(id, form, |record| {
            records += 1;
            if keeps(&record) {
                frame.clear();
                copy(&record, &mut frame);
                to.write(&frame)?;
            }
            Ok(true)
        })?;
        to.finish(self.directory(), id, form)?;
        self.closed.insert(id, Form::Compressed);
        Ok(records)
    }

    fn remove(&mut self, id: SegmentId) -> Result<(), Error> {
        if let Some(form) = self.closed.get(&id) {
            let path = id.path(self.directory(), *form);
            fs::remove_file(&path).map_err(at(&path))?;
            self.closed.remove(&id);
        }
        Ok(())
    }

    /// Compresses a segment. One that cannot be, for want of room perhaps, stays as it is until the next
    /// sweep.
    fn compress(&mut self, id: SegmentId) {
        let before = self.length(id, Form::Raw);
        let compressed = self
            .rewrite(id, Form::Raw, |_| true)
            .and_then(|_| sync_directory(self.directory()));
        if let Err(error) = compressed {
            tracing::error!("a segment stays as it is until there is room: {error}");
        }
        self.account(id, before);
    }

    fn compress_rest(&mut self) {
        let raw: Vec<_> = self
            .closed
            .iter()
            .filter(|(_, form)| **form == Form::Raw)
            .map(|(id, _)| *id)
            .collect();
        for id in raw {
            self.compress(id);
        }
    }

    /// Removes outdated segments whole, the oldest first.
    fn sweep(&mut self, sweep: SweepOutdated) -> Result<SweptOutdated, Error> {
        self.compress_rest();
        self.redate(sweep)?;
        let keep = self.shared.config.keep_seconds();
        // From the start of its hour, so that no record is older than an hour more than it may be.
        let outdated: Vec<_> = self
            .closed
            .keys()
            .copied()
            .take_while(|id| id.hour.saturating_add(keep) <= sweep.now.0)
            .collect();
        let limit = sweep.limit.max(1) as usize;
        let mut swept = SweptOutdated {
            removed: 0,
            more: outdated.len() > limit,
        };
        for id in outdated.into_iter().take(limit) {
            let form = self.closed.get(&id).copied();
            let before = form.map_or(0, |form| self.length(id, form));
            self.remove(id)?;
            self.account(id, before);
            swept.removed += 1;
        }
        if swept.removed > 0 {
            sync_directory(self.directory())?;
        }
        Ok(swept)
    }

    /// Gives segments that were written while the clock was ahead the hour of now: they are no younger than
    /// that, and would stay for too long.
    fn redate(&mut self, sweep: SweepOutdated) -> Result<(), Error> {
        let hour = hour_of(sweep.now);
        let ahead: Vec<_> = self
            .closed
            .iter()
            .filter(|(id, _)| id.hour > hour + HOUR_SECONDS)
            .map(|(id, form)| (*id, *form))
            .collect();
        for (id, form) in ahead {
            let part = self
                .closed
                .keys()
                .rfind(|id| id.hour == hour && id.part >= REDATED)
                .map_or(REDATED, |id| id.part + 1);
            let right = SegmentId { hour, part };
            let path = id.path(self.directory(), form);
            fs::rename(&path, right.path(self.directory(), form)).map_err(at(&path))?;
            self.closed.remove(&id);
            self.closed.insert(right, form);
            tracing::warn!(
                "a segment of the journal from the future was given the present hour: the clock was ahead"
            );
        }
        Ok(())
    }

    fn length(&self, id: SegmentId, form: Form) -> u64 {
        fs::metadata(id.path(self.directory(), form)).map_or(0, |metadata| metadata.len())
    }

    /// Corrects the totals by what a segment takes now.
    fn account(&self, id: SegmentId, before: u64) {
        let form = self.closed.get(&id);
        let after = form.map_or(0, |form| self.length(id, *form));
        // Wraps around where less is taken than before.
        add(&self.shared.bytes, after.wrapping_sub(before));
        self.shared
            .segments
            .store(self.closed.len() as u64, Ordering::Relaxed);
    }
}

/// Opens what is there: see [`segment::recover`].
pub(crate) fn recover(shared: &Shared) -> Result<BTreeMap<SegmentId, Form>, Error> {
    let (closed, bytes) = segment::recover(&shared.config.path)?;
    shared.bytes.store(bytes, Ordering::Relaxed);
    shared
        .segments
        .store(closed.len() as u64, Ordering::Relaxed);
    Ok(closed)
}
