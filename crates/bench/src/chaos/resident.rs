//! Memory of this process.

/// Bytes that are in memory; 0 where the system does not say.
pub(super) fn resident_bytes() -> usize {
    memory_stats::memory_stats().map_or(0, |stats| stats.physical_mem)
}
