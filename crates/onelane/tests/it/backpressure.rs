//! Promise 6: what waits is bounded, in requests and in cost; a refusal gives the request back.

use std::future::Future;
use std::sync::Barrier;
use std::task::{Context, Waker};
use std::time::Duration;

use crate::common::*;
use onelane::testing::{FakeItem, VirtualClock, within_a_minute};
use onelane::{BatchConfig, Refusal, Request, Shutdown};

#[test]
fn a_full_queue_gives_the_request_back() {
    within_a_minute(|| {
        let device = executor();
        let (queue, gate, _) = gated(&device, BatchConfig::default().capacity(2));
        let first = occupy(&queue, &gate);
        let waiting = [1, 2].map(|value| queue.try_submit(FakeItem::new(value)).unwrap());
        let refused = queue.try_submit(FakeItem::new(3)).unwrap_err();
        assert!(*refused.reason() == Refusal::Full, "{refused}");
        assert_eq!(refused.into_refused().into_input(), FakeItem::new(3));
        let stats = queue.stats();
        assert_eq!((stats.submitted, stats.refused, stats.waiting, stats.running), (3, 1, 2, 1));
        gate.open_for_good();
        first.wait().unwrap();
        assert_eq!(wait_all(waiting), [1, 2]);
    });
}

#[test]
fn capacity_counts_cost_too() {
    within_a_minute(|| {
        let device = executor();
        let (queue, gate, _) = gated(&device, BatchConfig::default().capacity_cost(10));
        let first = occupy(&queue, &gate);
        let six = queue.try_submit(FakeItem::new(1).cost(6)).unwrap();
        assert!(queue.try_submit(FakeItem::new(2).cost(5)).is_err());
        let four = queue.try_submit(FakeItem::new(2).cost(4)).unwrap();
        assert_eq!(queue.stats().waiting_cost, 10);
        gate.open_for_good();
        wait_all([first, six, four]);
        assert_eq!(queue.stats().waiting_cost, 0);
    });
}

#[test]
fn the_load_is_what_waits_in_cost_and_what_waits_for_room_or_runs() {
    within_a_minute(|| {
        let device = executor();
        let (queue, gate, _) = gated(&device, BatchConfig::default().capacity_cost(10));
        assert_eq!(queue.load(), 0);
        let first = occupy(&queue, &gate);
        assert_eq!(queue.load(), 1, "one runs");
        let six = queue.try_submit(FakeItem::new(1).cost(6)).unwrap();
        assert_eq!(queue.load(), 7);
        let mut late = Box::pin(queue.infer(FakeItem::new(2).cost(5)));
        assert!(late.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(queue.load(), 8, "one waits for room");
        drop(late);
        gate.open_for_good();
        wait_all([first, six]);
        assert_eq!(queue.load(), 0);
        queue.shutdown(Shutdown::Drain, Duration::MAX).unwrap();
        assert_eq!(queue.load(), 0);
    });
}

#[test]
fn what_could_never_go_in_is_refused_at_once() {
    within_a_minute(|| {
        let device = executor();
        let config = BatchConfig::default().max_batch_cost(8).capacity(4);
        let (queue, _gate, _) = gated(&device, config);
        let refused = queue.submit(FakeItem::new(1).cost(9)).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains('9') && text.contains("max_batch_cost is 8"), "{text}");
        let group = (0..5).map(FakeItem::new);
        let refused = queue.submit_group(group).unwrap_err();
        assert!(refused.to_string().contains("capacity is 4"), "{refused}");
        assert_eq!(refused.into_refused().len(), 5);
        assert_eq!(queue.stats().refused, 6);
    });
}

#[test]
fn a_group_is_accepted_whole_or_not_at_all() {
    within_a_minute(|| {
        let device = executor();
        let (queue, gate, _) = gated(&device, BatchConfig::default().capacity(4));
        let first = occupy(&queue, &gate);
        let group = |n| (0..n).map(|value| Request::new(FakeItem::new(value))).collect::<Vec<_>>();
        let two = queue.try_submit_group(group(2)).unwrap();
        let refused = queue.try_submit_group(group(3)).unwrap_err();
        assert_eq!(refused.into_refused(), group(3));
        assert_eq!(queue.stats().waiting, 2, "a part of the refused group was accepted");
        let two_more = queue.try_submit_group(group(2)).unwrap();
        gate.open_for_good();
        first.wait().unwrap();
        assert_eq!(wait_all(two), [0, 1]);
        assert_eq!(wait_all(two_more), [0, 1]);
        assert!(queue.submit_group(group(0)).unwrap().is_empty());
    });
}

