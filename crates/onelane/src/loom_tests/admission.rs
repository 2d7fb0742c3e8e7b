//! Promise 6: whoever waits for room gets it, or is told; nobody who has gone keeps it.

use std::future::Future;
use std::task::{Context, Waker};
use std::time::Duration;

use super::{End, NEVER, ask, echo, executor, model};
use crate::testing::FakeItem;
use crate::{BatchConfig, Priority, Refusal, Request, RequestError, Shutdown};

/// Promise 6: whoever waits for room gets it; no wake-up is lost between dispatch and admission.
#[test]
fn admission_against_dispatch() {
    model("admission_against_dispatch", 2, || {
        let (device, _) = executor(1);
        let config = BatchConfig::default().capacity(1).max_batch_size(1);
        let queue = echo(&device, config);
        let other = queue.clone();
        let client = loom::thread::spawn(move || {
            let handles = [1, 2].map(|value| other.submit(FakeItem::new(value)).unwrap());
            handles.map(|handle| handle.wait().unwrap())
        });
        assert_eq!(ask(&queue, 3), End::Answered);
        assert_eq!(client.join().unwrap(), [1, 2]);
        let stats = queue.stats();
        assert_eq!((stats.submitted, stats.completed, stats.refused), (3, 3, 0));
    });
}

/// Promise 6: whoever leaves the line for room lets the next one in.
#[test]
fn leaving_the_line_against_dispatch() {
    model("leaving_the_line_against_dispatch", 2, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default().capacity(1).max_batch_size(1));
        let (first, second) = (queue.clone(), queue.clone());
        let impatient = loom::thread::spawn(move || {
            let mut context = Context::from_waker(Waker::noop());
            let mut future = Box::pin(first.infer(FakeItem::new(1)));
            // In line, waiting or answered: it leaves.
            let _ = future.as_mut().poll(&mut context);
        });
        let client = loom::thread::spawn(move || ask(&second, 2));
        assert_eq!(ask(&queue, 3), End::Answered);
        impatient.join().unwrap();
        assert_eq!(client.join().unwrap(), End::Answered);
    });
}

/// Promise 6: whoever is overtaken in the line for room, by one who goes in or leaves, is told of room.
#[test]
fn overtaking_in_line_against_dispatch() {
    model("overtaking_in_line_against_dispatch", 2, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default().capacity(1).max_batch_size(1));
        let urgent = |value| Request::new(FakeItem::new(value)).priority(Priority::Interactive);
        let other = queue.clone();
        let client = loom::thread::spawn(move || ask(&other, 2));
        let mut context = Context::from_waker(Waker::noop());
        let mut future = Box::pin(queue.infer(urgent(1)));
        let _ = future.as_mut().poll(&mut context);
        let passing = queue.try_submit(urgent(3)).ok();
        drop(future);
        assert_eq!(client.join().unwrap(), End::Answered);
        if let Some(handle) = passing {
            assert_eq!(handle.wait().unwrap(), 3);
        }
    });
}

/// Promise 8: whoever waits for room is told that the queue closes.
#[test]
fn admission_against_close() {
    model("admission_against_close", 2, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default().capacity(1).max_batch_size(1));
        let waiting = queue.submit(FakeItem::new(1)).unwrap();
        let other = queue.clone();
        let client = loom::thread::spawn(move || ask(&other, 2));
        queue.close();
        assert_ne!(client.join().unwrap(), End::Closed);
        assert_eq!(waiting.wait().unwrap(), 1);
    });
}

/// Promise 6: a task that is never polled again keeps nobody out: its request is handed over.
#[test]
fn a_dead_waiter_against_dispatch() {
    model("a_dead_waiter_against_dispatch", 2, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default().capacity(1).max_batch_size(1));
        let other = queue.clone();
        let dead = loom::thread::spawn(move || {
            let mut context = Context::from_waker(Waker::noop());
            let mut future = Box::pin(other.infer(FakeItem::new(1)));
            let _ = future.as_mut().poll(&mut context);
            // Never polled again, and dropped when everything is over: the model wants its memory.
            future
        });
        assert_eq!(ask(&queue, 2), End::Answered);
        assert_eq!(ask(&queue, 3), End::Answered);
        let dead = dead.join().unwrap();
        device.shutdown(Shutdown::Drain, NEVER).unwrap();
        let stats = queue.stats();
        assert_eq!((stats.submitted, stats.completed, stats.cancelled), (3, 3, 0));
        drop(dead);
    });
}

/// Promise 6: room that is assigned to who gives up just then goes to the next.
#[test]
fn withdrawing_against_assignment() {
    model("withdrawing_against_assignment", 2, || {
        let (device, clock) = executor(1);
        let queue = echo(&device, BatchConfig::default().capacity(1).max_batch_size(1));
        let (first, second) = (queue.clone(), queue.clone());
        let minute = Duration::from_secs(60);
        let impatient =
            loom::thread::spawn(move || match first.submit_timeout(FakeItem::new(1), minute) {
                Ok(handle) => {
                    assert_eq!(handle.wait().unwrap(), 1);
                    1
                }
                Err(refused) => {
                    assert_eq!(*refused.reason(), Refusal::Full);
                    assert_eq!(refused.into_refused().into_input().value, 1);
                    0
                }
            });
        let client = loom::thread::spawn(move || ask(&second, 2));
        clock.advance(minute);
        assert_eq!(ask(&queue, 3), End::Answered);
        let accepted = impatient.join().unwrap();
        assert_eq!(client.join().unwrap(), End::Answered);
        device.shutdown(Shutdown::Drain, NEVER).unwrap();
        let stats = queue.stats();
        assert_eq!((stats.completed, stats.refused), (2 + accepted, 1 - accepted));
        assert_eq!(stats.waiting_for_room, 0);
    });
}

/// Promises 6 and 7: who waits for room is told of its deadline while the worker goes on.
#[test]
fn a_deadline_in_line_against_dispatch() {
    model("a_deadline_in_line_against_dispatch", 2, || {
        let (device, clock) = executor(1);
        let queue = echo(&device, BatchConfig::default().capacity(1).max_batch_size(1));
        let second = Duration::from_secs(1);
        let time = loom::thread::spawn(move || clock.advance(second));
        let filling = queue.submit(FakeItem::new(1)).unwrap();
        let late = Request::new(FakeItem::new(2)).deadline_after(second);
        let answer = queue.submit(late).unwrap().wait();
        assert!(matches!(answer, Ok(2) | Err(RequestError::DeadlineExceeded)), "{answer:?}");
        assert_eq!(filling.wait().unwrap(), 1);
        time.join().unwrap();
        let stats = queue.stats();
        assert_eq!((stats.submitted, stats.completed + stats.expired), (2, 2));
    });
}

/// Promise 6: a group that waits for room goes in whole, or is refused whole by the close.
#[test]
fn a_group_in_line_against_close() {
    model("a_group_in_line_against_close", 2, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default().capacity(2));
        let waiting = queue.submit(FakeItem::new(1)).unwrap();
        let other = queue.clone();
        let client =
            loom::thread::spawn(move || match other.submit_group([2, 3].map(FakeItem::new)) {
                Ok(handles) => {
                    handles.into_iter().map(|handle| handle.wait().unwrap()).sum::<u64>()
                }
                Err(refused) => refused.into_refused().len() as u64,
            });
        queue.close();
        assert!(matches!(client.join().unwrap(), 5 | 2));
        assert_eq!(waiting.wait().unwrap(), 1);
    });
}
