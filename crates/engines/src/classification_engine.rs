//! The engine of a sequence classifier: batches of tokenised texts or pairs in, scores out.

use onelane::{Engine, EngineError};

use crate::embedding_engine::EmbeddingEngine;
use crate::error::engine_error;
use crate::head::Head;
use onelane_tokeniser::TokenisedText;

/// Scores texts or pairs; made by [`ClassificationModel::load`](crate::ClassificationModel::load).
///
/// As with an embedding, a text's scores do not depend on what it is batched with.
pub struct ClassificationEngine {
    encoder: EmbeddingEngine,
    head: Head,
}

impl ClassificationEngine {
    /// The encoder gives the vector that the head was trained on, as it is.
    pub(crate) fn new(encoder: EmbeddingEngine, head: Head) -> Self {
        Self { encoder, head }
    }
}

impl Engine for ClassificationEngine {
    type Item = TokenisedText;
    /// The raw scores (logits), one for each label.
    type Output = Vec<f32>;

    fn infer(&mut self, batch: &[TokenisedText]) -> Result<Vec<Vec<f32>>, EngineError> {
        if batch.iter().any(TokenisedText::each_token) {
            return Err(EngineError::failed("a classifier scores texts, not their tokens"));
        }
        let vectors = self.encoder.infer(batch)?;
        self.head.scores(vectors).map_err(engine_error)
    }

    fn warmup(&mut self) -> Result<(), EngineError> {
        self.encoder.warmup()
    }

    fn padded_cost(&self, batch: &[TokenisedText]) -> usize {
        self.encoder.padded_cost(batch)
    }
}
