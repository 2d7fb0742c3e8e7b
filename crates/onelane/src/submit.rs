//! Submitting: asking for room, waiting in line for it, and filing what was accepted.

use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Instant;

use crate::config::BatchConfig;
use crate::engine::{BatchItem, Engine};
use crate::error::SubmitError;
use crate::inbox::{Arrival, InboxState};
use crate::line::Turn;
use crate::policy::QueueId;
use crate::queue::BatchQueue;
use crate::queue_state::{Asking, Need, Room};
use crate::request::{Priority, Request};
use crate::response::{Company, Pending, Responder, ResponseHandle};
use crate::shared::{Locked, Shared};
use crate::sync::{MutexGuard, thread_waker};
use crate::worker::{Help, WorkerContext};

/// What becomes of a submitted request: its response handle, or the request back.
pub type Submitted<E> =
    Result<ResponseHandle<<E as Engine>::Output>, SubmitError<Request<<E as Engine>::Item>>>;

/// What becomes of a submitted group: a response handle for each request, or all of them back.
pub type SubmittedGroup<E> = Result<
    Vec<ResponseHandle<<E as Engine>::Output>>,
    SubmitError<Vec<Request<<E as Engine>::Item>>>,
>;

/// The same for a task.
type TaskSubmitted<E> =
    Result<Pending<<E as Engine>::Output>, SubmitError<Request<<E as Engine>::Item>>>;

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
    /// The executor has granted it. Boxed, for it is large, and the other is the usual way.
    Asked(Box<Locked<'a>>),
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
    deadline: Option<Instant>,
    responder: Responder<E::Output>,
    /// A thread may sleep for the answer; a task does not.
    may_sleep: bool,
}

impl<E: Engine> Ticket<E> {
    /// What one request asks for.
    fn asking(&self, class: Priority) -> Asking {
        Asking { need: Need { requests: 1, cost: self.cost }, class, since: self.at }
    }
}

/// A place in the line for room; given back when dropped.
pub(crate) struct PlaceInLine {
    shared: Arc<Shared>,
    queue: QueueId,
    /// When room was asked for first.
    since: Instant,
    turn: Option<Turn>,
}

impl Drop for PlaceInLine {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.take() {
            let mut locked = self.shared.lock();
            let (state, after) = locked.parts();
            state.withdraw(self.queue, turn, after);
        }
    }
}

impl<E: Engine> BatchQueue<E> {
    pub(crate) fn submit_one(&self, request: Request<E::Item>, patience: Patience) -> Submitted<E> {
        let cost = request.input.cost();
        if let Some(heavy) = self.too_heavy(cost) {
            return Err(self.refuse_heavy(request, 1, heavy));
        }
        let (pending, ticket) = self.ticket(&request, cost, None, None);
        match self.room(ticket.asking(request.priority), patience) {
            Ok(room) => {
                let (number, company) = self.go_in(room, |inbox| self.put(inbox, request, ticket));
                let pending = pending.wait_in(self.id(), number);
                Ok(ResponseHandle::new(self.shared(), pending, company))
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
            .map(|(request, cost)| self.ticket(request, cost, None, None))
            .collect();
        // The group goes in when its least urgent request may.
        let class = requests.iter().map(|request| request.priority).max().unwrap_or_default();
        let need = Need { requests: count, cost: total };
        let asking = Asking { need, class, since: self.shared().clock.now() };
        match self.room(asking, patience) {
            Ok(room) => {
                let shared = self.shared();
                let handles = self.go_in(room, |inbox| {
                    let pairs = requests.into_iter().zip(tickets);
                    let handles = pairs.map(|(request, (pending, ticket))| {
                        let (number, company) = self.put(inbox, request, ticket);
                        let pending = pending.wait_in(self.id(), number);
                        ResponseHandle::new(shared, pending, company)
                    });
                    handles.collect()
                });
                Ok(handles)
            }
            Err(refusal) => Err(refusal.with(requests)),
        }
    }

    /// What can be prepared for a request before the lock is taken. A task leaves the waker that the
    /// answer is to wake; a thread may sleep for it. `since`: when it was submitted, if not just now.
    #[inline]
    fn ticket(
        &self,
        request: &Request<E::Item>,
        cost: usize,
        waker: Option<&Waker>,
        since: Option<Instant>,
    ) -> (Pending<E::Output>, Ticket<E>) {
        let at = since.unwrap_or_else(|| self.shared().clock.now());
        let key = request.input.key();
        let hash = self.hash(&key);
        let may_sleep = waker.is_none();
        let deadline = request.deadline_from(at);
        let (pending, responder) = Pending::pair(waker.cloned(), deadline);
        (pending, Ticket { at, key, hash, cost, deadline, responder, may_sleep })
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
    fn room(&self, asking: Asking, patience: Patience) -> Result<WayIn<'_, E>, Refusal> {
        let requests = asking.need.requests;
        let refusal = match self.look(asking) {
            Ok(way_in) => return Ok(way_in),
            Err(refusal) => refusal,
        };
        let (Refusal::Full, Patience::Until(until)) = (&refusal, patience) else {
            return Err(self.refuse(requests, refusal));
        };
        let waker = thread_waker();
        let mut place = self.place_in_line(asking.since);
        let shared = self.shared();
        loop {
            match self.poll_room(asking, &mut place.turn, Some(&waker)) {
                Ok(way_in) => return Ok(way_in),
                Err(Refusal::Full) => {}
                Err(refusal) => return Err(self.refuse(requests, refusal)),
            }
            if let Some(worker) = WorkerContext::current(shared) {
                match worker.help(self.id(), None) {
                    Help::Progress => continue,
                    Help::Elsewhere | Help::Stuck => {
                        return Err(self.refuse(requests, Refusal::WouldDeadlock));
                    }
                }
            }
            if until.is_some_and(|until| until <= shared.clock.now()) {
                return Err(self.refuse(requests, Refusal::Full));
            }
            // CORRECTNESS: the ticket with our waker was left under the lock under which there was
            // no room; whatever makes room wakes the first in line.
            shared.clock.park_until(until);
        }
    }

    /// Looks for room without waiting for it. Mostly there is some, and the executor need not be
    /// asked.
    fn look(&self, asking: Asking) -> Result<WayIn<'_, E>, Refusal> {
        match self.inbox().enter(asking.need) {
            Some(inbox) => Ok(WayIn::Open(inbox)),
            None => self.poll_room(asking, &mut None, None),
        }
    }

    fn poll_room(
        &self,
        asking: Asking,
        turn: &mut Option<Turn>,
        waker: Option<&Waker>,
    ) -> Result<WayIn<'_, E>, Refusal> {
        let mut locked = self.shared().lock();
        let (state, after) = locked.parts();
        match state.admit(self.id(), asking, turn, waker, after) {
            Room::Granted => Ok(WayIn::Asked(Box::new(locked))),
            Room::Full => Err(Refusal::Full),
            Room::Closed => Err(Refusal::Closed),
            Room::Failed(why) => Err(Refusal::Failed(why)),
        }
    }

