//! Embeddings, reranking, classification and models of tensors over HTTP and gRPC, in front of
//! [`onelane`]'s batch queues. It knows no engine: a program binds one through [`Embedder`],
//! [`Reranker`], [`Classifier`] or [`Predictor`].
//!
//! Every text of every call is a request of its own to the queue of its model: it costs its tokens,
//! and shares a batch with whatever waits in the same length bucket, whoever sent it. The queue
//! alone decides what is admitted, in what order it runs and what is refused. A row of a call's
//! tensors is such a request, too: it costs 1, and shares a batch with rows of its types and shapes.
//!
//! | to do | use |
//! |---|---|
//! | bind an engine of texts | [`Embedder`], [`Reranker`], [`Classifier`], [`Model`] |
//! | bind one of tensors | [`Predictor`], [`Signature`], [`Tensor`], [`Row`], [`Model`] |
//! | set the server up | [`ServerConfig`], [`Server::new`] |
//! | run it | [`Server::serve`], [`Listener`], [`Signals`] |
//!
//! # What is promised
//! A call is admitted whole or refused whole while it fits into the queue. Answers are in the order
//! of the texts. The first text that fails is named, and what is left of its call is not computed.
//! Nor is a text whose client has left, or whose deadline has passed before it started. `/ready`
//! fails before the listener closes, and no accepted call fails through a shutdown that its drain
//! timeout is long enough for.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod acceptor;
mod app;
mod auth;
mod body;
mod call;
mod classifier;
mod collector;
mod config;
mod connection;
mod datatype;
mod embedder;
mod failure;
mod family;
mod forwarded;
mod group;
mod handshake;
mod health;
mod inputs;
mod lane;
mod lane_queue;
mod life;
mod listener;
mod metrics;
mod model;
mod model_counters;
mod model_info;
mod oip;
mod one_score;
mod page;
mod predictor;
mod rate;
mod registry;
mod reranker;
mod routes;
mod row;
mod schema;
mod self_check;
mod server;
mod signature;
mod stream;
mod tensor;
mod tensor_error;
mod tensor_lane;
mod text;
mod text_lane;
mod text_tokeniser;
mod text_work;
mod timed;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "otlp")]
mod traces;
mod whole;
mod work;

pub use classifier::Classifier;
pub use config::ServerConfig;
pub use datatype::Datatype;
pub use embedder::Embedder;
pub use life::{Signals, Stop};
pub use listener::Listener;
pub use model::Model;
pub use model_info::ModelInfo;
pub use one_score::OneScore;
pub use predictor::Predictor;
pub use reranker::Reranker;
pub use row::{Row, RowKey};
pub use server::{ServeError, Server};
pub use signature::{Signature, TensorSpec};
pub use tensor::Tensor;
pub use tensor_error::TensorError;
pub use text::{TextError, Token, Tokenised, Tokens};
#[cfg(feature = "otlp")]
pub use traces::{Traces, TracesError};
