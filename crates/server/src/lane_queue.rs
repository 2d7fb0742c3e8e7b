//! A lane as those see it who do not know its engine.

use std::sync::PoisonError;
use std::time::Duration;

use onelane::{Engine, Health, QueueHistograms, QueueStats, Shutdown};

use crate::lane::Lane;
use crate::work::{Queue, QueueLimits};

impl<E: Engine> Queue for Lane<E> {
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
