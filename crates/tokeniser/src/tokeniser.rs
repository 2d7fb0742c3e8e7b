//! The tokeniser: text in, token ids and a length bucket out, on the submitting thread.
//!
//! Immutable after loading, so any number of threads share one. It truncates as the model's files
//! say, and never pads: padding belongs to the batch.

use tokenizers::{
    Encoding, PostProcessor, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy,
};

use crate::bucket::{BucketConfig, BucketError, Buckets};
use crate::tokenised::TokenisedText;
use crate::tokenizer_file;
use crate::vocabulary::Vocabulary;

/// The most bytes of a text that are looked at; the rest is cut off, as what is beyond the limit in
/// tokens is. A text of this size has a hundred thousand words.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

/// Bytes for each token of the limit that are looked at first: of a longer text, most is cut off.
const BYTES_A_TOKEN: usize = 16;

/// Tokens that must be left over before the rest of a text is not looked at: those at the cut may be
/// others than in the whole text.
const LEFT_OVER: usize = 32;

/// A tokeniser with its length limit and buckets.
pub struct Tokeniser {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) buckets: Buckets,
    vocabulary: Vocabulary,
    /// Whether the end of a long text is cut off; else its start.
    keeps_start: bool,
}

/// A `tokenizer.json` that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokeniserError {
    /// It is damaged, asks for too much, or does not fit the model; the text says which.
    #[error("{0}")]
    File(String),
    /// The length buckets cannot be used.
    #[error(transparent)]
    Buckets(#[from] BucketError),
}

