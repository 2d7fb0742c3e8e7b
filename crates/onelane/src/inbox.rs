//! The inbox of a queue: where a request is accepted, under a lock that is held for a few
//! instructions only.
//!
//! Submitters and the worker would otherwise meet at the executor's lock, which the worker holds as
//! long as it takes a batch out. Whoever holds the executor's lock and looks at a queue first files
//! what is in its inbox (`State::file`), so that everything behind that lock is as if each request
//! had been filed at once.
//!
//! Invariants:
//! - room is the queue's capacity less what is in here and what is filed and waits;
//! - while the queue is closed, has failed, or somebody waits in line for room, it is shut, and it is
//!   opened and shut under the executor's lock: who finds it shut asks there;
//! - while a worker sleeps, the bell is set: whoever puts something in takes it, and wakes one.

use std::sync::Arc;
use std::time::Instant;

use crate::config::BatchConfig;
use crate::engine::{BatchItem, Engine};
use crate::event::{Event, MAX_SHARERS};
use crate::queue_state::Need;
use crate::request::Priority;
use crate::response::{Company, Responder};
use crate::sync::{Mutex, MutexGuard};
use crate::waiting::RequestId;

/// What a submitting thread prepares before it takes the lock.
pub(crate) struct Arrival<E: Engine> {
    pub(crate) input: E::Item,
    pub(crate) key: <E::Item as BatchItem>::Key,
    pub(crate) hash: u64,
    pub(crate) cost: usize,
    pub(crate) class: Priority,
    pub(crate) at: Instant,
    pub(crate) deadline: Option<Instant>,
    /// A thread may sleep for the answer.
    pub(crate) may_sleep: bool,
}

/// A request with its name and the duty to answer it.
pub(crate) struct Accepted<E: Engine> {
    pub(crate) id: RequestId,
    pub(crate) arrival: Arrival<E>,
    pub(crate) responder: Responder<E::Output>,
}

/// Requests that have been accepted, and not yet filed.
pub(crate) struct Inbox<E: Engine> {
    max_batch_size: usize,
    state: Mutex<InboxState<E>>,
}

/// What is behind the inbox's lock.
pub(crate) struct InboxState<E: Engine> {
    accepted: Vec<Accepted<E>>,
    /// Slots that were used and are free again; how many there are in all.
    vacant: Vec<usize>,
    slots: usize,
    /// Of the request that came last.
    number: u64,
    room: Need,
    open: bool,
    bell: bool,
    /// Nothing is filed and waits, and no batch computes.
    idle: bool,
    latest: Option<Latest>,
}

/// Of the request that came last: who comes next is likely to be in its batch, and shares its event.
struct Latest {
    hash: u64,
    class: Priority,
    sharers: usize,
    event: Option<Arc<Event>>,
}

impl<E: Engine> Inbox<E> {
    pub(crate) fn new(config: &BatchConfig) -> Self {
        Self {
            max_batch_size: config.max_batch_size,
            state: Mutex::new(InboxState {
                accepted: Vec::new(),
                vacant: Vec::new(),
                slots: 0,
                number: 0,
                room: Need { requests: config.capacity, cost: config.capacity_cost },
                open: true,
                bell: true,
                idle: true,
                latest: None,
            }),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, InboxState<E>> {
        self.state.lock()
    }

    /// The inbox, if it is open and there is room, which is taken.
    pub(crate) fn enter(&self, need: Need) -> Option<MutexGuard<'_, InboxState<E>>> {
        let mut state = self.lock();
        (state.open && state.reserve(need)).then_some(state)
    }

    /// Puts a request in for which there is room.
    #[inline]
    pub(crate) fn put(
        &self,
        state: &mut InboxState<E>,
        arrival: Arrival<E>,
        responder: Responder<E::Output>,
    ) -> (RequestId, Company) {
        let sleeps = arrival.may_sleep;
        let alone = sleeps && state.idle && state.accepted.is_empty();
        let limit = self.max_batch_size.min(MAX_SHARERS);
        let event = if sleeps { state.event(arrival.hash, arrival.class, limit) } else { None };
        let id = state.name();
        state.accepted.push(Accepted { id, arrival, responder });
        (id, Company { event, alone })
    }
}

impl<E: Engine> InboxState<E> {
    /// Takes room if there is enough.
    pub(crate) fn reserve(&mut self, need: Need) -> bool {
        let fits = need.requests <= self.room.requests && need.cost <= self.room.cost;
        if fits {
            self.room.requests -= need.requests;
            self.room.cost -= need.cost;
        }
        fits
    }

    /// Gives room back.
    pub(crate) fn release(&mut self, left: Need) {
        self.room.requests += left.requests;
        self.room.cost += left.cost;
    }

    pub(crate) fn set_open(&mut self, open: bool) {
        self.open = open;
    }

    pub(crate) fn set_idle(&mut self, idle: bool) {
        self.idle = idle;
    }

    pub(crate) fn set_bell(&mut self, bell: bool) {
        self.bell = bell;
    }

    /// Whether the caller has to wake a worker for what it has put in.
    pub(crate) fn take_bell(&mut self) -> bool {
        std::mem::take(&mut self.bell)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.accepted.is_empty()
    }

    /// A name for a newcomer, with a slot that nobody has.
    fn name(&mut self) -> RequestId {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        });
        self.number += 1;
        RequestId { slot, number: self.number }
    }

    /// Takes slots back.
    pub(crate) fn vacate(&mut self, slots: &mut Vec<usize>) {
        self.vacant.append(slots);
    }

    /// Takes out what is in here, leaving an empty list in its place.
    pub(crate) fn swap(&mut self, empty: &mut Vec<Accepted<E>>) {
        std::mem::swap(&mut self.accepted, empty);
        self.latest = None;
    }

    /// The event of the batch that a newcomer is likely to be in. Who comes first may stay alone,
    /// and then an event is one allocation for nothing.
    fn event(&mut self, hash: u64, class: Priority, limit: usize) -> Option<Arc<Event>> {
        match &mut self.latest {
            Some(latest)
                if latest.hash == hash && latest.class == class && latest.sharers < limit =>
            {
                latest.sharers += 1;
                Some(Arc::clone(latest.event.get_or_insert_default()))
            }
            latest => {
                *latest = Some(Latest { hash, class, sharers: 0, event: None });
                None
            }
        }
    }
}
