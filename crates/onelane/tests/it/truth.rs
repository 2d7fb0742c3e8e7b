//! Promise 10: health and statistics say what is so.

use std::time::Duration;

use crate::common::*;
use onelane::testing::{FakeEngine, FakeItem, VirtualClock, within_a_minute};
use onelane::{
    BatchConfig, BatchItem, BatchQueue, Engine, EngineError, Health, Priority, Request, Shutdown,
};

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

/// What waits is told by class, and histograms can be exported.
#[test]
fn classes_and_histograms_say_what_waited() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let (queue, gate, _) = gated(&executor_on(&clock), BatchConfig::default());
        let first = occupy(&queue, &gate);
        let second = Duration::from_secs(1);
        let submit = |class| queue.submit(Request::new(FakeItem::new(1)).priority(class)).unwrap();
        let mut handles = vec![submit(Priority::Bulk)];
        clock.advance(second);
        handles.extend([submit(Priority::Bulk), submit(Priority::Interactive)]);
        clock.advance(second);
        let stats = queue.stats();
        let class = |class| (stats.class(class).waiting, stats.class(class).oldest_wait);
        assert_eq!(class(Priority::Bulk), (2, 2 * second));
        assert_eq!(class(Priority::Normal), (0, Duration::ZERO));
        assert_eq!(class(Priority::Interactive), (1, second));
        gate.open_for_good();
        first.wait().unwrap();
        wait_all(handles);
        let histograms = queue.histograms();
        let wait = histograms.wait(Priority::Bulk);
        assert_eq!((wait.count, histograms.batch_size.count), (2, 2));
        assert!((wait.sum - 3.0).abs() < 0.05, "{}", wait.sum);
        let up_to = |bound: f64| wait.buckets.iter().rfind(|bucket| bucket.0 <= bound).unwrap().1;
        assert_eq!((up_to(0.5), up_to(1.5), up_to(3.0)), (0, 1, 2));
        assert!(wait.buckets.is_sorted_by_key(|bucket| bucket.1));
        assert_eq!(queue.stats().class(Priority::Bulk).wait.count, 2);
        assert_eq!(queue.stats().wait.count, 4);
    });
}
