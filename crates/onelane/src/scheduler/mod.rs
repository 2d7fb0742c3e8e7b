//! The scheduler of a device executor: everything its workers, clients and shutdowns agree on,
//! behind the lock in [`shared`].
//!
//! Invariants, true whenever the lock is free:
//! - a request that was accepted waits in one queue, or is in one running batch, or is answered;
//! - if something is runnable, no worker sleeps without a wake-up on its way: each change that makes
//!   something runnable takes a sleeping worker's waker and wakes it;
//! - a queue is removed after its last engine has been dropped on its worker, and not before its
//!   last request has been answered.

pub(crate) mod closures;
pub(crate) mod fifo;
pub(crate) mod group;
pub(crate) mod id;
pub(crate) mod pending;
pub(crate) mod policy;
pub(crate) mod queue;
pub(crate) mod shared;
pub(crate) mod workers;

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::scheduler::id::{QueueId, RequestId};
use crate::scheduler::pending::PendingRequests;
use crate::scheduler::policy::{Choice, Decision, Head};
use crate::scheduler::queue::{Phase, Queue, Running};
use crate::scheduler::workers::{WorkerCommand, Workers};
use crate::stats::{Health, Stats};
use crate::sync::{Clock, Deferred};
use crate::worker::batch::Dispatched;
use crate::{BatchConfig, Refusal, RequestError};

/// What a worker does next.
pub(crate) enum Step {
    Command(WorkerCommand),
    Batch(Dispatched),
    /// Sleep until woken, or until this instant. The waker has been stored.
    Sleep(Option<Instant>),
    Stop,
}

/// Where a request is.
pub(crate) enum RequestLocation {
    /// It waits, in its queue or for room in it.
    Waiting,
    /// A worker runs it.
    Running(usize),
    /// Its answer is there, or on its way whatever the caller does.
    Answered,
}

/// What all workers, clients and shutdowns of an executor agree on.
#[derive(Default)]
pub(crate) struct Scheduler {
    /// Names the executor among those of the process.
    id: u64,
    queues: BTreeMap<QueueId, Queue>,
    /// What was counted in queues that are gone, as long as somebody has a handle to look.
    past: BTreeMap<QueueId, Stats>,
    workers: Workers,
    /// No new queues or requests; workers stop when the last queue is gone.
    stopping: bool,
    /// A worker's thread has ended out of turn.
    died: bool,
    alive: usize,
    next_batch: u64,
    /// The virtual time of the queue dispatched last: where a queue that was idle comes in.
    virtual_now: Duration,
    /// Who waits for the workers to end.
    exit_waiters: Vec<Waker>,
    /// What is done once the lock is free.
    deferred: Deferred,
}

impl Scheduler {
    fn new(id: u64, workers: usize) -> Self {
        Self { id, workers: Workers::new(workers), alive: workers, ..Self::default() }
    }

    pub(crate) fn insert_queue(
        &mut self,
        id: QueueId,
        pending: Box<dyn PendingRequests>,
        config: BatchConfig,
    ) {
        self.queues.insert(id, Queue::new(pending, config, self.virtual_now));
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }

    // Admission.

    /// Takes in what is in a queue's inbox. Comes before everything that looks at what waits.
    fn drain_inbox(&mut self, id: QueueId) -> Option<(&mut Queue, &mut Deferred)> {
        let wake_needed = self.workers.any_asleep();
        let queue = self.queues.get_mut(&id)?;
        queue.drain_inbox(self.virtual_now, wake_needed, &mut self.deferred);
        Some((queue, &mut self.deferred))
    }

    /// What waits in a queue that accepts requests, with its inbox drained.
    pub(crate) fn open_queue<P: PendingRequests>(
        &mut self,
        id: QueueId,
    ) -> Result<(&mut P, &mut Deferred), Refusal> {
        let (queue, deferred) = self.drain_inbox(id).ok_or(Refusal::Closed)?;
        match queue.refusal() {
            Some(refusal) => Err(refusal),
            None => Ok((queue.pending_mut(), deferred)),
        }
    }

    pub(crate) fn count_refused(&mut self, id: QueueId, requests: usize) {
        let live = self.queues.get_mut(&id).map(|queue| queue.pending.stats());
        if let Some(stats) = live.or_else(|| self.past.get_mut(&id)) {
            stats.counters.refused += requests as u64;
        }
    }

    /// Something has come that a worker may run.
    pub(crate) fn wake_worker(&mut self) {
        self.workers.wake_one(&mut self.deferred);
    }

