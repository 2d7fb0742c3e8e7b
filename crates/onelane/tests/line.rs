//! Promise 6: room belongs to whoever stands first in line for it.

mod common;

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
