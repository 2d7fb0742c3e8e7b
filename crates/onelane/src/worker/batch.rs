//! A batch on the worker: running it, bisecting one that fails, splitting one that does not fit in
//! memory, rebuilding an engine that was lost, and handing the answers back.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::admission::inbox::PendingRequest;
use crate::scheduler::id::QueueId;
use crate::sync::{Answer, Deferred, Sender, catch_panic};
use crate::worker::engines::{EngineFactory, Engines, log};
use crate::{BatchItem, BuildError, Engine, EngineError, RequestError};

/// What a finished batch tells the executor.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Where its key is in its queue.
    pub(crate) group: usize,
    /// Requests answered with a response, and with an error.
    pub(crate) completed: usize,
    pub(crate) failed: usize,
    /// The cost of the batch; of what was computed of it, without and with padding.
    pub(crate) cost: usize,
    pub(crate) computed_cost: usize,
    pub(crate) padded_cost: usize,
    /// How often the engine was lost, or could not be rebuilt.
    pub(crate) losses: u32,
    /// It was lost, and is not there again.
    pub(crate) engine_missing: bool,
    /// So many requests did not fit into memory, and half of them is the most that may.
    pub(crate) ceiling: Option<usize>,
    /// What says that the device answers nothing but errors from now on.
    pub(crate) device_lost: Option<EngineError>,
}

/// What a worker does with a batch, whatever its types.
pub(crate) trait Batch: Send {
    fn len(&self) -> usize;
    /// The numbers of its requests, once.
    fn take_numbers(&mut self) -> Vec<u64>;
    /// Computes all answers; runs without the lock and does not panic.
    fn run(&mut self, engines: &Engines);
    /// What came of it.
    fn outcome(&self) -> Outcome;
    /// Drops the inputs: on the worker, where they were used.
    fn drop_inputs(&mut self);
    /// Hands the answers over.
    fn deliver(&mut self, deferred: &mut Deferred);
    /// The answers have been handed over and the waiters woken.
    fn delivered(&mut self, engines: &Engines);
}

/// A batch that was taken out of its queue, to be run. It counts as running until the scheduler is
/// told that its answers have been handed over.
pub(crate) struct Dispatched {
    pub(crate) queue: QueueId,
    /// Names it among the running batches of the executor.
    pub(crate) number: u64,
    pub(crate) batch: Box<dyn Batch>,
}

impl Dispatched {
    /// Hands the answers over and wakes the waiters.
    ///
    /// CORRECTNESS: all answers are stored before the first waiter is woken or value dropped: what
    /// they do may wait for an answer of this very batch.
    pub(crate) fn deliver(&mut self) {
        let mut deferred = Deferred::default();
        self.batch.deliver(&mut deferred);
        deferred.run();
    }
}

/// A batch of requests with one key.
pub(crate) struct RequestBatch<E: Engine> {
    factory: Arc<EngineFactory<E>>,
    items: Vec<E::Item>,
    senders: Vec<Sender<E::Output>>,
    numbers: Vec<u64>,
    answers: Vec<Option<Answer<E::Output>>>,
    outcome: Outcome,
}

impl<E: Engine> RequestBatch<E> {
    pub(crate) fn new(factory: Arc<EngineFactory<E>>, group: usize, requests: usize) -> Self {
        Self {
            factory,
            items: Vec::with_capacity(requests),
            senders: Vec::with_capacity(requests),
            numbers: Vec::with_capacity(requests),
            answers: Vec::new(),
            outcome: Outcome { group, ..Outcome::default() },
        }
    }

    pub(crate) fn push(&mut self, request: PendingRequest<E>) {
        self.items.push(request.input);
        self.senders.push(request.sender);
        self.numbers.push(request.number);
        self.outcome.cost = self.outcome.cost.saturating_add(request.cost);
    }

    pub(crate) fn cost(&self) -> usize {
        self.outcome.cost
    }

    /// Runs the whole batch; a part that fails is run again in smaller ones until the requests at
    /// fault are alone.
    fn compute(&mut self, engine: &mut Option<Box<E>>) {
        self.answers.resize_with(self.items.len(), || None);
        // Last in, first out: the left part goes before the right, so answers come in order.
        let mut parts = SmallVec::<[Range<usize>; 8]>::new();
        parts.push(0..self.items.len());
        while let Some(part) = parts.pop() {
            // Nobody waits for it, and it has cost its batch-mates one run already.
            if part.len() == 1 && self.items.len() > 1 && self.senders[part.start].is_closed() {
                self.answers[part.start] = Some(Err(RequestError::Cancelled));
                continue;
            }
            let Err((error, size)) = self.attempt(engine, part.clone()) else {
                continue;
            };
            if let RequestError::Engine(why) | RequestError::Rebuild(why) = &error
                && matches!(why, EngineError::DeviceLost(_))
            {
                self.outcome.device_lost = Some(why.clone());
            }
            if matches!(error, RequestError::Rebuild(_)) || self.outcome.device_lost.is_some() {
                // Nothing more of this batch can be computed.
                parts.push(part);
                parts.drain(..).for_each(|part| self.fail(part, &error));
            } else if part.len() == 1 || size == 0 {
                self.fail(part, &error);
            } else {
                let mut end = part.end;
                while end > part.start {
                    let start = end.saturating_sub(size).max(part.start);
                    parts.push(start..end);
                    end = start;
                }
            }
        }
    }

