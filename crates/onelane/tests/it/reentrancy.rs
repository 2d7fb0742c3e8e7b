//! Promise 9: on the worker, closures run inline, and waiting runs the queue's work inline or says
//! at once that it would deadlock.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::task::{Context, Waker};

use crate::common::*;
use onelane::testing::{FakeEngine, FakeItem, within_a_minute};
use onelane::{BatchConfig, BatchQueue, DeviceExecutor, EngineError, Refusal, RequestError};

type Shared<T> = Arc<OnceLock<T>>;

/// A queue whose engine asks `inner` for each of its items and adds one.
fn asking(
    device: &DeviceExecutor,
    inner: Shared<BatchQueue<FakeEngine>>,
) -> BatchQueue<FakeEngine> {
    BatchQueue::new(device, BatchConfig::default(), move || {
        let inner = inner.clone();
        Ok(FakeEngine::new(move |batch| {
            let inner = inner.get().expect("set before the first request");
            let ask = |item: &FakeItem| {
                let handle = inner.submit(*item).map_err(|e| EngineError::failed(e.to_string()))?;
                Ok(handle.wait().map_err(EngineError::failed)? + 1)
            };
            batch.iter().map(ask).collect()
        }))
    })
    .unwrap()
}

fn echo(device: &DeviceExecutor, config: BatchConfig) -> BatchQueue<FakeEngine> {
    BatchQueue::new(device, config, || Ok(FakeEngine::echo())).unwrap()
}

#[test]
fn a_closure_on_the_worker_runs_inline() {
    within_a_minute(|| {
        let device = executor();
        let inner = device.clone();
        let order = device
            .call(move || {
                let order = Arc::new(Mutex::new(vec!["before"]));
                let noted = order.clone();
                let handle = inner.submit(move || noted.lock().unwrap().push("inside")).unwrap();
                order.lock().unwrap().push("after");
                handle.wait().unwrap();
                assert!(inner.is_worker());
                let panicked = inner.call(|| panic!("inline")).unwrap_err();
                assert!(matches!(panicked, RequestError::Panicked(m) if m == "inline"));
                order.lock().unwrap().clone()
            })
            .unwrap();
        assert_eq!(order, ["before", "inside", "after"]);
        assert!(!device.is_worker());
    });
}

#[test]
fn an_engine_may_wait_for_another_queue_of_its_device() {
    within_a_minute(|| {
        let device = executor();
        let inner = Shared::default();
        let outer = asking(&device, inner.clone());
        assert!(inner.set(echo(&device, BatchConfig::default())).is_ok());
        let handles: Vec<_> =
            (0..20).map(|value| outer.submit(FakeItem::new(value)).unwrap()).collect();
        assert_eq!(wait_all(handles), (1..21).collect::<Vec<_>>());
    });
}

#[test]
fn waiting_for_ones_own_engine_is_refused_at_once() {
    within_a_minute(|| {
        let device = executor();
        let itself = Shared::default();
        let queue = asking(&device, itself.clone());
        assert!(itself.set(queue.clone()).is_ok());
        let error = queue.submit(FakeItem::new(1)).unwrap().wait().unwrap_err();
        assert!(error.to_string().contains("deadlock"), "{error}");
        // Nothing of it is left behind.
        let stats = queue.stats();
        assert_eq!((stats.waiting, stats.running), (0, 0));
        assert_eq!(stats.submitted, stats.failed + stats.cancelled);
    });
}

#[test]
fn a_cycle_through_a_second_queue_is_refused_at_once() {
    within_a_minute(|| {
        let device = executor();
        let (first, second) = (Shared::default(), Shared::default());
        let ping = asking(&device, second.clone());
        let pong = asking(&device, first.clone());
        assert!(first.set(ping.clone()).is_ok() && second.set(pong).is_ok());
        let error = ping.submit(FakeItem::new(1)).unwrap().wait().unwrap_err();
        assert!(error.to_string().contains("deadlock"), "{error}");
    });
}

#[test]
fn a_full_queue_is_emptied_inline_or_refuses() {
    within_a_minute(|| {
        let device = executor();
        let inner = echo(&device, BatchConfig::default().capacity(2).max_batch_size(1));
        let asked = inner.clone();
        let values = device
            .call(move || {
                let handles: Vec<_> =
                    (0..6).map(|value| asked.submit(FakeItem::new(value)).unwrap()).collect();
                wait_all(handles)
            })
            .unwrap();
        assert_eq!(values, [0, 1, 2, 3, 4, 5]);

        // From its own engine, there is nobody to make room.
        let itself: Shared<BatchQueue<FakeEngine>> = Shared::default();
        let known = itself.clone();
        let config = BatchConfig::default().capacity(1);
        let queue = BatchQueue::new(&device, config, move || {
            let itself = known.clone();
            Ok(FakeEngine::new(move |batch| {
                let queue = itself.get().expect("set before the first request");
                if batch[0].value == 0 {
                    let _kept = queue.try_submit(FakeItem::new(1)).unwrap();
                    let refused = queue.submit(FakeItem::new(2)).unwrap_err();
                    assert!(*refused.reason() == Refusal::WouldDeadlock, "{refused}");
                }
                Ok(vec![7; batch.len()])
            }))
        })
        .unwrap();
        assert!(itself.set(queue.clone()).is_ok());
        assert_eq!(queue.submit(FakeItem::new(0)).unwrap().wait().unwrap(), 7);
    });
}

