//! The texts of the embedding workload: a file's lines, built-in sentences, or made to a length.

use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, ensure};
use onelane::EngineError;
use onelane_engines::{EmbeddingConfig, EmbeddingEngine, EmbeddingModel, TokenisedText};

use super::workload::{Workload, close};

/// Sentences of different lengths, for a run without a file.
const SENTENCES: [&str; 16] = [
    "The ferry leaves at nine.",
    "Rain is expected in the north tomorrow, with wind from the west.",
    "How do I reset the password of an account that I have not used for a year?",
    "The committee met on Tuesday and put off its decision.",
    "A lighthouse keeper writes down the weather every six hours.",
    "Add the flour slowly, stir, and let the dough rest for an hour in a warm place.",
    "Invoice overdue.",
    "The bridge was closed to lorries after cracks were found in two of its piers.",
    "Which of the two plans covers damage to the roof?",
    "She learned to play the cello at forty and joined an orchestra three years later.",
    "The router drops its connection whenever the microwave oven is running.",
    "Please send the signed form back within ten days, together with a copy of your passport.",
    "Whales were seen close to the shore again this spring.",
    "The museum has bought a map from the sixteenth century that shows an island nobody has found.",
    "No.",
    "Prices of copper fell for the third month in a row, which surprised most traders.",
];

/// How many tokens texts have, from the least to the most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lengths(RangeInclusive<usize>);

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no range of lengths: use for example 8-400");
        let (least, most) = text.split_once('-').ok_or_else(wrong)?;
        let least: usize = least.trim().parse().map_err(|_| wrong())?;
        let most: usize = most.trim().parse().map_err(|_| wrong())?;
        if least < 3 || most < least || most > 100_000 {
            return Err(format!(
                "{text:?}: the least length must be 3 or more, and no more than the greatest"
            ));
        }
        Ok(Self(least..=most))
    }
}

/// Where texts come from.
#[derive(Clone, Copy, Debug)]
pub struct TextSource<'a> {
    /// One text a line.
    pub file: Option<&'a Path>,
    /// Texts of these lengths are made of the file's, or the built-in, words.
    pub lengths: Option<&'a Lengths>,
    /// How many texts are made.
    pub count: usize,
}

impl TextSource<'_> {
    /// The texts, as token ids.
    ///
    /// # Errors
    /// When the file cannot be read or holds no text, or a text cannot be tokenised.
    pub fn read(&self, model: &EmbeddingModel) -> anyhow::Result<Vec<TokenisedText>> {
        let lines: Vec<String> = match self.file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
                lines.map(str::to_owned).collect()
            }
            None => SENTENCES.map(str::to_owned).to_vec(),
        };
        let Some(first) = lines.first() else {
            anyhow::bail!("the file of texts holds no text: give one text a line");
        };
        let encode = |text: &str| Ok(model.tokeniser().encode(text)?);
        let Some(Lengths(lengths)) = self.lengths else {
            return lines.iter().cycle().take(self.count).map(|line| encode(line)).collect();
        };
        let words: Vec<&str> = lines.iter().flat_map(|line| line.split_whitespace()).collect();
        ensure!(encode(first)?.ids().len() > 2, "the tokeniser makes nothing of {first:?}");
        let mut dice = fastrand::Rng::with_seed(42);
        // Each octave of lengths is equally likely: short texts are common, long ones are not rare.
        let (least, most) = ((*lengths.start() as f64).ln(), ((*lengths.end() + 1) as f64).ln());
        let mut texts = Vec::new();
        for _ in 0..self.count {
            let length = (least + dice.f64() * (most - least)).exp() as usize;
            let start = dice.usize(0..words.len());
            texts.push(made(
                length.clamp(*lengths.start(), *lengths.end()),
                &words,
                start,
                encode,
            )?);
        }
        Ok(texts)
    }
}

/// A text of about so many tokens: words from `start` on, as many as fit.
fn made(
    length: usize,
    words: &[&str],
    start: usize,
    encode: impl Fn(&str) -> anyhow::Result<TokenisedText>,
) -> anyhow::Result<TokenisedText> {
    let take = |count: usize| {
        let words = words.iter().cycle().skip(start).take(count);
        encode(&words.copied().collect::<Vec<_>>().join(" "))
    };
    // More words make more tokens, up to the model's limit. A word is at least one token, and two
    // tokens belong to no word.
    let (mut fits, mut over) = (1, length);
    while over - fits > 1 {
        let middle = fits.midpoint(over);
        if take(middle)?.ids().len() <= length { fits = middle } else { over = middle }
    }
    take(fits)
}

/// Texts and the model that embeds them.
pub struct Texts {
    model: EmbeddingModel,
    texts: Vec<TokenisedText>,
    engine_bytes: u64,
}

impl Texts {
    /// Opens a model and tokenises the texts.
    ///
    /// # Errors
    /// When the model or the texts cannot be read.
    pub fn open(
        dir: &Path,
        device: onelane_engines::DeviceName,
        source: TextSource<'_>,
        cuda_graphs: bool,
    ) -> anyhow::Result<Self> {
        let config = EmbeddingConfig::default().cuda_graphs(cuda_graphs);
        let model = EmbeddingModel::open(dir, device, config)?;
        let weights = std::fs::metadata(dir.join("model.safetensors"));
        let texts = source.read(&model)?;
        Ok(Self { model, texts, engine_bytes: weights.map_or(0, |file| file.len()) })
    }

    /// Distinct shapes that the device has seen so far.
    pub fn shapes(&self) -> usize {
        self.model.shapes().len()
    }
}

impl Workload for Texts {
    type Item = TokenisedText;
    type Engine = EmbeddingEngine;

    fn load(&self) -> Result<EmbeddingEngine, EngineError> {
        Ok(self.model.load()?)
    }

    fn items(&self) -> &[TokenisedText] {
        &self.texts
    }

    fn same(&self, a: &Vec<f32>, b: &Vec<f32>) -> bool {
        close(a, b)
    }

    fn engine_bytes(&self) -> u64 {
        self.engine_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_parsed() {
        assert_eq!("8-400".parse(), Ok(Lengths(8..=400)));
        assert_eq!("16-16".parse(), Ok(Lengths(16..=16)));
        for wrong in ["", "8", "8-", "-8", "a-b", "400-8", "0-8", "2-9", "8-400-9"] {
            assert!(wrong.parse::<Lengths>().is_err(), "{wrong}");
        }
    }
}
