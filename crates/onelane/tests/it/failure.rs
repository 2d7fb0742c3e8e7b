//! Promise 5: a bad request fails alone. Promise 1: every request is answered, whatever panics.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::*;
use onelane::testing::{FakeEngine, FakeItem, Gate, VirtualClock, within_a_minute};
use onelane::{
    BatchConfig, BatchItem, BatchQueue, BuildError, Engine, EngineError, Health, Refusal,
    RequestError, Shutdown,
};

const POISON: u64 = 666;
const BOMB: u64 = 667;

/// A queue whose engine waits at the gate, returns an error for `POISON` and panics on `BOMB`.
fn fragile(
    config: BatchConfig,
    idempotent: bool,
) -> (BatchQueue<FakeEngine>, Gate, Arc<AtomicUsize>, onelane::DeviceExecutor) {
    let device = executor();
    let (gate, built) = (Gate::new(), Arc::new(AtomicUsize::new(0)));
    let queue = {
        let (gate, built) = (gate.clone(), built.clone());
        BatchQueue::new(&device, config, move || {
            built.fetch_add(1, Ordering::SeqCst);
            let gate = gate.clone();
            let engine = FakeEngine::new(move |batch| {
                gate.pass();
                let has = |value| batch.iter().any(|item| item.value == value);
                assert!(!has(BOMB), "the bomb went off");
                if has(POISON) {
                    return Err(EngineError::failed("poisoned"));
                }
                Ok(batch.iter().map(|item| item.value).collect())
            });
            Ok(if idempotent { engine } else { engine.not_idempotent() })
        })
        .unwrap()
    };
    (queue, gate, built, device)
}

#[test]
fn bisection_finds_the_requests_at_fault_wherever_they_are() {
    within_a_minute(|| {
        for faults in [vec![0], vec![6], vec![3], vec![2, 3], vec![0, 6], vec![0, 1, 2, 3, 4, 5, 6]]
        {
            let (queue, gate, _, _device) = fragile(BatchConfig::default(), true);
            let values: Vec<u64> =
                (0..7).map(|i| if faults.contains(&i) { POISON } else { i as u64 }).collect();
            let answers = as_one_batch(&queue, &gate, &values);
            for (&value, answer) in values.iter().zip(answers) {
                match answer {
                    Ok(output) => assert_eq!(output, value),
                    Err(RequestError::Engine(error)) => {
                        assert_eq!((value, error.to_string().as_str()), (POISON, "poisoned"));
                    }
                    Err(other) => panic!("{value}: {other}"),
                }
            }
            let stats = queue.stats();
            assert_eq!(stats.failed as usize, faults.len());
            assert_eq!(stats.completed as usize, 8 - faults.len());
        }
    });
}

#[test]
fn a_panic_fails_its_request_alone_and_the_engine_is_rebuilt() {
    within_a_minute(|| {
        let (queue, gate, built, _device) = fragile(BatchConfig::default(), true);
        let answers = as_one_batch(&queue, &gate, &[0, 1, BOMB, 3, 4]);
        for (i, answer) in answers.into_iter().enumerate() {
            match answer {
                Ok(value) => assert_eq!(value, i as u64),
                Err(RequestError::Panicked(message)) => {
                    assert_eq!((i, message.as_str()), (2, "the bomb went off"));
                }
                Err(other) => panic!("{i}: {other}"),
            }
        }
        assert!(built.load(Ordering::SeqCst) > 1);
        assert_eq!(queue.stats().completed, 5);
        soon("it is built", || queue.health() == Health::Ready);
    });
}

#[test]
fn an_engine_that_is_not_idempotent_is_not_run_again() {
    within_a_minute(|| {
        for bad in [POISON, BOMB] {
            let (queue, gate, _, _device) = fragile(BatchConfig::default(), false);
            let answers = as_one_batch(&queue, &gate, &[0, bad, 2]);
            assert!(answers.iter().all(Result::is_err));
            assert_eq!(queue.submit(FakeItem::new(5)).unwrap().wait().unwrap(), 5);
        }
    });
}

