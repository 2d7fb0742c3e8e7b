//! The engine of a Python model: in this process one attachment and one Python call for a batch, or
//! in a child.

use std::cell::RefCell;
use std::sync::Arc;

use onelane::{Engine, EngineError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::delivery;
use crate::failure::engine_error;
use crate::interpreter::{Held, attach_worker, drop_attached, is_given_up};
use crate::item::{Answer, Item, Payload};
use crate::plain::Plain;
use crate::remote::{Remote, RemoteFactory};
use crate::turnstile::{self, GilTurnstile};

thread_local! {
    /// The queues whose batches run on this worker, each inside the one before.
    static RUNNING: RefCell<Vec<*const GilTurnstile>> = const { RefCell::new(Vec::new()) };
}

/// Whether a batch of the queue with this turnstile runs further up the calling thread's stack.
pub(crate) fn is_running(turnstile: &Arc<GilTurnstile>) -> bool {
    RUNNING.with_borrow(|running| running.contains(&Arc::as_ptr(turnstile)))
}

/// Runs batches through a Python function `run(inputs) -> (outputs, padded_cost)`, with one output
/// for each input, in order. Built, called and dropped on the worker.
///
/// A runner with a method `run_plain(tensors, rows, modes, context)`, which returns the same, is
/// given batches of plain tensors as they are; with `prepared(tensor, rows, modes, context)` it
/// makes an input of one that shares a batch with others.
pub(crate) struct PyEngine {
    place: Place,
    turnstile: Arc<GilTurnstile>,
    idempotent: bool,
    padded_cost: usize,
}

/// Where the batches run.
enum Place {
    /// `None` in `drop` alone.
    Here(Option<Runner>),
    Child(Box<Remote>),
}

/// How the engines of a queue are made.
pub(crate) enum PyFactory {
    /// `build()`, called on the worker, gives the runner: its `run`, with the other methods as
    /// attributes; and whether a failed batch may be run again. It may have a module that was given:
    /// the last who drops it, a worker whose engine is gone, frees memory of the device.
    Here(Held, bool),
    Child(RemoteFactory),
}

struct Runner {
    run: Py<PyAny>,
    /// `None`: all inputs are prepared by Python.
    plain: Option<PlainRunner>,
}

struct PlainRunner {
    run: Py<PyAny>,
    prepared: Py<PyAny>,
}

impl Runner {
    fn new(run: Bound<'_, PyAny>) -> PyResult<Self> {
        let py = run.py();
        let plain = match run.getattr_opt(intern!(py, "run_plain"))? {
            Some(plain) => Some(PlainRunner {
                run: plain.unbind(),
                prepared: run.getattr(intern!(py, "prepared"))?.unbind(),
            }),
            None => None,
        };
        Ok(Self { run: run.unbind(), plain })
    }

    fn call(&self, py: Python<'_>, payloads: Vec<Payload>) -> PyResult<(Vec<Py<PyAny>>, usize)> {
        let mut plain = Vec::new();
        let mut prepared = Vec::new();
        for payload in payloads {
            match payload {
                Payload::Plain(one) if prepared.is_empty() => plain.push(one),
                Payload::Plain(one) => prepared.push(self.prepared(py, one)?),
                Payload::Prepared(one) => {
                    for one in std::mem::take(&mut plain) {
                        prepared.push(self.prepared(py, one)?);
                    }
                    prepared.push(one);
                }
            }
        }
        let answer = match (&self.plain, plain.first()) {
            (Some(runner), Some(first)) => {
                let modes = first.kind.modes.clone_ref(py);
                let context = first.context.as_ref().map(|context| context.clone_ref(py));
                let rows = PyList::new(py, plain.iter().map(|one| one.rows))?;
                let tensors = PyList::new(py, plain.into_iter().map(|one| one.tensor))?;
                runner.run.bind(py).call1((tensors, rows, modes, context))?
            }
            _ => self.run.bind(py).call1((PyList::new(py, prepared)?,))?,
        };
        answer.extract()
    }

    fn prepared(&self, py: Python<'_>, one: Plain) -> PyResult<Py<PyAny>> {
        let runner = self.plain.as_ref().expect("there are plain requests for this runner alone");
        let modes = one.kind.modes.clone_ref(py);
        runner.prepared.call1(py, (one.tensor, one.rows, modes, one.context))
    }
}

impl PyEngine {
    /// On the worker.
    pub(crate) fn build(
        factory: &PyFactory,
        turnstile: &Arc<GilTurnstile>,
    ) -> Result<Self, EngineError> {
        let (place, idempotent) = match factory {
            PyFactory::Here(build, idempotent) => {
                let runner = attach_worker(|py| {
                    let built = build.get().bind(py).call0().and_then(Runner::new);
                    built.map_err(|error| engine_error(py, error))
                });
                let runner = runner.unwrap_or_else(|| Err(interpreter_ending()))?;
                (Place::Here(Some(runner)), *idempotent)
            }
            PyFactory::Child(factory) => {
                let remote = factory.build()?;
                let idempotent = remote.idempotent();
                (Place::Child(Box::new(remote)), idempotent)
            }
        };
        Ok(Self { place, turnstile: Arc::clone(turnstile), idempotent, padded_cost: 0 })
    }

    /// Whether its batches run in a child.
    pub(crate) fn is_child(&self) -> bool {
        matches!(self.place, Place::Child(_))
    }

    fn run(&mut self, py: Python<'_>, batch: &[Item]) -> Result<Vec<Answer>, EngineError> {
        let mut live = Vec::with_capacity(batch.len());
        let started: Vec<bool> = batch
            .iter()
            .map(|item| {
                let payload = item.start(py);
                let started = payload.is_some();
                live.extend(payload);
                started
            })
            .collect();
        let count = live.len();
        let outputs = if count == 0 {
            Vec::new()
        } else {
            let Place::Here(Some(runner)) = &self.place else {
                unreachable!("it is taken in drop alone, and a child's batch does not come here")
            };
            let called = runner.call(py, live);
            let (outputs, padded_cost) = called.map_err(|error| {
                if let [item] = batch {
                    item.finish(py);
                }
                engine_error(py, error)
            })?;
            self.padded_cost = padded_cost;
            outputs
        };
        if outputs.len() != count {
            let given = outputs.len();
            let text = format!("the model returned {given} outputs for {count} requests");
            return Err(EngineError::failed(text));
        }
        batch.iter().for_each(|item| item.finish(py));
        let mut outputs = outputs.into_iter();
        let answer = |started| match started {
            true => outputs.next().map_or_else(Answer::none, Answer::new),
            false => Answer::none(),
        };
        Ok(started.into_iter().map(answer).collect())
    }

    /// Tells everybody whose answer is there: resolves futures, lets threads in.
    fn tell(&self) {
        let (futures, waiters) = (delivery::take_delivered(), turnstile::take_delivered());
        if !waiters.is_empty() {
            self.turnstile.open(waiters);
        }
        if !futures.is_empty() {
            attach_worker(|py| delivery::resolve_all(py, futures));
        }
    }
}

impl Engine for PyEngine {
    type Item = Item;
    type Output = Answer;

    fn infer(&mut self, batch: &[Item]) -> Result<Vec<Answer>, EngineError> {
        if is_given_up() {
            return Err(interpreter_ending());
        }
        delivery::no_delivery();
        RUNNING.with_borrow_mut(|running| running.push(Arc::as_ptr(&self.turnstile)));
        let answers = match &mut self.place {
            Place::Here(_) => attach_worker(|py| self.run(py, batch)),
            Place::Child(remote) => {
                let answers = remote.run(batch);
                self.padded_cost = remote.padded_cost();
                answers
            }
        };
        RUNNING.with_borrow_mut(Vec::pop);
        delivery::expect_delivery();
        answers.unwrap_or_else(|| Err(interpreter_ending()))
    }

    fn delivered(&mut self) {
        self.tell();
        if let Place::Child(remote) = &mut self.place {
            remote.delivered();
        }
    }

    fn idempotent(&self) -> bool {
        self.idempotent
    }

    fn padded_cost(&self, _batch: &[Item]) -> usize {
        self.padded_cost
    }
}

impl Drop for PyEngine {
    fn drop(&mut self) {
        // A delivery that this engine had announced does not come.
        self.tell();
        if let Place::Here(runner) = &mut self.place {
            drop_attached(runner.take());
        }
    }
}

pub(crate) fn interpreter_ending() -> EngineError {
    EngineError::failed("the Python interpreter is ending")
}
