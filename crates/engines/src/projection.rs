//! A linear map with a non-linearity, and perhaps a normalisation, after it, on the host: the layers
//! that follow a pooling.
//!
//! They are a thousandth of the encoder's work, and the vectors are on the host anyway.

use candle_core::{Device, Result, Tensor};

use crate::error::LoadError;
use crate::nonlinearity::Nonlinearity;
use crate::weights::Weights;

/// A linear map with a non-linearity, and perhaps a normalisation, after it.
pub(crate) struct Projection {
    /// (in, out).
    weight: Tensor,
    /// (out).
    bias: Option<Tensor>,
    nonlinearity: Nonlinearity,
    norm: Option<LayerNorm>,
}

/// A layer normalisation.
struct LayerNorm {
    /// (out).
    gamma: Tensor,
    /// (out).
    beta: Tensor,
    eps: f32,
}

impl Projection {
    /// Loads the tensors `NAME.weight` (to, from) and `NAME.bias` (to).
    ///
    /// # Errors
    /// [`LoadError`] when one is missing or of another shape.
    pub(crate) fn load(
        weights: &Weights<'_>,
        name: &str,
        (from, to): (usize, usize),
        nonlinearity: Nonlinearity,
    ) -> std::result::Result<Self, LoadError> {
        let linear = Self::load_without_bias(weights, name, (from, to), nonlinearity)?;
        let bias = Some(weights.get_full(&format!("{name}.bias"), &[to])?);
        Ok(Self { bias, ..linear })
    }

    /// The same without a bias.
    pub(crate) fn load_without_bias(
        weights: &Weights<'_>,
        name: &str,
        (from, to): (usize, usize),
        nonlinearity: Nonlinearity,
    ) -> std::result::Result<Self, LoadError> {
        let weight = weights.get_full(&format!("{name}.weight"), &[to, from])?;
        Ok(Self { weight: weight.t()?.contiguous()?, bias: None, nonlinearity, norm: None })
    }

    /// Normalises what comes out, by the tensors `NAME.weight` (out) and, if it has one, `NAME.bias`.
    ///
    /// # Errors
    /// [`LoadError`] when one is missing or of another shape.
    pub(crate) fn normed(
        self,
        weights: &Weights<'_>,
        name: &str,
        (has_bias, eps): (bool, f64),
    ) -> std::result::Result<Self, LoadError> {
        let width = self.weight.dim(1)?;
        let gamma = weights.get_full(&format!("{name}.weight"), &[width])?;
        let beta = match has_bias {
            true => weights.get_full(&format!("{name}.bias"), &[width])?,
            false => gamma.zeros_like()?,
        };
        Ok(Self { norm: Some(LayerNorm { gamma, beta, eps: eps as f32 }), ..self })
    }

    /// What becomes of each row of x, (rows, in).
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.matmul(&self.weight)?;
        if let Some(bias) = &self.bias {
            x = x.broadcast_add(bias)?;
        }
        let x = match self.nonlinearity {
            Nonlinearity::Identity => x,
            Nonlinearity::Tanh => x.tanh()?,
            Nonlinearity::Relu => x.relu()?,
            Nonlinearity::GeluErf => x.gelu_erf()?,
            Nonlinearity::GeluTanh => x.gelu()?,
        };
        match &self.norm {
            Some(norm) => candle_nn::ops::layer_norm(&x, &norm.gamma, &norm.beta, norm.eps),
            None => Ok(x),
        }
    }

    /// Sends vectors through one projection after the other.
    ///
    /// # Errors
    /// candle's, for vectors of another width.
    pub(crate) fn chain(layers: &[Self], vectors: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
        if vectors.is_empty() || layers.is_empty() {
            return Ok(vectors);
        }
        let (rows, width) = (vectors.len(), vectors[0].len());
        let mut x = Tensor::from_vec(vectors.concat(), (rows, width), &Device::Cpu)?;
        for layer in layers {
            x = layer.forward(&x)?;
        }
        x.to_vec2()
    }
}