#[test]
fn a_queue_gives_up_after_the_configured_number_of_losses() {
    within_a_minute(|| {
        let (queue, gate, _, _device) = fragile(BatchConfig::default().max_rebuilds(2), true);
        gate.open_for_good();
        let bomb = || queue.submit(FakeItem::new(BOMB)).unwrap().wait();
        assert!(matches!(bomb(), Err(RequestError::Panicked(_))));
        assert!(matches!(bomb(), Err(RequestError::Panicked(_))));
        // A response in between starts the count again.
        assert_eq!(queue.submit(FakeItem::new(1)).unwrap().wait().unwrap(), 1);
        for _ in 0..3 {
            soon("it is built", || queue.health() == Health::Ready);
            assert!(matches!(bomb(), Err(RequestError::Panicked(_))));
        }
        assert!(matches!(queue.health(), Health::Failed(why) if why.contains("3 times in a row")));
        assert!(matches!(queue.submit(FakeItem::new(1)).unwrap_err().reason(), Refusal::Failed(_)));
        queue.shutdown(Shutdown::Drain, Duration::from_secs(50)).unwrap();
    });
}

#[test]
fn a_queue_that_gives_up_answers_what_waits() {
    within_a_minute(|| {
        let (queue, gate, _, _device) = fragile(BatchConfig::default().max_rebuilds(0), true);
        let bomb = queue.submit(FakeItem::new(BOMB)).unwrap();
        gate.wait_for_arrivals(1);
        let waiting: Vec<_> =
            (0..3).map(|v| queue.submit(FakeItem::new(v).key(v)).unwrap()).collect();
        gate.open_for_good();
        assert!(matches!(bomb.wait(), Err(RequestError::Panicked(_))));
        for handle in waiting {
            assert!(matches!(handle.wait(), Err(RequestError::QueueFailed(_))));
        }
        assert_eq!(queue.stats().closed, 3);
    });
}

/// Builds by what `build` says of the number of the build, and panics on `BOMB`.
fn rebuilding(
    device: &onelane::DeviceExecutor,
    config: BatchConfig,
    build: impl Fn(usize) -> Result<(), EngineError> + Send + Sync + 'static,
) -> BatchQueue<FakeEngine> {
    let builds = AtomicUsize::new(0);
    BatchQueue::new(device, config, move || {
        build(builds.fetch_add(1, Ordering::SeqCst))?;
        Ok(FakeEngine::new(|batch| {
            assert!(batch[0].value != BOMB, "the bomb went off");
            Ok(batch.iter().map(|item| item.value).collect())
        }))
    })
    .unwrap()
}

#[test]
fn an_engine_that_was_lost_is_built_again_before_the_next_request() {
    within_a_minute(|| {
        let device = executor();
        let (gate, held) = (Gate::new(), Gate::new());
        let building = gate.clone();
        gate.open(1);
        let queue = rebuilding(&device, BatchConfig::default(), move |_| {
            building.pass();
            Ok(())
        });
        let bomb = queue.submit(FakeItem::new(BOMB)).unwrap().wait();
        assert!(matches!(bomb, Err(RequestError::Panicked(_))));
        gate.wait_for_arrivals(2);
        assert_eq!(queue.health(), Health::Rebuilding);
        assert_eq!(device.health(), Health::Ready, "other queues need not care");
        gate.open(1);
        soon("it is built", || queue.health() == Health::Ready);
        drop(held);
    });
}

#[test]
fn a_rebuild_that_fails_is_tried_again_for_the_next_batch() {
    within_a_minute(|| {
        let device = executor_on(&VirtualClock::new());
        let queue = rebuilding(&device, BatchConfig::default(), |build| match build {
            1 => Err(EngineError::failed("the device is away")),
            2 => panic!("the factory broke"),
            _ => Ok(()),
        });
        let run = |value| queue.submit(FakeItem::new(value)).unwrap().wait();
        assert!(matches!(run(BOMB), Err(RequestError::Panicked(_))));
        soon("the first rebuild has failed", || queue.stats().engine_losses == 2);
        assert_eq!(queue.health(), Health::Rebuilding);
        let error = run(1).unwrap_err().to_string();
        assert!(error.contains("the factory broke"), "{error}");
        assert_eq!(run(3).unwrap(), 3);
        assert_eq!(queue.stats().engine_losses, 3);
        assert_eq!(queue.health(), Health::Ready);
    });
}

