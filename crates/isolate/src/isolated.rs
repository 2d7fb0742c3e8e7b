//! The engine that the core sees: it sends each batch to a child.

use std::marker::PhantomData;
use std::sync::Arc;

use onelane::{Engine, EngineError};

use crate::arena::Reader;
use crate::channel;
use crate::error::WireError;
use crate::serving::Serving;
use crate::supervisor::{FactoryGuard, Supervisor};
use crate::wire::Wire;
use crate::worker::Worker;

/// An engine whose batches run in a child process, by the engine `E` there. A child that crashes,
/// hangs or loses its engine costs the requests at fault, and nobody else.
///
/// In the parent no `E` is ever made: it only says what the items and outputs are.
pub struct Isolated<E> {
    serving: Serving<Worker>,
    /// The cost of the last batch as computed.
    padded_cost: usize,
    engine: PhantomData<fn() -> E>,
}

impl<E> Isolated<E>
where
    E: Engine<Item: Wire, Output: Wire>,
{
    /// The factory of a queue's engine: `BatchQueue::new(&device, config, factory)`. Its errors,
    /// and those of its engines, are [`EngineError::Lost`] with a
    /// [`ChildLost`](crate::ChildLost) as source.
    ///
    /// # Blocking
    /// The factory blocks until the child's engine is built and warm, for at most
    /// [`IsolationConfig::start`](crate::IsolationConfig::start), and up to 5 s before that if
    /// starts have failed. Dropping the last engine or the factory blocks until the children have
    /// ended.
    pub fn factory(
        supervisor: &Supervisor,
    ) -> impl Fn() -> Result<Self, EngineError> + Send + Sync + 'static {
        let guard = FactoryGuard(Arc::clone(&supervisor.shared));
        move || {
            channel::check_not_forgotten().map_err(EngineError::failed)?;
            let serving = Serving::new(&guard.0).map_err(EngineError::lost)?;
            Ok(Self { serving, padded_cost: 0, engine: PhantomData })
        }
    }

    /// As [`Engine::infer`], with outputs that `read` makes of what the child has written, given
    /// their number: for who needs a lock to read them, and for what comes after.
    ///
    /// # Errors
    /// As [`Engine::infer`]. What `read` cannot read loses the child, as does what it leaves unread.
    ///
    /// # Blocking
    /// Until the child has answered, or has been given up; see [`IsolationConfig`](crate::IsolationConfig).
    pub fn infer_with<R>(
        &mut self,
        batch: &[E::Item],
        mut read: impl FnMut(usize, &mut Reader<'_>) -> Result<R, WireError>,
    ) -> Result<R, EngineError> {
        let run = |worker: &mut Worker| worker.run(batch, &mut read);
        let (outputs, cost) = self.serving.run(batch.len(), run)?;
        self.padded_cost = usize::try_from(cost).unwrap_or(usize::MAX);
        Ok(outputs)
    }
}

impl<E> Engine for Isolated<E>
where
    E: Engine<Item: Wire, Output: Wire>,
{
    type Item = E::Item;
    type Output = E::Output;

    fn infer(&mut self, batch: &[E::Item]) -> Result<Vec<E::Output>, EngineError> {
        self.infer_with(batch, E::Output::read_vec)
    }

    fn delivered(&mut self) {
        // After the answers, so that nobody waits for it who need not. What fails here is tried
        // again by the next batch.
        if let Err(error) = self.serving.recycle() {
            tracing::warn!(%error, "an isolated worker could not be replaced");
        }
    }

    fn idempotent(&self) -> bool {
        self.serving.idempotent()
    }

    fn padded_cost(&self, _batch: &[E::Item]) -> usize {
        self.padded_cost
    }
}
