//! Errors on their way between Python and the core: a Python exception crosses the core as the
//! source of an engine error and comes out as the same object; the core's own errors become the
//! exceptions of `onelane.errors`.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use onelane::{BuildError, EngineError, Refusal, RequestError, SubmitError};
use onelane_isolate::{ChildLost, RemoteError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTraceback, PyType};

use crate::interpreter::drop_attached;

/// A Python exception as a Rust error. The text is made where the exception was caught, so that
/// showing it needs no interpreter.
pub(crate) struct PyFailure {
    /// `None` in `drop` alone.
    error: Option<PyErr>,
    text: String,
    /// As it was here: a caller who raises the exception adds frames to it.
    traceback: Option<Py<PyTraceback>>,
    /// Whether a caller has the exception itself.
    taken: AtomicBool,
}

impl PyFailure {
    fn new(py: Python<'_>, error: PyErr) -> Self {
        let text = error
            .value(py)
            .str()
            .map_or_else(|_| "<no text>".to_owned(), |s| s.to_string_lossy().into());
        let name = error.get_type(py).name();
        let name = name.map_or_else(|_| "exception".to_owned(), |n| n.to_string());
        let text = format!("{name}: {text}");
        let traceback = error.traceback(py).map(Bound::unbind);
        Self { error: Some(error), text, traceback, taken: AtomicBool::new(false) }
    }

    /// The exception for the first who asks, a copy for each other.
    fn take(&self, py: Python<'_>) -> PyErr {
        let error = self.error.as_ref().expect("it is taken in drop alone");
        if !self.taken.swap(true, Ordering::Relaxed) {
            return error.clone_ref(py);
        }
        let own = py.import("onelane._failure").and_then(|module| module.getattr("own"));
        own.and_then(|own| own.call1((error.value(py), &self.traceback)))
            .map_or_else(|_| error.clone_ref(py), PyErr::from_value)
    }
}

impl fmt::Display for PyFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for PyFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PyFailure({})", self.text)
    }
}

impl std::error::Error for PyFailure {}

impl Drop for PyFailure {
    fn drop(&mut self) {
        // A traceback keeps a worker's frames, and with them device tensors.
        drop_attached(self.error.take());
        drop_attached(self.traceback.take());
    }
}

/// What an exception raised while a batch ran says of the engine.
pub(crate) enum Severity {
    /// Nothing: the batch failed.
    Failed,
    /// The device ran out of memory: the core splits such a batch.
    OutOfMemory,
    /// The engine is gone: the core builds it again.
    Lost,
    /// The device of this process answers nothing but errors from now on.
    Poisoned,
}

/// Asks `onelane.errors`.
pub(crate) fn severity(py: Python<'_>, error: &PyErr) -> Severity {
    let says = |name| {
        call_errors(py, name, (error.value(py),))
            .and_then(|answer| answer.extract::<bool>(py))
            .unwrap_or(false)
    };
    if says("is_out_of_memory") {
        Severity::OutOfMemory
    } else if says("is_engine_lost") {
        Severity::Lost
    } else if says("is_device_poisoned") {
        Severity::Poisoned
    } else {
        Severity::Failed
    }
}

/// An exception raised while a batch ran in this process.
pub(crate) fn engine_error(py: Python<'_>, error: PyErr) -> EngineError {
    let severity = severity(py, &error);
    let mut failure = PyFailure::new(py, error);
    match severity {
        Severity::OutOfMemory => EngineError::out_of_memory(failure),
        Severity::Lost => EngineError::lost(failure),
        Severity::Poisoned => {
            let said = failure.text.lines().next().unwrap_or_default();
            failure.text = format!("{said} (isolation=\"process\" contains it)");
            EngineError::device_lost(failure)
        }
        Severity::Failed => EngineError::failed(failure),
    }
}

/// The exception inside an engine error, with its traceback; or a new one with the error's text.
///
/// Each caller has an object of its own: who raises one adds his own frames to it.
fn from_engine(py: Python<'_>, error: &EngineError) -> PyErr {
    let failure = error.cause().downcast_ref::<PyFailure>().map(|failure| failure.take(py));
    if let Some(lost) = error.cause().downcast_ref::<ChildLost>() {
        return told(py, from_child_lost(py, lost));
    }
    if let Some(remote) = error.cause().downcast_ref::<RemoteError>() {
        return from_remote(py, remote);
    }
    match (error, failure) {
        // The model has said so itself.
        (EngineError::Lost(_), Some(lost)) => told(py, lost),
        (_, Some(failure)) => failure,
        _ => raise(py, "EngineLost", error.to_string()),
    }
}

