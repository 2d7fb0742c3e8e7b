//! The caching allocator (rule R3): which freed block a request gets.
//!
//! As PyTorch's for MPS: a pool of blocks up to 1 MiB and a pool of larger ones, best fit by size and
//! then by address, and a block that is at most 32 MiB too large still serves. Only where a freed
//! block goes, and to whom, differs between the modes ([`Reuse`]).

use std::collections::{BTreeMap, BTreeSet};

use crate::memory::Memory;
use crate::profile::{Profile, Reuse};
use crate::thread_id::ThreadId;

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
        let (block, source) = if let Some(block) = self.cached_for(memory, thread, size) {
            (block, Source::ThreadCache)
        } else if let Some(block) = self.pooled_for(profile, stream, size) {
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
    fn cached_for(&mut self, memory: &Memory, thread: ThreadId, size: usize) -> Option<u32> {
        let cache = self.threads.get_mut(&thread)?;
        let fits = |block: &u32| {
            let has = memory.block(*block).size;
            has >= size && has <= size * 2
        };
        let place = cache.iter().position(fits)?;
        Some(cache.remove(place))
    }

    fn pooled_for(&mut self, profile: &Profile, stream: u32, size: usize) -> Option<u32> {
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
        self.give_to_pool(profile, memory, block);
    }

    fn give_to_pool(&mut self, profile: &Profile, memory: &Memory, block: u32) {
        let freed = memory.block(block);
        let key = pool_key(profile, freed.stream, freed.size);
        self.pools.entry(key).or_default().insert((freed.size, block));
    }

    /// A thread ended: its cache goes to the pools.
    pub(crate) fn flush(&mut self, profile: &Profile, memory: &Memory, thread: ThreadId) {
        for block in self.threads.remove(&thread).unwrap_or_default() {
            self.give_to_pool(profile, memory, block);
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
            self.give_to_pool(profile, memory, block);
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;
    const ONE: ThreadId = ThreadId(1);
    const TWO: ThreadId = ThreadId(2);

    struct Device {
        profile: Profile,
        memory: Memory,
        allocator: Allocator,
    }

    impl Device {
        fn new(profile: Profile) -> Self {
            Self { profile, memory: Memory::default(), allocator: Allocator::default() }
        }

        fn alloc(&mut self, thread: ThreadId, bytes: usize) -> (u32, Source) {
            let who = (thread, thread.0);
            self.allocator.alloc(&self.profile, &mut self.memory, who, bytes)
        }

        fn free(&mut self, thread: ThreadId, block: u32) {
            self.allocator.free(&self.profile, &self.memory, thread, block);
        }
    }

    #[test]
    fn shared_pool_gives_a_large_block_to_another_thread_at_once() {
        let mut device = Device::new(Profile::fork_2_9_1());
        let (block, source) = device.alloc(ONE, 3 * MIB / 2);
        assert_eq!(source, Source::Fresh);
        device.memory.block_mut(block).pending.push(1);
        device.free(ONE, block);
        assert_eq!(device.alloc(TWO, 3 * MIB / 2), (block, Source::Pool));
    }

    #[test]
    fn a_thread_keeps_four_small_blocks_and_the_fifth_is_shared() {
        let mut device = Device::new(Profile::fork_2_9_1());
        let blocks: Vec<u32> = (0..5).map(|_| device.alloc(ONE, MIB).0).collect();
        for block in &blocks {
            device.free(ONE, *block);
        }
        assert_eq!(device.alloc(TWO, MIB), (blocks[4], Source::Pool));
        assert_eq!(device.alloc(ONE, MIB), (blocks[0], Source::ThreadCache));
        // The others of ONE come to the pool when it ends.
        assert_eq!(device.alloc(TWO, MIB).1, Source::Fresh);
        device.allocator.flush(&device.profile, &device.memory, ONE);
        assert_eq!(device.alloc(TWO, MIB), (blocks[1], Source::Pool));
    }

    #[test]
    fn the_thread_cache_takes_blocks_up_to_one_mib_and_gives_up_to_twice_the_size() {
        let mut device = Device::new(Profile::fork_2_9_1());
        let (small, _) = device.alloc(ONE, MIB);
        let (large, _) = device.alloc(ONE, MIB + 1);
        device.free(ONE, small);
        device.free(ONE, large);
        assert_eq!(device.alloc(ONE, MIB / 2), (small, Source::ThreadCache));
        device.free(ONE, small);
        assert_eq!(device.alloc(ONE, MIB / 2 - ALIGNMENT).1, Source::Fresh);
        assert_eq!(device.alloc(TWO, MIB + 1), (large, Source::Pool));
    }

    #[test]
    fn the_best_fit_is_taken_and_at_most_32_mib_too_large() {
        let mut device = Device::new(Profile::fork_2_9_1());
        let sizes = [2, 4, 40].map(|mib| device.alloc(ONE, mib * MIB).0);
        for block in sizes {
            device.free(ONE, block);
        }
        assert_eq!(device.alloc(TWO, 3 * MIB), (sizes[1], Source::Pool));
        assert_eq!(device.alloc(TWO, 3 * MIB / 2), (sizes[0], Source::Pool));
        assert_eq!(device.alloc(TWO, 7 * MIB).1, Source::Fresh);
        assert_eq!(device.alloc(TWO, 8 * MIB), (sizes[2], Source::Pool));
    }

    #[test]
    fn per_stream_gives_a_block_to_its_own_stream_only() {
        let profile = Profile::fork_2_9_1().with_reuse(Reuse::PerStream);
        let mut device = Device::new(profile);
        let (block, _) = device.alloc(ONE, 2 * MIB);
        device.free(ONE, block);
        assert_eq!(device.alloc(TWO, 2 * MIB).1, Source::Fresh);
        assert_eq!(device.alloc(ONE, 2 * MIB), (block, Source::Pool));
    }

    #[test]
    fn retain_keeps_a_block_back_until_its_commands_ran() {
        let mut device = Device::new(Profile::fork_2_9_1().with_reuse(Reuse::Retain));
        let (block, _) = device.alloc(ONE, 2 * MIB);
        device.memory.block_mut(block).pending.push(1);
        device.free(ONE, block);
        assert_eq!(device.alloc(ONE, 2 * MIB).1, Source::Fresh);
        device.memory.block_mut(block).pending.clear();
        device.allocator.release(&device.profile, &device.memory);
        assert_eq!(device.alloc(TWO, 2 * MIB), (block, Source::Pool));
    }

    #[test]
    fn record_stream_keeps_back_what_another_stream_still_reads() {
        let mut device = Device::new(Profile::user_streams_2_15());
        let (block, _) = device.alloc(ONE, 2 * MIB);
        device.memory.block_mut(block).pending.push(2);
        device.free(ONE, block);
        assert_eq!(device.alloc(ONE, 2 * MIB).1, Source::Fresh);
        device.memory.block_mut(block).pending.clear();
        device.allocator.release(&device.profile, &device.memory);
        assert_eq!(device.alloc(ONE, 2 * MIB), (block, Source::Pool));
    }
}
