//! The device executor: the worker thread, or threads, that own one device.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use crate::admission::Admission;
use crate::admission::waiters::Patience;
use crate::owner::Owner;
use crate::scheduler::closures::{Closure, RunClosures};
use crate::scheduler::id::RequestId;
use crate::scheduler::shared::ExecutorShared;
use crate::scheduler::workers::WorkerCommand;
use crate::sync::{Deferred, Mutex, PerProcess, Receiver, catch_panic, may_lock, spawn};
use crate::worker::context::{InlineProgress, belongs_to, this_worker, worker_of};
use crate::worker::engines::{EngineFactory, Engines};
use crate::worker::hooks::Hooks;
use crate::worker::run_worker;
use crate::{
    BuildError, Engine, ExecutorConfig, Health, QueueHistograms, QueueStats, Request, RequestError,
    ResponseHandle, ShutdownError, SubmitClosure, SubmitError,
};

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
    pub(crate) owner: Arc<Owner>,
}

#[allow(clippy::disallowed_types, reason = "the model checker's mutex cannot be a static")]
static REGISTRY: PerProcess<std::sync::Mutex<BTreeMap<String, DeviceExecutor>>> =
    PerProcess::new(std::sync::Mutex::new(BTreeMap::new()));

fn registry() -> MutexGuard<'static, BTreeMap<String, DeviceExecutor>> {
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
        let hooks = Hooks { around: config.around, on_wake: config.on_wake };
        let (workers, delivery) = (config.workers, config.delivery);
        let shared = Arc::new(ExecutorShared::new(config.device, workers, config.clock));
        let closures = RunClosures::config(config.capacity).stall_after(config.stall_after);
        let (closures, _) = Admission::new(&shared, None, closures, || Ok(RunClosures))
            .expect("an executor that is made is not shut down");
        let threads = Mutex::new(Vec::new());
        let owner = Arc::new(Owner { shared: Arc::clone(&shared), closures, threads });
        for index in 0..workers {
            let shared = Arc::clone(&shared);
            // The kernel shows 15 bytes of a thread's name.
            let name = format!("onelane {} {index}", shared.device);
            let body = move || run_worker(shared, index, delivery, hooks);
            let thread = spawn(name, Some(config.stack_size), body).inspect_err(|_| {
                // Those that run are told to stop by the owner's drop; these never came to be.
                let mut scheduler = owner.shared.lock();
                for missing in index..workers {
                    scheduler.worker_ended(missing);
                    scheduler.worker_gone();
                }
            });
            owner.threads.lock().push(thread.map_err(|e| BuildError::Thread(Arc::new(e)))?);
        }
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

    /// The device that the calling thread is a worker of; `None`: it is no worker.
    pub fn of_this_worker() -> Option<String> {
        this_worker().map(|worker| worker.shared.device.clone())
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
    pub fn submit<F: FnOnce() -> T + Send + 'static, T: Send + 'static>(
        &self,
        closure: F,
    ) -> Result<ResponseHandle<T>, SubmitError<F>> {
        let submitted = self.submit_request(Request::new(closure), Patience::Until(None), true);
        submitted.map_err(|refused| refused.map(Request::into_input))
    }

    /// As [`submit`](Self::submit), if there is room for a closure now.
    ///
    /// # Errors
    /// The closure comes back in the [`SubmitError`].
    pub fn try_submit<F: FnOnce() -> T + Send + 'static, T: Send + 'static>(
        &self,
        closure: F,
    ) -> Result<ResponseHandle<T>, SubmitError<F>> {
        let submitted = self.submit_request(Request::new(closure), Patience::None, true);
        submitted.map_err(|refused| refused.map(Request::into_input))
    }

    /// As [`try_submit`](Self::try_submit), and on a worker, too, the closure waits for its turn: for
    /// what is submitted by who does not wait for it, such as the callback of a closure that has run.
    ///
    /// # Errors
    /// The closure comes back in the [`SubmitError`].
    pub fn try_submit_no_inline<F: FnOnce() -> T + Send + 'static, T: Send + 'static>(
        &self,
        closure: F,
    ) -> Result<ResponseHandle<T>, SubmitError<F>> {
        let submitted = self.submit_request(Request::new(closure), Patience::None, false);
        submitted.map_err(|refused| refused.map(Request::into_input))
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
    pub fn submit_timeout<F: FnOnce() -> T + Send + 'static, T: Send + 'static>(
        &self,
        request: Request<F>,
        timeout: Duration,
    ) -> Result<ResponseHandle<T>, SubmitError<Request<F>>> {
        let until = self.owner.shared.clock.after(timeout);
        self.submit_request(request, Patience::Until(until), true)
    }

    /// Submits a closure, and waits for room without blocking the thread.
    ///
    /// The closure is handed over when the future is polled first, on a worker, too: there it waits
    /// for its turn. Room is assigned to it: a future that is never polled again keeps nobody out.
    ///
    /// # Errors
    /// The request comes back in the [`SubmitError`].
    ///
    /// # Cancellation
    /// Dropping the future gives up the place; the closure is not accepted.
    ///
    /// ```
    /// use onelane::DeviceExecutor;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let device = DeviceExecutor::shared("doc-submit-async")?;
    /// let handle = device.submit_async(onelane::Request::new(|| 6 * 7)).await?;
    /// assert_eq!(handle.await?, 42);
    /// # Ok(())
    /// # }
    /// ```
    pub fn submit_async<F: FnOnce() -> T + Send + 'static, T: Send + 'static>(
        &self,
        request: Request<F>,
    ) -> SubmitClosure<F, T> {
        SubmitClosure::new(Arc::clone(&self.owner), request)
    }

    /// `inline`: on a worker, runs the closure here and now.
    fn submit_request<F: FnOnce() -> T + Send + 'static, T: Send + 'static>(
        &self,
        request: Request<F>,
        patience: Patience,
        inline: bool,
    ) -> Result<ResponseHandle<T>, SubmitError<Request<F>>> {
        let Owner { shared, closures, .. } = &*self.owner;
        if inline && self.is_worker() {
            let (sender, receiver) = Receiver::pair(None);
            let answer = catch_panic(request.into_input()).map_err(RequestError::Panicked);
            sender.send(answer, &mut Deferred::default());
            return Ok(ResponseHandle::new(shared, receiver));
        }
        let (request, channel) = Closure::of(request);
        closures
            .submit(request, channel, patience)
            .map(ResponseHandle::without_policy)
            .map_err(|refused| refused.map(Closure::take_back::<F, T>))
    }

    /// Runs a closure on the worker and waits for its result.
    ///
    /// # Errors
    /// [`RequestError::Panicked`] with the closure's panic message; [`RequestError::Closed`] when
    /// the executor is shut down.
    ///
    /// # Blocking
    /// Blocks until the closure has run, behind whatever goes first.
    pub fn call<F: FnOnce() -> T + Send + 'static, T: Send + 'static>(
        &self,
        closure: F,
    ) -> Result<T, RequestError> {
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
        self.owner.shared.lock().stop(mode == Shutdown::Abort);
        if belongs_to(&self.owner.shared) {
            return Err(ShutdownError::WouldDeadlock);
        }
        let until = self.owner.shared.clock.after(timeout);
        if self.owner.wait_for_end(until) { Ok(()) } else { Err(ShutdownError::Timeout(timeout)) }
    }

    /// Whether the device works: it stalls when a batch of any queue does. A queue that has failed
    /// says so itself.
    pub fn health(&self) -> Health {
        let shared = &self.owner.shared;
        shared.lock().overall_health(shared.clock.now())
    }

    /// The statistics of the closures.
    pub fn stats(&self) -> QueueStats {
        self.owner.shared.stats(self.owner.closures.queue).summary()
    }

    /// The statistics and the histograms of the closures, of one instant.
    pub fn snapshot(&self) -> (QueueStats, QueueHistograms) {
        self.owner.shared.stats(self.owner.closures.queue).snapshot()
    }
}

impl std::fmt::Debug for DeviceExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceExecutor({:?}, workers={})", self.device(), self.workers())
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
        let mut scheduler = shared.lock();
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
            scheduler.send(index, WorkerCommand::Run(Box::new(build)));
            builds.push(ResponseHandle::new(shared, receiver));
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
        worker.unwait(request);
    }
    built
}
