//! The clients: threads that block and tasks that do not.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures_lite::future::poll_once;
use onelane::{InferError, Priority, Request, RequestError, ResponseHandle, Shutdown};
use onelane_bench::generator::{Crew, runtime};
use tokio::runtime::Runtime;
use tokio::task::yield_now;

use super::args::Args;
use super::tally::Tally;
use super::watchdog::{DONE, Watchdog};
use super::world::{Item, Nature, UNPOISONED, World, answer};

type Current = Arc<RwLock<Arc<World>>>;

/// Threads that the tasks share.
const TASK_THREADS: usize = 2;

/// All clients.
pub(super) struct Cast {
    over: Arc<AtomicBool>,
    crew: Crew<()>,
    _runtime: Runtime,
}

impl Cast {
    pub(super) fn start(
        args: &Args,
        current: &Current,
        tally: &Arc<Tally>,
        watchdog: &Watchdog,
    ) -> anyhow::Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let client = |number: usize, kind: &str| Client {
            dice: fastrand::Rng::with_seed(args.seed ^ (number as u64) << 32),
            current: Arc::clone(current),
            tally: Arc::clone(tally),
            over: Arc::clone(&over),
            steps: watchdog.watch(format!("{kind} {number}")),
        };
        let (mut crew, runtime) = (Crew::default(), runtime(TASK_THREADS)?);
        for number in 0..args.threads {
            let mut client = client(number, "thread");
            crew.thread(move || client.run_blocking())?;
        }
        for number in 0..args.tasks {
            let mut client = client(args.threads + number, "task");
            crew.task(&runtime, async move { client.run_async().await });
        }
        Ok(Self { over, crew, _runtime: runtime })
    }

    /// Lets everybody finish what they are at.
    ///
    /// # Errors
    /// When a client panicked, which is a mistake in this file.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        self.over.store(true, Ordering::SeqCst);
        self.crew.join()?;
        Ok(())
    }
}

/// What a client remembers of a request that was accepted.
#[derive(Clone, Copy)]
struct Asked {
    id: u64,
    nature: Nature,
    deadline: bool,
    queue: usize,
}

struct Client {
    dice: fastrand::Rng,
    current: Current,
    tally: Arc<Tally>,
    over: Arc<AtomicBool>,
    steps: Arc<AtomicU64>,
}

/// Counts a client in and, when dropped, out.
struct Visit(Arc<World>);

