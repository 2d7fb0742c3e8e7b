//! Admission: how requests get into a queue. There is one way: through the inbox, if it has room;
//! if not, through the scheduler, which takes them in or has them wait for room.

pub(crate) mod inbox;
pub(crate) mod waiters;

use std::hash::BuildHasher;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Instant;

use hashbrown::DefaultHashBuilder;

use crate::admission::inbox::{Arrival, Inbox, InboxState, Permits, WaitPolicy};
use crate::admission::waiters::Ticket;
use crate::config::BatchConfig;
use crate::engine::{BatchItem, Engine};
use crate::error::{EngineError, Refusal, SubmitError};
use crate::handle::{Outstanding, ResponseHandle};
use crate::request::{Priority, Request};
use crate::scheduler::pending::{Admitted, Pending, WaitForRoom};
use crate::scheduler::policy::QueueId;
use crate::scheduler::{ExecutorShared, RequestId};
use crate::sync::{MutexGuard, Receiver, Sender, thread_waker};
use crate::worker::engines::EngineFactory;
use crate::worker::inline::{InlineProgress, this_worker};

/// How long a submission is ready to wait for room.
#[derive(Clone, Copy)]
pub(crate) enum Patience {
    None,
    Until(Option<Instant>),
}

/// What is submitted at once: requests, or one.
type Requests<E> = Vec<Request<<E as Engine>::Item>>;

/// The way into one queue, for all who have a handle to it.
pub(crate) struct Admission<E: Engine> {
    pub(crate) shared: Arc<ExecutorShared>,
    pub(crate) queue: QueueId,
    pub(crate) config: BatchConfig,
    hasher: DefaultHashBuilder,
    inbox: Arc<Inbox<E>>,
}

/// Requests that were handed over.
pub(crate) struct Entered<E: Engine> {
    /// The number of the first; the others follow.
    first: u64,
    /// What to look at while they wait for room.
    pub(crate) ticket: Option<Arc<Ticket<E>>>,
}

/// A group that was handed over: its requests, in order.
pub(crate) struct EnteredGroup<E: Engine> {
    pub(crate) outstanding: Vec<Outstanding<E::Output>>,
    pub(crate) ticket: Option<Arc<Ticket<E>>>,
    /// The first.
    pub(crate) request: RequestId,
}

/// See [`Admission::start_with`].
pub(crate) type StartedWith<E> = (RequestId, Option<Instant>, Option<Arc<Ticket<E>>>);

impl<E: Engine> Admission<E> {
    /// Makes a queue, and the way into it; its engines have still to be built.
    pub(crate) fn new(
        shared: &Arc<ExecutorShared>,
        config: BatchConfig,
        build: impl Fn() -> Result<E, EngineError> + Send + Sync + 'static,
    ) -> Option<(Self, Arc<EngineFactory<E>>)> {
        let inbox = Arc::new(Inbox::new(&config));
        let mut scheduler = shared.lock();
        if scheduler.is_stopping() {
            return None;
        }
        let queue = scheduler.next_queue();
        let build = Box::new(build);
        let factory = Arc::new(EngineFactory::new(queue, &shared.device, &config.name, build));
        let pending = Pending::new(Arc::clone(&factory), Arc::clone(&inbox), &config);
        scheduler.insert_queue(queue, Box::new(pending), config.clone());
        drop(scheduler);
        let (shared, hasher) = (Arc::clone(shared), DefaultHashBuilder::default());
        Some((Self { shared, queue, config, hasher, inbox }, factory))
    }

    /// Submits a request for a thread.
    pub(crate) fn submit(
        &self,
        request: Request<E::Item>,
        patience: Patience,
    ) -> Result<ResponseHandle<E::Output>, SubmitError<Request<E::Item>>> {
        let (sender, receiver) = Receiver::pair(None);
        let (request, deadline, policy) = self.submit_with(request, sender, patience)?;
        let outstanding = Outstanding::new(receiver, Some(request), deadline);
        Ok(ResponseHandle::new(&self.shared, outstanding, policy))
    }

