//! An embedding model of candle as the server knows one; its engine runs in this process or in a
//! child.

use onelane::{Engine, EngineError};
use onelane_engines::{EmbeddingEngine, EmbeddingModel, Pooling, TokenisedText};
use onelane_server::{Embedder, ModelInfo, TextError, Token, Tokenised, Tokens};

/// An embedding model whose engine is an `E`.
pub struct Embedding<E> {
    model: EmbeddingModel,
    load: Box<dyn Fn() -> Result<E, EngineError> + Send + Sync>,
}

impl Embedding<EmbeddingEngine> {
    /// With its engine in this process.
    pub fn new(model: EmbeddingModel) -> Self {
        let loaded = model.clone();
        Self::with(model, move || Ok(loaded.load()?))
    }
}

impl<E> Embedding<E> {
    /// With the engine that `load` gives.
    pub fn with(
        model: EmbeddingModel,
        load: impl Fn() -> Result<E, EngineError> + Send + Sync + 'static,
    ) -> Self {
        Self { model, load: Box::new(load) }
    }
}

impl<E: 'static> Tokens for Embedding<E> {
    fn tokens(&self, text: &str, special: bool) -> Result<Vec<Token>, TextError> {
        Tokens::tokens(self.model.tokeniser(), text, special)
    }

    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        Tokens::decode(self.model.tokeniser(), ids, skip_special)
    }
}

impl<E: Engine<Item = TokenisedText, Output = Vec<f32>>> Embedder for Embedding<E> {
    type Engine = E;

    fn load(&self) -> Result<E, EngineError> {
        (self.load)()
    }

    fn encode(&self, text: &str) -> Result<Tokenised<TokenisedText>, TextError> {
        Ok(self.model.tokeniser().encode(text)?.into())
    }

    fn encode_ids(&self, ids: &[u32]) -> Result<Tokenised<TokenisedText>, TextError> {
        Ok(self.model.tokeniser().encode_ids(ids)?.into())
    }

    fn each_token(&self, item: TokenisedText) -> Result<TokenisedText, TextError> {
        Ok(item.with_each_token())
    }

    fn info(&self) -> ModelInfo {
        let settings = self.model.settings();
        let pooling = match settings.pooling {
            Pooling::Mean => "mean",
            Pooling::First => "cls",
            Pooling::Last => "last_token",
            _ => "other",
        };
        ModelInfo::new(self.model.tokeniser().max_length())
            .dimensions(self.model.hidden_size())
            .pooling(pooling)
            .each_token(true)
            .prompts(settings.prompts.clone(), settings.default_prompt.clone())
    }
}
