//! The protocol over gRPC, with `grpc.health.v1` and reflection, on the port of everything else.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::MetadataValue;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::infer::{self, EXTENSIONS, PLATFORM, VERSION, check_version};
use crate::app::App;
use crate::call::Call;
use crate::datatype::Datatype;
use crate::failure::{Failure, Kind};
use crate::health;
use crate::life::Phase;
use crate::signature::TensorSpec;
use crate::tensor::Tensor;
use crate::tensor_error::TensorError;

#[allow(missing_docs, clippy::all, reason = "generated")]
mod pb {
    tonic::include_proto!("inference");
}

use pb::InferTensorContents;
use pb::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use pb::infer_parameter::ParameterChoice;
use pb::model_infer_request::InferInputTensor;
use pb::model_infer_response::InferOutputTensor;
use pb::model_metadata_response::TensorMetadata;

/// For reflection.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/grpc_service.bin"));

/// The name of the service in the health service.
const SERVICE: &str = "inference.GRPCInferenceService";

/// How often those who watch the health hear of a change.
const WATCH: Duration = Duration::from_secs(1);

/// All services.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let inference = GrpcInferenceServiceServer::new(Inference(Arc::clone(app)))
        .max_decoding_message_size(app.config.payload_limit);
    let mut services =
        Routes::new(inference).add_service(HealthServer::new(Checks(Arc::clone(app))));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // The descriptors are compiled in; were they wrong, only reflection would be missing.
    if let (Ok(v1), Ok(v1alpha)) = (reflection().build_v1(), reflection().build_v1alpha()) {
        services = services.add_service(v1).add_service(v1alpha);
    }
    services.into_axum_router().reset_fallback()
}

/// A failure as a status; a refusal says when to come again.
fn status(failure: Failure) -> Status {
    let code = match failure.kind {
        Kind::Malformed | Kind::TextTooLong | Kind::TooLarge | Kind::MediaType => {
            Code::InvalidArgument
        }
        Kind::Unauthorised => Code::Unauthenticated,
        Kind::NotFound => Code::NotFound,
        Kind::ClientTimeout | Kind::Deadline => Code::DeadlineExceeded,
        Kind::Full => Code::ResourceExhausted,
        Kind::Engine | Kind::Internal => Code::Internal,
        Kind::Unavailable => Code::Unavailable,
    };
    let mut status = Status::new(code, failure.message);
    if let Some(after) = failure.retry_after {
        let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        status.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from(millis));
    }
    status
}

struct Inference(Arc<App>);

#[tonic::async_trait]
impl GrpcInferenceService for Inference {
    async fn server_live(
        &self,
        _: Request<pb::ServerLiveRequest>,
    ) -> Result<Response<pb::ServerLiveResponse>, Status> {
        Ok(Response::new(pb::ServerLiveResponse { live: health::live(&self.0).is_ok() }))
    }

    async fn server_ready(
        &self,
        _: Request<pb::ServerReadyRequest>,
    ) -> Result<Response<pb::ServerReadyResponse>, Status> {
        Ok(Response::new(pb::ServerReadyResponse { ready: health::ready(&self.0).is_ok() }))
    }

    async fn model_ready(
        &self,
        request: Request<pb::ModelReadyRequest>,
    ) -> Result<Response<pb::ModelReadyResponse>, Status> {
        let request = request.into_inner();
        check_version(&request.version).map_err(status)?;
        let model = self.0.models.named(&request.name).map_err(status)?;
        Ok(Response::new(pb::ModelReadyResponse { ready: health::model_ready(model).is_ok() }))
    }

