//! The delivery thread: hands the answers of batches over beside a worker, which runs the next one
//! meanwhile.
//!
//! Waking those who wait takes a microsecond each and more, and the device has nothing to do
//! meanwhile. The thread has one batch at a time; while it has one, the worker hands over by itself.
//! So no answers pile up, and nothing lies behind a thread that a user's waker or destructor keeps:
//! what these wait for, the worker runs and hands over.

use std::sync::Arc;
use std::task::Waker;

use crate::Delivery;
use crate::scheduler::shared::ExecutorShared;
use crate::sync::{
    JoinHandle, Mutex, catch_panic, is_processor_spare, park, spawn, spin_until_woken, thread_waker,
};
use crate::worker::batch::Dispatched;
use crate::worker::context::belong_to;
use crate::worker::hooks::Hooks;

/// From how many requests on a batch is worth waking the thread (docs/decisions has the figures).
const LARGE_BATCH: usize = 8;

/// The thread that delivers for one worker.
pub(crate) struct DeliveryThread {
    /// The smallest batch that it takes.
    least: usize,
    handoff: Arc<Mutex<Handoff>>,
    thread: Option<JoinHandle<()>>,
}

/// Where the worker leaves a batch for its delivery thread.
#[derive(Default)]
struct Handoff {
    next: Option<Dispatched>,
    /// The thread has a batch, or is about to take one.
    busy: bool,
    /// Set while the thread sleeps; whoever takes it must wake it.
    asleep: Option<Waker>,
    /// The worker has gone.
    closed: bool,
}

impl DeliveryThread {
    /// A thread for one worker, if `delivery` asks for one and it can be had.
    pub(crate) fn start(
        shared: &Arc<ExecutorShared>,
        delivery: Delivery,
        worker: usize,
        hooks: Hooks,
    ) -> Option<Self> {
        let least = match delivery {
            Delivery::Worker => return None,
            // With several workers one hands over while another computes.
            Delivery::Auto if shared.workers > 1 || !is_processor_spare() => return None,
            Delivery::Auto => LARGE_BATCH,
            // A lone answer never pays for waking a thread.
            Delivery::Thread => 2,
        };
        let handoff = Arc::new(Mutex::new(Handoff::default()));
        let name = format!("onelane {} {worker}d", shared.device);
        let body = {
            let (handoff, shared) = (Arc::clone(&handoff), Arc::clone(shared));
            move || run_delivery(&handoff, &shared, hooks)
        };
        // Without it the worker hands over.
        let thread = spawn(name, None, body).ok()?;
        Some(Self { least, handoff, thread: Some(thread) })
    }

    /// Leaves a batch that has run to the thread, or gives it back.
    pub(crate) fn leave(&self, mut dispatched: Dispatched) -> Result<(), Dispatched> {
        if dispatched.batch.len() < self.least {
            return Err(dispatched);
        }
        dispatched.batch.drop_inputs();
        self.tell(|handoff| {
            if handoff.busy {
                return Err(dispatched);
            }
            handoff.busy = true;
            handoff.next = Some(dispatched);
            Ok(())
        })
    }

    /// Changes what the thread looks at, and wakes it.
    fn tell<R>(&self, change: impl FnOnce(&mut Handoff) -> R) -> R {
        let mut handoff = self.handoff.lock();
        let result = change(&mut handoff);
        let asleep = handoff.asleep.take();
        drop(handoff);
        if let Some(waker) = asleep {
            waker.wake();
        }
        result
    }
}

/// Ends the thread when it has delivered what was left to it.
impl Drop for DeliveryThread {
    fn drop(&mut self) {
        self.tell(|handoff| handoff.closed = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The body of a delivery thread.
fn run_delivery(handoff: &Mutex<Handoff>, shared: &Arc<ExecutorShared>, hooks: Hooks) {
    belong_to(shared);
    let waker = thread_waker();
    let mut ran = false;
    loop {
        let mut locked = handoff.lock();
        if let Some(mut dispatched) = locked.next.take() {
            drop(locked);
            // Wakers are a user's, but each is contained by itself; this is for what we have not
            // thought of.
            let _ = catch_panic(|| hooks.around(|| dispatched.deliver()));
            shared.lock().finish(dispatched);
            handoff.lock().busy = false;
            ran = true;
            continue;
        }
        if locked.closed {
            return;
        }
        // CORRECTNESS: stored under the lock under which nothing was found; what is left here later
        // finds it.
        locked.asleep = Some(waker.clone());
        drop(locked);
        if !(std::mem::take(&mut ran) && spin_until_woken()) {
            park();
        }
    }
}
