//! What HTTP and gRPC share: a model as tensors, and a request of tensors run on it.

use crate::app::App;
use crate::call::Call;
use crate::datatype::Datatype;
use crate::failure::{Failure, Kind};
use crate::model::{Model, Task};
use crate::signature::TensorSpec;
use crate::tensor::Tensor;
use crate::work::Tensors;

use super::texts;

/// The protocol's name of what runs the models.
pub(crate) const PLATFORM: &str = "onelane";

/// The one version that every model has.
pub(crate) const VERSION: &str = "1";

/// What the protocol calls its extensions.
pub(crate) const EXTENSIONS: [&str; 2] = ["binary_tensor_data", "model_configuration"];

/// The tensors that a model takes; none if it has not declared them.
pub(crate) fn inputs(model: &Model) -> Vec<TensorSpec> {
    match &model.task {
        Task::Predict(signature) => signature.inputs().to_vec(),
        _ => texts::inputs(model),
    }
}

/// The tensors that a model gives; none if it has not declared them.
pub(crate) fn outputs(model: &Model) -> Vec<TensorSpec> {
    match &model.task {
        Task::Predict(signature) => signature.outputs().to_vec(),
        _ => texts::outputs(model),
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
    Err(Failure::new(Kind::NotFound, message))
}

/// A tensor that came in.
///
/// # Errors
/// A shape that no tensor has, or bytes of more or fewer elements.
pub(crate) fn tensor(
    name: String,
    datatype: Datatype,
    shape: &[i64],
    data: Vec<u8>,
) -> Result<Tensor, Failure> {
    let sizes: Option<Vec<usize>> = shape.iter().map(|&size| usize::try_from(size).ok()).collect();
    let Some(sizes) = sizes else {
        return Err(Failure::malformed("has a shape that no tensor has").at(name));
    };
    Tensor::new(name.as_str(), datatype, sizes, data)
        .map_err(|error| Failure::malformed(error.0).at(name))
}

/// Runs a request; `wanted` names the outputs that are asked for, in order: all, if it is empty.
///
/// # Errors
/// Tensors that the model does not take or give, or what became of its rows.
pub(crate) async fn infer(
    app: &App,
    model: &Model,
    inputs: Vec<Tensor>,
    wanted: Vec<String>,
    call: Call,
) -> Result<Vec<Tensor>, Failure> {
    if matches!(model.task, Task::Predict(_)) {
        let tensors = Tensors { inputs, outputs: wanted, max_rows: app.config.max_texts };
        return model.predict(tensors, call).await;
    }
    texts::infer(app, model, &inputs, &wanted, call).await
}
