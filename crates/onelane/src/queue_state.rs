//! One queue, as its executor sees it: what waits, what runs, who waits for room, what was counted.

use std::any::Any;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::after::After;
use crate::batch::Batch;
use crate::config::BatchConfig;
use crate::error::RequestError;
use crate::line::{Line, Turn};
use crate::policy::{Candidate, Head, QueueId};
use crate::request::Priority;
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
    /// Who waits for room.
    pub(crate) line: Line,
    /// Who waits for the queue to be gone.
    pub(crate) leaving: Vec<Waker>,
    pub(crate) stats: Stats,
}

/// How many requests, and what cost, ask for room at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Need {
    pub(crate) requests: usize,
    pub(crate) cost: usize,
}

/// Who asks for room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking {
    pub(crate) need: Need,
    pub(crate) class: Priority,
    pub(crate) since: Instant,
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
            line: Line::new(config.ageing),
            config,
            phase: Phase::Open,
            has_handles: true,
            failed: None,
            losses_in_a_row: 0,
            virtual_time,
            running: Vec::new(),
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
            self.line.wake_first(after);
        }
        if was_idle && filed.requests > 0 {
            self.virtual_time = self.virtual_time.max(virtual_now);
        }
    }

    /// Grants room, or gives a place in line to who brings a waker.
    pub(crate) fn admit(
        &mut self,
        asking: Asking,
        place: &mut Option<Turn>,
        waker: Option<&Waker>,
        after: &mut After,
    ) -> Room {
        if let Some(why) = &self.failed {
            return Room::Failed(why.clone());
        }
        if self.phase != Phase::Open {
            return Room::Closed;
        }
        let turn = place.unwrap_or_else(|| self.line.turn(asking.class, asking.since));
        if self.line.is_first(turn) && self.list.reserve(asking.need) {
            if let Some(turn) = place.take() {
                self.withdraw(turn, after);
            }
            return Room::Granted;
        }
        if let Some(waker) = waker {
            self.line.stand(turn, waker, after);
            *place = Some(turn);
            // CORRECTNESS: under the lock under which there was no room; what makes room holds it too.
            self.list.set_open(false);
        }
        Room::Full
    }

    /// Gives a place in line back: the next may go, and behind the last the inbox opens again.
    pub(crate) fn withdraw(&mut self, turn: Turn, after: &mut After) {
        self.line.leave(turn, after);
        self.line.wake_first(after);
        let open = self.line.is_empty() && self.phase == Phase::Open && self.failed.is_none();
        self.list.set_open(open);
    }

    /// Takes the batch that the head at `seat` claims out of the list.
    pub(crate) fn take(&mut self, seat: usize, now: Instant) -> Box<dyn Batch> {
        let stats = &mut self.stats;
        let batch = self.list.take(seat, &mut |arrival| {
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
        self.list.set_pace(idle, service);
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
