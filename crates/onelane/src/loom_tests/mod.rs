//! Model checks of the real core: every interleaving of a few threads, up to a bound on preemptions.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p onelane --release --lib loom_tests`, or `make loom`. The
//! locks, parking and threads of `sync.rs` are loom's here, so each model runs the code that ships.
//! Time is a virtual clock: each look moves it by a nanosecond, and a thread of the model moves it far, so
//! that a timeout is one more interleaving. A hang is found as a deadlock of the model.
//!
//! Each model names its promise (lib.rs, "What is promised") and prints how many interleavings were
//! run. `LOOM_MORE=1` raises each bound by one.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::testing::{FakeEngine, FakeItem, VirtualClock};
use crate::{
    BatchConfig, BatchQueue, BuildError, Delivery, DeviceExecutor, EngineError, ExecutorConfig,
    Priority, Request, RequestError, ResponseHandle, Shutdown, SubmitError,
};

/// Long enough to be never: the clock of a model stands unless a thread moves it.
const NEVER: Duration = Duration::from_secs(3600);

/// Runs `body` in every interleaving with at most `preemptions` switches away from a thread that
/// could go on.
fn model(name: &str, preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    let more = std::env::var("LOOM_MORE").ok().and_then(|more| more.parse::<usize>().ok());
    let bound = preemptions + more.unwrap_or(0);
    builder.preemption_bound = Some(bound);
    builder.max_branches = 20_000;
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let started = std::time::Instant::now();
    builder.check(move || {
        counted.fetch_add(1, SeqCst);
        body();
    });
    let (runs, took) = (runs.load(SeqCst), started.elapsed());
    println!("{name}: {runs} interleavings, preemption bound {bound}, {took:.1?}");
}

fn executor(workers: usize) -> (DeviceExecutor, VirtualClock) {
    executor_that(workers, Delivery::Worker)
}

fn executor_that(workers: usize, delivery: Delivery) -> (DeviceExecutor, VirtualClock) {
    let clock = VirtualClock::ticking();
    let config = ExecutorConfig::new("model").workers(workers).delivery(delivery);
    let device = DeviceExecutor::new(config.clock(clock.clone())).unwrap();
    (device, clock)
}

fn echo(device: &DeviceExecutor, config: BatchConfig) -> BatchQueue<FakeEngine> {
    BatchQueue::new(device, config, || Ok(FakeEngine::echo())).unwrap()
}

/// What one request came to; everything else is a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Answered,
    Refused,
    Closed,
}

fn ask(queue: &BatchQueue<FakeEngine>, value: u64) -> End {
    match queue.submit(FakeItem::new(value)) {
        Ok(handle) => match handle.wait() {
            Ok(answer) => {
                assert_eq!(answer, value, "the answer of another request");
                End::Answered
            }
            Err(RequestError::Closed) => End::Closed,
            Err(other) => panic!("{other}"),
        },
        Err(SubmitError::Closed(refused)) => {
            assert_eq!(refused.into_input().value, value);
            End::Refused
        }
        Err(other) => panic!("{other}"),
    }
}

/// Promise 1: three clients and a worker; each request is answered once, with its own answer.
#[test]
fn submit_worker_complete() {
    model("submit_worker_complete", 2, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let clients = [1, 2].map(|value| {
            let queue = queue.clone();
            loom::thread::spawn(move || ask(&queue, value))
        });
        assert_eq!(ask(&queue, 3), End::Answered);
        for client in clients {
            assert_eq!(client.join().unwrap(), End::Answered);
        }
        let stats = queue.stats();
        assert_eq!((stats.submitted, stats.completed), (3, 3));
        assert_eq!((stats.waiting, stats.running), (0, 0));
    });
}

/// Promise 1: two threads sleep on one event, and are answered by one batch, or by two.
fn sharing_an_event(name: &str, max_batch_size: usize) {
    model(name, 3, move || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default().max_batch_size(max_batch_size));
        let requests = [1, 2, 3].map(|value| FakeItem::new(value).into());
        // The first of a group has no event; the other two have the same.
        let mut handles = queue.submit_group(requests.into()).unwrap();
        let (third, second) = (handles.pop().unwrap(), handles.pop().unwrap());
        let client = loom::thread::spawn(move || assert_eq!(third.wait().unwrap(), 3));
        assert_eq!(second.wait().unwrap(), 2);
        client.join().unwrap();
    });
}

