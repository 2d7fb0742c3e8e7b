//! The requests that wait in one batch queue, first in first out per batch key and priority.
//!
//! They come from the queue's inbox, or, when there is room for them, from its waiters. Everything
//! here happens under the executor's lock, in constant time a request whatever waits (a key is
//! hashed before it gets here), except with `max_wait > 0`, where `heads` looks at each group.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::{HashMap, HashTable};
use slab::Slab;

use crate::admission::inbox::{Arrival, Inbox, PendingRequest, Permits};
use crate::admission::waiters::{Patience, Ticket, Waiters};
use crate::scheduler::fifo::{Fifo, Linked};
use crate::scheduler::group::Group;
use crate::scheduler::policy::Head;
use crate::stats::Stats;
use crate::sync::{Deferred, forbid_locking};
use crate::worker::batch::{Batch, Outcome, RequestBatch};
use crate::worker::engines::{EngineFactory, Engines};
use crate::{BatchConfig, BatchItem, Engine, Priority, Refusal, RequestError};

const BY_CLASS: usize = 0;

/// What a queue's scheduler asks of what waits in it, whatever its types.
pub(crate) trait PendingRequests: Any + Send {
    /// Takes in what is in the inbox. Whether submitters have to wake a worker is left as given.
    fn drain_inbox(&mut self, wake_needed: bool, deferred: &mut Deferred);
    /// Has the next submitter wake a worker, unless there is something in the inbox. Says whether
    /// there was nothing.
    fn listen(&mut self) -> bool;
    /// Accepts no more requests, and refuses those that wait for room.
    fn refuse_all(&mut self, refusal: &Refusal, deferred: &mut Deferred);
    /// Says, after a batch, whether nothing waits and nothing computes, and how long it took.
    fn set_pace(&mut self, idle: bool, service: Duration);
    fn len(&self) -> usize;
    /// Whether a request waits, in the queue or for room in it.
    fn contains(&self, number: u64) -> bool;
    /// Shows the heads that may claim a batch.
    fn heads(&self, visit: &mut dyn FnMut(Head));
    /// Takes the batch that the head at `index` claims out, noting how long each request waited.
    fn take(&mut self, index: usize, now: Instant, deferred: &mut Deferred) -> Box<dyn Batch>;
    /// Removes a request that waits, in the queue or for room in it, and answers it with `error`.
    fn dismiss(&mut self, number: u64, error: RequestError, deferred: &mut Deferred);
    /// The same with all that wait in the queue.
    fn dismiss_all(&mut self, error: &RequestError, deferred: &mut Deferred);
    /// The same with those that have expired.
    fn expire(&mut self, now: Instant, deferred: &mut Deferred);
    /// When the next request expires.
    fn next_deadline(&self) -> Option<Instant>;
    /// The next deadline, for the timer to be told of, when the alarm of the last one has gone off.
    fn next_alarm(&mut self, last: Instant) -> Option<Instant>;
    /// A batch is done: remembers what it taught.
    fn finished(&mut self, outcome: &Outcome, now: Instant, deferred: &mut Deferred);
    /// What builds the engine of a worker that has none.
    fn rebuild(&self) -> Box<dyn FnOnce(&Engines) -> bool + Send>;
    /// What has been counted.
    fn stats(&mut self) -> &mut Stats;
    /// The same, and what waits.
    fn snapshot(&self, now: Instant) -> Stats;
    /// The cost of what waits, and the requests that wait for room or run.
    fn load(&self) -> usize;
}

/// The requests that wait in one batch queue.
pub(crate) struct Pending<E: Engine> {
    factory: Arc<EngineFactory<E>>,
    inbox: Arc<Inbox<E>>,
    waiters: Waiters<E>,
    /// What the inbox gets in exchange for what is in it.
    empty: Vec<Arrival<E>>,
    config: BatchConfig,
    open: bool,
    /// Each stands in two lists: all of its class in the queue, and those of its class and key.
    requests: Slab<Linked<PendingRequest<E>>>,
    by_number: HashMap<u64, usize>,
    /// Room that the inbox has not been given back: it is when the inbox is drained, or when somebody
    /// finds no room in it.
    freed: Permits,
    groups: Slab<Group<<E::Item as BatchItem>::Key>>,
    by_key: HashTable<usize>,
    by_class: [Fifo; 3],
    class_len: [usize; 3],
    deadlines: BTreeSet<(Instant, u64)>,
    cost: usize,
    stats: Stats,
}

