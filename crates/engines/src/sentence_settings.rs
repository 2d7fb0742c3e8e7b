//! What sentence-transformers adds to a plain BERT directory: the length limit, lower case, the
//! pooling, projections and normalisation after it, and prompts.
//!
//! Read if they are there: `sentence_bert_config.json` (length limit, lower case),
//! `tokenizer_config.json` (length limit), `modules.json`, the `config.json` of the pooling and of
//! projections, and `config_sentence_transformers.json` (prompts).

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::{LoadError, shown};
use crate::model_dir::ModelDir;

/// Name of the file that lists what a text goes through.
const MODULES: &str = "modules.json";

/// How a text's vector is made from those of its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pooling {
    /// The mean over all tokens, special ones included.
    #[default]
    Mean,
    /// The first token's vector.
    First,
    /// The last token's vector.
    Last,
}

/// What sentence-transformers adds to a plain BERT directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SentenceSettings {
    /// Length limit in tokens, special tokens included: from `sentence_bert_config.json`, else
    /// `tokenizer_config.json`; `None` when neither states one.
    pub max_length: Option<usize>,
    /// Whether the text is lower-cased before the tokeniser sees it.
    pub lower_case: bool,
    /// How a text's vector is made; the mean where the directory does not say.
    pub pooling: Pooling,
    /// What follows the pooling.
    pub projections: Vec<ProjectionSettings>,
    /// Whether it is scaled to length 1 at the end: what `modules.json` says, and yes without one.
    pub normalise: bool,
    /// What may be put before a text, by name: `query`, `document`.
    pub prompts: BTreeMap<String, String>,
    /// What is put before a text unless another prompt is asked for.
    pub default_prompt: Option<String>,
}

/// A linear map that follows the pooling.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProjectionSettings {
    /// Its folder in the model's directory.
    pub folder: String,
    /// Width of what goes in.
    pub width_in: usize,
    /// Width of what comes out.
    pub width_out: usize,
    /// Whether it has a bias.
    pub bias: bool,
    /// Whether the hyperbolic tangent follows.
    pub tanh: bool,
}

#[derive(Deserialize)]
struct DenseConfig {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    activation_function: Option<String>,
}

fn yes() -> bool {
    true
}

#[derive(Default, Deserialize)]
struct Prompts {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    #[serde(default)]
    default_prompt_name: Option<String>,
}

/// The most bytes of a prompt, and the most prompts.
const PROMPT_BYTES: usize = 16 << 10;
const MOST_PROMPTS: usize = 1 << 10;

#[derive(Deserialize)]
struct SentenceBertConfig {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Deserialize)]
struct TokenizerConfig {
    /// A float, because transformers writes 1e30 for "no limit".
    model_max_length: Option<f64>,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// The settings of a pooling: one flag for each mode, or (later versions) the mode's name.
#[derive(Deserialize)]
struct PoolingConfig {
    pooling_mode: Option<String>,
    /// Whether the tokens of a prompt count.
    include_prompt: Option<bool>,
    #[serde(flatten)]
    flags: serde_json::Map<String, serde_json::Value>,
}

impl PoolingConfig {
    /// The modes that are switched on, by name.
    fn modes(&self) -> Vec<String> {
        if let Some(mode) = &self.pooling_mode {
            return vec![mode.clone()];
        }
        let on = self.flags.iter().filter(|(_, value)| **value == serde_json::Value::Bool(true));
        on.filter_map(|(name, _)| name.strip_prefix("pooling_mode_"))
            .map(|name| name.trim_end_matches("_tokens").trim_end_matches("_token").to_owned())
            .collect()
    }
}

impl SentenceSettings {
    /// Reads the settings of a directory; all of these files may be absent.
    ///
    /// # Errors
    /// [`LoadError`] when a file is damaged, or asks for a pooling or a module that is not computed
    /// here: a transformer, a pooling (mean, cls or lasttoken), projections (`Dense`) and a
    /// normalisation are, in this order. A pooling
    /// that is listed and has no settings is an error too: to assume one would give other vectors.
    pub fn read(dir: &ModelDir) -> Result<Self, LoadError> {
        let modules = modules(dir)?;
        let (prompts, default_prompt) = prompts(dir)?;
        Ok(Self {
            pooling: modules.pooling,
            projections: modules.projections,
            normalise: modules.normalise,
            prompts,
            default_prompt,
            ..Self::read_limits(dir)?
        })
    }

