//! Promises 1 and 7: each request is answered once, or cancelled, or expires.

use std::time::Duration;

use super::{End, ask, echo, executor, model};
use crate::testing::FakeItem;
use crate::{BatchConfig, Request, RequestError};

/// Promise 1: three clients and a worker; each request is answered once, with its own answer.
#[test]
fn submit_worker_complete() {
    model("submit_worker_complete", 2, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let clients = [1, 2].map(|value| {
            let queue = queue.clone();
            loom::thread::spawn(move || ask(&queue, value))
        });
        assert_eq!(ask(&queue, 3), End::Answered);
        for client in clients {
            assert_eq!(client.join().unwrap(), End::Answered);
        }
        let stats = queue.stats();
        assert_eq!((stats.submitted, stats.completed), (3, 3));
        assert_eq!((stats.waiting, stats.running), (0, 0));
    });
}

/// Promise 1: two threads sleep on one event, and are answered by one batch, or by two.
fn sharing_an_event(name: &str, max_batch_size: usize) {
    model(name, 3, move || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default().max_batch_size(max_batch_size));
        let requests = [1, 2, 3].map(FakeItem::new);
        let mut handles = queue.submit_group(requests).unwrap();
        let (third, second) = (handles.pop().unwrap(), handles.pop().unwrap());
        let client = loom::thread::spawn(move || assert_eq!(third.wait().unwrap(), 3));
        assert_eq!(second.wait().unwrap(), 2);
        client.join().unwrap();
    });
}

/// Promise 1, answered by one batch.
#[test]
fn sharing_an_event_and_a_batch() {
    sharing_an_event("sharing_an_event_and_a_batch", 4);
}

/// Promise 1: the answer to one wakes the other for nothing, who goes back to sleep.
#[test]
fn sharing_an_event_and_no_batch() {
    sharing_an_event("sharing_an_event_and_no_batch", 2);
}

/// Promise 7: a dropped handle counts its request as cancelled or completed, never both, and its
/// batch-mate is answered.
#[test]
fn cancel_against_complete() {
    model("cancel_against_complete", 3, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let cancelled = queue.submit(FakeItem::new(1)).unwrap();
        let canceller = loom::thread::spawn(move || drop(cancelled));
        assert_eq!(ask(&queue, 2), End::Answered);
        canceller.join().unwrap();
        // Whatever still runs has ended after this.
        assert_eq!(ask(&queue, 3), End::Answered);
        let stats = queue.stats();
        assert_eq!(stats.completed + stats.cancelled, 3, "{stats:?}");
        assert_eq!((stats.waiting, stats.running), (0, 0));
    });
}

/// Promise 1: a wait that times out gives back a handle that still resolves.
#[test]
fn wait_with_timeout_against_complete() {
    model("wait_with_timeout_against_complete", 2, || {
        let (device, clock) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let handle = queue.submit(FakeItem::new(1)).unwrap();
        let second = Duration::from_secs(1);
        let time = loom::thread::spawn(move || clock.advance(second));
        let answer = match handle.wait_timeout(second) {
            Ok(answer) => answer,
            Err(handle) => handle.wait(),
        };
        assert_eq!(answer.unwrap(), 1);
        time.join().unwrap();
        assert_eq!(queue.stats().completed, 1);
    });
}

/// Promise 7: a request starts before its deadline or is answered `DeadlineExceeded`; the thread
/// that waits is told in both cases.
#[test]
fn deadline_against_dispatch() {
    model("deadline_against_dispatch", 2, || {
        let (device, clock) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let second = Duration::from_secs(1);
        let request = Request::new(FakeItem::new(1)).deadline_after(second);
        let time = loom::thread::spawn(move || clock.advance(second));
        let answer = queue.submit(request).unwrap().wait();
        time.join().unwrap();
        let stats = queue.stats();
        match answer {
            Ok(1) => assert_eq!((stats.completed, stats.expired), (1, 0)),
            Err(RequestError::DeadlineExceeded) => {
                assert_eq!((stats.completed, stats.expired), (0, 1));
            }
            other => panic!("{other:?}"),
        }
    });
}
