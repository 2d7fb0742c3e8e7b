//! The real executor, driven step by step beside the reference.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use onelane::testing::{FakeEngine, FakeItem, Gate, VirtualClock};
use onelane::{
    BatchConfig, BatchQueue, Delivery, DeviceExecutor, EngineError, ExecutorConfig, InferError,
    Priority, QueueStats, Refusal, Request, RequestError, Shutdown,
};

use super::reference::{Counters, End, Known, Reference, Standing};
use super::task::{Open, Task};
use super::workload::{Nature, New, Settings, Step, answer, fits, nature};
use super::{MS, soon};

type Batches = Arc<Mutex<Vec<Vec<u64>>>>;

/// The real thing, driven step by step.
pub struct Simulation {
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
    pub fn new(settings: &Settings) -> Self {
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
            .max_rebuilds(u32::MAX)
            .ceiling_retry(Duration::MAX);
        let queue = {
            let (gate, seen) = (gate.clone(), seen.clone());
            let factory = move || Ok(engine(gate.clone(), Arc::clone(&seen), Arc::clone(&known)));
            BatchQueue::new(&device, config, factory).unwrap()
        };
        let reference = Reference::new(settings);
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
        let class = news.iter().map(|new| new.class).max().unwrap_or_default();
        // Who asks for nothing need not wait for it.
        let room = count == 0 || self.reference.may_pass(class, count, total);
        let submitted = if group {
            self.queue.try_submit_group(requests).map_err(|refused| {
                let reason = refused.reason().clone();
                (reason, refused.into_refused())
            })
        } else {
            let one = requests.into_iter().next().unwrap();
            let submitted = self.queue.try_submit(one).map(|handle| vec![handle]);
            submitted.map_err(|refused| {
                let reason = refused.reason().clone();
                (reason, vec![refused.into_refused()])
            })
        };
        match submitted {
            Ok(handles) => {
                assert!(room && !too_heavy, "{count} of cost {total} were accepted");
                assert_eq!(handles.len(), count);
                let values = known.iter().map(|known| known.value);
                self.handles.extend(values.zip(handles.into_iter().map(Open::Handle)));
                self.reference.accept(known);
            }
            Err((reason, back)) => {
                assert!(!room || too_heavy, "{reason}");
                let heavy = matches!(reason, Refusal::RequestTooLarge { .. });
                assert_eq!(heavy, too_heavy, "{reason}");
                let back = back.into_iter().map(|request| request.into_input().value);
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
        let mut task = Task { future: self.queue.infer(request), woken: Arc::default() };
        let polled = task.poll();
        if too_heavy {
            let refused = matches!(polled, Poll::Ready(Err(InferError::Refused(_))));
            assert!(refused, "too heavy, and not refused");
            self.reference.counters.refused += 1;
            return;
        }
        match polled {
            Poll::Pending => drop(self.handles.insert(known.value, Open::Task(task))),
            // Too late already, and there was no room.
            Poll::Ready(answer) => {
                let expired = InferError::<FakeItem>::Failed(RequestError::DeadlineExceeded);
                assert_eq!(answer.map_err(|e| e.to_string()), Err(expired.to_string()));
                assert!(known.deadline.is_some_and(|at| at <= self.reference.now));
            }
        }
        self.reference.infer(known);
    }

    /// Tasks that wait for room are left alone; whoever is polled for nothing changes nothing.
    fn poll_those_in_line(&mut self) {
        for standing in &self.reference.line {
            let Some(Open::Task(task)) = self.handles.get_mut(&standing.known.value) else {
                panic!("only tasks wait for room");
            };
            assert!(!task.is_woken(), "{} was woken for nothing", standing.known.value);
            assert!(task.poll().is_pending());
        }
    }

    pub fn step(&mut self, step: &Step) {
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
        self.poll_those_in_line();
        self.check();
    }

    fn advance(&mut self, ms: u64) {
        self.clock.advance(MS * ms as u32);
        self.reference.advance(MS * ms as u32);
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
            waiting_for_room: stats.waiting_for_room,
        };
        assert_eq!(counters, self.reference.counters());
        assert_eq!(*self.seen.lock().unwrap(), self.reference.batches);
    }

    /// Shuts down and looks at every answer.
    pub fn end(mut self) {
        // Nobody who waits for room goes in any more.
        self.reference.closed = true;
        self.queue.close();
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
                    Poll::Ready(Err(InferError::Refused(refused))) => {
                        assert_eq!(*refused.reason(), Refusal::Closed);
                        let in_line = |other: &Standing| other.known.value == value;
                        assert!(self.reference.line.iter().any(in_line), "{value} was refused");
                        assert_eq!(refused.into_refused().into_input().value, value);
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
