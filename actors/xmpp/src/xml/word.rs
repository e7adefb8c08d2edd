//! Eight bytes at a time.
//!
//! Between two marks of a stanza stand a few bytes mostly. To set out for a search costs more than to look at them,
//! and of a loop that looks at one after the other the processor guesses the end wrong each time it differs.

const BYTES: usize = size_of::<u64>();
/// The lowest bit of each byte.
const LOW: u64 = u64::from_le_bytes([1; BYTES]);
/// The highest.
const HIGH: u64 = LOW << 7;

/// Eight bytes. What is asked of it has an answer in the highest bit of each byte, which is right for the first that
/// it is true of and for all before, and may be wrong behind.
#[derive(Clone, Copy)]
pub(super) struct Word(u64);

impl Word {
    /// Which bytes are this one.
    #[inline]
    pub(super) const fn is(self, byte: u8) -> u64 {
        Self(self.0 ^ all(byte)).below(1)
    }

    /// Which bytes are one of these, which differ in one bit.
    #[inline]
    pub(super) const fn is_either(self, one: u8, other: u8) -> u64 {
        Self(self.0 | all(one ^ other)).is(one | other)
    }

    /// Which bytes are less than this one, which is at most 128.
    #[inline]
    pub(super) const fn below(self, byte: u8) -> u64 {
        self.0.wrapping_sub(all(byte)) & !self.0 & HIGH
    }
}

/// Eight times the same.
const fn all(byte: u8) -> u64 {
    byte as u64 * LOW
}

/// Where the first byte is that is marked.
#[inline]
pub(super) fn find(bytes: &[u8], marks: impl Fn(Word) -> u64) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<BYTES>();
    let mut at = 0;
    for word in words {
        let marks = marks(Word(u64::from_le_bytes(*word)));
        if marks != 0 {
            return Some(at + (marks.trailing_zeros() / u8::BITS) as usize);
        }
        at += BYTES;
    }
    let marked = |byte: &u8| marks(Word(u64::from(*byte))) & 0x80 != 0;
    rest.iter().position(marked).map(|more| at + more)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is asked of a word, and the same of a byte.
    type Question = (fn(Word) -> u64, fn(u8) -> bool);

    const QUESTIONS: [Question; 5] = [
        (|word| word.is(b'<'), |byte| byte == b'<'),
        (|word| word.is(0xff), |byte| byte == 0xff),
        (
            |word| word.is_either(b'\'', b'&'),
            |byte| matches!(byte, b'\'' | b'&'),
        ),
        (|word| word.below(b' '), |byte| byte < b' '),
        (|word| word.below(0x80) | word.is(0x80), |byte| byte <= 0x80),
    ];

    #[track_caller]
    fn check(bytes: &[u8]) {
        for (n, (marks, such)) in QUESTIONS.into_iter().enumerate() {
            let expected = bytes.iter().position(|byte| such(*byte));
            assert_eq!(find(bytes, marks), expected, "{n}: {bytes:?}");
        }
    }

    #[test]
    fn every_byte_in_every_place() {
        for byte in 0..=u8::MAX {
            for around in [0, b' ', b'%', b'\'', b'<', b'=', 0x7f, 0x80, 0xff] {
                for place in 0..11 {
                    let mut bytes = [around; 11];
                    bytes[place] = byte;
                    check(&bytes);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn finds_what_a_look_at_each_byte_finds(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            check(&bytes);
        }
    }
}
