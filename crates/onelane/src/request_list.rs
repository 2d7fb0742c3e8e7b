//! The waiting requests of one batch queue, first in first out per batch key and priority.
//!
//! Requests come from the queue's inbox. Each operation takes constant time a request whatever waits (a
//! key is hashed before it gets here), except with `max_wait > 0`, where `heads` looks at each group.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashTable;
use slab::Slab;

use crate::after::After;
use crate::batch::{Batch, Plan, RequestBatch};
use crate::config::BatchConfig;
use crate::contain::contain;
use crate::engine::{BatchItem, Engine};
use crate::error::RequestError;
use crate::fifo::{Fifo, Linked, Links};
use crate::inbox::{Arrival, Inbox};
use crate::policy::Head;
use crate::queue_state::Need;
use crate::request::Priority;
use crate::response::Responder;
use crate::waiting::{Filed, Listening, Removed, RequestId, WaitingList};

const LINE: usize = 0;
const LANE: usize = 1;

/// One waiting request. It stands in two lists: all of its class in the queue (the line), and those
/// of its class and key (the lane).
struct Waiting<E: Engine> {
    input: E::Item,
    responder: Responder<E::Output>,
    number: u64,
    /// The order of acceptance in the executor.
    seq: u64,
    group: usize,
    cost: usize,
    class: Priority,
    arrival: Instant,
    deadline: Option<Instant>,
    links: [Links; 2],
}

impl<E: Engine> Linked<2> for Waiting<E> {
    fn links(&mut self) -> &mut [Links; 2] {
        &mut self.links
    }
    fn next(&self, list: usize) -> Option<usize> {
        self.links[list].following()
    }
}

impl<E: Engine> Removed for Waiting<E> {
    fn answer(self: Box<Self>, error: RequestError, after: &mut After) {
        self.responder.answer(Err(error), after);
        after.discard(self.input);
    }
}

/// The requests of one batch key.
struct Group<K> {
    key: K,
    hash: u64,
    lanes: [Fifo; 3],
    len: usize,
    cost: usize,
    /// Batches of this group that run now; the group stays until they are done.
    running: usize,
    /// The most requests in a batch, learnt from running out of memory.
    ceiling: Option<usize>,
    /// With `max_wait`, from when on a batch may go although it is not full.
    ready_at: Option<Instant>,
}

/// The waiting requests of one batch queue.
pub(crate) struct RequestList<E: Engine> {
    plan: Arc<Plan<E>>,
    inbox: Arc<Inbox<E>>,
    /// What the inbox gets in exchange for what is in it.
    empty: Vec<Arrival<E>>,
    /// A batch that has been delivered: the next one needs no memory of its own.
    spare: Option<Box<RequestBatch<E>>>,
    max_batch_size: usize,
    max_batch_cost: usize,
    max_wait: Duration,
    requests: Slab<Waiting<E>>,
    /// What the inbox has not been told of: it is when it is emptied next, or when somebody who finds no
    /// room in it asks here.
    freed: Need,
    groups: Slab<Group<<E::Item as BatchItem>::Key>>,
    by_key: HashTable<usize>,
    lines: [Fifo; 3],
    deadlines: BTreeSet<(Instant, RequestId)>,
    cost: usize,
}

/// Groups that are kept for their learnt ceiling alone; beyond that many, ceilings are forgotten.
const MAX_REMEMBERED: usize = 1024;

/// Groups that are kept although they are empty, since their key is likely to come again.
const MAX_KEPT: usize = 16;

impl<E: Engine> RequestList<E> {
    pub(crate) fn new(plan: Arc<Plan<E>>, inbox: Arc<Inbox<E>>, config: &BatchConfig) -> Self {
        Self {
            plan,
            inbox,
            empty: Vec::new(),
            spare: None,
            max_batch_size: config.max_batch_size,
            max_batch_cost: config.max_batch_cost,
            max_wait: config.max_wait,
            requests: Slab::new(),
            freed: Need::default(),
            groups: Slab::new(),
            by_key: HashTable::new(),
            lines: [Fifo::new(LINE); 3],
            deadlines: BTreeSet::new(),
            cost: 0,
        }
    }

