//! The batch queue: the typed front of one engine.

use std::future::Future;
use std::hash::BuildHasher;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hashbrown::DefaultHashBuilder;

use crate::batch::Plan;
use crate::config::BatchConfig;
use crate::engine::{BatchItem, Engine};
use crate::error::{BuildError, EngineError, RequestError, ShutdownError, SubmitError};
use crate::executor::{DeviceExecutor, Owner, Shutdown};
use crate::policy::QueueId;
use crate::request::Request;
use crate::response::{Pending, Responder, ResponseHandle};
use crate::state::{Locked, Need, Room, Shared};
use crate::stats::{Health, QueueStats};
use crate::sync::thread_waker;
use crate::waiting::{Arrival, RequestList};
use crate::worker::{Help, WorkerContext};

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
    // A queue is Send and Sync whatever its engine is, which stays on the worker.
    engine: PhantomData<fn(E::Item) -> E::Output>,
}

/// How long a submission is ready to wait for room.
#[derive(Clone, Copy)]
enum Patience {
    None,
    Until(Option<Instant>),
}

/// Why there is no room.
enum Refusal {
    Full,
    Closed,
    Failed(String),
    WouldDeadlock,
}

impl Refusal {
    fn with<R>(self, refused: R) -> SubmitError<R> {
        match self {
            Self::Full => SubmitError::Full(refused),
            Self::Closed => SubmitError::Closed(refused),
            Self::Failed(why) => SubmitError::Failed(refused, why),
            Self::WouldDeadlock => SubmitError::WouldDeadlock(refused),
        }
    }
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
            let list = RequestList::new(Arc::clone(&plan), &config);
            state.insert_queue(queue, Box::new(list), config.clone());
            plan
        };
        let front = Front {
            owner: Arc::clone(&owner),
            id: plan.queue,
            config,
            hasher: DefaultHashBuilder::default(),
            engine: PhantomData,
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
    /// Blocks while the queue is full, first come first served. On a worker of the same executor it
    /// makes room by running the queue's requests inline. In async code use [`infer`](Self::infer).
    pub fn submit(
        &self,
        request: impl Into<Request<E::Item>>,
    ) -> Result<ResponseHandle<E::Output>, SubmitError<Request<E::Item>>> {
        self.submit_one(request.into(), Patience::Until(None))
    }

    /// Submits a request if there is room now.
    ///
    /// # Errors
    /// [`SubmitError::Full`] gives the request back, as every refusal does.
    pub fn try_submit(
        &self,
        request: impl Into<Request<E::Item>>,
    ) -> Result<ResponseHandle<E::Output>, SubmitError<Request<E::Item>>> {
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
    ) -> Result<ResponseHandle<E::Output>, SubmitError<Request<E::Item>>> {
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
    pub fn submit_group(
        &self,
        requests: Vec<Request<E::Item>>,
    ) -> Result<Vec<ResponseHandle<E::Output>>, SubmitError<Vec<Request<E::Item>>>> {
        self.submit_many(requests, Patience::Until(None))
    }

    /// As [`submit_group`](Self::submit_group), if there is room for all now.
    ///
    /// # Errors
    /// All requests come back in the [`SubmitError`].
    pub fn try_submit_group(
        &self,
        requests: Vec<Request<E::Item>>,
    ) -> Result<Vec<ResponseHandle<E::Output>>, SubmitError<Vec<Request<E::Item>>>> {
        self.submit_many(requests, Patience::None)
    }

    /// Submits a request and waits for its response, without blocking the thread at any point.
    ///
    /// # Errors
    /// [`InferError`](crate::InferError) says whether it was refused, or accepted and not answered.
    ///
    /// # Cancellation
    /// Dropping the future cancels the request, or gives up its place in the line for room.
    pub fn infer(&self, request: impl Into<Request<E::Item>>) -> Infer<E> {
        Infer { queue: self.clone(), state: InferState::Submitting(request.into(), None) }
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
        if WorkerContext::current(shared).is_some() {
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

    /// A snapshot of the counters and histograms; zeros when the queue has been shut down.
    pub fn stats(&self) -> QueueStats {
        self.shared().lock().stats(self.front.id).unwrap_or_default()
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

    fn shared(&self) -> &Arc<Shared> {
        &self.front.owner.shared
    }

    fn submit_one(
        &self,
        request: Request<E::Item>,
        patience: Patience,
    ) -> Result<ResponseHandle<E::Output>, SubmitError<Request<E::Item>>> {
        let cost = request.input.cost();
        if let Some(heavy) = self.too_heavy(cost) {
            return Err(self.refuse_heavy(request, 1, heavy));
        }
        let ticket = self.ticket(&request, cost);
        match self.room(Need { requests: 1, cost }, patience) {
            Ok(mut locked) => {
                let pending = self.push(&mut locked, request, ticket);
                drop(locked);
                Ok(ResponseHandle::new(self.shared(), pending))
            }
            Err(refusal) => Err(refusal.with(request)),
        }
    }

    fn submit_many(
        &self,
        requests: Vec<Request<E::Item>>,
        patience: Patience,
    ) -> Result<Vec<ResponseHandle<E::Output>>, SubmitError<Vec<Request<E::Item>>>> {
        let count = requests.len();
        let costs: Vec<usize> = requests.iter().map(|request| request.input.cost()).collect();
        let total = costs.iter().fold(0_usize, |sum, cost| sum.saturating_add(*cost));
        let heavy = self.too_many(count, total);
        let heavy = heavy.or_else(|| costs.iter().find_map(|&cost| self.too_heavy(cost)));
        if let Some(heavy) = heavy {
            return Err(self.refuse_heavy(requests, count, heavy));
        }
        let tickets: Vec<_> =
            requests.iter().zip(costs).map(|(request, cost)| self.ticket(request, cost)).collect();
        match self.room(Need { requests: count, cost: total }, patience) {
            Ok(mut locked) => {
                let pairs = requests.into_iter().zip(tickets);
                let pending: Vec<_> = pairs
                    .map(|(request, ticket)| self.push(&mut locked, request, ticket))
                    .collect();
                drop(locked);
                let shared = self.shared();
                Ok(pending.into_iter().map(|p| ResponseHandle::new(shared, p)).collect())
            }
            Err(refusal) => Err(refusal.with(requests)),
        }
    }

    /// What can be prepared for a request before the lock is taken.
    fn ticket(&self, request: &Request<E::Item>, cost: usize) -> Ticket<E> {
        let at = self.shared().clock.now();
        let key = request.input.key();
        let hash = self.front.hasher.hash_one(&key);
        let (pending, responder) = Pending::pair();
        Ticket { at, key, hash, cost, pending, responder }
    }

    /// What one request exceeds: the amount, the setting and its value.
    fn too_heavy(&self, cost: usize) -> Option<(usize, &'static str, usize)> {
        let BatchConfig { max_batch_cost, capacity_cost, .. } = self.front.config;
        if cost > max_batch_cost {
            Some((cost, "max_batch_cost", max_batch_cost))
        } else {
            (cost > capacity_cost).then_some((cost, "capacity_cost", capacity_cost))
        }
    }

    /// What a group exceeds.
    fn too_many(&self, count: usize, cost: usize) -> Option<(usize, &'static str, usize)> {
        let BatchConfig { capacity, capacity_cost, .. } = self.front.config;
        if count > capacity {
            Some((count, "capacity", capacity))
        } else {
            (cost > capacity_cost).then_some((cost, "capacity_cost", capacity_cost))
        }
    }

    fn refuse_heavy<R>(
        &self,
        refused: R,
        requests: usize,
        (amount, limit, max): (usize, &'static str, usize),
    ) -> SubmitError<R> {
        self.shared().lock().count_refused(self.front.id, requests);
        SubmitError::TooHeavy { refused, amount, limit, max }
    }

    /// Waits for room as long as `patience` lasts. With the room comes the lock: whoever has it
    /// pushes before anybody else can take the room, or close the queue.
    fn room(&self, need: Need, patience: Patience) -> Result<Locked<'_>, Refusal> {
        // Mostly there is room at once, and neither a waker nor a place in line is needed.
        let refusal = match self.poll_room(need, &mut None, None) {
            Ok(locked) => return Ok(locked),
            Err(refusal) => refusal,
        };
        let (Refusal::Full, Patience::Until(until)) = (&refusal, patience) else {
            return Err(self.refuse(need.requests, refusal));
        };
        let waker = thread_waker();
        let mut place = self.place_in_line();
        let shared = self.shared();
        loop {
            match self.poll_room(need, &mut place.ticket, Some(&waker)) {
                Ok(locked) => return Ok(locked),
                Err(Refusal::Full) => {}
                Err(refusal) => return Err(self.refuse(need.requests, refusal)),
            }
            if let Some(worker) = WorkerContext::current(shared) {
                match worker.help(self.front.id, None) {
                    Help::Progress => continue,
                    Help::Elsewhere | Help::Stuck => {
                        return Err(self.refuse(need.requests, Refusal::WouldDeadlock));
                    }
                }
            }
            if until.is_some_and(|until| until <= shared.clock.now()) {
                return Err(self.refuse(need.requests, Refusal::Full));
            }
            // CORRECTNESS: the ticket with our waker was left under the lock under which there was
            // no room; whatever makes room wakes the first in line.
            shared.clock.park_until(until);
        }
    }

    fn poll_room(
        &self,
        need: Need,
        ticket: &mut Option<u64>,
        waker: Option<&Waker>,
    ) -> Result<Locked<'_>, Refusal> {
        let mut locked = self.shared().lock();
        let (state, after) = locked.parts();
        match state.admit(self.front.id, need, ticket, waker, after) {
            Room::Granted => Ok(locked),
            Room::Full => Err(Refusal::Full),
            Room::Closed => Err(Refusal::Closed),
            Room::Failed(why) => Err(Refusal::Failed(why)),
        }
    }

    fn refuse(&self, requests: usize, refusal: Refusal) -> Refusal {
        self.shared().lock().count_refused(self.front.id, requests);
        refusal
    }

    fn place_in_line(&self) -> PlaceInLine {
        PlaceInLine { shared: Arc::clone(self.shared()), queue: self.front.id, ticket: None }
    }

    /// Puts a request for which there is room into the list.
    fn push(
        &self,
        locked: &mut Locked<'_>,
        request: Request<E::Item>,
        ticket: Ticket<E>,
    ) -> Pending<E::Output> {
        let Ticket { at, key, hash, cost, mut pending, responder } = ticket;
        let deadline = request.deadline_from(at);
        let class = request.priority;
        let arrival = Arrival { input: request.input, key, hash, cost, class, at, deadline };
        let (state, after) = locked.parts();
        let seq = state.next_seq();
        let queue = state.queue(self.front.id).expect("there was room in it under this lock");
        let id = queue.list_mut::<RequestList<E>>().push(arrival, responder, seq, after);
        queue.stats.counters.submitted += 1;
        pending.wait_at(self.front.id, id, deadline);
        pending
    }
}

/// What a submitting thread has ready before it takes the lock.
struct Ticket<E: Engine> {
    at: Instant,
    key: <E::Item as BatchItem>::Key,
    hash: u64,
    cost: usize,
    pending: Pending<E::Output>,
    responder: Responder<E::Output>,
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
        self.close(false);
    }
}

/// A place in the line for room; given back when dropped.
struct PlaceInLine {
    shared: Arc<Shared>,
    queue: QueueId,
    ticket: Option<u64>,
}

impl Drop for PlaceInLine {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let mut locked = self.shared.lock();
            let (state, after) = locked.parts();
            state.withdraw(self.queue, ticket, after);
        }
    }
}

