//! What scores a text against a query, as the server sees it.

use onelane::{Engine, EngineError};

use crate::model_info::ModelInfo;
use crate::text::{TextError, Tokenised, Tokens};

/// A model that says how well a text answers a query: a cross-encoder.
pub trait Reranker: Tokens {
    /// What runs a batch; an output is the raw score (a logit), which the server turns into a
    /// number from 0 to 1 by the sigmoid unless it is asked for raw scores.
    type Engine: Engine<Output = f32>;

    /// Builds the engine; called on the worker, again after each loss.
    ///
    /// # Errors
    /// Why it cannot be built.
    fn load(&self) -> Result<Self::Engine, EngineError>;

    /// Makes the engine's item of a query and a text, cut at the model's limit.
    ///
    /// # Errors
    /// [`TextError`] says why this pair has none.
    fn encode(
        &self,
        query: &str,
        text: &str,
    ) -> Result<Tokenised<<Self::Engine as Engine>::Item>, TextError>;

    /// What the model is.
    fn info(&self) -> ModelInfo;
}
