//! Hashing of what is random already: keys that are a MAC or a hash, which no stranger can choose.

use std::hash::{BuildHasherDefault, Hasher};

/// For a [`std::collections::HashMap`] with such keys.
pub type BuildRandom = BuildHasherDefault<Random>;

/// Takes the first bytes as they are.
#[derive(Debug, Default)]
pub struct Random(u64);

impl Hasher for Random {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.write_u64(u64::from_ne_bytes(*first));
        }
    }

    fn write_u64(&mut self, random: u64) {
        self.0 ^= random;
    }

    /// The length of an array, which says nothing.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::{BuildHasher as _, RandomState};

    use super::*;
    use crate::RegistrationKey;

    #[test]
    fn random_keys_stay_apart() {
        let build = BuildRandom::default();
        let mut hashes = HashSet::new();
        let random = RandomState::new();
        for n in 0..1000 {
            let half = random.hash_one(n);
            let mut key = [0; 16];
            key[..8].copy_from_slice(&half.to_ne_bytes());
            hashes.insert(build.hash_one(RegistrationKey(key)));
            hashes.insert(build.hash_one(random.hash_one((n, n))));
        }
        assert_eq!(hashes.len(), 2000);
    }
}