/// Promise 1, answered by one batch.
#[test]
fn sharing_an_event_and_a_batch() {
    sharing_an_event("sharing_an_event_and_a_batch", 4);
}

/// Promise 1: the answer to one wakes the other for nothing, who goes back to sleep.
#[test]
fn sharing_an_event_and_no_batch() {
    sharing_an_event("sharing_an_event_and_no_batch", 2);
}

fn submit_against_shutdown(name: &str, mode: Shutdown) {
    model(name, 3, move || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let client = loom::thread::spawn(move || ask(&queue, 1));
        device.shutdown(mode, NEVER).unwrap();
        let end = client.join().unwrap();
        assert!(mode == Shutdown::Abort || end != End::Closed, "a drain lost a request");
    });
}

/// Promises 1 and 8: a request is refused, or answered; nothing falls in between.
#[test]
fn submit_against_drain() {
    submit_against_shutdown("submit_against_drain", Shutdown::Drain);
}

/// Promises 1 and 8, aborting.
#[test]
fn submit_against_abort() {
    submit_against_shutdown("submit_against_abort", Shutdown::Abort);
}

/// Promises 1 and 8: the same, against the queue's own shutdown while its executor lives on.
#[test]
fn submit_against_queue_shutdown() {
    model("submit_against_queue_shutdown", 3, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let other = queue.clone();
        let client = loom::thread::spawn(move || ask(&other, 1));
        queue.shutdown(Shutdown::Drain, NEVER).unwrap();
        // The engine is gone, and the queue with it: what was counted does not change any more.
        let stats = queue.stats();
        assert_eq!((stats.submitted, stats.waiting, stats.running), (stats.completed, 0, 0));
        assert_ne!(client.join().unwrap(), End::Closed, "a drain lost a request");
    });
}

/// Promise 8: when `shutdown` has returned, every accepted request has been answered already.
#[test]
fn nothing_is_open_after_shutdown() {
    model("nothing_is_open_after_shutdown", 3, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let client = loom::thread::spawn(move || queue.submit(FakeItem::new(1)).ok());
        device.shutdown(Shutdown::Drain, NEVER).unwrap();
        if let Some(mut handle) = client.join().unwrap() {
            let mut context = Context::from_waker(Waker::noop());
            let polled = Pin::new(&mut handle).poll(&mut context);
            assert!(matches!(polled, Poll::Ready(Ok(1))), "{polled:?}");
        }
    });
}

/// Promises 1 and 8: a queue is made or refused while its executor ends; `new` does not hang.
#[test]
fn new_against_shutdown() {
    model("new_against_shutdown", 2, || {
        let (device, _) = executor(1);
        let other = device.clone();
        let client = loom::thread::spawn(move || {
            let config = BatchConfig::default();
            match BatchQueue::new(&other, config, || Ok(FakeEngine::echo())) {
                Ok(queue) => ask(&queue, 1),
                Err(BuildError::Closed(_)) => End::Refused,
                Err(other) => panic!("{other}"),
            }
        });
        device.shutdown(Shutdown::Drain, NEVER).unwrap();
        client.join().unwrap();
    });
}

/// Promises 1 and 8: one client closes the queue, another the executor; both return.
#[test]
fn two_shutdowns() {
    model("two_shutdowns", 3, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let handle = queue.submit(FakeItem::new(1)).unwrap();
        let client = loom::thread::spawn(move || queue.shutdown(Shutdown::Drain, NEVER));
        device.shutdown(Shutdown::Drain, NEVER).unwrap();
        client.join().unwrap().unwrap();
        assert_eq!(handle.wait().unwrap(), 1);
    });
}

