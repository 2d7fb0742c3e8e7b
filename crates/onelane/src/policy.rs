//! Which group goes next: a pure function of what waits, the time and the settings. No clock, no
//! lock, no thread.
//!
//! The group with the best claim goes first. A claim is, in this order: the effective priority
//! (ageing lifts a waiting request one class per `ageing` interval), the queue's device time per
//! weight (less goes first), the arrival (older goes first).
//!
//! Bound on starvation: after at most `2 * ageing` a request counts as Interactive. From then on
//! no later request of its queue is dispatched before the batch that its claim starts, and no
//! other queue is preferred to its own once that queue has had as much device time per weight.

use std::time::{Duration, Instant};

use crate::request::Priority;

/// The names of a queue in its executor.
pub(crate) type QueueId = u64;

/// The oldest request of one class in one group: the one that claims a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Where the request is in its queue's waiting list.
    pub(crate) slot: usize,
    pub(crate) class: Priority,
    pub(crate) arrival: Instant,
    /// Order of acceptance in the executor; settles equal arrivals.
    pub(crate) seq: u64,
    /// From when on its group may be dispatched: at once unless `max_wait` is set.
    pub(crate) ready_at: Instant,
}

/// One claim on the worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) queue: QueueId,
    pub(crate) head: Head,
    pub(crate) ageing: Duration,
    /// Device time that the queue has had, divided by its weight.
    pub(crate) virtual_time: Duration,
}

/// What a free worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Run the batch that this head claims.
    Dispatch(QueueId, Head),
    /// Nothing is ready before this instant.
    WaitUntil(Instant),
    /// Nothing waits.
    Idle,
}

/// The class that a request counts as after it has waited: 0 is Interactive.
pub(crate) fn effective_class(class: Priority, waited: Duration, ageing: Duration) -> usize {
    let lifts = waited.as_nanos() / ageing.as_nanos().max(1);
    class
        .index()
        .saturating_sub(usize::try_from(lifts).unwrap_or(usize::MAX))
}

/// Chooses among everything that waits.
pub(crate) fn decide(candidates: impl IntoIterator<Item = Candidate>, now: Instant) -> Decision {
    let mut best: Option<(_, Candidate)> = None;
    let mut earliest: Option<Instant> = None;
    for candidate in candidates {
        let head = candidate.head;
        if head.ready_at > now {
            earliest = Some(earliest.map_or(head.ready_at, |e| e.min(head.ready_at)));
            continue;
        }
        let waited = now.saturating_duration_since(head.arrival);
        let class = effective_class(head.class, waited, candidate.ageing);
        let claim = (class, candidate.virtual_time, head.arrival, head.seq);
        if best.as_ref().is_none_or(|(least, _)| claim < *least) {
            best = Some((claim, candidate));
        }
    }
    match (best, earliest) {
        (Some((_, candidate)), _) => Decision::Dispatch(candidate.queue, candidate.head),
        (None, Some(instant)) => Decision::WaitUntil(instant),
        (None, None) => Decision::Idle,
    }
}
