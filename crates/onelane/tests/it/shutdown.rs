//! Promises 1, 2 and 8: one owner, shutdown in every way, nothing lost in any interleaving.

use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;

use crate::common::*;
use onelane::testing::{FakeEngine, FakeItem, Gate, VirtualClock, within_a_minute};
use onelane::{
    BatchConfig, BatchItem, BatchQueue, DeviceExecutor, Engine, EngineError, ExecutorConfig,
    Health, Refusal, Request, RequestError, Shutdown, ShutdownError,
};

const LONG: Duration = Duration::from_secs(50);

/// An engine that cannot leave its thread, and notes where it is.
struct Rooted {
    log: Arc<Mutex<Vec<(&'static str, ThreadId)>>>,
    not_send: Rc<()>,
}

struct Unit;

impl BatchItem for Unit {
    type Key = ();
    fn key(&self) {}
}

impl Rooted {
    fn note(&self, what: &'static str) {
        self.log.lock().unwrap().push((what, thread::current().id()));
    }
}

impl Engine for Rooted {
    type Item = Unit;
    type Output = usize;

    fn infer(&mut self, batch: &[Unit]) -> Result<Vec<usize>, EngineError> {
        self.note("infer");
        Ok(vec![Rc::strong_count(&self.not_send); batch.len()])
    }

