//! The head of a sequence classifier: a text's vector in, one score for each label out.

use candle_core::Result;

use crate::config::BertConfig;
use crate::error::LoadError;
use crate::model_dir::ModelDir;
use crate::nonlinearity::Nonlinearity;
use crate::projection::Projection;
use crate::weights::Weights;

/// The head of a sequence classifier.
pub(crate) struct Head([Projection; 2]);

impl Head {
    /// How many labels the head in a model's file has.
    ///
    /// # Errors
    /// [`LoadError`] when the file is damaged or has no such head.
    pub(crate) fn labels(
        dir: &ModelDir,
        config: &BertConfig,
    ) -> std::result::Result<usize, LoadError> {
        let output = format!("{}.weight", config.family.head().output);
        let weights = Weights::open(dir, config.family.names())?;
        match weights.rows(&output) {
            Some(labels @ 1..) => Ok(labels),
            // By this, an error that names the tensor.
            _ => weights.get_full(&output, &[1, config.hidden_size]).map(|_| 1),
        }
    }

    /// Loads the head of a model with this many labels.
    ///
    /// # Errors
    /// [`LoadError`] when a tensor is missing or of another shape.
    pub(crate) fn load(
        dir: &ModelDir,
        config: &BertConfig,
        labels: usize,
    ) -> std::result::Result<Self, LoadError> {
        let weights = Weights::open(dir, config.family.names())?;
        let names = config.family.head();
        let width = config.hidden_size;
        let widths = (width, width);
        let modern = config.modern.as_ref();
        let after = modern.map_or(names.nonlinearity, |modern| modern.classifier_activation.into());
        let dense = match modern.is_none_or(|modern| modern.classifier_bias) {
            true => Projection::load(&weights, names.dense, widths, after)?,
            false => Projection::load_without_bias(&weights, names.dense, widths, after)?,
        };
        let dense = match names.norm {
            Some(name) => {
                let has_bias = modern.is_some_and(|modern| modern.norm_bias);
                dense.normed(&weights, name, (has_bias, config.layer_norm_eps))?
            }
            None => dense,
        };
        let widths = (width, labels);
        let output = Projection::load(&weights, names.output, widths, Nonlinearity::Identity)?;
        Ok(Self([dense, output]))
    }

    /// The scores of each vector.
    ///
    /// # Errors
    /// candle's, for vectors of another width.
    pub(crate) fn scores(&self, vectors: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
        Projection::chain(&self.0, vectors)
    }
}
