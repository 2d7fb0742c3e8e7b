//! The future of a closure's submission: it waits for room without blocking a thread.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::admission::only;
use crate::admission::waiters::{Patience, Ticket};
use crate::error::SubmitError;
use crate::handle::ResponseHandle;
use crate::infer::State;
use crate::owner::Owner;
use crate::request::Request;
use crate::scheduler::closures::{Body, Closure, RunClosures};

/// The future of [`DeviceExecutor::submit_async`](crate::DeviceExecutor::submit_async).
#[must_use = "a future does nothing until it is awaited"]
pub struct SubmitClosure<F, T: Send + 'static> {
    owner: Arc<Owner>,
    state: State<Request<F>, (ResponseHandle<T>, Ticket<RunClosures>, Body<F>)>,
}

// Nothing in it is pinned.
impl<F, T: Send + 'static> Unpin for SubmitClosure<F, T> {}

impl<F, T: Send + 'static> SubmitClosure<F, T> {
    pub(crate) fn new(owner: Arc<Owner>, request: Request<F>) -> Self {
        Self { owner, state: State::New(request) }
    }
}

impl<F, T> Future for SubmitClosure<F, T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    type Output = Result<ResponseHandle<T>, SubmitError<Request<F>>>;

    /// # Panics
    /// When it is polled again after it has been ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { owner, state } = self.get_mut();
        let (handle, ticket, body) = match mem::replace(state, State::Done) {
            State::New(request) => {
                let (request, channel, body) = Closure::of(request);
                let started = owner.closures.start(request, channel, Patience::Until(None));
                match started.map_err(|refused| refused.map(|request| body.take_back(request)))? {
                    (handle, None) => return Poll::Ready(Ok(handle)),
                    (handle, Some(ticket)) => (handle, ticket, body),
                }
            }
            State::Waiting(waiting) => waiting,
            State::Done => panic!("a submission was polled after it had answered"),
        };
        let settled = ticket.poll(context.waker());
        if settled.is_pending() {
            *state = State::Waiting((handle, ticket, body));
            return Poll::Pending;
        }
        settled
            .map_ok(|()| handle)
            .map_err(|refused| refused.map(|requests| body.take_back(only(requests))))
    }
}
