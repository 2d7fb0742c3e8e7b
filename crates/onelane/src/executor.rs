//! The device executor: the worker thread, or threads, that own one device.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::admission::inbox::WaitPolicy;
use crate::admission::{Admission, Patience};
use crate::config::ExecutorConfig;
use crate::engine::Engine;
use crate::error::{BuildError, RequestError, ShutdownError, SubmitError};
use crate::handle::{Outstanding, ResponseHandle};
use crate::request::Request;
use crate::scheduler::closures::{Closure, RunClosures};
use crate::scheduler::workers::WorkerCommand;
use crate::scheduler::{ExecutorShared, RequestId};
use crate::stats::{Health, QueueStats};
use crate::sync::{
    Deferred, JoinHandle, Mutex, PerProcess, Receiver, catch_panic, may_lock, spawn, thread_waker,
};
use crate::worker::engines::{EngineFactory, Engines};
use crate::worker::inline::{InlineProgress, belongs_to, this_worker, worker_of};
use crate::worker::{run_worker, wait_graph};

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
/// on a thread of the executor's own it does not wait.
#[derive(Clone)]
pub struct DeviceExecutor {
    owner: Arc<Owner>,
}

pub(crate) struct Owner {
    pub(crate) shared: Arc<ExecutorShared>,
    closures: Admission<RunClosures>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

type Registry = BTreeMap<String, DeviceExecutor>;

#[allow(clippy::disallowed_types, reason = "the model checker's mutex cannot be a static")]
static REGISTRY: PerProcess<std::sync::Mutex<Registry>> =
    PerProcess::new(std::sync::Mutex::new(BTreeMap::new()));

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.get().lock().unwrap_or_else(PoisonError::into_inner)
}

