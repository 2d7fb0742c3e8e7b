//! Models of texts as tensors.

use crate::app::App;
use crate::call::Call;
use crate::datatype::Datatype;
use crate::failure::{Failure, Kind};
use crate::inputs::{Input, Inputs};
use crate::model::{Model, Task};
use crate::signature::TensorSpec;
use crate::tensor::Tensor;

/// The tensors that a model of texts takes.
pub(super) fn inputs(model: &Model) -> Vec<TensorSpec> {
    let names: &[&str] = if model.task == Task::Rerank { &["query", "text"] } else { &["text"] };
    names.iter().map(|name| TensorSpec::new(*name, Datatype::Bytes, [-1])).collect()
}

/// The tensors that a model of texts gives: one.
pub(super) fn outputs(model: &Model) -> Vec<TensorSpec> {
    let width = |size: usize| i64::try_from(size).unwrap_or(-1);
    let columns = match &model.task {
        Task::Embed => model.info.dimensions.map_or(-1, width),
        Task::Classify(labels) => width(labels.len()),
        Task::Rerank | Task::Predict(_) => 1,
    };
    vec![TensorSpec::new(output(model), Datatype::Fp32, [-1, columns])]
}

fn output(model: &Model) -> &'static str {
    match &model.task {
        Task::Embed => "embedding",
        Task::Classify(_) => "scores",
        Task::Rerank | Task::Predict(_) => "score",
    }
}

/// Runs a request; scores are as the model makes them.
///
/// # Errors
/// Tensors that the model does not take or give, or what became of their texts.
pub(super) async fn infer(
    app: &App,
    model: &Model,
    tensors: &[Tensor],
    wanted: &[String],
    call: Call,
) -> Result<Vec<Tensor>, Failure> {
    let given = output(model);
    if let Some(other) = wanted.iter().find(|name| *name != given) {
        let message = format!("the model gives {given}, not {other:?}");
        return Err(Failure::malformed(message).at("outputs"));
    }
    let taken = inputs(model);
    let names = || taken.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>().join(", ");
    let (mut query, mut text) = (None, None);
    for tensor in tensors {
        match tensor.name() {
            "text" => text = Some(texts(tensor)?),
            "query" if model.task == Task::Rerank => query = Some(texts(tensor)?),
            // Some clients of models with one tensor call it as they like.
            other if taken.len() > 1 => {
                let message = format!("the model takes {}, not {other:?}", names());
                return Err(Failure::malformed(message).at("inputs"));
            }
            _ if text.is_none() => text = Some(texts(tensor)?),
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
        return Err(Failure::new(Kind::Engine, message));
    }
    let shape = [answers.vectors.len(), width];
    let data = answers.vectors.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
    let tensor = Tensor::new(given, Datatype::Fp32, shape, data);
    Ok(vec![tensor.map_err(|error| Failure::new(Kind::Internal, error.0))?])
}

/// The elements of a tensor as texts.
fn texts(tensor: &Tensor) -> Result<Vec<String>, Failure> {
    let name = tensor.name();
    if tensor.datatype() != Datatype::Bytes {
        let message = format!("must be of type BYTES, not {}", tensor.datatype());
        return Err(Failure::malformed(message).at(name));
    }
    let text = |(index, element): (usize, &[u8])| {
        String::from_utf8(element.to_vec())
            .map_err(|_| Failure::malformed("is not UTF-8").at(format!("{name}[{index}]")))
    };
    tensor.elements().enumerate().map(text).collect()
}
