//! An async service around a batch queue: every request is one inference, those that wait together
//! run as one batch, a full queue says 429, a passed deadline 504, and Ctrl-C drains.
//!
//! ```text
//! cargo run -p onelane-example-service
//! curl -X POST --data 'some text' http://127.0.0.1:3000/length
//! ```

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use onelane::{
    BatchConfig, BatchQueue, BuildError, DeviceExecutor, Engine, EngineError, Health, InferError,
    Refusal, Request, RequestError, Shutdown, Uniform,
};

/// Stands for a model: says how long a text is.
struct Length;

impl Engine for Length {
    type Item = Uniform<String>;
    type Output = usize;

    fn infer(&mut self, batch: &[Uniform<String>]) -> Result<Vec<usize>, EngineError> {
        Ok(batch.iter().map(|text| text.0.chars().count()).collect())
    }
}

type Queue = BatchQueue<Length>;

async fn length(State(queue): State<Queue>, text: String) -> Result<String, StatusCode> {
    let request = Request::new(Uniform(text)).deadline_after(Duration::from_secs(2));
    // Dropped with the connection: a client that leaves cancels its request.
    match queue.infer(request).await {
        Ok(length) => Ok(length.to_string()),
        Err(error) => Err(status(&error)),
    }
}

fn status<I>(error: &InferError<I>) -> StatusCode {
    match error {
        InferError::Refused(refused) => match refused.reason() {
            Refusal::Full => StatusCode::TOO_MANY_REQUESTS,
            Refusal::RequestTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        },
        InferError::Failed(RequestError::DeadlineExceeded) => StatusCode::GATEWAY_TIMEOUT,
        InferError::Failed(RequestError::Closed) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Fails while the engine is lost, stalls, or is shut down: a load balancer looks elsewhere.
async fn ready(State(queue): State<Queue>) -> StatusCode {
    match queue.health() {
        Health::Ready => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn service(queue: Queue) -> Router {
    Router::new().route("/length", post(length)).route("/ready", get(ready)).with_state(queue)
}

fn open() -> Result<Queue, BuildError> {
    let device = DeviceExecutor::shared("cpu")?;
    BatchQueue::new(&device, BatchConfig::default().max_batch_size(64), || Ok(Length))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Building an engine may take long: not on a thread of the runtime.
    let queue = tokio::task::spawn_blocking(open).await??;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    println!("http://{}/length", listener.local_addr()?);
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    axum::serve(listener, service(queue.clone())).with_graceful_shutdown(stop).await?;
    // Shutting down blocks, too.
    let drain = move || queue.shutdown(Shutdown::Drain, Duration::from_secs(30));
    tokio::task::spawn_blocking(drain).await??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http;
    use tower::ServiceExt;

    use super::*;

    async fn call(service: &Router, method: &str, path: &str, body: &str) -> (StatusCode, String) {
        let request = http::Request::builder().method(method).uri(path);
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn texts_are_answered_and_a_closed_queue_is_unavailable() {
        let queue = open().unwrap();
        let service = service(queue.clone());
        let calls = ["one", "seven", ""].map(|text| call(&service, "POST", "/length", text));
        for (call, expected) in calls.into_iter().zip(["3", "5", "0"]) {
            assert_eq!(call.await, (StatusCode::OK, expected.to_owned()));
        }
        assert_eq!(call(&service, "GET", "/ready", "").await.0, StatusCode::OK);
        queue.close();
        assert_eq!(call(&service, "POST", "/length", "x").await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(call(&service, "GET", "/ready", "").await.0, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn errors_have_statuses() {
        let failed = |error| status(&InferError::<()>::Failed(error));
        assert_eq!(failed(RequestError::DeadlineExceeded), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(failed(RequestError::Closed), StatusCode::SERVICE_UNAVAILABLE);
        let panicked = RequestError::Panicked("a bomb".to_owned());
        assert_eq!(failed(panicked), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