impl DeviceExecutor {
    /// The process's executor for `device`, with one worker; made on first use, it lives until it
    /// is shut down or the process ends. `metal` and `metal:0` name the same device.
    ///
    /// # Errors
    /// [`BuildError::Config`] for an empty name, [`BuildError::Thread`] when no thread can be had;
    /// [`BuildError::Closed`] on a worker of that executor while it shuts down.
    ///
    /// # Blocking
    /// If the device's executor is just being shut down, waits for its workers to end, so that the
    /// device never has two owners.
    ///
    /// ```
    /// use onelane::DeviceExecutor;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let device = DeviceExecutor::shared("doc-shared")?;
    /// let same = DeviceExecutor::shared("doc-shared:0")?;
    /// let worker = || std::thread::current().id();
    /// assert_eq!(device.call(worker)?, same.call(worker)?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn shared(device: &str) -> Result<Self, BuildError> {
        Self::shared_with(ExecutorConfig::new(device))
    }

    /// As [`shared`](Self::shared), made with these settings if it is not there.
    ///
    /// # Errors
    /// As [`shared`](Self::shared).
    ///
    /// # Blocking
    /// As [`shared`](Self::shared).
    pub fn shared_with(config: ExecutorConfig) -> Result<Self, BuildError> {
        let device = config.device.strip_suffix(":0").unwrap_or(&config.device).to_owned();
        let config = ExecutorConfig { device: device.clone(), ..config };
        loop {
            may_lock();
            let mut registry = self::registry();
            let ending = match registry.get(&device) {
                Some(executor) if executor.owner.shared.lock().is_stopping() => executor.clone(),
                Some(executor) => return Ok(executor.clone()),
                None => {
                    let executor = Self::new(config)?;
                    registry.insert(device, executor.clone());
                    return Ok(executor);
                }
            };
            drop(registry);
            if belongs_to(&ending.owner.shared) {
                return Err(BuildError::Closed(device));
            }
            ending.owner.wait_for_end(None);
            let mut registry = self::registry();
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
        let ExecutorConfig { device, workers, capacity, stack_size, delivery, around, clock } =
            config;
        let shared = Arc::new(ExecutorShared::new(device, workers, clock));
        let config = RunClosures::config(capacity);
        let (closures, factory) = Admission::new(&shared, config, || Ok(RunClosures))
            .expect("an executor that is made is not shut down");
        let threads = Mutex::new(Vec::new());
        let owner = Arc::new(Owner { shared: Arc::clone(&shared), closures, threads });
        for index in 0..workers {
            let shared = Arc::clone(&shared);
            // The kernel shows 15 bytes of a thread's name.
            let name = format!("onelane {} {index}", shared.device);
            let body = move || run_worker(shared, index, delivery, around);
            let thread = spawn(name, Some(stack_size), body).inspect_err(|_| {
                // Those that run are told to stop by the owner's drop; these never came to be.
                let mut guard = owner.shared.lock();
                let (scheduler, deferred) = guard.parts();
                for missing in index..workers {
                    scheduler.worker_ended(missing, deferred);
                }
            });
            owner.threads.lock().push(thread.map_err(|e| BuildError::Thread(Arc::new(e)))?);
        }
        drop(factory);
        Ok(Self { owner })
    }

    /// Names the executor among those of the process: handles with one id are to one executor.
    pub fn id(&self) -> u64 {
        self.owner.shared.id
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
        worker_of(&self.owner.shared).is_some()
    }

    /// Runs a closure on the worker; inline, before this returns, when already there. Closures run
    /// in order, among the queues' batches by the same rules, at normal priority.
    ///
    /// # Errors
    /// The closure comes back in the [`SubmitError`], when the executor is shut down.
    ///
    /// # Blocking
    /// Blocks while as many closures wait as [`ExecutorConfig::capacity`] says.
    ///
    /// ```
    /// use onelane::DeviceExecutor;
    ///
    /// # async fn ask() -> Result<(), Box<dyn std::error::Error>> {
    /// let device = DeviceExecutor::shared("doc-submit")?;
    /// let answer = device.submit(|| 6 * 7)?; // A future, too.
    /// assert_eq!(answer.await?, 42);
    /// # Ok(())
    /// # }
    /// ```
    pub fn submit<F, T>(&self, closure: F) -> Result<ResponseHandle<T>, SubmitError<F>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.submit_request(Request::new(closure), Patience::Until(None))
            .map_err(|refused| refused.map(Request::into_input))
    }

    /// As [`submit`](Self::submit), if there is room for a closure now.
    ///
    /// # Errors
    /// The closure comes back in the [`SubmitError`].
    pub fn try_submit<F, T>(&self, closure: F) -> Result<ResponseHandle<T>, SubmitError<F>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.submit_request(Request::new(closure), Patience::None)
            .map_err(|refused| refused.map(Request::into_input))
    }

    /// As [`try_submit`](Self::try_submit), and on a worker, too, the closure waits for its turn: for
    /// what is submitted by who does not wait for it, such as the callback of a closure that has run.
    ///
    /// # Errors
    /// The closure comes back in the [`SubmitError`].
    pub fn try_submit_no_inline<F, T>(
        &self,
        closure: F,
    ) -> Result<ResponseHandle<T>, SubmitError<F>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.enqueue(Request::new(closure), Patience::None)
            .map_err(|refused| refused.map(Request::into_input))
    }

    /// As [`submit`](Self::submit), with a priority and a deadline, waiting for room for at most
    /// `timeout`.
    ///
    /// # Errors
    /// The request comes back in the [`SubmitError`].
    ///
    /// # Blocking
    /// As [`submit`](Self::submit), and no longer than `timeout`.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use onelane::{DeviceExecutor, Priority, Request};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let device = DeviceExecutor::shared("doc-submit-timeout")?;
    /// let urgent = Request::new(|| "done").priority(Priority::Interactive);
    /// let handle = device.submit_timeout(urgent, Duration::from_secs(60))?;
    /// assert_eq!(handle.wait()?, "done");
    /// # Ok(())
    /// # }
    /// ```
    pub fn submit_timeout<F, T>(
        &self,
        request: Request<F>,
        timeout: Duration,
    ) -> Result<ResponseHandle<T>, SubmitError<Request<F>>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let until = self.owner.shared.clock.now().checked_add(timeout);
        self.submit_request(request, Patience::Until(until))
    }

    fn submit_request<F, T>(
        &self,
        request: Request<F>,
        patience: Patience,
    ) -> Result<ResponseHandle<T>, SubmitError<Request<F>>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        if self.is_worker() {
            return Ok(self.run_inline(request.into_input()));
        }
        self.enqueue(request, patience)
    }

    fn enqueue<F, T>(
        &self,
        request: Request<F>,
        patience: Patience,
    ) -> Result<ResponseHandle<T>, SubmitError<Request<F>>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let Owner { shared, closures, .. } = &*self.owner;
        let (sender, value, receiver) = Receiver::pair_with_value();
        let (closure, request) = request.replace_input(());
        let body = Arc::new(Mutex::new(Some(closure)));
        let run = {
            let body = Arc::clone(&body);
            move || {
                let taken = body.lock().take();
                if let Some(closure) = taken {
                    let answer = closure();
                    *value.lock() = Some(answer);
                }
            }
        };
        let request = request.replace_input(Closure(Box::new(run))).1;
        match closures.submit_with(request, sender, patience) {
            Ok((request, deadline, _)) => {
                let outstanding = Outstanding::new(receiver, Some(request), deadline);
                Ok(ResponseHandle::new(shared, outstanding, WaitPolicy::default()))
            }
            Err(refused) => Err(refused.map(|request| {
                let closure = body.lock().take().expect("a closure that was refused has not run");
                request.replace_input(closure).1
            })),
        }
    }

    fn run_inline<F: FnOnce() -> T, T: Send + 'static>(&self, closure: F) -> ResponseHandle<T> {
        let (sender, receiver) = Receiver::pair(None);
        let answer = catch_panic(closure).map_err(RequestError::Panicked);
        sender.send(answer, &mut Deferred::default());
        let outstanding = Outstanding::new(receiver, None, None);
        ResponseHandle::new(&self.owner.shared, outstanding, WaitPolicy::default())
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
    /// thread of the executor's own. In both cases the shutdown goes on by itself.
    ///
    /// # Blocking
    /// Blocks for at most `timeout`.
    pub fn shutdown(&self, mode: Shutdown, timeout: Duration) -> Result<(), ShutdownError> {
        self.owner.stop(mode == Shutdown::Abort);
        if belongs_to(&self.owner.shared) {
            return Err(ShutdownError::WouldDeadlock);
        }
        let until = self.owner.shared.clock.now().checked_add(timeout);
        if self.owner.wait_for_end(until) { Ok(()) } else { Err(ShutdownError::Timeout(timeout)) }
    }

    /// Whether the device works: it stalls when a batch of any queue does. A queue that has failed
    /// says so itself.
    pub fn health(&self) -> Health {
        let shared = &self.owner.shared;
        let now = shared.clock.now();
        let waits_for = |worker| wait_graph::waits_for((shared.id, worker));
        shared.lock().overall_health(now, waits_for)
    }

    /// The statistics of the closures.
    pub fn stats(&self) -> QueueStats {
        self.owner.shared.stats(self.owner.closures.queue).summary()
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
        let mut guard = self.shared.lock();
        let (scheduler, deferred) = guard.parts();
        scheduler.stop(abort, deferred);
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
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop(false);
        // CORRECTNESS: a thread of the executor's own cannot join itself, nor a worker that waits for
        // it, be it in the destructors of its thread-locals; the workers stop by themselves.
        if !belongs_to(&self.shared) {
            self.wait_for_end(None);
        }
    }
}

