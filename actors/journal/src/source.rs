//! What a closed segment is read from.
//!
//! A disk gives an error for the pages that it has lost and all the others, so a file that is read as it is goes
//! on behind them, with zeros in their place: no record is made of zeros. Behind what a decompressor does not get
//! it can make nothing of the rest.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use rustix::io::Errno;

/// What is read at a time where more fails as a whole; no disk and no file system here loses less.
const PAGE_BYTES: u64 = 4 << 10;
/// Bytes that are passed over in one file. A disk may take seconds for each page, and one that gives nothing at
/// all has to be given up.
const MISSING_MAX: u64 = 64 * PAGE_BYTES;

/// A file that may have pages which cannot be read.
pub(crate) trait Pages: Read + Seek {}

impl<F: Read + Seek> Pages for F {}

/// See the module.
pub(crate) enum Source {
    Raw(PastPages<Box<dyn Pages>>),
    Compressed(zstd::Decoder<'static, BufReader<File>>),
}

impl Source {
    /// Reads a file as it is.
    pub(crate) fn raw(from: impl Pages + 'static) -> Self {
        Self::Raw(PastPages::new(Box::new(from)))
    }

    /// Reads what a file has compressed.
    ///
    /// # Errors
    /// Those of the decompressor.
    pub(crate) fn compressed(file: File) -> io::Result<Self> {
        zstd::Decoder::new(file).map(Self::Compressed)
    }

    /// Bytes so far for which there are zeros, because the disk did not give them.
    pub(crate) const fn missing(&self) -> u64 {
        match self {
            Self::Raw(from) => from.missing,
            Self::Compressed(_) => 0,
        }
    }
}

impl Read for Source {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Raw(from) => from.read(room),
            Self::Compressed(from) => from.read(room),
        }
    }
}

/// Reads on behind pages that cannot be read.
pub(crate) struct PastPages<F> {
    from: F,
    /// Where the next byte comes from.
    at: u64,
    missing: u64,
}

impl<F: Read + Seek> PastPages<F> {
    const fn new(from: F) -> Self {
        Self {
            from,
            at: 0,
            missing: 0,
        }
    }

    /// Reads to the end of the page alone, or passes it over.
    fn read_page(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let left = PAGE_BYTES - self.at % PAGE_BYTES;
        let bytes = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
        let room = room.get_mut(..bytes).unwrap_or_default();
        self.from.seek(SeekFrom::Start(self.at))?;
        match self.from.read(room) {
            Err(error) if is_lost(&error) && self.missing < MISSING_MAX => {}
            read => return read,
        }
        let end = self.from.seek(SeekFrom::End(0))?;
        let left = usize::try_from(end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let room = room.get_mut(..bytes.min(left)).unwrap_or_default();
        room.fill(0);
        self.missing += room.len() as u64;
        self.from
            .seek(SeekFrom::Start(self.at + room.len() as u64))?;
        Ok(room.len())
    }
}

impl<F: Read + Seek> Read for PastPages<F> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let read = match self.from.read(room) {
            Err(error) if is_lost(&error) => self.read_page(room)?,
            read => read?,
        };
        self.at += read as u64;
        // Nothing was read of all this: that is no page, it is the file.
        if read == 0 && self.missing > 0 && self.missing == self.at {
            return Err(Errno::IO.into());
        }
        Ok(read)
    }
}

fn is_lost(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::IO.raw_os_error())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A disk that gives an error for what touches some of its pages.
    pub(crate) struct Disk {
        from: io::Cursor<Vec<u8>>,
        lost: Vec<u64>,
        /// Whether what comes before such a page is given.
        gives_begin: bool,
    }

    impl Disk {
        pub(crate) fn new(bytes: Vec<u8>, lost: &[u64], gives_begin: bool) -> Self {
            Self {
                from: io::Cursor::new(bytes),
                lost: lost.to_vec(),
                gives_begin,
            }
        }
    }

    impl Read for Disk {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            let at = self.from.position();
            let end = (at + room.len() as u64).min(self.from.get_ref().len() as u64);
            let touched = |page: &&u64| at < (**page + 1) * PAGE_BYTES && end > **page * PAGE_BYTES;
            let room = match self.lost.iter().filter(touched).min() {
                None => room,
                Some(page) if self.gives_begin && at < page * PAGE_BYTES => {
                    &mut room[..(page * PAGE_BYTES - at) as usize]
                }
                Some(_) => {
                    // Nobody says where a read that failed has left it.
                    self.from.set_position(at + 1);
                    return Err(Errno::IO.into());
                }
            };
            self.from.read(room)
        }
    }

    impl Seek for Disk {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.from.seek(to)
        }
    }

    fn bytes(pages: u64, more: u64) -> Vec<u8> {
        (0..pages * PAGE_BYTES + more)
            .map(|n| (n % 251) as u8 + 1)
            .collect()
    }

    /// Loses these pages and gives what is read, and how many bytes are missing.
    fn read(bytes: &[u8], lost: &[u64]) -> io::Result<(Vec<u8>, u64)> {
        let mut all = Vec::new();
        for gives_begin in [true, false] {
            // Rooms that end within pages, and that are longer than some.
            for room in [1_000, 64 << 10] {
                let mut source = Source::raw(Disk::new(bytes.to_vec(), lost, gives_begin));
                let (mut read, mut room) = (Vec::new(), vec![0; room]);
                loop {
                    match source.read(&mut room)? {
                        0 => break,
                        n => read.extend(&room[..n]),
                    }
                }
                all.push((read, source.missing()));
            }
        }
        assert!(all.windows(2).all(|two| two[0] == two[1]));
        Ok(all.remove(0))
    }

    #[test]
    fn what_is_behind_lost_pages_is_read() {
        for (lost, more, missing) in [
            (&[][..], 0, 0),
            (&[3], 0, PAGE_BYTES),
            (&[0], 0, PAGE_BYTES),
            (&[0, 1, 5, 7], 0, 4 * PAGE_BYTES),
            // The last is not whole.
            (&[8], 100, 100),
            (&[2, 8], 100, PAGE_BYTES + 100),
        ] {
            let bytes = bytes(8, more);
            let (read, found) = read(&bytes, lost).unwrap();
            assert_eq!(found, missing, "{lost:?}");
            let mut expected = bytes;
            for page in lost {
                let end = expected.len().min(((page + 1) * PAGE_BYTES) as usize);
                expected[(page * PAGE_BYTES) as usize..end].fill(0);
            }
            assert!(read == expected, "{lost:?}");
        }
    }

    #[test]
    fn a_disk_that_gives_nothing_is_given_up() {
        let lost: Vec<_> = (0..200).collect();
        for (pages, lost) in [(1, &lost[..1]), (20, &lost[..20]), (200, &lost[..])] {
            let error = read(&bytes(pages, 0), lost).unwrap_err();
            assert!(is_lost(&error), "{pages}");
        }
        // Nor does one that has lost so many have all day.
        read(&bytes(200, 0), &lost[10..75]).unwrap_err();
        read(&bytes(200, 0), &lost[10..74]).unwrap();
    }
}
