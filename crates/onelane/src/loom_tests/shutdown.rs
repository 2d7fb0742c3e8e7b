//! Promise 8: a shutdown, whoever asks for it and whatever goes on, ends, and loses nothing.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::{End, NEVER, ask, echo, executor, model};
use crate::testing::{FakeEngine, FakeItem};
use crate::{BatchConfig, BatchQueue, BuildError, Request, RequestError, Shutdown};

fn submit_against_shutdown(name: &str, mode: Shutdown) {
    model(name, 3, move || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let client = loom::thread::spawn(move || ask(&queue, 1));
        device.shutdown(mode, NEVER).unwrap();
        let end = client.join().unwrap();
        assert!(mode == Shutdown::Abort || end != End::Closed, "a drain lost a request");
    });
}

/// Promises 1 and 8: a request is refused, or answered; nothing falls in between.
#[test]
fn submit_against_drain() {
    submit_against_shutdown("submit_against_drain", Shutdown::Drain);
}

/// Promises 1 and 8, aborting.
#[test]
fn submit_against_abort() {
    submit_against_shutdown("submit_against_abort", Shutdown::Abort);
}

/// Promises 1 and 8: the same, against the queue's own shutdown while its executor lives on.
#[test]
fn submit_against_queue_shutdown() {
    model("submit_against_queue_shutdown", 3, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let other = queue.clone();
        let client = loom::thread::spawn(move || ask(&other, 1));
        queue.shutdown(Shutdown::Drain, NEVER).unwrap();
        // The engine is gone, and the queue with it: what was counted does not change any more.
        let stats = queue.stats();
        assert_eq!((stats.submitted, stats.waiting, stats.running), (stats.completed, 0, 0));
        assert_ne!(client.join().unwrap(), End::Closed, "a drain lost a request");
    });
}

/// Promise 8: when `shutdown` has returned, every accepted request has been answered already.
#[test]
fn nothing_is_open_after_shutdown() {
    model("nothing_is_open_after_shutdown", 3, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let client = loom::thread::spawn(move || queue.submit(FakeItem::new(1)).ok());
        device.shutdown(Shutdown::Drain, NEVER).unwrap();
        if let Some(mut handle) = client.join().unwrap() {
            let mut context = Context::from_waker(Waker::noop());
            let polled = Pin::new(&mut handle).poll(&mut context);
            assert!(matches!(polled, Poll::Ready(Ok(1))), "{polled:?}");
        }
    });
}

/// Promises 1 and 8: a queue is made or refused while its executor ends; `new` does not hang.
#[test]
fn new_against_shutdown() {
    model("new_against_shutdown", 2, || {
        let (device, _) = executor(1);
        let other = device.clone();
        let client = loom::thread::spawn(move || {
            let config = BatchConfig::default();
            match BatchQueue::new(&other, config, || Ok(FakeEngine::echo())) {
                Ok(queue) => ask(&queue, 1),
                Err(BuildError::Closed(_)) => End::Refused,
                Err(other) => panic!("{other}"),
            }
        });
        device.shutdown(Shutdown::Drain, NEVER).unwrap();
        client.join().unwrap();
    });
}

/// Promises 1 and 8: one client closes the queue, another the executor; both return.
#[test]
fn two_shutdowns() {
    model("two_shutdowns", 3, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let handle = queue.submit(FakeItem::new(1)).unwrap();
        let client = loom::thread::spawn(move || queue.shutdown(Shutdown::Drain, NEVER));
        device.shutdown(Shutdown::Drain, NEVER).unwrap();
        client.join().unwrap().unwrap();
        assert_eq!(handle.wait().unwrap(), 1);
    });
}

/// Promises 7 and 8: the last waiting request of a queue that closes is removed by its deadline; the
/// shutdown that waits for that returns.
#[test]
fn deadline_against_shutdown() {
    model("deadline_against_shutdown", 2, || {
        let (device, clock) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let second = Duration::from_secs(1);
        let request = Request::new(FakeItem::new(1)).deadline_after(second);
        let handle = queue.submit(request).unwrap();
        let time = loom::thread::spawn(move || clock.advance(second));
        device.shutdown(Shutdown::Drain, NEVER).unwrap();
        time.join().unwrap();
        let answer = handle.wait();
        assert!(matches!(answer, Ok(1) | Err(RequestError::DeadlineExceeded)), "{answer:?}");
    });
}

/// Promise 8: the last handle goes while a batch runs; what was accepted is answered.
#[test]
fn last_handle_dropped_while_a_batch_runs() {
    model("last_handle_dropped_while_a_batch_runs", 3, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default().max_batch_size(1));
        let handles = [1, 2].map(|value| queue.submit(FakeItem::new(value)).unwrap());
        let dropper = loom::thread::spawn(move || {
            drop(queue);
            drop(device);
        });
        for (handle, value) in handles.into_iter().zip([1, 2]) {
            assert_eq!(handle.wait().unwrap(), value);
        }
        dropper.join().unwrap();
    });
}

/// Promise 8: the last handle may go on the worker itself, which cannot join itself.
#[test]
fn last_handle_dropped_on_the_worker() {
    model("last_handle_dropped_on_the_worker", 2, || {
        let (device, _) = executor(1);
        let held = device.clone();
        let handle = device.submit(move || drop(held)).unwrap();
        drop(device);
        assert!(handle.wait().is_ok());
    });
}
