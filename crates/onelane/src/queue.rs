//! The batch queue: the typed front of one engine.

use std::sync::Arc;
use std::time::Duration;

use crate::admission::Admission;
use crate::admission::waiters::Patience;
#[cfg(doc)]
use crate::error::{InferError, Refusal, RequestError};
use crate::executor::{DeviceExecutor, Shutdown, build_engines};
use crate::stats::{Health, QueueHistograms, QueueStats, Stats};
use crate::sync::Receiver;
use crate::worker::context::belongs_to;
use crate::{
    BatchConfig, BuildError, Engine, EngineError, Infer, Request, ResponseHandle, ShutdownError,
    SubmitError, SubmitGroup,
};

/// The typed front of one engine: any thread or task submits requests, those of equal batch key
/// that wait together run as one batch, and each gets its own response.
///
/// Cloning gives another handle to the same queue. Dropping the last one closes the queue: what was
/// accepted is run, then the engine is dropped on its worker.
///
/// ```
/// use onelane::{BatchConfig, BatchQueue, DeviceExecutor, Engine, EngineError, Uniform};
///
/// struct Squares;
/// impl Engine for Squares {
///     type Item = Uniform<u64>;
///     type Output = u64;
///     fn infer(&mut self, batch: &[Uniform<u64>]) -> Result<Vec<u64>, EngineError> {
///         Ok(batch.iter().map(|item| item.0 * item.0).collect())
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = DeviceExecutor::shared("doc-queue")?;
/// let queue = BatchQueue::new(&device, BatchConfig::default(), || Ok(Squares))?;
/// let handle = queue.submit(Uniform(7))?;
/// assert_eq!(handle.wait()?, 49);
/// # Ok(())
/// # }
/// ```
pub struct BatchQueue<E: Engine> {
    admission: Arc<Admission<E>>,
}

impl<E: Engine> BatchQueue<E> {
    /// Makes a queue and builds its engine: `factory` and then `warmup` run on the worker, once for
    /// each worker. The factory is kept, to rebuild an engine that was lost.
    ///
    /// # Errors
    /// [`BuildError`]: a setting that cannot be used, what the factory or the warm-up said, or that
    /// the executor is shut down.
    ///
    /// # Blocking
    /// Blocks until the engines are built; on the worker itself it builds inline.
    pub fn new(
        device: &DeviceExecutor,
        config: BatchConfig,
        factory: impl Fn() -> Result<E, EngineError> + Send + Sync + 'static,
    ) -> Result<Self, BuildError> {
        config.validate()?;
        let owner = &device.owner;
        let (admission, factory) =
            Admission::new(&owner.shared, Some(Arc::clone(owner) as _), config, factory)
                .ok_or_else(|| BuildError::Closed(owner.shared.device.clone()))?;
        // If this fails, dropping the queue closes it, which drops what was built.
        let queue = Self { admission: Arc::new(admission) };
        build_engines(&owner.shared, &factory)?;
        Ok(queue)
    }

    /// Submits a request, waiting for room if the queue is full.
    ///
    /// # Errors
    /// The request comes back in the [`SubmitError`].
    ///
    /// # Blocking
    /// Blocks while the queue is full; room goes to the most urgent, a class counting as much as one
    /// `ageing` interval, then first come, first served. On a worker of the same executor it makes
    /// room by running the queue's requests inline. In async code use [`infer`](Self::infer).
    pub fn submit(
        &self,
        request: impl Into<Request<E::Item>>,
    ) -> Result<ResponseHandle<E::Output>, SubmitError<Request<E::Item>>> {
        self.admission.submit(request.into(), Receiver::pair(None), Patience::Until(None))
    }

