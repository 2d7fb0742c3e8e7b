//! The state of a device executor: everything its workers, clients and shutdowns agree on, behind
//! one lock.
//!
//! Invariants, true whenever the lock is free:
//! - a request that was accepted waits in one list, or is in one running batch, or is answered;
//! - if something is runnable, no worker sleeps without a wake-up on its way: each change that makes
//!   something runnable takes a sleeping worker's waker and wakes it;
//! - a queue is removed after its last engine has been dropped on its worker, and not before its
//!   last request has been answered.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::after::After;
use crate::batch::{Batch, Dispatched};
use crate::clock::Clock;
use crate::closure::{Closure, ClosureList};
use crate::config::BatchConfig;
use crate::error::RequestError;
use crate::line::Turn;
use crate::policy::{Choice, Decision, Head, QueueId};
use crate::queue_state::{Asking, Phase, QueueState, Room, Running, remember};
use crate::stats::{Health, Stats};
use crate::waiting::{Asked, RequestId, WaitingList};
use crate::worker::{Place, WorkerContext};
use crate::worker_state::{Errand, Workers};

/// What a worker does next.
pub(crate) enum Step {
    Errand(Errand),
    Batch(Dispatched),
    /// Sleep until woken, or until this instant. The waker has been stored.
    Sleep {
        until: Option<Instant>,
        worth_a_turn: bool,
    },
    Stop,
}

/// What all workers, clients and shutdowns of an executor agree on.
pub(crate) struct State {
    queues: BTreeMap<QueueId, QueueState>,
    /// What was counted in queues that are gone, as long as somebody has a handle to look.
    past: BTreeMap<QueueId, Stats>,
    pub(crate) workers: Workers,
    /// No new queues, closures or requests; workers stop when the last queue is gone.
    stopping: bool,
    /// A worker's thread has ended out of turn.
    died: bool,
    alive: usize,
    next_queue: QueueId,
    next_seq: u64,
    next_batch: u64,
    /// The virtual time of the queue dispatched last: where a queue that was idle comes in, so that
    /// idleness earns no credit.
    virtual_now: Duration,
    /// Who waits for the workers to end.
    exit_waiters: Vec<Waker>,
}

/// The queue of the closures.
pub(crate) const CLOSURES: QueueId = 0;

impl State {
    pub(crate) fn new(workers: usize) -> Self {
        let mut state = Self {
            queues: BTreeMap::new(),
            past: BTreeMap::new(),
            workers: Workers::new(workers),
            stopping: false,
            died: false,
            alive: workers,
            next_queue: CLOSURES,
            next_seq: 0,
            next_batch: 0,
            virtual_now: Duration::ZERO,
            exit_waiters: Vec::new(),
        };
        let config = BatchConfig::default().name("closures").capacity(usize::MAX);
        let id = state.next_queue();
        state.insert_queue(id, Box::new(ClosureList::default()), config);
        state
    }

    pub(crate) fn next_queue(&mut self) -> QueueId {
        let id = self.next_queue;
        self.next_queue += 1;
        id
    }

    pub(crate) fn insert_queue(
        &mut self,
        id: QueueId,
        list: Box<dyn WaitingList>,
        config: BatchConfig,
    ) {
        self.queues.insert(id, QueueState::new(list, config, self.virtual_now));
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }

    // Admission.

