//! Responses: the slot that a request's answer goes into, the responder that fills it, and the
//! handle that waits for it.
//!
//! Invariant: a request is owned by exactly one place (its waiting list, or a batch), and its
//! [`Responder`] with it. A responder is not `Clone` and is consumed by its answer, so a request is
//! answered at most once; a responder that is dropped answers by itself, so it is answered at least
//! once.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::after::After;
use crate::error::RequestError;
use crate::event::Event;
use crate::policy::QueueId;
use crate::shared::Shared;
use crate::sync::{Mutex, Seat, is_over_at_once, let_others_run, thread_waker};
use crate::waiting::Asked;
use crate::worker::{Help, WorkerContext};

enum SlotState<T> {
    /// No answer yet; whoever waits has left a waker.
    Open(Option<Waker>),
    /// The answer, not yet collected.
    Answered(Result<T, RequestError>),
    /// Collected, or the handle was dropped: an answer that comes now has no reader.
    Finished,
}

/// Where one answer goes; the one allocation of a request.
pub(crate) struct Slot<T> {
    state: Mutex<SlotState<T>>,
    /// Where the request waits, once it has been filed.
    seat: Seat,
}

impl<T> Slot<T> {
    /// Takes the answer, or leaves `waker` to be woken by it.
    fn poll(&self, waker: &Waker) -> Poll<Result<T, RequestError>> {
        let mut state = self.state.lock();
        match &mut *state {
            SlotState::Open(left) => {
                if !left.as_ref().is_some_and(|left| left.will_wake(waker)) {
                    let old = left.replace(waker.clone());
                    drop(state);
                    drop(old);
                }
                Poll::Pending
            }
            SlotState::Answered(_) => match std::mem::replace(&mut *state, SlotState::Finished) {
                SlotState::Answered(answer) => Poll::Ready(answer),
                SlotState::Open(_) | SlotState::Finished => unreachable!("matched above"),
            },
            SlotState::Finished => panic!("a response handle was polled after it had answered"),
        }
    }
}

impl<T> Slot<T> {
    fn is_open(&self) -> bool {
        matches!(*self.state.lock(), SlotState::Open(_))
    }

    /// Nobody asks any more. Says whether there was no answer yet.
    fn finish(&self) -> bool {
        // What was left here is a user's, and dropped when the lock is free.
        let left = std::mem::replace(&mut *self.state.lock(), SlotState::Finished);
        matches!(left, SlotState::Open(_))
    }
}

/// The duty to answer one request.
pub(crate) struct Responder<T: Send + 'static>(Option<Arc<Slot<T>>>);

impl<T: Send + 'static> Responder<T> {
    /// Stores the answer; waking the waiter and dropping what nobody reads is left to `after`.
    pub(crate) fn answer(mut self, answer: Result<T, RequestError>, after: &mut After) {
        if let Some(slot) = self.0.take() {
            fill(&slot, answer, after);
        }
    }

    /// Says where the request waits; under the executor's lock.
    pub(crate) fn sits_at(&self, seat: usize) {
        if let Some(slot) = &self.0 {
            slot.seat.set(seat);
        }
    }

    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        let slot = self.0.as_ref();
        slot.is_none_or(|slot| matches!(*slot.state.lock(), SlotState::Finished))
    }
}

fn fill<T: Send + 'static>(slot: &Slot<T>, answer: Result<T, RequestError>, after: &mut After) {
    let mut state = slot.state.lock();
    match &mut *state {
        SlotState::Open(waker) => {
            let waker = waker.take();
            *state = SlotState::Answered(answer);
            if let Some(waker) = waker {
                after.wake(waker);
            }
        }
        SlotState::Finished => after.discard(answer),
        SlotState::Answered(_) => unreachable!("a responder is consumed by its answer"),
    }
}

impl<T: Send + 'static> Drop for Responder<T> {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            let mut after = After::default();
            fill(&slot, Err(RequestError::WorkerDied), &mut after);
            after.run();
        }
    }
}

