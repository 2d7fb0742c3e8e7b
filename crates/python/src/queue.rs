//! The batch queue as Python's front sees it: inputs are opaque objects with a key, a cost and an
//! urgency that the front has worked out.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use onelane::{
    BatchConfig, BatchQueue, BuildError, DeviceExecutor, Priority, Refusal, Request, RequestError,
    ResponseHandle, Shutdown,
};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::engine::{self, PyEngine, PyFactory};
use crate::executor::Executor;
use crate::failure::{forked, from_build, from_submit, raise};
use crate::interpreter::{Held, Step, generation, is_any_worker, wait};
use crate::isolation::Supervisor;
use crate::item::{Answer, Item, Payload};
use crate::pending::{Pending, Ticket};
use crate::remote::RemoteFactory;
use crate::stats::{self, Elements};
use crate::target::{Target, is_resolving};
use crate::turnstile::{GilTurnstile, Turn, Waiter};
use crate::waiting::{is_over, outcome, patience, seconds, until, wait_for, wait_shutdown};

type Handle = ResponseHandle<Answer>;

/// The typed front of one engine, which is a Python function.
#[pyclass(frozen, module = "onelane._onelane", name = "Queue")]
pub(crate) struct Queue {
    /// `None` in `drop` alone.
    queue: Option<BatchQueue<PyEngine>>,
    /// `None` in `drop` alone.
    device: Option<DeviceExecutor>,
    turnstile: Arc<GilTurnstile>,
    /// Attempts that found the queue full and were followed by a wait: not refusals.
    waited: AtomicU64,
    /// `None`: nothing is padded.
    elements: Option<Py<Elements>>,
    generation: u64,
}

/// What Python's collator has made of an input, with its batch key and its cost.
#[derive(FromPyObject)]
pub(crate) struct Submission {
    #[pyo3(item(0))]
    payload: Py<PyAny>,
    #[pyo3(item(1))]
    key: u64,
    #[pyo3(item(2))]
    cost: usize,
}

impl Submission {
    pub(crate) fn into_item(self) -> Item {
        Item::new(Payload::Prepared(self.payload), self.key, self.cost)
    }
}

/// How a request is to be treated.
#[derive(Clone, Copy, Default)]
pub(crate) struct Terms {
    pub(crate) priority: Priority,
    pub(crate) until: Option<Instant>,
}

impl Terms {
    fn request(&self, item: Item) -> Request<Item> {
        let request = Request::new(item).priority(self.priority);
        match self.until {
            Some(until) => request.deadline(until),
            None => request,
        }
    }
}

#[pymethods]
impl Queue {
    /// build: makes a runner, see [`PyFactory`]; or a `Supervisor`, whose children run the batches.
    #[new]
    #[pyo3(signature = (executor, build, **settings))]
    fn new(
        py: Python<'_>,
        executor: &Executor,
        build: Py<PyAny>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let device = executor.device(py)?.clone();
        let Settings { mut config, idempotent, elements } = read_settings(settings)?;
        let how = match build.bind(py).cast::<Supervisor>() {
            Ok(supervisor) => {
                let supervisor = supervisor.get();
                // Requests that take their children along, one after another, are no reason to give
                // up: starts that fail have pauses between them.
                config.max_rebuilds = u32::MAX;
                let codec = supervisor.codec(py);
                PyFactory::Child(RemoteFactory::new(supervisor.core(py)?, codec))
            }
            Err(_) => PyFactory::Here(Held::new(build), idempotent),
        };
        let turnstile = GilTurnstile::new();
        let engines_turnstile = Arc::clone(&turnstile);
        let factory = move || PyEngine::build(&how, &engines_turnstile);
        let queue = if device.is_worker() {
            // Python code of ours runs on the worker: build right here.
            py.detach(|| BatchQueue::new(&device, config, factory))
        } else {
            build_interruptibly(py, &device, config, factory)?
        };
        Ok(Self {
            queue: Some(queue.map_err(|error| from_build(py, &error))?),
            device: Some(device),
            turnstile,
            waited: AtomicU64::new(0),
            elements,
            generation: generation(),
        })
    }