/// Promise 7: a dropped handle counts its request as cancelled or completed, never both, and its
/// batch-mate is answered.
#[test]
fn cancel_against_complete() {
    model("cancel_against_complete", 3, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let cancelled = queue.submit(FakeItem::new(1)).unwrap();
        let canceller = loom::thread::spawn(move || drop(cancelled));
        assert_eq!(ask(&queue, 2), End::Answered);
        canceller.join().unwrap();
        // Whatever still runs has ended after this.
        assert_eq!(ask(&queue, 3), End::Answered);
        let stats = queue.stats();
        assert_eq!(stats.completed + stats.cancelled, 3, "{stats:?}");
        assert_eq!((stats.waiting, stats.running), (0, 0));
    });
}

/// Promise 1: a wait that times out gives back a handle that still resolves.
#[test]
fn wait_with_timeout_against_complete() {
    model("wait_with_timeout_against_complete", 2, || {
        let (device, clock) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let handle = queue.submit(FakeItem::new(1)).unwrap();
        let second = Duration::from_secs(1);
        let time = loom::thread::spawn(move || clock.advance(second));
        let answer = match handle.wait_timeout(second) {
            Ok(answer) => answer,
            Err(handle) => handle.wait(),
        };
        assert_eq!(answer.unwrap(), 1);
        time.join().unwrap();
        assert_eq!(queue.stats().completed, 1);
    });
}

/// Promise 7: a request starts before its deadline or is answered `DeadlineExceeded`; the thread
/// that waits is told in both cases.
#[test]
fn deadline_against_dispatch() {
    model("deadline_against_dispatch", 2, || {
        let (device, clock) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let second = Duration::from_secs(1);
        let request = Request::new(FakeItem::new(1)).deadline_after(second);
        let time = loom::thread::spawn(move || clock.advance(second));
        let answer = queue.submit(request).unwrap().wait();
        time.join().unwrap();
        let stats = queue.stats();
        match answer {
            Ok(1) => assert_eq!((stats.completed, stats.expired), (1, 0)),
            Err(RequestError::DeadlineExceeded) => {
                assert_eq!((stats.completed, stats.expired), (0, 1));
            }
            other => panic!("{other:?}"),
        }
    });
}

/// Promises 7 and 8: the last waiting request of a queue that closes is removed by its deadline; the
/// shutdown that waits for that returns.
#[test]
fn deadline_against_shutdown() {
    model("deadline_against_shutdown", 2, || {
        let (device, clock) = executor(1);
        let queue = echo(&device, BatchConfig::default());
        let second = Duration::from_secs(1);
        let request = Request::new(FakeItem::new(1)).deadline_after(second);
        let handle = queue.submit(request).unwrap();
        let time = loom::thread::spawn(move || clock.advance(second));
        device.shutdown(Shutdown::Drain, NEVER).unwrap();
        time.join().unwrap();
        let answer = handle.wait();
        assert!(matches!(answer, Ok(1) | Err(RequestError::DeadlineExceeded)), "{answer:?}");
    });
}

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
            Err(SubmitError::Failed(..)) => {}
            Err(other) => panic!("{other}"),
        });
        match queue.submit(FakeItem::new(2)) {
            Ok(handle) => assert!(handle.wait().is_err()),
            Err(SubmitError::Failed(..)) => {}
            Err(other) => panic!("{other}"),
        }
        client.join().unwrap();
    });
}

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

/// Promise 8: the last handle goes while a batch runs; what was accepted is answered.
#[test]
fn last_handle_dropped_while_a_batch_runs() {
    model("last_handle_dropped_while_a_batch_runs", 3, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default().max_batch_size(1));
        let handles = [1, 2].map(|value| queue.submit(FakeItem::new(value)).unwrap());
        let dropper = loom::thread::spawn(move || {
            drop(queue);
            drop(device);
        });
        for (handle, value) in handles.into_iter().zip([1, 2]) {
            assert_eq!(handle.wait().unwrap(), value);
        }
        dropper.join().unwrap();
    });
}