    /// The same without pooling and normalisation: those of a model that does not embed.
    pub(crate) fn read_limits(dir: &ModelDir) -> Result<Self, LoadError> {
        let sentence: Option<SentenceBertConfig> =
            dir.read_json_if_there("sentence_bert_config.json")?;
        let tokenizer: Option<TokenizerConfig> = dir.read_json_if_there("tokenizer_config.json")?;
        let by_tokenizer = tokenizer
            .and_then(|config| config.model_max_length)
            .filter(|&length| (1.0..1e9).contains(&length))
            .map(|length| length as usize);
        let stated = sentence.as_ref().and_then(|config| config.max_seq_length);
        Ok(Self {
            max_length: stated.or(by_tokenizer),
            lower_case: sentence.is_some_and(|config| config.do_lower_case),
            pooling: Pooling::default(),
            projections: Vec::new(),
            normalise: true,
            prompts: BTreeMap::new(),
            default_prompt: None,
        })
    }
}

/// The prompts by name, and the one that is used unasked.
fn prompts(dir: &ModelDir) -> Result<(BTreeMap<String, String>, Option<String>), LoadError> {
    const FILE: &str = "config_sentence_transformers.json";
    let Prompts { prompts, default_prompt_name } =
        dir.read_json_if_there(FILE)?.unwrap_or_default();
    if prompts.len() > MOST_PROMPTS || prompts.values().any(|text| text.len() > PROMPT_BYTES) {
        let reason = format!("more than {MOST_PROMPTS} prompts, or one of {PROMPT_BYTES} bytes");
        return Err(LoadError::damaged(dir.file(FILE), &reason));
    }
    let default = match default_prompt_name {
        None => None,
        Some(name) => Some(prompts.get(&name).cloned().ok_or_else(|| {
            let reason = format!("its default prompt {:?} is none of its prompts", shown(&name));
            LoadError::damaged(dir.file(FILE), &reason)
        })?),
    };
    Ok((prompts, default.filter(|text| !text.is_empty())))
}

/// What `modules.json` lists after the transformer.
struct Modules {
    pooling: Pooling,
    projections: Vec<ProjectionSettings>,
    normalise: bool,
}

/// What is computed of a list of modules.
const SUPPORTED: &str = "Transformer, Pooling, then Dense, then Normalize";

fn modules(dir: &ModelDir) -> Result<Modules, LoadError> {
    let Some(modules) = dir.read_json_if_there::<Vec<Module>>(MODULES)? else {
        let file = "1_Pooling/config.json";
        let config = dir.read_json_if_there::<PoolingConfig>(file)?;
        let pooling = config.map_or(Ok(Pooling::Mean), |config| pooling(dir, file, &config))?;
        return Ok(Modules { pooling, projections: Vec::new(), normalise: true });
    };
    let unsupported = |setting: &str, found: &str| LoadError::Unsupported {
        path: dir.file(MODULES),
        setting: setting.to_owned(),
        found: shown(found),
        supported: SUPPORTED,
    };
    let (mut pooled, mut projections, mut normalise) = (None, Vec::new(), false);
    for module in modules {
        // What follows out of order would be computed out of order.
        match module.kind.rsplit('.').next() {
            Some("Transformer") if pooled.is_none() => {}
            Some("Normalize") if pooled.is_some() => normalise = true,
            Some("Pooling") if pooled.is_none() => {
                let file = format!("{}/config.json", dir.folder(&module.path, MODULES)?);
                pooled = Some(pooling(dir, &file, &dir.read_json(&file)?)?);
            }
            Some("Dense") if pooled.is_some() && !normalise => {
                projections.push(projection(dir, dir.folder(&module.path, MODULES)?)?);
            }
            _ => return Err(unsupported("type", &module.kind)),
        }
    }
    match pooled {
        Some(pooling) => Ok(Modules { pooling, projections, normalise }),
        None => Err(unsupported("modules", "no Pooling")),
    }
}

fn projection(dir: &ModelDir, folder: String) -> Result<ProjectionSettings, LoadError> {
    let file = format!("{folder}/config.json");
    let config: DenseConfig = dir.read_json(&file)?;
    let widths = [config.in_features, config.out_features];
    if widths.iter().any(|&width| width == 0 || width > 1 << 24) {
        let reason = format!("its widths are {widths:?}");
        return Err(LoadError::damaged(dir.file(&file), &reason));
    }
    let function = config.activation_function.as_deref().unwrap_or("Identity");
    let tanh = match function.rsplit('.').next() {
        Some("Tanh") => true,
        Some("Identity") => false,
        _ => {
            return Err(LoadError::Unsupported {
                path: dir.file(&file),
                setting: "activation_function".to_owned(),
                found: shown(function),
                supported: "Tanh, Identity",
            });
        }
    };
    let [width_in, width_out] = widths;
    Ok(ProjectionSettings { folder, width_in, width_out, bias: config.bias, tanh })
}

fn pooling(dir: &ModelDir, file: &str, config: &PoolingConfig) -> Result<Pooling, LoadError> {
    if config.include_prompt == Some(false) {
        return Err(LoadError::Unsupported {
            path: dir.file(file),
            setting: "include_prompt".to_owned(),
            found: "false".to_owned(),
            supported: "true",
        });
    }
    let modes = config.modes();
    match modes.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["mean"] => Ok(Pooling::Mean),
        ["cls"] => Ok(Pooling::First),
        ["lasttoken"] => Ok(Pooling::Last),
        _ => Err(LoadError::Unsupported {
            path: dir.file(file),
            setting: "pooling_mode".to_owned(),
            found: if modes.is_empty() { "none".to_owned() } else { shown(&modes.join("+")) },
            supported: "mean, cls, lasttoken",
        }),
    }
}
