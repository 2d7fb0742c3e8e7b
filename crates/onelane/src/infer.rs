//! The future of one inference: waits for room, then for the response, without blocking a thread.

use std::borrow::Cow;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::engine::Engine;
use crate::error::{RequestError, SubmitError};
use crate::queue::BatchQueue;
use crate::request::Request;
use crate::response::Pending;
use crate::submit::PlaceInLine;
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
    /// The request is there until it has been accepted or refused. The place is boxed: it is large, and
    /// mostly there is room.
    Submitting(Option<Request<E::Item>>, Option<Box<PlaceInLine>>),
    Waiting(Pending<E::Output>),
    Done,
}

/// The future of [`BatchQueue::infer`].
///
/// It borrows the queue, since counting a handle for each request would make all clients meet at that
/// count. For a task that owns what it uses there is [`into_owned`](Self::into_owned).
#[must_use = "a future does nothing until it is awaited"]
pub struct Infer<'a, E: Engine> {
    queue: Cow<'a, BatchQueue<E>>,
    state: InferState<E>,
}

// Nothing in it is pinned.
impl<E: Engine> Unpin for Infer<'_, E> {}

impl<'a, E: Engine> Infer<'a, E> {
    pub(crate) fn new(queue: &'a BatchQueue<E>, request: Request<E::Item>) -> Self {
        Self { queue: Cow::Borrowed(queue), state: InferState::Submitting(Some(request), None) }
    }

    /// The same future with a handle to the queue of its own, to be spawned.
    ///
    /// ```
    /// # use onelane::{BatchItem, BatchQueue, Engine};
    /// # fn spawn(_: impl Future + Send + 'static) {}
    /// fn ask<E: Engine>(queue: &BatchQueue<E>, item: E::Item) {
    ///     spawn(queue.infer(item).into_owned());
    /// }
    /// ```
    pub fn into_owned(mut self) -> Infer<'static, E> {
        let queue = Cow::Owned(BatchQueue::clone(&self.queue));
        Infer { queue, state: mem::replace(&mut self.state, InferState::Done) }
    }
}

impl<E: Engine> Future for Infer<'_, E> {
    type Output = Result<E::Output, InferError<E::Item>>;

    /// # Panics
    /// When it is polled again after it has been ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { queue, state } = self.get_mut();
        if let InferState::Submitting(request, place) = state {
            match queue.poll_submit(request, place, context.waker()) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(pending)) => *state = InferState::Waiting(pending),
                Poll::Ready(Err(refused)) => {
                    *state = InferState::Done;
                    return Poll::Ready(Err(InferError::Refused(refused)));
                }
            }
            // The waker went with it. On a worker there may be something to do inline.
            if WorkerContext::current(queue.shared()).is_none() {
                return Poll::Pending;
            }
        }
        let InferState::Waiting(pending) = state else {
            panic!("an inference was polled after it had answered");
        };
        pending.poll(queue.shared(), context.waker()).map_err(InferError::Failed)
    }
}

impl<E: Engine> Drop for Infer<'_, E> {
    fn drop(&mut self) {
        if let InferState::Waiting(pending) = &mut self.state {
            pending.cancel(self.queue.shared());
        }
    }
}