/// Nobody asks, because health says that it is being rebuilt: it has to come back by itself.
#[test]
fn a_rebuild_that_fails_is_tried_again_after_a_while_and_not_for_ever() {
    within_a_minute(|| {
        for (comes_back, losses) in [(true, 4), (false, 5)] {
            let clock = VirtualClock::new();
            let device = executor_on(&clock);
            let config = BatchConfig::default().max_rebuilds(4);
            let queue = rebuilding(&device, config, move |build| match build {
                0 => Ok(()),
                4 if comes_back => Ok(()),
                _ => Err(EngineError::failed("the device is away")),
            });
            let bomb = queue.submit(FakeItem::new(BOMB)).unwrap().wait();
            assert!(matches!(bomb, Err(RequestError::Panicked(_))));
            for tried in 2..=losses {
                soon("a rebuild has failed", || queue.stats().engine_losses == tried);
                if tried < 5 {
                    assert_eq!(queue.health(), Health::Rebuilding);
                    clock.wait_for_sleepers(1);
                    clock.advance(Duration::from_millis(100 << (tried - 1)));
                }
            }
            if comes_back {
                soon("it is built", || queue.health() == Health::Ready);
            } else {
                soon("it gives up", || matches!(queue.health(), Health::Failed(_)));
                let refused = queue.submit(FakeItem::new(1)).unwrap_err();
                assert!(matches!(refused.reason(), Refusal::Failed(_)));
            }
        }
    });
}

/// Each loss costs a restart: the requests of a batch that lost its engine run one by one.
#[test]
fn a_lost_engine_is_built_again_and_its_batch_runs_one_by_one() {
    within_a_minute(|| {
        for idempotent in [true, false] {
            let device = executor();
            let (gate, sizes, built) =
                (Gate::new(), Seen::default(), Arc::new(AtomicUsize::new(0)));
            let queue = {
                let (gate, sizes, built) = (gate.clone(), sizes.clone(), built.clone());
                BatchQueue::new(&device, BatchConfig::default(), move || {
                    built.fetch_add(1, Ordering::SeqCst);
                    let (gate, sizes) = (gate.clone(), sizes.clone());
                    let engine = FakeEngine::new(move |batch| {
                        gate.pass();
                        sizes.lock().unwrap().push(vec![batch.len() as u64]);
                        if batch.iter().any(|item| item.value == POISON) {
                            return Err(EngineError::lost("device-side assert triggered"));
                        }
                        Ok(batch.iter().map(|item| item.value).collect())
                    });
                    Ok(if idempotent { engine } else { engine.not_idempotent() })
                })
                .unwrap()
            };
            let answers = as_one_batch(&queue, &gate, &[0, 1, POISON, 3]);
            for (at, answer) in answers.into_iter().enumerate() {
                match answer {
                    Ok(value) => assert!(idempotent && value == at as u64),
                    Err(RequestError::Engine(EngineError::Lost(source))) => {
                        assert!(!idempotent || at == 2);
                        assert!(source.to_string().contains("device-side assert"));
                    }
                    Err(other) => panic!("{at}: {other}"),
                }
            }
            let sizes = sizes.lock().unwrap().concat();
            let runs: &[u64] = if idempotent { &[1, 4, 1, 1, 1, 1] } else { &[1, 4] };
            assert_eq!(sizes, runs);
            // Once for the batch, and once for the culprit alone.
            let losses = if idempotent { 2 } else { 1 };
            soon("it is built", || built.load(Ordering::SeqCst) == 1 + losses);
            assert_eq!(queue.stats().engine_losses, losses as u64);
        }
    });
}

#[test]
fn out_of_memory_splits_the_batch_and_the_ceiling_is_remembered() {
    within_a_minute(|| {
        let device = executor();
        let (gate, sizes) = (Gate::new(), Seen::default());
        let queue = {
            let (gate, sizes) = (gate.clone(), sizes.clone());
            BatchQueue::new(&device, BatchConfig::default(), move || {
                let (gate, sizes) = (gate.clone(), sizes.clone());
                Ok(FakeEngine::new(move |batch| {
                    gate.pass();
                    if batch[0].value != u64::MAX {
                        sizes.lock().unwrap().push(vec![batch[0].key, batch.len() as u64]);
                    }
                    if batch[0].key == 0 && batch.len() > 3 {
                        return Err(EngineError::out_of_memory("8 rows do not fit"));
                    }
                    Ok(batch.iter().map(|item| item.value).collect())
                }))
            })
            .unwrap()
        };
        let first = occupy(&queue, &gate);
        let submit = |range: std::ops::Range<u64>, key| -> Vec<_> {
            range.map(|v| queue.submit(FakeItem::new(v).key(key)).unwrap()).collect()
        };
        let handles = submit(0..8, 0);
        gate.open(1);
        first.wait().unwrap();
        gate.wait_for_arrivals(2);
        // What comes while the batch is split is batched below the ceiling; other keys are not.
        let later = submit(8..14, 0);
        let other = submit(20..26, 1);
        gate.open_for_good();
        assert_eq!(wait_all(handles), (0..8).collect::<Vec<_>>());
        assert_eq!(wait_all(later), (8..14).collect::<Vec<_>>());
        assert_eq!(wait_all(other), (20..26).collect::<Vec<_>>());
        let sizes = sizes.lock().unwrap();
        let expected = [[0, 8], [0, 4], [0, 2], [0, 2], [0, 4], [0, 2], [0, 2]];
        assert_eq!(sizes[..7], expected.map(Vec::from));
        assert_eq!(sizes[7..], [[0, 2], [0, 2], [0, 2], [1, 6]].map(Vec::from));
        // The ceiling outlives the moment when nothing of its key waits.
        drop(sizes);
        assert_eq!(queue.health(), Health::Ready);
    });
}

