//! The routes of text-embeddings-inference (TEI).

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::embedding::{AnyValue, PriorityField, Texts, TokenIds, cut, dimensions};
use super::predict::{self, PredictRequest};
use super::rerank::{self, RerankRequest};
use super::similarity::{self, SimilarityRequest};
use super::spent::Spent;
use crate::app::App;
use crate::body::{MediaType, read};
use crate::call::Call;
use crate::failure::{Failure, Kind};
use crate::family::{Rejected, Tei};
use crate::health;
use crate::inputs::{Input, Inputs, name};
use crate::model::{Model, Task};
use crate::registry::Wanted;
use crate::schema::schema;
use crate::text::{Token, Tokens};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(by_task))
        .routes(routes!(embed))
        .routes(routes!(embed_all))
        .routes(routes!(rerank))
        .routes(routes!(predict))
        .routes(routes!(similarity))
        .routes(routes!(tokenize))
        .routes(routes!(decode))
        .routes(routes!(info))
        .routes(routes!(healthy))
        .routes(routes!(metrics))
}

#[derive(Deserialize, ToSchema)]
struct EmbedRequest {
    #[schema(value_type = Texts)]
    inputs: Value,
    /// The model's name; the first embedding model if absent.
    model: Option<String>,
    /// Whether texts beyond the model's limit are cut.
    truncate: Option<bool>,
    /// Embeddings always have length 1.
    #[schema(value_type = Option<OnlyTrue>)]
    normalize: Option<bool>,
    #[schema(ignore)]
    truncation_direction: Option<String>,
    /// The name of one of the model's prompts, which is put before each text.
    #[schema(ignore)]
    prompt_name: Option<String>,
    /// Fewer dimensions than the model has: cut and scaled to length 1.
    #[schema(minimum = 1)]
    #[serde(default, deserialize_with = "crate::whole::optional")]
    dimensions: Option<u64>,
    #[schema(value_type = Option<PriorityField>)]
    priority: Option<Value>,
}

/// `true`, which is also what it is when absent.
struct OnlyTrue;

impl utoipa::PartialSchema for OnlyTrue {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        schema(json!({"type": ["boolean", "null"], "enum": [true, null]}))
    }
}

impl ToSchema for OnlyTrue {}

impl EmbedRequest {
    /// # Errors
    /// What the engines of this server do not do.
    fn supported(&self) -> Result<(), Failure> {
        let unsupported = |part: &str, message: &str| Err(Failure::malformed(message).at(part));
        if self.normalize == Some(false) {
            return unsupported("normalize", "this server's embeddings always have length 1");
        }
        cut_at_end(self.truncation_direction.as_deref())
    }
}

/// # Errors
/// Another side than that which texts are cut at.
fn cut_at_end(side: Option<&str>) -> Result<(), Failure> {
    if side.is_some_and(|side| !side.eq_ignore_ascii_case("right")) {
        let message = "texts are cut at their end: Right";
        return Err(Failure::malformed(message).at("truncation_direction"));
    }
    Ok(())
}

/// Embeddings of texts
#[utoipa::path(
    post, path = "/embed", tag = "TEI", request_body = EmbedRequest,
    responses((status = 200, body = Vec<Vec<f32>>), Rejected<Tei>)
)]
async fn embed(State(app): State<Arc<App>>, request: Request) -> Result<Response, Rejected<Tei>> {
    let (body, call) = read::<EmbedRequest>(&app, request, MediaType::Json).await?;
    Ok(embed_answer(&app, body, call).await?)
}

async fn embed_answer(app: &App, body: EmbedRequest, call: Call) -> Result<Response, Failure> {
    body.supported()?;
    let model = app.models.find(body.model.as_deref(), Wanted::Embed)?;
    let call = call.body_priority(body.priority.as_ref())?;
    let width = dimensions(app, model, body.dimensions)?;
    let mut inputs = Inputs::read(body.inputs, "inputs", app.limits())?;
    if let Some(name) = &body.prompt_name {
        inputs.prompt = Some(prompt(model, name)?);
    }
    let spent = Spent::new(call, model, &inputs);
    let truncate = body.truncate.unwrap_or(app.config.auto_truncate);
    let mut answers = model.run(inputs, call, truncate).await?;
    cut(&mut answers.vectors, width);
    Ok(spent.on(&answers.vectors, &answers))
}

