//! The Open Inference Protocol, version 2: HTTP with tensors in JSON or in binary, and gRPC.
//!
//! A model of texts is tensors here: `text` (and `query`) of type BYTES in, and `embedding`, `score`
//! or `scores` of type FP32 out, one row for each text. A model of tensors is what it declares.

pub(crate) mod grpc;
pub(crate) mod http;
mod http_infer;
mod infer;
mod texts;
mod values;
