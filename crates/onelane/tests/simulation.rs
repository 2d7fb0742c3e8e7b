//! Deterministic simulation: the real executor on a virtual clock against a reference that says, for
//! every step of a random workload, what must be so after it.
//!
//! The engine stands at a gate in each batch, so that a test decides when a batch ends; nothing
//! depends on the speed of the machine. The reference is written for clarity, with lists and sorts.
//! A failing workload is shrunk, printed, and kept in `simulation.proptest-regressions`, from where
//! `cargo test -p onelane --test simulation` runs it first; `PROPTEST_CASES` sets how many there are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use onelane::testing::{FakeEngine, FakeItem, Gate, VirtualClock, within_a_minute};
use onelane::{
    BatchConfig, BatchQueue, Delivery, DeviceExecutor, EngineError, ExecutorConfig, Infer,
    InferError, Priority, QueueStats, Request, RequestError, ResponseHandle, Shutdown, SubmitError,
};
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

/// Waits for what must come soon; a failure that is seen early can be shrunk.
fn soon(what: &str, has_come: impl Fn() -> bool) {
    let limit = Duration::from_secs(if cfg!(miri) { 600 } else { 10 });
    let begun = Instant::now();
    while !has_come() {
        assert!(begun.elapsed() < limit, "{what}: not in {limit:?}");
        std::thread::yield_now();
    }
}

/// What the engine makes of a request; part of its value, so that the engine can see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nature {
    Good,
    Poison,
    Bomb,
}

fn nature(value: u64) -> Nature {
    match value % 16 {
        14 => Nature::Poison,
        15 => Nature::Bomb,
        _ => Nature::Good,
    }
}

/// The answer that belongs to a request.
fn answer(value: u64) -> u64 {
    value.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17)
}

/// More requests of this key than this do not fit in the device's memory.
fn fits(key: u64) -> usize {
    if key == 2 { 2 } else { usize::MAX }
}

#[derive(Clone, Debug)]
struct New {
    key: u64,
    class: usize,
    cost: usize,
    nature: u64,
    deadline_ms: Option<u64>,
}

#[derive(Clone, Debug)]
enum Step {
    Submit(New),
    Group(Vec<New>),
    /// Submits for a task, which stands in line if there is no room.
    Infer(New),
    /// Submits requests one by one, advances, and lets the running batch end: the first who looks into
    /// the inbox is the worker.
    Burst(Vec<New>, u64),
    /// Drops the handle of one of those that are open.
    Cancel(prop::sample::Index),
    Advance(u64),
    /// Lets the running batch end.
    Run,
}

#[derive(Clone, Debug)]
struct Settings {
    max_batch_size: usize,
    max_batch_cost: usize,
    capacity: usize,
    capacity_cost: usize,
    ageing_ms: Option<u64>,
    abort: bool,
    /// A thread beside the worker hands answers over.
    beside: bool,
}

fn news() -> impl Strategy<Value = New> {
    let nature = prop_oneof![8 => 0..14_u64, 1 => Just(14), 1 => Just(15)];
    (0..3_u64, 0..3_usize, 1..4_usize, nature, prop::option::weighted(0.3, 0..40_u64)).prop_map(
        |(key, class, cost, nature, deadline_ms)| New { key, class, cost, nature, deadline_ms },
    )
}

/// What sets one of many requests that are alike apart.
#[derive(Clone, Debug)]
enum Odd {
    Nothing,
    Key(u64),
    Class(usize),
    Deadline(u64),
}

