//! The future of a closure's submission: it waits for room without blocking a thread.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::admission::inbox::WaitPolicy;
use crate::admission::only;
use crate::admission::waiters::Ticket;
use crate::error::{Refusal, SubmitError};
use crate::executor::Owner;
use crate::handle::{Outstanding, ResponseHandle};
use crate::request::Request;
use crate::scheduler::closures::{Body, Closure, RunClosures};

enum State<F, T: Send + 'static> {
    New(Request<F>),
    /// It was handed over; with a ticket, it waits for room.
    Waiting(Outstanding<T>, Option<Arc<Ticket<RunClosures>>>, Body<F>),
    Done,
}

/// The future of [`DeviceExecutor::submit_async`](crate::DeviceExecutor::submit_async).
#[must_use = "a future does nothing until it is awaited"]
pub struct SubmitClosure<F, T: Send + 'static> {
    owner: Arc<Owner>,
    state: State<F, T>,
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
        let (outstanding, ticket, body) = match mem::replace(state, State::Done) {
            State::New(request) => {
                let (request, sender, receiver, body) = Closure::of(request);
                let started = owner.closures.start_with(request, sender);
                let (request, deadline, ticket) =
                    started.map_err(|refused| refused.map(|request| body.take_back(request)))?;
                (Outstanding::new(receiver, Some(request), deadline), ticket, body)
            }
            State::Waiting(outstanding, ticket, body) => (outstanding, ticket, body),
            State::Done => panic!("a submission was polled after it had answered"),
        };
        if let Some(waiting) = &ticket {
            match waiting.poll(context.waker()) {
                Poll::Pending => {
                    *state = State::Waiting(outstanding, ticket, body);
                    return Poll::Pending;
                }
                Poll::Ready(Err(refused)) => {
                    owner.closures.count_refused(1);
                    let refused = refused.map(only);
                    return Poll::Ready(Err(refused.map(|request| body.take_back(request))));
                }
                Poll::Ready(Ok(())) => {}
            }
        }
        Poll::Ready(Ok(ResponseHandle::new(&owner.shared, outstanding, WaitPolicy::default())))
    }
}

impl<F, T: Send + 'static> Drop for SubmitClosure<F, T> {
    fn drop(&mut self) {
        if let State::Waiting(mut outstanding, ..) = mem::replace(&mut self.state, State::Done) {
            if let Some(request) = outstanding.request() {
                self.owner.closures.withdraw(request, Refusal::Full);
            }
            outstanding.cancel(&self.owner.shared);
        }
    }
}
