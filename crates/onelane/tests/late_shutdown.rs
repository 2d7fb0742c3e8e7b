//! Promise 8: what a shutdown waits for may end in any way, a passed deadline too.

mod common;

use std::time::Duration;

use common::*;
use onelane::testing::{FakeItem, VirtualClock, within_a_minute};
use onelane::{BatchConfig, Request, RequestError, Shutdown, ShutdownError};

/// The worker itself finds that the deadline of the last waiting request has passed, and with that
/// has the closed queue's engine to drop: it must not go to sleep on it.
#[test]
fn a_shutdown_ends_when_the_last_request_expires() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let (queue, gate, seen) = gated(&device, BatchConfig::default());
        let first = occupy(&queue, &gate);
        let second = Duration::from_secs(1);
        let late = queue.submit(Request::new(FakeItem::new(1)).deadline_after(second)).unwrap();
        let busy = queue.shutdown(Shutdown::Drain, Duration::ZERO);
        assert_eq!(busy, Err(ShutdownError::Timeout(Duration::ZERO)));
        clock.advance(second);
        gate.open_for_good();
        first.wait().unwrap();
        queue.shutdown(Shutdown::Drain, Duration::MAX).unwrap();
        assert!(matches!(late.wait(), Err(RequestError::DeadlineExceeded)));
        assert!(batches(&seen).is_empty());
        device.shutdown(Shutdown::Drain, Duration::MAX).unwrap();
    });
}
