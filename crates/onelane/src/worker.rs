//! The worker thread: its loop, the engines that live on it, and work done inline for a caller that
//! is on the worker already.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::batch::Dispatched;
use crate::config::Delivery;
use crate::contain::contain;
use crate::delivery::{DeliveryThread, delivers_for};
use crate::engine::Engine;
use crate::policy::QueueId;
use crate::shared::Shared;
use crate::state::Step;
use crate::sync::{
    is_processor_spare, is_woken_at_once, is_woken_in_turn, thread_local, thread_waker,
};
use crate::waiting::Asked;

thread_local! {
    #[allow(clippy::missing_const_for_thread_local, reason = "the model checker's macro has no const")]
    static CURRENT: RefCell<Option<Rc<WorkerContext>>> = RefCell::new(None);
}

/// After a batch of so many the worker looks whether more comes before it parks. More who were answered
/// want its processor, unless there are others (docs/performance.md has the figures).
const FEW: usize = 8;

/// What one worker thread has. It never leaves its thread.
pub(crate) struct WorkerContext {
    shared: Arc<Shared>,
    index: usize,
    /// The engines, by queue. `None`: in use further up the stack. Absent: not built.
    engines: RefCell<BTreeMap<QueueId, Option<Box<dyn Any>>>>,
    /// Time that batches run inline took within the present batch.
    nested: Cell<Duration>,
}

/// Where a request is that a worker wants to wait for inline.
pub(crate) enum Place {
    Waiting,
    Running(usize),
    /// It has run, and its answer is on its way, whatever this worker does.
    InDelivery,
    Answered,
}

/// What could be done inline for a caller on the worker.
pub(crate) enum Help {
    /// A batch was run, or the answer has come: look again.
    Progress,
    /// Another thread sees to the request: wait for it.
    Elsewhere,
    /// It can only be answered after this very call has returned.
    Stuck,
}

impl WorkerContext {
    /// Whether the calling thread is one of `shared`'s own: it must not wait for a worker's end.
    pub(crate) fn is_ours(shared: &Arc<Shared>) -> bool {
        Self::current(shared).is_some() || delivers_for(shared)
    }

    /// The context of the calling thread, if it is a worker of `shared`.
    pub(crate) fn current(shared: &Arc<Shared>) -> Option<Rc<Self>> {
        let current = CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()?;
        Arc::ptr_eq(&current.shared, shared).then_some(current)
    }

    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Takes the engine of a queue for the length of a batch.
    pub(crate) fn take_engine<E: Engine>(&self, queue: QueueId) -> Option<Box<E>> {
        let engine = self.engines.borrow_mut().entry(queue).or_default().take()?;
        Some(engine.downcast().expect("a queue's engine keeps its type"))
    }

    /// Puts the engine back; `None` if it was lost, to be built again for the next batch.
    pub(crate) fn put_engine<E: Engine>(&self, queue: QueueId, engine: Option<Box<E>>) {
        let mut engines = self.engines.borrow_mut();
        match engine {
            Some(engine) => *engines.entry(queue).or_default() = Some(engine),
            None => drop(engines.remove(&queue)),
        }
    }

    fn is_engine_busy(&self, queue: QueueId) -> bool {
        matches!(self.engines.borrow().get(&queue), Some(None))
    }

    /// Drops the engine of a closed queue.
    pub(crate) fn retire(&self, queue: QueueId) {
        let engine = self.engines.borrow_mut().remove(&queue);
        let _ = contain(|| drop(engine));
        let mut locked = self.shared.lock();
        let (state, after) = locked.parts();
        state.retired(queue, after);
    }

