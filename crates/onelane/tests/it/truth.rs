//! Promise 10: health and statistics say what is so.

use std::time::Duration;

use crate::common::*;
use onelane::testing::{FakeEngine, FakeItem, VirtualClock, within_a_minute};
use onelane::{BatchConfig, BatchItem, BatchQueue, Engine, EngineError, Health, Shutdown};

#[test]
fn a_batch_that_runs_too_long_is_a_stall_and_the_stall_passes() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let limit = Duration::from_secs(5);
        let (queue, gate, _) = gated(&device, BatchConfig::default().stall_after(limit));
        assert_eq!(queue.health(), Health::Ready);
        let first = occupy(&queue, &gate);
        clock.advance(limit - Duration::from_nanos(1));
        assert_eq!(queue.health(), Health::Ready);
        clock.advance(Duration::from_nanos(1));
        assert_eq!(queue.health(), Health::Stalled { running_for: limit, waits_for: None });
        assert_eq!(device.health(), Health::Stalled { running_for: limit, waits_for: None });
        gate.open_for_good();
        first.wait().unwrap();
        assert_eq!(queue.health(), Health::Ready);
        assert_eq!(device.health(), Health::Ready);
    });
}

#[test]
fn statistics_outlive_the_queue() {
    within_a_minute(|| {
        let device = executor_on(&VirtualClock::new());
        let queue =
            BatchQueue::new(&device, BatchConfig::default(), || Ok(FakeEngine::echo())).unwrap();
        queue.submit(FakeItem::new(1)).unwrap().wait().unwrap();
        queue.shutdown(Shutdown::Drain, Duration::from_secs(30)).unwrap();
        assert!(queue.submit(FakeItem::new(2)).is_err());
        let stats = queue.stats();
        assert_eq!((stats.submitted, stats.completed, stats.refused), (1, 1, 1));
        assert_eq!((stats.batches, stats.wait.count), (1, 1));
    });
}

#[test]
fn statistics_add_up_at_every_moment() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let (queue, gate, _) = gated(&device, BatchConfig::default().max_batch_size(4));
        let check = |expected: (u64, u64, usize, usize)| {
            let s = queue.stats();
            let parts = s.completed + s.failed + s.cancelled + s.expired + s.closed;
            assert_eq!(s.submitted, parts + (s.waiting + s.running) as u64);
            assert_eq!((s.submitted, s.completed, s.waiting, s.running), expected);
        };
        let first = occupy(&queue, &gate);
        check((1, 0, 0, 1));
        let handles: Vec<_> =
            (0..6).map(|value| queue.submit(FakeItem::new(value)).unwrap()).collect();
        check((7, 0, 6, 1));
        clock.advance(Duration::from_millis(8));
        gate.open(1);
        first.wait().unwrap();
        gate.wait_for_arrivals(2);
        check((7, 1, 2, 4));
        gate.open_for_good();
        wait_all(handles);
        check((7, 7, 0, 0));
        let stats = queue.stats();
        assert_eq!((stats.batches, stats.batch_size.count), (3, 3));
        assert!((stats.mean_batch_size() - 7.0 / 3.0).abs() < 1e-9);
        assert_eq!(stats.device_time, Duration::from_millis(8));
        // One waited for nothing, six for 8 ms; two significant digits are kept.
        let p50 = stats.wait.p50.as_secs_f64() * 1e3;
        assert!((7.9..8.2).contains(&p50), "{p50} ms");
    });
}

/// Pads each batch to a length of eight.
struct Padding;

struct Text(usize);

impl BatchItem for Text {
    type Key = ();
    fn key(&self) {}
    fn cost(&self) -> usize {
        self.0
    }
}

impl Engine for Padding {
    type Item = Text;
    type Output = ();
    fn infer(&mut self, batch: &[Text]) -> Result<Vec<()>, EngineError> {
        Ok(vec![(); batch.len()])
    }
    fn padded_cost(&self, batch: &[Text]) -> usize {
        8 * batch.len()
    }
}

#[test]
fn padding_waste_is_what_the_engine_reports() {
    within_a_minute(|| {
        let device = executor();
        let queue = BatchQueue::new(&device, BatchConfig::default(), || Ok(Padding)).unwrap();
        assert_eq!(queue.stats().padding_waste(), 0.0);
        for length in [2, 6, 8, 8] {
            queue.submit(Text(length)).unwrap().wait().unwrap();
        }
        assert!((queue.stats().padding_waste() - 0.25).abs() < 1e-9);
    });
}

/// Nothing polls: whatever sleeps until a time says so to the clock, and an idle worker, a waiting
/// client and a queue without `max_wait` never do.
#[test]
fn nothing_sleeps_until_a_time_without_a_reason() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let queue =
            BatchQueue::new(&device, BatchConfig::default(), || Ok(FakeEngine::echo())).unwrap();
        for value in 0..if cfg!(miri) { 5 } else { 100 } {
            queue.submit(FakeItem::new(value)).unwrap().wait().unwrap();
            device.call(|| ()).unwrap();
        }
        queue.shutdown(Shutdown::Drain, Duration::MAX).unwrap();
        device.shutdown(Shutdown::Drain, Duration::MAX).unwrap();
        assert_eq!(clock.timed_sleeps(), 0);
        // With a reason, it does: the check above can fail.
        let device = executor_on(&clock);
        let config = BatchConfig::default().max_wait(Duration::from_secs(1));
        let queue = BatchQueue::new(&device, config, || Ok(FakeEngine::echo())).unwrap();
        let handle = queue.submit(FakeItem::new(1)).unwrap();
        clock.wait_for_sleepers(1);
        clock.advance(Duration::from_secs(1));
        handle.wait().unwrap();
        assert!(clock.timed_sleeps() > 0);
    });
}