#[derive(Deserialize, ToSchema)]
struct EmbedAllRequest {
    #[schema(value_type = Texts)]
    inputs: Value,
    /// The model's name; the first embedding model if absent.
    model: Option<String>,
    /// Whether texts beyond the model's limit are cut.
    truncate: Option<bool>,
    #[schema(ignore)]
    truncation_direction: Option<String>,
    /// The name of one of the model's prompts, which is put before each text.
    #[schema(ignore)]
    prompt_name: Option<String>,
    #[schema(value_type = Option<PriorityField>)]
    priority: Option<Value>,
}

/// Embeddings of each token of texts, special tokens included, neither pooled nor scaled
#[utoipa::path(
    post, path = "/embed_all", tag = "TEI", request_body = EmbedAllRequest,
    responses((status = 200, body = Vec<Vec<Vec<f32>>>), Rejected<Tei>)
)]
async fn embed_all(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, Rejected<Tei>> {
    let (body, call) = read::<EmbedAllRequest>(&app, request, MediaType::Json).await?;
    Ok(embed_all_answer(&app, body, call).await?)
}

async fn embed_all_answer(
    app: &App,
    body: EmbedAllRequest,
    call: Call,
) -> Result<Response, Failure> {
    cut_at_end(body.truncation_direction.as_deref())?;
    let model = app.models.find(body.model.as_deref(), Wanted::Embed)?;
    if !model.info.each_token {
        let message = format!("{} does not give a vector of each token", model.name);
        return Err(Failure::new(Kind::NotFound, message).at("model"));
    }
    let call = call.body_priority(body.priority.as_ref())?;
    let mut inputs = Inputs::read(body.inputs, "inputs", app.limits())?;
    if let Some(name) = &body.prompt_name {
        inputs.prompt = Some(prompt(model, name)?);
    }
    let spent = Spent::new(call, model, &inputs);
    let truncate = body.truncate.unwrap_or(app.config.auto_truncate);
    let answers = model.run(inputs.of_each_token(), call, truncate).await?;
    let mut vectors: Vec<Vec<&[f32]>> = Vec::with_capacity(answers.vectors.len());
    for (index, (flat, &tokens)) in answers.vectors.iter().zip(&answers.tokens).enumerate() {
        let width = flat.len() / tokens.max(1);
        if width == 0 || width * tokens != flat.len() {
            let numbers = flat.len();
            let message = format!("the engine gave {numbers} numbers for {tokens} tokens");
            return Err(Failure::new(Kind::Engine, message).at(name("inputs", index)));
        }
        vectors.push(flat.chunks_exact(width).collect());
    }
    Ok(spent.on(&vectors, &answers))
}

/// A model's prompt of this name.
fn prompt(model: &Model, name: &str) -> Result<String, Failure> {
    model.info.prompts.get(name).cloned().ok_or_else(|| {
        let known: Vec<&str> = model.info.prompts.keys().map(String::as_str).collect();
        let message = match known.len() {
            0 => format!("the model {} has no prompts", model.name),
            _ => format!("no prompt is called {name:?}; there is {}", known.join(", ")),
        };
        Failure::malformed(message).at("prompt_name")
    })
}

/// Scores of texts against a query, best first
#[utoipa::path(
    post, path = "/rerank", tag = "TEI", request_body = RerankRequest,
    responses((status = 200, body = Vec<rerank::Rank>), Rejected<Tei>)
)]
async fn rerank(State(app): State<Arc<App>>, request: Request) -> Result<Response, Rejected<Tei>> {
    let (body, call) = read::<RerankRequest>(&app, request, MediaType::Json).await?;
    Ok(rerank::tei_answer(&app, body, call).await?)
}

/// Labels of texts with their scores, best first
#[utoipa::path(
    post, path = "/predict", tag = "TEI", request_body = PredictRequest,
    responses((status = 200, body = predict::Predictions), Rejected<Tei>)
)]
async fn predict(State(app): State<Arc<App>>, request: Request) -> Result<Response, Rejected<Tei>> {
    let (body, call) = read::<PredictRequest>(&app, request, MediaType::Json).await?;
    Ok(predict::answer(&app, body, call).await?)
}