/// Promise 8: the last handle may go on the worker itself, which cannot join itself.
#[test]
fn last_handle_dropped_on_the_worker() {
    model("last_handle_dropped_on_the_worker", 2, || {
        let (device, _) = executor(1);
        let held = device.clone();
        let handle = device.submit(move || drop(held)).unwrap();
        drop(device);
        assert!(handle.wait().is_ok());
    });
}

/// Promise 6: whoever waits for room gets it; no wake-up is lost between dispatch and admission.
#[test]
fn admission_against_dispatch() {
    model("admission_against_dispatch", 2, || {
        let (device, _) = executor(1);
        let config = BatchConfig::default().capacity(1).max_batch_size(1);
        let queue = echo(&device, config);
        let other = queue.clone();
        let client = loom::thread::spawn(move || {
            let handles = [1, 2].map(|value| other.submit(FakeItem::new(value)).unwrap());
            handles.map(|handle| handle.wait().unwrap())
        });
        assert_eq!(ask(&queue, 3), End::Answered);
        assert_eq!(client.join().unwrap(), [1, 2]);
        let stats = queue.stats();
        assert_eq!((stats.submitted, stats.completed, stats.refused), (3, 3, 0));
    });
}

/// Promise 6: whoever leaves the line for room lets the next one in.
#[test]
fn leaving_the_line_against_dispatch() {
    model("leaving_the_line_against_dispatch", 2, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default().capacity(1).max_batch_size(1));
        let (first, second) = (queue.clone(), queue.clone());
        let impatient = loom::thread::spawn(move || {
            let mut context = Context::from_waker(Waker::noop());
            let mut future = Box::pin(first.infer(FakeItem::new(1)));
            // In line, waiting or answered: it leaves.
            let _ = future.as_mut().poll(&mut context);
        });
        let client = loom::thread::spawn(move || ask(&second, 2));
        assert_eq!(ask(&queue, 3), End::Answered);
        impatient.join().unwrap();
        assert_eq!(client.join().unwrap(), End::Answered);
    });
}

/// Promise 6: whoever is overtaken in the line for room, by one who goes in or leaves, is told of room.
#[test]
fn overtaking_in_line_against_dispatch() {
    model("overtaking_in_line_against_dispatch", 2, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default().capacity(1).max_batch_size(1));
        let urgent = |value| Request::new(FakeItem::new(value)).priority(Priority::Interactive);
        let other = queue.clone();
        let client = loom::thread::spawn(move || ask(&other, 2));
        let mut context = Context::from_waker(Waker::noop());
        let mut future = Box::pin(queue.infer(urgent(1)));
        let _ = future.as_mut().poll(&mut context);
        let passing = queue.try_submit(urgent(3)).ok();
        drop(future);
        assert_eq!(client.join().unwrap(), End::Answered);
        if let Some(handle) = passing {
            assert_eq!(handle.wait().unwrap(), 3);
        }
    });
}

/// Promise 8: whoever waits for room is told that the queue closes.
#[test]
fn admission_against_close() {
    model("admission_against_close", 2, || {
        let (device, _) = executor(1);
        let queue = echo(&device, BatchConfig::default().capacity(1).max_batch_size(1));
        let waiting = queue.submit(FakeItem::new(1)).unwrap();
        let other = queue.clone();
        let client = loom::thread::spawn(move || ask(&other, 2));
        queue.close();
        assert_ne!(client.join().unwrap(), End::Closed);
        assert_eq!(waiting.wait().unwrap(), 1);
    });
}

/// Promise 3: one group brings work for two workers; the executor ends with both.
#[test]
fn a_group_and_two_workers() {
    model("a_group_and_two_workers", 1, || {
        let (device, _) = executor(2);
        let queue = echo(&device, BatchConfig::default());
        let group = [1, 2].map(|key| Request::new(FakeItem::new(key).key(key)));
        let handles = queue.submit_group(group.into()).unwrap();
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

/// Two requests of one key as one group, so that they run as one batch.
fn pair(queue: &BatchQueue<FakeEngine>) -> [ResponseHandle<u64>; 2] {
    let group = [1, 2].map(|value| Request::new(FakeItem::new(value)));
    queue.submit_group(group.into()).unwrap().try_into().unwrap()
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
