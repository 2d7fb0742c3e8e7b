//! The futures of a queue: they wait for room, and for a response, without blocking a thread.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::admission::waiters::Ticket;
use crate::admission::{EnteredGroup, only};
use crate::engine::Engine;
use crate::error::{InferError, Refusal, RequestError, SubmitError};
use crate::handle::{Outstanding, ResponseHandle};
use crate::queue_handles::QueueHandles;
use crate::request::Request;
use crate::scheduler::pending::WaitForRoom;
use crate::worker::inline::this_worker;

enum InferState<E: Engine> {
    /// It has not been polled.
    New(Request<E::Item>),
    /// It was handed over; with a ticket, it waits for room.
    Waiting(Outstanding<E::Output>, Option<Arc<Ticket<E>>>),
    Done,
}

/// The future of [`BatchQueue::infer`](crate::BatchQueue::infer).
///
/// It has a handle to the queue of its own, so it can be spawned.
#[must_use = "a future does nothing until it is awaited"]
pub struct Infer<E: Engine> {
    queue: Arc<QueueHandles<E>>,
    state: InferState<E>,
}

// Nothing in it is pinned.
impl<E: Engine> Unpin for Infer<E> {}

impl<E: Engine> Infer<E> {
    pub(crate) fn new(queue: Arc<QueueHandles<E>>, request: Request<E::Item>) -> Self {
        Self { queue, state: InferState::New(request) }
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
        let admission = &queue.admission;
        if let InferState::New(_) = state {
            let InferState::New(request) = mem::replace(state, InferState::Done) else {
                unreachable!("matched above")
            };
            let (outstanding, ticket) =
                admission.start(request, waker).map_err(InferError::Refused)?;
            // The waker went with it. On a worker there may be something to do inline.
            let is_seen_to = ticket.is_none() && !(inline && this_worker().is_some());
            *state = InferState::Waiting(outstanding, ticket);
            if is_seen_to {
                return Poll::Pending;
            }
        }
        let InferState::Waiting(outstanding, ticket) = state else {
            panic!("an inference was polled after it had answered");
        };
        let polled = poll_waiting(queue, outstanding, ticket, waker, inline);
        if polled.is_ready() {
            let done = mem::replace(state, InferState::Done);
            cancel(queue, done);
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
    queue: &QueueHandles<E>,
    outstanding: &mut Outstanding<E::Output>,
    ticket: &mut Option<Arc<Ticket<E>>>,
    waker: &Waker,
    inline: bool,
) -> Poll<Result<E::Output, InferError<E::Item>>> {
    let admission = &queue.admission;
    if let Some(refused) = poll_ticket(ticket, waker) {
        admission.count_refused(1);
        return Poll::Ready(Err(InferError::Refused(refused)));
    }
    let answer = if inline {
        outstanding.poll(&admission.shared, waker)
    } else {
        outstanding.poll_no_inline(&admission.shared, waker)
    };
    if let (Poll::Ready(Err(RequestError::WouldDeadlock)), Some(_), Some(request)) =
        (&answer, &ticket, outstanding.request())
    {
        // It waits for room that only this worker could make.
        admission.withdraw(request, Refusal::WouldDeadlock);
        if let Some(refused) = poll_ticket(ticket, waker) {
            admission.count_refused(1);
            return Poll::Ready(Err(InferError::Refused(refused)));
        }
    }
    answer.map_err(InferError::Failed)
}

/// The request back, if it was refused. The ticket goes when it is settled.
fn poll_ticket<E: Engine>(
    ticket: &mut Option<Arc<Ticket<E>>>,
    waker: &Waker,
) -> Option<SubmitError<Request<E::Item>>> {
    let Poll::Ready(settled) = ticket.as_ref()?.poll(waker) else { return None };
    *ticket = None;
    settled.err().map(|refused| refused.map(only))
}

fn cancel<E: Engine>(queue: &QueueHandles<E>, state: InferState<E>) {
    if let InferState::Waiting(mut outstanding, _) = state {
        outstanding.cancel(&queue.admission.shared);
    }
}

impl<E: Engine> Drop for Infer<E> {
    fn drop(&mut self) {
        cancel(&self.queue, mem::replace(&mut self.state, InferState::Done));
    }
}

enum GroupState<E: Engine> {
    New(Vec<Request<E::Item>>),
    /// It waits for room.
    Waiting(EnteredGroup<E>),
    Done,
}

/// The future of [`BatchQueue::submit_group_async`](crate::BatchQueue::submit_group_async).
#[must_use = "a future does nothing until it is awaited"]
pub struct SubmitGroup<E: Engine> {
    queue: Arc<QueueHandles<E>>,
    state: GroupState<E>,
}

// Nothing in it is pinned.
impl<E: Engine> Unpin for SubmitGroup<E> {}

impl<E: Engine> SubmitGroup<E> {
    pub(crate) fn new(queue: Arc<QueueHandles<E>>, requests: Vec<Request<E::Item>>) -> Self {
        Self { queue, state: GroupState::New(requests) }
    }
}

impl<E: Engine> Future for SubmitGroup<E> {
    type Output = Result<Vec<ResponseHandle<E::Output>>, SubmitError<Vec<Request<E::Item>>>>;

    /// # Panics
    /// When it is polled again after it has been ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { queue, state } = self.get_mut();
        let admission = &queue.admission;
        let submitted = match mem::replace(state, GroupState::Done) {
            GroupState::New(requests) => admission.start_group(requests, WaitForRoom::Told)?,
            GroupState::Waiting(submitted) => submitted,
            GroupState::Done => panic!("a submission was polled after it had answered"),
        };
        if let Some(ticket) = &submitted.ticket {
            match ticket.poll(context.waker()) {
                Poll::Pending => {
                    *state = GroupState::Waiting(submitted);
                    return Poll::Pending;
                }
                Poll::Ready(Err(refused)) => {
                    admission.count_refused(submitted.outstanding.len());
                    return Poll::Ready(Err(refused));
                }
                Poll::Ready(Ok(())) => {}
            }
        }
        Poll::Ready(Ok(admission.handles(submitted.outstanding)))
    }
}

impl<E: Engine> Drop for SubmitGroup<E> {
    fn drop(&mut self) {
        let GroupState::Waiting(submitted) = mem::replace(&mut self.state, GroupState::Done) else {
            return;
        };
        let admission = &self.queue.admission;
        admission.withdraw(submitted.request, Refusal::Full);
        // Those that went in just now are given up one by one.
        for mut outstanding in submitted.outstanding {
            outstanding.cancel(&admission.shared);
        }
    }
}
