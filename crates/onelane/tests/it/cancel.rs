//! Promise 7: cancellation and deadlines remove a request before compute.

use std::future::Future;
use std::task::{Context, Waker};
use std::time::Duration;

use crate::common::*;
use onelane::testing::{FakeItem, VirtualClock, within_a_minute};
use onelane::{BatchConfig, Request, RequestError};

#[test]
fn a_dropped_handle_removes_its_request_before_compute() {
    within_a_minute(|| {
        let device = executor();
        let (queue, gate, seen) = gated(&device, BatchConfig::default().capacity(3));
        let first = occupy(&queue, &gate);
        let mut handles: Vec<_> =
            (0..3).map(|value| queue.submit(FakeItem::new(value)).unwrap()).collect();
        drop(handles.remove(1));
        let stats = queue.stats();
        assert_eq!((stats.waiting, stats.cancelled), (2, 1));
        // Its room is free at once.
        handles.push(queue.try_submit(FakeItem::new(3)).unwrap());
        gate.open_for_good();
        first.wait().unwrap();
        assert_eq!(wait_all(handles), [0, 2, 3]);
        assert_eq!(batches(&seen), [[0, 2, 3]]);
    });
}

#[test]
fn cancelling_what_runs_hurts_nobody() {
    within_a_minute(|| {
        let device = executor();
        let (queue, gate, _) = gated(&device, BatchConfig::default());
        let running = occupy(&queue, &gate);
        drop(running);
        gate.open_for_good();
        assert_eq!(queue.submit(FakeItem::new(1)).unwrap().wait().unwrap(), 1);
        let stats = queue.stats();
        assert_eq!((stats.completed, stats.cancelled), (2, 0));
    });
}

#[test]
fn a_passed_deadline_answers_without_compute() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let (queue, gate, seen) = gated(&device, BatchConfig::default());
        let first = occupy(&queue, &gate);
        let second = Duration::from_secs(1);
        let submit = |value, after| {
            queue.submit(Request::new(FakeItem::new(value)).deadline_after(after)).unwrap()
        };
        let early = submit(1, second);
        let late = submit(2, 10 * second);
        clock.advance(second);
        gate.open_for_good();
        first.wait().unwrap();
        assert!(matches!(early.wait(), Err(RequestError::DeadlineExceeded)));
        assert_eq!(late.wait().unwrap(), 2);
        assert_eq!(batches(&seen), [[2]]);
        assert_eq!(queue.stats().expired, 1);
    });
}

/// The worker is busy for good; the waiting thread itself sees its deadline pass.
#[test]
fn a_thread_that_waits_is_told_at_the_deadline() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let (queue, gate, _) = gated(&device, BatchConfig::default());
        let first = occupy(&queue, &gate);
        let second = Duration::from_secs(1);
        std::thread::scope(|scope| {
            let request = Request::new(FakeItem::new(1)).deadline_after(second);
            let handle = queue.submit(request).unwrap();
            let waiter = scope.spawn(|| handle.wait());
            clock.wait_for_sleepers(1);
            clock.advance(second);
            let answer = waiter.join().unwrap();
            assert!(matches!(answer, Err(RequestError::DeadlineExceeded)), "{answer:?}");
        });
        assert_eq!(queue.stats().waiting, 0);
        gate.open_for_good();
        first.wait().unwrap();
    });
}

#[test]
fn a_deadline_that_passes_while_running_delivers() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let (queue, gate, _) = gated(&device, BatchConfig::default());
        let second = Duration::from_secs(1);
        let request = Request::new(FakeItem::new(1)).deadline_after(second);
        let handle = queue.submit(request).unwrap();
        gate.wait_for_arrivals(1);
        clock.advance(2 * second);
        gate.open_for_good();
        assert_eq!(handle.wait().unwrap(), 1);
    });
}

#[test]
fn wait_timeout_gives_the_handle_back() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let (queue, gate, _) = gated(&device, BatchConfig::default());
        let handle = occupy(&queue, &gate);
        let handle = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| handle.wait_timeout(Duration::from_secs(1)));
            clock.wait_for_sleepers(1);
            clock.advance(Duration::from_secs(1));
            waiter.join().unwrap().unwrap_err()
        });
        gate.open_for_good();
        assert_eq!(handle.wait_timeout(Duration::from_secs(1)).unwrap().unwrap(), u64::MAX);
    });
}

#[test]
fn a_dropped_future_cancels_and_gives_up_its_place_in_line() {
    within_a_minute(|| {
        let device = executor();
        let (queue, gate, seen) = gated(&device, BatchConfig::default().capacity(1));
        let first = occupy(&queue, &gate);
        let mut context = Context::from_waker(Waker::noop());
        {
            let mut waiting = Box::pin(queue.infer(FakeItem::new(1)));
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            let mut in_line = Box::pin(queue.infer(FakeItem::new(2)));
            assert!(in_line.as_mut().poll(&mut context).is_pending());
            drop(in_line);
            drop(waiting);
        }
        let next = queue.try_submit(FakeItem::new(3)).expect("both have left");
        gate.open_for_good();
        first.wait().unwrap();
        assert_eq!(next.wait().unwrap(), 3);
        assert_eq!(batches(&seen), [[3]]);
    });
}

#[test]
fn a_future_resolves_on_any_runtime() {
    within_a_minute(|| {
        let device = executor();
        let (queue, gate, _) = gated(&device, BatchConfig::default().capacity(1));
        gate.open_for_good();
        let count = if cfg!(miri) { 5 } else { 50 };
        let answers: Vec<u64> =
            (0..count).map(|value| block_on(queue.infer(FakeItem::new(value))).unwrap()).collect();
        assert_eq!(answers, (0..count).collect::<Vec<_>>());
        let handle = queue.submit(FakeItem::new(5)).unwrap();
        assert_eq!(block_on(handle).unwrap(), 5);
    });
}
