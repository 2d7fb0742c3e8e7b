//! What embeds texts, as the server sees it.

use onelane::{Engine, EngineError};

use crate::model_info::ModelInfo;
use crate::text::{TextError, Tokenised, Tokens};

/// A model that makes one vector of a text.
///
/// Its engine lives on the device's worker; the embedder itself is shared by all threads and
/// tokenises there. Vectors should have length 1: `dimensions` scales them so after the cut.
pub trait Embedder: Tokens {
    /// What runs a batch.
    type Engine: Engine<Output = Vec<f32>>;

    /// Builds the engine; called on the worker, again after each loss.
    ///
    /// # Errors
    /// Why it cannot be built.
    fn load(&self) -> Result<Self::Engine, EngineError>;

    /// Makes the engine's item of a text, cut at the model's limit.
    ///
    /// # Errors
    /// [`TextError`] says why this text has none.
    fn encode(&self, text: &str) -> Result<Tokenised<<Self::Engine as Engine>::Item>, TextError>;

    /// Makes the engine's item of token ids that a client made, special tokens included.
    ///
    /// # Errors
    /// [`TextError`] for ids out of range, or where ids are not taken.
    fn encode_ids(
        &self,
        ids: &[u32],
    ) -> Result<Tokenised<<Self::Engine as Engine>::Item>, TextError> {
        let _ = ids;
        Err(TextError::unsupported("take token ids"))
    }

    /// Has the engine answer an item with a vector of each token instead of one of the text: those of
    /// all tokens that [`Tokenised::tokens`] counts, one after the other in one output. `/embed_all`
    /// asks for it where [`ModelInfo::each_token`] says that the model does it.
    ///
    /// # Errors
    /// [`TextError`] where the model does not do that.
    fn each_token(
        &self,
        item: <Self::Engine as Engine>::Item,
    ) -> Result<<Self::Engine as Engine>::Item, TextError> {
        drop(item);
        Err(TextError("this model does not give a vector of each token".to_owned()))
    }

    /// What the model is.
    fn info(&self) -> ModelInfo;
}
