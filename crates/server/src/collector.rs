//! What Prometheus is told of the queues: read from their own statistics when it asks.

use std::fmt;
use std::sync::Weak;

use onelane::{
    ClassStats, Health, Histogram as QueueHistogram, Priority, QueueHistograms, QueueStats,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{MetricType, TypedMetric};

use crate::app::App;
use crate::health;
use crate::model::Model;
use crate::model_counters::ModelCounters;

/// Reads the queues' statistics.
pub(crate) struct Queues(pub(crate) Weak<App>);

impl fmt::Debug for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Queues")
    }
}

type Labels<'a> = Vec<(&'a str, &'a str)>;

/// A queue's histogram, as this library writes one.
struct Exported<'a>(&'a QueueHistogram);

impl TypedMetric for Exported<'_> {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Exported<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        // Theirs are counted up, ours are to be counted apart.
        let mut below = 0;
        let mut buckets: Vec<(f64, u64)> = Vec::with_capacity(self.0.buckets.len() + 1);
        for &(bound, up_to) in &self.0.buckets {
            buckets.push((bound, up_to.saturating_sub(below)));
            below = below.max(up_to);
        }
        buckets.push((f64::INFINITY, self.0.count.saturating_sub(below)));
        encoder.encode_histogram::<Labels<'_>>(self.0.sum, self.0.count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// A model's statistics, taken once for all metrics.
struct Snapshot {
    model: String,
    device: String,
    stats: QueueStats,
    histograms: QueueHistograms,
    health: Health,
    counters: std::sync::Arc<ModelCounters>,
}

impl Snapshot {
    fn model(&self) -> Labels<'_> {
        vec![("model", &self.model)]
    }

    fn and<'a>(&'a self, name: &'a str, value: &'a str) -> Labels<'a> {
        vec![("model", &self.model), (name, value)]
    }
}

/// Writes metrics, each with its name and help and then all of its series.
struct Writer<'a, 'e> {
    encoder: DescriptorEncoder<'e>,
    models: &'a [Snapshot],
}

impl<'a> Writer<'a, '_> {
    /// `of` gives a model's series.
    fn write<M: EncodeMetric>(
        &mut self,
        (name, help): (&str, &str),
        kind: MetricType,
        of: impl Fn(&'a Snapshot) -> Vec<(Labels<'a>, M)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, kind)?;
        for snapshot in self.models {
            for (labels, metric) in of(snapshot) {
                metric.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn counter(
        &mut self,
        named: (&str, &str),
        of: impl Fn(&'a Snapshot) -> Vec<(Labels<'a>, f64)>,
    ) -> fmt::Result {
        let constant = |(labels, value)| (labels, ConstCounter::new(value));
        self.write(named, MetricType::Counter, |s| of(s).into_iter().map(constant).collect())
    }

    fn gauge(
        &mut self,
        named: (&str, &str),
        of: impl Fn(&'a Snapshot) -> Vec<(Labels<'a>, f64)>,
    ) -> fmt::Result {
        let constant = |(labels, value)| (labels, ConstGauge::new(value));
        self.write(named, MetricType::Gauge, |s| of(s).into_iter().map(constant).collect())
    }

    fn histogram(
        &mut self,
        named: (&str, &str),
        of: impl Fn(&'a Snapshot) -> Vec<(Labels<'a>, &'a QueueHistogram)>,
    ) -> fmt::Result {
        let exported = |(labels, histogram)| (labels, Exported(histogram));
        self.write(named, MetricType::Histogram, |s| of(s).into_iter().map(exported).collect())
    }
}

/// The class as a label.
fn class_name(class: Priority) -> &'static str {
    match class {
        Priority::Interactive => "interactive",
        Priority::Bulk => "bulk",
        _ => "normal",
    }
}

impl Collector for Queues {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(app) = self.0.upgrade() else { return Ok(()) };
        let snapshot = |model: &std::sync::Arc<Model>| {
            let work = model.queue()?;
            Some(Snapshot {
                model: model.name.clone(),
                device: model.device.clone(),
                stats: work.stats(),
                histograms: work.histograms(),
                health: work.health(),
                counters: std::sync::Arc::clone(&model.counters),
            })
        };
        let models: Vec<Snapshot> = app.models.all().iter().filter_map(snapshot).collect();
        queues(&mut Writer { encoder, models: &models })
    }
}

