//! The tokeniser: text in, token ids and a length bucket out, on the submitting thread.
//!
//! Immutable after loading, so any number of threads share one. It truncates as the model's files
//! say, and never pads: padding belongs to the batch.

mod tokens;

use onelane::BatchItem;
use tokenizers::{PostProcessor, Tokenizer, TruncationParams, TruncationStrategy};

use crate::bucket::{BucketConfig, Buckets};
use crate::config::BertConfig;
use crate::error::LoadError;
use crate::model_dir::{ModelDir, SentenceSettings};
pub use tokens::TextToken;

/// Name of the file in a model directory.
const FILE: &str = "tokenizer.json";

/// A tokeniser with its length limit and buckets.
pub struct Tokeniser {
    tokenizer: Tokenizer,
    lower_case: bool,
    buckets: Buckets,
}

/// A text that could not be tokenised.
#[derive(Debug, thiserror::Error)]
#[error("the text cannot be tokenised: {0}")]
pub struct TokeniseError(Box<dyn std::error::Error + Send + Sync>);

/// A text as token ids: the input of a request to an embedding engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenisedText {
    ids: Box<[u32]>,
    bucket: usize,
    truncated: bool,
}

impl TokenisedText {
    /// Token ids, special tokens included.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The length of its bucket in tokens: the batch key.
    pub fn bucket(&self) -> usize {
        self.bucket
    }

    /// Whether the text was longer than the model's limit, so that its end was cut off.
    pub fn truncated(&self) -> bool {
        self.truncated
    }
}

/// Texts of one bucket share a batch; a text costs its real tokens.
impl BatchItem for TokenisedText {
    type Key = usize;

    fn key(&self) -> usize {
        self.bucket
    }

    fn cost(&self) -> usize {
        self.ids.len()
    }
}

impl Tokeniser {
    /// Loads `tokenizer.json` and the settings beside it.
    ///
    /// The limit is the one of `sentence_bert_config.json`, else of `tokenizer_config.json`, else of
    /// the truncation in `tokenizer.json`, else the number of positions; never more than that.
    ///
    /// # Errors
    /// [`LoadError`] when a file is damaged, does not fit `config`, or the buckets are unusable.
    pub fn load(
        dir: &ModelDir,
        config: &BertConfig,
        buckets: &BucketConfig,
    ) -> Result<Self, LoadError> {
        // The tokenizers crate panics on some damage.
        std::panic::catch_unwind(|| Self::read(dir, config, buckets)).unwrap_or_else(|_| {
            let reason = "what is in it makes the tokenizers crate panic".to_owned();
            Err(LoadError::Damaged { path: dir.file(FILE), reason })
        })
    }

    fn read(
        dir: &ModelDir,
        config: &BertConfig,
        buckets: &BucketConfig,
    ) -> Result<Self, LoadError> {
        let settings = SentenceSettings::read(dir)?;
        let damaged = |reason: String| LoadError::Damaged { path: dir.file(FILE), reason };
        let mut tokenizer =
            Tokenizer::from_bytes(dir.read(FILE)?).map_err(|error| damaged(error.to_string()))?;

        let truncation = tokenizer.get_truncation().cloned().unwrap_or_default();
        let stated = tokenizer.get_truncation().map(|truncation| truncation.max_length);
        let limit = settings
            .max_length
            .or(stated)
            .unwrap_or(config.max_position_embeddings)
            .min(config.max_position_embeddings);
        let special =
            tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if limit <= special {
            return Err(damaged(format!(
                "a limit of {limit} tokens leaves no room beside {special} special tokens"
            )));
        }
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(Some(TruncationParams {
                max_length: limit,
                stride: 0,
                strategy: TruncationStrategy::LongestFirst,
                ..truncation
            }))
            .map_err(|error| damaged(error.to_string()))?;

        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= config.vocab_size {
            return Err(damaged(format!(
                "its token {largest} is outside the vocabulary of {} in config.json",
                config.vocab_size
            )));
        }
        let tokeniser =
            Self { tokenizer, lower_case: settings.lower_case, buckets: buckets.fit(limit)? };
        tokeniser.check().map_err(damaged)?;
        Ok(tokeniser)
    }

    /// Whether an ordinary text gets tokens, all of the first segment kind.
    fn check(&self) -> Result<(), String> {
        let encoding = self.tokenizer.encode_fast("a", true).map_err(|e| e.to_string())?;
        if encoding.is_empty() {
            return Err("it makes no token of the text \"a\"".to_owned());
        }
        if encoding.get_type_ids().iter().any(|&kind| kind != 0) {
            return Err("it gives a single text another segment kind than 0".to_owned());
        }
        Ok(())
    }

    /// Tokenises one text; an empty one becomes its special tokens.
    ///
    /// # Errors
    /// [`TokeniseError`] with what the tokeniser said, or when no token at all came out.
    pub fn encode(&self, text: &str) -> Result<TokenisedText, TokeniseError> {
        let encoding = if self.lower_case {
            self.tokenizer.encode_fast(text.to_lowercase(), true)
        } else {
            self.tokenizer.encode_fast(text, true)
        }
        .map_err(TokeniseError)?;
        if encoding.is_empty() {
            return Err(TokeniseError("no token came out of it".into()));
        }
        Ok(TokenisedText {
            ids: encoding.get_ids().into(),
            bucket: self.buckets.length_for(encoding.len()),
            truncated: !encoding.get_overflowing().is_empty(),
        })
    }

    /// The buckets of this model; their last length is its limit.
    pub fn buckets(&self) -> &Buckets {
        &self.buckets
    }

    /// The limit in tokens, special tokens included: longer texts are truncated.
    pub fn max_length(&self) -> usize {
        self.buckets.lengths().last().copied().unwrap_or(0)
    }
}
