//! What a request meets between its acceptance and its place in a list.

use std::hash::{Hash, Hasher};

use crate::common::*;
use onelane::testing::{FakeEngine, FakeItem, within_a_minute};
use onelane::{BatchConfig, BatchItem, BatchQueue, Engine, EngineError, RequestError};

/// Promise 3: while one worker computes, the next request wakes the other.
#[test]
fn each_request_wakes_a_worker_as_long_as_one_sleeps() {
    within_a_minute(|| {
        let (queue, gate, _) = gated(&executor_with(3), BatchConfig::default());
        let handles = [1, 2, 3].map(|value| {
            let handle = queue.submit(FakeItem::new(value).key(value)).unwrap();
            // It runs, and keeps its worker.
            gate.wait_for_arrivals(usize::try_from(value).unwrap());
            handle
        });
        gate.open_for_good();
        wait_all(handles);
    });
}

/// A key that cannot be compared.
#[derive(Clone)]
struct Key(u64);

const BROKEN: u64 = 13;

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        assert!(self.0 != BROKEN && other.0 != BROKEN, "this key is not to be compared");
        self.0 == other.0
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

struct Item(u64);

impl BatchItem for Item {
    type Key = Key;

    fn key(&self) -> Key {
        Key(self.0)
    }
}

struct Echo;

impl Engine for Echo {
    type Item = Item;
    type Output = u64;

    fn infer(&mut self, batch: &[Item]) -> Result<Vec<u64>, EngineError> {
        Ok(batch.iter().map(|item| item.0).collect())
    }
}

/// Promise 5: comparing keys is a user's code; where it panics, that request fails and no other.
#[test]
fn a_key_whose_comparison_panics_fails_alone() {
    within_a_minute(|| {
        let config = BatchConfig::default().capacity(2);
        let queue = BatchQueue::new(&executor(), config, || Ok(Echo)).unwrap();
        assert_eq!(queue.submit(Item(1)).unwrap().wait().unwrap(), 1);
        // More often than there is room: what fails gives its room back.
        for _ in 0..5 {
            let error = queue.submit(Item(BROKEN)).unwrap().wait().unwrap_err();
            assert!(matches!(&error, RequestError::Panicked(why) if why.contains("not to be")));
        }
        assert_eq!(queue.submit(Item(2)).unwrap().wait().unwrap(), 2);
        let stats = queue.stats();
        assert_eq!((stats.submitted, stats.completed, stats.failed), (7, 2, 5));
        assert_eq!((stats.waiting, stats.running), (0, 0));
    });
}

/// Promise 3: two requests that need each other run on two workers, whenever they come.
#[test]
fn two_requests_always_find_two_workers() {
    within_a_minute(|| {
        for _ in 0..if cfg!(miri) { 2 } else { 300 } {
            let device = executor_with(2);
            let both = std::sync::Arc::new(std::sync::Barrier::new(2));
            let config = BatchConfig::default().max_batch_size(1);
            let queue = BatchQueue::new(&device, config, move || {
                let both = both.clone();
                Ok(FakeEngine::new(move |batch| {
                    both.wait();
                    Ok(batch.iter().map(|item| item.value).collect())
                }))
            })
            .unwrap();
            for _ in 0..if cfg!(miri) { 2 } else { 20 } {
                let handles = [1, 2].map(|value| queue.submit(FakeItem::new(value)).unwrap());
                wait_all(handles);
            }
        }
    });
}