    /// Refuses new requests; what was accepted is run.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.queue(py)?.close();
        Ok(())
    }

    /// Closes the queue and waits until the engine is gone. `False`: the time was over first, or
    /// this is the worker itself; the shutdown goes on.
    fn shutdown(&self, py: Python<'_>, abort: bool, timeout: Option<f64>) -> PyResult<bool> {
        let queue = self.queue(py)?;
        let mode = if abort { Shutdown::Abort } else { Shutdown::Drain };
        let until = until(timeout)?;
        wait_shutdown(py, until, |slice| queue.shutdown(mode, slice))
    }

    /// The counters and histograms, as a dict.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let snapshot = self.queue(py)?.snapshot();
        let elements = self.elements.as_ref().map(Py::get);
        stats::to_dict(py, &snapshot, self.waited.load(Ordering::Relaxed), elements)
    }

    /// See [`BatchQueue::load`].
    fn load(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.queue(py)?.load())
    }

    /// See [`stats::health`].
    fn health(&self, py: Python<'_>) -> PyResult<stats::HealthParts> {
        Ok(stats::health(&self.queue(py)?.health()))
    }

    /// Whether the calling thread is a worker of the queue's executor.
    pub(crate) fn is_worker(&self) -> bool {
        self.generation == generation()
            && self.device.as_ref().is_some_and(DeviceExecutor::is_worker)
    }
}

impl Queue {
    /// That it was made in this process.
    pub(crate) fn check(&self, py: Python<'_>) -> PyResult<()> {
        self.queue(py).map(drop)
    }

    /// Submits a request and waits for its response, without a future.
    pub(crate) fn call(&self, py: Python<'_>, item: Item, terms: Terms) -> PyResult<Py<PyAny>> {
        let queue = self.queue(py)?;
        let handle = self.submit_waiting(py, queue, terms.request(item), terms.until)?;
        let answer = if self.is_worker() {
            wait_for(py, handle, terms.until)?
        } else {
            let turn = Turn::new(&self.turnstile);
            let answer = self.wait_polled(py, &turn, handle, terms.until)?;
            drop(turn);
            // `None`: dropped; the request runs, and its response has no reader.
            outcome(py, answer)?
        };
        answer.into_result(py)
    }

    /// Submits a request whose response goes into a future of ours. `wait`: for room, if there is none.
    pub(crate) fn submit_item(
        &self,
        py: Python<'_>,
        item: Item,
        terms: Terms,
        future: Py<PyAny>,
        wait: bool,
    ) -> PyResult<Ticket> {
        let queue = self.queue(py)?;
        let pending = Pending::new(Target::Thread(future));
        let request = terms.request(item.with_pending(pending.clone()));
        if !wait {
            let accepted = queue.try_submit(request);
            let handle = accepted.map_err(|refused| from_submit(py, &refused))?;
            if self.is_worker() && !self.must_wait_its_turn() {
                pending.answered(py, py.detach(|| handle.wait()));
            } else {
                pending.accepted(py, handle);
            }
        } else if !self.is_worker() {
            let handle = self.submit_waiting(py, queue, request, terms.until)?;
            pending.accepted(py, handle);
        } else if self.must_wait_its_turn() {
            pending.enter(py, queue.infer(request))?;
        } else {
            let handle = self.submit_waiting(py, queue, request, terms.until)?;
            pending.answered(py, py.detach(|| handle.wait()));
        }
        Ok(Ticket(pending))
    }

    /// Submits several requests at once: all or none.
    pub(crate) fn submit_items(
        &self,
        py: Python<'_>,
        items: Vec<(Item, Py<PyAny>)>,
        terms: Terms,
    ) -> PyResult<Vec<Ticket>> {
        let queue = self.queue(py)?;
        let mut requests = Vec::with_capacity(items.len());
        let mut pendings = Vec::with_capacity(items.len());
        for (item, future) in items {
            let pending = Pending::new(Target::Thread(future));
            requests.push(terms.request(item.with_pending(pending.clone())));
            pendings.push(pending);
        }
        let (is_worker, must_wait) = (self.is_worker(), self.must_wait_its_turn());
        match queue.try_submit_group(requests) {
            Ok(handles) => {
                for (pending, handle) in pendings.iter().zip(handles) {
                    if is_worker && !must_wait {
                        pending.answered(py, py.detach(|| handle.wait()));
                    } else {
                        pending.accepted(py, handle);
                    }
                }
            }
            Err(refused) if !matches!(refused.reason(), Refusal::Full) => {
                return Err(from_submit(py, &refused));
            }
            // Nobody may wait here: they go in one by one.
            Err(refused) if is_worker && must_wait => {
                self.count_waited(pendings.len());
                for (pending, request) in pendings.iter().zip(refused.into_refused()) {
                    pending.enter(py, queue.infer(request))?;
                }
            }
            Err(refused) => {
                self.count_waited(pendings.len());
                let requests = refused.into_refused();
                let handles = self.wait_for_room(py, queue, requests, terms.until)?;
                for (pending, handle) in pendings.iter().zip(handles) {
                    if is_worker {
                        pending.answered(py, py.detach(|| handle.wait()));
                    } else {
                        pending.accepted(py, handle);
                    }
                }
            }
        }
        Ok(pendings.into_iter().map(Ticket).collect())
    }

