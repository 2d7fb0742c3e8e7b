//! An engine that a table of C functions makes up.

use std::ffi::c_void;
use std::sync::Arc;

use onelane::{BatchItem, Engine, EngineError};

use crate::engine::EngineSpec;
use crate::error::ErrorSlot;
use crate::status::*;
use crate::submitted::Submitted;

/// The item of one request, inside the core.
pub(crate) struct Item {
    pub(crate) submitted: Arc<Submitted>,
    pub(crate) key: u64,
    pub(crate) cost: usize,
}

impl BatchItem for Item {
    type Key = u64;

    fn key(&self) -> u64 {
        self.key
    }

    fn cost(&self) -> usize {
        self.cost
    }
}

/// A built engine, on its worker.
pub(crate) struct TableEngine {
    spec: Arc<EngineSpec>,
    engine: *mut c_void,
    /// Used again for each batch.
    items: Vec<*mut c_void>,
}

impl TableEngine {
    pub(crate) fn build(spec: &Arc<EngineSpec>) -> Result<Self, EngineError> {
        let table = &spec.table;
        let mut engine = table.context;
        if let Some(build) = table.build {
            engine = std::ptr::null_mut();
            let mut error = ErrorSlot::default();
            // SAFETY: the context is there, and this is the worker.
            let status = unsafe { build(table.context, &raw mut engine, &raw mut error) };
            if status != ONELANE_OK {
                return Err(error.into_error(status));
            }
        }
        Ok(Self { spec: Arc::clone(spec), engine, items: Vec::new() })
    }
}

impl Engine for TableEngine {
    type Item = Item;
    type Output = ();

    fn infer(&mut self, batch: &[Item]) -> Result<Vec<()>, EngineError> {
        self.items.clear();
        self.items.extend(batch.iter().map(|item| item.submitted.item()));
        let run = self.spec.table.run.expect("a queue is not made without it");
        let mut error = ErrorSlot::default();
        // SAFETY: the engine was built here and not dropped; the items were accepted and not given
        // back, since each has its answer only after this.
        let status =
            unsafe { run(self.engine, self.items.as_ptr(), self.items.len(), &raw mut error) };
        match status {
            ONELANE_OK => Ok(vec![(); batch.len()]),
            status => Err(error.into_error(status)),
        }
    }

    fn idempotent(&self) -> bool {
        self.spec.table.idempotent != 0
    }
}

impl Drop for TableEngine {
    fn drop(&mut self) {
        if let Some(drop_engine) = self.spec.table.drop_engine {
            // SAFETY: it was built by the same table, on this thread, and is not used again.
            unsafe { drop_engine(self.engine) };
        }
    }
}
