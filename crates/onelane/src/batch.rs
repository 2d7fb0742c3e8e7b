//! A batch on the worker: running it, bisecting one that fails, splitting one that does not fit in
//! memory, rebuilding an engine that panicked, and handing the answers back.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::after::After;
use crate::contain::contain;
use crate::engine::{BatchItem, Engine};
use crate::error::{EngineError, RequestError};
use crate::policy::QueueId;
use crate::request_list::RequestList;
use crate::response::Responder;
use crate::waiting::WaitingList;
use crate::worker::WorkerContext;

/// What a finished batch tells the executor.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    /// Requests answered with a response, and with an error.
    pub(crate) completed: usize,
    pub(crate) failed: usize,
    /// The sum of the costs of the requests that were computed, without and with padding.
    pub(crate) cost: usize,
    pub(crate) padded_cost: usize,
    /// The engine panicked, or could not be rebuilt.
    pub(crate) lost_engine: bool,
}

/// What a worker does with a batch, whatever its types.
pub(crate) trait Batch: Send {
    fn len(&self) -> usize;
    /// The numbers of its requests, once.
    fn take_numbers(&mut self) -> Vec<u64>;
    /// Computes all answers; runs without the lock and does not panic.
    fn run(&mut self, worker: &WorkerContext);
    /// What came of it.
    fn outcome(&self) -> Outcome;
    /// Tells its list that it is done; under the lock.
    fn settle(&mut self, list: &mut dyn WaitingList, after: &mut After);
    /// Drops the inputs: on the worker, where they were used.
    fn drop_inputs(&mut self);
    /// Hands the answers over.
    fn deliver(&mut self, after: &mut After);
    /// The answers have been handed over and the waiters woken.
    fn delivered(&mut self, worker: &WorkerContext);
    /// Empty now, it goes back to its list, with the memory of its numbers; under the lock.
    fn give_back(self: Box<Self>, numbers: Vec<u64>, list: &mut dyn WaitingList, after: &mut After);
}

/// A batch that was taken out of its list, to be run. It counts as running until the state is told that
/// its answers have been handed over.
pub(crate) struct Dispatched {
    pub(crate) queue: QueueId,
    /// Names it among the running batches of the executor.
    pub(crate) number: u64,
    pub(crate) batch: Box<dyn Batch>,
}

impl Dispatched {
    /// Hands the answers over and wakes the waiters.
    pub(crate) fn deliver(&mut self) {
        let mut after = After::default();
        self.batch.deliver(&mut after);
        after.run();
    }
}

pub(crate) type Factory<E> = Box<dyn Fn() -> Result<E, EngineError> + Send + Sync>;

/// What all batches of one queue share.
pub(crate) struct Plan<E: Engine> {
    pub(crate) queue: QueueId,
    pub(crate) device: String,
    pub(crate) name: String,
    pub(crate) factory: Factory<E>,
}

impl<E: Engine> Plan<E> {
    /// Builds and warms up an engine; on the worker. A panic is contained.
    pub(crate) fn build(&self) -> Result<E, BuildFailure> {
        let build = || -> Result<E, EngineError> {
            let mut engine = (self.factory)()?;
            engine.warmup()?;
            Ok(engine)
        };
        match contain(build) {
            Ok(Ok(engine)) => Ok(engine),
            Ok(Err(error)) => Err(BuildFailure::Error(error)),
            Err(message) => Err(BuildFailure::Panicked(message)),
        }
    }
}

/// Why an engine could not be built.
pub(crate) enum BuildFailure {
    Error(EngineError),
    Panicked(String),
}

/// A batch of requests with one key.
pub(crate) struct RequestBatch<E: Engine> {
    plan: Arc<Plan<E>>,
    /// In its list.
    pub(crate) group: usize,
    items: Vec<E::Item>,
    responders: Vec<Responder<E::Output>>,
    numbers: Vec<u64>,
    answers: Vec<Option<Result<E::Output, RequestError>>>,
    tally: Tally,
}

/// What there is to tell of a batch.
#[derive(Default)]
struct Tally {
    cost: usize,
    computed_cost: usize,
    padded_cost: usize,
    lost_engine: bool,
    ceiling: Option<usize>,
}

/// Why a range of the batch was not computed.
enum Failure {
    Engine(EngineError),
    Panicked(String),
    /// There is no engine, and none could be built; nothing more of this batch can be computed.
    NoEngine(EngineError),
}

