//! The protocol over HTTP.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::infer::{self, EXTENSIONS, PLATFORM, Rows, TextTensor, VERSION, check_version};
use super::tensor::{Described, elements, read_bytes, write_floats};
use crate::app::App;
use crate::body;
use crate::call::Call;
use crate::failure::Failure;
use crate::family::{Plain, Rejected};
use crate::health;
use crate::model::Model;
use crate::whole::whole;

/// Says where, in a body, the JSON ends and the tensors begin.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

pub(crate) fn routes() -> OpenApiRouter<Arc<App>> {
    use axum::routing::{get, post};
    OpenApiRouter::new()
        .routes(routes!(server))
        .routes(routes!(live))
        .routes(routes!(ready))
        .routes(routes!(metadata))
        .routes(routes!(model_ready))
        .routes(routes!(config))
        .routes(routes!(stats))
        .routes(routes!(infer))
        // The same with a version, and not described twice.
        .route("/v2/models/{model}/versions/{version}", get(metadata_of_version))
        .route("/v2/models/{model}/versions/{version}/ready", get(ready_of_version))
        .route("/v2/models/{model}/versions/{version}/config", get(config_of_version))
        .route("/v2/models/{model}/versions/{version}/stats", get(stats_of_version))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer_of_version))
}

#[derive(Serialize, ToSchema)]
struct ServerMetadata {
    name: &'static str,
    version: &'static str,
    extensions: Vec<&'static str>,
}

/// What the server is
#[utoipa::path(
    get, path = "/v2", tag = "OIP", responses((status = 200, body = ServerMetadata), Rejected<Plain>)
)]
async fn server() -> Json<ServerMetadata> {
    let version = env!("CARGO_PKG_VERSION");
    Json(ServerMetadata { name: PLATFORM, version, extensions: EXTENSIONS.to_vec() })
}

/// Whether the server lives
#[utoipa::path(
    get, path = "/v2/health/live", tag = "OIP", responses((status = 200), Rejected<Plain>)
)]
async fn live(State(app): State<Arc<App>>) -> Result<(), Rejected<Plain>> {
    Ok(health::live(&app).map_err(Failure::unavailable)?)
}

/// Whether the server is ready
#[utoipa::path(
    get, path = "/v2/health/ready", tag = "OIP", responses((status = 200), Rejected<Plain>)
)]
async fn ready(State(app): State<Arc<App>>) -> Result<(), Rejected<Plain>> {
    Ok(health::ready(&app).map_err(Failure::unavailable)?)
}

#[derive(Serialize, ToSchema)]
struct ModelMetadata {
    name: String,
    versions: Vec<&'static str>,
    platform: &'static str,
    inputs: Vec<TensorMetadata>,
    outputs: Vec<TensorMetadata>,
}

#[derive(Serialize, ToSchema)]
struct TensorMetadata {
    name: &'static str,
    datatype: &'static str,
    shape: Vec<i64>,
}

fn described(tensor: Described) -> TensorMetadata {
    let Described { name, datatype, shape } = tensor;
    TensorMetadata { name, datatype, shape }
}

/// What a model takes and gives
#[utoipa::path(
    get, path = "/v2/models/{model}", tag = "OIP", params(("model" = String, Path)),
    responses((status = 200, body = ModelMetadata), Rejected<Plain>)
)]
async fn metadata(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
) -> Result<Json<ModelMetadata>, Rejected<Plain>> {
    let model = app.models.named(&model)?;
    Ok(Json(ModelMetadata {
        name: model.name.clone(),
        versions: vec![VERSION],
        platform: PLATFORM,
        inputs: infer::inputs(model).into_iter().map(described).collect(),
        outputs: vec![described(infer::output(model))],
    }))
}

/// Whether a model is ready
#[utoipa::path(
    get, path = "/v2/models/{model}/ready", tag = "OIP", params(("model" = String, Path)),
    responses((status = 200), Rejected<Plain>)
)]
async fn model_ready(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
) -> Result<(), Rejected<Plain>> {
    let model = app.models.named(&model)?;
    Ok(health::model_ready(model).map_err(Failure::unavailable)?)
}