/// Requests of which most differ in their cost only. None expires before the clock is moved.
fn alike() -> impl Strategy<Value = Vec<New>> {
    let odd = prop_oneof![
        20 => Just(Odd::Nothing),
        1 => (0..3_u64).prop_map(Odd::Key),
        1 => (0..3_usize).prop_map(Odd::Class),
        1 => (1..40_u64).prop_map(Odd::Deadline),
    ];
    let many = prop::collection::vec((1..4_usize, odd), 2..8);
    (0..3_u64, 0..3_usize, many).prop_map(|(key, class, many)| {
        let new = |(cost, odd)| {
            let new = New { key, class, cost, nature: 0, deadline_ms: None };
            match odd {
                Odd::Nothing => new,
                Odd::Key(key) => New { key, ..new },
                Odd::Class(class) => New { class, ..new },
                Odd::Deadline(ms) => New { deadline_ms: Some(ms), ..new },
            }
        };
        many.into_iter().map(new).collect()
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => news().prop_map(Step::Submit),
        2 => prop::collection::vec(news(), 0..6).prop_map(Step::Group),
        4 => news().prop_map(Step::Infer),
        2 => (alike(), 0..30_u64).prop_map(|(news, ms)| Step::Burst(news, ms)),
        2 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        2 => (1..30_u64).prop_map(Step::Advance),
        4 => Just(Step::Run),
    ];
    prop::collection::vec(step, 1..60)
}

fn any_cost() -> impl Strategy<Value = usize> {
    prop_oneof![Just(usize::MAX), 3..9_usize]
}

prop_compose! {
    fn settings()(
        max_batch_size in 1..6_usize,
        max_batch_cost in any_cost(),
        capacity in 1..10_usize,
        capacity_cost in any_cost(),
        ageing_ms in prop::option::of(1..20_u64),
        abort in any::<bool>(),
        beside in any::<bool>(),
    ) -> Settings {
        Settings { max_batch_size, max_batch_cost, capacity, capacity_cost, ageing_ms, abort, beside }
    }
}

/// A request that the reference knows of.
#[derive(Clone, Debug)]
struct Known {
    value: u64,
    key: u64,
    class: usize,
    cost: usize,
    arrival: Duration,
    deadline: Option<Duration>,
}

/// A request that stands in line for room.
#[derive(Clone, Debug)]
struct Standing {
    known: Known,
    /// The least goes first.
    turn: Turn,
}

/// A class that is never lifted, the instant that counts, the order of coming.
type Turn = (usize, Duration, u64);

/// What the reference expects a request to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Response,
    Engine,
    Panicked,
    Expired,
    Closed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    submitted: u64,
    refused: u64,
    completed: u64,
    failed: u64,
    cancelled: u64,
    expired: u64,
    closed: u64,
    waiting: usize,
    waiting_cost: usize,
    running: usize,
}

/// The reference.
struct Reference {
    settings: Settings,
    now: Duration,
    line: Vec<Standing>,
    /// How many have stood in it.
    stood: u64,
    /// In order of acceptance.
    waiting: Vec<Known>,
    running: Option<Vec<Known>>,
    dropped: HashSet<u64>,
    ceilings: HashMap<u64, usize>,
    ends: BTreeMap<u64, End>,
    counters: Counters,
    batches: Vec<Vec<u64>>,
}

impl Reference {
    fn ageing(&self) -> Option<u32> {
        self.settings.ageing_ms.map(|ms| ms as u32)
    }

    fn room_for(&self, requests: usize, cost: usize) -> bool {
        let held: usize = self.waiting.iter().map(|known| known.cost).sum();
        self.waiting.len() + requests <= self.settings.capacity
            && held.saturating_add(cost) <= self.settings.capacity_cost
    }

    /// The turn of who comes now.
    fn turn(&self, class: usize) -> Turn {
        match self.ageing() {
            Some(ageing) => (0, self.now + MS * ageing * class as u32, self.stood),
            None => (class, self.now, self.stood),
        }
    }

    /// Whether who comes now need not stand in line.
    fn may_pass(&self, class: usize, requests: usize, cost: usize) -> bool {
        let turn = self.turn(class);
        self.line.iter().all(|other| turn < other.turn) && self.room_for(requests, cost)
    }

    /// Who stands in line and may go in.
    fn next_in_line(&self) -> Option<u64> {
        let first = self.line.iter().min_by_key(|standing| standing.turn)?;
        self.room_for(1, first.known.cost).then_some(first.known.value)
    }

    fn accept(&mut self, known: impl IntoIterator<Item = Known>) {
        let before = self.waiting.len();
        self.waiting.extend(known);
        self.counters.submitted += (self.waiting.len() - before) as u64;
        if self.running.is_none() {
            self.dispatch();
        }
    }

    /// The worker is free: what it does next.
    fn dispatch(&mut self) {
        let now = self.now;
        let (late, waiting): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).partition(|known| known.deadline.is_some_and(|at| at <= now));
        self.waiting = waiting;
        for known in late {
            self.counters.expired += 1;
            self.ends.insert(known.value, End::Expired);
        }
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
    }

    /// The running batch ends, and the worker goes on.
    fn end_batch(&mut self) {
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

    fn cancel(&mut self, value: u64) {
        if let Some(at) = self.line.iter().position(|standing| standing.known.value == value) {
            self.line.remove(at);
            return;
        }
        let before = self.waiting.len();
        self.waiting.retain(|known| known.value != value);
        if self.waiting.len() < before {
            self.counters.cancelled += 1;
        }
        self.dropped.insert(value);
    }

    fn counters(&self) -> Counters {
        Counters {
            waiting: self.waiting.len(),
            waiting_cost: self.waiting.iter().map(|known| known.cost).sum(),
            running: self.running.as_ref().map_or(0, Vec::len),
            ..self.counters
        }
    }
}

