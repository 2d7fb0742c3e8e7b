//! A loaded model as those see it who do not know its engine.

use std::sync::PoisonError;
use std::time::Duration;

use futures_util::future::BoxFuture;
use onelane::{Engine, Health, QueueHistograms, QueueStats, Shutdown};

use crate::call::Call;
use crate::failure::Failure;
use crate::inputs::Inputs;
use crate::lane::Lane;
use crate::self_check;
use crate::work::{Answers, QueueLimits, Work};

impl<E: Engine> Work for Lane<E> {
    fn run(
        &self,
        inputs: Inputs,
        call: Call,
        truncate: bool,
    ) -> BoxFuture<'_, Result<Answers, Failure>> {
        Box::pin(self.run_call(inputs, call, truncate))
    }

    fn self_check(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self_check::run(self))
    }

    fn stats(&self) -> QueueStats {
        let stats = self.queue.stats();
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.insert(self.place.clone(), stats.waiting + stats.running > 0);
        stats
    }

    fn histograms(&self) -> QueueHistograms {
        self.queue.histograms()
    }

    fn health(&self) -> Health {
        self.queue.health()
    }

    fn limits(&self) -> QueueLimits {
        let config = self.queue.config();
        QueueLimits {
            batch_requests: config.max_batch_size,
            batch_tokens: config.max_batch_cost,
            requests: config.capacity,
        }
    }

    fn shutdown(&self, mode: Shutdown, timeout: Duration) {
        if let Err(error) = self.queue.shutdown(mode, timeout) {
            tracing::warn!(model = self.place.1, %error, "the queue is still busy");
        }
    }
}
