//! What names things in the process: executors, queues, requests, workers.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number for an executor or a queue, which nothing else has.
pub(crate) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Names a queue.
pub(crate) type QueueId = u64;

/// Names a request by its queue, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestId {
    pub(crate) queue: QueueId,
    pub(crate) number: u64,
}

/// Names a worker: its executor's id, and its index there.
pub(crate) type WorkerId = (u64, usize);