    /// Submits a request for a thread, whose answer goes to `sender`. Returns its name, its deadline
    /// and how to wait for it.
    pub(crate) fn submit_with(
        &self,
        request: Request<E::Item>,
        sender: Sender<E::Output>,
        patience: Patience,
    ) -> Result<(RequestId, Option<Instant>, WaitPolicy), SubmitError<Request<E::Item>>> {
        let permits = Permits { requests: 1, cost: request.input.cost() };
        if let Some(refusal) = self.too_large(permits, [permits.cost]) {
            sender.refuse();
            return Err(self.refuse(refusal, 1, request));
        }
        let arrival = self.arrival(request, permits.cost, self.now(), sender);
        let (hash, class, deadline) = (arrival.hash, arrival.class, arrival.deadline);
        if let Some(mut inbox) = self.inbox.enter(permits) {
            let policy = self.inbox.wait_policy(&mut inbox, hash, class);
            let number = self.enter(inbox, arrival);
            return Ok((self.request(number), deadline, policy));
        }
        let entered = self.enter_slowly(vec![arrival], class, patience.wait());
        let number = entered
            .and_then(|entered| self.wait_for_room(entered, 1, patience))
            .map_err(|refused| refused.map(only))?;
        Ok((self.request(number), deadline, WaitPolicy::default()))
    }

    /// Submits requests for a thread: all of them go in together, or none does.
    pub(crate) fn submit_group(
        &self,
        requests: Requests<E>,
        patience: Patience,
    ) -> Result<Vec<ResponseHandle<E::Output>>, SubmitError<Requests<E>>> {
        let EnteredGroup { outstanding, ticket, request } =
            self.start_group(requests, patience.wait())?;
        let entered = Entered { first: request.number, ticket };
        self.wait_for_room(entered, outstanding.len(), patience)?;
        Ok(self.handles(outstanding))
    }

    pub(crate) fn handles(
        &self,
        outstanding: Vec<Outstanding<E::Output>>,
    ) -> Vec<ResponseHandle<E::Output>> {
        let handle = |one| ResponseHandle::new(&self.shared, one, WaitPolicy::default());
        outstanding.into_iter().map(handle).collect()
    }

    /// Hands requests over that go in together, or not at all.
    pub(crate) fn start_group(
        &self,
        requests: Requests<E>,
        wait: WaitForRoom,
    ) -> Result<EnteredGroup<E>, SubmitError<Requests<E>>> {
        let costs: Vec<usize> = requests.iter().map(|request| request.input.cost()).collect();
        let cost = costs.iter().fold(0_usize, |sum, cost| sum.saturating_add(*cost));
        let permits = Permits { requests: requests.len(), cost };
        if let Some(refusal) = self.too_large(permits, costs.iter().copied()) {
            return Err(self.refuse(refusal, permits.requests, requests));
        }
        // The group goes in when its least urgent request may.
        let class = requests.iter().map(|request| request.priority).min().unwrap_or_default();
        let now = self.now();
        let (senders, receivers): (Vec<_>, Vec<_>) =
            requests.iter().map(|_| Receiver::pair(None)).unzip();
        let parts = requests.into_iter().zip(costs).zip(senders);
        let arrivals: Vec<_> = parts
            .map(|((request, cost), sender)| self.arrival(request, cost, now, sender))
            .collect();
        let deadlines: Vec<_> = arrivals.iter().map(|arrival| arrival.deadline).collect();
        let Entered { first, ticket } = self.enter_slowly(arrivals, class, wait)?;
        let outstanding = receivers.into_iter().zip(deadlines).zip(first..);
        let outstanding = outstanding.map(|((receiver, deadline), number)| {
            Outstanding::new(receiver, Some(self.request(number)), deadline)
        });
        let outstanding = outstanding.collect();
        Ok(EnteredGroup { outstanding, ticket, request: self.request(first) })
    }

