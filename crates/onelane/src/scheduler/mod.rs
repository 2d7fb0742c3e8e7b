//! The scheduler of a device executor: everything its workers, clients and shutdowns agree on,
//! behind one lock.
//!
//! Invariants, true whenever the lock is free:
//! - a request that was accepted waits in one queue, or is in one running batch, or is answered;
//! - if something is runnable, no worker sleeps without a wake-up on its way: each change that makes
//!   something runnable takes a sleeping worker's waker and wakes it;
//! - a queue is removed after its last engine has been dropped on its worker, and not before its
//!   last request has been answered.
//!
//! Lock order: this lock, then a queue's inbox's, then that of an answer's slot or a waiter's ticket.
//! No user code runs under any of them, save a key's `Eq`, contained; what else has to run is
//! collected in [`Deferred`] and done when the [`SchedulerGuard`] is dropped.

pub(crate) mod closures;
pub(crate) mod fifo;
pub(crate) mod group;
pub(crate) mod pending;
pub(crate) mod policy;
pub(crate) mod queue;
pub(crate) mod workers;

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use crate::config::BatchConfig;
use crate::error::{Refusal, RequestError};
use crate::scheduler::pending::PendingRequests;
use crate::scheduler::policy::{Choice, Decision, Head, QueueId};
use crate::scheduler::queue::{Phase, Queue, Running};
use crate::scheduler::workers::{WorkerCommand, Workers};
use crate::stats::{Health, Stats};
use crate::sync::{Clock, Deferred, Mutex, MutexGuard, may_lock};
use crate::worker::batch::{Batch, Dispatched};

/// What clients, workers and handles of one executor share.
pub(crate) struct ExecutorShared {
    /// Names it among the executors of the process.
    pub(crate) id: u64,
    pub(crate) device: String,
    pub(crate) workers: usize,
    pub(crate) clock: Clock,
    scheduler: Mutex<Scheduler>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl ExecutorShared {
    pub(crate) fn new(device: String, workers: usize, clock: Clock) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self { id, device, workers, clock, scheduler: Mutex::new(Scheduler::new(workers)) }
    }

    pub(crate) fn lock(&self) -> SchedulerGuard<'_> {
        may_lock();
        SchedulerGuard { deferred: Deferred::default(), guard: Some(self.scheduler.lock()) }
    }

    /// What was counted in a queue; nothing of one that has never been.
    pub(crate) fn stats(&self, queue: QueueId) -> Stats {
        let now = self.clock.now();
        let mut guard = self.lock();
        let (scheduler, deferred) = guard.parts();
        scheduler.stats(queue, now, deferred).unwrap_or_default()
    }

    /// Tells the timer of a deadline of a request of `queue`.
    pub(crate) fn arm(self: &Arc<Self>, queue: QueueId, at: Instant) {
        let alarm = Arc::new(Alarm { shared: Arc::downgrade(self), queue, at });
        self.clock.wake_at(at, Waker::from(alarm));
    }
}

/// Sees to what expires in one queue, when the timer says so.
struct Alarm {
    shared: Weak<ExecutorShared>,
    queue: QueueId,
    at: Instant,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        let Some(shared) = self.shared.upgrade() else { return };
        let now = shared.clock.now();
        let mut guard = shared.lock();
        let (scheduler, deferred) = guard.parts();
        let next = scheduler.expire(self.queue, self.at, now, deferred);
        drop(guard);
        if let Some(next) = next {
            shared.arm(self.queue, next);
        }
        // CORRECTNESS: this may be the last handle of an executor whose worker has just ended; that
        // holds nothing but memory.
    }
}

/// The locked scheduler. Dropping it releases the lock first and then does what was deferred.
pub(crate) struct SchedulerGuard<'a> {
    guard: Option<MutexGuard<'a, Scheduler>>,
    deferred: Deferred,
}

impl SchedulerGuard<'_> {
    pub(crate) fn parts(&mut self) -> (&mut Scheduler, &mut Deferred) {
        (self.guard.as_mut().expect(HELD), &mut self.deferred)
    }
}

const HELD: &str = "the guard is taken in drop alone";

impl Deref for SchedulerGuard<'_> {
    type Target = Scheduler;
    fn deref(&self) -> &Scheduler {
        self.guard.as_ref().expect(HELD)
    }
}

