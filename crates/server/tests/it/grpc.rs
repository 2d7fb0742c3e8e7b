//! A client of the inference service, as it is generated from its description.

use std::net::SocketAddr;

use tonic::transport::Channel;
use tonic::{Response, Status};

use pb::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};

#[allow(missing_docs, clippy::all, unused, unreachable_pub, reason = "generated")]
pub mod pb {
    tonic::include_proto!("inference");
}

pub type Client = pb::grpc_inference_service_client::GrpcInferenceServiceClient<Channel>;

/// Runs calls of a client on this thread.
pub fn with<T>(at: SocketAddr, calls: impl AsyncFnOnce(Client) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let channel = Channel::from_shared(format!("http://{at}")).unwrap();
    runtime.block_on(async { calls(Client::new(channel.connect().await.unwrap())).await })
}

pub fn input(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        ..InferInputTensor::default()
    }
}

/// A request of tensors whose contents are raw.
pub fn request(
    model: &str,
    inputs: Vec<(InferInputTensor, Vec<u8>)>,
    outputs: &[&str],
) -> pb::ModelInferRequest {
    let (inputs, raw) = inputs.into_iter().unzip();
    let output = |name: &&str| InferRequestedOutputTensor {
        name: (*name).to_owned(),
        ..InferRequestedOutputTensor::default()
    };
    pb::ModelInferRequest {
        model_name: model.to_owned(),
        inputs,
        raw_input_contents: raw,
        outputs: outputs.iter().map(output).collect(),
        ..pb::ModelInferRequest::default()
    }
}

/// The outputs of an answer: name, type, shape and bytes.
pub type Outputs = Vec<(String, String, Vec<i64>, Vec<u8>)>;

pub fn outputs(answer: Result<Response<pb::ModelInferResponse>, Status>) -> Outputs {
    let answer = answer.unwrap().into_inner();
    assert_eq!(answer.outputs.len(), answer.raw_output_contents.len());
    let raw = answer.raw_output_contents.into_iter();
    let one = |(output, raw): (pb::model_infer_response::InferOutputTensor, Vec<u8>)| {
        (output.name, output.datatype, output.shape, raw)
    };
    answer.outputs.into_iter().zip(raw).map(one).collect()
}
