//! The inbox of a queue: where a request is accepted, under a lock that is held for a few
//! instructions only.
//!
//! Submitters and the worker would otherwise meet at the executor's lock, which the worker holds as
//! long as it takes a batch out. Whoever holds the executor's lock and looks at a queue drains its
//! inbox first, so that everything behind that lock is as if each request had come there at once.
//!
//! Invariants:
//! - room is the queue's capacity less what is in here, what waits, and what has left and was not
//!   given back yet: who finds no room asks the executor, which gives it back;
//! - while the queue is closed, has failed, or somebody waits for room, the inbox is closed. It is
//!   closed, and opened when it is drained, under the executor's lock: who finds it closed asks there;
//! - while a worker sleeps, `wake_needed` is set: whoever puts something in takes it, and wakes one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::{Hint, MAX_SHARERS, Mutex, MutexGuard, Sender, WaiterGroup, may_lock};
use crate::{BatchConfig, BatchItem, Engine, Priority, Request};

/// A request that has been handed over, until it is in a batch.
pub(crate) struct PendingRequest<E: Engine> {
    pub(crate) input: E::Item,
    /// The duty to answer it.
    pub(crate) sender: Sender<E::Output>,
    pub(crate) cost: usize,
    pub(crate) class: Priority,
    pub(crate) arrival: Instant,
    pub(crate) deadline: Option<Instant>,
    /// Names it in its queue; given when it has been handed over.
    pub(crate) number: u64,
    /// The order of acceptance, and the group of its key; given when it has been accepted.
    pub(crate) seq: u64,
    pub(crate) group: usize,
}

/// A request on its way in, with its batch key.
pub(crate) struct Arrival<E: Engine> {
    pub(crate) request: PendingRequest<E>,
    pub(crate) key: <E::Item as BatchItem>::Key,
    pub(crate) hash: u64,
}

impl<E: Engine> Arrival<E> {
    pub(crate) fn permits(&self) -> Permits {
        Permits { requests: 1, cost: self.request.cost }
    }

    /// The request again, which was refused.
    pub(crate) fn into_request(self) -> Request<E::Item> {
        let PendingRequest { input, sender, class, deadline, .. } = self.request;
        sender.forget();
        Request::returned(input, class, deadline)
    }
}

/// Room: for so many requests, of such a cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Permits {
    pub(crate) requests: usize,
    pub(crate) cost: usize,
}

impl Permits {
    pub(crate) fn add(&mut self, other: Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.cost = self.cost.saturating_add(other.cost);
    }
}

/// Requests that have been accepted, and that nobody has drained yet.
///
/// All who submit and the worker write to it: it begins where a cache line begins, and what each
/// request needs comes first.
#[repr(C, align(128))]
pub(crate) struct Inbox<E: Engine> {
    state: Mutex<InboxState<E>>,
    max_sharers: usize,
    /// Nothing waits, and no batch computes: as it was when a worker last took a batch, ended one or
    /// went to sleep.
    pub(crate) idle: Hint,
    /// The last batch took less than [`BRIEF`], and less than [`QUICK`].
    brief: Hint,
    quick: Hint,
}

/// What sleeping and being woken take: a lone thread that is answered sooner need not sleep.
const BRIEF: Duration = Duration::from_micros(50);

/// The same among many threads, who want each other's processor.
pub(crate) const QUICK: Duration = Duration::from_micros(5);

/// What is behind the inbox's lock.
#[repr(C)]
pub(crate) struct InboxState<E: Engine> {
    pub(crate) accepted: Vec<Arrival<E>>,
    /// Of the request that came last.
    number: u64,
    room: Permits,
    pub(crate) open: bool,
    pub(crate) wake_needed: bool,
    latest: Option<Latest>,
    /// The earliest deadline that the timer knows of.
    alarm: Option<Instant>,
}

/// Of the request that came last: who comes next is likely to be in its batch, and shares its group.
struct Latest {
    hash: u64,
    class: Priority,
    sharers: usize,
    group: Option<Arc<WaiterGroup>>,
}

/// How the one who asks waits for the answer.
#[derive(Default)]
pub(crate) struct WaitPolicy {
    /// Shared with the requests that it is likely to run with.
    pub(crate) group: Option<Arc<WaiterGroup>>,
    /// The answer is likely to be there sooner than a thread can sleep.
    pub(crate) spin: bool,
}

impl<E: Engine> Inbox<E> {
    pub(crate) fn new(config: &BatchConfig) -> Self {
        Self {
            state: Mutex::new(InboxState {
                accepted: Vec::new(),
                number: 0,
                room: Permits { requests: config.capacity, cost: config.capacity_cost },
                open: true,
                wake_needed: true,
                latest: None,
                alarm: None,
            }),
            max_sharers: config.max_batch_size.min(MAX_SHARERS),
            idle: Hint::new(true),
            brief: Hint::new(true),
            quick: Hint::new(false),
        }
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, InboxState<E>> {
        may_lock();
        self.state.lock()
    }

    /// The inbox, if it is open and there is room, which is taken.
    #[inline]
    pub(crate) fn enter(&self, permits: Permits) -> Option<MutexGuard<'_, InboxState<E>>> {
        let mut state = self.lock();
        (state.open && state.reserve(permits)).then_some(state)
    }

