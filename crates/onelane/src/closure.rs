//! Closures: what a device executor runs beside the batches of its queues.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::after::After;
use crate::batch::{Batch, Outcome};
use crate::contain::contain;
use crate::error::RequestError;
use crate::policy::Head;
use crate::request::Priority;
use crate::response::Responder;
use crate::waiting::{Removed, RequestId, WaitingList};
use crate::worker::WorkerContext;

/// A closure with the duty to answer it.
pub(crate) struct Task<F, T: Send + 'static> {
    body: Option<F>,
    result: Option<Result<T, RequestError>>,
    responder: Responder<T>,
}

impl<F, T: Send + 'static> Task<F, T> {
    pub(crate) fn new(body: F, responder: Responder<T>) -> Self {
        Self { body: Some(body), result: None, responder }
    }
}

impl<F, T> Closure for Task<F, T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    fn run(&mut self) {
        if let Some(body) = self.body.take() {
            self.result = Some(contain(body).map_err(RequestError::Panicked));
        }
    }

    fn has_result(&self) -> bool {
        matches!(self.result, Some(Ok(_)))
    }

    fn answer(self: Box<Self>, error: RequestError, after: &mut After) {
        let Self { body, result, responder } = *self;
        after.discard(body);
        responder.answer(result.unwrap_or(Err(error)), after);
    }
}

/// A closure that waits for the worker, with the duty to answer it.
pub(crate) trait Closure: Send {
    /// Runs it; a panic is contained.
    fn run(&mut self);
    /// Whether it has run and returned.
    fn has_result(&self) -> bool;
    /// Hands the result over, or `error` if it has not run.
    fn answer(self: Box<Self>, error: RequestError, after: &mut After);
}

/// The waiting closures of an executor, first in first out, one a batch.
#[derive(Default)]
pub(crate) struct ClosureList {
    waiting: BTreeMap<u64, (Instant, Box<dyn Closure>)>,
}

impl ClosureList {
    pub(crate) fn push(&mut self, closure: Box<dyn Closure>, at: Instant, seq: u64) {
        self.waiting.insert(seq, (at, closure));
    }
}

impl Removed for Box<dyn Closure> {
    fn answer(self: Box<Self>, error: RequestError, after: &mut After) {
        (*self).answer(error, after);
    }
}

impl WaitingList for ClosureList {
    fn len(&self) -> usize {
        self.waiting.len()
    }

    fn cost(&self) -> usize {
        self.waiting.len()
    }

    fn contains(&self, id: RequestId) -> bool {
        self.waiting.contains_key(&id.number)
    }

    fn heads(&self, visit: &mut dyn FnMut(Head)) {
        if let Some((&seq, &(arrival, _))) = self.waiting.first_key_value() {
            visit(Head { seat: 0, class: Priority::Normal, arrival, seq, ready_at: arrival });
        }
    }

    fn take(&mut self, _seat: usize, waits: &mut dyn FnMut(Instant)) -> Box<dyn Batch> {
        let (seq, (arrival, closure)) =
            self.waiting.pop_first().expect("a head is waiting until it is taken");
        waits(arrival);
        Box::new(ClosureBatch::new(closure, seq))
    }

    fn remove(&mut self, id: RequestId) -> Option<Box<dyn Removed>> {
        let (_, closure) = self.waiting.remove(&id.number)?;
        Some(Box::new(closure))
    }

    fn first_deadline(&self) -> Option<(Instant, RequestId)> {
        None
    }

    fn any(&self) -> Option<RequestId> {
        let (&number, _) = self.waiting.first_key_value()?;
        Some(RequestId { seat: 0, number })
    }
}

/// A closure, as a batch of one.
pub(crate) struct ClosureBatch {
    closure: Option<Box<dyn Closure>>,
    seq: u64,
}

impl ClosureBatch {
    pub(crate) fn new(closure: Box<dyn Closure>, seq: u64) -> Self {
        Self { closure: Some(closure), seq }
    }
}

impl Batch for ClosureBatch {
    fn len(&self) -> usize {
        1
    }

    fn take_numbers(&mut self) -> Vec<u64> {
        vec![self.seq]
    }

    fn run(&mut self, _worker: &WorkerContext) {
        if let Some(closure) = &mut self.closure {
            closure.run();
        }
    }

    fn outcome(&self) -> Outcome {
        let ran = self.closure.as_ref().is_some_and(|closure| closure.has_result());
        Outcome {
            completed: usize::from(ran),
            failed: usize::from(!ran),
            cost: 1,
            padded_cost: 1,
            lost_engine: false,
        }
    }

    fn settle(&mut self, _list: &mut dyn WaitingList, _after: &mut After) {}

    fn drop_inputs(&mut self) {}

    fn deliver(&mut self, after: &mut After) {
        if let Some(closure) = self.closure.take() {
            closure.answer(RequestError::WorkerDied, after);
        }
    }

    fn delivered(&mut self, _worker: &WorkerContext) {}

    fn give_back(
        self: Box<Self>,
        _numbers: Vec<u64>,
        _list: &mut dyn WaitingList,
        after: &mut After,
    ) {
        after.discard(self);
    }
}