    fn warmup(&mut self) -> Result<(), EngineError> {
        self.note("warmup");
        Ok(())
    }
}

impl Drop for Rooted {
    fn drop(&mut self) {
        self.note("drop");
    }
}

#[test]
fn an_engine_lives_on_the_worker_from_its_factory_to_its_drop() {
    within_a_minute(|| {
        let device = executor();
        let log = Arc::new(Mutex::new(Vec::new()));
        let noted = log.clone();
        let queue = BatchQueue::new(&device, BatchConfig::default(), move || {
            let engine = Rooted { log: noted.clone(), not_send: Rc::new(()) };
            engine.note("factory");
            Ok(engine)
        })
        .unwrap();
        let worker = device.call(|| thread::current().id()).unwrap();
        assert_ne!(worker, thread::current().id());
        assert_eq!(queue.submit(Unit).unwrap().wait().unwrap(), 1);
        queue.shutdown(Shutdown::Drain, LONG).unwrap();
        let expected = ["factory", "warmup", "infer", "drop"].map(|what| (what, worker));
        assert_eq!(*log.lock().unwrap(), expected);
    });
}

#[test]
fn drain_runs_what_was_accepted_and_abort_answers_it() {
    within_a_minute(|| {
        for mode in [Shutdown::Drain, Shutdown::Abort] {
            let device = executor();
            let (queue, gate, _) = gated(&device, BatchConfig::default().max_batch_size(1));
            let first = occupy(&queue, &gate);
            let waiting: Vec<_> =
                (0..20).map(|value| queue.submit(FakeItem::new(value)).unwrap()).collect();
            thread::scope(|scope| {
                let ended = scope.spawn(|| queue.shutdown(mode, LONG));
                if mode == Shutdown::Abort {
                    // Answered at once, while the worker is still busy.
                    for handle in waiting {
                        assert!(matches!(handle.wait(), Err(RequestError::Closed)));
                    }
                    gate.open_for_good();
                } else {
                    gate.open_for_good();
                    assert_eq!(wait_all(waiting), (0..20).collect::<Vec<_>>());
                }
                ended.join().unwrap().unwrap();
            });
            assert_eq!(first.wait().unwrap(), u64::MAX, "what runs is finished in both modes");
            assert!(is_refused(&queue.submit(FakeItem::new(1)), &Refusal::Closed));
            assert_eq!(queue.health(), Health::Closed);
        }
    });
}

/// The original loses a request here: it looks whether the queue runs, and then pushes.
#[test]
fn submit_and_shutdown_in_any_interleaving_lose_nothing() {
    within_a_minute(|| {
        for round in 0..if cfg!(miri) { 4_u64 } else { 200 } {
            let device = executor();
            let queue = BatchQueue::new(&device, BatchConfig::default().capacity(4), || {
                Ok(FakeEngine::echo())
            })
            .unwrap();
            let threads = 4;
            let barrier = Barrier::new(threads + 1);
            let mode = if round % 2 == 0 { Shutdown::Drain } else { Shutdown::Abort };
            let answered = AtomicUsize::new(0);
            let refused = AtomicUsize::new(0);
            thread::scope(|scope| {
                for thread in 0..threads as u64 {
                    let (queue, barrier) = (&queue, &barrier);
                    let (answered, refused) = (&answered, &refused);
                    scope.spawn(move || {
                        barrier.wait();
                        for i in 0..10 {
                            match queue.submit(FakeItem::new(thread * 10 + i)) {
                                Ok(handle) => {
                                    match handle.wait() {
                                        Ok(value) => assert_eq!(value, thread * 10 + i),
                                        Err(RequestError::Closed) if mode == Shutdown::Abort => {}
                                        Err(other) => panic!("{other}"),
                                    }
                                    answered.fetch_add(1, Ordering::SeqCst);
                                }
                                Err(error) if *error.reason() == Refusal::Closed => {
                                    refused.fetch_add(1, Ordering::SeqCst);
                                }
                                Err(other) => panic!("{other}"),
                            }
                        }
                    });
                }
                barrier.wait();
                device.shutdown(mode, LONG).unwrap();
            });
            assert_eq!(answered.into_inner() + refused.into_inner(), 40);
        }
    });
}

#[test]
fn dropping_the_last_handle_drains() {
    within_a_minute(|| {
        let device = executor();
        let (queue, gate, _) = gated(&device, BatchConfig::default().max_batch_size(1));
        let first = occupy(&queue, &gate);
        let waiting: Vec<_> =
            (0..5).map(|value| queue.submit(FakeItem::new(value)).unwrap()).collect();
        let dropper = thread::spawn(move || {
            drop(queue);
            drop(device);
        });
        gate.open_for_good();
        assert_eq!(wait_all(waiting), [0, 1, 2, 3, 4]);
        first.wait().unwrap();
        dropper.join().unwrap();
    });
}

#[test]
fn the_last_handle_may_be_dropped_on_the_worker() {
    within_a_minute(|| {
        let device = executor();
        let engine_drops = Arc::new(AtomicUsize::new(0));
        struct Noted(Arc<AtomicUsize>);
        impl Drop for Noted {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let drops = engine_drops.clone();
        let queue = BatchQueue::new(&device, BatchConfig::default(), move || {
            let noted = Noted(drops.clone());
            Ok(FakeEngine::new(move |batch| {
                let _held = &noted;
                Ok(vec![0; batch.len()])
            }))
        })
        .unwrap();
        let ended = Arc::new(Barrier::new(2));
        let held = (queue, device.clone(), ended.clone());
        let handle = device
            .submit(move || {
                let (queue, device, ended) = held;
                drop(queue);
                ended.wait();
                drop(device);
            })
            .unwrap();
        drop(device);
        ended.wait();
        handle.wait().unwrap();
        // The engine goes with the worker; nobody is left to ask but the counter, so wait on it by
        // making the same again until it has.
        while engine_drops.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
    });
}

#[test]
fn a_shutdown_times_out_and_goes_on_by_itself() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let (queue, gate, _) = gated(&device, BatchConfig::default());
        let first = occupy(&queue, &gate);
        let second = Duration::from_secs(1);
        thread::scope(|scope| {
            let late = scope.spawn(|| queue.shutdown(Shutdown::Drain, second));
            clock.wait_for_sleepers(1);
            clock.advance(second);
            assert_eq!(late.join().unwrap(), Err(ShutdownError::Timeout(second)));
        });
        gate.open_for_good();
        first.wait().unwrap();
        queue.shutdown(Shutdown::Drain, LONG).unwrap();
        device.shutdown(Shutdown::Drain, LONG).unwrap();
        // Twice is as good as once.
        device.shutdown(Shutdown::Abort, LONG).unwrap();
    });
}

#[test]
fn a_shared_executor_is_one_per_device_and_can_be_had_anew() {
    within_a_minute(|| {
        let name = "shutdown-test";
        let first = DeviceExecutor::shared(name).unwrap();
        let same = DeviceExecutor::shared(&format!("{name}:0")).unwrap();
        let other = DeviceExecutor::shared(&format!("{name}:1")).unwrap();
        let id = |device: &DeviceExecutor| device.call(|| thread::current().id()).unwrap();
        let worker = id(&first);
        assert_eq!(worker, id(&same));
        assert_ne!(worker, id(&other));
        first.shutdown(Shutdown::Drain, LONG).unwrap();
        assert!(matches!(same.call(|| 1), Err(RequestError::Closed)));
        let anew = DeviceExecutor::shared(name).unwrap();
        assert_ne!(worker, id(&anew));
        anew.shutdown(Shutdown::Drain, LONG).unwrap();
        other.shutdown(Shutdown::Drain, LONG).unwrap();
    });
}

