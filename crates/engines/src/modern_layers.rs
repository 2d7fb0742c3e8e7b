//! The layers of a ModernBERT: a normalisation before each block, rotary positions, layers that see a
//! window of the text between those that see all of it, and gates in the feed-forward block.

use candle_core::{DType, Device, Result, Tensor};

use crate::config::BertConfig;
use crate::cpu::Heads;
use crate::error::LoadError;
use crate::layout::Layout;
use crate::modern_config::ModernConfig;
use crate::ops::{self, Attention, Norm, Scope};
use crate::rotary::Rotary;
use crate::weights::Weights;

/// A linear map whose weight was transposed once at load, so that a product need not pack it.
struct Dense {
    /// (in, out).
    weight: Tensor,
    /// (out), if it has one.
    bias: Option<Tensor>,
}

impl Dense {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// A linear map whose bias the kernel after it adds: zeros where there is none.
struct Open {
    weight: Tensor,
    bias: Tensor,
}

/// One layer.
struct Layer {
    attends_to_all: bool,
    /// `None` in the first, whose input the embeddings have normalised.
    attention_norm: Option<Norm>,
    qkv: Open,
    attention: Dense,
    feed_norm: Norm,
    /// What is activated, then the gates.
    up: Open,
    down: Dense,
}

/// The embeddings and layers of a ModernBERT.
pub(crate) struct ModernLayers {
    /// (vocabulary, width).
    words: Tensor,
    embedding_norm: Norm,
    layers: Vec<Layer>,
    final_norm: Norm,
    global: Rotary,
    local: Rotary,
    window: usize,
}

impl ModernLayers {
    /// Loads the weights onto a device.
    pub(crate) fn load(
        weights: Weights<'_>,
        (config, modern): (&BertConfig, &ModernConfig),
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let loader = Loader { weights, config, modern, device };
        let shape = [config.vocab_size, config.hidden_size];
        let words = loader.weights.get("embeddings.tok_embeddings.weight", &shape)?;
        let heads = Heads::of(config);
        let rotary = |theta| Rotary::new(config.max_position_embeddings, heads.size, theta, device);
        Ok(Self {
            words: words.to_device(device)?,
            embedding_norm: loader.norm("embeddings.norm")?,
            layers: modern
                .attends_to_all
                .iter()
                .enumerate()
                .map(|(i, &attends_to_all)| loader.layer(i, attends_to_all))
                .collect::<std::result::Result<_, _>>()?,
            final_norm: loader.norm("final_norm")?,
            global: rotary(modern.global_theta)?,
            local: rotary(modern.local_theta)?,
            window: modern.window,
        })
    }

    /// The last hidden states, (tokens, width).
    pub(crate) fn forward(
        &self,
        ids: &Tensor,
        layout: &Layout,
        config: &BertConfig,
    ) -> Result<Tensor> {
        let heads = Heads::of(config);
        let windowed = match layout {
            Layout::Padded { mask, positions } => {
                Some(ops::windowed(mask, positions, self.window)?)
            }
            Layout::Ragged(_) => None,
        };
        let mut x = self.embedding_norm.forward(&self.words.index_select(ids, 0)?)?;
        for layer in &self.layers {
            let normed = layer.attention_norm.as_ref().map(|norm| norm.forward(&x)).transpose()?;
            let qkv = normed.as_ref().unwrap_or(&x).matmul(&layer.qkv.weight)?;
            let (rotary, window) = match layer.attends_to_all {
                true => (&self.global, None),
                false => (&self.local, Some(self.window)),
            };
            let rotary = Some(rotary);
            let input = Attention { qkv: &qkv, bias: &layer.qkv.bias, heads, rotary };
            let a = match layout {
                Layout::Ragged(sequences) => {
                    let scope = Scope { window, distances: None };
                    ops::attention_ragged(input, scope, sequences)?
                }
                Layout::Padded { mask, .. } => {
                    let seen = window.and(windowed.as_ref()).unwrap_or(mask);
                    ops::attention_padded(input, seen, None)?
                }
            };
            x = ops::add(x, &layer.attention.forward(&a)?)?;
            let up = layer.feed_norm.forward(&x)?.matmul(&layer.up.weight)?;
            let gated = ops::gated(&up, &layer.up.bias, config.activation)?;
            x = ops::add(x, &layer.down.forward(&gated)?)?;
        }
        self.final_norm.forward(&x)
    }
}

/// Brings checked weights onto the device in the form that the forward pass wants.
struct Loader<'a> {
    weights: Weights<'a>,
    config: &'a BertConfig,
    modern: &'a ModernConfig,
    device: &'a Device,
}