    /// Appends a request to its group; answers it if that fails.
    fn push(&mut self, arrival: Arrival<E>, number: u64, seq: u64, after: &mut After) -> bool {
        let Arrival { input, key, hash, cost, class, at, deadline, responder } = arrival;
        // CORRECTNESS: the key's `Eq` is a user's code and comes first: if it panics, nothing has
        // changed yet.
        let group = match contain(|| self.group(key, hash, after)) {
            Ok(group) => group,
            Err(message) => {
                responder.answer(Err(RequestError::Panicked(message)), after);
                after.discard(input);
                self.free(1, cost);
                return false;
            }
        };
        let links = Default::default();
        let place = self.requests.vacant_entry();
        let seat = place.key();
        responder.sits_at(seat);
        place.insert(Waiting {
            input,
            responder,
            number,
            seq,
            group,
            cost,
            class,
            arrival: at,
            deadline,
            links,
        });
        self.lines[class.index()].push_back(&mut self.requests, seat);
        let ready_at = (!self.max_wait.is_zero()).then(|| self.ready_at(at, deadline));
        let group = &mut self.groups[group];
        group.lanes[class.index()].push_back(&mut self.requests, seat);
        group.len += 1;
        group.cost += cost;
        group.ready_at = [group.ready_at, ready_at].into_iter().flatten().min();
        self.cost += cost;
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, RequestId { seat, number }));
        }
        true
    }

    /// Notes the room of requests that do not wait any more.
    fn free(&mut self, requests: usize, cost: usize) {
        self.freed.requests += requests;
        self.freed.cost += cost;
    }

    /// The group of a key, and of a new key a new one.
    fn group(&mut self, key: <E::Item as BatchItem>::Key, hash: u64, after: &mut After) -> usize {
        match self.known_group(&key, hash) {
            Some(group) => {
                discard_key::<E>(key, after);
                group
            }
            None => self.add_group(key, hash),
        }
    }

    fn known_group(&self, key: &<E::Item as BatchItem>::Key, hash: u64) -> Option<usize> {
        self.by_key.find(hash, |&g| self.groups[g].key == *key).copied()
    }

    fn add_group(&mut self, key: <E::Item as BatchItem>::Key, hash: u64) -> usize {
        let group = self.groups.insert(Group {
            key,
            hash,
            lanes: [Fifo::new(LANE); 3],
            len: 0,
            cost: 0,
            running: 0,
            ceiling: None,
            ready_at: None,
        });
        let groups = &self.groups;
        self.by_key.insert_unique(hash, group, |&g| groups[g].hash);
        group
    }

    /// A request whose deadline would pass while it waits for company does not wait for company.
    fn ready_at(&self, arrival: Instant, deadline: Option<Instant>) -> Instant {
        let ready_at = arrival.checked_add(self.max_wait).unwrap_or(arrival);
        if deadline.is_some_and(|deadline| deadline <= ready_at) { arrival } else { ready_at }
    }

    /// Takes a request out of its line, its lane and all sums; the request itself is then taken.
    fn unlink(&mut self, seat: usize) {
        let Waiting { class, group, cost, deadline, number, .. } = self.requests[seat];
        self.lines[class.index()].unlink(&mut self.requests, seat);
        let group = &mut self.groups[group];
        group.lanes[class.index()].unlink(&mut self.requests, seat);
        group.len -= 1;
        group.cost -= cost;
        self.cost -= cost;
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, RequestId { seat, number }));
        }
    }

    /// Forgets a group that holds nothing; its key is the caller's to drop.
    fn tidy(&mut self, index: usize) -> Option<<E::Item as BatchItem>::Key> {
        let group = &self.groups[index];
        let worth = if group.ceiling.is_some() { MAX_REMEMBERED } else { MAX_KEPT };
        let remembered = self.groups.len() <= worth;
        if group.len > 0 || group.running > 0 || remembered {
            return None;
        }
        let hash = group.hash;
        if let Ok(found) = self.by_key.find_entry(hash, |&g| g == index) {
            found.remove();
        }
        Some(self.groups.remove(index).key)
    }

    fn limit(&self, group: &Group<<E::Item as BatchItem>::Key>) -> usize {
        group.ceiling.map_or(self.max_batch_size, |ceiling| ceiling.min(self.max_batch_size))
    }

    fn head(&self, seat: usize, ready_at: Instant) -> Head {
        let entry = &self.requests[seat];
        Head { seat, class: entry.class, arrival: entry.arrival, seq: entry.seq, ready_at }
    }

    /// An empty batch with room for so many requests.
    fn empty_batch(&mut self, requests: usize) -> Box<RequestBatch<E>> {
        let spare = self.spare.take();
        let mut batch =
            spare.unwrap_or_else(|| Box::new(RequestBatch::new(Arc::clone(&self.plan))));
        batch.begin(requests);
        batch
    }

    /// Takes a batch back that is empty.
    pub(crate) fn keep(&mut self, batch: Box<RequestBatch<E>>, after: &mut After) {
        if let Some(spare) = self.spare.replace(batch) {
            after.discard(spare);
        }
    }

    /// A batch of `group` is done: remembers what it taught.
    pub(crate) fn finished(&mut self, index: usize, ceiling: Option<usize>, after: &mut After) {
        let group = &mut self.groups[index];
        group.running -= 1;
        if let Some(ceiling) = ceiling {
            group.ceiling = Some(group.ceiling.map_or(ceiling, |old| old.min(ceiling)));
        }
        if let Some(key) = self.tidy(index) {
            after.discard(key);
        }
    }
}