impl Failure {
    fn is_lost(&self) -> bool {
        matches!(self, Self::Engine(EngineError::Lost(_)))
    }

    fn to_error(&self) -> RequestError {
        match self {
            Self::Engine(error) => RequestError::Engine(error.clone()),
            Self::Panicked(message) => RequestError::Panicked(message.clone()),
            Self::NoEngine(error) => RequestError::Rebuild(error.clone()),
        }
    }
}

impl<E: Engine> RequestBatch<E> {
    pub(crate) fn new(plan: Arc<Plan<E>>) -> Self {
        Self {
            plan,
            group: 0,
            items: Vec::new(),
            responders: Vec::new(),
            numbers: Vec::new(),
            answers: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Makes it, empty as it is, another batch, of so many requests.
    pub(crate) fn begin(&mut self, requests: usize) {
        self.items.reserve(requests);
        self.responders.reserve(requests);
        self.numbers.reserve(requests);
        self.tally = Tally::default();
    }

    /// Whether nothing of anybody's is left in it.
    fn is_drained(&self) -> bool {
        self.items.is_empty() && self.responders.is_empty() && self.answers.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn cost(&self) -> usize {
        self.tally.cost
    }

    pub(crate) fn push(
        &mut self,
        item: E::Item,
        responder: Responder<E::Output>,
        number: u64,
        cost: usize,
    ) {
        self.items.push(item);
        self.responders.push(responder);
        self.numbers.push(number);
        self.tally.cost = self.tally.cost.saturating_add(cost);
    }

    /// Runs the whole batch; a part that fails is halved until the requests at fault are alone.
    fn compute(&mut self, engine: &mut Option<Box<E>>) {
        self.answers.resize_with(self.items.len(), || None);
        // Last in, first out: the left half goes before the right, so answers come in order.
        let mut parts = SmallVec::<[Range<usize>; 8]>::new();
        parts.push(0..self.items.len());
        while let Some(part) = parts.pop() {
            // Nobody waits for it, and it has cost its batch-mates one run already.
            if part.len() == 1 && self.ran_before() && self.responders[part.start].is_abandoned() {
                self.answers[part.start] = Some(Err(RequestError::Cancelled));
                continue;
            }
            let Err((failure, splittable)) = self.attempt(engine, part.clone()) else {
                continue;
            };
            if matches!(failure, Failure::NoEngine(_)) {
                parts.push(part);
                for part in parts.drain(..) {
                    self.fail(part, &failure);
                }
            } else if part.len() > 1 && splittable && failure.is_lost() {
                // Singles, not halves: a loss costs a restart, and so the culprit costs only two.
                tracing::warn!(
                    queue = %self.plan.name, size = part.len(), error = %failure.to_error(),
                    "a batch lost its engine: its requests are run one by one"
                );
                parts.extend(part.rev().map(|one| one..one + 1));
            } else if part.len() > 1 && splittable {
                let middle = part.start + part.len() / 2;
                tracing::warn!(
                    queue = %self.plan.name, size = part.len(), error = %failure.to_error(),
                    "a batch failed: its halves are run apart"
                );
                parts.push(middle..part.end);
                parts.push(part.start..middle);
            } else {
                self.fail(part, &failure);
            }
        }
    }

    fn ran_before(&self) -> bool {
        self.items.len() > 1
    }

    fn fail(&mut self, part: Range<usize>, failure: &Failure) {
        for answer in &mut self.answers[part] {
            *answer = Some(Err(failure.to_error()));
        }
    }

    /// One run of the engine on a part of the batch. A failure comes with whether the engine lets
    /// the part be run again in halves.
    fn attempt(
        &mut self,
        engine: &mut Option<Box<E>>,
        part: Range<usize>,
    ) -> Result<(), (Failure, bool)> {
        let present = match engine {
            Some(present) => present,
            None => match self.plan.build() {
                Ok(built) => engine.insert(Box::new(built)),
                Err(failure) => {
                    self.tally.lost_engine = true;
                    let error = match failure {
                        BuildFailure::Error(error) => error,
                        BuildFailure::Panicked(message) => EngineError::failed(message),
                    };
                    tracing::error!(queue = %self.plan.name, %error, "the engine was not rebuilt");
                    return Err((Failure::NoEngine(error), false));
                }
            },
        };
        let items = &self.items[part.clone()];
        let mut idempotent = false;
        let ran = contain(|| {
            idempotent = present.idempotent();
            let outputs = present.infer(items)?;
            if outputs.len() != items.len() {
                let (given, wanted) = (outputs.len(), items.len());
                let text = format!("the engine returned {given} outputs for {wanted} requests");
                return Err(EngineError::failed(text));
            }
            let cost: usize = items.iter().map(BatchItem::cost).sum();
            Ok((outputs, cost, present.padded_cost(items)))
        });
        match ran {
            Ok(Ok((outputs, cost, padded_cost))) => {
                self.tally.computed_cost = self.tally.computed_cost.saturating_add(cost);
                self.tally.padded_cost = self.tally.padded_cost.saturating_add(padded_cost);
                for (answer, output) in self.answers[part].iter_mut().zip(outputs) {
                    *answer = Some(Ok(output));
                }
                Ok(())
            }
            Ok(Err(error)) => {
                if matches!(error, EngineError::OutOfMemory(_)) && part.len() > 1 {
                    let half = part.len() / 2;
                    self.tally.ceiling =
                        Some(self.tally.ceiling.map_or(half, |lower| lower.min(half)));
                }
                if matches!(error, EngineError::Lost(_)) {
                    let lost = engine.take();
                    let _ = contain(|| drop(lost));
                    self.tally.lost_engine = true;
                }
                Err((Failure::Engine(error), idempotent))
            }
            Err(message) => {
                // What a panic has left behind is not to be trusted: drop it here, on the worker,
                // and build another one for the next run.
                let lost = engine.take();
                let _ = contain(|| drop(lost));
                self.tally.lost_engine = true;
                tracing::error!(queue = %self.plan.name, panic = %message, "the engine panicked");
                Err((Failure::Panicked(message), idempotent))
            }
        }
    }
}

impl<E: Engine> Batch for RequestBatch<E> {
    fn len(&self) -> usize {
        self.responders.len()
    }

    fn take_numbers(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.numbers)
    }

    fn run(&mut self, worker: &WorkerContext) {
        let span = tracing::debug_span!(
            "batch",
            device = %self.plan.device,
            queue = %self.plan.name,
            size = self.items.len(),
            cost = self.tally.cost,
        );
        let _entered = span.enter();
        let mut engine = worker.take_engine::<E>(self.plan.queue);
        self.compute(&mut engine);
        worker.put_engine(self.plan.queue, engine);
    }

    fn outcome(&self) -> Outcome {
        let completed = self.answers.iter().filter(|answer| matches!(answer, Some(Ok(_)))).count();
        Outcome {
            completed,
            failed: self.responders.len() - completed,
            cost: self.tally.computed_cost,
            padded_cost: self.tally.padded_cost,
            lost_engine: self.tally.lost_engine,
        }
    }

    fn settle(&mut self, list: &mut dyn WaitingList, after: &mut After) {
        let list: &mut dyn Any = list;
        list.downcast_mut::<RequestList<E>>()
            .expect("a batch returns to the list it was taken from")
            .finished(self.group, self.tally.ceiling, after);
    }

    fn drop_inputs(&mut self) {
        if !std::mem::needs_drop::<E::Item>() {
            return self.items.clear();
        }
        for item in self.items.drain(..) {
            let _ = contain(|| drop(item));
        }
    }

    fn deliver(&mut self, after: &mut After) {
        self.answers.resize_with(self.responders.len(), || None);
        for (responder, answer) in self.responders.drain(..).zip(self.answers.drain(..)) {
            responder.answer(answer.unwrap_or(Err(RequestError::WorkerDied)), after);
            // A task goes on while the others' answers are stored.
            after.run_ahead();
        }
    }

    fn delivered(&mut self, worker: &WorkerContext) {
        let mut engine = worker.take_engine::<E>(self.plan.queue);
        if let Some(present) = &mut engine
            && contain(|| present.delivered()).is_err()
        {
            let lost = engine.take();
            let _ = contain(|| drop(lost));
        }
        worker.put_engine(self.plan.queue, engine);
    }

    fn give_back(
        mut self: Box<Self>,
        mut numbers: Vec<u64>,
        list: &mut dyn WaitingList,
        after: &mut After,
    ) {
        let list: &mut dyn Any = list;
        match list.downcast_mut::<RequestList<E>>() {
            Some(list) if self.is_drained() => {
                numbers.clear();
                self.numbers = numbers;
                list.keep(self, after);
            }
            // What is left in it is a user's.
            _ => after.discard(self),
        }
    }
}
