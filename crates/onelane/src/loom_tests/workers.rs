//! Promises 2, 3 and 9: several queues, several workers, waiting on a worker.

use std::sync::Arc;

use super::{End, NEVER, ask, echo, executor, model};
use crate::testing::{FakeEngine, FakeItem};
use crate::{BatchConfig, BatchQueue, EngineError, Request, RequestError, Shutdown};

/// Promises 1 and 2: two queues share one worker; neither is forgotten.
#[test]
fn two_queues_on_one_executor() {
    model("two_queues_on_one_executor", 2, || {
        let (device, _) = executor(1);
        let first = echo(&device, BatchConfig::default());
        let second = echo(&device, BatchConfig::default());
        let client = loom::thread::spawn(move || {
            assert_eq!(ask(&first, 1), End::Answered);
        });
        assert_eq!(ask(&second, 2), End::Answered);
        client.join().unwrap();
        assert_eq!(device.call(|| 3).unwrap(), 3);
    });
}

/// Promise 3: one group brings work for two workers; the executor ends with both.
#[test]
fn a_group_and_two_workers() {
    model("a_group_and_two_workers", 1, || {
        let (device, _) = executor(2);
        let queue = echo(&device, BatchConfig::default());
        let group = [1, 2].map(|key| Request::new(FakeItem::new(key).key(key)));
        let handles = queue.submit_group(group).unwrap();
        for (handle, value) in handles.into_iter().zip([1, 2]) {
            assert_eq!(handle.wait().unwrap(), value);
        }
        device.shutdown(Shutdown::Drain, NEVER).unwrap();
    });
}

/// Promise 3: two requests that come one after the other find two workers: each runs while the other
/// is held.
#[test]
fn two_requests_and_two_workers() {
    model("two_requests_and_two_workers", 2, || {
        let (device, _) = executor(2);
        let meeting = Arc::new((loom::sync::Mutex::new(0), loom::sync::Condvar::new()));
        let queue = BatchQueue::new(&device, BatchConfig::default().max_batch_size(1), move || {
            let meeting = Arc::clone(&meeting);
            Ok(FakeEngine::new(move |batch| {
                let mut here = meeting.0.lock().unwrap();
                *here += 1;
                meeting.1.notify_all();
                while *here < 2 {
                    here = meeting.1.wait(here).unwrap();
                }
                Ok(batch.iter().map(|item| item.value).collect())
            }))
        })
        .unwrap();
        let handles = [1, 2].map(|value| queue.submit(FakeItem::new(value)).unwrap());
        for (handle, value) in handles.into_iter().zip([1, 2]) {
            assert_eq!(handle.wait().unwrap(), value);
        }
    });
}

/// Promise 9: a batch waits inline for another queue of its worker while a client uses that too.
#[test]
fn waiting_inline_against_a_client() {
    model("waiting_inline_against_a_client", 2, || {
        let (device, _) = executor(1);
        let inner = echo(&device, BatchConfig::default());
        let asked = inner.clone();
        let outer = BatchQueue::new(&device, BatchConfig::default(), move || {
            let inner = asked.clone();
            Ok(FakeEngine::new(move |batch| {
                let answers: Result<_, RequestError> = batch
                    .iter()
                    .map(|item| match inner.submit(*item) {
                        Ok(handle) => handle.wait(),
                        Err(_) => Err(RequestError::Closed),
                    })
                    .collect();
                answers.map_err(EngineError::failed)
            }))
        })
        .unwrap();
        let client = loom::thread::spawn(move || ask(&inner, 1));
        assert_eq!(ask(&outer, 2), End::Answered);
        assert_eq!(client.join().unwrap(), End::Answered);
    });
}

/// Promise 9: two workers of two executors that wait for each other: one is told, both go on.
#[test]
fn a_circle_over_two_executors() {
    model("a_circle_over_two_executors", 2, || {
        let (here, _) = executor(1);
        let (there, _) = executor(1);
        let (back, away) = (here.clone(), there.clone());
        let answer = here.call(move || away.call(move || back.call(|| 7)));
        let answer = answer.unwrap().and_then(|inner| inner);
        assert!(matches!(answer, Err(RequestError::WouldDeadlock)), "{answer:?}");
        assert_eq!(there.call(|| 1).unwrap(), 1);
    });
}
