//! What is remembered of the many, for a while, in bounded room.

use std::collections::HashMap;

/// A map that forgets by halves: once the newer half is full, the older one goes.
pub(crate) struct Lately<V> {
    half: usize,
    newer: HashMap<u64, V>,
    older: HashMap<u64, V>,
}

impl<V> Lately<V> {
    /// Remembers `half` of the newest at least, and twice as many at most.
    pub(crate) fn new(half: usize) -> Self {
        Self {
            half,
            newer: HashMap::new(),
            older: HashMap::new(),
        }
    }

    pub(crate) fn get(&self, key: u64) -> Option<&V> {
        self.newer.get(&key).or_else(|| self.older.get(&key))
    }

    /// Makes it one of the newest.
    pub(crate) fn insert(&mut self, key: u64, value: V) {
        if self.newer.len() >= self.half && !self.newer.contains_key(&key) {
            self.older = std::mem::take(&mut self.newer);
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
