//! An engine of one label as a reranker's.

use onelane::{Engine, EngineError};

use crate::forwarded::forwarded;

/// An engine of one label, whose only score is its output.
pub struct OneScore<E>(pub E);

impl<E: Engine<Output = Vec<f32>>> Engine for OneScore<E> {
    type Item = E::Item;
    type Output = f32;

    fn infer(&mut self, batch: &[E::Item]) -> Result<Vec<f32>, EngineError> {
        let only = |scores: Vec<f32>| match scores[..] {
            [score] => Ok(score),
            _ => Err(EngineError::failed(format!("{} scores instead of one", scores.len()))),
        };
        self.0.infer(batch)?.into_iter().map(only).collect()
    }

    forwarded!();
}
