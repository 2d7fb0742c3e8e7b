//! Admission: how requests get into a queue. There is one way: through the inbox, if it has room;
//! if not, through the scheduler, which takes them in or has them wait for room.

pub(crate) mod inbox;
pub(crate) mod waiters;

use std::hash::BuildHasher;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use hashbrown::DefaultHashBuilder;

use crate::admission::inbox::{Arrival, Inbox, InboxState, PendingRequest, Permits, WaitPolicy};
use crate::admission::waiters::{Patience, Requests, Ticket};
use crate::scheduler::id::{QueueId, RequestId, next_id};
use crate::scheduler::pending::Pending;
use crate::scheduler::shared::ExecutorShared;
use crate::sync::{MutexGuard, Receiver, Sender};
use crate::worker::context::{InlineProgress, this_worker};
use crate::worker::engines::EngineFactory;
use crate::{
    BatchConfig, BatchItem, Engine, EngineError, Priority, Refusal, Request, ResponseHandle,
    SubmitError,
};

/// The way into one queue, for all who have a handle to it: a user's, and those of its futures. With
/// the last of them the queue is closed.
pub(crate) struct Admission<E: Engine> {
    pub(crate) shared: Arc<ExecutorShared>,
    pub(crate) queue: QueueId,
    pub(crate) config: BatchConfig,
    hasher: DefaultHashBuilder,
    inbox: Arc<Inbox<E>>,
    // Dropped after `drop` below has closed the queue: this may be the executor's last handle.
    _executor: Option<Arc<dyn Send + Sync>>,
}

impl<E: Engine> Admission<E> {
    /// Makes a queue, and the way into it; its engines have still to be built. `executor` is what
    /// keeps the workers, unless they keep the queue.
    pub(crate) fn new(
        shared: &Arc<ExecutorShared>,
        executor: Option<Arc<dyn Send + Sync>>,
        config: BatchConfig,
        build: impl Fn() -> Result<E, EngineError> + Send + Sync + 'static,
    ) -> Option<(Self, Arc<EngineFactory<E>>)> {
        let queue = next_id();
        let inbox = Arc::new(Inbox::new(&config));
        let (device, name) = (shared.device.clone(), config.name.clone());
        let factory = Arc::new(EngineFactory { queue, device, name, build: Box::new(build) });
        let pending = Pending::new(Arc::clone(&factory), Arc::clone(&inbox), &config);
        let mut scheduler = shared.lock();
        if scheduler.is_stopping() {
            return None;
        }
        scheduler.insert_queue(queue, Box::new(pending), config.clone());
        drop(scheduler);
        let (shared, hasher) = (Arc::clone(shared), DefaultHashBuilder::default());
        Some((Self { shared, queue, config, hasher, inbox, _executor: executor }, factory))
    }