/// A text that could not be tokenised.
#[derive(Debug, thiserror::Error)]
#[error("the text cannot be tokenised: {0}")]
pub struct TokeniseError(pub(crate) Failure);

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Tokeniser {
    /// Reads the content of a `tokenizer.json`, which may be a stranger's.
    ///
    /// The limit in tokens is `vocabulary.max_length`, else that of the truncation in the file, else
    /// the number of positions; never more than that.
    ///
    /// # Errors
    /// [`TokeniserError`] when it is damaged, does not fit the model, or the buckets are unusable.
    pub fn read(
        file: Vec<u8>,
        vocabulary: Vocabulary,
        buckets: &BucketConfig,
    ) -> Result<Self, TokeniserError> {
        // The tokenizers crate panics on some damage.
        std::panic::catch_unwind(|| Self::read_checked(file, vocabulary, buckets)).unwrap_or_else(
            |_| {
                let reason = "what is in it makes the tokenizers crate panic";
                Err(TokeniserError::File(reason.to_owned()))
            },
        )
    }

    fn read_checked(
        file: Vec<u8>,
        vocabulary: Vocabulary,
        buckets: &BucketConfig,
    ) -> Result<Self, TokeniserError> {
        let damaged = |reason: String| TokeniserError::File(reason);
        tokenizer_file::check(&file).map_err(damaged)?;
        let mut tokenizer =
            Tokenizer::from_bytes(file).map_err(|error| damaged(error.to_string()))?;

        let truncation = tokenizer.get_truncation().cloned().unwrap_or_default();
        let stated = tokenizer.get_truncation().map(|truncation| truncation.max_length);
        let limit = vocabulary
            .max_length
            .or(stated)
            .unwrap_or(vocabulary.positions)
            .min(vocabulary.positions);
        let special =
            tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if limit <= special {
            return Err(damaged(format!(
                "a limit of {limit} tokens leaves no room beside {special} special tokens"
            )));
        }
        let keeps_start = truncation.direction == TruncationDirection::Right;
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
        if largest as usize >= vocabulary.size {
            return Err(damaged(format!(
                "its token {largest} is outside the vocabulary of {} in config.json",
                vocabulary.size
            )));
        }
        let tokeniser = Self { tokenizer, buckets: buckets.fit(limit)?, vocabulary, keeps_start };
        tokeniser.check().map_err(damaged)?;
        Ok(tokeniser)
    }

    /// Whether an ordinary text gets tokens that the model has, all of the first segment kind.
    fn check(&self) -> Result<(), String> {
        for text in ["a", ""] {
            let encoding = self.tokenise(text).map_err(|error| error.to_string())?;
            if let Some(id) = self.foreign(&encoding) {
                return Err(format!(
                    "it gives the text {text:?} the token {id}, outside the vocabulary of {} in \
                     config.json",
                    self.vocabulary.size
                ));
            }
            if encoding.get_type_ids().iter().any(|&kind| kind != 0) {
                return Err("it gives a single text another segment kind than 0".to_owned());
            }
            if encoding.is_empty() && !text.is_empty() {
                return Err(format!("it makes no token of the text {text:?}"));
            }
        }
        Ok(())
    }

    /// Tokenises one text; an empty one becomes its special tokens.
    ///
    /// Of a text far beyond the limit only the part that counts is looked at, and never more than
    /// [`MAX_TEXT_BYTES`].
    ///
    /// # Errors
    /// [`TokeniseError`] with what the tokeniser said, or when no token at all came out, or one that
    /// the model does not have.
    pub fn encode(&self, text: &str) -> Result<TokenisedText, TokeniseError> {
        let (encoding, cut) = self.encode_start(text).map_err(TokeniseError)?;
        self.tokenised(&encoding, cut)
    }

    /// Tokenises a pair of texts, for a model that scores or classifies pairs: with the tokens that the
    /// tokeniser puts between them. Of a pair that is too long the longer text is cut.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); or when the special tokens of a pair leave no room.
    pub fn encode_pair(&self, first: &str, second: &str) -> Result<TokenisedText, TokeniseError> {
        let special = self.tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(true));
        if self.max_length() <= special {
            let limit = self.max_length();
            let text = format!("{special} special tokens leave no room in the limit of {limit}");
            return Err(TokeniseError(text.into()));
        }
        let (first, first_cut) = self.part_that_counts(first).map_err(TokeniseError)?;
        let (second, second_cut) = self.part_that_counts(second).map_err(TokeniseError)?;
        let encoding = if self.lower_case() {
            self.tokenizer.encode_fast((first.to_lowercase(), second.to_lowercase()), true)
        } else {
            self.tokenizer.encode_fast((first, second), true)
        };
        self.tokenised(&encoding.map_err(TokeniseError)?, first_cut || second_cut)
    }

    fn tokenised(&self, encoding: &Encoding, cut: bool) -> Result<TokenisedText, TokeniseError> {
        if encoding.is_empty() {
            return Err(TokeniseError("no token came out of it".into()));
        }
        if let Some(id) = self.foreign(encoding) {
            let text = format!("its token {id} is outside the model's vocabulary");
            return Err(TokeniseError(text.into()));
        }
        Ok(TokenisedText {
            ids: encoding.get_ids().into(),
            second: self.second(encoding.get_type_ids())?,
            bucket: self.buckets.length_for(encoding.len()),
            truncated: cut || !encoding.get_overflowing().is_empty(),
            each_token: false,
        })
    }

    /// Where the second segment kind begins, in a model that has one.
    fn second(&self, kinds: &[u32]) -> Result<usize, TokeniseError> {
        if self.vocabulary.kinds < 2 {
            return Ok(kinds.len());
        }
        let second = kinds.iter().position(|&kind| kind != 0).unwrap_or(kinds.len());
        if kinds[second..].iter().any(|&kind| kind != 1) {
            let text = "the tokeniser gives its tokens segment kinds other than 0, then 1";
            return Err(TokeniseError(text.into()));
        }
        Ok(second)
    }

    /// As much of a text as counts beside another, and whether that is not all of it: what is cut
    /// off would be even if the other were empty.
    fn part_that_counts<'a>(&self, text: &'a str) -> Result<(&'a str, bool), Failure> {
        if text.len() <= self.max_length().saturating_mul(BYTES_A_TOKEN) {
            return Ok((text, false));
        }
        let (part, _) = self.encode_part(text)?;
        Ok((part, part.len() < text.len()))
    }

    /// The encoding of as much of a text as counts, and whether the rest was not looked at.
    fn encode_start(&self, text: &str) -> Result<(Encoding, bool), Failure> {
        let (part, encoding) = self.encode_part(text)?;
        Ok((encoding, part.len() < text.len()))
    }

    /// As much of a text as counts, and its encoding.
    fn encode_part<'a>(&self, text: &'a str) -> Result<(&'a str, Encoding), Failure> {
        let mut most = self.max_length().saturating_mul(BYTES_A_TOKEN);
        while self.keeps_start && most < MAX_TEXT_BYTES {
            // Whole words, so that their tokens are those that they have in the whole text.
            if let Some(start) = start_of_words(text, most) {
                let encoding = self.tokenise(start)?;
                let left: usize = encoding.get_overflowing().iter().map(Encoding::len).sum();
                if left > LEFT_OVER {
                    return Ok((start, encoding));
                }
            }
            if text.len() <= most {
                break;
            }
            most = most.saturating_mul(8);
        }
        let part = match (text.len() > MAX_TEXT_BYTES, self.keeps_start) {
            (false, _) => text,
            (true, true) => &text[..text.floor_char_boundary(MAX_TEXT_BYTES)],
            (true, false) => &text[text.ceil_char_boundary(text.len() - MAX_TEXT_BYTES)..],
        };
        Ok((part, self.tokenise(part)?))
    }

    fn tokenise(&self, text: &str) -> Result<Encoding, Failure> {
        if self.lower_case() {
            self.tokenizer.encode_fast(text.to_lowercase(), true)
        } else {
            self.tokenizer.encode_fast(text, true)
        }
    }

    /// A token that the model has no vector for.
    fn foreign(&self, encoding: &Encoding) -> Option<u32> {
        encoding.get_ids().iter().copied().find(|&id| id as usize >= self.vocabulary.size)
    }

    pub(crate) fn lower_case(&self) -> bool {
        self.vocabulary.lower_case
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

/// The words at the start of a longer text: at most so many bytes, and cut before a space. `None`
/// when the text is no longer than that, or is one word to there.
fn start_of_words(text: &str, most: usize) -> Option<&str> {
    if text.len() <= most {
        return None;
    }
    let start = &text[..text.floor_char_boundary(most)];
    let end = start.trim_end().rfind(char::is_whitespace)?;
    Some(start[..end].trim_end()).filter(|words| !words.trim_start().is_empty())
}