    /// Files what is in a queue's inbox. Comes before everything that looks at what waits.
    fn file(&mut self, id: QueueId, after: &mut After) {
        let bell = self.workers.any_asleep();
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.file(&mut self.next_seq, self.virtual_now, bell, after);
        }
    }

    /// Files what is in all inboxes, and says what deadline comes first.
    fn file_all(&mut self, after: &mut After) -> Option<Instant> {
        let bell = self.workers.any_asleep();
        let mut first: Option<Instant> = None;
        for queue in self.queues.values_mut() {
            queue.file(&mut self.next_seq, self.virtual_now, bell, after);
            if let Some((deadline, _)) = queue.list.first_deadline() {
                first = Some(first.map_or(deadline, |first| first.min(deadline)));
            }
        }
        first
    }

    /// Asks for room in a queue. With a `waker`, a caller that has to wait gets a place in line: it
    /// is woken when its turn may have come, and asks again.
    pub(crate) fn admit(
        &mut self,
        id: QueueId,
        asking: Asking,
        place: &mut Option<Turn>,
        waker: Option<&Waker>,
        after: &mut After,
    ) -> Room {
        let Some(queue) = self.queues.get_mut(&id) else {
            return Room::Closed;
        };
        if self.stopping {
            return Room::Closed;
        }
        queue.admit(asking, place, waker, after)
    }

    /// Files a closure for which there was room, and says its number.
    pub(crate) fn push_closure(
        &mut self,
        closure: Box<dyn Closure>,
        at: Instant,
        after: &mut After,
    ) -> u64 {
        self.next_seq += 1;
        let queue = self.queues.get_mut(&CLOSURES).expect("there was room in it under this lock");
        if queue.is_idle() {
            queue.virtual_time = queue.virtual_time.max(self.virtual_now);
        }
        queue.list_mut::<ClosureList>().push(closure, at, self.next_seq);
        queue.stats.counters.submitted += 1;
        self.workers.wake_one(after);
        self.next_seq
    }

    /// Gives a place in line back; the next in turn may go.
    pub(crate) fn withdraw(&mut self, id: QueueId, turn: Turn, after: &mut After) {
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.withdraw(turn, after);
        }
    }

    pub(crate) fn count_refused(&mut self, id: QueueId, requests: usize) {
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.stats.counters.refused += requests as u64;
        } else if let Some(stats) = self.past.get_mut(&id) {
            stats.counters.refused += requests as u64;
        }
    }

    // Leaving before compute.

    /// Removes a request that its submitter gives up and answers it with `error`. Says whether it
    /// still waited.
    pub(crate) fn give_up(
        &mut self,
        id: QueueId,
        request: Asked<'_>,
        error: RequestError,
        after: &mut After,
    ) -> bool {
        self.file(id, after);
        self.dismiss(id, request.id(), error, after)
    }

    /// Removes a waiting request and answers it with `error`. Says whether it still waited.
    fn dismiss(
        &mut self,
        id: QueueId,
        request: RequestId,
        error: RequestError,
        after: &mut After,
    ) -> bool {
        let Some(queue) = self.queues.get_mut(&id) else {
            return false;
        };
        let Some(removed) = queue.list.remove(request) else {
            return false;
        };
        queue.count_dismissed(&error);
        removed.answer(error, after);
        queue.line.wake_first(after);
        self.retire_if_empty(id, after);
        true
    }

    fn expire(&mut self, now: Instant, after: &mut After) {
        let late = |queue: &QueueState| {
            queue.list.first_deadline().is_some_and(|(deadline, _)| deadline <= now)
        };
        let ids = self.queues.iter().filter(|(_, queue)| late(queue)).map(|(&id, _)| id);
        let ids: Vec<QueueId> = ids.collect();
        for id in ids {
            while let Some((_, request)) = self
                .queues
                .get(&id)
                .and_then(|q| q.list.first_deadline())
                .filter(|(at, _)| *at <= now)
            {
                self.dismiss(id, request, RequestError::DeadlineExceeded, after);
            }
        }
    }

    fn dismiss_all(&mut self, id: QueueId, error: &RequestError, after: &mut After) {
        self.file(id, after);
        while let Some(request) = self.queues.get(&id).and_then(|queue| queue.list.any()) {
            self.dismiss(id, request, error.clone(), after);
        }
    }

    // Workers.

    /// What the worker does next; a batch is taken out of its list here.
    pub(crate) fn next_step(
        &mut self,
        worker: usize,
        clock: &Clock,
        waker: impl FnOnce() -> Waker,
        after: &mut After,
    ) -> Step {
        self.workers.is_up(worker);
        if let Some(dispatched) = self.take_straight(worker, clock, after) {
            return Step::Batch(dispatched);
        }
        let first_deadline = self.file_all(after);
        // CORRECTNESS: read when all has been filed. To an earlier time what has just come would not be
        // ready yet, and no sleeping worker would be called for it.
        let now = clock.now();
        // CORRECTNESS: before the errands, for what expires may be the last request of a closed
        // queue, and dropping that queue's engine is then an errand of this worker too.
        if first_deadline.is_some_and(|deadline| deadline <= now) {
            self.expire(now, after);
        }
        if let Some(errand) = self.workers.next_errand(worker) {
            return Step::Errand(errand);
        }
        let until = match self.decide(now) {
            Decision::Dispatch(id, seat) => {
                let dispatched = self.dispatch(id, seat, worker, now, after);
                // One submit wakes one worker; if it brought work for more, pass the call on.
                if self.workers.any_asleep() && matches!(self.decide(now), Decision::Dispatch(..)) {
                    self.workers.wake_one(after);
                }
                return Step::Batch(dispatched);
            }
            Decision::WaitUntil(instant) => Some(instant),
            Decision::Idle if self.stopping && self.queues.is_empty() => return Step::Stop,
            Decision::Idle => None,
        };
        // CORRECTNESS: stored under the lock under which nothing was found to do; what comes later
        // finds it here, or finds a bell set.
        self.workers.sleeps(worker, waker());
        let (mut quiet, mut worth_a_turn) = (true, false);
        for queue in self.queues.values_mut() {
            let listening = queue.list.listen();
            quiet &= listening.is_some();
            worth_a_turn |= listening.is_some_and(|listening| listening.worth_a_turn);
        }
        if !quiet {
            // Something has come meanwhile: look again.
            self.workers.wake_one(after);
        }
        Step::Sleep { until, worth_a_turn }
    }

    /// Takes a batch straight out of an inbox, where there is nothing to choose from: one queue, nothing
    /// filed, no errands. What it may not take is filed.
    fn take_straight(
        &mut self,
        worker: usize,
        clock: &Clock,
        after: &mut After,
    ) -> Option<Dispatched> {
        let nothing_filed = self.queues.values().all(|queue| queue.list.len() == 0);
        // The closures have a queue too.
        if self.queues.len() > 2 || !nothing_filed || self.workers.has_errand(worker) {
            return None;
        }
        let bell = self.workers.any_asleep();
        let (&id, queue) = self.queues.iter_mut().next_back()?;
        let now = clock.now();
        let batch = queue.file_or_take(&mut self.next_seq, self.virtual_now, bell, now, after)?;
        Some(self.start(id, batch, worker, now, after))
    }

    fn decide(&self, now: Instant) -> Decision {
        let mut choice = Choice::at(now);
        for (&id, queue) in &self.queues {
            queue.list.heads(&mut |head| choice.consider(queue.candidate(id, head)));
        }
        choice.decision()
    }

    /// The seat of the head that goes first in one queue, whether its batch is full or not.
    pub(crate) fn best_head(
        &mut self,
        id: QueueId,
        now: Instant,
        after: &mut After,
    ) -> Option<usize> {
        self.file(id, after);
        let queue = self.queues.get(&id)?;
        let mut choice = Choice::at(now);
        queue.list.heads(&mut |head| {
            choice.consider(queue.candidate(id, Head { ready_at: head.arrival.min(now), ..head }));
        });
        match choice.decision() {
            Decision::Dispatch(_, seat) => Some(seat),
            Decision::WaitUntil(_) | Decision::Idle => None,
        }
    }

    /// Takes a batch out of its list and notes that it runs.
    pub(crate) fn dispatch(
        &mut self,
        id: QueueId,
        seat: usize,
        worker: usize,
        now: Instant,
        after: &mut After,
    ) -> Dispatched {
        let queue = self.queues.get_mut(&id).expect("a head names a queue that is there");
        let batch = queue.take(seat, now);
        self.start(id, batch, worker, now, after)
    }

    /// Notes that a batch which was taken out of its list runs.
    fn start(
        &mut self,
        id: QueueId,
        mut batch: Box<dyn Batch>,
        worker: usize,
        now: Instant,
        after: &mut After,
    ) -> Dispatched {
        let queue = self.queues.get_mut(&id).expect("a batch comes from a queue that is there");
        self.next_batch += 1;
        let number = self.next_batch;
        let requests = batch.take_numbers();
        queue.running.push(Running { number, worker, since: now, ended: false, requests });
        queue.line.wake_first(after);
        self.virtual_now = self.virtual_now.max(queue.virtual_time);
        Dispatched { queue: id, number, batch }
    }

    /// Books a batch that has run, before its answers are handed over: whoever has an answer finds
    /// it counted. The batch counts as running until [`finish`](Self::finish).
    pub(crate) fn book(
        &mut self,
        dispatched: &mut Dispatched,
        service: Duration,
        after: &mut After,
    ) {
        let Dispatched { queue: id, number, batch } = dispatched;
        // Gone only if another worker has died.
        let Some(queue) = self.queues.get_mut(id) else { return };
        if let Some(why) = queue.book(*number, &mut **batch, service, after) {
            self.fail(*id, why, after);
        }
    }

    /// The answers of a batch have been handed over.
    pub(crate) fn finish(&mut self, dispatched: Dispatched, after: &mut After) {
        let Dispatched { queue: id, number, batch } = dispatched;
        let Some(queue) = self.queues.get_mut(&id) else {
            // It may hold the last of its queue, which is a user's.
            return after.discard(batch);
        };
        let at = queue.running(number).expect("a batch is noted while it runs");
        let Running { requests, .. } = queue.running.remove(at);
        self.workers.unblock(id, &requests);
        batch.give_back(requests, &mut *queue.list, after);
        self.retire_if_empty(id, after);
    }

    fn fail(&mut self, id: QueueId, why: String, after: &mut After) {
        let Some(queue) = self.queues.get_mut(&id) else {
            return;
        };
        queue.failed = Some(why.clone());
        queue.list.set_open(false);
        queue.line.dismiss(after);
        self.dismiss_all(id, &RequestError::QueueFailed(why), after);
    }

    // Waiting inline, on a worker.

    pub(crate) fn place(&mut self, id: QueueId, request: Asked<'_>, after: &mut After) -> Place {
        self.file(id, after);
        let Some(queue) = self.queues.get(&id) else {
            return Place::Answered;
        };
        if queue.list.contains(request.id()) {
            return Place::Waiting;
        }
        match queue.running.iter().find(|running| running.requests.contains(&request.number)) {
            Some(running) if running.ended => Place::InDelivery,
            Some(running) => Place::Running(running.worker),
            None => Place::Answered,
        }
    }

    // Shutdown.

    /// Refuses new requests. What waits is run, or with `abort` answered with `Closed`; then the
    /// engines are dropped and the queue goes.
    pub(crate) fn close(&mut self, id: QueueId, abort: bool, after: &mut After) {
        let Some(queue) = self.queues.get_mut(&id) else {
            return;
        };
        if queue.phase == Phase::Open {
            queue.phase = Phase::Closed;
        }
        // CORRECTNESS: before it is emptied for the last time: nothing comes after that.
        queue.list.set_open(false);
        queue.line.dismiss(after);
        self.file(id, after);
        if abort {
            self.dismiss_all(id, &RequestError::Closed, after);
        }
        self.retire_if_empty(id, after);
    }

    /// Closes everything; workers stop when nothing is left.
    pub(crate) fn stop(&mut self, abort: bool, after: &mut After) {
        self.stopping = true;
        let ids: Vec<QueueId> = self.queues.keys().copied().collect();
        for id in ids {
            self.close(id, abort, after);
        }
        self.workers.wake_all(after);
    }

    fn retire_if_empty(&mut self, id: QueueId, after: &mut After) {
        let workers = self.workers.len();
        let Some(queue) = self.queues.get_mut(&id) else {
            return;
        };
        if queue.phase != Phase::Closed || !queue.is_idle() {
            return;
        }
        queue.phase = Phase::Retiring(workers);
        for worker in 0..workers {
            self.workers.send(
                worker,
                Box::new(move |worker: &WorkerContext| worker.retire(id)),
                after,
            );
        }
    }

    /// A worker has dropped its engine of a retiring queue; the last one removes the queue.
    pub(crate) fn retired(&mut self, id: QueueId, after: &mut After) {
        let Some(queue) = self.queues.get_mut(&id) else {
            return;
        };
        if let Phase::Retiring(left) = &mut queue.phase {
            *left -= 1;
            if *left > 0 {
                return;
            }
        }
        self.remove(id, after);
        if self.stopping {
            self.workers.wake_all(after);
        }
    }

    fn remove(&mut self, id: QueueId, after: &mut After) {
        let Some(mut queue) = self.queues.remove(&id) else { return };
        if queue.has_handles {
            self.past.insert(id, queue.snapshot());
        }
        after.wake_all(queue.leaving.drain(..));
        // It holds the factory, which is a user's.
        after.discard(queue.list);
    }

    /// Nobody can ask for the queue any more: what was accepted is run, then it goes.
    pub(crate) fn let_go(&mut self, id: QueueId, after: &mut After) {
        self.past.remove(&id);
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.has_handles = false;
        }
        self.close(id, false, after);
    }

    /// Whether the queue is gone; if not, `waker` is woken when it is.
    pub(crate) fn is_gone(&mut self, id: QueueId, waker: &Waker) -> bool {
        match self.queues.get_mut(&id) {
            None => true,
            Some(queue) => {
                remember(&mut queue.leaving, waker);
                false
            }
        }
    }

    /// Whether all workers have ended; if not, `waker` is woken when they have.
    pub(crate) fn has_ended(&mut self, waker: &Waker) -> bool {
        if self.alive > 0 {
            remember(&mut self.exit_waiters, waker);
        }
        self.alive == 0
    }

    /// A worker's thread ends. If it was not told to, nothing can be run any more: everything that
    /// waits is answered.
    pub(crate) fn worker_ended(&mut self, worker: usize, after: &mut After) {
        self.alive -= 1;
        if !(self.stopping && self.queues.is_empty()) {
            self.died = true;
            self.stopping = true;
            let ids: Vec<QueueId> = self.queues.keys().copied().collect();
            for id in ids {
                self.fail(id, RequestError::WorkerDied.to_string(), after);
                self.remove(id, after);
            }
            self.workers.wake_all(after);
        }
        // Dropping an errand answers whoever waits for it.
        for errand in self.workers.errands_of(worker) {
            after.discard(errand);
        }
        if self.alive == 0 {
            after.wake_all(self.exit_waiters.drain(..));
        }
    }

    // Looking.

    pub(crate) fn stats(&mut self, id: QueueId, after: &mut After) -> Option<Stats> {
        self.file(id, after);
        self.queues.get(&id).map(QueueState::snapshot).or_else(|| self.past.get(&id).cloned())
    }

    pub(crate) fn health(&self, id: QueueId, now: Instant) -> Health {
        match self.queues.get(&id) {
            Some(queue) => queue.health(now),
            None if self.died => Health::Failed(RequestError::WorkerDied.to_string()),
            None => Health::Failed("the queue has been shut down".to_owned()),
        }
    }

    /// Of the device: what one queue's engine does to itself is that queue's affair.
    pub(crate) fn overall_health(&self, now: Instant) -> Health {
        if self.died {
            return Health::Failed(RequestError::WorkerDied.to_string());
        }
        if self.stopping {
            return Health::Failed("the executor has been shut down".to_owned());
        }
        let stalls = self.queues.values().filter_map(|queue| match queue.health(now) {
            Health::Stalled { running_for } => Some(running_for),
            Health::Ready | Health::Failed(_) => None,
        });
        stalls.max().map_or(Health::Ready, |running_for| Health::Stalled { running_for })
    }
}
