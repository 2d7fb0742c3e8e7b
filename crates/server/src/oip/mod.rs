//! The Open Inference Protocol, version 2: HTTP with tensors in JSON or in binary, and gRPC.
//!
//! A model is tensors here: `text` (and `query`, or `pair`) of type BYTES in, and `embedding`,
//! `score` or `scores` of type FP32 out, one row for each text.

pub(crate) mod grpc;
pub(crate) mod http;
mod infer;
mod tensor;