/// A key is a user's to drop.
fn discard_key<E: Engine>(key: <E::Item as BatchItem>::Key, after: &mut After) {
    if std::mem::needs_drop::<<E::Item as BatchItem>::Key>() {
        after.discard(key);
    }
}

/// What was in the inbox; the number of the request before the first.
struct FromInbox<E: Engine> {
    accepted: Vec<Arrival<E>>,
    number: u64,
}

/// Accepted requests that make one batch as they are.
struct OneBatch {
    /// The group of their key, if it is known.
    group: Option<usize>,
}

/// From the inbox into the list, or straight into a batch.
impl<E: Engine> RequestList<E> {
    /// Takes everything out of the inbox.
    fn empty_inbox(&mut self, bell: bool) -> FromInbox<E> {
        let mut accepted = std::mem::take(&mut self.empty);
        let mut inbox = self.inbox.lock();
        let number = inbox.swap(&mut accepted);
        inbox.take_back(&mut self.freed);
        inbox.set_bell(bell);
        drop(inbox);
        if !accepted.is_empty() {
            self.inbox.set_idle(false);
        }
        FromInbox { accepted, number }
    }

    fn file_these(&mut self, these: FromInbox<E>, seq: &mut u64, after: &mut After) -> Filed {
        let FromInbox { mut accepted, mut number } = these;
        let mut filed = Filed { requests: accepted.len(), failed: 0 };
        for arrival in accepted.drain(..) {
            number += 1;
            *seq += 1;
            filed.failed += usize::from(!self.push(arrival, number, *seq, after));
        }
        self.empty = accepted;
        filed
    }

    /// Whether these are one batch, whatever else could be chosen: of one key and class, not more than
    /// go together, and nothing about their time matters.
    fn one_batch(&self, accepted: &[Arrival<E>]) -> Option<OneBatch> {
        let first = accepted.first()?;
        if !self.max_wait.is_zero() {
            return None;
        }
        let mut cost = 0_usize;
        let alike = || {
            let group = self.known_group(&first.key, first.hash);
            let limit = group.map_or(self.max_batch_size, |group| self.limit(&self.groups[group]));
            let alike = accepted.iter().all(|other| {
                cost = cost.saturating_add(other.cost);
                other.deadline.is_none()
                    && other.class == first.class
                    && (other.hash == first.hash && other.key == first.key)
            });
            (alike && accepted.len() <= limit).then_some(OneBatch { group })
        };
        // A key's `Eq` is a user's code. If it panics they are filed, which finds out which it was.
        let one_batch = contain(alike).ok().flatten()?;
        (cost <= self.max_batch_cost).then_some(one_batch)
    }

