//! What may be seen of personal data in a log: nothing, or a short hash that dies with the process.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

/// A keyed hash that correlates log lines of one process and nothing beyond it: the key is random and
/// never leaves memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ShortHash(u32);

impl ShortHash {
    /// Hashes `value` under the key of this process.
    #[must_use]
    pub fn of(value: &[u8]) -> Self {
        static KEY: OnceLock<RandomState> = OnceLock::new();
        let hash = KEY.get_or_init(RandomState::new).hash_one(value);
        Self((hash >> 32) as u32)
    }
}

impl fmt::Display for ShortHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{:08x}", self.0)
    }
}

impl fmt::Debug for ShortHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Gives a newtype a `Debug` that shows its name and nothing of its value.
#[macro_export]
macro_rules! redacted_debug {
    ($($name:ident),+ $(,)?) => {$(
        impl ::std::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    )+};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_hash_alike_within_a_process() {
        assert_eq!(ShortHash::of(b"node"), ShortHash::of(b"node"));
        assert_eq!(ShortHash::of(b"node").to_string().len(), 9);
    }
}
