//! Promise 6: room belongs to whoever stands first in line for it: the most urgent, and then who came
//! first.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::common::*;
use onelane::testing::{FakeItem, Gate, VirtualClock, within_a_minute};
use onelane::{BatchConfig, InferError, Priority, Refusal, Request, RequestError};

/// There is room for the light requests, but a heavy one waits for more: they go behind it.
#[test]
fn room_is_not_taken_past_those_in_line() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let config = BatchConfig::default().capacity_cost(4).max_batch_size(1);
        let (queue, gate, _) = gated(&device, config);
        let first = occupy(&queue, &gate);
        let filling = [0, 1].map(|value| queue.submit(FakeItem::new(value).cost(2)).unwrap());
        let hour = Duration::from_secs(3600);
        std::thread::scope(|scope| {
            let heavy = scope.spawn(|| queue.submit_timeout(FakeItem::new(10).cost(4), hour));
            clock.wait_for_sleepers(1);
            gate.open(1);
            gate.wait_for_arrivals(2);
            assert_eq!(queue.stats().waiting_cost, 2);
            let light = queue.try_submit(FakeItem::new(11));
            assert!(is_refused(&light, &Refusal::Full), "it went past the heavy one");
            let group = vec![Request::new(FakeItem::new(12))];
            let group = queue.try_submit_group(group);
            assert!(is_refused(&group, &Refusal::Full), "a group went past it");
            gate.open_for_good();
            assert_eq!(heavy.join().unwrap().unwrap().wait().unwrap(), 10);
        });
        wait_all(filling);
        first.wait().unwrap();
        // Nobody is in line any more.
        assert_eq!(queue.try_submit(FakeItem::new(13)).unwrap().wait().unwrap(), 13);
    });
}

/// Counts its calls.
#[derive(Default)]
struct Calls(AtomicUsize);

