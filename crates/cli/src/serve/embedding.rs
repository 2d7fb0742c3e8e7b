//! An embedding model of candle as the server knows one.

use onelane::EngineError;
use onelane_engines::{EmbeddingEngine, EmbeddingModel, TextToken, TokenisedText};
use onelane_server::{Embedder, ModelInfo, TextError, Token, Tokenised, Tokens};

/// An embedding model whose engine runs in this process.
pub struct Embedding(pub EmbeddingModel);

impl Tokens for Embedding {
    fn tokens(&self, text: &str, special: bool) -> Result<Vec<Token>, TextError> {
        tokens(&self.0, text, special)
    }

    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        self.0.tokeniser().decode(ids, skip_special).map_err(text_error)
    }
}

impl Embedder for Embedding {
    type Engine = EmbeddingEngine;

    fn load(&self) -> Result<EmbeddingEngine, EngineError> {
        Ok(self.0.load()?)
    }

    fn encode(&self, text: &str) -> Result<Tokenised<TokenisedText>, TextError> {
        encode(&self.0, text)
    }

    fn encode_ids(&self, ids: &[u32]) -> Result<Tokenised<TokenisedText>, TextError> {
        encode_ids(&self.0, ids)
    }

    fn info(&self) -> ModelInfo {
        info(&self.0)
    }
}

fn text_error(error: impl std::fmt::Display) -> TextError {
    TextError(error.to_string())
}

/// The tokens of a text.
pub fn tokens(model: &EmbeddingModel, text: &str, special: bool) -> Result<Vec<Token>, TextError> {
    let token = |token: TextToken| Token {
        id: token.id,
        text: token.text,
        special: token.special,
        start: token.span.map(|(start, _)| start),
        stop: token.span.map(|(_, stop)| stop),
    };
    let tokens = model.tokeniser().tokens(text, special).map_err(text_error)?;
    Ok(tokens.into_iter().map(token).collect())
}

/// A text as the engine takes it.
pub fn encode(model: &EmbeddingModel, text: &str) -> Result<Tokenised<TokenisedText>, TextError> {
    model.tokeniser().encode(text).map(weighed).map_err(text_error)
}

/// Token ids as the engine takes them.
pub fn encode_ids(
    model: &EmbeddingModel,
    ids: &[u32],
) -> Result<Tokenised<TokenisedText>, TextError> {
    model.tokeniser().encode_ids(ids).map(weighed).map_err(text_error)
}

fn weighed(text: TokenisedText) -> Tokenised<TokenisedText> {
    Tokenised { tokens: text.ids().len(), truncated: text.truncated(), item: text }
}

/// What the model is.
pub fn info(model: &EmbeddingModel) -> ModelInfo {
    ModelInfo::new(model.tokeniser().max_length()).dimensions(model.hidden_size()).pooling("mean")
}