/// Groups that are kept for their learnt ceiling alone; beyond that many, ceilings are forgotten.
const MAX_REMEMBERED: usize = 1024;

/// Groups that are kept although they are empty, since their key is likely to come again.
const MAX_KEPT: usize = 16;

impl<E: Engine> Pending<E> {
    pub(crate) fn new(
        factory: Arc<EngineFactory<E>>,
        inbox: Arc<Inbox<E>>,
        config: &BatchConfig,
    ) -> Self {
        Self {
            factory,
            inbox,
            waiters: Waiters::new(config.ageing),
            empty: Vec::new(),
            config: config.clone(),
            open: true,
            requests: Slab::new(),
            by_number: HashMap::new(),
            freed: Permits::default(),
            groups: Slab::new(),
            by_key: HashTable::new(),
            by_class: [Fifo::new(BY_CLASS); 3],
            class_len: [0; 3],
            deadlines: BTreeSet::new(),
            cost: 0,
            stats: Stats::default(),
        }
    }

    /// Lets requests in for which the inbox had no room, or has them wait; the inbox is drained.
    /// Returns the number of the first, and the ticket of those that wait; or gives them back and says
    /// why.
    pub(crate) fn admit(
        &mut self,
        mut arrivals: Vec<Arrival<E>>,
        class: Priority,
        patience: Patience,
        deferred: &mut Deferred,
    ) -> Result<(u64, Option<Ticket<E>>), (Refusal, Vec<Arrival<E>>)> {
        let mut permits = Permits::default();
        arrivals.iter().for_each(|arrival| permits.add(arrival.permits()));
        let is_first = arrivals
            .first()
            .is_none_or(|first| self.waiters.would_be_first(class, first.request.arrival));
        let mut inbox = self.inbox.lock();
        inbox.release(&mut self.freed);
        let room = is_first && inbox.reserve(permits);
        if !room && patience == Patience::None {
            return Err((Refusal::Full, arrivals));
        }
        let number = inbox.number_all(&mut arrivals);
        if !room {
            // CORRECTNESS: under the lock under which there was no room; what makes room holds it.
            inbox.open = false;
            drop(inbox);
            let told = patience != Patience::UntilAnswered;
            return Ok((number, Some(self.waiters.push(arrivals, number, class, told))));
        }
        drop(inbox);
        arrivals.into_iter().for_each(|arrival| self.push(arrival, deferred));
        Ok((number, None))
    }

    /// Refuses requests that wait for room, if they still do.
    pub(crate) fn withdraw(&mut self, number: u64, reason: Refusal, deferred: &mut Deferred) {
        let Some(waiter) = self.waiters.remove(number) else { return };
        self.stats.counters.refused += waiter.arrivals.len() as u64;
        waiter.refuse(reason, deferred);
        self.assign_room(deferred);
    }

    /// Assigns room that is free to those who wait for it.
    fn assign_room(&mut self, deferred: &mut Deferred) {
        while let Some((number, permits)) = self.waiters.first() {
            let mut inbox = self.inbox.lock();
            inbox.release(&mut self.freed);
            if !inbox.reserve(permits) {
                return;
            }
            drop(inbox);
            let arrivals = self.waiters.admit(number, deferred).into_iter().flatten();
            arrivals.for_each(|arrival| self.push(arrival, deferred));
        }
    }

