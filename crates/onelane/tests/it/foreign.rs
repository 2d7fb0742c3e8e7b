//! Promise 9 and 10: code of others (wakers, destructors, keys, subscribers) never runs under a lock,
//! and harms nobody, whatever it does.

use std::cell::RefCell;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock};
use std::task::{Context, RawWaker, RawWakerVTable, Waker};

use onelane::testing::{FakeEngine, FakeItem, Gate, within_a_minute};
use onelane::{
    BatchConfig, BatchItem, BatchQueue, DeviceExecutor, Engine, EngineError, Health, RequestError,
};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::common::*;

/// What a waker does when it is cloned or dropped.
struct Curious {
    queue: BatchQueue<FakeEngine>,
    armed: AtomicBool,
    panics: bool,
    calls: AtomicUsize,
}

impl Curious {
    fn look(&self) {
        if self.armed.load(SeqCst) {
            self.calls.fetch_add(1, SeqCst);
            assert!(!self.panics, "a waker that panics");
            let _ = self.queue.health();
            let _ = self.queue.stats();
        }
    }
}

// SAFETY: the data is a leaked `Curious`, which is `Sync` and lives for ever, so a waker owns nothing.
const CURIOUS: RawWakerVTable = RawWakerVTable::new(
    |data| {
        // SAFETY: as above.
        unsafe { &*data.cast::<Curious>() }.look();
        RawWaker::new(data, &CURIOUS)
    },
    |_| {},
    |_| {},
    // SAFETY: as above.
    |data| unsafe { &*data.cast::<Curious>() }.look(),
);

