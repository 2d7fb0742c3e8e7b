//! `config.json` of a BERT, or of an encoder like one: the sizes that the model is built from, checked once.

use serde::Deserialize;

use crate::activation::Activation;
use crate::error::{LoadError, shown};
use crate::family::Family;
use crate::model_dir::ModelDir;
use crate::modern_config::{ModernConfig, Sizes};

/// Name of the file in a model directory.
const FILE: &str = "config.json";

/// Sizes and settings of a BERT encoder, or of one like it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BertConfig {
    /// Which kind of encoder it is.
    pub family: Family,
    /// Width of a token's vector, and of the embedding.
    pub hidden_size: usize,
    /// Number of encoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads; `hidden_size` is a multiple of it.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Number of known tokens.
    pub vocab_size: usize,
    /// Longest sequence in tokens, special tokens included.
    pub max_position_embeddings: usize,
    /// The position of the first token.
    pub first_position: usize,
    /// Number of segment kinds, 0 where there are none; a single text uses the first.
    pub type_vocab_size: usize,
    /// In how many steps attention tells how far apart two tokens are; `None` where it does not.
    pub distance_steps: Option<usize>,
    /// Added to the variance in each layer normalisation.
    pub layer_norm_eps: f64,
    /// Activation of the feed-forward block.
    pub activation: Activation,
    /// The token that fills a sequence up to its bucket's length.
    pub pad_token_id: u32,
    /// What a ModernBERT has beside; `None` in others.
    pub modern: Option<ModernConfig>,
}

/// The file as it is written.
#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "default_types")]
    type_vocab_size: usize,
    #[serde(alias = "norm_eps")]
    layer_norm_eps: Option<f64>,
    #[serde(alias = "activation", alias = "hidden_activation")]
    hidden_act: String,
    position_embedding_type: Option<String>,
    pad_token_id: Option<u32>,
    relative_attention_num_buckets: Option<usize>,
    #[serde(default)]
    is_decoder: bool,
}

fn default_types() -> usize {
    2
}

impl BertConfig {
    /// Reads and checks `config.json` of a model directory.
    ///
    /// # Errors
    /// [`LoadError`] when the file is missing, is not JSON of this form, or asks for something that
    /// this crate does not compute.
    pub fn read(dir: &ModelDir) -> Result<Self, LoadError> {
        let raw: Raw = dir.read_json(FILE)?;
        let unsupported = |setting: &str, found: &str, supported| LoadError::Unsupported {
            path: dir.file(FILE),
            setting: setting.to_owned(),
            found: shown(found),
            supported,
        };
        let kind = raw.model_type.as_deref().unwrap_or("bert");
        let family =
            Family::named(kind).ok_or_else(|| unsupported("model_type", kind, Family::KNOWN))?;
        if let Some(found) = raw.position_embedding_type.as_deref().filter(|&f| f != "absolute") {
            return Err(unsupported("position_embedding_type", found, "absolute"));
        }
        if raw.is_decoder {
            return Err(unsupported("is_decoder", "true", "false"));
        }
        let activation = Activation::named(&raw.hidden_act)
            .ok_or_else(|| unsupported("hidden_act", &raw.hidden_act, Activation::KNOWN))?;
        let pad_token_id = raw.pad_token_id.unwrap_or(family.padding());
        let first_position = family.first_position(pad_token_id);
        let damaged = |reason| LoadError::Damaged { path: dir.file(FILE), reason };
        raw.check(pad_token_id).map_err(damaged)?;
        let max_position_embeddings = match raw.max_position_embeddings.checked_sub(first_position)
        {
            Some(positions) if positions > 0 => positions,
            _ => {
                return Err(damaged(format!(
                    "max_position_embeddings {} leaves no room beside pad_token_id {pad_token_id}",
                    raw.max_position_embeddings
                )));
            }
        };
        let distance_steps = match family {
            Family::Mpnet => Some(raw.relative_attention_num_buckets.unwrap_or(32)),
            _ => None,
        };
        if let Some(steps @ (..4 | 1025..)) = distance_steps {
            return Err(damaged(format!("relative_attention_num_buckets is {steps}")));
        }
        let modern = match family {
            Family::ModernBert => {
                let sizes = Sizes {
                    layers: raw.num_hidden_layers,
                    positions: max_position_embeddings,
                    head_size: raw.hidden_size / raw.num_attention_heads,
                };
                Some(ModernConfig::read(dir, FILE, &sizes)?)
            }
            _ => None,
        };
        Ok(Self {
            family,
            modern,
            first_position,
            distance_steps,
            hidden_size: raw.hidden_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            intermediate_size: raw.intermediate_size,
            vocab_size: raw.vocab_size,
            max_position_embeddings,
            type_vocab_size: if family.has_kinds() { raw.type_vocab_size } else { 0 },
            layer_norm_eps: raw.layer_norm_eps.unwrap_or(family.norm_eps()),
            activation,
            pad_token_id,
        })
    }
}

impl Raw {
    /// Whether the numbers fit together.
    fn check(&self, pad_token_id: u32) -> Result<(), String> {
        for (name, value) in [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ] {
            // The upper bound keeps sizes from overflowing when they are multiplied.
            if value == 0 || value > 1 << 24 {
                return Err(format!("{name} is {value}"));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(format!(
                "hidden_size {} is not a multiple of num_attention_heads {}",
                self.hidden_size, self.num_attention_heads
            ));
        }
        if pad_token_id as usize >= self.vocab_size {
            return Err(format!(
                "pad_token_id {pad_token_id} is outside the vocabulary of {}",
                self.vocab_size
            ));
        }
        if let Some(eps) = self.layer_norm_eps.filter(|eps| !eps.is_finite() || *eps < 0.0) {
            return Err(format!("layer_norm_eps is {eps}"));
        }
        Ok(())
    }
}