    /// Appends a request to its group; answers it if that fails.
    fn push(&mut self, arrival: Arrival<E>, deferred: &mut Deferred) {
        let Arrival { mut request, key, hash } = arrival;
        self.stats.counters.submitted += 1;
        // CORRECTNESS: the key's `Eq` is a user's code and comes first: if it panics, nothing has
        // changed yet.
        let group = match forbid_locking(|| self.known_group(&key, hash)) {
            Ok(Some(group)) => {
                deferred.discard(key);
                group
            }
            Ok(None) => self.add_group(key, hash),
            Err(message) => {
                deferred.discard(key);
                self.freed.add(Permits { requests: 1, cost: request.cost });
                return self.answer(request, RequestError::Panicked(message), deferred);
            }
        };
        (request.seq, request.group) = (self.stats.counters.submitted, group);
        let PendingRequest { cost, class, arrival, deadline, number, .. } = request;
        let index = self.requests.insert(request.into());
        self.by_number.insert(number, index);
        self.by_class[class.index()].push_back(&mut self.requests, index);
        self.class_len[class.index()] += 1;
        let ready_at = (!self.config.max_wait.is_zero()).then(|| self.ready_at(arrival, deadline));
        let group = &mut self.groups[group];
        group.by_class[class.index()].push_back(&mut self.requests, index);
        group.len += 1;
        group.cost += cost;
        group.ready_at = [group.ready_at, ready_at].into_iter().flatten().min();
        self.cost += cost;
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, number));
        }
    }

    fn known_group(&self, key: &<E::Item as BatchItem>::Key, hash: u64) -> Option<usize> {
        self.by_key.find(hash, |&group| self.groups[group].key == *key).copied()
    }

    fn add_group(&mut self, key: <E::Item as BatchItem>::Key, hash: u64) -> usize {
        let group = self.groups.insert(Group::new(key, hash));
        let groups = &self.groups;
        self.by_key.insert_unique(hash, group, |&group| groups[group].hash);
        group
    }

    /// A request whose deadline would pass while it waits for company does not wait for company.
    fn ready_at(&self, arrival: Instant, deadline: Option<Instant>) -> Instant {
        let ready_at = arrival.checked_add(self.config.max_wait).unwrap_or(arrival);
        if deadline.is_some_and(|deadline| deadline <= ready_at) { arrival } else { ready_at }
    }

    /// Answers requests that have expired while they waited for room. They are counted as those that
    /// expire in the queue.
    fn expire_waiter(&mut self, number: u64, deferred: &mut Deferred) {
        let arrivals = self.waiters.admit(number, deferred);
        for Arrival { request, key, .. } in arrivals.into_iter().flatten() {
            self.stats.counters.submitted += 1;
            self.answer(request, RequestError::DeadlineExceeded, deferred);
            deferred.discard(key);
        }
    }

    /// Answers a request that will not be computed, and counts what it came to.
    fn answer(&mut self, request: PendingRequest<E>, error: RequestError, deferred: &mut Deferred) {
        let counters = &mut self.stats.counters;
        let counter = match error {
            RequestError::Cancelled => &mut counters.cancelled,
            RequestError::DeadlineExceeded => &mut counters.expired,
            RequestError::Panicked(_) => &mut counters.failed,
            _ => &mut counters.closed,
        };
        *counter += 1;
        request.sender.send(Err(error), deferred);
        deferred.discard(request.input);
    }

    /// Takes a request out of all lists and sums.
    fn unlink(&mut self, index: usize) -> PendingRequest<E> {
        let PendingRequest { class, group, cost, deadline, number, .. } = *self.requests[index];
        self.by_class[class.index()].unlink(&mut self.requests, index);
        self.class_len[class.index()] -= 1;
        let group = &mut self.groups[group];
        group.by_class[class.index()].unlink(&mut self.requests, index);
        group.len -= 1;
        group.cost -= cost;
        self.cost -= cost;
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, number));
        }
        self.by_number.remove(&number);
        self.freed.add(Permits { requests: 1, cost });
        self.requests.remove(index).value
    }

    /// Removes a request that waits in the queue, and answers it.
    fn dismiss_at(&mut self, index: usize, error: RequestError, deferred: &mut Deferred) {
        let request = self.unlink(index);
        let group = request.group;
        self.answer(request, error, deferred);
        self.tidy(group, deferred);
    }

    /// Forgets a group that holds nothing.
    fn tidy(&mut self, index: usize, deferred: &mut Deferred) {
        let group = &self.groups[index];
        let worth = if group.ceiling.is_some() { MAX_REMEMBERED } else { MAX_KEPT };
        if group.len > 0 || group.running > 0 || self.groups.len() <= worth {
            return;
        }
        if let Ok(found) = self.by_key.find_entry(group.hash, |&group| group == index) {
            found.remove();
        }
        deferred.discard(self.groups.remove(index).key);
    }

    /// A request as a head; without `ready_at` it may go at once.
    fn head(&self, index: usize, ready_at: Option<Instant>) -> Head {
        let PendingRequest { class, arrival, seq, .. } = *self.requests[index];
        Head { index, class, arrival, seq, ready_at: ready_at.unwrap_or(arrival) }
    }

    /// From when on a batch of this group may go, with `max_wait`.
    fn group_ready_at(&self, group: &Group<<E::Item as BatchItem>::Key>) -> Option<Instant> {
        let BatchConfig { max_batch_size, max_batch_cost, .. } = self.config;
        let most = group.ceiling.map_or(max_batch_size, |ceiling| ceiling.most.min(max_batch_size));
        let is_full = group.len >= most || group.cost >= max_batch_cost;
        if is_full { None } else { group.ready_at }
    }
}

