//! The thread that works with closed segments: compresses, reads, erases, removes. It never touches the one
//! that is written to, so that nothing here holds up the writer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;

use messages::{
    EraseJournal, ErasedRecords, JournalCursor, JournalError, JournalPage, ReadJournal, Subject,
    SweepError, SweepOutdated, SweptOutdated, UnixSeconds,
};
use rustix::io::Errno;
use tokio::sync::oneshot;

use crate::Error;
use crate::codec::{End, Record, Records, Search, copy};
use crate::segment::{
    self, Form, HOUR_SECONDS, Open, Rewriter, SegmentId, at, hour_of, sync_directory,
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
    Widen(EraseJournal, oneshot::Sender<Result<Widened, JournalError>>),
    Erase(
        EraseJournal,
        oneshot::Sender<Result<ErasedRecords, JournalError>>,
    ),
    Sweep(
        SweepOutdated,
        oneshot::Sender<Result<SweptOutdated, SweepError>>,
    ),
}

/// A subject with what its records lead to.
pub(crate) struct Widened {
    pub(crate) subject: Subject,
    /// Segments that could not be read and may lead to more.
    pub(crate) unreached: u64,
}

/// What came of reading a segment.
enum Scanned {
    /// All that was asked for was read.
    Whole,
    /// Some of it can never be read.
    Damaged,
    /// The disk did not give some of it, and did the rest.
    Lost,
    /// It could not be read now.
    Failed(Error),
}

/// What becomes of a segment that is written anew and of which the disk does not give all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// It may be about anybody, and nobody can find out: it goes.
    Drops,
    /// The disk may give it another time: the segment stays as it is.
    Stays,
}

/// What came of writing a segment anew.
#[derive(Default)]
struct Rewritten {
    records: u64,
    kept: u64,
    /// Whether something of it could not be read and is gone.
    dropped: bool,
}

pub(crate) struct Archive {
    shared: Arc<Shared>,
    closed: BTreeMap<SegmentId, Form>,
    /// Those of them that have bytes and no whole record. Nobody can use these, but an operator may want to
    /// look: they stay until their time is over, or until somebody is erased.
    spoilt: BTreeSet<SegmentId>,
    open: Open,
}

