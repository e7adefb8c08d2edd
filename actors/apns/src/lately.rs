//! What is remembered of the many, for a while, in bounded room.

use std::collections::HashMap;

use messages::BuildRandom;

/// A map that forgets by halves: once the newer half is full, the older one goes. Its keys are random.
pub(crate) struct Lately<V> {
    half: usize,
    newer: HashMap<u64, V, BuildRandom>,
    older: HashMap<u64, V, BuildRandom>,
}

impl<V> Lately<V> {
    /// Remembers `half` of the newest at least, and twice as many at most.
    pub(crate) fn new(half: usize) -> Self {
        Self {
            half,
            newer: HashMap::default(),
            older: HashMap::default(),
        }
    }

    pub(crate) fn get(&self, key: u64) -> Option<&V> {
        self.newer.get(&key).or_else(|| self.older.get(&key))
    }

    /// Makes it one of the newest.
    pub(crate) fn insert(&mut self, key: u64, value: V) {
        if self.newer.len() >= self.half && !self.newer.contains_key(&key) {
            std::mem::swap(&mut self.newer, &mut self.older);
            // It keeps its room: growing again would be a pause for everybody.
            self.newer.clear();
        }
        self.older.remove(&key);
        self.newer.insert(key, value);
    }

    pub(crate) fn remove(&mut self, key: u64) {
        self.newer.remove(&key);
        self.older.remove(&key);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.newer.is_empty() && self.older.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_remembered_in_bounded_room() {
        let mut lately = Lately::new(3);
        for key in 0..100 {
            lately.insert(key, key);
            assert!(lately.newer.len() + lately.older.len() <= 6);
            for newest in key.saturating_sub(2)..=key {
                assert_eq!(lately.get(newest), Some(&newest));
            }
        }
        assert_eq!(lately.get(90), None);
        lately.insert(99, 7);
        assert_eq!(lately.get(99), Some(&7));
        lately.remove(99);
        assert_eq!(lately.get(99), None);
        assert!(!lately.is_empty());
    }
}
