//! Locks, threads and time of the supervisor. Under the model checker they are loom's, so that the
//! models run the code that ships.

#[cfg(not(all(test, loom)))]
pub(crate) use system::*;

#[cfg(all(test, loom))]
pub(crate) use model::*;

#[cfg(not(all(test, loom)))]
mod system {
    use std::io;
    use std::time::{Duration, Instant};

    pub(crate) use std::sync::atomic::AtomicBool;
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::thread::JoinHandle;

    pub(crate) fn spawn(
        name: &str,
        task: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(name.to_owned()).spawn(task)
    }

    pub(crate) fn is_finished(thread: &JoinHandle<()>) -> bool {
        thread.is_finished()
    }

    pub(crate) fn now() -> Instant {
        Instant::now()
    }

    pub(crate) fn sleep(time: Duration) {
        std::thread::sleep(time);
    }
}

/// Time stands but for who sleeps: a pause is over when it has been slept. All threads of a model
/// are one of the system's, and each model has its own time.
#[cfg(all(test, loom))]
mod model {
    use std::cell::Cell;
    use std::io;
    use std::time::{Duration, Instant};

    pub(crate) use loom::sync::atomic::AtomicBool;
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use loom::thread::JoinHandle;

    thread_local! {
        static NOW: Cell<Instant> = Cell::new(Instant::now());
    }

    pub(crate) fn spawn(
        _name: &str,
        task: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        Ok(loom::thread::spawn(task))
    }

    pub(crate) fn is_finished(_thread: &JoinHandle<()>) -> bool {
        false
    }

    pub(crate) fn now() -> Instant {
        NOW.get()
    }

    pub(crate) fn sleep(time: Duration) {
        NOW.set(NOW.get() + time);
        loom::thread::yield_now();
    }
}