    /// Says how long the last batch took.
    pub(crate) fn set_pace(&self, service: Duration) {
        self.brief.set(service < BRIEF);
        self.quick.set(service < QUICK);
    }

    /// How a thread waits for the answer to the request that it puts in next.
    #[inline]
    pub(crate) fn wait_policy(
        &self,
        state: &mut InboxState<E>,
        hash: u64,
        class: Priority,
    ) -> WaitPolicy {
        let is_alone = self.idle.get() && state.accepted.is_empty();
        let spin = if is_alone { self.brief.get() } else { self.quick.get() };
        WaitPolicy { group: state.group(hash, class, self.max_sharers), spin }
    }
}

impl<E: Engine> InboxState<E> {
    /// Puts a request in for which there is room, and says its number.
    #[inline]
    pub(crate) fn put(&mut self, mut arrival: Arrival<E>) -> u64 {
        self.number += 1;
        arrival.request.number = self.number;
        self.accepted.push(arrival);
        self.number
    }

    /// Takes room if there is enough.
    #[inline]
    pub(crate) fn reserve(&mut self, permits: Permits) -> bool {
        let fits = permits.requests <= self.room.requests && permits.cost <= self.room.cost;
        if fits {
            self.room.requests -= permits.requests;
            self.room.cost -= permits.cost;
        }
        fits
    }

    /// Takes back the room that requests have left.
    pub(crate) fn release(&mut self, freed: &mut Permits) {
        self.room.add(std::mem::take(freed));
    }

    /// Whether the timer has to be told of a deadline.
    #[inline]
    pub(crate) fn needs_alarm(&mut self, deadline: Instant) -> bool {
        let needed = self.alarm.is_none_or(|alarm| deadline < alarm);
        if needed {
            self.alarm = Some(deadline);
        }
        needed
    }

    /// The alarm that was set for `last` has gone off. Returns what the next one is set for: for
    /// nothing if another is set already, so that alarms do not multiply.
    pub(crate) fn next_alarm(&mut self, last: Instant, next: Option<Instant>) -> Option<Instant> {
        if self.alarm != Some(last) {
            return None;
        }
        self.alarm = next;
        next
    }

    /// Numbers requests that do not come in here. Returns the number of the first.
    pub(crate) fn number_all(&mut self, arrivals: &mut [Arrival<E>]) -> u64 {
        let first = self.number + 1;
        for arrival in arrivals {
            self.number += 1;
            arrival.request.number = self.number;
        }
        first
    }

    /// Takes out what is in here, leaving an empty list in its place.
    pub(crate) fn swap(&mut self, empty: &mut Vec<Arrival<E>>) {
        std::mem::swap(&mut self.accepted, empty);
        self.latest = None;
    }

    /// The group of the batch that a newcomer is likely to be in. Who comes first may stay alone,
    /// and then a group is one allocation for nothing.
    #[inline]
    fn group(&mut self, hash: u64, class: Priority, limit: usize) -> Option<Arc<WaiterGroup>> {
        match &mut self.latest {
            Some(latest)
                if latest.hash == hash && latest.class == class && latest.sharers < limit =>
            {
                latest.sharers += 1;
                Some(Arc::clone(latest.group.get_or_insert_default()))
            }
            latest => {
                *latest = Some(Latest { hash, class, sharers: 0, group: None });
                None
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::testing::{FakeEngine, FakeItem};

    /// Whether the submitter of one more request spins, where so many lie in the inbox.
    fn spins(idle: bool, service_us: u64, before: usize) -> bool {
        let inbox = Inbox::<FakeEngine>::new(&BatchConfig::default());
        inbox.idle.set(idle);
        inbox.set_pace(Duration::from_micros(service_us));
        for value in 0..before {
            let input = FakeItem::new(value as u64);
            let arrival = crate::admission::tests::arrival(input, Priority::Normal, None);
            inbox.lock().put(arrival);
        }
        let mut state = inbox.lock();
        inbox.wait_policy(&mut state, 0, Priority::Normal).spin
    }

    #[test]
    fn a_thread_spins_where_the_answer_comes_sooner_than_sleep() {
        for (idle, service_us, before, expected) in [
            (true, 0, 0, true),
            (true, 49, 0, true),
            (true, 50, 0, false),
            (true, 49, 1, false),
            (true, 4, 1, true),
            (false, 4, 0, true),
            (false, 5, 0, false),
        ] {
            let case = (idle, service_us, before);
            assert_eq!(spins(idle, service_us, before), expected, "{case:?}");
        }
    }

    #[test]
    fn the_timer_is_told_of_an_earlier_deadline_alone() {
        let inbox = Inbox::<FakeEngine>::new(&BatchConfig::default());
        let mut state = inbox.lock();
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        assert!(state.needs_alarm(at(5)) && !state.needs_alarm(at(5)) && !state.needs_alarm(at(9)));
        assert!(state.needs_alarm(at(3)));
        assert_eq!(state.next_alarm(at(3), Some(at(5))), Some(at(5)));
        // The one that was set for it first has nothing to do any more.
        assert_eq!(state.next_alarm(at(5), Some(at(9))), Some(at(9)));
        assert_eq!(state.next_alarm(at(5), Some(at(9))), None);
    }
}
