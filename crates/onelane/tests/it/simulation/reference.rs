//! The reference: says what must be so after each step, with lists and sorts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::MS;
use super::workload::{Nature, Settings, fits, nature};

/// A request that the reference knows of.
#[derive(Clone, Debug)]
pub struct Known {
    pub value: u64,
    pub key: u64,
    pub class: usize,
    pub cost: usize,
    pub arrival: Duration,
    pub deadline: Option<Duration>,
}

/// A request that stands in line for room.
#[derive(Clone, Debug)]
pub struct Standing {
    pub known: Known,
    /// The least goes first.
    pub turn: Turn,
}

/// A class that is never lifted, the instant that counts, the order of coming.
pub type Turn = (usize, Duration, u64);

/// What the reference expects a request to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Response,
    Engine,
    Panicked,
    Expired,
    Closed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub submitted: u64,
    pub refused: u64,
    pub completed: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub expired: u64,
    pub closed: u64,
    pub waiting: usize,
    pub waiting_cost: usize,
    pub running: usize,
    pub waiting_for_room: usize,
}

/// The reference.
pub struct Reference {
    pub settings: Settings,
    pub now: Duration,
    pub line: Vec<Standing>,
    /// How many have stood in it.
    pub stood: u64,
    /// In order of acceptance.
    pub waiting: Vec<Known>,
    pub running: Option<Vec<Known>>,
    pub dropped: HashSet<u64>,
    pub ceilings: HashMap<u64, usize>,
    pub ends: BTreeMap<u64, End>,
    pub counters: Counters,
    pub batches: Vec<Vec<u64>>,
    /// Nobody goes in any more.
    pub closed: bool,
}