type Batches = Arc<Mutex<Vec<Vec<u64>>>>;

/// A request whose answer is not looked at yet.
enum Open {
    Handle(ResponseHandle<u64>),
    Task(Task),
}

struct Task {
    future: Infer<'static, FakeEngine>,
    woken: Arc<Woken>,
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

impl Task {
    fn poll(&mut self) -> Poll<Result<u64, InferError<FakeItem>>> {
        self.woken.0.store(false, SeqCst);
        let waker = Waker::from(Arc::clone(&self.woken));
        Pin::new(&mut self.future).poll(&mut Context::from_waker(&waker))
    }

    fn wait_until_woken(&self) {
        soon("the first in line is told that there is room", || self.woken.0.load(SeqCst));
    }
}

/// The real thing, driven step by step.
struct Simulation {
    clock: VirtualClock,
    device: DeviceExecutor,
    queue: BatchQueue<FakeEngine>,
    gate: Gate,
    seen: Batches,
    handles: BTreeMap<u64, Open>,
    reference: Reference,
    next: u64,
}

fn engine(gate: Gate, seen: Batches, known: Arc<Mutex<HashSet<u64>>>) -> FakeEngine {
    FakeEngine::new(move |batch| {
        let values: Vec<u64> = batch.iter().map(|item| item.value).collect();
        // A first run stands at the gate; the runs of its parts do not.
        if known.lock().unwrap().insert(values[0]) {
            known.lock().unwrap().extend(&values);
            seen.lock().unwrap().push(values.clone());
            gate.pass();
        }
        if batch.len() > fits(batch[0].key) {
            return Err(EngineError::out_of_memory("too many"));
        }
        let has = |kind| values.iter().any(|&value| nature(value) == kind);
        if has(Nature::Bomb) {
            // Without the panic hook: thousands of these are expected.
            std::panic::resume_unwind(Box::new("a bomb"));
        }
        if has(Nature::Poison) {
            return Err(EngineError::failed("poisoned"));
        }
        Ok(values.iter().map(|&value| answer(value)).collect())
    })
}

impl Simulation {
    fn new(settings: &Settings) -> Self {
        let clock = VirtualClock::new();
        let delivery = if settings.beside { Delivery::Thread } else { Delivery::Worker };
        let config = ExecutorConfig::new("test").clock(clock.clone()).delivery(delivery);
        let device = DeviceExecutor::new(config).unwrap();
        let (gate, seen, known) = (Gate::new(), Batches::default(), Arc::default());
        let ageing = settings.ageing_ms.map_or(Duration::MAX, |ms| MS * ms as u32);
        let config = BatchConfig::default()
            .max_batch_size(settings.max_batch_size)
            .max_batch_cost(settings.max_batch_cost)
            .capacity(settings.capacity)
            .capacity_cost(settings.capacity_cost)
            .ageing(ageing)
            .max_rebuilds(u32::MAX);
        let queue = {
            let (gate, seen) = (gate.clone(), seen.clone());
            let factory = move || Ok(engine(gate.clone(), Arc::clone(&seen), Arc::clone(&known)));
            BatchQueue::new(&device, config, factory).unwrap()
        };
        let reference = Reference {
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
        };
        Self { clock, device, queue, gate, seen, handles: BTreeMap::new(), reference, next: 0 }
    }

    fn make(&mut self, new: &New) -> (Request<FakeItem>, Known) {
        self.next += 1;
        let value = self.next * 16 + new.nature;
        let item = FakeItem::new(value).key(new.key).cost(new.cost);
        let mut request = Request::new(item).priority(Priority::ALL[new.class]);
        if let Some(ms) = new.deadline_ms {
            request = request.deadline_after(MS * ms as u32);
        }
        let now = self.reference.now;
        let deadline = new.deadline_ms.map(|ms| now + MS * ms as u32);
        let New { key, class, cost, .. } = *new;
        (request, Known { value, key, class, cost, arrival: now, deadline })
    }

