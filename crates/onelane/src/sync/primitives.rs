//! Locks, parking and threads of the operating system: the only file of the shipped core that names
//! `std::sync`'s locks or `std::thread`.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "this is the place")]

use std::cell::OnceCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{self, Arc, LazyLock, PoisonError};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

pub(crate) use std::sync::MutexGuard;
pub(crate) use std::thread::JoinHandle;
pub(crate) use std::thread_local;

/// A mutex without poisoning: code that runs under it leaves the data whole at each point that can
/// panic.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar(sync::Condvar);

impl Condvar {
    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// What is looked at without a lock, to choose how to wait: nothing else depends on it.
#[derive(Debug)]
pub(crate) struct Hint(AtomicBool);

impl Hint {
    pub(crate) const fn new(value: bool) -> Self {
        Self(AtomicBool::new(value))
    }

    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, value: bool) {
        // Those who look have it in their caches: it is not written for nothing.
        if self.get() != value {
            self.0.store(value, Ordering::Relaxed);
        }
    }
}

/// A thread that can be unparked, and whether it has been since it last looked.
struct Parker {
    thread: std::thread::Thread,
    woken: AtomicBool,
}

impl Parker {
    fn current() -> Arc<Self> {
        Arc::new(Self { thread: std::thread::current(), woken: AtomicBool::new(false) })
    }
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

std::thread_local! {
    static PARKER: OnceCell<Arc<Parker>> = const { OnceCell::new() };
}

/// The calling thread's parker, made once a thread.
fn parker() -> Arc<Parker> {
    PARKER
        .try_with(|cell| Arc::clone(cell.get_or_init(Parker::current)))
        // The thread is running its exit destructors: make one for this call.
        .unwrap_or_else(|_| Parker::current())
}

/// A waker that unparks the calling thread.
pub(crate) fn thread_waker() -> Waker {
    Waker::from(parker())
}

// Who has slept goes and sees what it was woken for: the next look is for what comes after.

pub(crate) fn park() {
    std::thread::park();
    parker().woken.store(false, Ordering::Relaxed);
}

pub(crate) fn park_timeout(timeout: Duration) {
    std::thread::park_timeout(timeout);
    parker().woken.store(false, Ordering::Relaxed);
}

/// A thread with this name and, unless the platform's default is wanted, this size of stack.
pub(crate) fn spawn(
    name: String,
    stack_size: Option<usize>,
    body: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    let builder = std::thread::Builder::new().name(name);
    match stack_size {
        Some(bytes) => builder.stack_size(bytes),
        None => builder,
    }
    .spawn(body)
}

static PROCESSORS: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));

/// Whether there are so many processors that one is to spare (docs/decisions has the figures).
pub(crate) fn is_processor_spare() -> bool {
    *PROCESSORS >= 4
}

/// About what parking a thread and waking it again take on an idle machine.
const SPIN: Duration = Duration::from_micros(50);

/// How long a thread that was just answered takes to ask again, on another processor.
const GLANCE: Duration = Duration::from_micros(10);

/// Looks for a moment whether `is_over`, and lets others run meanwhile.
pub(crate) fn spin_until(mut is_over: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + SPIN;
    while !is_over() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// Looks for a moment whether the calling thread is woken. It does not let go of its processor at
/// first, unless there is no other: who yields may be back late.
pub(crate) fn spin_until_woken() -> bool {
    let parker = parker();
    if *PROCESSORS > 1 {
        let end = Instant::now() + GLANCE;
        while !parker.woken.load(Ordering::Relaxed) && Instant::now() < end {
            std::hint::spin_loop();
        }
    }
    spin_until(|| parker.woken.swap(false, Ordering::Acquire))
}
