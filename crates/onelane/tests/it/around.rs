//! What an executor does around everything of others that its workers run: each thing is inside,
//! and each push has its pop, panics included.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
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

/// A batch that runs inside of a closure which waits for it, and what the delivery thread drops.
#[test]
fn batches_that_run_inline_and_answers_that_are_delivered_are_inside() {
    thread_local! {
        static HERE: Cell<usize> = const { Cell::new(0) };
    }
    fn here(body: &mut dyn FnMut()) {
        struct Back;
        impl Drop for Back {
            fn drop(&mut self) {
                HERE.set(HERE.get() - 1);
            }
        }
        HERE.set(HERE.get() + 1);
        let _back = Back;
        body();
    }
    struct Answer(Arc<Mutex<Vec<(String, usize)>>>);
    impl Drop for Answer {
        fn drop(&mut self) {
            let thread = std::thread::current().name().unwrap_or_default().to_owned();
            self.0.lock().unwrap().push((thread, HERE.get()));
        }
    }
    struct Answers {
        dropped: Arc<Mutex<Vec<(String, usize)>>>,
        ran: Arc<Mutex<Vec<usize>>>,
        entered: Option<Arc<Barrier>>,
    }
    impl onelane::Engine for Answers {
        type Item = FakeItem;
        type Output = Answer;
        fn infer(&mut self, batch: &[FakeItem]) -> Result<Vec<Answer>, EngineError> {
            self.ran.lock().unwrap().push(HERE.get());
            if let Some(entered) = self.entered.take() {
                entered.wait();
                entered.wait();
            }
            Ok(batch.iter().map(|_| Answer(Arc::clone(&self.dropped))).collect())
        }
    }

    let (dropped, ran) = (Arc::default(), Arc::default());
    let entered = Arc::new(Barrier::new(2));
    let config = ExecutorConfig::new("test").around(here).delivery(onelane::Delivery::Thread);
    let device = DeviceExecutor::new(config).unwrap();
    let queue = {
        let (dropped, ran, entered) =
            (Arc::clone(&dropped), Arc::clone(&ran), Arc::clone(&entered));
        BatchQueue::new(&device, BatchConfig::default(), move || {
            let (dropped, ran) = (Arc::clone(&dropped), Arc::clone(&ran));
            Ok(Answers { dropped, ran, entered: Some(Arc::clone(&entered)) })
        })
        .unwrap()
    };
    // The callers have gone when the answers come: the delivery thread drops these.
    let group = queue.submit_group((0..4).map(FakeItem::new).collect::<Vec<_>>()).unwrap();
    entered.wait();
    drop(group);
    entered.wait();
    let queue = Arc::new(queue);
    let inner = Arc::clone(&queue);
    device.call(move || drop(inner.submit(FakeItem::new(7)).unwrap().wait().unwrap())).unwrap();
    drop(queue);
    device.shutdown(Shutdown::Drain, Duration::from_secs(50)).unwrap();

    // The first by itself; the second inside of the closure, in a pool of its own.
    assert_eq!(*ran.lock().unwrap(), [1, 2]);
    let dropped = dropped.lock().unwrap();
    let delivered: Vec<_> = dropped.iter().filter(|(name, _)| name.ends_with('d')).collect();
    assert!(!delivered.is_empty(), "nothing was delivered beside the worker: {dropped:?}");
    assert!(dropped.iter().all(|(_, depth)| *depth >= 1), "{dropped:?}");
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
