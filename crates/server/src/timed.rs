//! When the batch of a request ran: each answer brings it along.

use std::time::Instant;

use onelane::{Engine, EngineError};

use crate::forwarded::forwarded;

/// An engine whose answers say when their batch ran.
pub(crate) struct Timed<E>(pub(crate) E);

/// An answer, and when its batch ran.
#[derive(Debug)]
pub(crate) struct TimedOutput<T> {
    pub(crate) output: T,
    pub(crate) started: Instant,
    pub(crate) ended: Instant,
}

impl<E: Engine> Engine for Timed<E> {
    type Item = E::Item;
    type Output = TimedOutput<E::Output>;

    fn infer(&mut self, batch: &[E::Item]) -> Result<Vec<Self::Output>, EngineError> {
        let started = Instant::now();
        let outputs = self.0.infer(batch)?;
        let ended = Instant::now();
        Ok(outputs.into_iter().map(|output| TimedOutput { output, started, ended }).collect())
    }

    forwarded!();
}
