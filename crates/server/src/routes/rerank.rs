//! Reranking as Cohere's clients, Voyage's and TEI's ask for it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::embedding::{AnyValue, Documents, PriorityField};
use super::spent::Spent;
use super::with_truncated;
use crate::app::App;
use crate::body::{MediaType, read};
use crate::call::Call;
use crate::failure::Failure;
use crate::family::{Rejected, Rerank};
use crate::inputs::{Inputs, name};
use crate::registry::Wanted;
use crate::schema::schema;
use crate::work::Answers;

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(v1)).routes(routes!(v2))
}

/// TEI's request.
#[derive(Deserialize, ToSchema)]
pub(super) struct RerankRequest {
    #[schema(min_length = 1)]
    query: String,
    #[schema(value_type = RerankTexts)]
    texts: Vec<String>,
    model: Option<String>,
    truncate: Option<bool>,
    /// Whether scores are given as the model makes them, and not from 0 to 1.
    raw_scores: Option<bool>,
    /// Whether the texts are given back.
    return_text: Option<bool>,
}

struct RerankTexts;

impl utoipa::PartialSchema for RerankTexts {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        schema(json!({
            "type": "array", "minItems": 1, "maxItems": 2048,
            "items": {"type": "string", "minLength": 1},
        }))
    }
}

impl ToSchema for RerankTexts {}

/// A text's place among the others.
#[derive(Serialize, ToSchema)]
pub(super) struct Rank {
    index: usize,
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

pub(super) async fn tei_answer(
    app: &App,
    body: RerankRequest,
    call: Call,
) -> Result<Response, Failure> {
    let model = app.models.find(body.model.as_deref(), Wanted::Rerank)?;
    let mut texts = if body.return_text.unwrap_or(false) { body.texts.clone() } else { Vec::new() };
    let inputs = Inputs::pairs(&body.query, body.texts, "texts", app.limits())?;
    let spent = Spent::new(call, model, &inputs);
    let truncate = body.truncate.unwrap_or(app.config.auto_truncate);
    let answers = model.run(inputs, call, truncate).await?;
    let rank =
        |(index, score)| Rank { index, score, text: texts.get_mut(index).map(std::mem::take) };
    let ranks: Vec<Rank> =
        best_first(&answers, body.raw_scores.unwrap_or(false)).into_iter().map(rank).collect();
    Ok(spent.on(ranks, &answers))
}

/// Index and score, best first.
fn best_first(answers: &Answers, raw: bool) -> Vec<(usize, f32)> {
    let score = |vector: &Vec<f32>| {
        let logit = vector.first().copied().unwrap_or(0.0);
        if raw { logit } else { 1.0 / (1.0 + (-logit).exp()) }
    };
    let mut scores: Vec<(usize, f32)> = answers.vectors.iter().map(score).enumerate().collect();
    scores.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    scores
}

/// Cohere's request, and Voyage's.
#[derive(Deserialize, ToSchema)]
struct RankRequest {
    #[schema(min_length = 1)]
    query: String,
    #[schema(value_type = Documents)]
    documents: Vec<Value>,
    model: Option<String>,
    /// How many results are given back; `top_k` is Voyage's name for it.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "crate::whole::optional")]
    top_n: Option<u64>,
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "crate::whole::optional")]
    top_k: Option<u64>,
    /// Whether the documents are given back.
    return_documents: Option<bool>,
    /// Whether texts beyond the model's limit are cut.
    truncation: Option<bool>,
    #[schema(value_type = Option<PriorityField>)]
    priority: Option<Value>,
}

#[derive(Serialize, ToSchema)]
struct RankResponse {
    id: String,
    object: &'static str,
    model: String,
    results: Vec<Ranked>,
    /// The same, under Voyage's name.
    data: Vec<Ranked>,
    usage: RankUsage,
    #[schema(value_type = AnyValue)]
    meta: Value,
}

#[derive(Clone, Serialize, ToSchema)]
struct Ranked {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<AnyValue>)]
    document: Option<Value>,
}

#[derive(Serialize, ToSchema)]
struct RankUsage {
    total_tokens: usize,
}

/// Scores of documents against a query, best first
#[utoipa::path(
    post, path = "/v1/rerank", tag = "rerank", request_body = RankRequest,
    responses((status = 200, body = RankResponse), Rejected<Rerank>)
)]
async fn v1(State(app): State<Arc<App>>, request: Request) -> Result<Response, Rejected<Rerank>> {
    // Voyage's clients, which come here, read a document as a text; Cohere's as an object.
    Ok(answer(&app, request, false).await?)
}

/// Scores of documents against a query, best first
#[utoipa::path(
    post, path = "/v2/rerank", tag = "rerank", request_body = RankRequest,
    responses((status = 200, body = RankResponse), Rejected<Rerank>)
)]
async fn v2(State(app): State<Arc<App>>, request: Request) -> Result<Response, Rejected<Rerank>> {
    Ok(answer(&app, request, true).await?)
}

async fn answer(app: &App, request: Request, v2: bool) -> Result<Response, Failure> {
    let id = request.headers().get(super::REQUEST_ID).cloned();
    let (body, call) = read::<RankRequest>(app, request, MediaType::Json).await?;
    let model = app.models.find(body.model.as_deref(), Wanted::Rerank)?;
    let call = call.body_priority(body.priority.as_ref())?;
    if let Some(zero) = [("top_n", body.top_n), ("top_k", body.top_k)]
        .into_iter()
        .find_map(|(field, asked)| (asked == Some(0)).then_some(field))
    {
        return Err(Failure::malformed("must be at least 1").at(zero));
    }
    let texts = texts(body.documents)?;
    let voyage = !v2 && body.top_n.is_none() && (body.top_k.is_some() || body.truncation.is_some());
    let returned = if body.return_documents.unwrap_or(false) { texts.clone() } else { Vec::new() };
    let inputs = Inputs::pairs(&body.query, texts, "documents", app.limits())?;
    let truncate = body.truncation.unwrap_or(app.config.auto_truncate);
    let answers = model.run(inputs, call, truncate).await?;
    let most = body.top_n.or(body.top_k).map_or(usize::MAX, |most| most as usize);
    let document = |text: &String| if voyage { json!(text) } else { json!({"text": text}) };
    let ranked = |(index, relevance_score): (usize, f32)| Ranked {
        index,
        relevance_score,
        document: returned.get(index).map(document),
    };
    let results: Vec<Ranked> =
        best_first(&answers, false).into_iter().take(most).map(ranked).collect();
    let total_tokens = answers.total_tokens();
    let version = if v2 { "2" } else { "1" };
    let response = RankResponse {
        id: id.and_then(|id| id.to_str().ok().map(str::to_owned)).unwrap_or_default(),
        object: "list",
        model: model.name.clone(),
        data: results.clone(),
        results,
        usage: RankUsage { total_tokens },
        meta: json!({
            "api_version": {"version": version},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": total_tokens},
        }),
    };
    Ok(with_truncated(Json(response).into_response(), answers.truncated))
}

fn texts(documents: Vec<Value>) -> Result<Vec<String>, Failure> {
    let text = |(index, document)| match document {
        Value::String(text) => Ok(text),
        Value::Object(mut fields) => match fields.remove("text") {
            Some(Value::String(text)) => Ok(text),
            _ => Err(Failure::malformed("must have a text").at(name("documents", index))),
        },
        _ => Err(Failure::malformed("must be a text, or have one").at(name("documents", index))),
    };
    documents.into_iter().enumerate().map(text).collect()
}