impl Visit {
    fn new(current: &Current) -> Self {
        // Counted under the lock under which worlds change: whoever changes them finds it counted.
        let world = current.read().expect(UNPOISONED);
        world.inside.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(&world))
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Client {
    fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    fn request(&mut self, world: &World, queue: usize) -> Option<(Request<Item>, Asked)> {
        let nature = match self.dice.u32(0..1000) {
            0..3 => Nature::Poison,
            3 => Nature::Bomb,
            _ => Nature::Good,
        };
        let id = world.next_id()?;
        // One in a thousand is more than any queue takes.
        let cost = if self.dice.u32(0..1000) == 0 { 1000 } else { self.dice.usize(1..4) };
        let item = Item { id, key: self.dice.u64(0..3), cost, nature };
        let mut request = Request::new(item);
        request = request.priority(Priority::ALL[self.dice.usize(0..3)]);
        let deadline = self.dice.u8(0..20) == 0;
        if deadline {
            request = request.deadline_after(Duration::from_micros(self.dice.u64(0..3000)));
        }
        self.tally.add(|t| &t.offered, 1);
        Some((request, Asked { id, nature, deadline, queue }))
    }

    fn accepted(&self, world: &World, queue: usize, count: usize) {
        world.accepted[queue].fetch_add(count as u64, Ordering::SeqCst);
        self.tally.add(|t| &t.accepted, count);
    }

    /// Whether that is an answer that this request may have.
    fn judge(&self, world: &World, asked: Asked, given: &Result<u64, RequestError>) {
        match given {
            Ok(value) if *value == answer(asked.id) && asked.nature == Nature::Good => {
                self.tally.add(|t| &t.completed, 1);
            }
            Ok(value) => {
                self.tally.fault(
                    |t| &t.misrouted,
                    || format!("request {} ({:?}) was given {value}", asked.id, asked.nature),
                );
            }
            Err(error) => {
                self.tally.failed(error);
                let fits = match error {
                    RequestError::Engine(_) => asked.nature == Nature::Poison || asked.queue == 3,
                    RequestError::Panicked(_) => asked.nature == Nature::Bomb,
                    RequestError::DeadlineExceeded => asked.deadline,
                    RequestError::Closed => !world.quiet,
                    // Two of the queues give up on an engine that panics nine times in a row.
                    RequestError::QueueFailed(why) => why.contains("times in a row"),
                    RequestError::Rebuild(_) => true,
                    _ => false,
                };
                if !fits {
                    self.tally.fault(
                        |t| &t.wrong_errors,
                        || format!("request {} ({:?}): {error}", asked.id, asked.nature),
                    );
                }
            }
        }
    }

    fn run_blocking(&mut self) {
        while !self.over.load(Ordering::SeqCst) {
            let visit = Visit::new(&self.current);
            let world = &visit.0;
            let mut open: Vec<(ResponseHandle<u64>, Asked)> = Vec::new();
            while !world.ended.load(Ordering::SeqCst) && !self.over.load(Ordering::SeqCst) {
                self.step();
                for _ in 0..self.dice.usize(1..64) {
                    self.submit(world, &mut open);
                }
                while open.len() > self.dice.usize(0..96) {
                    self.collect(world, &mut open);
                }
            }
            while !open.is_empty() {
                self.collect(world, &mut open);
                self.step();
            }
            if self.dice.u8(0..8) == 0 && world.ended.load(Ordering::SeqCst) {
                // One more from a client that has not heard yet.
                self.submit(world, &mut open);
                while !open.is_empty() {
                    self.collect(world, &mut open);
                }
            }
        }
        self.steps.store(DONE, Ordering::SeqCst);
    }

    fn submit(&mut self, world: &World, open: &mut Vec<(ResponseHandle<u64>, Asked)>) {
        let number = self.dice.usize(0..world.queues.len());
        let queue = &world.queues[number];
        if self.dice.u32(0..200) == 0 {
            return self.closure(world);
        }
        if self.dice.u32(0..16) == 0 {
            let group = (0..self.dice.usize(0..12)).map_while(|_| self.request(world, number));
            let (requests, asked): (Vec<_>, Vec<_>) = group.collect::<Vec<_>>().into_iter().unzip();
            let count = requests.len();
            let submitted = if self.dice.bool() {
                queue.submit_group(requests)
            } else {
                queue.try_submit_group(requests)
            };
            match submitted {
                Ok(handles) => {
                    self.accepted(world, number, count);
                    open.extend(handles.into_iter().zip(asked));
                }
                Err(refused) => {
                    self.tally.refused(refused.reason(), count);
                    let back: Vec<u64> =
                        refused.into_refused().into_iter().map(|r| r.into_input().id).collect();
                    if !back.iter().eq(asked.iter().map(|asked| &asked.id)) {
                        self.tally.fault(|t| &t.misrouted, || "a group came back changed".into());
                    }
                }
            }
            return;
        }
        let Some((request, asked)) = self.request(world, number) else { return };
        let submitted = match self.dice.u8(0..8) {
            0 => queue.try_submit(request),
            1 => queue.submit_timeout(request, Duration::from_micros(self.dice.u64(0..1000))),
            _ => queue.submit(request),
        };
        match submitted {
            Ok(handle) => {
                self.accepted(world, number, 1);
                open.push((handle, asked));
            }
            Err(refused) => {
                self.tally.refused(refused.reason(), 1);
                if refused.into_refused().into_input().id != asked.id {
                    self.tally.fault(|t| &t.misrouted, || "another request came back".into());
                }
            }
        }
    }

    /// A closure on the worker, which may shut the executor down under everybody's feet.
    fn closure(&mut self, world: &World) {
        let number = self.dice.u64(..);
        let deadly = !world.quiet && world.ended.load(Ordering::SeqCst) && self.dice.bool();
        let device = world.device.clone();
        let closure = move || {
            if deadly {
                // On the worker this cannot wait; it goes on by itself.
                let _ = device.shutdown(Shutdown::Drain, Duration::ZERO);
            }
            answer(number)
        };
        match world.device.call(closure) {
            Ok(value) if value == answer(number) => {}
            Err(RequestError::Closed) if !world.quiet => {}
            other => {
                self.tally.fault(|t| &t.wrong_errors, || format!("a closure was given {other:?}"))
            }
        }
    }

    fn collect(&mut self, world: &World, open: &mut Vec<(ResponseHandle<u64>, Asked)>) {
        if open.is_empty() {
            return;
        }
        // Mostly the oldest; sometimes any.
        let place = if self.dice.u8(0..8) == 0 { self.dice.usize(0..open.len()) } else { 0 };
        let (handle, asked) = open.swap_remove(place);
        match self.dice.u32(0..100) {
            0..3 => {
                drop(handle);
                self.tally.add(|t| &t.cancelled, 1);
            }
            3..6 => match handle.wait_timeout(Duration::from_micros(self.dice.u64(0..500))) {
                Ok(given) => self.judge(world, asked, &given),
                Err(handle) => open.push((handle, asked)),
            },
            _ => {
                let given = handle.wait();
                self.judge(world, asked, &given);
            }
        }
    }

    async fn run_async(&mut self) {
        while !self.over.load(Ordering::SeqCst) {
            let visit = Visit::new(&self.current);
            let world = &visit.0;
            while !world.ended.load(Ordering::SeqCst) && !self.over.load(Ordering::SeqCst) {
                self.step();
                self.infer(world).await;
            }
            drop(visit);
            yield_now().await;
        }
        self.steps.store(DONE, Ordering::SeqCst);
    }

    async fn infer(&mut self, world: &World) {
        let number = self.dice.usize(0..world.queues.len());
        let queue = &world.queues[number];
        let Some((request, asked)) = self.request(world, number) else {
            return yield_now().await;
        };
        if self.dice.u32(0..50) == 0 {
            // Handed over, polled a few times, and given up, whether it waits or stands in line.
            match queue.try_submit(request) {
                Ok(mut handle) => {
                    self.accepted(world, number, 1);
                    for _ in 0..self.dice.u8(0..3) {
                        if let Some(given) = poll_once(&mut handle).await {
                            return self.judge(world, asked, &given);
                        }
                        yield_now().await;
                    }
                    drop(handle);
                    self.tally.add(|t| &t.cancelled, 1);
                }
                Err(refused) => self.tally.refused(refused.reason(), 1),
            }
            return;
        }
        match queue.infer(request).await {
            Ok(value) => {
                self.accepted(world, number, 1);
                self.judge(world, asked, &Ok(value));
            }
            Err(InferError::Failed(error)) => {
                self.accepted(world, number, 1);
                self.judge(world, asked, &Err(error));
            }
            Err(InferError::Refused(refused)) => self.tally.refused(refused.reason(), 1),
            Err(other) => self.tally.fault(|t| &t.wrong_errors, || other.to_string()),
        }
    }
}