    /// Leaves a command for one worker, to be run before anything else.
    pub(crate) fn send(&mut self, worker: usize, command: WorkerCommand) {
        self.workers.send(worker, command, &mut self.deferred);
    }

    // Leaving before compute.

    /// Removes a request that its submitter gives up, if it still waits, and answers it with `error`.
    pub(crate) fn give_up(&mut self, request: RequestId, error: RequestError) {
        if let Some((queue, deferred)) = self.drain_inbox(request.queue) {
            queue.pending.dismiss(request.number, error, deferred);
            self.retire_if_empty(request.queue);
        }
    }

    /// Removes what has expired in a queue, for an alarm that was set for `alarm`. Returns what the
    /// next one is to be set for.
    fn expire(&mut self, id: QueueId, alarm: Instant, now: Instant) -> Option<Instant> {
        let (queue, deferred) = self.drain_inbox(id)?;
        queue.pending.expire(now, deferred);
        let next = queue.pending.next_alarm(alarm);
        self.retire_if_empty(id);
        next
    }

    // Workers.

    /// What the worker does next; a batch is taken out of its queue here.
    pub(crate) fn next_step(&mut self, worker: usize, clock: &Clock, waker: Waker) -> Step {
        self.workers.is_up(worker);
        let wake_needed = self.workers.any_asleep();
        for queue in self.queues.values_mut() {
            queue.drain_inbox(self.virtual_now, wake_needed, &mut self.deferred);
        }
        // CORRECTNESS: read when all inboxes are drained. To an earlier time what has just come would
        // not be ready yet, and no sleeping worker would be called for it.
        let now = clock.now();
        // CORRECTNESS: before the commands, for what expires may be the last request of a closed
        // queue, and dropping that queue's engine is then a command for this worker too.
        self.expire_all(now);
        if let Some(command) = self.workers.next_command(worker) {
            return Step::Command(command);
        }
        let rebuild_at = match self.next_rebuild(worker, now) {
            Ok(command) => return Step::Command(command),
            Err(at) => at,
        };
        let wait_until = match self.decide(now) {
            Decision::Dispatch(id, index) => {
                let dispatched = self.dispatch(id, index, worker, now);
                // One submit wakes one worker; if it brought work for more, pass the call on.
                if self.workers.any_asleep() && matches!(self.decide(now), Decision::Dispatch(..)) {
                    self.wake_worker();
                }
                return Step::Batch(dispatched);
            }
            Decision::Wait(None) if self.stopping && self.queues.is_empty() => return Step::Stop,
            Decision::Wait(until) => until,
        };
        // CORRECTNESS: stored under the lock under which nothing was found to do; what comes later
        // finds it here, or finds that it has to wake a worker.
        self.workers.sleeps(worker, waker);
        let queues = self.queues.values_mut();
        if !queues.fold(true, |quiet, queue| quiet & queue.pending.listen()) {
            // Something has come meanwhile: look again.
            self.wake_worker();
        }
        Step::Sleep([wait_until, rebuild_at].into_iter().flatten().min())
    }

    fn expire_all(&mut self, now: Instant) {
        let is_late = |queue: &Queue| queue.pending.next_deadline().is_some_and(|at| at <= now);
        while let Some((&id, queue)) = self.queues.iter_mut().find(|(_, queue)| is_late(queue)) {
            queue.pending.expire(now, &mut self.deferred);
            self.retire_if_empty(id);
        }
    }

    /// What builds an engine that this worker has lost, or when it may.
    fn next_rebuild(&self, worker: usize, now: Instant) -> Result<WorkerCommand, Option<Instant>> {
        let at = |queue: &Queue| queue.rebuilds.get(&worker).copied();
        let next = self.queues.iter().filter_map(|(&id, queue)| Some((at(queue)?, id))).min();
        match next {
            Some((at, id)) if at <= now => {
                Ok(WorkerCommand::Rebuild(id, self.queues[&id].pending.rebuild()))
            }
            next => Err(next.map(|(at, _)| at)),
        }
    }

    fn decide(&self, now: Instant) -> Decision {
        let mut choice = Choice::at(now);
        for (&id, queue) in &self.queues {
            queue.pending.heads(&mut |head| queue.enter(&mut choice, id, head));
        }
        choice.decision()
    }

    /// Takes the batch that goes first in one queue, whether it is full or not.
    pub(crate) fn dispatch_of(
        &mut self,
        id: QueueId,
        worker: usize,
        now: Instant,
    ) -> Option<Dispatched> {
        let (queue, _) = self.drain_inbox(id)?;
        let mut choice = Choice::at(now);
        queue.pending.heads(&mut |head| {
            queue.enter(&mut choice, id, Head { ready_at: head.arrival.min(now), ..head });
        });
        let Decision::Dispatch(_, index) = choice.decision() else { return None };
        Some(self.dispatch(id, index, worker, now))
    }

