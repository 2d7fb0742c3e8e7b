//! One queue, as its executor sees it: what waits, what runs, what was counted, how it is.

use std::any::Any;
use std::collections::BTreeMap;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::scheduler::id::QueueId;
use crate::scheduler::pending::PendingRequests;
use crate::scheduler::policy::{Choice, Head};
use crate::sync::Deferred;
use crate::worker::batch::{Dispatched, Outcome};
use crate::worker::wait_graph;
use crate::{BatchConfig, Health, Refusal};

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
    pub(crate) rebuilds: BTreeMap<usize, Instant>,
    pub(crate) virtual_time: Duration,
    pub(crate) running: Vec<Running>,
    /// Who waits for the queue to be gone.
    pub(crate) closers: Vec<Waker>,
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

    /// Counts a batch that has run. Returns why the queue gives up, if it does.
    pub(crate) fn book(
        &mut self,
        dispatched: &Dispatched,
        service: Duration,
        now: Instant,
        deferred: &mut Deferred,
    ) -> Option<String> {
        let Dispatched { queue, number, batch } = dispatched;
        let outcome = batch.outcome();
        if let Some(running) = self.running.iter_mut().find(|running| running.number == *number) {
            running.ended = true;
            wait_graph::have_run(*queue, &running.requests);
            let worker = running.worker;
            self.note_engine(worker, &outcome, now);
        }
        let is_idle = self.pending.len() == 0 && self.running.iter().all(|running| running.ended);
        self.pending.set_pace(is_idle, service);
        self.pending.finished(&outcome, now, deferred);
        self.virtual_time += service / self.config.weight;
        let stats = self.pending.stats();
        stats.record_batch(batch.len(), outcome.cost, service);
        let counters = &mut stats.counters;
        counters.running -= batch.len();
        counters.completed += outcome.completed as u64;
        counters.failed += outcome.failed as u64;
        counters.cost = counters.cost.saturating_add(outcome.computed_cost as u64);
        counters.padded_cost = counters.padded_cost.saturating_add(outcome.padded_cost as u64);
        counters.engine_losses += u64::from(outcome.losses);
        counters.memory_splits += u64::from(outcome.ceiling.is_some());
        let device_lost = outcome.device_lost.filter(|_| self.failed.is_none());
        device_lost.map(|error| error.to_string()).or_else(|| self.gives_up(deferred))
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
        self.pending.stats().counters.engine_losses += 1;
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

    /// Has a head of this queue considered among those of all.
    pub(crate) fn enter(&self, choice: &mut Choice, id: QueueId, head: Head) {
        choice.consider(id, head, self.config.ageing, self.virtual_time);
    }

    /// As a queue of the executor with this id.
    pub(crate) fn health(&self, executor: u64, now: Instant) -> Health {
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
                let waits_for = wait_graph::waits_for((executor, *worker));
                return Health::Stalled { running_for, waits_for };
            }
        }
        if !self.rebuilds.is_empty() {
            return Health::Rebuilding;
        }
        if self.phase == Phase::Open { Health::Ready } else { Health::Closed }
    }
}
