//! Reading a request's body: bounded in size, in time, and in how much memory its JSON may take.

use std::error::Error;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use crate::app::App;
use crate::call::Call;
use crate::failure::{Failure, Kind};

/// The most values in a body of JSON. Each takes some 32 bytes when it is read, however short it is
/// written.
const MOST_VALUES: usize = 1 << 18;

/// Whether a body must say that it is JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MediaType {
    Json,
    /// Ollama's users send whatever curl says by default.
    Any,
}

/// Reads a call: what its headers say of it, and its body from JSON.
///
/// # Errors
/// Too large, too slow, of another type, or not of this form.
pub(crate) async fn read<T: DeserializeOwned>(
    app: &App,
    request: Request,
    media: MediaType,
) -> Result<(T, Call), Failure> {
    let call = Call::from_headers(request.headers(), app.config.request_timeout)?;
    if media == MediaType::Json {
        is_json(request.headers())?;
    }
    let bytes = bytes(app, request.into_parts(), call).await?;
    Ok((json(&bytes)?, call))
}

/// A value from JSON.
///
/// # Errors
/// What is wrong with it, and where.
pub(crate) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let values = values(bytes);
    if values > MOST_VALUES {
        let message = format!("the body has {values} values, more than {MOST_VALUES}: send less");
        return Err(Failure::new(Kind::TooLarge, message));
    }
    serde_json::from_slice(bytes)
        .map_err(|error| Failure::malformed(format!("the body is not what it should be: {error}")))
}

fn is_json(headers: &HeaderMap) -> Result<(), Failure> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let named = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let named = named.to_ascii_lowercase();
    if named == "application/json"
        || (named.starts_with("application/") && named.ends_with("+json"))
    {
        return Ok(());
    }
    let message = format!("the body must be application/json, not {named:?}");
    Err(Failure::new(Kind::MediaType, message))
}

/// The whole body.
///
/// # Errors
/// Larger than the server takes, slower than its timeout or the call's deadline, or broken off.
pub(crate) async fn bytes(
    app: &App,
    (head, body): (axum::http::request::Parts, Body),
    call: Call,
) -> Result<Bytes, Failure> {
    let limit = app.config.payload_limit;
    let stated = head.headers.get(header::CONTENT_LENGTH);
    let stated = stated.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if stated.is_some_and(|stated| stated > limit) {
        return Err(too_large(limit));
    }
    let collect = collect(body, stated.unwrap_or(0), limit);
    match call.deadline {
        Some(deadline) => {
            tokio::time::timeout_at(deadline.into(), collect).await.map_err(|_| {
                Failure::new(Kind::Deadline, "the deadline passed with the body half sent")
            })?
        }
        None => collect.await,
    }
}

async fn collect(mut body: Body, stated: usize, limit: usize) -> Result<Bytes, Failure> {
    let mut whole = Vec::with_capacity(stated.min(64 << 10));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken_off(&error))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.into())
}

fn too_large(limit: usize) -> Failure {
    Failure::new(Kind::TooLarge, format!("the body is larger than {limit} bytes: send less"))
}

fn broken_off(error: &axum::Error) -> Failure {
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = source {
        if error.is::<tower_http::timeout::TimeoutError>() {
            return Failure::new(Kind::ClientTimeout, "the body did not come in time");
        }
        source = error.source();
    }
    Failure::malformed("the body broke off")
}

/// An upper bound of the values in a text of JSON, found without reading it: each but the first has
/// a comma, a colon or an opening bracket before it.
fn values(bytes: &[u8]) -> usize {
    let (mut count, mut in_string, mut escaped) = (1, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b':' | b'[' | b'{' if !in_string => count += 1,
            _ => {}
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_bounded_and_texts_are_not_counted() {
        assert_eq!(values(br#""a, b: [c] \" , {""#), 1);
        assert_eq!(values(br#"{"a": [1, 2, 3]}"#), 6);
        let many = format!("[{}0]", "0,".repeat(MOST_VALUES));
        let failure = json::<serde_json::Value>(many.as_bytes()).unwrap_err();
        assert_eq!(failure.kind, Kind::TooLarge);
        let commas = format!("[\"{}\"]", ",".repeat(MOST_VALUES * 2));
        assert!(json::<Vec<String>>(commas.as_bytes()).is_ok());
        let deep = "[".repeat(100_000);
        assert_eq!(json::<serde_json::Value>(deep.as_bytes()).unwrap_err().kind, Kind::Malformed);
    }
}
