//! What gives a text scores for a fixed set of labels, as the server sees it.

use onelane::{Engine, EngineError};

use crate::model_info::ModelInfo;
use crate::text::{TextError, Tokenised, Tokens};

/// A model that classifies a text, or a pair of texts.
pub trait Classifier: Tokens {
    /// What runs a batch; an output is one raw score (a logit) for each label, which the server
    /// turns into probabilities by the softmax unless it is asked for raw scores.
    type Engine: Engine<Output = Vec<f32>>;

    /// Builds the engine; called on the worker, again after each loss.
    ///
    /// # Errors
    /// Why it cannot be built.
    fn load(&self) -> Result<Self::Engine, EngineError>;

    /// Makes the engine's item of a text, or of a pair, cut at the model's limit.
    ///
    /// # Errors
    /// [`TextError`] says why it has none.
    fn encode(
        &self,
        text: &str,
        pair: Option<&str>,
    ) -> Result<Tokenised<<Self::Engine as Engine>::Item>, TextError>;

    /// The labels, in the order of the scores.
    fn labels(&self) -> Vec<String>;

    /// What the model is.
    fn info(&self) -> ModelInfo;
}
