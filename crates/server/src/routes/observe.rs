//! What is noted of every request: its metric, and its span by OpenTelemetry's names for HTTP.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Instrument, Span, field};

use crate::app::App;

/// Counts a request when it has been answered, or given up.
pub(super) async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let span = span(&request, route.as_ref().map(MatchedPath::as_str));
    #[cfg(feature = "otlp")]
    crate::traces::join(&span, request.headers());
    let mut observed = Observed { app: &app, route, start, span: span.clone(), status: 499 };
    let response = next.run(request).instrument(span).await;
    observed.status = response.status().as_u16();
    response
}

/// Notes a request at its end; 499 is a client that left before there was an answer.
struct Observed<'a> {
    app: &'a App,
    route: Option<MatchedPath>,
    start: Instant,
    span: Span,
    status: u16,
}

impl Drop for Observed<'_> {
    fn drop(&mut self) {
        let route = self.route.as_ref().map_or("none", MatchedPath::as_str);
        self.app.metrics.answered(route, self.status, self.start.elapsed());
        // As OpenTelemetry wants a number: signed.
        self.span.record("http.response.status_code", i64::from(self.status));
        if self.status >= 500 {
            self.span.record("otel.status_code", "ERROR");
            self.span.record("error.type", field::display(self.status));
        }
    }
}

/// A span of a request; it ends with its answer.
fn span(request: &Request, route: Option<&str>) -> Span {
    let span = tracing::debug_span!(
        "request",
        otel.name = field::Empty,
        otel.kind = "server",
        otel.status_code = field::Empty,
        error.r#type = field::Empty,
        http.request.method = %request.method(),
        http.route = route,
        http.response.status_code = field::Empty,
        url.path = request.uri().path(),
        url.scheme = field::Empty,
        user_agent.original = field::Empty,
    );
    if !span.is_disabled() {
        let name = field::display(request.method());
        match route {
            Some(route) => span
                .record("otel.name", field::display(format_args!("{} {route}", request.method()))),
            None => span.record("otel.name", name),
        };
        let agent = request.headers().get(header::USER_AGENT);
        if let Some(agent) = agent.and_then(|agent| agent.to_str().ok()) {
            span.record("user_agent.original", agent);
        }
    }
    span
}