impl DerefMut for SchedulerGuard<'_> {
    fn deref_mut(&mut self) -> &mut Scheduler {
        self.guard.as_mut().expect(HELD)
    }
}

impl Drop for SchedulerGuard<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        self.deferred.run();
    }
}

/// What a worker does next.
pub(crate) enum Step {
    Command(WorkerCommand),
    Batch(Dispatched),
    /// Sleep until woken, or until this instant. The waker has been stored.
    Sleep {
        until: Option<Instant>,
        is_quick: bool,
    },
    Stop,
}

/// Where a request is.
pub(crate) enum RequestLocation {
    /// It waits, in its queue or for room in it.
    Waiting,
    /// A worker runs it.
    Running(usize),
    /// It has run, and its answer is on its way, whatever the caller does.
    InDelivery,
    Answered,
}

/// Names a request in its executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestId {
    pub(crate) queue: QueueId,
    pub(crate) number: u64,
}

/// What all workers, clients and shutdowns of an executor agree on.
pub(crate) struct Scheduler {
    queues: BTreeMap<QueueId, Queue>,
    /// What was counted in queues that are gone, as long as somebody has a handle to look.
    past: BTreeMap<QueueId, Stats>,
    pub(crate) workers: Workers,
    /// No new queues or requests; workers stop when the last queue is gone.
    stopping: bool,
    /// A worker's thread has ended out of turn.
    died: bool,
    alive: usize,
    next_queue: QueueId,
    next_batch: u64,
    /// The virtual time of the queue dispatched last: where a queue that was idle comes in.
    virtual_now: Duration,
    /// Who waits for the workers to end.
    exit_waiters: Vec<Waker>,
}

impl Scheduler {
    fn new(workers: usize) -> Self {
        Self {
            queues: BTreeMap::new(),
            past: BTreeMap::new(),
            workers: Workers::new(workers),
            stopping: false,
            died: false,
            alive: workers,
            next_queue: 0,
            next_batch: 0,
            virtual_now: Duration::ZERO,
            exit_waiters: Vec::new(),
        }
    }

