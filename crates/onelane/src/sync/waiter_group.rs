//! A waiter group: many threads sleep in it, and one call wakes them all.
//!
//! Requests that wait together and will run together share one. Waking a batch's waiters by one
//! system call instead of one each is what makes many clients cheap: the worker is not interrupted
//! between one wake-up and the next (docs/decisions has the figures).

use std::sync::Arc;
use std::task::Wake;

use super::primitives::{Condvar, Mutex};

/// The most requests that share a group. Those that are not in the batch are woken for nothing, so
/// a queue whose batches are smaller than `max_batch_size` must not pay for thousands.
pub(crate) const MAX_SHARERS: usize = 64;

/// Where threads sleep until one of the requests that share it is answered. As a waker it wakes all
/// who sleep here.
#[derive(Debug, Default)]
pub(crate) struct WaiterGroup {
    asleep: Mutex<usize>,
    woken: Condvar,
}

impl WaiterGroup {
    /// Sleeps until the group is woken, unless `is_over` already; may return early.
    ///
    /// CORRECTNESS: whoever makes `is_over` true wakes afterwards, and waking takes the lock. So
    /// either it is seen here under the lock, or the waking thread finds this one counted.
    pub(crate) fn sleep_unless(&self, is_over: impl FnOnce() -> bool) {
        let mut asleep = self.asleep.lock();
        if is_over() {
            return;
        }
        *asleep += 1;
        asleep = self.woken.wait(asleep);
        *asleep -= 1;
    }
}

impl Wake for WaiterGroup {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let any = *self.asleep.lock() > 0;
        if any {
            self.woken.notify_all();
        }
    }
}
