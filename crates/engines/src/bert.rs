//! The forward pass of a BERT encoder with pooling.
//!
//! Two layouts of the same tokens. *Ragged* (CPU): real tokens only, one after the other; nothing
//! is ever padded. *Padded* (any device): rows of equal length with a mask. Products, activations
//! and normalisations work on (tokens, width) in both; attention and pooling differ.

use candle_core::{DType, Device, Result, Storage, Tensor};

use crate::bucket::Shape;
use crate::config::BertConfig;
use crate::cpu::{self, Heads, Sequence};
use crate::error::LoadError;
use crate::model_dir::ModelDir;
use crate::ops::{self, Norm};
use crate::pass::Passes;
use crate::sentence_settings::Pooling;
use crate::weights::Weights;

/// Tokens that the ragged layout computes at a time: their activations stay in the cache, and the
/// products are already as fast as they get.
const TOKENS_AT_A_TIME: usize = 1024;

/// Added to the scores of padding: e to this power is zero.
const MASKED: f32 = -1e30;

/// A linear map whose weight was transposed once at load, so that a product need not pack it.
struct Dense {
    /// (in, out).
    weight: Tensor,
    /// (out).
    bias: Tensor,
}

/// One encoder layer. The biases of `attention` and `down` are in the norm that follows.
struct Layer {
    qkv: Dense,
    attention: Tensor,
    attention_norm: Norm,
    up: Dense,
    down: Tensor,
    output_norm: Norm,
}

/// How the tokens of a pass lie.
enum Layout {
    Ragged(Vec<Sequence>),
    /// (rows, 1, 1, length): see [`ops::attention_padded`].
    Padded(Tensor),
}

/// A BERT encoder on a device, with pooling and normalisation.
pub struct Bert {
    config: BertConfig,
    pooling: Pooling,
    normalise: bool,
    device: Device,
    /// (vocabulary, width).
    words: Tensor,
    /// (positions, width), the vector of the first segment kind added.
    positions: Tensor,
    embedding_norm: Norm,
    layers: Vec<Layer>,
    passes: Passes<Shape>,
}

/// What [`pack`] writes for each token.
const PARTS: usize = 4;

/// Writes what a pass is given, all ids, then all positions, then the mask, then the weights of the
/// pooling: everything goes up at once, so all are floats, which hold integers up to 2^24.
fn pack(
    texts: &[&[u32]],
    Shape { rows, length }: Shape,
    (padding, pooling): (u32, Pooling),
    numbers: &mut [f32],
) {
    let (ids, rest) = numbers.split_at_mut(rows * length);
    let (positions, rest) = rest.split_at_mut(rows * length);
    let (mask, weights) = rest.split_at_mut(rows * length);
    ids.fill(padding as f32);
    mask.fill(MASKED);
    weights.fill(0.0);
    for row in positions.chunks_exact_mut(length) {
        row.iter_mut().enumerate().for_each(|(at, position)| *position = at as f32);
    }
    for (row, text) in texts.iter().enumerate() {
        let real = row * length..row * length + text.len();
        ids[real.clone()].iter_mut().zip(*text).for_each(|(place, &id)| *place = id as f32);
        mask[real.clone()].fill(0.0);
        match pooling {
            Pooling::Mean => weights[real].fill(1.0 / text.len() as f32),
            Pooling::First => weights[real.start] = 1.0,
            Pooling::Last => weights[real.end - 1] = 1.0,
        }
    }
}

impl Bert {
    /// Loads the weights of a model directory onto a device.
    ///
    /// # Errors
    /// [`LoadError`] when `model.safetensors` is missing, damaged or of another model than `config`,
    /// or the device has no room.
    pub fn load(
        dir: &ModelDir,
        config: BertConfig,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let weights = Weights::open(dir)?;
        let layers = weights.layers();
        if layers > config.num_hidden_layers {
            return Err(LoadError::damaged(
                dir.file("config.json"),
                &format_args!(
                    "num_hidden_layers is {}, and model.safetensors has {layers} layers",
                    config.num_hidden_layers
                ),
            ));
        }
        let loader = Loader { weights, config: &config, device };
        let width = config.hidden_size;
        let table = |name: &str, rows| {
            loader.weights.get(&format!("embeddings.{name}_embeddings.weight"), &[rows, width])
        };
        let words = table("word", config.vocab_size)?;
        let kinds = table("token_type", config.type_vocab_size)?;
        let positions = table("position", config.max_position_embeddings)?;
        let no_bias = Tensor::zeros(width, DType::F32, &Device::Cpu)?;
        Ok(Self {
            words: words.to_device(device)?,
            positions: positions.broadcast_add(&kinds.get(0)?)?.to_device(device)?,
            embedding_norm: loader.norm(&no_bias, "embeddings.LayerNorm")?,
            layers: (0..config.num_hidden_layers)
                .map(|i| loader.layer(&format!("encoder.layer.{i}")))
                .collect::<std::result::Result<_, _>>()?,
            passes: Passes::new(device),
            device: device.clone(),
            pooling: Pooling::Mean,
            normalise: true,
            config,
        })
    }

