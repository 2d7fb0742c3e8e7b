//! Where an answer goes: a Python future, of `concurrent.futures` or of asyncio, and how it is resolved.

use std::cell::Cell;

use onelane::InferError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyTuple};

use crate::failure::{from_request, from_submit, raise};
use crate::interpreter::imported;
use crate::item::{Answer, Item};

/// What came of a request.
pub(crate) type Outcome = Result<Answer, InferError<Item>>;

/// Where the answer goes.
pub(crate) enum Target {
    /// An `onelane._future.RequestFuture`.
    Thread(Py<PyAny>),
    /// A future of an asyncio event loop: the loop, then the future.
    Loop(Py<PyAny>, Py<PyAny>),
}

/// Resolves a future; `None`: nobody wants the answer any more.
pub(crate) fn resolve(py: Python<'_>, target: Option<Target>, outcome: Outcome) {
    match target {
        None => {}
        Some(Target::Thread(future)) => {
            let _resolving = Resolving::new();
            let resolved = match value(py, outcome) {
                Ok(value) => respond(future.bind(py), value),
                Err(error) => {
                    let error = error.into_value(py);
                    future.call_method1(py, intern!(py, "_fail"), (error,)).map(drop)
                }
            };
            if let Err(error) = resolved {
                error.write_unraisable(py, Some(future.bind(py)));
            }
        }
        Some(Target::Loop(event_loop, future)) => {
            if let Ok(resolved) = resolution(py, future, outcome) {
                tell_loop(py, &event_loop, vec![resolved]);
            }
        }
    }
}

thread_local! {
    /// How many futures are being resolved on this thread, each inside a callback of the one before.
    static RESOLVING: Cell<usize> = const { Cell::new(0) };
}

/// While a future is resolved: its callbacks run here. What they submit to this very worker waits
/// its turn, or a callback that submits with a callback that submits would run inside of each other
/// without end.
struct Resolving;

impl Resolving {
    fn new() -> Self {
        RESOLVING.set(RESOLVING.get() + 1);
        Self
    }
}

impl Drop for Resolving {
    fn drop(&mut self) {
        RESOLVING.set(RESOLVING.get() - 1);
    }
}

/// Whether the calling code is a future's callback.
pub(crate) fn is_resolving() -> bool {
    RESOLVING.get() > 0
}

/// Calls a function that calls the callbacks of a future.
#[pyfunction]
#[pyo3(signature = (function, *args))]
pub(crate) fn resolving<'py>(
    function: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    let _resolving = Resolving::new();
    function.call1(args)
}

/// Sets the result of an `onelane._future.RequestFuture`, which says how this is done in step with
/// those who look at it.
fn respond(future: &Bound<'_, PyAny>, value: Py<PyAny>) -> PyResult<()> {
    let py = future.py();
    let dict = future.getattr(intern!(py, "__dict__"))?.cast_into::<PyDict>()?;
    dict.set_item(intern!(py, "_result"), &value)?;
    // CORRECTNESS: one step decides between a looker, who puts a condition there, and this.
    let resolved = intern!(py, "resolved");
    let lock = dict.call_method1(intern!(py, "setdefault"), (intern!(py, "_lock"), resolved))?;
    if lock.is(resolved) {
        return dict.set_item(intern!(py, "_state"), intern!(py, "FINISHED"));
    }
    future.call_method1(intern!(py, "_finish"), (value, py.None())).map(drop)
}

fn value(py: Python<'_>, outcome: Outcome) -> PyResult<Py<PyAny>> {
    match outcome {
        Ok(answer) => answer.into_result(py),
        Err(InferError::Failed(error)) => Err(from_request(py, &error)),
        Err(InferError::Refused(error)) => Err(from_submit(py, &error)),
        Err(error) => Err(raise(py, "EngineLost", error.to_string())),
    }
}

/// `(future, failed, value)`, as `onelane._aio.resolve` wants them.
pub(crate) fn resolution(
    py: Python<'_>,
    future: Py<PyAny>,
    outcome: Outcome,
) -> PyResult<Py<PyAny>> {
    let (failed, value) = match value(py, outcome) {
        Ok(value) => (false, value),
        Err(error) => (true, error.into_value(py).into_any()),
    };
    Ok((future, failed, value).into_pyobject(py)?.into_any().unbind())
}

/// Has a loop resolve futures of its own.
pub(crate) fn tell_loop(py: Python<'_>, event_loop: &Py<PyAny>, futures: Vec<Py<PyAny>>) {
    static RESOLVE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let tell = || -> PyResult<()> {
        let resolve = imported(py, &RESOLVE, "onelane._aio", "resolve")?;
        let args = (resolve, PyList::new(py, futures)?);
        event_loop.call_method1(py, intern!(py, "call_soon_threadsafe"), args)?;
        Ok(())
    };
    // A loop that has been closed has nobody left who waits.
    let _ = tell();
}
