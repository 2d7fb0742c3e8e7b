//! The workers, as their executor sees them: what each has to do by itself, whether it sleeps, and for
//! whom it waits.

use std::collections::VecDeque;
use std::task::Waker;

use crate::after::After;
use crate::policy::QueueId;
use crate::worker::WorkerContext;

/// Something that has to run on one certain worker: build an engine, drop one.
pub(crate) type Errand = Box<dyn FnOnce(&WorkerContext) + Send>;

/// One worker.
#[derive(Default)]
struct WorkerState {
    errands: VecDeque<Errand>,
    /// Set while the worker sleeps; whoever takes it must wake it.
    asleep: Option<Waker>,
    /// The worker and the number of the request that this one waits for, inline, in the middle of a batch.
    blocked_on: Option<(usize, QueueId, u64)>,
}

/// The workers of an executor.
pub(crate) struct Workers(Vec<WorkerState>);

impl Workers {
    pub(crate) fn new(count: usize) -> Self {
        Self((0..count).map(|_| WorkerState::default()).collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    // Sleeping.

    pub(crate) fn any_asleep(&self) -> bool {
        self.0.iter().any(|worker| worker.asleep.is_some())
    }

    /// Notes that a worker is about to sleep, until its waker is taken.
    pub(crate) fn sleeps(&mut self, worker: usize, waker: Waker) {
        self.0[worker].asleep = Some(waker);
    }

    pub(crate) fn is_up(&mut self, worker: usize) {
        self.0[worker].asleep = None;
    }

    /// Wakes one sleeping worker, if there is one.
    pub(crate) fn wake_one(&mut self, after: &mut After) {
        if let Some(waker) = self.0.iter_mut().find_map(|worker| worker.asleep.take()) {
            after.wake(waker);
        }
    }

    pub(crate) fn wake_all(&mut self, after: &mut After) {
        after.wake_all(self.0.iter_mut().filter_map(|worker| worker.asleep.take()));
    }

    // Errands.

    /// Leaves an errand for one worker, to be run before anything else.
    pub(crate) fn send(&mut self, worker: usize, errand: Errand, after: &mut After) {
        self.0[worker].errands.push_back(errand);
        if let Some(waker) = self.0[worker].asleep.take() {
            after.wake(waker);
        }
    }

    pub(crate) fn has_errand(&self, worker: usize) -> bool {
        !self.0[worker].errands.is_empty()
    }

    pub(crate) fn next_errand(&mut self, worker: usize) -> Option<Errand> {
        self.0[worker].errands.pop_front()
    }

    /// Takes what was left for a worker that has ended.
    pub(crate) fn errands_of(&mut self, worker: usize) -> impl Iterator<Item = Errand> {
        self.0[worker].errands.drain(..)
    }

    // Waiting for each other, inline.

    /// Notes that `worker` waits, in the middle of a batch, for a request that `other` runs. Refuses
    /// if `other` waits for `worker`, directly or through others.
    pub(crate) fn block_on(
        &mut self,
        worker: usize,
        other: usize,
        queue: QueueId,
        request: u64,
    ) -> bool {
        // CORRECTNESS: a worker waits for one thing at a time, so the edges form paths, and a
        // deadlock is a cycle, closed by its last edge, seen here under the lock.
        let mut at = other;
        loop {
            if at == worker {
                return false;
            }
            match self.0[at].blocked_on {
                Some((next, ..)) => at = next,
                None => break,
            }
        }
        self.0[worker].blocked_on = Some((other, queue, request));
        true
    }

    /// Whoever waits for one of these requests of a queue waits no longer.
    pub(crate) fn unblock(&mut self, queue: QueueId, requests: &[u64]) {
        let answered = |(_, other, request): (usize, QueueId, u64)| {
            other == queue && requests.contains(&request)
        };
        for worker in &mut self.0 {
            if worker.blocked_on.is_some_and(answered) {
                worker.blocked_on = None;
            }
        }
    }
}
