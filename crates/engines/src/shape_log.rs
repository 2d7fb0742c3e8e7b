//! [`ShapeLog`]: which shapes the engines of one model have run. Clones share one log.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use onelane_tokeniser::Shape;

/// The distinct shapes that engines of one model have run.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShapeLog(Arc<Mutex<BTreeSet<Shape>>>);

impl ShapeLog {
    /// Notes a run.
    pub fn note(&self, shape: Shape) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(shape);
    }

    /// The distinct shapes, in order.
    pub fn seen(&self) -> Vec<Shape> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}
