//! One queue, as its executor sees it: what waits, what runs, what was counted, how it is.

use std::any::Any;
use std::collections::BTreeMap;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::config::BatchConfig;
use crate::error::{Refusal, RequestError};
use crate::scheduler::pending::PendingRequests;
use crate::scheduler::policy::{Candidate, Head, QueueId};
use crate::stats::{Health, Stats};
use crate::sync::Deferred;
use crate::worker::batch::{Batch, Outcome};

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
pub(crate) struct Queue {
    pub(crate) pending: Box<dyn PendingRequests>,
    pub(crate) config: BatchConfig,
    pub(crate) phase: Phase,
    /// Somebody can still ask for its statistics.
    pub(crate) has_handles: bool,
    pub(crate) failed: Option<String>,
    /// Times in a row that its engine was lost or not rebuilt, without a response in between.
    losses_in_a_row: u32,
    /// The workers that have to build their engine again, and from when on.
    rebuilds: BTreeMap<usize, Instant>,
    pub(crate) virtual_time: Duration,
    pub(crate) running: Vec<Running>,
    /// Who waits for the queue to be gone.
    pub(crate) closers: Vec<Waker>,
    pub(crate) stats: Stats,
}

/// The first engine that is lost is built again at once, the next ones later and later.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

impl Queue {
    pub(crate) fn new(
        pending: Box<dyn PendingRequests>,
        config: BatchConfig,
        virtual_time: Duration,
    ) -> Self {
        Self {
            pending,
            config,
            phase: Phase::Open,
            has_handles: true,
            failed: None,
            losses_in_a_row: 0,
            rebuilds: BTreeMap::new(),
            virtual_time,
            running: Vec::new(),
            closers: Vec::new(),
            stats: Stats::default(),
        }
    }

    /// Takes in what is in the inbox. A queue that was idle comes in at the present virtual time, so
    /// that idleness earns no credit.
    pub(crate) fn drain_inbox(
        &mut self,
        virtual_now: Duration,
        wake_needed: bool,
        deferred: &mut Deferred,
    ) {
        let was_idle = self.is_idle();
        self.pending.drain_inbox(wake_needed, deferred);
        if was_idle && !self.is_idle() {
            self.virtual_time = self.virtual_time.max(virtual_now);
        }
    }

