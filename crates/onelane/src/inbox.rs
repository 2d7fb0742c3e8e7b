//! The inbox of a queue: where a request is accepted, under a lock that is held for a few
//! instructions only.
//!
//! Submitters and the worker would otherwise meet at the executor's lock, which the worker holds as
//! long as it takes a batch out. Whoever holds the executor's lock and looks at a queue first files
//! what is in its inbox (`State::file`), so that everything behind that lock is as if each request
//! had been filed at once.
//!
//! Invariants:
//! - room is the queue's capacity less what is in here, what is filed and waits, and what the list has
//!   not told of: who finds no room asks the executor, which does;
//! - while the queue is closed, has failed, or somebody waits in line for room, it is shut, and it is
//!   opened and shut under the executor's lock: who finds it shut asks there;
//! - while a worker sleeps, the bell is set: whoever puts something in takes it, and wakes one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::BatchConfig;
use crate::engine::{BatchItem, Engine};
use crate::event::{Event, MAX_SHARERS};
use crate::queue_state::Need;
use crate::request::Priority;
use crate::response::{Company, Look, Responder};
use crate::sync::{Hint, Mutex, MutexGuard};

/// A request on its way in. Once it is accepted, its number is that of the one before and one more.
pub(crate) struct Arrival<E: Engine> {
    pub(crate) input: E::Item,
    pub(crate) key: <E::Item as BatchItem>::Key,
    pub(crate) hash: u64,
    pub(crate) cost: usize,
    pub(crate) class: Priority,
    pub(crate) at: Instant,
    pub(crate) deadline: Option<Instant>,
    /// The duty to answer it.
    pub(crate) responder: Responder<E::Output>,
}

/// Requests that have been accepted, and not yet filed.
///
/// All who submit and the worker write to it: it begins where a cache line begins, and what each request
/// needs comes first.
#[repr(C, align(128))]
pub(crate) struct Inbox<E: Engine> {
    state: Mutex<InboxState<E>>,
    max_batch_size: usize,
    /// Nothing is filed and waits, and no batch computes.
    idle: Hint,
    /// The last batch took less than [`BRIEF`], and less than [`QUICK`].
    brief: Hint,
    quick: Hint,
}

/// To look for an answer for a moment takes as long: one that takes longer is not worth it.
const BRIEF: Duration = Duration::from_micros(50);

/// About what it costs a thread to sleep and be woken. Where an engine takes less, those who wait together
/// are answered sooner if they let each other run (docs/performance.md has the figures).
const QUICK: Duration = Duration::from_micros(5);

/// What is behind the inbox's lock. What each request of a task writes ends with the lock's cache line: two
/// more runtimes' threads wait for each line (docs/performance.md, log).
#[repr(C)]
pub(crate) struct InboxState<E: Engine> {
    accepted: Vec<Arrival<E>>,
    /// Of the request that came last.
    number: u64,
    room: Need,
    open: bool,
    bell: bool,
    /// The request that came last is a thread's, not a task's.
    from_thread: bool,
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
            state: Mutex::new(InboxState {
                accepted: Vec::new(),
                number: 0,
                room: Need { requests: config.capacity, cost: config.capacity_cost },
                open: true,
                bell: true,
                from_thread: false,
                latest: None,
            }),
            max_batch_size: config.max_batch_size,
            idle: Hint::new(true),
            brief: Hint::new(true),
            quick: Hint::new(false),
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

    /// Says whether nothing is filed and waits, and no batch computes.
    pub(crate) fn set_idle(&self, idle: bool) {
        self.idle.set(idle);
    }

    /// Says how long the last batch took.
    pub(crate) fn set_pace(&self, service: Duration) {
        self.brief.set(service < BRIEF);
        self.quick.set(service < QUICK);
    }

    /// Whether a worker that finds nothing here lets others run before it sleeps: threads that were just
    /// answered ask again at once. A task's runtime would keep the processor.
    pub(crate) fn is_worth_a_turn(&self, state: &InboxState<E>) -> bool {
        state.from_thread && self.quick.get()
    }