    fn take_these(
        &mut self,
        OneBatch { mut group }: OneBatch,
        these: FromInbox<E>,
        waits: &mut dyn FnMut(Instant),
        after: &mut After,
    ) -> Box<dyn Batch> {
        let FromInbox { mut accepted, mut number } = these;
        let mut batch = self.empty_batch(accepted.len());
        for arrival in accepted.drain(..) {
            let Arrival { input, key, hash, cost, at, responder, .. } = arrival;
            match group {
                Some(_) => discard_key::<E>(key, after),
                None => group = Some(self.add_group(key, hash)),
            }
            waits(at);
            number += 1;
            batch.push(input, responder, number, cost);
        }
        self.empty = accepted;
        self.free(batch.len(), batch.cost());
        batch.group = group.expect("one batch is of one request at least");
        self.groups[batch.group].running += 1;
        batch
    }
}

impl<E: Engine> WaitingList for RequestList<E> {
    fn file(&mut self, seq: &mut u64, bell: bool, after: &mut After) -> Filed {
        let these = self.empty_inbox(bell);
        self.file_these(these, seq, after)
    }

    fn file_or_take(
        &mut self,
        seq: &mut u64,
        bell: bool,
        waits: &mut dyn FnMut(Instant),
        after: &mut After,
    ) -> (Filed, Option<Box<dyn Batch>>) {
        let these = self.empty_inbox(bell);
        if let Some(one_batch) = self.one_batch(&these.accepted) {
            let filed = Filed { requests: these.accepted.len(), failed: 0 };
            return (filed, Some(self.take_these(one_batch, these, waits, after)));
        }
        (self.file_these(these, seq, after), None)
    }

    fn reserve(&mut self, need: Need) -> bool {
        let mut inbox = self.inbox.lock();
        inbox.take_back(&mut self.freed);
        inbox.reserve(need)
    }

    fn set_open(&mut self, open: bool) {
        self.inbox.lock().set_open(open);
    }

    fn set_pace(&mut self, idle: bool, service: Duration) {
        self.inbox.set_idle(idle);
        self.inbox.set_pace(service);
    }

    fn listen(&mut self) -> Option<Listening> {
        let mut inbox = self.inbox.lock();
        inbox.is_empty().then(|| {
            inbox.set_bell(true);
            self.inbox.set_idle(self.requests.is_empty());
            Listening { worth_a_turn: self.inbox.is_worth_a_turn(&inbox) }
        })
    }

    fn len(&self) -> usize {
        self.requests.len()
    }

    fn cost(&self) -> usize {
        self.cost
    }

    fn contains(&self, id: RequestId) -> bool {
        self.requests.get(id.seat).is_some_and(|entry| entry.number == id.number)
    }

    fn heads(&self, visit: &mut dyn FnMut(Head)) {
        if self.max_wait.is_zero() {
            // The oldest of a class in the queue is the oldest of its class in its group, so three
            // heads stand for all groups.
            for line in &self.lines {
                if let Some(seat) = line.head() {
                    visit(self.head(seat, self.requests[seat].arrival));
                }
            }
            return;
        }
        for (_, group) in &self.groups {
            let full = group.len >= self.limit(group) || group.cost >= self.max_batch_cost;
            for seat in group.lanes.iter().filter_map(Fifo::head) {
                let arrival = self.requests[seat].arrival;
                let ready_at = if full { arrival } else { group.ready_at.unwrap_or(arrival) };
                visit(self.head(seat, ready_at));
            }
        }
    }

