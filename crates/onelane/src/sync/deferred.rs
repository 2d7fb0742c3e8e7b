//! What has to happen once a lock is released: waking, dropping a user's values, logging.

use std::task::Waker;

use smallvec::SmallVec;

use super::catch_panic::catch_panic;

/// Collected under a lock, done after it.
///
/// CORRECTNESS: a waker, a destructor and a log subscriber are a user's code; under the lock they
/// could call back into this crate and deadlock, or panic half-way through a change.
#[derive(Default)]
pub(crate) struct Deferred {
    wakers: SmallVec<[Waker; 4]>,
    tasks: Vec<Box<dyn FnOnce() + Send>>,
}

impl Deferred {
    #[inline]
    pub(crate) fn wake(&mut self, waker: Waker) {
        self.wakers.push(waker);
    }

    pub(crate) fn wake_all(&mut self, wakers: impl IntoIterator<Item = Waker>) {
        self.wakers.extend(wakers);
    }

    /// Drops `value` later.
    #[inline]
    pub(crate) fn discard<T: Send + 'static>(&mut self, value: T) {
        if std::mem::needs_drop::<T>() {
            self.defer(move || drop(value));
        }
    }

    /// Runs `task` later; a panic in it is contained.
    pub(crate) fn defer(&mut self, task: impl FnOnce() + Send + 'static) {
        self.tasks.push(Box::new(task));
    }

    pub(crate) fn run(&mut self) {
        let mut wakers = self.wakers.drain(..).peekable();
        while let Some(waker) = wakers.next() {
            let is_last = wakers.peek().is_none_or(|next| !next.will_wake(&waker));
            // A panic in one waker must not keep the others asleep.
            let _ = catch_panic(|| if is_last { waker.wake() } else { drop(waker) });
        }
        drop(wakers);
        for task in self.tasks.drain(..) {
            let _ = catch_panic(task);
        }
    }
}

/// Runs what is left, so that an early return forgets nobody.
impl Drop for Deferred {
    fn drop(&mut self) {
        self.run();
    }
}