impl Wake for Calls {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A task that waits for room is not woken before its answer is there.
#[test]
fn a_task_in_line_is_left_alone() {
    within_a_minute(|| {
        let (queue, gate, _) = gated(&executor(), BatchConfig::default().capacity(1));
        let first = occupy(&queue, &gate);
        let second = queue.submit(FakeItem::new(2)).unwrap();
        let calls = Arc::new(Calls::default());
        let waker = Waker::from(Arc::clone(&calls));
        let mut third = pin!(queue.infer(FakeItem::new(3)));
        for _ in 0..3 {
            assert!(third.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        assert_eq!(calls.0.load(SeqCst), 0, "it was woken though there is no room");
        assert_eq!(queue.stats().waiting_for_room, 1);
        gate.open(1);
        gate.wait_for_arrivals(2);
        // The second's batch has been taken out, so the third is in.
        let stats = queue.stats();
        assert_eq!((stats.waiting_for_room, stats.waiting), (0, 1));
        assert_eq!(calls.0.load(SeqCst), 0, "it was woken though there is no answer");
        gate.open_for_good();
        wait_all([first, second]);
        soon("the answer", || calls.0.load(SeqCst) == 1);
        let polled = third.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(matches!(polled, Poll::Ready(Ok(3))), "{polled:?}");
    });
}

/// A future has a handle of its own: it waits for room though every other handle is gone.
#[test]
fn a_future_with_a_handle_of_its_own_keeps_its_queue() {
    within_a_minute(|| {
        let (queue, gate, _) = gated(&executor(), BatchConfig::default().capacity(1));
        let others = [occupy(&queue, &gate), queue.submit(FakeItem::new(2)).unwrap()];
        let mut third = queue.infer(FakeItem::new(3));
        assert!(pin!(&mut third).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(queue);
        let third = std::thread::spawn(move || block_on(third));
        gate.open_for_good();
        wait_all(others);
        assert_eq!(third.join().unwrap().unwrap(), 3);
    });
}

/// A task that is never polled again (its loop has stopped, its future is leaked) keeps nobody out.
#[test]
fn a_dead_waiter_keeps_nobody_out() {
    within_a_minute(|| {
        let config = BatchConfig::default().capacity(1).max_batch_size(1);
        let (queue, gate, seen) = gated(&executor(), config);
        let others = [occupy(&queue, &gate), queue.submit(FakeItem::new(1)).unwrap()];
        let mut dead = Box::pin(queue.infer(FakeItem::new(2)));
        assert!(dead.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        std::mem::forget(dead);
        let mut group = Box::pin(queue.submit_group_async([FakeItem::new(3)]));
        assert!(group.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        std::mem::forget(group);
        gate.open_for_good();
        wait_all(others);
        assert_eq!(queue.submit(FakeItem::new(4)).unwrap().wait().unwrap(), 4);
        // They were handed over, and nobody gave them up.
        assert_eq!(batches(&seen), [[1], [2], [3], [4]]);
        let stats = queue.stats();
        assert_eq!((stats.waiting, stats.waiting_for_room, stats.refused), (0, 0, 0));
    });
}

/// Promise 9: a worker that asks for room behind somebody else's request makes it.
#[test]
fn a_worker_makes_room_for_who_waits_before_it() {
    within_a_minute(|| {
        let device = executor();
        let config = BatchConfig::default().capacity(1).max_batch_size(1);
        let (queue, gate, seen) = gated(&device, config);
        gate.open_for_good();
        let (held, asked) = (Gate::new(), queue.clone());
        let passing = held.clone();
        let on_the_worker = device
            .submit(move || {
                passing.pass();
                let by_thread = asked.submit(FakeItem::new(3)).unwrap().wait().unwrap();
                let by_task = block_on(asked.infer(FakeItem::new(4))).unwrap();
                [by_thread, by_task]
            })
            .unwrap();
        held.wait_for_arrivals(1);
        let first = queue.submit(FakeItem::new(1)).unwrap();
        let mut dead = Box::pin(queue.infer(FakeItem::new(2)));
        assert!(dead.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        std::mem::forget(dead);
        held.open(1);
        assert_eq!(on_the_worker.wait().unwrap(), [3, 4]);
        assert_eq!(first.wait().unwrap(), 1);
        assert_eq!(batches(&seen), [[1], [2], [3], [4]]);
    });
}

/// Who gives up its place lets the next in, and is not computed.
#[test]
fn who_leaves_the_line_is_forgotten() {
    within_a_minute(|| {
        let config = BatchConfig::default().capacity_cost(4).max_batch_size(1);
        let (queue, gate, seen) = gated(&executor(), config);
        let first = occupy(&queue, &gate);
        let filling = queue.submit(FakeItem::new(1).cost(2)).unwrap();
        let context = &mut Context::from_waker(Waker::noop());
        let mut heavy = Box::pin(queue.infer(FakeItem::new(2).cost(4)));
        assert!(heavy.as_mut().poll(context).is_pending());
        let group = [FakeItem::new(3).cost(2), FakeItem::new(4).cost(1)];
        let mut group = Box::pin(queue.submit_group_async(group));
        assert!(group.as_mut().poll(context).is_pending());
        let mut light = Box::pin(queue.infer(FakeItem::new(5)));
        assert!(light.as_mut().poll(context).is_pending());
        assert_eq!(queue.stats().waiting_for_room, 4);
        drop(heavy);
        assert_eq!(queue.stats().waiting_for_room, 3, "there is no room for the group");
        drop(group);
        assert_eq!(queue.stats().waiting_for_room, 0);
        gate.open_for_good();
        wait_all([first, filling]);
        assert_eq!(block_on(light).unwrap(), 5);
        assert_eq!(batches(&seen), [[1], [5]]);
    });
}

/// A group waits for room for all of it, without a thread.
#[test]
fn a_group_of_a_task_waits_for_room() {
    within_a_minute(|| {
        let (queue, gate, _) = gated(&executor(), BatchConfig::default().capacity(2));
        let first = occupy(&queue, &gate);
        let waiting = queue.submit(FakeItem::new(1)).unwrap();
        let group = queue.submit_group_async([2, 3].map(FakeItem::new));
        let waiter = std::thread::spawn(move || block_on(group));
        soon("it waits", || queue.stats().waiting_for_room == 2);
        gate.open_for_good();
        assert_eq!(wait_all(waiter.join().unwrap().unwrap()), [2, 3]);
        wait_all([first, waiting]);
        queue.close();
        let refused = block_on(queue.submit_group_async([4].map(FakeItem::new))).unwrap_err();
        assert_eq!(*refused.reason(), Refusal::Closed);
        assert_eq!(refused.into_refused().len(), 1);
    });
}

fn urgent(value: u64) -> Request<FakeItem> {
    Request::new(FakeItem::new(value)).priority(Priority::Interactive)
}

fn bulk(value: u64) -> Request<FakeItem> {
    Request::new(FakeItem::new(value)).priority(Priority::Bulk)
}

/// An interactive request is not held up by bulk requests that stand in line before it, unless they
/// have stood there for two ageing intervals.
#[test]
fn the_line_goes_by_urgency_and_age() {
    let (second, early) = (Duration::from_secs(1), Duration::from_millis(1_999));
    for (later, order) in [(early, [3, 2]), (2 * second, [2, 3])] {
        within_a_minute(move || {
            let clock = VirtualClock::new();
            let config = BatchConfig::default().capacity(1).max_batch_size(1).ageing(second);
            let (queue, gate, seen) = gated(&executor_on(&clock), config);
            let others = [occupy(&queue, &gate), queue.submit(FakeItem::new(1)).unwrap()];
            let context = &mut Context::from_waker(Waker::noop());
            let mut patient = pin!(queue.infer(bulk(2)));
            assert!(patient.as_mut().poll(context).is_pending());
            clock.advance(later);
            let mut hasty = pin!(queue.infer(urgent(3)));
            assert!(hasty.as_mut().poll(context).is_pending());
            // The second batch is taken out: there is room for one.
            gate.open(1);
            gate.wait_for_arrivals(2);
            assert_eq!(queue.stats().waiting_for_room, 1);
            gate.open_for_good();
            wait_all(others);
            std::thread::scope(|scope| {
                let patient = scope.spawn(|| block_on(patient).unwrap());
                assert_eq!(block_on(hasty).unwrap(), 3);
                assert_eq!(patient.join().unwrap(), 2);
            });
            assert_eq!(batches(&seen), [[1], [order[0]], [order[1]]]);
        });
    }
}

/// A deadline counts from the submission, not from when the line has let the request in.
#[test]
fn a_deadline_runs_in_line_too() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let config = BatchConfig::default().capacity(1).max_batch_size(1);
        let (queue, gate, seen) = gated(&executor_on(&clock), config);
        let others = [occupy(&queue, &gate), queue.submit(FakeItem::new(1)).unwrap()];
        let ms = Duration::from_millis(1);
        let timed = |value| Request::new(FakeItem::new(value)).deadline_after(10 * ms);
        let context = &mut Context::from_waker(Waker::noop());
        let mut late = pin!(queue.infer(timed(2)));
        assert!(late.as_mut().poll(context).is_pending());
        clock.advance(9 * ms);
        let mut in_time = pin!(queue.infer(timed(3)));
        assert!(in_time.as_mut().poll(context).is_pending());
        clock.advance(ms);
        // The worker is busy, and there is no room; it is told all the same.
        let polled = late.as_mut().poll(context);
        let told =
            matches!(polled, Poll::Ready(Err(InferError::Failed(RequestError::DeadlineExceeded))));
        assert!(told, "{polled:?}");
        assert_eq!((queue.stats().expired, queue.stats().waiting_for_room), (1, 1));
        gate.open_for_good();
        assert_eq!(block_on(in_time).unwrap(), 3);
        wait_all(others);
        assert_eq!(batches(&seen), [[1], [3]]);
    });
}

/// A group is as urgent as the least urgent of its requests.
#[test]
fn a_group_does_not_bring_bulk_past_the_line() {
    within_a_minute(|| {
        let config = BatchConfig::default().capacity_cost(4).max_batch_size(1);
        let (queue, gate, _) = gated(&executor(), config);
        let first = occupy(&queue, &gate);
        let filling = queue.submit(FakeItem::new(0).cost(2)).unwrap();
        let mut heavy = pin!(queue.infer(FakeItem::new(10).cost(4)));
        assert!(heavy.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let mixed = queue.try_submit_group(vec![urgent(1), bulk(2)]);
        assert!(is_refused(&mixed, &Refusal::Full), "it went past a normal one");
        let group = queue.try_submit_group(vec![urgent(3), urgent(4)]).unwrap();
        gate.open_for_good();
        assert_eq!(wait_all(group), [3, 4]);
        wait_all([first, filling]);
        assert_eq!(block_on(heavy).unwrap(), 10);
    });
}

/// A task that looks when its deadline has passed, before the timer has, is told so, not that the
/// worker is gone.
#[test]
fn a_task_that_expires_in_line_is_told_of_its_deadline() {
    within_a_minute(|| {
        let (queue, gate, _) = gated(&executor(), BatchConfig::default().capacity(1));
        let first = occupy(&queue, &gate);
        let second = queue.submit(FakeItem::new(2)).unwrap();
        let request = Request::new(FakeItem::new(3)).deadline(std::time::Instant::now());
        let mut third = pin!(queue.infer(request));
        let polled = loop {
            match third.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => std::thread::yield_now(),
                Poll::Ready(polled) => break polled,
            }
        };
        assert!(
            matches!(polled, Err(InferError::Failed(RequestError::DeadlineExceeded))),
            "{polled:?}"
        );
        gate.open_for_good();
        wait_all([first, second]);
        let stats = queue.stats();
        assert_eq!((stats.expired, stats.submitted, stats.completed), (1, 3, 2));
    });
}
