//! [`SimStats`]: what a simulated device counted.

use serde::Serialize;

/// Counters of a simulated device. Bytes are simulated device memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SimStats {
    /// Yield points up to now: the simulated time.
    pub steps: u64,
    /// How often another thread went on.
    pub switches: u64,
    /// Blocks handed out.
    pub allocations: u64,
    /// Of these, blocks that had been used before.
    pub reused: u64,
    /// Of these, blocks that an uncommitted command of another stream still referred to.
    pub reused_while_pending: u64,
    /// Bytes of all blocks, used and cached.
    pub reserved_bytes: u64,
    /// Bytes of the blocks in use.
    pub used_bytes: u64,
    /// The most bytes that were in use at once.
    pub most_used_bytes: u64,
    /// Commands that were encoded.
    pub commands: u64,
    /// Command buffers that were committed.
    pub commits: u64,
    /// Command buffers in flight at once on one queue, at most.
    pub most_command_buffers: usize,
    /// Commands that read what another stream had overwritten (hazard H1).
    pub stale_reads: u64,
    /// Commands that wrote over another thread's block (hazard H1).
    pub stale_writes: u64,
    /// Shaders in the cache.
    pub shaders: usize,
    /// Graphs in the cache.
    pub graphs: usize,
    /// Bytes of the graph cache (hazard H13).
    pub graph_bytes: u64,
    /// Different actions of threads that do not own the device.
    pub violations: usize,
}

impl SimStats {
    /// Adds the counters of another device; of sizes, the larger one stays.
    pub(crate) fn add(&mut self, other: &SimStats) {
        let SimStats {
            steps,
            switches,
            allocations,
            reused,
            reused_while_pending,
            reserved_bytes,
            used_bytes,
            most_used_bytes,
            commands,
            commits,
            most_command_buffers,
            stale_reads,
            stale_writes,
            shaders,
            graphs,
            graph_bytes,
            violations,
        } = other;
        self.steps += steps;
        self.switches += switches;
        self.allocations += allocations;
        self.reused += reused;
        self.reused_while_pending += reused_while_pending;
        self.commands += commands;
        self.commits += commits;
        self.stale_reads += stale_reads;
        self.stale_writes += stale_writes;
        self.violations += violations;
        self.reserved_bytes = self.reserved_bytes.max(*reserved_bytes);
        self.used_bytes = self.used_bytes.max(*used_bytes);
        self.most_used_bytes = self.most_used_bytes.max(*most_used_bytes);
        self.most_command_buffers = self.most_command_buffers.max(*most_command_buffers);
        self.shaders = self.shaders.max(*shaders);
        self.graphs = self.graphs.max(*graphs);
        self.graph_bytes = self.graph_bytes.max(*graph_bytes);
    }
}
