//! One queue, as its executor sees it: what waits, what runs, who waits for room, what was counted.

use std::any::Any;
use std::collections::VecDeque;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::after::After;
use crate::batch::Batch;
use crate::config::BatchConfig;
use crate::error::RequestError;
use crate::policy::{Candidate, Head, QueueId};
use crate::stats::{Health, Stats};
use crate::waiting::{Filed, WaitingList};

/// A batch that runs.
pub(crate) struct Running {
    pub(crate) number: u64,
    pub(crate) worker: usize,
    pub(crate) since: Instant,
    /// It has run; its answers are being handed over.
    pub(crate) ended: bool,
    /// The numbers of its requests.
    pub(crate) requests: Vec<u64>,
}

/// How far a queue's shutdown is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    /// No new requests; what waits is still run.
    Closed,
    /// Nothing waits or runs; that many workers have still to drop their engine.
    Retiring(usize),
}

/// One queue.
pub(crate) struct QueueState {
    pub(crate) list: Box<dyn WaitingList>,
    pub(crate) config: BatchConfig,
    pub(crate) phase: Phase,
    /// Somebody can still ask for its statistics.
    pub(crate) has_handles: bool,
    pub(crate) failed: Option<String>,
    /// Batches in a row that lost their engine and answered no request.
    losses_in_a_row: u32,
    pub(crate) virtual_time: Duration,
    pub(crate) running: Vec<Running>,
    /// Who waits for room, first come first served.
    admission: VecDeque<(u64, Waker)>,
    next_ticket: u64,
    /// Who waits for the queue to be gone.
    pub(crate) leaving: Vec<Waker>,
    pub(crate) stats: Stats,
}

/// How many requests, and what cost, ask for room at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    pub(crate) requests: usize,
    pub(crate) cost: usize,
}

/// The answer to a request for room.
pub(crate) enum Room {
    Granted,
    Full,
    Closed,
    Failed(String),
}

/// Adds a waker unless it is there already.
pub(crate) fn remember(wakers: &mut Vec<Waker>, waker: &Waker) {
    if !wakers.iter().any(|other| other.will_wake(waker)) {
        wakers.push(waker.clone());
    }
}

impl QueueState {
    pub(crate) fn new(
        list: Box<dyn WaitingList>,
        config: BatchConfig,
        virtual_time: Duration,
    ) -> Self {
        Self {
            list,
            config,
            phase: Phase::Open,
            has_handles: true,
            failed: None,
            losses_in_a_row: 0,
            virtual_time,
            running: Vec::new(),
            admission: VecDeque::new(),
            next_ticket: 0,
            leaving: Vec::new(),
            stats: Stats::default(),
        }
    }

    /// Files what is in the inbox.
    pub(crate) fn file(
        &mut self,
        seq: &mut u64,
        virtual_now: Duration,
        bell: bool,
        after: &mut After,
    ) {
        let idle = self.is_idle();
        let filed = self.list.file(seq, bell, after);
        self.note(filed, idle, virtual_now, after);
    }

    /// The same while nothing is filed; but if what is in the inbox is just one batch, that is taken.
    pub(crate) fn file_or_take(
        &mut self,
        seq: &mut u64,
        virtual_now: Duration,
        bell: bool,
        now: Instant,
        after: &mut After,
    ) -> Option<Box<dyn Batch>> {
        let idle = self.is_idle();
        let stats = &mut self.stats;
        let mut waits = |arrival| stats.record_wait(now.saturating_duration_since(arrival));
        let (filed, batch) = self.list.file_or_take(seq, bell, &mut waits, after);
        self.note(filed, idle, virtual_now, after);
        let batch = batch?;
        self.stats.counters.running += batch.len();
        Some(batch)
    }

    fn note(&mut self, filed: Filed, was_idle: bool, virtual_now: Duration, after: &mut After) {
        self.stats.counters.submitted += filed.requests as u64;
        self.stats.counters.failed += filed.failed as u64;
        if filed.failed > 0 {
            self.wake_next_admission(after);
        }
        if was_idle && filed.requests > 0 {
            self.virtual_time = self.virtual_time.max(virtual_now);
        }
    }

    /// Grants room, or gives a place in line to who brings a waker.
    pub(crate) fn admit(
        &mut self,
        need: Need,
        ticket: &mut Option<u64>,
        waker: Option<&Waker>,
        after: &mut After,
    ) -> Room {
        if let Some(why) = &self.failed {
            return Room::Failed(why.clone());
        }
        if self.phase != Phase::Open {
            return Room::Closed;
        }
        let first = self.admission.front().is_none_or(|(front, _)| Some(*front) == *ticket);
        if first && self.list.reserve(need) {
            if ticket.take().is_some() {
                self.admission.pop_front();
                self.line_moved(after);
            }
            return Room::Granted;
        }
        if let Some(waker) = waker {
            self.wait_for_room(ticket, waker, after);
        }
        Room::Full
    }

    /// Gives a place in line back; the next in turn may go.
    pub(crate) fn withdraw(&mut self, ticket: u64, after: &mut After) {
        let at = self.admission.iter().position(|(other, _)| *other == ticket);
        if let Some((_, waker)) = at.and_then(|at| self.admission.remove(at)) {
            after.discard(waker);
        }
        self.line_moved(after);
    }

