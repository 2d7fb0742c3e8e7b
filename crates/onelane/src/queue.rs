//! The batch queue: the typed front of one engine.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::DefaultHashBuilder;

use crate::batch::Plan;
use crate::config::BatchConfig;
use crate::engine::{BatchItem, Engine};
use crate::error::{BuildError, EngineError, ShutdownError};
#[cfg(doc)]
use crate::error::{RequestError, SubmitError};
use crate::executor::{DeviceExecutor, Owner, Shutdown};
use crate::inbox::Inbox;
use crate::infer::Infer;
use crate::policy::QueueId;
use crate::request::Request;
use crate::request_list::RequestList;
use crate::shared::Shared;
use crate::stats::{Health, QueueStats};
use crate::submit::{Patience, Submitted, SubmittedGroup};
use crate::sync::thread_waker;
use crate::worker::WorkerContext;

/// The typed front of one engine: any thread or task submits requests, those of equal batch key
/// that wait together run as one batch, and each gets its own response.
///
/// Cloning gives another handle to the same queue. Dropping the last one closes the queue: what was
/// accepted is run, then the engine is dropped on its worker.
pub struct BatchQueue<E: Engine> {
    front: Arc<Front<E>>,
}

/// What the handles of one queue share; closes the queue when the last one goes.
struct Front<E: Engine> {
    // Dropped after `drop` below has closed the queue: this may be the executor's last handle.
    owner: Arc<Owner>,
    id: QueueId,
    config: BatchConfig,
    hasher: DefaultHashBuilder,
    inbox: Arc<Inbox<E>>,
}

impl<E: Engine> BatchQueue<E> {
    /// Makes a queue and builds its engine: `factory` and then `warmup` run on the worker, once for
    /// each worker. The factory is kept, to rebuild an engine that has panicked.
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
        let owner = Arc::clone(device.owner());
        let shared = &owner.shared;
        let inbox = Arc::new(Inbox::new(&config));
        let plan = {
            let mut state = shared.lock();
            if state.is_stopping() {
                return Err(BuildError::Closed(shared.device.clone()));
            }
            let queue = state.next_queue();
            let plan = Arc::new(Plan {
                queue,
                device: shared.device.clone(),
                name: config.name.clone(),
                factory: Box::new(factory),
            });
            let list = RequestList::new(Arc::clone(&plan), Arc::clone(&inbox), &config);
            state.insert_queue(queue, Box::new(list), config.clone());
            plan
        };
        let front = Front {
            owner: Arc::clone(&owner),
            id: plan.queue,
            config,
            hasher: DefaultHashBuilder::default(),
            inbox,
        };
        // If this fails, dropping the front closes the queue, which drops what was built.
        let queue = Self { front: Arc::new(front) };
        owner.build_engines(&plan)?;
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
    pub fn submit(&self, request: impl Into<Request<E::Item>>) -> Submitted<E> {
        self.submit_one(request.into(), Patience::Until(None))
    }

    /// Submits a request if there is room now.
    ///
    /// # Errors
    /// [`SubmitError::Full`] gives the request back, as every refusal does.
    pub fn try_submit(&self, request: impl Into<Request<E::Item>>) -> Submitted<E> {
        self.submit_one(request.into(), Patience::None)
    }

