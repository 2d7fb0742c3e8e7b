//! What the behaviour tests share.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use onelane::testing::{FakeEngine, FakeItem, Gate, VirtualClock};
use onelane::{
    BatchConfig, BatchQueue, DeviceExecutor, ExecutorConfig, Refusal, RequestError, ResponseHandle,
    SubmitError,
};

/// An executor of one worker.
pub fn executor() -> DeviceExecutor {
    executor_with(1)
}

pub fn executor_with(workers: usize) -> DeviceExecutor {
    DeviceExecutor::new(ExecutorConfig::new("test").workers(workers)).unwrap()
}

/// An executor of one worker on a virtual clock.
pub fn executor_on(clock: &VirtualClock) -> DeviceExecutor {
    DeviceExecutor::new(ExecutorConfig::new("test").clock(clock.clone())).unwrap()
}

/// The batches that an engine has seen, each by its values.
pub type Seen = Arc<Mutex<Vec<Vec<u64>>>>;

/// A queue whose engine notes each batch and then waits at the gate.
pub fn gated(device: &DeviceExecutor, config: BatchConfig) -> (BatchQueue<FakeEngine>, Gate, Seen) {
    let (gate, seen) = (Gate::new(), Seen::default());
    let queue = {
        let (gate, seen) = (gate.clone(), seen.clone());
        BatchQueue::new(device, config, move || {
            let (gate, seen) = (gate.clone(), seen.clone());
            Ok(FakeEngine::new(move |batch| {
                let values: Vec<u64> = batch.iter().map(|item| item.value).collect();
                seen.lock().unwrap().push(values.clone());
                gate.pass();
                Ok(values)
            }))
        })
        .unwrap()
    };
    (queue, gate, seen)
}

/// Occupies the worker with a request of its own until the gate opens.
pub fn occupy(queue: &BatchQueue<FakeEngine>, gate: &Gate) -> ResponseHandle<u64> {
    let handle = queue.submit(FakeItem::new(u64::MAX).key(u64::MAX)).unwrap();
    gate.wait_for_arrivals(1);
    handle
}

/// The batches after the one that occupied the worker.
pub fn batches(seen: &Seen) -> Vec<Vec<u64>> {
    seen.lock().unwrap().iter().filter(|batch| **batch != [u64::MAX]).cloned().collect()
}

pub fn wait_all(handles: impl IntoIterator<Item = ResponseHandle<u64>>) -> Vec<u64> {
    handles.into_iter().map(|handle| handle.wait().unwrap()).collect()
}

/// The smallest runtime there is: one future, one thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}

/// Whether something was refused for this reason.
pub fn is_refused<T, R>(submitted: &Result<T, SubmitError<R>>, reason: &Refusal) -> bool {
    submitted.as_ref().is_err_and(|refused| refused.reason() == reason)
}

/// Waits for what must come soon and that nothing tells of.
pub fn soon(what: &str, has_come: impl Fn() -> bool) {
    let limit = Duration::from_secs(if cfg!(miri) { 600 } else { 30 });
    let begun = Instant::now();
    while !has_come() {
        assert!(begun.elapsed() < limit, "{what}: not in {limit:?}");
        std::thread::yield_now();
    }
}

/// Runs `values` as one batch and returns the answers.
pub fn as_one_batch(
    queue: &BatchQueue<FakeEngine>,
    gate: &Gate,
    values: &[u64],
) -> Vec<Result<u64, RequestError>> {
    let first = occupy(queue, gate);
    let handles: Vec<_> = values.iter().map(|&v| queue.submit(FakeItem::new(v)).unwrap()).collect();
    gate.open_for_good();
    first.wait().unwrap();
    handles.into_iter().map(|handle| handle.wait()).collect()
}
