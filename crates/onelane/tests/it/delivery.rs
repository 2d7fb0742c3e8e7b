//! Delivery beside the worker: the worker goes on, and nothing is lost, piles up or waits for itself.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};
use std::time::Duration;

use onelane::testing::{FakeEngine, FakeItem, Gate, within_a_minute};
use onelane::{
    BatchConfig, BatchItem, BatchQueue, Delivery, DeviceExecutor, Engine, EngineError,
    ExecutorConfig, Request, ResponseHandle, Shutdown, ShutdownError,
};

fn device_with(delivery: Delivery) -> DeviceExecutor {
    DeviceExecutor::new(ExecutorConfig::new("test").delivery(delivery)).unwrap()
}

fn pairs_on(device: &DeviceExecutor) -> BatchQueue<FakeEngine> {
    let config = BatchConfig::default().max_batch_size(2);
    BatchQueue::new(device, config, || Ok(FakeEngine::echo())).unwrap()
}

struct Work<F>(F);

impl<F: Fn() + Send + Sync> Wake for Work<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

/// Two requests that run as one batch, whose waker does `work` on the thread that delivers them.
fn pair(
    device: &DeviceExecutor,
    queue: &BatchQueue<FakeEngine>,
    work: impl Fn() + Send + Sync + 'static,
) -> [ResponseHandle<u64>; 2] {
    let waker = Waker::from(Arc::new(Work(work)));
    let mut context = Context::from_waker(&waker);
    // The worker is held until the waker has been left.
    let gate = Gate::new();
    let held = gate.clone();
    let held = device.submit(move || held.pass()).unwrap();
    gate.wait_for_arrivals(1);
    let group = [1, 2].map(|value| Request::new(FakeItem::new(value)));
    let mut handles: [_; 2] = queue.submit_group(group).unwrap().try_into().unwrap();
    assert!(matches!(Pin::new(&mut handles[0]).poll(&mut context), Poll::Pending));
    gate.open_for_good();
    held.wait().unwrap();
    handles
}

/// Promise 1: those who wait apart are woken apart, and nobody is forgotten for another.
#[test]
fn each_task_of_a_batch_is_woken_once() {
    for delivery in [Delivery::Worker, Delivery::Thread] {
        within_a_minute(move || {
            let device = device_with(delivery);
            let queue = BatchQueue::new(&device, BatchConfig::default(), || Ok(FakeEngine::echo()))
                .unwrap();
            // The worker is held until all wakers have been left.
            let gate = Gate::new();
            let held = gate.clone();
            let held = device.submit(move || held.pass()).unwrap();
            gate.wait_for_arrivals(1);
            let group = [1, 2, 3].map(|value| Request::new(FakeItem::new(value)));
            let mut handles = queue.submit_group(group).unwrap();
            let woken = Arc::new(Mutex::new([0; 3]));
            for (task, handle) in handles.iter_mut().enumerate() {
                let woken = Arc::clone(&woken);
                let waker = Waker::from(Arc::new(Work(move || woken.lock().unwrap()[task] += 1)));
                let polled = Pin::new(handle).poll(&mut Context::from_waker(&waker));
                assert!(matches!(polled, Poll::Pending));
            }
            gate.open_for_good();
            held.wait().unwrap();
            device.shutdown(Shutdown::Drain, Duration::from_secs(60)).unwrap();
            assert_eq!(*woken.lock().unwrap(), [1; 3]);
        });
    }
}

/// A waker's work: notes its thread, and waits at the gate.
fn note_and_wait(noted: &Arc<Mutex<Vec<ThreadId>>>, gate: &Gate) -> impl Fn() + use<> {
    let (noted, gate) = (Arc::clone(noted), gate.clone());
    move || {
        noted.lock().unwrap().push(thread::current().id());
        gate.pass();
    }
}

