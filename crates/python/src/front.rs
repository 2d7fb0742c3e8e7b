//! The base class of `onelane.BatchQueue`: a call, from the caller's frame to the core and back,
//! without a Python frame in between when the input is a plain tensor.

use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use onelane::{ParsePriorityError, Priority};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use crate::interpreter::imported;
use crate::item::{Item, Payload};
use crate::pending::Ticket;
use crate::plain::{Reader, Torch};
use crate::queue::{Queue, Submission, Terms};
use crate::waiting::until;

/// How many executors are held by a thread or task: its calls go another way, see `_hold.py`.
static HELD: AtomicIsize = AtomicIsize::new(0);

/// An executor is held from now on, or no more.
#[pyfunction]
pub(crate) fn held(change: isize) {
    HELD.fetch_add(change, Ordering::Relaxed);
}

/// What a batch queue is made of, once it is open.
struct Open {
    queue: Py<Queue>,
    /// The cost of a request is its rows, and no more than this.
    max_cost: usize,
    /// `None`: Python's collator looks at every input.
    reader: Option<Reader>,
}

/// The base class of `onelane.BatchQueue`.
///
/// What it does not do itself it asks of the subclass: `_prepare(inputs, named)` returns a payload,
/// its batch key and its cost. While an executor is held, `_call_held(inputs, named)` may answer a
/// call; `NotImplemented`: it is none of the holder's.
#[pyclass(subclass, frozen, module = "onelane._onelane")]
pub(crate) struct Front(OnceLock<Open>);

#[pymethods]
impl Front {
    #[new]
    #[pyo3(signature = (*_args, **_settings))]
    fn new(_args: &Bound<'_, PyTuple>, _settings: Option<&Bound<'_, PyDict>>) -> Self {
        Self(OnceLock::new())
    }

    /// Connects it to its queue, once.
    fn _open(&self, queue: Py<Queue>, max_cost: usize, torch: Option<Torch>) -> PyResult<()> {
        let open = Open { queue, max_cost, reader: torch.map(Reader::new) };
        self.0.set(open).map_err(|_| PyRuntimeError::new_err("the queue is open already"))
    }

    /// One request, and its response.
    #[pyo3(signature = (*inputs, **named))]
    fn __call__(
        slf: &Bound<'_, Self>,
        inputs: &Bound<'_, PyTuple>,
        named: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let open = slf.get().open(py)?;
        if HELD.load(Ordering::Relaxed) > 0 {
            let answer = slf.call_method1(intern!(py, "_call_held"), (inputs, named))?;
            if !answer.is(py.NotImplemented()) {
                return Ok(answer.unbind());
            }
        }
        let (terms, named) = match named {
            Some(named) if !named.is_empty() => split_terms(named)?,
            _ => (Terms::default(), None),
        };
        let item = open.item(slf, inputs, named.as_ref())?;
        open.queue.get().call(py, item, terms)
    }

    /// One request; returns its future. `wait`: for room, if there is none.
    #[pyo3(signature = (inputs, named, timeout, deadline, priority, wait = true))]
    #[allow(clippy::too_many_arguments, reason = "the call of one Python method")]
    fn _submit(
        slf: &Bound<'_, Self>,
        inputs: &Bound<'_, PyTuple>,
        named: &Bound<'_, PyDict>,
        timeout: Option<f64>,
        deadline: Option<f64>,
        priority: &str,
        wait: bool,
    ) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let open = slf.get().open(py)?;
        let terms = terms(py, timeout, deadline, priority)?;
        let item = open.item(slf, inputs, Some(named))?;
        let future = new_future(py)?;
        let ticket =
            open.queue.get().submit_item(py, item, terms, future.clone().unbind(), wait)?;
        give_ticket(&future, ticket)?;
        Ok(future.unbind())
    }

    /// Several requests of one input each; returns their futures.
    fn _submit_many(
        slf: &Bound<'_, Self>,
        inputs: &Bound<'_, PyAny>,
        timeout: Option<f64>,
        deadline: Option<f64>,
        priority: &str,
    ) -> PyResult<Py<PyList>> {
        let py = slf.py();
        let open = slf.get().open(py)?;
        let mut items = Vec::new();
        let futures = PyList::empty(py);
        for input in inputs.try_iter()? {
            let item = open.item(slf, &PyTuple::new(py, [input?])?, None)?;
            let future = new_future(py)?;
            futures.append(&future)?;
            items.push((item, future.unbind()));
        }
        let terms = terms(py, timeout, deadline, priority)?;
        let tickets = open.queue.get().submit_items(py, items, terms)?;
        for (future, ticket) in futures.iter().zip(tickets) {
            give_ticket(&future, ticket)?;
        }
        Ok(futures.unbind())
    }

    /// Reads one request, with the calling thread's modes; `_infer` submits it.
    fn _read(
        slf: &Bound<'_, Self>,
        inputs: &Bound<'_, PyTuple>,
        named: &Bound<'_, PyDict>,
        timeout: Option<f64>,
        deadline: Option<f64>,
        priority: &str,
    ) -> PyResult<Reading> {
        let py = slf.py();
        let open = slf.get().open(py)?;
        let terms = terms(py, timeout, deadline, priority)?;
        let item = open.item(slf, inputs, Some(named))?;
        Ok(Reading(Mutex::new(Some((item, terms)))))
    }

    /// Submits a request of a task; returns a future of its event loop, and the ticket.
    fn _infer(slf: &Bound<'_, Self>, reading: &Reading) -> PyResult<(Py<PyAny>, Ticket)> {
        static RUNNING_LOOP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = slf.py();
        let open = slf.get().open(py)?;
        let read = reading.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (item, terms) =
            read.ok_or_else(|| PyRuntimeError::new_err("the request was submitted already"))?;
        let event_loop = imported(py, &RUNNING_LOOP, "asyncio", "get_running_loop")?.call0()?;
        let future = event_loop.call_method0(intern!(py, "create_future"))?.unbind();
        let target = (event_loop.unbind(), future.clone_ref(py));
        let ticket = open.queue.get().submit_async(py, item, terms, target)?;
        Ok((future, ticket))
    }
}

