//! Locks, parking and threads: the only file that names `std::sync`'s locks, `std::thread` or
//! `loom`. Everything else in the crate goes through these newtypes, so that the model checker sees
//! each step that the real code takes.
//!
//! There is one way to wait: store a [`Waker`] where the other side will find it, release the lock,
//! then sleep. A thread is woken by the same `Waker` type as an async task: it sleeps by itself in
//! [`park`], or in company on an [`Event`](crate::event::Event).

#[cfg(not(all(test, loom)))]
#[allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "this is the place")]
mod imp {
    use std::cell::OnceCell;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::sync::{self, Arc, LazyLock, PoisonError};
    use std::task::{Wake, Waker};
    use std::time::{Duration, Instant};

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

    /// Where something is in a list. Set and read under the list's lock, so the atomic orders nothing.
    #[derive(Debug)]
    pub(crate) struct Seat(AtomicU32);

    impl Seat {
        /// Nowhere yet.
        pub(crate) const fn new() -> Self {
            Self(AtomicU32::new(u32::MAX))
        }

        pub(crate) fn get(&self) -> usize {
            self.0.load(Ordering::Relaxed) as usize
        }

        pub(crate) fn set(&self, seat: usize) {
            let seat = u32::try_from(seat).expect("fewer than four thousand million wait");
            self.0.store(seat, Ordering::Relaxed);
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

    /// About what parking a thread and waking it again take on an idle machine.
    const MOMENT: Duration = Duration::from_micros(50);

    /// Looks for a moment whether `is_over`, and lets others run meanwhile.
    pub(crate) fn is_over_at_once(mut is_over: impl FnMut() -> bool) -> bool {
        let end = Instant::now() + MOMENT;
        loop {
            if is_over() {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            std::thread::yield_now();
        }
    }

    /// How often a thread lets others run before it sleeps (docs/performance.md has the figures).
    const TURNS: usize = 2;

    /// Lets others run, and says whether `is_over` then.
    pub(crate) fn let_others_run(mut is_over: impl FnMut() -> bool) -> bool {
        (0..TURNS).any(|_| {
            std::thread::yield_now();
            is_over()
        })
    }

    static PROCESSORS: LazyLock<usize> =
        LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));

    /// Whether there are so many processors that one is to spare (docs/performance.md has the figures).
    pub(crate) fn is_processor_spare() -> bool {
        *PROCESSORS >= 4
    }

    /// How long a thread that was just answered takes to ask again, on another processor.
    const GLANCE: Duration = Duration::from_micros(10);

    /// Whether the calling thread is woken within a moment. It does not let go of its processor at first,
    /// unless there is no other: who yields may be back late.
    pub(crate) fn is_woken_at_once() -> bool {
        let parker = parker();
        if *PROCESSORS > 1 {
            let end = Instant::now() + GLANCE;
            while !parker.woken.load(Ordering::Relaxed) && Instant::now() < end {
                std::hint::spin_loop();
            }
        }
        is_over_at_once(|| parker.woken.swap(false, Ordering::Acquire))
    }

    /// Lets others run, and says whether the calling thread was woken.
    pub(crate) fn is_woken_in_turn() -> bool {
        let parker = parker();
        let_others_run(|| parker.woken.swap(false, Ordering::Acquire))
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

    pub(crate) fn spawn(
        name: String,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(name).spawn(body)
    }
}

#[cfg(all(test, loom))]
mod imp {
    use std::sync::atomic::Ordering;
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

    /// It is under a lock that is modelled.
    #[derive(Debug)]
    pub(crate) struct Seat(std::sync::atomic::AtomicUsize);

    impl Seat {
        pub(crate) const fn new() -> Self {
            Self(std::sync::atomic::AtomicUsize::new(usize::MAX))
        }

        pub(crate) fn get(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }

        pub(crate) fn set(&self, seat: usize) {
            self.0.store(seat, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_processor_spare() -> bool {
        false
    }

    pub(crate) fn is_over_at_once(_is_over: impl FnMut() -> bool) -> bool {
        false
    }

    pub(crate) fn let_others_run(_is_over: impl FnMut() -> bool) -> bool {
        false
    }

    pub(crate) fn is_woken_at_once() -> bool {
        false
    }

    pub(crate) fn is_woken_in_turn() -> bool {
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
            Arc::new(Self {
                token: loom::sync::Mutex::new(false),
                given: loom::sync::Condvar::new(),
            })
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
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        Ok(loom::thread::spawn(body))
    }
}

pub(crate) use imp::*;