    /// How long a thread looks for the answer to what it puts in now.
    fn look(&self, state: &InboxState<E>) -> Look {
        if self.brief.get() && self.idle.get() && state.accepted.is_empty() {
            Look::Moment
        } else if self.quick.get() {
            Look::Turns
        } else {
            Look::Never
        }
    }

    /// Puts a request in for which there is room, and says its number. `may_sleep`: a thread may sleep for
    /// the answer.
    #[inline]
    pub(crate) fn put(
        &self,
        state: &mut InboxState<E>,
        arrival: Arrival<E>,
        may_sleep: bool,
    ) -> (u64, Company) {
        let company = if may_sleep {
            let look = self.look(state);
            let limit = self.max_batch_size.min(MAX_SHARERS);
            Company { event: state.event(arrival.hash, arrival.class, limit), look }
        } else {
            Company::default()
        };
        state.from_thread = may_sleep;
        state.number += 1;
        state.accepted.push(arrival);
        (state.number, company)
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

    /// Takes back the room that requests have left.
    pub(crate) fn take_back(&mut self, freed: &mut Need) {
        let Need { requests, cost } = std::mem::take(freed);
        self.room.requests += requests;
        self.room.cost += cost;
    }

    pub(crate) fn set_open(&mut self, open: bool) {
        self.open = open;
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

    /// Takes out what is in here, leaving an empty list in its place. Returns the number of the request
    /// before the first of them.
    pub(crate) fn swap(&mut self, empty: &mut Vec<Arrival<E>>) -> u64 {
        std::mem::swap(&mut self.accepted, empty);
        self.latest = None;
        self.number - empty.len() as u64
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::response::Pending;
    use crate::testing::{FakeEngine, FakeItem};

    /// How long the submitter of one more request looks for its answer.
    fn look_after_put(inbox: &Inbox<FakeEngine>, may_sleep: bool) -> Look {
        let (_pending, responder) = Pending::pair(None, None);
        let arrival = Arrival {
            input: FakeItem::new(1),
            key: 0,
            hash: 0,
            cost: 1,
            class: Priority::Normal,
            at: Instant::now(),
            deadline: None,
            responder,
        };
        inbox.put(&mut inbox.lock(), arrival, may_sleep).1.look
    }

    fn with_pace(idle: bool, service_us: u64) -> Inbox<FakeEngine> {
        let inbox = Inbox::new(&BatchConfig::default());
        inbox.set_idle(idle);
        inbox.set_pace(Duration::from_micros(service_us));
        inbox
    }

    #[test]
    fn a_thread_looks_as_long_as_that_pays() {
        for (idle, service_us, look) in [
            (true, 0, Look::Moment),
            (true, 49, Look::Moment),
            (true, 50, Look::Never),
            (false, 4, Look::Turns),
            (false, 5, Look::Never),
        ] {
            let inbox = with_pace(idle, service_us);
            assert_eq!(look_after_put(&inbox, true), look, "{idle}, {service_us} us");
        }
    }

    #[test]
    fn who_is_not_the_first_does_not_look_for_a_moment() {
        for (service_us, look) in [(0, Look::Turns), (49, Look::Never)] {
            let inbox = with_pace(true, service_us);
            look_after_put(&inbox, true);
            assert_eq!(look_after_put(&inbox, true), look, "{service_us} us");
        }
    }

    #[test]
    fn a_queue_that_has_not_run_is_looked_at() {
        let inbox = Inbox::new(&BatchConfig::default());
        assert_eq!(look_after_put(&inbox, true), Look::Moment);
    }

    #[test]
    fn a_worker_waits_a_turn_for_threads_of_a_quick_engine_alone() {
        for (from_thread, service_us, worth_a_turn) in
            [(true, 4, true), (true, 5, false), (false, 0, false)]
        {
            let inbox = with_pace(false, service_us);
            look_after_put(&inbox, from_thread);
            let state = inbox.lock();
            assert_eq!(inbox.is_worth_a_turn(&state), worth_a_turn, "{from_thread}, {service_us}");
        }
    }
}