/// Builds an engine on each worker. On a worker, builds its own and leaves the others to it.
pub(crate) fn build_engines<E: Engine>(
    shared: &Arc<ExecutorShared>,
    factory: &Arc<EngineFactory<E>>,
) -> Result<(), BuildError> {
    let here = worker_of(shared);
    let closed = || BuildError::Closed(shared.device.clone());
    let mut builds = Vec::new();
    {
        let mut guard = shared.lock();
        let (scheduler, deferred) = guard.parts();
        // CORRECTNESS: a worker that has ended runs no command; one that has not yet will.
        if scheduler.is_stopping() {
            return Err(closed());
        }
        let is_elsewhere = |index: &usize| here.as_ref().is_none_or(|here| here.index != *index);
        for index in (0..shared.workers).filter(is_elsewhere) {
            let factory = Arc::clone(factory);
            let (sender, receiver) = Receiver::pair(None);
            let build = move |engines: &Engines| {
                let built = engines.build(&factory);
                sender.send(Ok(built), &mut Deferred::default());
            };
            scheduler.workers.send(index, WorkerCommand::Run(Box::new(build)), deferred);
            let outstanding = Outstanding::new(receiver, None, None);
            builds.push(ResponseHandle::new(shared, outstanding, WaitPolicy::default()));
        }
    }
    if let Some(worker) = here {
        return worker.engines.build(factory);
    }
    // A worker of another executor may wait for this one, unless that waits for it.
    let request = RequestId { queue: factory.queue, number: 0 };
    let waiting = this_worker();
    if let Some(worker) = &waiting
        && matches!(worker.wait(shared, request, None), InlineProgress::Stuck)
    {
        return Err(BuildError::WouldDeadlock(shared.device.clone()));
    }
    let wait = |build: ResponseHandle<_>| build.wait().map_err(|_| closed())?;
    let built = builds.into_iter().try_for_each(wait);
    if let Some(worker) = waiting {
        worker.unwait(shared, request);
    }
    built
}