#[test]
fn a_queue_can_be_made_on_the_worker() {
    within_a_minute(|| {
        for workers in [1, 3] {
            let device = executor_with(workers);
            let here = device.clone();
            let queue = device.call(move || echo(&here, BatchConfig::default())).unwrap();
            let handles: Vec<_> =
                (0..20).map(|v| queue.submit(FakeItem::new(v).key(v)).unwrap()).collect();
            assert_eq!(wait_all(handles), (0..20).collect::<Vec<_>>());
        }
    });
}

/// Two workers, each in the middle of a batch, wait for a request that the other one runs: the one
/// that closes the circle is told so; nobody hangs.
#[test]
fn workers_that_wait_for_each_other_are_told() {
    within_a_minute(|| {
        let device = executor_with(2);
        let both_run = Arc::new(Barrier::new(2));
        let handles: [Shared<Mutex<Option<_>>>; 2] = Default::default();
        // Each closure, once both run, waits for a handle of the other one.
        let outcomes = [0, 1].map(|me| {
            let (both_run, theirs) = (both_run.clone(), handles[1 - me].clone());
            let handle = device
                .submit(move || {
                    both_run.wait();
                    let theirs = theirs.wait();
                    let theirs = theirs.lock().unwrap().take();
                    let handle: onelane::ResponseHandle<u64> = theirs.expect("taken once");
                    match handle.wait() {
                        Ok(value) => value,
                        Err(RequestError::WouldDeadlock) => 1000 + me as u64,
                        Err(other) => panic!("{other}"),
                    }
                })
                .unwrap();
            assert!(handles[me].set(Mutex::new(Some(handle))).is_ok());
            me
        });
        assert_eq!(outcomes, [0, 1]);
        // The closures own each other's handles; that they end is all that can be seen: the
        // executor drains.
        let stats = loop {
            let stats = device.stats();
            if stats.completed == 2 {
                break stats;
            }
            std::thread::yield_now();
        };
        assert_eq!((stats.failed, stats.running), (0, 0));
    });
}

#[test]
fn an_engine_may_wait_for_what_another_worker_runs() {
    within_a_minute(|| {
        let device = executor_with(2);
        let inner = Shared::default();
        let outer = asking(&device, inner.clone());
        assert!(inner.set(echo(&device, BatchConfig::default())).is_ok());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let outer = &outer;
                scope.spawn(move || {
                    for i in 0..if cfg!(miri) { 5 } else { 200 } {
                        let value = thread * 1000 + i;
                        let handle = outer.submit(FakeItem::new(value).key(value)).unwrap();
                        assert_eq!(handle.wait().unwrap(), value + 1);
                    }
                });
            }
        });
    });
}

/// Who leaves a waker on a worker and goes on has nothing run for him, and is not taken to wait.
#[test]
fn a_worker_that_leaves_a_waker_does_not_wait() {
    within_a_minute(|| {
        let (here, there) = (executor(), executor());
        let (queue, other) =
            (echo(&here, BatchConfig::default()), echo(&there, BatchConfig::default()));
        let (inner, hold) = (queue.clone(), Arc::new(Barrier::new(2)));
        let (held, back) = (hold.clone(), here.clone());
        // The other worker asks this one, while this one has asked it and does not wait.
        let asking = there.submit(move || {
            held.wait();
            let mut handle = back.try_submit(|| 5).unwrap();
            let polled = Pin::new(&mut handle).poll(&mut Context::from_waker(Waker::noop()));
            held.wait();
            (handle, polled)
        });
        let asked = here
            .call(move || {
                let mut noop = Context::from_waker(Waker::noop());
                let mut handle = inner.try_submit(FakeItem::new(1)).unwrap();
                assert!(handle.poll_no_inline(&mut noop).is_pending(), "it ran inline");
                let mut infer = inner.infer(FakeItem::new(2));
                assert!(infer.poll_no_inline(&mut noop).is_pending(), "it ran inline");
                let mut elsewhere = other.try_submit(FakeItem::new(3)).unwrap();
                assert!(elsewhere.poll_no_inline(&mut noop).is_pending());
                hold.wait();
                hold.wait();
                (handle, infer, elsewhere)
            })
            .unwrap();
        let (handle, infer, elsewhere) = asked;
        let (asking, polled) = asking.unwrap().wait().unwrap();
        assert!(polled.is_pending(), "it was taken to wait: {polled:?}");
        assert_eq!(asking.wait().unwrap(), 5);
        assert_eq!((handle.wait().unwrap(), block_on(infer).unwrap()), (1, 2));
        assert_eq!(elsewhere.wait().unwrap(), 3);
    });
}

/// A closure that is submitted on the worker by who does not wait waits for its turn.
#[test]
fn a_closure_may_wait_for_its_turn_on_the_worker() {
    within_a_minute(|| {
        let device = executor();
        let inner = device.clone();
        let order = Arc::new(Mutex::new(Vec::new()));
        let noted = order.clone();
        let later = device
            .call(move || {
                let by_later = noted.clone();
                let later = inner.try_submit_no_inline(move || by_later.lock().unwrap().push(2));
                noted.lock().unwrap().push(1);
                later.unwrap()
            })
            .unwrap();
        later.wait().unwrap();
        assert_eq!(*order.lock().unwrap(), [1, 2]);
    });
}
