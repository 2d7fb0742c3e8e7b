//! What HTTP and gRPC share: a model as tensors, and a request of tensors run on it.

use crate::app::App;
use crate::call::Call;
use crate::failure::Failure;
use crate::inputs::{Input, Inputs};
use crate::model::{Model, Task};

use super::tensor::Described;

/// The protocol's name of what runs the models.
pub(crate) const PLATFORM: &str = "onelane";

/// The one version that every model has.
pub(crate) const VERSION: &str = "1";

/// What the protocol calls its extensions.
pub(crate) const EXTENSIONS: [&str; 2] = ["binary_tensor_data", "model_configuration"];

/// A tensor of texts that came in.
pub(crate) struct TextTensor {
    pub(crate) name: String,
    pub(crate) texts: Vec<String>,
}

/// The answer: rows of numbers, all of one width.
pub(crate) struct Rows {
    pub(crate) name: &'static str,
    pub(crate) shape: [usize; 2],
    pub(crate) rows: Vec<Vec<f32>>,
}

fn tensor(name: &'static str, datatype: &'static str, shape: &[i64]) -> Described {
    Described { name, datatype, shape: shape.to_vec() }
}

/// The tensors that a model takes.
pub(crate) fn inputs(model: &Model) -> Vec<Described> {
    match model.task {
        Task::Embed => vec![tensor("text", "BYTES", &[-1])],
        Task::Rerank => vec![tensor("query", "BYTES", &[-1]), tensor("text", "BYTES", &[-1])],
        Task::Classify(_) => vec![tensor("text", "BYTES", &[-1])],
    }
}

/// The tensor that a model gives.
pub(crate) fn output(model: &Model) -> Described {
    let width = |size: usize| i64::try_from(size).unwrap_or(-1);
    match &model.task {
        Task::Embed => tensor("embedding", "FP32", &[-1, model.info.dimensions.map_or(-1, width)]),
        Task::Rerank => tensor("score", "FP32", &[-1, 1]),
        Task::Classify(labels) => tensor("scores", "FP32", &[-1, width(labels.len())]),
    }
}

/// Whether a version is the one that there is.
///
/// # Errors
/// It is another.
pub(crate) fn check_version(version: &str) -> Result<(), Failure> {
    if version.is_empty() || version == VERSION {
        return Ok(());
    }
    let message = format!("there is no version {version:?}, only {VERSION}");
    Err(Failure::new(crate::failure::Kind::NotFound, message))
}

/// Runs a request; scores are as the model makes them.
///
/// # Errors
/// Tensors that the model does not take, or what became of their texts.
pub(crate) async fn infer(
    app: &App,
    model: &Model,
    tensors: Vec<TextTensor>,
    call: Call,
) -> Result<Rows, Failure> {
    let wanted = inputs(model);
    let names = || wanted.iter().map(|tensor| tensor.name).collect::<Vec<_>>().join(", ");
    let (mut query, mut text) = (None, None);
    for tensor in tensors {
        match tensor.name.as_str() {
            "text" => text = Some(tensor.texts),
            "query" if model.task == Task::Rerank => query = Some(tensor.texts),
            // Some clients of models with one tensor call it as they like.
            other if wanted.len() > 1 => {
                let message = format!("the model takes {}, not {other:?}", names());
                return Err(Failure::malformed(message).at("inputs"));
            }
            _ if text.is_none() => text = Some(tensor.texts),
            other => {
                let message = format!("the model takes {} only, not {other:?}", names());
                return Err(Failure::malformed(message).at("inputs"));
            }
        }
    }
    let missing = || Failure::malformed(format!("the model takes {}", names())).at("inputs");
    let text = text.ok_or_else(missing)?;
    let inputs = match model.task {
        Task::Rerank => {
            let query = query.ok_or_else(missing)?;
            if query.len() != 1 && query.len() != text.len() {
                let message = "must have one element, or as many as text";
                return Err(Failure::malformed(message).at("query"));
            }
            let first = query.first().cloned().unwrap_or_default();
            let queries = query.into_iter().chain(std::iter::repeat(first));
            let items = queries.zip(text).map(|(query, text)| Input::Pair(query, text)).collect();
            Inputs { items, single: false, field: "text", prompt: None }.checked(app.limits())?
        }
        _ => Inputs::texts(text, "text", app.limits())?,
    };
    let answers = model.run(inputs, call, app.config.auto_truncate).await?;
    let width = answers.vectors.first().map_or(0, Vec::len);
    if answers.vectors.iter().any(|row| row.len() != width) {
        let message = "the engine's answers differ in width";
        return Err(Failure::new(crate::failure::Kind::Engine, message));
    }
    let shape = [answers.vectors.len(), width];
    Ok(Rows { name: output(model).name, shape, rows: answers.vectors })
}
