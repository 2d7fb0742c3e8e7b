//! How each family of protocols tells a failure: status, body and headers.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{self, RefOr};

use crate::failure::{Failure, Kind};

/// A family of protocols.
pub(crate) trait Family: Send + Sync + 'static {
    /// The status that a kind of failure has.
    fn status(kind: Kind) -> StatusCode {
        plain_status(kind)
    }

    /// The body that tells a failure.
    fn body(failure: &Failure, status: StatusCode) -> Value;

    /// The fields of that body.
    fn fields() -> &'static [(&'static str, Type)] {
        &[("error", Type::String)]
    }
}

fn plain_status(kind: Kind) -> StatusCode {
    match kind {
        Kind::Malformed | Kind::TextTooLong => StatusCode::BAD_REQUEST,
        Kind::Unauthorised => StatusCode::UNAUTHORIZED,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::ClientTimeout => StatusCode::REQUEST_TIMEOUT,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Kind::Full => StatusCode::TOO_MANY_REQUESTS,
        Kind::Engine | Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Deadline => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// `{"error": {"message", "type", "param", "code"}}`.
pub(crate) struct OpenAi;

impl Family for OpenAi {
    fn body(failure: &Failure, _status: StatusCode) -> Value {
        let (kind, code) = match failure.kind {
            Kind::Malformed | Kind::TextTooLong | Kind::TooLarge | Kind::MediaType => {
                ("invalid_request_error", None)
            }
            Kind::Unauthorised => ("authentication_error", Some("invalid_api_key")),
            Kind::NotFound => ("invalid_request_error", Some("model_not_found")),
            Kind::ClientTimeout | Kind::Deadline => ("timeout_error", None),
            Kind::Full => ("rate_limit_error", Some("rate_limit_exceeded")),
            Kind::Engine | Kind::Internal | Kind::Unavailable => ("server_error", None),
        };
        json!({"error": {
            "message": failure.message, "type": kind, "param": failure.part, "code": code,
        }})
    }

    fn fields() -> &'static [(&'static str, Type)] {
        &[("error", Type::Object)]
    }
}

/// `{"error", "error_type"}`, with TEI's own codes: 422 for what makes no sense, 424 for the engine.
pub(crate) struct Tei;

impl Family for Tei {
    fn status(kind: Kind) -> StatusCode {
        match kind {
            Kind::Malformed => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::TextTooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::Engine => StatusCode::FAILED_DEPENDENCY,
            kind => plain_status(kind),
        }
    }

    fn body(failure: &Failure, _status: StatusCode) -> Value {
        let kind = match failure.kind {
            Kind::Malformed | Kind::TextTooLong | Kind::TooLarge | Kind::MediaType => "Validation",
            Kind::Unauthorised => "Unauthorized",
            Kind::NotFound => "NotFound",
            Kind::ClientTimeout | Kind::Deadline => "Timeout",
            Kind::Full => "Overloaded",
            Kind::Engine | Kind::Internal => "Backend",
            Kind::Unavailable => "Unhealthy",
        };
        json!({"error": failure.message, "error_type": kind})
    }

    fn fields() -> &'static [(&'static str, Type)] {
        &[("error", Type::String), ("error_type", Type::String)]
    }
}

/// `{"message", "detail"}`: Cohere's client reads the one, Voyage's the other.
pub(crate) struct Rerank;

impl Family for Rerank {
    fn body(failure: &Failure, _status: StatusCode) -> Value {
        json!({"message": failure.message, "detail": failure.message})
    }

    fn fields() -> &'static [(&'static str, Type)] {
        &[("message", Type::String), ("detail", Type::String)]
    }
}

/// `{"error"}`: the Open Inference Protocol's form, and Ollama's, and that of our own routes.
pub(crate) struct Plain;

impl Family for Plain {
    fn body(failure: &Failure, _status: StatusCode) -> Value {
        json!({"error": failure.message})
    }
}

/// A failure, told as a family tells it.
pub(crate) struct Rejected<F> {
    failure: Failure,
    family: PhantomData<fn() -> F>,
}

impl<F> From<Failure> for Rejected<F> {
    fn from(failure: Failure) -> Self {
        Self { failure, family: PhantomData }
    }
}

impl<F: Family> IntoResponse for Rejected<F> {
    fn into_response(self) -> Response {
        let failure = self.failure;
        let status = F::status(failure.kind);
        let mut response = (status, Json(F::body(&failure, status))).into_response();
        let headers = response.headers_mut();
        if let Some(after) = failure.retry_after {
            let millis = after.as_millis().max(1);
            headers.insert(header::RETRY_AFTER, number(millis.div_ceil(1000)));
            headers.insert("retry-after-ms", number(millis));
        }
        // What failed here fails again, or is no longer wanted: OpenAI's client would retry it.
        if matches!(failure.kind, Kind::Engine | Kind::Deadline) {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if failure.kind == Kind::Unauthorised {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

pub(crate) fn number(value: u128) -> HeaderValue {
    HeaderValue::from_str(&value.to_string()).expect("digits are a header value")
}

impl<F: Family> utoipa::IntoResponses for Rejected<F> {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let body = F::fields().iter().fold(ObjectBuilder::new(), |body, (name, kind)| {
            let field = ObjectBuilder::new().schema_type(SchemaType::new(kind.clone()));
            body.property(*name, field).required(*name)
        });
        let content = ContentBuilder::new().schema(Some(body.build())).build();
        let told = |kind: Kind| {
            let status = F::status(kind);
            let reason = status.canonical_reason().unwrap_or("failed");
            let response = ResponseBuilder::new()
                .description(reason)
                .content("application/json", content.clone());
            (status.as_u16().to_string(), RefOr::T(response.build()))
        };
        Kind::ALL.into_iter().map(told).collect()
    }
}

/// A failure as the family of the path tells it.
pub(crate) fn by_path(path: &str, failure: Failure) -> Response {
    match path {
        "/v1/rerank" | "/v2/rerank" => Rejected::<Rerank>::from(failure).into_response(),
        _ if path.starts_with("/v1/") => Rejected::<OpenAi>::from(failure).into_response(),
        _ if path.starts_with("/v2") || path.starts_with("/api/") => {
            Rejected::<Plain>::from(failure).into_response()
        }
        _ => Rejected::<Tei>::from(failure).into_response(),
    }
}
