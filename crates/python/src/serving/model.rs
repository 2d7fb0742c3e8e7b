//! A model in Python as the server knows one.

use std::time::Duration;

use onelane::{BatchConfig, DeviceExecutor};
use onelane_server::Model;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::calls::Calls;
use super::tensor_model::TensorFacts;
use super::text_model::TextFacts;
use crate::engine::PyFactory;
use crate::executor::Executor;
use crate::interpreter::Held;
use crate::isolation::Supervisor;
use crate::remote::RemoteFactory;
use crate::waiting::seconds;

/// What Python says of a model.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct ModelSpec {
    name: String,
    aliases: Vec<String>,
    executor: Py<Executor>,
    /// As for a queue: makes a runner, or is a `Supervisor`.
    build: Py<PyAny>,
    bridge: Py<PyAny>,
    pads: bool,
    facts: Facts,
}

/// What a model says of itself.
#[derive(FromPyObject)]
enum Facts {
    Texts(TextFacts),
    Tensors(TensorFacts),
}

/// The settings of all models' queues.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct QueueSettings {
    max_batch_requests: usize,
    max_batch_tokens: usize,
    max_concurrent_requests: usize,
    max_queued_tokens: Option<usize>,
    ageing: f64,
    stall_after: f64,
}

impl QueueSettings {
    pub(crate) fn config(&self) -> PyResult<BatchConfig> {
        let config = BatchConfig::default()
            .max_batch_size(self.max_batch_requests)
            .max_batch_cost(self.max_batch_tokens)
            .capacity(self.max_concurrent_requests)
            .capacity_cost(self.max_queued_tokens.unwrap_or(usize::MAX))
            .ageing(seconds("ageing", self.ageing)?)
            .stall_after(seconds("stall_after", self.stall_after)?);
        config.validate().map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(config)
    }
}

impl ModelSpec {
    pub(crate) fn into_model(self, py: Python<'_>, config: &BatchConfig) -> PyResult<Model> {
        let mut config = config.clone();
        let device: DeviceExecutor = self.executor.bind(py).get().device(py)?.clone();
        let factory = match self.build.bind(py).cast::<Supervisor>() {
            Ok(supervisor) => {
                let supervisor = supervisor.get();
                // As for a queue: requests that take their children along are no reason to give up.
                config.max_rebuilds = u32::MAX;
                PyFactory::Child(RemoteFactory::new(supervisor.core(py)?, supervisor.codec(py)))
            }
            Err(_) => PyFactory::Here(Held::new(self.build), true),
        };
        let calls = Calls { factory, bridge: self.bridge };
        let model = match self.facts {
            Facts::Texts(facts) => facts.model(self.name, calls, self.pads, (&device, config))?,
            Facts::Tensors(facts) => facts.model(self.name, calls, (&device, config))?,
        };
        Ok(self.aliases.into_iter().fold(model, Model::alias))
    }
}

/// Seconds; none for `None`.
pub(crate) fn optional_seconds(name: &str, value: Option<f64>) -> PyResult<Option<Duration>> {
    value.map(|value| seconds(name, value)).transpose()
}
