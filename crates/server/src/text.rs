//! Texts as tokens: what every kind of model says of its tokeniser.

use serde::Serialize;

/// A text, or a pair of texts, as the engine takes it.
#[derive(Clone, Debug)]
pub struct Tokenised<I> {
    /// The engine's own item; its batch key and cost are the request's.
    pub item: I,
    /// Real tokens, special ones included: what `usage` counts.
    pub tokens: usize,
    /// Whether the text was longer than the model's limit, so that its end was cut off.
    pub truncated: bool,
}

/// A token of a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Token {
    /// Its number in the vocabulary.
    pub id: u32,
    /// The token itself.
    pub text: String,
    /// Whether it is a special token, which no part of the text made.
    pub special: bool,
    /// Where it starts in the text, in characters; absent for a special token.
    pub start: Option<usize>,
    /// Where it ends.
    pub stop: Option<usize>,
}

/// A text that cannot be tokenised; the message says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TextError(pub String);

impl TextError {
    /// For what a model does not do.
    pub fn unsupported(what: &str) -> Self {
        Self(format!("this model's tokeniser does not {what}"))
    }
}

/// What the tokeniser of a model does beside making the engine's items. It runs on many threads.
pub trait Tokens: Send + Sync + 'static {
    /// The tokens of a text; `special` says whether special ones are added.
    ///
    /// # Errors
    /// [`TextError`] says why there are none.
    fn tokens(&self, text: &str, special: bool) -> Result<Vec<Token>, TextError> {
        let _ = (text, special);
        Err(TextError::unsupported("list tokens"))
    }

    /// The text of token ids; `skip_special` leaves the special ones out.
    ///
    /// # Errors
    /// [`TextError`] says why there is none.
    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let _ = (ids, skip_special);
        Err(TextError::unsupported("decode"))
    }
}
