//! Metrics for Prometheus. What a queue counts is read from its own statistics when they are asked
//! for, so that nothing is counted twice; only what no queue sees is counted here.

use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

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
    /// `queues` is read whenever the metrics are asked for.
    pub(crate) fn new(queues: Box<dyn Collector>) -> Self {
        let mut registry = Registry::default();
        let http = Family::<HttpLabels, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.0005, 2.0, 18))
        });
        registry.register(
            "http_server_request_duration_seconds",
            "Time from a request's headers to its answer",
            http.clone(),
        );
        registry.register_collector(queues);
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
