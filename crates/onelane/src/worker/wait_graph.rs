//! Who waits for whom: the workers of the process that wait, in the middle of a batch, for what
//! another worker has to do. A wait that would close a circle is refused.
//!
//! Seen are waits in this crate, on a worker's own thread. A worker that waits for a thread of its
//! own making, which waits for the device, is not seen; that batch stalls, and health says so.

#![allow(clippy::disallowed_types, reason = "a leaf lock: nothing waits under it")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::scheduler::id::{QueueId, RequestId, WorkerId};
use crate::sync::PerProcess;

/// What a worker waits for.
#[derive(Clone, Debug)]
pub(crate) struct WaitEdge {
    pub(crate) request: RequestId,
    /// The executor of the request, how many workers that has, and its device.
    pub(crate) executor: u64,
    pub(crate) workers: usize,
    pub(crate) device: String,
    /// The worker that runs the request; any of the executor if it has not started.
    pub(crate) worker: Option<usize>,
}

type WaitGraph = BTreeMap<WorkerId, Vec<WaitEdge>>;

/// A worker has waited: before the first does, no batch need look.
static USED: AtomicBool = AtomicBool::new(false);

static GRAPH: PerProcess<Mutex<WaitGraph>> = PerProcess::new(Mutex::new(BTreeMap::new()));

fn graph() -> MutexGuard<'static, WaitGraph> {
    GRAPH.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes that `worker` waits. `false`: whoever it would wait for waits for it, directly or through
/// others, so it must not.
pub(crate) fn wait(worker: WorkerId, edge: WaitEdge) -> bool {
    USED.store(true, Ordering::Relaxed);
    let mut graph = graph();
    if is_stuck(&graph, &edge, &mut vec![worker]) {
        return false;
    }
    let edges = graph.entry(worker).or_default();
    edges.retain(|other| other.request != edge.request);
    edges.push(edge);
    true
}

/// Whether nobody who could do what `edge` waits for can go on before those in `stuck`.
fn is_stuck(graph: &WaitGraph, edge: &WaitEdge, stuck: &mut Vec<WorkerId>) -> bool {
    let any = edge.worker.map_or(0..edge.workers, |worker| worker..worker + 1);
    any.into_iter().all(|index| {
        let worker = (edge.executor, index);
        if stuck.contains(&worker) {
            return true;
        }
        let Some(edges) = graph.get(&worker) else { return false };
        // CORRECTNESS: a worker that waits for several things may need any of them, so it is stuck
        // when all of them are. It is taken to be while that is looked into: a circle is no way out.
        let before = stuck.len();
        stuck.push(worker);
        let is_stuck = edges.iter().all(|edge| is_stuck(graph, edge, stuck));
        if !is_stuck {
            stuck.truncate(before);
        }
        is_stuck
    })
}

/// `worker` does not wait for this request any more.
pub(crate) fn unwait(worker: WorkerId, request: RequestId) {
    let mut graph = graph();
    if let Some(edges) = graph.get_mut(&worker) {
        edges.retain(|edge| edge.request != request);
        if edges.is_empty() {
            graph.remove(&worker);
        }
    }
}

/// These requests have run: who waits for one goes on by itself, and is in nobody's way.
///
/// CORRECTNESS: under the scheduler's lock, as [`wait`] is for a request, so none is noted later.
pub(crate) fn have_run(queue: QueueId, numbers: &[u64]) {
    if USED.load(Ordering::Relaxed) {
        let has_run = |it: RequestId| it.queue == queue && numbers.contains(&it.number);
        graph().retain(|_, edges| {
            edges.retain(|edge| !has_run(edge.request));
            !edges.is_empty()
        });
    }
}

/// `worker` has come back from a batch: whatever it waited for in it, it does not now.
pub(crate) fn forget(worker: WorkerId) {
    graph().remove(&worker);
}

/// The device that `worker` waits for.
pub(crate) fn waits_for(worker: WorkerId) -> Option<String> {
    let graph = graph();
    graph.get(&worker).and_then(|edges| edges.last()).map(|edge| edge.device.clone())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn edge(executor: u64, workers: usize, worker: Option<usize>) -> WaitEdge {
        // Each executor here has one queue, of its own id.
        let request = RequestId { queue: executor, number: 1 };
        WaitEdge { request, executor, workers, device: String::new(), worker }
    }

    fn stuck(edges: &[(WorkerId, WaitEdge)], from: WorkerId, new: WaitEdge) -> bool {
        let mut graph = WaitGraph::new();
        for (worker, edge) in edges {
            graph.entry(*worker).or_default().push(edge.clone());
        }
        is_stuck(&graph, &new, &mut vec![from])
    }

    #[test]
    fn a_circle_is_seen_through_any_number_of_executors() {
        let [a, b, c] = [(1, 0), (2, 0), (3, 0)];
        assert!(!stuck(&[], a, edge(2, 1, None)));
        assert!(stuck(&[(b, edge(1, 1, None))], a, edge(2, 1, None)));
        let path = [(a, edge(2, 1, None)), (b, edge(3, 1, None))];
        assert!(stuck(&path, c, edge(1, 1, None)));
        assert!(!stuck(&path[1..], c, edge(1, 1, None)));
    }

    /// The worker that is woken by an answer may take its time to look.
    #[test]
    fn who_waited_for_what_has_run_is_in_nobodys_way() {
        let [here, there] = [(u64::MAX, 0), (u64::MAX - 1, 0)];
        assert!(wait(there, edge(here.0, 1, None)));
        assert!(!wait(here, edge(there.0, 1, None)));
        have_run(here.0, &[2]);
        assert!(!wait(here, edge(there.0, 1, None)));
        have_run(here.0, &[1, 2]);
        assert!(wait(here, edge(there.0, 1, None)));
        forget(here);
    }

    #[test]
    fn a_free_worker_is_a_way_out_unless_another_runs_the_request() {
        let waits = [((2, 0), edge(1, 1, None))];
        assert!(!stuck(&waits, (1, 0), edge(2, 2, None)));
        assert!(stuck(&waits, (1, 0), edge(2, 2, Some(0))));
        assert!(!stuck(&waits, (1, 0), edge(2, 2, Some(1))));
    }

    #[test]
    fn who_waits_for_several_things_is_stuck_when_all_are() {
        let both = [((2, 0), edge(1, 1, None)), ((2, 0), edge(3, 1, None))];
        assert!(!stuck(&both, (1, 0), edge(2, 1, None)));
        let all = [both[0].clone(), both[1].clone(), ((3, 0), edge(2, 1, None))];
        assert!(stuck(&all, (1, 0), edge(2, 1, None)));
    }
}
