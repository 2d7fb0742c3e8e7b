//! OpenAI's routes: embeddings and models.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::embedding::{PriorityField, Texts, cut, dimensions};
use super::with_truncated;
use crate::app::App;
use crate::body::{MediaType, read};
use crate::family::{OpenAi, Rejected};
use crate::inputs::Inputs;
use crate::model::Model;
use crate::registry::Wanted;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(embeddings)).routes(routes!(models)).routes(routes!(model))
}

#[derive(Deserialize, ToSchema)]
struct EmbeddingsRequest {
    /// A text, or a list of texts.
    #[schema(value_type = Texts)]
    input: Value,
    /// The model's name; the first embedding model if absent.
    model: Option<String>,
    /// How the numbers are written; base64 is of 32-bit floats, little-endian.
    #[serde(default)]
    encoding_format: Option<EncodingFormat>,
    /// Fewer dimensions than the model has: cut and scaled to length 1.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "crate::whole::optional")]
    dimensions: Option<u64>,
    /// How urgent the call is.
    #[schema(value_type = Option<PriorityField>)]
    priority: Option<Value>,
    /// Whether texts beyond the model's limit are cut (as Voyage's clients ask).
    truncation: Option<bool>,
}

#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

#[derive(Serialize, ToSchema)]
struct EmbeddingsResponse {
    object: &'static str,
    data: Vec<EmbeddingItem>,
    model: String,
    usage: Usage,
}

#[derive(Serialize, ToSchema)]
struct EmbeddingItem {
    object: &'static str,
    index: usize,
    embedding: EmbeddingNumbers,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum EmbeddingNumbers {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(Serialize, ToSchema)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// Embeddings of texts
///
/// In the order of the texts; `x-truncated-inputs` on the answer counts those that were cut. The
/// headers `x-priority`, `x-request-timeout-ms` and others say how urgent the call is and until when
/// it is wanted.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "OpenAI", request_body = EmbeddingsRequest,
    responses((status = 200, body = EmbeddingsResponse), Rejected<OpenAi>)
)]
async fn embeddings(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, Rejected<OpenAi>> {
    let (body, call) = read::<EmbeddingsRequest>(&app, request, MediaType::Json).await?;
    let model = app.models.find(body.model.as_deref(), Wanted::Embed)?;
    let call = call.body_priority(body.priority.as_ref())?;
    let width = dimensions(&app, model, body.dimensions)?;
    let inputs = Inputs::read(body.input, "input", app.limits())?;
    let truncate = body.truncation.unwrap_or(app.config.auto_truncate);
    let mut answers = model.run(inputs, call, truncate).await?;
    cut(&mut answers.vectors, width);
    let tokens = answers.total_tokens();
    let format = body.encoding_format.unwrap_or_default();
    let item = |(index, vector): (usize, Vec<f32>)| EmbeddingItem {
        object: "embedding",
        index,
        embedding: match format {
            EncodingFormat::Float => EmbeddingNumbers::Floats(vector),
            EncodingFormat::Base64 => EmbeddingNumbers::Base64(base64_of(&vector)),
        },
    };
    let response = EmbeddingsResponse {
        object: "list",
        data: answers.vectors.into_iter().enumerate().map(item).collect(),
        model: model.name.clone(),
        usage: Usage { prompt_tokens: tokens, total_tokens: tokens },
    };
    Ok(with_truncated(Json(response).into_response(), answers.truncated))
}

fn base64_of(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

#[derive(Serialize, ToSchema)]
struct ModelList {
    object: &'static str,
    data: Vec<ModelItem>,
}

#[derive(Serialize, ToSchema)]
struct ModelItem {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

fn item(model: &Model) -> ModelItem {
    ModelItem { id: model.name.clone(), object: "model", created: 0, owned_by: "onelane" }
}

/// The models of this server
#[utoipa::path(
    get, path = "/v1/models", tag = "OpenAI",
    responses((status = 200, body = ModelList), Rejected<OpenAi>)
)]
async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    let data = app.models.all().iter().map(|model| item(model)).collect();
    Json(ModelList { object: "list", data })
}

/// One model of this server
#[utoipa::path(
    get, path = "/v1/models/{id}", tag = "OpenAI", params(("id" = String, Path)),
    responses((status = 200, body = ModelItem), Rejected<OpenAi>)
)]
async fn model(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<ModelItem>, Rejected<OpenAi>> {
    Ok(Json(item(app.models.named(&id)?)))
}
