//! Cosine similarities of sentences to one.

use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;

use super::spent::Spent;
use crate::app::App;
use crate::call::Call;
use crate::failure::Failure;
use crate::inputs::Inputs;
use crate::registry::Wanted;
use crate::schema::schema;

#[derive(Deserialize, ToSchema)]
pub(super) struct SimilarityRequest {
    inputs: SimilarityInputs,
    model: Option<String>,
}

#[derive(Deserialize, ToSchema)]
struct SimilarityInputs {
    #[schema(min_length = 1)]
    source_sentence: String,
    #[schema(value_type = Sentences)]
    sentences: Vec<String>,
}

struct Sentences;

impl utoipa::PartialSchema for Sentences {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        schema(serde_json::json!({
            "type": "array", "minItems": 1, "maxItems": 2047,
            "items": {"type": "string", "minLength": 1},
        }))
    }
}

impl ToSchema for Sentences {}

pub(super) async fn answer(
    app: &App,
    body: SimilarityRequest,
    call: Call,
) -> Result<Response, Failure> {
    let model = app.models.find(body.model.as_deref(), Wanted::Embed)?;
    if body.inputs.sentences.is_empty() {
        return Err(Failure::malformed("must not be empty").at("inputs.sentences"));
    }
    // The source is the first of them.
    let texts = std::iter::once(body.inputs.source_sentence).chain(body.inputs.sentences);
    let inputs = Inputs::texts(texts.collect(), "inputs", app.limits())?;
    let spent = Spent::new(call, model, &inputs);
    let answers = model.run(inputs, call, app.config.auto_truncate).await?;
    let similarities: Vec<f32> = match answers.vectors.split_first() {
        Some((source, others)) => others.iter().map(|other| cosine(source, other)).collect(),
        None => Vec::new(),
    };
    Ok(spent.on(similarities, &answers))
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths == 0.0 { 0.0 } else { (dot(a, b) / lengths).clamp(-1.0, 1.0) as f32 }
}
