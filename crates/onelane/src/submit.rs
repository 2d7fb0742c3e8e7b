//! Submitting: asking for room, waiting in line for it, and filing what was accepted.

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use crate::config::BatchConfig;
use crate::engine::{BatchItem, Engine};
use crate::error::SubmitError;
use crate::inbox::{InboxState, Receipt};
use crate::policy::QueueId;
use crate::queue::BatchQueue;
use crate::queue_state::{Need, Room};
use crate::request::Request;
use crate::response::{Address, Pending, Responder, ResponseHandle};
use crate::shared::{Locked, Shared};
use crate::sync::{MutexGuard, thread_waker};
use crate::waiting::Arrival;
use crate::worker::{Help, WorkerContext};

/// What becomes of a submitted request: its response handle, or the request back.
pub type Submitted<E> =
    Result<ResponseHandle<<E as Engine>::Output>, SubmitError<Request<<E as Engine>::Item>>>;

/// What becomes of a submitted group: a response handle for each request, or all of them back.
pub type SubmittedGroup<E> = Result<
    Vec<ResponseHandle<<E as Engine>::Output>>,
    SubmitError<Vec<Request<<E as Engine>::Item>>>,
>;

/// How long a submission is ready to wait for room.
#[derive(Clone, Copy)]
pub(crate) enum Patience {
    None,
    Until(Option<Instant>),
}