/// Where a request was submitted to.
#[derive(Clone, Copy)]
struct Address {
    queue: QueueId,
    number: u64,
}

/// The asking side of one request, without the executor that it waits in.
pub(crate) struct Pending<T: Send + 'static> {
    slot: Arc<Slot<T>>,
    /// Until it has been seen to.
    deadline: Option<Instant>,
    /// `None` for a closure that ran inline: it is answered already.
    address: Option<Address>,
    collected: bool,
}

/// What a thread knows about those who wait with it.
#[derive(Default)]
pub(crate) struct Company {
    /// Shared with the requests that it is likely to run with.
    pub(crate) event: Option<Arc<Event>>,
    pub(crate) look: Look,
}

/// How long a thread looks for its answer before it sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Look {
    #[default]
    Never,
    /// Until those who want its processor have had a turn. The engine takes next to no time, so the answer
    /// is likely to be there then.
    Turns,
    /// As long as sleeping would take. Nothing else waited or ran when the request was submitted.
    Moment,
}

impl Look {
    fn until(self, is_over: impl FnMut() -> bool) -> bool {
        match self {
            Self::Never => false,
            Self::Turns => let_others_run(is_over),
            Self::Moment => is_over_at_once(is_over),
        }
    }
}

impl<T: Send + 'static> Pending<T> {
    /// The asking side, with the waker that the answer is to wake, and the responder that answers it;
    /// not yet in any list.
    pub(crate) fn pair(waker: Option<Waker>, deadline: Option<Instant>) -> (Self, Responder<T>) {
        let slot = Arc::new(Slot { state: Mutex::new(SlotState::Open(waker)), seat: Seat::new() });
        let responder = Responder(Some(Arc::clone(&slot)));
        (Self { slot, deadline, address: None, collected: false }, responder)
    }

    /// Gives up a request that is not in any list: nobody is woken for it.
    pub(crate) fn abandon(self) {
        self.slot.finish();
    }

    /// Says in which queue the request waits, and its number there.
    pub(crate) fn wait_in(self, queue: QueueId, number: u64) -> Self {
        Self { address: Some(Address { queue, number }), ..self }
    }

    /// One look at the slot. A deadline that has passed and, on a worker, everything that can be
    /// done inline for the answer are seen to first.
    pub(crate) fn poll(
        &mut self,
        shared: &Arc<Shared>,
        waker: &Waker,
    ) -> Poll<Result<T, RequestError>> {
        loop {
            if let Poll::Ready(answer) = self.slot.poll(waker) {
                self.collected = true;
                return Poll::Ready(answer);
            }
            let Some(Address { queue, number }) = self.address else {
                return Poll::Pending;
            };
            let request = Asked { number, seat: &self.slot.seat };
            if self.deadline.take_if(|deadline| *deadline <= shared.clock.now()).is_some() {
                let mut locked = shared.lock();
                let (state, after) = locked.parts();
                if state.give_up(queue, request, RequestError::DeadlineExceeded, after) {
                    continue;
                }
            }
            let Some(worker) = WorkerContext::current(shared) else {
                return Poll::Pending;
            };
            match worker.help(queue, Some(request)) {
                Help::Progress => {}
                Help::Elsewhere => return Poll::Pending,
                Help::Stuck => {
                    // An abort may have answered it since the look above. If not, this ends the
                    // handle, and dropping that cancels the request.
                    let answer = self.slot.poll(waker);
                    self.collected = answer.is_ready();
                    return match answer {
                        Poll::Ready(answer) => Poll::Ready(answer),
                        Poll::Pending => Poll::Ready(Err(RequestError::WouldDeadlock)),
                    };
                }
            }
        }
    }

    /// Nobody asks any more: removes the request if it still waits.
    pub(crate) fn cancel(&mut self, shared: &Shared) {
        if self.collected {
            return;
        }
        self.collected = true;
        let open = self.slot.finish();
        if let (true, Some(Address { queue, number })) = (open, self.address) {
            let request = Asked { number, seat: &self.slot.seat };
            let mut locked = shared.lock();
            let (state, after) = locked.parts();
            state.give_up(queue, request, RequestError::Cancelled, after);
        }
    }
}

