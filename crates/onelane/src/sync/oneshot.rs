//! A one-shot channel for the answer to one request.
//!
//! Invariant: a request is owned by exactly one place (what waits, or a batch), and its [`Sender`]
//! with it. A sender is not `Clone` and is consumed by its answer, so a request is answered at most
//! once; a sender that is dropped answers by itself, so it is answered at least once.

use std::sync::Arc;
use std::task::{Poll, Waker};

use super::deferred::Deferred;
use super::primitives::Mutex;
use crate::RequestError;

/// What a request comes to.
pub(crate) type Answer<T> = Result<T, RequestError>;

enum SlotState<T> {
    /// No answer yet; whoever waits has left a waker.
    Open(Option<Waker>),
    /// The answer, not yet collected.
    Answered(Answer<T>),
    /// Collected, or nobody asks any more: an answer that comes now has no reader.
    Closed,
}

/// Where one answer goes; the one allocation of a request.
struct Slot<T>(Mutex<SlotState<T>>);

/// The other side of a [`Sender`].
trait Fill<T>: Send + Sync {
    /// Stores the answer; waking who waits and dropping what nobody reads are left to `deferred`.
    fn fill(&self, answer: Answer<T>, deferred: &mut Deferred);
    /// Whether nobody waits for the answer any more.
    fn is_closed(&self) -> bool;
}

impl<T: Send + 'static> Fill<T> for Slot<T> {
    fn fill(&self, answer: Answer<T>, deferred: &mut Deferred) {
        let mut state = self.0.lock();
        match &mut *state {
            SlotState::Open(waker) => {
                let waker = waker.take();
                *state = SlotState::Answered(answer);
                drop(state);
                if let Some(waker) = waker {
                    deferred.wake(waker);
                }
            }
            SlotState::Closed => deferred.discard(answer),
            SlotState::Answered(_) => unreachable!("a sender is consumed by its answer"),
        }
    }

    fn is_closed(&self) -> bool {
        matches!(*self.0.lock(), SlotState::Closed)
    }
}

/// A value that was left beside its slot, and is the answer if there is no error.
struct Left<T> {
    value: Arc<Mutex<Option<T>>>,
    slot: Arc<Slot<T>>,
}

impl<T: Send + 'static> Fill<()> for Left<T> {
    fn fill(&self, answer: Answer<()>, deferred: &mut Deferred) {
        let value = self.value.lock().take();
        let answer = answer.and_then(|()| value.ok_or(RequestError::WorkerDied));
        self.slot.fill(answer, deferred);
    }

    fn is_closed(&self) -> bool {
        Fill::is_closed(&*self.slot)
    }
}

/// The duty to answer one request.
pub(crate) struct Sender<T: Send + 'static>(Option<Arc<dyn Fill<T>>>);

impl<T: Send + 'static> Sender<T> {
    /// Sends the answer; waking who waits and dropping what nobody reads are left to `deferred`.
    #[inline]
    pub(crate) fn send(mut self, answer: Answer<T>, deferred: &mut Deferred) {
        if let Some(slot) = self.0.take() {
            slot.fill(answer, deferred);
        }
    }

    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.as_ref().is_none_or(|slot| slot.is_closed())
    }

    /// Sends nothing: who would wait for it is told otherwise.
    pub(crate) fn forget(mut self) {
        self.0 = None;
    }
}

impl<T: Send + 'static> Drop for Sender<T> {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            slot.fill(Err(RequestError::WorkerDied), &mut Deferred::default());
        }
    }
}

/// The asking side of one request.
pub(crate) struct Receiver<T: Send + 'static>(Arc<Slot<T>>);

impl<T: Send + 'static> Receiver<T> {
    /// Both sides of a request. `waker`: of a task that waits from the start.
    #[inline]
    pub(crate) fn pair(waker: Option<Waker>) -> (Sender<T>, Self) {
        let slot = Arc::new(Slot(Mutex::new(SlotState::Open(waker))));
        (Sender(Some(Arc::clone(&slot) as Arc<dyn Fill<T>>)), Self(slot))
    }

    /// Both sides, and a place where the value is left before it is sent as `Ok(())`.
    pub(crate) fn pair_with_value() -> (Sender<()>, Arc<Mutex<Option<T>>>, Self) {
        let slot = Arc::new(Slot(Mutex::new(SlotState::Open(None))));
        let value = Arc::new(Mutex::new(None));
        let left = Left { value: Arc::clone(&value), slot: Arc::clone(&slot) };
        (Sender(Some(Arc::new(left))), value, Self(slot))
    }

    /// Takes the answer, or leaves `waker` to be woken by it.
    ///
    /// # Panics
    /// When the answer has been taken before.
    pub(crate) fn poll(&self, waker: &Waker) -> Poll<Answer<T>> {
        let is_left = |left: &mut Option<Waker>| left.as_ref().is_some_and(|l| l.will_wake(waker));
        if let Some(answer) = self.look(is_left) {
            return answer;
        }
        // CORRECTNESS: cloning and dropping a waker are a user's code, so neither is under the lock.
        let mut new = Some(waker.clone());
        let answer = self.look(|left| {
            std::mem::swap(left, &mut new);
            true
        });
        answer.unwrap_or(Poll::Pending)
    }

    /// The answer if there is one; `Pending` if there is none and `is_fine` says so of the waker.
    fn look(&self, is_fine: impl FnOnce(&mut Option<Waker>) -> bool) -> Option<Poll<Answer<T>>> {
        let mut state = self.0.0.lock();
        match &mut *state {
            SlotState::Open(left) => is_fine(left).then_some(Poll::Pending),
            SlotState::Answered(_) => match std::mem::replace(&mut *state, SlotState::Closed) {
                SlotState::Answered(answer) => Some(Poll::Ready(answer)),
                SlotState::Open(_) | SlotState::Closed => unreachable!("matched above"),
            },
            SlotState::Closed => panic!("a response handle was polled after it had answered"),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(*self.0.0.lock(), SlotState::Open(_))
    }

    /// Nobody asks any more. Says whether there was no answer yet.
    pub(crate) fn close(&self) -> bool {
        // What was left here is a user's, and dropped when the lock is free.
        let left = std::mem::replace(&mut *self.0.0.lock(), SlotState::Closed);
        matches!(left, SlotState::Open(_))
    }
}