/// A request that was read and has not been submitted.
#[pyclass(frozen, module = "onelane._onelane")]
pub(crate) struct Reading(Mutex<Option<(Item, Terms)>>);

impl Front {
    /// What it is made of. CORRECTNESS: in the child of a fork this comes before any lock.
    fn open(&self, py: Python<'_>) -> PyResult<&Open> {
        let open = self.0.get();
        let open = open.ok_or_else(|| PyRuntimeError::new_err("the queue was not initialised"))?;
        open.queue.get().check(py)?;
        Ok(open)
    }
}

impl Open {
    fn item(
        &self,
        front: &Bound<'_, Front>,
        inputs: &Bound<'_, PyTuple>,
        named: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Item> {
        let py = front.py();
        if let Some(reader) = &self.reader
            && inputs.len() == 1
            && named.is_none_or(|named| named.is_empty())
            && let Some(plain) = reader.read(&inputs.get_item(0)?)?
        {
            let key = plain.kind.key;
            let cost = plain.rows.clamp(1, self.max_cost);
            return Ok(Item::new(Payload::Plain(plain), key, cost));
        }
        let named = named.map_or_else(|| PyDict::new(py), Bound::clone);
        let prepared = front.call_method1(intern!(py, "_prepare"), (inputs, named))?;
        Ok(prepared.extract::<Submission>()?.into_item())
    }
}

/// Takes the terms of a request out of the keyword arguments of a call.
fn split_terms<'py>(named: &Bound<'py, PyDict>) -> PyResult<(Terms, Option<Bound<'py, PyDict>>)> {
    let py = named.py();
    let rest = named.copy()?;
    let take = |name: &Bound<'py, PyString>| -> PyResult<Option<Bound<'py, PyAny>>> {
        let value = rest.get_item(name)?;
        if value.is_some() {
            rest.del_item(name)?;
        }
        Ok(value.filter(|value| !value.is_none()))
    };
    let timeout = take(intern!(py, "timeout"))?.map(|value| value.extract()).transpose()?;
    let deadline = take(intern!(py, "deadline"))?.map(|value| value.extract()).transpose()?;
    let priority = take(intern!(py, "priority"))?;
    let priority = match &priority {
        Some(priority) => priority.extract::<&str>()?,
        None => "normal",
    };
    let terms = terms(py, timeout, deadline, priority)?;
    Ok((terms, (!rest.is_empty()).then_some(rest)))
}

/// timeout: seconds from now; deadline: an instant of `time.monotonic()`. The earlier one counts.
fn terms(
    py: Python<'_>,
    timeout: Option<f64>,
    deadline: Option<f64>,
    priority: &str,
) -> PyResult<Terms> {
    static MONOTONIC: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let priority: Priority = priority
        .parse()
        .map_err(|error: ParsePriorityError| PyValueError::new_err(error.to_string()))?;
    let left = match deadline {
        None => timeout,
        Some(deadline) => {
            let now: f64 = imported(py, &MONOTONIC, "time", "monotonic")?.call0()?.extract()?;
            let left = deadline - now;
            Some(timeout.map_or(left, |timeout| timeout.min(left)))
        }
    };
    Ok(Terms { priority, until: until(left)? })
}

fn new_future(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static FUTURE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    imported(py, &FUTURE, "onelane._future", "RequestFuture")?.call0()
}

fn give_ticket(future: &Bound<'_, PyAny>, ticket: Ticket) -> PyResult<()> {
    future.setattr(intern!(future.py(), "_ticket"), ticket)
}