#[derive(Serialize, ToSchema)]
struct ModelConfig {
    name: String,
    platform: &'static str,
    max_batch_size: usize,
    input: Vec<ConfigTensor>,
    output: Vec<ConfigTensor>,
}

#[derive(Serialize, ToSchema)]
struct ConfigTensor {
    name: &'static str,
    data_type: String,
    dims: Vec<i64>,
}

/// A model's tensors as Triton writes a configuration
#[utoipa::path(
    get, path = "/v2/models/{model}/config", tag = "OIP", params(("model" = String, Path)),
    responses((status = 200, body = ModelConfig), Rejected<Plain>)
)]
async fn config(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
) -> Result<Json<ModelConfig>, Rejected<Plain>> {
    let model = app.models.named(&model)?;
    let tensor = |tensor: Described| ConfigTensor {
        name: tensor.name,
        data_type: match tensor.datatype {
            "BYTES" => "TYPE_STRING".to_owned(),
            other => format!("TYPE_{other}"),
        },
        dims: tensor.shape,
    };
    Ok(Json(ModelConfig {
        name: model.name.clone(),
        platform: PLATFORM,
        // The first dimension is written out: clients need not add one.
        max_batch_size: 0,
        input: infer::inputs(model).into_iter().map(tensor).collect(),
        output: vec![tensor(infer::output(model))],
    }))
}

#[derive(Serialize, ToSchema)]
struct Stats {
    model_stats: Vec<ModelStats>,
}

#[derive(Serialize, ToSchema)]
struct ModelStats {
    name: String,
    version: &'static str,
    inference_count: u64,
    execution_count: u64,
    inference_stats: InferenceStats,
}

#[derive(Serialize, ToSchema)]
struct InferenceStats {
    success: Duration,
    fail: Duration,
    queue: Duration,
    compute_infer: Duration,
}

#[derive(Serialize, ToSchema)]
struct Duration {
    count: u64,
    /// Nanoseconds in all.
    ns: u64,
}

/// What a model has done
#[utoipa::path(
    get, path = "/v2/models/{model}/stats", tag = "OIP", params(("model" = String, Path)),
    responses((status = 200, body = Stats), Rejected<Plain>)
)]
async fn stats(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
) -> Result<Json<Stats>, Rejected<Plain>> {
    let model = app.models.named(&model)?;
    let stats = model.work().map(|work| work.stats()).unwrap_or_default();
    let nanos =
        |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let queue = nanos(stats.wait.mean).saturating_mul(stats.wait.count);
    let compute = nanos(stats.device_time);
    let model_stats = ModelStats {
        name: model.name.clone(),
        version: VERSION,
        inference_count: stats.completed,
        execution_count: stats.batches,
        inference_stats: InferenceStats {
            success: Duration { count: stats.completed, ns: queue.saturating_add(compute) },
            fail: Duration { count: stats.failed, ns: 0 },
            queue: Duration { count: stats.wait.count, ns: queue },
            compute_infer: Duration { count: stats.batches, ns: compute },
        },
    };
    Ok(Json(Stats { model_stats: vec![model_stats] }))
}

#[derive(Deserialize, ToSchema)]
struct InferRequest {
    /// Given back with the answer.
    id: Option<String>,
    parameters: Option<InferParameters>,
    #[schema(min_items = 1)]
    inputs: Vec<InputTensor>,
    outputs: Option<Vec<OutputTensor>>,
}

#[derive(Default, Deserialize, ToSchema)]
struct InferParameters {
    /// 1 is the most urgent, 0 is unsaid.
    #[serde(default, deserialize_with = "crate::whole::optional")]
    priority: Option<u64>,
    /// Microseconds until which the answer is wanted.
    #[schema(minimum = 60_000_000)]
    #[serde(default, deserialize_with = "crate::whole::optional")]
    timeout: Option<u64>,
    /// Whether the outputs that say nothing of it are written in binary.
    binary_data_output: Option<bool>,
}

#[derive(Deserialize, ToSchema)]
struct InputTensor {
    name: String,
    #[schema(value_type = Shape)]
    shape: Vec<serde_json::Number>,
    #[schema(value_type = BytesType)]
    datatype: String,
    /// The elements, in lists as deep as the shape or in one.
    #[schema(value_type = Texts)]
    data: Option<Value>,
    #[schema(ignore)]
    parameters: Option<TensorParameters>,
}

