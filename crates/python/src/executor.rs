//! The device executor as Python's front sees it, and the list of all executors, which are stopped
//! when the interpreter ends.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use onelane::{
    Delivery, DeviceExecutor, ExecutorConfig, Health, PerProcess, Refusal, Request, ResponseHandle,
    Shutdown, SubmitClosure, SubmitError,
};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::failure::{forked, from_build, from_submit, raise};
use crate::interpreter::{Held, attach_worker, drop_attached, generation, is_given_up};
use crate::stats;
use crate::target::is_resolving;
use crate::waiting::{seconds, until, wait_for, wait_future, wait_shutdown};

/// An executor, and whether its Python object is still there. Executors that were dropped stay here
/// until their workers have ended, so that no destructor has to wait for a worker.
struct Registered {
    device: DeviceExecutor,
    /// `None`: it is the process's, until somebody shuts it down.
    owner: Option<Weak<()>>,
}

impl Registered {
    /// Whether nobody needs it here any more. May join its workers.
    fn has_ended(&self) -> bool {
        let is_left = match &self.owner {
            Some(owner) => owner.strong_count() == 0,
            None => self.device.health() == Health::Closed,
        };
        is_left && self.device.shutdown(Shutdown::Drain, Duration::ZERO).is_ok()
    }
}

static ALL: PerProcess<Mutex<Vec<Registered>>> = PerProcess::new(Mutex::new(Vec::new()));

fn all() -> MutexGuard<'static, Vec<Registered>> {
    ALL.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drops the executors that have ended and whose Python objects are gone.
///
/// CORRECTNESS: a worker that ends attaches once more, to give its thread state back. So a shutdown
/// may only be called detached, even one that does not wait: it joins a worker that has just ended.
fn drop_ended(py: Python<'_>) {
    let registered = std::mem::take(&mut *all());
    py.detach(|| {
        let (ended, live): (Vec<_>, Vec<_>) =
            registered.into_iter().partition(Registered::has_ended);
        all().extend(live);
        drop(ended);
    });
}

/// The worker thread, or threads, that own one device.
#[pyclass(frozen, module = "onelane._onelane", name = "Executor")]
pub(crate) struct Executor {
    /// `None` in `drop` alone.
    device: Option<DeviceExecutor>,
    /// `None`: it is the process's.
    alive: Option<Arc<()>>,
    generation: u64,
}

#[pymethods]
impl Executor {
    /// shared: the process's executor of this device, made with these settings if it is not there.
    #[new]
    #[pyo3(signature = (device, workers, shared = false, stack_size = None, stall_after_s = 30.0))]
    fn new(
        py: Python<'_>,
        device: &str,
        workers: usize,
        shared: bool,
        stack_size: Option<usize>,
        stall_after_s: f64,
    ) -> PyResult<Self> {
        drop_ended(py);
        // Who submits holds the interpreter's lock: what it submits until it lets go shares a batch.
        let mut config = ExecutorConfig::new(device)
            .workers(workers)
            .delivery(Delivery::Worker)
            .stall_after(seconds("stall_after_s", stall_after_s)?)
            .around(crate::pool::autorelease)
            .on_wake(|| {
                let _ = attach_worker(|_| ());
            });
        if let Some(stack_size) = stack_size {
            config = config.stack_size(stack_size);
        }
        // CORRECTNESS: detached, because this may wait for the device's last owner to end.
        let device = py.detach(|| match shared {
            true => DeviceExecutor::shared_with(config),
            false => DeviceExecutor::new(config),
        });
        let device = device.map_err(|error| from_build(py, &error))?;
        let alive = (!shared).then(|| Arc::new(()));
        let owner = alive.as_ref().map(Arc::downgrade);
        let mut all = all();
        if !all.iter().any(|registered| registered.device.id() == device.id()) {
            all.push(Registered { device: device.clone(), owner });
        }
        drop(all);
        Ok(Self { device: Some(device), alive, generation: generation() })
    }

