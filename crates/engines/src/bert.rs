//! The forward pass of a BERT encoder, or of one like it, with pooling.
//!
//! Two layouts of the same tokens. *Ragged* (CPU): real tokens only, one after the other; nothing
//! is ever padded. *Padded* (any device): rows of equal length with a mask. Products, activations
//! and normalisations work on (tokens, width) in both; attention and pooling differ.

use candle_core::{DType, Device, Result, Storage, Tensor};

use crate::config::BertConfig;
use crate::cpu::{self, Heads, Sequence};
use crate::distances::Distances;
use crate::error::LoadError;
use crate::model_dir::ModelDir;
use crate::ops::{self, Attention, Norm};
use crate::pass::Passes;
use crate::sentence_settings::Pooling;
use crate::weights::Weights;
use onelane_tokeniser::Shape;
use onelane_tokeniser::TokenisedText;

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
    /// (kinds * positions, width): those of the first segment kind, then those of the second.
    positions: Tensor,
    distances: Option<Distances>,
    embedding_norm: Norm,
    layers: Vec<Layer>,
    passes: Passes<Shape>,
}

/// What [`pack`] writes for each token.
const PARTS: usize = 4;

/// Writes what a pass is given, all ids, then all positions, then the mask, then the weights of the
/// pooling: everything goes up at once, so all are floats, which hold integers up to 2^24.
fn pack(
    texts: &[TokenisedText],
    Shape { rows, length }: Shape,
    (config, pooling): (&BertConfig, Pooling),
    numbers: &mut [f32],
) {
    let (ids, rest) = numbers.split_at_mut(rows * length);
    let (positions, rest) = rest.split_at_mut(rows * length);
    let (mask, weights) = rest.split_at_mut(rows * length);
    ids.fill(config.pad_token_id as f32);
    mask.fill(MASKED);
    weights.fill(0.0);
    for row in positions.chunks_exact_mut(length) {
        let all = (config.first_position..).map(|position| position as f32);
        row.iter_mut().zip(all).for_each(|(to, position)| *to = position);
    }
    for (row, text) in texts.iter().enumerate() {
        let real = row * length..row * length + text.ids().len();
        ids[real.clone()].iter_mut().zip(text.ids()).for_each(|(to, &id)| *to = id as f32);
        let of_text = positions_of(text, config).map(|position| position as f32);
        positions[real.clone()].iter_mut().zip(of_text).for_each(|(to, position)| *to = position);
        mask[real.clone()].fill(0.0);
        match pooling {
            Pooling::Mean => weights[real].fill(1.0 / text.ids().len() as f32),
            Pooling::First => weights[real.start] = 1.0,
            Pooling::Last => weights[real.end - 1] = 1.0,
        }
    }
}

/// The row of each token in [`Bert`]'s table of positions.
fn positions_of(text: &TokenisedText, config: &BertConfig) -> impl Iterator<Item = u32> {
    let (first, second) = (config.first_position as u32, text.second() as u32);
    let table = first + config.max_position_embeddings as u32;
    (0..text.ids().len() as u32).map(move |at| first + at + if at < second { 0 } else { table })
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
        let weights = Weights::open(dir, config.family.names())?;
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
    /// Each result is a vector of `hidden_size`.
    ///
    /// # Errors
    /// candle's, among them a token outside the vocabulary, a text longer than
    /// `max_position_embeddings`, and a device other than the CPU.
    pub fn embed_ragged(&self, texts: &[TokenisedText]) -> Result<Vec<Vec<f32>>> {
        let mut embeddings = Vec::with_capacity(texts.len());
        let mut rest = texts;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fit = rest.iter().take_while(|text| {
                tokens += text.ids().len();
                tokens <= TOKENS_AT_A_TIME
            });
            let (now, later) = rest.split_at(fit.count().max(1));
            embeddings.extend(self.embed_ragged_once(now)?);
            rest = later;
        }
        Ok(embeddings)
    }

    fn embed_ragged_once(&self, texts: &[TokenisedText]) -> Result<Vec<Vec<f32>>> {
        let ids: Vec<u32> = texts.iter().flat_map(TokenisedText::ids).copied().collect();
        let positions = texts.iter().flat_map(|text| positions_of(text, &self.config)).collect();
        let mut start = 0;
        let sequences: Vec<Sequence> = texts
            .iter()
            .map(|text| {
                let sequence = Sequence { start, length: text.ids().len() };
                start += sequence.length;
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
    pub fn embed_padded(&self, texts: &[TokenisedText], shape: Shape) -> Result<Vec<Vec<f32>>> {
        let Shape { rows, length } = shape;
        if texts.len() > rows || texts.iter().any(|text| text.ids().len() > length) {
            candle_core::bail!("{} texts do not fit into {rows} rows of {length}", texts.len());
        }
        let width = self.config.hidden_size;
        self.passes.run(
            shape,
            PARTS * shape.tokens(),
            |numbers| pack(texts, shape, (&self.config, self.pooling), numbers),
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
            let distances = self.distances.as_ref();
            let input = Attention { qkv: &qkv, bias: &layer.qkv.bias, heads, distances };
            let a = match layout {
                Layout::Ragged(sequences) => ops::attention_ragged(input, sequences)?,
                Layout::Padded(mask) => ops::attention_padded(input, mask)?,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> BertConfig {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("tokenizer.json", ""),
            ("model.safetensors", ""),
            (
                "config.json",
                r#"{"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 10,
                    "max_position_embeddings": 20, "hidden_act": "gelu", "pad_token_id": 9}"#,
            ),
        ] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        BertConfig::read(&ModelDir::open(dir.path()).unwrap()).unwrap()
    }

    #[test]
    fn nothing_of_the_pass_before_is_left() {
        let shape = Shape { rows: 3, length: 4 };
        let config = config();
        let packed = |pooling, texts: &[TokenisedText], before: f32| {
            let mut numbers = vec![before; PARTS * shape.tokens()];
            pack(texts, shape, (&config, pooling), &mut numbers);
            numbers
        };
        let text = |ids: &[u32], second| TokenisedText::new(ids, 4).with_second(second);
        let texts = [text(&[5, 6, 7], 2), text(&[8], 1)];
        let numbers = packed(Pooling::Mean, &texts, f32::NAN);
        assert_eq!(numbers, packed(Pooling::Mean, &texts, 0.0));
        let [ids, positions, mask, mean] = [0, 1, 2, 3].map(|part| &numbers[part * 12..][..12]);
        assert_eq!(ids, [5., 6., 7., 9., 8., 9., 9., 9., 9., 9., 9., 9.]);
        // The third token is of the second segment kind, whose positions follow the 20 of the first.
        assert_eq!(positions, [0., 1., 22., 3., 0., 1., 2., 3., 0., 1., 2., 3.]);
        let (no, third) = (MASKED, 1.0 / 3.0);
        assert_eq!(mask, [0., 0., 0., no, 0., no, no, no, no, no, no, no]);
        assert_eq!(mean, [third, third, third, 0., 1., 0., 0., 0., 0., 0., 0., 0.]);
        let weights = |pooling| packed(pooling, &texts, f32::NAN)[36..].to_vec();
        assert_eq!(weights(Pooling::First), [1., 0., 0., 0., 1., 0., 0., 0., 0., 0., 0., 0.]);
        assert_eq!(weights(Pooling::Last), [0., 0., 1., 0., 1., 0., 0., 0., 0., 0., 0., 0.]);
    }
}
