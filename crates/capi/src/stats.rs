//! Statistics and health, as C has them.

use std::ffi::c_char;
use std::time::Duration;

use onelane::{Health, QueueStats};

use crate::sized;
use crate::status::*;

/// The counters of a queue or, of its closures, of an executor, at one instant: submitted = completed +
/// failed + cancelled + expired + closed + waiting + running.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Statistics {
    /// sizeof(onelane_stats); set it before the call.
    pub struct_size: usize,
    /// Requests accepted.
    pub submitted: u64,
    /// Requests not accepted.
    pub refused: u64,
    /// Requests answered with ONELANE_OK.
    pub completed: u64,
    /// Requests that ran, or could not be run, and were answered with an error.
    pub failed: u64,
    /// Requests cancelled before they started.
    pub cancelled: u64,
    /// Requests whose deadline passed before they started.
    pub expired: u64,
    /// Requests answered with ONELANE_CLOSED.
    pub closed: u64,
    /// Requests that wait now.
    pub waiting: u64,
    /// Sum of their costs.
    pub waiting_cost: u64,
    /// Requests that wait for room, and have not been accepted.
    pub waiting_for_room: u64,
    /// Requests in batches that run now.
    pub running: u64,
    /// Batches that have run.
    pub batches: u64,
    /// Times that the engine was lost, or could not be built again.
    pub engine_losses: u64,
    /// Batches that ran out of memory and were split.
    pub memory_splits: u64,
    /// Sum of the costs of the requests computed.
    pub cost: u64,
    /// Time that batches have had on the device, in nanoseconds.
    pub device_time_ns: u64,
    /// Median time from acceptance to start, in nanoseconds.
    pub wait_p50_ns: u64,
    /// 99th percentile of the same.
    pub wait_p99_ns: u64,
    /// Median time that a batch runs, in nanoseconds.
    pub service_p50_ns: u64,
    /// 99th percentile of the same.
    pub service_p99_ns: u64,
    /// Mean number of requests in a batch.
    pub mean_batch_size: f64,
}

// SAFETY: `repr(C)`, the size comes first, and all fields are numbers.
unsafe impl sized::Sized for Statistics {
    const FIRST: usize = size_of::<Self>();
    const NAME: &'static str = "onelane_stats";
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn statistics(stats: &QueueStats) -> Statistics {
    Statistics {
        struct_size: size_of::<Statistics>(),
        submitted: stats.submitted,
        refused: stats.refused,
        completed: stats.completed,
        failed: stats.failed,
        cancelled: stats.cancelled,
        expired: stats.expired,
        closed: stats.closed,
        waiting: stats.waiting as u64,
        waiting_cost: stats.waiting_cost as u64,
        waiting_for_room: stats.waiting_for_room as u64,
        running: stats.running as u64,
        batches: stats.batches,
        engine_losses: stats.engine_losses,
        memory_splits: stats.memory_splits,
        cost: stats.cost,
        device_time_ns: nanos(stats.device_time),
        wait_p50_ns: nanos(stats.wait.p50),
        wait_p99_ns: nanos(stats.wait.p99),
        service_p50_ns: nanos(stats.service.p50),
        service_p99_ns: nanos(stats.service.p99),
        mean_batch_size: stats.mean_batch_size(),
    }
}

const TEXT: usize = 240;

/// How a queue or an executor is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HealthReport {
    /// sizeof(onelane_health); set it before the call.
    pub struct_size: usize,
    /// ONELANE_READY, _REBUILDING, _STALLED, _FAILED or _SHUT_DOWN.
    pub state: i32,
    /// How long the batch has run that stalls, in nanoseconds.
    pub running_for_ns: u64,
    /// Why it has failed, or the device that a stalled batch waits for; it ends with a zero byte, and
    /// what is too long is cut off.
    pub text: [c_char; 240],
}

// SAFETY: as above.
unsafe impl sized::Sized for HealthReport {
    const FIRST: usize = size_of::<Self>();
    const NAME: &'static str = "onelane_health";
}

pub(crate) fn health_report(health: &Health) -> HealthReport {
    let mut report = HealthReport {
        struct_size: size_of::<HealthReport>(),
        state: ONELANE_READY,
        running_for_ns: 0,
        text: [0; TEXT],
    };
    let text = match health {
        Health::Rebuilding => {
            report.state = ONELANE_REBUILDING;
            ""
        }
        Health::Stalled { running_for, waits_for } => {
            report.state = ONELANE_STALLED;
            report.running_for_ns = nanos(*running_for);
            waits_for.as_deref().unwrap_or_default()
        }
        Health::Failed(why) => {
            report.state = ONELANE_FAILED;
            why
        }
        Health::Closed => {
            report.state = ONELANE_SHUT_DOWN;
            ""
        }
        _ => "",
    };
    let end = text.floor_char_boundary(TEXT - 1);
    for (to, from) in report.text.iter_mut().zip(text[..end].bytes()) {
        *to = from as c_char;
    }
    report
}