/// What a model in a child raised.
fn from_remote(py: Python<'_>, remote: &RemoteError) -> PyErr {
    let arguments = (&remote.text, PyBytes::new(py, &remote.detail), remote.panicked);
    call_remote(py, "revive", arguments)
}

/// How a child was lost, as an exception of `onelane.errors`.
fn from_child_lost(py: Python<'_>, lost: &ChildLost) -> PyErr {
    let text = lost.to_string();
    let kind = match lost {
        ChildLost::Crashed { .. } => "EngineCrashed",
        ChildLost::Hung { .. } => "EngineHung",
        // As in process, where what a factory raises comes out as it is.
        ChildLost::NotBuilt { error, .. } => return from_remote(py, error),
        _ => "EngineLost",
    };
    let cause = match lost {
        ChildLost::EngineLost { error, .. } => Some(from_remote(py, error).into_value(py)),
        _ => None,
    };
    call_remote(py, "lost", (kind, text, lost.stderr(), lost.signal(), lost.exit_code(), cause))
}

fn call_remote<'py>(
    py: Python<'py>,
    name: &str,
    arguments: impl pyo3::call::PyCallArgs<'py>,
) -> PyErr {
    let made = py
        .import("onelane._remote")
        .and_then(|module| module.getattr(name))
        .and_then(|function| function.call1(arguments));
    made.map_or_else(|error| error, PyErr::from_value)
}

/// Notes on an exception that a caller has it: raised again, by a model that made the call, it is
/// not about that model.
fn told(py: Python<'_>, error: PyErr) -> PyErr {
    // One that takes no attributes is about that model, too, at worst.
    let _ = error.value(py).setattr("_told", true);
    error
}

/// Why a request has no response, as an exception.
pub(crate) fn from_request(py: Python<'_>, error: &RequestError) -> PyErr {
    let name = match error {
        RequestError::Engine(error) | RequestError::Rebuild(error) => {
            return from_engine(py, error);
        }
        RequestError::DeadlineExceeded => "DeadlineExceeded",
        RequestError::Cancelled => "RequestCancelled",
        RequestError::Closed => "QueueClosed",
        RequestError::WouldDeadlock => "WouldDeadlock",
        _ => "EngineLost",
    };
    raise(py, name, error.to_string())
}

/// Why something was not accepted, as an exception.
pub(crate) fn from_submit<R>(py: Python<'_>, error: &SubmitError<R>) -> PyErr {
    let name = match error.reason() {
        Refusal::Full => "QueueFull",
        Refusal::Closed => "QueueClosed",
        Refusal::RequestTooLarge { .. } => "RequestTooLarge",
        Refusal::WouldDeadlock => "WouldDeadlock",
        _ => "EngineLost",
    };
    raise(py, name, error.to_string())
}

/// Why a queue or an executor could not be made, as an exception.
pub(crate) fn from_build(py: Python<'_>, error: &BuildError) -> PyErr {
    match error {
        BuildError::Config(_) => pyo3::exceptions::PyValueError::new_err(error.to_string()),
        BuildError::Engine(engine) => from_engine(py, engine),
        BuildError::Closed(_) => raise(py, "QueueClosed", error.to_string()),
        BuildError::WouldDeadlock(_) => raise(py, "WouldDeadlock", error.to_string()),
        BuildError::Thread(_) => pyo3::exceptions::PyRuntimeError::new_err(error.to_string()),
        _ => raise(py, "EngineLost", error.to_string()),
    }
}

/// An exception of `onelane.errors` with a text.
pub(crate) fn raise(py: Python<'_>, name: &str, text: String) -> PyErr {
    let kind = error_class(py, name).and_then(|kind| Ok(kind.cast_into::<PyType>()?));
    match kind {
        Ok(kind) if name == "EngineLost" => told(py, PyErr::from_type(kind, text)),
        Ok(kind) => PyErr::from_type(kind, text),
        Err(error) => error,
    }
}

/// The exception of an object that a fork left to its parent.
pub(crate) fn forked(py: Python<'_>, what: &str) -> PyErr {
    let text = format!(
        "onelane: this {what} belongs to the parent process, whose worker thread does not exist \
         after a fork; make a new one in the child"
    );
    raise(py, "ForkedProcess", text)
}

fn error_class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import(intern!(py, "onelane.errors"))?.getattr(name)
}

fn call_errors<'py>(
    py: Python<'py>,
    name: &str,
    args: impl pyo3::call::PyCallArgs<'py>,
) -> PyResult<Py<PyAny>> {
    Ok(error_class(py, name)?.call1(args)?.unbind())
}
