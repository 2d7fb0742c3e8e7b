//! What time it is, and sleeping until a time: the system's clock, or a virtual one in tests.

use std::time::Instant;

use crate::sync;
#[cfg(any(test, feature = "test-util"))]
use crate::testing::VirtualClock;

/// The clock of one device executor: every instant that the core compares comes from it.
#[derive(Clone, Debug, Default)]
pub(crate) enum Clock {
    #[default]
    System,
    #[cfg(any(test, feature = "test-util"))]
    Virtual(VirtualClock),
}

impl Clock {
    pub(crate) fn now(&self) -> Instant {
        match self {
            Self::System => Instant::now(),
            #[cfg(any(test, feature = "test-util"))]
            Self::Virtual(clock) => clock.now(),
        }
    }

    /// Parks the calling thread until it is unparked or `until` has come; may return early.
    ///
    /// CORRECTNESS: the caller has stored `thread_waker()` where the waking side looks, and checks
    /// its condition again after this returns. An unpark between the two is kept by the thread's
    /// token, so it cannot be missed.
    pub(crate) fn park_until(&self, until: Option<Instant>) {
        let Some(until) = until else {
            return sync::park();
        };
        match self {
            Self::System => {
                let left = until.saturating_duration_since(Instant::now());
                if !left.is_zero() {
                    sync::park_timeout(left);
                }
            }
            #[cfg(any(test, feature = "test-util"))]
            Self::Virtual(clock) => clock.park_until(until),
        }
    }
}
