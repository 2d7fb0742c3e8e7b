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
//!
//! Invariants: a listed waiter is woken by the turnstile, or has left by itself; as long as somebody
//! is listed, somebody is awake, and wakes the next when it goes in; what a wake-up has counted is
//! counted back by [`Turn`], however the wait ends.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::delivery;

/// It waits.
const WAITING: u8 = 0;
/// Its answer is there, and it is in the turnstile's list.
const LISTED: u8 = 1;
/// The turnstile has woken it, and counts it as awake.
const WOKEN: u8 = 2;
/// It waits no more: a wake-up that comes now is late.
const GONE: u8 = 3;

/// A thread that waits for one response. Made anew for each: an entry in a list that is left behind
/// must not be taken for the thread's next wait, maybe at another turnstile.
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
        // On a worker that hands a batch over it goes through the turnstile.
        if delivery::is_expected() {
            DELIVERED.with_borrow_mut(|delivered| delivered.push(self));
        } else {
            self.thread.unpark();
        }
    }
}

thread_local! {
    /// Who was woken while a batch was handed over.
    static DELIVERED: RefCell<Vec<Arc<Waiter>>> = const { RefCell::new(Vec::new()) };
}

/// Threads that the handing over of a batch has woken, for [`GilTurnstile::open`].
pub(crate) fn take_delivered() -> Vec<Arc<Waiter>> {
    DELIVERED.take()
}

/// How long one who has gone in is waited for to leave again. With its next request it takes about
/// ten microseconds.
const SPIN: Duration = Duration::from_micros(50);

/// The callers of one queue on their way back.
pub(crate) struct GilTurnstile {
    /// How many may be awake and not yet in.
    awake_at_most: usize,
    /// How long to spin for the door; zero on a machine with few cores.
    spin: Duration,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    listed: VecDeque<Arc<Waiter>>,
    awake: usize,
}

impl GilTurnstile {
    pub(crate) fn new() -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // Measured on 2 and on 16 cores. With few, who spins keeps the one it waits for from running.
        let (awake_at_most, spin) = if cores < 8 { (1, Duration::ZERO) } else { (3, SPIN) };
        Arc::new(Self { awake_at_most, spin, inside: Mutex::default() })
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

    /// One who was awake has gone in. If nobody else is awake, wakes the next.
    fn went_in(&self) {
        let mut inside = self.lock();
        inside.awake -= 1;
        let next = if inside.awake == 0 { inside.take_next() } else { None };
        drop(inside);
        if let Some(next) = next {
            next.thread.unpark();
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

/// A waiter's way through the turnstile; dropped when it is in the interpreter again.
pub(crate) struct Turn<'a> {
    turnstile: &'a GilTurnstile,
    waiter: Arc<Waiter>,
}

impl<'a> Turn<'a> {
    pub(crate) fn new(turnstile: &'a GilTurnstile) -> Self {
        let thread = std::thread::current();
        Self { turnstile, waiter: Arc::new(Waiter { thread, state: AtomicU8::new(WAITING) }) }
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
        let turnstile = self.turnstile;
        if turnstile.spin.is_zero() || self.waiter.state.load(Ordering::SeqCst) != WOKEN {
            return;
        }
        turnstile.wake_more();
        let me = thread_number();
        let mut before = DOOR.load(Ordering::Relaxed);
        let mut since = Instant::now();
        loop {
            let now = DOOR.load(Ordering::Relaxed);
            // Who stays in for long is not waited for.
            if now == 0 || (now == before && since.elapsed() > turnstile.spin) {
                if DOOR.compare_exchange(now, me, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    WENT_THROUGH.set(true);
                    return;
                }
            } else if now != before {
                before = now;
                since = Instant::now();
                turnstile.wake_more();
            }
            std::hint::spin_loop();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.waiter.state.swap(GONE, Ordering::SeqCst) == WOKEN {
            self.turnstile.went_in();
        }
    }
}