    /// Submits a request whose response goes into a future of an asyncio event loop. Does not
    /// block: a request that finds no room waits for it by itself.
    pub(crate) fn submit_async(
        &self,
        py: Python<'_>,
        item: Item,
        terms: Terms,
        (event_loop, future): (Py<PyAny>, Py<PyAny>),
    ) -> PyResult<Ticket> {
        let queue = self.queue(py)?;
        let pending = Pending::new(Target::Loop(event_loop, future));
        let request = terms.request(item.with_pending(pending.clone()));
        if self.is_worker() {
            // The loop runs on the worker: what it awaits is run now.
            let handle = self.submit_waiting(py, queue, request, terms.until)?;
            pending.answered(py, py.detach(|| handle.wait()));
        } else {
            pending.enter(py, queue.infer(request))?;
        }
        Ok(Ticket(pending))
    }

    /// On a worker: whether a request can only be run after the calling code has returned, or must
    /// be, lest callbacks run inside of each other without end.
    fn must_wait_its_turn(&self) -> bool {
        is_resolving() || engine::is_running(&self.turnstile)
    }

    fn queue(&self, py: Python<'_>) -> PyResult<&BatchQueue<PyEngine>> {
        match &self.queue {
            Some(queue) if self.generation == generation() => Ok(queue),
            _ => Err(forked(py, "queue")),
        }
    }

    fn count_waited(&self, requests: usize) {
        self.waited.fetch_add(requests as u64, Ordering::Relaxed);
    }

    /// Submits, waiting for room if need be. With room, the interpreter is not let go of.
    fn submit_waiting(
        &self,
        py: Python<'_>,
        queue: &BatchQueue<PyEngine>,
        request: Request<Item>,
        until: Option<Instant>,
    ) -> PyResult<Handle> {
        let request = match queue.try_submit(request) {
            Ok(handle) => return Ok(handle),
            Err(refused) if matches!(refused.reason(), Refusal::Full) => refused.into_refused(),
            Err(refused) => return Err(from_submit(py, &refused)),
        };
        self.count_waited(1);
        let mut handles = self.wait_for_room(py, queue, vec![request], until)?;
        Ok(handles.pop().expect("there is one for each request"))
    }

    /// Hands requests over once, and waits until there is room for all of them.
    fn wait_for_room(
        &self,
        py: Python<'_>,
        queue: &BatchQueue<PyEngine>,
        requests: Vec<Request<Item>>,
        until: Option<Instant>,
    ) -> PyResult<Vec<Handle>> {
        if is_any_worker() {
            // It makes room inline, or is told if it waits for one who waits for it.
            let submitted = py.detach(|| match patience(until, None) {
                None => queue.submit_group(requests),
                Some(patience) => queue.submit_group_timeout(requests, patience),
            });
            return submitted.map_err(|error| from_submit(py, &error));
        }
        let turn = Turn::new(&self.turnstile);
        let submission = queue.submit_group_async(requests);
        let entered = self.wait_polled(py, &turn, submission, until)?;
        drop(turn);
        let full = || raise(py, "QueueFull", Refusal::Full.to_string());
        let mut handles = match entered {
            Some(entered) => entered.map_err(|error| from_submit(py, &error))?,
            None => return Err(full()),
        };
        // Those whose deadline comes while they wait for room are told so as accepted ones are.
        let has_expired = |handle: &mut Handle| {
            let polled = handle.poll_no_inline(&mut Context::from_waker(Waker::noop()));
            matches!(polled, Poll::Ready(Err(RequestError::DeadlineExceeded)))
        };
        if is_over(until) && handles.first_mut().is_some_and(has_expired) {
            return Err(full());
        }
        Ok(handles)
    }