/// Memory that was short once may be there later: a ceiling is tried upwards, and is in the
/// statistics as long as it holds.
#[test]
fn a_ceiling_does_not_last_for_ever() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let (gate, sizes, is_short) = (Gate::new(), Seen::default(), Arc::new(AtomicUsize::new(1)));
        let config = BatchConfig::default().max_batch_size(8);
        let queue = {
            let (gate, sizes, is_short) = (gate.clone(), sizes.clone(), is_short.clone());
            BatchQueue::new(&device, config, move || {
                let (gate, sizes, is_short) = (gate.clone(), sizes.clone(), is_short.clone());
                Ok(FakeEngine::new(move |batch| {
                    if batch[0].value == u64::MAX {
                        gate.pass();
                    } else {
                        sizes.lock().unwrap().push(vec![batch.len() as u64]);
                    }
                    if batch.len() > 4 && is_short.swap(0, Ordering::SeqCst) == 1 {
                        return Err(EngineError::out_of_memory("a neighbour has it"));
                    }
                    Ok(batch.iter().map(|item| item.value).collect())
                }))
            })
            .unwrap()
        };
        let sixteen = || {
            sizes.lock().unwrap().clear();
            let arrivals = gate.arrivals() + 1;
            let held = queue.submit(FakeItem::new(u64::MAX).key(1)).unwrap();
            gate.wait_for_arrivals(arrivals);
            let handles: Vec<_> =
                (0..16).map(|value| queue.submit(FakeItem::new(value)).unwrap()).collect();
            gate.open(1);
            held.wait().unwrap();
            assert_eq!(wait_all(handles), (0..16).collect::<Vec<_>>());
            sizes.lock().unwrap().concat()
        };
        assert_eq!(sixteen(), [8, 4, 4, 4, 4]);
        let stats = queue.stats();
        assert_eq!((stats.memory_splits, stats.ceilings, stats.lowest_ceiling), (1, 1, Some(4)));
        assert_eq!(sixteen(), [4; 4], "it is not tried again at once");
        clock.advance(queue.config().ceiling_retry);
        assert_eq!(sixteen(), [8; 2]);
        let stats = queue.stats();
        assert_eq!((stats.memory_splits, stats.ceilings, stats.lowest_ceiling), (1, 0, None));
    });
}

#[test]
fn one_request_that_does_not_fit_gets_the_error() {
    within_a_minute(|| {
        let device = executor();
        let queue = BatchQueue::new(&device, BatchConfig::default(), || {
            Ok(FakeEngine::new(|_| Err(EngineError::out_of_memory("no room"))))
        })
        .unwrap();
        let answer = queue.submit(FakeItem::new(1)).unwrap().wait();
        let error = answer.unwrap_err();
        assert!(matches!(error, RequestError::Engine(EngineError::OutOfMemory(_))), "{error}");
    });
}

#[test]
fn a_wrong_number_of_outputs_is_an_error_that_says_so() {
    within_a_minute(|| {
        let device = executor();
        let queue = BatchQueue::new(&device, BatchConfig::default(), || {
            Ok(FakeEngine::new(|_| Ok(vec![1, 2, 3])))
        })
        .unwrap();
        let error = queue.submit(FakeItem::new(1)).unwrap().wait().unwrap_err().to_string();
        assert!(error.contains("3 outputs for 1 requests"), "{error}");
    });
}

