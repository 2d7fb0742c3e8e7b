//! The engine of a served model of tensors: a batch of rows is one call into Python, here or in a
//! child.

use std::sync::Arc;

use onelane::{Engine, EngineError};
use onelane_server::{Datatype, Row, Tensor};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::calls::{Calls, attached_once, read};
use crate::engine::PyEngine;

/// A tensor as it crosses to Python and back: name, type, shape and bytes.
type Parts<'py> = (String, String, Vec<usize>, Bound<'py, PyBytes>);

/// Runs batches of rows through a model in Python.
pub(super) struct TensorEngine {
    python: PyEngine,
    /// `pack([(name, type, shape, bytes), ...])` makes the model's request; `unpack(response)`
    /// returns its outputs in the same form.
    calls: Arc<Calls>,
}

impl TensorEngine {
    /// On the worker.
    pub(super) fn build(calls: &Arc<Calls>) -> Result<Self, EngineError> {
        Ok(Self { python: calls.build()?, calls: Arc::clone(calls) })
    }

    fn run(&mut self, batch: &[Row]) -> Result<Vec<Row>, EngineError> {
        let inputs = Row::gather(batch);
        let answer = self.calls.run(&mut self.python, |py| {
            let parts = inputs.iter().map(|input| {
                let name = (input.name(), input.datatype().name());
                (name.0, name.1, input.shape(), PyBytes::new(py, input.data()))
            });
            (PyList::new(py, parts)?,).into_pyobject(py)
        })?;
        let outputs = read(answer, |unpacked| {
            let outputs: Vec<Parts<'_>> = unpacked.extract()?;
            let copied = outputs.into_iter().map(|(name, datatype, shape, data)| {
                (name, datatype, shape, data.as_bytes().to_vec())
            });
            Ok(copied.collect::<Vec<_>>())
        })?;
        let tensor = |(name, datatype, shape, data): (String, String, Vec<usize>, Vec<u8>)| {
            let made = datatype
                .parse::<Datatype>()
                .and_then(|datatype| Tensor::new(name.as_str(), datatype, shape, data));
            made.map_err(|error| EngineError::failed(format!("the output {name:?} {error}")))
        };
        let outputs = outputs.into_iter().map(tensor).collect::<Result<Vec<_>, _>>()?;
        Row::scatter(batch, outputs)
    }
}

impl Engine for TensorEngine {
    type Item = Row;
    type Output = Row;

    fn infer(&mut self, batch: &[Row]) -> Result<Vec<Row>, EngineError> {
        attached_once(self.python.is_child(), || self.run(batch))
    }

    fn delivered(&mut self) {
        self.python.delivered();
    }

    fn idempotent(&self) -> bool {
        self.python.idempotent()
    }
}