    /// Takes a batch out of its queue and notes that it runs.
    fn dispatch(&mut self, id: QueueId, index: usize, worker: usize, now: Instant) -> Dispatched {
        let queue = self.queues.get_mut(&id).expect("a head names a queue that is there");
        let mut batch = queue.pending.take(index, now, &mut self.deferred);
        self.next_batch += 1;
        let number = self.next_batch;
        let requests = batch.take_numbers();
        queue.running.push(Running { number, worker, since: now, ended: false, requests });
        self.virtual_now = self.virtual_now.max(queue.virtual_time);
        Dispatched { queue: id, number, batch }
    }

    /// Books a batch that has run, before its answers are handed over: whoever has an answer finds
    /// it counted. The batch counts as running until [`finish`](Self::finish).
    pub(crate) fn book(&mut self, dispatched: &Dispatched, service: Duration, now: Instant) {
        // Gone only if another worker has died.
        let Some(queue) = self.queues.get_mut(&dispatched.queue) else { return };
        if let Some(why) = queue.book(dispatched, service, now, &mut self.deferred) {
            self.fail(dispatched.queue, why);
        }
    }

    /// The answers of a batch have been handed over.
    pub(crate) fn finish(&mut self, dispatched: Dispatched) {
        let Dispatched { queue: id, number, batch } = dispatched;
        // It may hold the last of its queue, which is a user's.
        self.deferred.discard(batch);
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.running.retain(|running| running.number != number);
        }
        self.retire_if_empty(id);
    }

    /// A worker has tried to build an engine again that it had lost.
    pub(crate) fn rebuilt(&mut self, id: QueueId, worker: usize, built: bool, now: Instant) {
        let Some(queue) = self.queues.get_mut(&id) else { return };
        if let Some(why) = queue.rebuilt(worker, built, now, &mut self.deferred) {
            self.fail(id, why);
        }
    }

    /// Where a request is, for who waits for it on a worker.
    pub(crate) fn location(&mut self, request: RequestId) -> RequestLocation {
        let Some((queue, _)) = self.drain_inbox(request.queue) else {
            return RequestLocation::Answered;
        };
        if queue.pending.contains(request.number) {
            return RequestLocation::Waiting;
        }
        let mut running = queue.running.iter().filter(|running| !running.ended);
        match running.find(|running| running.requests.contains(&request.number)) {
            Some(running) => RequestLocation::Running(running.worker),
            None => RequestLocation::Answered,
        }
    }

    // Shutdown.

    /// Refuses new requests. What waits is run, or with `abort` answered with `Closed`; then the
    /// engines are dropped and the queue goes.
    pub(crate) fn close(&mut self, id: QueueId, abort: bool) {
        let Some(queue) = self.queues.get_mut(&id) else { return };
        if queue.phase == Phase::Open {
            queue.phase = Phase::Closed;
        }
        self.refuse_all(id, &Refusal::Closed, abort.then_some(RequestError::Closed));
    }

    /// The engine of a queue is given up: refuses new requests, and answers those that wait.
    fn fail(&mut self, id: QueueId, why: String) {
        let Some(queue) = self.queues.get_mut(&id) else { return };
        queue.rebuilds.clear();
        queue.failed = Some(why.clone());
        let refusal = Refusal::Failed(why.clone());
        self.refuse_all(id, &refusal, Some(RequestError::QueueFailed(why)));
    }

    /// Refuses new requests and those that wait for room; what waits in the queue is answered with
    /// `error`, if there is one.
    fn refuse_all(&mut self, id: QueueId, refusal: &Refusal, error: Option<RequestError>) {
        if let Some(queue) = self.queues.get_mut(&id) {
            // CORRECTNESS: before it is drained for the last time: nothing comes after that.
            queue.pending.refuse_all(refusal, &mut self.deferred);
        }
        if let (Some((queue, deferred)), Some(error)) = (self.drain_inbox(id), error) {
            queue.pending.dismiss_all(&error, deferred);
        }
        self.retire_if_empty(id);
    }

    /// Closes everything; workers stop when nothing is left.
    pub(crate) fn stop(&mut self, abort: bool) {
        self.stopping = true;
        for id in self.ids() {
            self.close(id, abort);
        }
        self.workers.wake_all(&mut self.deferred);
    }

    fn ids(&self) -> Vec<QueueId> {
        self.queues.keys().copied().collect()
    }

    fn retire_if_empty(&mut self, id: QueueId) {
        let workers = self.workers.len();
        let Some(queue) = self.queues.get_mut(&id) else { return };
        if queue.phase == Phase::Closed && queue.is_idle() {
            queue.phase = Phase::Retiring(workers);
            (0..workers).for_each(|worker| self.send(worker, WorkerCommand::Retire(id)));
        }
    }

    /// A worker has dropped its engine of a retiring queue; the last one removes the queue.
    pub(crate) fn retired(&mut self, id: QueueId) {
        let Some(queue) = self.queues.get_mut(&id) else { return };
        if let Phase::Retiring(left) = &mut queue.phase {
            *left -= 1;
            if *left > 0 {
                return;
            }
        }
        self.remove(id);
        if self.stopping {
            self.workers.wake_all(&mut self.deferred);
        }
    }

    fn remove(&mut self, id: QueueId) {
        let Some(mut queue) = self.queues.remove(&id) else { return };
        if queue.has_handles {
            // Nothing waits in it.
            self.past.insert(id, queue.pending.snapshot(Instant::now()));
        }
        self.deferred.wake_all(queue.closers.drain(..));
        // It holds the factory, which is a user's.
        self.deferred.discard(queue.pending);
    }

    /// Nobody can ask for the queue any more: what was accepted is run, then it goes.
    pub(crate) fn let_go(&mut self, id: QueueId) {
        self.past.remove(&id);
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.has_handles = false;
        }
        self.close(id, false);
    }

    /// Whether the queue is gone; if not, `waker`, a thread's, is woken when it is.
    pub(crate) fn is_gone(&mut self, id: QueueId, waker: &Waker) -> bool {
        let Some(queue) = self.queues.get_mut(&id) else { return true };
        remember(&mut queue.closers, waker);
        false
    }

    /// Whether all workers are gone; if not, `waker`, a thread's, is woken when they are.
    pub(crate) fn has_ended(&mut self, waker: &Waker) -> bool {
        if self.alive > 0 {
            remember(&mut self.exit_waiters, waker);
        }
        self.alive == 0
    }

    /// A worker runs nothing more. If it was not told to end, nothing can be run at all any more:
    /// everything that waits is answered.
    pub(crate) fn worker_ended(&mut self, worker: usize) {
        if !(self.stopping && self.queues.is_empty()) {
            self.died = true;
            self.stopping = true;
            for id in self.ids() {
                self.fail(id, RequestError::WorkerDied.to_string());
                self.remove(id);
            }
            self.workers.wake_all(&mut self.deferred);
        }
        // Dropping a command answers whoever waits for it.
        while let Some(command) = self.workers.next_command(worker) {
            self.deferred.discard(command);
        }
    }

    /// Nothing of a worker is left but its thread, which ends.
    pub(crate) fn worker_gone(&mut self) {
        self.alive -= 1;
        if self.alive == 0 {
            self.deferred.wake_all(self.exit_waiters.drain(..));
        }
    }

    // Looking.

    fn stats(&mut self, id: QueueId, now: Instant) -> Option<Stats> {
        match self.drain_inbox(id) {
            Some((queue, _)) => Some(queue.pending.snapshot(now)),
            None => self.past.get(&id).cloned(),
        }
    }

    /// What a queue has to do; nothing once it is gone.
    pub(crate) fn load(&mut self, id: QueueId) -> usize {
        self.drain_inbox(id).map_or(0, |(queue, _)| queue.pending.load())
    }

    pub(crate) fn health(&self, id: QueueId, now: Instant) -> Health {
        match self.queues.get(&id) {
            Some(queue) => queue.health(self.id, now),
            None if self.died => Health::Failed(RequestError::WorkerDied.to_string()),
            None => Health::Closed,
        }
    }

    /// Of the device: what one queue's engine does to itself is that queue's affair.
    pub(crate) fn overall_health(&self, now: Instant) -> Health {
        if self.died {
            return Health::Failed(RequestError::WorkerDied.to_string());
        }
        if self.stopping {
            return Health::Closed;
        }
        let healths = self.queues.values().map(|queue| queue.health(self.id, now));
        let stalled = healths.filter_map(|health| match health {
            Health::Stalled { running_for, .. } => Some((running_for, health)),
            _ => None,
        });
        stalled.max_by_key(|(running_for, _)| *running_for).map_or(Health::Ready, |(_, it)| it)
    }
}

/// Adds a waker unless it is there already.
fn remember(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|other| other.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}
