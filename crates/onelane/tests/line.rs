//! Promise 6: room belongs to whoever stands first in line for it: the most urgent, and then who came
//! first.

mod common;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use common::*;
use onelane::testing::{FakeItem, VirtualClock, within_a_minute};
use onelane::{BatchConfig, InferError, Priority, Request, RequestError, SubmitError};

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
            assert!(matches!(light, Err(SubmitError::Full(_))), "it went past the heavy one");
            let group = vec![Request::new(FakeItem::new(12))];
            let group = queue.try_submit_group(group);
            assert!(matches!(group, Err(SubmitError::Full(_))), "a group went past it");
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

/// A task in line for room is not woken, and so not polled, before there is some.
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
        gate.open_for_good();
        wait_all([first, second]);
        // Its room came when the second's batch was taken out.
        assert_eq!(calls.0.load(SeqCst), 1);
        assert!(third.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    });
}

/// A future that owns its queue can be sent away: it stands in line though every other handle is gone.
#[test]
fn a_future_with_a_handle_of_its_own_keeps_its_queue() {
    within_a_minute(|| {
        let (queue, gate, _) = gated(&executor(), BatchConfig::default().capacity(1));
        let others = [occupy(&queue, &gate), queue.submit(FakeItem::new(2)).unwrap()];
        let mut third = queue.infer(FakeItem::new(3)).into_owned();
        assert!(pin!(&mut third).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(queue);
        let third = std::thread::spawn(move || block_on(third.into_owned()));
        gate.open_for_good();
        wait_all(others);
        assert_eq!(third.join().unwrap().unwrap(), 3);
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
            let calls = [(); 2].map(|()| Arc::new(Calls::default()));
            let wakers = calls.each_ref().map(|calls| Waker::from(Arc::clone(calls)));
            let mut contexts = wakers.each_ref().map(Context::from_waker);
            let mut patient = pin!(queue.infer(bulk(2)));
            assert!(patient.as_mut().poll(&mut contexts[0]).is_pending());
            clock.advance(later);
            let mut hasty = pin!(queue.infer(urgent(3)));
            assert!(hasty.as_mut().poll(&mut contexts[1]).is_pending());
            // The second batch is taken out: there is room for one.
            gate.open(1);
            gate.wait_for_arrivals(2);
            let woken = calls.each_ref().map(|calls| calls.0.load(SeqCst));
            assert_eq!(woken, if order[0] == 2 { [1, 0] } else { [0, 1] });
            // Who was not woken looks, too, and does not take it.
            for _ in 0..2 {
                assert!(patient.as_mut().poll(&mut contexts[0]).is_pending());
                assert!(hasty.as_mut().poll(&mut contexts[1]).is_pending());
            }
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
        gate.open(1);
        gate.wait_for_arrivals(2);
        assert!(late.as_mut().poll(context).is_pending(), "there is room for it");
        gate.open_for_good();
        let late = block_on(late);
        assert!(matches!(late, Err(InferError::Failed(RequestError::DeadlineExceeded))));
        assert_eq!(block_on(in_time).unwrap(), 3);
        wait_all(others);
        assert_eq!(batches(&seen), [[1], [3]]);
    });
}

/// Room that is there goes to the most urgent newcomer, though others stand in line for more of it or
/// were told of it. They are told again of the next.
#[test]
fn who_is_overtaken_in_line_gets_the_next_room() {
    within_a_minute(|| {
        let config = BatchConfig::default().capacity(1).max_batch_size(1);
        let (queue, gate, seen) = gated(&executor(), config);
        let mut others = vec![occupy(&queue, &gate), queue.submit(FakeItem::new(1)).unwrap()];
        let calls = Arc::new(Calls::default());
        let waker = Waker::from(Arc::clone(&calls));
        let mut patient = pin!(queue.infer(bulk(2)));
        assert!(patient.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        gate.open(1);
        gate.wait_for_arrivals(2);
        assert_eq!(calls.0.load(SeqCst), 1, "there is room, and nobody was told");
        let equal = queue.try_submit(bulk(9));
        assert!(matches!(equal, Err(SubmitError::Full(_))), "it went past the first in line");
        others.push(queue.try_submit(urgent(3)).unwrap());
        assert!(patient.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        gate.open(1);
        gate.wait_for_arrivals(3);
        assert_eq!(calls.0.load(SeqCst), 2, "there is room again, and nobody was told");
        assert!(patient.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        gate.open_for_good();
        assert_eq!(block_on(patient).unwrap(), 2);
        wait_all(others);
        assert_eq!(batches(&seen), [[1], [3], [2]]);
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
        assert!(matches!(mixed, Err(SubmitError::Full(_))), "it went past a normal one");
        let group = queue.try_submit_group(vec![urgent(3), urgent(4)]).unwrap();
        gate.open_for_good();
        assert_eq!(wait_all(group), [3, 4]);
        wait_all([first, filling]);
        assert_eq!(block_on(heavy).unwrap(), 10);
    });
}