    /// Sends everybody in line away, to see that the queue is closed or has failed.
    pub(crate) fn dismiss_line(&mut self, after: &mut After) {
        after.wake_all(self.admission.drain(..).map(|(_, waker)| waker));
    }

    /// Somebody has left the line: the next may go, and behind the last the inbox opens again.
    fn line_moved(&mut self, after: &mut After) {
        self.wake_next_admission(after);
        let open = self.admission.is_empty() && self.phase == Phase::Open && self.failed.is_none();
        self.list.set_open(open);
    }

    /// Takes the batch that `head` claims out of the list.
    pub(crate) fn take(&mut self, head: Head, now: Instant) -> Box<dyn Batch> {
        let stats = &mut self.stats;
        let batch = self.list.take(head, &mut |arrival| {
            stats.record_wait(now.saturating_duration_since(arrival));
        });
        stats.counters.running += batch.len();
        batch
    }

    pub(crate) fn count_dismissed(&mut self, error: &RequestError) {
        let counters = &mut self.stats.counters;
        match error {
            RequestError::Cancelled => counters.cancelled += 1,
            RequestError::DeadlineExceeded => counters.expired += 1,
            _ => counters.closed += 1,
        }
    }

    /// Where a batch is among those that run.
    pub(crate) fn running(&self, number: u64) -> Option<usize> {
        self.running.iter().position(|running| running.number == number)
    }

    /// Counts a batch that has run. Returns why the queue gives up, if it does.
    pub(crate) fn book(
        &mut self,
        number: u64,
        batch: &mut dyn Batch,
        service: Duration,
        after: &mut After,
    ) -> Option<String> {
        if let Some(running) = self.running(number).map(|at| &mut self.running[at]) {
            running.ended = true;
        }
        let idle = self.has_caught_up();
        self.list.set_idle(idle);
        let outcome = batch.outcome();
        batch.settle(&mut *self.list, after);
        self.virtual_time += service / self.config.weight;
        self.stats.record_batch(batch.len(), service);
        let counters = &mut self.stats.counters;
        counters.running -= batch.len();
        counters.completed += outcome.completed as u64;
        counters.failed += outcome.failed as u64;
        counters.cost += outcome.cost as u64;
        counters.padded_cost += outcome.padded_cost as u64;
        counters.engine_losses += u64::from(outcome.lost_engine);
        if outcome.completed > 0 {
            self.losses_in_a_row = 0;
        } else if outcome.lost_engine {
            self.losses_in_a_row += 1;
        }
        let losses = self.losses_in_a_row;
        if losses <= self.config.max_rebuilds || self.failed.is_some() {
            return None;
        }
        let why = format!("its engine was lost {losses} times in a row without a response");
        tracing::error!(queue = %self.config.name, "{why}");
        Some(why)
    }

    /// The waiting list, as the type that it was made with.
    pub(crate) fn list_mut<L: WaitingList>(&mut self) -> &mut L {
        let list: &mut dyn Any = &mut *self.list;
        list.downcast_mut().expect("a queue's list keeps its type")
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.list.len() == 0 && self.running.is_empty()
    }

    /// Nothing waits or computes; answers may still be on their way.
    fn has_caught_up(&self) -> bool {
        self.list.len() == 0 && self.running.iter().all(|running| running.ended)
    }

    fn wait_for_room(&mut self, ticket: &mut Option<u64>, waker: &Waker, after: &mut After) {
        let known = self.admission.iter_mut().find(|(other, _)| Some(*other) == *ticket);
        if let Some((_, old)) = known {
            if !old.will_wake(waker) {
                after.discard(std::mem::replace(old, waker.clone()));
            }
            return;
        }
        let number = *ticket.get_or_insert(self.next_ticket);
        self.next_ticket = self.next_ticket.max(number + 1);
        self.admission.push_back((number, waker.clone()));
        // CORRECTNESS: under the lock under which there was no room; what makes room holds it too.
        self.list.set_open(false);
    }

    /// Lets the first in turn look again. It stays in its place until it has gone in or withdrawn.
    pub(crate) fn wake_next_admission(&self, after: &mut After) {
        if let Some((_, waker)) = self.admission.front() {
            after.wake(waker.clone());
        }
    }

    pub(crate) fn candidate(&self, id: QueueId, head: Head) -> Candidate {
        Candidate { queue: id, head, ageing: self.config.ageing, virtual_time: self.virtual_time }
    }

    pub(crate) fn snapshot(&self) -> Stats {
        let mut stats = self.stats.clone();
        stats.counters.waiting = self.list.len();
        stats.counters.waiting_cost = self.list.cost();
        stats
    }

    pub(crate) fn health(&self, now: Instant) -> Health {
        if let Some(why) = &self.failed {
            return Health::Failed(why.clone());
        }
        let runs = self.running.iter().filter(|running| !running.ended);
        let longest = runs.map(|r| now.saturating_duration_since(r.since)).max();
        match longest {
            Some(running_for) if running_for >= self.config.stall_after => {
                Health::Stalled { running_for }
            }
            _ => Health::Ready,
        }
    }
}