    /// Names the executor among those of the process.
    #[getter]
    fn id(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.device(py)?.id())
    }

    #[getter]
    fn workers(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.device(py)?.workers())
    }

    /// Runs `item()` on the worker, some time; on a worker itself now, unless this is the callback of
    /// a future. If it cannot be run, `item.abandon()` is called, on the thread that gives it up.
    ///
    /// Waits for room for it. Not with `wait = False`: says whether there was room, and forgets the
    /// item if there was none.
    #[pyo3(signature = (item, wait = true))]
    fn submit(&self, py: Python<'_>, item: Py<PyAny>, wait: bool) -> PyResult<bool> {
        let device = self.device(py)?;
        let call = Arc::new(Call(Mutex::new(Some(item))));
        if device.is_worker() && !is_resolving() {
            call.run();
            return Ok(true);
        }
        let run = {
            let call = Arc::clone(&call);
            move || call.run()
        };
        let refused = match device.try_submit_no_inline(run) {
            Ok(handle) => {
                Keep::follow(handle);
                return Ok(true);
            }
            Err(refused) => refused,
        };
        if !matches!(refused.reason(), Refusal::Full) {
            return Err(refusal(py, &refused));
        }
        if device.is_worker() {
            // Nobody can wait for room here.
            call.run();
        } else if wait {
            Keep::follow(submit_waiting(py, device, refused.into_refused())?);
        } else {
            call.forget();
            return Ok(false);
        }
        Ok(true)
    }

    /// As `submit`, and does not block: an item that finds no room waits for it by itself.
    fn enter(&self, py: Python<'_>, item: Py<PyAny>) -> PyResult<()> {
        let device = self.device(py)?;
        let call = Arc::new(Call(Mutex::new(Some(item))));
        if device.is_worker() && !is_resolving() {
            call.run();
            return Ok(());
        }
        match device.try_submit_no_inline(move || call.run()) {
            Ok(handle) => Keep::follow(handle),
            Err(refused) if matches!(refused.reason(), Refusal::Full) => {
                let request = Request::new(refused.into_refused());
                Entering::begin(Box::new(device.submit_async(request)));
            }
            Err(refused) => return Err(refusal(py, &refused)),
        }
        Ok(())
    }

    /// Runs `function()` on the worker and waits for what it returns or raises.
    fn call(&self, py: Python<'_>, function: Py<PyAny>) -> PyResult<Py<PyAny>> {
        let device = self.device(py)?;
        let function = Held::new(function);
        let run = move || {
            let ran = attach_worker(|py| {
                let result = function.get().call0(py);
                drop(function);
                result.map(Held::new)
            });
            ran.ok_or(())
        };
        let handle = match device.try_submit(run) {
            Ok(handle) => handle,
            Err(refused) if matches!(refused.reason(), Refusal::Full) => {
                submit_waiting(py, device, refused.into_refused())?
            }
            Err(refused) => return Err(refusal(py, &refused)),
        };
        match wait_for(py, handle, None)? {
            Ok(result) => result.map(|held| held.get().clone_ref(py)),
            Err(()) => Err(raise(py, "EngineLost", "the Python interpreter is ending".to_owned())),
        }
    }

    /// Refuses new work; runs what waits or, with `abort`, gives it up. `False`: the workers have
    /// not ended in time, or this is one of them.
    fn shutdown(&self, py: Python<'_>, abort: bool, timeout: Option<f64>) -> PyResult<bool> {
        let device = self.device(py)?;
        let mode = if abort { Shutdown::Abort } else { Shutdown::Drain };
        let until = until(timeout)?;
        wait_shutdown(py, until, |slice| device.shutdown(mode, slice))
    }

    /// Whether the calling thread is a worker of this executor.
    fn is_worker(&self) -> bool {
        match &self.device {
            Some(device) if self.generation == generation() => device.is_worker(),
            _ => false,
        }
    }

    /// The counters and histograms of the calls, as a dict.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        stats::to_dict(py, &self.device(py)?.snapshot(), 0, None)
    }

    /// See [`stats::health`]; of the worst of the executor's queues.
    fn health(&self, py: Python<'_>) -> PyResult<stats::HealthParts> {
        Ok(stats::health(&self.device(py)?.health()))
    }

    /// Whether a fork has left this executor to the parent process.
    #[getter]
    fn stale(&self) -> bool {
        self.generation != generation()
    }
}

impl Executor {
    pub(crate) fn device(&self, py: Python<'_>) -> PyResult<&DeviceExecutor> {
        match &self.device {
            Some(device) if self.generation == generation() => Ok(device),
            _ => Err(forked(py, "executor")),
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let Some(device) = self.device.take() else {
            return;
        };
        if self.generation != generation() {
            // Its workers are not there to be waited for.
            std::mem::forget(device);
            return;
        }
        if self.alive.take().is_none() {
            // The process keeps it.
            return;
        }
        // Drains in the background; the list keeps it until that is done.
        Python::try_attach(|py| {
            py.detach(|| {
                let _ = device.shutdown(Shutdown::Drain, Duration::ZERO);
                drop(device);
            });
        });
    }
}

/// A work item: it runs, or it is abandoned.
struct Call(Mutex<Option<Py<PyAny>>>);

impl Call {
    fn take(&self) -> Option<Py<PyAny>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// It neither runs nor is abandoned.
    fn forget(&self) {
        drop_attached(self.take());
    }

