//! The engine that the core sees: it sends each batch to a child.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use onelane::{Engine, EngineError};

use crate::channel;
use crate::children::RecycleCause;
use crate::error::WireError;
use crate::frame::Kind;
use crate::supervisor::{FactoryGuard, Shared, Supervisor};
use crate::wire::Wire;
use crate::worker::{Answer, Interruption, RunError, Worker};

/// How often one batch may find that its child has died before it was sent anything.
const DEAD_ON_ARRIVAL: u32 = 3;

/// How often it is looked, after a batch, whether the spare still lives.
const SPARE_CHECK: Duration = Duration::from_secs(1);

/// An engine whose batches run in a child process, by the engine `E` there. A child that crashes,
/// hangs or loses its engine costs the requests at fault, and nobody else.
///
/// In the parent no `E` is ever made: it only says what the items and outputs are.
pub struct Isolated<E> {
    shared: Arc<Shared>,
    /// `None` after a loss, until the next batch.
    worker: Option<Worker>,
    /// What the last child said of its engine.
    idempotent: bool,
    /// The cost of the last batch as computed.
    padded_cost: usize,
    spare_checked: Instant,
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
            let shared = &guard.0;
            channel::check_not_forgotten().map_err(EngineError::failed)?;
            let worker = shared.take().map_err(EngineError::lost)?;
            shared.engine_made();
            Ok(Self {
                shared: Arc::clone(shared),
                idempotent: worker.idempotent,
                worker: Some(worker),
                padded_cost: 0,
                spare_checked: Instant::now(),
                engine: PhantomData,
            })
        }
    }

    fn attempt(&mut self, batch: &[E::Item]) -> Result<Vec<E::Output>, Attempt> {
        let worker = match &mut self.worker {
            Some(worker) => worker,
            None => {
                let fresh = self.shared.take().map_err(|lost| Attempt::NoChild(lost.into()))?;
                self.worker.insert(fresh)
            }
        };
        let answer = worker.run::<E::Item, E::Output>(batch);
        self.idempotent = worker.idempotent;
        match answer {
            Ok(answer) => {
                if worker.memory > 0 {
                    self.shared.children.measured(worker.memory);
                }
                match answer {
                    Answer::Outputs { outputs, cost } => {
                        self.padded_cost = usize::try_from(cost).unwrap_or(usize::MAX);
                        Ok(outputs)
                    }
                    Answer::Error(Kind::OutOfMemory, error) => {
                        Err(Attempt::Answered(EngineError::out_of_memory(error)))
                    }
                    Answer::Error(_, error) => Err(Attempt::Answered(EngineError::failed(error))),
                }
            }
            Err(RunError::NotWritten(error)) => Err(Attempt::Answered(match error {
                WireError::TooLarge { .. } | WireError::NoMemory { .. } => {
                    EngineError::out_of_memory(error)
                }
                _ => EngineError::failed(error),
            })),
            Err(RunError::Interrupted(interruption)) => {
                let before = matches!(interruption, Interruption::EndedBefore);
                let worker = self.worker.take().expect("it was there to be interrupted");
                let (lost, starved) = worker.lose(interruption);
                self.shared.children.lost(&lost);
                Err(Attempt::Lost { lost: lost.into(), before, starved })
            }
        }
    }

    /// Replaces the child if it has passed a limit. With a spare the old one goes on until the
    /// new one is ready. Without, the old one is ended first: two of them might not fit on the
    /// device, and a child that is replaced for its memory would then never be.
    fn recycle(&mut self) -> Result<(), EngineError> {
        if self.shared.children.config.spare && self.spare_checked.elapsed() >= SPARE_CHECK {
            self.spare_checked = Instant::now();
            self.shared.check_spare();
        }
        let Some(cause) = self.worker.as_ref().and_then(|worker| worker.recycle_cause()) else {
            return Ok(());
        };
        if self.shared.children.config.spare {
            let Some(fresh) = self.shared.take_ready_spare() else {
                return Ok(());
            };
            if let Some(old) = self.worker.replace(fresh) {
                self.shared.retire_in_background(old);
            }
        } else {
            if let Some(old) = self.worker.take() {
                old.retire();
            }
            self.worker = Some(self.shared.take().map_err(EngineError::lost)?);
        }
        self.shared.children.recycled(cause);
        tracing::info!(?cause, "an isolated worker was replaced");
        Ok(())
    }
}

/// Why an attempt gave no outputs.
enum Attempt {
    Answered(EngineError),
    NoChild(Box<crate::ChildLost>),
    Lost { lost: Box<crate::ChildLost>, before: bool, starved: bool },
}

impl<E> Engine for Isolated<E>
where
    E: Engine<Item: Wire, Output: Wire>,
{
    type Item = E::Item;
    type Output = E::Output;

    fn infer(&mut self, batch: &[E::Item]) -> Result<Vec<E::Output>, EngineError> {
        // Where `delivered` is not called.
        self.recycle()?;
        let mut retries = 0;
        let mut dead_on_arrival = 0;
        loop {
            let (lost, before, starved) = match self.attempt(batch) {
                Ok(outputs) => return Ok(outputs),
                Err(Attempt::Answered(error)) => return Err(error),
                Err(Attempt::NoChild(lost)) => return Err(EngineError::lost(*lost)),
                Err(Attempt::Lost { lost, before, starved }) => (lost, before, starved),
            };
            if before && dead_on_arrival < DEAD_ON_ARRIVAL {
                // It has not seen this batch: whatever the engine, it may be run.
                dead_on_arrival += 1;
            } else if starved && batch.len() > 1 && self.idempotent {
                // Fewer at a time may fit. The core splits the batch and remembers.
                return Err(EngineError::out_of_memory(*lost));
            } else if batch.len() == 1
                && self.idempotent
                && retries < self.shared.children.config.retries
            {
                // It may have been a race, or a kill from outside.
                retries += 1;
                self.shared.children.retried();
            } else {
                return Err(EngineError::lost(*lost));
            }
        }
    }

    fn delivered(&mut self) {
        // After the answers, so that nobody waits for it who need not. What fails here is tried
        // again by the next batch.
        if let Err(error) = self.recycle() {
            tracing::warn!(%error, "an isolated worker could not be replaced");
        }
    }

    fn idempotent(&self) -> bool {
        self.idempotent
    }

    fn padded_cost(&self, _batch: &[E::Item]) -> usize {
        self.padded_cost
    }
}

impl<E> Drop for Isolated<E> {
    fn drop(&mut self) {
        self.shared.engine_gone(self.worker.take());
    }
}

impl Worker {
    /// The limit that it has passed, if it has passed one.
    fn recycle_cause(&self) -> Option<RecycleCause> {
        let config = self.config();
        if self.is_over_memory() {
            Some(RecycleCause::Memory)
        } else if config.recycle_batches.is_some_and(|limit| self.batches >= limit) {
            Some(RecycleCause::Batches)
        } else if config.recycle_after.is_some_and(|limit| self.started.elapsed() >= limit) {
            Some(RecycleCause::Age)
        } else {
            None
        }
    }
}
