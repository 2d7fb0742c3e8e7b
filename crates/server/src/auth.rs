//! The API key, compared in constant time.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::app::App;
use crate::failure::{Failure, Kind};
use crate::family::by_path;

/// What needs no key: what an orchestrator asks, and the page, which is the same for everybody.
fn is_open(method: &Method, path: &str) -> bool {
    let reads = method == Method::GET || method == Method::HEAD || method == Method::OPTIONS;
    let health = ["/", "/live", "/ready", "/health", "/v2/health/live", "/v2/health/ready"];
    (reads && health.contains(&path)) || path.starts_with("/grpc.health.v1.Health/")
}

/// Refuses a request without the server's key.
pub(crate) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(key) = &app.config.api_key else { return next.run(request).await };
    let path = request.uri().path();
    let shown = request.headers().get(header::AUTHORIZATION);
    let shown = shown.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let right = shown.is_some_and(|shown| bool::from(shown.ct_eq(key.as_bytes())));
    if right || is_open(request.method(), path) {
        return next.run(request).await;
    }
    let message = "this server wants its API key as `Authorization: Bearer KEY`";
    let failure = Failure::new(Kind::Unauthorised, message);
    if request.headers().get(header::CONTENT_TYPE).is_some_and(is_grpc) {
        return tonic::Status::unauthenticated(message)
            .into_http::<axum::body::Body>()
            .into_response();
    }
    by_path(path, failure)
}

fn is_grpc(value: &axum::http::HeaderValue) -> bool {
    value.as_bytes().starts_with(b"application/grpc")
}