    fn run(&self) {
        if is_given_up() {
            // Dropped with this, which abandons it.
            return;
        }
        let mut item = self.take();
        let ran = attach_worker(|py| {
            if let Some(item) = item.take() {
                // A work item keeps its own errors; what comes out here has nobody to go to.
                if let Err(error) = item.call0(py) {
                    error.write_unraisable(py, Some(item.bind(py)));
                }
            }
        });
        if ran.is_none() {
            std::mem::forget(item);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut item = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if item.is_none() {
            return;
        }
        let dropped = Python::try_attach(|py| {
            if let Some(item) = item.take()
                && let Err(error) = item.call_method0(py, "abandon")
            {
                error.write_unraisable(py, Some(item.bind(py)));
            }
        });
        if dropped.is_none() {
            std::mem::forget(item);
        }
    }
}

/// Submits a closure, waiting for room, with signals seen.
fn submit_waiting<F, T>(
    py: Python<'_>,
    device: &DeviceExecutor,
    closure: F,
) -> PyResult<ResponseHandle<T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let submitted = wait_future(py, device.submit_async(Request::new(closure)))?;
    submitted.map_err(|refused| refusal(py, &refused))
}

/// Why a call was not accepted, in the words of `concurrent.futures`.
fn refusal<R>(py: Python<'_>, refused: &SubmitError<R>) -> PyErr {
    if matches!(refused.reason(), Refusal::Closed) {
        let text = "cannot schedule new futures after shutdown".to_owned();
        return raise(py, "QueueClosed", text);
    }
    from_submit(py, refused)
}

/// Keeps a handle until its answer has come: dropping it sooner would cancel the work item.
struct Keep(Mutex<Kept>);

enum Kept {
    Nothing,
    Handle {
        /// Dropped with it, after the answer.
        _handle: ResponseHandle<()>,
    },
    /// The answer has come.
    Answered,
}

impl Keep {
    fn follow(mut handle: ResponseHandle<()>) {
        let keep = Arc::new(Self(Mutex::new(Kept::Nothing)));
        let waker = Waker::from(Arc::clone(&keep));
        let polled = handle.poll_no_inline(&mut Context::from_waker(&waker));
        if polled.is_pending() {
            let mut kept = keep.lock();
            if matches!(*kept, Kept::Nothing) {
                *kept = Kept::Handle { _handle: handle };
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Keep {
    fn wake(self: Arc<Self>) {
        let kept = std::mem::replace(&mut *self.lock(), Kept::Answered);
        // Outside the lock. An answered handle cancels nothing.
        drop(kept);
    }
}

/// The submission of a work item that waits for room.
type Submission = Box<dyn Future<Output = Option<ResponseHandle<()>>> + Send + Unpin>;

/// A work item that waits for room by itself, and is followed from there.
struct Entering(Mutex<Stage>);

/// A look takes the submission out: a waker that is called in the middle of one leaves a note.
enum Stage {
    Waits(Submission),
    Looking { woken: bool },
    In,
}

impl Entering {
    fn begin<F>(submission: Box<SubmitClosure<F, ()>>)
    where
        F: FnOnce() + Send + 'static,
    {
        // Refused: the item is dropped, which abandons it.
        let submission = Box::new(Accepted(submission));
        Arc::new(Self(Mutex::new(Stage::Looking { woken: false }))).look(submission);
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(self: &Arc<Self>, mut submission: Submission) {
        let waker = Waker::from(Arc::clone(self));
        loop {
            let polled = Pin::new(&mut submission).poll(&mut Context::from_waker(&waker));
            let mut stage = self.lock();
            match (polled, &*stage) {
                (Poll::Ready(handle), _) => {
                    *stage = Stage::In;
                    drop(stage);
                    if let Some(handle) = handle {
                        Keep::follow(handle);
                    }
                    return;
                }
                (Poll::Pending, Stage::Looking { woken: true }) => {
                    *stage = Stage::Looking { woken: false };
                }
                (Poll::Pending, _) => {
                    *stage = Stage::Waits(submission);
                    return;
                }
            }
        }
    }
}

impl Wake for Entering {
    fn wake(self: Arc<Self>) {
        let mut stage = self.lock();
        match std::mem::replace(&mut *stage, Stage::Looking { woken: false }) {
            Stage::Waits(submission) => {
                drop(stage);
                self.look(submission);
            }
            Stage::Looking { .. } => *stage = Stage::Looking { woken: true },
            Stage::In => *stage = Stage::In,
        }
    }
}

/// The handle of a submission that was accepted.
struct Accepted<F>(Box<SubmitClosure<F, ()>>);

impl<F: FnOnce() + Send + 'static> Future for Accepted<F> {
    type Output = Option<ResponseHandle<()>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut *self.0).poll(context).map(Result::ok)
    }
}

/// Stops all executors of this process; says whether they have ended in `timeout` seconds. What was
/// accepted is run or, with `abort`, given up if it has not started.
///
/// # Errors
/// What a signal handler raised while this waited.
#[pyfunction]
pub(crate) fn shutdown_all(py: Python<'_>, abort: bool, timeout: f64) -> PyResult<bool> {
    let mode = if abort { Shutdown::Abort } else { Shutdown::Drain };
    let until = until(Some(timeout))?;
    let devices: Vec<_> = all().iter().map(|r| r.device.clone()).collect();
    py.detach(|| {
        for device in &devices {
            let _ = device.shutdown(mode, Duration::ZERO);
        }
    });
    let mut ended = true;
    for device in &devices {
        ended &= wait_shutdown(py, until, |slice| device.shutdown(mode, slice))?;
    }
    Ok(ended)
}