    fn refuse(&self, requests: usize, refusal: Refusal) -> Refusal {
        self.shared().lock().count_refused(self.id(), requests);
        refusal
    }

    fn place_in_line(&self, since: Instant) -> PlaceInLine {
        PlaceInLine { shared: Arc::clone(self.shared()), queue: self.id(), since, turn: None }
    }

    /// Puts requests for which there is room into the inbox, and wakes a worker if the bell says so.
    #[inline]
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
            self.ring(locked);
        }
        result
    }

    /// Wakes a worker.
    fn ring(&self, locked: Option<Box<Locked<'_>>>) {
        let mut locked = locked.map_or_else(|| self.shared().lock(), |locked| *locked);
        let (state, after) = locked.parts();
        state.workers.wake_one(after);
    }

    /// Puts a request for which there is room into the inbox.
    #[inline]
    fn put(
        &self,
        inbox: &mut InboxState<E>,
        request: Request<E::Item>,
        ticket: Ticket<E>,
    ) -> (u64, Company) {
        let Ticket { at, key, hash, cost, deadline, responder, may_sleep } = ticket;
        let Request { input, priority: class, .. } = request;
        let arrival = Arrival { input, key, hash, cost, class, at, deadline, responder };
        self.inbox().put(inbox, arrival, may_sleep)
    }
}

impl<E: Engine> BatchQueue<E> {
    /// Submits `request` for a task, or leaves it and a place in line for room.
    ///
    /// It stays where it is until it goes in: each move of it costs (docs/performance.md, log).
    #[inline]
    pub(crate) fn poll_submit(
        &self,
        request: &mut Option<Request<E::Item>>,
        place: &mut Option<Box<PlaceInLine>>,
        waker: &Waker,
    ) -> Poll<TaskSubmitted<E>> {
        let asked = request.as_ref().expect(SUBMITTED);
        let cost = asked.input.cost();
        if let Some(heavy) = self.too_heavy(cost) {
            let request = request.take().expect(SUBMITTED);
            return Poll::Ready(Err(self.refuse_heavy(request, 1, heavy)));
        }
        let since = place.as_ref().map(|place| place.since);
        let (pending, ticket) = self.ticket(asked, cost, Some(waker), since);
        match self.poll_room_for_task(ticket.asking(asked.priority), place, waker) {
            Poll::Ready(Ok(way_in)) => {
                let (number, _) = self.go_in(way_in, |inbox| {
                    self.put(inbox, request.take().expect(SUBMITTED), ticket)
                });
                Poll::Ready(Ok(pending.wait_in(self.id(), number)))
            }
            // Its slot has the waker of a task that is not to be woken.
            Poll::Ready(Err(refusal)) => {
                pending.abandon();
                let request = request.take().expect(SUBMITTED);
                Poll::Ready(Err(self.refuse(1, refusal).with(request)))
            }
            Poll::Pending => {
                pending.abandon();
                Poll::Pending
            }
        }
    }

    /// The way in, or a place in the line for it.
    fn poll_room_for_task(
        &self,
        asking: Asking,
        place: &mut Option<Box<PlaceInLine>>,
        waker: &Waker,
    ) -> Poll<Result<WayIn<'_, E>, Refusal>> {
        loop {
            // The first look is without a place in line: mostly there is room.
            let room = match place {
                None => self.look(asking),
                Some(place) => self.poll_room(asking, &mut place.turn, Some(waker)),
            };
            let Err(Refusal::Full) = room else { return Poll::Ready(room) };
            if let Some(worker) = WorkerContext::current(self.shared()) {
                match worker.help(self.id(), None) {
                    Help::Progress => continue,
                    Help::Elsewhere | Help::Stuck => {
                        return Poll::Ready(Err(Refusal::WouldDeadlock));
                    }
                }
            }
            match place {
                None => *place = Some(Box::new(self.place_in_line(asking.since))),
                Some(_) => return Poll::Pending,
            }
        }
    }
}

const SUBMITTED: &str = "a request is submitted once";
