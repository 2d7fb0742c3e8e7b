//! Counters and histograms of a queue, and its health.

use std::time::Duration;

use hdrhistogram::Histogram;

/// How a queue or an executor is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// It works, or waits for work.
    Ready,
    /// A batch has run for longer than `stall_after`. A driver that hangs cannot be interrupted
    /// from within the process; the batch may still end.
    Stalled {
        /// How long the batch has run.
        running_for: Duration,
    },
    /// It has given up: every request is refused. The text says why.
    Failed(String),
}

/// What a histogram of durations says, in the unit of its values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Summary<T> {
    /// Number of values.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: T,
    /// Median.
    pub p50: T,
    /// 99th percentile.
    pub p99: T,
    /// 99.9th percentile.
    pub p999: T,
    /// Greatest value.
    pub max: T,
}

/// A snapshot of a queue's counters. Taken at one instant:
/// `submitted = completed + failed + cancelled + expired + closed + waiting + running`.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct QueueStats {
    /// Requests accepted.
    pub submitted: u64,
    /// Requests not accepted: full, closed, too heavy, failed.
    pub refused: u64,
    /// Requests answered with a response.
    pub completed: u64,
    /// Requests that ran, or could not be run, and were answered with an error.
    pub failed: u64,
    /// Requests cancelled before they started.
    pub cancelled: u64,
    /// Requests whose deadline passed before they started.
    pub expired: u64,
    /// Requests answered with an error because the queue was aborted or failed before they started.
    pub closed: u64,
    /// Requests that wait now, and their cost.
    pub waiting: usize,
    /// Sum of the costs of the requests that wait now.
    pub waiting_cost: usize,
    /// Requests in batches that run now.
    pub running: usize,
    /// Batches that have run.
    pub batches: u64,
    /// Batches that lost their engine to a panic or a failed rebuild.
    pub engine_losses: u64,
    /// Time that batches of this queue have had on the device.
    pub device_time: Duration,
    /// Sum of the costs of the requests computed.
    pub cost: u64,
    /// The same with padding, as the engine reports it.
    pub padded_cost: u64,
    /// Requests in a batch.
    pub batch_size: Summary<f64>,
    /// Time from acceptance to dispatch.
    pub wait: Summary<Duration>,
    /// Time that a batch runs.
    pub service: Summary<Duration>,
}

impl QueueStats {
    /// The part of the computed cost that was padding, from 0 to 1.
    pub fn padding_waste(&self) -> f64 {
        if self.padded_cost == 0 {
            return 0.0;
        }
        1.0 - self.cost as f64 / self.padded_cost as f64
    }

    /// Mean number of requests in a batch.
    pub fn mean_batch_size(&self) -> f64 {
        self.batch_size.mean
    }
}

/// The live counters behind [`QueueStats`]. Taking a copy is quick, which happens under the executor's
/// lock; summing the histograms up is not, and happens outside.
#[derive(Clone)]
pub(crate) struct Stats {
    pub(crate) counters: QueueStats,
    batch_size: Histogram<u64>,
    wait: Histogram<u64>,
    service: Histogram<u64>,
}

impl Default for Stats {
    fn default() -> Self {
        // Two significant digits; an hour of nanoseconds takes some 20 KiB. What is longer counts as
        // an hour.
        let histogram = |max| Histogram::new_with_max(max, 2).expect("the bounds are in order");
        let hour = 3_600_000_000_000;
        Self {
            counters: QueueStats::default(),
            batch_size: histogram(1_000_000),
            wait: histogram(hour),
            service: histogram(hour),
        }
    }
}

impl Stats {
    pub(crate) fn record_wait(&mut self, wait: Duration) {
        record(&mut self.wait, wait);
    }

    pub(crate) fn record_batch(&mut self, size: usize, service: Duration) {
        self.counters.batches += 1;
        self.counters.device_time += service;
        self.batch_size.saturating_record(size as u64);
        record(&mut self.service, service);
    }

    pub(crate) fn summary(&self) -> QueueStats {
        QueueStats {
            batch_size: summary(&self.batch_size, |value| value),
            wait: summary(&self.wait, nanos),
            service: summary(&self.service, nanos),
            ..self.counters.clone()
        }
    }
}

fn record(histogram: &mut Histogram<u64>, value: Duration) {
    histogram.saturating_record(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX));
}

fn nanos(value: f64) -> Duration {
    Duration::from_nanos(value as u64)
}

fn summary<T>(histogram: &Histogram<u64>, unit: impl Fn(f64) -> T) -> Summary<T> {
    let quantile = |q| unit(histogram.value_at_quantile(q) as f64);
    Summary {
        count: histogram.len(),
        mean: unit(histogram.mean()),
        p50: quantile(0.5),
        p99: quantile(0.99),
        p999: quantile(0.999),
        max: unit(histogram.max() as f64),
    }
}