#[derive(Default, Deserialize)]
struct TensorParameters {
    binary_data_size: Option<usize>,
}

#[derive(Deserialize, ToSchema)]
struct OutputTensor {
    #[schema(ignore)]
    name: String,
    #[schema(ignore)]
    parameters: Option<OutputParameters>,
}

#[derive(Default, Deserialize)]
struct OutputParameters {
    binary_data: Option<bool>,
}

macro_rules! described_as {
    ($($name:ident = $value:tt),* $(,)?) => {$(
        struct $name;

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                crate::schema::schema(json!($value))
            }
        }

        impl ToSchema for $name {}
    )*};
}

described_as! {
    BytesType = {"type": "string", "enum": ["BYTES"]},
    Shape = {"type": "array", "minItems": 1, "maxItems": 8,
             "items": {"type": "integer", "minimum": 1, "maximum": 2048}},
    Texts = {"type": "array", "minItems": 1, "maxItems": 2048,
             "items": {"type": "string", "minLength": 1}},
}

#[derive(Serialize, ToSchema)]
struct InferResponse {
    model_name: String,
    model_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    outputs: Vec<AnswerTensor>,
}

#[derive(Serialize, ToSchema)]
struct AnswerTensor {
    name: &'static str,
    datatype: &'static str,
    shape: [usize; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Vec<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
}

/// Runs a model on tensors
///
/// With `Inference-Header-Content-Length` the body is JSON of that length and then the tensors in
/// binary.
#[utoipa::path(
    post, path = "/v2/models/{model}/infer", tag = "OIP", params(("model" = String, Path)),
    request_body = InferRequest,
    responses((status = 200, body = InferResponse), Rejected<Plain>)
)]
async fn infer(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
    request: Request,
) -> Result<Response, Rejected<Plain>> {
    Ok(answer(&app, app.models.named(&model)?, request).await?)
}

async fn answer(app: &App, model: &Model, request: Request) -> Result<Response, Failure> {
    let mut call = Call::from_headers(request.headers(), app.config.request_timeout)?;
    let split = match request.headers().get(HEADER_LENGTH) {
        Some(value) => {
            let length = value.to_str().ok().and_then(|value| value.parse::<usize>().ok());
            let wrong =
                || Failure::malformed("must be a number of bytes").at(HEADER_LENGTH.as_str());
            Some(length.ok_or_else(wrong)?)
        }
        None => None,
    };
    let bytes = body::bytes(app, request.into_parts(), call).await?;
    let length = split.unwrap_or(bytes.len());
    let (head, mut binary) = bytes.split_at_checked(length).ok_or_else(|| {
        Failure::malformed("is more than the body has").at(HEADER_LENGTH.as_str())
    })?;
    let request: InferRequest = body::json(head)?;
    let parameters = request.parameters.unwrap_or_default();
    call = call.oip_priority(parameters.priority.unwrap_or(0));
    if let Some(micros) = parameters.timeout.filter(|micros| *micros > 0) {
        call = call.within(std::time::Duration::from_micros(micros));
    }
    let mut tensors = Vec::new();
    for tensor in request.inputs {
        tensors.push(read_tensor(tensor, &mut binary)?);
    }
    if !binary.is_empty() {
        let message = format!("{} bytes are left that no tensor says are its own", binary.len());
        return Err(Failure::malformed(message));
    }
    let rows = infer::infer(app, model, tensors, call).await?;
    let mut in_binary = parameters.binary_data_output.unwrap_or(false);
    for output in request.outputs.unwrap_or_default() {
        if output.name != rows.name {
            let message = format!("the model gives {}, not {:?}", rows.name, output.name);
            return Err(Failure::malformed(message).at("outputs"));
        }
        in_binary = output.parameters.and_then(|p| p.binary_data).unwrap_or(in_binary);
    }
    respond(model, request.id, rows, in_binary)
}