    /// Submits as one: a single request, or a group.
    fn submit(&mut self, news: &[New], group: bool) {
        let made: Vec<_> = news.iter().map(|new| self.make(new)).collect();
        let (requests, known): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        let count = known.len();
        let total: usize = known.iter().map(|known| known.cost).sum();
        let settings = &self.reference.settings;
        let too_heavy = known.iter().any(|known| known.cost > settings.max_batch_cost)
            || total > settings.capacity_cost
            || count > settings.capacity;
        // A group without requests is of the default class.
        let default = Priority::ALL.iter().position(|&class| class == Priority::default());
        let class = news.iter().map(|new| new.class).max().or(default).unwrap();
        let room = self.reference.may_pass(class, count, total);
        let submitted = if group {
            self.queue.try_submit_group(requests)
        } else {
            let one = requests.into_iter().next().unwrap();
            match self.queue.try_submit(one) {
                Ok(handle) => Ok(vec![handle]),
                Err(SubmitError::Full(one)) => Err(SubmitError::Full(vec![one])),
                Err(SubmitError::TooHeavy { refused, amount, limit, max }) => {
                    Err(SubmitError::TooHeavy { refused: vec![refused], amount, limit, max })
                }
                Err(other) => panic!("{other}"),
            }
        };
        match submitted {
            Ok(handles) => {
                assert!(room && !too_heavy, "{count} of cost {total} were accepted");
                assert_eq!(handles.len(), count);
                let values = known.iter().map(|known| known.value);
                self.handles.extend(values.zip(handles.into_iter().map(Open::Handle)));
                self.reference.accept(known);
            }
            Err(refused) => {
                assert!(!room || too_heavy, "{refused}");
                let heavy = matches!(refused, SubmitError::TooHeavy { .. });
                assert_eq!(heavy, too_heavy, "{refused}");
                let back = refused.into_refused().into_iter().map(|r| r.into_input().value);
                assert!(back.eq(known.iter().map(|known| known.value)), "came back changed");
                self.reference.counters.refused += count as u64;
            }
        }
    }

    /// Submits for a task.
    fn infer(&mut self, new: &New) {
        let (request, known) = self.make(new);
        let settings = &self.reference.settings;
        let too_heavy = known.cost > settings.max_batch_cost || known.cost > settings.capacity_cost;
        let passes = self.reference.may_pass(known.class, 1, known.cost);
        let future = self.queue.infer(request).into_owned();
        let mut task = Task { future, woken: Arc::default() };
        let before = self.queue.stats().submitted;
        let polled = task.poll();
        if too_heavy {
            let refused = matches!(polled, Poll::Ready(Err(InferError::Refused(_))));
            assert!(refused, "too heavy, and not refused");
            self.reference.counters.refused += 1;
            return;
        }
        assert!(polled.is_pending());
        let accepted = self.queue.stats().submitted > before;
        assert_eq!(accepted, passes, "accepted, or not, past {:?}", self.reference.line);
        self.handles.insert(known.value, Open::Task(task));
        if accepted {
            self.reference.accept([known]);
        } else {
            let turn = self.reference.turn(known.class);
            self.reference.stood += 1;
            self.reference.line.push(Standing { known, turn });
        }
    }

    /// Lets those in line look for room, the last first: the first goes in if there is some, for which
    /// it has been woken, and nobody else.
    fn serve_line(&mut self) {
        loop {
            let next = self.reference.next_in_line();
            let submitted = self.queue.stats().submitted;
            for standing in self.reference.line.iter().rev() {
                let value = standing.known.value;
                let Some(Open::Task(task)) = self.handles.get_mut(&value) else {
                    panic!("only tasks stand in line");
                };
                if next == Some(value) {
                    task.wait_until_woken();
                } else {
                    assert!(task.poll().is_pending());
                    assert_eq!(self.queue.stats().submitted, submitted, "{value} went in");
                }
            }
            let Some(value) = next else { return };
            let Some(Open::Task(task)) = self.handles.get_mut(&value) else { unreachable!() };
            assert!(task.poll().is_pending());
            assert_eq!(self.queue.stats().submitted, submitted + 1, "{value} did not go in");
            let at = self.reference.line.iter().position(|other| other.known.value == value);
            let Standing { known, .. } = self.reference.line.remove(at.unwrap());
            self.reference.accept([known]);
            self.settle();
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Infer(new) => self.infer(new),
            Step::Submit(new) => self.submit(std::slice::from_ref(new), false),
            Step::Group(news) => self.submit(news, true),
            Step::Burst(news, ms) => {
                for new in news {
                    self.submit(std::slice::from_ref(new), false);
                    self.gate.wait_for_arrivals(self.reference.batches.len());
                }
                self.advance(*ms);
                self.run();
            }
            Step::Cancel(index) => {
                if !self.handles.is_empty() {
                    let value = *index.get(&self.handles.keys().copied().collect::<Vec<_>>());
                    drop(self.handles.remove(&value));
                    // An answer that has come is only thrown away.
                    if !self.reference.ends.contains_key(&value) {
                        self.reference.cancel(value);
                    }
                }
            }
            Step::Advance(ms) => self.advance(*ms),
            Step::Run => self.run(),
        }
        self.settle();
        self.serve_line();
        self.check();
    }

