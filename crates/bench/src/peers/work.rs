//! The work that every queue does: none, or none until a gate opens.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// The most requests in a batch, for every queue.
pub const MAX_BATCH: usize = 256;

/// Gives values back.
#[derive(Clone, Debug, Default)]
pub struct Work {
    closed: Option<Arc<(Mutex<bool>, Condvar)>>,
}

impl Work {
    /// Work that waits, before its first batch, until [`open`](Self::open).
    pub fn gated() -> Self {
        Self { closed: Some(Arc::new((Mutex::new(true), Condvar::new()))) }
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        if let Some(gate) = &self.closed {
            *gate.0.lock().unwrap_or_else(PoisonError::into_inner) = false;
            gate.1.notify_all();
        }
    }

    /// Runs one batch: as an engine would, it makes a list of outputs, in order.
    ///
    /// # Blocking
    /// While the gate is closed.
    pub fn run(&self, batch: impl Iterator<Item = u64>) -> Vec<u64> {
        if let Some(gate) = &self.closed {
            let closed = gate.0.lock().unwrap_or_else(PoisonError::into_inner);
            drop(
                gate.1.wait_while(closed, |closed| *closed).unwrap_or_else(PoisonError::into_inner),
            );
        }
        batch.collect()
    }
}