/// While one owner of the device ends, another cannot begin.
#[test]
fn a_device_never_has_two_owners() {
    within_a_minute(|| {
        let name = "two-owners-test";
        let old = DeviceExecutor::shared(name).unwrap();
        let gate = Gate::new();
        let running = Arc::new(AtomicUsize::new(0));
        let (held, inside) = (gate.clone(), running.clone());
        let busy = old
            .submit(move || {
                inside.fetch_add(1, Ordering::SeqCst);
                held.pass();
                inside.fetch_sub(1, Ordering::SeqCst);
            })
            .unwrap();
        gate.wait_for_arrivals(1);
        let timeout = old.shutdown(Shutdown::Drain, Duration::ZERO);
        assert!(matches!(timeout, Err(ShutdownError::Timeout(_))));
        let next = thread::spawn(move || {
            let anew = DeviceExecutor::shared(name).unwrap();
            let others = anew.call(move || running.load(Ordering::SeqCst)).unwrap();
            anew.shutdown(Shutdown::Drain, LONG).unwrap();
            others
        });
        gate.open_for_good();
        busy.wait().unwrap();
        assert_eq!(next.join().unwrap(), 0, "the old worker still ran");
    });
}

#[test]
fn bad_settings_are_named() {
    let error = DeviceExecutor::new(ExecutorConfig::new("test").workers(0)).unwrap_err();
    assert!(error.to_string().contains("workers = 0"), "{error}");
    let error = DeviceExecutor::new(ExecutorConfig::new("")).unwrap_err();
    assert!(error.to_string().contains("device"), "{error}");
    let device = executor();
    let bad = [
        BatchConfig::default().max_batch_size(0),
        BatchConfig::default().max_batch_cost(0),
        BatchConfig::default().capacity(0),
        BatchConfig::default().capacity_cost(0),
        BatchConfig::default().weight(0),
        BatchConfig::default().ageing(Duration::ZERO),
        BatchConfig::default().stall_after(Duration::ZERO),
    ];
    let names = [
        "max_batch_size",
        "max_batch_cost",
        "capacity",
        "capacity_cost",
        "weight",
        "ageing",
        "stall_after",
    ];
    for (config, name) in bad.into_iter().zip(names) {
        let error = BatchQueue::new(&device, config, || Ok(FakeEngine::echo())).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{name} = 0")), "{error}");
    }
}

/// Workers that have nothing left to do sleep until the last of them has dropped its engine: then all
/// have to be woken. Which of them is last is chance, hence many times.
#[test]
fn all_workers_end_with_the_last_queue() {
    within_a_minute(|| {
        for _ in 0..if cfg!(miri) { 2 } else { 200 } {
            let device = executor_with(4);
            device.shutdown(Shutdown::Drain, Duration::from_secs(50)).unwrap();
        }
    });
}

/// The worker itself finds that the deadline of the last waiting request has passed, and with that
/// has the closed queue's engine to drop: it must not go to sleep on it.
#[test]
fn a_shutdown_ends_when_the_last_request_expires() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let (queue, gate, seen) = gated(&device, BatchConfig::default());
        let first = occupy(&queue, &gate);
        let second = Duration::from_secs(1);
        let late = queue.submit(Request::new(FakeItem::new(1)).deadline_after(second)).unwrap();
        let busy = queue.shutdown(Shutdown::Drain, Duration::ZERO);
        assert_eq!(busy, Err(ShutdownError::Timeout(Duration::ZERO)));
        clock.advance(second);
        gate.open_for_good();
        first.wait().unwrap();
        queue.shutdown(Shutdown::Drain, Duration::MAX).unwrap();
        assert!(matches!(late.wait(), Err(RequestError::DeadlineExceeded)));
        assert!(batches(&seen).is_empty());
        device.shutdown(Shutdown::Drain, Duration::MAX).unwrap();
    });
}
