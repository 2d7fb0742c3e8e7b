//! The device executor as Python's front sees it, and the list of all executors, which are stopped
//! when the interpreter ends.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Wake, Waker};
use std::time::Duration;
use std::{future::Future, pin::Pin};

use onelane::{Delivery, DeviceExecutor, ExecutorConfig, ResponseHandle, Shutdown};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::failure::{forked, from_build, raise};
use crate::gate::Load;
use crate::interpreter::{attach_worker, drop_attached, generation};
use crate::queue::{wait_for, wait_shutdown};
use crate::stats;

/// An executor and whether its Python object is still there. Executors that were dropped stay here
/// until their workers have ended, so that no destructor has to wait for a worker.
struct Registered {
    device: DeviceExecutor,
    owner: Weak<()>,
}

static ALL: Mutex<Vec<Registered>> = Mutex::new(Vec::new());

fn all() -> MutexGuard<'static, Vec<Registered>> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drops the executors that have ended and whose Python objects are gone.
///
/// CORRECTNESS: a worker that ends attaches once more, to give its thread state back. So a shutdown
/// may only be called detached, even one that does not wait: it joins a worker that has just ended.
fn drop_ended(py: Python<'_>) {
    let registered = std::mem::take(&mut *all());
    py.detach(|| {
        let (ended, live): (Vec<_>, Vec<_>) = registered.into_iter().partition(|registered| {
            registered.owner.strong_count() == 0
                && registered.device.shutdown(Shutdown::Drain, Duration::ZERO).is_ok()
        });
        all().extend(live);
        drop(ended);
    });
}

/// The worker thread, or threads, that own one device.
#[pyclass(frozen, module = "onelane._onelane", name = "Executor")]
pub(crate) struct Executor {
    /// `None` in `drop` alone.
    device: Option<DeviceExecutor>,
    alive: Option<Arc<()>>,
    load: Arc<Load>,
    generation: u64,
}

#[pymethods]
impl Executor {
    #[new]
    fn new(py: Python<'_>, device: &str, workers: usize) -> PyResult<Self> {
        drop_ended(py);
        let config = ExecutorConfig::new(device).workers(workers).delivery(Delivery::Worker);
        let device = DeviceExecutor::new(config).map_err(|error| from_build(py, &error))?;
        let alive = Arc::new(());
        all().push(Registered { device: device.clone(), owner: Arc::downgrade(&alive) });
        Ok(Self {
            device: Some(device),
            alive: Some(alive),
            load: Load::new(),
            generation: generation(),
        })
    }

    /// Runs `item()` on the worker, some time. If it cannot be run, `item.abandon()` is called, on
    /// the thread that gives it up.
    fn submit(&self, py: Python<'_>, item: Py<PyAny>) -> PyResult<()> {
        let device = self.device(py)?;
        let call = Call(Some(item));
        let waits = self.load.call_waits();
        let run = move || {
            drop(waits);
            call.run();
        };
        match device.submit(run) {
            Ok(handle) => {
                Keep::follow(handle);
                Ok(())
            }
            Err(_) => Err(closed(py)),
        }
    }

    /// Runs `function()` on the worker and waits for what it returns or raises.
    fn call(&self, py: Python<'_>, function: Py<PyAny>) -> PyResult<Py<PyAny>> {
        let device = self.device(py)?;
        let function = Held(Some(function));
        let waits = self.load.call_waits();
        let run = move || {
            drop(waits);
            let ran = attach_worker(|py| {
                let result = function.get().call0(py);
                drop(function);
                result.map(|value| Held(Some(value)))
            });
            ran.ok_or(())
        };
        let handle = device.submit(run).map_err(|_| closed(py))?;
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
        let until = match timeout {
            None => None,
            Some(timeout) => {
                let timeout = Duration::try_from_secs_f64(timeout.max(0.0)).unwrap_or_default();
                std::time::Instant::now().checked_add(timeout)
            }
        };
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
        stats::to_dict(py, &self.device(py)?.stats(), 0)
    }

    /// `(state, detail, running_for_s)` of the worst of the executor's queues.
    fn health(&self, py: Python<'_>) -> PyResult<(&'static str, Option<String>, Option<f64>)> {
        Ok(stats::health(&self.device(py)?.health()))
    }

    /// Whether a fork has left this executor to the parent process.
    #[getter]
    fn stale(&self) -> bool {
        self.generation != generation()
    }
}

impl Executor {
    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.load
    }

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
        drop(self.alive.take());
        // Drains in the background; the list keeps it until that is done.
        Python::try_attach(|py| {
            py.detach(|| {
                let _ = device.shutdown(Shutdown::Drain, Duration::ZERO);
                drop(device);
            });
        });
    }
}

fn closed(py: Python<'_>) -> PyErr {
    let text = "cannot schedule new futures after shutdown".to_owned();
    raise(py, "QueueClosed", text)
}

/// A Python object that is dropped attached.
struct Held(Option<Py<PyAny>>);

impl Held {
    fn get(&self) -> &Py<PyAny> {
        self.0.as_ref().expect("it is taken in drop alone")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop_attached(self.0.take());
    }
}

/// A work item: it runs, or it is abandoned.
struct Call(Option<Py<PyAny>>);

impl Call {
    fn run(mut self) {
        let Some(item) = self.0.take() else { return };
        let mut item = Some(item);
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
        let mut item = self.0.take();
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
        let polled = Pin::new(&mut handle).poll(&mut Context::from_waker(&waker));
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

/// Stops all executors of this process: what was accepted is run.
///
/// # Errors
/// What a signal handler raised while this waited.
#[pyfunction]
pub(crate) fn shutdown_all(py: Python<'_>) -> PyResult<()> {
    let devices: Vec<_> = all().iter().map(|r| r.device.clone()).collect();
    py.detach(|| {
        for device in &devices {
            let _ = device.shutdown(Shutdown::Drain, Duration::ZERO);
        }
    });
    for device in &devices {
        wait_shutdown(py, None, |slice| device.shutdown(Shutdown::Drain, slice))?;
    }
    Ok(())
}

/// In the child of a fork: nothing here is ours, and nothing may be waited for or locked.
pub(crate) fn forget_all() {
    if let Ok(mut all) = ALL.try_lock() {
        std::mem::forget(std::mem::take(&mut *all));
    }
}
