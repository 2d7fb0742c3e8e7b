//! A clock for tests, which stands still until it is told to advance.

#![allow(clippy::disallowed_types, reason = "tests are not modelled")]

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::primitives::{park, thread_waker};

/// A clock that stands still until it is told to advance.
///
/// Give it to an executor with [`ExecutorConfig::clock`](crate::ExecutorConfig::clock). Whatever
/// waits for a time on that executor waits for this clock.
#[derive(Clone)]
pub struct VirtualClock(Arc<(Mutex<Time>, Condvar)>);

struct Time {
    now: Instant,
    /// How far each look moves it.
    tick: Duration,
    sleepers: Vec<(Instant, Waker)>,
    alarms: Vec<(Instant, Box<dyn FnOnce() + Send>)>,
    timed_sleeps: u64,
}

impl std::fmt::Debug for VirtualClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtualClock").finish_non_exhaustive()
    }
}

impl Default for VirtualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl VirtualClock {
    /// A clock that shows the present instant.
    pub fn new() -> Self {
        Self::with_tick(Duration::ZERO)
    }

    /// A clock that moves on by a nanosecond each time that somebody looks at it: no two looks give the
    /// same instant, as on a real clock.
    pub fn ticking() -> Self {
        Self::with_tick(Duration::from_nanos(1))
    }

    fn with_tick(tick: Duration) -> Self {
        let (sleepers, alarms) = (Vec::new(), Vec::new());
        let time = Time { now: Instant::now(), tick, sleepers, alarms, timed_sleeps: 0 };
        Self(Arc::new((Mutex::new(time), Condvar::new())))
    }

    fn time(&self) -> std::sync::MutexGuard<'_, Time> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the clock shows.
    pub fn now(&self) -> Instant {
        let mut time = self.time();
        let tick = time.tick;
        time.now += tick;
        time.now
    }

    /// Moves the clock on and wakes whoever's time has come. What a passed deadline brings has
    /// happened when this returns.
    pub fn advance(&self, by: Duration) {
        let mut time = self.time();
        time.now += by;
        let now = time.now;
        let alarms: Vec<_> = time.alarms.extract_if(.., |(at, _)| *at <= now).collect();
        let sleepers: Vec<_> = time.sleepers.extract_if(.., |(at, _)| *at <= now).collect();
        drop(time);
        alarms.into_iter().for_each(|(_, alarm)| alarm());
        sleepers.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Runs `alarm` when `at` has come: in [`advance`](Self::advance), or now.
    pub(crate) fn call_at(&self, at: Instant, alarm: Box<dyn FnOnce() + Send>) {
        let mut time = self.time();
        if time.now < at {
            return time.alarms.push((at, alarm));
        }
        drop(time);
        alarm();
    }

    /// Waits until at least `count` threads sleep until a time on this clock.
    ///
    /// # Blocking
    /// Blocks until then.
    pub fn wait_for_sleepers(&self, count: usize) {
        let mut time = self.time();
        while time.sleepers.len() < count {
            time = self.0.1.wait(time).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// How often, in all, a thread has gone to sleep until a time on this clock.
    pub fn timed_sleeps(&self) -> u64 {
        self.time().timed_sleeps
    }

    pub(crate) fn park_until(&self, until: Instant) {
        let waker = thread_waker();
        let mut time = self.time();
        if time.now >= until {
            return;
        }
        time.timed_sleeps += 1;
        time.sleepers.retain(|(_, other)| !other.will_wake(&waker));
        time.sleepers.push((until, waker.clone()));
        drop(time);
        self.0.1.notify_all();
        park();
        self.time().sleepers.retain(|(_, other)| !other.will_wake(&waker));
    }
}