/// Why [`BatchQueue::infer`] has no response.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum InferError<I> {
    /// The request was not accepted; it comes back.
    #[error(transparent)]
    Refused(SubmitError<Request<I>>),
    /// The request was accepted and has no response.
    #[error(transparent)]
    Failed(RequestError),
}

impl<I> std::fmt::Debug for InferError<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InferError({self})")
    }
}

enum InferState<E: Engine> {
    Submitting(Request<E::Item>, Option<PlaceInLine>),
    Waiting(Pending<E::Output>),
    Done,
}

/// The future of [`BatchQueue::infer`].
#[must_use = "a future does nothing until it is awaited"]
pub struct Infer<E: Engine> {
    queue: BatchQueue<E>,
    state: InferState<E>,
}

// Nothing in it is pinned.
impl<E: Engine> Unpin for Infer<E> {}

impl<E: Engine> Future for Infer<E> {
    type Output = Result<E::Output, InferError<E::Item>>;

    /// # Panics
    /// When it is polled again after it has been ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { queue, state } = self.get_mut();
        if let InferState::Submitting(..) = state {
            let InferState::Submitting(request, place) = std::mem::replace(state, InferState::Done)
            else {
                unreachable!("matched above");
            };
            match queue.poll_submit(request, place, context.waker()) {
                Ok(pending) => *state = InferState::Waiting(pending),
                Err(NotYet::InLine(request, place)) => {
                    *state = InferState::Submitting(request, Some(place));
                    return Poll::Pending;
                }
                Err(NotYet::Refused(refused)) => {
                    return Poll::Ready(Err(InferError::Refused(refused)));
                }
            }
        }
        let InferState::Waiting(pending) = state else {
            panic!("an inference was polled after it had answered");
        };
        pending.poll(queue.shared(), context.waker()).map_err(InferError::Failed)
    }
}