impl<E: Engine> PendingRequests for Pending<E> {
    fn drain_inbox(&mut self, wake_needed: bool, deferred: &mut Deferred) {
        let mut accepted = std::mem::take(&mut self.empty);
        let mut inbox = self.inbox.lock();
        inbox.swap(&mut accepted);
        inbox.release(&mut self.freed);
        inbox.wake_needed = wake_needed;
        // Behind the last who waited for room.
        inbox.open = self.open && self.waiters.requests() == 0;
        drop(inbox);
        accepted.drain(..).for_each(|arrival| self.push(arrival, deferred));
        self.empty = accepted;
        // What could not be taken in has left room.
        if self.freed.requests > 0 {
            self.assign_room(deferred);
        }
    }

    fn listen(&mut self) -> bool {
        let mut inbox = self.inbox.lock();
        let is_empty = inbox.accepted.is_empty();
        if is_empty {
            inbox.wake_needed = true;
            self.inbox.idle.set(self.requests.is_empty());
        }
        is_empty
    }

    fn refuse_all(&mut self, refusal: &Refusal, deferred: &mut Deferred) {
        self.open = false;
        self.inbox.lock().open = false;
        self.stats.counters.refused += self.waiters.requests() as u64;
        self.waiters.refuse_all(refusal, deferred);
    }

    fn set_pace(&mut self, idle: bool, service: Duration) {
        self.inbox.idle.set(idle);
        self.inbox.set_pace(service);
    }

    fn len(&self) -> usize {
        self.requests.len()
    }

    fn contains(&self, number: u64) -> bool {
        self.by_number.contains_key(&number) || self.waiters.contains(number)
    }

    fn heads(&self, visit: &mut dyn FnMut(Head)) {
        if self.config.max_wait.is_zero() {
            // The oldest request of a class in the queue is the oldest of its class in its group.
            let heads = self.by_class.iter().filter_map(Fifo::head);
            return heads.for_each(|index| visit(self.head(index, None)));
        }
        for (_, group) in &self.groups {
            let ready_at = self.group_ready_at(group);
            let heads = group.by_class.iter().filter_map(Fifo::head);
            heads.for_each(|index| visit(self.head(index, ready_at)));
        }
    }

