//! The futures of a queue and of an executor: they wait for room, and for a response, without
//! blocking a thread.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::admission::waiters::{Patience, Requests, Ticket};
use crate::admission::{Admission, only};
use crate::owner::Owner;
use crate::scheduler::closures::{Closure, RunClosures};
use crate::sync::Receiver;
use crate::worker::context::this_worker;
use crate::{Engine, InferError, Refusal, Request, RequestError, ResponseHandle, SubmitError};

/// How far a future is. What it has handed over is cancelled when it is dropped.
enum State<R, W> {
    /// It has not been polled.
    New(R),
    /// It was handed over.
    Waiting(W),
    Done,
}

/// The future of [`BatchQueue::infer`](crate::BatchQueue::infer).
///
/// It has a handle to the queue of its own, so it can be spawned.
#[must_use = "a future does nothing until it is awaited"]
pub struct Infer<E: Engine> {
    queue: Arc<Admission<E>>,
    /// With a ticket, it waits for room.
    state: State<Request<E::Item>, (ResponseHandle<E::Output>, Option<Ticket<E>>)>,
}

// Nothing in it is pinned.
impl<E: Engine> Unpin for Infer<E> {}

impl<E: Engine> Infer<E> {
    pub(crate) fn new(queue: Arc<Admission<E>>, request: Request<E::Item>) -> Self {
        Self { queue, state: State::New(request) }
    }

    /// As `poll`, for who leaves a waker and does not wait: on a worker nothing is run inline, and
    /// the worker does not count as waiting.
    ///
    /// # Panics
    /// When it is polled again after it has been ready.
    pub fn poll_no_inline(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<E::Output, InferError<E::Item>>> {
        self.poll_with(context.waker(), false)
    }

    fn poll_with(
        &mut self,
        waker: &Waker,
        inline: bool,
    ) -> Poll<Result<E::Output, InferError<E::Item>>> {
        let Self { queue, state } = self;
        if let State::New(_) = state {
            let State::New(request) = mem::replace(state, State::Done) else {
                unreachable!("matched above")
            };
            let channel = Receiver::pair(Some(waker.clone()));
            let started = queue.start(request, channel, Patience::UntilAnswered);
            let started = started.map_err(InferError::Refused)?;
            // The waker went with it. On a worker there may be something to do inline.
            let is_seen_to = started.1.is_none() && !(inline && this_worker().is_some());
            *state = State::Waiting(started);
            if is_seen_to {
                return Poll::Pending;
            }
        }
        let State::Waiting((handle, ticket)) = state else {
            panic!("an inference was polled after it had answered");
        };
        let polled = poll_waiting(queue, handle, ticket, waker, inline);
        if polled.is_ready() {
            *state = State::Done;
        }
        polled
    }
}

impl<E: Engine> Future for Infer<E> {
    type Output = Result<E::Output, InferError<E::Item>>;

    /// # Panics
    /// When it is polled again after it has been ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().poll_with(context.waker(), true)
    }
}

fn poll_waiting<E: Engine>(
    queue: &Admission<E>,
    handle: &mut ResponseHandle<E::Output>,
    ticket: &mut Option<Ticket<E>>,
    waker: &Waker,
    inline: bool,
) -> Poll<Result<E::Output, InferError<E::Item>>> {
    if let Some(refused) = poll_ticket(ticket, waker) {
        return Poll::Ready(Err(InferError::Refused(refused)));
    }
    let answer = if inline { handle.look_inline(waker) } else { handle.look(waker) };
    if let (Poll::Ready(Err(RequestError::WouldDeadlock)), Some(waiting)) = (&answer, &ticket) {
        // It waits for room that only this worker could make.
        queue.withdraw(waiting, Refusal::WouldDeadlock);
        if let Some(refused) = poll_ticket(ticket, waker) {
            return Poll::Ready(Err(InferError::Refused(refused)));
        }
    }
    answer.map_err(InferError::Failed)
}

