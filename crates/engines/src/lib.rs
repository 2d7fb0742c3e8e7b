//! Engines for [`onelane`] on candle: an MLP, sentence embeddings, rerankers and classifiers of BERT,
//! encoders like it, and ModernBERT.
//!
//! They run on the CPU in every build, and on Metal (feature `metal`) or CUDA (feature `cuda`)
//! where the build has it. Features only add: the API is the same without them, and asking for a
//! device that the build lacks is an error that says what to do.
//!
//! | to do | use |
//! |---|---|
//! | name and open a device | [`DeviceName`], [`devices`] |
//! | score pairs, classify texts | [`ClassificationModel`], [`ClassificationEngine`] |
//! | embed sentences | [`EmbeddingModel`], [`Tokeniser`], [`EmbeddingEngine`] |
//! | choose shapes | [`EmbeddingConfig`], [`BucketConfig`], [`Padding`] |
//! | run rows through an MLP | [`MlpEngine`], [`MlpRow`] |
//! | give workers an autorelease pool | [`autorelease_pool`] |
//! | use the models without a queue | [`Bert`], [`Mlp`] |

#![deny(unsafe_code)]

mod activation;
mod bert;
mod bert_layers;
mod classification;
mod classification_engine;
mod config;
mod cpu;
#[cfg(feature = "cuda")]
#[allow(unsafe_code, reason = "recorded passes are had no other way")]
mod cuda;
mod device;
mod device_name;
mod distances;
mod embedding;
mod embedding_engine;
mod error;
mod family;
mod head;
mod inventory;
mod layout;
mod mlp;
mod mlp_engine;
mod model_dir;
mod modern_config;
mod modern_layers;
mod nonlinearity;
mod ops;
mod pass;
mod pool;
mod projection;
mod rotary;
mod sentence_settings;
mod shape_log;
mod weights;

pub use activation::Activation;
pub use bert::Bert;
pub use classification::ClassificationModel;
pub use classification_engine::ClassificationEngine;
pub use config::BertConfig;
pub use device::DeviceError;
pub use device_name::{DeviceName, DeviceNameError};
pub use embedding::{EmbeddingConfig, EmbeddingModel, Padding};
pub use embedding_engine::EmbeddingEngine;
pub use error::LoadError;
pub use family::Family;
pub use inventory::{DeviceInfo, devices};
pub use mlp::{MLP_WIDTH, Mlp, MlpRow, MlpRowError};
pub use mlp_engine::MlpEngine;
pub use model_dir::ModelDir;
pub use modern_config::ModernConfig;
pub use onelane_tokeniser::{
    BucketConfig, BucketError, Buckets, MAX_TEXT_BYTES, Shape, TextToken, TokeniseError,
    TokenisedText, Tokeniser,
};
pub use pool::autorelease_pool;
pub use sentence_settings::{Pooling, ProjectionSettings, SentenceSettings};
