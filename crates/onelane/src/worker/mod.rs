//! The worker thread: its loop.

pub(crate) mod batch;
pub(crate) mod delivery;
pub(crate) mod engines;
pub(crate) mod inline;
pub(crate) mod wait_graph;

use std::rc::Rc;
use std::sync::Arc;

use crate::config::{Around, Delivery};
use crate::scheduler::workers::WorkerCommand;
use crate::scheduler::{ExecutorShared, Step};
use crate::sync::{catch_panic, is_processor_spare, spin_until_woken, thread_waker};
use crate::worker::delivery::DeliveryThread;
use crate::worker::inline::WorkerContext;

/// After a batch of so many the worker looks whether more comes before it parks. More who were
/// answered want its processor, unless there are others (docs/decisions has the figures).
const FEW: usize = 8;

/// The body of a worker thread.
pub(crate) fn run_worker(
    shared: Arc<ExecutorShared>,
    index: usize,
    delivery: Delivery,
    around: Option<Around>,
) {
    let context = WorkerContext::enter(shared, index);
    let delivery = DeliveryThread::start(&context.shared, delivery, index);
    let exit = Exit { context, delivery, around };
    exit.run_until_stopped();
}

/// Leaves the executor, however the thread ends: no request waits for a worker that is gone.
struct Exit {
    context: Rc<WorkerContext>,
    delivery: Option<DeliveryThread>,
    around: Option<Around>,
}

impl Exit {
    /// Runs what may be others' code, with what the executor was told to do around it.
    fn around(&self, body: impl FnOnce()) {
        let Some(around) = self.around else { return body() };
        let mut body = Some(body);
        let _ = catch_panic(|| {
            around(&mut || {
                if let Some(body) = body.take() {
                    body();
                }
            });
        });
        // One that does not call it must not leave requests without an answer.
        if let Some(body) = body {
            body();
        }
    }

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
                    self.around(|| {
                        worker.run(&mut dispatched);
                        finished = match &self.delivery {
                            Some(delivery) => delivery.leave(dispatched).err(),
                            None => Some(dispatched),
                        };
                        if let Some(kept) = &mut finished {
                            worker.deliver(kept);
                        }
                    });
                }
                Step::Command(command) => self.around(|| self.execute(command)),
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
            #[cfg(test)]
            WorkerCommand::Die => std::panic::resume_unwind(Box::new("a worker that dies")),
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
        self.around(|| self.context.engines.clear());
        WorkerContext::leave();
        drop(self.delivery.take());
        let mut guard = self.context.shared.lock();
        let (scheduler, deferred) = guard.parts();
        scheduler.worker_ended(self.context.index, deferred);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{FakeEngine, FakeItem, Gate, within_a_minute};
    use crate::{
        BatchConfig, BatchQueue, BuildError, DeviceExecutor, ExecutorConfig, Health, Shutdown,
    };

    /// Promise 1, at its limit: nothing that others' code does ends a worker. If it ends all the
    /// same, every handle resolves, and health says so.
    #[test]
    fn every_handle_resolves_when_a_worker_dies() {
        for workers in [1, 2] {
            within_a_minute(move || {
                let config = ExecutorConfig::new("test").workers(workers);
                let device = DeviceExecutor::new(config).unwrap();
                let gate = Gate::new();
                let held = gate.clone();
                let config = BatchConfig::default().max_batch_size(1).capacity(4);
                let queue = BatchQueue::new(&device, config, move || {
                    let gate = held.clone();
                    Ok(FakeEngine::new(move |batch| {
                        gate.pass();
                        Ok(vec![0; batch.len()])
                    }))
                })
                .unwrap();
                let submit = |key| queue.submit(FakeItem::new(0).key(key)).unwrap();
                // Each worker is in a batch; four more wait; one waits for room.
                let running: Vec<_> = (0..workers as u64).map(submit).collect();
                gate.wait_for_arrivals(workers);
                let waiting: Vec<_> = (10..14).map(submit).collect();
                let closure = device.submit(|| 1).unwrap();
                std::thread::scope(|scope| {
                    let in_line = scope.spawn(|| queue.submit(FakeItem::new(99)));
                    let ends = scope.spawn(|| queue.shutdown(Shutdown::Drain, Duration::MAX));
                    let mut guard = device.owner().shared.lock();
                    let (scheduler, deferred) = guard.parts();
                    for worker in 0..workers {
                        scheduler.workers.send(worker, WorkerCommand::Die, deferred);
                    }
                    drop(guard);
                    gate.open_for_good();
                    // What runs ends; nothing else is computed.
                    running.into_iter().for_each(|handle| assert_eq!(handle.wait().unwrap(), 0));
                    waiting.into_iter().for_each(|handle| assert!(handle.wait().is_err()));
                    assert!(closure.wait().is_err());
                    let in_line = in_line.join().unwrap().map(|handle| handle.wait());
                    assert!(!matches!(in_line, Ok(Ok(_))), "{in_line:?}");
                    assert_eq!(ends.join().unwrap(), Ok(()));
                });
                assert!(matches!(queue.health(), Health::Failed(_)));
                assert!(matches!(device.health(), Health::Failed(_)));
                assert!(queue.submit(FakeItem::new(1)).is_err());
                assert!(device.call(|| 1).is_err());
                let anew =
                    BatchQueue::new(&device, BatchConfig::default(), || Ok(FakeEngine::echo()));
                assert!(matches!(anew, Err(BuildError::Closed(_))));
                device.shutdown(Shutdown::Drain, Duration::from_secs(50)).unwrap();
            });
        }
    }
}
