//! The protocol over HTTP.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::http_infer::{__path_infer, infer};
use super::infer::{self, EXTENSIONS, PLATFORM, VERSION, check_version};
use crate::app::App;
use crate::datatype::Datatype;
use crate::failure::Failure;
use crate::family::{Plain, Rejected};
use crate::health;
use crate::signature::TensorSpec;

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
    name: String,
    datatype: &'static str,
    shape: Vec<i64>,
}

fn described(tensor: TensorSpec) -> TensorMetadata {
    let TensorSpec { name, datatype, shape } = tensor;
    TensorMetadata { name, datatype: datatype.name(), shape }
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
        outputs: infer::outputs(model).into_iter().map(described).collect(),
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
    name: String,
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
    let tensor = |tensor: TensorSpec| ConfigTensor {
        name: tensor.name,
        data_type: match tensor.datatype {
            Datatype::Bytes => "TYPE_STRING".to_owned(),
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
        output: infer::outputs(model).into_iter().map(tensor).collect(),
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
    let stats = model.queue().map(|queue| queue.stats()).unwrap_or_default();
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