    /// Waits detached for a future of the core's, with signals seen, on a thread that the turnstile
    /// lets back in. `None`: the time was over first, and the future has been dropped.
    fn wait_polled<F>(
        &self,
        py: Python<'_>,
        turn: &Turn<'_>,
        future: F,
        until: Option<Instant>,
    ) -> PyResult<Option<F::Output>>
    where
        F: Future<Output: Send> + Send + Unpin,
    {
        let waker = turn.waker();
        wait(py, future, |mut future, slice| {
            Turn::leave();
            let end = slice.and_then(|slice| Instant::now().checked_add(slice));
            loop {
                let mut context = Context::from_waker(&waker);
                if let Poll::Ready(output) = Pin::new(&mut future).poll(&mut context) {
                    turn.wait_at_door();
                    return Step::Done(Some(output));
                }
                if is_over(until) {
                    return Step::Done(None);
                }
                if is_over(end) {
                    return Step::Again(future);
                }
                Waiter::park(patience(until, patience(end, None)));
            }
        })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.generation != generation() {
            // The locks of the core may have been held by another thread when the process forked,
            // and the worker is not there to be waited for.
            std::mem::forget(self.queue.take());
            std::mem::forget(self.device.take());
        }
    }
}

type Built = Result<BatchQueue<PyEngine>, BuildError>;

/// Loading a model can take minutes: on the main thread signals are seen meanwhile.
fn build_interruptibly(
    py: Python<'_>,
    device: &DeviceExecutor,
    config: BatchConfig,
    factory: impl Fn() -> Result<PyEngine, onelane::EngineError> + Send + Sync + 'static,
) -> PyResult<Built> {
    let (sender, receiver) = sync_channel::<Built>(1);
    let device = device.clone();
    let build = move || {
        // If nobody waits any more, the queue is dropped, which closes it.
        let _ = sender.send(BatchQueue::new(&device, config, factory));
    };
    let name = "onelane build".to_owned();
    let thread = std::thread::Builder::new().name(name).spawn(build);
    let thread = thread.map_err(|error| PyRuntimeError::new_err(format!("no thread: {error}")))?;
    let built = wait(py, receiver, |receiver, slice| {
        let slice = slice.unwrap_or(Duration::from_secs(3600));
        match receiver.recv_timeout(slice) {
            Ok(built) => Step::Done(Ok(built)),
            Err(RecvTimeoutError::Timeout) => Step::Again(receiver),
            Err(RecvTimeoutError::Disconnected) => Step::Done(Err(())),
        }
    })?;
    // It has nothing more to do: no thread is left behind by a queue that is made.
    let _ = py.detach(|| thread.join());
    built.map_err(|()| PyRuntimeError::new_err("the thread that built the queue has died"))
}

/// What Python says of a queue.
struct Settings {
    config: BatchConfig,
    idempotent: bool,
    elements: Option<Py<Elements>>,
}

/// The settings of a queue, by the names of `BatchConfig`; times in seconds.
fn read_settings(settings: Option<&Bound<'_, PyDict>>) -> PyResult<Settings> {
    let mut config = BatchConfig::default();
    let (mut idempotent, mut elements) = (true, None);
    let Some(settings) = settings else {
        return Ok(Settings { config, idempotent, elements });
    };
    for (name, value) in settings.iter() {
        let name: String = name.extract()?;
        match name.as_str() {
            "name" => config.name = value.extract()?,
            "max_batch_size" => config.max_batch_size = value.extract()?,
            "max_batch_cost" => config.max_batch_cost = value.extract()?,
            "capacity" => config.capacity = value.extract()?,
            "max_wait" => {
                config.max_wait = seconds("max_wait", value.extract()?)?;
            }
            "stall_after_s" => config.stall_after = seconds("stall_after_s", value.extract()?)?,
            "weight" => config.weight = value.extract()?,
            "elements" => elements = value.extract()?,
            "idempotent" => idempotent = value.extract()?,
            _ => return Err(PyValueError::new_err(format!("unknown setting {name:?}"))),
        }
    }
    config.validate().map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(Settings { config, idempotent, elements })
}
