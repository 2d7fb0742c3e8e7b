//! The child's half of an isolated queue: the loop that takes batches off the socket is
//! `onelane_isolate`'s, and it calls Python once for each.

use onelane::{Engine, EngineError};
use onelane_isolate::{Channel, RemoteError, serve_channel, sticky};
use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::failure::{Severity, severity};
use crate::interpreter::drop_attached;
use crate::parcel::Parcel;

/// Runs the batches of an isolated queue in the child. In the parent it only says what crosses.
pub(crate) struct ChildEngine {
    /// `run(letters, count) -> (letters, padded_cost)`; `None` in `drop` alone.
    run: Option<Py<PyAny>>,
    idempotent: bool,
    padded_cost: usize,
}

impl ChildEngine {
    /// Calls `build(payload)`, which gives `run` and whether the model is idempotent.
    fn build(build: &Py<PyAny>, payload: &[u8]) -> Result<Self, EngineError> {
        // The thread is one of Python's own, and keeps its state by itself.
        let built = Python::try_attach(|py| {
            let built = build.bind(py).call1((PyBytes::new(py, payload),));
            let built = built.and_then(|built| built.extract::<(Py<PyAny>, bool)>());
            built.map_err(|error| remote(py, error))
        });
        let (run, idempotent) = built.unwrap_or_else(|| Err(ending()))?;
        Ok(Self { run: Some(run), idempotent, padded_cost: 0 })
    }
}

impl Engine for ChildEngine {
    type Item = Parcel;
    type Output = Parcel;

    fn infer(&mut self, batch: &[Parcel]) -> Result<Vec<Parcel>, EngineError> {
        let answers = Python::try_attach(|py| {
            let run = self.run.as_ref().expect("it is taken in drop alone");
            let letters = Parcel::letters(py, batch);
            let answered = run.bind(py).call1((letters, batch.len())).and_then(|answered| {
                let (letters, cost): (Bound<'_, PyAny>, usize) = answered.extract()?;
                self.padded_cost = cost;
                Parcel::batch(&letters, batch.len())
            });
            answered.map_err(|error| remote(py, error))
        });
        answers.unwrap_or_else(|| Err(ending()))
    }

    fn idempotent(&self) -> bool {
        self.idempotent
    }

    fn padded_cost(&self, _batch: &[Parcel]) -> usize {
        self.padded_cost
    }
}

impl Drop for ChildEngine {
    fn drop(&mut self) {
        drop_attached(self.run.take());
    }
}

/// A Python exception as it goes to the parent: its text, and as much of it as can be pickled.
fn remote(py: Python<'_>, error: PyErr) -> EngineError {
    let severity = severity(py, &error);
    let described = py
        .import(intern!(py, "onelane._child"))
        .and_then(|module| module.call_method1(intern!(py, "describe"), (error.value(py),)))
        .and_then(|described| described.extract::<(String, Vec<u8>)>());
    let (text, detail) = described.unwrap_or_else(|_| (error.to_string(), Vec::new()));
    let error = RemoteError::new(text, detail);
    match severity {
        Severity::OutOfMemory => EngineError::out_of_memory(error),
        Severity::Lost | Severity::Poisoned => EngineError::lost(error),
        Severity::Failed => EngineError::failed(error),
    }
}

fn ending() -> EngineError {
    EngineError::failed("the Python interpreter of the isolated worker is ending")
}

/// Whether a text says that the device of this process is poisoned; see `onelane_isolate`.
#[pyfunction]
pub(crate) fn is_sticky_error(text: &str) -> bool {
    sticky(text).is_some()
}

/// Serves the parent that has started this process: `build(payload)` gives `run` and whether it is
/// idempotent. Returns when the process is to end.
#[pyfunction]
pub(crate) fn serve_parent(py: Python<'_>, build: Py<PyAny>) -> PyResult<()> {
    let channel = py.detach(Channel::from_parent);
    let channel = channel.ok_or_else(|| {
        PyRuntimeError::new_err("this process was not started as an isolated worker")
    })?;
    let served = py.detach(move || {
        let channel = channel?;
        let payload = channel.payload().to_vec();
        serve_channel(channel, move || ChildEngine::build(&build, &payload))
    });
    served.map_err(|error| PyOSError::new_err(error.to_string()))
}
