//! The device executor: the worker thread, or threads, that own one device.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::after::After;
use crate::batch::{BuildFailure, Plan};
use crate::closure::Task;
use crate::config::ExecutorConfig;
use crate::contain::contain;
use crate::engine::Engine;
use crate::error::{BuildError, RequestError, ShutdownError, SubmitError};
use crate::queue_state::{Asking, Need, Room};
use crate::request::Priority;
use crate::response::{Company, Pending, Responder, ResponseHandle};
use crate::shared::Shared;
use crate::state::CLOSURES;
use crate::stats::{Health, QueueStats};
use crate::sync::{self, JoinHandle, Mutex, thread_waker};
use crate::worker::{WorkerContext, run_worker};

/// What a shutdown does with requests that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Runs everything that was accepted.
    Drain,
    /// Runs what has started; answers the rest with [`RequestError::Closed`].
    Abort,
}

/// The worker thread (or threads) that own one device.
///
/// Everything that touches the device is built, run and dropped there: engines of a
/// [`BatchQueue`](crate::BatchQueue), and closures given to [`submit`](Self::submit). Cloning gives
/// another handle to the same executor.
///
/// # Blocking
/// Dropping the last handle (queues hold one each) drains what was accepted and joins the workers;
/// on a worker itself it does not wait.
#[derive(Clone)]
pub struct DeviceExecutor {
    owner: Arc<Owner>,
}

pub(crate) struct Owner {
    pub(crate) shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

static REGISTRY: std::sync::LazyLock<Mutex<BTreeMap<String, DeviceExecutor>>> =
    std::sync::LazyLock::new(|| Mutex::new(BTreeMap::new()));

impl DeviceExecutor {
    /// The process's executor for `device`, with one worker; made on first use, it lives until it
    /// is shut down or the process ends. `metal` and `metal:0` name the same device.
    ///
    /// # Errors
    /// [`BuildError::Config`] for an empty name, [`BuildError::Thread`] when no thread can be had.
    ///
    /// # Blocking
    /// If the device's executor is just being shut down, waits for its workers to end, so that the
    /// device never has two owners.
    pub fn shared(device: &str) -> Result<Self, BuildError> {
        let device = device.strip_suffix(":0").unwrap_or(device).to_owned();
        loop {
            let mut registry = REGISTRY.lock();
            let ending = match registry.get(&device) {
                Some(executor) if executor.owner.shared.lock().is_stopping() => executor.clone(),
                Some(executor) => return Ok(executor.clone()),
                None => {
                    let executor = Self::new(ExecutorConfig::new(device.as_str()))?;
                    registry.insert(device, executor.clone());
                    return Ok(executor);
                }
            };
            drop(registry);
            if WorkerContext::is_ours(&ending.owner.shared) {
                return Err(BuildError::Closed(device));
            }
            ending.owner.wait_for_end(None);
            let mut registry = REGISTRY.lock();
            if registry.get(&device).is_some_and(|e| Arc::ptr_eq(&e.owner, &ending.owner)) {
                registry.remove(&device);
            }
        }
    }

    /// An executor of one's own. Two executors on one device are two owners: use
    /// [`shared`](Self::shared) unless that is what is meant.
    ///
    /// # Errors
    /// [`BuildError::Config`] names the setting that cannot be used; [`BuildError::Thread`] when no
    /// thread can be had.
    pub fn new(config: ExecutorConfig) -> Result<Self, BuildError> {
        config.validate()?;
        let ExecutorConfig { device, workers, delivery, clock } = config;
        let shared = Arc::new(Shared::new(device, workers, clock));
        let owner =
            Arc::new(Owner { shared: Arc::clone(&shared), threads: Mutex::new(Vec::new()) });
        for index in 0..workers {
            let shared = Arc::clone(&shared);
            // The kernel shows 15 bytes of a thread's name.
            let name = format!("onelane {} {index}", shared.device);
            let body = move || run_worker(shared, index, delivery);
            let thread = sync::spawn(name, body).inspect_err(|_| {
                // Those that run are told to stop by the owner's drop; these never came to be.
                let mut locked = owner.shared.lock();
                let (state, after) = locked.parts();
                for missing in index..workers {
                    state.worker_ended(missing, after);
                }
            });
            owner.threads.lock().push(thread.map_err(|e| BuildError::Thread(Arc::new(e)))?);
        }
        Ok(Self { owner })
    }

    /// The name of the device.
    pub fn device(&self) -> &str {
        &self.owner.shared.device
    }

    /// The number of worker threads.
    pub fn workers(&self) -> usize {
        self.owner.shared.workers
    }

    /// Whether the calling thread is a worker of this executor.
    pub fn is_worker(&self) -> bool {
        WorkerContext::current(&self.owner.shared).is_some()
    }

    /// Runs a closure on the worker; inline, before this returns, when already there. Closures run
    /// in order, among the queues' batches by the same rules, at normal priority.
    ///
    /// # Errors
    /// [`SubmitError::Closed`] gives the closure back.
    pub fn submit<F, T>(&self, closure: F) -> Result<ResponseHandle<T>, SubmitError<F>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let shared = &self.owner.shared;
        let (pending, responder) = Pending::pair(None, None);
        if WorkerContext::current(shared).is_some() {
            let answer = contain(closure).map_err(RequestError::Panicked);
            let mut after = After::default();
            responder.answer(answer, &mut after);
            after.run();
            return Ok(ResponseHandle::new(shared, pending, Company::default()));
        }
        let now = shared.clock.now();
        let mut locked = shared.lock();
        let (state, after) = locked.parts();
        let need = Need { requests: 1, cost: 1 };
        let asking = Asking { need, class: Priority::Normal, since: now };
        let refused = match state.admit(CLOSURES, asking, &mut None, None, after) {
            Room::Granted => {
                let task = Box::new(Task::new(closure, responder));
                let number = state.push_closure(task, now, after);
                let pending = pending.wait_in(CLOSURES, number);
                return Ok(ResponseHandle::new(shared, pending, Company::default()));
            }
            Room::Failed(why) => SubmitError::Failed(closure, why),
            Room::Full | Room::Closed => SubmitError::Closed(closure),
        };
        drop(locked);
        Err(refused)
    }

