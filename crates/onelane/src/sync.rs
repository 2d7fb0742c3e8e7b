//! Locks, parking and threads: the only file that names `std::sync`'s locks, `std::thread` or
//! `loom`. Everything else in the crate goes through these newtypes, so that the model checker sees
//! each step that the real code takes.
//!
//! There is one way to wait: store a [`Waker`] where the other side will find it, release the lock,
//! then [`park`]. A thread is woken by the same `Waker` type as an async task.

#[cfg(not(all(test, loom)))]
mod imp {
    use std::cell::OnceCell;
    use std::sync::{self, Arc, PoisonError};
    use std::task::{Wake, Waker};
    use std::time::Duration;

    pub(crate) use std::thread::JoinHandle;
    pub(crate) use std::thread_local;

    pub(crate) type MutexGuard<'a, T> = sync::MutexGuard<'a, T>;

    /// A mutex without poisoning: code that runs under it leaves the data whole at each point that
    /// can panic.
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

    struct Unpark(std::thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
        fn wake_by_ref(self: &Arc<Self>) {
            self.0.unpark();
        }
    }

    std::thread_local! {
        static WAKER: OnceCell<Waker> = const { OnceCell::new() };
    }

    /// A waker that unparks the calling thread; made once a thread, then cloned.
    pub(crate) fn thread_waker() -> Waker {
        let make = || Waker::from(Arc::new(Unpark(std::thread::current())));
        WAKER
            .try_with(|cell| cell.get_or_init(make).clone())
            // The thread is running its exit destructors: make one for this call.
            .unwrap_or_else(|_| make())
    }

    pub(crate) fn park() {
        std::thread::park();
    }

    pub(crate) fn park_timeout(timeout: Duration) {
        std::thread::park_timeout(timeout);
    }

    pub(crate) fn spawn(
        name: String,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(name).spawn(body)
    }
}

#[cfg(all(test, loom))]
mod imp {
    use std::sync::{Arc, PoisonError};
    use std::task::{Wake, Waker};
    use std::time::Duration;

    pub(crate) use loom::thread::JoinHandle;
    pub(crate) use loom::thread_local;

    pub(crate) type MutexGuard<'a, T> = loom::sync::MutexGuard<'a, T>;

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

    struct Unpark(loom::thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    pub(crate) fn thread_waker() -> Waker {
        Waker::from(Arc::new(Unpark(loom::thread::current())))
    }

    pub(crate) fn park() {
        loom::thread::park();
    }

    /// The model has no time: let the others run, then say that the time is over.
    pub(crate) fn park_timeout(_timeout: Duration) {
        loom::thread::yield_now();
    }

    pub(crate) fn spawn(
        _name: String,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        Ok(loom::thread::spawn(body))
    }
}

pub(crate) use imp::*;
