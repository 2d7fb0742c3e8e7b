//! An encoder on a device: BERT, or one like it, with pooling.
//!
//! Two layouts of the same tokens. *Ragged* (CPU): real tokens only, one after the other; nothing
//! is ever padded. *Padded* (any device): rows of equal length with a mask. Products, activations
//! and normalisations work on (tokens, width) in both; attention and pooling differ. What the layers
//! are is in [`BertLayers`] and [`ModernLayers`].

use candle_core::{DType, Device, Result, Storage, Tensor};

use crate::bert_layers::BertLayers;
use crate::config::BertConfig;
use crate::cpu::{self, Sequence};
use crate::error::LoadError;
use crate::layout::Layout;
use crate::model_dir::ModelDir;
use crate::modern_layers::ModernLayers;
use crate::ops::MASKED;
use crate::pass::Passes;
use crate::sentence_settings::Pooling;
use crate::weights::Weights;
use onelane_tokeniser::Shape;
use onelane_tokeniser::TokenisedText;

/// Tokens that the ragged layout computes at a time: their activations stay in the cache, and the
/// products are already as fast as they get.
const TOKENS_AT_A_TIME: usize = 1024;

/// The layers of an encoder, by what they are like.
enum Layers {
    Bert(BertLayers),
    Modern(ModernLayers),
}

/// An encoder on a device, with pooling and normalisation.
pub struct Bert {
    config: BertConfig,
    pooling: Pooling,
    normalise: bool,
    device: Device,
    layers: Layers,
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
        let layers = match &config.modern {
            Some(modern) => Layers::Modern(ModernLayers::load(weights, (&config, modern), device)?),
            None => Layers::Bert(BertLayers::load(weights, &config, device)?),
        };
        Ok(Self {
            layers,
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
        let width = self.config.hidden_size;
        self.ragged(texts, |x, sequences| {
            cpu::pool(x, width, sequences, self.pooling, self.normalise)
        })
    }

    /// The last hidden states of texts, without padding; for the CPU.
    ///
    /// Each result has a vector of `hidden_size` for each token of its text, one after the other,
    /// neither pooled nor scaled.
    ///
    /// # Errors
    /// As [`embed_ragged`](Self::embed_ragged).
    pub fn tokens_ragged(&self, texts: &[TokenisedText]) -> Result<Vec<Vec<f32>>> {
        let width = self.config.hidden_size;
        self.ragged(texts, |x, sequences| {
            let of = |one: &Sequence| x[one.start * width..][..one.length * width].to_vec();
            sequences.iter().map(of).collect()
        })
    }

    /// What `read` makes of the hidden states (tokens, width) of some texts at a time.
    fn ragged(
        &self,
        texts: &[TokenisedText],
        read: impl Fn(&[f32], &[Sequence]) -> Vec<Vec<f32>>,
    ) -> Result<Vec<Vec<f32>>> {
        self.check_lengths(texts)?;
        let mut answers = Vec::with_capacity(texts.len());
        let mut rest = texts;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fit = rest.iter().take_while(|text| {
                tokens += text.ids().len();
                tokens <= TOKENS_AT_A_TIME
            });
            let (now, later) = rest.split_at(fit.count().max(1));
            answers.extend(self.ragged_once(now, &read)?);
            rest = later;
        }
        Ok(answers)
    }

    fn ragged_once(
        &self,
        texts: &[TokenisedText],
        read: impl Fn(&[f32], &[Sequence]) -> Vec<Vec<f32>>,
    ) -> Result<Vec<Vec<f32>>> {
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
            Storage::Cpu(storage) => Ok(read(storage.as_slice::<f32>()?, &sequences)),
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
        self.check_fit(texts, shape)?;
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

    /// The last hidden states of texts, as [`tokens_ragged`](Self::tokens_ragged) gives them, in
    /// rows of one padded shape; for any device.
    ///
    /// # Errors
    /// As [`embed_padded`](Self::embed_padded).
    pub fn tokens_padded(&self, texts: &[TokenisedText], shape: Shape) -> Result<Vec<Vec<f32>>> {
        self.check_fit(texts, shape)?;
        let width = self.config.hidden_size;
        // Not recorded: what comes back is large, and a record would keep room for it.
        self.passes.run_once(
            PARTS * shape.tokens(),
            |numbers| pack(texts, shape, (&self.config, self.pooling), numbers),
            |numbers| self.encode_packed(&numbers, shape),
            |y| {
                let rows = y.chunks_exact(shape.length * width).zip(texts);
                rows.map(|(row, text)| row[..text.ids().len() * width].to_vec()).collect()
            },
        )
    }

    /// The pooled hidden states of each row, (rows, 1, width), from what [`pack`] wrote.
    fn embed_packed(&self, numbers: &Tensor, shape: Shape) -> Result<Tensor> {
        let Shape { rows, length } = shape;
        let weights = part(numbers, 3, shape)?.reshape((rows, 1, length))?;
        let x = self.encode_packed(numbers, shape)?;
        weights.matmul(&x.reshape((rows, length, self.config.hidden_size))?)
    }

    /// The hidden states of each row, (rows * length, width), from what [`pack`] wrote.
    fn encode_packed(&self, numbers: &Tensor, shape: Shape) -> Result<Tensor> {
        let Shape { rows, length } = shape;
        let (ids, positions) = (part(numbers, 0, shape)?, part(numbers, 1, shape)?);
        let layout = Layout::Padded {
            mask: part(numbers, 2, shape)?.reshape((rows, 1, 1, length))?,
            positions: positions.narrow(0, 0, length)?,
        };
        self.encode(&ids.to_dtype(DType::U32)?, &positions.to_dtype(DType::U32)?, &layout)
    }

    /// The last hidden states, (tokens, width).
    fn encode(&self, ids: &Tensor, positions: &Tensor, layout: &Layout) -> Result<Tensor> {
        match &self.layers {
            Layers::Bert(layers) => layers.forward((ids, positions), layout, &self.config),
            Layers::Modern(layers) => layers.forward(ids, layout, &self.config),
        }
    }

    fn check_lengths(&self, texts: &[TokenisedText]) -> Result<()> {
        let most = self.config.max_position_embeddings;
        match texts.iter().map(|text| text.ids().len()).find(|&length| length > most) {
            Some(length) => candle_core::bail!("a text of {length} tokens is longer than {most}"),
            None => Ok(()),
        }
    }

    fn check_fit(&self, texts: &[TokenisedText], shape: Shape) -> Result<()> {
        self.check_lengths(texts)?;
        let Shape { rows, length } = shape;
        if texts.len() > rows || texts.iter().any(|text| text.ids().len() > length) {
            candle_core::bail!("{} texts do not fit into {rows} rows of {length}", texts.len());
        }
        Ok(())
    }
}

/// One of the parts that [`pack`] wrote.
fn part(numbers: &Tensor, index: usize, shape: Shape) -> Result<Tensor> {
    numbers.narrow(0, index * shape.tokens(), shape.tokens())
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
