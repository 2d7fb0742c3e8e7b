//! Simulated threads made inside of the simulation: [`SimDevice::run`], [`Thread`], [`Scope`].
//!
//! Each simulated thread is a real thread that runs only when it has the baton, so a whole run is
//! deterministic: thread starts, ends and joins are part of the schedule.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::ScopedJoinHandle;

use crate::baton::{Resource, Wait};
use crate::device::SimDevice;
use crate::error::{SimError, SimResult};
use crate::process::Process;
use crate::registration;
use crate::thread_id::ThreadId;

/// What a simulated thread of [`SimDevice::run_threads`] does.
pub type Body<'f, T> = Box<dyn FnOnce(&Thread) -> T + Send + 'f>;

/// The running simulated thread's handle on itself.
#[derive(Debug)]
pub struct Thread {
    process: Arc<Process>,
    id: ThreadId,
}

impl Thread {
    /// The name.
    pub fn name(&self) -> String {
        self.process.lock().baton.name(self.id).to_string()
    }

    /// The number, in the order of creation.
    pub fn id(&self) -> ThreadId {
        self.id
    }

    /// A yield point that does nothing else.
    ///
    /// # Errors
    /// When the simulated process has failed.
    pub fn yield_now(&self) -> SimResult<()> {
        self.process.yield_point(self.id).map(drop)
    }

    /// Starts simulated threads that may borrow from the caller, and waits for all of them.
    ///
    /// The threads start together: none runs before the caller waits.
    pub fn scope<'env, R>(&self, f: impl for<'scope> FnOnce(&Scope<'scope, 'env>) -> R) -> R {
        std::thread::scope(|inner| {
            let scope = Scope {
                inner,
                process: Arc::clone(&self.process),
                unjoined: std::sync::Mutex::new(Vec::new()),
                id: self.id,
            };
            let result = f(&scope);
            // CORRECTNESS: the real scope joins its threads when we leave it, and they need the baton
            // to end; so wait for them as a simulated thread first.
            scope.wait_for_all();
            result
        })
    }
}

/// Where simulated threads are started. See [`Thread::scope`].
#[derive(Debug)]
pub struct Scope<'scope, 'env> {
    inner: &'scope std::thread::Scope<'scope, 'env>,
    process: Arc<Process>,
    unjoined: std::sync::Mutex<Vec<ThreadId>>,
    /// The thread that the scope belongs to.
    id: ThreadId,
}

/// A simulated thread that was started.
#[derive(Debug)]
pub struct Handle<'scope, T> {
    inner: ScopedJoinHandle<'scope, SimResult<T>>,
    process: Arc<Process>,
    id: ThreadId,
    waiter: ThreadId,
}

impl<'scope> Scope<'scope, '_> {
    /// Starts a simulated thread.
    pub fn spawn<T: Send + 'scope>(
        &self,
        name: &str,
        f: impl FnOnce(&Thread) -> T + Send + 'scope,
    ) -> Handle<'scope, T> {
        let id = SimDevice { process: Arc::clone(&self.process) }.add_thread(name);
        self.process.lock().baton.enter(id);
        self.unjoined.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(id);
        let process = Arc::clone(&self.process);
        let name = name.to_owned();
        let inner = self.inner.spawn(move || {
            registration::attach(&process, id);
            let result = live(&process, id, &name, f);
            process.end(id);
            registration::detach(&process, id);
            result
        });
        Handle { inner, process: Arc::clone(&self.process), id, waiter: self.id }
    }

    fn wait_for_all(&self) {
        let unjoined = std::mem::take(
            &mut *self.unjoined.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        for id in unjoined {
            // When the process has failed the threads end by themselves.
            let _ = wait_for_end(&self.process, self.id, id);
        }
    }
}

impl<T> Handle<'_, T> {
    /// Waits for the thread's end, as a simulated thread; its result.
    ///
    /// # Errors
    /// [`SimError::Panicked`] when it panicked, and whatever failed the simulated process.
    pub fn join(self) -> SimResult<T> {
        let waited = wait_for_end(&self.process, self.waiter, self.id);
        let result = self.inner.join().expect("panics are caught in the thread");
        result.and_then(|value| waited.map(|()| value))
    }
}

