//! What this module has to know about the interpreter: attaching a worker thread for good, whether
//! the process has forked, waiting with signals seen, and who waits at exit.
//!
//! Invariant: no thread waits for a onelane lock, park or join while it is attached, except for the
//! core's own short locks, under which nothing ever attaches.

use std::cell::Cell;
use std::ffi::c_ulong;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use onelane::PerProcess;
use pyo3::exceptions::PySystemExit;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// How often a wait on the main thread looks for signals. Other threads are parked for good.
pub(crate) const SIGNAL_SLICE: Duration = Duration::from_millis(50);

/// The number of forks between the process that loaded this module and the present one.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// Threads that wait detached; at exit they are given the time to come back.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// A Python thread state that stays with a worker thread until the thread ends, so that
/// `threading.local` and context variables of the worker survive from one batch to the next.
struct Pinned {
    /// Python's name of the thread.
    ident: c_ulong,
}

impl Pinned {
    fn new() -> Option<Self> {
        let ident = Python::try_attach(|_| {
            // SAFETY: attached; the count taken here is given back in `drop`.
            unsafe { ffi::PyGILState_Ensure() };
            // SAFETY: attached.
            unsafe { ffi::PyThread_get_thread_ident() }
        })?;
        workers().push(ident);
        Some(Self { ident })
    }
}

/// The worker threads that have a thread state, by Python's names of them.
static WORKERS: PerProcess<Mutex<Vec<c_ulong>>> = PerProcess::new(Mutex::new(Vec::new()));

fn workers() -> MutexGuard<'static, Vec<c_ulong>> {
    WORKERS.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether nothing is to be run any more, not even again, because the process ends.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// Whether nothing is to be run any more.
pub(crate) fn is_given_up() -> bool {
    GIVEN_UP.load(Ordering::Acquire)
}

/// Raises `SystemExit` in the Python code that workers run, at its next step, and has them run nothing
/// more: the process ends.
#[pyfunction]
pub(crate) fn interrupt_workers(py: Python<'_>) {
    GIVEN_UP.store(true, Ordering::Release);
    let exit = py.get_type::<PySystemExit>();
    for ident in workers().clone() {
        // SAFETY: attached; a thread that has ended is not found, and the type is borrowed.
        unsafe { ffi::PyThreadState_SetAsyncExc(ident.cast_signed(), exit.as_ptr()) };
    }
}

/// Whether the interpreter is about to go: whoever waits detached must not come back.
static ENDED: AtomicBool = AtomicBool::new(false);

/// The interpreter goes from here on; one that is inside of another does not matter.
#[pyfunction]
pub(crate) fn end(_py: Python<'_>) {
    // SAFETY: attached.
    let interpreter = unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) };
    if interpreter == 0 {
        ENDED.store(true, Ordering::Release);
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        workers().retain(|ident| *ident != self.ident);
        // Attaching raises the count to two, so this lowers it to one and the end of the
        // attachment, to zero, deletes the thread state: here, on its own thread.
        // SAFETY: gives back what `new` took, on the same thread (this is thread-local), attached.
        Python::try_attach(|_| unsafe {
            ffi::PyGILState_Release(ffi::PyGILState_STATE::PyGILState_LOCKED);
        });
    }
}

thread_local! {
    static PIN: Cell<Option<Pinned>> = const { Cell::new(None) };
    /// Whether this is a worker, of whatever executor.
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
    /// Whether this is the main thread, and in which generation that was found.
    static IS_MAIN: Cell<Option<(u64, bool)>> = const { Cell::new(None) };
}

