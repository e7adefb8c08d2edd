//! Answers that wait for one stream, in order and bounded.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::accounts::Hold;

/// Bytes written at once; more are written in several steps, so that less is sent twice when a stream
/// breaks.
const WRITE_BYTES: usize = 64 * 1024;
/// Times an answer is tried to be written: what was on a stream that broke goes once more on the next.
const TRIES_MAX: u32 = 2;

/// Answers of one batch.
pub(crate) struct Chunk {
    /// When they came.
    pub(crate) since: Instant,
    /// Whole stanzas, one after the other.
    pub(crate) stanzas: Vec<u8>,
    /// How many they are.
    pub(crate) replies: u64,
    tries: u32,
    /// Their part of what all lanes may hold; none where they need none.
    _room: Option<Hold>,
}

impl Chunk {
    /// Answers that came now.
    pub(crate) fn new(stanzas: Vec<u8>, replies: u64, room: Option<Hold>) -> Self {
        Self {
            since: Instant::now(),
            stanzas,
            replies,
            tries: 0,
            _room: room,
        }
    }
}

/// What waits to be written.
#[derive(Default)]
pub(crate) struct Queue {
    chunks: VecDeque<Chunk>,
    bytes: usize,
}

impl Queue {
    /// Appends a chunk, or gives it back when that would be more than `bytes_max`.
    pub(crate) fn push(&mut self, chunk: Chunk, bytes_max: usize) -> Result<(), Chunk> {
        if self.bytes.saturating_add(chunk.stanzas.len()) > bytes_max {
            return Err(chunk);
        }
        self.bytes += chunk.stanzas.len();
        self.chunks.push_back(chunk);
        Ok(())
    }

    /// Takes what can be written at once, at least one chunk if there is any.
    pub(crate) fn take(&mut self) -> Vec<Chunk> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(chunk) = self.chunks.pop_front() {
            if !taken.is_empty() && bytes + chunk.stanzas.len() > WRITE_BYTES {
                self.chunks.push_front(chunk);
                break;
            }
            bytes += chunk.stanzas.len();
            taken.push(chunk);
        }
        self.bytes -= bytes;
        taken
    }

    /// Puts back what has not arrived, in its order. Returns the answers that were tried often enough.
    pub(crate) fn put_back(&mut self, taken: Vec<Chunk>) -> u64 {
        let mut lost = 0;
        for mut chunk in taken.into_iter().rev() {
            chunk.tries += 1;
            if chunk.tries < TRIES_MAX {
                self.bytes += chunk.stanzas.len();
                self.chunks.push_front(chunk);
            } else {
                lost += chunk.replies;
            }
        }
        lost
    }

    /// Drops what has waited since `before`. Returns how many answers that were.
    pub(crate) fn expire(&mut self, before: Instant) -> u64 {
        let mut lost = 0;
        while let Some(chunk) = self.chunks.pop_front_if(|chunk| chunk.since <= before) {
            self.bytes -= chunk.stanzas.len();
            lost += chunk.replies;
        }
        lost
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// How many answers wait.
    pub(crate) fn replies(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.replies).sum()
    }
}

/// What was written last. A peer may close a stream while we write: the system takes what can no longer
/// arrive. Answers are repeated then, which harms nobody, since an iq is answered once and what comes
/// again is passed over.
#[derive(Default)]
pub(crate) struct Recent {
    chunks: VecDeque<(Instant, Chunk)>,
    bytes: usize,
}

impl Recent {
    /// Remembers what was written for the first time, as much as one write is.
    pub(crate) fn add(&mut self, written: Vec<Chunk>, now: Instant) {
        for chunk in written {
            if chunk.tries == 0 {
                self.bytes += chunk.stanzas.len();
                self.chunks.push_back((now, chunk));
            }
        }
        while self.bytes > WRITE_BYTES {
            self.forget_first();
        }
    }

    /// Forgets what was written before.
    pub(crate) fn forget(&mut self, before: Instant) {
        while self.chunks.front().is_some_and(|(at, _)| *at <= before) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, chunk)) = self.chunks.pop_front() {
            self.bytes -= chunk.stanzas.len();
        }
    }

    /// When the oldest was written.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.chunks.front().map(|(at, _)| *at)
    }

    /// All of it, to be put back.
    pub(crate) fn into_chunks(self) -> Vec<Chunk> {
        self.chunks.into_iter().map(|(_, chunk)| chunk).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn chunk(text: &str) -> Chunk {
        Chunk::new(text.into(), 1, None)
    }

    fn texts(chunks: &[Chunk]) -> Vec<&str> {
        chunks
            .iter()
            .map(|chunk| std::str::from_utf8(&chunk.stanzas).unwrap())
            .collect()
    }

    #[test]
    fn a_queue_is_bounded_and_in_order() {
        let mut queue = Queue::default();
        assert!(queue.push(chunk("one"), 6).is_ok());
        assert!(queue.push(chunk("two"), 6).is_ok());
        assert!(queue.push(chunk("3"), 6).is_err());
        assert_eq!(queue.replies(), 2);
        let taken = queue.take();
        assert_eq!(texts(&taken), ["one", "two"]);
        assert!(queue.push(chunk("three!"), 6).is_ok());
        assert_eq!(queue.put_back(taken), 0);
        let taken = queue.take();
        assert_eq!(texts(&taken), ["one", "two", "three!"]);
        assert_eq!(queue.put_back(taken), 2);
        assert_eq!(texts(&queue.take()), ["three!"]);
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn large_queues_are_written_in_pieces() {
        let mut queue = Queue::default();
        let large = "x".repeat(WRITE_BYTES);
        for text in ["a", &large, "b"] {
            assert!(queue.push(chunk(text), usize::MAX).is_ok());
        }
        assert_eq!(texts(&queue.take()), ["a"]);
        assert_eq!(texts(&queue.take()), [large.as_str()]);
        assert_eq!(texts(&queue.take()), ["b"]);
        assert!(queue.take().is_empty());
    }

    #[test]
    fn what_is_too_old_is_dropped() {
        let mut queue = Queue::default();
        queue.push(chunk("old"), 100).ok();
        let between = Instant::now();
        let mut young = chunk("young");
        young.since = between + Duration::from_secs(1);
        queue.push(young, 100).ok();
        assert_eq!(queue.expire(between), 1);
        assert_eq!(texts(&queue.take()), ["young"]);
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn what_was_written_last_is_repeated_once() {
        let begun = Instant::now();
        let mut queue = Queue::default();
        for text in ["one", "two"] {
            queue.push(chunk(text), 100).ok();
        }
        let mut recent = Recent::default();
        recent.add(queue.take(), begun);
        recent.add(vec![chunk("three")], begun + Duration::from_secs(2));
        assert_eq!(recent.oldest(), Some(begun));
        recent.forget(begun);
        assert_eq!(queue.put_back(recent.into_chunks()), 0);

        let taken = queue.take();
        assert_eq!(texts(&taken), ["three"]);
        let mut recent = Recent::default();
        recent.add(taken, begun);
        assert_eq!(recent.oldest(), None);
    }

    #[test]
    fn little_is_remembered() {
        let mut recent = Recent::default();
        let half = "x".repeat(WRITE_BYTES / 2);
        for _ in 0..5 {
            recent.add(vec![chunk(&half)], Instant::now());
        }
        assert_eq!(recent.bytes, WRITE_BYTES);
        assert_eq!(recent.into_chunks().len(), 2);
    }
}
