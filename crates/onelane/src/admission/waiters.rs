//! Who waits for room in a full queue, by urgency, and then first come, first served.
//!
//! A waiter holds its requests: room that becomes free is assigned to the first waiter, and its
//! requests go in, so nobody has to come back for it. Who stops asking, a task whose loop has
//! stopped, say, keeps nobody out.
//!
//! A waiter's place is fixed when it is taken; if it changed with time, nobody could say who is
//! first without looking at all.

use std::collections::{BTreeMap, BTreeSet};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::admission::inbox::{Arrival, Permits};
use crate::sync::{Deferred, Receiver, Sender};
use crate::{Engine, Priority, Refusal, Request, SubmitError};

/// How long a submission is ready to wait for room.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    None,
    /// Until then, and it is told when it is in.
    Until(Option<Instant>),
    /// A task, which is told of the answer only.
    UntilAnswered,
}

/// A place among the waiters; the least is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WaiterKey {
    /// 0; of a waiter that is never lifted to Interactive, its class.
    class: usize,
    /// When it has been lifted to Interactive, one class for each `ageing` interval.
    urgent_at: Instant,
    /// Of its first request; the others follow.
    number: u64,
}

impl WaiterKey {
    fn new(class: Priority, at: Instant, number: u64, ageing: Duration) -> Self {
        let lifts = class.index() as u32;
        let lifted = at.checked_add(ageing.saturating_mul(lifts));
        let (class, urgent_at) = lifted.map_or((class.index(), at), |lifted| (0, lifted));
        Self { class, urgent_at, number }
    }
}

/// Requests that go in together, once there is room for them.
pub(crate) struct Waiter<E: Engine> {
    pub(crate) arrivals: Vec<Arrival<E>>,
    permits: Permits,
    settled: Sender<Settled<E>>,
    wake_when_admitted: bool,
}

impl<E: Engine> Waiter<E> {
    /// Refuses the requests, which the ticket's holder gets back.
    pub(crate) fn refuse(self, reason: Refusal, deferred: &mut Deferred) {
        let Self { arrivals, settled, .. } = self;
        // A key is a user's to drop, and is dropped with its arrival.
        deferred.defer(move || {
            let requests = arrivals.into_iter().map(Arrival::into_request).collect();
            let refused = Err(SubmitError::new(reason, requests));
            settled.send(Ok(refused), &mut Deferred::default());
        });
    }
}

/// What is submitted at once: requests, or one.
pub(crate) type Requests<E> = Vec<Request<<E as Engine>::Item>>;

/// What waiting for room comes to: the requests are in, or refused.
type Settled<E> = Result<(), SubmitError<Requests<E>>>;

/// What a submitter looks at while its requests wait for room.
pub(crate) struct Ticket<E: Engine> {
    /// The number of the first of them.
    pub(crate) number: u64,
    settled: Receiver<Settled<E>>,
}

impl<E: Engine> Ticket<E> {
    /// Whether the requests went in or were refused; if neither yet, `waker` is left. Of requests
    /// whose submitter wants to know of the answer only, it is not said that they went in.
    pub(crate) fn poll(&self, waker: &Waker) -> Poll<Result<(), SubmitError<Requests<E>>>> {
        let settled = self.settled.poll(waker);
        settled.map(|settled| settled.expect("who waits with a ticket is let in or refused"))
    }
}

/// Who waits for room in one queue.
pub(crate) struct Waiters<E: Engine> {
    ageing: Duration,
    by_key: BTreeMap<WaiterKey, Waiter<E>>,
    keys: HashMap<u64, WaiterKey>,
    deadlines: BTreeSet<(Instant, u64)>,
    requests: usize,
}

impl<E: Engine> Waiters<E> {
    pub(crate) fn new(ageing: Duration) -> Self {
        Self {
            ageing,
            by_key: BTreeMap::new(),
            keys: HashMap::new(),
            deadlines: BTreeSet::new(),
            requests: 0,
        }
    }

    /// How many requests wait for room.
    pub(crate) fn requests(&self) -> usize {
        self.requests
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        self.keys.contains_key(&number)
    }

    /// Whether nobody who waits goes before one who comes now.
    pub(crate) fn would_be_first(&self, class: Priority, at: Instant) -> bool {
        let key = WaiterKey::new(class, at, u64::MAX, self.ageing);
        self.by_key.first_key_value().is_none_or(|(first, _)| key <= *first)
    }

    /// Takes a place for requests, the first of which has this number.
    pub(crate) fn push(
        &mut self,
        arrivals: Vec<Arrival<E>>,
        number: u64,
        class: Priority,
        wake_when_admitted: bool,
    ) -> Ticket<E> {
        let at = arrivals.first().expect("who asks for nothing does not wait").request.arrival;
        let mut permits = Permits::default();
        arrivals.iter().for_each(|arrival| permits.add(arrival.permits()));
        let key = WaiterKey::new(class, at, number, self.ageing);
        let (sender, receiver) = Receiver::pair(None);
        self.requests += arrivals.len();
        self.keys.insert(number, key);
        self.deadlines.extend(last_deadline(&arrivals).map(|deadline| (deadline, number)));
        let waiter = Waiter { arrivals, permits, settled: sender, wake_when_admitted };
        self.by_key.insert(key, waiter);
        Ticket { number, settled: receiver }
    }

