//! Promise 1, 8 and 9 beside a thread that hands answers over.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::{End, NEVER, ask, echo, executor_that, model};
use crate::testing::{FakeEngine, FakeItem};
use crate::{BatchConfig, BatchQueue, Delivery, Request, ResponseHandle, Shutdown};

/// Two requests of one key as one group, so that they run as one batch.
fn pair(queue: &BatchQueue<FakeEngine>) -> [ResponseHandle<u64>; 2] {
    let group = [1, 2].map(|value| Request::new(FakeItem::new(value)));
    queue.submit_group(group).unwrap().try_into().unwrap()
}

/// Promise 1: a thread beside the worker hands a batch over while the worker goes on, and one more lies
/// ready, or is handed over by the worker.
#[test]
fn delivery_beside_the_worker() {
    model("delivery_beside_the_worker", 2, || {
        let (device, _) = executor_that(1, Delivery::Thread);
        let queue = echo(&device, BatchConfig::default().max_batch_size(2));
        let pairs = [pair(&queue), pair(&queue)];
        for handles in pairs {
            for (handle, value) in handles.into_iter().zip([1, 2]) {
                assert_eq!(handle.wait().unwrap(), value);
            }
        }
    });
}

/// Promise 8: a shutdown waits for what is being handed over.
#[test]
fn delivery_against_shutdown() {
    model("delivery_against_shutdown", 3, || {
        let (device, _) = executor_that(1, Delivery::Thread);
        let queue = echo(&device, BatchConfig::default());
        let handles = pair(&queue);
        queue.shutdown(Shutdown::Drain, NEVER).unwrap();
        for (mut handle, value) in handles.into_iter().zip([1, 2]) {
            let mut context = Context::from_waker(Waker::noop());
            match Pin::new(&mut handle).poll(&mut context) {
                Poll::Ready(answer) => assert_eq!(answer.unwrap(), value),
                Poll::Pending => panic!("a shutdown ended before the last answer was out"),
            }
        }
        device.shutdown(Shutdown::Drain, NEVER).unwrap();
    });
}

/// Promise 9: a batch waits inline for an answer that is just being handed over.
#[test]
fn waiting_inline_against_delivery() {
    model("waiting_inline_against_delivery", 2, || {
        let (device, _) = executor_that(1, Delivery::Thread);
        let inner = echo(&device, BatchConfig::default());
        let [first, second] = pair(&inner);
        let answer = device.call(|| second.wait()).unwrap();
        assert_eq!(answer.unwrap(), 2);
        assert_eq!(first.wait().unwrap(), 1);
    });
}

/// Promise 9: who is woken on the thread that delivers waits for the device while a client is served.
#[test]
fn waiting_where_answers_are_delivered() {
    struct Asks(BatchQueue<FakeEngine>);
    impl std::task::Wake for Asks {
        fn wake(self: Arc<Self>) {
            let end = ask(&self.0, 9);
            assert!(end == End::Answered || end == End::Refused);
        }
    }
    model("waiting_where_answers_are_delivered", 1, || {
        let (device, _) = executor_that(1, Delivery::Thread);
        let queue = echo(&device, BatchConfig::default().max_batch_size(2));
        let [mut first, second] = pair(&queue);
        let waker = Waker::from(Arc::new(Asks(queue.clone())));
        let _ = Pin::new(&mut first).poll(&mut Context::from_waker(&waker));
        assert_eq!(ask(&queue, 3), End::Answered);
        assert_eq!(second.wait().unwrap(), 2);
        device.shutdown(Shutdown::Drain, NEVER).unwrap();
    });
}
