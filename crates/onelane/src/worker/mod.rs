//! The worker thread: its loop.

pub(crate) mod batch;
pub(crate) mod delivery;
pub(crate) mod engines;
pub(crate) mod inline;
pub(crate) mod wait_graph;

use std::rc::Rc;
use std::sync::Arc;

use crate::config::Delivery;
use crate::scheduler::workers::WorkerCommand;
use crate::scheduler::{ExecutorShared, Step};
use crate::sync::{catch_panic, is_processor_spare, spin_until_woken, thread_waker};
use crate::worker::delivery::DeliveryThread;
use crate::worker::inline::WorkerContext;

/// After a batch of so many the worker looks whether more comes before it parks. More who were
/// answered want its processor, unless there are others (docs/decisions has the figures).
const FEW: usize = 8;

/// The body of a worker thread.
pub(crate) fn run_worker(shared: Arc<ExecutorShared>, index: usize, delivery: Delivery) {
    let context = WorkerContext::enter(shared, index);
    let delivery = DeliveryThread::start(&context.shared, delivery, index);
    let exit = Exit { context, delivery };
    exit.run_until_stopped();
}

/// Leaves the executor, however the thread ends: no request waits for a worker that is gone.
struct Exit {
    context: Rc<WorkerContext>,
    delivery: Option<DeliveryThread>,
}

impl Exit {
    fn run_until_stopped(&self) {
        let worker = &*self.context;
        let mut finished = None;
        // How many requests were in the batch that has just run.
        let mut ran = None;
        loop {
            let step = {
                let mut guard = worker.shared.lock();
                let (scheduler, deferred) = guard.parts();
                if let Some(dispatched) = finished.take() {
                    scheduler.finish(dispatched, deferred);
                }
                scheduler.next_step(worker.index, &worker.shared.clock, thread_waker(), deferred)
            };
            match step {
                Step::Batch(mut dispatched) => {
                    ran = Some(dispatched.batch.len());
                    worker.run(&mut dispatched);
                    finished = match &self.delivery {
                        Some(delivery) => delivery.leave(dispatched).err(),
                        None => Some(dispatched),
                    };
                    if let Some(kept) = &mut finished {
                        worker.deliver(kept);
                    }
                }
                Step::Command(command) => self.execute(command),
                Step::Sleep { until, is_quick } => {
                    let spins = |ran| ran <= FEW || is_quick || is_processor_spare();
                    if !(ran.take().is_some_and(spins) && spin_until_woken()) {
                        worker.shared.clock.park_until(until);
                    }
                }
                Step::Stop => return,
            }
        }
    }

    fn execute(&self, command: WorkerCommand) {
        let WorkerContext { shared, engines, index, .. } = &*self.context;
        match command {
            WorkerCommand::Run(command) => drop(catch_panic(|| command(engines))),
            WorkerCommand::Rebuild(queue, build) => {
                let built = catch_panic(|| build(engines));
                let built = built.is_ok_and(|built| {
                    let failed = |error| tracing::error!(%error, "an engine was not rebuilt");
                    let _ = catch_panic(|| built.as_ref().map_err(failed).ok());
                    built.is_ok()
                });
                let now = shared.clock.now();
                let mut guard = shared.lock();
                let (scheduler, deferred) = guard.parts();
                scheduler.rebuilt(queue, *index, built, now, deferred);
            }
            WorkerCommand::Retire(queue) => {
                engines.retire(queue);
                let mut guard = shared.lock();
                let (scheduler, deferred) = guard.parts();
                scheduler.retired(queue, deferred);
            }
        }
    }
}

impl Drop for Exit {
    fn drop(&mut self) {
        // Engines are dropped on the worker in every case.
        self.context.engines.clear();
        WorkerContext::leave();
        drop(self.delivery.take());
        let mut guard = self.context.shared.lock();
        let (scheduler, deferred) = guard.parts();
        scheduler.worker_ended(self.context.index, deferred);
    }
}
