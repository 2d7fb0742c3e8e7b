//! What the handles of a device executor share.

use std::sync::Arc;
use std::time::Instant;

use crate::admission::Admission;
use crate::scheduler::closures::RunClosures;
use crate::scheduler::shared::ExecutorShared;
use crate::sync::{JoinHandle, Mutex};
use crate::worker::context::belongs_to;

/// What the handles of one executor share; the last one to go ends it.
pub(crate) struct Owner {
    pub(crate) shared: Arc<ExecutorShared>,
    pub(crate) closures: Admission<RunClosures>,
    pub(crate) threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Owner {
    /// Waits for all workers to end and joins them. Says whether they have.
    pub(crate) fn wait_for_end(&self, until: Option<Instant>) -> bool {
        if !self.shared.wait(until, |scheduler, waker| scheduler.has_ended(waker)) {
            return false;
        }
        let threads = std::mem::take(&mut *self.threads.lock());
        // A worker that panicked has been reported through its requests.
        threads.into_iter().for_each(|thread| drop(thread.join()));
        true
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.lock().stop(false);
        // CORRECTNESS: a thread of the executor's own cannot join itself, nor a worker that waits for
        // it, be it in the destructors of its thread-locals; the workers stop by themselves.
        if !belongs_to(&self.shared) {
            self.wait_for_end(None);
        }
    }
}
