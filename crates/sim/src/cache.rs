//! The shader cache and the graph cache (rules R6 and R9).
//!
//! A miss is found, then compiled, then inserted. Unlocked, two threads can be in between at once.

use std::collections::BTreeMap;

use crate::error::Fault;
use crate::thread_id::ThreadId;

/// One cache.
#[derive(Debug)]
pub(crate) struct Cache {
    name: &'static str,
    /// What is in it, per thread where each thread has its own, and the memory that it holds.
    compiled: BTreeMap<(Option<ThreadId>, String), Box<[u8]>>,
    /// Bytes that each of them holds.
    bytes_each: usize,
    /// Threads that have missed and not inserted yet.
    missed: Vec<(ThreadId, String)>,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

/// What a lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    Hit,
    Miss,
}

impl Cache {
    /// A cache in which each key holds so many bytes of real memory.
    pub(crate) fn new(name: &'static str, bytes_each: usize) -> Self {
        let compiled = BTreeMap::new();
        Self { name, compiled, bytes_each, missed: Vec::new(), hits: 0, misses: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.compiled.len()
    }

    pub(crate) fn clear(&mut self) {
        self.compiled.clear();
    }

    /// Drops what a thread had for itself.
    pub(crate) fn forget(&mut self, thread: ThreadId) {
        self.compiled.retain(|(owner, _), _| *owner != Some(thread));
    }

    /// Looks a key up. After a miss the caller must [`Cache::insert`].
    pub(crate) fn find(&mut self, owner: Option<ThreadId>, thread: ThreadId, key: &str) -> Lookup {
        if self.compiled.contains_key(&(owner, key.to_owned())) {
            self.hits += 1;
            return Lookup::Hit;
        }
        self.misses += 1;
        self.missed.push((thread, key.to_owned()));
        Lookup::Miss
    }

    /// Inserts a key after a miss.
    ///
    /// # Errors
    /// Unlocked, when another thread is also between a miss and its insertion, or inserted the same
    /// key since the miss: two threads change one table.
    pub(crate) fn insert(
        &mut self,
        owner: Option<ThreadId>,
        thread: ThreadId,
        (key, locked): (&str, bool),
    ) -> Result<(), Fault> {
        self.missed.retain(|(t, k)| *t != thread || k != key);
        // Not zero: pages of zeros need not be there.
        let held = vec![1; self.bytes_each].into_boxed_slice();
        let fresh = self.compiled.insert((owner, key.to_owned()), held).is_none();
        let alone = self.missed.is_empty();
        if locked || owner.is_some() || (fresh && alone) {
            Ok(())
        } else {
            Err(Fault::CacheRace { cache: self.name, key: key.to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: ThreadId = ThreadId(1);
    const TWO: ThreadId = ThreadId(2);

    #[test]
    fn interleaved_misses_race_when_unlocked() {
        for (locked, races) in [(false, true), (true, false)] {
            let mut cache = Cache::new("shader", 0);
            assert_eq!(cache.find(None, ONE, "relu"), Lookup::Miss);
            assert_eq!(cache.find(None, TWO, "add"), Lookup::Miss);
            assert_eq!(cache.insert(None, ONE, ("relu", locked)).is_err(), races);
        }
    }

    #[test]
    fn one_thread_after_the_other_never_races() {
        let mut cache = Cache::new("shader", 0);
        assert_eq!(cache.find(None, ONE, "relu"), Lookup::Miss);
        cache.insert(None, ONE, ("relu", false)).unwrap();
        assert_eq!(cache.find(None, TWO, "relu"), Lookup::Hit);
        assert_eq!(cache.find(None, TWO, "add"), Lookup::Miss);
        cache.insert(None, TWO, ("add", false)).unwrap();
        assert_eq!((cache.len(), cache.hits, cache.misses), (2, 1, 2));
    }
}
