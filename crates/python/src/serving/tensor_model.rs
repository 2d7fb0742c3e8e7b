//! A model of tensors in Python as the server knows one.

use std::sync::Arc;

use onelane::{BatchConfig, DeviceExecutor, EngineError};
use onelane_server::{Datatype, Model, Predictor, Signature, Tensor, TensorError, TensorSpec};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::calls::Calls;
use super::tensor_engine::TensorEngine;

/// What a model of tensors says of itself.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(super) struct TensorFacts {
    inputs: Vec<(String, String, Vec<i64>)>,
    outputs: Vec<(String, String, Vec<i64>)>,
    batch: bool,
    /// Whether BYTES have to be UTF-8.
    utf8: bool,
}

impl TensorFacts {
    pub(super) fn model(
        self,
        name: String,
        calls: Calls,
        (device, config): (&DeviceExecutor, BatchConfig),
    ) -> PyResult<Model> {
        let wrong = |error: TensorError| PyValueError::new_err(format!("{name:?}: {error}"));
        let inputs = declared(self.inputs).map_err(wrong)?;
        let outputs = declared(self.outputs).map_err(wrong)?;
        let signature = match self.batch {
            true => Signature::rows(inputs, outputs),
            false => Signature::whole(inputs, outputs),
        };
        let signature = signature.map_err(wrong)?;
        let model = TensorModel { calls: Arc::new(calls), signature, utf8: self.utf8 };
        Ok(Model::predictor(name, model, device, config))
    }
}

fn declared(specs: Vec<(String, String, Vec<i64>)>) -> Result<Vec<TensorSpec>, TensorError> {
    let spec = |(name, datatype, shape): (String, String, Vec<i64>)| {
        Ok(TensorSpec::new(name, datatype.parse::<Datatype>()?, shape))
    };
    specs.into_iter().map(spec).collect()
}

/// A model of tensors whose engine calls Python.
struct TensorModel {
    calls: Arc<Calls>,
    signature: Signature,
    utf8: bool,
}

impl Predictor for TensorModel {
    type Engine = TensorEngine;

    fn load(&self) -> Result<TensorEngine, EngineError> {
        TensorEngine::build(&self.calls)
    }

    fn signature(&self) -> Signature {
        self.signature.clone()
    }

    fn check(&self, input: &Tensor) -> Result<(), TensorError> {
        let odd = |element: &[u8]| self.utf8 && std::str::from_utf8(element).is_err();
        match input.elements().position(odd) {
            Some(at) => Err(TensorError(format!("element {at} is not UTF-8"))),
            None => Ok(()),
        }
    }
}
