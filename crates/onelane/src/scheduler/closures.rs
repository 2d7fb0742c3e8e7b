//! Closures: what a device executor runs beside the batches of its queues. They are the requests of
//! a queue of its own, whose engine calls them, one a batch.

use std::sync::Arc;

use crate::config::BatchConfig;
use crate::engine::{BatchItem, Engine};
use crate::error::EngineError;
use crate::request::Request;
use crate::sync::{Mutex, Receiver, Sender};

/// A closure that waits for the worker. It is called once.
pub(crate) struct Closure(pub(crate) Box<dyn Fn() + Send>);

/// A user's closure, until it is called or comes back.
pub(crate) struct Body<F>(Arc<Mutex<Option<F>>>);

impl<F> Body<F> {
    /// The request as it was made. It was refused.
    pub(crate) fn take_back(&self, request: Request<Closure>) -> Request<F> {
        let closure = self.0.lock().take().expect("a closure that was refused has not run");
        request.replace_input(closure).1
    }
}

/// See [`Closure::of`].
pub(crate) type Parts<F, T> = (Request<Closure>, (Sender<()>, Receiver<T>), Body<F>);

impl Closure {
    /// A request to call a user's closure, where its answer goes, and the closure itself.
    pub(crate) fn of<F, T>(request: Request<F>) -> Parts<F, T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let (sender, value, receiver) = Receiver::pair_with_value();
        let (closure, request) = request.replace_input(());
        let body = Arc::new(Mutex::new(Some(closure)));
        let run = {
            let body = Arc::clone(&body);
            move || {
                let taken = body.lock().take();
                if let Some(closure) = taken {
                    let answer = closure();
                    *value.lock() = Some(answer);
                }
            }
        };
        let request = request.replace_input(Self(Box::new(run))).1;
        (request, (sender, receiver), Body(body))
    }
}

impl BatchItem for Closure {
    type Key = ();
    fn key(&self) {}
}

/// The engine that calls closures.
pub(crate) struct RunClosures;

impl RunClosures {
    /// The settings of its queue, in which so many closures may wait.
    pub(crate) fn config(capacity: usize) -> BatchConfig {
        BatchConfig::default().name("closures").max_batch_size(1).capacity(capacity)
    }
}

impl Engine for RunClosures {
    type Item = Closure;
    type Output = ();

    fn infer(&mut self, batch: &[Closure]) -> Result<Vec<()>, EngineError> {
        batch.iter().for_each(|closure| (closure.0)());
        Ok(vec![(); batch.len()])
    }

    fn idempotent(&self) -> bool {
        false
    }

    fn survives_panic(&self) -> bool {
        true
    }
}
