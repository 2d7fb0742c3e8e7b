//! Closures are requests: bounded, with priorities and deadlines, answered once.

use std::future::Future;
use std::time::Duration;

use onelane::testing::{Gate, VirtualClock, within_a_minute};
use onelane::{
    DeviceExecutor, ExecutorConfig, Health, Priority, Refusal, Request, RequestError, Shutdown,
};

use crate::common::*;

/// An executor in which two closures may wait, and a gate at which its worker stands.
fn occupied(clock: &VirtualClock) -> (DeviceExecutor, Gate, onelane::ResponseHandle<()>) {
    let config = ExecutorConfig::new("test").capacity(2).clock(clock.clone());
    let device = DeviceExecutor::new(config).unwrap();
    let gate = Gate::new();
    let passing = gate.clone();
    let busy = device.submit(move || passing.pass()).unwrap();
    gate.wait_for_arrivals(1);
    (device, gate, busy)
}

#[test]
fn closures_are_bounded_and_come_back() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let (device, gate, busy) = occupied(&clock);
        let waiting = [1, 2].map(|value| device.submit(move || value).unwrap());
        let text = "comes back".to_owned();
        let refused = device.try_submit(move || text).map(drop).unwrap_err();
        assert_eq!(*refused.reason(), Refusal::Full);
        assert_eq!(refused.into_refused()(), "comes back");
        let second = Duration::from_secs(1);
        std::thread::scope(|scope| {
            let late = scope.spawn(|| device.submit_timeout(Request::new(|| 3), second).map(drop));
            clock.wait_for_sleepers(1);
            clock.advance(second);
            assert!(is_refused(&late.join().unwrap(), &Refusal::Full));
            let blocked = scope.spawn(|| device.submit(|| 4).unwrap().wait());
            soon("it waits for room", || device.stats().waiting_for_room == 1);
            gate.open_for_good();
            assert_eq!(blocked.join().unwrap().unwrap(), 4);
        });
        busy.wait().unwrap();
        assert_eq!(waiting.map(|handle| handle.wait().unwrap()), [1, 2]);
        let stats = device.stats();
        assert_eq!((stats.submitted, stats.completed, stats.refused), (4, 4, 2));
    });
}

#[test]
fn closures_wait_for_room_without_a_thread() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let (device, gate, busy) = occupied(&clock);
        let first = [1, 2].map(|value| device.submit(move || value).unwrap());
        let wanted = std::sync::Arc::new(Wanted::default());
        let waker = std::task::Waker::from(wanted.clone());
        let mut context = std::task::Context::from_waker(&waker);
        let mut begin = |value| {
            let mut submission = device.submit_async(Request::new(move || value));
            assert!(std::pin::Pin::new(&mut submission).poll(&mut context).is_pending());
            submission
        };
        // Given up, and never looked at again: neither keeps those behind it out.
        let (given_up, forgotten, third) = (begin(3), begin(4), begin(5));
        assert_eq!(device.stats().waiting_for_room, 3);
        drop(given_up);
        assert_eq!(device.stats().waiting_for_room, 2);
        let cancelled = device.submit_async(Request::new(|| panic!("it was given up")));
        drop(cancelled);
        gate.open_for_good();
        let third = block_on(third).map_err(drop).unwrap();
        assert_eq!(third.wait().unwrap(), 5);
        busy.wait().unwrap();
        assert_eq!(first.map(|handle| handle.wait().unwrap()), [1, 2]);
        assert!(wanted.0.load(std::sync::atomic::Ordering::SeqCst), "it was woken");
        drop(forgotten);
        device.shutdown(Shutdown::Drain, Duration::MAX).unwrap();
        let refused = block_on(device.submit_async(Request::new(|| "back"))).map(drop).unwrap_err();
        assert_eq!(*refused.reason(), Refusal::Closed);
        assert_eq!(refused.into_refused().into_input()(), "back");
    });
}

#[derive(Default)]
struct Wanted(std::sync::atomic::AtomicBool);

impl std::task::Wake for Wanted {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

#[test]
fn closures_have_priorities_and_deadlines() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let (device, gate, busy) = occupied(&clock);
        let order = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let note = |value| {
            let order = order.clone();
            move || order.lock().unwrap().push(value)
        };
        // Less than an ageing interval.
        let second = Duration::from_millis(500);
        let late = Request::new(note(0)).deadline_after(second);
        let late = device.submit_timeout(late, second).unwrap();
        let patient = device.submit(note(1)).unwrap();
        clock.advance(second);
        // Told while the worker is busy, and its room is free.
        assert!(matches!(late.wait(), Err(RequestError::DeadlineExceeded)));
        let urgent = Request::new(note(2)).priority(Priority::Interactive);
        let urgent = device.submit_timeout(urgent, Duration::ZERO).unwrap();
        gate.open_for_good();
        busy.wait().unwrap();
        urgent.wait().unwrap();
        patient.wait().unwrap();
        assert_eq!(*order.lock().unwrap(), [2, 1]);
    });
}

#[test]
fn a_closure_that_panics_fails_alone_and_leaves_the_device_ready() {
    within_a_minute(|| {
        let device = executor();
        for _ in 0..20 {
            let panicked = device.call(|| -> u8 { panic!("a closure broke") });
            assert!(matches!(panicked, Err(RequestError::Panicked(m)) if m == "a closure broke"));
            assert_eq!(device.health(), Health::Ready);
        }
        assert_eq!(device.call(|| 1).unwrap(), 1);
        let stats = device.stats();
        assert_eq!((stats.failed, stats.completed, stats.engine_losses), (20, 1, 0));
    });
}

#[test]
fn a_closure_that_is_given_up_or_aborted_is_not_run() {
    within_a_minute(|| {
        let clock = VirtualClock::new();
        let (device, gate, busy) = occupied(&clock);
        drop(device.submit(|| panic!("it was given up")).unwrap());
        let aborted = device.submit(|| panic!("it was aborted")).unwrap();
        let ended = device.shutdown(Shutdown::Abort, Duration::ZERO);
        assert!(ended.is_err());
        assert!(matches!(aborted.wait(), Err(RequestError::Closed)));
        gate.open_for_good();
        busy.wait().unwrap();
        device.shutdown(Shutdown::Drain, Duration::MAX).unwrap();
        let refused = device.submit(|| 1).unwrap_err();
        assert_eq!(*refused.reason(), Refusal::Closed);
        assert_eq!(device.health(), Health::Closed);
        let stats = device.stats();
        assert_eq!((stats.cancelled, stats.closed, stats.completed), (1, 1, 1));
    });
}
