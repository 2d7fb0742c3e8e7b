//! What an executor does around everything of others that its workers run: each thing is inside,
//! and each push has its pop, panics included.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onelane::testing::{FakeEngine, FakeItem};
use onelane::{BatchConfig, BatchQueue, DeviceExecutor, EngineError, ExecutorConfig, Shutdown};

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}
static PUSHED: AtomicUsize = AtomicUsize::new(0);
static POPPED: AtomicUsize = AtomicUsize::new(0);

/// A stand-in for an autorelease pool.
fn pool(body: &mut dyn FnMut()) {
    struct Pop;
    impl Drop for Pop {
        fn drop(&mut self) {
            DEPTH.set(DEPTH.get() - 1);
            POPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
    PUSHED.fetch_add(1, Ordering::Relaxed);
    DEPTH.set(DEPTH.get() + 1);
    let _pop = Pop;
    body();
}

/// Notes where it was dropped.
struct Dropped(Arc<Mutex<Vec<(&'static str, usize)>>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(("drop", DEPTH.get()));
    }
}

#[test]
fn everything_that_a_worker_runs_is_inside_and_each_push_has_its_pop() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = |what: &'static str| seen.lock().unwrap().push((what, DEPTH.get()));
    let device = DeviceExecutor::new(ExecutorConfig::new("test").around(pool)).unwrap();

    // A closure, one that panics, and the build, batches, panic, rebuild and drop of an engine.
    let (inner, in_panic) = (Arc::clone(&seen), Arc::clone(&seen));
    device.call(move || inner.lock().unwrap().push(("closure", DEPTH.get()))).unwrap();
    let panicked = device.call(move || {
        in_panic.lock().unwrap().push(("panic", DEPTH.get()));
        panic!("in a closure");
    });
    assert!(panicked.is_err());
    let built = Arc::clone(&seen);
    let queue = BatchQueue::new(&device, BatchConfig::default().max_batch_size(1), move || {
        built.lock().unwrap().push(("build", DEPTH.get()));
        let (ran, dropped) = (Arc::clone(&built), Dropped(Arc::clone(&built)));
        Ok(FakeEngine::new(move |batch| {
            let _kept = &dropped;
            ran.lock().unwrap().push(("batch", DEPTH.get()));
            match batch[0].value {
                13 => panic!("in an engine"),
                14 => Err(EngineError::failed("an error")),
                value => Ok(vec![value]),
            }
        }))
    })
    .unwrap();
    assert_eq!(queue.infer_blocking(7), 7);
    assert!(queue.submit(FakeItem::new(13)).unwrap().wait().is_err());
    assert!(queue.submit(FakeItem::new(14)).unwrap().wait().is_err());
    assert_eq!(queue.infer_blocking(8), 8);
    note("here");
    queue.shutdown(Shutdown::Drain, Duration::from_secs(50)).unwrap();
    device.shutdown(Shutdown::Drain, Duration::from_secs(50)).unwrap();

    let seen = seen.lock().unwrap();
    for what in ["closure", "panic", "build", "batch", "drop"] {
        assert!(seen.iter().any(|(found, _)| *found == what), "{what} never ran");
    }
    for (what, depth) in seen.iter() {
        assert_eq!(*depth, usize::from(*what != "here"), "{what}");
    }
    // A build, a rebuild after the panic.
    assert!(seen.iter().filter(|(what, _)| *what == "build").count() >= 2);
    assert_eq!(PUSHED.load(Ordering::Relaxed), POPPED.load(Ordering::Relaxed));
    assert!(PUSHED.load(Ordering::Relaxed) >= 8);
}

/// One that does not do what it has to costs nobody an answer.
#[test]
fn work_is_done_when_what_is_around_it_forgets_it_or_panics() {
    fn forgets(_: &mut dyn FnMut()) {}
    fn panics(body: &mut dyn FnMut()) {
        body();
        panic!("after it");
    }
    let both: [onelane::Around; 2] = [forgets, panics];
    for around in both {
        let device = DeviceExecutor::new(ExecutorConfig::new("test").around(around)).unwrap();
        assert_eq!(device.call(|| 5).unwrap(), 5);
        assert_eq!(device.call(|| 6).unwrap(), 6);
    }
}

trait Ask {
    fn infer_blocking(&self, value: u64) -> u64;
}

impl Ask for BatchQueue<FakeEngine> {
    fn infer_blocking(&self, value: u64) -> u64 {
        self.submit(FakeItem::new(value)).unwrap().wait().unwrap()
    }
}
