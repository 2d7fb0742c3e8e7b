//! A batch queue as a `tower` service.

use std::task::{Context, Poll};

use tower_service::Service;

use crate::{BatchQueue, Engine, Infer, InferError, Request};

/// Always ready: a call that finds no room waits for room by itself, in its future. Limit how many
/// calls are made at once where that is wanted; the queue's own `capacity` bounds what is accepted.
impl<E: Engine> Service<Request<E::Item>> for BatchQueue<E> {
    type Response = E::Output;
    type Error = InferError<E::Item>;
    type Future = Infer<E>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<E::Item>) -> Infer<E> {
        self.infer(request)
    }
}