/// The request back, if it was refused. The ticket goes when it is settled.
fn poll_ticket<E: Engine>(
    ticket: &mut Option<Ticket<E>>,
    waker: &Waker,
) -> Option<SubmitError<Request<E::Item>>> {
    let Poll::Ready(settled) = ticket.as_ref()?.poll(waker) else { return None };
    *ticket = None;
    settled.err().map(|refused| refused.map(only))
}

/// Hands something over with `start`, when it is polled first, and waits until it is in.
fn poll_submission<E: Engine, R, H>(
    state: &mut State<R, (H, Ticket<E>)>,
    waker: &Waker,
    start: impl FnOnce(R) -> Result<(H, Option<Ticket<E>>), SubmitError<Requests<E>>>,
) -> Poll<Result<H, SubmitError<Requests<E>>>> {
    let (handle, ticket) = match mem::replace(state, State::Done) {
        State::New(requests) => match start(requests)? {
            (handle, None) => return Poll::Ready(Ok(handle)),
            (handle, Some(ticket)) => (handle, ticket),
        },
        State::Waiting(waiting) => waiting,
        State::Done => panic!("a submission was polled after it had answered"),
    };
    let settled = ticket.poll(waker);
    if settled.is_pending() {
        *state = State::Waiting((handle, ticket));
        return Poll::Pending;
    }
    settled.map_ok(|()| handle)
}

/// The future of [`BatchQueue::submit_group_async`](crate::BatchQueue::submit_group_async).
#[must_use = "a future does nothing until it is awaited"]
pub struct SubmitGroup<E: Engine> {
    queue: Arc<Admission<E>>,
    state: State<Requests<E>, (Vec<ResponseHandle<E::Output>>, Ticket<E>)>,
}

// Nothing in it is pinned.
impl<E: Engine> Unpin for SubmitGroup<E> {}

impl<E: Engine> SubmitGroup<E> {
    pub(crate) fn new(queue: Arc<Admission<E>>, requests: Requests<E>) -> Self {
        Self { queue, state: State::New(requests) }
    }
}

impl<E: Engine> Future for SubmitGroup<E> {
    type Output = Result<Vec<ResponseHandle<E::Output>>, SubmitError<Vec<Request<E::Item>>>>;

    /// # Panics
    /// When it is polled again after it has been ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { queue, state } = self.get_mut();
        poll_submission(state, context.waker(), |requests| {
            queue.start_group(requests, Patience::Until(None))
        })
    }
}

/// The future of [`DeviceExecutor::submit_async`](crate::DeviceExecutor::submit_async).
#[must_use = "a future does nothing until it is awaited"]
pub struct SubmitClosure<F, T: Send + 'static> {
    owner: Arc<Owner>,
    state: State<Request<F>, (ResponseHandle<T>, Ticket<RunClosures>)>,
}

// Nothing in it is pinned.
impl<F, T: Send + 'static> Unpin for SubmitClosure<F, T> {}

impl<F, T: Send + 'static> SubmitClosure<F, T> {
    pub(crate) fn new(owner: Arc<Owner>, request: Request<F>) -> Self {
        Self { owner, state: State::New(request) }
    }
}

impl<F: FnOnce() -> T + Send + 'static, T: Send + 'static> Future for SubmitClosure<F, T> {
    type Output = Result<ResponseHandle<T>, SubmitError<Request<F>>>;

    /// # Panics
    /// When it is polled again after it has been ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { owner, state } = self.get_mut();
        let polled = poll_submission(state, context.waker(), |request| {
            let (request, channel) = Closure::of(request);
            let started = owner.closures.start(request, channel, Patience::Until(None));
            started.map_err(|refused| refused.map(|request| vec![request]))
        });
        polled.map_err(|refused| refused.map(|one| Closure::take_back::<F, T>(only(one))))
    }
}
