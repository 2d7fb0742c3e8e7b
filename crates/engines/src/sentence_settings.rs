//! What sentence-transformers adds to a plain BERT directory: the length limit, lower case, the
//! pooling and the normalisation.
//!
//! Read if they are there: `sentence_bert_config.json` (length limit, lower case),
//! `tokenizer_config.json` (length limit), `modules.json`, and the `config.json` of the pooling.

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
    /// Whether it is scaled to length 1: what `modules.json` says, and yes without one.
    pub normalise: bool,
}

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
    /// here: a transformer, a pooling (mean, cls or lasttoken) and a normalisation are. A pooling
    /// that is listed and has no settings is an error too: to assume one would give other vectors.
    pub fn read(dir: &ModelDir) -> Result<Self, LoadError> {
        let sentence: Option<SentenceBertConfig> =
            dir.read_json_if_there("sentence_bert_config.json")?;
        let tokenizer: Option<TokenizerConfig> = dir.read_json_if_there("tokenizer_config.json")?;
        let by_tokenizer = tokenizer
            .and_then(|config| config.model_max_length)
            .filter(|&length| (1.0..1e9).contains(&length))
            .map(|length| length as usize);
        let stated = sentence.as_ref().and_then(|config| config.max_seq_length);
        let (pooling, normalise) = modules(dir)?;
        Ok(Self {
            max_length: stated.or(by_tokenizer),
            lower_case: sentence.is_some_and(|config| config.do_lower_case),
            pooling,
            normalise,
        })
    }
}

/// The pooling, and whether a normalisation follows.
fn modules(dir: &ModelDir) -> Result<(Pooling, bool), LoadError> {
    let Some(modules) = dir.read_json_if_there::<Vec<Module>>(MODULES)? else {
        let file = "1_Pooling/config.json";
        let config = dir.read_json_if_there::<PoolingConfig>(file)?;
        return Ok((config.map_or(Ok(Pooling::Mean), |config| pooling(dir, file, &config))?, true));
    };
    let unsupported = |setting: &str, found: &str, supported| LoadError::Unsupported {
        path: dir.file(MODULES),
        setting: setting.to_owned(),
        found: shown(found),
        supported,
    };
    let (mut pooled, mut normalise) = (None, false);
    for module in modules {
        match module.kind.rsplit('.').next() {
            Some("Transformer") => {}
            Some("Normalize") => normalise = true,
            Some("Pooling") => {
                let file = format!("{}/config.json", dir.folder(&module.path, MODULES)?);
                pooled = Some(pooling(dir, &file, &dir.read_json(&file)?)?);
            }
            _ => {
                let supported = "Transformer, Pooling, Normalize";
                return Err(unsupported("type", &module.kind, supported));
            }
        }
    }
    match pooled {
        Some(pooling) => Ok((pooling, normalise)),
        None => Err(unsupported("modules", "no Pooling", "Transformer, Pooling, Normalize")),
    }
}

fn pooling(dir: &ModelDir, file: &str, config: &PoolingConfig) -> Result<Pooling, LoadError> {
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
