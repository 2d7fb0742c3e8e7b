//! [`Observed`]: an engine of any kind that counts what it does, the same way for every strategy.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use onelane::{Engine, EngineError};

/// What all engines of one strategy count into.
#[derive(Debug, Default)]
pub struct Meter {
    batches: AtomicU64,
    items: AtomicU64,
    busy_ns: AtomicU64,
    engines: AtomicUsize,
    tracing: AtomicBool,
    spans: Mutex<Vec<BatchSpan>>,
}

/// What was counted up to a moment, or between two.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Batches run.
    pub batches: u64,
    /// Requests in them.
    pub items: u64,
    /// Time spent in engines, of all of them together.
    pub busy: Duration,
}

/// One batch, for the trace.
#[derive(Clone, Copy, Debug)]
pub struct BatchSpan {
    /// The batch's number, from 0, in the life of its meter.
    pub number: u64,
    /// The number of the engine that ran it, from 0.
    pub engine: usize,
    /// Requests in it.
    pub size: usize,
    /// When the engine began.
    pub begun: Instant,
    /// When the engine had the results.
    pub computed: Instant,
    /// When the worker had handed all answers over; none where it did not: the caller has them from
    /// the engine itself, or a thread beside the worker delivers.
    pub delivered: Option<Instant>,
}

impl Meter {
    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        Counts {
            batches: self.batches.load(Relaxed),
            items: self.items.load(Relaxed),
            busy: Duration::from_nanos(self.busy_ns.load(Relaxed)),
        }
    }

    /// Starts to keep a span for each batch.
    pub fn start_trace(&self) {
        self.tracing.store(true, Relaxed);
    }

    /// Ends that, and gives the spans.
    pub fn end_trace(&self) -> Vec<BatchSpan> {
        self.tracing.store(false, Relaxed);
        std::mem::take(&mut *self.spans.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether spans are kept.
    pub fn is_tracing(&self) -> bool {
        self.tracing.load(Relaxed)
    }
}

impl Counts {
    /// What has been counted since.
    pub fn since(self, before: Self) -> Self {
        Self {
            batches: self.batches - before.batches,
            items: self.items - before.items,
            busy: self.busy.saturating_sub(before.busy),
        }
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            batches: self.batches + other.batches,
            items: self.items + other.items,
            busy: self.busy + other.busy,
        }
    }

    /// Mean number of requests in a batch.
    pub fn mean_batch(self) -> f64 {
        if self.batches == 0 { 0.0 } else { self.items as f64 / self.batches as f64 }
    }
}

/// A response, and which batch it was computed in.
#[derive(Debug)]
pub struct Answer<O> {
    /// The engine's own output.
    pub output: O,
    /// The batch's number.
    pub batch: u64,
}

/// An engine that counts.
pub struct Observed<E> {
    engine: E,
    /// Among the engines of its meter.
    number: usize,
    meter: Arc<Meter>,
}

impl<E: Engine> Observed<E> {
    /// Counts what `engine` does into `meter`.
    pub fn new(engine: E, meter: &Arc<Meter>) -> Self {
        let number = meter.engines.fetch_add(1, Relaxed);
        Self { engine, number, meter: Arc::clone(meter) }
    }

    fn spans(&self) -> MutexGuard<'_, Vec<BatchSpan>> {
        self.meter.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: Engine> Engine for Observed<E> {
    type Item = E::Item;
    type Output = Answer<E::Output>;

    fn infer(&mut self, batch: &[E::Item]) -> Result<Vec<Answer<E::Output>>, EngineError> {
        let begun = Instant::now();
        let outputs = self.engine.infer(batch);
        let computed = Instant::now();
        let busy = u64::try_from((computed - begun).as_nanos()).unwrap_or(u64::MAX);
        self.meter.busy_ns.fetch_add(busy, Relaxed);
        self.meter.items.fetch_add(batch.len() as u64, Relaxed);
        let number = self.meter.batches.fetch_add(1, Relaxed);
        if self.meter.is_tracing() {
            let (engine, size) = (self.number, batch.len());
            let span = BatchSpan { number, engine, size, begun, computed, delivered: None };
            self.spans().push(span);
        }
        let answer = |output| Answer { output, batch: number };
        Ok(outputs?.into_iter().map(answer).collect())
    }

    fn warmup(&mut self) -> Result<(), EngineError> {
        self.engine.warmup()
    }

    fn delivered(&mut self) {
        self.engine.delivered();
        if self.meter.is_tracing() {
            let mut spans = self.spans();
            if let Some(span) = spans.iter_mut().rfind(|span| span.engine == self.number) {
                span.delivered = Some(Instant::now());
            }
        }
    }

    fn idempotent(&self) -> bool {
        self.engine.idempotent()
    }

    fn padded_cost(&self, batch: &[E::Item]) -> usize {
        self.engine.padded_cost(batch)
    }
}
