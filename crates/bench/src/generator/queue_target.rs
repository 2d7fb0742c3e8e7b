//! [`QueueTarget`]: onelane's batch queue as a target. All of the generator that knows onelane.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use onelane::{BatchQueue, Engine, Priority, Refusal, Request, ResponseHandle, SubmitError};

use super::target::{AsyncClient, Client, Refused, Submit, Target};

/// Makes a request's input of its number.
type Item<E> = Arc<dyn Fn(u64) -> <E as Engine>::Item + Send + Sync>;

/// A queue, and what its requests are.
pub struct QueueTarget<E: Engine> {
    queue: BatchQueue<E>,
    item: Item<E>,
    priority: Priority,
}

impl<E: Engine> Clone for QueueTarget<E> {
    fn clone(&self) -> Self {
        let (queue, item) = (self.queue.clone(), Arc::clone(&self.item));
        Self { queue, item, priority: self.priority }
    }
}

impl<E: Engine> QueueTarget<E> {
    /// Asks `queue` for what `item` makes of numbers.
    pub fn new(
        queue: &BatchQueue<E>,
        item: impl Fn(u64) -> E::Item + Send + Sync + 'static,
    ) -> Self {
        Self { queue: queue.clone(), item: Arc::new(item), priority: Priority::Normal }
    }

    /// The same with requests of another priority.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    fn request(&self, number: u64) -> Request<E::Item> {
        Request::new((self.item)(number)).priority(self.priority)
    }
}

/// Why a queue refused a request.
fn refused<R>(error: &SubmitError<R>) -> Refused {
    match error.reason() {
        Refusal::Full => Refused::Full,
        other => Refused::Gone(other.to_string()),
    }
}

/// What waits for an answer, or for why there is none.
pub struct PendingAnswer<T: Send + 'static>(ResponseHandle<T>);

impl<T: Send + 'static> Future for PendingAnswer<T> {
    type Output = Result<T, String>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map_err(|error| error.to_string())
    }
}

impl<E: Engine<Output: Send + 'static> + 'static> Submit for QueueTarget<E> {
    type Reply = Result<E::Output, String>;
    type Pending = PendingAnswer<E::Output>;

    fn submit(&self, number: u64) -> Result<Self::Pending, Refused> {
        self.queue.submit(self.request(number)).map(PendingAnswer).map_err(|error| refused(&error))
    }

    fn try_submit(&self, number: u64) -> Result<Self::Pending, Refused> {
        let submitted = self.queue.try_submit(self.request(number));
        submitted.map(PendingAnswer).map_err(|error| refused(&error))
    }

    fn wait(&self, pending: Self::Pending) -> Self::Reply {
        pending.0.wait().map_err(|error| error.to_string())
    }
}

impl<E: Engine<Output: Send + 'static> + 'static> Client for QueueTarget<E> {
    type Reply = Result<E::Output, String>;

    fn ask(&mut self, number: u64) -> Self::Reply {
        let handle = self.queue.submit(self.request(number)).map_err(|error| error.to_string())?;
        handle.wait().map_err(|error| error.to_string())
    }
}

impl<E: Engine<Output: Send + 'static> + 'static> AsyncClient for QueueTarget<E> {
    fn infer(&mut self, number: u64) -> impl Future<Output = Self::Reply> + Send {
        let request = self.request(number);
        let queue = &self.queue;
        async move { queue.infer(request).await.map_err(|error| error.to_string()) }
    }
}

/// Each client has a handle of its own.
impl<E: Engine<Output: Send + 'static> + 'static> Target for QueueTarget<E> {
    type Client = Self;

    fn client(&self) -> Result<Self, String> {
        Ok(self.clone())
    }
}
