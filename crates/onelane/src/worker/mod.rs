//! The worker thread: its loop.

pub(crate) mod batch;
pub(crate) mod context;
pub(crate) mod delivery;
pub(crate) mod engines;
pub(crate) mod hooks;
pub(crate) mod wait_graph;

use std::sync::Arc;

use crate::Delivery;
use crate::admission::inbox::QUICK;
use crate::scheduler::Step;
use crate::scheduler::shared::ExecutorShared;
use crate::scheduler::workers::WorkerCommand;
use crate::sync::{catch_panic, is_processor_spare, spin_until_woken, thread_waker};
use crate::worker::context::WorkerContext;
use crate::worker::delivery::DeliveryThread;
use crate::worker::hooks::Hooks;

/// After a batch of so many the worker looks whether more comes before it parks. More who were
/// answered want its processor, unless there are others (docs/decisions has the figures).
const FEW: usize = 8;

/// The body of a worker thread.
pub(crate) fn run_worker(
    shared: Arc<ExecutorShared>,
    index: usize,
    delivery: Delivery,
    hooks: Hooks,
) {
    let worker = WorkerContext::enter(shared, index, hooks);
    let delivery = DeliveryThread::start(&worker.shared, delivery, index, hooks);
    // However this ends, no request waits for a worker that is gone.
    let _ = catch_panic(|| run_until_stopped(&worker, delivery.as_ref(), hooks));
    // Engines are dropped on the worker in every case.
    hooks.around(|| worker.engines.clear());
    WorkerContext::leave();
    drop(delivery);
    worker.shared.lock().worker_ended(index);
}

fn run_until_stopped(worker: &WorkerContext, delivery: Option<&DeliveryThread>, hooks: Hooks) {
    let shared = &worker.shared;
    let mut finished = None;
    // How many requests were in the batch that has just run, and how long it took.
    let mut ran = None;
    loop {
        let step = {
            let mut scheduler = shared.lock();
            if let Some(dispatched) = finished.take() {
                scheduler.finish(dispatched);
            }
            scheduler.next_step(worker.index, &shared.clock, thread_waker())
        };
        match step {
            Step::Batch(mut dispatched) => {
                hooks.around(|| {
                    ran = Some((dispatched.batch.len(), worker.run(&mut dispatched)));
                    finished = match delivery {
                        Some(delivery) => delivery.leave(dispatched).err(),
                        None => Some(dispatched),
                    };
                    if let Some(kept) = &mut finished {
                        worker.deliver(kept);
                    }
                });
            }
            Step::Command(command) => hooks.around(|| execute(worker, command)),
            Step::Sleep(until) => {
                let spins = |(size, took)| size <= FEW || took < QUICK || is_processor_spare();
                if !(ran.take().is_some_and(spins) && spin_until_woken()) {
                    shared.clock.park_until(until);
                }
                if let Some(on_wake) = hooks.on_wake {
                    drop(catch_panic(on_wake));
                }
            }
            Step::Stop => return,
        }
    }
}

fn execute(worker: &WorkerContext, command: WorkerCommand) {
    let WorkerContext { shared, engines, index, .. } = worker;
    match command {
        #[cfg(test)]
        WorkerCommand::Die => std::panic::resume_unwind(Box::new("a worker that dies")),
        WorkerCommand::Run(command) => drop(catch_panic(|| command(engines))),
        WorkerCommand::Rebuild(queue, build) => {
            let built = catch_panic(|| build(engines)).unwrap_or(false);
            let now = shared.clock.now();
            shared.lock().rebuilt(queue, *index, built, now);
        }
        WorkerCommand::Retire(queue) => {
            engines.retire(queue);
            shared.lock().retired(queue);
        }
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
                    let mut scheduler = device.owner.shared.lock();
                    (0..workers).for_each(|worker| scheduler.send(worker, WorkerCommand::Die));
                    drop(scheduler);
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