impl<E: Engine> Drop for Infer<E> {
    fn drop(&mut self) {
        if let InferState::Waiting(pending) = &mut self.state {
            pending.cancel(self.queue.shared());
        }
    }
}

/// A request that was not accepted.
enum NotYet<I> {
    /// It waits in line for room.
    InLine(Request<I>, PlaceInLine),
    Refused(SubmitError<Request<I>>),
}

impl<E: Engine> BatchQueue<E> {
    fn poll_submit(
        &self,
        request: Request<E::Item>,
        mut place: Option<PlaceInLine>,
        waker: &Waker,
    ) -> Result<Pending<E::Output>, NotYet<E::Item>> {
        let cost = request.input.cost();
        if let Some(heavy) = self.too_heavy(cost) {
            return Err(NotYet::Refused(self.refuse_heavy(request, 1, heavy)));
        }
        let ticket = self.ticket(&request, cost);
        loop {
            // The first look is without a place in line: mostly there is room.
            let room = match &mut place {
                None => self.poll_room(Need { requests: 1, cost }, &mut None, None),
                Some(place) => {
                    self.poll_room(Need { requests: 1, cost }, &mut place.ticket, Some(waker))
                }
            };
            match room {
                Ok(mut locked) => return Ok(self.push(&mut locked, request, ticket)),
                Err(Refusal::Full) => {}
                Err(refusal) => {
                    return Err(NotYet::Refused(self.refuse(1, refusal).with(request)));
                }
            }
            if let Some(worker) = WorkerContext::current(self.shared()) {
                match worker.help(self.front.id, None) {
                    Help::Progress => continue,
                    Help::Elsewhere | Help::Stuck => {
                        let refused = self.refuse(1, Refusal::WouldDeadlock).with(request);
                        return Err(NotYet::Refused(refused));
                    }
                }
            }
            match place {
                None => place = Some(self.place_in_line()),
                Some(place) => return Err(NotYet::InLine(request, place)),
            }
        }
    }
}
