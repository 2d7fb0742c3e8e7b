//! The engine of a Python model: one attachment and one Python call for a batch.

use std::sync::Arc;

use onelane::{Engine, EngineError};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::failure::engine_error;
use crate::interpreter::{attach_worker, drop_attached};
use crate::item::{Answer, Item};
use crate::pending;

/// Runs batches through a Python function `run(inputs) -> (outputs, padded_cost)`, with one output
/// for each input, in order. Built, called and dropped on the worker.
pub(crate) struct PyEngine {
    run: Option<Py<PyAny>>,
    idempotent: bool,
    padded_cost: usize,
}

impl PyEngine {
    /// Calls `build()`, which gives `run`.
    pub(crate) fn build(build: &Arc<Py<PyAny>>, idempotent: bool) -> Result<Self, EngineError> {
        let run = attach_worker(|py| build.call0(py).map_err(|error| engine_error(py, error)))
            .unwrap_or_else(|| Err(interpreter_ending()))?;
        Ok(Self { run: Some(run), idempotent, padded_cost: 0 })
    }

    fn run(&mut self, py: Python<'_>, batch: &[Item]) -> Result<Vec<Answer>, EngineError> {
        let inputs: Vec<Option<Py<PyAny>>> = batch.iter().map(|item| item.start(py)).collect();
        let live = inputs.iter().flatten().count();
        let outputs = if live == 0 {
            Vec::new()
        } else {
            self.call(py, inputs.iter().flatten()).map_err(|error| {
                if let [item] = batch {
                    item.finish(py);
                }
                engine_error(py, error)
            })?
        };
        if outputs.len() != live {
            let given = outputs.len();
            let text = format!("the model returned {given} outputs for {live} requests");
            return Err(EngineError::failed(text));
        }
        batch.iter().for_each(|item| item.finish(py));
        let mut outputs = outputs.into_iter();
        let answer = |input: &Option<Py<PyAny>>| match input {
            Some(_) => outputs.next().map_or_else(Answer::none, Answer::new),
            None => Answer::none(),
        };
        Ok(inputs.iter().map(answer).collect())
    }

    fn call<'a>(
        &mut self,
        py: Python<'_>,
        inputs: impl Iterator<Item = &'a Py<PyAny>>,
    ) -> PyResult<Vec<Py<PyAny>>> {
        let inputs: Vec<_> = inputs.collect();
        let inputs = PyList::new(py, inputs)?;
        let run = self.run.as_ref().expect("it is taken in drop alone");
        let answer = run.call1(py, (inputs,))?;
        let (outputs, padded_cost) = answer.extract::<(Vec<Py<PyAny>>, usize)>(py)?;
        self.padded_cost = padded_cost;
        Ok(outputs)
    }
}

impl Engine for PyEngine {
    type Item = Item;
    type Output = Answer;

    fn infer(&mut self, batch: &[Item]) -> Result<Vec<Answer>, EngineError> {
        pending::no_delivery();
        let answers = attach_worker(|py| self.run(py, batch));
        pending::expect_delivery();
        answers.unwrap_or_else(|| Err(interpreter_ending()))
    }

    fn delivered(&mut self) {
        let delivered = pending::take_delivered();
        if !delivered.is_empty() {
            attach_worker(|py| pending::resolve_all(py, delivered));
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
        let delivered = pending::take_delivered();
        if !delivered.is_empty() {
            attach_worker(|py| pending::resolve_all(py, delivered));
        }
        drop_attached(self.run.take());
    }
}

fn interpreter_ending() -> EngineError {
    EngineError::failed("the Python interpreter is ending")
}
