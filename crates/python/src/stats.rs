//! Statistics and health in Python's terms: numbers, with times in seconds.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use onelane::{Health, Histogram, Priority, QueueHistograms, QueueStats, Summary};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// How many elements a queue's batches had, and how many with padding; counted by who pads.
#[pyclass(frozen, module = "onelane._onelane")]
#[derive(Default)]
pub(crate) struct Elements(Mutex<(u64, u64)>);

#[pymethods]
impl Elements {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Counts a batch.
    fn add(&self, elements: u64, padded: u64) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.0 += elements;
        counted.1 += padded;
    }
}

impl Elements {
    /// The part of the elements that was padding; `None`: nothing was counted.
    fn waste(&self) -> Option<f64> {
        let (elements, padded) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (padded > 0).then(|| 1.0 - elements as f64 / padded as f64)
    }
}

/// The counters and histograms as a dict; `waited` of the refusals were not refusals but waits for
/// room.
pub(crate) fn to_dict<'py>(
    py: Python<'py>,
    (stats, histograms): &(QueueStats, QueueHistograms),
    waited: u64,
    elements: Option<&Elements>,
) -> PyResult<Bound<'py, PyDict>> {
    let waste = elements.and_then(Elements::waste).unwrap_or_else(|| stats.padding_waste());
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
    dict.set_item("padding_waste", waste)?;
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
    dict.set_item("histograms", histograms_to_dict(py, histograms)?)?;
    Ok(dict)
}

fn histograms_to_dict<'py>(
    py: Python<'py>,
    histograms: &QueueHistograms,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("batch_size", histogram(py, &histograms.batch_size)?)?;
    dict.set_item("batch_cost", histogram(py, &histograms.batch_cost)?)?;
    dict.set_item("service_s", histogram(py, &histograms.service)?)?;
    let waits = PyDict::new(py);
    for priority in Priority::ALL {
        waits.set_item(priority.to_string(), histogram(py, histograms.wait(priority))?)?;
    }
    dict.set_item("wait_s", waits)?;
    Ok(dict)
}

fn histogram<'py>(py: Python<'py>, histogram: &Histogram) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("count", histogram.count)?;
    dict.set_item("sum", histogram.sum)?;
    dict.set_item("buckets", PyTuple::new(py, histogram.buckets.iter().copied())?)?;
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