#[test]
fn the_worker_goes_on_while_a_batch_is_handed_over_and_answers_do_not_pile_up() {
    within_a_minute(|| {
        let device = device_with(Delivery::Thread);
        let queue = pairs_on(&device);
        let worker = device.call(|| thread::current().id()).unwrap();
        let (gate, noted) = (Gate::new(), Arc::default());
        let mut handles = Vec::new();
        handles.extend(pair(&device, &queue, note_and_wait(&noted, &gate)));
        gate.wait_for_arrivals(1);
        // The first is stuck in its delivery; the worker runs a second and hands it over by itself.
        handles.extend(pair(&device, &queue, note_and_wait(&noted, &gate)));
        gate.wait_for_arrivals(2);
        let threads = noted.lock().unwrap().clone();
        assert_ne!(threads[0], worker);
        assert_eq!(threads[1..], [worker], "answers pile up behind a delivery that is slow");
        gate.open_for_good();
        let answers = handles.into_iter().map(|handle| handle.wait().unwrap());
        assert_eq!(answers.collect::<Vec<_>>(), [1, 2, 1, 2]);
        device.shutdown(Shutdown::Drain, Duration::MAX).unwrap();
    });
}

#[test]
fn the_worker_hands_over_when_it_is_told_to_and_lone_answers_always() {
    within_a_minute(|| {
        for (delivery, size) in [(Delivery::Worker, 2), (Delivery::Thread, 1)] {
            let device = device_with(delivery);
            let config = BatchConfig::default().max_batch_size(size);
            let queue = BatchQueue::new(&device, config, || Ok(FakeEngine::echo())).unwrap();
            let worker = device.call(|| thread::current().id()).unwrap();
            let (gate, noted) = (Gate::new(), Arc::default());
            gate.open_for_good();
            let handles = pair(&device, &queue, note_and_wait(&noted, &gate));
            gate.wait_for_arrivals(1);
            for handle in handles {
                handle.wait().unwrap();
            }
            device.shutdown(Shutdown::Drain, Duration::MAX).unwrap();
            assert_eq!(*noted.lock().unwrap(), [worker], "{delivery:?}");
        }
    });
}

/// An input that notes the thread on which it is dropped.
struct Noting(Arc<Mutex<Vec<ThreadId>>>);

impl BatchItem for Noting {
    type Key = ();
    fn key(&self) {}
}

impl Drop for Noting {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(thread::current().id());
    }
}

struct Takes;

impl Engine for Takes {
    type Item = Noting;
    type Output = ();
    fn infer(&mut self, batch: &[Noting]) -> Result<Vec<()>, EngineError> {
        Ok(vec![(); batch.len()])
    }
}

/// They may hold what only the worker may touch.
#[test]
fn inputs_are_dropped_on_the_worker() {
    within_a_minute(|| {
        for delivery in [Delivery::Worker, Delivery::Thread] {
            let device = device_with(delivery);
            let worker = device.call(|| thread::current().id()).unwrap();
            let queue = BatchQueue::new(&device, BatchConfig::default(), || Ok(Takes)).unwrap();
            let noted = Arc::default();
            let group = (0..8).map(|_| Request::new(Noting(Arc::clone(&noted))));
            for handle in queue.submit_group(group).unwrap() {
                handle.wait().unwrap();
            }
            device.shutdown(Shutdown::Drain, Duration::MAX).unwrap();
            assert_eq!(*noted.lock().unwrap(), [worker; 8], "{delivery:?}");
        }
    });
}

#[test]
fn a_shutdown_waits_for_the_delivery() {
    within_a_minute(|| {
        let device = device_with(Delivery::Thread);
        let queue = pairs_on(&device);
        let (gate, noted) = (Gate::new(), Arc::default());
        let handles = pair(&device, &queue, note_and_wait(&noted, &gate));
        gate.wait_for_arrivals(1);
        let busy = Err(ShutdownError::Timeout(Duration::ZERO));
        assert_eq!(queue.shutdown(Shutdown::Drain, Duration::ZERO), busy);
        // Whatever the worker has to do for it is done after this.
        device.call(|| ()).unwrap();
        assert_eq!(queue.shutdown(Shutdown::Drain, Duration::ZERO), busy);
        assert_eq!(device.shutdown(Shutdown::Drain, Duration::ZERO), busy);
        gate.open_for_good();
        queue.shutdown(Shutdown::Drain, Duration::MAX).unwrap();
        device.shutdown(Shutdown::Drain, Duration::MAX).unwrap();
        for (handle, value) in handles.into_iter().zip([1, 2]) {
            assert_eq!(handle.wait().unwrap(), value);
        }
    });
}

