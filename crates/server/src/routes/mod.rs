//! The routes of all protocols on one port, and what every request passes on its way to them.

mod embedding;
mod observe;
mod ollama;
mod openai;
mod openapi;
mod own;
mod predict;
mod rerank;
mod similarity;
mod spent;
mod tei;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};
use tower_http::timeout::RequestBodyTimeoutLayer;
use utoipa_axum::router::OpenApiRouter;

use crate::app::App;
use crate::auth;
use crate::config::ServerConfig;
use crate::failure::{Failure, Kind};
use crate::family::by_path;
use crate::oip;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Every route, with what is around them.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let routes = OpenApiRouter::with_openapi(openapi::document())
        .merge(openai::routes())
        .merge(tei::routes())
        .merge(rerank::routes())
        .merge(oip::http::routes())
        .merge(ollama::routes())
        .merge(own::routes());
    let (router, document) = routes.split_for_parts();
    let router = router.with_state(Arc::clone(app));
    let router = router
        .merge(openapi::pages(openapi::fit(document, app)))
        .merge(oip::grpc::router(app))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed);
    let config = &app.config;
    let numbers = Numbers { start: since_epoch(), next: Arc::default() };
    // The last is the outermost.
    let router = router
        .layer(RequestBodyTimeoutLayer::new(config.body_timeout))
        .layer(from_fn_with_state(Arc::clone(app), auth::check))
        .layer(from_fn(headers_in_bounds(config.header_limit)))
        .layer(from_fn_with_state(Arc::clone(app), observe::observe));
    let router = match cors(config) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(SetRequestIdLayer::new(REQUEST_ID, numbers))
}

/// Says on the answer how many texts were cut.
pub(crate) fn with_truncated(mut response: Response, truncated: usize) -> Response {
    if truncated > 0 {
        let value = HeaderValue::from(truncated);
        response.headers_mut().insert("x-truncated-inputs", value);
    }
    response
}

async fn not_found(request: Request) -> Response {
    let grpc = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
    if request.headers().get(header::CONTENT_TYPE).is_some_and(grpc) {
        return tonic::Status::unimplemented("no such method").into_http::<axum::body::Body>();
    }
    let path = request.uri().path();
    let message = "no such route; /docs lists them";
    by_path(path, Failure::new(Kind::NotFound, message))
}

async fn not_allowed(method: Method, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let failure = Failure::malformed(format!("{path} does not take {method}; see /docs"));
    let mut response = by_path(&path, failure);
    *response.status_mut() = axum::http::StatusCode::METHOD_NOT_ALLOWED;
    response
}

type Boxed = std::pin::Pin<Box<dyn Future<Output = Response> + Send>>;

/// Refuses requests whose headers are larger than the limit together.
fn headers_in_bounds(limit: usize) -> impl Fn(Request, Next) -> Boxed + Clone + Send + Sync {
    move |request: Request, next: Next| {
        let size: usize =
            request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if size <= limit {
            return Box::pin(next.run(request));
        }
        let message = format!("the headers are {size} bytes, more than {limit}");
        let failure = Failure::new(Kind::TooLarge, message);
        let mut response = by_path(request.uri().path(), failure);
        *response.status_mut() = axum::http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        Box::pin(std::future::ready(response))
    }
}

fn cors(config: &ServerConfig) -> Option<CorsLayer> {
    if config.cors_origins.is_empty() {
        return None;
    }
    let origin = if config.cors_origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        // One that is no header value is never sent either.
        AllowOrigin::list(config.cors_origins.iter().filter_map(|origin| origin.parse().ok()))
    };
    let any = tower_http::cors::Any;
    Some(CorsLayer::new().allow_origin(origin).allow_methods(any).allow_headers(any))
}

/// Numbers the requests that come without an `x-request-id`.
#[derive(Clone)]
struct Numbers {
    start: u64,
    next: Arc<AtomicU64>,
}

fn since_epoch() -> u64 {
    // A clock before 1970 numbers from 0: only its difference from other starts matters.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

impl MakeRequestId for Numbers {
    fn make_request_id<B>(&mut self, _request: &axum::http::Request<B>) -> Option<RequestId> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:x}-{number:x}", self.start);
        id.parse::<HeaderValue>().ok().map(RequestId::new)
    }
}
