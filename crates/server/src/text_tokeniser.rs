//! The tokeniser that most models have, as the server asks it.

use onelane_tokeniser::{TextToken, TokeniseError, TokenisedText, Tokeniser};

use crate::text::{TextError, Token, Tokenised, Tokens};

impl Tokens for Tokeniser {
    fn tokens(&self, text: &str, special: bool) -> Result<Vec<Token>, TextError> {
        let token = |token: TextToken| Token {
            id: token.id,
            text: token.text,
            special: token.special,
            start: token.span.map(|(start, _)| start),
            stop: token.span.map(|(_, stop)| stop),
        };
        Ok(Tokeniser::tokens(self, text, special)?.into_iter().map(token).collect())
    }

    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        Ok(Tokeniser::decode(self, ids, skip_special)?)
    }
}

impl From<TokeniseError> for TextError {
    fn from(error: TokeniseError) -> Self {
        Self(error.to_string())
    }
}

impl From<TokenisedText> for Tokenised<TokenisedText> {
    fn from(text: TokenisedText) -> Self {
        Self { tokens: text.ids().len(), truncated: text.truncated(), item: text }
    }
}
