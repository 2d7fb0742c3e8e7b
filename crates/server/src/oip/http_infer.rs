//! A model run over HTTP: tensors in JSON or, after it, in binary.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::infer::{self, VERSION};
use super::values::{self, Values};
use crate::app::App;
use crate::body;
use crate::call::Call;
use crate::datatype::Datatype;
use crate::failure::{Failure, Kind};
use crate::family::{Plain, Rejected};
use crate::model::Model;
use crate::tensor::Tensor;
use crate::tensor_error::TensorError;
use crate::whole::whole;

/// Says where, in a body, the JSON ends and the tensors begin.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

#[derive(Deserialize, ToSchema)]
struct InferRequest {
    /// Given back with the answer.
    id: Option<String>,
    parameters: Option<InferParameters>,
    #[schema(min_items = 1)]
    inputs: Vec<InputTensor>,
    outputs: Option<Vec<OutputTensor>>,
}

#[derive(Default, Deserialize, ToSchema)]
struct InferParameters {
    /// 1 is the most urgent, 0 is unsaid.
    #[serde(default, deserialize_with = "crate::whole::optional")]
    priority: Option<u64>,
    /// Microseconds until which the answer is wanted.
    #[schema(minimum = 60_000_000)]
    #[serde(default, deserialize_with = "crate::whole::optional")]
    timeout: Option<u64>,
    /// Whether the outputs that say nothing of it are written in binary.
    binary_data_output: Option<bool>,
}

#[derive(Deserialize, ToSchema)]
struct InputTensor {
    name: String,
    #[schema(value_type = Shape)]
    shape: Vec<serde_json::Number>,
    #[schema(value_type = DatatypeName)]
    datatype: String,
    /// The elements, in lists as deep as the shape or in one.
    #[schema(value_type = Elements)]
    data: Option<Value>,
    #[schema(ignore)]
    parameters: Option<TensorParameters>,
}

#[derive(Default, Deserialize)]
struct TensorParameters {
    binary_data_size: Option<usize>,
}

#[derive(Deserialize, ToSchema)]
struct OutputTensor {
    #[schema(ignore)]
    name: String,
    #[schema(ignore)]
    parameters: Option<OutputParameters>,
}

#[derive(Default, Deserialize)]
struct OutputParameters {
    binary_data: Option<bool>,
}

macro_rules! described_as {
    ($($name:ident = $value:tt),* $(,)?) => {$(
        struct $name;

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                crate::schema::schema(json!($value))
            }
        }

        impl ToSchema for $name {}
    )*};
}

described_as! {
    DatatypeName = {"type": "string", "enum": Datatype::ALL.map(Datatype::name)},
    Shape = {"type": "array", "minItems": 1, "maxItems": 8,
             "items": {"type": "integer", "minimum": 1, "maximum": 2048}},
    Elements = {"type": "array", "minItems": 1, "maxItems": 2048,
                "items": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "number"},
                                    {"type": "boolean"}]}},
}

#[derive(Serialize, ToSchema)]
struct InferResponse {
    model_name: String,
    model_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    outputs: Vec<AnswerTensor>,
}

#[derive(Serialize, ToSchema)]
struct AnswerTensor {
    name: String,
    datatype: &'static str,
    shape: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Elements>)]
    data: Option<Values>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
}

/// Runs a model on tensors
///
/// With `Inference-Header-Content-Length` the body is JSON of that length and then the tensors in
/// binary.
#[utoipa::path(
    post, path = "/v2/models/{model}/infer", tag = "OIP", params(("model" = String, Path)),
    request_body = InferRequest,
    responses((status = 200, body = InferResponse), Rejected<Plain>)
)]
pub(super) async fn infer(
    State(app): State<Arc<App>>,
    Path(model): Path<String>,
    request: Request,
) -> Result<Response, Rejected<Plain>> {
    Ok(answer(&app, app.models.named(&model)?, request).await?)
}

