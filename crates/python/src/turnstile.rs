//! Letting callers that have their answers back into the interpreter, one by one.
//!
//! A batch answers many threads at once, and each needs the interpreter's lock before it can go on.
//! Woken together they queue at that lock: each sleeps twice more, a switch is forced every few
//! milliseconds, and the worker, which lets go of the lock in every PyTorch operation, has to wait
//! behind all of them each time. So only a few are awake at a time:
//!
//! - The worker wakes the first of a batch. Who is awake and waits for its turn wakes the next, up
//!   to a limit; if nobody is, who goes in does. So waking, which takes long, overlaps.
//! - On a machine with many cores, who is awake spins until the one before has left the interpreter
//!   again with its next request, which mostly takes microseconds, and then finds the lock free. If
//!   the one before stays, it queues at the lock as anybody does.
//! - The worker rests meanwhile: those who come back ask again at once, mostly, and a batch begun
//!   before they have would be a small one and would fight with them for the lock. It rests no
//!   longer than they take, and not at all when others need it.
//!
//! Invariants: a listed waiter is woken by the gate, or has left by itself; as long as somebody is
//! listed, somebody is awake, and wakes the next when it goes in; what a wake-up has counted is
//! counted back by [`Turn`], however the wait ends.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::pending;

/// It waits.
const WAITING: u8 = 0;
/// Its answer is there, and it is in the gate's list.
const LISTED: u8 = 1;
/// The gate has woken it, and counts it as awake.
const WOKEN: u8 = 2;
/// It waits no more: a wake-up that comes now is late.
const GONE: u8 = 3;

/// A thread that waits for one response. Made anew for each: an entry in a gate's list that is left
/// behind must not be taken for the thread's next wait, maybe at another gate.
pub(crate) struct Waiter {
    thread: Thread,
    state: AtomicU8,
}

impl Waiter {
    /// Sleeps until woken, or for so long.
    pub(crate) fn park(patience: Option<Duration>) {
        match patience {
            Some(patience) => std::thread::park_timeout(patience),
            None => std::thread::park(),
        }
    }

    fn step(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

impl Wake for Waiter {
    fn wake(self: Arc<Self>) {
        // On a worker that hands a batch over it goes through the gate.
        if let Some(waiter) = pending::push_waiter(self) {
            waiter.thread.unpark();
        }
    }
}

/// What waits for one executor, and its worker while it rests.
pub(crate) struct Load {
    /// Requests of all queues, and calls, that were accepted and have not started.
    waiting: AtomicUsize,
    /// So many waiting end the worker's rest; [`NO_REST`] when it does not rest.
    enough: AtomicUsize,
    resting: Mutex<Option<Thread>>,
}

const NO_REST: usize = usize::MAX;

impl Load {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            waiting: AtomicUsize::new(0),
            enough: AtomicUsize::new(NO_REST),
            resting: Mutex::new(None),
        })
    }

    /// A call waits; dropped when it starts, or is given up.
    pub(crate) fn call_waits(self: &Arc<Self>) -> CallWaits {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.end_rest();
        CallWaits(Arc::clone(self))
    }

    fn is_resting(&self) -> bool {
        self.enough.load(Ordering::SeqCst) != NO_REST
    }

    fn end_rest(&self) {
        if self.is_resting() && self.enough.swap(NO_REST, Ordering::SeqCst) != NO_REST {
            let worker = self.resting().take();
            if let Some(worker) = worker {
                worker.unpark();
            }
        }
    }

    fn resting(&self) -> MutexGuard<'_, Option<Thread>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that waits for an executor.
pub(crate) struct CallWaits(Arc<Load>);

