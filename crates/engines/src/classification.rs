//! A sequence classifier as its users see it: a reranker (one label) or a classifier of texts or
//! pairs of texts.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::classification_engine::ClassificationEngine;
use crate::config::BertConfig;
use crate::device_name::DeviceName;
use crate::embedding::{EmbeddingConfig, EmbeddingModel};
use crate::error::LoadError;
use crate::head::Head;
use crate::model_dir::ModelDir;
use crate::sentence_settings::{Pooling, SentenceSettings};
use onelane_tokeniser::Tokeniser;

/// What `config.json` says of a head.
#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    id2label: Option<BTreeMap<usize, String>>,
}

/// How the name of an architecture with such a head ends.
const ARCHITECTURE: &str = "ForSequenceClassification";

/// A sequence classifier: its tokeniser and labels, without the weights.
///
/// With one label it is a cross-encoder: [`Tokeniser::encode_pair`] makes the pair of a query and a
/// text, and the engine's only score says how well they fit.
///
/// Cheap to clone; every clone sees the same statistics.
#[derive(Clone)]
pub struct ClassificationModel {
    encoder: EmbeddingModel,
    labels: Vec<String>,
}

impl ClassificationModel {
    /// Whether `config.json` of a directory names a sequence classifier.
    ///
    /// # Errors
    /// [`LoadError`] when the directory or the file is missing or damaged.
    pub fn is_in(path: impl AsRef<Path>) -> Result<bool, LoadError> {
        let raw: Raw = ModelDir::open(path)?.read_json("config.json")?;
        let names = raw.architectures.unwrap_or_default();
        Ok(names.iter().any(|name| name.ends_with(ARCHITECTURE)))
    }

    /// Opens a model directory: reads its settings and tokeniser, not yet its weights. Lengths,
    /// padding and graphs are set as of an embedding model; only a ModernBERT's pooling is read.
    ///
    /// # Errors
    /// [`LoadError`] names the file that is missing, damaged or unsupported.
    pub fn open(
        path: impl AsRef<Path>,
        device: DeviceName,
        config: EmbeddingConfig,
    ) -> Result<Self, LoadError> {
        let dir = ModelDir::open(path)?;
        let raw: Raw = dir.read_json("config.json")?;
        let bert = BertConfig::read(&dir)?;
        let settings = SentenceSettings {
            pooling: bert.modern.as_ref().map_or(Pooling::First, |m| m.classifier_pooling),
            normalise: false,
            ..SentenceSettings::read_limits(&dir)?
        };
        let count = Head::labels(&dir, &bert)?;
        let labels = match raw.id2label {
            Some(labels) if labels.keys().copied().eq(0..count) => labels.into_values().collect(),
            None => (0..count).map(|label| format!("LABEL_{label}")).collect(),
            Some(labels) => {
                return Err(LoadError::damaged(
                    dir.file("config.json"),
                    &format_args!(
                        "id2label should name the labels 0 to {}, and names {}",
                        count - 1,
                        labels.len()
                    ),
                ));
            }
        };
        let encoder = EmbeddingModel::with_settings(dir, device, config, settings)?;
        Ok(Self { encoder, labels })
    }

    /// Loads the weights onto the device. Call it in a queue's factory, so that it runs on the
    /// worker.
    ///
    /// # Errors
    /// [`LoadError`] when the device cannot be opened, or the weights are damaged, of another model,
    /// or too large for it.
    pub fn load(&self) -> Result<ClassificationEngine, LoadError> {
        let head = Head::load(self.encoder.dir(), self.encoder.config(), self.labels.len())?;
        Ok(ClassificationEngine::new(self.encoder.load()?, head))
    }

    /// The tokeniser, for the submitting threads.
    pub fn tokeniser(&self) -> &Tokeniser {
        self.encoder.tokeniser()
    }

    /// The labels, in the order of the scores; a reranker has one.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }
}
