//! Promise 1, at its limit: a worker's thread ends out of turn, and every handle still resolves.
//!
//! Nothing that an engine, a closure, a key, a waker or a destructor does can end a worker: panics are
//! contained. What is left is code of others that the core calls in its own name. Here that is the
//! subscriber of its trace events, which panics; it is process-wide, hence a file of its own.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use onelane::testing::{FakeEngine, FakeItem, Gate, within_a_minute};
use onelane::{BatchConfig, BatchQueue, BuildError, Health, Shutdown};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

static DEADLY: AtomicBool = AtomicBool::new(false);

/// Panics on errors when it is told to.
struct Deadly;

impl Subscriber for Deadly {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        // Not the event of the panic itself, which is contained with its batch.
        let queue_gives_up = event.metadata().fields().len() == 2;
        if DEADLY.load(Ordering::SeqCst) && queue_gives_up {
            std::panic::resume_unwind(Box::new("the subscriber broke"));
        }
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn every_handle_resolves_when_the_worker_dies() {
    tracing::subscriber::set_global_default(Deadly).unwrap();
    within_a_minute(|| {
        for workers in [1, 2] {
            DEADLY.store(true, Ordering::SeqCst);
            let device = executor_with(workers);
            let gate = Gate::new();
            let held = gate.clone();
            let config = BatchConfig::default().max_batch_size(2).max_rebuilds(0).capacity(4);
            let queue = BatchQueue::new(&device, config, move || {
                let gate = held.clone();
                Ok(FakeEngine::new(move |_| {
                    gate.pass();
                    std::panic::resume_unwind(Box::new("a bomb"))
                }))
            })
            .unwrap();
            let other = BatchQueue::new(&device, BatchConfig::default(), || Ok(FakeEngine::echo()));
            let other = other.unwrap();
            // Each worker is in a batch; four more wait; one stands in line for room.
            let running: Vec<_> = (0..workers).map(|key| submit(&queue, key as u64)).collect();
            gate.wait_for_arrivals(workers);
            let waiting: Vec<_> = (10..14).map(|key| submit(&queue, key)).collect();
            let closure = device.submit(|| 1).unwrap();
            let elsewhere = other.submit(FakeItem::new(7)).unwrap();
            std::thread::scope(|scope| {
                let in_line = scope.spawn(|| queue.submit(FakeItem::new(99)));
                let ends = scope.spawn(|| queue.shutdown(Shutdown::Drain, Duration::MAX));
                gate.open_for_good();
                for handle in running.into_iter().chain(waiting) {
                    assert!(handle.wait().is_err());
                }
                // With a second worker these may have been run before the end.
                let _ = (closure.wait(), elsewhere.wait());
                let answered = in_line.join().unwrap().map(|handle| handle.wait());
                assert!(!matches!(answered, Ok(Ok(_))), "{answered:?}");
                assert_eq!(ends.join().unwrap(), Ok(()));
            });
            assert!(matches!(queue.health(), Health::Failed(_)));
            assert!(matches!(device.health(), Health::Failed(_)));
            assert!(queue.submit(FakeItem::new(1)).is_err());
            assert!(device.call(|| 1).is_err());
            let anew = BatchQueue::new(&device, BatchConfig::default(), || Ok(FakeEngine::echo()));
            assert!(matches!(anew, Err(BuildError::Closed(_))));
            device.shutdown(Shutdown::Drain, Duration::from_secs(50)).unwrap();
            DEADLY.store(false, Ordering::SeqCst);
        }
    });
}

fn submit(queue: &BatchQueue<FakeEngine>, key: u64) -> onelane::ResponseHandle<u64> {
    queue.submit(FakeItem::new(key).key(key)).unwrap()
}

/// The same as on the virtual clock, on a real one: a batch that runs too long is a stall, and the
/// stall passes.
#[test]
fn a_stall_is_seen_in_real_time() {
    within_a_minute(|| {
        let device = executor();
        let limit = Duration::from_millis(20);
        let (queue, gate, _) = gated(&device, BatchConfig::default().stall_after(limit));
        let started = Instant::now();
        let first = occupy(&queue, &gate);
        loop {
            match queue.health() {
                Health::Stalled { running_for } => {
                    assert!(running_for >= limit && started.elapsed() >= limit);
                    break;
                }
                Health::Ready => std::thread::yield_now(),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(device.health(), Health::Stalled { .. }));
        gate.open_for_good();
        first.wait().unwrap();
        assert_eq!(queue.health(), Health::Ready);
        // Many short batches in a row are not a stall.
        for value in 0..if cfg!(miri) { 5 } else { 1000 } {
            queue.submit(FakeItem::new(value)).unwrap().wait().unwrap();
            assert!(!matches!(queue.health(), Health::Failed(_)));
        }
    });
}
