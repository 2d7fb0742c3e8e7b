//! Promises 3 and 4: work-conserving; first in, first out per key; priorities with ageing; fairness
//! between queues by device time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::*;
use onelane::testing::{FakeEngine, FakeItem, Gate, VirtualClock, within_a_minute};
use onelane::{BatchConfig, BatchQueue, Priority, Request};

#[test]
fn alternating_keys_fill_two_batches() {
    within_a_minute(|| {
        let device = executor();
        let (queue, gate, seen) = gated(&device, BatchConfig::default());
        let first = occupy(&queue, &gate);
        let handles: Vec<_> =
            (0..8).map(|i| queue.submit(FakeItem::new(i).key(i % 2)).unwrap()).collect();
        gate.open_for_good();
        first.wait().unwrap();
        assert_eq!(wait_all(handles), (0..8).collect::<Vec<_>>());
        assert_eq!(batches(&seen), [vec![0, 2, 4, 6], vec![1, 3, 5, 7]]);
    });
}

#[test]
fn a_batch_holds_no_more_than_its_size_and_cost() {
    within_a_minute(|| {
        let device = executor();
        let config = BatchConfig::default().max_batch_size(3).max_batch_cost(10);
        let (queue, gate, seen) = gated(&device, config);
        let first = occupy(&queue, &gate);
        let costs = [1, 1, 1, 1, 9, 1, 5, 6, 10];
        let items = costs.iter().enumerate();
        let handles: Vec<_> = items
            .map(|(i, &cost)| queue.submit(FakeItem::new(i as u64).cost(cost)).unwrap())
            .collect();
        gate.open_for_good();
        first.wait().unwrap();
        wait_all(handles);
        let expected = [vec![0, 1, 2], vec![3, 4], vec![5, 6], vec![7], vec![8]];
        assert_eq!(batches(&seen), expected);
    });
}

#[test]
fn more_urgent_classes_go_first_and_fill_up_with_less_urgent_ones() {
    within_a_minute(|| {
        let device = executor();
        let (queue, gate, seen) = gated(&device, BatchConfig::default().max_batch_size(2));
        let first = occupy(&queue, &gate);
        let submit =
            |value, class| queue.submit(Request::new(FakeItem::new(value)).priority(class));
        let handles = [
            submit(0, Priority::Bulk),
            submit(1, Priority::Normal),
            submit(2, Priority::Normal),
            submit(3, Priority::Interactive),
            submit(4, Priority::Bulk),
        ];
        gate.open_for_good();
        first.wait().unwrap();
        wait_all(handles.map(Result::unwrap));
        assert_eq!(batches(&seen), [vec![3, 1], vec![2, 0], vec![4]]);
    });
}

#[test]
fn a_bulk_request_is_lifted_by_ageing_past_a_stream_of_interactive_ones() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let ageing = Duration::from_secs(1);
        let config = BatchConfig::default().max_batch_size(1).ageing(ageing);
        let (queue, gate, seen) = gated(&device, config);
        let first = occupy(&queue, &gate);
        let submit = |value, class| {
            queue.submit(Request::new(FakeItem::new(value)).priority(class)).unwrap()
        };
        let bulk = submit(100, Priority::Bulk);
        // Each round an interactive request arrives and one batch of half an interval runs.
        let mut interactive = vec![submit(0, Priority::Interactive)];
        for round in 1..=8 {
            clock.advance(ageing / 2);
            interactive.push(submit(round, Priority::Interactive));
            gate.open(1);
            gate.wait_for_arrivals(round as usize + 1);
        }
        gate.open_for_good();
        first.wait().unwrap();
        bulk.wait().unwrap();
        wait_all(interactive);
        let order: Vec<u64> = batches(&seen).concat();
        // After two intervals, which is four rounds, it counts as interactive and is the oldest
        // of them; the request of round 3 went before.
        let place = order.iter().position(|&value| value == 100);
        assert_eq!(place, Some(3), "{order:?}");
    });
}

#[test]
fn an_idle_worker_does_not_wait_for_company() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let queue =
            BatchQueue::new(&device, BatchConfig::default(), || Ok(FakeEngine::echo())).unwrap();
        // The clock stands still: if anything waited for a time, this would hang.
        assert_eq!(queue.submit(FakeItem::new(7)).unwrap().wait().unwrap(), 7);
        assert_eq!(queue.stats().wait.max, Duration::ZERO);
    });
}

#[test]
fn with_max_wait_a_batch_goes_when_it_is_full_or_the_time_is_over() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let wait = Duration::from_millis(10);
        let config = BatchConfig::default().max_batch_size(2).max_wait(wait);
        let (queue, gate, seen) = gated(&device, config);
        gate.open_for_good();
        // Full: at once.
        let pair = [0, 1].map(|value| queue.submit(FakeItem::new(value)).unwrap());
        wait_all(pair);
        // Alone: after max_wait, and a request of another key does not fill it.
        let alone = queue.submit(FakeItem::new(2)).unwrap();
        let other = queue.submit(FakeItem::new(3).key(1)).unwrap();
        clock.wait_for_sleepers(1);
        assert_eq!(seen.lock().unwrap().len(), 1);
        clock.advance(wait);
        assert_eq!(wait_all([alone, other]), [2, 3]);
        assert_eq!(*seen.lock().unwrap(), [vec![0, 1], vec![2], vec![3]]);
        // A deadline within max_wait is not waited past.
        let urgent = Request::new(FakeItem::new(4)).deadline_after(wait / 2);
        assert_eq!(queue.submit(urgent).unwrap().wait().unwrap(), 4);
    });
}

