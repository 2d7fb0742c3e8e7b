//! Promise 6: room belongs to whoever stands first in line for it.

mod common;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use common::*;
use onelane::testing::{FakeItem, VirtualClock, within_a_minute};
use onelane::{BatchConfig, Request, SubmitError};

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