    pub(crate) fn next_queue(&mut self) -> QueueId {
        self.next_queue += 1;
        self.next_queue
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
    fn drain_inbox(&mut self, id: QueueId, deferred: &mut Deferred) -> Option<&mut Queue> {
        let wake_needed = self.workers.any_asleep();
        let queue = self.queues.get_mut(&id)?;
        queue.drain_inbox(self.virtual_now, wake_needed, deferred);
        Some(queue)
    }

    /// What waits in a queue that accepts requests, with its inbox drained.
    pub(crate) fn open_queue<P: PendingRequests>(
        &mut self,
        id: QueueId,
        deferred: &mut Deferred,
    ) -> Result<&mut P, Refusal> {
        let queue = self.drain_inbox(id, deferred).ok_or(Refusal::Closed)?;
        match queue.refusal() {
            Some(refusal) => Err(refusal),
            None => Ok(queue.pending_mut()),
        }
    }

    /// What waits in a queue, if it is there.
    pub(crate) fn queue<P: PendingRequests>(&mut self, id: QueueId) -> Option<&mut P> {
        self.queues.get_mut(&id).map(Queue::pending_mut)
    }

    pub(crate) fn count_refused(&mut self, id: QueueId, requests: usize) {
        let live = self.queues.get_mut(&id).map(|queue| &mut queue.stats);
        if let Some(stats) = live.or_else(|| self.past.get_mut(&id)) {
            stats.counters.refused += requests as u64;
        }
    }

    // Leaving before compute.

    /// Removes a request that its submitter gives up and answers it with `error`. Says whether it
    /// still waited.
    pub(crate) fn give_up(
        &mut self,
        request: RequestId,
        error: RequestError,
        deferred: &mut Deferred,
    ) -> bool {
        let Some(queue) = self.drain_inbox(request.queue, deferred) else {
            return false;
        };
        let waited = queue.dismiss(request.number, error, deferred);
        self.retire_if_empty(request.queue, deferred);
        waited
    }

    /// Removes what has expired in a queue, for an alarm that was set for `alarm`. Returns what the
    /// next one is to be set for.
    fn expire(
        &mut self,
        id: QueueId,
        alarm: Instant,
        now: Instant,
        deferred: &mut Deferred,
    ) -> Option<Instant> {
        let queue = self.drain_inbox(id, deferred)?;
        queue.expire(now, deferred);
        let next = queue.pending.next_alarm(alarm);
        self.retire_if_empty(id, deferred);
        next
    }

    // Workers.

    /// What the worker does next; a batch is taken out of its queue here.
    pub(crate) fn next_step(
        &mut self,
        worker: usize,
        clock: &Clock,
        waker: Waker,
        deferred: &mut Deferred,
    ) -> Step {
        self.workers.is_up(worker);
        let wake_needed = self.workers.any_asleep();
        for queue in self.queues.values_mut() {
            queue.drain_inbox(self.virtual_now, wake_needed, deferred);
        }
        // CORRECTNESS: read when all inboxes are drained. To an earlier time what has just come would
        // not be ready yet, and no sleeping worker would be called for it.
        let now = clock.now();
        // CORRECTNESS: before the commands, for what expires may be the last request of a closed
        // queue, and dropping that queue's engine is then a command for this worker too.
        self.expire_all(now, deferred);
        if let Some(command) = self.workers.next_command(worker) {
            return Step::Command(command);
        }
        let rebuild_at = match self.next_rebuild(worker, now) {
            Ok(command) => return Step::Command(command),
            Err(at) => at,
        };
        let wait_until = match self.decide(now) {
            Decision::Dispatch(id, index) => {
                let dispatched = self.dispatch(id, index, worker, now, deferred);
                // One submit wakes one worker; if it brought work for more, pass the call on.
                let more = || matches!(self.decide(now), Decision::Dispatch(..));
                if self.workers.any_asleep() && more() {
                    self.workers.wake_one(deferred);
                }
                return Step::Batch(dispatched);
            }
            Decision::WaitUntil(instant) => Some(instant),
            Decision::Idle if self.stopping && self.queues.is_empty() => return Step::Stop,
            Decision::Idle => None,
        };
        // CORRECTNESS: stored under the lock under which nothing was found to do; what comes later
        // finds it here, or finds that it has to wake a worker.
        self.workers.sleeps(worker, waker);
        let (mut quiet, mut is_quick) = (true, false);
        for queue in self.queues.values_mut() {
            quiet &= queue.pending.listen();
            is_quick |= queue.pending.is_quick();
        }
        if !quiet {
            // Something has come meanwhile: look again.
            self.workers.wake_one(deferred);
        }
        Step::Sleep { until: [wait_until, rebuild_at].into_iter().flatten().min(), is_quick }
    }

    fn expire_all(&mut self, now: Instant, deferred: &mut Deferred) {
        let is_late = |queue: &mut Queue| {
            queue.pending.next_deadline().is_some_and(|deadline| deadline <= now)
        };
        let late = self.queues.iter_mut().filter_map(|(&id, queue)| is_late(queue).then_some(id));
        for id in late.collect::<Vec<_>>() {
            if let Some(queue) = self.queues.get_mut(&id) {
                queue.expire(now, deferred);
            }
            self.retire_if_empty(id, deferred);
        }
    }

    /// What builds an engine that this worker has lost, or when it may.
    fn next_rebuild(&self, worker: usize, now: Instant) -> Result<WorkerCommand, Option<Instant>> {
        let at = |queue: &Queue| queue.rebuild_at(worker);
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
            queue.pending.heads(&mut |head| choice.consider(queue.candidate(id, head)));
        }
        choice.decision()
    }

    /// The index of the head that goes first in one queue, whether its batch is full or not.
    pub(crate) fn best_head(
        &mut self,
        id: QueueId,
        now: Instant,
        deferred: &mut Deferred,
    ) -> Option<usize> {
        let queue = self.drain_inbox(id, deferred)?;
        let mut choice = Choice::at(now);
        queue.pending.heads(&mut |head| {
            choice.consider(queue.candidate(id, Head { ready_at: head.arrival.min(now), ..head }));
        });
        match choice.decision() {
            Decision::Dispatch(_, index) => Some(index),
            Decision::WaitUntil(_) | Decision::Idle => None,
        }
    }

