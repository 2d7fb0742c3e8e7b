//! [`SimBlock`]: a piece of simulated device memory. It is freed when Python drops the last reference
//! to it, at that moment, whatever commands still refer to it: that is the hazard.

use std::sync::Arc;

use onelane_sim::Buffer;
use pyo3::prelude::*;

use super::watch::Watch;

/// A piece of simulated device memory, shared by all views of a tensor.
#[pyclass(frozen, weakref, module = "onelane._onelane")]
pub(crate) struct SimBlock {
    /// `None` in `drop` alone.
    buffer: Option<Buffer>,
    watch: Arc<Watch>,
}

impl SimBlock {
    pub(crate) fn new(buffer: Buffer, watch: &Arc<Watch>) -> Self {
        Self { buffer: Some(buffer), watch: Arc::clone(watch) }
    }

    pub(crate) fn buffer(&self) -> &Buffer {
        self.buffer.as_ref().expect("it is taken in drop alone")
    }
}

#[pymethods]
impl SimBlock {
    /// Its length in bytes.
    #[getter]
    fn nbytes(&self) -> usize {
        self.buffer().bytes()
    }

    /// Its number; a freed block's number comes back with the block.
    #[getter]
    fn number(&self) -> u32 {
        self.buffer().block()
    }

    fn __repr__(&self) -> String {
        format!("<simulated block {} of {} bytes>", self.number(), self.nbytes())
    }
}

impl Drop for SimBlock {
    fn drop(&mut self) {
        let mut buffer = self.buffer.take();
        let freed = Python::try_attach(|py| {
            // A destructor cannot fail: what the watcher raises is printed, and the block is freed.
            if let Err(error) = self.watch.tell(py, "free", "free") {
                error.write_unraisable(py, None);
            }
            // Freeing is an action on the device and waits for its turn.
            py.detach(|| drop(buffer.take()));
        });
        if freed.is_none() {
            std::mem::forget(buffer);
        }
    }
}