impl Loader<'_> {
    fn layer(&self, index: usize, attends_to_all: bool) -> std::result::Result<Layer, LoadError> {
        let (width, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let (with_attention, with_mlp) = (self.modern.attention_bias, self.modern.mlp_bias);
        let at = |name: &str| format!("{}{index}.{name}", self.weights.names().layers);
        let (qkv, qkv_bias) = self.dense(&at("attn.Wqkv"), (width, 3 * width), with_attention)?;
        let (up, up_bias) = self.dense(&at("mlp.Wi"), (width, 2 * inner), with_mlp)?;
        // The scale of the scores is folded into the queries.
        let scale = (Heads::of(self.config).size as f64).sqrt().recip();
        let scaled = |all: &Tensor| {
            let (queries, rest) = (all.narrow(0, 0, width)?, all.narrow(0, width, 2 * width)?);
            Tensor::cat(&[&(queries * scale)?, &rest], 0)
        };
        let zeros = |count: usize| Tensor::zeros(count, DType::F32, &Device::Cpu);
        let qkv_bias = qkv_bias.map_or_else(|| zeros(3 * width), |bias| scaled(&bias))?;
        let up_bias = up_bias.map_or_else(|| zeros(2 * inner), Ok)?;
        Ok(Layer {
            attends_to_all,
            attention_norm: match index {
                0 => None,
                _ => Some(self.norm(&at("attn_norm"))?),
            },
            qkv: self.open(&scaled(&qkv)?, &qkv_bias)?,
            attention: self.closed(&at("attn.Wo"), (width, width), with_attention)?,
            feed_norm: self.norm(&at("mlp_norm"))?,
            up: self.open(&up, &up_bias)?,
            down: self.closed(&at("mlp.Wo"), (inner, width), with_mlp)?,
        })
    }

    /// Weight (out, in) and bias (out), still on the host.
    fn dense(
        &self,
        at: &str,
        (from, to): (usize, usize),
        has_bias: bool,
    ) -> std::result::Result<(Tensor, Option<Tensor>), LoadError> {
        let weight = self.weights.get(&format!("{at}.weight"), &[to, from])?;
        let bias = || self.weights.get(&format!("{at}.bias"), &[to]);
        Ok((weight, has_bias.then(bias).transpose()?))
    }

    fn open(&self, weight: &Tensor, bias: &Tensor) -> Result<Open> {
        Ok(Open { weight: self.transposed(weight)?, bias: bias.to_device(self.device)? })
    }

    fn closed(
        &self,
        at: &str,
        widths: (usize, usize),
        has_bias: bool,
    ) -> std::result::Result<Dense, LoadError> {
        let (weight, bias) = self.dense(at, widths, has_bias)?;
        let bias = bias.map(|bias| bias.to_device(self.device)).transpose()?;
        Ok(Dense { weight: self.transposed(&weight)?, bias })
    }

    fn norm(&self, at: &str) -> std::result::Result<Norm, LoadError> {
        let width = self.config.hidden_size;
        let gamma = self.weights.get(&format!("{at}.weight"), &[width])?;
        let zeros = Tensor::zeros(width, DType::F32, &Device::Cpu)?;
        let beta = match self.modern.norm_bias {
            true => self.weights.get(&format!("{at}.bias"), &[width])?,
            false => zeros.clone(),
        };
        let up = |tensor: &Tensor| tensor.to_device(self.device);
        Ok(Norm::new(&up(&zeros)?, &up(&gamma)?, &up(&beta)?, self.config.layer_norm_eps)?)
    }

    fn transposed(&self, weight: &Tensor) -> Result<Tensor> {
        weight.t()?.contiguous()?.to_device(self.device)
    }
}
