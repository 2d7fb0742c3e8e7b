//! What `config.json` of a ModernBERT says beside the sizes that every encoder has.

use serde::Deserialize;

use crate::activation::Activation;
use crate::error::{LoadError, shown};
use crate::model_dir::ModelDir;
use crate::sentence_settings::Pooling;

/// The most numbers in a table of angles: positions times the width of a head. A model of 8,192
/// positions has 524,288.
const ANGLES: usize = 1 << 24;

/// Settings of a ModernBERT.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModernConfig {
    /// For each layer, whether its tokens attend to all others; else to those near.
    pub attends_to_all: Vec<bool>,
    /// How many tokens away a near one may be, on either side.
    pub window: usize,
    /// Base of the wavelengths of positions, in layers that attend to all.
    pub global_theta: f64,
    /// The same in the other layers.
    pub local_theta: f64,
    /// Whether the products of attention have a bias.
    pub attention_bias: bool,
    /// Whether those of the feed-forward block have one.
    pub mlp_bias: bool,
    /// Whether normalisations have one.
    pub norm_bias: bool,
    /// How the vector that a classifier scores is made.
    pub classifier_pooling: Pooling,
    /// Whether the first product of a classifier has a bias.
    pub classifier_bias: bool,
    /// The non-linearity after it.
    pub classifier_activation: Activation,
}

/// The file as it is written: by transformers 4, or by 5, which names the kind of each layer and keeps
/// what belongs to a kind together.
#[derive(Deserialize)]
struct Raw {
    layer_types: Option<Vec<String>>,
    #[serde(default = "three")]
    global_attn_every_n_layers: usize,
    #[serde(default = "default_window")]
    local_attention: usize,
    #[serde(default = "default_global")]
    global_rope_theta: f64,
    #[serde(default = "default_local")]
    local_rope_theta: f64,
    #[serde(default)]
    rope_parameters: Option<RopeByKind>,
    #[serde(default)]
    rope_scaling: Option<serde_json::Value>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default = "default_pooling")]
    classifier_pooling: String,
    #[serde(default)]
    classifier_bias: bool,
    #[serde(default = "default_activation")]
    classifier_activation: String,
}

#[derive(Deserialize)]
struct RopeByKind {
    full_attention: Option<Rope>,
    sliding_attention: Option<Rope>,
}

#[derive(Deserialize)]
struct Rope {
    rope_type: Option<String>,
    rope_theta: Option<f64>,
}

fn three() -> usize {
    3
}

fn default_window() -> usize {
    128
}

fn default_global() -> f64 {
    160_000.0
}

fn default_local() -> f64 {
    10_000.0
}

fn default_pooling() -> String {
    "cls".to_owned()
}

fn default_activation() -> String {
    "gelu".to_owned()
}

/// The sizes that the settings must fit.
pub(crate) struct Sizes {
    pub layers: usize,
    pub positions: usize,
    pub head_size: usize,
}

impl ModernConfig {
    /// Reads and checks the settings in `file` of a model directory.
    ///
    /// # Errors
    /// [`LoadError`] when they are not of this form, or ask for something that is not computed here.
    pub(crate) fn read(dir: &ModelDir, file: &str, sizes: &Sizes) -> Result<Self, LoadError> {
        let raw: Raw = dir.read_json(file)?;
        let unsupported = |setting: &str, found: &str, supported| LoadError::Unsupported {
            path: dir.file(file),
            setting: setting.to_owned(),
            found: shown(found),
            supported,
        };
        let damaged = |reason: String| LoadError::damaged(dir.file(file), &reason);
        if let Some(found) = raw.rope_scaling.as_ref().filter(|value| !value.is_null()) {
            return Err(unsupported("rope_scaling", &found.to_string(), "null"));
        }
        let theta = |rope: Option<&Rope>, unsaid: f64| {
            let kind = rope.and_then(|rope| rope.rope_type.as_deref());
            if let Some(found) = kind.filter(|&kind| kind != "default") {
                return Err(unsupported("rope_type", found, "default"));
            }
            let theta = rope.and_then(|rope| rope.rope_theta).unwrap_or(unsaid);
            // In the precision that angles are computed in.
            match (theta as f32).is_finite() && theta >= 1.0 {
                true => Ok(theta),
                false => Err(damaged(format!("a rope theta is {theta}"))),
            }
        };
        let by_kind = raw.rope_parameters.as_ref();
        let global = by_kind.and_then(|both| both.full_attention.as_ref());
        let local = by_kind.and_then(|both| both.sliding_attention.as_ref());
        if !sizes.head_size.is_multiple_of(2) {
            let width = sizes.head_size;
            return Err(damaged(format!("a head's width, {width}, is not a multiple of 2")));
        }
        if sizes.positions.saturating_mul(sizes.head_size) > ANGLES {
            return Err(damaged(format!(
                "max_position_embeddings {} is too many for heads of {} numbers",
                sizes.positions, sizes.head_size
            )));
        }
        let classifier_pooling = match raw.classifier_pooling.as_str() {
            "cls" => Pooling::First,
            "mean" => Pooling::Mean,
            other => return Err(unsupported("classifier_pooling", other, "cls, mean")),
        };
        let activation = raw.classifier_activation.as_str();
        let classifier_activation = Activation::named(activation)
            .ok_or_else(|| unsupported("classifier_activation", activation, Activation::KNOWN))?;
        Ok(Self {
            global_theta: theta(global, raw.global_rope_theta)?,
            local_theta: theta(local, raw.local_rope_theta)?,
            window: raw.local_attention / 2,
            attention_bias: raw.attention_bias,
            mlp_bias: raw.mlp_bias,
            norm_bias: raw.norm_bias,
            classifier_pooling,
            classifier_bias: raw.classifier_bias,
            classifier_activation,
            attends_to_all: raw.attends_to_all(sizes.layers).map_err(damaged)?,
        })
    }
}

impl Raw {
    /// For each layer, whether it attends to all tokens.
    fn attends_to_all(&self, layers: usize) -> Result<Vec<bool>, String> {
        let Some(kinds) = &self.layer_types else {
            let every = self.global_attn_every_n_layers;
            if every == 0 {
                return Err("global_attn_every_n_layers is 0".to_owned());
            }
            return Ok((0..layers).map(|layer| layer % every == 0).collect());
        };
        if kinds.len() != layers {
            let count = kinds.len();
            return Err(format!("layer_types names {count} layers, and there are {layers}"));
        }
        let one = |kind: &String| match kind.as_str() {
            "full_attention" => Ok(true),
            "sliding_attention" => Ok(false),
            other => Err(format!(
                "layer_types names {:?}, and may name full_attention and sliding_attention",
                shown(other)
            )),
        };
        kinds.iter().map(one).collect()
    }
}