    /// Submits a request, waiting for room for at most `timeout`.
    ///
    /// # Errors
    /// [`SubmitError::Full`] if there was no room in that time; the request comes back.
    ///
    /// # Blocking
    /// As [`submit`](Self::submit), and no longer than `timeout`.
    pub fn submit_timeout(
        &self,
        request: impl Into<Request<E::Item>>,
        timeout: Duration,
    ) -> Submitted<E> {
        let until = self.shared().clock.now().checked_add(timeout);
        self.submit_one(request.into(), Patience::Until(until))
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
    pub fn submit_group(&self, requests: Vec<Request<E::Item>>) -> SubmittedGroup<E> {
        self.submit_many(requests, Patience::Until(None))
    }

    /// As [`submit_group`](Self::submit_group), if there is room for all now.
    ///
    /// # Errors
    /// All requests come back in the [`SubmitError`].
    pub fn try_submit_group(&self, requests: Vec<Request<E::Item>>) -> SubmittedGroup<E> {
        self.submit_many(requests, Patience::None)
    }

    /// As [`submit_group`](Self::submit_group), waiting for room for at most `timeout`.
    ///
    /// # Errors
    /// [`SubmitError::Full`] if there was no room for all in that time; they come back.
    ///
    /// # Blocking
    /// Blocks until there is room for all, and no longer than `timeout`.
    pub fn submit_group_timeout(
        &self,
        requests: Vec<Request<E::Item>>,
        timeout: Duration,
    ) -> SubmittedGroup<E> {
        let until = self.shared().clock.now().checked_add(timeout);
        self.submit_many(requests, Patience::Until(until))
    }

    /// Submits a request and waits for its response, without blocking the thread at any point.
    ///
    /// # Errors
    /// [`InferError`](crate::InferError) says whether it was refused, or accepted and not answered.
    ///
    /// # Cancellation
    /// Dropping the future cancels the request, or gives up its place in the line for room.
    pub fn infer(&self, request: impl Into<Request<E::Item>>) -> Infer<'_, E> {
        Infer::new(self, request.into())
    }

    /// Refuses new requests; what was accepted is run. Does not wait.
    pub fn close(&self) {
        self.front.close(false);
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
    pub fn shutdown(&self, mode: Shutdown, timeout: Duration) -> Result<(), ShutdownError> {
        self.front.close(mode == Shutdown::Abort);
        let shared = self.shared();
        if WorkerContext::is_ours(shared) {
            return Err(ShutdownError::WouldDeadlock);
        }
        let until = shared.clock.now().checked_add(timeout);
        let waker = thread_waker();
        while !shared.lock().is_gone(self.front.id, &waker) {
            if until.is_some_and(|until| until <= shared.clock.now()) {
                return Err(ShutdownError::Timeout(timeout));
            }
            shared.clock.park_until(until);
        }
        Ok(())
    }

    /// A snapshot of the counters and histograms; the last one when the queue has been shut down.
    pub fn stats(&self) -> QueueStats {
        self.shared().stats(self.front.id)
    }

    /// Whether the queue works, stalls or has failed.
    pub fn health(&self) -> Health {
        let now = self.shared().clock.now();
        self.shared().lock().health(self.front.id, now)
    }

    /// The settings that the queue was made with.
    pub fn config(&self) -> &BatchConfig {
        &self.front.config
    }

    pub(crate) fn inbox(&self) -> &Inbox<E> {
        &self.front.inbox
    }

    pub(crate) fn id(&self) -> QueueId {
        self.front.id
    }

    pub(crate) fn hash(&self, key: &<E::Item as BatchItem>::Key) -> u64 {
        self.front.hasher.hash_one(key)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.front.owner.shared
    }
}

impl<E: Engine> Clone for BatchQueue<E> {
    fn clone(&self) -> Self {
        Self { front: Arc::clone(&self.front) }
    }
}

impl<E: Engine> std::fmt::Debug for BatchQueue<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchQueue")
            .field("name", &self.front.config.name)
            .field("device", &self.shared().device)
            .finish_non_exhaustive()
    }
}

impl<E: Engine> Front<E> {
    fn close(&self, abort: bool) {
        let mut locked = self.owner.shared.lock();
        let (state, after) = locked.parts();
        state.close(self.id, abort, after);
    }
}

impl<E: Engine> Drop for Front<E> {
    fn drop(&mut self) {
        let mut locked = self.owner.shared.lock();
        let (state, after) = locked.parts();
        state.let_go(self.id, after);
    }
}
