//! The delivery thread: hands the answers of batches over beside a worker, which runs the next one
//! meanwhile.
//!
//! Waking those who wait takes a microsecond each and more, and the device has nothing to do meanwhile.
//! The thread takes one batch at a time and one more may lie ready for it; if one does, the worker
//! hands over by itself. So a slow delivery holds the worker up as if there were no thread, and no
//! answers pile up.

use std::cell::RefCell;
use std::sync::Arc;
use std::task::Waker;

use crate::batch::Dispatched;
use crate::config::Delivery;
use crate::contain::contain;
use crate::shared::Shared;
use crate::sync::{
    JoinHandle, Mutex, is_processor_spare, is_woken_at_once, park, spawn, thread_local,
    thread_waker,
};

/// From how many requests on a batch is worth waking the thread (docs/performance.md has the figures).
const LARGE_BATCH: usize = 8;

/// The thread that delivers for one worker.
pub(crate) struct DeliveryThread {
    /// The smallest batch that it takes.
    least: usize,
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

/// Where the worker leaves a batch for its delivery thread.
#[derive(Default)]
struct Desk(Mutex<OnDesk>);

#[derive(Default)]
struct OnDesk {
    next: Option<Dispatched>,
    /// Set while the thread sleeps; whoever takes it must wake it.
    asleep: Option<Waker>,
    /// The worker has gone.
    closed: bool,
}

thread_local! {
    /// The executor that the calling thread delivers for.
    #[allow(clippy::missing_const_for_thread_local, reason = "the model checker's macro has no const")]
    static DELIVERS_FOR: RefCell<Option<Arc<Shared>>> = RefCell::new(None);
}

/// Whether the calling thread delivers for a worker of `shared`. That worker waits for it in the end, so
/// it must not wait for the worker's end.
pub(crate) fn delivers_for(shared: &Arc<Shared>) -> bool {
    let delivers = |of: &RefCell<Option<Arc<Shared>>>| {
        of.borrow().as_ref().is_some_and(|executor| Arc::ptr_eq(executor, shared))
    };
    DELIVERS_FOR.try_with(delivers).unwrap_or(false)
}

impl DeliveryThread {
    /// A thread for one worker, if `delivery` asks for one and it can be had.
    pub(crate) fn start(shared: &Arc<Shared>, delivery: Delivery, worker: usize) -> Option<Self> {
        let least = match delivery {
            Delivery::Worker => return None,
            // With several workers one hands over while another computes.
            Delivery::Auto if shared.workers > 1 || !is_processor_spare() => return None,
            Delivery::Auto => LARGE_BATCH,
            // A lone answer never pays for waking a thread.
            Delivery::Thread => 2,
        };
        let desk = Arc::new(Desk::default());
        let name = format!("onelane {} {worker}d", shared.device);
        let body = {
            let (desk, shared) = (Arc::clone(&desk), Arc::clone(shared));
            move || run_delivery(&desk, shared)
        };
        let thread = spawn(name, body).inspect_err(|error| {
            tracing::warn!(%error, "no thread for delivery: the worker hands answers over");
        });
        Some(Self { least, desk, thread: Some(thread.ok()?) })
    }

    /// Leaves a batch that has run to the thread, or gives it back.
    pub(crate) fn leave(&self, mut dispatched: Dispatched) -> Result<(), Dispatched> {
        if dispatched.batch.len() < self.least {
            return Err(dispatched);
        }
        dispatched.batch.drop_inputs();
        let mut on_desk = self.desk.0.lock();
        if on_desk.next.is_some() {
            return Err(dispatched);
        }
        on_desk.next = Some(dispatched);
        let asleep = on_desk.asleep.take();
        drop(on_desk);
        if let Some(waker) = asleep {
            waker.wake();
        }
        Ok(())
    }
}

/// Ends the thread when it has delivered what was left to it.
impl Drop for DeliveryThread {
    fn drop(&mut self) {
        let asleep = {
            let mut on_desk = self.desk.0.lock();
            on_desk.closed = true;
            on_desk.asleep.take()
        };
        if let Some(waker) = asleep {
            waker.wake();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The body of a delivery thread.
fn run_delivery(desk: &Desk, shared: Arc<Shared>) {
    DELIVERS_FOR.with(|of| of.replace(Some(Arc::clone(&shared))));
    let waker = thread_waker();
    let mut ran = false;
    loop {
        let next = {
            let mut on_desk = desk.0.lock();
            let next = on_desk.next.take();
            if next.is_none() {
                if on_desk.closed {
                    break;
                }
                // CORRECTNESS: stored under the lock under which nothing was found; what is left here
                // later finds it.
                on_desk.asleep = Some(waker.clone());
            }
            next
        };
        match next {
            Some(dispatched) => {
                hand_over(dispatched, &shared);
                ran = true;
            }
            None if std::mem::take(&mut ran) && is_woken_at_once() => {}
            None => park(),
        }
    }
    DELIVERS_FOR.with(|of| of.replace(None));
}

/// Delivers a batch, and says that it is done.
fn hand_over(mut dispatched: Dispatched, shared: &Shared) {
    // Wakers are a user's, but each is contained by itself; this is for what we have not thought of.
    let _ = contain(|| dispatched.deliver());
    let mut locked = shared.lock();
    let (state, after) = locked.parts();
    state.finish(dispatched, after);
}