fn queues(out: &mut Writer<'_, '_>) -> fmt::Result {
    out.counter(("onelane_requests", "Texts by what became of them"), |s| {
        let stats = &s.stats;
        [
            ("completed", stats.completed),
            ("failed", stats.failed),
            ("cancelled", stats.cancelled),
            ("expired", stats.expired),
            ("closed", stats.closed),
            ("refused", stats.refused),
        ]
        .map(|(outcome, count)| (s.and("outcome", outcome), count as f64))
        .into()
    })?;
    let by_class = |value: fn(&ClassStats) -> f64| {
        move |s: &'_ Snapshot| Priority::ALL.map(|class| (class, value(s.stats.class(class))))
    };
    let (waiting, oldest) =
        (by_class(|class| class.waiting as f64), by_class(|class| class.oldest_wait.as_secs_f64()));
    out.gauge(("onelane_waiting", "Texts that wait now"), |s| {
        waiting(s).map(|(class, value)| (s.and("class", class_name(class)), value)).into()
    })?;
    out.gauge(("onelane_oldest_wait_seconds", "How long the oldest has waited"), |s| {
        oldest(s).map(|(class, value)| (s.and("class", class_name(class)), value)).into()
    })?;
    out.gauge(("onelane_waiting_tokens", "Tokens that wait now"), |s| {
        vec![(s.model(), s.stats.waiting_cost as f64)]
    })?;
    out.gauge(("onelane_running", "Texts in batches that run now"), |s| {
        vec![(s.model(), s.stats.running as f64)]
    })?;
    out.histogram(("onelane_wait_seconds", "Time from acceptance to the start"), |s| {
        let series = |class| (s.and("class", class_name(class)), s.histograms.wait(class));
        Priority::ALL.map(series).into()
    })?;
    out.histogram(("onelane_batch_size", "Texts in a batch"), |s| {
        vec![(s.model(), &s.histograms.batch_size)]
    })?;
    out.histogram(("onelane_batch_tokens", "Tokens in a batch, without padding"), |s| {
        vec![(s.model(), &s.histograms.batch_cost)]
    })?;
    out.histogram(("onelane_service_seconds", "Time that a batch runs"), |s| {
        vec![(s.model(), &s.histograms.service)]
    })?;
    out.counter(("onelane_tokens", "Tokens computed, without padding"), |s| {
        vec![(s.model(), s.stats.cost as f64)]
    })?;
    out.counter(("onelane_padded_tokens", "Tokens computed, with padding"), |s| {
        vec![(s.model(), s.stats.padded_cost as f64)]
    })?;
    out.counter(("onelane_truncated", "Texts that were cut"), |s| {
        vec![(s.model(), s.counters.truncated.get() as f64)]
    })?;
    out.write(
        ("onelane_tokenise_seconds", "Time that a call's texts take to tokenise"),
        MetricType::Histogram,
        |s| vec![(s.model(), s.counters.tokenise.clone())],
    )?;
    out.counter(("onelane_device_seconds", "Time that batches had on the device"), |s| {
        vec![(s.and("device", &s.device), s.stats.device_time.as_secs_f64())]
    })?;
    out.counter(("onelane_engine_losses", "Times that the engine was lost"), |s| {
        vec![(s.model(), s.stats.engine_losses as f64)]
    })?;
    out.gauge(("onelane_health", "1 for the state that the model is in"), |s| {
        let is = health::word(&s.health);
        health::WORDS.map(|word| (s.and("state", word), f64::from(u8::from(word == is)))).into()
    })
}