    /// Hands a request over for a task.
    #[inline]
    pub(crate) fn start(
        &self,
        request: Request<E::Item>,
        waker: &Waker,
    ) -> Result<(Outstanding<E::Output>, Option<Arc<Ticket<E>>>), SubmitError<Request<E::Item>>>
    {
        let permits = Permits { requests: 1, cost: request.input.cost() };
        if let Some(refusal) = self.too_large(permits, [permits.cost]) {
            return Err(self.refuse(refusal, 1, request));
        }
        let (sender, receiver) = Receiver::pair(Some(waker.clone()));
        let arrival = self.arrival(request, permits.cost, self.now(), sender);
        let (class, deadline) = (arrival.class, arrival.deadline);
        let (number, ticket) = match self.inbox.enter(permits) {
            Some(inbox) => (self.enter(inbox, arrival), None),
            None => {
                let entered = self.enter_slowly(vec![arrival], class, WaitForRoom::Untold);
                let Entered { first, ticket } = entered.map_err(|refused| refused.map(only))?;
                (first, ticket)
            }
        };
        Ok((Outstanding::new(receiver, Some(self.request(number)), deadline), ticket))
    }

    /// Hands a request over whose answer goes to `sender`. Returns its name, its deadline and, while it
    /// waits for room, what says when it is in.
    pub(crate) fn start_with(
        &self,
        request: Request<E::Item>,
        sender: Sender<E::Output>,
    ) -> Result<StartedWith<E>, SubmitError<Request<E::Item>>> {
        let cost = request.input.cost();
        let arrival = self.arrival(request, cost, self.now(), sender);
        let (class, deadline) = (arrival.class, arrival.deadline);
        let entered = self.enter_slowly(vec![arrival], class, WaitForRoom::Told);
        let Entered { first, ticket } = entered.map_err(|refused| refused.map(only))?;
        Ok((self.request(first), deadline, ticket))
    }

    /// A request on its way in, with what is a user's code or takes time done before any lock.
    #[inline]
    fn arrival(
        &self,
        request: Request<E::Item>,
        cost: usize,
        at: Instant,
        sender: Sender<E::Output>,
    ) -> Arrival<E> {
        let deadline = request.deadline_from(at);
        let Request { input, priority: class, .. } = request;
        let key = input.key();
        let hash = self.hasher.hash_one(&key);
        Arrival { number: 0, input, key, hash, cost, class, at, deadline, sender }
    }

    /// Puts a request into the inbox, for which there is room, and wakes who has to be woken.
    #[inline]
    fn enter(&self, mut inbox: MutexGuard<'_, InboxState<E>>, arrival: Arrival<E>) -> u64 {
        let alarm = arrival.deadline.filter(|deadline| inbox.needs_alarm(*deadline));
        let number = inbox.put(arrival);
        let wake_needed = inbox.take_wake_needed();
        // CORRECTNESS: the executor's lock comes before the inbox's.
        drop(inbox);
        if wake_needed {
            let mut guard = self.shared.lock();
            let (scheduler, deferred) = guard.parts();
            scheduler.workers.wake_one(deferred);
        }
        if let Some(alarm) = alarm {
            self.shared.arm(self.queue, alarm);
        }
        number
    }

    /// Has requests taken in, or wait for room, under the executor's lock.
    fn enter_slowly(
        &self,
        arrivals: Vec<Arrival<E>>,
        class: Priority,
        wait: WaitForRoom,
    ) -> Result<Entered<E>, SubmitError<Requests<E>>> {
        let count = arrivals.len();
        let deadline = arrivals.iter().filter_map(|arrival| arrival.deadline).min();
        let mut guard = self.shared.lock();
        let (scheduler, deferred) = guard.parts();
        let mut alarm = None;
        let admitted = match scheduler.open_queue::<Pending<E>>(self.queue, deferred) {
            Err(refusal) => Err((refusal, arrivals)),
            Ok(pending) => match pending.admit(arrivals, class, wait, deferred) {
                Admitted::No(arrivals) => Err((Refusal::Full, arrivals)),
                Admitted::Now(first) => {
                    alarm = deadline.filter(|deadline| pending.needs_alarm(*deadline));
                    scheduler.workers.wake_one(deferred);
                    Ok(Entered { first, ticket: None })
                }
                Admitted::Later(first, ticket) => {
                    alarm = deadline.filter(|deadline| pending.needs_alarm(*deadline));
                    Ok(Entered { first, ticket: Some(ticket) })
                }
            },
        };
        if admitted.is_err() {
            scheduler.count_refused(self.queue, count);
        }
        drop(guard);
        if let Some(alarm) = alarm {
            self.shared.arm(self.queue, alarm);
        }
        // CORRECTNESS: a key is a user's to drop: here, without the lock.
        admitted.map_err(|(refusal, arrivals)| {
            SubmitError::new(refusal, arrivals.into_iter().map(Arrival::into_request).collect())
        })
    }

