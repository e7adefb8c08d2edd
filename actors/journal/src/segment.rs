//! Segments: the files of the journal, one or more for each hour in which there was something to record.
//!
//! | name | what it is |
//! |---|---|
//! | `HOUR-PART.log` | open, or closed and not yet compressed: frames one after the other |
//! | `HOUR-PART.zst` | closed: the same, compressed |
//! | `HOUR-PART.tmp` | about to become a `.zst` by being renamed; of no value after a crash |
//!
//! `HOUR` is the start of the hour in Unix seconds, `PART` counts from 1. Where both forms of a segment are
//! there, a crash came between the renaming and the removal of the older form: the compressed one counts.
//! What has another name, or is no file, is not ours and left alone.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use messages::UnixSeconds;

use crate::Error;
use crate::codec::{self, End, Records};
use crate::source::Source;

/// Seconds that a segment covers.
pub(crate) const HOUR_SECONDS: u64 = 60 * 60;
/// Of the levels that keep up with the writer, the one after which more time gains little.
const LEVEL: i32 = 3;
/// Bytes written at a time.
const BUFFER_BYTES: usize = 64 << 10;

/// Names a segment, in the order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentId {
    pub(crate) hour: u64,
    pub(crate) part: u32,
}

/// In which form a closed segment is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Raw,
    Compressed,
}

impl Form {
    const fn suffix(self) -> &'static str {
        match self {
            Self::Raw => "log",
            Self::Compressed => "zst",
        }
    }
}

/// The start of the hour of a time.
pub(crate) const fn hour_of(at: UnixSeconds) -> u64 {
    at.0 - at.0 % HOUR_SECONDS
}

impl SegmentId {
    pub(crate) fn path(self, directory: &Path, form: Form) -> PathBuf {
        directory.join(format!("{}.{}", self.stem(), form.suffix()))
    }

    /// What [`Self::path`] made, with the suffix; `None` for any other name.
    fn parse(name: &str) -> Option<(Self, &str)> {
        let (stem, suffix) = name.split_once('.')?;
        let (hour, part) = stem.split_once('-')?;
        let id = Self {
            hour: hour.parse().ok()?,
            part: part.parse().ok()?,
        };
        (id.stem() == stem).then_some((id, suffix))
    }

    fn stem(self) -> String {
        let Self { hour, part } = self;
        format!("{hour:010}-{part:04}")
    }
}

/// Gives an error the name of the file.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    |source| Error::Segment { path, source }
}

/// Makes names that were added or removed durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), Error> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(at(directory))
}

/// Creates a file for its owner alone.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Puts the directory in order after whatever ended the last process, and lists the segments with the bytes
/// they take: files without a value go, and segments that were open lose a torn end. A segment that cannot be
/// read is listed as it is; what is no segment is left alone.
pub(crate) fn recover(directory: &Path) -> Result<(BTreeMap<SegmentId, Form>, u64), Error> {
    let mut found: BTreeMap<SegmentId, Form> = BTreeMap::new();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((found, 0)),
        Err(error) => return Err(at(directory)(error)),
    };
    let mut raw = Vec::new();
    let mut leftovers = Vec::new();
    let mut foreign = 0_u64;
    for entry in entries {
        let entry = entry.map_err(at(directory))?;
        let path = entry.path();
        // Of a file that cannot be looked at the name is all that is known.
        let is_file = fs::metadata(&path).map_or(true, |metadata| metadata.is_file());
        let name = entry.file_name();
        match name.to_str().filter(|_| is_file).and_then(SegmentId::parse) {
            Some((id, "log")) => raw.push(id),
            Some((id, "zst")) => {
                found.insert(id, Form::Compressed);
            }
            Some((_, "tmp")) => leftovers.push(path),
            _ => foreign += 1,
        }
    }
    if foreign > 0 {
        tracing::warn!(
            directory = %directory.display(),
            files = foreign,
            "what lies in the journal's directory and is none of its files is left alone"
        );
    }
    for id in raw {
        let path = id.path(directory, Form::Raw);
        match found.entry(id) {
            Entry::Occupied(_) => leftovers.push(path),
            Entry::Vacant(none) => match cut_torn(&path, open) {
                Ok(true) => {
                    none.insert(Form::Raw);
                }
                Ok(false) => leftovers.push(path),
                Err(error) => {
                    tracing::error!("{error}");
                    none.insert(Form::Raw);
                }
            },
        }
    }
    for path in leftovers {
        if let Err(error) = fs::remove_file(&path).map_err(at(&path)) {
            tracing::error!("what a crash has left cannot be removed: {error}");
        }
    }
    let length = |(id, form): (&SegmentId, &Form)| {
        fs::metadata(id.path(directory, *form)).map_or(0, |metadata| metadata.len())
    };
    let bytes = found.iter().map(length).sum();
    sync_directory(directory)?;
    Ok((found, bytes))
}

/// Cuts off what is behind the last whole record: what the writer had not written when it was ended. Gives
/// `false` for a segment that has nothing else.
///
/// Damage has whole records behind it, or is not what a writer leaves: that is not cut. Nor is anything where the
/// disk did not give all.
fn cut_torn(path: &Path, open: Open) -> Result<bool, Error> {
    let length = fs::metadata(path).map_err(at(path))?.len();
    let mut records = Records::new(open(path, Form::Raw).map_err(at(path))?);
    let end = loop {
        match records.next() {
            Ok(_) => {}
            Err(end) => break end,
        }
    };
    let whole = records.whole;
    let is_all = !records.gave_up() && records.source().missing() == 0;
    match end {
        End::Failed(error) => return Err(at(path)(error)),
        End::Torn(bytes) if is_all && (whole > 0 || is_cut_short(path)?) => {
            tracing::warn!(
                segment = %path.display(),
                bytes,
                "the end of the journal was cut off where a record was not whole"
            );
        }
        _ => return Ok(length > 0),
    }
    if whole > 0 {
        OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|file| {
                file.set_len(whole)?;
                file.sync_all()
            })
            .map_err(at(path))?;
    }
    Ok(whole > 0)
}

