//! A model of texts in Python as the server knows one.

use std::collections::BTreeMap;
use std::sync::Arc;

use onelane::{BatchConfig, DeviceExecutor, EngineError};
use onelane_server::{
    Classifier, Embedder, Model, ModelInfo, OneScore, Reranker, TextError, Token, Tokenised, Tokens,
};
use onelane_tokeniser::{BucketConfig, TokenisedText, Tokeniser, Vocabulary};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::calls::Calls;
use super::text_engine::{TextCalls, TextEngine};

/// What a model of texts says of itself.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(super) struct TextFacts {
    /// `embed`, `rerank` or `classify`.
    task: String,
    /// The content of its `tokenizer.json`.
    tokenizer: Vec<u8>,
    vocabulary: usize,
    kinds: usize,
    positions: usize,
    lower_case: bool,
    pad_id: u32,
    dtype: String,
    labels: Vec<String>,
    dimensions: Option<usize>,
    matryoshka: bool,
    pooling: Option<String>,
    prompts: BTreeMap<String, String>,
    default_prompt: Option<String>,
}

impl TextFacts {
    /// `pads`: see [`TextCalls`].
    pub(super) fn model(
        self,
        name: String,
        calls: Calls,
        pads: bool,
        (device, config): (&DeviceExecutor, BatchConfig),
    ) -> PyResult<Model> {
        let vocabulary = Vocabulary {
            size: self.vocabulary,
            kinds: self.kinds,
            positions: self.positions,
            max_length: None,
            lower_case: self.lower_case,
        };
        let tokeniser = Tokeniser::read(self.tokenizer, vocabulary, &BucketConfig::fine());
        let tokeniser = tokeniser.map_err(|error| {
            PyValueError::new_err(format!("the tokeniser of {name:?}: {error}"))
        })?;
        let mut info = ModelInfo::new(tokeniser.max_length())
            .matryoshka(self.matryoshka)
            .dtype(self.dtype)
            .prompts(self.prompts, self.default_prompt);
        info.dimensions = self.dimensions;
        info.pooling = self.pooling;
        let buckets = tokeniser.buckets().clone();
        let calls = Arc::new(TextCalls { calls, buckets, pads, pad_id: self.pad_id });
        let model = TextModel { tokeniser, calls, info, labels: self.labels };
        Ok(match self.task.as_str() {
            "embed" => Model::embedder(name, model, device, config),
            "rerank" => Model::reranker(name, model, device, config),
            "classify" => Model::classifier(name, model, device, config),
            other => return Err(PyValueError::new_err(format!("there is no task {other:?}"))),
        })
    }
}

/// A model of texts whose engine calls Python.
struct TextModel {
    tokeniser: Tokeniser,
    calls: Arc<TextCalls>,
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
