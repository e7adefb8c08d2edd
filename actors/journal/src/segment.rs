//! Segments: the files of the journal, one or more for each hour in which there was something to record.
//!
//! | name | what it is |
//! |---|---|
//! | `HOUR-PART.log` | open, or closed and not yet compressed: frames one after the other |
//! | `HOUR-PART.zst` | closed: the same, compressed |
//! | `*.tmp` | about to become a `.zst` by being renamed; of no value after a crash |
//!
//! `HOUR` is the start of the hour in Unix seconds, `PART` counts from 1. Where both forms of a segment are
//! there, a crash came between the renaming and the removal of the older form: the compressed one counts.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use messages::UnixSeconds;

use crate::Error;
use crate::codec::{End, Records};

/// Seconds that a segment covers.
pub(crate) const HOUR_SECONDS: u64 = 60 * 60;
/// Of the levels that keep up with the writer, the one after which more time gains little.
const LEVEL: i32 = 3;
/// Bytes read or written at a time.
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
        let Self { hour, part } = self;
        directory.join(format!("{hour:010}-{part:04}.{}", form.suffix()))
    }

    fn parse(name: &str) -> Option<(Self, Form)> {
        let (stem, suffix) = name.split_once('.')?;
        let form = match suffix {
            "log" => Form::Raw,
            "zst" => Form::Compressed,
            _ => return None,
        };
        let (hour, part) = stem.split_once('-')?;
        let id = Self {
            hour: hour.parse().ok()?,
            part: part.parse().ok()?,
        };
        Some((id, form))
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
/// they take: files without a value go, and segments that were open lose a torn last record.
pub(crate) fn recover(directory: &Path) -> Result<(BTreeMap<SegmentId, Form>, u64), Error> {
    let mut found: BTreeMap<SegmentId, Form> = BTreeMap::new();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((found, 0)),
        Err(error) => return Err(at(directory)(error)),
    };
    let mut raw = Vec::new();
    for entry in entries {
        let entry = entry.map_err(at(directory))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        match SegmentId::parse(&name) {
            Some((id, Form::Raw)) => raw.push(id),
            Some((id, Form::Compressed)) => {
                found.insert(id, Form::Compressed);
            }
            None if name.ends_with(".tmp") => {
                fs::remove_file(entry.path()).map_err(at(&entry.path()))?;
            }
            None => {}
        }
    }
    for id in raw {
        let path = id.path(directory, Form::Raw);
        match found.entry(id) {
            Entry::Occupied(_) => fs::remove_file(&path).map_err(at(&path))?,
            Entry::Vacant(none) => {
                if cut_torn(&path)? {
                    none.insert(Form::Raw);
                }
            }
        }
    }
    let mut bytes = 0;
    for (id, form) in &found {
        let path = id.path(directory, *form);
        bytes += fs::metadata(&path).map_err(at(&path))?.len();
    }
    sync_directory(directory)?;
    Ok((found, bytes))
}

/// Cuts off what is behind the last whole record. A segment without any is removed; then it gives `false`.
fn cut_torn(path: &Path) -> Result<bool, Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(at(path))?;
    let length = file.metadata().map_err(at(path))?.len();
    let mut records = Records::new(BufReader::with_capacity(BUFFER_BYTES, &file));
    let torn = loop {
        match records.next() {
            Ok(_) => {}
            Err(End::Clean) => break false,
            Err(End::Torn) => break true,
            Err(End::Failed(error)) => return Err(at(path)(error)),
        }
    };
    let whole = records.bytes;
    if whole == 0 {
        fs::remove_file(path).map_err(at(path))?;
        return Ok(false);
    }
    if torn {
        tracing::warn!(
            segment = %path.display(),
            bytes = length - whole,
            "the end of the journal was cut off where a record was not whole"
        );
        file.set_len(whole).map_err(at(path))?;
        file.sync_all().map_err(at(path))?;
    }
    Ok(true)
}

/// Opens a closed segment to be read.
pub(crate) fn read(
    directory: &Path,
    id: SegmentId,
    form: Form,
) -> Result<Records<Box<dyn Read>>, Error> {
    let path = id.path(directory, form);
    let file = File::open(&path).map_err(at(&path))?;
    let from: Box<dyn Read> = match form {
        Form::Raw => Box::new(BufReader::with_capacity(BUFFER_BYTES, file)),
        Form::Compressed => Box::new(BufReader::with_capacity(
            BUFFER_BYTES,
            zstd::Decoder::new(file).map_err(at(&path))?,
        )),
    };
    Ok(Records::new(from))
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
        finish().map_err(at(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_in_order() {
        let directory = Path::new("/j");
        for (hour, part) in [(0, 1), (1_780_272_000, 1), (1_780_272_000, 12_345)] {
            for form in [Form::Raw, Form::Compressed] {
                let id = SegmentId { hour, part };
                let path = id.path(directory, form);
                let name = path.file_name().unwrap().to_str().unwrap();
                assert_eq!(SegmentId::parse(name), Some((id, form)));
            }
        }
        for other in [
            "",
            "x.log",
            "1-2.tmp",
            "1.log",
            "1-2.log.zst",
            "-.log",
            "1-b.zst",
        ] {
            assert_eq!(SegmentId::parse(other), None, "{other}");
        }
        assert_eq!(hour_of(UnixSeconds(7_199)), 3_600);
    }
}