    fn take(&mut self, seat: usize, waits: &mut dyn FnMut(Instant)) -> Box<dyn Batch> {
        let index = self.requests[seat].group;
        let limit = self.limit(&self.groups[index]).min(self.groups[index].len);
        let mut batch = self.empty_batch(limit);
        batch.group = index;
        // The head that has the claim goes in whatever its class; then the most urgent first.
        let mut next = Some(seat);
        while let Some(seat) = next {
            let fits = batch.cost().saturating_add(self.requests[seat].cost);
            if batch.len() == limit || (batch.len() > 0 && fits > self.max_batch_cost) {
                break;
            }
            self.unlink(seat);
            let Waiting { input, responder, number, cost, arrival, .. } =
                self.requests.remove(seat);
            waits(arrival);
            batch.push(input, responder, number, cost);
            next = self.groups[index].lanes.iter().find_map(Fifo::head);
        }
        self.free(batch.len(), batch.cost());
        self.inbox.set_idle(false);
        let group = &mut self.groups[index];
        group.running += 1;
        group.ready_at = None;
        if !self.max_wait.is_zero() {
            let lanes = self.groups[index].lanes;
            let left = lanes.iter().flat_map(|lane| lane.iter(&self.requests));
            let ready = left.map(|seat| &self.requests[seat]);
            self.groups[index].ready_at =
                ready.map(|entry| self.ready_at(entry.arrival, entry.deadline)).min();
        }
        batch
    }

    fn remove(&mut self, id: RequestId) -> Option<Box<dyn Removed>> {
        if !self.contains(id) {
            return None;
        }
        self.unlink(id.seat);
        let entry = self.requests.remove(id.seat);
        self.free(1, entry.cost);
        let key = self.tidy(entry.group);
        Some(Box::new(RemovedRequest { entry, key }))
    }

    fn first_deadline(&self) -> Option<(Instant, RequestId)> {
        self.deadlines.first().copied()
    }

    fn any(&self) -> Option<RequestId> {
        let seat = self.lines.iter().find_map(Fifo::head)?;
        Some(RequestId { seat, number: self.requests[seat].number })
    }
}

/// A removed request with the key of its group when it was the last one there.
struct RemovedRequest<E: Engine> {
    entry: Waiting<E>,
    key: Option<<E::Item as BatchItem>::Key>,
}

impl<E: Engine> Removed for RemovedRequest<E> {
    fn answer(self: Box<Self>, error: RequestError, after: &mut After) {
        let Self { entry, key } = *self;
        after.discard(key);
        Box::new(entry).answer(error, after);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::response::Pending;
    use crate::testing::{FakeEngine, FakeItem};

    #[test]
    fn a_batch_that_is_used_again_is_a_new_one() {
        let plan = Arc::new(Plan {
            queue: 1,
            device: String::new(),
            name: String::new(),
            factory: Box::new(|| Ok(FakeEngine::echo())),
        });
        let config = BatchConfig::default();
        let mut list = RequestList::new(plan, Arc::new(Inbox::new(&config)), &config);
        let mut after = After::default();
        for numbers in [vec![1, 2, 3], vec![4]] {
            let mut batch = list.empty_batch(numbers.len());
            assert_eq!((batch.len(), batch.cost()), (0, 0));
            for &number in &numbers {
                let (pending, responder) = Pending::pair(None, None);
                pending.abandon();
                batch.push(FakeItem::new(number), responder, number, 10);
            }
            assert_eq!(batch.cost(), 10 * numbers.len());
            assert_eq!(batch.take_numbers(), numbers);
            batch.deliver(&mut after);
            batch.drop_inputs();
            batch.give_back(numbers, &mut list, &mut after);
            assert!(list.spare.is_some(), "its memory is kept");
        }
        // One in which something is left is not used again.
        let mut batch = list.empty_batch(1);
        let (_pending, responder) = Pending::pair(None, None);
        batch.push(FakeItem::new(5), responder, 5, 10);
        batch.give_back(vec![5], &mut list, &mut after);
        assert!(list.spare.is_none());
        after.run();
    }
}
