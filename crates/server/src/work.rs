//! What a loaded model does for the server, whatever its engine: the border between the protocols
//! and the queues.

use std::future::ready;
use std::time::Duration;

use futures_util::future::BoxFuture;
use onelane::{Health, QueueHistograms, QueueStats, Shutdown};

use crate::call::Call;
use crate::failure::{Failure, Kind};
use crate::inputs::Inputs;
use crate::tensor::Tensor;

/// The answers of a call.
#[derive(Debug)]
pub(crate) struct Answers {
    /// One for each text, in order: an embedding, a score, or one score for each label.
    pub(crate) vectors: Vec<Vec<f32>>,
    /// Real tokens of each text.
    pub(crate) tokens: Vec<usize>,
    /// How many texts were cut.
    pub(crate) truncated: usize,
    pub(crate) tokenise: Duration,
}

impl Answers {
    pub(crate) fn total_tokens(&self) -> usize {
        self.tokens.iter().sum()
    }
}

/// The tensors of a call.
#[derive(Debug)]
pub(crate) struct Tensors {
    pub(crate) inputs: Vec<Tensor>,
    /// The outputs that are asked for, in order; all of them if none is named.
    pub(crate) outputs: Vec<String>,
    /// The most rows that a call may have.
    pub(crate) max_rows: usize,
}

/// A loaded model.
pub(crate) trait Work: Send + Sync {
    /// Its queue.
    fn queue(&self) -> &dyn Queue;

    /// Runs the texts of a call; `truncate` says whether those that are too long are cut.
    ///
    /// # Cancellation
    /// Dropping the future takes out of the queue what has not started.
    fn run(
        &self,
        inputs: Inputs,
        call: Call,
        truncate: bool,
    ) -> BoxFuture<'_, Result<Answers, Failure>> {
        let _ = (inputs, call, truncate);
        Box::pin(ready(Err(Failure::new(Kind::NotFound, "this model takes no texts"))))
    }

    /// Runs the tensors of a call.
    ///
    /// # Cancellation
    /// As of [`run`](Self::run).
    fn predict(&self, tensors: Tensors, call: Call) -> BoxFuture<'_, Result<Vec<Tensor>, Failure>> {
        let _ = (tensors, call);
        Box::pin(ready(Err(Failure::new(Kind::NotFound, "this model takes texts alone"))))
    }

    /// Whether inputs alone and together have the same answers, as far as the server can make some.
    fn self_check(&self) -> BoxFuture<'_, Result<(), String>>;
}

/// The queue of a loaded model.
pub(crate) trait Queue: Send + Sync {
    fn stats(&self) -> QueueStats;

    fn histograms(&self) -> QueueHistograms;

    fn health(&self) -> Health;

    /// The most texts, and the most cost, in a batch and in the queue.
    fn limits(&self) -> QueueLimits;

    /// Refuses new requests; runs, or aborts, what waits. Blocks for at most `timeout`.
    fn shutdown(&self, mode: Shutdown, timeout: Duration);
}

/// The bounds of a model's queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    pub(crate) batch_requests: usize,
    pub(crate) batch_tokens: usize,
    pub(crate) requests: usize,
}