fn read_tensor(tensor: InputTensor, binary: &mut &[u8]) -> Result<TextTensor, Failure> {
    let name = tensor.name;
    if tensor.datatype != "BYTES" {
        let message = format!("must be of type BYTES, not {:?}", tensor.datatype);
        return Err(Failure::malformed(message).at(name));
    }
    let size = tensor.parameters.and_then(|parameters| parameters.binary_data_size);
    let texts = match (tensor.data, size) {
        (Some(_), Some(_)) => {
            return Err(Failure::malformed("has data in JSON and in binary").at(name));
        }
        (Some(data), None) => {
            let mut texts = Vec::new();
            flatten(data, &mut texts, &name)?;
            texts
        }
        (None, Some(size)) => {
            let (own, rest) = binary.split_at_checked(size).ok_or_else(|| {
                Failure::malformed("says that it is larger than the body").at(name.as_str())
            })?;
            *binary = rest;
            read_bytes(own, &name)?
        }
        (None, None) => return Err(Failure::malformed("has no data").at(name)),
    };
    // What is no whole number is a size that no tensor has.
    let shape: Vec<i64> = tensor.shape.iter().map(|size| whole(size).unwrap_or(-1)).collect();
    let shape = elements(&shape, &name)?;
    if shape != texts.len() {
        let message = format!("has {} elements and a shape of {shape}", texts.len());
        return Err(Failure::malformed(message).at(name));
    }
    Ok(TextTensor { name, texts })
}

fn flatten(value: Value, texts: &mut Vec<String>, name: &str) -> Result<(), Failure> {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(values) => {
            for value in values {
                flatten(value, texts, name)?;
            }
        }
        _ => {
            let part = format!("{name}[{}]", texts.len());
            return Err(Failure::malformed("must be a string").at(part));
        }
    }
    Ok(())
}

fn respond(
    model: &Model,
    id: Option<String>,
    rows: Rows,
    in_binary: bool,
) -> Result<Response, Failure> {
    let binary = if in_binary { write_floats(&rows.rows) } else { Vec::new() };
    let tensor = AnswerTensor {
        name: rows.name,
        datatype: "FP32",
        shape: rows.shape,
        parameters: in_binary.then(|| json!({"binary_data_size": binary.len()})),
        data: (!in_binary).then(|| rows.rows.into_iter().flatten().collect()),
    };
    let response = InferResponse {
        model_name: model.name.clone(),
        model_version: VERSION,
        id: id.filter(|id| !id.is_empty()),
        outputs: vec![tensor],
    };
    if !in_binary {
        return Ok(Json(response).into_response());
    }
    let mut body = serde_json::to_vec(&response)
        .map_err(|error| Failure::new(crate::failure::Kind::Internal, error.to_string()))?;
    let length = HeaderValue::from(body.len());
    body.extend(binary);
    let kind = HeaderValue::from_static("application/octet-stream");
    Ok(([(header::CONTENT_TYPE, kind), (HEADER_LENGTH, length)], body).into_response())
}

type OfVersion = Path<(String, String)>;

async fn metadata_of_version(
    app: State<Arc<App>>,
    Path((model, version)): OfVersion,
) -> Result<Json<ModelMetadata>, Rejected<Plain>> {
    check_version(&version)?;
    metadata(app, Path(model)).await
}

async fn ready_of_version(
    app: State<Arc<App>>,
    Path((model, version)): OfVersion,
) -> Result<(), Rejected<Plain>> {
    check_version(&version)?;
    model_ready(app, Path(model)).await
}

async fn config_of_version(
    app: State<Arc<App>>,
    Path((model, version)): OfVersion,
) -> Result<Json<ModelConfig>, Rejected<Plain>> {
    check_version(&version)?;
    config(app, Path(model)).await
}

async fn stats_of_version(
    app: State<Arc<App>>,
    Path((model, version)): OfVersion,
) -> Result<Json<Stats>, Rejected<Plain>> {
    check_version(&version)?;
    stats(app, Path(model)).await
}

async fn infer_of_version(
    app: State<Arc<App>>,
    Path((model, version)): OfVersion,
    request: Request,
) -> Result<Response, Rejected<Plain>> {
    check_version(&version)?;
    infer(app, Path(model), request).await
}
