//! What the server counts of a model beside its queue.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// What the server counts of a model beside its queue.
#[derive(Debug)]
pub(crate) struct ModelCounters {
    pub(crate) truncated: Counter,
    pub(crate) tokenise: Histogram,
}

impl Default for ModelCounters {
    fn default() -> Self {
        let tokenise = Histogram::new(exponential_buckets(1e-5, 4.0, 10));
        Self { truncated: Counter::default(), tokenise }
    }
}