/// Two queues with work at all times share the device by weight, whatever their batches take.
#[test]
fn queues_share_the_device_by_time_and_weight() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let order = Arc::new(Mutex::new(Vec::new()));
        let start = Gate::new();
        let make = |name: u64, takes_ms: u64, weight: u32| {
            let (clock, order, start) = (clock.clone(), order.clone(), start.clone());
            let config = BatchConfig::default().max_batch_size(1).weight(weight).capacity(2000);
            BatchQueue::new(&device, config, move || {
                let (clock, order, start) = (clock.clone(), order.clone(), start.clone());
                Ok(FakeEngine::new(move |batch| {
                    start.pass();
                    clock.advance(Duration::from_millis(takes_ms));
                    order.lock().unwrap().push((name, takes_ms));
                    Ok(vec![0; batch.len()])
                }))
            })
            .unwrap()
        };
        let slow = make(0, 10, 1);
        let quick = make(1, 1, 1);
        let heavy = make(2, 2, 3);
        let submit = |queue: &BatchQueue<FakeEngine>, count: usize| -> Vec<_> {
            (0..count).map(|_| queue.submit(FakeItem::new(0)).unwrap()).collect()
        };
        let handles =
            [submit(&slow, 40), submit(&quick, 400), submit(&heavy, 600)].into_iter().flatten();
        let handles: Vec<_> = handles.collect();
        start.open_for_good();
        wait_all(handles);
        // All three have work until the first runs out: look at the first 1.5 virtual seconds.
        let mut time = [0, 0, 0];
        for &(name, took) in order.lock().unwrap().iter() {
            time[name as usize] += took;
            if time.iter().sum::<u64>() >= 1500 {
                break;
            }
        }
        let [slow, quick, heavy] = time.map(|ms| ms as f64);
        assert!((slow / quick - 1.0).abs() < 0.1, "equal weights, unequal time: {time:?}");
        assert!((heavy / quick / 3.0 - 1.0).abs() < 0.1, "weight 3 did not get 3 parts: {time:?}");
    });
}

/// A queue that was idle comes in where the others are: idleness earns no credit.
#[test]
fn a_queue_that_was_idle_does_not_monopolise_the_device() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let device = executor_on(&clock);
        let order = Arc::new(Mutex::new(Vec::new()));
        let gate = Gate::new();
        let make = |name: u64| {
            let (clock, order, gate) = (clock.clone(), order.clone(), gate.clone());
            BatchQueue::new(&device, BatchConfig::default().max_batch_size(1), move || {
                let (clock, order, gate) = (clock.clone(), order.clone(), gate.clone());
                Ok(FakeEngine::new(move |batch| {
                    gate.pass();
                    clock.advance(Duration::from_millis(1));
                    order.lock().unwrap().push(name);
                    Ok(vec![0; batch.len()])
                }))
            })
            .unwrap()
        };
        let (busy, idle) = (make(0), make(1));
        let submit = |queue: &BatchQueue<FakeEngine>, count: usize| -> Vec<_> {
            (0..count).map(|_| queue.submit(FakeItem::new(0)).unwrap()).collect()
        };
        let mut handles = submit(&busy, 300);
        gate.open(100);
        gate.wait_for_arrivals(101);
        handles.extend(submit(&idle, 100));
        gate.open_for_good();
        wait_all(handles);
        let order = order.lock().unwrap();
        let idle_share = order[101..201].iter().filter(|&&name| name == 1).count();
        assert!((40..=60).contains(&idle_share), "{idle_share} of the next 100 batches");
    });
}

#[test]
fn two_workers_run_two_batches_at_once() {
    within_a_minute(|| {
        let device = executor_with(2);
        let (queue, gate, _) = gated(&device, BatchConfig::default());
        let handles = [0, 1].map(|key| queue.submit(FakeItem::new(key).key(key)).unwrap());
        gate.wait_for_arrivals(2);
        gate.open_for_good();
        assert_eq!(wait_all(handles), [0, 1]);
    });
}

/// One group submit brings work for two workers: both are woken.
#[test]
fn a_group_wakes_as_many_workers_as_it_has_batches_for() {
    within_a_minute(|| {
        let device = executor_with(2);
        let (queue, gate, _) = gated(&device, BatchConfig::default());
        let group = (0..2).map(|key| Request::new(FakeItem::new(key).key(key)));
        let handles = queue.submit_group(group).unwrap();
        gate.wait_for_arrivals(2);
        gate.open_for_good();
        assert_eq!(wait_all(handles), [0, 1]);
    });
}