/// Attaches a worker thread. `None` when the interpreter is ending.
pub(crate) fn attach_worker<R>(body: impl FnOnce(Python<'_>) -> R) -> Option<R> {
    IS_WORKER.set(true);
    let _ = PIN.try_with(|pin| {
        let pinned = pin.take().or_else(Pinned::new);
        pin.set(pinned);
    });
    if ENDED.load(Ordering::Acquire) {
        return None;
    }
    Python::try_attach(body)
}

/// Whether the calling thread is a worker, of whatever executor.
pub(crate) fn is_any_worker() -> bool {
    IS_WORKER.get()
}

/// Drops what refers to Python objects now, on this thread: left to itself, a reference that is
/// dropped without the interpreter goes to whichever thread attaches next.
pub(crate) fn drop_attached<T>(value: T) {
    let mut value = Some(value);
    if Python::try_attach(|_| drop(value.take())).is_none() {
        // The interpreter is ending, or has ended: nothing may be dropped any more.
        std::mem::forget(value);
    }
}

/// A Python object that is dropped attached.
pub(crate) struct Held(Option<Py<PyAny>>);

impl Held {
    pub(crate) fn new(object: Py<PyAny>) -> Self {
        Self(Some(object))
    }

    pub(crate) fn get(&self) -> &Py<PyAny> {
        self.0.as_ref().expect("it is taken in drop alone")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop_attached(self.0.take());
    }
}

/// An attribute of a module, looked up once.
///
/// CORRECTNESS: nothing is locked while the import runs: a signal handler may come here in the middle
/// of it, on the same thread.
pub(crate) fn imported<'py>(
    py: Python<'py>,
    cell: &PyOnceLock<Py<PyAny>>,
    module: &str,
    name: &str,
) -> PyResult<Bound<'py, PyAny>> {
    if let Some(found) = cell.get(py) {
        return Ok(found.bind(py).clone());
    }
    let found = py.import(module)?.getattr(name)?;
    // Whoever came first: it is the same.
    let _ = cell.set(py, found.clone().unbind());
    Ok(found)
}

/// The number of forks so far.
pub(crate) fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// Called in the child of a fork: everything made before is the parent's.
pub(crate) fn forked() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    WAITING.store(0, Ordering::Relaxed);
}

/// Whether the calling thread is Python's main thread, the one that runs signal handlers.
pub(crate) fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    let generation = generation();
    if let Some((when, is_main)) = IS_MAIN.get()
        && when == generation
    {
        return Ok(is_main);
    }
    let threading = py.import("threading")?;
    let main = threading.call_method0("main_thread")?.getattr("ident")?;
    let is_main = main.eq(threading.call_method0("get_ident")?)?;
    IS_MAIN.set(Some((generation, is_main)));
    Ok(is_main)
}

/// Counted while a thread waits detached.
struct Waiting;

impl Waiting {
    fn new() -> Self {
        WAITING.fetch_add(1, Ordering::AcqRel);
        Self
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Threads that wait detached now.
pub(crate) fn waiting() -> usize {
    WAITING.load(Ordering::Acquire)
}

/// What a step of [`wait`] says.
pub(crate) enum Step<S, T> {
    /// The time was up; go on with this.
    Again(S),
    /// It is done.
    Done(T),
}

/// Waits detached, in steps. A step is given the state and how long it may take: on the main thread
/// no longer than a slice, so that a signal handler can run between two steps and end the wait by
/// raising; elsewhere without limit.
///
/// # Errors
/// What a signal handler raised, `KeyboardInterrupt` for one. The state is dropped then.
pub(crate) fn wait<S: Send, T: Send>(
    py: Python<'_>,
    state: S,
    mut step: impl FnMut(S, Option<Duration>) -> Step<S, T> + Send,
) -> PyResult<T> {
    let slice = is_main_thread(py)?.then_some(SIGNAL_SLICE);
    let _waiting = Waiting::new();
    let mut state = state;
    loop {
        let stepped = py.detach(|| {
            let stepped = step(state, slice);
            // CORRECTNESS: a thread that asks for an interpreter that is going is ended in the middle
            // of this function, which aborts the process.
            while slice.is_none() && ENDED.load(Ordering::Acquire) {
                std::thread::park();
            }
            stepped
        });
        match stepped {
            Step::Done(value) => return Ok(value),
            Step::Again(next) => {
                py.check_signals()?;
                state = next;
            }
        }
    }
}