    fn take(&mut self, index: usize, now: Instant, deferred: &mut Deferred) -> Box<dyn Batch> {
        let at = self.requests[index].group;
        let limit = self.groups[at].limit(self.config.max_batch_size, now);
        let size = limit.min(self.groups[at].len);
        let mut batch = RequestBatch::new(Arc::clone(&self.factory), at, size);
        // The claim goes first, whatever its class; then the most urgent of its key.
        let mut next = Some(index);
        for taken in 0..size {
            let Some(index) = next else { break };
            let cost = self.requests[index].cost;
            if taken > 0 && batch.cost().saturating_add(cost) > self.config.max_batch_cost {
                break;
            }
            let request = self.unlink(index);
            let waited = now.saturating_duration_since(request.arrival);
            self.stats.record_wait(request.class, waited);
            batch.push(request);
            next = self.groups[at].first();
        }
        self.inbox.idle.set(false);
        self.stats.counters.running += batch.len();
        self.groups[at].running += 1;
        self.groups[at].ready_at = None;
        if !self.config.max_wait.is_zero() {
            let by_class = self.groups[at].by_class;
            let left = by_class.iter().flat_map(|list| list.iter(&self.requests));
            self.groups[at].ready_at =
                left.map(|request| self.ready_at(request.arrival, request.deadline)).min();
        }
        self.assign_room(deferred);
        Box::new(batch)
    }

    fn dismiss(&mut self, number: u64, error: RequestError, deferred: &mut Deferred) {
        if let Some(&index) = self.by_number.get(&number) {
            self.dismiss_at(index, error, deferred);
        } else if matches!(error, RequestError::DeadlineExceeded) {
            self.expire_waiter(number, deferred);
        } else if let Some(waiter) = self.waiters.remove(number) {
            deferred.discard(waiter);
        }
        self.assign_room(deferred);
    }

    fn dismiss_all(&mut self, error: &RequestError, deferred: &mut Deferred) {
        while let Some(index) = self.by_class.iter().find_map(Fifo::head) {
            self.dismiss_at(index, error.clone(), deferred);
        }
        self.assign_room(deferred);
    }

    fn expire(&mut self, now: Instant, deferred: &mut Deferred) {
        while let Some((_, number)) = self.waiters.first_deadline().filter(|(at, _)| *at <= now) {
            self.expire_waiter(number, deferred);
        }
        while let Some(&(_, number)) = self.deadlines.first().filter(|(at, _)| *at <= now) {
            let index = self.by_number[&number];
            self.dismiss_at(index, RequestError::DeadlineExceeded, deferred);
        }
        self.assign_room(deferred);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let deadlines = [self.deadlines.first().copied(), self.waiters.first_deadline()];
        deadlines.into_iter().flatten().map(|(at, _)| at).min()
    }

    fn next_alarm(&mut self, last: Instant) -> Option<Instant> {
        let next = self.next_deadline();
        self.inbox.lock().next_alarm(last, next)
    }

    fn finished(&mut self, outcome: &Outcome, now: Instant, deferred: &mut Deferred) {
        let Outcome { group: at, completed, failed, ceiling, .. } = *outcome;
        let group = &mut self.groups[at];
        group.running -= 1;
        group.learn(completed + failed, ceiling, now, self.config.ceiling_retry);
        group.forget_ceiling_of(self.config.max_batch_size);
        self.tidy(at, deferred);
    }

    fn rebuild(&self) -> Box<dyn FnOnce(&Engines) -> bool + Send> {
        let factory = Arc::clone(&self.factory);
        Box::new(move |engines| engines.rebuild(&factory))
    }

    fn stats(&mut self) -> &mut Stats {
        &mut self.stats
    }

    fn snapshot(&self, now: Instant) -> Stats {
        let mut stats = self.stats.clone();
        let counters = &mut stats.counters;
        counters.waiting = self.requests.len();
        counters.waiting_cost = self.cost;
        counters.waiting_for_room = self.waiters.requests();
        let ceilings = || self.groups.iter().filter_map(|(_, group)| group.ceiling);
        counters.ceilings = ceilings().count();
        counters.lowest_ceiling = ceilings().map(|ceiling| ceiling.most).min();
        for (at, class) in counters.classes.iter_mut().enumerate() {
            class.waiting = self.class_len[at];
            let oldest = self.by_class[at].head().map_or(now, |index| self.requests[index].arrival);
            class.oldest_wait = now.saturating_duration_since(oldest);
        }
        stats
    }

    fn load(&self) -> usize {
        let requests = self.waiters.requests() + self.stats.counters.running;
        self.cost.saturating_add(requests)
    }
}
