//! What this module has to know about the interpreter: attaching a worker thread for good, whether
//! the process has forked, waiting with signals seen, and who waits at exit.
//!
//! Invariant: no thread waits for a onelane lock, park or join while it is attached, except for the
//! core's own short locks, under which nothing ever attaches.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

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
struct Pinned;

impl Pinned {
    fn new() -> Option<Self> {
        // SAFETY: attached by `try_attach`; the count taken here is given back in `drop`.
        Python::try_attach(|_| unsafe { ffi::PyGILState_Ensure() }).map(|_| Self)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
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
        match py.detach(|| step(state, slice)) {
            Step::Done(value) => return Ok(value),
            Step::Again(next) => {
                py.check_signals()?;
                state = next;
            }
        }
    }
}