/// The thread that delivers is waited for by the worker in the end, so it must not wait for that end.
#[test]
fn who_delivers_may_drop_the_last_handle_and_is_told_not_to_wait() {
    within_a_minute(|| {
        let device = device_with(Delivery::Thread);
        let queue = pairs_on(&device);
        let told = Arc::new(Mutex::new(Vec::new()));
        let held = Arc::new(Mutex::new(None));
        let (gate, at_the_end) = (Gate::new(), Gate::new());
        at_the_end.open_for_good();
        let handles = {
            let (told, held, gate) = (Arc::clone(&told), Arc::clone(&held), gate.clone());
            let at_the_end = at_the_end.clone();
            pair(&device, &queue, move || {
                gate.pass();
                let (queue, device): (BatchQueue<FakeEngine>, DeviceExecutor) =
                    held.lock().unwrap().take().unwrap();
                let mut told = told.lock().unwrap();
                told.push(queue.shutdown(Shutdown::Drain, Duration::MAX));
                told.push(device.shutdown(Shutdown::Drain, Duration::MAX));
                drop(told);
                drop((queue, device));
                at_the_end.pass();
            })
        };
        *held.lock().unwrap() = Some((queue, device));
        gate.open_for_good();
        at_the_end.wait_for_arrivals(1);
        for (handle, value) in handles.into_iter().zip([1, 2]) {
            assert_eq!(handle.wait().unwrap(), value);
        }
        assert_eq!(*told.lock().unwrap(), [Err(ShutdownError::WouldDeadlock); 2]);
    });
}

/// Promise 9: a waker that waits for the same device, on whichever thread it is called, is answered,
/// and keeps nobody from being answered.
#[test]
fn who_is_woken_may_wait_for_the_device() {
    for delivery in [Delivery::Worker, Delivery::Thread] {
        within_a_minute(move || {
            let device = device_with(delivery);
            let queue = pairs_on(&device);
            let answers = Arc::new(Mutex::new(Vec::new()));
            let at_the_end = Gate::new();
            at_the_end.open_for_good();
            let handles = {
                let (queue, answers) = (queue.clone(), Arc::clone(&answers));
                let at_the_end = at_the_end.clone();
                pair(&device, &queue.clone(), move || {
                    // As many as a thread beside the worker would be given.
                    let handles = queue.submit_group([8, 9].map(FakeItem::new)).unwrap();
                    let waited = handles.into_iter().map(|handle| handle.wait().unwrap());
                    answers.lock().unwrap().extend(waited);
                    at_the_end.pass();
                })
            };
            at_the_end.wait_for_arrivals(1);
            let given: Vec<_> = handles.into_iter().map(|handle| handle.wait().unwrap()).collect();
            assert_eq!(given, [1, 2]);
            device.shutdown(Shutdown::Drain, Duration::MAX).unwrap();
            assert_eq!(*answers.lock().unwrap(), [8, 9], "{delivery:?}");
        });
    }
}

/// Promise 9: all answers of a batch are there before the first of its waiters is woken.
#[test]
fn who_is_woken_may_wait_for_a_batch_mate() {
    for delivery in [Delivery::Worker, Delivery::Thread] {
        within_a_minute(move || {
            let device = device_with(delivery);
            let queue = pairs_on(&device);
            let mate: Arc<Mutex<Option<ResponseHandle<u64>>>> = Arc::default();
            let (seen, asked) = (Arc::new(Mutex::new(None)), Arc::clone(&mate));
            let noted = Arc::clone(&seen);
            let gate = Gate::new();
            let held = gate.clone();
            let busy = device.submit(move || held.pass()).unwrap();
            let mut handles = queue.submit_group([1, 2].map(FakeItem::new)).unwrap();
            *mate.lock().unwrap() = handles.pop();
            let waker = Waker::from(Arc::new(Work(move || {
                let mate = asked.lock().unwrap().take().unwrap();
                *noted.lock().unwrap() = Some(mate.wait());
            })));
            let polled = Pin::new(&mut handles[0]).poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
            gate.open_for_good();
            busy.wait().unwrap();
            device.shutdown(Shutdown::Drain, Duration::MAX).unwrap();
            assert!(matches!(*seen.lock().unwrap(), Some(Ok(2))), "{delivery:?}");
        });
    }
}
