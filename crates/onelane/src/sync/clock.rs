//! What time it is, and sleeping until a time: the system's clock, or a virtual one in tests.

use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::primitives::{park, park_timeout, thread_waker};
#[cfg(not(all(test, loom)))]
use super::timer;
#[cfg(any(test, feature = "test-util"))]
use super::virtual_clock::VirtualClock;

/// The clock of one device executor: every instant that the core compares comes from it.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    System,
    #[cfg(any(test, feature = "test-util"))]
    Virtual(VirtualClock),
}

impl Clock {
    #[inline]
    pub(crate) fn now(&self) -> Instant {
        match self {
            Self::System => Instant::now(),
            #[cfg(any(test, feature = "test-util"))]
            Self::Virtual(clock) => clock.now(),
        }
    }

    /// The instant when `timeout` is over; `None` if it never is.
    pub(crate) fn after(&self, timeout: Duration) -> Option<Instant> {
        self.now().checked_add(timeout)
    }

    /// Parks the calling thread until it is unparked or `until` has come; may return early.
    ///
    /// CORRECTNESS: the caller has stored `thread_waker()` where the waking side looks, and checks
    /// its condition again after this returns. An unpark between the two is kept by the thread's
    /// token, so it cannot be missed.
    pub(crate) fn park_until(&self, until: Option<Instant>) {
        let Some(until) = until else {
            return park();
        };
        match self {
            Self::System => park_timeout(until.saturating_duration_since(Instant::now())),
            #[cfg(any(test, feature = "test-util"))]
            Self::Virtual(clock) => clock.park_until(until),
        }
    }

    /// Blocks the calling thread until `poll` is ready, which leaves the waker where that wakes it.
    /// `None` when `until` has come first.
    pub(crate) fn block<T>(
        &self,
        until: Option<Instant>,
        mut poll: impl FnMut(&Waker) -> Poll<T>,
    ) -> Option<T> {
        let waker = thread_waker();
        loop {
            if let Poll::Ready(value) = poll(&waker) {
                return Some(value);
            }
            if until.is_some_and(|until| until <= self.now()) {
                return None;
            }
            self.park_until(until);
        }
    }

    /// Runs `alarm` when `at` has come.
    pub(crate) fn call_at(&self, at: Instant, alarm: impl FnOnce() + Send + 'static) {
        match self {
            #[cfg(not(all(test, loom)))]
            Self::System => timer::call_at(at, Box::new(alarm)),
            #[cfg(all(test, loom))]
            Self::System => drop((at, alarm)),
            #[cfg(any(test, feature = "test-util"))]
            Self::Virtual(clock) => clock.call_at(at, Box::new(alarm)),
        }
    }
}