    /// Does, inline, what a request of `queue` needs to be answered; without a request, makes room
    /// in the queue.
    pub(crate) fn help(&self, queue: QueueId, request: Option<Asked<'_>>) -> Help {
        let mut locked = self.shared.lock();
        let (state, after) = locked.parts();
        match request.map_or(Place::Waiting, |request| state.place(queue, request, after)) {
            Place::Answered => Help::Progress,
            Place::Running(other) if other != self.index => {
                let waits = |asked: Asked<'_>| {
                    state.workers.block_on(self.index, other, queue, asked.number)
                };
                if request.is_some_and(waits) { Help::Elsewhere } else { Help::Stuck }
            }
            Place::Running(_) => Help::Stuck,
            Place::InDelivery => Help::Elsewhere,
            Place::Waiting if self.is_engine_busy(queue) => Help::Stuck,
            Place::Waiting => {
                let now = self.shared.clock.now();
                let Some(seat) = state.best_head(queue, now, after) else {
                    return Help::Progress;
                };
                let mut dispatched = state.dispatch(queue, seat, self.index, now, after);
                drop(locked);
                self.run(&mut dispatched);
                self.deliver(&mut dispatched);
                let mut locked = self.shared.lock();
                let (state, after) = locked.parts();
                state.finish(dispatched, after);
                Help::Progress
            }
        }
    }

    /// Runs a batch and books it.
    fn run(&self, dispatched: &mut Dispatched) {
        let clock = &self.shared.clock;
        let outer = self.nested.take();
        // Not when it was taken out: letting go of the lock since then is not the engine's time, and whether
        // threads sleep depends on that.
        let started = clock.now();
        // What can panic in a batch is contained there; this is for what we have not thought of.
        let _ = contain(|| dispatched.batch.run(self));
        let took = clock.now().saturating_duration_since(started);
        let service = took.saturating_sub(self.nested.get());
        self.nested.set(outer + took);
        let mut locked = self.shared.lock();
        let (state, after) = locked.parts();
        state.book(dispatched, service, after);
    }

    /// Hands the answers of a batch over. It counts as running until the state is told that it is
    /// finished.
    fn deliver(&self, dispatched: &mut Dispatched) {
        dispatched.deliver();
        let _ = contain(|| dispatched.batch.delivered(self));
        dispatched.batch.drop_inputs();
    }

    fn run_until_stopped(&self, delivery: Option<&DeliveryThread>) {
        let mut finished = None;
        // How many requests were in the batch that has just run.
        let mut ran = None;
        loop {
            let step = {
                let mut locked = self.shared.lock();
                let (state, after) = locked.parts();
                if let Some(dispatched) = finished.take() {
                    state.finish(dispatched, after);
                }
                state.next_step(self.index, &self.shared.clock, thread_waker, after)
            };
            match step {
                Step::Batch(mut dispatched) => {
                    ran = Some(dispatched.batch.len());
                    self.run(&mut dispatched);
                    finished = match delivery {
                        Some(delivery) => delivery.leave(dispatched).err(),
                        None => Some(dispatched),
                    };
                    if let Some(kept) = &mut finished {
                        self.deliver(kept);
                    }
                }
                Step::Errand(errand) => {
                    let _ = contain(|| errand(self));
                }
                Step::Sleep { until, worth_a_turn } => {
                    let is_woken = |ran| {
                        (ran <= FEW || is_processor_spare()) && is_woken_at_once()
                            || worth_a_turn && is_woken_in_turn()
                    };
                    if !ran.take().is_some_and(is_woken) {
                        self.shared.clock.park_until(until);
                    }
                }
                Step::Stop => return,
            }
        }
    }
}

/// The body of a worker thread.
pub(crate) fn run_worker(shared: Arc<Shared>, index: usize, delivery: Delivery) {
    let context = Rc::new(WorkerContext {
        shared,
        index,
        engines: RefCell::default(),
        nested: Cell::default(),
    });
    CURRENT.with(|current| current.replace(Some(Rc::clone(&context))));
    let delivery = DeliveryThread::start(&context.shared, delivery, index);
    let exit = Exit { context, delivery };
    exit.context.run_until_stopped(exit.delivery.as_ref());
}

/// Leaves the executor, however the thread ends: no request waits for a worker that is gone.
struct Exit {
    context: Rc<WorkerContext>,
    delivery: Option<DeliveryThread>,
}

impl Drop for Exit {
    fn drop(&mut self) {
        // Engines are dropped on the worker in every case.
        let engines = self.context.engines.take();
        for engine in engines.into_values() {
            let _ = contain(|| drop(engine));
        }
        let _ = CURRENT.try_with(|current| current.replace(None));
        drop(self.delivery.take());
        let mut locked = self.context.shared.lock();
        let (state, after) = locked.parts();
        state.worker_ended(self.context.index, after);
    }
}
