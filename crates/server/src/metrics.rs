//! Metrics for Prometheus. What a queue counts is read from its own statistics when they are asked
//! for, so that nothing is counted twice; only what no queue sees is counted here.

use std::fmt;
use std::sync::Weak;
use std::time::Duration;

use onelane::{
    ClassStats, Health, Histogram as QueueHistogram, Priority, QueueHistograms, QueueStats,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use crate::health;
use crate::model::Model;
use crate::server::App;

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

/// Labels by OpenTelemetry's names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HttpLabels {
    http_route: String,
    http_response_status_code: u16,
}

/// The metrics of a server.
pub(crate) struct Metrics {
    registry: Registry,
    http: Family<HttpLabels, Histogram>,
}

impl Metrics {
    /// Reads the models of `app` whenever it is asked.
    pub(crate) fn new(app: Weak<App>) -> Self {
        let mut registry = Registry::default();
        let http = Family::<HttpLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.0005, 2.0, 18))
        });
        registry.register(
            "http_server_request_duration_seconds",
            "Time from a request's headers to its answer",
            http.clone(),
        );
        registry.register_collector(Box::new(Queues(app)));
        Self { registry, http }
    }

    /// Notes a request that has been answered.
    pub(crate) fn answered(&self, route: &str, status: u16, took: Duration) {
        let labels = HttpLabels { http_route: route.to_owned(), http_response_status_code: status };
        self.http.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// The text that Prometheus reads.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes whatever is written to it");
        text
    }
}

/// Reads the queues' statistics.
struct Queues(Weak<App>);

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
            let work = model.work()?;
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