impl Reference {
    pub fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            now: Duration::ZERO,
            line: Vec::new(),
            stood: 0,
            waiting: Vec::new(),
            running: None,
            dropped: HashSet::new(),
            ceilings: HashMap::new(),
            ends: BTreeMap::new(),
            counters: Counters::default(),
            batches: Vec::new(),
            closed: false,
        }
    }

    fn ageing(&self) -> Option<u32> {
        self.settings.ageing_ms.map(|ms| ms as u32)
    }

    fn room_for(&self, requests: usize, cost: usize) -> bool {
        let held: usize = self.waiting.iter().map(|known| known.cost).sum();
        self.waiting.len() + requests <= self.settings.capacity
            && held.saturating_add(cost) <= self.settings.capacity_cost
    }

    /// The turn of who comes now.
    pub fn turn(&self, class: usize) -> Turn {
        match self.ageing() {
            Some(ageing) => (0, self.now + MS * ageing * class as u32, self.stood),
            None => (class, self.now, self.stood),
        }
    }

    /// Whether who comes now need not stand in line.
    pub fn may_pass(&self, class: usize, requests: usize, cost: usize) -> bool {
        let turn = self.turn(class);
        self.line.iter().all(|other| turn < other.turn) && self.room_for(requests, cost)
    }

    /// Those who stand in line go in, as long as there is room for the first.
    fn serve_line(&mut self) {
        while !self.closed
            && let Some(first) = (0..self.line.len()).min_by_key(|&at| self.line[at].turn)
            && self.room_for(1, self.line[first].known.cost)
        {
            let Standing { known, .. } = self.line.remove(first);
            self.take_in([known]);
        }
    }

    fn take_in(&mut self, known: impl IntoIterator<Item = Known>) {
        let before = self.waiting.len();
        self.waiting.extend(known);
        self.counters.submitted += (self.waiting.len() - before) as u64;
    }

    pub fn accept(&mut self, known: impl IntoIterator<Item = Known>) {
        self.take_in(known);
        self.expire();
        if self.running.is_none() {
            self.dispatch();
        }
    }

    /// A task asks.
    pub fn infer(&mut self, known: Known) {
        if self.may_pass(known.class, 1, known.cost) {
            return self.accept([known]);
        }
        let turn = self.turn(known.class);
        self.stood += 1;
        self.line.push(Standing { known, turn });
        self.expire();
    }

    pub fn advance(&mut self, by: Duration) {
        self.now += by;
        self.expire();
    }

    /// What has expired goes, from the line too, and is told.
    fn expire(&mut self) {
        let now = self.now;
        let is_late = |known: &Known| known.deadline.is_some_and(|at| at <= now);
        let (late, line): (Vec<_>, Vec<_>) =
            self.line.drain(..).partition(|standing| is_late(&standing.known));
        self.line = line;
        self.counters.submitted += late.len() as u64;
        let (gone, waiting): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(is_late);
        self.waiting = waiting;
        for known in late.into_iter().map(|standing| standing.known).chain(gone) {
            self.counters.expired += 1;
            self.ends.insert(known.value, End::Expired);
        }
        self.serve_line();
    }

    /// The worker is free: what it does next.
    fn dispatch(&mut self) {
        let now = self.now;
        let class = |known: &Known| {
            let lifts = match self.ageing() {
                Some(ageing) => (now - known.arrival).as_millis() as u32 / ageing,
                None => 0,
            };
            (known.class as u32).saturating_sub(lifts)
        };
        // The best class, then the oldest, then the first accepted.
        let best = (0..self.waiting.len())
            .min_by_key(|&at| (class(&self.waiting[at]), self.waiting[at].arrival, at));
        let Some(best) = best else { return };
        let head = self.waiting.remove(best);
        let limit = self.ceilings.get(&head.key).map_or(self.settings.max_batch_size, |&ceiling| {
            ceiling.min(self.settings.max_batch_size)
        });
        let mut mates: Vec<Known> =
            self.waiting.iter().filter(|known| known.key == head.key).cloned().collect();
        mates.sort_by_key(|known| known.class);
        let mut cost = head.cost;
        let mut batch = vec![head];
        for mate in mates {
            if batch.len() == limit || cost + mate.cost > self.settings.max_batch_cost {
                break;
            }
            cost += mate.cost;
            self.waiting.retain(|known| known.value != mate.value);
            batch.push(mate);
        }
        self.batches.push(batch.iter().map(|known| known.value).collect());
        self.running = Some(batch);
        self.serve_line();
    }

    /// The running batch ends, and the worker goes on.
    pub fn end_batch(&mut self) {
        let Some(batch) = self.running.take() else { return };
        let mut parts = Vec::from_iter(std::iter::once(0..batch.len()));
        while let Some(part) = parts.pop() {
            let items = &batch[part.clone()];
            let alone = items.len() == 1;
            if alone && batch.len() > 1 && self.dropped.contains(&items[0].value) {
                self.counters.failed += 1;
                continue;
            }
            let has = |kind| items.iter().any(|known| nature(known.value) == kind);
            let too_many = items.len() > fits(items[0].key);
            if too_many {
                let half = items.len() / 2;
                let ceiling = self.ceilings.entry(items[0].key).or_insert(half);
                *ceiling = half.min(*ceiling);
            }
            if !(too_many || has(Nature::Bomb) || has(Nature::Poison)) {
                self.counters.completed += items.len() as u64;
                for known in items {
                    self.ends.insert(known.value, End::Response);
                }
            } else if alone {
                self.counters.failed += 1;
                let bomb = nature(items[0].value) == Nature::Bomb;
                let end = if bomb { End::Panicked } else { End::Engine };
                self.ends.insert(items[0].value, end);
            } else {
                let middle = part.start + part.len() / 2;
                parts.push(middle..part.end);
                parts.push(part.start..middle);
            }
        }
        self.dispatch();
    }

    pub fn cancel(&mut self, value: u64) {
        if let Some(at) = self.line.iter().position(|standing| standing.known.value == value) {
            self.line.remove(at);
            return self.serve_line();
        }
        let before = self.waiting.len();
        self.waiting.retain(|known| known.value != value);
        if self.waiting.len() < before {
            self.counters.cancelled += 1;
        }
        self.dropped.insert(value);
        self.serve_line();
    }

    pub fn counters(&self) -> Counters {
        Counters {
            waiting: self.waiting.len(),
            waiting_cost: self.waiting.iter().map(|known| known.cost).sum(),
            running: self.running.as_ref().map_or(0, Vec::len),
            waiting_for_room: self.line.len(),
            ..self.counters
        }
    }
}