    async fn server_metadata(
        &self,
        _: Request<pb::ServerMetadataRequest>,
    ) -> Result<Response<pb::ServerMetadataResponse>, Status> {
        Ok(Response::new(pb::ServerMetadataResponse {
            name: PLATFORM.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).into(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<pb::ModelMetadataRequest>,
    ) -> Result<Response<pb::ModelMetadataResponse>, Status> {
        let request = request.into_inner();
        check_version(&request.version).map_err(status)?;
        let model = self.0.models.named(&request.name).map_err(status)?;
        let described = |tensor: TensorSpec| TensorMetadata {
            name: tensor.name,
            datatype: tensor.datatype.name().to_owned(),
            shape: tensor.shape,
        };
        Ok(Response::new(pb::ModelMetadataResponse {
            name: model.name.clone(),
            versions: vec![VERSION.to_owned()],
            platform: PLATFORM.to_owned(),
            inputs: infer::inputs(model).into_iter().map(described).collect(),
            outputs: infer::outputs(model).into_iter().map(described).collect(),
        }))
    }

    async fn model_infer(
        &self,
        request: Request<pb::ModelInferRequest>,
    ) -> Result<Response<pb::ModelInferResponse>, Status> {
        let app = &self.0;
        let headers = request.metadata().clone().into_headers();
        let call = Call::from_headers(&headers, app.config.request_timeout).map_err(status)?;
        let request = request.into_inner();
        check_version(&request.model_version).map_err(status)?;
        let model = app.models.named(&request.model_name).map_err(status)?;
        let call = parameters(call, &request);
        let tensors = tensors(request.inputs, request.raw_input_contents).map_err(status)?;
        let wanted = request.outputs.into_iter().map(|output| output.name).collect();
        let outputs = infer::infer(app, model, tensors, wanted, call).await.map_err(status)?;
        let described = |output: &Tensor| InferOutputTensor {
            name: output.name().to_owned(),
            datatype: output.datatype().name().to_owned(),
            shape: output.shape().iter().map(|&size| size as i64).collect(),
            ..InferOutputTensor::default()
        };
        Ok(Response::new(pb::ModelInferResponse {
            model_name: model.name.clone(),
            model_version: VERSION.to_owned(),
            id: request.id,
            outputs: outputs.iter().map(described).collect(),
            // Triton's client reads nothing else.
            raw_output_contents: outputs.into_iter().map(Tensor::into_data).collect(),
            ..pb::ModelInferResponse::default()
        }))
    }
}

/// With the request's own priority and timeout, in microseconds.
fn parameters(mut call: Call, request: &pb::ModelInferRequest) -> Call {
    let number = |name: &str| match request.parameters.get(name)?.parameter_choice.as_ref()? {
        ParameterChoice::Int64Param(value) => u64::try_from(*value).ok(),
        ParameterChoice::Uint64Param(value) => Some(*value),
        ParameterChoice::StringParam(value) => value.parse().ok(),
        _ => None,
    };
    call = call.oip_priority(number("priority").unwrap_or(0));
    match number("timeout") {
        Some(micros) if micros > 0 => call.within(Duration::from_micros(micros)),
        _ => call,
    }
}

fn tensors(inputs: Vec<InferInputTensor>, raw: Vec<Vec<u8>>) -> Result<Vec<Tensor>, Failure> {
    if !raw.is_empty() && raw.len() != inputs.len() {
        let message = format!("has {} tensors for {} inputs", raw.len(), inputs.len());
        return Err(Failure::malformed(message).at("raw_input_contents"));
    }
    let mut raw = raw.into_iter();
    let read = |input: InferInputTensor| {
        let name = input.name;
        let wrong = |error: TensorError| Failure::malformed(error.0).at(name.as_str());
        let datatype: Datatype = input.datatype.parse().map_err(wrong)?;
        let data = match (raw.next(), input.contents) {
            (Some(raw), _) => raw,
            (None, Some(contents)) => typed(contents, datatype, &name)?,
            (None, None) => return Err(Failure::malformed("has no data").at(name)),
        };
        infer::tensor(name, datatype, &input.shape, data)
    };
    inputs.into_iter().map(read).collect()
}

/// The bytes of a tensor whose elements came as numbers of the protocol's own types.
fn typed(
    contents: InferTensorContents,
    datatype: Datatype,
    name: &str,
) -> Result<Vec<u8>, Failure> {
    fn bytes<T, N: AsRef<[u8]>>(numbers: Vec<T>, raw: impl Fn(T) -> N) -> Vec<u8> {
        let mut all = Vec::new();
        numbers.into_iter().for_each(|number| all.extend_from_slice(raw(number).as_ref()));
        all
    }
    fn narrow<T: Copy, S: TryFrom<T>>(numbers: &[T], name: &str) -> Result<Vec<S>, Failure> {
        let one = |(index, &number): (usize, &T)| {
            let wrong =
                |_| Failure::malformed("does not fit the type").at(format!("{name}[{index}]"));
            S::try_from(number).map_err(wrong)
        };
        numbers.iter().enumerate().map(one).collect()
    }
    let InferTensorContents { int_contents: ints, uint_contents: uints, .. } = &contents;
    Ok(match datatype {
        Datatype::Bool => contents.bool_contents.into_iter().map(u8::from).collect(),
        Datatype::Int8 => bytes(narrow::<_, i8>(ints, name)?, i8::to_le_bytes),
        Datatype::Int16 => bytes(narrow::<_, i16>(ints, name)?, i16::to_le_bytes),
        Datatype::Int32 => bytes(contents.int_contents, i32::to_le_bytes),
        Datatype::Int64 => bytes(contents.int64_contents, i64::to_le_bytes),
        Datatype::Uint8 => narrow::<_, u8>(uints, name)?,
        Datatype::Uint16 => bytes(narrow::<_, u16>(uints, name)?, u16::to_le_bytes),
        Datatype::Uint32 => bytes(contents.uint_contents, u32::to_le_bytes),
        Datatype::Uint64 => bytes(contents.uint64_contents, u64::to_le_bytes),
        Datatype::Fp32 => bytes(contents.fp32_contents, f32::to_le_bytes),
        Datatype::Fp64 => bytes(contents.fp64_contents, f64::to_le_bytes),
        Datatype::Bytes => bytes(contents.bytes_contents, |element| {
            // A message is far smaller than what 32 bits can count.
            [&(element.len() as u32).to_le_bytes(), element.as_slice()].concat()
        }),
        Datatype::Fp16 | Datatype::Bf16 => {
            let message = format!("{datatype} has no contents of its own: use raw_input_contents");
            return Err(Failure::malformed(message).at(name));
        }
    })
}

/// `grpc.health.v1`, by what is true when it is asked.
struct Checks(Arc<App>);

fn serving(app: &App) -> HealthCheckResponse {
    let status = match health::ready(app) {
        Ok(()) => ServingStatus::Serving,
        Err(_) => ServingStatus::NotServing,
    };
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Checks {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !service.is_empty() && service != SERVICE {
            return Err(Status::not_found(format!("there is no service {service:?}")));
        }
        Ok(Response::new(serving(&self.0)))
    }

    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

    /// Ends when the server closes, so that nobody who watches holds its shutdown up.
    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let app = Arc::clone(&self.0);
        let start = (app, tokio::time::interval(WATCH), None, false);
        let changes =
            futures_util::stream::unfold(start, |(app, mut ticks, told, last)| async move {
                if last {
                    return None;
                }
                loop {
                    ticks.tick().await;
                    let now = serving(&app);
                    let closing = matches!(app.phase(), Phase::Draining | Phase::Closing);
                    if closing || told != Some(now.status) {
                        let status = now.status;
                        return Some((Ok(now), (app, ticks, Some(status), closing)));
                    }
                }
            });
        Ok(Response::new(Box::pin(StreamExt::fuse(changes))))
    }
}
