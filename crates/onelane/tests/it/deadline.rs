//! Promise 7: a deadline is told when it passes, whoever waits and however busy the worker is.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use onelane::testing::{FakeItem, VirtualClock, within_a_minute};
use onelane::{BatchConfig, InferError, Request, RequestError};

use crate::common::*;

const MS: Duration = Duration::from_millis(1);

fn timed(value: u64, after: Duration) -> Request<FakeItem> {
    Request::new(FakeItem::new(value)).deadline_after(after)
}

#[test]
fn a_deadline_is_told_and_its_room_is_free_while_the_worker_is_busy() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let config = BatchConfig::default().capacity(2);
        let (queue, gate, seen) = gated(&executor_on(&clock), config);
        let first = occupy(&queue, &gate);
        // Nobody waits for the first of them, a future for the second.
        let unwatched = queue.submit(timed(1, 10 * MS)).unwrap();
        let mut watched = queue.submit(timed(2, 20 * MS)).unwrap();
        let context = &mut Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut watched).poll(context).is_pending());
        assert!(queue.try_submit(FakeItem::new(3)).is_err());
        clock.advance(10 * MS);
        assert_eq!((queue.stats().waiting, queue.stats().expired), (1, 1));
        let third = queue.try_submit(FakeItem::new(3)).unwrap();
        clock.advance(10 * MS);
        let polled = Pin::new(&mut watched).poll(context);
        assert!(matches!(polled, Poll::Ready(Err(RequestError::DeadlineExceeded))), "{polled:?}");
        assert!(matches!(unwatched.wait(), Err(RequestError::DeadlineExceeded)));
        gate.open_for_good();
        assert_eq!(wait_all([first, third]), [u64::MAX, 3]);
        assert_eq!(batches(&seen), [[3]]);
    });
}

/// An earlier deadline that comes later is told first, and alarms do not multiply.
#[test]
fn deadlines_are_told_in_their_order() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let (queue, gate, _) = gated(&executor_on(&clock), BatchConfig::default());
        let first = occupy(&queue, &gate);
        let handles: Vec<_> =
            (1..=20_u32).rev().map(|ms| queue.submit(timed(ms.into(), ms * MS)).unwrap()).collect();
        for passed in 1..=20 {
            clock.advance(MS);
            assert_eq!(queue.stats().expired, passed);
        }
        for handle in handles {
            assert!(matches!(handle.wait(), Err(RequestError::DeadlineExceeded)));
        }
        gate.open_for_good();
        first.wait().unwrap();
    });
}

/// The timer of the process, on the clock of the machine: the worker stands until all are told.
#[test]
fn a_deadline_is_told_in_real_time() {
    within_a_minute(|| {
        let config = BatchConfig::default().capacity(1);
        let (queue, gate, _) = gated(&executor(), config);
        let first = occupy(&queue, &gate);
        let waiting = queue.submit(timed(1, 20 * MS)).unwrap();
        let in_line = queue.infer(timed(2, 10 * MS));
        let told = block_on(in_line);
        let is_told =
            matches!(told, Err(InferError::Failed(RequestError::DeadlineExceeded)) | Ok(2));
        assert!(is_told && told.is_err(), "{told:?}");
        assert!(matches!(block_on(waiting), Err(RequestError::DeadlineExceeded)));
        // Its room is free.
        let third = queue.submit(FakeItem::new(3)).unwrap();
        gate.open_for_good();
        wait_all([first, third]);
    });
}

/// Of a group that waits for room, each request is told when it has expired and is in.
#[test]
fn a_group_expires_request_by_request() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let config = BatchConfig::default().capacity(2);
        let (queue, gate, seen) = gated(&executor_on(&clock), config);
        let first = occupy(&queue, &gate);
        let filling = queue.submit(FakeItem::new(1)).unwrap();
        let context = &mut Context::from_waker(Waker::noop());
        let mut mixed =
            Box::pin(queue.submit_group_async([timed(2, 10 * MS), Request::new(FakeItem::new(3))]));
        assert!(mixed.as_mut().poll(context).is_pending());
        let mut late = Box::pin(queue.submit_group_async([timed(4, 5 * MS), timed(5, 10 * MS)]));
        assert!(late.as_mut().poll(context).is_pending());
        clock.advance(10 * MS);
        let Poll::Ready(Ok(late)) = late.as_mut().poll(context) else {
            panic!("all of it has expired")
        };
        for handle in late {
            assert!(matches!(handle.wait(), Err(RequestError::DeadlineExceeded)));
        }
        assert!(mixed.as_mut().poll(context).is_pending(), "one of it has no deadline");
        gate.open_for_good();
        let mut mixed = block_on(mixed).unwrap();
        assert_eq!(mixed.pop().unwrap().wait().unwrap(), 3);
        assert!(matches!(mixed.pop().unwrap().wait(), Err(RequestError::DeadlineExceeded)));
        wait_all([first, filling]);
        assert_eq!(batches(&seen), [vec![1], vec![3]]);
    });
}
