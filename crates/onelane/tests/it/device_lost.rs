//! Promise 10: a queue whose device answers nothing but errors says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::*;
use onelane::testing::{FakeEngine, FakeItem, Gate, within_a_minute};
use onelane::{BatchConfig, BatchQueue, EngineError, Health, Refusal, RequestError};

const POISON: u64 = 666;

/// A device that answers nothing but errors until the process ends: the queue says so and refuses,
/// instead of failing each request.
#[test]
fn a_queue_whose_device_is_lost_fails_and_refuses() {
    within_a_minute(|| {
        let device = executor();
        let gate = Gate::new();
        let built = Arc::new(AtomicUsize::new(0));
        let queue = {
            let (gate, built) = (gate.clone(), built.clone());
            BatchQueue::new(&device, BatchConfig::default(), move || {
                built.fetch_add(1, Ordering::SeqCst);
                let gate = gate.clone();
                Ok(FakeEngine::new(move |batch| {
                    gate.pass();
                    if batch.iter().any(|item| item.value == POISON) {
                        return Err(EngineError::device_lost("device-side assert triggered"));
                    }
                    Ok(batch.iter().map(|item| item.value).collect())
                }))
            })
            .unwrap()
        };
        for answer in as_one_batch(&queue, &gate, &[0, 1, POISON, 3]) {
            let Err(RequestError::Engine(error @ EngineError::DeviceLost(_))) = answer else {
                panic!("{answer:?}");
            };
            let text = error.to_string();
            assert!(text.contains("device-side assert") && text.contains("isolated worker"));
        }
        // Whoever has the error is refused.
        let Health::Failed(why) = queue.health() else { panic!("{:?}", queue.health()) };
        assert!(why.contains("device-side assert") && why.contains("isolated worker"), "{why}");
        let refused = queue.submit(FakeItem::new(1)).unwrap_err();
        assert_eq!(refused.reason(), &Refusal::Failed(why));
        assert_eq!(built.load(Ordering::SeqCst), 1);
        assert_eq!(queue.stats().engine_losses, 1);
    });
}
