//! Ollama's routes for embeddings, which desktop applications speak.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::embedding::{PriorityField, Texts, cut, dimensions};
use super::with_truncated;
use crate::app::App;
use crate::body::{MediaType, read};
use crate::family::{Plain, Rejected};
use crate::inputs::Inputs;
use crate::registry::Wanted;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(embed))
        .routes(routes!(embeddings))
        .routes(routes!(tags))
        .routes(routes!(version))
}

#[derive(Deserialize, ToSchema)]
struct OllamaEmbedRequest {
    model: Option<String>,
    #[schema(value_type = Texts)]
    input: Value,
    /// Whether texts beyond the model's limit are cut.
    truncate: Option<bool>,
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "crate::whole::optional")]
    dimensions: Option<u64>,
    #[schema(value_type = Option<PriorityField>)]
    priority: Option<Value>,
}

#[derive(Serialize, ToSchema)]
struct OllamaEmbedResponse {
    model: String,
    embeddings: Vec<Vec<f32>>,
    /// Nanoseconds.
    total_duration: u64,
    /// Nanoseconds; models are loaded at the start.
    load_duration: u64,
    prompt_eval_count: usize,
}

/// Embeddings of texts
#[utoipa::path(
    post, path = "/api/embed", tag = "Ollama", request_body = OllamaEmbedRequest,
    responses((status = 200, body = OllamaEmbedResponse), Rejected<Plain>)
)]
async fn embed(State(app): State<Arc<App>>, request: Request) -> Result<Response, Rejected<Plain>> {
    let (body, call) = read::<OllamaEmbedRequest>(&app, request, MediaType::Any).await?;
    let model = app.models.find(body.model.as_deref(), Wanted::Embed)?;
    let call = call.body_priority(body.priority.as_ref())?;
    let width = dimensions(&app, model, body.dimensions)?;
    let inputs = Inputs::read(body.input, "input", app.limits())?;
    let truncate = body.truncate.unwrap_or(app.config.auto_truncate);
    let mut answers = model.run(inputs, call, truncate).await?;
    cut(&mut answers.vectors, width);
    let response = OllamaEmbedResponse {
        // As it was asked for: a client may compare.
        model: body.model.unwrap_or_else(|| model.name.clone()),
        prompt_eval_count: answers.total_tokens(),
        embeddings: answers.vectors,
        total_duration: u64::try_from(call.arrived.elapsed().as_nanos()).unwrap_or(u64::MAX),
        load_duration: 0,
    };
    Ok(with_truncated(Json(response).into_response(), answers.truncated))
}

#[derive(Deserialize, ToSchema)]
struct OllamaPromptRequest {
    model: Option<String>,
    #[schema(min_length = 1)]
    prompt: String,
}

#[derive(Serialize, ToSchema)]
struct OllamaPromptResponse {
    embedding: Vec<f32>,
}

/// The embedding of one text; the older route
#[utoipa::path(
    post, path = "/api/embeddings", tag = "Ollama", request_body = OllamaPromptRequest,
    responses((status = 200, body = OllamaPromptResponse), Rejected<Plain>)
)]
async fn embeddings(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, Rejected<Plain>> {
    let (body, call) = read::<OllamaPromptRequest>(&app, request, MediaType::Any).await?;
    let model = app.models.find(body.model.as_deref(), Wanted::Embed)?;
    let inputs = Inputs::texts(vec![body.prompt], "prompt", app.limits())?;
    let mut answers = model.run(inputs, call, app.config.auto_truncate).await?;
    let embedding = answers.vectors.pop().unwrap_or_default();
    let response = Json(OllamaPromptResponse { embedding }).into_response();
    Ok(with_truncated(response, answers.truncated))
}

#[derive(Serialize, ToSchema)]
struct Tags {
    models: Vec<Tag>,
}

#[derive(Serialize, ToSchema)]
struct Tag {
    name: String,
    model: String,
    modified_at: &'static str,
    size: u64,
    digest: String,
    details: TagDetails,
}

#[derive(Serialize, ToSchema)]
struct TagDetails {
    parent_model: &'static str,
    format: &'static str,
    family: &'static str,
    families: Vec<&'static str>,
    parameter_size: &'static str,
    quantization_level: String,
}

/// The models of this server
#[utoipa::path(
    get, path = "/api/tags", tag = "Ollama",
    responses((status = 200, body = Tags), Rejected<Plain>)
)]
async fn tags(State(app): State<Arc<App>>) -> Json<Tags> {
    let tag = |model: &Arc<crate::model::Model>| Tag {
        name: model.name.clone(),
        model: model.name.clone(),
        modified_at: "1970-01-01T00:00:00Z",
        size: 0,
        digest: String::new(),
        details: TagDetails {
            parent_model: "",
            format: "safetensors",
            family: "bert",
            families: vec!["bert"],
            parameter_size: "",
            quantization_level: model.info.dtype.clone(),
        },
    };
    let models = app.models.all().iter().filter(|model| model.takes_texts());
    Json(Tags { models: models.map(tag).collect() })
}

#[derive(Serialize, ToSchema)]
struct Version {
    version: &'static str,
}

/// The version of this server
#[utoipa::path(
    get, path = "/api/version", tag = "Ollama",
    responses((status = 200, body = Version), Rejected<Plain>)
)]
async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}
