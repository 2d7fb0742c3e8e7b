//! Labels of texts.

use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::embedding::PredictInputs;
use super::spent::Spent;
use crate::app::App;
use crate::call::Call;
use crate::failure::{Failure, Kind};
use crate::inputs::{Input, Inputs, name};
use crate::model::Task;
use crate::registry::Wanted;

#[derive(Deserialize, ToSchema)]
pub(super) struct PredictRequest {
    #[schema(value_type = PredictInputs)]
    inputs: Value,
    model: Option<String>,
    truncate: Option<bool>,
    /// Whether scores are given as the model makes them, and not as probabilities.
    raw_scores: Option<bool>,
}

/// A label and its score.
#[derive(Serialize, ToSchema)]
pub(super) struct Prediction {
    score: f32,
    label: String,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Predictions {
    One(Vec<Prediction>),
    Many(Vec<Vec<Prediction>>),
}

pub(super) async fn answer(
    app: &App,
    body: PredictRequest,
    call: Call,
) -> Result<Response, Failure> {
    let model = app.models.find(body.model.as_deref(), Wanted::Classify)?;
    let Task::Classify(labels) = &model.task else {
        return Err(Failure::new(Kind::Internal, "the model that classifies has no labels"));
    };
    let inputs = read(body.inputs)?.checked(app.limits())?;
    let single = inputs.single;
    let spent = Spent::new(call, model, &inputs);
    let truncate = body.truncate.unwrap_or(app.config.auto_truncate);
    let answers = model.run(inputs, call, truncate).await?;
    let raw = body.raw_scores.unwrap_or(false);
    let mut predictions: Vec<Vec<Prediction>> =
        answers.vectors.iter().map(|scores| best_first(labels, scores, raw)).collect();
    let predictions = match predictions.pop() {
        Some(one) if single => Predictions::One(one),
        last => {
            predictions.extend(last);
            Predictions::Many(predictions)
        }
    };
    Ok(spent.on(predictions, &answers))
}

/// As TEI reads them: a text; a list of one text or two, which is one input; a list of those.
fn read(value: Value) -> Result<Inputs, Failure> {
    let field = "inputs";
    let single = match &value {
        Value::String(_) => true,
        Value::Array(values) => values.iter().all(Value::is_string) && !values.is_empty(),
        _ => return Err(Failure::malformed("must be a text, a pair, or a list of them").at(field)),
    };
    let items = match value {
        Value::Array(values) if !single => {
            let item = |(index, value)| input(value, &name(field, index));
            values.into_iter().enumerate().map(item).collect::<Result<_, _>>()?
        }
        value => vec![input(value, field)?],
    };
    Ok(Inputs { items, single, field, prompt: None })
}

fn input(value: Value, part: &str) -> Result<Input, Failure> {
    let wrong = || Failure::malformed("must be a text, or a list of one text or two").at(part);
    let texts: Vec<String> = match value {
        Value::String(text) => vec![text],
        value => serde_json::from_value(value).map_err(|_| wrong())?,
    };
    let mut texts = texts.into_iter();
    match (texts.next(), texts.next(), texts.next()) {
        (Some(text), None, None) => Ok(Input::Text(text)),
        (Some(text), Some(pair), None) => Ok(Input::Pair(text, pair)),
        _ => Err(wrong()),
    }
}

fn best_first(labels: &[String], scores: &[f32], raw: bool) -> Vec<Prediction> {
    let scores = if raw { scores.to_vec() } else { softmax(scores) };
    let prediction = |(label, score): (&String, f32)| Prediction { score, label: label.clone() };
    let mut predictions: Vec<Prediction> = labels.iter().zip(scores).map(prediction).collect();
    predictions.sort_by(|a, b| b.score.total_cmp(&a.score));
    predictions
}

fn softmax(scores: &[f32]) -> Vec<f32> {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = scores.iter().map(|score| (score - most).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}
