//! What the handles of one queue share; it closes the queue when the last of them goes.

use std::sync::Arc;

use crate::admission::Admission;
use crate::engine::Engine;
use crate::executor::Owner;

/// What the handles of one queue share: those that a user holds, and those of its futures.
pub(crate) struct QueueHandles<E: Engine> {
    pub(crate) admission: Admission<E>,
    // Dropped after `drop` below has closed the queue: this may be the executor's last handle.
    _owner: Arc<Owner>,
}

impl<E: Engine> QueueHandles<E> {
    pub(crate) fn new(admission: Admission<E>, owner: Arc<Owner>) -> Self {
        Self { admission, _owner: owner }
    }

    /// Refuses new requests; with `abort`, answers those that wait.
    pub(crate) fn close(&self, abort: bool) {
        let mut guard = self.admission.shared.lock();
        let (scheduler, deferred) = guard.parts();
        scheduler.close(self.admission.queue, abort, deferred);
    }
}

impl<E: Engine> Drop for QueueHandles<E> {
    fn drop(&mut self) {
        let mut guard = self.admission.shared.lock();
        let (scheduler, deferred) = guard.parts();
        scheduler.let_go(self.admission.queue, deferred);
    }
}
