//! What has become of the children of a supervisor.

use std::time::Duration;

/// A snapshot of a supervisor's counters. All of them only grow, but for `footprint`, `children`
/// and `spare`.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct IsolationStats {
    /// Children started, also those that did not become ready.
    pub starts: u64,
    /// Children that did not become ready.
    pub failed_starts: u64,
    /// Children lost because their process ended.
    pub crashes: u64,
    /// Children lost because they did not answer in time.
    pub hangs: u64,
    /// Children lost because their engine said that it cannot go on.
    pub engine_losses: u64,
    /// Children lost because they sent what cannot be understood.
    pub protocol_errors: u64,
    /// Lone requests tried again in a fresh child.
    pub retries: u64,
    /// Children replaced because of their memory.
    pub recycled_for_memory: u64,
    /// Children replaced because of the number of their batches.
    pub recycled_for_batches: u64,
    /// Children replaced because of their age.
    pub recycled_for_age: u64,
    /// Children that were killed and did not die.
    pub stuck: u64,
    /// Memory in bytes of the children that live now, all together, as the operating system counts
    /// it.
    pub footprint: u64,
    /// The most memory in bytes that a child had after a batch; 0 if none has said and `max_memory`
    /// is not set, as it is not measured then.
    pub max_footprint: u64,
    /// How long the last child that became ready took to do so.
    pub last_start: Duration,
    /// The process ids of the children that live now.
    pub children: Vec<u32>,
    /// Whether a warm spare is ready.
    pub spare: bool,
}

impl IsolationStats {
    /// Children lost after they had become ready, whatever the cause.
    pub fn losses(&self) -> u64 {
        self.crashes + self.hangs + self.engine_losses + self.protocol_errors
    }

    /// Children replaced, whatever the cause.
    pub fn recycled(&self) -> u64 {
        self.recycled_for_memory + self.recycled_for_batches + self.recycled_for_age
    }
}