    /// Waits until requests that wait for room are in, as long as `patience` lasts. Returns the
    /// number of the first.
    fn wait_for_room(
        &self,
        entered: Entered<E>,
        requests: usize,
        patience: Patience,
    ) -> Result<u64, SubmitError<Requests<E>>> {
        let Entered { first, ticket } = entered;
        if let Some(ticket) = ticket {
            let request = self.request(first);
            let waited = self.wait_for_ticket(&ticket, request, patience);
            if let Some(worker) = this_worker() {
                worker.unwait(&self.shared, request);
            }
            waited.inspect_err(|_| self.count_refused(requests))?;
        }
        Ok(first)
    }

    fn wait_for_ticket(
        &self,
        ticket: &Ticket<E>,
        request: RequestId,
        patience: Patience,
    ) -> Result<(), SubmitError<Requests<E>>> {
        let waker = thread_waker();
        let until = match patience {
            Patience::None => Some(self.now()),
            Patience::Until(until) => until,
        };
        // The requests are taken back, or went in just now: the ticket is about to say which.
        let mut withdrawn = false;
        loop {
            if let Poll::Ready(settled) = ticket.poll(&waker) {
                return settled;
            }
            let reason = match this_worker().map(|worker| worker.help(&self.shared, request)) {
                Some(InlineProgress::Progress) => continue,
                Some(InlineProgress::Stuck) => Some(Refusal::WouldDeadlock),
                Some(InlineProgress::Elsewhere) | None => {
                    until.is_some_and(|until| until <= self.now()).then_some(Refusal::Full)
                }
            };
            if let (Some(reason), false) = (reason, withdrawn) {
                self.withdraw(request, reason);
                withdrawn = true;
                continue;
            }
            // CORRECTNESS: the waker is in the ticket before each sleep, and the ticket is settled
            // before the waker is woken.
            self.shared.clock.park_until(until.filter(|_| !withdrawn));
        }
    }

    /// Takes requests back that wait for room; if they do not any more, the ticket says what they do.
    pub(crate) fn withdraw(&self, request: RequestId, reason: Refusal) {
        let mut guard = self.shared.lock();
        let (scheduler, deferred) = guard.parts();
        let pending = scheduler.queue::<Pending<E>>(self.queue);
        let waiter = pending.and_then(|pending| pending.withdraw(request.number, deferred));
        if let Some(waiter) = waiter {
            waiter.refuse(reason, deferred);
        }
    }

    /// What requests exceed, if they are more than the queue may ever take.
    #[inline]
    fn too_large(
        &self,
        permits: Permits,
        costs: impl IntoIterator<Item = usize>,
    ) -> Option<Refusal> {
        let BatchConfig { max_batch_cost, capacity, capacity_cost, .. } = self.config;
        let too_large = |amount, limit, max| Refusal::RequestTooLarge { amount, limit, max };
        if permits.requests > capacity {
            return Some(too_large(permits.requests, "capacity", capacity));
        }
        if permits.cost > capacity_cost {
            return Some(too_large(permits.cost, "capacity_cost", capacity_cost));
        }
        let heavy = costs.into_iter().find(|cost| *cost > max_batch_cost);
        heavy.map(|cost| too_large(cost, "max_batch_cost", max_batch_cost))
    }

    fn refuse<R>(&self, refusal: Refusal, requests: usize, refused: R) -> SubmitError<R> {
        self.count_refused(requests);
        SubmitError::new(refusal, refused)
    }

    pub(crate) fn count_refused(&self, requests: usize) {
        self.shared.lock().count_refused(self.queue, requests);
    }

    fn request(&self, number: u64) -> RequestId {
        RequestId { queue: self.queue, number }
    }

    fn now(&self) -> Instant {
        self.shared.clock.now()
    }
}

impl Patience {
    fn wait(self) -> WaitForRoom {
        match self {
            Self::None => WaitForRoom::Never,
            Self::Until(_) => WaitForRoom::Told,
        }
    }
}

pub(crate) fn only<T>(mut one: Vec<T>) -> T {
    one.pop().expect("there is one of what was one")
}
