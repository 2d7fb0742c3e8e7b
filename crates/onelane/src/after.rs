//! What has to happen once the executor's lock is released: waking, and dropping a user's values.

use std::any::Any;
use std::task::Waker;

use smallvec::SmallVec;

use crate::contain::contain;

/// Collected under the lock, done after it.
///
/// CORRECTNESS: a waker and a destructor are a user's code; under the lock they could call back
/// into this crate and deadlock, or panic half-way through a change.
#[derive(Default)]
pub(crate) struct After {
    wakers: SmallVec<[Waker; 4]>,
    garbage: Vec<Box<dyn Any + Send>>,
}

impl After {
    /// Those who share one [`Event`](crate::event::Event) come one after another: once is enough.
    #[inline]
    pub(crate) fn wake(&mut self, waker: Waker) {
        if self.wakers.last().is_none_or(|last| !last.will_wake(&waker)) {
            self.wakers.push(waker);
        }
    }

    /// Does what there is, but for the waker that came last: the next one may be the same.
    pub(crate) fn run_ahead(&mut self) {
        if self.wakers.len() > 1 {
            let last = self.wakers.pop();
            self.run();
            self.wakers.extend(last);
        }
    }

    pub(crate) fn wake_all(&mut self, wakers: impl IntoIterator<Item = Waker>) {
        self.wakers.extend(wakers);
    }

    pub(crate) fn discard(&mut self, value: impl Any + Send) {
        self.garbage.push(Box::new(value));
    }

    pub(crate) fn run(&mut self) {
        for waker in self.wakers.drain(..) {
            // A panic in one waker must not keep the others asleep.
            let _ = contain(|| waker.wake());
        }
        for value in self.garbage.drain(..) {
            let _ = contain(|| drop(value));
        }
    }
}