    /// Why it accepts no requests, if it does not.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match &self.failed {
            Some(why) => Some(Refusal::Failed(why.clone())),
            None => (self.phase != Phase::Open).then_some(Refusal::Closed),
        }
    }

    /// Takes the batch that the head at `index` claims out of what waits.
    pub(crate) fn take(
        &mut self,
        index: usize,
        now: Instant,
        deferred: &mut Deferred,
    ) -> Box<dyn Batch> {
        let batch = self.pending.take(index, now, &mut self.stats, deferred);
        self.stats.counters.running += batch.len();
        batch
    }

    /// Removes a request that waits. Says whether it did.
    pub(crate) fn dismiss(
        &mut self,
        number: u64,
        error: RequestError,
        deferred: &mut Deferred,
    ) -> bool {
        let was_cancelled = matches!(error, RequestError::Cancelled);
        let count = self.pending.dismiss(number, error, deferred);
        let counters = &mut self.stats.counters;
        *(if was_cancelled { &mut counters.cancelled } else { &mut counters.expired }) +=
            count as u64;
        count > 0
    }

    pub(crate) fn dismiss_all(&mut self, error: &RequestError, deferred: &mut Deferred) {
        let count = self.pending.dismiss_all(error, deferred);
        self.stats.counters.closed += count as u64;
    }

    pub(crate) fn expire(&mut self, now: Instant, deferred: &mut Deferred) {
        let count = self.pending.expire(now, deferred);
        self.stats.counters.expired += count as u64;
    }

    /// Refuses new requests, and answers those that wait.
    pub(crate) fn fail(&mut self, why: String, deferred: &mut Deferred) {
        self.rebuilds.clear();
        self.pending.set_open(Some(&Refusal::Failed(why.clone())), deferred);
        self.dismiss_all(&RequestError::QueueFailed(why.clone()), deferred);
        self.failed = Some(why);
    }

    /// Counts a batch that has run. Returns why the queue gives up, if it does.
    pub(crate) fn book(
        &mut self,
        number: u64,
        batch: &dyn Batch,
        service: Duration,
        now: Instant,
        deferred: &mut Deferred,
    ) -> Option<String> {
        let outcome = batch.outcome();
        if let Some(running) = self.running.iter_mut().find(|running| running.number == number) {
            running.ended = true;
            let worker = running.worker;
            self.note_engine(worker, &outcome, now);
        }
        let is_idle = self.pending.len() == 0 && self.running.iter().all(|running| running.ended);
        self.pending.set_pace(is_idle, service);
        self.pending.finished(batch.group(), &outcome, now, deferred);
        self.virtual_time += service / self.config.weight;
        self.stats.record_batch(batch.len(), outcome.cost, service);
        let counters = &mut self.stats.counters;
        counters.running -= batch.len();
        counters.completed += outcome.completed as u64;
        counters.failed += outcome.failed as u64;
        counters.cost = counters.cost.saturating_add(outcome.computed_cost as u64);
        counters.padded_cost = counters.padded_cost.saturating_add(outcome.padded_cost as u64);
        counters.engine_losses += u64::from(outcome.losses);
        counters.memory_splits += u64::from(outcome.ceiling.is_some());
        if let (Some(said), None) = (batch.poisoned(), &self.failed) {
            let why =
                format!("its device answers nothing but errors until this process ends: {said}");
            let (queue, text) = (self.config.name.clone(), why.clone());
            deferred.defer(move || tracing::error!(%queue, "{text}"));
            return Some(why);
        }
        self.gives_up(deferred)
    }

    /// Counts losses, and notes whether a worker has to build its engine again.
    fn note_engine(&mut self, worker: usize, outcome: &Outcome, now: Instant) {
        if outcome.completed > 0 {
            self.losses_in_a_row = 0;
        } else if outcome.losses > 0 {
            self.losses_in_a_row += 1;
        }
        self.rebuilds.remove(&worker);
        if outcome.engine_missing && self.phase == Phase::Open {
            self.rebuilds.insert(worker, now);
        }
    }

    /// When a worker has to build its engine again.
    pub(crate) fn rebuild_at(&self, worker: usize) -> Option<Instant> {
        self.rebuilds.get(&worker).copied()
    }

    /// A worker has tried to build its engine again. Returns why the queue gives up, if it does.
    pub(crate) fn rebuilt(
        &mut self,
        worker: usize,
        built: bool,
        now: Instant,
        deferred: &mut Deferred,
    ) -> Option<String> {
        if built {
            self.rebuilds.remove(&worker);
            return None;
        }
        self.stats.counters.engine_losses += 1;
        self.losses_in_a_row += 1;
        if let Some(at) = self.rebuilds.get_mut(&worker) {
            let doublings = self.losses_in_a_row.saturating_sub(1).min(16);
            *at = now + (FIRST_BACKOFF * (1 << doublings)).min(LONGEST_BACKOFF);
        }
        self.gives_up(deferred)
    }

    fn gives_up(&self, deferred: &mut Deferred) -> Option<String> {
        let losses = self.losses_in_a_row;
        if losses <= self.config.max_rebuilds || self.failed.is_some() {
            return None;
        }
        let why = format!("its engine was lost {losses} times in a row without a response");
        let (queue, text) = (self.config.name.clone(), why.clone());
        deferred.defer(move || tracing::error!(%queue, "{text}"));
        Some(why)
    }

    /// What waits, as the type that it was made with.
    pub(crate) fn pending_mut<P: PendingRequests>(&mut self) -> &mut P {
        let pending: &mut dyn Any = &mut *self.pending;
        pending.downcast_mut().expect("what waits in a queue keeps its type")
    }

    /// Nothing waits, runs or is being handed over.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.len() == 0 && self.running.is_empty()
    }

    pub(crate) fn candidate(&self, id: QueueId, head: Head) -> Candidate {
        Candidate { queue: id, head, ageing: self.config.ageing, virtual_time: self.virtual_time }
    }

    pub(crate) fn snapshot(&self, now: Instant) -> Stats {
        let mut stats = self.stats.clone();
        self.pending.describe(now, &mut stats.counters);
        stats
    }

    /// `waits_for`: the device that a worker waits for, if it does.
    pub(crate) fn health(
        &self,
        now: Instant,
        waits_for: impl Fn(usize) -> Option<String>,
    ) -> Health {
        match (&self.failed, self.phase) {
            (Some(why), _) => return Health::Failed(why.clone()),
            (None, Phase::Open) => {}
            (None, Phase::Closed | Phase::Retiring(_)) if self.is_idle() => return Health::Closed,
            (None, Phase::Closed | Phase::Retiring(_)) => {}
        }
        let runs = self.running.iter().filter(|running| !running.ended);
        let longest = runs.min_by_key(|running| running.since);
        if let Some(Running { since, worker, .. }) = longest {
            let running_for = now.saturating_duration_since(*since);
            if running_for >= self.config.stall_after {
                return Health::Stalled { running_for, waits_for: waits_for(*worker) };
            }
        }
        if !self.rebuilds.is_empty() {
            return Health::Rebuilding;
        }
        if self.phase == Phase::Open { Health::Ready } else { Health::Closed }
    }
}