/// The way in for who has got room. It is a lock, so nobody can close the queue before the request
/// is in.
enum WayIn<'a, E: Engine> {
    /// The inbox was open.
    Open(MutexGuard<'a, InboxState<E>>),
    /// The executor has granted it.
    Asked(Locked<'a>),
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

/// What a submitting thread has ready before it takes the lock.
struct Ticket<E: Engine> {
    at: Instant,
    key: <E::Item as BatchItem>::Key,
    hash: u64,
    cost: usize,
    pending: Pending<E::Output>,
    responder: Responder<E::Output>,
    /// A thread may sleep for the answer; a task does not.
    may_sleep: bool,
}

/// A place in the line for room; given back when dropped.
pub(crate) struct PlaceInLine {
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

impl<E: Engine> BatchQueue<E> {
    pub(crate) fn submit_one(&self, request: Request<E::Item>, patience: Patience) -> Submitted<E> {
        let cost = request.input.cost();
        if let Some(heavy) = self.too_heavy(cost) {
            return Err(self.refuse_heavy(request, 1, heavy));
        }
        let ticket = self.ticket(&request, cost, true);
        match self.room(Need { requests: 1, cost }, patience) {
            Ok(room) => {
                let pending = self.go_in(room, |inbox| self.put(inbox, request, ticket));
                Ok(ResponseHandle::new(self.shared(), pending))
            }
            Err(refusal) => Err(refusal.with(request)),
        }
    }

    pub(crate) fn submit_many(
        &self,
        requests: Vec<Request<E::Item>>,
        patience: Patience,
    ) -> SubmittedGroup<E> {
        let count = requests.len();
        let costs: Vec<usize> = requests.iter().map(|request| request.input.cost()).collect();
        let total = costs.iter().fold(0_usize, |sum, cost| sum.saturating_add(*cost));
        let heavy = self.too_many(count, total);
        let heavy = heavy.or_else(|| costs.iter().find_map(|&cost| self.too_heavy(cost)));
        if let Some(heavy) = heavy {
            return Err(self.refuse_heavy(requests, count, heavy));
        }
        let tickets: Vec<_> = requests
            .iter()
            .zip(costs)
            .map(|(request, cost)| self.ticket(request, cost, true))
            .collect();
        match self.room(Need { requests: count, cost: total }, patience) {
            Ok(room) => {
                let shared = self.shared();
                let handles = self.go_in(room, |inbox| {
                    let pairs = requests.into_iter().zip(tickets);
                    let pending = pairs.map(|(request, ticket)| self.put(inbox, request, ticket));
                    pending.map(|pending| ResponseHandle::new(shared, pending)).collect()
                });
                Ok(handles)
            }
            Err(refusal) => Err(refusal.with(requests)),
        }
    }

    /// What can be prepared for a request before the lock is taken.
    fn ticket(&self, request: &Request<E::Item>, cost: usize, may_sleep: bool) -> Ticket<E> {
        let at = self.shared().clock.now();
        let key = request.input.key();
        let hash = self.hash(&key);
        let (pending, responder) = Pending::pair();
        Ticket { at, key, hash, cost, pending, responder, may_sleep }
    }

    /// What one request exceeds: the amount, the setting and its value.
    fn too_heavy(&self, cost: usize) -> Option<(usize, &'static str, usize)> {
        let BatchConfig { max_batch_cost, capacity_cost, .. } = *self.config();
        if cost > max_batch_cost {
            Some((cost, "max_batch_cost", max_batch_cost))
        } else {
            (cost > capacity_cost).then_some((cost, "capacity_cost", capacity_cost))
        }
    }

    /// What a group exceeds.
    fn too_many(&self, count: usize, cost: usize) -> Option<(usize, &'static str, usize)> {
        let BatchConfig { capacity, capacity_cost, .. } = *self.config();
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
        self.shared().lock().count_refused(self.id(), requests);
        SubmitError::TooHeavy { refused, amount, limit, max }
    }

    /// Waits for room as long as `patience` lasts.
    fn room(&self, need: Need, patience: Patience) -> Result<WayIn<'_, E>, Refusal> {
        let refusal = match self.look(need) {
            Ok(way_in) => return Ok(way_in),
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
                Ok(way_in) => return Ok(way_in),
                Err(Refusal::Full) => {}
                Err(refusal) => return Err(self.refuse(need.requests, refusal)),
            }
            if let Some(worker) = WorkerContext::current(shared) {
                match worker.help(self.id(), None) {
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

    /// Looks for room without waiting for it. Mostly there is some, and the executor need not be
    /// asked.
    fn look(&self, need: Need) -> Result<WayIn<'_, E>, Refusal> {
        match self.inbox().enter(need) {
            Some(inbox) => Ok(WayIn::Open(inbox)),
            None => self.poll_room(need, &mut None, None),
        }
    }

    fn poll_room(
        &self,
        need: Need,
        ticket: &mut Option<u64>,
        waker: Option<&Waker>,
    ) -> Result<WayIn<'_, E>, Refusal> {
        let mut locked = self.shared().lock();
        let (state, after) = locked.parts();
        match state.admit(self.id(), need, ticket, waker, after) {
            Room::Granted => Ok(WayIn::Asked(locked)),
            Room::Full => Err(Refusal::Full),
            Room::Closed => Err(Refusal::Closed),
            Room::Failed(why) => Err(Refusal::Failed(why)),
        }
    }

    fn refuse(&self, requests: usize, refusal: Refusal) -> Refusal {
        self.shared().lock().count_refused(self.id(), requests);
        refusal
    }

    fn place_in_line(&self) -> PlaceInLine {
        PlaceInLine { shared: Arc::clone(self.shared()), queue: self.id(), ticket: None }
    }

    /// Puts requests for which there is room into the inbox, and wakes a worker if the bell says so.
    fn go_in<T>(&self, way_in: WayIn<'_, E>, put: impl FnOnce(&mut InboxState<E>) -> T) -> T {
        let (mut inbox, locked) = match way_in {
            WayIn::Open(inbox) => (inbox, None),
            WayIn::Asked(locked) => (self.inbox().lock(), Some(locked)),
        };
        let result = put(&mut inbox);
        let ring = inbox.take_bell();
        // CORRECTNESS: the executor's lock comes before the inbox's.
        drop(inbox);
        if ring {
            let mut locked = locked.unwrap_or_else(|| self.shared().lock());
            let (state, after) = locked.parts();
            state.workers.wake_one(after);
        }
        result
    }

    /// Puts a request for which there is room into the inbox.
    fn put(
        &self,
        inbox: &mut InboxState<E>,
        request: Request<E::Item>,
        ticket: Ticket<E>,
    ) -> Pending<E::Output> {
        let Ticket { at, key, hash, cost, mut pending, responder, may_sleep } = ticket;
        let deadline = request.deadline_from(at);
        let class = request.priority;
        let arrival =
            Arrival { input: request.input, key, hash, cost, class, at, deadline, may_sleep };
        let Receipt { id, event, alone } = self.inbox().put(inbox, arrival, responder);
        pending.wait_at(Address { queue: self.id(), request: id, deadline });
        pending.wait_with(event, alone);
        pending
    }
}

/// A request that was not accepted.
pub(crate) enum NotYet<I> {
    /// It waits in line for room.
    InLine(Request<I>, PlaceInLine),
    Refused(SubmitError<Request<I>>),
}

impl<E: Engine> BatchQueue<E> {
    pub(crate) fn poll_submit(
        &self,
        request: Request<E::Item>,
        mut place: Option<PlaceInLine>,
        waker: &Waker,
    ) -> Result<Pending<E::Output>, NotYet<E::Item>> {
        let cost = request.input.cost();
        if let Some(heavy) = self.too_heavy(cost) {
            return Err(NotYet::Refused(self.refuse_heavy(request, 1, heavy)));
        }
        let ticket = self.ticket(&request, cost, false);
        loop {
            // The first look is without a place in line: mostly there is room.
            let room = match &mut place {
                None => self.look(Need { requests: 1, cost }),
                Some(place) => {
                    self.poll_room(Need { requests: 1, cost }, &mut place.ticket, Some(waker))
                }
            };
            match room {
                Ok(way_in) => {
                    // Not before: a ticket that comes to nothing answers its slot, and must not wake
                    // the task that waits for room.
                    ticket.pending.leave(waker);
                    return Ok(self.go_in(way_in, |inbox| self.put(inbox, request, ticket)));
                }
                Err(Refusal::Full) => {}
                Err(refusal) => {
                    return Err(NotYet::Refused(self.refuse(1, refusal).with(request)));
                }
            }
            if let Some(worker) = WorkerContext::current(self.shared()) {
                match worker.help(self.id(), None) {
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
