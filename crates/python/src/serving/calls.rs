//! A batch as one call of a model in Python, here or in a child.

use onelane::{Engine, EngineError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::engine::{PyEngine, PyFactory, interpreter_ending};
use crate::failure::engine_error;
use crate::interpreter::attach_worker;
use crate::item::{Item, Payload};
use crate::turnstile::GilTurnstile;

/// How batches become calls.
pub(super) struct Calls {
    pub(super) factory: PyFactory,
    /// `pack(...)` makes the model's request, `unpack(response)` what the engine reads.
    pub(super) bridge: Py<PyAny>,
}

impl Calls {
    /// On the worker.
    pub(super) fn build(&self) -> Result<PyEngine, EngineError> {
        PyEngine::build(&self.factory, &GilTurnstile::new())
    }

    /// Packs, runs and unpacks one batch; `arguments` are those of `pack`.
    pub(super) fn run(
        &self,
        python: &mut PyEngine,
        arguments: impl FnOnce(Python<'_>) -> PyResult<Bound<'_, PyTuple>>,
    ) -> Result<Py<PyAny>, EngineError> {
        let request =
            attached(|py| self.bridge.bind(py).call_method1(intern!(py, "pack"), arguments(py)?))?;
        let item = Item::new(Payload::Prepared(request), 0, 1);
        let mut answers = python.infer(std::slice::from_ref(&item))?;
        attached(|py| {
            let answer = answers.pop().map_or_else(|| Ok(py.None()), |one| one.into_result(py))?;
            self.bridge.bind(py).call_method1(intern!(py, "unpack"), (answer,))
        })
    }
}

/// Runs a whole batch; what it attaches again further down is attached already, unless the model is in
/// a child.
pub(super) fn attached_once<T>(
    is_child: bool,
    run: impl FnOnce() -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    if is_child {
        return run();
    }
    attach_worker(|_| run()).unwrap_or_else(|| Err(interpreter_ending()))
}

fn attached(
    call: impl FnOnce(Python<'_>) -> PyResult<Bound<'_, PyAny>>,
) -> Result<Py<PyAny>, EngineError> {
    attach_worker(|py| call(py).map(Bound::unbind).map_err(|error| engine_error(py, error)))
        .unwrap_or_else(|| Err(interpreter_ending()))
}

/// Reads what was unpacked.
pub(super) fn read<T>(
    unpacked: Py<PyAny>,
    read: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>,
) -> Result<T, EngineError> {
    attach_worker(|py| {
        let unpacked = unpacked.into_bound(py);
        read(&unpacked).map_err(|error| engine_error(py, error))
    })
    .unwrap_or_else(|| Err(interpreter_ending()))
}