/// Cosine similarities of sentences to one
#[utoipa::path(
    post, path = "/similarity", tag = "TEI", request_body = SimilarityRequest,
    responses((status = 200, body = Vec<f32>), Rejected<Tei>)
)]
async fn similarity(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, Rejected<Tei>> {
    let (body, call) = read::<SimilarityRequest>(&app, request, MediaType::Json).await?;
    Ok(similarity::answer(&app, body, call).await?)
}

/// What the first model does, as Hugging Face's inference clients ask for it
#[utoipa::path(
    post, path = "/", tag = "TEI", request_body = AnyValue,
    responses((status = 200, body = AnyValue), Rejected<Tei>)
)]
async fn by_task(State(app): State<Arc<App>>, request: Request) -> Result<Response, Rejected<Tei>> {
    let (body, call) = read::<Value>(&app, request, MediaType::Json).await?;
    let has = |field: &str| body.get(field).is_some();
    let pairs = body.get("inputs").is_some_and(|inputs| inputs.get("source_sentence").is_some());
    let answer = if pairs {
        similarity::answer(&app, from(body)?, call).await
    } else if has("query") && has("texts") {
        rerank::tei_answer(&app, from(body)?, call).await
    } else {
        match app.models.first_of_texts()?.task {
            Task::Embed => embed_answer(&app, from(body)?, call).await,
            Task::Rerank => rerank::tei_answer(&app, from(body)?, call).await,
            Task::Classify(_) => predict::answer(&app, from(body)?, call).await,
            Task::Predict(_) => {
                Err(Failure::new(Kind::NotFound, "no model of this server takes texts"))
            }
        }
    };
    Ok(answer?)
}

fn from<T: serde::de::DeserializeOwned>(body: Value) -> Result<T, Failure> {
    serde_json::from_value(body)
        .map_err(|error| Failure::malformed(format!("the body is not what it should be: {error}")))
}

#[derive(Deserialize, ToSchema)]
struct TokenizeRequest {
    #[schema(value_type = Texts)]
    inputs: Value,
    model: Option<String>,
    /// Whether special tokens are added.
    add_special_tokens: Option<bool>,
}

/// The tokens of texts
#[utoipa::path(
    post, path = "/tokenize", tag = "TEI", request_body = TokenizeRequest,
    responses((status = 200, body = Vec<Vec<Token>>), Rejected<Tei>)
)]
async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<Vec<Vec<Token>>>, Rejected<Tei>> {
    let (body, _) = read::<TokenizeRequest>(&app, request, MediaType::Json).await?;
    let tokens = tokens(&app, body.model.as_deref())?;
    let inputs = Inputs::read(body.inputs, "inputs", app.limits())?;
    let special = body.add_special_tokens.unwrap_or(true);
    let tokenised = aside(move || {
        let one = |(index, input): (usize, &Input)| match input {
            Input::Text(text) => tokens
                .tokens(text, special)
                .map_err(|error| Failure::malformed(error.to_string()).at(inputs.name(index))),
            _ => Err(Failure::malformed("must be a text").at(inputs.name(index))),
        };
        inputs.items.iter().enumerate().map(one).collect::<Result<_, _>>()
    });
    Ok(Json(tokenised.await?))
}

#[derive(Deserialize, ToSchema)]
struct DecodeRequest {
    #[schema(value_type = TokenIds)]
    ids: Value,
    model: Option<String>,
    /// Whether special tokens are left out.
    skip_special_tokens: Option<bool>,
}

