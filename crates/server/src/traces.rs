//! The spans of requests, sent to a collector by OTLP, and the caller's trace that they join.

use std::env;

use axum::http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tracing::Span;
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

/// Why spans cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("the spans of requests cannot be sent to a collector: {0}")]
pub struct TracesError(#[from] ExporterBuildError);

/// Sends the spans of requests to a collector, by OTLP over HTTP (protobuf).
///
/// A request's span joins the trace of its `traceparent` header. Below it are `tokenise` and `infer`,
/// which says how long the request waited and how long its batches took.
#[derive(Clone, Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// To where OpenTelemetry's environment variables say; `None` if they name no endpoint
    /// (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`), or
    /// `OTEL_SDK_DISABLED` is `true`. The service is `onelane` unless `OTEL_SERVICE_NAME` says
    /// otherwise. Spans are sent from a thread of its own.
    ///
    /// # Errors
    /// [`TracesError`]: an endpoint that is none.
    pub fn from_env() -> Result<Option<Self>, TracesError> {
        let set = |name: &str| env::var(name).is_ok_and(|value| !value.is_empty());
        let named = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
        let disabled = env::var("OTEL_SDK_DISABLED");
        if !named.into_iter().any(set) || disabled.is_ok_and(|v| v.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_http().build()?;
        let mut resource = Resource::builder();
        if !set("OTEL_SERVICE_NAME") {
            resource = resource.with_service_name("onelane");
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        Ok(Some(Self(provider)))
    }

    /// What a program adds to its subscriber: it takes the server's spans alone.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let tracer: SdkTracer = self.0.tracer("onelane-server");
        let ours = Targets::new().with_target("onelane_server", LevelFilter::DEBUG);
        OpenTelemetryLayer::new(tracer).with_filter(ours)
    }

    /// Sends what has not been sent, and ends.
    ///
    /// # Blocking
    /// Blocks until the collector has it, for some seconds at most.
    pub fn shutdown(&self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "some spans were not sent");
        }
    }
}

/// Makes a span part of the trace that the headers name, if they name one.
pub(crate) fn join(span: &Span, headers: &HeaderMap) {
    let caller = TraceContextPropagator::new().extract(&Headers(headers));
    // Nobody records it, if it cannot have a parent.
    let _ = span.set_parent(caller);
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}