#[test]
fn a_factory_that_fails_or_panics_is_an_error_of_new() {
    within_a_minute(|| {
        for workers in [1, 3] {
            let device = executor_with(workers);
            let new = |factory: fn() -> Result<FakeEngine, EngineError>| {
                BatchQueue::new(&device, BatchConfig::default(), factory).unwrap_err()
            };
            let error = new(|| Err(EngineError::failed("no such file: model.bin")));
            assert!(matches!(&error, BuildError::Engine(_)));
            assert!(error.to_string().contains("no such file: model.bin"), "{error}");
            let error = new(|| panic!("the factory broke"));
            assert!(matches!(&error, BuildError::Panicked(m) if m == "the factory broke"));
            // The executor is none the worse.
            assert_eq!(device.call(|| 1).unwrap(), 1);
            device.shutdown(Shutdown::Drain, Duration::from_secs(50)).unwrap();
        }
    });
}

/// Panics in every method that it is told to.
struct Clumsy(&'static str);

struct Unit;

impl BatchItem for Unit {
    type Key = ();
    fn key(&self) {}
}

impl Engine for Clumsy {
    type Item = Unit;
    type Output = u64;

    fn infer(&mut self, batch: &[Unit]) -> Result<Vec<u64>, EngineError> {
        if self.0 == "payload" {
            // The payload of the panic panics when it is dropped.
            std::panic::panic_any(DropBomb);
        }
        assert!(self.0 != "infer", "infer");
        Ok(vec![1; batch.len()])
    }

    fn warmup(&mut self) -> Result<(), EngineError> {
        assert!(self.0 != "warmup", "warmup");
        Ok(())
    }

    fn idempotent(&self) -> bool {
        assert!(self.0 != "idempotent", "idempotent");
        true
    }

    fn padded_cost(&self, batch: &[Unit]) -> usize {
        assert!(self.0 != "padded_cost", "padded_cost");
        batch.len()
    }

    fn delivered(&mut self) {
        assert!(self.0 != "delivered", "delivered");
    }
}

impl Drop for Clumsy {
    fn drop(&mut self) {
        assert!(self.0 != "drop", "drop");
    }
}

struct DropBomb;

impl Drop for DropBomb {
    fn drop(&mut self) {
        panic!("a payload that panics");
    }
}

#[test]
fn a_panic_in_any_method_of_an_engine_is_contained() {
    within_a_minute(|| {
        let device = executor();
        for place in
            ["warmup", "infer", "payload", "idempotent", "padded_cost", "delivered", "drop"]
        {
            let built = BatchQueue::new(&device, BatchConfig::default(), move || Ok(Clumsy(place)));
            if place == "warmup" {
                assert!(matches!(built, Err(BuildError::Panicked(m)) if m == "warmup"));
                continue;
            }
            let queue = built.unwrap();
            for _ in 0..2 {
                let answer = queue.submit(Unit).unwrap().wait();
                let fails = !matches!(place, "delivered" | "drop");
                assert_eq!(answer.is_err(), fails, "{place}: {answer:?}");
            }
            queue.shutdown(Shutdown::Drain, Duration::from_secs(50)).unwrap();
            assert_eq!(device.call(|| 1).unwrap(), 1, "the worker did not live through {place}");
        }
    });
}

/// An input whose destructor panics, and one whose destructor calls back into the executor.
struct Nasty(Option<onelane::DeviceExecutor>);

impl BatchItem for Nasty {
    type Key = ();
    fn key(&self) {}
}

impl Drop for Nasty {
    fn drop(&mut self) {
        match &self.0 {
            Some(device) => drop(device.health()),
            None => panic!("an input that panics when dropped"),
        }
    }
}

struct Count;

impl Engine for Count {
    type Item = Nasty;
    type Output = usize;
    fn infer(&mut self, batch: &[Nasty]) -> Result<Vec<usize>, EngineError> {
        Ok(vec![batch.len(); batch.len()])
    }
}

#[test]
fn inputs_are_dropped_outside_the_lock_and_their_panics_contained() {
    within_a_minute(|| {
        let device = executor();
        let queue = BatchQueue::new(&device, BatchConfig::default(), || Ok(Count)).unwrap();
        for _ in 0..3 {
            assert_eq!(queue.submit(Nasty(None)).unwrap().wait().unwrap(), 1);
            assert_eq!(queue.submit(Nasty(Some(device.clone()))).unwrap().wait().unwrap(), 1);
        }
        // Cancelled, so dropped by the canceller.
        let gate = Gate::new();
        let held = gate.clone();
        let busy = device.submit(move || held.pass()).unwrap();
        gate.wait_for_arrivals(1);
        drop(queue.submit(Nasty(Some(device.clone()))).unwrap());
        drop(queue.submit(Nasty(None)).unwrap());
        gate.open_for_good();
        busy.wait().unwrap();
        assert_eq!(queue.stats().cancelled, 2);
    });
}
