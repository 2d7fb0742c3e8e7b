//! The layers of a BERT, and of the encoders whose layers are like its: absolute positions, and a
//! normalisation after each block.

use candle_core::{DType, Device, Result, Tensor};

use crate::config::BertConfig;
use crate::cpu::Heads;
use crate::distances::Distances;
use crate::error::LoadError;
use crate::layout::Layout;
use crate::ops::{self, Attention, Norm, Scope};
use crate::weights::Weights;

/// A linear map whose weight was transposed once at load, so that a product need not pack it.
struct Dense {
    /// (in, out).
    weight: Tensor,
    /// (out).
    bias: Tensor,
}

/// One layer. The biases of `attention` and `down` are in the norm that follows.
struct Layer {
    qkv: Dense,
    attention: Tensor,
    attention_norm: Norm,
    up: Dense,
    down: Tensor,
    output_norm: Norm,
}

/// The embeddings and layers of a BERT.
pub(crate) struct BertLayers {
    /// (vocabulary, width).
    words: Tensor,
    /// (kinds * positions, width): those of the first segment kind, then those of the second.
    positions: Tensor,
    distances: Option<Distances>,
    embedding_norm: Norm,
    layers: Vec<Layer>,
}

impl BertLayers {
    /// Loads the weights onto a device.
    pub(crate) fn load(
        weights: Weights<'_>,
        config: &BertConfig,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let loader = Loader { weights, config, device };
        let width = config.hidden_size;
        let table = |name: &str, rows| {
            loader.weights.get(&format!("embeddings.{name}_embeddings.weight"), &[rows, width])
        };
        let words = table("word", config.vocab_size)?;
        let rows = config.first_position + config.max_position_embeddings;
        let mut positions = table("position", rows)?;
        if config.type_vocab_size > 0 {
            let kinds = table("token_type", config.type_vocab_size)?;
            let of = |kind| positions.broadcast_add(&kinds.get(kind)?);
            positions = match config.type_vocab_size {
                1 => of(0)?,
                _ => Tensor::cat(&[of(0)?, of(1)?], 0)?,
            };
        }
        let distances = match config.distance_steps {
            Some(steps) => {
                let shape = [steps, config.num_attention_heads];
                let weights =
                    loader.weights.get("encoder.relative_attention_bias.weight", &shape)?;
                Some(Distances::new(&weights, config.max_position_embeddings, device)?)
            }
            None => None,
        };
        let no_bias = Tensor::zeros(width, DType::F32, &Device::Cpu)?;
        Ok(Self {
            words: words.to_device(device)?,
            positions: positions.to_device(device)?,
            distances,
            embedding_norm: loader.norm(&no_bias, "embeddings.LayerNorm")?,
            layers: (0..config.num_hidden_layers)
                .map(|i| loader.layer(&format!("{}{i}", loader.weights.names().layers)))
                .collect::<std::result::Result<_, _>>()?,
        })
    }

    /// The last hidden states, (tokens, width).
    pub(crate) fn forward(
        &self,
        (ids, positions): (&Tensor, &Tensor),
        layout: &Layout,
        config: &BertConfig,
    ) -> Result<Tensor> {
        let heads = Heads::of(config);
        let words = self.words.index_select(ids, 0)?;
        let positions = self.positions.index_select(positions, 0)?;
        let grid = match (&self.distances, layout) {
            (Some(distances), Layout::Padded { positions, .. }) => Some(distances.grid(positions)?),
            _ => None,
        };
        let scope = Scope { window: None, distances: self.distances.as_ref() };
        let mut x = self.embedding_norm.add_forward(words, &positions)?;
        for layer in &self.layers {
            let qkv = x.matmul(&layer.qkv.weight)?;
            let input = Attention { qkv: &qkv, bias: &layer.qkv.bias, heads, rotary: None };
            let a = match layout {
                Layout::Ragged(sequences) => ops::attention_ragged(input, scope, sequences)?,
                Layout::Padded { mask, .. } => ops::attention_padded(input, mask, grid.as_ref())?,
            };
            let a = layer.attention_norm.add_forward(a.matmul(&layer.attention)?, &x)?;
            let up = a.matmul(&layer.up.weight)?;
            let up = ops::bias_activation(up, &layer.up.bias, config.activation)?;
            x = layer.output_norm.add_forward(up.matmul(&layer.down)?, &a)?;
        }
        Ok(x)
    }
}

/// Brings checked weights onto the device in the form that the forward pass wants.
struct Loader<'a> {
    weights: Weights<'a>,
    config: &'a BertConfig,
    device: &'a Device,
}

impl Loader<'_> {
    fn layer(&self, at: &str) -> std::result::Result<Layer, LoadError> {
        let (width, inner) = (self.config.hidden_size, self.config.intermediate_size);
        // The scale of the scores is folded into the queries; one product makes all three.
        let scale = ((width / self.config.num_attention_heads) as f64).sqrt().recip();
        let names = self.weights.names();
        let dense = |name: &str, from, to| self.dense(&format!("{at}.{name}"), from, to);
        let (qw, qb) = dense(names.query, width, width)?;
        let (kw, kb) = dense(names.key, width, width)?;
        let (vw, vb) = dense(names.value, width, width)?;
        let (ow, ob) = dense(names.attention, width, width)?;
        let (uw, ub) = dense(names.up, width, inner)?;
        let (dw, db) = dense(names.down, inner, width)?;
        Ok(Layer {
            qkv: Dense {
                weight: self.transposed(&Tensor::cat(&[&(qw * scale)?, &kw, &vw], 0)?)?,
                bias: Tensor::cat(&[&(qb * scale)?, &kb, &vb], 0)?.to_device(self.device)?,
            },
            attention: self.transposed(&ow)?,
            attention_norm: self.norm(&ob, &format!("{at}.{}", names.attention_norm))?,
            up: Dense { weight: self.transposed(&uw)?, bias: ub.to_device(self.device)? },
            down: self.transposed(&dw)?,
            output_norm: self.norm(&db, &format!("{at}.{}", names.output_norm))?,
        })
    }

    /// Weight (out, in) and bias (out), still on the host.
    fn dense(
        &self,
        at: &str,
        width_in: usize,
        width_out: usize,
    ) -> std::result::Result<(Tensor, Tensor), LoadError> {
        Ok((
            self.weights.get(&format!("{at}.weight"), &[width_out, width_in])?,
            self.weights.get(&format!("{at}.bias"), &[width_out])?,
        ))
    }

    fn norm(&self, bias: &Tensor, at: &str) -> std::result::Result<Norm, LoadError> {
        let width = self.config.hidden_size;
        let up = |tensor: &Tensor| tensor.to_device(self.device);
        let gamma = self.weights.get(&format!("{at}.weight"), &[width])?;
        let beta = self.weights.get(&format!("{at}.bias"), &[width])?;
        let eps = self.config.layer_norm_eps;
        Ok(Norm::new(&up(bias)?, &up(&gamma)?, &up(&beta)?, eps)?)
    }

    fn transposed(&self, weight: &Tensor) -> Result<Tensor> {
        weight.t()?.contiguous()?.to_device(self.device)
    }
}
