//! Closures: what a device executor runs beside the batches of its queues. They are the requests of
//! a queue of its own, whose engine calls them, one a batch.

use std::any::Any;
use std::sync::Arc;

use crate::sync::{Mutex, Receiver, Sender};
use crate::{BatchConfig, BatchItem, Engine, EngineError, Request};

/// A closure that waits for the worker.
pub(crate) struct Closure(Box<dyn Call>);

/// What is asked of a user's closure, whatever its types.
trait Call: Any + Send {
    /// Calls it, once.
    fn call(&self);
}

/// A user's closure, until it is called or comes back, and where its value is left.
struct Body<F, T> {
    closure: Mutex<Option<F>>,
    value: Arc<Mutex<Option<T>>>,
}

impl<F: FnOnce() -> T + Send + 'static, T: Send + 'static> Call for Body<F, T> {
    fn call(&self) {
        let closure = self.closure.lock().take();
        if let Some(closure) = closure {
            let value = closure();
            *self.value.lock() = Some(value);
        }
    }
}

impl Closure {
    /// A request to call a user's closure, and where its answer goes.
    pub(crate) fn of<F, T>(request: Request<F>) -> (Request<Self>, (Sender<()>, Receiver<T>))
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let (sender, value, receiver) = Receiver::pair_with_value();
        let body = |closure| Box::new(Body { closure: Mutex::new(Some(closure)), value });
        (request.map(|closure| Self(body(closure))), (sender, receiver))
    }

    /// The request as it was made. It was refused.
    pub(crate) fn take_back<F: 'static, T: 'static>(request: Request<Self>) -> Request<F> {
        request.map(|closure| {
            let body: Box<dyn Any> = closure.0;
            let body = body.downcast::<Body<F, T>>().expect("a closure keeps its types");
            let closure = body.closure.lock().take();
            closure.expect("a closure that was refused has not run")
        })
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
        batch.iter().for_each(|closure| closure.0.call());
        Ok(vec![(); batch.len()])
    }

    fn idempotent(&self) -> bool {
        false
    }

    fn survives_panic(&self) -> bool {
        true
    }
}
