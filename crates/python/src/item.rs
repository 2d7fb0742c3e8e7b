//! One request as the core sees it. The key and the cost are plain numbers: the core compares keys
//! under its lock, where no Python code may run.

use std::cell::Cell;
use std::sync::Arc;

use onelane::BatchItem;
use pyo3::prelude::*;

use crate::interpreter::drop_attached;
use crate::plain::Plain;

/// What a request brings to the worker.
pub(crate) enum Payload {
    /// A tensor by itself, looked at in Rust alone.
    Plain(Plain),
    /// What Python's collator has made of an input.
    Prepared(Py<PyAny>),
}

impl Payload {
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    pub(crate) fn into_plain(self) -> Option<Plain> {
        match self {
            Self::Plain(plain) => Some(plain),
            Self::Prepared(_) => None,
        }
    }

    fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::Plain(plain) => Self::Plain(plain.clone_ref(py)),
            Self::Prepared(payload) => Self::Prepared(payload.clone_ref(py)),
        }
    }
}

/// Who wants the answer of a request, and may have cancelled it.
pub(crate) trait Start: Send + Sync {
    /// Claims the request for running; `false` when it has been cancelled. Tells its future the
    /// first time.
    fn start(&self, py: Python<'_>) -> bool;
}

/// The input of one request.
pub(crate) struct Item {
    /// Taken out when the request has run, so that it is dropped while the worker is attached.
    payload: Cell<Option<Payload>>,
    key: u64,
    cost: usize,
    pending: Option<Arc<dyn Start>>,
}

impl Item {
    pub(crate) fn new(payload: Payload, key: u64, cost: usize) -> Self {
        Self { payload: Cell::new(Some(payload)), key, cost, pending: None }
    }

    pub(crate) fn with_pending(mut self, pending: Arc<dyn Start>) -> Self {
        self.pending = Some(pending);
        self
    }

    /// Claims the request for running. `None` when it was cancelled.
    pub(crate) fn start(&self, py: Python<'_>) -> Option<Payload> {
        if self.pending.as_ref().is_some_and(|p| !p.start(py)) {
            return None;
        }
        let payload = self.payload.take()?;
        let copy = payload.clone_ref(py);
        self.payload.set(Some(payload));
        Some(copy)
    }

    /// Drops the input.
    pub(crate) fn finish(&self, _py: Python<'_>) {
        drop(self.payload.take());
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        if let Some(payload) = self.payload.take() {
            drop_attached(payload);
        }
    }
}

impl BatchItem for Item {
    type Key = u64;

    fn key(&self) -> u64 {
        self.key
    }

    fn cost(&self) -> usize {
        self.cost
    }
}

/// The response to one request; dropped on the thread where it is given up.
pub(crate) struct Answer(Option<Py<PyAny>>);

impl Answer {
    pub(crate) fn new(value: Py<PyAny>) -> Self {
        Self(Some(value))
    }

    /// The answer to a request that was cancelled before it started; nobody reads it.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// The response, or the exception that stands in its place.
    pub(crate) fn into_result(mut self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let value = self.0.take().unwrap_or_else(|| py.None());
        match value.cast_bound::<Failure>(py) {
            Ok(failure) => Err(PyErr::from_value(failure.get().0.bind(py).clone())),
            Err(_) => Ok(value),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(value) = self.0.take() {
            drop_attached(value);
        }
    }
}

/// Stands for the response to a request that has failed while its batch has not.
#[pyclass(frozen, module = "onelane._onelane")]
pub(crate) struct Failure(Py<PyAny>);

impl Failure {
    pub(crate) fn of(error: Py<PyAny>) -> Self {
        Self(error)
    }
}

#[pymethods]
impl Failure {
    #[new]
    fn new(error: Py<PyAny>) -> Self {
        Self(error)
    }
}
