//! A model in Python as the server knows one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use onelane::{BatchConfig, DeviceExecutor, EngineError};
use onelane_server::{
    Classifier, Embedder, Model, ModelInfo, OneScore, Reranker, TextError, Token, Tokenised, Tokens,
};
use onelane_tokeniser::{BucketConfig, TokenisedText, Tokeniser, Vocabulary};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::engine::{Calls, TextEngine};
use crate::engine::PyFactory;
use crate::executor::Executor;
use crate::isolation::Supervisor;
use crate::remote::RemoteFactory;
use crate::waiting::seconds;

/// What Python says of a model.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct ModelSpec {
    name: String,
    aliases: Vec<String>,
    /// `embed`, `rerank` or `classify`.
    task: String,
    executor: Py<Executor>,
    /// As for a queue: makes a runner, or is a `Supervisor`.
    build: Py<PyAny>,
    bridge: Py<PyAny>,
    /// The content of its `tokenizer.json`.
    tokenizer: Vec<u8>,
    vocabulary: usize,
    kinds: usize,
    positions: usize,
    lower_case: bool,
    pads: bool,
    pad_id: u32,
    dtype: String,
    labels: Vec<String>,
    dimensions: Option<usize>,
    matryoshka: bool,
    pooling: Option<String>,
    prompts: BTreeMap<String, String>,
    default_prompt: Option<String>,
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
            Err(_) => PyFactory::Here(self.build, true),
        };
        let vocabulary = Vocabulary {
            size: self.vocabulary,
            kinds: self.kinds,
            positions: self.positions,
            max_length: None,
            lower_case: self.lower_case,
        };
        let tokeniser = Tokeniser::read(self.tokenizer, vocabulary, &BucketConfig::fine());
        let tokeniser = tokeniser.map_err(|error| {
            PyValueError::new_err(format!("the tokeniser of {:?}: {error}", self.name))
        })?;
        let mut info = ModelInfo::new(tokeniser.max_length())
            .matryoshka(self.matryoshka)
            .dtype(self.dtype)
            .prompts(self.prompts, self.default_prompt);
        info.dimensions = self.dimensions;
        info.pooling = self.pooling;
        let calls = Calls {
            factory,
            bridge: self.bridge,
            buckets: tokeniser.buckets().clone(),
            pads: self.pads,
            pad_id: self.pad_id,
        };
        let model = TextModel { tokeniser, calls: Arc::new(calls), info, labels: self.labels };
        let model = match self.task.as_str() {
            "embed" => Model::embedder(self.name, model, &device, config),
            "rerank" => Model::reranker(self.name, model, &device, config),
            "classify" => Model::classifier(self.name, model, &device, config),
            other => return Err(PyValueError::new_err(format!("there is no task {other:?}"))),
        };
        Ok(self.aliases.into_iter().fold(model, Model::alias))
    }
}

/// A model of texts whose engine calls Python.
struct TextModel {
    tokeniser: Tokeniser,
    calls: Arc<Calls>,
    info: ModelInfo,
    labels: Vec<String>,
}

impl Tokens for TextModel {
    fn tokens(&self, text: &str, special: bool) -> Result<Vec<Token>, TextError> {
        Tokens::tokens(&self.tokeniser, text, special)
    }

    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        Tokens::decode(&self.tokeniser, ids, skip_special)
    }
}

impl Embedder for TextModel {
    type Engine = TextEngine;

    fn load(&self) -> Result<TextEngine, EngineError> {
        TextEngine::build(&self.calls)
    }

    fn encode(&self, text: &str) -> Result<Tokenised<TokenisedText>, TextError> {
        Ok(self.tokeniser.encode(text)?.into())
    }

    fn encode_ids(&self, ids: &[u32]) -> Result<Tokenised<TokenisedText>, TextError> {
        Ok(self.tokeniser.encode_ids(ids)?.into())
    }

    fn info(&self) -> ModelInfo {
        self.info.clone()
    }
}

impl Reranker for TextModel {
    type Engine = OneScore<TextEngine>;

    fn load(&self) -> Result<OneScore<TextEngine>, EngineError> {
        TextEngine::build(&self.calls).map(OneScore)
    }

    fn encode(&self, query: &str, text: &str) -> Result<Tokenised<TokenisedText>, TextError> {
        Ok(self.tokeniser.encode_pair(query, text)?.into())
    }

    fn info(&self) -> ModelInfo {
        self.info.clone()
    }
}

impl Classifier for TextModel {
    type Engine = TextEngine;

    fn load(&self) -> Result<TextEngine, EngineError> {
        TextEngine::build(&self.calls)
    }

    fn encode(
        &self,
        text: &str,
        pair: Option<&str>,
    ) -> Result<Tokenised<TokenisedText>, TextError> {
        let encoded = match pair {
            Some(pair) => self.tokeniser.encode_pair(text, pair),
            None => self.tokeniser.encode(text),
        };
        Ok(encoded?.into())
    }

    fn labels(&self) -> Vec<String> {
        self.labels.clone()
    }

    fn info(&self) -> ModelInfo {
        self.info.clone()
    }
}

/// Seconds; none for `None`.
pub(crate) fn optional_seconds(name: &str, value: Option<f64>) -> PyResult<Option<Duration>> {
    value.map(|value| seconds(name, value)).transpose()
}