    /// Submits a request for a thread; its answer goes through `channel`.
    #[inline]
    pub(crate) fn submit<T: Send + 'static>(
        &self,
        request: Request<E::Item>,
        channel: (Sender<E::Output>, Receiver<T>),
        patience: Patience,
    ) -> Result<ResponseHandle<T>, SubmitError<Request<E::Item>>> {
        let (handle, ticket) = self.start(request, channel, patience)?;
        if let Some(ticket) = ticket {
            self.wait_for_room(&ticket, patience).map_err(|refused| refused.map(only))?;
        }
        Ok(handle)
    }

    /// Submits requests for a thread: all of them go in together, or none does.
    pub(crate) fn submit_group(
        &self,
        requests: Requests<E>,
        patience: Patience,
    ) -> Result<Vec<ResponseHandle<E::Output>>, SubmitError<Requests<E>>> {
        let (handles, ticket) = self.start_group(requests, patience)?;
        if let Some(ticket) = ticket {
            self.wait_for_room(&ticket, patience)?;
        }
        Ok(handles)
    }

    /// Hands a request over. With a ticket, it waits for room.
    #[inline]
    pub(crate) fn start<T: Send + 'static>(
        &self,
        request: Request<E::Item>,
        (sender, receiver): (Sender<E::Output>, Receiver<T>),
        patience: Patience,
    ) -> Result<(ResponseHandle<T>, Option<Ticket<E>>), SubmitError<Request<E::Item>>> {
        let permits = Permits { requests: 1, cost: request.input.cost() };
        if let Some(refusal) = self.too_large(permits, permits.cost) {
            sender.forget();
            return Err(self.refuse(refusal, 1, request));
        }
        let arrival = self.arrival(request, permits.cost, self.shared.clock.now(), sender);
        let PendingRequest { class, deadline, .. } = arrival.request;
        let hash = arrival.hash;
        let mut policy = WaitPolicy::default();
        let (number, ticket) = match self.inbox.enter(permits) {
            Some(mut inbox) => {
                if patience != Patience::UntilAnswered {
                    policy = self.inbox.wait_policy(&mut inbox, hash, class);
                }
                (self.enter(inbox, arrival), None)
            }
            None => {
                let entered = self.enter_slowly(vec![arrival], class, patience);
                entered.map_err(|refused| refused.map(only))?
            }
        };
        let handle = ResponseHandle::new(&self.shared, receiver);
        Ok((handle.of_request(self.request(number), deadline, policy), ticket))
    }

    /// Hands requests over that go in together, or not at all. With a ticket, they wait for room.
    pub(crate) fn start_group(
        &self,
        requests: Requests<E>,
        patience: Patience,
    ) -> Result<(Vec<ResponseHandle<E::Output>>, Option<Ticket<E>>), SubmitError<Requests<E>>> {
        let costs: Vec<usize> = requests.iter().map(|request| request.input.cost()).collect();
        let cost = costs.iter().fold(0_usize, |sum, cost| sum.saturating_add(*cost));
        let permits = Permits { requests: requests.len(), cost };
        let heaviest = costs.iter().copied().max().unwrap_or(0);
        if let Some(refusal) = self.too_large(permits, heaviest) {
            return Err(self.refuse(refusal, permits.requests, requests));
        }
        // The group goes in when its least urgent request may.
        let class = requests.iter().map(|request| request.priority).min().unwrap_or_default();
        let now = self.shared.clock.now();
        let (mut arrivals, mut receivers) = (Vec::new(), Vec::new());
        for (request, cost) in requests.into_iter().zip(costs) {
            let (sender, receiver) = Receiver::pair(None);
            let arrival = self.arrival(request, cost, now, sender);
            receivers.push((receiver, arrival.request.deadline));
            arrivals.push(arrival);
        }
        let (first, ticket) = self.enter_slowly(arrivals, class, patience)?;
        let handle = |(number, (receiver, deadline))| {
            let handle = ResponseHandle::new(&self.shared, receiver);
            handle.of_request(self.request(number), deadline, WaitPolicy::default())
        };
        Ok(((first..).zip(receivers).map(handle).collect(), ticket))
    }

    /// A request on its way in, with what is a user's code or takes time done before any lock.
    #[inline]
    fn arrival(
        &self,
        request: Request<E::Item>,
        cost: usize,
        arrival: Instant,
        sender: Sender<E::Output>,
    ) -> Arrival<E> {
        let deadline = request.deadline_from(arrival);
        let Request { input, priority: class, .. } = request;
        let key = input.key();
        let hash = self.hasher.hash_one(&key);
        let (number, seq, group) = (0, 0, 0);
        let request =
            PendingRequest { input, sender, cost, class, arrival, deadline, number, seq, group };
        Arrival { request, key, hash }
    }

    /// Puts a request into the inbox, for which there is room, and wakes who has to be woken.
    #[inline]
    fn enter(&self, mut inbox: MutexGuard<'_, InboxState<E>>, arrival: Arrival<E>) -> u64 {
        let deadline = arrival.request.deadline;
        let alarm = deadline.filter(|deadline| inbox.needs_alarm(*deadline));
        let number = inbox.put(arrival);
        let wake_needed = std::mem::take(&mut inbox.wake_needed);
        // CORRECTNESS: the executor's lock comes before the inbox's.
        drop(inbox);
        if wake_needed {
            self.shared.lock().wake_worker();
        }
        if alarm.is_some() {
            self.shared.arm(self.queue, alarm);
        }
        number
    }

    /// Has requests taken in, or wait for room, under the executor's lock.
    fn enter_slowly(
        &self,
        arrivals: Vec<Arrival<E>>,
        class: Priority,
        patience: Patience,
    ) -> Result<(u64, Option<Ticket<E>>), SubmitError<Requests<E>>> {
        let count = arrivals.len();
        let deadline = arrivals.iter().filter_map(|arrival| arrival.request.deadline).min();
        let mut scheduler = self.shared.lock();
        let admitted = match scheduler.open_queue::<Pending<E>>(self.queue) {
            Ok((pending, deferred)) => pending.admit(arrivals, class, patience, deferred),
            Err(refusal) => Err((refusal, arrivals)),
        };
        let mut alarm = None;
        match &admitted {
            Ok((_, ticket)) => {
                alarm = deadline.filter(|deadline| self.inbox.lock().needs_alarm(*deadline));
                if ticket.is_none() {
                    scheduler.wake_worker();
                }
            }
            Err(_) => scheduler.count_refused(self.queue, count),
        }
        drop(scheduler);
        self.shared.arm(self.queue, alarm);
        // CORRECTNESS: a key is a user's to drop: here, without the lock.
        admitted.map_err(|(refusal, arrivals)| {
            SubmitError::new(refusal, arrivals.into_iter().map(Arrival::into_request).collect())
        })
    }

    /// Waits on a thread until requests that wait for room are in, as long as `patience` lasts.
    fn wait_for_room(
        &self,
        ticket: &Ticket<E>,
        patience: Patience,
    ) -> Result<(), SubmitError<Requests<E>>> {
        let Self { shared, .. } = self;
        let request = self.request(ticket.number);
        let until = if let Patience::Until(until) = patience { until } else { None };
        let waited = shared.clock.block(until, |waker| {
            loop {
                if let Poll::Ready(settled) = ticket.poll(waker) {
                    return Poll::Ready(Ok(settled));
                }
                match this_worker().map(|worker| worker.help(shared, request)) {
                    Some(InlineProgress::Progress) => {}
                    Some(InlineProgress::Stuck) => return Poll::Ready(Err(Refusal::WouldDeadlock)),
                    Some(InlineProgress::Elsewhere) | None => return Poll::Pending,
                }
            }
        });
        if let Some(worker) = this_worker() {
            worker.unwait(request);
        }
        let reason = match waited {
            Some(Ok(settled)) => return settled,
            Some(Err(reason)) => reason,
            None => Refusal::Full,
        };
        self.withdraw(ticket, reason);
        // The requests are taken back, or went in just now: the ticket is about to say which.
        let settled = shared.clock.block(None, |waker| ticket.poll(waker));
        settled.expect("without an end of waiting, a wait ends with what it waits for")
    }

    /// Takes requests back that wait for room; if they do not any more, the ticket says what they do.
    pub(crate) fn withdraw(&self, ticket: &Ticket<E>, reason: Refusal) {
        let mut scheduler = self.shared.lock();
        // A queue that is not open has refused them.
        let Ok((pending, deferred)) = scheduler.open_queue::<Pending<E>>(self.queue) else {
            return;
        };
        pending.withdraw(ticket.number, reason, deferred);
    }

    /// What requests exceed, if they are more than the queue may ever take.
    #[inline]
    fn too_large(&self, permits: Permits, heaviest: usize) -> Option<Refusal> {
        let BatchConfig { max_batch_cost, capacity, capacity_cost, .. } = self.config;
        let (amount, limit, max) = if permits.requests > capacity {
            (permits.requests, "capacity", capacity)
        } else if permits.cost > capacity_cost {
            (permits.cost, "capacity_cost", capacity_cost)
        } else if heaviest > max_batch_cost {
            (heaviest, "max_batch_cost", max_batch_cost)
        } else {
            return None;
        };
        Some(Refusal::RequestTooLarge { amount, limit, max })
    }

    fn refuse<R>(&self, refusal: Refusal, requests: usize, refused: R) -> SubmitError<R> {
        self.shared.lock().count_refused(self.queue, requests);
        SubmitError::new(refusal, refused)
    }

    fn request(&self, number: u64) -> RequestId {
        RequestId { queue: self.queue, number }
    }
}

impl<E: Engine> Drop for Admission<E> {
    fn drop(&mut self) {
        self.shared.lock().let_go(self.queue);
    }
}

pub(crate) fn only<T>(mut one: Vec<T>) -> T {
    one.pop().expect("there is one of what was one")
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::testing::{FakeEngine, FakeItem};

    /// A request on its way in that has just come.
    pub(crate) fn arrival(
        input: FakeItem,
        class: Priority,
        deadline: Option<Instant>,
    ) -> Arrival<FakeEngine> {
        let (sender, _receiver) = Receiver::pair(None);
        let (cost, arrival) = (input.cost, Instant::now());
        let (number, seq, group) = (0, 0, 0);
        let request =
            PendingRequest { input, sender, cost, class, arrival, deadline, number, seq, group };
        Arrival { request, key: 0, hash: 0 }
    }
}
