//! [`Serving`]: the child that serves one engine, from loss to loss and from limit to limit.
//!
//! Invariants: a batch is in at most one child at a time, and it is sent again only if it was not
//! seen, or its engine may be asked twice. A child that was lost is never asked again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use onelane::EngineError;

use crate::child::{Answer, Child, Interruption, RunError, not_written};
use crate::error::ChildLost;
use crate::frame::Kind;
use crate::supervisor::Shared;
use crate::sync;

/// How often one batch may find that its child has died before it was sent anything.
const DEAD_ON_ARRIVAL: u32 = 3;

/// How often it is looked, after a batch, whether the spare still lives.
const SPARE_CHECK: Duration = Duration::from_secs(1);

pub(crate) struct Serving<C: Child> {
    shared: Arc<Shared<C>>,
    /// `None` after a loss, until the next batch.
    child: Option<C>,
    /// What the last child said of its engine.
    idempotent: bool,
    spare_checked: Instant,
}

/// Why an attempt gave no outputs.
enum Attempt {
    Answered(EngineError),
    NoChild(Box<ChildLost>),
    Lost { lost: Box<ChildLost>, before: bool, starved: bool },
}

impl<C: Child> Serving<C> {
    /// Takes or starts a child.
    ///
    /// # Blocking
    /// As a start takes.
    pub(crate) fn new(shared: &Arc<Shared<C>>) -> Result<Self, ChildLost> {
        let child = shared.take()?;
        shared.engine_made();
        Ok(Self {
            shared: Arc::clone(shared),
            idempotent: child.idempotent(),
            child: Some(child),
            spare_checked: sync::now(),
        })
    }

    pub(crate) fn idempotent(&self) -> bool {
        self.idempotent
    }

    /// Has a batch of `size` run, by `run` in a child, until there is an answer or nothing more to
    /// try. The outputs come with their cost.
    pub(crate) fn run<R>(
        &mut self,
        size: usize,
        mut run: impl FnMut(&mut C) -> Result<Answer<R>, RunError>,
    ) -> Result<(R, u64), EngineError> {
        // Where `delivered` is not called.
        self.recycle()?;
        let mut retries = 0;
        let mut dead_on_arrival = 0;
        loop {
            let (lost, before, starved) = match self.attempt(&mut run) {
                Ok(outputs) => return Ok(outputs),
                Err(Attempt::Answered(error)) => return Err(error),
                Err(Attempt::NoChild(lost)) => return Err(EngineError::lost(*lost)),
                Err(Attempt::Lost { lost, before, starved }) => (lost, before, starved),
            };
            if before && dead_on_arrival < DEAD_ON_ARRIVAL {
                // It has not seen this batch: whatever the engine, it may be run.
                dead_on_arrival += 1;
            } else if starved && size > 1 && self.idempotent {
                // Fewer at a time may fit. The core splits the batch and remembers.
                return Err(EngineError::out_of_memory(*lost));
            } else if size == 1 && self.idempotent && retries < self.shared.children.config.retries
            {
                // It may have been a race, or a kill from outside.
                retries += 1;
                self.shared.children.retried();
            } else {
                return Err(EngineError::lost(*lost));
            }
        }
    }

    fn attempt<R>(
        &mut self,
        run: &mut impl FnMut(&mut C) -> Result<Answer<R>, RunError>,
    ) -> Result<(R, u64), Attempt> {
        let child = match &mut self.child {
            Some(child) => child,
            None => {
                let fresh = self.shared.take().map_err(|lost| Attempt::NoChild(lost.into()))?;
                self.child.insert(fresh)
            }
        };
        let answer = run(child);
        self.idempotent = child.idempotent();
        match answer {
            Ok(answer) => {
                if child.memory() > 0 {
                    self.shared.children.measured(child.memory());
                }
                match answer {
                    Answer::Outputs { outputs, cost } => Ok((outputs, cost)),
                    Answer::Error(Kind::OutOfMemory, error) => {
                        Err(Attempt::Answered(EngineError::out_of_memory(error)))
                    }
                    Answer::Error(_, error) => Err(Attempt::Answered(EngineError::failed(error))),
                }
            }
            Err(RunError::NotWritten(error)) => Err(Attempt::Answered(not_written(error))),
            Err(RunError::Interrupted(interruption)) => {
                let before = matches!(interruption, Interruption::EndedBefore);
                let child = self.child.take().expect("it was there to be interrupted");
                let (lost, starved) = child.lose(interruption);
                self.shared.children.lost(&lost);
                Err(Attempt::Lost { lost: lost.into(), before, starved })
            }
        }
    }

    /// Replaces the child if it has passed a limit. With a spare the old one goes on until the
    /// new one is ready. Without, the old one is ended first: two of them might not fit on the
    /// device, and a child that is replaced for its memory would then never be.
    pub(crate) fn recycle(&mut self) -> Result<(), EngineError> {
        let has_spare = self.shared.children.config.spare;
        if has_spare && sync::now() - self.spare_checked >= SPARE_CHECK {
            self.spare_checked = sync::now();
            self.shared.check_spare();
        }
        let Some(cause) = self.child.as_ref().and_then(Child::recycle_cause) else {
            return Ok(());
        };
        if has_spare {
            let Some(fresh) = self.shared.take_ready_spare() else {
                return Ok(());
            };
            if let Some(old) = self.child.replace(fresh) {
                self.shared.retire_in_background(old);
            }
        } else {
            if let Some(old) = self.child.take() {
                old.retire();
            }
            self.child = Some(self.shared.take().map_err(EngineError::lost)?);
        }
        self.shared.children.recycled(cause);
        tracing::info!(?cause, "an isolated worker was replaced");
        Ok(())
    }
}

impl<C: Child> Drop for Serving<C> {
    fn drop(&mut self) {
        self.shared.engine_gone(self.child.take());
    }
}
