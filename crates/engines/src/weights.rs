//! `model.safetensors`: named tensors, checked against the shapes that `config.json` promises.

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;

use crate::error::LoadError;
use crate::model_dir::ModelDir;

/// Name of the file in a model directory.
const FILE: &str = "model.safetensors";

/// The tensors of a file that lies in memory.
pub(crate) struct Weights<'a> {
    dir: &'a ModelDir,
    tensors: SafeTensors<'a>,
    /// `bert.` when the file was saved from a model with a head on top.
    prefix: &'static str,
}

impl<'a> Weights<'a> {
    /// Reads the file; the bytes outlive the views into them.
    pub fn read(dir: &ModelDir) -> Result<Vec<u8>, LoadError> {
        dir.read(FILE)
    }

    /// Parses the header, and checks that the data is complete.
    pub fn parse(dir: &'a ModelDir, bytes: &'a [u8]) -> Result<Self, LoadError> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| LoadError::Damaged {
            path: dir.file(FILE),
            reason: error.to_string(),
        })?;
        let headed = tensors.tensor("bert.embeddings.word_embeddings.weight").is_ok();
        Ok(Self { dir, tensors, prefix: if headed { "bert." } else { "" } })
    }

    /// A tensor on the host in f32, whatever float type it was saved in.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let wrong = |found: String| LoadError::Tensor {
            path: self.dir.file(FILE),
            name: name.to_owned(),
            expected: shape.to_vec(),
            found,
        };
        let full = format!("{}{name}", self.prefix);
        // Conversions from TensorFlow call the parameters of a normalisation gamma and beta.
        let old = full
            .replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta");
        let view = self
            .tensors
            .tensor(&full)
            .or_else(|_| self.tensors.tensor(&old))
            .map_err(|_| wrong("none".to_owned()))?;
        let found = || format!("{:?} of {:?}", view.dtype(), view.shape());
        if view.shape() != shape {
            return Err(wrong(found()));
        }
        let tensor = view.load(&Device::Cpu).map_err(|_| wrong(found()))?;
        match tensor.dtype() {
            DType::F32 => Ok(tensor),
            DType::F16 | DType::BF16 | DType::F64 => Ok(tensor.to_dtype(DType::F32)?),
            _ => Err(wrong(found())),
        }
    }
}
