//! What the handles, queues and workers of one executor share: the lock of its scheduler, and its
//! clock.
//!
//! Lock order: this lock, then a queue's inbox's, then that of an answer's slot.
//! No user code runs under any of them, save a key's `Eq`, contained; what else has to run is left in
//! the scheduler's [`Deferred`], and done when its guard is dropped.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Instant;

use crate::scheduler::Scheduler;
use crate::scheduler::id::{QueueId, next_id};
use crate::stats::Stats;
use crate::sync::{Clock, Deferred, Mutex, MutexGuard, may_lock};

/// What clients, workers and handles of one executor share.
pub(crate) struct ExecutorShared {
    /// Names it among the executors of the process.
    pub(crate) id: u64,
    pub(crate) device: String,
    pub(crate) workers: usize,
    pub(crate) clock: Clock,
    scheduler: Mutex<Scheduler>,
}

impl ExecutorShared {
    pub(crate) fn new(device: String, workers: usize, clock: Clock) -> Self {
        let id = next_id();
        Self { id, device, workers, clock, scheduler: Mutex::new(Scheduler::new(id, workers)) }
    }

    pub(crate) fn lock(&self) -> SchedulerGuard<'_> {
        may_lock();
        SchedulerGuard { guard: self.scheduler.lock(), deferred: Deferred::default() }
    }

    /// Blocks until `is_over` says so, which leaves the waker where that wakes it, or until `until`
    /// has come. Says whether it is over.
    pub(crate) fn wait(
        &self,
        until: Option<Instant>,
        is_over: impl Fn(&mut Scheduler, &Waker) -> bool,
    ) -> bool {
        let poll = |waker: &Waker| match is_over(&mut self.lock(), waker) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        };
        self.clock.block(until, poll).is_some()
    }

    /// What was counted in a queue; nothing of one that has never been.
    pub(crate) fn stats(&self, queue: QueueId) -> Stats {
        let now = self.clock.now();
        self.lock().stats(queue, now).unwrap_or_default()
    }

    /// Tells the timer of a deadline of a request of `queue`, if there is one to be told of.
    pub(crate) fn arm(self: &Arc<Self>, queue: QueueId, at: Option<Instant>) {
        let Some(at) = at else { return };
        let shared = Arc::downgrade(self);
        self.clock.call_at(at, move || {
            let Some(shared) = shared.upgrade() else { return };
            let now = shared.clock.now();
            let next = shared.lock().expire(queue, at, now);
            shared.arm(queue, next);
            // CORRECTNESS: this may be the last handle of an executor whose worker has just ended;
            // that holds nothing but memory.
        });
    }
}

/// The locked scheduler. Dropping it releases the lock first and then does what was deferred.
pub(crate) struct SchedulerGuard<'a> {
    guard: MutexGuard<'a, Scheduler>,
    // Dropped, and by that run, after the guard.
    deferred: Deferred,
}

impl Deref for SchedulerGuard<'_> {
    type Target = Scheduler;
    fn deref(&self) -> &Scheduler {
        &self.guard
    }
}

impl DerefMut for SchedulerGuard<'_> {
    fn deref_mut(&mut self) -> &mut Scheduler {
        &mut self.guard
    }
}

impl Drop for SchedulerGuard<'_> {
    fn drop(&mut self) {
        self.deferred = std::mem::take(&mut self.guard.deferred);
    }
}