    /// Sets how a text's vector is made, and whether it is scaled to length 1; the mean, scaled,
    /// unless it is set.
    #[must_use]
    pub fn pooled(self, pooling: Pooling, normalise: bool) -> Self {
        Self { pooling, normalise, ..self }
    }

    /// On CUDA, launches each operation of each batch: slower, and takes less memory.
    #[must_use]
    pub fn without_graphs(self) -> Self {
        Self { passes: self.passes.without_graphs(), ..self }
    }

    /// The sizes that it was built from.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Embeds texts without padding; for the CPU.
    ///
    /// Each text is its token ids; each result is a vector of `hidden_size`.
    ///
    /// # Errors
    /// candle's, among them a token outside the vocabulary, a text longer than
    /// `max_position_embeddings`, and a device other than the CPU.
    pub fn embed_ragged(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let mut embeddings = Vec::with_capacity(texts.len());
        let mut rest = texts;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fit = rest.iter().take_while(|text| {
                tokens += text.len();
                tokens <= TOKENS_AT_A_TIME
            });
            let (now, later) = rest.split_at(fit.count().max(1));
            embeddings.extend(self.embed_ragged_once(now)?);
            rest = later;
        }
        Ok(embeddings)
    }

    fn embed_ragged_once(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let ids = texts.concat();
        let positions: Vec<u32> = texts.iter().flat_map(|text| (0..).take(text.len())).collect();
        let mut start = 0;
        let sequences: Vec<Sequence> = texts
            .iter()
            .map(|text| {
                let sequence = Sequence { start, length: text.len() };
                start += text.len();
                sequence
            })
            .collect();
        let layout = Layout::Ragged(sequences);
        let up = |numbers: Vec<u32>| Tensor::new(numbers, &self.device);
        let x = self.encode(&up(ids)?, &up(positions)?, &layout)?;
        let (Layout::Ragged(sequences), (storage, _)) = (layout, x.storage_and_layout()) else {
            candle_core::bail!("the layout is ragged");
        };
        match &*storage {
            Storage::Cpu(storage) => {
                let x = storage.as_slice::<f32>()?;
                let width = self.config.hidden_size;
                Ok(cpu::pool(x, width, &sequences, self.pooling, self.normalise))
            }
            _ => candle_core::bail!("a ragged batch runs on the cpu only"),
        }
    }

    /// Embeds texts as rows of one padded shape; for any device.
    ///
    /// Rows without a text are computed and thrown away. The results are host data; reading them
    /// back waits for the device.
    ///
    /// # Errors
    /// candle's, among them out of memory, a token outside the vocabulary, and more or longer texts
    /// than the shape holds.
    pub fn embed_padded(&self, texts: &[&[u32]], shape: Shape) -> Result<Vec<Vec<f32>>> {
        let Shape { rows, length } = shape;
        if texts.len() > rows || texts.iter().any(|text| text.len() > length) {
            candle_core::bail!("{} texts do not fit into {rows} rows of {length}", texts.len());
        }
        let width = self.config.hidden_size;
        self.passes.run(
            shape,
            PARTS * shape.tokens(),
            |numbers| pack(texts, shape, (self.config.pad_token_id, self.pooling), numbers),
            |numbers| self.embed_packed(&numbers, shape),
            |y| {
                let mut embeddings: Vec<Vec<f32>> =
                    y.chunks_exact(width).take(texts.len()).map(<[f32]>::to_vec).collect();
                if self.normalise {
                    embeddings.iter_mut().for_each(|embedding| cpu::normalise(embedding));
                }
                embeddings
            },
        )
    }

    /// The pooled hidden states of each row, (rows, 1, width), from what [`pack`] wrote.
    fn embed_packed(&self, numbers: &Tensor, shape: Shape) -> Result<Tensor> {
        let Shape { rows, length } = shape;
        let part = |i| numbers.narrow(0, i * shape.tokens(), shape.tokens());
        let (ids, positions) = (part(0)?.to_dtype(DType::U32)?, part(1)?.to_dtype(DType::U32)?);
        let mask = part(2)?.reshape((rows, 1, 1, length))?;
        let weights = part(3)?.reshape((rows, 1, length))?;
        let x = self.encode(&ids, &positions, &Layout::Padded(mask))?;
        weights.matmul(&x.reshape((rows, length, self.config.hidden_size))?)
    }

    /// The last hidden states, (tokens, width).
    fn encode(&self, ids: &Tensor, positions: &Tensor, layout: &Layout) -> Result<Tensor> {
        let heads = Heads {
            count: self.config.num_attention_heads,
            size: self.config.hidden_size / self.config.num_attention_heads,
        };
        let words = self.words.index_select(ids, 0)?;
        let positions = self.positions.index_select(positions, 0)?;
        let mut x = self.embedding_norm.add_forward(words, &positions)?;
        for layer in &self.layers {
            let qkv = x.matmul(&layer.qkv.weight)?;
            let a = match layout {
                Layout::Ragged(sequences) => {
                    ops::attention_ragged(&qkv, &layer.qkv.bias, sequences, heads)?
                }
                Layout::Padded(mask) => ops::attention_padded(&qkv, &layer.qkv.bias, mask, heads)?,
            };
            let a = layer.attention_norm.add_forward(a.matmul(&layer.attention)?, &x)?;
            let up = a.matmul(&layer.up.weight)?;
            let up = ops::bias_activation(up, &layer.up.bias, self.config.activation)?;
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
        let (qw, qb) = self.dense(&format!("{at}.attention.self.query"), width, width)?;
        let (kw, kb) = self.dense(&format!("{at}.attention.self.key"), width, width)?;
        let (vw, vb) = self.dense(&format!("{at}.attention.self.value"), width, width)?;
        let (ow, ob) = self.dense(&format!("{at}.attention.output.dense"), width, width)?;
        let (uw, ub) = self.dense(&format!("{at}.intermediate.dense"), width, inner)?;
        let (dw, db) = self.dense(&format!("{at}.output.dense"), inner, width)?;
        Ok(Layer {
            qkv: Dense {
                weight: self.transposed(&Tensor::cat(&[&(qw * scale)?, &kw, &vw], 0)?)?,
                bias: Tensor::cat(&[&(qb * scale)?, &kb, &vb], 0)?.to_device(self.device)?,
            },
            attention: self.transposed(&ow)?,
            attention_norm: self.norm(&ob, &format!("{at}.attention.output.LayerNorm"))?,
            up: Dense { weight: self.transposed(&uw)?, bias: ub.to_device(self.device)? },
            down: self.transposed(&dw)?,
            output_norm: self.norm(&db, &format!("{at}.output.LayerNorm"))?,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_pass_before_is_left() {
        let shape = Shape { rows: 3, length: 4 };
        let packed = |pooling, texts: &[&[u32]], before: f32| {
            let mut numbers = vec![before; PARTS * shape.tokens()];
            pack(texts, shape, (9, pooling), &mut numbers);
            numbers
        };
        let texts: [&[u32]; 2] = [&[5, 6, 7], &[8]];
        let numbers = packed(Pooling::Mean, &texts, f32::NAN);
        assert_eq!(numbers, packed(Pooling::Mean, &texts, 0.0));
        let [ids, positions, mask, mean] = [0, 1, 2, 3].map(|part| &numbers[part * 12..][..12]);
        assert_eq!(ids, [5., 6., 7., 9., 8., 9., 9., 9., 9., 9., 9., 9.]);
        assert_eq!(positions, [0., 1., 2., 3.].repeat(3));
        let (no, third) = (MASKED, 1.0 / 3.0);
        assert_eq!(mask, [0., 0., 0., no, 0., no, no, no, no, no, no, no]);
        assert_eq!(mean, [third, third, third, 0., 1., 0., 0., 0., 0., 0., 0., 0.]);
        let weights = |pooling| packed(pooling, &texts, f32::NAN)[36..].to_vec();
        assert_eq!(weights(Pooling::First), [1., 0., 0., 0., 1., 0., 0., 0., 0., 0., 0., 0.]);
        assert_eq!(weights(Pooling::Last), [0., 0., 1., 0., 1., 0., 0., 0., 0., 0., 0., 0.]);
    }
}
