//! The embedding engine: batches of tokenised texts in, vectors out.

use onelane::{BatchItem, Engine, EngineError};

use crate::bert::Bert;
use crate::cpu;
use crate::error::engine_error;
use crate::projection::Projection;
use crate::shape_log::ShapeLog;
use onelane_tokeniser::TokenisedText;
use onelane_tokeniser::{Buckets, Shape};

/// Embeds texts; made by [`EmbeddingModel::load`](crate::EmbeddingModel::load).
///
/// A text's embedding does not depend on what it is batched with: only texts of its bucket share
/// its batch, its row always has the bucket's length, and padding is masked or not computed at all.
pub struct EmbeddingEngine {
    bert: Bert,
    buckets: Buckets,
    skip_padding: bool,
    shapes: ShapeLog,
    projections: Vec<Projection>,
    /// Whether what they give is scaled to length 1.
    normalise: bool,
}

impl EmbeddingEngine {
    pub(crate) fn new(bert: Bert, buckets: Buckets, skip_padding: bool, shapes: ShapeLog) -> Self {
        Self { bert, buckets, skip_padding, shapes, projections: Vec::new(), normalise: false }
    }

    /// Sends what the encoder gives through projections, and scales what they give to length 1 if
    /// asked.
    pub(crate) fn projected(self, projections: Vec<Projection>, normalise: bool) -> Self {
        Self { projections, normalise, ..self }
    }

    /// How a batch is cut: skipped padding costs nothing, so that then only size cuts.
    fn plan(&self, batch: &[TokenisedText]) -> Vec<(usize, Shape)> {
        let Some(first) = batch.first() else { return Vec::new() };
        let slack = if self.skip_padding { 1.0 } else { self.buckets.slack() };
        self.buckets.plan(batch.len(), first.bucket(), slack)
    }

    /// What the encoder gives for texts that ask for the same.
    fn run(&self, texts: &[TokenisedText]) -> candle_core::Result<Vec<Vec<f32>>> {
        let mut answers = Vec::with_capacity(texts.len());
        let mut rest = texts;
        for (taken, shape) in self.plan(texts) {
            let (now, later) = rest.split_at(taken);
            self.shapes.note(shape);
            answers.extend(match (now.iter().any(TokenisedText::each_token), self.skip_padding) {
                (false, true) => self.bert.embed_ragged(now)?,
                (false, false) => self.bert.embed_padded(now, shape)?,
                (true, true) => self.bert.tokens_ragged(now)?,
                (true, false) => self.bert.tokens_padded(now, shape)?,
            });
            rest = later;
        }
        Ok(answers)
    }

    fn project(&self, embeddings: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, EngineError> {
        if self.projections.is_empty() {
            return Ok(embeddings);
        }
        let mut embeddings =
            Projection::chain(&self.projections, embeddings).map_err(engine_error)?;
        if self.normalise {
            embeddings.iter_mut().for_each(|embedding| cpu::normalise(embedding));
        }
        Ok(embeddings)
    }
}

impl Engine for EmbeddingEngine {
    type Item = TokenisedText;
    /// A vector of the model's `hidden_size`, of length 1 where the model's directory says so; or,
    /// for a text that [asks for it](TokenisedText::with_each_token), one of each of its tokens.
    type Output = Vec<f32>;

    fn infer(&mut self, batch: &[TokenisedText]) -> Result<Vec<Vec<f32>>, EngineError> {
        let mut answers = Vec::with_capacity(batch.len());
        // One part, of a queue.
        for part in batch.chunk_by(|a, b| a.each_token() == b.each_token()) {
            let vectors = self.run(part).map_err(engine_error)?;
            let each_token = part.iter().any(TokenisedText::each_token);
            answers.extend(if each_token { vectors } else { self.project(vectors)? });
        }
        Ok(answers)
    }

    fn warmup(&mut self) -> Result<(), EngineError> {
        let shortest = self.buckets.lengths()[0];
        let shape = Shape { rows: self.buckets.rows()[0], length: shortest };
        let text = TokenisedText::new([self.bert.config().pad_token_id], shortest);
        let run = if self.skip_padding {
            self.bert.embed_ragged(&[text])
        } else {
            self.bert.embed_padded(&[text], shape)
        };
        run.map(drop).map_err(engine_error)
    }

    fn padded_cost(&self, batch: &[TokenisedText]) -> usize {
        if self.skip_padding {
            batch.iter().map(BatchItem::cost).sum()
        } else {
            self.plan(batch).iter().map(|(_, shape)| shape.tokens()).sum()
        }
    }
}