/// The handle to one response.
///
/// Wait for it on a thread with [`wait`](Self::wait) or [`wait_timeout`](Self::wait_timeout), or
/// `await` it on any async runtime. It resolves exactly once, whatever panics or stops.
///
/// # Cancellation
/// Dropping the handle cancels the request: one that still waits is removed before it is computed;
/// one that runs is finished for its batch-mates' sake and its response is dropped.
#[must_use = "dropping a response handle cancels its request"]
pub struct ResponseHandle<T: Send + 'static> {
    shared: Arc<Shared>,
    pending: Pending<T>,
    company: Company,
}

impl<T: Send + 'static> ResponseHandle<T> {
    pub(crate) fn new(shared: &Arc<Shared>, pending: Pending<T>, company: Company) -> Self {
        Self { shared: Arc::clone(shared), pending, company }
    }

    /// Waits for the response.
    ///
    /// # Errors
    /// Why there is no response; see [`RequestError`].
    ///
    /// # Blocking
    /// Blocks the calling thread, at most until the request's deadline if it has one and has not
    /// started. On a worker of the same executor it does not block: it runs the queue's waiting
    /// requests inline when their engine is free, and returns [`RequestError::WouldDeadlock`] at
    /// once when it is not.
    pub fn wait(mut self) -> Result<T, RequestError> {
        match self.wait_until(None) {
            Some(answer) => answer,
            None => unreachable!("a wait without a timeout ends with an answer"),
        }
    }

    /// Waits for the response for at most `timeout`.
    ///
    /// # Errors
    /// `Err(handle)` when the time is over: wait again, or drop it to cancel. `Ok(Err(_))` says why
    /// there is no response.
    ///
    /// # Blocking
    /// As [`wait`](Self::wait), and no longer than `timeout`.
    pub fn wait_timeout(mut self, timeout: Duration) -> Result<Result<T, RequestError>, Self> {
        let until = self.shared.clock.now().checked_add(timeout);
        self.wait_until(until).ok_or(self)
    }

    /// The answer, or `None` when `until` has come first.
    fn wait_until(&mut self, until: Option<Instant>) -> Option<Result<T, RequestError>> {
        // To sleep with others, a thread must have nothing but the answer to wake up for.
        let timed = until.is_some() || self.pending.deadline.is_some();
        let event = self.company.event.take_if(|_| !timed);
        let waker = event.as_ref().map_or_else(thread_waker, Event::waker);
        let clock = &self.shared.clock;
        if WorkerContext::current(&self.shared).is_none() {
            std::mem::take(&mut self.company.look).until(|| !self.pending.slot.is_open());
        }
        loop {
            // CORRECTNESS: the waker is in the slot before each sleep, and the answer is stored
            // before the waker is woken, so either this sees the answer or the sleep ends.
            if let Poll::Ready(answer) = self.pending.poll(&self.shared, &waker) {
                return Some(answer);
            }
            if until.is_some_and(|until| until <= clock.now()) {
                return None;
            }
            match &event {
                Some(event) => event.sleep_unless(|| !self.pending.slot.is_open()),
                None => {
                    clock.park_until([until, self.pending.deadline].into_iter().flatten().min());
                }
            }
        }
    }
}

impl<T: Send + 'static> Future for ResponseHandle<T> {
    type Output = Result<T, RequestError>;

    /// # Panics
    /// When it is polled again after it has been ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { shared, pending, .. } = self.get_mut();
        pending.poll(shared, context.waker())
    }
}

impl<T: Send + 'static> Drop for ResponseHandle<T> {
    fn drop(&mut self) {
        self.pending.cancel(&self.shared);
    }
}

impl<T: Send + 'static> std::fmt::Debug for ResponseHandle<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseHandle").finish_non_exhaustive()
    }
}