#[test]
fn submit_blocks_until_there_is_room() {
    within_a_minute(|| {
        let device = executor();
        let (queue, gate, _) = gated(&device, BatchConfig::default().capacity(1).max_batch_size(1));
        gate.open_for_good();
        let threads = 8;
        let each = if cfg!(miri) { 5 } else { 200 };
        let barrier = Barrier::new(threads);
        std::thread::scope(|scope| {
            for thread in 0..threads as u64 {
                let (queue, barrier) = (&queue, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    for i in 0..each {
                        let value = thread * 1000 + i;
                        let answer = queue.submit(FakeItem::new(value)).unwrap().wait();
                        assert_eq!(answer.unwrap(), value);
                    }
                });
            }
        });
        let stats = queue.stats();
        let all = threads as u64 * each;
        assert_eq!((stats.submitted, stats.completed, stats.refused), (all, all, 0));
    });
}

#[test]
fn submit_timeout_gives_up_and_gives_the_request_back() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let (queue, gate, _) = gated(&device, BatchConfig::default().capacity(1));
        let first = occupy(&queue, &gate);
        let waiting = queue.submit(FakeItem::new(1)).unwrap();
        std::thread::scope(|scope| {
            let late = scope.spawn(|| {
                queue.submit_timeout(FakeItem::new(2), Duration::from_secs(1)).unwrap_err()
            });
            clock.wait_for_sleepers(1);
            clock.advance(Duration::from_secs(1));
            let refused = late.join().unwrap();
            assert!(*refused.reason() == Refusal::Full);
            assert_eq!(refused.into_refused().into_input(), FakeItem::new(2));
        });
        gate.open_for_good();
        wait_all([first, waiting]);
        // Its place in the line is gone with it.
        assert_eq!(queue.try_submit(FakeItem::new(3)).unwrap().wait().unwrap(), 3);
    });
}

#[test]
fn a_group_that_waits_for_room_gives_up_whole() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let (queue, gate, _) = gated(&device, BatchConfig::default().capacity(3));
        let first = occupy(&queue, &gate);
        let waiting: Vec<_> =
            (0..2).map(|value| queue.submit(FakeItem::new(value)).unwrap()).collect();
        let group = || [5, 6].map(FakeItem::new);
        std::thread::scope(|scope| {
            let late = scope.spawn(|| queue.submit_group_timeout(group(), Duration::from_secs(1)));
            clock.wait_for_sleepers(1);
            clock.advance(Duration::from_secs(1));
            let refused = late.join().unwrap().unwrap_err();
            assert_eq!(*refused.reason(), Refusal::Full);
            assert_eq!(refused.into_refused().len(), 2);
            assert_eq!(queue.stats().waiting, 2);
        });
        gate.open_for_good();
        wait_all(waiting);
        first.wait().unwrap();
        wait_all(queue.submit_group_timeout(group(), Duration::from_secs(1)).unwrap());
    });
}

/// A heavy request is first in line; lighter ones that come later do not overtake it.
#[test]
fn room_is_given_first_come_first_served() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let config = BatchConfig::default().capacity_cost(4).max_batch_size(1);
        let (queue, gate, seen) = gated(&device, config);
        let first = occupy(&queue, &gate);
        let filling = [0, 1].map(|value| queue.submit(FakeItem::new(value).cost(2)).unwrap());
        let hour = Duration::from_secs(3600);
        std::thread::scope(|scope| {
            let heavy = scope.spawn(|| queue.submit_timeout(FakeItem::new(10).cost(4), hour));
            clock.wait_for_sleepers(1);
            let light = scope.spawn(|| queue.submit_timeout(FakeItem::new(11).cost(1), hour));
            clock.wait_for_sleepers(2);
            assert!(is_refused(&queue.try_submit(FakeItem::new(12)), &Refusal::Full));
            // One batch frees 2 of 4: enough for the light one, but it is not its turn.
            gate.open(1);
            gate.wait_for_arrivals(2);
            assert_eq!(queue.stats().waiting_cost, 2);
            gate.open_for_good();
            heavy.join().unwrap().unwrap().wait().unwrap();
            light.join().unwrap().unwrap().wait().unwrap();
        });
        wait_all(filling);
        first.wait().unwrap();
        assert_eq!(batches(&seen).concat(), [0, 1, 10, 11]);
    });
}

#[test]
fn closing_wakes_whoever_waits_for_room() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let (queue, gate, _) = gated(&device, BatchConfig::default().capacity(1));
        let first = occupy(&queue, &gate);
        let waiting = queue.submit(FakeItem::new(1)).unwrap();
        let queue = &queue;
        std::thread::scope(|scope| {
            let hour = Duration::from_secs(3600);
            let late = scope.spawn(move || queue.submit_timeout(FakeItem::new(2), hour));
            clock.wait_for_sleepers(1);
            queue.close();
            let refused = late.join().unwrap().unwrap_err();
            assert!(*refused.reason() == Refusal::Closed, "{refused}");
        });
        gate.open_for_good();
        wait_all([first, waiting]);
        queue.shutdown(Shutdown::Drain, Duration::from_secs(50)).unwrap();
    });
}