    /// Submits a request if there is room now.
    ///
    /// # Errors
    /// [`Refusal::Full`] if there is none; the request comes back.
    ///
    /// ```
    /// use onelane::testing::{FakeEngine, FakeItem};
    /// use onelane::{BatchConfig, BatchQueue, DeviceExecutor, Refusal};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let device = DeviceExecutor::shared("doc-try-submit")?;
    /// # let queue = BatchQueue::new(&device, BatchConfig::default(), || Ok(FakeEngine::echo()))?;
    /// match queue.try_submit(FakeItem::new(7)) {
    ///     Ok(handle) => assert_eq!(handle.wait()?, 7),
    ///     Err(refused) if *refused.reason() == Refusal::Full => {
    ///         let _request = refused.into_refused(); // Try later, or say 429.
    ///     }
    ///     Err(refused) => return Err(refused.into()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_submit(
        &self,
        request: impl Into<Request<E::Item>>,
    ) -> Result<ResponseHandle<E::Output>, SubmitError<Request<E::Item>>> {
        self.admission.submit(request.into(), Receiver::pair(None), Patience::None)
    }

    /// Submits a request, waiting for room for at most `timeout`.
    ///
    /// # Errors
    /// [`Refusal::Full`] if there was no room in that time; the request comes back.
    ///
    /// # Blocking
    /// As [`submit`](Self::submit), and no longer than `timeout`.
    pub fn submit_timeout(
        &self,
        request: impl Into<Request<E::Item>>,
        timeout: Duration,
    ) -> Result<ResponseHandle<E::Output>, SubmitError<Request<E::Item>>> {
        self.admission.submit(request.into(), Receiver::pair(None), self.patience(timeout))
    }

    /// Submits several requests at once: all of them are accepted, or none is. They may run in
    /// different batches.
    ///
    /// # Errors
    /// All requests come back in the [`SubmitError`]; a group larger than the queue's capacity is
    /// refused at once.
    ///
    /// # Blocking
    /// Blocks until there is room for all.
    ///
    /// ```
    /// use onelane::testing::{FakeEngine, FakeItem};
    /// use onelane::{BatchConfig, BatchQueue, DeviceExecutor};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let device = DeviceExecutor::shared("doc-group")?;
    /// # let queue = BatchQueue::new(&device, BatchConfig::default(), || Ok(FakeEngine::echo()))?;
    /// let handles = queue.submit_group([1, 2, 3].map(FakeItem::new))?;
    /// let answers: Result<Vec<_>, _> = handles.into_iter().map(|handle| handle.wait()).collect();
    /// assert_eq!(answers?, [1, 2, 3]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn submit_group(
        &self,
        requests: impl IntoIterator<Item = impl Into<Request<E::Item>>>,
    ) -> Result<Vec<ResponseHandle<E::Output>>, SubmitError<Vec<Request<E::Item>>>> {
        self.admission.submit_group(all(requests), Patience::Until(None))
    }

    /// As [`submit_group`](Self::submit_group), if there is room for all now.
    ///
    /// # Errors
    /// All requests come back in the [`SubmitError`].
    pub fn try_submit_group(
        &self,
        requests: impl IntoIterator<Item = impl Into<Request<E::Item>>>,
    ) -> Result<Vec<ResponseHandle<E::Output>>, SubmitError<Vec<Request<E::Item>>>> {
        self.admission.submit_group(all(requests), Patience::None)
    }

    /// As [`submit_group`](Self::submit_group), waiting for room for at most `timeout`.
    ///
    /// # Errors
    /// [`Refusal::Full`] if there was no room for all in that time; they come back.
    ///
    /// # Blocking
    /// Blocks until there is room for all, and no longer than `timeout`.
    pub fn submit_group_timeout(
        &self,
        requests: impl IntoIterator<Item = impl Into<Request<E::Item>>>,
        timeout: Duration,
    ) -> Result<Vec<ResponseHandle<E::Output>>, SubmitError<Vec<Request<E::Item>>>> {
        self.admission.submit_group(all(requests), self.patience(timeout))
    }

    /// As [`submit_group`](Self::submit_group), waiting for room without blocking the thread.
    ///
    /// # Errors
    /// All requests come back in the [`SubmitError`].
    ///
    /// # Cancellation
    /// Dropping the future gives up the place; none of the requests is accepted.
    pub fn submit_group_async(
        &self,
        requests: impl IntoIterator<Item = impl Into<Request<E::Item>>>,
    ) -> SubmitGroup<E> {
        SubmitGroup::new(Arc::clone(&self.admission), all(requests))
    }

    /// Submits a request and waits for its response, without blocking the thread at any point.
    ///
    /// The request is handed over when the future is polled first. If there is no room it waits for
    /// room by itself: a task that is never polled again keeps nobody out.
    ///
    /// # Errors
    /// [`InferError`] says whether it was refused, or accepted and not answered.
    ///
    /// # Cancellation
    /// Dropping the future cancels the request, or gives up its place among those who wait for room.
    ///
    /// ```
    /// use onelane::testing::{FakeEngine, FakeItem};
    /// use onelane::{BatchConfig, BatchQueue, DeviceExecutor};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let device = DeviceExecutor::shared("doc-infer")?;
    /// # let queue = BatchQueue::new(&device, BatchConfig::default(), || Ok(FakeEngine::echo()))?;
    /// let task = tokio::spawn(queue.infer(FakeItem::new(7)));
    /// assert_eq!(queue.infer(FakeItem::new(8)).await?, 8);
    /// assert_eq!(task.await??, 7);
    /// # Ok(())
    /// # }
    /// ```
    pub fn infer(&self, request: impl Into<Request<E::Item>>) -> Infer<E> {
        Infer::new(Arc::clone(&self.admission), request.into())
    }

    /// Refuses new requests; what was accepted is run. Does not wait.
    pub fn close(&self) {
        self.admission.shared.lock().close(self.admission.queue, false);
    }

    /// Refuses new requests, runs (or, with [`Shutdown::Abort`], answers with
    /// [`RequestError::Closed`]) what waits, and drops the engine on its worker. When this has
    /// returned `Ok`, every request has been answered and the engine is gone.
    ///
    /// # Errors
    /// [`ShutdownError::Timeout`] when a batch still runs; [`ShutdownError::WouldDeadlock`] on a
    /// worker. In both cases the shutdown goes on by itself.
    ///
    /// # Blocking
    /// Blocks for at most `timeout`.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use onelane::testing::{FakeEngine, FakeItem};
    /// use onelane::{BatchConfig, BatchQueue, DeviceExecutor, Health, Shutdown};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let device = DeviceExecutor::shared("doc-shutdown")?;
    /// # let queue = BatchQueue::new(&device, BatchConfig::default(), || Ok(FakeEngine::echo()))?;
    /// let handle = queue.submit(FakeItem::new(1))?;
    /// queue.shutdown(Shutdown::Drain, Duration::from_secs(60))?;
    /// assert_eq!(handle.wait()?, 1);
    /// assert_eq!(queue.health(), Health::Closed);
    /// # Ok(())
    /// # }
    /// ```
    pub fn shutdown(&self, mode: Shutdown, timeout: Duration) -> Result<(), ShutdownError> {
        let Admission { shared, queue, .. } = &*self.admission;
        shared.lock().close(*queue, mode == Shutdown::Abort);
        if belongs_to(shared) {
            return Err(ShutdownError::WouldDeadlock);
        }
        let until = shared.clock.after(timeout);
        let is_gone = shared.wait(until, |scheduler, waker| scheduler.is_gone(*queue, waker));
        if is_gone { Ok(()) } else { Err(ShutdownError::Timeout(timeout)) }
    }

    /// A snapshot of the counters and of what waits; the last one when the queue has been shut down.
    pub fn stats(&self) -> QueueStats {
        self.live_stats().summary()
    }

    /// A snapshot of the histograms, for a monitoring system.
    pub fn histograms(&self) -> QueueHistograms {
        self.live_stats().histograms()
    }

    /// The counters and the histograms of one instant.
    pub fn snapshot(&self) -> (QueueStats, QueueHistograms) {
        self.live_stats().snapshot()
    }

    /// Whether the queue works, builds its engine again, stalls, has failed or was shut down.
    pub fn health(&self) -> Health {
        let Admission { shared, queue, .. } = &*self.admission;
        shared.lock().health(*queue, shared.clock.now())
    }

    /// How much there is to do: the cost of what waits, and the requests that wait for room or run.
    ///
    /// Cheap, unlike [`stats`](Self::stats): for choosing among queues each time that one is used.
    ///
    /// ```
    /// use onelane::testing::{FakeEngine, FakeItem};
    /// use onelane::{BatchConfig, BatchQueue, DeviceExecutor};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let device = DeviceExecutor::shared("doc-load")?;
    /// # let new = || BatchQueue::new(&device, BatchConfig::default(), || Ok(FakeEngine::echo()));
    /// let replicas = [new()?, new()?];
    /// let least = replicas.iter().min_by_key(|queue| queue.load()).expect("two of them");
    /// assert_eq!(least.submit(FakeItem::new(7))?.wait()?, 7);
    /// # Ok(())
    /// # }
    /// ```
    pub fn load(&self) -> usize {
        self.admission.shared.lock().load(self.admission.queue)
    }

    /// The settings that the queue was made with.
    pub fn config(&self) -> &BatchConfig {
        &self.admission.config
    }

    fn live_stats(&self) -> Stats {
        self.admission.shared.stats(self.admission.queue)
    }

    fn patience(&self, timeout: Duration) -> Patience {
        Patience::Until(self.admission.shared.clock.after(timeout))
    }
}

fn all<I>(requests: impl IntoIterator<Item = impl Into<Request<I>>>) -> Vec<Request<I>> {
    requests.into_iter().map(Into::into).collect()
}

impl<E: Engine> Clone for BatchQueue<E> {
    fn clone(&self) -> Self {
        Self { admission: Arc::clone(&self.admission) }
    }
}

impl<E: Engine> std::fmt::Debug for BatchQueue<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchQueue")
            .field("name", &self.config().name)
            .field("device", &self.admission.shared.device)
            .finish_non_exhaustive()
    }
}
