//! The engines of one worker, and how one is built.
//!
//! Invariant: an engine is built, used and dropped on its worker's thread.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::scheduler::id::QueueId;
use crate::sync::catch_panic;
use crate::{BuildError, Engine, EngineError};

/// What all batches of one queue share: its names, and how its engine is built.
pub(crate) struct EngineFactory<E: Engine> {
    pub(crate) queue: QueueId,
    pub(crate) device: String,
    pub(crate) name: String,
    pub(crate) build: Box<dyn Fn() -> Result<E, EngineError> + Send + Sync>,
}

impl<E: Engine> EngineFactory<E> {
    /// Builds and warms up an engine; on the worker. A panic is contained.
    pub(crate) fn build(&self) -> Result<Box<E>, BuildError> {
        let build = || -> Result<E, EngineError> {
            let mut engine = (self.build)()?;
            engine.warmup()?;
            Ok(engine)
        };
        let built = catch_panic(build).map_err(BuildError::Panicked)?;
        built.map(Box::new).map_err(BuildError::Engine)
    }

    pub(crate) fn log_failure(&self, error: &BuildError) {
        log(|| tracing::error!(queue = %self.name, %error, "the engine was not rebuilt"));
    }
}

/// Logging runs a user's code: a subscriber that panics harms nobody.
pub(crate) fn log(event: impl FnOnce()) {
    let _ = catch_panic(event);
}

/// The engines of one worker, by queue. `None`: in use further up the stack. Absent: not built.
#[derive(Default)]
pub(crate) struct Engines(RefCell<BTreeMap<QueueId, Option<Box<dyn Any>>>>);

impl Engines {
    /// Takes the engine of a queue for the length of a batch.
    pub(crate) fn take<E: Engine>(&self, queue: QueueId) -> Option<Box<E>> {
        let engine = self.0.borrow_mut().entry(queue).or_default().take()?;
        Some(engine.downcast().expect("a queue's engine keeps its type"))
    }

    /// Puts the engine back; `None` if it was lost.
    pub(crate) fn put<E: Engine>(&self, queue: QueueId, engine: Option<Box<E>>) {
        let mut engines = self.0.borrow_mut();
        match engine {
            Some(engine) => *engines.entry(queue).or_default() = Some(engine),
            None => drop(engines.remove(&queue)),
        }
    }

    /// Builds the engine of a queue if it is not there.
    pub(crate) fn build<E: Engine>(&self, factory: &EngineFactory<E>) -> Result<(), BuildError> {
        if !self.0.borrow().contains_key(&factory.queue) {
            let engine = factory.build()?;
            self.put(factory.queue, Some(engine));
        }
        Ok(())
    }

    /// As [`build`](Self::build), in place of one that was lost. Says whether it is there.
    pub(crate) fn rebuild<E: Engine>(&self, factory: &EngineFactory<E>) -> bool {
        self.build(factory).inspect_err(|error| factory.log_failure(error)).is_ok()
    }

    pub(crate) fn is_in_use(&self, queue: QueueId) -> bool {
        matches!(self.0.borrow().get(&queue), Some(None))
    }

    /// Drops the engine of a queue.
    pub(crate) fn retire(&self, queue: QueueId) {
        let engine = self.0.borrow_mut().remove(&queue);
        let _ = catch_panic(|| drop(engine));
    }

    /// Drops all engines.
    pub(crate) fn clear(&self) {
        for engine in self.0.take().into_values() {
            let _ = catch_panic(|| drop(engine));
        }
    }
}
