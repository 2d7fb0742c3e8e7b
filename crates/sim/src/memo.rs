//! [`Memo`]: results of pure commands, by their inputs' contents. It makes repeated runs affordable and
//! changes no result: a command whose inputs hold other bytes, as after a race, is computed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use xxhash_rust::xxh3::xxh3_128;

use crate::memory::Words;

/// A bounded store of results, shared by any number of simulated devices. The oldest go first.
#[derive(Clone, Debug)]
pub struct Memo {
    stored: Arc<Mutex<Stored>>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Stored {
    results: BTreeMap<u128, Vec<Words>>,
    order: VecDeque<u128>,
    bytes: usize,
    hits: u64,
    misses: u64,
}

impl Memo {
    /// A memo that holds at most `capacity` bytes of results.
    pub fn new(capacity: usize) -> Self {
        Self { stored: Arc::default(), capacity }
    }

    /// How many commands were answered from the memo, and how many were computed.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        (stored.hits, stored.misses)
    }

    pub(crate) fn get(&self, key: u128) -> Option<Vec<Words>> {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let found = stored.results.get(&key).cloned();
        match found {
            Some(_) => stored.hits += 1,
            None => stored.misses += 1,
        }
        found
    }

    pub(crate) fn put(&self, key: u128, results: Vec<Words>) {
        let bytes = size(&results);
        if bytes > self.capacity {
            return;
        }
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        if stored.results.contains_key(&key) {
            return;
        }
        while stored.bytes + bytes > self.capacity
            && let Some(oldest) = stored.order.pop_front()
        {
            let gone = stored.results.remove(&oldest).map_or(0, |r| size(&r));
            stored.bytes -= gone;
        }
        stored.results.insert(key, results);
        stored.bytes += bytes;
        stored.order.push_back(key);
    }
}

fn size(results: &[Words]) -> usize {
    results.iter().map(|words| words.len() * 4).sum()
}

/// Hashes a few numbers into one.
pub(crate) fn hash(parts: &[u128]) -> u128 {
    let mut bytes = Vec::with_capacity(parts.len() * 16);
    for part in parts {
        bytes.extend_from_slice(&part.to_le_bytes());
    }
    xxh3_128(&bytes)
}

/// Hashes text.
pub(crate) fn hash_text(text: &str) -> u128 {
    xxh3_128(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_results_go_when_it_is_full() {
        let memo = Memo::new(100);
        let words = |n: usize| vec![Words::new(vec![1.0; n])];
        memo.put(1, words(10));
        memo.put(2, words(10));
        memo.put(3, words(10));
        memo.put(4, words(26));
        assert!(memo.get(1).is_none());
        assert_eq!(memo.get(2), Some(words(10)));
        assert_eq!(memo.get(3), Some(words(10)));
        assert!(memo.get(4).is_none(), "larger than the memo");
        assert_eq!(memo.hits_and_misses(), (2, 2));
    }
}