    /// Takes a batch out of its queue and notes that it runs.
    pub(crate) fn dispatch(
        &mut self,
        id: QueueId,
        index: usize,
        worker: usize,
        now: Instant,
        deferred: &mut Deferred,
    ) -> Dispatched {
        let queue = self.queues.get_mut(&id).expect("a head names a queue that is there");
        let mut batch = queue.take(index, now, deferred);
        self.next_batch += 1;
        let number = self.next_batch;
        let requests = batch.take_numbers();
        queue.running.push(Running { number, worker, since: now, ended: false, requests });
        self.virtual_now = self.virtual_now.max(queue.virtual_time);
        Dispatched { queue: id, number, batch }
    }

    /// Books a batch that has run, before its answers are handed over: whoever has an answer finds
    /// it counted. The batch counts as running until [`finish`](Self::finish).
    pub(crate) fn book(
        &mut self,
        id: QueueId,
        number: u64,
        batch: &dyn Batch,
        service: Duration,
        now: Instant,
        deferred: &mut Deferred,
    ) {
        // Gone only if another worker has died.
        let Some(queue) = self.queues.get_mut(&id) else { return };
        if let Some(why) = queue.book(number, batch, service, now, deferred) {
            self.fail(id, why, deferred);
        }
    }

    /// The answers of a batch have been handed over.
    pub(crate) fn finish(&mut self, dispatched: Dispatched, deferred: &mut Deferred) {
        let Dispatched { queue: id, number, batch } = dispatched;
        // It may hold the last of its queue, which is a user's.
        deferred.discard(batch);
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.running.retain(|running| running.number != number);
        }
        self.retire_if_empty(id, deferred);
    }

    /// A worker has tried to build an engine again that it had lost.
    pub(crate) fn rebuilt(
        &mut self,
        id: QueueId,
        worker: usize,
        built: bool,
        now: Instant,
        deferred: &mut Deferred,
    ) {
        let Some(queue) = self.queues.get_mut(&id) else { return };
        if let Some(why) = queue.rebuilt(worker, built, now, deferred) {
            self.fail(id, why, deferred);
        }
    }

    fn fail(&mut self, id: QueueId, why: String, deferred: &mut Deferred) {
        if let Some(queue) = self.drain_inbox(id, deferred) {
            queue.fail(why, deferred);
        }
        self.retire_if_empty(id, deferred);
    }

    /// Where a request is, for who waits for it on a worker.
    pub(crate) fn location(
        &mut self,
        request: RequestId,
        deferred: &mut Deferred,
    ) -> RequestLocation {
        let Some(queue) = self.drain_inbox(request.queue, deferred) else {
            return RequestLocation::Answered;
        };
        if queue.pending.contains(request.number) {
            return RequestLocation::Waiting;
        }
        match queue.running.iter().find(|running| running.requests.contains(&request.number)) {
            Some(running) if running.ended => RequestLocation::InDelivery,
            Some(running) => RequestLocation::Running(running.worker),
            None => RequestLocation::Answered,
        }
    }

    // Shutdown.

    /// Refuses new requests. What waits is run, or with `abort` answered with `Closed`; then the
    /// engines are dropped and the queue goes.
    pub(crate) fn close(&mut self, id: QueueId, abort: bool, deferred: &mut Deferred) {
        let Some(queue) = self.queues.get_mut(&id) else {
            return;
        };
        if queue.phase == Phase::Open {
            queue.phase = Phase::Closed;
        }
        // CORRECTNESS: before it is drained for the last time: nothing comes after that.
        let refusal = queue.refusal().unwrap_or(Refusal::Closed);
        queue.pending.set_open(Some(&refusal), deferred);
        let queue = self.drain_inbox(id, deferred).expect("it was there under this lock");
        if abort {
            queue.dismiss_all(&RequestError::Closed, deferred);
        }
        self.retire_if_empty(id, deferred);
    }

    /// Closes everything; workers stop when nothing is left.
    pub(crate) fn stop(&mut self, abort: bool, deferred: &mut Deferred) {
        self.stopping = true;
        let ids: Vec<QueueId> = self.queues.keys().copied().collect();
        for id in ids {
            self.close(id, abort, deferred);
        }
        self.workers.wake_all(deferred);
    }

    fn retire_if_empty(&mut self, id: QueueId, deferred: &mut Deferred) {
        let workers = self.workers.len();
        let Some(queue) = self.queues.get_mut(&id) else {
            return;
        };
        if queue.phase != Phase::Closed || !queue.is_idle() {
            return;
        }
        queue.phase = Phase::Retiring(workers);
        for worker in 0..workers {
            self.workers.send(worker, WorkerCommand::Retire(id), deferred);
        }
    }

    /// A worker has dropped its engine of a retiring queue; the last one removes the queue.
    pub(crate) fn retired(&mut self, id: QueueId, deferred: &mut Deferred) {
        let Some(queue) = self.queues.get_mut(&id) else {
            return;
        };
        if let Phase::Retiring(left) = &mut queue.phase {
            *left -= 1;
            if *left > 0 {
                return;
            }
        }
        self.remove(id, deferred);
        if self.stopping {
            self.workers.wake_all(deferred);
        }
    }

    fn remove(&mut self, id: QueueId, deferred: &mut Deferred) {
        let Some(mut queue) = self.queues.remove(&id) else { return };
        if queue.has_handles {
            // Nothing waits in it.
            self.past.insert(id, queue.snapshot(Instant::now()));
        }
        deferred.wake_all(queue.closers.drain(..));
        // It holds the factory, which is a user's.
        deferred.discard(queue.pending);
    }

    /// Nobody can ask for the queue any more: what was accepted is run, then it goes.
    pub(crate) fn let_go(&mut self, id: QueueId, deferred: &mut Deferred) {
        self.past.remove(&id);
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.has_handles = false;
        }
        self.close(id, false, deferred);
    }

    /// Whether the queue is gone; if not, `waker`, a thread's, is woken when it is.
    pub(crate) fn is_gone(&mut self, id: QueueId, waker: &Waker) -> bool {
        match self.queues.get_mut(&id) {
            None => true,
            Some(queue) => {
                remember(&mut queue.closers, waker);
                false
            }
        }
    }

    /// Whether all workers have ended; if not, `waker`, a thread's, is woken when they have.
    pub(crate) fn has_ended(&mut self, waker: &Waker) -> bool {
        if self.alive > 0 {
            remember(&mut self.exit_waiters, waker);
        }
        self.alive == 0
    }

    /// A worker's thread ends. If it was not told to, nothing can be run any more: everything that
    /// waits is answered.
    pub(crate) fn worker_ended(&mut self, worker: usize, deferred: &mut Deferred) {
        self.alive -= 1;
        if !(self.stopping && self.queues.is_empty()) {
            self.died = true;
            self.stopping = true;
            let ids: Vec<QueueId> = self.queues.keys().copied().collect();
            for id in ids {
                self.fail(id, RequestError::WorkerDied.to_string(), deferred);
                self.remove(id, deferred);
            }
            self.workers.wake_all(deferred);
        }
        // Dropping a command answers whoever waits for it.
        for command in self.workers.commands_of(worker) {
            deferred.discard(command);
        }
        if self.alive == 0 {
            deferred.wake_all(self.exit_waiters.drain(..));
        }
    }

    // Looking.

    fn stats(&mut self, id: QueueId, now: Instant, deferred: &mut Deferred) -> Option<Stats> {
        match self.drain_inbox(id, deferred) {
            Some(queue) => Some(queue.snapshot(now)),
            None => self.past.get(&id).cloned(),
        }
    }

    /// `waits_for`: the device that a worker waits for, if it does.
    pub(crate) fn health(
        &self,
        id: QueueId,
        now: Instant,
        waits_for: impl Fn(usize) -> Option<String>,
    ) -> Health {
        match self.queues.get(&id) {
            Some(queue) => queue.health(now, waits_for),
            None if self.died => Health::Failed(RequestError::WorkerDied.to_string()),
            None => Health::Closed,
        }
    }

    /// Of the device: what one queue's engine does to itself is that queue's affair.
    pub(crate) fn overall_health(
        &self,
        now: Instant,
        waits_for: impl Fn(usize) -> Option<String>,
    ) -> Health {
        if self.died {
            return Health::Failed(RequestError::WorkerDied.to_string());
        }
        if self.stopping {
            return Health::Closed;
        }
        let healths = self.queues.values().map(|queue| queue.health(now, &waits_for));
        let longest = healths.max_by_key(|health| match health {
            Health::Stalled { running_for, .. } => Some(*running_for),
            _ => None,
        });
        longest.filter(|health| matches!(health, Health::Stalled { .. })).unwrap_or(Health::Ready)
    }
}

/// Adds a waker unless it is there already.
fn remember(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|other| other.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}
