//! What names things in an executor: queues, requests, workers.

/// Names a queue in its executor.
pub(crate) type QueueId = u64;

/// Names a request in its executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestId {
    pub(crate) queue: QueueId,
    pub(crate) number: u64,
}

/// Names a worker in the process: its executor's id, and its index there.
pub(crate) type WorkerId = (u64, usize);