fn wait_for_end(process: &Process, waiter: ThreadId, thread: ThreadId) -> SimResult<()> {
    let mut state = process.lock_running()?;
    while !state.baton.has_ended(thread) {
        let wait = Wait {
            resource: Resource::End(thread),
            words: format!("the end of `{}`", state.baton.name(thread)),
        };
        state = process.block(state, waiter, wait)?;
    }
    Ok(())
}

/// A simulated thread's life: waits for its first turn, runs, catches its panic.
fn live<T>(
    process: &Arc<Process>,
    id: ThreadId,
    name: &str,
    f: impl FnOnce(&Thread) -> T,
) -> SimResult<T> {
    drop(process.wait_turn(process.lock(), id)?);
    let thread = Thread { process: Arc::clone(process), id };
    catch_unwind(AssertUnwindSafe(|| f(&thread))).map_err(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        SimError::Panicked { thread: name.to_owned(), message }
    })
}

impl SimDevice {
    /// Runs `main` as the simulated thread `main`. It can start others; when it returns they have
    /// ended.
    ///
    /// # Errors
    /// What failed the simulated process: an abort, a hang, a script that does not fit; or
    /// [`SimError::Panicked`] when `main` panicked.
    ///
    /// # Example
    /// ```
    /// use onelane_sim::{Op, Profile, SimConfig, SimDevice};
    ///
    /// let device = SimDevice::new(SimConfig::new(Profile::fork_2_9_1()).seed(7));
    /// let sizes = device.run(|main| {
    ///     main.scope(|scope| {
    ///         let threads = ["a", "b"].map(|name| {
    ///             let device = device.clone();
    ///             scope.spawn(name, move |_| device.alloc(4096).map(|buffer| buffer.bytes()))
    ///         });
    ///         threads.map(|thread| thread.join().and_then(|bytes| bytes))
    ///     })
    /// })?;
    /// assert_eq!(sizes, [Ok(4096), Ok(4096)]);
    /// # Ok::<(), onelane_sim::SimError>(())
    /// ```
    pub fn run<T>(&self, main: impl FnOnce(&Thread) -> T) -> SimResult<T> {
        let id = self.add_thread("main");
        drop(self.process.enter(id)?);
        registration::attach(&self.process, id);
        let result = live(&self.process, id, "main", main);
        let failure = self.failure();
        self.process.end(id);
        registration::detach(&self.process, id);
        match failure {
            Some(failure) => Err(failure),
            None => result,
        }
    }

    /// Runs the given simulated threads together; `Err` stands for those that panicked.
    ///
    /// # Errors
    /// As [`SimDevice::run`].
    ///
    /// # Example
    /// ```
    /// use onelane_sim::{Profile, SimConfig, SimDevice, SimError, Thread};
    ///
    /// let device = SimDevice::new(SimConfig::new(Profile::fork_2_9_1()));
    /// let results = device.run_threads::<usize>(vec![
    ///     ("right", Box::new(|_: &Thread| 1)),
    ///     ("wrong", Box::new(|_: &Thread| panic!("no"))),
    /// ])?;
    /// assert_eq!(results[0], Ok(1));
    /// assert!(matches!(&results[1], Err(SimError::Panicked { thread, .. }) if thread == "wrong"));
    /// # Ok::<(), SimError>(())
    /// ```
    pub fn run_threads<'f, T: Send>(
        &self,
        threads: Vec<(&str, Body<'f, T>)>,
    ) -> SimResult<Vec<SimResult<T>>> {
        self.run(|main| {
            main.scope(|scope| {
                let handles: Vec<Handle<'_, T>> =
                    threads.into_iter().map(|(name, thread)| scope.spawn(name, thread)).collect();
                handles.into_iter().map(Handle::join).collect()
            })
        })
    }
}