/// Whether a segment without a whole record is what a crash leaves of its first: its beginning, or the room
/// for it.
fn is_cut_short(path: &Path) -> Result<bool, Error> {
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut head = Vec::new();
        (&file)
            .take(codec::HEAD_BYTES as u64)
            .read_to_end(&mut head)?;
        if codec::is_beginning(&head, length) {
            return Ok(true);
        }
        let mut chunk = vec![0; BUFFER_BYTES];
        let mut is_zero = head.iter().all(|byte| *byte == 0);
        while is_zero {
            let read = file.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            is_zero = chunk.iter().take(read).all(|byte| *byte == 0);
        }
        Ok(is_zero)
    };
    read().map_err(at(path))
}

/// How a closed segment is opened to be read.
pub(crate) type Open = fn(&Path, Form) -> io::Result<Source>;

/// Opens it as it is on the disk.
pub(crate) fn open(path: &Path, form: Form) -> io::Result<Source> {
    let file = File::open(path)?;
    match form {
        Form::Raw => Ok(Source::raw(file)),
        Form::Compressed => Source::compressed(file),
    }
}

/// Writes the compressed form of a segment beside it and puts it in the place of what was there, so that a
/// crash leaves the one or the other whole.
pub(crate) struct Rewriter {
    path: PathBuf,
    to: zstd::Encoder<'static, BufWriter<File>>,
}

impl Rewriter {
    pub(crate) fn new(directory: &Path, id: SegmentId) -> Result<Self, Error> {
        let path = id.path(directory, Form::Compressed).with_extension("tmp");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&path)(error)),
            _ => {}
        }
        let open = || {
            let file = BufWriter::with_capacity(BUFFER_BYTES, create(&path)?);
            let mut to = zstd::Encoder::new(file, LEVEL)?;
            to.include_checksum(true)?;
            Ok(to)
        };
        let to = open().map_err(at(&path))?;
        Ok(Self { path, to })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.to.write_all(bytes).map_err(at(&self.path))
    }

    /// Takes it back, as far as that goes: nobody looks at what is left, and the next one replaces it.
    pub(crate) fn discard(self) {
        if let Err(error) = fs::remove_file(&self.path).map_err(at(&self.path)) {
            tracing::error!("what was written of a segment cannot be removed: {error}");
        }
    }

    /// Puts it in the place of both forms; gives its bytes. Durable once the directory is synced.
    pub(crate) fn finish(self, directory: &Path, id: SegmentId, old: Form) -> Result<u64, Error> {
        let Self { path, to } = self;
        let finish = || {
            let file = to.finish()?.into_inner().map_err(io::Error::from)?;
            file.sync_all()?;
            let length = file.metadata()?.len();
            fs::rename(&path, id.path(directory, Form::Compressed))?;
            if old == Form::Raw {
                // Only behind a durable new form may the old one go.
                File::open(directory)?.sync_all()?;
                fs::remove_file(id.path(directory, Form::Raw))?;
            }
            Ok(length)
        };
        finish().map_err(|error| {
            // Nobody looks at what is left, and the next one replaces it.
            let _ = fs::remove_file(&path);
            at(&path)(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use messages::{Domain, JournalEntry, JournalEvent, PushOutcome, PushedEvent};

    use super::*;
    use crate::codec::Encoder;
    use crate::source::tests::Disk;

    #[test]
    fn names_come_back_in_order() {
        let directory = Path::new("/j");
        for (hour, part) in [(0, 1), (1_780_272_000, 1), (1_780_272_000, 12_345)] {
            for form in [Form::Raw, Form::Compressed] {
                let id = SegmentId { hour, part };
                let path = id.path(directory, form);
                let name = path.file_name().unwrap().to_str().unwrap();
                assert_eq!(SegmentId::parse(name), Some((id, form.suffix())));
            }
        }
        for other in [
            "",
            "x.log",
            "1.log",
            "-.log",
            "1-b.zst",
            "1-2.log",
            "+780272000-0001.log",
            "1780272000-+001.log",
            "1780272000-00001.log",
        ] {
            assert_eq!(SegmentId::parse(other), None, "{other}");
        }
        assert_eq!(hour_of(UnixSeconds(7_199)), 3_600);
    }

    /// A disk that has lost the last page of each file.
    fn lossy(path: &Path, _: Form) -> io::Result<Source> {
        let bytes = fs::read(path)?;
        let last = (bytes.len() as u64 - 1) / 4_096;
        Ok(Source::raw(Disk::new(bytes, &[last], true)))
    }

    #[test]
    fn an_end_that_the_disk_does_not_give_is_not_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("1.log");
        let mut bytes = Vec::new();
        while bytes.len() < 10_000 {
            Encoder::new(&mut bytes, None).record(&JournalEntry {
                at: UnixSeconds(1),
                event: JournalEvent::Pushed(PushedEvent {
                    target: None,
                    domain: Domain::new("chat.example"),
                    outcome: PushOutcome::Accepted,
                }),
            });
        }
        // The writer was cut short in the middle of one.
        bytes.truncate(bytes.len() - 3);
        fs::write(&path, &bytes).unwrap();
        assert!(cut_torn(&path, lossy).unwrap());
        assert!(fs::read(&path).unwrap() == bytes);
        assert!(cut_torn(&path, open).unwrap());
        assert!(fs::read(&path).unwrap().len() < bytes.len());
    }
}
