//! Counters and histograms of a queue, and its health.

use std::time::Duration;

use hdrhistogram::Histogram as HdrHistogram;

use crate::Priority;

/// How a queue or an executor is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// It works, or waits for work.
    Ready,
    /// Its engine was lost and is being built again; requests wait for it.
    Rebuilding,
    /// A batch has run for longer than `stall_after`. A driver that hangs cannot be interrupted
    /// from within the process; the batch may still end.
    Stalled {
        /// How long the batch has run.
        running_for: Duration,
        /// The device that its worker waits for, if it waits in this crate for another one.
        waits_for: Option<String>,
    },
    /// It has given up: every request is refused. The text says why.
    Failed(String),
    /// It has been shut down.
    Closed,
}

/// What a histogram says, in the unit of its values.
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

/// What waits of one priority class.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ClassStats {
    /// Requests that wait now.
    pub waiting: usize,
    /// How long the oldest of them has waited.
    pub oldest_wait: Duration,
    /// Time from acceptance to dispatch.
    pub wait: Summary<Duration>,
}

/// A snapshot of a queue's counters. Taken at one instant:
/// `submitted = completed + failed + cancelled + expired + closed + waiting + running`.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct QueueStats {
    /// Requests accepted.
    pub submitted: u64,
    /// Requests not accepted: full, closed, too large, failed.
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
    /// Requests that wait for room in the queue, and have not been accepted.
    pub waiting_for_room: usize,
    /// Requests in batches that run now.
    pub running: usize,
    /// Batches that have run.
    pub batches: u64,
    /// Times that the engine was lost (it panicked or said so), or could not be rebuilt.
    pub engine_losses: u64,
    /// Batches that ran out of memory and were split.
    pub memory_splits: u64,
    /// Batch keys whose batches are smaller now because the device ran out of memory.
    pub ceilings: usize,
    /// The most requests that a batch of the most limited of those keys may have.
    pub lowest_ceiling: Option<usize>,
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
    pub(crate) classes: [ClassStats; 3],
}

impl QueueStats {
    /// What waits of one priority class.
    pub fn class(&self, priority: Priority) -> &ClassStats {
        &self.classes[priority.index()]
    }

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

/// A histogram as monitoring systems take it.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Histogram {
    /// Number of values.
    pub count: u64,
    /// Sum of the values.
    pub sum: f64,
    /// Upper bounds, rising, each with the number of values up to it, within the two digits that the
    /// histogram keeps.
    pub buckets: Vec<(f64, u64)>,
}

/// The histograms of a queue; times in seconds.
///
/// ```
/// use onelane::testing::{FakeEngine, FakeItem};
/// use onelane::{BatchConfig, BatchQueue, DeviceExecutor, Priority};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = DeviceExecutor::shared("doc-histograms")?;
/// let queue = BatchQueue::new(&device, BatchConfig::default(), || Ok(FakeEngine::echo()))?;
/// queue.submit(FakeItem::new(1))?.wait()?;
/// let histograms = queue.histograms();
/// assert_eq!(histograms.batch_size.count, 1);
/// assert_eq!(histograms.wait(Priority::Normal).count, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct QueueHistograms {
    /// Requests in a batch.
    pub batch_size: Histogram,
    /// Cost of a batch, without padding.
    pub batch_cost: Histogram,
    /// Seconds that a batch runs.
    pub service: Histogram,
    waits: [Histogram; 3],
}

impl QueueHistograms {
    /// Seconds from acceptance to dispatch, of one priority class.
    pub fn wait(&self, priority: Priority) -> &Histogram {
        &self.waits[priority.index()]
    }
}

type Counts = HdrHistogram<u32>;

/// The live counters behind [`QueueStats`]. Taking a copy is quick, which happens under the
/// executor's lock; summing the histograms up is not, and happens outside.
#[derive(Clone)]
pub(crate) struct Stats {
    pub(crate) counters: QueueStats,
    batch_size: Counts,
    batch_cost: Counts,
    waits: [Counts; 3],
    service: Counts,
}

/// In nanoseconds; what is longer counts as an hour.
const HOUR: u64 = 3_600_000_000_000;

/// What is more counts as so many.
const MANY: u64 = 1_000_000_000;

impl Default for Stats {
    fn default() -> Self {
        // Two significant digits; an hour of nanoseconds takes some 20 KiB.
        let counts = |max| Counts::new_with_max(max, 2).expect("the bounds are in order");
        Self {
            counters: QueueStats::default(),
            batch_size: counts(MANY),
            batch_cost: counts(MANY),
            waits: std::array::from_fn(|_| counts(HOUR)),
            service: counts(HOUR),
        }
    }
}

impl Stats {
    #[inline]
    pub(crate) fn record_wait(&mut self, class: Priority, wait: Duration) {
        record(&mut self.waits[class.index()], wait);
    }

    pub(crate) fn record_batch(&mut self, size: usize, cost: usize, service: Duration) {
        self.counters.batches += 1;
        self.counters.device_time += service;
        self.batch_size.saturating_record(size as u64);
        self.batch_cost.saturating_record(cost as u64);
        record(&mut self.service, service);
    }

    pub(crate) fn summary(&self) -> QueueStats {
        let mut stats = self.counters.clone();
        let mut wait = self.waits[0].clone();
        for (class, waits) in stats.classes.iter_mut().zip(&self.waits) {
            class.wait = summary(waits, nanos);
        }
        for more in &self.waits[1..] {
            wait.add(more).expect("they have the same bounds");
        }
        stats.wait = summary(&wait, nanos);
        stats.batch_size = summary(&self.batch_size, |value| value);
        stats.service = summary(&self.service, nanos);
        stats
    }

    /// The summary and the histograms, of one instant.
    pub(crate) fn snapshot(&self) -> (QueueStats, QueueHistograms) {
        (self.summary(), self.histograms())
    }

    pub(crate) fn histograms(&self) -> QueueHistograms {
        QueueHistograms {
            batch_size: export(&self.batch_size, 1, 14, 1.0),
            batch_cost: export(&self.batch_cost, 1, 24, 1.0),
            service: export(&self.service, 1_000, 27, 1e-9),
            waits: std::array::from_fn(|class| export(&self.waits[class], 1_000, 27, 1e-9)),
        }
    }
}

fn record(counts: &mut Counts, value: Duration) {
    counts.saturating_record(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX));
}

fn nanos(value: f64) -> Duration {
    Duration::from_nanos(value as u64)
}

fn summary<T>(counts: &Counts, unit: impl Fn(f64) -> T) -> Summary<T> {
    let quantile = |q| unit(counts.value_at_quantile(q) as f64);
    Summary {
        count: counts.len(),
        mean: unit(counts.mean()),
        p50: quantile(0.5),
        p99: quantile(0.99),
        p999: quantile(0.999),
        max: unit(counts.max() as f64),
    }
}

/// With buckets that double from `first` on.
fn export(counts: &Counts, first: u64, buckets: u32, unit: f64) -> Histogram {
    let bucket = |power: u32| {
        let bound = first << power;
        (bound as f64 * unit, counts.count_between(0, bound))
    };
    Histogram {
        count: counts.len(),
        sum: counts.mean() * counts.len() as f64 * unit,
        buckets: (0..buckets).map(bucket).collect(),
    }
}
