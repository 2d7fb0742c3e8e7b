//! The future of one inference: waits for room, then for the response, without blocking a thread.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::engine::Engine;
use crate::error::{RequestError, SubmitError};
use crate::queue::BatchQueue;
use crate::request::Request;
use crate::response::Pending;
use crate::submit::{NotYet, PlaceInLine};
use crate::worker::WorkerContext;

/// Why [`BatchQueue::infer`] has no response.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum InferError<I> {
    /// The request was not accepted; it comes back.
    #[error(transparent)]
    Refused(SubmitError<Request<I>>),
    /// The request was accepted and has no response.
    #[error(transparent)]
    Failed(RequestError),
}

impl<I> std::fmt::Debug for InferError<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InferError({self})")
    }
}

enum InferState<E: Engine> {
    Submitting(Request<E::Item>, Option<PlaceInLine>),
    Waiting(Pending<E::Output>),
    Done,
}

/// The future of [`BatchQueue::infer`].
#[must_use = "a future does nothing until it is awaited"]
pub struct Infer<E: Engine> {
    queue: BatchQueue<E>,
    state: InferState<E>,
}

// Nothing in it is pinned.
impl<E: Engine> Unpin for Infer<E> {}

impl<E: Engine> Infer<E> {
    pub(crate) fn new(queue: BatchQueue<E>, request: Request<E::Item>) -> Self {
        Self { queue, state: InferState::Submitting(request, None) }
    }
}

impl<E: Engine> Future for Infer<E> {
    type Output = Result<E::Output, InferError<E::Item>>;

    /// # Panics
    /// When it is polled again after it has been ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { queue, state } = self.get_mut();
        if let InferState::Submitting(..) = state {
            let InferState::Submitting(request, place) = std::mem::replace(state, InferState::Done)
            else {
                unreachable!("matched above");
            };
            match queue.poll_submit(request, place, context.waker()) {
                Ok(pending) => {
                    *state = InferState::Waiting(pending);
                    // The waker went with it. On a worker there may be something to do inline.
                    if WorkerContext::current(queue.shared()).is_none() {
                        return Poll::Pending;
                    }
                }
                Err(NotYet::InLine(request, place)) => {
                    *state = InferState::Submitting(request, Some(place));
                    return Poll::Pending;
                }
                Err(NotYet::Refused(refused)) => {
                    return Poll::Ready(Err(InferError::Refused(refused)));
                }
            }
        }
        let InferState::Waiting(pending) = state else {
            panic!("an inference was polled after it had answered");
        };
        pending.poll(queue.shared(), context.waker()).map_err(InferError::Failed)
    }
}

impl<E: Engine> Drop for Infer<E> {
    fn drop(&mut self) {
        if let InferState::Waiting(pending) = &mut self.state {
            pending.cancel(self.queue.shared());
        }
    }
}