    /// The first waiter, by its number, and the room that it needs.
    pub(crate) fn first(&self) -> Option<(u64, Permits)> {
        self.by_key.first_key_value().map(|(key, waiter)| (key.number, waiter.permits))
    }

    /// The requests of a waiter, which go in.
    pub(crate) fn admit(
        &mut self,
        number: u64,
        deferred: &mut Deferred,
    ) -> Option<Vec<Arrival<E>>> {
        let Waiter { arrivals, settled, wake_when_admitted, .. } = self.remove(number)?;
        if wake_when_admitted {
            settled.send(Ok(Ok(())), deferred)
        } else {
            settled.forget()
        }
        Some(arrivals)
    }

    /// Gives up a place.
    pub(crate) fn remove(&mut self, number: u64) -> Option<Waiter<E>> {
        let key = self.keys.remove(&number)?;
        let waiter = self.by_key.remove(&key).expect("a key names a waiter");
        self.requests -= waiter.arrivals.len();
        if let Some(deadline) = last_deadline(&waiter.arrivals) {
            self.deadlines.remove(&(deadline, number));
        }
        Some(waiter)
    }

    /// Sends everybody away.
    pub(crate) fn refuse_all(&mut self, reason: &Refusal, deferred: &mut Deferred) {
        let empty = Self::new(self.ageing);
        for waiter in std::mem::replace(self, empty).by_key.into_values() {
            waiter.refuse(reason.clone(), deferred);
        }
    }

    /// When a waiter's requests have all expired first, and its number.
    pub(crate) fn first_deadline(&self) -> Option<(Instant, u64)> {
        self.deadlines.first().copied()
    }
}

/// When all of these have expired.
fn last_deadline<E: Engine>(arrivals: &[Arrival<E>]) -> Option<Instant> {
    let deadlines = || arrivals.iter().map(|arrival| arrival.request.deadline);
    deadlines().min_by_key(Option::is_some)??;
    deadlines().flatten().max()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::admission::inbox::PendingRequest;
    use crate::testing::{FakeEngine, FakeItem};

    const CLASSES: [Priority; 3] = [Priority::Bulk, Priority::Normal, Priority::Interactive];

    fn arrival(class: Priority, at: Instant, deadline: Option<Instant>) -> Arrival<FakeEngine> {
        let arrival = crate::admission::tests::arrival(FakeItem::new(0), class, deadline);
        Arrival { request: PendingRequest { arrival: at, ..arrival.request }, ..arrival }
    }

    /// Who goes first, and so on, of those who come at these times: (class, milliseconds).
    fn order(ageing: Duration, come: &[(Priority, u64)]) -> Vec<usize> {
        let mut waiters = Waiters::new(ageing);
        let start = Instant::now();
        for (number, &(class, ms)) in come.iter().enumerate() {
            let at = start + Duration::from_millis(ms);
            let mut one = arrival(class, at, None);
            one.request.number = number as u64;
            waiters.push(vec![one], number as u64, class, false);
        }
        let mut deferred = Deferred::default();
        let first = || waiters.admit(waiters.first()?.0, &mut deferred);
        std::iter::from_fn(first).map(|arrivals| arrivals[0].request.number as usize).collect()
    }

    #[test]
    fn a_class_is_worth_one_ageing_interval() {
        let [bulk, normal, interactive] = CLASSES;
        let ageing = Duration::from_millis(100);
        assert_eq!(order(ageing, &CLASSES.map(|class| (class, 0))), [2, 1, 0]);
        assert_eq!(order(ageing, &[(bulk, 0), (normal, 99), (interactive, 199)]), [1, 2, 0]);
        assert_eq!(order(ageing, &[(bulk, 0), (normal, 100), (interactive, 200)]), [0, 1, 2]);
        assert_eq!(order(ageing, &[(normal, 0), (normal, 0), (normal, 0)]), [0, 1, 2]);
    }

    #[test]
    fn without_ageing_a_class_is_worth_any_time() {
        let come = [(0, 0), (1, 5), (2, 10), (0, 20)].map(|(at, ms)| (CLASSES[at], ms));
        assert_eq!(order(Duration::MAX, &come), [2, 1, 0, 3]);
    }

    #[test]
    fn a_group_expires_with_its_last_request_and_not_if_one_has_no_deadline() {
        let now = Instant::now();
        let at = |ms| Some(now + Duration::from_millis(ms));
        let group = |deadlines: &[Option<Instant>]| {
            let class = Priority::Normal;
            deadlines.iter().map(|&deadline| arrival(class, now, deadline)).collect::<Vec<_>>()
        };
        assert_eq!(last_deadline(&group(&[at(3), at(9), at(5)])), at(9));
        assert_eq!(last_deadline(&group(&[at(3), None])), None);
    }
}
