//! A model directory: where its files are, and the sentence-transformers settings in it.
//!
//! Needed: `config.json`, `tokenizer.json`, `model.safetensors`. Read if they are there:
//! `sentence_bert_config.json` (length limit, lower case), `tokenizer_config.json` (length limit),
//! `modules.json` and the `config.json` of the pooling. Nothing is ever fetched from elsewhere.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::LoadError;

/// A directory that was seen to hold the needed files.
#[derive(Clone, Debug)]
pub struct ModelDir {
    path: PathBuf,
}

impl ModelDir {
    /// Takes a path as a model directory.
    ///
    /// # Errors
    /// [`LoadError::NotADirectory`], or [`LoadError::Missing`] naming the first needed file that is
    /// absent.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = path.as_ref().to_path_buf();
        if !path.is_dir() {
            return Err(LoadError::NotADirectory { path });
        }
        let dir = Self { path };
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            let path = dir.file(name);
            if !path.exists() {
                return Err(LoadError::Missing { path });
            }
        }
        Ok(dir)
    }

    /// The directory's own path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads a whole file.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>, LoadError> {
        let path = self.file(name);
        std::fs::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => LoadError::Missing { path },
            _ => LoadError::Unreadable { path, source },
        })
    }

    /// Reads a JSON file of a known form.
    pub(crate) fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T, LoadError> {
        serde_json::from_slice(&self.read(name)?).map_err(|error| LoadError::Damaged {
            path: self.file(name),
            reason: error.to_string(),
        })
    }

    /// Reads a JSON file that may be absent.
    fn read_json_if_there<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, LoadError> {
        match self.read_json(name) {
            Ok(value) => Ok(Some(value)),
            Err(LoadError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What sentence-transformers adds to a plain BERT directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SentenceSettings {
    /// Length limit in tokens, special tokens included: from `sentence_bert_config.json`, else
    /// `tokenizer_config.json`; `None` when neither states one.
    pub max_length: Option<usize>,
    /// Whether the text is lower-cased before the tokeniser sees it.
    pub lower_case: bool,
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
struct Pooling {
    pooling_mode: Option<String>,
    #[serde(flatten)]
    flags: serde_json::Map<String, serde_json::Value>,
}

impl Pooling {
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
    /// [`LoadError`] when a file is damaged, or asks for a pooling other than the mean or for a
    /// module other than a transformer, a pooling and a normalisation.
    pub fn read(dir: &ModelDir) -> Result<Self, LoadError> {
        check_pooling(dir)?;
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
        })
    }
}

/// Refuses modules and pooling modes that this crate does not compute.
fn check_pooling(dir: &ModelDir) -> Result<(), LoadError> {
    const MODULES: &str = "modules.json";
    let mut pooling = "1_Pooling".to_owned();
    for module in dir.read_json_if_there::<Vec<Module>>(MODULES)?.unwrap_or_default() {
        match module.kind.rsplit('.').next() {
            Some("Transformer" | "Normalize") => {}
            Some("Pooling") => pooling = module.path,
            _ => {
                return Err(LoadError::Unsupported {
                    path: dir.file(MODULES),
                    setting: "type".to_owned(),
                    found: module.kind,
                    supported: "Transformer, Pooling, Normalize",
                });
            }
        }
    }
    let file = format!("{pooling}/config.json");
    let Some(config) = dir.read_json_if_there::<Pooling>(&file)? else {
        return Ok(());
    };
    let modes = config.modes();
    if modes == ["mean"] {
        return Ok(());
    }
    Err(LoadError::Unsupported {
        path: dir.file(&file),
        setting: "pooling_mode".to_owned(),
        found: if modes.is_empty() { "none".to_owned() } else { modes.join("+") },
        supported: "mean",
    })
}