async fn answer(app: &App, model: &Model, request: Request) -> Result<Response, Failure> {
    let mut call = Call::from_headers(request.headers(), app.config.request_timeout)?;
    let split = match request.headers().get(HEADER_LENGTH) {
        Some(value) => {
            let length = value.to_str().ok().and_then(|value| value.parse::<usize>().ok());
            let wrong =
                || Failure::malformed("must be a number of bytes").at(HEADER_LENGTH.as_str());
            Some(length.ok_or_else(wrong)?)
        }
        None => None,
    };
    let bytes = body::bytes(app, request.into_parts(), call).await?;
    let length = split.unwrap_or(bytes.len());
    let (head, mut binary) = bytes.split_at_checked(length).ok_or_else(|| {
        Failure::malformed("is more than the body has").at(HEADER_LENGTH.as_str())
    })?;
    let request: InferRequest = body::json(head)?;
    let parameters = request.parameters.unwrap_or_default();
    call = call.oip_priority(parameters.priority.unwrap_or(0));
    if let Some(micros) = parameters.timeout.filter(|micros| *micros > 0) {
        call = call.within(std::time::Duration::from_micros(micros));
    }
    let mut tensors = Vec::new();
    for tensor in request.inputs {
        tensors.push(read_tensor(tensor, &mut binary)?);
    }
    if !binary.is_empty() {
        let message = format!("{} bytes are left that no tensor says are its own", binary.len());
        return Err(Failure::malformed(message));
    }
    let all = parameters.binary_data_output.unwrap_or(false);
    let mut wanted = Wanted { names: Vec::new(), binary: Vec::new(), all };
    for output in request.outputs.unwrap_or_default() {
        wanted.binary.push(output.parameters.and_then(|p| p.binary_data).unwrap_or(all));
        wanted.names.push(output.name);
    }
    let outputs = infer::infer(app, model, tensors, wanted.names.clone(), call).await?;
    respond(model, request.id, outputs, &wanted)
}

/// The outputs that a call asks for, and whether each is to be in binary.
struct Wanted {
    names: Vec<String>,
    binary: Vec<bool>,
    /// For those of a call that names none.
    all: bool,
}

impl Wanted {
    fn in_binary(&self, index: usize) -> bool {
        self.binary.get(index).copied().unwrap_or(self.all)
    }
}

fn read_tensor(tensor: InputTensor, binary: &mut &[u8]) -> Result<Tensor, Failure> {
    let name = tensor.name;
    let wrong = |error: TensorError| Failure::malformed(error.0).at(name.as_str());
    let datatype: Datatype = tensor.datatype.parse().map_err(wrong)?;
    let size = tensor.parameters.and_then(|parameters| parameters.binary_data_size);
    let data = match (tensor.data, size) {
        (Some(_), Some(_)) => {
            return Err(Failure::malformed("has data in JSON and in binary").at(name));
        }
        (Some(data), None) => values::read(&data, datatype, &name)?,
        (None, Some(size)) => {
            let (own, rest) = binary.split_at_checked(size).ok_or_else(|| {
                Failure::malformed("says that it is larger than the body").at(name.as_str())
            })?;
            *binary = rest;
            own.to_vec()
        }
        (None, None) => return Err(Failure::malformed("has no data").at(name)),
    };
    // What is no whole number is a size that no tensor has.
    let shape: Vec<i64> = tensor.shape.iter().map(|size| whole(size).unwrap_or(-1)).collect();
    infer::tensor(name, datatype, &shape, data)
}

fn respond(
    model: &Model,
    id: Option<String>,
    outputs: Vec<Tensor>,
    wanted: &Wanted,
) -> Result<Response, Failure> {
    let mut binary = Vec::new();
    let mut described = Vec::with_capacity(outputs.len());
    for (index, output) in outputs.iter().enumerate() {
        let in_binary = wanted.in_binary(index);
        if in_binary {
            binary.extend_from_slice(output.data());
        }
        described.push(AnswerTensor {
            name: output.name().to_owned(),
            datatype: output.datatype().name(),
            shape: output.shape().to_vec(),
            parameters: in_binary.then(|| json!({"binary_data_size": output.data().len()})),
            data: if in_binary { None } else { Some(Values::of(output)?) },
        });
    }
    let any_binary = (0..outputs.len()).any(|index| wanted.in_binary(index));
    let response = InferResponse {
        model_name: model.name.clone(),
        model_version: VERSION,
        id: id.filter(|id| !id.is_empty()),
        outputs: described,
    };
    if !any_binary {
        return Ok(Json(response).into_response());
    }
    let mut body = serde_json::to_vec(&response)
        .map_err(|error| Failure::new(Kind::Internal, error.to_string()))?;
    let length = HeaderValue::from(body.len());
    body.extend(binary);
    let kind = HeaderValue::from_static("application/octet-stream");
    Ok(([(header::CONTENT_TYPE, kind), (HEADER_LENGTH, length)], body).into_response())
}