/// The texts of token ids
#[utoipa::path(
    post, path = "/decode", tag = "TEI", request_body = DecodeRequest,
    responses((status = 200, body = Vec<String>), Rejected<Tei>)
)]
async fn decode(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<Vec<String>>, Rejected<Tei>> {
    let (body, _) = read::<DecodeRequest>(&app, request, MediaType::Json).await?;
    let tokens = tokens(&app, body.model.as_deref())?;
    let mut limits = app.limits();
    limits.token_ids = true;
    let inputs = Inputs::read(body.ids, "ids", limits)?;
    let skip = body.skip_special_tokens.unwrap_or(true);
    let decoded = aside(move || {
        let one = |(index, input): (usize, &Input)| match input {
            Input::Ids(ids) => tokens
                .decode(ids, skip)
                .map_err(|error| Failure::malformed(error.to_string()).at(inputs.name(index))),
            _ => Err(Failure::malformed("must be token ids").at(inputs.name(index))),
        };
        inputs.items.iter().enumerate().map(one).collect::<Result<_, _>>()
    });
    Ok(Json(decoded.await?))
}

/// Runs what takes the processor for long beside the runtime's threads.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let panicked = "the tokeniser panicked on this call";
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Failure::new(Kind::Internal, panicked))?
}

/// The tokeniser of the model of this name, or of the first that has one.
fn tokens(app: &App, name: Option<&str>) -> Result<Arc<dyn Tokens>, Failure> {
    let model = name.map_or_else(|| app.models.first_of_texts(), |name| app.models.named(name))?;
    model.tokens.clone().ok_or_else(|| {
        let message = format!("the model {:?} takes no texts", model.name);
        Failure::new(Kind::NotFound, message).at("model")
    })
}

#[derive(Serialize, ToSchema)]
struct Info {
    model_id: String,
    model_sha: Option<String>,
    model_dtype: String,
    #[schema(value_type = AnyValue)]
    model_type: Value,
    max_concurrent_requests: usize,
    max_input_length: usize,
    max_batch_tokens: Option<usize>,
    max_batch_requests: Option<usize>,
    max_client_batch_size: usize,
    auto_truncate: bool,
    tokenization_workers: usize,
    version: &'static str,
}

/// What the first model is, and the server's limits
#[utoipa::path(
    get, path = "/info", tag = "TEI", responses((status = 200, body = Info), Rejected<Tei>)
)]
async fn info(State(app): State<Arc<App>>) -> Json<Info> {
    let model = app.models.first_of_texts().unwrap_or(app.models.first());
    let model_type = match &model.task {
        Task::Embed => json!({"embedding": {"pooling": model.info.pooling}}),
        Task::Rerank => json!({"reranker": {"id2label": {"0": "score"}, "label2id": {"score": 0}}}),
        Task::Classify(labels) => {
            let by_id: serde_json::Map<String, Value> =
                labels.iter().enumerate().map(|(id, l)| (id.to_string(), json!(l))).collect();
            let by_label: serde_json::Map<String, Value> =
                labels.iter().enumerate().map(|(id, label)| (label.clone(), json!(id))).collect();
            json!({"classifier": {"id2label": by_id, "label2id": by_label}})
        }
        Task::Predict(_) => json!({"predictor": {}}),
    };
    let limits = model.queue().map(|work| work.limits());
    let bounded = |limit: usize| (limit < usize::MAX).then_some(limit);
    Json(Info {
        model_id: model.name.clone(),
        model_sha: None,
        model_dtype: model.info.dtype.clone(),
        model_type,
        max_concurrent_requests: limits.map_or(0, |limits| limits.requests),
        max_input_length: model.info.max_tokens,
        max_batch_tokens: limits.and_then(|limits| bounded(limits.batch_tokens)),
        max_batch_requests: limits.and_then(|limits| bounded(limits.batch_requests)),
        max_client_batch_size: app.config.max_texts,
        auto_truncate: app.config.auto_truncate,
        tokenization_workers: std::thread::available_parallelism().map_or(1, usize::from),
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// Whether the server is ready
#[utoipa::path(
    get, path = "/health", tag = "TEI", responses((status = 200), Rejected<Tei>)
)]
async fn healthy(State(app): State<Arc<App>>) -> Result<(), Rejected<Tei>> {
    Ok(health::ready(&app).map_err(Failure::unavailable)?)
}

/// Metrics for Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "TEI",
    responses(
        (status = 200, body = String, content_type = "application/openmetrics-text"),
        Rejected<Tei>
    )
)]
async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics.text()).into_response()
}
