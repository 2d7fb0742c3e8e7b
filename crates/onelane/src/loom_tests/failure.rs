//! Promise 5: a bad request fails alone, a lost engine is built again.

use super::{End, NEVER, ask, executor, model};
use crate::testing::{FakeEngine, FakeItem};
use crate::{BatchConfig, BatchQueue, EngineError, Refusal, RequestError, Shutdown};

/// Promise 5: a request that panics fails alone, whatever it shares a batch with.
#[test]
fn panic_against_submit() {
    model("panic_against_submit", 2, || {
        let (device, _) = executor(1);
        let queue = BatchQueue::new(&device, BatchConfig::default(), || {
            Ok(FakeEngine::new(|batch| {
                let bomb = batch.iter().any(|item| item.value == 666);
                // Without the panic hook: a message for each interleaving would be a long read.
                if bomb {
                    std::panic::resume_unwind(Box::new("the bomb went off"));
                }
                Ok(batch.iter().map(|item| item.value).collect())
            }))
        })
        .unwrap();
        let other = queue.clone();
        let client = loom::thread::spawn(move || ask(&other, 1));
        let bomb = queue.submit(FakeItem::new(666)).unwrap().wait();
        assert!(matches!(bomb, Err(RequestError::Panicked(_))), "{bomb:?}");
        assert_eq!(client.join().unwrap(), End::Answered);
        let stats = queue.stats();
        assert_eq!((stats.completed, stats.failed), (1, 1));
    });
}

/// Promises 1 and 5: a queue that gives up on its engine answers or refuses whatever comes.
#[test]
fn failing_queue_against_submit() {
    model("failing_queue_against_submit", 2, || {
        let (device, _) = executor(1);
        let config = BatchConfig::default().max_rebuilds(0).max_batch_size(1);
        let queue = BatchQueue::new(&device, config, || {
            Ok(FakeEngine::new(|_| std::panic::resume_unwind(Box::new("broken"))))
        })
        .unwrap();
        let other = queue.clone();
        let client = loom::thread::spawn(move || match other.submit(FakeItem::new(1)) {
            Ok(handle) => assert!(handle.wait().is_err()),
            Err(error) if matches!(error.reason(), Refusal::Failed(_)) => {}
            Err(other) => panic!("{other}"),
        });
        match queue.submit(FakeItem::new(2)) {
            Ok(handle) => assert!(handle.wait().is_err()),
            Err(error) if matches!(error.reason(), Refusal::Failed(_)) => {}
            Err(other) => panic!("{other}"),
        }
        client.join().unwrap();
    });
}

/// Promise 5: an engine that says that it is lost is built again while the next request comes, and a
/// shutdown comes with it.
#[test]
fn rebuilding_against_shutdown() {
    model("rebuilding_against_shutdown", 2, || {
        let (device, _) = executor(1);
        let queue = BatchQueue::new(&device, BatchConfig::default(), || {
            Ok(FakeEngine::new(|batch| {
                if batch.iter().any(|item| item.value == 666) {
                    return Err(EngineError::lost("poisoned"));
                }
                Ok(batch.iter().map(|item| item.value).collect())
            }))
        })
        .unwrap();
        let other = queue.clone();
        let client = loom::thread::spawn(move || ask(&other, 1));
        let lost = queue.submit(FakeItem::new(666)).unwrap().wait();
        assert!(matches!(lost, Err(RequestError::Engine(EngineError::Lost(_)))), "{lost:?}");
        device.shutdown(Shutdown::Drain, NEVER).unwrap();
        assert_ne!(client.join().unwrap(), End::Closed, "a drain lost a request");
    });
}