impl Archive {
    pub(crate) fn new(shared: Arc<Shared>, closed: BTreeMap<SegmentId, Form>) -> Self {
        Self {
            shared,
            closed,
            spoilt: BTreeSet::new(),
            open: segment::open,
        }
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
                Task::Widen(erase, reply) => {
                    self.answer(reply, |archive| Ok(archive.widen(archive.search_of(erase))));
                }
                Task::Erase(erase, reply) => {
                    self.answer(reply, |archive| Ok(archive.erase(erase)));
                }
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

    /// What an erasure looks for.
    fn search_of(&self, erase: EraseJournal) -> Search {
        let search = self.search(erase.subject);
        match erase.until {
            None => search,
            Some(until) => search.until(until, self.shared.clock.now()),
        }
    }

    /// Shows the records of a segment until `visit` has enough.
    ///
    /// # Errors
    /// Those of `visit`; what is wrong with the segment is logged and told by [`Scanned`].
    fn scan(
        &self,
        id: SegmentId,
        form: Form,
        mut visit: impl FnMut(Record<'_>) -> Result<bool, Error>,
    ) -> Result<Scanned, Error> {
        let path = id.path(self.directory(), form);
        let mut records = match (self.open)(&path, form) {
            Ok(source) => Records::new(source),
            Err(error) => return Ok(self.failed(at(&path)(error))),
        };
        let end = loop {
            match records.next() {
                Ok(record) => {
                    if !visit(record)? {
                        return Ok(Scanned::Whole);
                    }
                }
                Err(end) => break end,
            }
        };
        let missing = records.source().missing();
        let torn = match end {
            End::Clean if records.skipped == 0 && missing == 0 => return Ok(Scanned::Whole),
            End::Clean | End::Undecodable => 0,
            End::Torn(bytes) => bytes,
            End::Failed(source) => return Ok(self.failed(at(&path)(source))),
        };
        add(&self.shared.damaged, 1);
        tracing::error!(
            segment = %path.display(),
            bytes = records.skipped + torn,
            missing,
            rest = matches!(end, End::Undecodable),
            "the journal's segment is damaged, so many bytes of it, or the rest, cannot be read: check the disk"
        );
        Ok(if missing > 0 {
            Scanned::Lost
        } else {
            Scanned::Damaged
        })
    }

    fn failed(&self, error: Error) -> Scanned {
        add(&self.shared.damaged, 1);
        tracing::error!("{error}");
        Scanned::Failed(error)
    }

    /// The disk's error for a segment that is not to go without what it did not give.
    fn lost(&self, id: SegmentId, form: Form) -> Error {
        at(&id.path(self.directory(), form))(Errno::IO.into())
    }

    fn widen(&self, mut search: Search) -> Widened {
        let mut unreached = 0;
        for (id, form) in &self.closed {
            let scanned = self.scan(*id, *form, |record| {
                search.widen(&record);
                Ok(true)
            });
            unreached += u64::from(matches!(scanned, Ok(Scanned::Failed(_)) | Err(_)));
        }
        Widened {
            subject: search.into_subject(),
            unreached,
        }
    }

    fn page(&self, request: ReadJournal) -> Result<JournalPage, Error> {
        let ReadJournal {
            subject,
            after,
            limit,
        } = request;
        let limit = limit.clamp(1, LINES_MAX) as usize;
        let (subject, start, passed) = match after {
            None => (self.widen(self.search(subject)).subject, None, 0),
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
        let mut unreadable = 0;
        let rest = self
            .closed
            .iter()
            .filter(|(id, _)| start.is_none_or(|start| **id >= start));
        for (id, form) in rest {
            let skip = if Some(*id) == start { passed } else { 0 };
            let mut number = 0;
            let scanned = self.scan(*id, *form, |record| {
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
            unreadable += u64::from(!matches!(scanned, Scanned::Whole));
            if next.is_some() {
                break;
            }
        }
        Ok(JournalPage {
            subject: search.into_subject(),
            lines,
            next,
            unreadable,
        })
    }

    /// Erases what can be reached. What one segment does keeps it from no other.
    fn erase(&mut self, erase: EraseJournal) -> ErasedRecords {
        let search = self.search_of(erase);
        let mut erased = ErasedRecords::default();
        for (id, form) in self.closed.clone() {
            let before = self.length(id, form);
            match self.erase_from(id, form, &search) {
                Ok(None) => continue,
                Ok(Some(rewritten)) => {
                    erased.records += rewritten.records - rewritten.kept;
                    erased.segments += 1;
                    erased.dropped += u64::from(rewritten.dropped);
                }
                Err(error) => {
                    tracing::error!("an erasure did not reach all of the journal: {error}");
                    erased.unreached += 1;
                }
            }
            self.account(id, before);
        }
        erased
    }

    /// Gives `None` for a segment that has nothing to erase.
    fn erase_from(
        &mut self,
        id: SegmentId,
        form: Form,
        search: &Search,
    ) -> Result<Option<Rewritten>, Error> {
        let mut found = false;
        let scanned = self.scan(id, form, |record| {
            found = search.matches(&record);
            Ok(!found)
        })?;
        match scanned {
            Scanned::Failed(error) => return Err(error),
            Scanned::Whole if !found => return Ok(None),
            // What cannot be read may be about anybody, so it goes as well.
            Scanned::Whole | Scanned::Damaged | Scanned::Lost => {}
        }
        let rewritten = self.rewrite(id, form, Missing::Drops, |record| !search.matches(record))?;
        if rewritten.kept == 0 {
            self.remove(id)?;
        }
        sync_directory(self.directory())?;
        Ok(Some(rewritten))
    }

    /// Writes a segment anew, compressed, with the records that are kept.
    fn rewrite(
        &mut self,
        id: SegmentId,
        form: Form,
        missing: Missing,
        mut keeps: impl FnMut(&Record<'_>) -> bool,
    ) -> Result<Rewritten, Error> {
        let mut to = Rewriter::new(self.directory(), id)?;
        let mut frame = Vec::new();
        let mut rewritten = Rewritten::default();
        let scanned = self.scan(id, form, |record| {
            rewritten.records += 1;
            if keeps(&record) {
                rewritten.kept += 1;
                frame.clear();
                copy(&record, &mut frame);
                to.write(&frame)?;
            }
            Ok(true)
        });
        match scanned {
            Ok(Scanned::Whole) => {}
            Ok(Scanned::Damaged) => rewritten.dropped = true,
            Ok(Scanned::Lost) if missing == Missing::Drops => rewritten.dropped = true,
            Ok(Scanned::Lost) => {
                to.discard();
                return Err(self.lost(id, form));
            }
            Ok(Scanned::Failed(error)) | Err(error) => {
                to.discard();
                return Err(error);
            }
        }
        to.finish(self.directory(), id, form)?;
        self.closed.insert(id, Form::Compressed);
        self.spoilt.remove(&id);
        if rewritten.dropped {
            tracing::error!(
                segment = %id.path(self.directory(), Form::Compressed).display(),
                records = rewritten.kept,
                "a damaged segment of the journal was written anew without what could not be read of it"
            );
        }
        Ok(rewritten)
    }

    fn remove(&mut self, id: SegmentId) -> Result<(), Error> {
        if let Some(form) = self.closed.get(&id) {
            let path = id.path(self.directory(), *form);
            match fs::remove_file(&path) {
                // Somebody else did.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(at(&path))?,
            }
            self.closed.remove(&id);
            self.spoilt.remove(&id);
        }
        Ok(())
    }

    /// Compresses a segment. One that cannot be, for want of room perhaps, stays as it is until the next
    /// sweep; one without a whole record stays as it is.
    fn compress(&mut self, id: SegmentId) {
        let has_records = || {
            let mut found = false;
            let scanned = self.scan(id, Form::Raw, |_| {
                found = true;
                Ok(false)
            })?;
            match scanned {
                Scanned::Failed(error) => Err(error),
                Scanned::Lost => Err(self.lost(id, Form::Raw)),
                Scanned::Whole => Ok(true),
                Scanned::Damaged => Ok(found),
            }
        };
        let before = self.length(id, Form::Raw);
        let compressed = match has_records() {
            Ok(false) => {
                tracing::error!(
                    segment = %id.path(self.directory(), Form::Raw).display(),
                    "no record of the journal's segment can be read: it is kept for its time, or until the \
                     next erasure"
                );
                self.spoilt.insert(id);
                return;
            }
            Ok(true) => self
                .rewrite(id, Form::Raw, Missing::Stays, |_| true)
                .and_then(|_| sync_directory(self.directory())),
            Err(error) => Err(error),
        };
        if let Err(error) = compressed {
            tracing::error!("a segment is not compressed until the next sweep: {error}");
        }
        self.account(id, before);
    }

    fn compress_rest(&mut self) {
        let raw: Vec<_> = self
            .closed
            .iter()
            .filter(|(id, form)| **form == Form::Raw && !self.spoilt.contains(id))
            .map(|(id, _)| *id)
            .collect();
        for id in raw {
            self.compress(id);
        }
    }

    /// Removes outdated segments whole, the oldest first. One that cannot be keeps no other from it.
    fn sweep(&mut self, sweep: SweepOutdated) -> Result<SweptOutdated, Error> {
        self.compress_rest();
        let mut failure = self.redate(sweep.now).err();
        let keep = self.shared.config.keep_seconds();
        // From the start of its hour, so that no record is older than an hour more than it may be.
        let outdated: Vec<_> = self
            .closed
            .iter()
            .map(|(id, form)| (*id, *form))
            .take_while(|(id, _)| id.hour.saturating_add(keep) <= sweep.now.0)
            .collect();
        let limit = u64::from(sweep.limit.max(1));
        let mut swept = SweptOutdated::default();
        for (id, form) in outdated {
            if swept.removed == limit {
                swept.more = true;
                break;
            }
            let before = self.length(id, form);
            match self.remove(id) {
                Ok(()) => swept.removed += 1,
                Err(error) => failure = Some(error),
            }
            self.account(id, before);
        }
        if swept.removed > 0 {
            sync_directory(self.directory())?;
        }
        failure.map_or(Ok(swept), Err)
    }

    /// Gives segments that were written while the clock was ahead the hour of now: they are no younger than
    /// that, and would stay for too long.
    fn redate(&mut self, now: UnixSeconds) -> Result<(), Error> {
        let hour = hour_of(now);
        let ahead: Vec<_> = self
            .closed
            .iter()
            .filter(|(id, _)| id.hour > hour + HOUR_SECONDS)
            .map(|(id, form)| (*id, *form))
            .collect();
        let mut failure = None;
        for (id, form) in ahead {
            let Some(part) = (REDATED..=u32::MAX)
                .find(|part| !self.closed.contains_key(&SegmentId { hour, part: *part }))
            else {
                continue;
            };
            let right = SegmentId { hour, part };
            let path = id.path(self.directory(), form);
            let renamed = fs::rename(&path, right.path(self.directory(), form));
            if let Err(error) = renamed.map_err(at(&path)) {
                failure = Some(error);
                continue;
            }
            self.closed.remove(&id);
            self.closed.insert(right, form);
            if self.spoilt.remove(&id) {
                self.spoilt.insert(right);
            }
            tracing::warn!(
                "a segment of the journal from the future was given the present hour: the clock was ahead"
            );
        }
        failure.map_or(Ok(()), Err)
    }

    fn length(&self, id: SegmentId, form: Form) -> u64 {
        fs::metadata(id.path(self.directory(), form)).map_or(0, |metadata| metadata.len())
    }

    /// Corrects the totals by what a segment takes now.
    fn account(&self, id: SegmentId, before: u64) {
        let form = self.closed.get(&id);
        let after = form.map_or(0, |form| self.length(id, *form));
        let change = |bytes: u64| Some(bytes.saturating_sub(before).saturating_add(after));
        // Always changes something.
        let _ = self
            .shared
            .bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
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

#[cfg(test)]
mod tests {
    use messages::{
        AccessedEvent, BareJid, Clock, Domain, JournalEntry, JournalEvent, Proof, UnixMillis,
    };

    use super::*;
    use crate::Config;
    use crate::codec::Encoder;
    use crate::source::Source;
    use crate::source::tests::Disk;

    const ID: SegmentId = SegmentId {
        hour: 1_780_272_000,
        part: 1,
    };
    const RECORDS: usize = 400;

    fn account(name: &str) -> BareJid {
        BareJid::new(name, Domain::new("chat.example"))
    }

    fn subject(name: &str) -> Subject {
        Subject {
            account: Some(account(name)),
            ..Subject::default()
        }
    }

    /// What ada and bob did in turn: some pages of it.
    fn segment() -> Vec<u8> {
        let mut bytes = Vec::new();
        for n in 0..RECORDS {
            let name = if n % 2 == 0 { "ada" } else { "bob" };
            let event = AccessedEvent {
                account: Some(account(name)),
                case: None,
                proof: Proof::SelfService,
            };
            Encoder::new(&mut bytes, None).record(&JournalEntry {
                at: UnixSeconds(ID.hour),
                event: JournalEvent::Accessed(Box::new(event)),
            });
        }
        bytes
    }

    /// A disk that has lost the second page of each file that is not compressed.
    fn lossy(path: &Path, form: Form) -> io::Result<Source> {
        match form {
            Form::Raw => Ok(Source::raw(Disk::new(fs::read(path)?, &[1], true))),
            Form::Compressed => segment::open(path, form),
        }
    }

    fn shown(archive: &Archive, name: &str) -> (usize, u64) {
        let page = archive.page(ReadJournal {
            subject: subject(name),
            after: None,
            limit: LINES_MAX,
        });
        let page = page.unwrap();
        assert!(page.next.is_none());
        (page.lines.len(), page.unreadable)
    }

    #[test]
    fn a_lost_page_takes_nothing_of_the_rest_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            path: directory.path().to_owned(),
            ..Config::default()
        };
        let clock = Clock::manual(UnixMillis(ID.hour * 1_000));
        let bytes = segment();
        let pages = bytes.len() / 4_096;
        assert!(pages >= 4, "{pages}");
        let raw = ID.path(directory.path(), Form::Raw);
        fs::write(&raw, &bytes).unwrap();
        let shared = Arc::new(Shared::new(config, clock, None));
        let mut archive = Archive::new(shared, BTreeMap::from([(ID, Form::Raw)]));
        archive.open = lossy;

        // All but a page, and the records at its edges.
        let left = shown(&archive, "bob");
        assert!(left.0 + RECORDS / 2 / pages + 2 > RECORDS / 2, "{left:?}");
        assert!(left.0 < RECORDS / 2 && left.1 == 1, "{left:?}");

        // The disk may give it another time, so nothing is lost by being compressed.
        archive.compress_rest();
        assert_eq!(fs::read(&raw).unwrap(), bytes);
        assert_eq!(shown(&archive, "bob"), left);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

        // Whoever is erased may be in it.
        let erased = archive.erase(EraseJournal {
            subject: subject("ada"),
            until: None,
        });
        assert_eq!((erased.dropped, erased.unreached), (1, 0));
        assert!(erased.records > 0 && !raw.exists());
        assert_eq!(shown(&archive, "ada"), (0, 0));
        assert_eq!(shown(&archive, "bob"), (left.0, 0));
    }
}