    fn advance(&mut self, ms: u64) {
        self.clock.advance(MS * ms as u32);
        self.reference.now += MS * ms as u32;
    }

    /// Lets the running batch end.
    fn run(&mut self) {
        if self.reference.running.is_some() {
            self.gate.open(1);
            self.reference.end_batch();
        }
    }

    /// Waits until the worker is where the reference is: at the gate, or idle.
    fn settle(&self) {
        self.gate.wait_for_arrivals(self.reference.batches.len());
        // Nothing tells that a free worker has looked at everything; that nothing waits or runs does.
        let reached = |stats: QueueStats| {
            let expected = self.reference.counters();
            stats.running == expected.running
                && (expected.running > 0 || stats.waiting == expected.waiting)
        };
        soon("the worker is where the reference is", || reached(self.queue.stats()));
    }

    fn check(&self) {
        let stats = self.queue.stats();
        let ends = stats.completed + stats.failed + stats.cancelled + stats.expired + stats.closed;
        assert_eq!(stats.submitted, ends + (stats.waiting + stats.running) as u64);
        assert!(stats.waiting <= self.reference.settings.capacity);
        assert!(stats.waiting_cost <= self.reference.settings.capacity_cost);
        let counters = Counters {
            submitted: stats.submitted,
            refused: stats.refused,
            completed: stats.completed,
            failed: stats.failed,
            cancelled: stats.cancelled,
            expired: stats.expired,
            closed: stats.closed,
            waiting: stats.waiting,
            waiting_cost: stats.waiting_cost,
            running: stats.running,
        };
        assert_eq!(counters, self.reference.counters());
        assert_eq!(*self.seen.lock().unwrap(), self.reference.batches);
    }

    /// Shuts down and looks at every answer.
    fn end(mut self) {
        let mode = if self.reference.settings.abort { Shutdown::Abort } else { Shutdown::Drain };
        if mode == Shutdown::Abort {
            for known in std::mem::take(&mut self.reference.waiting) {
                self.reference.ends.insert(known.value, End::Closed);
            }
            // What waits is answered before this returns; what runs is still at the gate.
            let ended = self.device.shutdown(mode, Duration::ZERO);
            assert!(ended.is_err() || self.reference.running.is_none(), "a batch still runs");
        }
        self.gate.open_for_good();
        while self.reference.running.is_some() {
            self.reference.end_batch();
        }
        self.device.shutdown(mode, Duration::from_secs(50)).unwrap();
        assert_eq!(*self.seen.lock().unwrap(), self.reference.batches);
        for (value, open) in std::mem::take(&mut self.handles) {
            let answer_to_it = match open {
                Open::Handle(handle) => handle.wait(),
                Open::Task(mut task) => match task.poll() {
                    Poll::Ready(Ok(given)) => Ok(given),
                    Poll::Ready(Err(InferError::Failed(error))) => Err(error),
                    Poll::Ready(Err(InferError::Refused(SubmitError::Closed(back)))) => {
                        let in_line = |other: &Standing| other.known.value == value;
                        assert!(self.reference.line.iter().any(in_line), "{value} was refused");
                        assert_eq!(back.into_input().value, value);
                        continue;
                    }
                    other => panic!("{value} is not answered: {other:?}"),
                },
            };
            let end = match answer_to_it {
                Ok(given) => {
                    assert_eq!(given, answer(value), "the answer of another request");
                    End::Response
                }
                Err(RequestError::Engine(_)) => End::Engine,
                Err(RequestError::Panicked(_)) => End::Panicked,
                Err(RequestError::DeadlineExceeded) => End::Expired,
                Err(RequestError::Closed) => End::Closed,
                Err(other) => panic!("{other}"),
            };
            assert_eq!(Some(&end), self.reference.ends.get(&value), "request {value}");
        }
    }
}

/// A failed check must not wait for an engine that stands at the gate.
impl Drop for Simulation {
    fn drop(&mut self) {
        self.gate.open_for_good();
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(
            prop::test_runner::FileFailurePersistence::WithSource("proptest-regressions"),
        )),
        max_shrink_time: 120_000,
        ..ProptestConfig::default()
    })]

    /// Promises 1, 4, 5, 6, 7, 8 and 10 at once, after every step.
    #[test]
    fn the_executor_does_what_the_reference_says(settings in settings(), steps in steps()) {
        within_a_minute(move || {
            let mut simulation = Simulation::new(&settings);
            for step in &steps {
                simulation.step(step);
            }
            simulation.end();
        });
    }
}
