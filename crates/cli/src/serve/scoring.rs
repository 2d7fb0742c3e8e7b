//! A sequence classifier of candle as the server knows one: a reranker if it has one label. Its
//! engine runs in this process or in a child.

use onelane::{BatchConfig, DeviceExecutor, Engine, EngineError};
use onelane_engines::{ClassificationEngine, ClassificationModel, TokenisedText};
use onelane_server::{
    Classifier, Model, ModelInfo, OneScore, Reranker, TextError, Token, Tokenised, Tokens,
};

/// A sequence classifier whose engine is an `E`.
pub struct Scoring<E> {
    model: ClassificationModel,
    load: Box<dyn Fn() -> Result<E, EngineError> + Send + Sync>,
}

impl Scoring<ClassificationEngine> {
    /// With its engine in this process.
    pub fn new(model: ClassificationModel) -> Self {
        let loaded = model.clone();
        Self::with(model, move || Ok(loaded.load()?))
    }
}

impl<E> Scoring<E> {
    /// With the engine that `load` gives.
    pub fn with(
        model: ClassificationModel,
        load: impl Fn() -> Result<E, EngineError> + Send + Sync + 'static,
    ) -> Self {
        Self { model, load: Box::new(load) }
    }
}

impl<E: Engine<Item = TokenisedText, Output = Vec<f32>>> Scoring<E> {
    /// What the server serves: a reranker if there is one label, else a classifier.
    pub fn served(self, name: String, device: &DeviceExecutor, queue: BatchConfig) -> Model {
        if self.model.labels().len() == 1 {
            Model::reranker(name, self, device, queue)
        } else {
            Model::classifier(name, self, device, queue)
        }
    }
}

impl<E: 'static> Tokens for Scoring<E> {
    fn tokens(&self, text: &str, special: bool) -> Result<Vec<Token>, TextError> {
        Tokens::tokens(self.model.tokeniser(), text, special)
    }

    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        Tokens::decode(self.model.tokeniser(), ids, skip_special)
    }
}

impl<E: Engine<Item = TokenisedText, Output = Vec<f32>>> Reranker for Scoring<E> {
    type Engine = OneScore<E>;

    fn load(&self) -> Result<OneScore<E>, EngineError> {
        (self.load)().map(OneScore)
    }

    fn encode(&self, query: &str, text: &str) -> Result<Tokenised<TokenisedText>, TextError> {
        Ok(self.model.tokeniser().encode_pair(query, text)?.into())
    }

    fn info(&self) -> ModelInfo {
        ModelInfo::new(self.model.tokeniser().max_length())
    }
}

impl<E: Engine<Item = TokenisedText, Output = Vec<f32>>> Classifier for Scoring<E> {
    type Engine = E;

    fn load(&self) -> Result<E, EngineError> {
        (self.load)()
    }

    fn encode(
        &self,
        text: &str,
        pair: Option<&str>,
    ) -> Result<Tokenised<TokenisedText>, TextError> {
        let tokeniser = self.model.tokeniser();
        let encoded = match pair {
            Some(pair) => tokeniser.encode_pair(text, pair),
            None => tokeniser.encode(text),
        };
        Ok(encoded?.into())
    }

    fn labels(&self) -> Vec<String> {
        self.model.labels().to_vec()
    }

    fn info(&self) -> ModelInfo {
        ModelInfo::new(self.model.tokeniser().max_length())
    }
}