impl Drop for CallWaits {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A request that waits in a queue; dropped when it starts, or is given up.
pub(crate) struct Waits(Arc<Gate>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
        self.0.load.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How long the worker rests for each caller that is to come back, at most, and for all.
const REST_EACH: Duration = Duration::from_micros(40);
const REST: Duration = Duration::from_millis(5);

/// How long one who has gone in is waited for to leave again. With its next request it takes about
/// ten microseconds.
const SPIN: Duration = Duration::from_micros(50);

/// The callers of one queue on their way back.
pub(crate) struct Gate {
    /// How many may be awake and not yet in.
    awake_at_most: usize,
    /// How long to spin for the door; zero on a machine with few cores.
    spin: Duration,
    inside: Mutex<Inside>,
    /// Futures of event loops that have been resolved, whose tasks have not run yet.
    in_loops: AtomicUsize,
    /// Requests of this queue that were accepted and have not started.
    waiting: AtomicUsize,
    /// Its worker rests for this queue's callers.
    rests_here: AtomicBool,
    load: Arc<Load>,
}

#[derive(Default)]
struct Inside {
    listed: VecDeque<Arc<Waiter>>,
    awake: usize,
}

impl Gate {
    pub(crate) fn new(load: &Arc<Load>) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // Measured on 2 and on 16 cores. With few, who spins keeps the one it waits for from running.
        let (awake_at_most, spin) = if cores < 8 { (1, Duration::ZERO) } else { (3, SPIN) };
        Arc::new(Self {
            awake_at_most,
            spin,
            inside: Mutex::default(),
            in_loops: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            rests_here: AtomicBool::new(false),
            load: Arc::clone(load),
        })
    }

    /// A request waits; an urgent one, one too many, or one of a queue whose callers the worker
    /// does not wait for, ends its rest.
    pub(crate) fn request_waits(self: &Arc<Self>, urgent: bool) -> Waits {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let waiting = self.load.waiting.fetch_add(1, Ordering::SeqCst) + 1;
        let enough = self.load.enough.load(Ordering::SeqCst);
        if enough != NO_REST
            && (waiting >= enough || urgent || !self.rests_here.load(Ordering::SeqCst))
        {
            self.load.end_rest();
        }
        Waits(Arc::clone(self))
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets these back in, in order.
    pub(crate) fn open(&self, waiters: Vec<Arc<Waiter>>) {
        let waiting = waiters.into_iter().filter(|waiter| waiter.step(WAITING, LISTED));
        self.lock().listed.extend(waiting);
        self.wake_more();
    }

    /// Wakes the next in line, as many as may be awake.
    fn wake_more(&self) {
        loop {
            let mut inside = self.lock();
            if inside.awake >= self.awake_at_most {
                return;
            }
            let Some(next) = inside.take_next() else { return };
            drop(inside);
            next.thread.unpark();
        }
    }

    /// Keeps the worker from its next batch until its callers are back.
    pub(crate) fn rest(&self) {
        let load = &self.load;
        let coming = self.coming();
        let here = self.waiting.load(Ordering::SeqCst);
        let is_enough = |enough| {
            let all = load.waiting.load(Ordering::SeqCst);
            all >= enough || all > self.waiting.load(Ordering::SeqCst)
        };
        if coming < 2 || coming <= here || is_enough(NO_REST) {
            return;
        }
        let each = REST_EACH * u32::try_from(coming).unwrap_or(u32::MAX);
        let until = Instant::now() + REST.min(each);
        let enough = coming + here;
        *load.resting() = Some(std::thread::current());
        self.rests_here.store(true, Ordering::SeqCst);
        load.enough.store(enough, Ordering::SeqCst);
        // CORRECTNESS: who changes what is looked at here looks at `enough` afterwards, and this
        // has set `enough` before it looks: one of the two sees the other. A rest has an end anyway.
        while load.is_resting() && !is_enough(enough) && self.coming() > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::park_timeout(left);
        }
        load.enough.store(NO_REST, Ordering::SeqCst);
        self.rests_here.store(false, Ordering::SeqCst);
        load.resting().take();
    }

    /// How many are still to come back, at most.
    fn coming(&self) -> usize {
        self.lock().coming() + self.in_loops.load(Ordering::SeqCst)
    }

    /// So many futures of one event loop are being resolved.
    pub(crate) fn loop_comes(self: &Arc<Self>, futures: usize) -> LoopComes {
        self.in_loops.fetch_add(futures, Ordering::SeqCst);
        LoopComes { gate: Arc::clone(self), futures }
    }

    /// Somebody has come back.
    fn came_back(&self) {
        if self.rests_here.load(Ordering::SeqCst) && self.coming() == 0 {
            self.load.end_rest();
        }
    }

    /// One who was awake has gone in. If nobody else is awake, wakes the next.
    fn went_in(&self) {
        let mut inside = self.lock();
        inside.awake -= 1;
        let next = if inside.awake == 0 { inside.take_next() } else { None };
        drop(inside);
        match next {
            Some(next) => next.thread.unpark(),
            None => self.came_back(),
        }
    }
}

impl Inside {
    fn take_next(&mut self) -> Option<Arc<Waiter>> {
        while let Some(next) = self.listed.pop_front() {
            if next.step(LISTED, WOKEN) {
                self.awake += 1;
                return Some(next);
            }
        }
        None
    }

