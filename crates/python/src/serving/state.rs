//! How far a server has come, as those see it who wait for it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use onelane_server::ServeError;

/// Where a server is.
#[derive(Default)]
pub(crate) enum Stage {
    /// Its models are being loaded.
    #[default]
    Loading,
    /// Its models have been loaded and checked.
    Ready,
    Ended,
}

#[derive(Default)]
struct Inner {
    stage: Stage,
    /// Until somebody has been told.
    error: Option<ServeError>,
}

/// How far a server has come.
#[derive(Default)]
pub(crate) struct State {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ready(&self) {
        let mut inner = self.lock();
        if matches!(inner.stage, Stage::Loading) {
            inner.stage = Stage::Ready;
        }
        self.changed.notify_all();
    }

    pub(crate) fn ended(&self, error: Option<ServeError>) {
        let mut inner = self.lock();
        inner.stage = Stage::Ended;
        inner.error = error;
        self.changed.notify_all();
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.lock().stage, Stage::Ready)
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.lock().stage, Stage::Ended)
    }

    /// Why it ended, for the first who asks.
    pub(crate) fn error(&self) -> Option<ServeError> {
        self.lock().error.take()
    }

    /// Waits until `until` holds, or the time is over; says whether it holds.
    pub(crate) fn wait(&self, until: fn(&Stage) -> bool, patience: Option<Duration>) -> bool {
        let end = patience.and_then(|patience| Instant::now().checked_add(patience));
        let mut inner = self.lock();
        while !until(&inner.stage) {
            let Some(end) = end else {
                inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}
