//! The handle that waits for one response.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::RequestError;
use crate::admission::inbox::WaitPolicy;
use crate::scheduler::id::RequestId;
use crate::scheduler::shared::ExecutorShared;
use crate::sync::{Answer, Receiver, spin_until, thread_waker};
use crate::worker::context::{InlineProgress, this_worker, worker_of};

/// The handle to one response.
///
/// Wait for it on a thread with [`wait`](Self::wait) or [`wait_timeout`](Self::wait_timeout), or
/// `await` it on any async runtime. It resolves exactly once, whatever panics or stops.
///
/// # Cancellation
/// Dropping the handle cancels the request: one that still waits is removed before it is computed;
/// one that runs is finished for its batch-mates' sake and its response is dropped.
///
/// ```
/// use std::time::Duration;
///
/// use onelane::DeviceExecutor;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = DeviceExecutor::shared("doc-handle")?;
/// let handle = device.submit(|| 6 * 7)?;
/// match handle.wait_timeout(Duration::from_secs(60)) {
///     Ok(answer) => assert_eq!(answer?, 42),
///     Err(handle) => drop(handle), // Not in time: this cancels it.
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping a response handle cancels its request"]
pub struct ResponseHandle<T: Send + 'static> {
    shared: Arc<ExecutorShared>,
    receiver: Receiver<T>,
    /// `None`: the answer has been collected, or comes from elsewhere than a queue.
    request: Option<RequestId>,
    /// Until it has been seen to.
    deadline: Option<Instant>,
    policy: WaitPolicy,
}

impl<T: Send + 'static> ResponseHandle<T> {
    pub(crate) fn new(shared: &Arc<ExecutorShared>, receiver: Receiver<T>) -> Self {
        Self {
            shared: Arc::clone(shared),
            receiver,
            request: None,
            deadline: None,
            policy: WaitPolicy::default(),
        }
    }

    /// The handle of a request that has been handed over.
    pub(crate) fn of_request(
        mut self,
        request: RequestId,
        deadline: Option<Instant>,
        policy: WaitPolicy,
    ) -> Self {
        (self.request, self.deadline, self.policy) = (Some(request), deadline, policy);
        self
    }

    /// Waits as if nothing were known of the answer: how long one closure took says nothing of the
    /// next.
    pub(crate) fn without_policy(mut self) -> Self {
        self.policy = WaitPolicy::default();
        self
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
    /// once when it is not. On a worker of another executor it blocks, unless what it waits for
    /// waits for that worker: then it returns that error, too.
    pub fn wait(mut self) -> Result<T, RequestError> {
        self.wait_until(None).expect("a wait without a timeout ends with an answer")
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
        let until = self.shared.clock.after(timeout);
        self.wait_until(until).ok_or(self)
    }

    /// As `poll`, for who leaves a waker and does not wait: on a worker nothing is run inline, and
    /// the worker does not count as waiting.
    ///
    /// # Panics
    /// When it is polled again after it has been ready.
    pub fn poll_no_inline(&mut self, context: &mut Context<'_>) -> Poll<Result<T, RequestError>> {
        self.look(context.waker())
    }

    /// One look for the answer. A deadline that has passed is seen to first.
    pub(crate) fn look(&mut self, waker: &Waker) -> Poll<Answer<T>> {
        loop {
            if let Poll::Ready(answer) = self.receiver.poll(waker) {
                self.unwait();
                self.request = None;
                return Poll::Ready(answer);
            }
            let Some(request) = self.request else {
                return Poll::Pending;
            };
            let now = || self.shared.clock.now();
            if self.deadline.take_if(|deadline| *deadline <= now()).is_none() {
                return Poll::Pending;
            }
            self.shared.lock().give_up(request, RequestError::DeadlineExceeded);
        }
    }

    /// One look for the answer. On a worker, everything that can be done inline for it is seen to
    /// first.
    pub(crate) fn look_inline(&mut self, waker: &Waker) -> Poll<Answer<T>> {
        loop {
            if let Poll::Ready(answer) = self.look(waker) {
                return Poll::Ready(answer);
            }
            let (Some(request), Some(worker)) = (self.request, this_worker()) else {
                return Poll::Pending;
            };
            match worker.help(&self.shared, request) {
                InlineProgress::Progress => {}
                InlineProgress::Elsewhere => return Poll::Pending,
                // An abort may have answered it since the look above. If not, this ends the handle,
                // and dropping that cancels the request.
                InlineProgress::Stuck => {
                    return match self.look(waker) {
                        Poll::Pending => Poll::Ready(Err(RequestError::WouldDeadlock)),
                        answered => answered,
                    };
                }
            }
        }
    }

    /// The answer, or `None` when `until` has come first.
    fn wait_until(&mut self, until: Option<Instant>) -> Option<Answer<T>> {
        let WaitPolicy { group, spin } = std::mem::take(&mut self.policy);
        // To sleep with others, a thread must have nothing but the answer to wake up for.
        let timed = until.is_some() || self.deadline.is_some();
        let group = group.filter(|_| !timed);
        let waker = group.clone().map_or_else(thread_waker, Waker::from);
        if spin && worker_of(&self.shared).is_none() {
            spin_until(|| !self.receiver.is_open());
        }
        loop {
            // CORRECTNESS: the waker is in the slot before each sleep, and the answer is stored
            // before the waker is woken, so either this sees the answer or the sleep ends.
            if let Poll::Ready(answer) = self.look_inline(&waker) {
                return Some(answer);
            }
            if until.is_some_and(|until| until <= self.shared.clock.now()) {
                self.unwait();
                return None;
            }
            match &group {
                Some(group) => group.sleep_unless(|| !self.receiver.is_open()),
                None => {
                    let until = [until, self.deadline].into_iter().flatten().min();
                    self.shared.clock.park_until(until);
                }
            }
        }
    }

    /// If this is a worker, it does not wait for the request any more.
    fn unwait(&self) {
        if let (Some(request), Some(worker)) = (self.request, this_worker()) {
            worker.unwait(request);
        }
    }
}

impl<T: Send + 'static> Future for ResponseHandle<T> {
    type Output = Result<T, RequestError>;

    /// # Panics
    /// When it is polled again after it has been ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().look_inline(context.waker())
    }
}

/// Nobody asks any more: removes the request if it still waits.
impl<T: Send + 'static> Drop for ResponseHandle<T> {
    fn drop(&mut self) {
        let Some(request) = self.request else { return };
        self.unwait();
        if self.receiver.close() {
            self.shared.lock().give_up(request, RequestError::Cancelled);
        }
    }
}

impl<T: Send + 'static> std::fmt::Debug for ResponseHandle<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseHandle").finish_non_exhaustive()
    }
}
