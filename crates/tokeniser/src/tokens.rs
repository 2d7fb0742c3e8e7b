//! What a server asks of a tokeniser beside encoding: the tokens of a text, the text of tokens, and
//! token ids that somebody else made.

use crate::tokenised::TokenisedText;
use crate::tokeniser::{TokeniseError, Tokeniser};

/// A token and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextToken {
    /// Its number in the vocabulary.
    pub id: u32,
    /// The part of the text that it is, or a special token's own name.
    pub text: String,
    /// Whether it is a special token, which no part of the text made.
    pub special: bool,
    /// Its start and end in the text, in characters; nothing for a special token.
    pub span: Option<(usize, usize)>,
}

impl Tokeniser {
    /// The tokens of a text, up to the limit; `special` says whether special ones are added.
    ///
    /// # Errors
    /// [`TokeniseError`] with what the tokeniser said.
    pub fn tokens(&self, text: &str, special: bool) -> Result<Vec<TextToken>, TokeniseError> {
        let lowered = self.lower_case().then(|| text.to_lowercase());
        let text = lowered.as_deref().unwrap_or(text);
        let encoding = self.tokenizer.encode_char_offsets(text, special).map_err(TokeniseError)?;
        let characters: Vec<char> = text.chars().collect();
        let token = |index: usize| {
            let is_special = encoding.get_special_tokens_mask()[index] == 1;
            let (start, stop) = encoding.get_offsets()[index];
            let text = match characters.get(start..stop) {
                Some(part) if !is_special => part.iter().collect(),
                _ => encoding.get_tokens()[index].clone(),
            };
            let span = (!is_special).then_some((start, stop));
            TextToken { id: encoding.get_ids()[index], text, special: is_special, span }
        };
        Ok((0..encoding.len()).map(token).collect())
    }

    /// The text of token ids; `skip_special` leaves the special ones out, as ids that there are not
    /// always are.
    ///
    /// # Errors
    /// [`TokeniseError`] with what the tokeniser said.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokeniseError> {
        self.tokenizer.decode(ids, skip_special).map_err(TokeniseError)
    }

    /// The text that token ids stand for, special tokens included, cut at the limit.
    ///
    /// # Errors
    /// [`TokeniseError`] for no id at all, or one that is not in the vocabulary.
    pub fn encode_ids(&self, ids: &[u32]) -> Result<TokenisedText, TokeniseError> {
        let unknown = ids.iter().find(|id| self.tokenizer.id_to_token(**id).is_none());
        if let Some(id) = unknown {
            return Err(TokeniseError(format!("there is no token {id}").into()));
        }
        let kept = &ids[..ids.len().min(self.max_length())];
        if kept.is_empty() {
            return Err(TokeniseError("there is no token in it".into()));
        }
        Ok(TokenisedText {
            ids: kept.into(),
            second: kept.len(),
            bucket: self.buckets.length_for(kept.len()),
            truncated: kept.len() < ids.len(),
            each_token: false,
        })
    }
}
