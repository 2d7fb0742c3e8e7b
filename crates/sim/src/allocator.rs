//! The caching allocator (rule R3): which freed block a request gets.
//!
//! As PyTorch's for MPS: a pool of blocks up to 1 MiB and a pool of larger ones, best fit by size and
//! then by address, and a block that is at most 32 MiB too large still serves. Only where a freed
//! block goes, and to whom, differs between the modes ([`Reuse`]).

use std::collections::{BTreeMap, BTreeSet};

use crate::baton::ThreadId;
use crate::memory::Memory;
use crate::profile::{Profile, Reuse};

/// Blocks up to this size come from the pool of small ones.
const SMALL: usize = 1 << 20;
/// A block serves when it is at most this much too large.
const OVERSIZE: usize = 32 << 20;
/// Sizes are multiples of this.
const ALIGNMENT: usize = 256;

/// A pool: the stream whose blocks it holds (0 when blocks belong to all), and whether they are small.
type PoolKey = (u32, bool);

/// The caching allocator.
#[derive(Debug, Default)]
pub(crate) struct Allocator {
    /// Free blocks by pool, each ordered by size and number.
    pools: BTreeMap<PoolKey, BTreeSet<(usize, u32)>>,
    /// The small blocks that each thread keeps for itself, oldest first.
    threads: BTreeMap<ThreadId, Vec<u32>>,
    /// Freed blocks that wait for commands which refer to them.
    kept_back: Vec<u32>,
}

/// Where a block came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The thread's own cache.
    ThreadCache,
    /// A pool.
    Pool,
    /// Fresh memory.
    Fresh,
}

impl Allocator {
    /// Gives a block of at least `bytes` bytes to a thread that works on `stream`.
    pub(crate) fn alloc(
        &mut self,
        profile: &Profile,
        memory: &mut Memory,
        (thread, stream): (ThreadId, u32),
        bytes: usize,
    ) -> (u32, Source) {
        let size = bytes.max(1).next_multiple_of(ALIGNMENT);
        let (block, source) = if let Some(block) = self.from_thread(memory, thread, size) {
            (block, Source::ThreadCache)
        } else if let Some(block) = self.from_pool(profile, stream, size) {
            (block, Source::Pool)
        } else {
            (memory.grow(size, stream), Source::Fresh)
        };
        let taken = memory.block_mut(block);
        taken.generation += 1;
        taken.stream = stream;
        (block, source)
    }

    /// First fit, and at most twice the size.
    fn from_thread(&mut self, memory: &Memory, thread: ThreadId, size: usize) -> Option<u32> {
        let cache = self.threads.get_mut(&thread)?;
        let fits = |block: &u32| {
            let has = memory.block(*block).size;
            has >= size && has <= size * 2
        };
        let place = cache.iter().position(fits)?;
        Some(cache.remove(place))
    }

    fn from_pool(&mut self, profile: &Profile, stream: u32, size: usize) -> Option<u32> {
        let key = pool_key(profile, stream, size);
        let pool = self.pools.get_mut(&key)?;
        let best = *pool.range((size, 0)..).next()?;
        if best.0 > size + OVERSIZE {
            return None;
        }
        pool.remove(&best);
        Some(best.1)
    }

    /// Takes a block back from a thread.
    pub(crate) fn free(
        &mut self,
        profile: &Profile,
        memory: &Memory,
        thread: ThreadId,
        block: u32,
    ) {
        let freed = memory.block(block);
        let must_wait = match profile.reuse {
            Reuse::Retain => !freed.pending.is_empty(),
            Reuse::Shared | Reuse::PerStream => {
                profile.record_stream && freed.pending.iter().any(|s| *s != freed.stream)
            }
        };
        if must_wait {
            self.kept_back.push(block);
            return;
        }
        if let Some(rule) = profile.thread_cache
            && freed.size <= rule.block_bytes
        {
            let cache = self.threads.entry(thread).or_default();
            if cache.len() < rule.blocks {
                cache.push(block);
                return;
            }
        }
        self.to_pool(profile, memory, block);
    }

    fn to_pool(&mut self, profile: &Profile, memory: &Memory, block: u32) {
        let freed = memory.block(block);
        let key = pool_key(profile, freed.stream, freed.size);
        self.pools.entry(key).or_default().insert((freed.size, block));
    }

    /// A thread ended: its cache goes to the pools.
    pub(crate) fn flush(&mut self, profile: &Profile, memory: &Memory, thread: ThreadId) {
        for block in self.threads.remove(&thread).unwrap_or_default() {
            self.to_pool(profile, memory, block);
        }
    }

    /// Commands were committed: gives back what waited for them.
    pub(crate) fn release(&mut self, profile: &Profile, memory: &Memory) {
        if self.kept_back.is_empty() {
            return;
        }
        let (waiting, done) = std::mem::take(&mut self.kept_back)
            .into_iter()
            .partition(|block| !memory.block(*block).pending.is_empty());
        self.kept_back = waiting;
        let done: Vec<u32> = done;
        for block in done {
            self.to_pool(profile, memory, block);
        }
    }
}

fn pool_key(profile: &Profile, stream: u32, size: usize) -> PoolKey {
    let stream = match profile.reuse {
        Reuse::PerStream => stream,
        Reuse::Shared | Reuse::Retain => 0,
    };
    (stream, size <= SMALL)
}
