//! How long what waits will take: the `Retry-After` of a refusal.
//!
//! It is the cost that waits, divided by the cost that the device does in a second of this queue's
//! device time, times the number of queues that share the device now. Taking the statistics is not
//! free, and an overloaded server refuses thousands of calls a second: an estimate is kept for a
//! moment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use onelane::QueueStats;

/// How long an estimate is kept.
const KEPT: Duration = Duration::from_millis(50);

/// The least time between the two looks that a rate is measured by.
const WINDOW: Duration = Duration::from_secs(2);

/// Said when nothing has been measured, and the bounds of what is said.
const UNKNOWN: Duration = Duration::from_secs(1);
const LEAST: Duration = Duration::from_millis(1);
const MOST: Duration = Duration::from_secs(3600);

/// How many queues have work, by device; shared by the models of a server.
pub(crate) type Busy = Arc<Mutex<BTreeMap<(String, String), bool>>>;

#[derive(Clone, Copy, Debug, Default)]
struct Look {
    cost: u64,
    device_time: Duration,
}

impl Look {
    fn of(stats: &QueueStats) -> Self {
        Self { cost: stats.cost, device_time: stats.device_time }
    }

    /// Cost for each second of device time since `before`.
    fn rate(self, before: Self) -> Option<f64> {
        let seconds = self.device_time.checked_sub(before.device_time)?.as_secs_f64();
        let cost = self.cost.checked_sub(before.cost)? as f64;
        (seconds > 0.0 && cost > 0.0).then(|| cost / seconds)
    }
}

#[derive(Debug, Default)]
struct Measured {
    /// A look that is at least a window old, and a newer one to follow it.
    old: Look,
    newer: Option<(Instant, Look)>,
    estimate: Option<(Instant, Duration)>,
}

/// Estimates how long what waits in one queue will take.
#[derive(Debug, Default)]
pub(crate) struct Rate(Mutex<Measured>);

impl Rate {
    /// How long what waits will take; `stats` is called if the last estimate is too old, and
    /// `shared_by` says among how many queues the device's time is shared.
    pub(crate) fn estimate(
        &self,
        now: Instant,
        stats: impl FnOnce() -> QueueStats,
        shared_by: impl FnOnce() -> usize,
    ) -> Duration {
        let mut measured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, estimate)) = measured.estimate
            && now.saturating_duration_since(at) < KEPT
        {
            return estimate;
        }
        let stats = stats();
        let look = Look::of(&stats);
        let rate = look.rate(measured.old).or_else(|| look.rate(Look::default()));
        match measured.newer {
            Some((at, newer)) if now.saturating_duration_since(at) >= WINDOW => {
                measured.old = newer;
                measured.newer = Some((now, look));
            }
            None => measured.newer = Some((now, look)),
            _ => {}
        }
        let estimate = wait(stats.waiting_cost, rate, shared_by().max(1));
        measured.estimate = Some((now, estimate));
        estimate
    }
}

fn wait(waiting_cost: usize, rate: Option<f64>, shared_by: usize) -> Duration {
    let Some(rate) = rate else { return UNKNOWN };
    let seconds = waiting_cost as f64 / rate * shared_by as f64;
    Duration::try_from_secs_f64(seconds).unwrap_or(MOST).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(cost: u64, seconds: u64, waiting_cost: usize) -> QueueStats {
        let mut stats = QueueStats::default();
        stats.cost = cost;
        stats.device_time = Duration::from_secs(seconds);
        stats.waiting_cost = waiting_cost;
        stats
    }

    #[test]
    fn what_waits_is_divided_by_the_recent_rate() {
        let rate = Rate::default();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        // Nothing has run yet.
        assert_eq!(rate.estimate(at(0), || stats(0, 0, 500), || 1), UNKNOWN);
        // 1,000 a second so far.
        let second = Duration::from_secs(1);
        assert_eq!(rate.estimate(at(1), || stats(1_000, 1, 2_000), || 1), 2 * second);
        // It is kept for a moment, and then shared by two.
        let soon = at(1) + Duration::from_millis(10);
        assert_eq!(rate.estimate(soon, || unreachable!("it is kept"), || 1), 2 * second);
        assert_eq!(rate.estimate(at(2), || stats(2_000, 2, 2_000), || 2), 4 * second);
        // Slower from there on: 100 a second. The old rate is forgotten after two windows.
        rate.estimate(at(10), || stats(2_800, 10, 2_000), || 1);
        rate.estimate(at(20), || stats(3_800, 20, 2_000), || 1);
        assert_eq!(rate.estimate(at(30), || stats(4_800, 30, 2_000), || 1), 20 * second);
    }
}