    fn fail(&mut self, part: Range<usize>, error: &RequestError) {
        self.answers[part].fill_with(|| Some(Err(error.clone())));
    }

    /// The engine, built again if it was lost.
    fn present<'a>(&mut self, engine: &'a mut Option<Box<E>>) -> Result<&'a mut E, EngineError> {
        if engine.is_none() {
            let built = self.factory.build().map_err(|failure| {
                self.factory.log_failure(&failure);
                self.outcome.losses += 1;
                match failure {
                    BuildError::Engine(error) => error,
                    other => EngineError::failed(other),
                }
            });
            *engine = Some(built?);
        }
        Ok(engine.as_deref_mut().expect("it is there, or has just been built"))
    }

    /// One run of the engine on a part of the batch. An error comes with the size of the parts in
    /// which it may be run again: 0 if not at all.
    fn attempt(
        &mut self,
        engine: &mut Option<Box<E>>,
        part: Range<usize>,
    ) -> Result<(), (RequestError, usize)> {
        let present = self.present(engine).map_err(|error| (RequestError::Rebuild(error), 0))?;
        let items = &self.items[part.clone()];
        let (mut idempotent, mut survives) = (false, false);
        let ran = catch_panic(|| {
            (idempotent, survives) = (present.idempotent(), present.survives_panic());
            let outputs = present.infer(items)?;
            if outputs.len() != items.len() {
                let (given, wanted) = (outputs.len(), items.len());
                let text = format!("the engine returned {given} outputs for {wanted} requests");
                return Err(EngineError::failed(text));
            }
            let cost = items.iter().fold(0_usize, |sum, item| sum.saturating_add(item.cost()));
            Ok((outputs, cost, present.padded_cost(items)))
        });
        let outcome = &mut self.outcome;
        let error = match ran {
            Ok(Ok((outputs, cost, padded_cost))) => {
                outcome.computed_cost = outcome.computed_cost.saturating_add(cost);
                outcome.padded_cost = outcome.padded_cost.saturating_add(padded_cost);
                for (answer, output) in self.answers[part].iter_mut().zip(outputs) {
                    *answer = Some(Ok(output));
                }
                return Ok(());
            }
            Ok(Err(error)) => RequestError::Engine(error),
            Err(message) => RequestError::Panicked(message),
        };
        let half = part.len() / 2;
        let is_lost = match &error {
            RequestError::Engine(EngineError::OutOfMemory(_)) if half > 0 => {
                outcome.ceiling = Some(outcome.ceiling.map_or(half, |lower| lower.min(half)));
                false
            }
            RequestError::Engine(error) => {
                matches!(error, EngineError::Lost(_) | EngineError::DeviceLost(_))
            }
            _ => !survives,
        };
        if is_lost {
            // What is left of it is not to be trusted: drop it here, on the worker, and build
            // another one for the next run.
            let lost = engine.take();
            let _ = catch_panic(|| drop(lost));
            outcome.losses += 1;
        }
        let (name, size) = (&self.factory.name, part.len());
        log(|| tracing::warn!(queue = %name, size, %error, "a batch failed"));
        let size = match error {
            _ if !idempotent => 0,
            // Each loss costs a restart, and halves would lose it once for each halving.
            RequestError::Engine(EngineError::Lost(_)) => 1,
            _ => part.len() - half,
        };
        Err((error, size))
    }
}

impl<E: Engine> Batch for RequestBatch<E> {
    fn len(&self) -> usize {
        self.senders.len()
    }

    fn take_numbers(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.numbers)
    }

    fn run(&mut self, engines: &Engines) {
        let queue = self.factory.queue;
        let mut engine = engines.take::<E>(queue);
        let factory = Arc::clone(&self.factory);
        let (size, cost) = (self.items.len(), self.outcome.cost);
        // A subscriber is a user's code: if it panics, the batch is run without its span.
        let mut has_run = false;
        let _ = catch_panic(|| {
            let (device, queue) = (&factory.device, &factory.name);
            let span = tracing::debug_span!("batch", %device, %queue, size, cost);
            span.in_scope(|| {
                has_run = true;
                self.compute(&mut engine);
            });
        });
        if !has_run {
            self.compute(&mut engine);
        }
        self.outcome.engine_missing = engine.is_none();
        engines.put(queue, engine);
    }

    fn outcome(&self) -> Outcome {
        let completed = self.answers.iter().filter(|answer| matches!(answer, Some(Ok(_)))).count();
        Outcome { completed, failed: self.senders.len() - completed, ..self.outcome.clone() }
    }

    fn drop_inputs(&mut self) {
        if !std::mem::needs_drop::<E::Item>() {
            return self.items.clear();
        }
        for item in self.items.drain(..) {
            let _ = catch_panic(|| drop(item));
        }
    }

    fn deliver(&mut self, deferred: &mut Deferred) {
        self.answers.resize_with(self.senders.len(), || None);
        for (sender, answer) in self.senders.drain(..).zip(self.answers.drain(..)) {
            sender.send(answer.unwrap_or(Err(RequestError::WorkerDied)), deferred);
        }
    }

    fn delivered(&mut self, engines: &Engines) {
        let mut engine = engines.take::<E>(self.factory.queue);
        if let Some(present) = &mut engine
            && catch_panic(|| present.delivered()).is_err()
        {
            let lost = engine.take();
            let _ = catch_panic(|| drop(lost));
        }
        engines.put(self.factory.queue, engine);
    }
}