    /// Runs a closure on the worker and waits for its result.
    ///
    /// # Errors
    /// [`RequestError::Panicked`] with the closure's panic message; [`RequestError::Closed`] when
    /// the executor is shut down.
    ///
    /// # Blocking
    /// Blocks until the closure has run, behind whatever goes first.
    pub fn call<F, T>(&self, closure: F) -> Result<T, RequestError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.submit(closure).map_err(|_| RequestError::Closed)?.wait()
    }

    /// Refuses new work, finishes (or, with [`Shutdown::Abort`], answers with an error) what waits,
    /// drops all engines on their workers, and joins the threads. A shared executor can be had anew
    /// with [`shared`](Self::shared) afterwards.
    ///
    /// # Errors
    /// [`ShutdownError::Timeout`] when something still runs; [`ShutdownError::WouldDeadlock`] on a
    /// worker. In both cases the shutdown goes on by itself.
    ///
    /// # Blocking
    /// Blocks for at most `timeout`.
    pub fn shutdown(&self, mode: Shutdown, timeout: Duration) -> Result<(), ShutdownError> {
        self.owner.stop(mode == Shutdown::Abort);
        if WorkerContext::is_ours(&self.owner.shared) {
            return Err(ShutdownError::WouldDeadlock);
        }
        let until = self.owner.shared.clock.now().checked_add(timeout);
        if self.owner.wait_for_end(until) { Ok(()) } else { Err(ShutdownError::Timeout(timeout)) }
    }

    /// Whether the device works: it stalls when a batch of any queue does. A queue that has failed
    /// says so itself.
    pub fn health(&self) -> Health {
        let now = self.owner.shared.clock.now();
        self.owner.shared.lock().overall_health(now)
    }

    /// The statistics of the closures.
    pub fn stats(&self) -> QueueStats {
        self.owner.shared.stats(CLOSURES)
    }

    pub(crate) fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }
}

impl std::fmt::Debug for DeviceExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceExecutor")
            .field("device", &self.device())
            .field("workers", &self.workers())
            .finish()
    }
}

impl Owner {
    fn stop(&self, abort: bool) {
        let mut locked = self.shared.lock();
        let (state, after) = locked.parts();
        state.stop(abort, after);
    }

    /// Waits for all workers to end and joins them. Says whether they have.
    fn wait_for_end(&self, until: Option<Instant>) -> bool {
        let waker = thread_waker();
        while !self.shared.lock().has_ended(&waker) {
            if until.is_some_and(|until| until <= self.shared.clock.now()) {
                return false;
            }
            self.shared.clock.park_until(until);
        }
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // A worker that panicked has been reported through its requests.
            let _ = thread.join();
        }
        true
    }

    /// Builds an engine on each worker. On a worker, builds its own and leaves the others to it.
    pub(crate) fn build_engines<E: Engine>(&self, plan: &Arc<Plan<E>>) -> Result<(), BuildError> {
        let current = WorkerContext::current(&self.shared);
        let here = current.as_ref().map(|worker| worker.index());
        let mut builds = Vec::new();
        {
            let mut locked = self.shared.lock();
            let (state, after) = locked.parts();
            // CORRECTNESS: a worker that has ended runs no errand; one that has not yet will.
            if state.is_stopping() {
                return Err(BuildError::Closed(self.shared.device.clone()));
            }
            for index in (0..self.shared.workers).filter(|&index| Some(index) != here) {
                let plan = Arc::clone(plan);
                let (pending, responder) = Pending::pair(None, None);
                let errand = move |worker: &WorkerContext| build_here(worker, &plan, responder);
                state.workers.send(index, Box::new(errand), after);
                builds.push(ResponseHandle::new(&self.shared, pending, Company::default()));
            }
        }
        if let Some(worker) = current {
            return build(&worker, plan);
        }
        for build in builds {
            let closed = |_| BuildError::Closed(self.shared.device.clone());
            build.wait().map_err(closed)??;
        }
        Ok(())
    }
}

fn build_here<E: Engine>(
    worker: &WorkerContext,
    plan: &Plan<E>,
    responder: Responder<Result<(), BuildError>>,
) {
    let built = build(worker, plan);
    let mut after = After::default();
    responder.answer(Ok(built), &mut after);
    after.run();
}

fn build<E: Engine>(worker: &WorkerContext, plan: &Plan<E>) -> Result<(), BuildError> {
    match plan.build() {
        Ok(engine) => {
            worker.put_engine(plan.queue, Some(Box::new(engine)));
            Ok(())
        }
        Err(BuildFailure::Error(error)) => Err(BuildError::Engine(error)),
        Err(BuildFailure::Panicked(message)) => Err(BuildError::Panicked(message)),
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop(false);
        // CORRECTNESS: a worker that drops the last handle cannot join itself, nor can who delivers
        // for it; it stops when it has returned to its loop.
        if !WorkerContext::is_ours(&self.shared) {
            self.wait_for_end(None);
        }
    }
}
