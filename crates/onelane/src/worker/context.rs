//! The calling thread as a worker: its engines, and work done inline for a caller that is on the
//! worker already.

#![allow(clippy::missing_const_for_thread_local, reason = "the model checker's macro has no const")]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::scheduler::RequestLocation;
use crate::scheduler::id::{RequestId, WorkerId};
use crate::scheduler::shared::ExecutorShared;
use crate::sync::{catch_panic, thread_local};
use crate::worker::batch::Dispatched;
use crate::worker::engines::Engines;
use crate::worker::hooks::Hooks;
use crate::worker::wait_graph::{self, WaitEdge};

thread_local! {
    /// The first of its thread's to be made, so the last to be dropped.
    static GONE: RefCell<Option<Gone>> = RefCell::new(None);

    static CURRENT: RefCell<Option<Rc<WorkerContext>>> = RefCell::new(None);

    /// The executor that the calling thread belongs to: 0 if to none. It has no destructor, so it is
    /// there for the destructors of others, until the thread is gone.
    static OWNER: Cell<u64> = Cell::new(0);
}

fn owner() -> u64 {
    OWNER.try_with(Cell::get).unwrap_or_default()
}

/// Marks the calling thread as one of `shared`'s own: it must not wait for a worker's end.
pub(crate) fn belong_to(shared: &ExecutorShared) {
    OWNER.with(|owner| owner.set(shared.id));
}

/// Whether the calling thread is one of `shared`'s own.
pub(crate) fn belongs_to(shared: &ExecutorShared) -> bool {
    owner() == shared.id
}

/// Says, when nothing else of a worker's thread is left, that it can be joined: the destructors of
/// thread-locals are others' code, and may wait.
struct Gone(Arc<ExecutorShared>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.lock().worker_gone();
    }
}

/// What one worker thread has. It never leaves its thread.
pub(crate) struct WorkerContext {
    pub(crate) shared: Arc<ExecutorShared>,
    pub(crate) index: usize,
    pub(crate) engines: Engines,
    /// Time that batches run inline took within the present batch.
    nested: Cell<Duration>,
    /// It is in the graph of those who wait.
    waits: Cell<bool>,
    hooks: Hooks,
}

/// What could be done inline for a caller on a worker.
pub(crate) enum InlineProgress {
    /// A batch was run: look again.
    Progress,
    /// The answer comes without the caller: wait for it.
    Elsewhere,
    /// It can only be answered after this very call has returned.
    Stuck,
}

/// The worker that the calling thread is, of whatever executor.
pub(crate) fn this_worker() -> Option<Rc<WorkerContext>> {
    if owner() == 0 {
        return None;
    }
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

/// The calling thread, if it is a worker of `shared`.
pub(crate) fn worker_of(shared: &ExecutorShared) -> Option<Rc<WorkerContext>> {
    this_worker().filter(|worker| worker.shared.id == shared.id)
}

impl WorkerContext {
    /// Makes the calling thread a worker.
    pub(crate) fn enter(shared: Arc<ExecutorShared>, index: usize, hooks: Hooks) -> Rc<Self> {
        GONE.with(|gone| gone.replace(Some(Gone(Arc::clone(&shared)))));
        belong_to(&shared);
        let context = Rc::new(Self {
            shared,
            index,
            engines: Engines::default(),
            nested: Cell::default(),
            waits: Cell::new(false),
            hooks,
        });
        CURRENT.with(|current| current.replace(Some(Rc::clone(&context))));
        context
    }

    /// Ends that: what comes after runs on a thread as any other, which still belongs to the executor.
    pub(crate) fn leave() {
        let _ = CURRENT.try_with(|current| current.replace(None));
    }

    fn id(&self) -> WorkerId {
        (self.shared.id, self.index)
    }

    /// Does, inline, what a request of `shared` needs to be answered; a request that waits for room
    /// needs that.
    pub(crate) fn help(&self, shared: &ExecutorShared, request: RequestId) -> InlineProgress {
        let is_elsewhere = shared.id != self.shared.id;
        let mut scheduler = shared.lock();
        match scheduler.location(request) {
            RequestLocation::Running(worker) if is_elsewhere || worker != self.index => {
                self.wait(shared, request, Some(worker))
            }
            RequestLocation::Running(_) => InlineProgress::Stuck,
            // The waker that was left in the look before is woken by the answer.
            RequestLocation::Answered => InlineProgress::Elsewhere,
            RequestLocation::Waiting if is_elsewhere => self.wait(shared, request, None),
            RequestLocation::Waiting if self.engines.is_in_use(request.queue) => {
                InlineProgress::Stuck
            }
            RequestLocation::Waiting => {
                let now = shared.clock.now();
                let dispatched = scheduler.dispatch_of(request.queue, self.index, now);
                drop(scheduler);
                if let Some(mut dispatched) = dispatched {
                    // What runs inside of a long call would else keep its pool until that ends.
                    self.hooks.around(|| {
                        self.run(&mut dispatched);
                        self.deliver(&mut dispatched);
                    });
                    shared.lock().finish(dispatched);
                }
                InlineProgress::Progress
            }
        }
    }

    /// Notes that this worker waits for a request, which `worker` runs, or any of `shared`'s will.
    pub(crate) fn wait(
        &self,
        shared: &ExecutorShared,
        request: RequestId,
        worker: Option<usize>,
    ) -> InlineProgress {
        let (executor, workers, device) = (shared.id, shared.workers, shared.device.clone());
        self.waits.set(true);
        if wait_graph::wait(self.id(), WaitEdge { request, executor, workers, device, worker }) {
            InlineProgress::Elsewhere
        } else {
            InlineProgress::Stuck
        }
    }

    /// It does not wait for this request any more.
    pub(crate) fn unwait(&self, request: RequestId) {
        if self.waits.get() {
            wait_graph::unwait(self.id(), request);
        }
    }

    /// Runs a batch and books it. Returns how long it took by itself.
    pub(crate) fn run(&self, dispatched: &mut Dispatched) -> Duration {
        let clock = &self.shared.clock;
        let outer = self.nested.take();
        // Not when it was taken out: letting go of the lock since then is not the engine's time, and
        // whether threads sleep depends on that.
        let started = clock.now();
        // What can panic in a batch is contained there; this is for what we have not thought of.
        let _ = catch_panic(|| dispatched.batch.run(&self.engines));
        let now = clock.now();
        let took = now.saturating_duration_since(started);
        let service = took.saturating_sub(self.nested.get());
        self.nested.set(outer + took);
        if self.waits.take() {
            wait_graph::forget(self.id());
        }
        self.shared.lock().book(dispatched, service, now);
        service
    }

    /// Hands the answers of a batch over. It counts as running until the scheduler is told that it
    /// is finished.
    pub(crate) fn deliver(&self, dispatched: &mut Dispatched) {
        dispatched.deliver();
        let _ = catch_panic(|| dispatched.batch.delivered(&self.engines));
        dispatched.batch.drop_inputs();
    }
}
