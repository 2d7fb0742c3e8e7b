//! Statistics and health in Python's terms: numbers, with times in seconds.

use std::time::Duration;

use onelane::{Health, Priority, QueueStats, Summary};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The counters as a dict; `waited` of the refusals were not refusals but waits for room.
pub(crate) fn to_dict<'py>(
    py: Python<'py>,
    stats: &QueueStats,
    waited: u64,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("submitted", stats.submitted)?;
    dict.set_item("refused", stats.refused.saturating_sub(waited))?;
    dict.set_item("completed", stats.completed)?;
    dict.set_item("failed", stats.failed)?;
    dict.set_item("cancelled", stats.cancelled)?;
    dict.set_item("expired", stats.expired)?;
    dict.set_item("closed", stats.closed)?;
    dict.set_item("waiting", stats.waiting)?;
    dict.set_item("waiting_cost", stats.waiting_cost)?;
    dict.set_item("waiting_for_room", stats.waiting_for_room)?;
    dict.set_item("running", stats.running)?;
    dict.set_item("batches", stats.batches)?;
    dict.set_item("engine_losses", stats.engine_losses)?;
    dict.set_item("memory_splits", stats.memory_splits)?;
    dict.set_item("ceilings", stats.ceilings)?;
    dict.set_item("lowest_ceiling", stats.lowest_ceiling)?;
    dict.set_item("device_time_s", stats.device_time.as_secs_f64())?;
    dict.set_item("cost", stats.cost)?;
    dict.set_item("padded_cost", stats.padded_cost)?;
    dict.set_item("padding_waste", stats.padding_waste())?;
    dict.set_item("batch_size", summary(py, &stats.batch_size, |&value| value)?)?;
    dict.set_item("wait_s", summary(py, &stats.wait, Duration::as_secs_f64)?)?;
    dict.set_item("service_s", summary(py, &stats.service, Duration::as_secs_f64)?)?;
    let classes = PyDict::new(py);
    for priority in Priority::ALL {
        let class = stats.class(priority);
        let values = PyDict::new(py);
        values.set_item("waiting", class.waiting)?;
        values.set_item("oldest_wait_s", class.oldest_wait.as_secs_f64())?;
        values.set_item("wait_s", summary(py, &class.wait, Duration::as_secs_f64)?)?;
        classes.set_item(priority.to_string(), values)?;
    }
    dict.set_item("classes", classes)?;
    Ok(dict)
}

fn summary<'py, T>(
    py: Python<'py>,
    summary: &Summary<T>,
    number: impl Fn(&T) -> f64,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("count", summary.count)?;
    dict.set_item("mean", number(&summary.mean))?;
    dict.set_item("p50", number(&summary.p50))?;
    dict.set_item("p99", number(&summary.p99))?;
    dict.set_item("p999", number(&summary.p999))?;
    dict.set_item("max", number(&summary.max))?;
    Ok(dict)
}

/// `(state, detail, running_for_s, waits_for)`.
pub(crate) type HealthParts = (&'static str, Option<String>, Option<f64>, Option<String>);

pub(crate) fn health(health: &Health) -> HealthParts {
    match health {
        Health::Ready => ("ready", None, None, None),
        Health::Rebuilding => ("rebuilding", None, None, None),
        Health::Stalled { running_for, waits_for } => {
            ("stalled", None, Some(running_for.as_secs_f64()), waits_for.clone())
        }
        Health::Failed(why) => ("failed", Some(why.clone()), None, None),
        Health::Closed => ("closed", None, None, None),
        _ => ("unknown", None, None, None),
    }
}