#[test]
fn wakers_are_cloned_and_dropped_outside_the_locks() {
    for panics in [false, true] {
        within_a_minute(move || {
            let device = executor();
            let (queue, gate, _) = gated(&device, BatchConfig::default().capacity(1));
            let others = [occupy(&queue, &gate), queue.submit(FakeItem::new(1)).unwrap()];
            let (armed, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
            let curious: &'static Curious =
                Box::leak(Box::new(Curious { queue: queue.clone(), armed, panics, calls }));
            let data = std::ptr::from_ref(curious).cast();
            // SAFETY: see `CURIOUS`.
            let waker = unsafe { Waker::from_raw(RawWaker::new(data, &CURIOUS)) };
            let mut in_line = Box::pin(queue.infer(FakeItem::new(2)));
            assert!(in_line.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            curious.armed.store(true, SeqCst);
            if !panics {
                // Another waker takes its place, and it is dropped.
                let noop = &mut Context::from_waker(Waker::noop());
                assert!(in_line.as_mut().poll(noop).is_pending());
                assert!(in_line.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
                assert!(curious.calls.load(SeqCst) > 0);
            }
            gate.open_for_good();
            wait_all(others);
            soon("it is answered", || queue.stats().completed == 3);
            curious.armed.store(false, SeqCst);
            assert_eq!(block_on(in_line).unwrap(), 2);
            assert_eq!(device.call(|| 1).unwrap(), 1);
            assert_eq!(queue.health(), Health::Ready);
        });
    }
}

/// A key whose comparison and destructor ask the queue that they are in.
struct Nosy(u64);

static NOSY: OnceLock<BatchQueue<NosyEngine>> = OnceLock::new();

impl PartialEq for Nosy {
    fn eq(&self, other: &Self) -> bool {
        if self.0 == 13 || other.0 == 13 {
            let _ = NOSY.get().map(BatchQueue::health);
        }
        self.0 == other.0
    }
}

impl Eq for Nosy {}

impl Hash for Nosy {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl Drop for Nosy {
    fn drop(&mut self) {
        let _ = NOSY.get().map(BatchQueue::stats);
    }
}

struct NosyItem(u64);

impl BatchItem for NosyItem {
    type Key = Nosy;
    fn key(&self) -> Nosy {
        Nosy(self.0)
    }
}

struct NosyEngine;

impl Engine for NosyEngine {
    type Item = NosyItem;
    type Output = u64;
    fn infer(&mut self, batch: &[NosyItem]) -> Result<Vec<u64>, EngineError> {
        Ok(batch.iter().map(|item| item.0).collect())
    }
}

#[test]
fn a_key_may_use_its_queue_when_it_is_dropped_and_is_told_not_to_when_it_is_compared() {
    within_a_minute(|| {
        let queue =
            BatchQueue::new(&executor(), BatchConfig::default(), || Ok(NosyEngine)).unwrap();
        let _ = NOSY.set(queue.clone());
        // More keys than are kept, so that some are dropped with their groups.
        for value in 100..200 {
            assert_eq!(queue.submit(NosyItem(value)).unwrap().wait().unwrap(), value);
        }
        let error = queue.submit(NosyItem(13)).unwrap().wait().unwrap_err();
        assert!(matches!(&error, RequestError::Panicked(why) if why.contains("Eq")), "{error}");
        assert_eq!(queue.submit(NosyItem(1)).unwrap().wait().unwrap(), 1);
        assert_eq!(queue.stats().failed, 1);
    });
}

/// The subscriber of the process looks at a queue when it sees an event or a span, or panics.
struct Watching;

static WATCHED: Mutex<Option<(BatchQueue<FakeEngine>, bool)>> = Mutex::new(None);

std::thread_local! {
    /// A subscriber's own work is not watched.
    static LOOKS: RefCell<bool> = const { RefCell::new(false) };
}

fn watch() {
    // Not this test's own threads: those of the executor.
    let is_worker = std::thread::current().name().is_some_and(|name| name.contains("watched"));
    if !is_worker || LOOKS.replace(true) {
        return;
    }
    let watched = WATCHED.lock().unwrap().clone();
    if let Some((queue, panics)) = watched {
        let _ = queue.health();
        let _ = queue.stats();
        LOOKS.set(false);
        assert!(!panics, "a subscriber that panics");
    }
    LOOKS.set(false);
}

impl Subscriber for Watching {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        watch();
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {
        watch();
    }
    fn enter(&self, _: &Id) {
        watch();
    }
    fn exit(&self, _: &Id) {
        watch();
    }
}

#[test]
fn a_subscriber_may_look_at_the_queue_and_may_panic() {
    within_a_minute(|| {
        let _ = tracing::subscriber::set_global_default(Watching);
        for panics in [false, true] {
            let config = onelane::ExecutorConfig::new("watched");
            let device = DeviceExecutor::new(config).unwrap();
            let config = BatchConfig::default().max_rebuilds(0);
            let queue = BatchQueue::new(&device, config, || {
                Ok(FakeEngine::new(|batch| {
                    if batch[0].value == 666 {
                        std::panic::resume_unwind(Box::new("a bomb"));
                    }
                    Ok(batch.iter().map(|item| item.value).collect())
                }))
            })
            .unwrap();
            *WATCHED.lock().unwrap() = Some((queue.clone(), panics));
            assert_eq!(queue.submit(FakeItem::new(1)).unwrap().wait().unwrap(), 1);
            // A warning of the batch, and an error of the queue that gives up.
            let bomb = queue.submit(FakeItem::new(666)).unwrap().wait();
            assert!(matches!(bomb, Err(RequestError::Panicked(_))), "{bomb:?}");
            soon("it gives up", || matches!(queue.health(), Health::Failed(_)));
            assert_eq!(device.call(|| 2).unwrap(), 2);
            assert_eq!(device.health(), Health::Ready);
            *WATCHED.lock().unwrap() = None;
        }
    });
}

std::thread_local! {
    static KEPT: RefCell<Option<(DeviceExecutor, BatchQueue<FakeEngine>)>> =
        const { RefCell::new(None) };
}

/// Promise 8: the last handles may die anywhere, in a thread-local of their own worker too.
#[test]
fn the_last_handle_may_die_in_a_thread_local_of_its_worker() {
    within_a_minute(|| {
        for workers in [1, 2] {
            let device = executor_with(workers);
            let (kept, gate) = (device.clone(), Gate::new());
            let queue = BatchQueue::new(&device, BatchConfig::default(), || Ok(FakeEngine::echo()))
                .unwrap();
            device.call(move || KEPT.set(Some((kept, queue)))).unwrap();
            let passing = gate.clone();
            let busy = device.submit(move || passing.pass()).unwrap();
            gate.wait_for_arrivals(1);
            let ended = device.shutdown(onelane::Shutdown::Drain, std::time::Duration::ZERO);
            assert!(ended.is_err());
            drop(device);
            gate.open_for_good();
            busy.wait().unwrap();
        }
    });
}

/// Promise 8: a shutdown waits no longer than it is told, whatever a worker's thread-locals wait for.
#[test]
fn what_a_thread_local_of_a_worker_waits_for_is_not_waited_for() {
    struct Waits(Gate);
    impl Drop for Waits {
        fn drop(&mut self) {
            self.0.pass();
        }
    }
    std::thread_local! {
        static WAITS: RefCell<Option<Waits>> = const { RefCell::new(None) };
    }
    within_a_minute(|| {
        for workers in [1, 2] {
            let (device, gate) = (executor_with(workers), Gate::new());
            let waits = Waits(gate.clone());
            device.call(move || WAITS.set(Some(waits))).unwrap();
            let shutdown = |timeout| device.shutdown(onelane::Shutdown::Drain, timeout);
            assert!(shutdown(std::time::Duration::ZERO).is_err());
            gate.wait_for_arrivals(1);
            let timeout = shutdown(std::time::Duration::from_millis(10));
            assert!(matches!(timeout, Err(onelane::ShutdownError::Timeout(_))), "{timeout:?}");
            gate.open_for_good();
            assert_eq!(shutdown(std::time::Duration::MAX), Ok(()));
        }
    });
}

/// Costs that add up to more than a number can hold are bounded by it.
#[test]
fn costs_saturate() {
    within_a_minute(|| {
        let device = executor();
        let config = BatchConfig::default().capacity(8);
        let queue = BatchQueue::new(&device, config, || Ok(FakeEngine::echo())).unwrap();
        for value in 0..3 {
            let heavy = FakeItem::new(value).cost(usize::MAX);
            assert_eq!(queue.submit(heavy).unwrap().wait().unwrap(), value);
        }
        let group = [1, 2].map(|value| FakeItem::new(value).cost(usize::MAX / 2 + 1));
        let handles = group.map(|heavy| queue.submit(heavy).unwrap());
        assert_eq!(wait_all(handles), [1, 2]);
        assert_eq!(queue.health(), Health::Ready);
        assert_eq!(queue.stats().completed, 5);
        assert_eq!(device.call(|| 1).unwrap(), 1);
    });
}

/// A recursion that a process's other threads survive does not end it on a worker.
#[test]
#[cfg_attr(miri, ignore = "an interpreter's stack is its own")]
fn a_worker_has_the_stack_that_it_is_given() {
    fn recurse(depth: usize) -> usize {
        let frame = std::hint::black_box([depth as u8; 4096]);
        if depth == 0 { usize::from(frame[0]) } else { recurse(depth - 1) + usize::from(frame[1]) }
    }
    within_a_minute(|| {
        // About 9 MiB, and 40.
        executor().call(|| recurse(1_000)).unwrap();
        let config = onelane::ExecutorConfig::new("test").stack_size(256 << 20);
        DeviceExecutor::new(config).unwrap().call(|| recurse(5_000)).unwrap();
        let too_small = onelane::ExecutorConfig::new("test").stack_size(1);
        assert!(too_small.validate().unwrap_err().to_string().contains("stack_size = 1"));
    });
}

/// Errors go where `Send` and `Sync` are asked for, whatever the input is.
#[test]
fn errors_are_send_and_sync() {
    struct NotSync(std::cell::Cell<u8>);
    fn takes<T: std::error::Error + Send + Sync>() {}
    takes::<onelane::InferError<NotSync>>();
    takes::<onelane::SubmitError<onelane::Request<NotSync>>>();
    let _ = NotSync(std::cell::Cell::new(0)).0;
    let read = || -> Result<(), EngineError> {
        std::fs::read("/there/is/no/such/file")?;
        Err("text")?;
        Ok(())
    };
    assert!(matches!(read(), Err(EngineError::Failed(_))));
}

/// Promise 7: before its first poll, and after.
#[test]
fn a_future_may_be_dropped_at_any_time() {
    within_a_minute(|| {
        let (queue, gate, seen) = gated(&executor(), BatchConfig::default().capacity(1));
        drop(queue.infer(FakeItem::new(1)));
        let first = occupy(&queue, &gate);
        {
            let waiting = pin!(queue.infer(FakeItem::new(2)));
            assert!(waiting.poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        gate.open_for_good();
        first.wait().unwrap();
        assert_eq!(queue.submit(FakeItem::new(3)).unwrap().wait().unwrap(), 3);
        assert_eq!(batches(&seen), [[3]]);
        assert_eq!(queue.stats().cancelled, 1);
    });
}
