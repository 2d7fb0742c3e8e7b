//! The same locks, parking and threads as the model checker's.

use std::sync::{Arc, PoisonError};
use std::task::{Wake, Waker};
use std::time::Duration;

pub(crate) use loom::sync::MutexGuard;
pub(crate) use loom::thread::JoinHandle;
pub(crate) use loom::thread_local;

#[derive(Debug)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(crate) struct Condvar(loom::sync::Condvar);

impl Default for Condvar {
    fn default() -> Self {
        Self(loom::sync::Condvar::new())
    }
}

impl Condvar {
    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

// The model knows no moments and no processors, so there is one way to wait.

#[derive(Debug)]
pub(crate) struct Hint;

impl Hint {
    pub(crate) const fn new(_value: bool) -> Self {
        Self
    }

    pub(crate) fn get(&self) -> bool {
        false
    }

    pub(crate) fn set(&self, _value: bool) {}
}

pub(crate) fn is_processor_spare() -> bool {
    false
}

pub(crate) fn spin_until(_is_over: impl FnMut() -> bool) -> bool {
    false
}

pub(crate) fn spin_until_woken() -> bool {
    false
}

/// A thread's token. loom's own `park` loses an `unpark` that comes while the thread is at a
/// mutex, which real threads do not, so the token is kept here.
#[derive(Debug)]
struct Parker {
    token: loom::sync::Mutex<bool>,
    given: loom::sync::Condvar,
}

impl Parker {
    fn new() -> Arc<Self> {
        Arc::new(Self { token: loom::sync::Mutex::new(false), given: loom::sync::Condvar::new() })
    }

    fn token(&self) -> loom::sync::MutexGuard<'_, bool> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        let mut token = self.token();
        *token = true;
        self.given.notify_one();
    }
}

loom::thread_local! {
    static PARKER: Arc<Parker> = Parker::new();
}

pub(crate) fn thread_waker() -> Waker {
    Waker::from(PARKER.with(Arc::clone))
}

pub(crate) fn park() {
    let parker = PARKER.with(Arc::clone);
    let mut token = parker.token();
    while !std::mem::take(&mut *token) {
        token = match parker.given.wait(token) {
            Ok(token) => token,
            Err(poisoned) => poisoned.into_inner(),
        };
    }
}

/// The model has no time: let the others run, then say that the time is over.
pub(crate) fn park_timeout(_timeout: Duration) {
    loom::thread::yield_now();
}

pub(crate) fn spawn(
    _name: String,
    _stack_size: Option<usize>,
    body: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    Ok(loom::thread::spawn(body))
}
