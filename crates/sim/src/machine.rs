//! The device proper: memory, allocator, streams, caches, trace and counters, as steps that do not
//! yield. The order of the steps, and where threads may change between them, is in `device.rs` and
//! `encode.rs`.

use std::collections::BTreeMap;

use crate::allocator::{Allocator, Source};
use crate::cache::Cache;
use crate::command::{Access, Command};
use crate::memo::Memo;
use crate::memory::Memory;
use crate::ownership::Ownership;
use crate::profile::{Profile, StreamPolicy};
use crate::stats::SimStats;
use crate::stream::{Stream, Streams};
use crate::thread_id::ThreadId;
use crate::trace::{ActionKind, Event, Trace};

/// The simulated device's state.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) profile: Profile,
    pub(crate) memory: Memory,
    pub(crate) allocator: Allocator,
    pub(crate) streams: Streams,
    /// The stream of each living thread that has one.
    thread_streams: BTreeMap<ThreadId, u32>,
    pub(crate) shaders: Cache,
    pub(crate) graphs: Cache,
    /// Kernels that are being encoded, with the stream that does it.
    pub(crate) encoding: Vec<(u32, String)>,
    pub(crate) ownership: Ownership,
    pub(crate) memo: Option<Memo>,
    pub(crate) stats: SimStats,
    trace: Option<Trace>,
}

impl Machine {
    pub(crate) fn new(profile: Profile, memo: Option<Memo>, traced: bool) -> Self {
        let held = if profile.real_faults { profile.graph_bytes } else { 0 };
        let graphs = Cache::new("graph", usize::try_from(held).unwrap_or(usize::MAX));
        Self {
            profile,
            memory: Memory::default(),
            allocator: Allocator::default(),
            streams: Streams::default(),
            thread_streams: BTreeMap::new(),
            shaders: Cache::new("shader", 0),
            graphs,
            encoding: Vec::new(),
            ownership: Ownership::default(),
            memo,
            stats: SimStats::default(),
            trace: traced.then(Trace::default),
        }
    }

    pub(crate) fn trace(&self) -> Trace {
        self.trace.clone().unwrap_or_default()
    }

    /// The stream that the thread works on; made on its first use.
    pub(crate) fn stream_of(&mut self, thread: ThreadId) -> u32 {
        let key = match self.profile.streams {
            StreamPolicy::Shared => ThreadId(0),
            StreamPolicy::PerThread | StreamPolicy::BufferPerThread => thread,
        };
        if let Some(stream) = self.thread_streams.get(&key) {
            return *stream;
        }
        // An ended thread's stream goes to the next thread, except where it belongs to its maker.
        let taken: Vec<u32> = self.thread_streams.values().copied().collect();
        let kept =
            self.profile.streams == StreamPolicy::BufferPerThread || self.profile.thread_affine;
        let free = match kept {
            true => None,
            false => (0..self.streams.streams.len() as u32).find(|id| !taken.contains(id)),
        };
        let stream = free.unwrap_or_else(|| self.make_stream(thread));
        self.streams.stream_mut(stream).maker = thread;
        self.thread_streams.insert(key, stream);
        stream
    }

    fn make_stream(&mut self, maker: ThreadId) -> u32 {
        let id = u32::try_from(self.streams.streams.len()).expect("fewer than 2^32 streams");
        // candle kept all its open buffers on one command queue and behind one lock.
        let shared = match self.profile.streams {
            StreamPolicy::BufferPerThread => 0,
            _ => id,
        };
        self.streams.streams.push(Stream {
            queue: shared,
            serial: shared,
            maker,
            buffer: None,
            encoder: None,
        });
        id
    }

    /// The thread's cached blocks and its stream become free.
    pub(crate) fn thread_ended(&mut self, thread: ThreadId) {
        self.allocator.flush(&self.profile, &self.memory, thread);
        self.graphs.forget(thread);
        if self.profile.streams != StreamPolicy::Shared {
            self.thread_streams.remove(&thread);
        }
    }

    /// Gives out a block (rule R3): its number and generation.
    pub(crate) fn alloc(&mut self, thread: ThreadId, bytes: usize) -> (u32, u32) {
        let stream = self.stream_of(thread);
        let (block, source) =
            self.allocator.alloc(&self.profile, &mut self.memory, (thread, stream), bytes);
        let given = self.memory.block(block);
        self.stats.allocations += 1;
        self.stats.used_bytes += given.size as u64;
        self.stats.most_used_bytes = self.stats.most_used_bytes.max(self.stats.used_bytes);
        if source == Source::Fresh {
            self.stats.reserved_bytes += given.size as u64;
        } else {
            self.stats.reused += 1;
            if given.pending.iter().any(|other| *other != stream) {
                self.stats.reused_while_pending += 1;
            }
        }
        (block, given.generation)
    }

    /// Takes a block back (rule R3).
    pub(crate) fn free(&mut self, thread: ThreadId, block: u32) {
        self.stats.used_bytes -= self.memory.block(block).size as u64;
        self.allocator.free(&self.profile, &self.memory, thread, block);
    }

    /// A command was encoded on a stream: its blocks have one reference more.
    pub(crate) fn encoded(&mut self, stream: u32, accesses: impl Iterator<Item = Access>) {
        self.stats.commands += 1;
        for access in accesses {
            self.memory.block_mut(access.block).pending.push(stream);
        }
    }

    /// A command ran: its blocks have one reference less.
    pub(crate) fn executed(&mut self, stream: u32, command: &[Access]) {
        for access in command {
            let pending = &mut self.memory.block_mut(access.block).pending;
            if let Some(place) = pending.iter().position(|s| *s == stream) {
                pending.swap_remove(place);
            }
        }
    }

    /// The blocks that a command of `stream` reads after another stream has overwritten them, and
    /// those that it overwrites though another stream has got them. Within a stream commands run in
    /// order, so that reuse by the same stream is sound.
    pub(crate) fn stale(&self, stream: u32, command: &Command) -> (Vec<u32>, Vec<u32>) {
        let overwritten = |access: &&Access| {
            let written = &self.memory.block(access.block).written;
            written.as_ref().is_some_and(|w| w.generation > access.generation && w.stream != stream)
        };
        let given_away = |access: &&Access| {
            let block = self.memory.block(access.block);
            block.generation != access.generation && block.stream != stream
        };
        let blocks = |accesses: Vec<&Access>| accesses.iter().map(|a| a.block).collect();
        (
            blocks(command.reads.iter().filter(overwritten).collect()),
            blocks(command.writes.iter().filter(given_away).collect()),
        )
    }

    pub(crate) fn is_traced(&self) -> bool {
        self.trace.is_some()
    }

    /// Records an event without a stream.
    pub(crate) fn record(&mut self, step: u64, thread: &str, kind: ActionKind, name: &str) {
        self.record_event(|| Event {
            step,
            thread: thread.to_owned(),
            kind,
            name: name.to_owned(),
            stream: None,
            command_buffer: None,
            reads: Vec::new(),
            writes: Vec::new(),
            bytes: None,
        });
    }

    pub(crate) fn record_event(&mut self, event: impl FnOnce() -> Event) {
        if let Some(trace) = &mut self.trace {
            trace.push(event());
        }
    }
}