    fn coming(&self) -> usize {
        self.listed.len() + self.awake
    }
}

/// Futures of an event loop that have been resolved; dropped when their tasks have run.
pub(crate) struct LoopComes {
    gate: Arc<Gate>,
    futures: usize,
}

impl Drop for LoopComes {
    fn drop(&mut self) {
        self.gate.in_loops.fetch_sub(self.futures, Ordering::SeqCst);
        self.gate.came_back();
    }
}

/// Who went in last, by [`thread_number`], and has not been seen to leave; 0: nobody. One for the whole
/// process, as the interpreter's lock is.
static DOOR: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread has gone through the door.
    static WENT_THROUGH: Cell<bool> = const { Cell::new(false) };
}

/// Of the calling thread; not 0, and no other living thread's.
fn thread_number() -> usize {
    WENT_THROUGH.with(|cell| std::ptr::from_ref(cell) as usize)
}

/// A waiter's way through the gate; dropped when it is in the interpreter again.
pub(crate) struct Turn<'a> {
    gate: &'a Gate,
    waiter: Arc<Waiter>,
}

impl<'a> Turn<'a> {
    pub(crate) fn new(gate: &'a Gate) -> Self {
        let thread = std::thread::current();
        Self { gate, waiter: Arc::new(Waiter { thread, state: AtomicU8::new(WAITING) }) }
    }

    pub(crate) fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.waiter))
    }

    /// This thread has left the interpreter: the next may go in.
    pub(crate) fn leave() {
        if WENT_THROUGH.replace(false) {
            let me = thread_number();
            let _ = DOOR.compare_exchange(me, 0, Ordering::Release, Ordering::Relaxed);
        }
    }

    /// The answer is there: waits for the moment to go in.
    pub(crate) fn wait_at_door(&self) {
        let gate = self.gate;
        if gate.spin.is_zero() || self.waiter.state.load(Ordering::SeqCst) != WOKEN {
            return;
        }
        gate.wake_more();
        let me = thread_number();
        let mut before = DOOR.load(Ordering::Relaxed);
        let mut since = Instant::now();
        loop {
            let now = DOOR.load(Ordering::Relaxed);
            // Who stays in for long is not waited for.
            if now == 0 || (now == before && since.elapsed() > gate.spin) {
                if DOOR.compare_exchange(now, me, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    WENT_THROUGH.set(true);
                    return;
                }
            } else if now != before {
                before = now;
                since = Instant::now();
                gate.wake_more();
            }
            std::hint::spin_loop();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.waiter.state.swap(GONE, Ordering::SeqCst) == WOKEN {
            self.gate.went_in();
        }
    }
}
